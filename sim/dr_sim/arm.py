"""A simulated Franka Panda with gripper at a table: push the block to the goal.

The arm answers commands as a real one does: they time out, an emergency stop is latched, joints have limits.
Lengths are metres, angles radians, times simulated seconds. Poses are in the base frame, which is the world's: the
foot of the arm stands on the table's surface at the origin, x points away from it, z up. Quaternions are xyzw.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dr_core.agent.pushing import push_action
from dr_core.errors import ConfigError
from dr_sim.rendering import CAMERA_HEIGHT, CAMERA_WIDTH, RenderSettings, select_backend
from dr_sim.robot import DrawnRobot, Pose, Vector, finite_numbers, xyzw
from dr_sim.tasks import default_camera

Mode = Literal["hold", "twist", "joint_position", "joint_velocity"]

ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
CAMERA = default_camera("panda-push")
GRIPPER_MAX_WIDTH_M = 0.08
JOINT_SPEED_RAD_S = np.array([0.8, 0.8, 0.8, 0.8, 1.1, 1.1, 1.1])
"""What the model's motors manage against its damping; commands that ask for more are slowed down as a whole."""
START_M = np.array([0.40, 0.0, 0.12])
SUCCESS_DISTANCE_M = 0.03

TICK_S = 0.01
DAMPING = 0.05  # of the inverse kinematics
LEASH_RAD = 0.15  # how far the reference may lead a blocked arm
ORIENTATION_GAIN_PER_S = 5.0
# Between the finger tips, oriented as the hand; the fingers reach 1 cm further.
HAND = "panda0_link7"
TOOL_POS_M, TOOL_QUAT_WXYZ = (0.0, 0.0, 0.25), (0.92388, 0.0, 0.0, -0.382683)
# A pose near the start, with the gripper pointing down: where the inverse kinematics begins.
NEAR_START_RAD = (0.0, -0.3, 0.0, -2.5, 0.0, 0.6, 0.0)

SCENE = """
<mujoco model="panda_push">
  <include file="{assets}/assets.xml"/>
  <compiler meshdir="{assets}/meshes"/>
  <include file="{assets}/actuator.xml"/>
  <option timestep="0.002"/>
  <visual><headlight ambient=".35 .35 .35" diffuse=".45 .45 .45" specular=".1 .1 .1"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".75 .8 .85" rgb2=".45 .5 .55" width="64" height="64"/>
  </asset>
  <worldbody>
    <light pos=".6 -.8 1.8" dir="0 .4 -1" diffuse=".5 .5 .5"/>
    <geom name="table" type="box" size=".5 .6 .02" pos=".35 0 -.02" rgba=".72 .6 .46 1"/>
    <geom type="plane" size="3 3 .1" pos="0 0 -.7" rgba=".5 .52 .55 1" contype="0" conaffinity="0"/>
    <camera name="front" pos="1.25 -.35 .75" xyaxes=".423 .906 0 -.580 .271 .768" fovy="34"/>
    <include file="{assets}/chain.xml"/>
    <body name="block" pos=".5 0 .025">
      <freejoint name="block"/>
      <geom name="block" type="box" size=".025 .025 .025" mass=".15" friction=".5 .005 .0001" rgba=".85 .15 .1 1"/>
    </body>
    <body name="goal" mocap="true">
      <geom type="cylinder" size=".035 .001" rgba=".1 .65 .2 1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
</mujoco>
"""


