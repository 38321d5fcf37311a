"""What the bag files of every format hold: messages as bytes, with the topic they belong to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import zstandard

MCAP_MAGIC = b"\x89MCAP0\r\n"
SQLITE_MAGIC = b"SQLite format 3\0"
# What one compressed chunk or message may unpack to; the largest picture that is read takes 256 MB.
UNPACKED_LIMIT_BYTES = 2**28


class Channel(NamedTuple):
    """One topic of a bag; ``definition`` is its message type in the language ``definition_format``."""

    topic: str
    msgtype: str
    encoding: str
    definition_format: str
    definition: bytes
    qos: str


def printable(channel: Channel) -> Channel:
    """The channel itself; ValueError if its names could not be shown on one line, so that errors can."""
    if not f"{channel.topic}{channel.msgtype}{channel.encoding}".isprintable():
        raise ValueError(f"a topic named {channel.topic!r} of type {channel.msgtype!r}")
    return channel


class RawMessage(NamedTuple):
    """One message as stored; ``data`` is its serialised form (CDR for ROS 2)."""

    channel: Channel
    log_time_ns: int
    data: memoryview


# Called with a description of damage and the number of bytes that it makes unreadable; may raise to stop.
OnDamage = Callable[[str, int], None]


def repair_hint(path: Path) -> str:
    """The command that salvages ``path``."""
    return f"run: dr bag repair {path} --out NEW"


def recording_path(path: Path) -> Path:
    """The name a recording has while it is written; it becomes ``path`` once complete."""
    return path.with_name(f".{path.name}.recording")


def is_recording(path: Path) -> bool:
    """Whether this is a recording that was never completed, or still goes on."""
    return path.name.startswith(".") and path.name.endswith(".recording")


def unzstd(data: memoryview, limit: int) -> bytes:
    """Decompress at most ``limit`` bytes; ValueError where the data are damaged or unpack to more."""
    try:
        claimed = zstandard.frame_content_size(data)
        if claimed > limit:
            raise ValueError(f"it claims to unpack to {claimed} bytes")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
