"""What all nodes share: parameters from a table, QoS, diagnostics in words, a life cycle that refuses, main()."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy

from dr_core.errors import ConfigError, UserError

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
DIAGNOSTICS_PERIOD_S = 1.0
SAY_AGAIN_S = 10.0
NUMBER = re.compile(r"\d+(\.\d+)?")
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
COMPARED_POLICIES = ("reliability", "durability")


# ---- parameters ----


@dataclass(frozen=True)
class Param:
    """One parameter.

    Attributes:
        name: with its unit (_s, _hz, _m).
        default: gives the type.
        description: what it means, and what 0 or empty stands for.
        minimum, maximum: of a number; both or none.
        choices: of a text.
        live: may change while the node runs; others only before it is configured.
    """

    name: str
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False

    def descriptor(self) -> Any:
        made = ParameterDescriptor(description=self.description)
        if self.choices:
            made.additional_constraints = f"one of {', '.join(self.choices)}"
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, float):
                bounds = FloatingPointRange(from_value=float(self.minimum), to_value=float(self.maximum), step=0.0)
                made.floating_point_range = [bounds]
            else:
                made.integer_range = [IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum), step=1)]
        return made


RELIABILITIES = ("best_effort", "reliable")
IMAGE_QOS = (
    Param("image_reliability", "best_effort", "reliability of the image topics", choices=RELIABILITIES),
    Param("image_depth", 1, "queue of the image topics, messages", 1, 1000),
)


RIG = (
    Param("rig_file", "", "calibration of the camera, .../rig_NAME.yaml; empty: none"),
    Param("rig_max_age_days", 30.0, "an older calibration is refused; 0 allows any age", 0.0, 36500.0),
    Param("camera_serial", "", "serial number of the camera, which the calibration has to name; empty: not known"),
)


STOP_LIMIT = Param(
    "stop_limit",
    5,
    "identical images, or scores that are no number, in a row at which the gate is asked to stop the arm; 0: never, as "
    "for a simulated camera, which has no noise",
    0,
    1000,
)


def image_qos(node: ManagedNode) -> QoSProfile:
    """The profile that the parameters IMAGE_QOS describe."""
    reliable = node.value("image_reliability") == "reliable"
    reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    return QoSProfile(depth=node.value("image_depth"), reliability=reliability)


def command_qos(period_s: float) -> QoSProfile:
    """Of commands sent every ``period_s`` seconds: reliable, only the newest counts, and a missing one is noticed."""
    return QoSProfile(
        depth=1, reliability=ReliabilityPolicy.RELIABLE, deadline=Duration(nanoseconds=int(period_s * 1e9))
    )


def refuse_second_publisher(node: LifecycleNode, topic: str) -> None:
    """Messages of two publishers in turn are of no use.

    Raises:
        ConfigError: ``topic`` has more than one.
    """
    count = node.count_publishers(topic)
    if count > 1:
        names = ", ".join(sorted(one.node_name for one in node.get_publishers_info_by_topic(topic)))
        raise ConfigError(
            topic, expected="one publisher", found=f"{count}: {names}", next_step="stop all but one of them"
        )


def qos_mismatch(node: LifecycleNode, topic: str, wanted: QoSProfile) -> str:
    """Which publisher of ``topic`` a subscription with this profile hears nothing from, and why; empty if none."""
    for info in node.get_publishers_info_by_topic(topic):
        for policy in COMPARED_POLICIES:
            offered, requested = getattr(info.qos_profile, policy), getattr(wanted, policy)
            # In both enumerations a smaller number promises more.
            if requested == 1 and offered == 2:
                return (
                    f"{topic}: {policy}: {info.node_name} offers {offered.name.lower()}, "
                    f"this node asks for {requested.name.lower()}; no message arrives"
                )
    return ""


# ---- diagnostics ----


class Diagnostics:
    """Publishes /diagnostics once a second, and at once when a level changes; one status per aspect of the node."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._aspects: dict[str, Any] = {}
        self._said_s: dict[tuple[str, str], float] = {}
        node.create_timer(DIAGNOSTICS_PERIOD_S, self._publish)

    def set(self, aspect: str, level: bytes, message: str, **values: object) -> None:
        """Say how one aspect is, with numbers; a WARN or ERROR is logged, the same words (but for numbers) seldom."""
        changed = self._keep(aspect, level, message, values)
        said = (aspect, NUMBER.sub("#", message))
        now_s = time.monotonic()
        if level != OK and now_s - self._said_s.get(said, -math.inf) > SAY_AGAIN_S:
            self._said_s[said] = now_s
            self._log(level, message)
        if changed:
            self._publish()

    def tell(self, aspect: str, level: bytes, message: str) -> None:
        """As ``set``, for an event: logged and published each time."""
        self._keep(aspect, level, message, {})
        self._log(level, message)
        self._publish()

    def _keep(self, aspect: str, level: bytes, message: str, values: Mapping[str, object]) -> bool:
        """Whether the level is a new one."""
        name = f"{self._node.get_fully_qualified_name().strip('/')}: {aspect}"
        pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        status = DiagnosticStatus(
            level=level, name=name, message=message, hardware_id=self._node.get_name(), values=pairs
        )
        before = self._aspects.get(aspect)
        self._aspects[aspect] = status
        return before is None or before.level != level

    def _log(self, level: bytes, message: str) -> None:
        # One call for each severity: rclpy refuses a call whose severity changes.
        if level == ERROR:
            self._node.get_logger().error(message)
        elif level == WARN:
            self._node.get_logger().warning(message)

    def _publish(self) -> None:
        if self._aspects and self._node.context.ok():
            stamp = self._node.get_clock().now().to_msg()
            message = DiagnosticArray(status=list(self._aspects.values()))
            message.header.stamp = stamp
            self._publisher.publish(message)


