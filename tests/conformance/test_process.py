"""init and shutdown, names, command lines, signals, logging, the graph."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import rclpy
from rcl_interfaces.msg import Log
from rclpy.exceptions import (
    InvalidNamespaceException,
    InvalidNodeNameException,
    InvalidServiceNameException,
    InvalidTopicNameException,
    NotInitializedException,
)
from rclpy.logging import LoggingSeverity
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.validate_topic_name import validate_topic_name
from std_msgs.msg import String
from std_srvs.srv import Empty, SetBool


def test_init_and_shutdown() -> None:
    assert not rclpy.ok()
    with pytest.raises(NotInitializedException):
        rclpy.create_node("too_early")
    rclpy.init(args=[])
    assert rclpy.ok()
    with pytest.raises(RuntimeError):
        rclpy.init(args=[])
    rclpy.shutdown()
    assert not rclpy.ok()
    with pytest.raises(RuntimeError):
        rclpy.shutdown()
    rclpy.try_shutdown()
    ended: list[int] = []
    with rclpy.init(args=[]):
        rclpy.get_default_context().on_shutdown(lambda: ended.append(1))
        rclpy.create_node("brief").destroy_node()
    assert not rclpy.ok() and ended == [1]


def test_own_context() -> None:
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("apart", context=context)
    assert context.ok() and not rclpy.ok()
    assert node.context is context
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_names(node: Any, make_node: Any) -> None:
    inside = make_node("inner", namespace="outer")
    assert (inside.get_name(), inside.get_namespace()) == ("inner", "/outer")
    assert inside.get_fully_qualified_name() == "/outer/inner"
    assert [inside.resolve_topic_name(name) for name in ("t", "/t", "~/t")] == ["/outer/t", "/t", "/outer/inner/t"]
    assert inside.resolve_service_name("~/s") == "/outer/inner/s"
    assert inside.get_logger().name == "outer.inner"
    with pytest.raises(InvalidNodeNameException):
        make_node("no-dash")
    with pytest.raises(InvalidNamespaceException):
        make_node("fine", namespace="/1st")
    for bad in ("", "a//b", "1st", "dash-ed", "end/", "~tilde", "{unknown}"):
        with pytest.raises(InvalidTopicNameException):
            validate_topic_name(bad)
    with pytest.raises(InvalidTopicNameException):
        node.create_publisher(String, "bad topic", 1)
    with pytest.raises(InvalidServiceNameException):
        node.create_service(Empty, "bad service", lambda request, response: response)


def test_remapping_inside(make_node: Any) -> None:
    rules = ["--ros-args", "-r", "in:=/camera/image", "-r", "~/own:=elsewhere", "-r", "__ns:=/arm"]
    node = make_node("remapped", cli_args=rules, use_global_arguments=False)
    assert node.get_fully_qualified_name() == "/arm/remapped"
    subscription = node.create_subscription(String, "in", lambda _: None, 1)
    assert subscription.topic_name == "/camera/image"
    assert node.create_publisher(String, "~/own", 1).topic_name == "/arm/elsewhere"
    assert node.create_publisher(String, "untouched", 1).topic_name == "/arm/untouched"


def test_remapping_on_the_command_line(start_peer: Any) -> None:
    peer = start_peer("plain", "--ros-args", "-r", "__node:=renamed", "-r", "__ns:=/deep/er", "-r", "out:=/far")
    assert "name=/deep/er/renamed out=/far" in peer.lines


def test_unknown_ros_argument() -> None:
    with pytest.raises(RuntimeError, match="--nonsense"):
        rclpy.init(args=["--ros-args", "--nonsense"])
    rclpy.try_shutdown()
    assert rclpy.utilities.remove_ros_args(["prog", "mine", "--ros-args", "-r", "a:=b", "--", "too"]) == [
        "prog",
        "mine",
        "too",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_node(start_peer: Any, number: int) -> None:
    status, output = start_peer("plain").stop(number)
    assert status == 0
    assert "all is ended" in output and "Traceback" not in output
    # Which way spin() ends depends on where the signal meets it; only SIGINT may also raise KeyboardInterrupt.
    assert number == signal.SIGINT or "interrupted" not in output


def test_log_levels_and_options(node: Any, capfd: Any) -> None:
    logger = node.get_logger()
    assert logger.get_effective_level() == LoggingSeverity.INFO
    assert not logger.debug("hidden")
    for _ in range(3):
        logger.info("only once", once=True)
        logger.info("not the first", skip_first=True)
        logger.info("seldom", throttle_duration_sec=100.0)
    logger.set_level(LoggingSeverity.ERROR)
    assert not logger.warning("silenced")
    logger.set_level(LoggingSeverity.INFO)
    logger.get_child("part").error("from a part")
    printed = capfd.readouterr().err
    assert printed.count("only once") == 1 and printed.count("not the first") == 2 and printed.count("seldom") == 1
    assert "hidden" not in printed and "silenced" not in printed
    assert "[ERROR] [" in printed and "[tester.part]: from a part" in printed


def test_rosout_of_another_process(node: Any, spin_until: Any, peer: Any) -> None:
    logs: list[Any] = []
    profile = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(Log, "/rosout", logs.append, profile)
    client = node.create_client(SetBool, "/peer/echo/say")
    assert client.wait_for_service(timeout_sec=10.0)
    client.call_async(SetBool.Request())
    assert spin_until(lambda: [one for one in logs if one.msg == "said aloud"], node)
    (line,) = [one for one in logs if one.msg == "said aloud"]
    assert (line.name, line.level, line.function) == ("peer.echo", 30, "say")
    assert line.file.endswith("peers.py") and line.line > 0 and line.stamp.sec > 0


def test_graph_of_two_processes(node: Any, spin_until: Any, peer: Any) -> None:
    assert spin_until(lambda: ("echo", "/peer") in node.get_node_names_and_namespaces(), node)
    assert {"tester", "echo", "managed"} <= set(node.get_node_names())
    assert spin_until(lambda: ("/pong", ["std_msgs/msg/String"]) in node.get_topic_names_and_types(), node)
    service = ("/peer/echo/negate", ["std_srvs/srv/SetBool"])
    assert spin_until(lambda: service in node.get_service_names_and_types(), node)
    assert spin_until(lambda: service in node.get_service_names_and_types_by_node("echo", "/peer"), node)
    publishers = dict(node.get_publisher_names_and_types_by_node("echo", "/peer"))
    assert publishers["/pong"] == ["std_msgs/msg/String"] and "/ping" not in publishers
    assert "/ping" in dict(node.get_subscriber_names_and_types_by_node("echo", "/peer"))
    assert (node.count_publishers("/pong"), node.count_subscribers("/ping")) == (1, 1)


def test_details_of_publishers_and_subscriptions(node: Any, spin_until: Any, peer: Any) -> None:
    assert spin_until(lambda: node.get_publishers_info_by_topic("/latched"), node)
    assert spin_until(lambda: node.get_publishers_info_by_topic("/latched")[0].node_name == "echo", node)
    (info,) = node.get_publishers_info_by_topic("/latched")
    assert (info.node_namespace, info.topic_type) == ("/peer", "std_msgs/msg/String")
    assert info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    (info,) = node.get_publishers_info_by_topic("/sensor")
    assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    (info,) = node.get_subscriptions_info_by_topic("/ping")
    assert info.node_name == "echo" and len(info.endpoint_gid) >= 16


def test_process_that_ends_leaves_the_graph(node: Any, spin_until: Any, start_peer: Any) -> None:
    peer = start_peer("plain")
    assert spin_until(lambda: "plain" in node.get_node_names(), node)
    assert spin_until(lambda: node.count_publishers("/out") == 1, node)
    peer.stop()
    assert spin_until(lambda: "plain" not in node.get_node_names(), node)
    assert node.count_publishers("/out") == 0
