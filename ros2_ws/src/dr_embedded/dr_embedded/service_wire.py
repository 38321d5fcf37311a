"""Requests and replies on the wire: identity in front of the body, and who belongs to whom."""

from __future__ import annotations

import os
import struct
from typing import Any

from cyclonedds.builtin_types import cqos_to_qos, endpoint_constructor
from cyclonedds.pub import ddspy_get_matched_subscription_data  # type: ignore[attr-defined]
from cyclonedds.sub import ddspy_get_matched_publication_data  # type: ignore[attr-defined]

from dr_embedded import cyclone
from dr_embedded.descriptor import SERVICE_HEADER_BYTES
from dr_embedded.graph import parse_user_data
from dr_embedded.message import Message, deserialize, serialize

_HEADER = struct.Struct("<Qq")  # client id, sequence number
_CDR_BYTES = 4


def new_id() -> str:
    """An id as Cyclone peers write it in USER_DATA: 16 hexadecimal bytes joined by dots."""
    return ".".join(f"{byte:x}" for byte in os.urandom(16))


def pack(client_id: int, sequence: int, body: Message) -> bytes:
    """CDR header, identity, body."""
    data = serialize(body)
    return b"".join((data[:_CDR_BYTES], _HEADER.pack(client_id, sequence), data[_CDR_BYTES:]))


def unpack(data: bytes, body_type: type[Message]) -> tuple[int, int, Message]:
    """Client id, sequence number and body; the inverse of `pack`."""
    client_id, sequence = _HEADER.unpack_from(data, _CDR_BYTES)
    body = deserialize(data[:_CDR_BYTES] + data[_CDR_BYTES + SERVICE_HEADER_BYTES :], body_type)
    return client_id, sequence, body


def ids_of_readers(writer: int, key: str) -> set[str]:
    """The ids (`serviceid` or `clientid`) of the readers matched with `writer`."""
    return _ids(writer, cyclone.matched(writer, readers=True), ddspy_get_matched_subscription_data, key)


def ids_of_writers(reader: int, key: str) -> set[str]:
    """The ids of the writers matched with `reader`."""
    return _ids(reader, cyclone.matched(reader, readers=False), ddspy_get_matched_publication_data, key)


def id_of_writer(reader: int, handle: int, key: str) -> str | None:
    """The id of the writer that a sample came from."""
    return next(iter(_ids(reader, [handle], ddspy_get_matched_publication_data, key)), None)


def _ids(endpoint: int, handles: list[int], lookup: Any, key: str) -> set[str]:
    found = (lookup(endpoint, handle, endpoint_constructor, cqos_to_qos) for handle in handles)
    return {value for one in found if one is not None and (value := parse_user_data(one.qos).get(key))}
