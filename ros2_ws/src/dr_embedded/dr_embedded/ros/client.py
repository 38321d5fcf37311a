"""Clients: the asking side of services."""

from __future__ import annotations

import threading
import time
from typing import Any

from dr_embedded import cyclone, service_wire
from dr_embedded.endpoint import Endpoint
from dr_embedded.interfaces import interfaces
from dr_embedded.names import reply_in_dds, request_in_dds
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.exceptions import RCLError
from dr_embedded.ros.qos import QoSProfile, to_dds
from dr_embedded.ros.task import Future
from dr_embedded.waitable import Waitable, Work

POLL_S = 0.01


class Client(Endpoint, Waitable):
    """Made by Node.create_client."""

    def __init__(self, node: Any, srv_type: Any, srv_name: str, group: CallbackGroup, qos: QoSProfile) -> None:
        Endpoint.__init__(self, node)
        self.srv_type = srv_type
        self.srv_name = srv_name
        self.qos_profile = qos
        self._pending: dict[int, Future] = {}
        self._sequence = 0
        self._lock = threading.Lock()
        name = srv_type._ros_name
        user_data = f"clientid={service_wire.new_id()};typehash={interfaces().type_hash(name)};"
        request, reply = request_in_dds(srv_name), reply_in_dds(srv_name)
        self._writer = self._make_writer(request, f"{name}_Request", to_dds(qos, user_data, writer=True))
        self._sertype = cyclone.sertype_of(self._writer)
        self._id = cyclone.instance_handle_of(self._writer)
        self._reader = self._make_reader(reply, f"{name}_Response", to_dds(qos, user_data, writer=False))
        self._condition = self._make_data_condition(self._reader)
        Waitable.__init__(self, group)
        self._announce()

    @property
    def service_name(self) -> str:
        return self.srv_name

    def call(self, request: Any, timeout_sec: float | None = None) -> Any:
        """Ask and block for the answer; an executor must spin in another thread.

        Raises:
            TypeError: a request of another type.
            TimeoutError: no answer within `timeout_sec`.
        """
        answered = threading.Event()
        future = self.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(timeout_sec):
            self.remove_pending_request(future)
            raise TimeoutError
        return future.result()

    def call_async(self, request: Any) -> Future:
        """Ask; the future holds the response once an executor has received it.

        Raises:
            TypeError: a request of another type.
        """
        if not isinstance(request, self.srv_type.Request):
            raise TypeError(f"Expected {self.srv_type.Request}, got {type(request)}")
        self._require()
        if not self._session.valid:
            raise RCLError("Failed to send request: the context is invalid")
        future = Future()
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            self._pending[sequence] = future
        future.add_done_callback(self.remove_pending_request)
        cyclone.write(self._writer, self._sertype, service_wire.pack(self._id, sequence, request))
        return future

    def remove_pending_request(self, future: Future) -> None:
        """Forget a request whose answer nobody waits for any more."""
        with self._lock:
            self._pending = {number: one for number, one in self._pending.items() if one is not future}

    def get_pending_request(self, sequence_number: int) -> Future:
        return self._pending[sequence_number]

    def service_is_ready(self) -> bool:
        """Whether a service is there that has both its sides matched with this client's."""
        self._require()
        if not cyclone.matched(self._writer, readers=True) or not cyclone.matched(self._reader, readers=False):
            return False
        servers = service_wire.ids_of_readers(self._writer, "serviceid")
        return not servers or bool(servers & service_wire.ids_of_writers(self._reader, "serviceid"))

    def wait_for_service(self, timeout_sec: float | None = None) -> bool:
        """Block until the service is there; False after `timeout_sec` or when the context ends."""
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while self._session.valid:
            if self.service_is_ready():
                return True
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(POLL_S)
        return False

    def conditions(self) -> tuple[int, ...]:
        return () if self._destroyed else (self._condition,)

    def take_work(self) -> Work | None:
        while not self._destroyed and (sample := cyclone.take(self._reader)) is not None:
            client_id, sequence, response = service_wire.unpack(sample[0], self.srv_type.Response)
            future = self._pending.get(sequence) if client_id == self._id else None  # others' answers come here too
            if future is not None:
                return self._deliver(future, response)
        return None

    def _deliver(self, future: Future, response: Any) -> Work:
        def work() -> None:
            if not future.cancelled():
                if self._node.executor is not None:
                    future._set_executor(self._node.executor)
                future.set_result(response)

        return work
