"""CDR (XCDR1) of messages: for each type a function that writes and one that reads, compiled on first use.

A type is laid out flat, with all that it contains: fixed fields that follow each other are one `struct` call, padding
included. Positions count from the start of the data with its four bytes of header; alignment counts from behind them.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import Nodetype

from dr_embedded.fields import TYPE_CODES
from dr_embedded.interfaces import EMPTY_FIELD, interfaces

HEADER = b"\x00\x01\x00\x00"  # little-endian
SCALAR_CODES = {**TYPE_CODES, "bool": "?", "byte": "c"}
ZEROS = bytes(8)
Order = Literal["<", ">"]
ORDERS: dict[bytes, Order] = {b"\x00\x01": "<", b"\x00\x00": ">"}


class _Code:
    """Python source that grows: what writer and reader have in common."""

    def __init__(self, order: Order) -> None:
        self.order: Order = order
        self.lines: list[str] = []
        self.depth = 1
        self.names: dict[str, Any] = {"ZEROS": ZEROS, "HEADER": HEADER}
        self.names |= {"array": array.array, "frombuffer": np.frombuffer}
        self._count = 0
        # Fixed fields that wait for their `struct` call.
        self.format = ""
        self.values: list[str] = []
        # The position is `offset` more than a multiple of `modulus`.
        self.modulus, self.offset = 8, 0

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def name(self, value: Any = None) -> str:
        """A new name, of a constant if there is a value."""
        self._count += 1
        made = f"n{self._count}"
        if value is not None:
            self.names[made] = value
        return made

    def align(self, size: int) -> None:
        """Pad, so that something of `size` bytes may follow."""
        if self.modulus < size:
            self.flush()
            self.align_now(size)
            self.modulus, self.offset = size, 0
        padding = -self.offset % size
        self.format += "x" * padding
        self.offset = (self.offset + padding) % self.modulus

    def scalar(self, base: str, value: str) -> None:
        """A fixed field: the expression to write, or the name to read to."""
        code = SCALAR_CODES[base]
        size = struct.calcsize(code)
        self.align(size)
        self.format += code
        self.values.append(value)
        self.offset = (self.offset + size) % self.modulus

    def flush(self) -> None:
        """The `struct` call for the fixed fields so far."""
        if self.format:
            fixed = struct.Struct(self.order + self.format)
            self.call(self.name(fixed), fixed.size)
        self.format, self.values = "", []

    def moved(self, modulus: int) -> None:
        """After something of variable size the position is only known to be a multiple of `modulus`."""
        self.flush()
        self.modulus, self.offset = modulus, 0

    def call(self, fixed: str, size: int) -> None:
        raise NotImplementedError

    def align_now(self, size: int) -> None:
        raise NotImplementedError

    def build(self, arguments: str, result: str) -> Callable[..., Any]:
        self.flush()
        self.line(result)
        source = "\n".join([f"def made({arguments}):", *self.lines])
        exec(source, self.names)
        made: Callable[..., Any] = self.names["made"]
        return made


def _aligned(size: int) -> str:
    """The next position for something of `size` bytes."""
    return "(at + 3 & -8) + 4" if size == 8 else f"at + {size - 1} & -{size}"


class _Writer(_Code):
    def call(self, fixed: str, size: int) -> None:
        self.line(f"add({fixed}.pack({', '.join(self.values)}))")
        self.line(f"at += {size}")

    def align_now(self, size: int) -> None:
        self.line(f"to = {_aligned(size)}")
        self.line("add(ZEROS[: to - at])")
        self.line("at = to")

    def message(self, name: str, value: str) -> None:
        for field, description in interfaces().fields(name):
            if field == EMPTY_FIELD[0]:
                self.format += "x"
                self.offset = (self.offset + 1) % self.modulus
            else:
                self.field(description, f"{value}._{field}")

    def field(self, description: Any, value: str) -> None:
        kind, detail = description
        if kind == Nodetype.BASE and detail[0] == "string":
            text = self.name()
            self.line(f"{text} = {value}.encode()")
            self.scalar("uint32", f"len({text}) + 1")
            self.moved(1)
            self.line(f"add({text})")
            self.line("add(ZEROS[:1])")
            self.line(f"at += len({text}) + 1")
        elif kind == Nodetype.BASE:
            self.scalar(detail[0], value)
        else:
            one = self.name()
            self.line(f"{one} = {value}")
            if kind == Nodetype.NAME:
                self.message(detail, one)
            else:
                self.many(detail[0], detail[1] if kind == Nodetype.ARRAY else None, one)

    def many(self, element: Any, length: int | None, value: str) -> None:
        """A sequence, or an array of `length`."""
        kind, detail = element
        numbers = kind == Nodetype.BASE and detail[0] in TYPE_CODES
        size = np.dtype(detail[0]).itemsize if numbers else 1
        if length is None:
            self.scalar("uint32", f"len({value})")
            self.moved(min(size, 4))
        if numbers and length is None:
            self.line(f"if {value}:")
            self.depth += 1
            if size == 8:
                self.align_now(8)
            self.line(f"add({value})")
            self.line(f"at += len({value}) * {size}")
            self.depth -= 1
        elif numbers and length is not None:
            self.align(size)
            self.flush()
            self.line(f"add({value}.tobytes())")
            self.line(f"at += {length * size}")
            self.offset = (self.offset + length * size) % self.modulus
        else:
            self.moved(1)
            one = self.name()
            self.line(f"for {one} in {value}:")
            self.depth += 1
            self.field(element, one)
            self.moved(1)
            self.depth -= 1


class _Reader(_Code):
    def __init__(self, order: Order, class_of: Callable[[str], type]) -> None:
        super().__init__(order)
        self._class_of = class_of
        self._made: list[str] = []  # objects are made when the fields that they hold have been read

    def call(self, fixed: str, size: int) -> None:
        left = f"{', '.join(self.values)}, = " if self.values else ""
        self.line(f"{left}{fixed}.unpack_from(data, at)")
        self.line(f"at += {size}")

    def align_now(self, size: int) -> None:
        self.line(f"at = {_aligned(size)}")

    def until(self, end: str) -> None:
        self.line(f"end = {end}")
        self.line("if end > size: raise ValueError('it ends too soon')")

    def flush(self) -> None:
        super().flush()
        for line in self._made:
            self.line(line)
        self._made.clear()

    def message(self, name: str) -> str:
        cls, made = self.name(self._class_of(name)), self.name()
        self._made.append(f"{made} = {cls}.__new__({cls})")
        for field, description in interfaces().fields(name):
            if field == EMPTY_FIELD[0]:
                self.format += "x"
                self.offset = (self.offset + 1) % self.modulus
            else:
                self._made.append(f"{made}._{field} = {self.field(description)}")
        return made

    def field(self, description: Any) -> str:
        """Returns the name that has the value once all has been flushed."""
        kind, detail = description
        if kind == Nodetype.NAME:
            return self.message(detail)
        if kind != Nodetype.BASE:
            return self.many(detail[0], detail[1] if kind == Nodetype.ARRAY else None)
        value = self.name()
        if detail[0] != "string":
            self.scalar(detail[0], value)
            return value
        self.scalar("uint32", value)
        self.moved(1)
        self.until(f"at + {value}")
        self.line(f"{value} = data[at : end - 1].decode()")
        self.line("at = end")
        return value

    def many(self, element: Any, length: int | None) -> str:
        kind, detail = element
        numbers = kind == Nodetype.BASE and detail[0] in TYPE_CODES
        dtype = np.dtype(detail[0]) if numbers else np.dtype("uint8")
        size = dtype.itemsize
        values, count = self.name(), str(length)
        if length is None:
            count = self.name()
            self.scalar("uint32", count)
            self.moved(min(size, 4))
        if numbers and length is None:
            self.line(f"{values} = array({TYPE_CODES[detail[0]]!r})")
            self.line(f"if {count}:")
            self.depth += 1
            if size == 8:
                self.align_now(8)
            self.until(f"at + {count} * {size}")
            self.line(f"{values}.frombytes(memoryview(data)[at:end])")
            self.line("at = end")
            if self.order == ">":
                self.line(f"{values}.byteswap()")
            self.depth -= 1
        elif numbers and length is not None:
            self.align(size)
            self.flush()
            native, there = self.name(dtype), self.name(dtype.newbyteorder(self.order))
            self.line(f"{values} = frombuffer(data, {there}, {length}, at).astype({native})")
            self.line(f"at += {length * size}")
            self.offset = (self.offset + length * size) % self.modulus
        else:
            self.moved(1)
            self.line(f"{values} = []")
            self.line(f"for _ in range({count}):")
            self.depth += 1
            value = self.field(element)
            self.moved(1)
            self.line(f"{values}.append({value})")
            self.depth -= 1
        return values


@cache
def writer(name: str) -> Callable[[Any], bytes]:
    """The function that makes a message of this type to CDR (little-endian, with header, not padded)."""
    code = _Writer("<")
    code.line("out = [HEADER]")
    code.line("add, at = out.append, 4")
    code.message(name, "message")
    return code.build("message", "return b''.join(out)")


@cache
def reader(name: str, order: Order, class_of: Callable[[str], type]) -> Callable[[bytes], Any]:
    """The function that makes CDR to a message of this type; raises ValueError or struct.error.

    Args:
        name: of the type.
        order: of the bytes, as `struct` calls it: "<" or ">".
        class_of: finds message classes.
    """
    code = _Reader(order, class_of)
    code.line("at, size = 4, len(data)")
    made = code.message(name)
    code.flush()
    code.line("if at + 3 < size: raise ValueError('it is too long')")
    return code.build("data", f"return {made}")
