"""Managed nodes: transitions from inside and by the services of another process."""

from __future__ import annotations

from typing import Any

import pytest
from lifecycle_msgs.msg import State, Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import String

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)


class Recording(LifecycleNode):
    """Notes its callbacks; `answers` says how they end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, str]] = []
        self.answers: dict[str, Any] = {}

    def _note(self, name: str, state: LifecycleState) -> TransitionCallbackReturn:
        self.calls.append((name, state.label))
        answer = self.answers.get(name, SUCCESS)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._note("configure", state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._note("activate", state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._note("deactivate", state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._note("cleanup", state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._note("shutdown", state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._note("error", state)


@pytest.fixture
def managed(ros: None) -> Any:
    node = Recording("managed_here")
    yield node
    node.destroy_node()


def state_of(node: Any, spin_until: Any, name: str = "/managed_here", *others: Any) -> str:
    return str(call(node, spin_until, GetState, f"{name}/get_state", *others).current_state.label)


def call(node: Any, spin_until: Any, kind: Any, service: str, *others: Any, **fields: Any) -> Any:
    client = node.create_client(kind, service)
    assert client.wait_for_service(timeout_sec=10.0)
    future = client.call_async(kind.Request(**fields))
    assert spin_until(future.done, node, *others)
    node.destroy_client(client)
    return future.result()


def test_whole_life(managed: Any, spin_until: Any) -> None:
    assert state_of(managed, spin_until) == "unconfigured"
    for step in ("configure", "activate", "deactivate", "cleanup", "shutdown"):
        assert getattr(managed, f"trigger_{step}")() == SUCCESS
    assert managed.calls == [
        ("configure", "unconfigured"),
        ("activate", "inactive"),
        ("deactivate", "active"),
        ("cleanup", "inactive"),
        ("shutdown", "unconfigured"),
    ]
    assert state_of(managed, spin_until) == "finalized"


def test_failure_goes_back(managed: Any, spin_until: Any) -> None:
    managed.answers = {"configure": FAILURE}
    assert managed.trigger_configure() == FAILURE
    assert state_of(managed, spin_until) == "unconfigured"
    managed.answers = {"activate": FAILURE}
    managed.trigger_configure()
    assert managed.trigger_activate() == FAILURE
    assert state_of(managed, spin_until) == "inactive"


def test_error_is_processed(managed: Any, spin_until: Any) -> None:
    managed.answers = {"configure": ERROR}
    assert managed.trigger_configure() == ERROR
    assert managed.calls[-1][0] == "error"
    assert state_of(managed, spin_until) == "unconfigured"
    managed.answers = {"configure": ValueError("broken"), "error": FAILURE}
    assert managed.trigger_configure() == ERROR
    assert state_of(managed, spin_until) == "finalized"


def test_publisher_is_silent_until_active(ros: None, spin_until: Any) -> None:
    node = LifecycleNode("quiet")
    got: list[str] = []
    publisher = node.create_lifecycle_publisher(String, "quiet", 10)
    node.create_subscription(String, "quiet", lambda message: got.append(message.data), 10)
    assert spin_until(lambda: publisher.get_subscription_count() == 1, node)
    publisher.publish(String(data="before"))
    node.trigger_configure()
    publisher.publish(String(data="inactive"))
    node.trigger_activate()
    assert publisher.is_activated
    publisher.publish(String(data="active"))
    assert spin_until(lambda: got, node)
    node.trigger_deactivate()
    publisher.publish(String(data="after"))
    assert not spin_until(lambda: len(got) > 1, node, timeout_s=0.2)
    assert got == ["active"]
    node.destroy_node()


def change(node: Any, spin_until: Any, transition: int) -> bool:
    wanted = Transition(id=transition)
    return bool(call(node, spin_until, ChangeState, "/peer/managed/change_state", transition=wanted).success)


def set_wish(node: Any, spin_until: Any, wish: str) -> None:
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=wish)
    parameter = Parameter(name="on_activate", value=value)
    answer = call(node, spin_until, SetParameters, "/peer/managed/set_parameters", parameters=[parameter])
    assert answer.results[0].successful


def test_from_another_process(node: Any, spin_until: Any, peer: Any) -> None:
    events: list[str] = []
    beats: list[Any] = []
    node.create_subscription(
        TransitionEvent, "/peer/managed/transition_event", lambda event: events.append(event.goal_state.label), 50
    )
    node.create_subscription(String, "/beat", beats.append, 10)
    assert spin_until(lambda: node.count_publishers("/peer/managed/transition_event") == 1, node)
    assert change(node, spin_until, Transition.TRANSITION_CONFIGURE)
    assert not spin_until(lambda: beats, node, timeout_s=0.2)
    set_wish(node, spin_until, "fail")
    assert not change(node, spin_until, Transition.TRANSITION_ACTIVATE)
    assert state_of(node, spin_until, "/peer/managed") == "inactive"
    set_wish(node, spin_until, "raise")
    assert not change(node, spin_until, Transition.TRANSITION_ACTIVATE)
    assert state_of(node, spin_until, "/peer/managed") == "unconfigured"
    set_wish(node, spin_until, "succeed")
    assert change(node, spin_until, Transition.TRANSITION_CONFIGURE)
    assert change(node, spin_until, Transition.TRANSITION_ACTIVATE)
    assert spin_until(lambda: len(beats) > 1, node)
    assert state_of(node, spin_until, "/peer/managed") == "active"
    assert spin_until(lambda: events[-1:] == ["active"], node)
    assert change(node, spin_until, Transition.TRANSITION_DEACTIVATE)
    assert change(node, spin_until, Transition.TRANSITION_CLEANUP)


def test_what_is_possible(node: Any, spin_until: Any, peer: Any) -> None:
    states = call(node, spin_until, GetAvailableStates, "/peer/managed/get_available_states").available_states
    assert {"unconfigured", "inactive", "active", "finalized"} <= {one.label for one in states}
    where = "/peer/managed/get_available_transitions"
    now = call(node, spin_until, GetAvailableTransitions, where).available_transitions
    assert {one.transition.label for one in now} == {"configure", "shutdown"}
    assert all(one.start_state.id == State.PRIMARY_STATE_UNCONFIGURED for one in now)
    where = "/peer/managed/get_transition_graph"
    graph = call(node, spin_until, GetAvailableTransitions, where).available_transitions
    assert len(graph) > 20
