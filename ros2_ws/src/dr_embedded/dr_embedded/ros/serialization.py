"""CDR bytes of messages."""

from __future__ import annotations

from typing import Any

from dr_embedded import message as messages


def serialize_message(message: Any) -> bytes:
    """As rosbag2 stores it and as `publish` takes it."""
    if not isinstance(message, messages.Message):
        raise TypeError(f"{message!r:.80} is not a ROS 2 message")
    return messages.serialize(message)


def deserialize_message(serialized_message: bytes, message_type: Any) -> Any:
    """The inverse; raises ValueError for bytes of something else."""
    return messages.deserialize(serialized_message, message_type)
