"""Messages of commands and of the gate: what convert.py is for images and poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from dr_interfaces.msg import GateState
from geometry_msgs.msg import TwistStamped
from numpy.typing import NDArray
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dr_core.safety.gate import Counts, GateOutput
from dr_core.safety.limits import Robot
from dr_nodes import convert

COMMANDS = {
    "twist": TwistStamped,
    "trajectory": JointTrajectory,
    "joint_positions": Float64MultiArray,
    "joint_velocities": Float64MultiArray,
}
"""Message of each of the robot's command topics."""


def twist_to_values(message: Any) -> tuple[float, ...]:
    """geometry_msgs/TwistStamped → linear m/s and angular rad/s (6,)."""
    linear, angular = message.twist.linear, message.twist.angular
    return linear.x, linear.y, linear.z, angular.x, angular.y, angular.z


def values_to_twist(stamp_ns: int, frame_id: str, values: Sequence[float]) -> Any:
    """Linear m/s and angular rad/s (6,) → geometry_msgs/TwistStamped."""
    message = TwistStamped(header=convert.header(stamp_ns, frame_id))
    linear, angular = message.twist.linear, message.twist.angular
    linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, values)
    return message


def robot_command(command_type: str, robot: Robot, stamp_ns: int, values: Sequence[float]) -> Any:
    """What the gate allows → the message of that command topic."""
    if command_type == "twist":
        return values_to_twist(stamp_ns, robot.frames.base, values)
    if command_type == "trajectory":
        # Longer than the gate's period, so that the controller has not arrived before the next one comes.
        reach = Duration(sec=0, nanosec=int(2e9 * robot.limits.period_s))
        point = JointTrajectoryPoint(positions=[float(value) for value in values], time_from_start=reach)
        return JointTrajectory(joint_names=list(robot.joints), points=[point])
    return Float64MultiArray(data=[float(value) for value in values])


def action_to_motion(action: NDArray[np.float64], robot: Robot) -> tuple[list[float], float | None]:
    """What an action in [-1, 1] means: the tool's velocity (6,), m/s and rad/s, and the gripper's width, m, or None.

    Its numbers are x y z, then the three turns if there are six or more, then the gripper (1 closes) if one is left.
    """
    linear = robot.action.linear_m_s * action[:3]
    angular = robot.action.angular_rad_s * action[3:6] if len(action) >= 6 else np.zeros(3)
    width = robot.limits.gripper_width_m * (1.0 - float(action[-1])) / 2.0 if len(action) in (4, 7) else None
    return [*linear, *angular], width


def labelled_action(action: NDArray[np.float64]) -> Any:
    """An action (A,) in [-1, 1] → std_msgs/Float64MultiArray with the label "action", as recordings hold it."""
    message = Float64MultiArray(data=[float(value) for value in action])
    message.layout.dim = [MultiArrayDimension(label="action", size=len(action), stride=len(action))]
    return message


def gate_state(stamp_ns: int, frame_id: str, output: GateOutput, counts: Counts, age_s: float) -> Any:
    """What the gate decided → dr_interfaces/GateState."""
    return GateState(
        header=convert.header(stamp_ns, frame_id),
        state=int(output.state),
        causes=list(output.causes),
        commands_received=counts.received,
        commands_passed=counts.passed,
        commands_limited=counts.limited,
        commands_rejected=counts.rejected,
        holds=counts.holds,
        stops=counts.stops,
        command_age_s=age_s,
    )