# ---- life cycle ----


class ManagedNode(LifecycleNode):
    """A node that refuses to configure or to activate, in one line, when something it needs is missing.

    Subclasses override ``configure``, ``activate``, ``deactivate`` and ``cleanup``; the first two raise UserError.
    With the parameter ``autostart`` the node configures and activates itself.

    Attributes:
        one_task: the process has one thing to do and ends when it refuses to do it at the start.
    """

    one_task = False

    def __init__(self, name: str, parameters: Sequence[Param]) -> None:
        super().__init__(name)
        start = Param("autostart", True, "configure and activate at start, without a lifecycle manager")
        self.table = {parameter.name: parameter for parameter in (*parameters, start)}
        self.configured = self.active = False
        self.add_on_set_parameters_callback(self._judge_parameters)
        for parameter in self.table.values():
            self.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        self.diagnostics = Diagnostics(self)
        self.diagnostics.set("state", WARN if not self.value("autostart") else OK, "not active")
        if self.value("autostart"):
            self._starter = self.create_timer(0.01, self._autostart)

    def value(self, name: str) -> Any:
        """A parameter's value."""
        return self.get_parameter(name).value

    def values(self, name: str) -> list[str]:
        """The texts of a list parameter without the empty ones, as an empty list has no type."""
        return [text for text in self.value(name) if text]

    def now_ns(self) -> int:
        """The time that stamps are read on."""
        return int(self.get_clock().now().nanoseconds)

    def configure(self) -> None:
        """Load and check everything."""

    def activate(self) -> None:
        """Begin to work."""

    def deactivate(self) -> None:
        """Stop working."""

    def cleanup(self) -> None:
        """Let go of everything that ``configure`` made; also called when that fails."""

    def refuse(self, error: UserError) -> None:
        """Stop working because of what arrived; the node stays inactive until it is activated again."""
        if self.active:
            self.trigger_deactivate()
        self._say(error)

    def end(self) -> None:
        """The process ends; ROS may be gone already."""
        if self.active:
            self.deactivate()
        if self.configured:
            self.cleanup()
        self.active = self.configured = False

    def finish(self) -> int:
        """What is left to do when ROS has ended, SIGINT ignored; returns the exit status of the process."""
        return 0

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self.configure()
        except UserError as error:
            self.cleanup()
            self._say(error)
            return FAILURE
        self.configured = True
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self.activate()
        except UserError as error:
            self._say(error)
            return FAILURE
        self.active = True
        self.diagnostics.set("state", OK, "active")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = False
        self.deactivate()
        self.diagnostics.set("state", WARN, "not active")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.configured = False
        self.cleanup()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.end()
        return super().on_shutdown(state)

    def _say(self, error: UserError) -> None:
        self.diagnostics.tell("state", ERROR, f"refused: {error}")

    def _autostart(self) -> None:
        self.destroy_timer(self._starter)
        started = self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS
        if self.one_task and not started:
            rclpy.try_shutdown()

    def _judge_parameters(self, parameters: Sequence[Any]) -> Any:
        for parameter in parameters:
            known = self.table.get(parameter.name)
            if known is None:
                continue
            if known.choices and parameter.value not in known.choices:
                return _rejected(f"{parameter.name} is one of {', '.join(known.choices)}, not {parameter.value!r}")
            if self.configured and not known.live:
                return _rejected(f"{parameter.name} is read when the node is configured: clean it up first")
        return SetParametersResult(successful=True)


def _rejected(reason: str) -> Any:
    return SetParametersResult(successful=False, reason=reason)


def needed(value: str, parameter: str, what: str) -> str:
    """The value of a parameter that has no default.

    Raises:
        ConfigError: it is empty.
    """
    if not value:
        raise ConfigError(
            f"parameter {parameter}", expected=what, found="nothing", next_step=f"give it: -p {parameter}:=..."
        )
    return value


def run(make: Callable[[], ManagedNode], threads: int = 1) -> int:
    """Run one node until a signal, or until it ends ROS; returns the exit status, 2 for parameters that are refused."""
    try:
        rclpy.init()
    except RuntimeError as error:  # arguments or a parameter file that cannot be read
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    try:
        node = make()
    except (ParameterException, UserError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor() if threads == 1 else MultiThreadedExecutor(num_threads=threads)
    executor.add_node(node)
    try:
        with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
            try:
                executor.spin()
            except RuntimeError:  # a callback that published when a signal had ended the context
                if rclpy.ok():
                    raise
    finally:
        # A second Ctrl-C must not break off what is being written; SIGKILL still ends a node that hangs.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        executor.shutdown()
        node.end()
        node.destroy_node()
        rclpy.try_shutdown()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rclpy puts back what it found at its start
    return node.finish()
