"""Damage that keeps to a format: parts taken out, doubled, exchanged or filled with other numbers, sums made to agree.

Flipped bytes mostly end at the first checksum or length. Here what is around the damage is whole, so that it is found
by what reads the parts. Every function gives other bytes of the same format, or the bytes as `damage` leaves them where
they are not of it.
"""

from __future__ import annotations

import io
import pickletools
import random
import sqlite3
import struct
import zipfile
import zlib
from typing import Any

from tests.faults.campaigns.mutate import NUMBERS, damage

MCAP_MAGIC = b"\x89MCAP0\r\n"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
CHUNK, FOOTER = 6, 2
BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf")
Part = tuple[Any, bytes]
"""What it is called (an opcode, a type), and its content."""


def number(rng: random.Random, width: int) -> int:
    """One that readers forget, of ``width`` bytes."""
    return rng.choice((*NUMBERS, rng.randrange(300))) % 2 ** (8 * width)


def words(rng: random.Random, data: bytes, order: str = "<") -> bytes:
    """One to three aligned numbers of 4 or 8 bytes are others."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        width = rng.choice((4, 4, 8))
        if len(found) >= width:
            at = rng.randrange(0, len(found) - width + 1, 4)
            struct.pack_into(f"{order}{'I' if width == 4 else 'Q'}", found, at, number(rng, width))
    return bytes(found)


def shuffle(rng: random.Random, parts: list[Part], change: Any) -> list[Part]:
    """One or two parts are dropped, doubled, exchanged, renamed after another, or changed by ``change(name, body)``."""
    parts = list(parts)
    for _ in range(rng.choice((1, 1, 2))):
        if not parts:
            break
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(8):
            case 0:
                del parts[at]
            case 1:
                parts[at:at] = [parts[at]] * rng.choice((1, 2, 40))
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = (parts[other][0], parts[at][1])
            case _:
                parts[at] = (parts[at][0], change(*parts[at]))
    return parts


def body_of(rng: random.Random, body: bytes, order: str = "<") -> bytes:
    return words(rng, body, order) if rng.randrange(2) else damage(rng, body)


# ---- MCAP ----


def mcap(rng: random.Random, data: bytes) -> bytes:
    """Records of an MCAP file, those inside a chunk that is not compressed too; the sums of both agree."""
    parts = records(data[len(MCAP_MAGIC) : -len(MCAP_MAGIC)])
    if parts is None:
        return damage(rng, data)
    out = _joined(shuffle(rng, parts, lambda opcode, body: _record(rng, opcode, body)))
    if rng.randrange(8) == 0 and len(out) > 9:  # a length that is not that of its record
        out = out[:1] + struct.pack("<Q", number(rng, 8)) + out[9:]
    return MCAP_MAGIC + out + MCAP_MAGIC


def records(data: bytes) -> list[Part] | None:
    parts, at = [], 0
    while at + 9 <= len(data):
        opcode, length = struct.unpack_from("<BQ", data, at)
        if at + 9 + length > len(data):
            return None
        parts.append((opcode, data[at + 9 : at + 9 + length]))
        at += 9 + length
    return parts


def _joined(parts: list[Part]) -> bytes:
    return b"".join(struct.pack("<BQ", opcode, len(body)) + body for opcode, body in parts)


def _record(rng: random.Random, opcode: int, body: bytes) -> bytes:
    if opcode == CHUNK and len(body) > 40 and rng.randrange(4):
        (name,) = struct.unpack_from("<I", body, 28)
        start = 32 + name + 8
        if name == 0 and (inner := records(body[start:])) is not None:
            inside = _joined(shuffle(rng, inner, lambda _, one: body_of(rng, one)))
            size = rng.choice((len(inside), len(inside), len(inside), number(rng, 8)))
            sums = struct.pack("<QI", size, rng.choice((0, zlib.crc32(inside))))
            return body[:16] + sums + struct.pack("<IQ", 0, len(inside)) + inside
    return body_of(rng, body)


# ---- PNG, MP4 ----


def png(rng: random.Random, data: bytes) -> bytes:
    """Chunks of a PNG file; the pixels may be packed anew, the checksums agree."""
    parts, at = [], len(PNG_MAGIC)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        parts.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length

    def change(name: bytes, body: bytes) -> bytes:
        if name == b"IDAT" and rng.randrange(2):
            raw = zlib.decompressobj().decompress(body, 2**22)
            return zlib.compress(rng.choice((damage(rng, raw), raw * 3, raw[: len(raw) // 2], bytes(2**22))), 1)
        return body_of(rng, body, ">")

    try:
        parts = shuffle(rng, parts, change)
    except zlib.error:
        return damage(rng, data)
    if rng.randrange(6) == 0:
        text = rng.choice((b"iCCPx\0\0", b"zTXtx\0\0", b"tRNS", b"PLTE", b"acTLx", b"eXIfII*\0", b"gAMA"))
        parts.insert(min(1, len(parts)), (text[:4], text[4:] + zlib.compress(bytes(rng.choice((10, 2**20))))))
    out = PNG_MAGIC
    for name, body in parts:
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


def mp4(rng: random.Random, data: bytes) -> bytes:
    """Boxes of an MP4 file; the sizes agree, but for one in eight."""
    parts, at = [], 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > len(data):
            return damage(rng, data)
        parts.append((name, data[at + 8 : at + size]))
        at += size
    inside = lambda name, body: mp4(rng, body) if name in BOXES and body else body_of(rng, body, ">")  # noqa: E731
    # The boxes that tell where the frames lie are three levels down.
    deep = [i for i, (name, _) in enumerate(parts) if name in BOXES]
    if deep and rng.randrange(5):
        at = rng.choice(deep)
        parts[at] = (parts[at][0], inside(*parts[at]))
    else:
        parts = shuffle(rng, parts, inside)
    out = b"".join(struct.pack(">I", len(body) + 8) + name + body for name, body in parts)
    return struct.pack(">I", number(rng, 4)) + out[4:] if rng.randrange(8) == 0 else out


# ---- archives and pickles ----


def archive(rng: random.Random, data: bytes) -> bytes:
    """Members of a zip archive as numpy and torch write it: the pickle, the header of an array, names, packing."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            parts: list[Part] = [(one.filename, old.read(one)) for one in old.infolist()]
            packed = old.infolist()[0].compress_type
    except (zipfile.BadZipFile, IndexError, ValueError, OSError, RuntimeError, NotImplementedError, zlib.error):
        return damage(rng, data)

    def change(name: str, body: bytes) -> bytes:
        if name.endswith(".pkl"):
            return pickle(rng, body)
        if body.startswith(b"\x93NUMPY") and rng.randrange(4):
            return _npy(rng, body)
        return body_of(rng, body)

    if pickles := [i for i, (name, _) in enumerate(parts) if name.endswith(".pkl") and rng.randrange(2)]:
        parts[pickles[0]] = (parts[pickles[0]][0], pickle(rng, parts[pickles[0]][1]))
    else:
        parts = shuffle(rng, parts, change)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed if rng.randrange(5) else zipfile.ZIP_DEFLATED) as new:
        seen: set[str] = set()
        for name, body in parts:
            if name not in seen:  # twice would be a warning
                new.writestr(name, body)
                seen.add(name)
    return out.getvalue()


