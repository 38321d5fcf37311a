"""Parameters: static types, ranges, callbacks, overrides, and the services by which others use them."""

from __future__ import annotations

from typing import Any

import pytest
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterEvent,
    ParameterType,
    ParameterValue,
    SetParametersResult,
)
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters, SetParametersAtomically
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterAlreadyDeclaredException,
    ParameterImmutableException,
    ParameterNotDeclaredException,
    ParameterUninitializedException,
)
from rclpy.parameter import Parameter


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "BOOL"),
        (3, "INTEGER"),
        (0.5, "DOUBLE"),
        ("text", "STRING"),
        ([b"a", b"b"], "BYTE_ARRAY"),
        ([True, False], "BOOL_ARRAY"),
        ([1, 2], "INTEGER_ARRAY"),
        ([1.0, 2.0], "DOUBLE_ARRAY"),
        (["a", "b"], "STRING_ARRAY"),
    ],
)
def test_declared_value_and_type(node: Any, value: Any, kind: str) -> None:
    declared = node.declare_parameter("one", value)
    assert declared.value == value and declared.type_ == Parameter.Type[kind]
    assert Parameter.from_parameter_msg(declared.to_parameter_msg()).value == value


def test_type_is_static(node: Any) -> None:
    node.declare_parameter("rate", 1.0)
    (answer,) = node.set_parameters([Parameter("rate", value=2)])
    assert not answer.successful and "rate" not in answer.reason.lower()[:0] and answer.reason
    assert node.get_parameter("rate").value == 1.0
    (answer,) = node.set_parameters([Parameter("rate", value=2.0)])
    assert answer.successful and node.get_parameter("rate").value == 2.0


def test_dynamic_typing_allows_any_type(node: Any) -> None:
    node.declare_parameter("any", 1, ParameterDescriptor(dynamic_typing=True))
    (answer,) = node.set_parameters([Parameter("any", value="text")])
    assert answer.successful and node.get_parameter("any").value == "text"


def test_undeclared_and_twice_declared(node: Any) -> None:
    with pytest.raises(ParameterNotDeclaredException):
        node.get_parameter("nothing")
    with pytest.raises(ParameterNotDeclaredException):
        node.set_parameters([Parameter("nothing", value=1)])
    node.declare_parameter("once", 1)
    with pytest.raises(ParameterAlreadyDeclaredException):
        node.declare_parameter("once", 1)
    assert node.has_parameter("once") and not node.has_parameter("nothing")
    assert node.get_parameter_or("nothing", Parameter("nothing", value=5)).value == 5
    node.undeclare_parameter("once")
    assert not node.has_parameter("once")


def test_declared_by_type_only(make_node: Any) -> None:
    node = make_node("typed")
    node.declare_parameter("path", Parameter.Type.STRING)
    with pytest.raises(ParameterUninitializedException):
        node.get_parameter("path")
    given = make_node("given", parameter_overrides=[Parameter("path", value="/data")])
    assert given.declare_parameter("path", Parameter.Type.STRING).value == "/data"


def test_override_of_another_type_is_refused(make_node: Any) -> None:
    node = make_node("wrong", parameter_overrides=[Parameter("rate", value="fast")])
    with pytest.raises(InvalidParameterTypeException):
        node.declare_parameter("rate", 1.0)


def test_integer_range_with_step(node: Any) -> None:
    limits = ParameterDescriptor(integer_range=[IntegerRange(from_value=0, to_value=10, step=2)])
    node.declare_parameter("even", 4, limits)
    answers = [node.set_parameters([Parameter("even", value=value)])[0].successful for value in (6, 5, 12, -1, 10)]
    assert answers == [True, False, False, False, True]
    assert node.get_parameter("even").value == 10
    with pytest.raises(InvalidParameterValueException):
        node.declare_parameter("bad", 11, limits)


def test_floating_point_range(node: Any) -> None:
    limits = ParameterDescriptor(floating_point_range=[FloatingPointRange(from_value=0.0, to_value=1.0, step=0.0)])
    node.declare_parameter("part", 0.5, limits)
    answers = [node.set_parameters([Parameter("part", value=v)])[0].successful for v in (0.0, 1.0, 0.3, 1.1, -0.1)]
    assert answers == [True, True, True, False, False]


def test_read_only(node: Any) -> None:
    node.declare_parameter("fixed", 1, ParameterDescriptor(read_only=True))
    assert not node.set_parameters([Parameter("fixed", value=2)])[0].successful
    with pytest.raises(ParameterImmutableException):
        node.undeclare_parameter("fixed")