class SimulatedArm(DrawnRobot):
    """The arm, its table and its camera. Construct, `reset(seed)`, then command and `step`.

    The same seed and the same commands give the same states.

    Args:
        command_timeout_s: without a new command for so long, the arm holds its position.
        settings: how the camera draws; its `camera` is "front".

    Raises:
        ConfigError: gymnasium-robotics, whose model of the Panda is used, is not installed.
    """

    tool_turns = True
    start_m = START_M
    _mode: Mode
    _command: Vector  # (6,) or (7,) of the mode
    _commanded_s: float
    _owed_s: float  # of simulated time, less than a step
    _reference: Vector  # (7,) where the servos should be
    _rotation: Vector  # (3, 3) how the tool should be turned, in mode twist
    _gripper_m: float

    def __init__(self, *, command_timeout_s: float = 0.2, settings: RenderSettings | None = None) -> None:
        select_backend()
        import mujoco

        self._mujoco = mujoco
        self.command_timeout_s = command_timeout_s
        super().__init__(settings or RenderSettings(CAMERA_WIDTH, CAMERA_HEIGHT, camera=CAMERA))
        spec = mujoco.MjSpec.from_string(SCENE.format(assets=_assets()))
        self._furnish(spec)
        for body in spec.bodies:
            if body.name.startswith("panda0_"):
                body.gravcomp = 1.0  # as the real arm's controller does
        spec.body(HAND).add_site(name="tool", pos=TOOL_POS_M, quat=TOOL_QUAT_WXYZ)
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._scratch = mujoco.MjData(self._model)  # kinematics of the reference, not of the arm
        self._tool = self._model.site("tool").id
        limits = self._model.jnt_range[:7]
        self.joint_lower_rad, self.joint_upper_rad = limits[:, 0].copy(), limits[:, 1].copy()
        # The servo lags its set-point by damping / stiffness; leading it by as much makes it follow.
        self._lead_s = self._model.dof_damping[:7] / self._model.actuator_gainprm[:7, 0]
        self._home = self._solve_start()
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Arm to its start, block and goal to the places that belong to `seed`; clears an emergency stop."""
        random = np.random.default_rng(seed)
        block = random.uniform([0.42, -0.12], [0.52, 0.12])
        while True:
            goal = random.uniform([0.42, -0.22], [0.62, 0.22])
            if 0.12 < np.linalg.norm(goal - block) < 0.25:
                break
        yaw = random.uniform(-0.3, 0.3)
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:7] = self._home
        self._data.joint("block").qpos[:] = [*block, 0.025, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self._data.mocap_pos[0] = [*goal, 0.001]
        self.estopped = False
        self._gripper_m = self._commanded_s = self._owed_s = 0.0
        self._hold()
        self._mujoco.mj_forward(self._model, self._data)

    @property
    def time_s(self) -> float:
        """Simulated time since the reset."""
        return float(self._data.time)

    @property
    def joint_names(self) -> tuple[str, ...]:
        return ARM_JOINTS + FINGER_JOINTS

    @property
    def joint_positions(self) -> Vector:
        """(9,): seven angles, rad, and the two fingers' travel, m."""
        return self._data.qpos[:9].copy()

    @property
    def joint_velocities(self) -> Vector:
        """(9,) rad/s and m/s."""
        return self._data.qvel[:9].copy()

    @property
    def tool_pose(self) -> Pose:
        """Of the point between the finger tips."""
        quat = np.empty(4)
        self._mujoco.mju_mat2Quat(quat, self._data.site_xmat[self._tool])
        return self._data.site_xpos[self._tool].copy(), xyzw(quat)

    @property
    def object_pose(self) -> Pose:
        """Of the block."""
        body = self._data.body("block")
        return body.xpos.copy(), xyzw(body.xquat)

    @property
    def goal_m(self) -> Vector:
        """(3,) position of the goal's marker on the table."""
        return self._data.mocap_pos[0].copy()

    @property
    def camera_pose(self) -> Pose | None:
        """Of the camera's optical frame: x right, y down, z into the picture."""
        return self._draw().camera_pose(self._data)

    @property
    def success(self) -> bool:
        """Whether the block lies at the goal."""
        away = self.object_pose[0][:2] - self.goal_m[:2]
        return bool(np.linalg.norm(away) < SUCCESS_DISTANCE_M)

    @property
    def holding(self) -> bool:
        """Whether no motion is commanded (none came, it timed out, or the arm is stopped)."""
        return self._mode == "hold"

    def command_twist(self, linear_m_s: Vector, angular_rad_s: Vector) -> None:
        """Move the tool with this velocity (3,), (3,) in base axes, until the timeout. Raises ValueError."""
        if not self.estopped and self._mode != "twist":
            self._rotation = self._data.site_xmat[self._tool].reshape(3, 3).copy()
        self._accept("twist", np.concatenate([finite_numbers(linear_m_s, 3), finite_numbers(angular_rad_s, 3)]))

    def command_joint_positions(self, positions_rad: Vector) -> None:
        """Move the joints (7,) there at their speed limits, until the timeout. Raises ValueError."""
        target = np.clip(finite_numbers(positions_rad, 7), self.joint_lower_rad, self.joint_upper_rad)
        self._accept("joint_position", target)

    def command_joint_velocities(self, velocities_rad_s: Vector) -> None:
        """Move the joints (7,) with this velocity until the timeout. Raises ValueError."""
        self._accept("joint_velocity", finite_numbers(velocities_rad_s, 7))

    def command_gripper(self, width_m: float) -> None:
        """Open or close the fingers to this distance, 0 to 0.08. Raises ValueError."""
        width = float(finite_numbers(np.array([width_m]), 1)[0])
        if not self.estopped:
            self._gripper_m = float(np.clip(width, 0.0, GRIPPER_MAX_WIDTH_M))

    def emergency_stop(self) -> None:
        """Halt where the arm is, at once; every command is ignored until `reset`."""
        if not self.estopped:
            self._hold()
            self._gripper_m = float(self._data.qpos[7] + self._data.qpos[8])
            self.estopped = True

    def age_command(self, seconds: float) -> None:
        """The newest motion command is older by so much than simulated time says."""
        self._commanded_s -= seconds

    def step(self, dt_s: float) -> None:
        """Let `dt_s` of simulated time go by, in whole steps of 2 ms; what is left over counts for the next call."""
        timestep = self._model.opt.timestep
        every = round(TICK_S / timestep)
        self._owed_s += dt_s
        steps = round(self._owed_s / timestep)
        self._owed_s -= steps * timestep
        for _ in range(steps):
            if round(self._data.time / timestep) % every == 0:
                self._track()
            self._mujoco.mj_step(self._model, self._data)
        self._mujoco.mj_kinematics(self._model, self._data)  # poses of the new state, not of the step before

    def expert_action(self) -> Vector:
        """The scripted expert's next action (3,): tool velocity in [-1, 1] (privileged)."""
        return push_action(self.tool_pose[0], self.object_pose[0], self.goal_m)

    def _furnish(self, spec: Any) -> None:
        """What a subclass puts into the scene (MjSpec) before it is compiled."""

    def _accept(self, mode: Mode, values: Vector) -> None:
        if self.estopped:
            return
        self._mode, self._command, self._commanded_s = mode, values, self.time_s

    def _hold(self) -> None:
        """Keep the measured position from now on."""
        self._mode = "hold"
        self._reference = self._data.qpos[:7].copy()
        self._set_servos(np.zeros(7))

    def _track(self) -> None:
        """Move the servos' reference on by one tick."""
        if self._mode == "hold":
            self._set_servos(np.zeros(7))
            return
        if self.time_s - self._commanded_s > self.command_timeout_s:
            self._hold()
            return
        if self._mode == "twist":
            velocity = self._velocity_of_twist(self._command)
        elif self._mode == "joint_position":
            velocity = np.clip((self._command - self._reference) / TICK_S, -JOINT_SPEED_RAD_S, JOINT_SPEED_RAD_S)
        else:
            velocity = self._command
        velocity = velocity / max(1.0, float(np.max(np.abs(velocity) / JOINT_SPEED_RAD_S)))
        before, measured = self._reference, self._data.qpos[:7]
        leashed = np.clip(before + velocity * TICK_S, measured - LEASH_RAD, measured + LEASH_RAD)
        self._reference = np.clip(leashed, self.joint_lower_rad, self.joint_upper_rad)
        self._set_servos((self._reference - before) / TICK_S)

    def _set_servos(self, velocity: Vector) -> None:
        self._data.ctrl[:7] = self._reference + self._lead_s * velocity
        self._data.ctrl[7:9] = self._gripper_m / 2.0

    def _velocity_of_twist(self, twist: Vector) -> Vector:
        """Joint velocities (7,) of a tool velocity (6,), by damped least squares at the reference."""
        _, rotation, jacobian = self._kinematics(self._reference)
        self._rotation = _turn(twist[3:] * TICK_S) @ self._rotation
        # Damping and discretisation let the orientation drift; turn it back.
        wanted = twist.copy()
        wanted[3:] += ORIENTATION_GAIN_PER_S * _rotation_vector(self._rotation @ rotation.T)
        return damped_least_squares(jacobian, wanted)

    def _kinematics(self, joints_rad: Vector) -> tuple[Vector, Vector, Vector]:
        """The tool's position (3,), rotation (3, 3) and Jacobian (6, 7) at these angles."""
        self._scratch.qpos[:7] = joints_rad
        self._mujoco.mj_kinematics(self._model, self._scratch)
        self._mujoco.mj_comPos(self._model, self._scratch)
        full = np.zeros((6, self._model.nv))
        self._mujoco.mj_jacSite(self._model, self._scratch, full[:3], full[3:], self._tool)
        position, rotation = self._scratch.site_xpos[self._tool], self._scratch.site_xmat[self._tool]
        return position.copy(), rotation.reshape(3, 3).copy(), full[:, :7]

    def _solve_start(self) -> Vector:
        """Angles (7,) that put the tool at `start_m` with the gripper pointing down."""
        down = np.diag([1.0, -1.0, -1.0])
        joints = np.array(NEAR_START_RAD)
        for _ in range(200):
            position, rotation, jacobian = self._kinematics(joints)
            error = np.concatenate([self.start_m - position, _rotation_vector(down @ rotation.T)])
            joints = joints + 0.2 * damped_least_squares(jacobian, error)
        return joints


