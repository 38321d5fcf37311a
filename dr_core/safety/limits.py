"""A robot's description in `config/robots/*.yaml`: joints, frames, topics, and the limits that the gate enforces.

Everything is in SI units (REP-103). A limit of 0.0 is a limit. There are no default limits: a robot without them is
not moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from dr_core.config import build, load_yaml
from dr_core.errors import ConfigError
from dr_core.safety.urdf import check_within

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Limits:
    """Bounds on what is sent to the robot. Joint lists follow the order of the robot's `joints`."""

    workspace_lower_m: Triple
    """Corner of the box, in the base frame, that the tool must not leave."""
    workspace_upper_m: Triple
    """The opposite corner."""
    linear_speed_m_s: float
    """Longest velocity of the tool."""
    angular_speed_rad_s: float
    """Fastest turn of the tool."""
    linear_acceleration_m_s2: float
    """Greatest change of the tool's velocity, each component."""
    angular_acceleration_rad_s2: float
    """Greatest change of the tool's turning, each component."""
    linear_jerk_m_s3: float
    """Greatest change of the tool's acceleration, each component."""
    angular_jerk_rad_s3: float
    """Greatest change of the tool's angular acceleration, each component."""
    joint_lower_rad: tuple[float, ...]
    """The joints' own lower limits."""
    joint_upper_rad: tuple[float, ...]
    """The joints' own upper limits."""
    joint_speed_rad_s: tuple[float, ...]
    """Fastest motion of each joint."""
    joint_acceleration_rad_s2: tuple[float, ...]
    """Greatest change of each joint's speed."""
    joint_jerk_rad_s3: tuple[float, ...]
    """Greatest change of each joint's acceleration."""
    joint_margin_rad: float
    """Joints stay this far away from their limits."""
    joint_slow_rad: float
    """Before the margin, motion slows down over this distance."""
    gripper_width_m: float
    """Widest opening of the gripper."""
    gripper_speed_m_s: float
    """Fastest change of the opening that is asked for."""
    gripper_force_n: float
    """Strongest grip, where the gripper takes a force."""
    max_age_s: float
    """A command whose source stamp is older on arrival is dropped."""
    future_s: float
    """A command or measurement whose stamp is further ahead of the clock is dropped."""
    hold_after_s: float
    """Without a good command for so long, HOLD."""
    stop_after_s: float
    """Without a good command for so long, STOP."""
    state_max_age_s: float
    """When the robot's measured state is older, STOP."""
    max_clamps: int
    """STOP when more commands than this had to be clamped at a bound; each good one takes one back."""
    max_invalid: int
    """STOP when more commands than this were not usable (NaN, wrong length); each good one takes one back."""
    period_s: float
    """The gate repeats what is allowed at least this often, 0.02 or less."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            signed = name.startswith(("workspace", "joint_lower", "joint_upper"))
            if not all(math.isfinite(number) and (signed or number >= 0) for number in numbers):
                raise ValueError(f"{name} = {value}: limits are finite" + ("" if signed else " and not negative"))
        count = len(self.joint_lower_rad)
        for name in ("joint_upper_rad", "joint_speed_rad_s", "joint_acceleration_rad_s2", "joint_jerk_rad_s3"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, joint_lower_rad has {count}")
        if any(low > high for low, high in zip(self.workspace_lower_m, self.workspace_upper_m, strict=True)):
            raise ValueError("workspace_lower_m lies above workspace_upper_m")
        if any(low > high for low, high in zip(*self.joint_bounds_rad, strict=True)):
            raise ValueError("joint_lower_rad and joint_upper_rad leave no room between the margins")
        if not 0 < self.period_s <= 0.02:
            raise ValueError(f"period_s = {self.period_s}: the gate repeats at 50 Hz or faster")
        if not self.hold_after_s <= self.stop_after_s:
            raise ValueError("hold_after_s is longer than stop_after_s")

    @cached_property
    def joint_bounds_rad(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lower and upper bounds of the joints inside the margins."""
        return (
            tuple(low + self.joint_margin_rad for low in self.joint_lower_rad),
            tuple(high - self.joint_margin_rad for high in self.joint_upper_rad),
        )


@dataclass(frozen=True)
class Frames:
    """Names of coordinate frames in /tf."""

    base: str
    tool: str
    camera: str


@dataclass(frozen=True)
class Topics:
    """Where the robot's controllers listen and report."""

    joint_states: str
    """sensor_msgs/JointState, from the robot"""
    tool_pose: str
    """geometry_msgs/PoseStamped of the tool in the base frame, from the robot"""
    estop: str
    """std_msgs/Bool, true while the emergency stop is pressed"""
    protective_stop: str
    """std_msgs/Bool, true while the robot's controller is in a protective stop"""
    twist: str
    """geometry_msgs/TwistStamped in the base frame, as MoveIt Servo takes it"""
    trajectory: str
    """trajectory_msgs/JointTrajectory, as ros2_control takes it"""
    joint_positions: str
    """std_msgs/Float64MultiArray, rad"""
    joint_velocities: str
    """std_msgs/Float64MultiArray, rad/s"""
    gripper: str
    """std_msgs/Float64, opening in metres"""
    gripper_force: str | None = None
    """std_msgs/Float64, newtons; for a gripper that takes a force"""


@dataclass(frozen=True)
class Heartbeat:
    """A topic that must not fall silent while the arm moves."""

    topic: str
    """Of a camera, an agent, a recorder, an emergency stop."""
    type: str
    """Its message, as std_msgs/msg/Bool."""
    timeout_s: float
    """The longest silence."""
    action: Literal["hold", "stop"]
    """What the gate does then; before the first message nothing moves."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(f"timeout_s = {self.timeout_s}: a heartbeat's silence is a positive number of seconds")


@dataclass(frozen=True)
class ActionScale:
    """What an action of 1 means; the gate's limits are bounds, this is the speed one works at."""

    linear_m_s: float
    angular_rad_s: float


@dataclass(frozen=True)
class Robot:
    """One robot, as its YAML file describes it."""

    name: str
    joints: tuple[str, ...]
    frames: Frames
    topics: Topics
    action: ActionScale
    limits: Limits
    heartbeats: tuple[Heartbeat, ...] = ()
    urdf: Path | None = None
    """URDF file, relative to this one, whose joint limits are not exceeded."""

    def __post_init__(self) -> None:
        if not self.joints or len(set(self.joints)) != len(self.joints):
            raise ValueError("joints must be named, each once")
        if len(self.limits.joint_lower_rad) != len(self.joints):
            found = len(self.limits.joint_lower_rad)
            raise ValueError(f"{len(self.joints)} joints, but limits for {found}")


def load_robot(path: Path | str) -> Robot:
    """The robot of a YAML file.

    Raises:
        ConfigError: the file, a key or a limit is missing or wrong, or a limit is wider than in the robot's URDF file,
            with the joint's name; what it says is one line.
    """
    if not str(path):
        raise ConfigError(
            "robot_file",
            expected="a file with the robot's limits",
            found="none given",
            next_step="set it, for example to config/robots/sim_panda.yaml; nothing moves without limits",
        )
    robot = build(Robot, load_yaml(path), str(path))
    if robot.urdf is not None:
        check_within(robot.limits, robot.joints, Path(path).parent / robot.urdf)
    return robot
