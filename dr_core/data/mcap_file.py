"""Reads MCAP files, whole or damaged (https://mcap.dev/spec).

Lengths found in a file are checked against the file before memory is taken for them. The ``mcap`` package
parses the small records; the walk over the file is done here because its readers stop at the first damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import lz4.frame  # type: ignore[import-untyped]
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel as McapChannel
from mcap.records import ChunkIndex, Schema, Statistics

from dr_core.data.raw import MCAP_MAGIC, UNPACKED_LIMIT_BYTES, Channel, OnDamage, RawMessage, printable, unzstd

RECORD_HEADER = struct.Struct("<BQ")  # opcode, length of the body
MESSAGE_HEADER = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
FOOTER = struct.Struct("<QQI")  # summary start, summary offset start, checksum


class McapIndex(NamedTuple):
    """The summary at the end of an MCAP file."""

    channels: dict[int, Channel]
    counts: dict[int, int]
    chunks: list[ChunkIndex]
    start_ns: int
    end_ns: int


# What parsing a damaged record may raise.
_PARSE_ERRORS = (McapError, struct.error, ValueError, OverflowError, MemoryError)


def read_mcap_index(path: Path) -> McapIndex | None:
    """The summary of an MCAP file; None if there is none, or not a usable one."""
    size = path.stat().st_size
    footer_bytes = RECORD_HEADER.size + FOOTER.size + len(MCAP_MAGIC)
    if size < len(MCAP_MAGIC) + footer_bytes:
        return None
    with path.open("rb") as file:
        file.seek(size - footer_bytes)
        tail = file.read(footer_bytes)
        if not tail.endswith(MCAP_MAGIC) or RECORD_HEADER.unpack_from(tail) != (Opcode.FOOTER, FOOTER.size):
            return None
        summary_start, _, checksum = FOOTER.unpack_from(tail, RECORD_HEADER.size)
        if not len(MCAP_MAGIC) < summary_start < size - footer_bytes:
            return None
        file.seek(summary_start)
        summary = memoryview(file.read(size - footer_bytes - summary_start))
    # The checksum covers the summary and the footer up to the checksum itself.
    if checksum and zlib.crc32(tail[: RECORD_HEADER.size + FOOTER.size - 4], zlib.crc32(summary)) != checksum:
        return None
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    chunks = []
    statistics = None
    try:
        for opcode, body in _inner_records(summary):
            if opcode == Opcode.CHUNK_INDEX:
                chunks.append(ChunkIndex.read(ReadDataStream(BytesIO(body))))
            elif opcode == Opcode.STATISTICS:
                statistics = Statistics.read(ReadDataStream(BytesIO(body)))
            else:
                _declare(opcode, body, schemas, channels)
    except _PARSE_ERRORS:
        return None
    # Without these a summary does not say what is in the file; reading it through does.
    if statistics is None or not channels or statistics.channel_count != len(channels):
        return None
    return McapIndex(
        channels,
        dict(statistics.channel_message_counts),
        sorted(chunks, key=lambda chunk: chunk.chunk_start_offset),
        statistics.message_start_time,
        statistics.message_end_time,
    )


def scan_mcap(path: Path, topics: Collection[str] | None, on_damage: OnDamage) -> Iterator[RawMessage]:
    """All messages of ``topics`` (None: of all) in file order; chunks without them are not read.

    A chunk yields all its messages or, where it is damaged, none.
    """
    index = read_mcap_index(path)
    schemas: dict[int, Schema] = {}
    channels = dict(index.channels) if index is not None else {}
    for position, opcode, body in _data_records(path, index, topics, on_damage):
        messages: list[RawMessage] = []
        try:
            inner = _inner_records(_unpack_chunk(body)) if opcode == Opcode.CHUNK else [(opcode, body)]
            for inner_opcode, inner_body in inner:
                if inner_opcode == Opcode.MESSAGE:
                    number, _, log_time_ns, _ = MESSAGE_HEADER.unpack_from(inner_body)
                    if number not in channels:
                        raise ValueError(f"a message on the undeclared channel {number}")
                    if topics is None or channels[number].topic in topics:
                        data = inner_body[MESSAGE_HEADER.size :]
                        messages.append(RawMessage(channels[number], log_time_ns, data))
                else:
                    _declare(inner_opcode, inner_body, schemas, channels)
        except _PARSE_ERRORS as error:
            on_damage(f"{path.name}: damaged record at byte {position}: {error}", len(body))
            continue
        yield from messages


def _data_records(
    path: Path, index: McapIndex | None, topics: Collection[str] | None, on_damage: OnDamage
) -> Iterator[tuple[int, int, memoryview]]:
    """Position, opcode and body of every record that declares or holds messages."""
    size = path.stat().st_size
    chunk_starts = [chunk.chunk_start_offset for chunk in index.chunks] if index is not None else []
    with path.open("rb") as file:
        file.seek(max(0, size - len(MCAP_MAGIC)))
        if file.read() != MCAP_MAGIC or size < 2 * len(MCAP_MAGIC):
            on_damage(f"{path.name}: its end is missing, all after the last whole chunk", 0)
        wanted = _chunks_with(index, topics)
        indexed = iter(wanted or ())
        position = len(MCAP_MAGIC) if wanted is None else next(indexed, size)
        while position < size:
            file.seek(position)
            header = file.read(RECORD_HEADER.size)
            opcode, length = RECORD_HEADER.unpack(header) if len(header) == RECORD_HEADER.size else (0, 0)
            end = position + RECORD_HEADER.size + length
            if opcode == 0 or end > size or (wanted is not None and opcode != Opcode.CHUNK):
                resume = next((start for start in chunk_starts if start > position), size)
                on_damage(f"{path.name}: unreadable from byte {position} to {resume}", resume - position)
                position = resume if wanted is None else next(indexed, size)
                continue
            if opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE, Opcode.CHUNK):
                yield position, opcode, memoryview(file.read(length))
            if opcode in (Opcode.DATA_END, Opcode.FOOTER):
                return
            position = end if wanted is None else next(indexed, size)


def _chunks_with(index: McapIndex | None, topics: Collection[str] | None) -> list[int] | None:
    """Where the chunks with messages on ``topics`` start; None if the whole file has to be read."""
    if index is None or topics is None or not index.chunks:
        return None
    if any(not chunk.message_index_offsets for chunk in index.chunks):
        return None
    numbers = {number for number, channel in index.channels.items() if channel.topic in topics}
    return [chunk.chunk_start_offset for chunk in index.chunks if numbers & set(chunk.message_index_offsets)]


def _inner_records(buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Opcode and body of the records in ``buffer``; ValueError if they do not fill it exactly."""
    position = 0
    while position < len(buffer):
        opcode, length = RECORD_HEADER.unpack_from(buffer, position)
        position += RECORD_HEADER.size
        if length > len(buffer) - position:
            raise ValueError("a record is longer than what holds it")
        yield opcode, buffer[position : position + length]
        position += length