def _assets() -> Path:
    found = find_spec("gymnasium_robotics")
    if found is None or found.origin is None:
        raise ConfigError(
            "simulated arm",
            expected="the Panda model of gymnasium-robotics",
            found="gymnasium-robotics is not installed",
            next_step='run `pip install "gymnasium-robotics>=1.4"`',
        )
    return Path(found.origin).parent / "envs" / "assets" / "kitchen_franka" / "franka_assets"


def _turn(vector_rad: Vector) -> Vector:
    """Rotation matrix (3, 3) of a rotation vector."""
    angle = float(np.linalg.norm(vector_rad))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector_rad / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def _rotation_vector(rotation: Vector) -> Vector:
    """Rotation vector (3,) of a rotation matrix of less than half a turn."""
    twice_sine = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine = 0.5 * float(np.linalg.norm(twice_sine))
    angle = float(np.arctan2(sine, 0.5 * (np.trace(rotation) - 1.0)))
    return twice_sine * (0.5 if sine < 1e-9 else 0.5 * angle / sine)


def damped_least_squares(jacobian: Vector, velocity: Vector) -> Vector:
    """Joint velocities (J,) that give `velocity` (6,) nearly, and stay small near singularities."""
    square = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
    return jacobian.T @ np.linalg.solve(square, velocity)
