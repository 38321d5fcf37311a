"""Meta-World's Sawyer as a robot that runs for ever: velocity commands instead of steps, no end of an episode.

Meta-World has no model of the arm's motors: the hand is welded to a free body, which is moved, and the joints follow.
So the hand takes velocities only, does not turn, and is the tool here, as it is in Meta-World's observations. The
base frame is the world's: the foot of the arm at the origin, the table's surface at z = 0.
"""

from __future__ import annotations

import sys

import numpy as np

from dr_sim.metaworld_env import JOINT_NAMES, begin_episode, open_task
from dr_sim.rendering import CAMERA_HEIGHT, CAMERA_WIDTH, RenderSettings
from dr_sim.robot import DrawnRobot, Pose, Vector, finite_numbers, xyzw
from dr_sim.tasks import default_camera, resolve_task

STEP_S = 0.0125
"""Of simulated time in one of Meta-World's steps."""
SPEED_M_S = 0.8
"""What an action of 1 means in Meta-World, 1 cm a step: the fastest along each axis."""
GRIPPER_MAX_WIDTH_M = 0.088
"""Between the pads of the open fingers; closed, they are 0.018 apart."""
LEASH_M = 0.1  # how far the body that pulls the hand may lead one that is blocked
# From the gap between fingers to their effort in [-1, 1]; critically damped for the model's armature of 100 kg.
GRIPPER_GAIN_PER_M = 50.0
GRIPPER_DAMPING_S_PER_M = 3.75