def _declare(opcode: int, body: memoryview, schemas: dict[int, Schema], channels: dict[int, Channel]) -> None:
    """Take note of a schema or a channel; other records say nothing that is needed."""
    if opcode == Opcode.SCHEMA:
        schema = Schema.read(ReadDataStream(BytesIO(body)))
        schemas[schema.id] = schema
    elif opcode == Opcode.CHANNEL:
        channel = McapChannel.read(ReadDataStream(BytesIO(body)))
        if channel.id in channels:
            return
        declared = schemas.get(channel.schema_id, Schema(id=0, name="", encoding="", data=b""))
        channels[channel.id] = printable(
            Channel(
                channel.topic,
                declared.name,
                channel.message_encoding,
                declared.encoding,
                declared.data,
                channel.metadata.get("offered_qos_profiles", ""),
            )
        )


def _unpack_chunk(body: memoryview) -> memoryview:
    """The records of a chunk, checked against its size and checksum; ValueError if they do not agree."""
    _, _, size, checksum, name_bytes = struct.unpack_from("<QQQII", body)
    position = 32 + name_bytes
    compression = bytes(body[32:position])
    (packed_size,) = struct.unpack_from("<Q", body, position)
    packed = body[position + 8 :]
    if len(packed) != packed_size:
        raise ValueError("its length disagrees with its content")
    if compression == b"":
        records = packed
    elif size > UNPACKED_LIMIT_BYTES:
        raise ValueError(f"it claims to unpack to {size} bytes")
    elif compression == b"zstd":
        records = memoryview(unzstd(packed, size))
    elif compression == b"lz4":
        records = memoryview(_unlz4(packed, size))
    else:
        raise ValueError(f"unknown compression {compression!r}")
    if len(records) != size:
        raise ValueError(f"it unpacks to {len(records)} bytes instead of {size}")
    if checksum and zlib.crc32(records) != checksum:
        raise ValueError("its checksum is wrong")
    return records


def _unlz4(data: memoryview, limit: int) -> bytes:
    try:
        # One byte more than allowed, so that a longer content shows.
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=limit + 1))
    except (RuntimeError, EOFError) as error:
        raise ValueError(str(error)) from error
