"""Tells Cyclone DDS how a ROS type looks, as a program for its CDR interpreter (`dds_opcodes.h` of Cyclone 0.10 to 11).

The wheel can derive such descriptors from Python classes too, but `dds_create_topic_descriptor` of 11.0.1 releases
types of its type library that are still in use, and crashes after some dozens of types.
"""

from __future__ import annotations

import ctypes as ct
import threading
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rosbags.interfaces import Nodetype

from dr_embedded.cyclone import TopicDescriptor
from dr_embedded.interfaces import dds_type_name, interfaces

ADR, RTS = 0x01 << 24, 0x00
STRING, SEQUENCE, ARRAY, STRUCT, EXTERNAL = 0x05, 0x07, 0x08, 0x0A, 0x0D
FLOATING, SIGNED = 1 << 1, 1 << 2
SCALARS = {  # name: (type code, flags, size in memory)
    "bool": (0x0E, 0, 1), "byte": (0x01, 0, 1), "uint8": (0x01, 0, 1), "int8": (0x01, SIGNED, 1),
    "uint16": (0x02, 0, 2), "int16": (0x02, SIGNED, 2), "uint32": (0x03, 0, 4), "int32": (0x03, SIGNED, 4),
    "uint64": (0x04, 0, 8), "int64": (0x04, SIGNED, 8), "float32": (0x03, FLOATING, 4), "float64": (0x04, FLOATING, 8),
    "string": (STRING, 0, 8),
}  # fmt: skip
SEQUENCE_SIZE = 24  # dds_sequence_t: two counters, a pointer, a flag

# Cyclone peers put the caller's identity in front of the body of requests and replies.
SERVICE_HEADER = [
    ("client_id", (Nodetype.BASE, ("uint64", 0))),
    ("sequence_number", (Nodetype.BASE, ("int64", 0))),
]
SERVICE_HEADER_BYTES = 16


@dataclass(frozen=True)
class Jump:
    """To `target` for the member, and on to the instruction `next_step` words ahead."""

    next_step: int
    target: str


@dataclass
class Layout:
    """A struct in memory, and its instructions; a `Jump` among their words leads to those of another type."""

    instructions: list[list[int | Jump]] = field(default_factory=list)
    size: int = 0
    align: int = 1

    def place(self, size: int, align: int) -> int:
        """The offset of the next member."""
        offset = -(-self.size // align) * align
        self.size, self.align = offset + size, max(self.align, align)
        return offset


@cache
def _layout(name: str) -> Layout:
    made = Layout()
    fields = interfaces().fields(name)
    for _, (kind, detail) in [*SERVICE_HEADER, *fields] if "/srv/" in name else fields:
        if kind == Nodetype.BASE:
            code, flags, size = SCALARS[detail[0]]
            made.instructions.append([ADR | code << 16 | flags, made.place(size, size)])
        elif kind == Nodetype.NAME:
            inner = _layout(detail)
            offset = made.place(inner.size, inner.align)
            made.instructions.append([ADR | EXTERNAL << 16, offset, Jump(3, detail)])
        else:
            _place_many(made, kind, *detail)
    made.size = -(-made.size // made.align) * made.align
    made.instructions.append([RTS])
    return made


def _place_many(made: Layout, kind: Any, element: Any, length: int) -> None:
    """A sequence (bounds do not matter on the wire) or an array of `length`."""
    is_array = kind == Nodetype.ARRAY
    element_kind, detail = element
    if element_kind == Nodetype.BASE:
        code, flags, size = SCALARS[detail[0]]
        align = size
    else:
        inner = _layout(detail)
        code, flags, size, align = STRUCT, 0, inner.size, inner.align
    operation = ADR | (ARRAY if is_array else SEQUENCE) << 16 | code << 8 | flags
    offset = made.place(size * length, align) if is_array else made.place(SEQUENCE_SIZE, 8)
    words: list[int | Jump] = [operation, offset, length] if is_array else [operation, offset]
    if code == STRUCT:
        words += [Jump(5, detail), size] if is_array else [size, Jump(4, detail)]
    made.instructions.append(words)


def program(name: str) -> list[int]:
    """The instructions of a type followed by those of the types it contains, each once."""
    order: list[str] = []

    def visit(one: str) -> None:
        if one not in order:
            order.append(one)
            for words in _layout(one).instructions:
                for word in words:
                    if isinstance(word, Jump):
                        visit(word.target)

    visit(name)
    starts, length = {}, 0
    for one in order:
        starts[one] = length
        length += sum(len(words) for words in _layout(one).instructions)
    made: list[int] = []
    for one in order:
        for words in _layout(one).instructions:
            here = len(made)
            for word in words:
                if isinstance(word, Jump):
                    made.append(word.next_step << 16 | (starts[word.target] - here) & 0xFFFF)
                else:
                    made.append(word)
    return made


_descriptors: dict[str, tuple[TopicDescriptor, Any]] = {}  # with the memory they point to
_lock = threading.Lock()


def descriptor(name: str) -> TopicDescriptor:
    """The descriptor of a message or of half a service; lives as long as the process."""
    with _lock:
        if name not in _descriptors:
            words = program(name)
            memory = (ct.c_uint32 * len(words))(*words)
            layout = _layout(name)
            made = TopicDescriptor(size=layout.size, align=layout.align, nops=len(words), meta=b"")
            made.typename = dds_type_name(name).encode()
            made.ops = ct.addressof(memory)
            _descriptors[name] = (made, memory)
        return _descriptors[name][0]
