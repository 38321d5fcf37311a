"""Topics inside one process and between two."""

from __future__ import annotations

import array
from typing import Any

import pytest
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Float64MultiArray, Header, String

LATCHED = QoSProfile(depth=2, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_within_one_node(node: Any, spin_until: Any) -> None:
    got: list[str] = []
    node.create_subscription(String, "chatter", lambda message: got.append(message.data), 10)
    publisher = node.create_publisher(String, "chatter", 10)
    assert spin_until(lambda: publisher.get_subscription_count() == 1, node)
    for number in range(5):
        publisher.publish(String(data=str(number)))
    assert spin_until(lambda: len(got) == 5, node)
    assert got == ["0", "1", "2", "3", "4"]


def test_every_reliable_message_comes_back_in_order(node: Any, spin_until: Any, peer: Any) -> None:
    got: list[str] = []
    node.create_subscription(String, "/pong", lambda message: got.append(message.data), 200)
    publisher = node.create_publisher(String, "/ping", 200)
    back_and_forth = lambda: publisher.get_subscription_count() == 1 and node.count_publishers("/pong") == 1  # noqa: E731
    assert spin_until(back_and_forth, node)
    # The peer's writer may discover the reader here a little later than the other way round.
    assert spin_until(lambda: publisher.publish(String(data="knock")) or got, node)
    assert spin_until(lambda: False, node, timeout_s=0.3) is False
    got.clear()
    sent = [str(number) for number in range(150)]
    for text in sent:
        publisher.publish(String(data=text))
    assert spin_until(lambda: len(got) >= len(sent), node)
    assert got == sent


def test_arrays_survive_the_way(node: Any, spin_until: Any, peer: Any) -> None:
    got: list[Any] = []
    node.create_subscription(Float64MultiArray, "/numbers_back", got.append, 10)
    publisher = node.create_publisher(Float64MultiArray, "/numbers", 10)
    sent = Float64MultiArray(data=[0.1, -2.5, float("inf")])
    assert spin_until(lambda: publisher.publish(sent) or got, node)
    assert got[0] == sent
    assert isinstance(got[0].data, array.array) and got[0].data.typecode == "d"


def test_late_subscription_gets_the_last_latched_messages(node: Any, spin_until: Any, peer: Any) -> None:
    got: list[str] = []
    node.create_subscription(String, "/latched", lambda message: got.append(message.data), LATCHED)
    assert spin_until(lambda: len(got) == 2, node)
    assert got == ["second", "third"]


def test_late_volatile_subscription_gets_nothing_old(node: Any, spin_until: Any, peer: Any) -> None:
    got: list[Any] = []
    volatile = node.create_subscription(String, "/latched", got.append, 10)
    assert spin_until(lambda: volatile.get_publisher_count() == 1, node)
    assert not spin_until(lambda: got, node, timeout_s=0.5)


def test_keep_last_keeps_the_newest(node: Any, spin_until: Any) -> None:
    got: list[str] = []
    depth_one = QoSProfile(depth=1)
    node.create_subscription(String, "newest", lambda message: got.append(message.data), depth_one)
    publisher = node.create_publisher(String, "newest", depth_one)
    assert spin_until(lambda: publisher.get_subscription_count() == 1, node)
    for number in range(20):
        publisher.publish(String(data=str(number)))
    assert spin_until(lambda: "19" in got, node)
    assert len(got) < 20


def test_keep_all_keeps_everything(node: Any, spin_until: Any) -> None:
    got: list[str] = []
    keep_all = QoSProfile(history=HistoryPolicy.KEEP_ALL)
    node.create_subscription(String, "everything", lambda message: got.append(message.data), keep_all)
    publisher = node.create_publisher(String, "everything", keep_all)
    assert spin_until(lambda: publisher.get_subscription_count() == 1, node)
    for number in range(50):
        publisher.publish(String(data=str(number)))
    assert spin_until(lambda: len(got) == 50, node)


def test_best_effort_subscription_hears_a_reliable_publisher(node: Any, spin_until: Any) -> None:
    got: list[Any] = []
    best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(String, "mixed", got.append, best_effort)
    publisher = node.create_publisher(String, "mixed", 10)
    assert spin_until(lambda: publisher.publish(String(data="x")) or got, node)


def test_raw_subscription_gives_the_serialised_message(node: Any, spin_until: Any) -> None:
    raw: list[bytes] = []
    node.create_subscription(Header, "header", raw.append, 10, raw=True)
    publisher = node.create_publisher(Header, "header", 10)
    sent = Header(frame_id="camera")
    sent.stamp.sec = 7
    assert spin_until(lambda: publisher.publish(sent) or raw, node)
    assert isinstance(raw[0], bytes)
    assert deserialize_message(raw[0], Header) == sent
    assert raw[0].startswith(serialize_message(sent))


def test_serialised_bytes_can_be_published(node: Any, spin_until: Any) -> None:
    got: list[Any] = []
    node.create_subscription(String, "bytes", got.append, 10)
    publisher = node.create_publisher(String, "bytes", 10)
    assert spin_until(lambda: publisher.publish(serialize_message(String(data="packed"))) or got, node)
    assert got[0].data == "packed"


def test_an_image_is_the_same_on_the_other_side(node: Any, spin_until: Any) -> None:
    got: list[Any] = []
    node.create_subscription(Image, "image", got.append, 1)
    publisher = node.create_publisher(Image, "image", 1)
    sent = Image(height=480, width=640, encoding="rgb8", step=1920)
    sent.data = array.array("B", bytes(range(256)) * 3600)
    assert spin_until(lambda: publisher.publish(sent) or got, node)
    assert got[0] == sent


def test_callback_with_two_arguments_gets_the_stamps(node: Any, spin_until: Any) -> None:
    got: list[Any] = []
    node.create_subscription(String, "informed", lambda message, info: got.append(info), 10)
    publisher = node.create_publisher(String, "informed", 10)
    before_ns = node.get_clock().now().nanoseconds
    assert spin_until(lambda: publisher.publish(String()) or got, node)
    assert before_ns <= got[0]["source_timestamp"] <= got[0]["received_timestamp"]


def test_publishing_another_type_is_refused(node: Any) -> None:
    publisher = node.create_publisher(String, "typed", 10)
    with pytest.raises(TypeError):
        publisher.publish(Header())


def test_destroyed_publisher_leaves(node: Any, spin_until: Any) -> None:
    subscription = node.create_subscription(String, "leaving", lambda _: None, 10)
    publisher = node.create_publisher(String, "leaving", 10)
    assert spin_until(lambda: subscription.get_publisher_count() == 1, node)
    assert node.destroy_publisher(publisher)
    assert spin_until(lambda: subscription.get_publisher_count() == 0, node)


def test_wait_for_all_acked(node: Any, spin_until: Any, peer: Any) -> None:
    from rclpy.duration import Duration

    publisher = node.create_publisher(String, "/ping", 10)
    assert spin_until(lambda: publisher.get_subscription_count() == 1, node)
    publisher.publish(String(data="acknowledge"))
    assert publisher.wait_for_all_acked(Duration(seconds=5))
