"""Timers, executors, callback groups, futures, guard conditions."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import rclpy
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import (
    ExternalShutdownException,
    MultiThreadedExecutor,
    ShutdownException,
    SingleThreadedExecutor,
)
from rclpy.task import Future


def test_timer_keeps_its_rate(node: Any, spin_until: Any) -> None:
    stamps: list[float] = []
    node.create_timer(0.05, lambda: stamps.append(time.monotonic()))
    assert spin_until(lambda: len(stamps) >= 11, node)
    assert stamps[10] - stamps[0] == pytest.approx(0.5, abs=0.15)


def test_slow_callback_skips_periods(node: Any, spin_until: Any) -> None:
    count = 0

    def slow() -> None:
        nonlocal count
        count += 1
        time.sleep(0.12)

    node.create_timer(0.05, slow)
    assert not spin_until(lambda: False, node, timeout_s=0.6)
    assert 2 <= count <= 6


def test_timer_cancel_and_reset(node: Any, spin_until: Any) -> None:
    calls: list[int] = []
    timer = node.create_timer(0.02, lambda: calls.append(1))
    assert spin_until(lambda: calls, node)
    timer.cancel()
    assert timer.is_canceled()
    calls.clear()
    assert not spin_until(lambda: calls, node, timeout_s=0.1)
    timer.reset()
    assert spin_until(lambda: calls, node)
    assert timer.timer_period_ns == 20_000_000
    assert node.destroy_timer(timer)


def test_spin_once_gives_up_in_time(node: Any) -> None:
    begin = time.monotonic()
    rclpy.spin_once(node, timeout_sec=0.2)
    rclpy.spin_once(node, timeout_sec=0)
    assert time.monotonic() - begin < 2.0


def test_spin_until_future_complete(node: Any) -> None:
    future = Future()
    node.create_timer(0.05, lambda: future.set_result("done"))
    rclpy.spin_until_future_complete(node, future, timeout_sec=10.0)
    assert future.done() and future.result() == "done"
    never = Future()
    rclpy.spin_until_future_complete(node, never, timeout_sec=0.1)
    assert not never.done()


def test_exception_in_a_callback_ends_the_spin(node: Any) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    node.create_timer(0.01, fail)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with pytest.raises(ValueError, match="on purpose"):
        executor.spin_once(timeout_sec=5.0)
    executor.shutdown()


def test_exception_in_a_thread_of_the_pool_ends_the_spin(node: Any) -> None:
    def fail() -> None:
        raise ValueError("in a thread")

    node.create_timer(0.01, fail)
    executor = MultiThreadedExecutor(2)
    executor.add_node(node)
    with pytest.raises(ValueError, match="in a thread"):
        for _ in range(100):
            executor.spin_once(timeout_sec=0.1)
    executor.shutdown()


def overlap(node: Any, groups: list[Any]) -> int:
    """How many of two slow timers run at the same time, at most."""
    running, most = 0, 0
    lock = threading.Lock()

    def slow() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.1)
        with lock:
            running -= 1

    for group in groups:
        node.create_timer(0.01, slow, callback_group=group)
    executor = MultiThreadedExecutor(4)
    executor.add_node(node)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    return most


def test_exclusive_group_never_overlaps(node: Any) -> None:
    group = MutuallyExclusiveCallbackGroup()
    assert overlap(node, [group, group]) == 1


def test_two_exclusive_groups_overlap(node: Any) -> None:
    assert overlap(node, [MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()]) == 2


def test_reentrant_group_overlaps(node: Any) -> None:
    group = ReentrantCallbackGroup()
    assert overlap(node, [group, group]) >= 2


def test_one_thread_never_overlaps(node: Any) -> None:
    seen: set[int] = set()
    node.create_timer(0.01, lambda: seen.add(threading.get_ident()), callback_group=ReentrantCallbackGroup())
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    for _ in range(5):
        executor.spin_once(timeout_sec=1.0)
    executor.shutdown()
    assert seen == {threading.get_ident()}


def test_guard_condition_wakes_from_another_thread(node: Any, spin_until: Any) -> None:
    calls: list[int] = []
    guard = node.create_guard_condition(lambda: calls.append(threading.get_ident()))
    thread = threading.Timer(0.05, guard.trigger)
    thread.start()
    assert spin_until(lambda: calls, node)
    thread.join()
    assert calls == [threading.get_ident()]


def test_tasks_and_coroutines(node: Any) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    gate = Future()

    async def wait_and_double() -> int:
        return 2 * await gate

    plain = executor.create_task(lambda: 21)
    waiting = executor.create_task(wait_and_double)
    executor.spin_until_future_complete(plain, timeout_sec=5.0)
    executor.spin_once(timeout_sec=0.05)
    assert plain.result() == 21 and not waiting.done()
    gate.set_result(21)
    executor.spin_until_future_complete(waiting, timeout_sec=5.0)
    assert waiting.result() == 42
    executor.shutdown()


def test_future_holds_an_exception(ros: None) -> None:
    future = Future()
    future.set_exception(KeyError("lost"))
    assert future.done() and isinstance(future.exception(), KeyError)
    with pytest.raises(KeyError):
        future.result()
    cancelled = Future()
    cancelled.cancel()
    assert cancelled.cancelled()


def test_node_is_added_once(node: Any) -> None:
    executor = SingleThreadedExecutor()
    assert executor.add_node(node) and not executor.add_node(node)
    assert executor.get_nodes() == [node]
    executor.remove_node(node)
    assert executor.get_nodes() == []
    executor.shutdown()


def test_executor_stops_when_it_is_shut_down(node: Any) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=lambda: _spin(executor))
    thread.start()
    time.sleep(0.1)
    executor.shutdown()
    thread.join(10.0)
    assert not thread.is_alive()


def _spin(executor: Any) -> None:
    try:
        executor.spin()
    except ShutdownException:
        return


def test_node_and_context_end_while_a_thread_spins(ros: None) -> None:
    node = rclpy.create_node("brief")
    node.create_timer(0.001, lambda: None)
    errors: list[BaseException] = []

    def spin() -> None:
        try:
            rclpy.spin(node)
        except ExternalShutdownException:
            return
        except BaseException as problem:
            errors.append(problem)

    thread = threading.Thread(target=spin)
    thread.start()
    time.sleep(0.2)
    rclpy.shutdown()
    thread.join(10.0)
    node.destroy_node()
    assert not thread.is_alive() and errors == []


def test_no_thread_stays(ros: None) -> None:
    before = set(threading.enumerate())
    executor = MultiThreadedExecutor(3)
    node = rclpy.create_node("short")
    executor.add_node(node)
    node.create_timer(0.01, lambda: None)
    for _ in range(5):
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    assert set(threading.enumerate()) <= before
