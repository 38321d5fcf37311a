"""Durations, times, clocks, and simulated time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from builtin_interfaces.msg import Duration as DurationMessage
from builtin_interfaces.msg import Time as TimeMessage
from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage


def test_duration() -> None:
    assert Duration(seconds=1, nanoseconds=5).nanoseconds == 1_000_000_005
    assert Duration(seconds=0.5) == Duration(nanoseconds=500_000_000)
    assert Duration(seconds=1) < Duration(seconds=2) and Duration(seconds=2) >= Duration(seconds=2)
    assert Duration(seconds=1.5).to_msg() == DurationMessage(sec=1, nanosec=500_000_000)
    assert Duration.from_msg(DurationMessage(sec=2, nanosec=3)).nanoseconds == 2_000_000_003
    with pytest.raises(OverflowError):
        Duration(nanoseconds=2**63)


def test_time_arithmetic() -> None:
    begin = Time(seconds=10, nanoseconds=5)
    assert (begin + Duration(seconds=1)).nanoseconds == 11_000_000_005
    assert (begin - Duration(seconds=1)).nanoseconds == 9_000_000_005
    assert (begin - Time(seconds=4)).nanoseconds == 6_000_000_005
    assert begin.seconds_nanoseconds() == (10, 5)
    assert begin.to_msg() == TimeMessage(sec=10, nanosec=5)
    assert Time.from_msg(TimeMessage(sec=1, nanosec=2)).clock_type == ClockType.ROS_TIME
    with pytest.raises(ValueError):
        Time(seconds=-1)
    with pytest.raises(ValueError):
        Time(seconds=1) - Duration(seconds=2)


def test_times_of_different_clocks_do_not_mix() -> None:
    steady, system = Time(seconds=1, clock_type=ClockType.STEADY_TIME), Time(seconds=1)
    for mix in (lambda: steady - system, lambda: steady < system, lambda: steady == system):
        with pytest.raises(TypeError):
            mix()
    assert steady != Duration(seconds=1)


def test_clocks(node: Any) -> None:
    assert Clock(clock_type=ClockType.SYSTEM_TIME).now().nanoseconds == pytest.approx(time.time_ns(), abs=10**9)
    steady = Clock(clock_type=ClockType.STEADY_TIME)
    first, second = steady.now(), steady.now()
    assert second >= first and first.clock_type == ClockType.STEADY_TIME
    clock = node.get_clock()
    assert isinstance(clock, ROSClock) and clock.clock_type == ClockType.ROS_TIME
    assert clock.now().nanoseconds == pytest.approx(time.time_ns(), abs=10**9)
    assert isinstance(Clock(clock_type=ClockType.ROS_TIME), ROSClock)


def test_simulated_time_moves_clock_and_timers(make_node: Any, spin_until: Any) -> None:
    source = make_node("source")
    publisher = source.create_publisher(ClockMessage, "/clock", 10)
    node = make_node("simulated", parameter_overrides=[Parameter("use_sim_time", value=True)])
    assert spin_until(lambda: publisher.get_subscription_count() == 1, node)

    def tell(seconds: int) -> bool:
        publisher.publish(ClockMessage(clock=TimeMessage(sec=seconds)))
        return False

    assert spin_until(lambda: tell(100) or node.get_clock().now().nanoseconds == 100 * 10**9, node)
    fired: list[int] = []
    node.create_timer(10.0, lambda: fired.append(node.get_clock().now().nanoseconds // 10**9))
    assert not spin_until(lambda: tell(109) or fired, node, timeout_s=0.3)
    assert spin_until(lambda: tell(111) or fired, node)
    assert fired[0] == 111
    node.set_parameters([Parameter("use_sim_time", value=False)])
    assert node.get_clock().now().nanoseconds == pytest.approx(time.time_ns(), abs=10**9)