def _npy(rng: random.Random, body: bytes) -> bytes:
    """An array with another header of the right length."""
    (length,) = struct.unpack_from("<H", body, 8)
    shape = tuple(number(rng, 8) for _ in range(rng.choice((0, 1, 1, 2, 40))))
    kinds = ("<f4", "<f8", "|O", "<i8", "|V0", "|S99999999", "<U2147483647", "<M8[s]", "x", [("a", "<f4")], "|b1")
    header = {"descr": rng.choice(kinds), "fortran_order": rng.choice((True, False)), "shape": shape}
    if rng.randrange(6) == 0:
        header = rng.choice(({}, {**header, "x": 1}, {**header, "shape": [1]}, {**header, "shape": (-1, 2)}))
    text = repr(header).encode() + b" " * 20 + b"\n"
    return body[:8] + struct.pack("<H", len(text)) + text + body[10 + length :]


def pickle(rng: random.Random, data: bytes) -> bytes:
    """Instructions of a pickle."""
    try:
        starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except (ValueError, IndexError, UnicodeDecodeError):
        return damage(rng, data)
    parts: list[Part] = [(b"", data[at:end]) for at, end in zip(starts, [*starts[1:], len(data)], strict=True)]

    def change(_: bytes, one: bytes) -> bytes:
        others = (
            b"N", b")", b"]", b"}", b"(", b"0", b"2", b"b", b"R", b"t", b"s", b"u", b"e", b"Q", b"\x81", b"\x94", b".",
            b"K\x05", b"J" + struct.pack("<I", number(rng, 4)), b"\x8a\x08" + struct.pack("<Q", number(rng, 8)),
            b"h" + rng.randbytes(1), b"q" + rng.randbytes(1), b"cos\nsystem\n", b"cbuiltins\neval\n", b"G" + bytes(8),
            b"U\x03abc", b"X" + struct.pack("<I", number(rng, 4)) + b"abc", b"C\x01x", b"l" + bytes(3), b"Tx",
        )  # fmt: skip
        return rng.choice(others) if rng.randrange(3) else damage(rng, one)

    return b"".join(body for _, body in shuffle(rng, parts, change))


