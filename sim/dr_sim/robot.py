"""What every simulated robot offers, whoever simulates it, and how to make one by the name of its task.

Lengths are metres, angles radians, times simulated seconds. Poses are in the base frame. Quaternions are xyzw.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import ConfigError
from dr_sim.rendering import FrameRenderer, RenderSettings
from dr_sim.tasks import CALIBRATION_TASKS, METAWORLD_TASKS, PANDA_TASKS, default_camera, resolve_task

if TYPE_CHECKING:
    from dr_sim.calibration_scene import FlatBoard

Vector = NDArray[np.float64]
Pose = tuple[Vector, Vector]
"""Position (3,) and quaternion xyzw (4,)."""


class SimulatedRobot(Protocol):
    """An arm, what it works on, and its camera. `reset(seed)`, then command and `step`, for as long as one likes.

    It answers commands as a real arm does: they time out, an emergency stop is latched until `reset`, and motion
    ends at the limits. Commands raise ValueError when they are not finite numbers of the right count, or of a kind
    that this robot does not take.
    """

    estopped: bool
    tool_turns: bool
    """Whether the angular part of a twist has an effect."""

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The arm's joints, then the gripper's."""

    @property
    def joint_positions(self) -> Vector:
        """(J,) rad; of fingers, m."""

    @property
    def joint_velocities(self) -> Vector:
        """(J,) rad/s; of fingers, m/s."""

    @property
    def tool_pose(self) -> Pose: ...

    @property
    def object_pose(self) -> Pose:
        """Of what the task is about; only a simulator knows it, as the goal and success."""

    @property
    def goal_m(self) -> Vector:
        """(3,) where the object, or the tool, shall go."""

    @property
    def camera_pose(self) -> Pose | None:
        """Of the camera's optical frame: x right, y down, z into the picture. None where it is to be calibrated."""

    @property
    def camera_distortion(self) -> Vector:
        """(5,) plumb_bob, as the camera's driver states it."""

    @property
    def success(self) -> bool: ...

    def reset(self, seed: int) -> None:
        """The start of the episode that belongs to `seed`; clears an emergency stop."""

    def command_twist(self, linear_m_s: Vector, angular_rad_s: Vector) -> None:
        """Move the tool with this velocity (3,), (3,) in base axes, until the timeout."""

    def command_joint_positions(self, positions_rad: Vector) -> None: ...

    def command_joint_velocities(self, velocities_rad_s: Vector) -> None: ...

    def command_gripper(self, width_m: float) -> None:
        """Bring the fingers to this distance."""

    def emergency_stop(self) -> None:
        """Halt where the arm is, at once; every command is ignored until `reset`."""

    def age_command(self, seconds: float) -> None:
        """The newest motion command is older by so much than simulated time says: time was left out, or it came late.

        Negative where simulated time is behind the command's arrival.
        """

    def step(self, dt_s: float) -> None:
        """Let `dt_s` of simulated time go by."""

    def render(self) -> NDArray[np.uint8]:
        """The camera's picture (H, W, 3) RGB."""

    def camera_matrix(self) -> Vector:
        """Intrinsic matrix (3, 3), pixels, as the camera's driver states it."""

    def close(self) -> None:
        """Free the OpenGL context."""


def make_robot(
    task: str,
    joints: Sequence[str],
    *,
    command_timeout_s: float,
    width: int,
    height: int,
    board: FlatBoard | None = None,
    camera_bump: tuple[float, float] = (0.0, 0.0),
) -> SimulatedRobot:
    """The robot of a task: the Panda for "panda-push" and for calibration, Meta-World's Sawyer for its tasks.

    Args:
        task: one of CALIBRATION_TASKS, or any spelling that `resolve_task` takes.
        joints: names in the robot's file, which has to be that of this robot.
        command_timeout_s: without a new command for so long, the arm holds its position.
        width, height: of the camera's pictures, pixels.
        board: of CALIBRATION_TASKS, which need one.
        camera_bump: by how much, m and degrees, their camera has been knocked out of its place.

    Raises:
        ConfigError: there is no such task, no robot for it, or the robot has other joints.
        RenderingError: no back-end.
    """
    name = task if task in CALIBRATION_TASKS else resolve_task(task)
    if name not in METAWORLD_TASKS + PANDA_TASKS + CALIBRATION_TASKS:
        raise ConfigError(
            "task of the simulated robot",
            expected="panda-push, panda-calibration or a Meta-World v3 task",
            found=repr(task),
            next_step="choose one of these: the hand of the Adroit tasks is on no arm",
        )
    # A live robot shares the cores with other nodes. Mesa's software rasteriser with a thread for each core waits for
    # the slowest of them at every picture; one thread is quick enough.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    settings = RenderSettings(width=width, height=height, camera=default_camera(name))
    robot: SimulatedRobot
    if name in CALIBRATION_TASKS:
        from dr_sim.calibration_robot import CalibrationArm

        if board is None:
            raise ConfigError(
                f"robot of task {name}",
                expected="a board",
                found="none",
                next_step="name one, as charuco:7x5:30mm:22mm",
            )
        robot = CalibrationArm(
            board, name, command_timeout_s=command_timeout_s, width=width, height=height, camera_bump=camera_bump
        )
        file = "sim_panda.yaml"
    elif name in PANDA_TASKS:
        from dr_sim.arm import SimulatedArm

        robot, file = SimulatedArm(command_timeout_s=command_timeout_s, settings=settings), "sim_panda.yaml"
    else:
        from dr_sim.sawyer import SimulatedSawyer

        robot, file = SimulatedSawyer(name, command_timeout_s=command_timeout_s, settings=settings), "sim_sawyer.yaml"
    if unknown := [joint for joint in joints if joint not in robot.joint_names]:
        robot.close()
        raise ConfigError(
            f"robot_file of task {name}",
            expected=f"joints of {', '.join(robot.joint_names)}",
            found=", ".join(unknown),
            next_step=f"give config/robots/{file}, or choose another task",
        )
    return robot


class DrawnRobot:
    """The camera of a simulated robot, made when the first picture is asked for: OpenGL takes memory and time.

    A subclass sets ``_model`` and ``_data`` in its constructor.

    Args:
        settings: how pictures are drawn.
    """

    _model: Any
    _data: Any

    def __init__(self, settings: RenderSettings) -> None:
        self.settings = settings
        self._renderer: FrameRenderer | None = None

    def render(self) -> NDArray[np.uint8]:
        """The camera's picture (H, W, 3) RGB."""
        return self._draw().render(self._data)

    def camera_matrix(self) -> Vector:
        """Intrinsic matrix (3, 3), pixels, as the camera's driver states it."""
        return self._draw().camera_matrix()

    @property
    def camera_distortion(self) -> Vector:
        """(5,) plumb_bob: none."""
        return np.zeros(5)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _draw(self) -> FrameRenderer:
        if self._renderer is None:
            self._renderer = FrameRenderer(self._model, self._data, self.settings)
        return self._renderer


def finite_numbers(values: Vector, size: int) -> Vector:
    """A copy of `values` (size,). Raises ValueError."""
    numbers = np.array(values, dtype=np.float64)
    if numbers.shape != (size,) or not np.isfinite(numbers).all():
        raise ValueError(f"expected {size} finite numbers, got {values}")
    return numbers


def xyzw(wxyz: Vector) -> Vector:
    """MuJoCo's order of a quaternion → ROS's."""
    return np.roll(wxyz, -1)
