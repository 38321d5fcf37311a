"""Services and clients, mostly with the service in another process."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from std_srvs.srv import Empty, SetBool, Trigger


def test_answer_from_another_process(node: Any, spin_until: Any, peer: Any) -> None:
    client = node.create_client(SetBool, "/peer/echo/negate")
    assert client.wait_for_service(timeout_sec=10.0)
    future = client.call_async(SetBool.Request(data=False))
    assert not future.done() and future.result() is None
    assert spin_until(future.done, node)
    assert future.result() == SetBool.Response(success=True, message="negated")


def test_many_requests_at_once(node: Any, spin_until: Any, peer: Any) -> None:
    client = node.create_client(SetBool, "/peer/echo/negate")
    assert client.wait_for_service(timeout_sec=10.0)
    futures = [client.call_async(SetBool.Request(data=bool(number % 3))) for number in range(9)]
    assert spin_until(lambda: all(one.done() for one in futures), node)
    assert [one.result().success for one in futures] == [not number % 3 for number in range(9)]


def test_two_clients_get_their_own_answers(node: Any, spin_until: Any, peer: Any) -> None:
    clients = [node.create_client(SetBool, "/peer/echo/negate") for _ in range(2)]
    assert all(one.wait_for_service(timeout_sec=10.0) for one in clients)
    futures = [one.call_async(SetBool.Request(data=data)) for one, data in zip(clients, (True, False), strict=True)]
    assert spin_until(lambda: all(one.done() for one in futures), node)
    assert [one.result().success for one in futures] == [False, True]


def test_done_callback_runs_while_spinning(node: Any, spin_until: Any, peer: Any) -> None:
    client = node.create_client(SetBool, "/peer/echo/negate")
    assert client.wait_for_service(timeout_sec=10.0)
    seen: list[bool] = []
    client.call_async(SetBool.Request(data=True)).add_done_callback(lambda done: seen.append(done.result().success))
    assert spin_until(lambda: seen, node)
    assert seen == [False]


def test_missing_service_is_reported(node: Any) -> None:
    client = node.create_client(Empty, "nowhere")
    assert not client.service_is_ready()
    begin = time.monotonic()
    assert not client.wait_for_service(timeout_sec=0.3)
    assert time.monotonic() - begin >= 0.25


def test_destroyed_service_is_gone(node: Any, spin_until: Any) -> None:
    service = node.create_service(Empty, "here", lambda request, response: response)
    client = node.create_client(Empty, "here")
    assert client.wait_for_service(timeout_sec=10.0)
    assert node.destroy_service(service)
    assert spin_until(lambda: not client.service_is_ready(), node)


def test_wrong_request_type(node: Any) -> None:
    client = node.create_client(SetBool, "typed")
    with pytest.raises(TypeError):
        client.call_async(Trigger.Request())


def test_coroutine_as_callback(node: Any, make_node: Any, spin_until: Any, peer: Any) -> None:
    """A service that asks another service before it answers."""
    group = ReentrantCallbackGroup()
    inner = node.create_client(SetBool, "/peer/echo/negate", callback_group=group)
    assert inner.wait_for_service(timeout_sec=10.0)

    async def ask(request: Any, response: Any) -> Any:
        answer = await inner.call_async(SetBool.Request(data=False))
        response.success, response.message = answer.success, "through"
        return response

    node.create_service(Trigger, "through", ask, callback_group=group)
    outer = make_node("outer")
    client = outer.create_client(Trigger, "through")
    assert client.wait_for_service(timeout_sec=10.0)
    future = client.call_async(Trigger.Request())
    assert spin_until(future.done, node, outer)
    assert future.result().success and future.result().message == "through"


def test_blocking_call_while_another_thread_spins(node: Any, peer: Any) -> None:
    client = node.create_client(SetBool, "/peer/echo/negate", callback_group=ReentrantCallbackGroup())
    assert client.wait_for_service(timeout_sec=10.0)
    executor = MultiThreadedExecutor(2)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    try:
        assert client.call(SetBool.Request(data=False), timeout_sec=10.0).success
    finally:
        executor.shutdown()
        thread.join(10.0)
    assert not thread.is_alive()


def test_service_classes_have_no_instances() -> None:
    with pytest.raises(NotImplementedError):
        SetBool()