# ---- SQLite ----


def sqlite(rng: random.Random, data: bytes) -> bytes:
    """A database in which values are others, or rows are missing."""
    database = sqlite3.connect(":memory:")
    values = (None, -1, 0, number(rng, 8) - 2**63, 1e308, "", "x", "a\nb" * 30, b"", b"\xff\xfe", bytes(5000), "é\0")
    try:
        database.deserialize(data)  # Python 3.11
        for _ in range(rng.choice((1, 2))):
            table, column = rng.choice(
                (("messages", "data"), ("messages", "timestamp"), ("messages", "topic_id"), ("topics", "name"),
                 ("topics", "type"), ("topics", "serialization_format"), ("topics", "id"), ("messages", "id"))
            )  # fmt: skip
            row = f"rowid IN (SELECT rowid FROM {table} ORDER BY rowid LIMIT 1 OFFSET {rng.randrange(6)})"
            if rng.randrange(6) == 0:
                database.execute(f"DELETE FROM {table} WHERE {row}")
            else:
                value = rng.choice(values)
                if column == "data" and rng.randrange(2):
                    (old,) = database.execute(f"SELECT data FROM messages WHERE {row}").fetchone() or (b"",)
                    value = words(rng, old) if isinstance(old, bytes) else value
                database.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {row}", (value,))
        database.commit()
        return bytes(database.serialize())
    except (sqlite3.Error, AttributeError, OverflowError, UnicodeEncodeError):
        return damage(rng, data)
    finally:
        database.close()


# ---- XML ----


def xml(rng: random.Random, data: bytes) -> bytes:
    """Elements of an XML file doubled, dropped, nested deeply; attributes with other values."""
    parts: list[Part] = [(b"", b"<" + one) for one in data.split(b"<")[1:]]
    texts = (b"nan", b"inf", b"-1", b"1e999", b"", b"x" * 300, b"&lt;", b"&x;", b"\xff", b"0x10", b"1_0", "٣".encode())

    def change(_: bytes, one: bytes) -> bytes:
        pieces = one.split(b'"')
        if len(pieces) > 2 and rng.randrange(4):
            pieces[rng.randrange(1, len(pieces) - 1, 2)] = rng.choice(texts)
            return b'"'.join(pieces)
        return rng.choice((damage(rng, one), one * rng.choice((2, 30)), b"<a>" * rng.choice((3, 3000)) + one))

    return b"".join(body for _, body in shuffle(rng, parts, change))
