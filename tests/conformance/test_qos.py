"""Quality of service: defaults, presets, errors, and the events of mismatched or late partners."""

from __future__ import annotations

from typing import Any

import pytest
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    InvalidQoSProfileException,
    LivelinessPolicy,
    QoSCompatibility,
    QoSPolicyKind,
    QoSPresetProfiles,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_profile_parameters,
    qos_profile_sensor_data,
    qos_profile_services_default,
    qos_profile_system_default,
)
from std_msgs.msg import String

RELIABLE = QoSProfile(depth=1)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def test_defaults_of_a_profile() -> None:
    profile = QoSProfile(depth=7)
    assert profile.depth == 7
    assert profile.history == HistoryPolicy.KEEP_LAST
    assert profile.reliability == ReliabilityPolicy.RELIABLE
    assert profile.durability == DurabilityPolicy.VOLATILE
    assert profile.liveliness == LivelinessPolicy.SYSTEM_DEFAULT
    assert profile.deadline == profile.lifespan == Duration()


def test_history_or_depth_is_needed() -> None:
    with pytest.raises(InvalidQoSProfileException):
        QoSProfile()
    with pytest.raises(InvalidQoSProfileException):
        QoSProfile(history=HistoryPolicy.KEEP_LAST)
    assert QoSProfile(history=HistoryPolicy.KEEP_ALL).history == HistoryPolicy.KEEP_ALL
    with pytest.raises(AssertionError):
        QoSProfile(depth=1, colour="red")
    with pytest.raises(AssertionError):
        QoSProfile(depth="one")


def test_presets() -> None:
    assert (qos_profile_sensor_data.depth, qos_profile_sensor_data.reliability) == (5, ReliabilityPolicy.BEST_EFFORT)
    assert qos_profile_services_default == QoSProfile(depth=10)
    assert qos_profile_parameters.depth == 1000
    assert qos_profile_system_default.reliability == ReliabilityPolicy.SYSTEM_DEFAULT
    assert QoSPresetProfiles.SENSOR_DATA.value == qos_profile_sensor_data
    assert QoSPresetProfiles.get_from_short_key("sensor_data") is not None


def test_numbers_of_the_policies() -> None:
    assert (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT) == (1, 2)
    assert (DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE) == (1, 2)
    assert (HistoryPolicy.KEEP_LAST, HistoryPolicy.KEEP_ALL) == (1, 2)
    assert (LivelinessPolicy.AUTOMATIC, LivelinessPolicy.MANUAL_BY_TOPIC) == (1, 3)


def test_compatibility_of_two_profiles() -> None:
    assert qos_check_compatible(RELIABLE, BEST_EFFORT)[0] == QoSCompatibility.OK
    kind, reason = qos_check_compatible(BEST_EFFORT, RELIABLE)
    assert kind == QoSCompatibility.ERROR and reason


def test_both_sides_learn_of_incompatible_reliability(node: Any, spin_until: Any) -> None:
    requested: list[Any] = []
    offered: list[Any] = []
    got: list[Any] = []
    node.create_subscription(
        String, "clash", got.append, RELIABLE,
        event_callbacks=SubscriptionEventCallbacks(incompatible_qos=requested.append),
    )  # fmt: skip
    publisher = node.create_publisher(
        String, "clash", BEST_EFFORT, event_callbacks=PublisherEventCallbacks(incompatible_qos=offered.append)
    )
    assert spin_until(lambda: requested and offered, node)
    assert requested[0].total_count == requested[0].total_count_change == 1
    assert requested[0].last_policy_kind == offered[0].last_policy_kind == QoSPolicyKind.RELIABILITY
    publisher.publish(String())
    assert not spin_until(lambda: got, node, timeout_s=0.2)


def test_mismatch_with_another_process(node: Any, spin_until: Any, peer: Any) -> None:
    clashes: list[Any] = []
    events = SubscriptionEventCallbacks(incompatible_qos=clashes.append)
    node.create_subscription(String, "/sensor", lambda _: None, RELIABLE, event_callbacks=events)
    assert spin_until(lambda: clashes, node, timeout_s=2.0)
    assert clashes[0].last_policy_kind == QoSPolicyKind.RELIABILITY


def test_incompatible_durability_and_deadline(node: Any, spin_until: Any) -> None:
    kinds: list[int] = []
    events = PublisherEventCallbacks(incompatible_qos=lambda info: kinds.append(info.last_policy_kind))
    node.create_publisher(String, "durable", RELIABLE, event_callbacks=events)
    local = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(String, "durable", lambda _: None, local)
    assert spin_until(lambda: kinds == [QoSPolicyKind.DURABILITY], node)
    node.create_publisher(String, "timely", RELIABLE, event_callbacks=events)
    node.create_subscription(String, "timely", lambda _: None, QoSProfile(depth=1, deadline=Duration(seconds=1)))
    assert spin_until(lambda: kinds[1:] == [QoSPolicyKind.DEADLINE], node)


def test_missed_deadlines(node: Any, spin_until: Any) -> None:
    missed: list[Any] = []
    late: list[Any] = []
    profile = QoSProfile(depth=1, deadline=Duration(nanoseconds=100_000_000))
    node.create_subscription(
        String, "beat", lambda _: None, profile, event_callbacks=SubscriptionEventCallbacks(deadline=missed.append)
    )
    events = PublisherEventCallbacks(deadline=late.append)
    publisher = node.create_publisher(String, "beat", profile, event_callbacks=events)
    assert spin_until(lambda: publisher.get_subscription_count() == 1, node)
    publisher.publish(String())
    assert spin_until(lambda: missed and late, node)
    assert missed[0].total_count >= 1 and late[0].total_count_change >= 1


def test_liveliness_of_a_publisher(node: Any, spin_until: Any) -> None:
    alive: list[int] = []
    events = SubscriptionEventCallbacks(liveliness=lambda info: alive.append(info.alive_count))
    node.create_subscription(String, "alive", lambda _: None, 1, event_callbacks=events)
    publisher = node.create_publisher(String, "alive", 1)
    assert spin_until(lambda: alive and alive[-1] == 1, node)
    node.destroy_publisher(publisher)
    assert spin_until(lambda: alive[-1] == 0, node)


def test_matched_event(node: Any, spin_until: Any) -> None:
    counts: list[int] = []
    events = PublisherEventCallbacks(matched=lambda info: counts.append(info.current_count))
    node.create_publisher(String, "matched", 1, event_callbacks=events)
    subscription = node.create_subscription(String, "matched", lambda _: None, 1)
    assert spin_until(lambda: counts[-1:] == [1], node)
    node.destroy_subscription(subscription)
    assert spin_until(lambda: counts[-1:] == [0], node)


def test_negative_depth_is_refused(node: Any) -> None:
    with pytest.raises(ValueError):
        node.create_publisher(String, "deep", -1)
    with pytest.raises(TypeError):
        node.create_publisher(String, "deep", "ten")
