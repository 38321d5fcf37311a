"""The only publisher of robot commands: what agents or people want goes through the safety gate, then to the robot.

Wanted motion comes on desired_twist (geometry_msgs/TwistStamped, base frame) or, for joint commands, desired_joints
(sensor_msgs/JointState); header.stamp is that of the observation behind it. The gate repeats what it allows at 50 Hz.
The process stays small: neither torch nor OpenCV nor a simulator is imported here.
"""

from __future__ import annotations

import math
import os
import sys
import time
from functools import partial
from typing import Any

from dr_interfaces.msg import GateState as GateStateMessage
from dr_interfaces.srv import ResetGate
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosidl_runtime_py.utilities import get_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64, String

from dr_core.errors import ConfigError, UserError
from dr_core.safety.gate import Command, GateOutput, GateState, GripperGate, Interlocks, Kind, RobotState, SafetyGate
from dr_core.safety.limits import Heartbeat, load_robot
from dr_core.safety.watch import ClockWatch, Heartbeats, StopRequests
from dr_nodes import convert
from dr_nodes.common import ERROR, OK, WARN, ManagedNode, Param, command_qos, run
from dr_nodes.messages import COMMANDS, gate_state, robot_command, twist_to_values

KINDS: dict[str, Kind] = {
    "twist": "twist",
    "trajectory": "joint_position",
    "joint_positions": "joint_position",
    "joint_velocities": "joint_velocity",
}
LEVELS = {GateState.IDLE: OK, GateState.ACTIVE: OK, GateState.HOLD: WARN, GateState.STOPPED: ERROR}
PARAMETERS = (
    Param("robot_file", "", "YAML file of the robot with its limits; the bridge refuses to work without"),
    Param("command_type", "twist", "which of the robot's command topics is used", choices=tuple(COMMANDS)),
    Param("use_deadman", False, "move only while the topic deadman (std_msgs/Bool) says true"),
)
CHECK_PERIOD_S = 0.2  # of the graph, and between repeated GateState messages
REQUEST_S = 1.0  # a node that asks for a stop asks again while its cause is there
PRIORITY = 50  # of SCHED_FIFO: before everything that has no deadline, behind the threads of the kernel


