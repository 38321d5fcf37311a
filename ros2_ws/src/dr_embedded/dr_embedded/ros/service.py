"""Services: the answering side."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

from dr_embedded import cyclone, service_wire
from dr_embedded.endpoint import Endpoint
from dr_embedded.interfaces import interfaces
from dr_embedded.names import reply_in_dds, request_in_dds
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.qos import QoSProfile, to_dds
from dr_embedded.waitable import Waitable, Work

DISCOVERY_WAIT_S = 0.1  # the client may know this service before this service knows the client's reader


class Service(Endpoint, Waitable):
    """Made by Node.create_service; `callback(request, response)` returns the response."""

    def __init__(
        self,
        node: Any,
        srv_type: Any,
        srv_name: str,
        callback: Callable[[Any, Any], Any],
        group: CallbackGroup,
        qos: QoSProfile,
    ) -> None:
        Endpoint.__init__(self, node)
        self.srv_type = srv_type
        self.srv_name = srv_name
        self.callback = callback
        self.qos_profile = qos
        self._known_clients: set[str] = set()
        name = srv_type._ros_name
        user_data = f"serviceid={service_wire.new_id()};typehash={interfaces().type_hash(name)};"
        reply, request = reply_in_dds(srv_name), request_in_dds(srv_name)
        self._writer = self._make_writer(reply, f"{name}_Response", to_dds(qos, user_data, writer=True))
        self._sertype = cyclone.sertype_of(self._writer)
        self._reader = self._make_reader(request, f"{name}_Request", to_dds(qos, user_data, writer=False))
        self._condition = self._make_data_condition(self._reader)
        Waitable.__init__(self, group)
        self._announce()

    @property
    def service_name(self) -> str:
        return self.srv_name

    def conditions(self) -> tuple[int, ...]:
        return () if self._destroyed else (self._condition,)

    def take_work(self) -> Work | None:
        sample = None if self._destroyed else cyclone.take(self._reader)
        if sample is None:
            return None
        client_id, sequence, request = service_wire.unpack(sample[0], self.srv_type.Request)
        client = service_wire.id_of_writer(self._reader, sample[1].publication_handle, "clientid")

        def work() -> Any:
            response = self.callback(request, self.srv_type.Response())
            if inspect.isawaitable(response):
                return answer_later(response)
            return self._answer(client, client_id, sequence, response)

        async def answer_later(pending: Any) -> None:
            self._answer(client, client_id, sequence, await pending)

        return work

    def _answer(self, client: str | None, client_id: int, sequence: int, response: Any) -> None:
        if not isinstance(response, self.srv_type.Response):
            raise TypeError(f"the callback of {self.srv_name} must return a {self.srv_type.Response}, not {response!r}")
        if self._destroyed or not self._session.valid:
            return
        self._await_reply_reader(client)
        cyclone.write(self._writer, self._sertype, service_wire.pack(client_id, sequence, response))

    def _await_reply_reader(self, client: str | None) -> None:
        """A reply written before its reader is discovered would be lost: the topic is volatile."""
        if client is None or client in self._known_clients:
            return
        end = time.monotonic() + DISCOVERY_WAIT_S
        while client not in service_wire.ids_of_readers(self._writer, "clientid") and time.monotonic() < end:
            time.sleep(0.002)
        self._known_clients.add(client)

    def send_response(self, *_: Any) -> None:
        raise NotImplementedError("dr_embedded: Service.send_response")
