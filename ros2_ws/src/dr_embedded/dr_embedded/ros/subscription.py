"""Subscriptions."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from dr_embedded import cyclone
from dr_embedded.endpoint import Endpoint
from dr_embedded.interfaces import interfaces
from dr_embedded.message import deserialize
from dr_embedded.names import topic_in_dds
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.event_handler import SubscriptionEventCallbacks
from dr_embedded.ros.qos import QoSProfile, to_dds
from dr_embedded.waitable import Waitable, Work


def _wants_info(callback: Callable[..., Any]) -> bool:
    """Whether a callback takes (message, info) instead of (message).

    Raises:
        RuntimeError: it takes neither.
    """
    signature = inspect.signature(callback)
    for arguments, with_info in ((1, False), (2, True)):
        try:
            signature.bind(*[None] * arguments)
        except TypeError:
            continue
        return with_info
    raise RuntimeError("Subscription.__init__(): callback should be either be callable with one or two arguments")


class Subscription(Endpoint, Waitable):
    """Made by Node.create_subscription."""

    def __init__(
        self,
        node: Any,
        msg_type: Any,
        topic: str,
        callback: Callable[..., Any],
        group: CallbackGroup,
        qos: QoSProfile,
        raw: bool,
        events: SubscriptionEventCallbacks,
    ) -> None:
        Endpoint.__init__(self, node)
        self.msg_type = msg_type
        self.topic = topic
        self.callback = callback
        self.qos_profile = qos
        self.raw = raw
        self._with_info = _wants_info(callback)
        name = msg_type._ros_name
        user_data = f"typehash={interfaces().type_hash(name)};"
        dds_topic = topic_in_dds(topic, plain=qos.avoid_ros_namespace_conventions)
        self._reader = self._make_reader(dds_topic, name, to_dds(qos, user_data, writer=False))
        self._condition = self._make_data_condition(self._reader)
        handler = events.make_handler(self._reader, group, topic, node.get_logger())
        self.event_handlers = [handler] if handler else []
        Waitable.__init__(self, group)
        self._announce()

    @property
    def topic_name(self) -> str:
        return self.topic

    def get_publisher_count(self) -> int:
        self._require()
        return len(cyclone.matched(self._reader, readers=False))

    def conditions(self) -> tuple[int, ...]:
        return () if self._destroyed else (self._condition,)

    def take_work(self) -> Work | None:
        """Take the next message, as bytes if raw; with where it comes from if the callback wants that."""
        sample = None if self._destroyed else cyclone.take(self._reader)
        if sample is None:
            return None
        data, info = sample
        message = data if self.raw else deserialize(data, self.msg_type)
        if not self._with_info:
            return partial(self.callback, message)
        about = {
            "source_timestamp": info.source_timestamp,
            "received_timestamp": time.time_ns(),
            "publication_sequence_number": None,
            "reception_sequence_number": None,
        }
        return partial(self.callback, message, about)
