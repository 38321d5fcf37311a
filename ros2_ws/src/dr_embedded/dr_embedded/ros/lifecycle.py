"""Managed nodes: unconfigured, inactive, active, finalized, and the services that move them."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from dr_embedded.lifecycle_states import STATES, TRANSITIONS, StateMachine
from dr_embedded.message import message_class, service_class
from dr_embedded.ros import node as nodes
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.exceptions import RCLError
from dr_embedded.ros.publisher import Publisher as _Publisher

__all__ = [
    "LifecycleNode",
    "LifecycleNodeMixin",
    "LifecyclePublisher",
    "LifecycleState",
    "ManagedEntity",
    "Node",
    "NodeMixin",
    "Publisher",
    "SimpleManagedEntity",
    "State",
    "TransitionCallbackReturn",
]


class TransitionCallbackReturn(Enum):
    """How a transition callback ended."""

    SUCCESS = 97
    FAILURE = 98
    ERROR = 99

    def to_label(self) -> str:
        return f"transition_{self.name.lower()}"


class LifecycleState(NamedTuple):
    label: str
    state_id: int


class ManagedEntity:
    """Something that follows the transitions of its node."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS


class SimpleManagedEntity(ManagedEntity):
    """Enabled while its node is active."""

    _enabled = False

    @property
    def is_activated(self) -> bool:
        return self._enabled

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._enabled = True
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._enabled = False
        return TransitionCallbackReturn.SUCCESS

    @staticmethod
    def when_enabled(wrapped: Any = None, *, when_not_enabled: Callable[[], Any] | None = None) -> Any:
        """Decorator: a method that does nothing (or `when_not_enabled`) while the node is not active."""
        if wrapped is None:
            return functools.partial(SimpleManagedEntity.when_enabled, when_not_enabled=when_not_enabled)

        @functools.wraps(wrapped)
        def only_then(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._enabled:
                return when_not_enabled() if when_not_enabled is not None else None
            return wrapped(self, *args, **kwargs)

        return only_then


class LifecyclePublisher(SimpleManagedEntity, _Publisher):
    """Drops what is published while the node is not active."""

    @SimpleManagedEntity.when_enabled
    def publish(self, msg: Any) -> None:
        _Publisher.publish(self, msg)


class LifecycleNodeMixin(ManagedEntity):
    """The state machine of a node; used together with Node."""

    def __init__(
        self, *, enable_communication_interface: bool = True, callback_group: CallbackGroup | None = None
    ) -> None:
        self._machine = StateMachine()
        self._managed_entities: list[ManagedEntity] = []
        self._transition_events: Any = None
        if not enable_communication_interface:
            return
        me: Any = self
        group = callback_group or me.default_callback_group
        event = message_class("lifecycle_msgs/msg/TransitionEvent")
        self._transition_events = me.create_publisher(event, "~/transition_event", 10)
        for service, name, callback in (
            ("ChangeState", "change_state", self._serve_change_state),
            ("GetState", "get_state", self._serve_state),
            ("GetAvailableStates", "get_available_states", self._serve_states),
            ("GetAvailableTransitions", "get_available_transitions", self._serve_transitions),
            ("GetAvailableTransitions", "get_transition_graph", self._serve_graph),
        ):
            kind = service_class(f"lifecycle_msgs/srv/{service}")
            me.create_service(kind, f"~/{name}", callback, callback_group=group)

    def trigger_configure(self) -> TransitionCallbackReturn:
        return self._change("configure")

    def trigger_cleanup(self) -> TransitionCallbackReturn:
        return self._change("cleanup")

    def trigger_activate(self) -> TransitionCallbackReturn:
        return self._change("activate")

    def trigger_deactivate(self) -> TransitionCallbackReturn:
        return self._change("deactivate")

    def trigger_shutdown(self) -> TransitionCallbackReturn:
        return self._change("shutdown")

    def add_managed_entity(self, entity: ManagedEntity) -> None:
        self._managed_entities.append(entity)

    def _ask_entities(self, callback: str, state: LifecycleState) -> TransitionCallbackReturn:
        for entity in self._managed_entities:
            answer: TransitionCallbackReturn = getattr(entity, callback)(state)
            if answer is not TransitionCallbackReturn.SUCCESS:
                return answer
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities("on_configure", state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities("on_cleanup", state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities("on_shutdown", state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities("on_activate", state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities("on_deactivate", state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities("on_error", state)

    def create_lifecycle_publisher(self, *args: Any, **kwargs: Any) -> LifecyclePublisher:
        """As create_publisher; publishes only while the node is active."""
        if "publisher_class" in kwargs:
            raise TypeError("create_lifecycle_publisher() got an unexpected keyword argument 'publisher_class'")
        me: Any = self
        made: LifecyclePublisher = me.create_publisher(*args, **kwargs, publisher_class=LifecyclePublisher)
        self.add_managed_entity(made)
        return made

    def destroy_lifecycle_publisher(self, publisher: LifecyclePublisher) -> bool:
        if publisher in self._managed_entities:
            self._managed_entities.remove(publisher)
        me: Any = self
        return bool(me.destroy_publisher(publisher))

    def _change(self, label: str) -> TransitionCallbackReturn:
        """Run one transition with its callback, and error processing if that is needed.

        Raises:
            RCLError: the current state has no such transition.
        """
        before = LifecycleState(self._machine.state, STATES[self._machine.state])
        if not self._step(label):
            raise RCLError(f"Failed to trigger lifecycle state machine transition: no '{label}' in '{before.label}'")
        answer = self._run_callback(before)
        self._step(answer.to_label())
        if answer is TransitionCallbackReturn.ERROR:
            self._step(self._run_callback(before).to_label())
        return answer

    def _run_callback(self, before: LifecycleState) -> TransitionCallbackReturn:
        name = self._machine.callback
        try:
            answer = getattr(self, name)(before)
        except Exception:
            me: Any = self
            me.get_logger().error(f"{name} raised:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        return answer if isinstance(answer, TransitionCallbackReturn) else TransitionCallbackReturn.ERROR

    def _step(self, label: str) -> bool:
        transition = self._machine.trigger(label)
        if transition is None:
            return False
        if self._transition_events is not None and self._transition_events._session.valid:
            me: Any = self
            event: Any = message_class("lifecycle_msgs/msg/TransitionEvent")(timestamp=me.get_clock().now().nanoseconds)
            described = _describe(transition)
            event.transition, event.start_state = described.transition, described.start_state
            event.goal_state = described.goal_state
            self._transition_events.publish(event)
        return True

    def _serve_change_state(self, request: Any, response: Any) -> Any:
        label = request.transition.label or self._machine.label_of(request.transition.id)
        try:
            response.success = self._change(label) is TransitionCallbackReturn.SUCCESS
        except RCLError as problem:
            me: Any = self
            me.get_logger().error(str(problem))
            response.success = False
        return response

    def _serve_state(self, request: Any, response: Any) -> Any:
        response.current_state = _state(self._machine.state)
        return response

    def _serve_states(self, request: Any, response: Any) -> Any:
        response.available_states = [_state(label) for label in STATES]
        return response

    def _serve_transitions(self, request: Any, response: Any) -> Any:
        state = self._machine.state
        response.available_transitions = [_describe(one) for one in TRANSITIONS if one.start == state]
        return response

    def _serve_graph(self, request: Any, response: Any) -> Any:
        response.available_transitions = [_describe(one) for one in TRANSITIONS]
        return response


def _state(label: str) -> Any:
    return message_class("lifecycle_msgs/msg/State")(id=STATES[label], label=label)


def _describe(transition: Any) -> Any:
    made: Any = message_class("lifecycle_msgs/msg/TransitionDescription")()
    made.transition.id, made.transition.label = transition.number, transition.label
    made.start_state, made.goal_state = _state(transition.start), _state(transition.goal)
    return made


class LifecycleNode(LifecycleNodeMixin, nodes.Node):
    """A managed node; override the on_… callbacks and return a TransitionCallbackReturn."""

    def __init__(self, node_name: str, *, enable_communication_interface: bool = True, **kwargs: Any) -> None:
        nodes.Node.__init__(self, node_name, **kwargs)
        LifecycleNodeMixin.__init__(self, enable_communication_interface=enable_communication_interface)


Node = LifecycleNode
NodeMixin = LifecycleNodeMixin
Publisher = LifecyclePublisher
State = LifecycleState
