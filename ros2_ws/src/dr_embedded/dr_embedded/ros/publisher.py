"""Publishers."""

from __future__ import annotations

from typing import Any

from dr_embedded import cyclone
from dr_embedded.endpoint import Endpoint
from dr_embedded.interfaces import interfaces
from dr_embedded.message import serialize
from dr_embedded.names import topic_in_dds
from dr_embedded.ros.duration import Duration
from dr_embedded.ros.event_handler import PublisherEventCallbacks
from dr_embedded.ros.exceptions import RCLError
from dr_embedded.ros.qos import QoSProfile, to_dds


class Publisher(Endpoint):
    """Made by Node.create_publisher."""

    def __init__(
        self, node: Any, msg_type: Any, topic: str, qos: QoSProfile, events: PublisherEventCallbacks, group: Any
    ) -> None:
        super().__init__(node)
        self.msg_type = msg_type
        self.topic = topic
        self.qos_profile = qos
        name = msg_type._ros_name
        user_data = f"typehash={interfaces().type_hash(name)};"
        dds_topic = topic_in_dds(topic, plain=qos.avoid_ros_namespace_conventions)
        self._writer = self._make_writer(dds_topic, name, to_dds(qos, user_data, writer=True))
        self._sertype = cyclone.sertype_of(self._writer)
        handler = events.make_handler(self._writer, group, topic, node.get_logger())
        self.event_handlers = [handler] if handler else []
        self._announce()

    @property
    def topic_name(self) -> str:
        return self.topic

    def publish(self, msg: Any) -> None:
        """Send a message, or its bytes as `serialize_message` makes them.

        Raises:
            TypeError: a message of another type.
            RCLError: the context was shut down, or the bytes are not of the topic's type.
        """
        if isinstance(msg, self.msg_type):
            data = serialize(msg)
        elif isinstance(msg, (bytes, bytearray, memoryview)):
            data = bytes(msg)
        else:
            raise TypeError(f"Expected {self.msg_type}, got {type(msg)}")
        self._require()
        if not self._session.valid:
            raise RCLError("Failed to publish: publisher's context is invalid")
        try:
            cyclone.write(self._writer, self._sertype, data)
        except cyclone.DDSException as problem:
            raise RCLError(f"Failed to publish on {self.topic}: {problem}") from problem

    def get_subscription_count(self) -> int:
        self._require()
        return len(cyclone.matched(self._writer, readers=True))

    def assert_liveliness(self) -> None:
        """Tell that the publisher lives, where the liveliness is MANUAL_BY_TOPIC."""
        self._require()
        cyclone.call("dds_assert_liveliness", self._writer)

    def wait_for_all_acked(self, timeout: Duration | None = None) -> bool:
        """Whether all reliable subscriptions have everything, after at most `timeout`."""
        self._require()
        limit = 2**63 - 1 if timeout is None or timeout.nanoseconds < 0 else timeout.nanoseconds
        try:
            cyclone.call("dds_wait_for_acks", self._writer, limit)
        except cyclone.DDSException as problem:
            if problem.code == cyclone.DDSException.DDS_RETCODE_TIMEOUT:
                return False
            raise
        return True
