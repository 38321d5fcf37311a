"""Nodes."""

from __future__ import annotations

from typing import Any

from dr_embedded import arguments, names
from dr_embedded.message import message_class
from dr_embedded.node_endpoints import NodeEndpoints
from dr_embedded.node_graph import NodeGraph, NodeNameNonExistentError
from dr_embedded.node_parameters import NodeParameters
from dr_embedded.parameter_services import ParameterServices
from dr_embedded.ros import logging
from dr_embedded.ros.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from dr_embedded.ros.clock import Clock, ROSClock
from dr_embedded.ros.context import Context
from dr_embedded.ros.exceptions import NotInitializedException
from dr_embedded.ros.parameter import Parameter
from dr_embedded.ros.publisher import Publisher
from dr_embedded.ros.qos import (
    QoSProfile,
    qos_profile_parameter_events,
    qos_profile_rosout_default,
)
from dr_embedded.ros.subscription import Subscription
from dr_embedded.ros.time import Time
from dr_embedded.ros.utilities import get_default_context

__all__ = [
    "MutuallyExclusiveCallbackGroup",
    "Node",
    "NodeNameNonExistentError",
    "ReentrantCallbackGroup",
]


class Node(NodeEndpoints, NodeGraph, NodeParameters):
    """A named member of the graph with its publishers, subscriptions, services, clients, timers and parameters."""

    def __init__(
        self,
        node_name: str,
        *,
        context: Context | None = None,
        cli_args: list[str] | None = None,
        namespace: str | None = None,
        use_global_arguments: bool = True,
        enable_rosout: bool = True,
        start_parameter_services: bool = True,
        parameter_overrides: list[Parameter] | None = None,
        allow_undeclared_parameters: bool = False,
        automatically_declare_parameters_from_overrides: bool = False,
        enable_logger_service: bool = False,
    ) -> None:
        if enable_logger_service:
            raise NotImplementedError("dr_embedded: Node(enable_logger_service=True)")
        self._context = context or get_default_context()
        if not self._context.ok():
            raise NotInitializedException("cannot create node")
        self._session = self._context._open_session()
        self._arguments = arguments.parse(
            ["--ros-args", *cli_args] if cli_args and "--ros-args" not in cli_args else cli_args or []
        )
        if use_global_arguments:
            self._arguments.remaps += self._context._arguments.remaps
            self._arguments.parameters = self._context._arguments.parameters + self._arguments.parameters
        namespace = namespace or ""
        full_namespace = namespace if namespace.startswith("/") else f"/{namespace}"
        names.validate_node_name(node_name)
        names.validate_namespace(full_namespace)
        self._name = self._arguments.node_name(node_name)
        self._namespace = self._arguments.namespace(node_name, full_namespace)
        names.validate_node_name(self._name)
        names.validate_namespace(self._namespace)
        self._graph_name = (self._name, self._namespace)
        self._names_in_dds = {}

        self.executor: Any = None
        self._init_endpoints()
        self._default_callback_group = MutuallyExclusiveCallbackGroup()
        self._clock: Clock = ROSClock()
        self._parameter_events: Publisher | None = None
        self._clock_subscription: Subscription | None = None
        self._destroyed = False
        self._logger = logging.RcutilsLogger(".".join([*self._namespace.strip("/").split("/"), self._name]).strip("."))

        given = self._arguments.parameter_overrides(self._name, self._namespace)
        overrides = {name: Parameter(name, value=value) for name, value in given.items()}
        overrides.update({one.name: one for one in parameter_overrides or []})
        self._init_parameters(overrides, allow_undeclared_parameters)

        self._session.graph.change(self._graph_name)
        self._session.add_node(self)
        if enable_rosout:
            self._start_rosout()
        events = message_class("rcl_interfaces/msg/ParameterEvent")
        self._parameter_events = self.create_publisher(events, "/parameter_events", qos_profile_parameter_events)
        if automatically_declare_parameters_from_overrides:
            self.declare_parameters("", [(name, one.value) for name, one in overrides.items()])
        if not self.has_parameter("use_sim_time"):
            self.declare_parameter("use_sim_time", False)
        self._follow_clock([self.get_parameter("use_sim_time")])
        self.add_post_set_parameters_callback(self._follow_clock)
        if start_parameter_services:
            ParameterServices(self)

    # Identity and shared things.

    def get_name(self) -> str:
        return self._name

    def get_namespace(self) -> str:
        return self._namespace

    def get_fully_qualified_name(self) -> str:
        return f"{self._namespace.rstrip('/')}/{self._name}"

    def get_logger(self) -> logging.RcutilsLogger:
        return self._logger

    def get_clock(self) -> Clock:
        return self._clock

    @property
    def context(self) -> Context:
        return self._context

    @property
    def default_callback_group(self) -> CallbackGroup:
        return self._default_callback_group

    def destroy_node(self) -> None:
        """Leave the graph with everything; the node is useless afterwards."""
        if self._destroyed:
            return
        self._destroyed = True
        if self.executor is not None:
            self.executor.remove_node(self)
        logging.detach(self._logger.name)
        self._parameter_events = None
        for members in (
            self._timers,
            self._subscriptions,
            self._clients,
            self._services,
            self._guards,
            self._publishers,
        ):
            for one in list(members):
                self._destroy_from(members, one)
        if not self._session.closed:
            self._session.graph.remove_node(self._graph_name)
        self._session.remove_node(self)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy_node()

    # /rosout, /parameter_events, /clock.

    def _start_rosout(self) -> None:
        log = message_class("rcl_interfaces/msg/Log")
        publisher = self.create_publisher(log, "/rosout", qos_profile_rosout_default)

        def publish(severity: int, name: str, text: str, file: str, function: str, line: int) -> None:
            if not publisher._destroyed and self._session.valid:
                stamp = self._clock.now().to_msg()
                publisher.publish(
                    log(stamp=stamp, level=severity, name=name, msg=text, file=file, function=function, line=line)
                )

        logging.attach(self._logger.name, publish)

    def _announce_parameters(self, event: Any) -> None:
        if self._parameter_events is not None and self._session.valid:
            event.node = self.get_fully_qualified_name()
            event.stamp = self._clock.now().to_msg()
            self._parameter_events.publish(event)

    def _follow_clock(self, parameters: list[Parameter]) -> None:
        """Start or stop following /clock as use_sim_time says."""
        for parameter in parameters:
            if parameter.name != "use_sim_time" or not isinstance(self._clock, ROSClock):
                continue
            if parameter.value and self._clock_subscription is None:
                clock = message_class("rosgraph_msgs/msg/Clock")
                profile = QoSProfile(depth=1, reliability=2)
                self._clock._set_ros_time_is_active(True)
                self._clock_subscription = self.create_subscription(
                    clock, "/clock", self._on_clock, profile, callback_group=ReentrantCallbackGroup()
                )
            elif not parameter.value and self._clock_subscription is not None:
                self._clock._set_ros_time_is_active(False)
                self.destroy_subscription(self._clock_subscription)
                self._clock_subscription = None

    def _on_clock(self, message: Any) -> None:
        if isinstance(self._clock, ROSClock) and self._clock.ros_time_is_active:
            self._clock.set_ros_time_override(Time.from_msg(message.clock))

    def wait_for_node(self, fully_qualified_node_name: str, timeout: float) -> bool:
        raise NotImplementedError("dr_embedded: Node.wait_for_node")