class ArmBridge(ManagedNode):
    """Collects what the gate wants to know, asks it, sends what it allows."""

    def __init__(self, unprivileged: str = "") -> None:
        super().__init__("arm_bridge", PARAMETERS)
        self.gate: Any = None
        self.diagnostics.set("priority", WARN if unprivileged else OK, unprivileged or "real-time")

    def configure(self) -> None:
        self.robot = load_robot(self.value("robot_file"))
        self.limits, topics = self.robot.limits, self.robot.topics
        self.command_type, self.use_deadman = self.value("command_type"), self.value("use_deadman")
        heartbeats = [(beat, message_type(beat)) for beat in self.robot.heartbeats]
        self.gate = SafetyGate(self.limits, KINDS[self.command_type])
        self.grip = GripperGate(self.limits)
        self.gripped_ns = 0
        self.force_n = math.nan
        self.joints: tuple[int, Any, Any] | None = None
        self.tool: tuple[int, Any] | None = None
        self.estop = self.protective_stop = False
        self.heartbeats, self.clock_watch = Heartbeats(self.robot.heartbeats), ClockWatch()
        self.requests = StopRequests(REQUEST_S)
        self.jumped: tuple[str, ...] = ()
        self.held_ns: int | None = None
        self.faults: tuple[str, ...] = ()
        self.said: GateOutput | None = None
        qos = command_qos(2.0 * self.limits.period_s)
        self.commands = self.create_lifecycle_publisher(
            COMMANDS[self.command_type], getattr(topics, self.command_type), qos
        )
        self.gripper = self.create_lifecycle_publisher(Float64, topics.gripper, 1)
        self.gripper_force = None
        if topics.gripper_force is not None:
            self.gripper_force = self.create_lifecycle_publisher(Float64, topics.gripper_force, 1)
        self.states = self.create_lifecycle_publisher(GateStateMessage, "gate_state", 10)
        wanted = (TwistStamped, "desired_twist", self.on_twist)
        if self.gate.kind != "twist":
            wanted = (JointState, "desired_joints", self.on_joints_wanted)
        self.inputs = [
            self.create_subscription(kind, topic, callback, depth)
            for kind, topic, callback, depth in (
                (*wanted, 10),  # ten, so that bad ones in a burst are seen and counted
                (Float64, "desired_gripper", self.on_gripper, 1),
                (Float64, "desired_gripper_force", self.on_gripper_force, 1),
                (JointState, topics.joint_states, self.on_joint_states, 1),
                (PoseStamped, topics.tool_pose, self.on_tool_pose, 1),
                (Bool, topics.estop, self.on_estop, 10),
                (Bool, topics.protective_stop, self.on_protective_stop, 10),
                (Bool, "deadman", self.on_deadman, 1),
                (String, "stop_request", self.on_stop_request, 10),
            )
        ]
        self.wanted = self.inputs[0]
        any_publisher = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.inputs += [
            self.create_subscription(kind, beat.topic, partial(self.on_heartbeat, beat.topic), any_publisher, raw=True)
            for beat, kind in heartbeats
        ]
        self.reset_service = self.create_service(ResetGate, "~/reset_gate", self.on_reset)

    def activate(self) -> None:
        self.beats = [
            self.create_timer(self.limits.period_s, self.step),
            self.create_timer(CHECK_PERIOD_S, self.check_graph),
        ]

    def deactivate(self) -> None:
        for timer in self.beats:
            self.destroy_timer(timer)

    def cleanup(self) -> None:
        if self.gate is None:
            return
        self.gate = None
        for subscription in self.inputs:
            self.destroy_subscription(subscription)
        for publisher in (self.commands, self.gripper, self.gripper_force, self.states):
            if publisher is not None:
                self.destroy_lifecycle_publisher(publisher)
        self.destroy_service(self.reset_service)

    def step(self, command: Command | None = None) -> None:
        """Ask the gate, send what it allows, tell when its mind changes."""
        if not self.active:
            return
        now_ns = time.monotonic_ns()
        self.jumped = self.clock_watch.look(self.now_ns(), now_ns)
        output = self.gate.step(now_ns, command, self.robot_state(), self.interlocks(now_ns))
        if command is not None:
            self.beats[0].reset()  # the next period begins with this step
        if output.allowed is not None:
            self.commands.publish(robot_command(self.command_type, self.robot, self.now_ns(), output.allowed))
        self.move_gripper(now_ns)
        if self.said is None or (output.state, output.causes) != (self.said.state, self.said.causes):
            self.say(output)

    def check_graph(self) -> None:
        """Nobody else may command the robot, and only one may command the bridge."""
        own, wanted = self.commands.topic_name, self.wanted.topic_name
        self.faults = tuple(
            f"{count} publishers on {topic}" for topic in (own, wanted) if (count := self.count_publishers(topic)) > 1
        )
        if self.said is not None:
            self.say(self.said)

    def say(self, output: GateOutput) -> None:
        self.said = output
        counts, age_s = self.gate.counts, self.gate.command_age_s(time.monotonic_ns())
        self.states.publish(gate_state(self.now_ns(), self.robot.frames.base, output, counts, age_s))
        words = "; ".join((output.state.name, *output.causes))
        self.diagnostics.set("gate", LEVELS[output.state], words, **vars(counts))

    def robot_state(self) -> RobotState | None:
        """Joints and tool together; as old as the older of them."""
        if self.joints is None or self.tool is None:
            return None
        stamp_ns, position, velocity = self.joints
        tool_stamp_ns, tool_m = self.tool
        return RobotState(min(stamp_ns, tool_stamp_ns), position, velocity, tool_m)

    def interlocks(self, now_ns: int) -> Interlocks:
        held = self.held_ns is not None and now_ns - self.held_ns < self.limits.hold_after_s * 1e9
        holds, faults = self.heartbeats.missing(now_ns)
        return Interlocks(
            estop=self.estop,
            protective_stop=self.protective_stop,
            deadman_released=self.use_deadman and not held,
            holds=self.jumped + holds,
            faults=self.faults + faults + self.requests.present(now_ns),
        )

    def move_gripper(self, now_ns: int) -> None:
        elapsed_s = min((now_ns - self.gripped_ns) * 1e-9, self.limits.period_s)
        self.gripped_ns = now_ns
        width_m = self.grip.step(elapsed_s, closed_gate=self.gate.state != GateState.ACTIVE)
        if width_m is None:
            return
        if self.gripper_force is not None:
            self.gripper_force.publish(Float64(data=self.grip.force(self.force_n)))
        self.gripper.publish(Float64(data=width_m))

    def monotonic_ns(self, stamp: Any) -> int:
        """When a stamp was, on the clock of the gate: later jumps of the wall clock do not matter."""
        return time.monotonic_ns() - (self.now_ns() - convert.stamp_to_ns(stamp))

    def on_twist(self, message: Any) -> None:
        in_base = message.header.frame_id in ("", self.robot.frames.base)
        values = twist_to_values(message) if in_base else ()  # a velocity in other axes is not usable
        self.step(Command(self.monotonic_ns(message.header.stamp), values))

    def on_joints_wanted(self, message: Any) -> None:
        values: tuple[float, ...] = ()
        try:
            position, velocity = convert.joint_values(message, self.robot.joints)
            values = position if self.gate.kind == "joint_position" else velocity
        except UserError as error:
            self.get_logger().warning(f"desired_joints: {error}", throttle_duration_sec=1.0)
        self.step(Command(self.monotonic_ns(message.header.stamp), values))

    def on_gripper(self, message: Any) -> None:
        if self.active and self.gate.state == GateState.ACTIVE:
            self.grip.want(message.data)
            self.move_gripper(time.monotonic_ns())

    def on_gripper_force(self, message: Any) -> None:
        self.force_n = message.data

    def on_joint_states(self, message: Any) -> None:
        if not self.active:
            return
        try:
            position, velocity = convert.joint_values(message, self.robot.joints)
        except UserError as error:
            self.refuse(error)
            return
        if (stamp_ns := self.newer_ns(message.header.stamp, self.joints)) is not None:
            self.joints = (stamp_ns, position, velocity)

    def on_tool_pose(self, message: Any) -> None:
        place = message.pose.position
        if (stamp_ns := self.newer_ns(message.header.stamp, self.tool)) is not None:
            self.tool = (stamp_ns, (place.x, place.y, place.z))

    def newer_ns(self, stamp: Any, known: tuple[Any, ...] | None) -> int | None:
        """The stamp on the gate's clock, None for one that is older than the known or of the future.

        What was under way when a clock jumped is such; if no better comes, the known becomes stale.
        """
        stamp_ns = self.monotonic_ns(stamp)
        if stamp_ns - time.monotonic_ns() > self.limits.future_s * 1e9:
            self.get_logger().warning("a measurement of the future is dropped", throttle_duration_sec=5.0)
            return None
        return stamp_ns if known is None or stamp_ns > known[0] else None

    def on_estop(self, message: Any) -> None:
        self.estop = message.data
        self.step()

    def on_protective_stop(self, message: Any) -> None:
        self.protective_stop = message.data
        self.step()

    def on_stop_request(self, message: Any) -> None:
        self.requests.hear(message.data, time.monotonic_ns())
        self.step()

    def on_heartbeat(self, topic: str, message: bytes) -> None:
        self.heartbeats.hear(topic, time.monotonic_ns())

    def on_deadman(self, message: Any) -> None:
        self.held_ns = time.monotonic_ns() if message.data else None
        self.step()

    def on_reset(self, request: Any, response: Any) -> Any:
        now_ns = time.monotonic_ns()
        causes = self.gate.reset(now_ns, self.robot_state(), self.interlocks(now_ns))
        response.success, response.message, response.state = not causes, "; ".join(causes), int(self.gate.state)
        self.get_logger().info(f"reset asked for by '{request.operator_name}': {response.message or 'done'}")
        self.step()
        return response


def message_type(beat: Heartbeat) -> Any:
    """The class of a heartbeat's message.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return get_message(beat.type)
    except (AttributeError, ImportError, LookupError, ValueError) as error:
        raise ConfigError(
            f"heartbeats: {beat.topic}",
            expected="the name of an installed message such as std_msgs/msg/Bool",
            found=beat.type,
            next_step="correct its type, or source the workspace that has it",
        ) from error


def prioritise() -> str:
    """Run before all processes without a deadline, on a busy machine too; returns why not, empty when it does.

    Threads take the scheduling of the one that starts them: it is called before any of DDS.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except (AttributeError, OSError) as error:
        return f"no real-time priority ({error}): allow it with 'rtprio {PRIORITY}' in /etc/security/limits.conf"
    return ""


def main() -> int:
    unprivileged = prioritise()
    return run(lambda: ArmBridge(unprivileged))


if __name__ == "__main__":
    sys.exit(main())