def test_callbacks_decide_and_learn(node: Any) -> None:
    node.declare_parameters("", [("a", 1), ("b", 1)])
    learnt: list[tuple[str, int]] = []

    def decide(parameters: list[Any]) -> SetParametersResult:
        return SetParametersResult(successful=all(one.value < 10 for one in parameters), reason="too big")

    node.add_on_set_parameters_callback(decide)
    node.add_post_set_parameters_callback(lambda done: learnt.extend((one.name, one.value) for one in done))
    refused = node.set_parameters_atomically([Parameter("a", value=2), Parameter("b", value=20)])
    assert (refused.successful, refused.reason) == (False, "too big")
    assert node.get_parameter("a").value == 1 and learnt == []
    assert node.set_parameters_atomically([Parameter("a", value=3), Parameter("b", value=4)]).successful
    assert learnt == [("a", 3), ("b", 4)]
    node.remove_on_set_parameters_callback(decide)
    assert node.set_parameters([Parameter("b", value=20)])[0].successful


def test_callback_before_setting_may_change_the_list(node: Any) -> None:
    node.declare_parameters("", [("width", 1), ("half", 0)])

    def complete(parameters: list[Any]) -> list[Any]:
        return [*parameters, Parameter("half", value=parameters[0].value // 2)]

    node.add_pre_set_parameters_callback(complete)
    assert node.set_parameters([Parameter("width", value=8)])[0].successful
    assert node.get_parameter("half").value == 4


def test_prefixes(node: Any) -> None:
    node.declare_parameters("arm", [("speed", 1.0), ("joint.limit", 2.0)])
    found = node.get_parameters_by_prefix("arm")
    assert {name: one.value for name, one in found.items()} == {"speed": 1.0, "joint.limit": 2.0}


def test_changes_are_announced(node: Any, spin_until: Any) -> None:
    events: list[Any] = []
    node.create_subscription(ParameterEvent, "/parameter_events", events.append, 10)
    assert spin_until(lambda: node.count_subscribers("/parameter_events") == 1, node)
    assert not spin_until(lambda: False, node, timeout_s=0.2)
    events.clear()
    node.declare_parameter("seen", 1)
    node.set_parameters([Parameter("seen", value=2)])
    assert spin_until(lambda: len(events) >= 2, node)
    assert [one.name for one in events[0].new_parameters] == ["seen"]
    assert [one.value.integer_value for one in events[1].changed_parameters] == [2]
    assert events[1].node == "/tester"


def ask(node: Any, spin_until: Any, kind: Any, name: str, **fields: Any) -> Any:
    client = node.create_client(kind, f"/peer/echo/{name}")
    assert client.wait_for_service(timeout_sec=10.0)
    future = client.call_async(kind.Request(**fields))
    assert spin_until(future.done, node)
    return future.result()


def integer(name: str, value: int) -> ParameterMessage:
    typed = ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
    return ParameterMessage(name=name, value=typed)


def test_services_of_another_process(node: Any, spin_until: Any, peer: Any) -> None:
    listed = ask(node, spin_until, ListParameters, "list_parameters").result.names
    assert {"even", "name", "fixed", "use_sim_time"} <= set(listed)
    values = ask(node, spin_until, GetParameters, "get_parameters", names=["even", "name"]).values
    assert [values[0].type, values[1].string_value] == [ParameterType.PARAMETER_INTEGER, "nobody"]
    (described,) = ask(node, spin_until, DescribeParameters, "describe_parameters", names=["even"]).descriptors
    assert described.name == "even" and described.integer_range[0].step == 2
    tried = [integer("even", 8), integer("even", 7), integer("fixed", 1), integer("missing", 1)]
    results = ask(node, spin_until, SetParameters, "set_parameters", parameters=tried).results
    assert [one.successful for one in results] == [True, False, False, False]
    assert all(one.reason for one in results[1:])
    both = [integer("even", 2), integer("even", 3)]
    answer = ask(node, spin_until, SetParametersAtomically, "set_parameters_atomically", parameters=both)
    assert not answer.result.successful
    assert ask(node, spin_until, GetParameters, "get_parameters", names=["even"]).values[0].integer_value == 8


def test_command_line_and_file(start_peer: Any, tmp_path: Any) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text("/**:\n  ros__parameters:\n    rate: 5.0\n    nested:\n      word: from file\n")
    peer = start_peer("plain", "--ros-args", "--params-file", str(file), "-p", "rate:=7.5")
    assert "rate=7.5 word=from file" in peer.lines


def test_file_section_of_one_node(start_peer: Any, tmp_path: Any) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text("other:\n  ros__parameters:\n    rate: 5.0\nplain:\n  ros__parameters:\n    rate: 6.0\n")
    peer = start_peer("plain", "--ros-args", "--params-file", str(file))
    assert "rate=6.0 word=default" in peer.lines
