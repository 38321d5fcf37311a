"""What publishers, subscriptions, services and clients share: they belong to a node and end with it."""

from __future__ import annotations

from typing import Any

from dr_embedded import cyclone
from dr_embedded.ros.event_handler import EventHandler
from dr_embedded.ros.exceptions import InvalidHandle


class Endpoint:
    """DDS readers and writers of one ROS entity, announced in the graph."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._session = node.context._open_session()
        self._readers: list[int] = []
        self._writers: list[int] = []
        self._conditions: list[int] = []
        self._destroyed = False
        self.event_handlers: list[EventHandler] = []

    def _make_reader(self, topic: str, type_name: str, qos: Any) -> int:
        reader = self._session.participant.reader(topic, type_name, qos)
        self._readers.append(reader)
        return reader

    def _make_writer(self, topic: str, type_name: str, qos: Any) -> int:
        writer = self._session.participant.writer(topic, type_name, qos)
        self._writers.append(writer)
        return writer

    def _make_data_condition(self, reader: int) -> int:
        condition = cyclone.call("dds_create_readcondition", reader, cyclone.ANY_STATE)
        self._conditions.append(condition)
        return condition

    def _gids(self) -> dict[str, set[bytes]]:
        return {
            "readers": {cyclone.guid_of(one) for one in self._readers},
            "writers": {cyclone.guid_of(one) for one in self._writers},
        }

    def _announce(self) -> None:
        self._session.graph.change(self._node._graph_name, **self._gids())

    def _require(self) -> None:
        """Raises InvalidHandle when destroyed."""
        if self._destroyed or self._session.closed:
            raise InvalidHandle("cannot use Destroyable because destruction was requested")

    def destroy(self) -> None:
        """Leave the graph and delete the DDS entities; a second call does nothing."""
        if self._destroyed or self._session.closed:
            self._destroyed = True
            return
        self._session.graph.change(self._node._graph_name, **self._gids(), gone=True)
        self._destroyed = True
        for handler in self.event_handlers:
            handler._destroyed = True
        for entity in (*self._conditions, *self._readers, *self._writers):
            cyclone.release(entity)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