class SimulatedSawyer(DrawnRobot):
    """The arm with one of Meta-World's tasks and its camera. Construct, `reset(seed)`, then command and `step`.

    The same seed and the same commands give the same states.

    Args:
        task: a Meta-World task, with or without "-v3".
        command_timeout_s: without a new command for so long, the hand holds its position.
        settings: how the camera draws.

    Raises:
        ConfigError: there is no such task. RenderingError: no back-end.
    """

    tool_turns = False
    _velocity: Vector  # (3,) commanded, m/s
    _commanded_s: float
    _owed_s: float  # simulated time asked for and not yet gone by, less than a step
    _width_m: float  # commanded
    _raw: Vector  # (39,) Meta-World's observation, with the goal

    def __init__(self, task: str, *, command_timeout_s: float = 0.2, settings: RenderSettings | None = None) -> None:
        self.task = resolve_task(task)
        self.command_timeout_s = command_timeout_s
        super().__init__(settings or RenderSettings(CAMERA_WIDTH, CAMERA_HEIGHT, camera=default_camera(self.task)))
        self._env = open_task(self.task)
        self._env.max_path_length = sys.maxsize  # past its limit, Meta-World raises
        self._model, self._data = self._env.model, self._env.data
        joints = [self._model.joint(name) for name in JOINT_NAMES]
        self._positions = [joint.qposadr[0] for joint in joints]
        self._velocities = [joint.dofadr[0] for joint in joints]
        self.reset(0)

    def reset(self, seed: int) -> None:
        """The start of the episode that belongs to `seed`; clears an emergency stop."""
        self._raw = begin_episode(self._env, seed)
        self.estopped = self._success = False
        self.time_s = self._commanded_s = self._owed_s = 0.0
        self._velocity = np.zeros(3)
        self._width_m = GRIPPER_MAX_WIDTH_M

    @property
    def joint_names(self) -> tuple[str, ...]:
        return JOINT_NAMES

    @property
    def joint_positions(self) -> Vector:
        """(9,): seven angles, rad, and the two fingers' travel, m."""
        return self._data.qpos[self._positions]

    @property
    def joint_velocities(self) -> Vector:
        """(9,) rad/s and m/s."""
        return self._data.qvel[self._velocities]

    @property
    def tool_pose(self) -> Pose:
        """Of Meta-World's hand, 4.5 cm above the finger tips."""
        hand = self._data.body("hand")
        return hand.xpos.copy(), xyzw(hand.xquat)

    @property
    def gripper_width_m(self) -> float:
        """Between the fingers' pads."""
        right, left = self._data.qpos[self._positions[7:]]
        return float(GRIPPER_MAX_WIDTH_M - (right - left))

    @property
    def object_pose(self) -> Pose:
        """The first object's position; not turned, as Meta-World's tasks do not agree on what a quaternion means."""
        return self._raw[4:7].copy(), np.array([0.0, 0.0, 0.0, 1.0])

    @property
    def goal_m(self) -> Vector:
        """(3,) where the task wants its object, or the hand."""
        return self._env._get_pos_goal().copy()

    @property
    def expert_observation(self) -> Vector:
        """(39,) for Meta-World's scripted experts: with the goal."""
        return self._raw

    @property
    def camera_pose(self) -> Pose:
        """Of the camera's optical frame: x right, y down, z into the picture."""
        return self._draw().camera_pose(self._data)

    @property
    def success(self) -> bool:
        """What Meta-World says of the newest state."""
        return self._success

    @property
    def holding(self) -> bool:
        """Whether no motion is commanded (none came, it timed out, or the arm is stopped)."""
        return not self._velocity.any()

    def command_twist(self, linear_m_s: Vector, angular_rad_s: Vector) -> None:
        """Move the hand with this velocity (3,) in base axes, until the timeout; it does not turn. Raises ValueError.

        A velocity that is too fast is shortened.
        """
        velocity = finite_numbers(linear_m_s, 3)
        finite_numbers(angular_rad_s, 3)
        if not self.estopped:
            self._velocity = velocity / max(1.0, float(np.abs(velocity).max()) / SPEED_M_S)
            self._commanded_s = self.time_s

    def command_joint_positions(self, positions_rad: Vector) -> None:
        """Raises ValueError: the joints follow the hand."""
        raise ValueError("joint positions: Meta-World's Sawyer takes the velocity of its hand only")

    def command_joint_velocities(self, velocities_rad_s: Vector) -> None:
        """Raises ValueError: the joints follow the hand."""
        raise ValueError("joint velocities: Meta-World's Sawyer takes the velocity of its hand only")

    def command_gripper(self, width_m: float) -> None:
        """Bring the fingers to this distance, 0 to 0.088; what is between them is held. Raises ValueError."""
        width = float(finite_numbers(np.array([width_m]), 1)[0])
        if not self.estopped:
            self._width_m = float(np.clip(width, 0.0, GRIPPER_MAX_WIDTH_M))

    def emergency_stop(self) -> None:
        """Halt where the arm is, at once; every command is ignored until `reset`."""
        if not self.estopped:
            self._velocity = np.zeros(3)
            self._data.mocap_pos[0] = self._data.body("hand").xpos
            self._width_m = self.gripper_width_m
            self.estopped = True

    def age_command(self, seconds: float) -> None:
        """The newest motion command is older by so much than simulated time says."""
        self._commanded_s -= seconds

    def step(self, dt_s: float) -> None:
        """Let `dt_s` of simulated time go by, in whole steps of 12.5 ms; what is left over counts for the next call."""
        self._owed_s += dt_s
        while self._owed_s > 0.5 * STEP_S:
            self._owed_s -= STEP_S
            self._step()

    def close(self) -> None:
        """Free the OpenGL context and the simulator."""
        super().close()
        self._env.close()

    def _step(self) -> None:
        """One of Meta-World's steps. Without a command, the body that pulls the hand stays where it is."""
        if self.time_s - self._commanded_s > self.command_timeout_s:
            self._velocity = np.zeros(3)
        hand, lead = self._data.body("hand").xpos, self._data.mocap_pos[0]
        self._data.mocap_pos[0] = hand + np.clip(lead - hand, -LEASH_M, LEASH_M)
        action = [*(self._velocity / SPEED_M_S), self._effort()]
        self._raw, _, _, _, info = self._env.step(np.array(action, dtype=np.float32))
        self._success = bool(info["success"])
        self.time_s += STEP_S

    def _effort(self) -> float:
        """Of the fingers, -1 (open) to 1 (close), that brings them to the commanded width."""
        right_m_s, left_m_s = self._data.qvel[self._velocities[7:]]
        opening_m_s = float(left_m_s - right_m_s)
        wanted = GRIPPER_GAIN_PER_M * (self.gripper_width_m - self._width_m) + GRIPPER_DAMPING_S_PER_M * opening_m_s
        return float(np.clip(wanted, -1.0, 1.0))
