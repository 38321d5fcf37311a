"""How one field of a message behaves: its default, and the check on assignment.

Real rclpy classes keep `uint8[]` as array.array("B"), `float64[9]` as numpy.ndarray, `byte` as bytes, everything else
as lists and Python scalars, and raise AssertionError for a value of the wrong type.
"""

from __future__ import annotations

import array
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype

INTEGERS = {  # name: (lowest, highest)
    f"{sign}int{bits}": (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}
TYPE_CODES = {
    "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q",
    "float32": "f", "float64": "d",
}  # fmt: skip
DTYPES = {name: np.dtype(name) for name in TYPE_CODES}
IDL_NAMES = {"bool": "boolean", "byte": "octet", "float32": "float", "float64": "double"}
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Field:
    """One field; `check` returns the value to store or raises AssertionError."""

    name: str
    type_string: str
    default: Callable[[], Any]
    check: Callable[[Any], Any]
    is_array: bool = False


def make_field(name: str, description: Any, default: Any, class_of: Callable[[str], type]) -> Field:
    """Describe the field `name`; `default` is None for the zero of its type; `class_of` finds nested classes."""
    kind, detail = description
    if kind == Nodetype.BASE:
        field = _scalar(name, *detail)
    elif kind == Nodetype.NAME:
        field = _nested(name, class_of(detail))
    else:
        (inner_kind, inner), length = detail
        sequence = kind == Nodetype.SEQUENCE
        if inner_kind == Nodetype.BASE and inner[0] in TYPE_CODES:
            field = _number_sequence(name, inner[0], length) if sequence else _number_array(name, inner[0], length)
        else:
            element = make_field(name, (inner_kind, inner), None, class_of)
            field = _list(name, element, length, bounded=sequence)
    if default is None:
        return field
    initial = field.check(default)
    copies = isinstance(initial, (list, array.array, np.ndarray))
    make = (lambda: initial[:]) if copies else (lambda: initial)  # an ndarray is copied below
    if isinstance(initial, np.ndarray):
        make = initial.copy
    return Field(**{**field.__dict__, "default": make})


def _wrong(name: str, expected: str, value: object) -> AssertionError:
    return AssertionError(f"The '{name}' field must be {expected}, not {type(value).__name__} {value!r:.80}")


def _scalar(name: str, base: str, bound: int) -> Field:
    def check_bool(value: Any) -> Any:
        if not isinstance(value, bool):
            raise _wrong(name, "of type 'bool'", value)
        return value

    def check_integer(value: Any) -> Any:
        lowest, highest = INTEGERS[base]
        if not isinstance(value, int) or not lowest <= value <= highest:
            raise _wrong(name, f"an 'int' in [{lowest}, {highest}]", value)
        return value

    def check_float(value: Any) -> Any:
        if not isinstance(value, float):
            raise _wrong(name, "of type 'float'", value)
        if base == "float32" and math.isfinite(value) and abs(value) > FLOAT32_MAX:
            raise _wrong(name, "a 'float' in the range of float32", value)
        return value

    def check_string(value: Any) -> Any:
        if not isinstance(value, str) or (bound and len(value) > bound):
            raise _wrong(name, f"of type 'str'{f' of at most {bound} characters' if bound else ''}", value)
        return value

    def check_byte(value: Any) -> Any:
        if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) != 1:
            raise _wrong(name, "'bytes' of length 1", value)
        return bytes(value)

    label = IDL_NAMES.get(base, base)
    if base == "string":
        return Field(name, f"string<{bound}>" if bound else label, str, check_string)
    if base == "bool":
        return Field(name, label, bool, check_bool)
    if base == "byte":
        return Field(name, label, lambda: b"\0", check_byte)
    if base in INTEGERS:
        return Field(name, label, int, check_integer)
    if base in ("float32", "float64"):
        return Field(name, label, float, check_float)
    raise NotImplementedError(f"dr_embedded: fields of type {base}")


def _nested(name: str, cls: Any) -> Field:
    def check(value: Any) -> Any:
        if not isinstance(value, cls):
            raise _wrong(name, f"a sub message of type '{cls.__name__}'", value)
        return value

    package, _, bare = cls._ros_name.split("/")
    return Field(name, f"{package}/{bare}", cls, check)


def _number_sequence(name: str, base: str, bound: int) -> Field:
    code = TYPE_CODES[base]

    def check(value: Any) -> Any:
        if isinstance(value, array.array):
            if value.typecode != code:
                raise _wrong(name, f"an array.array of typecode {code!r}", value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            try:
                value = array.array(code, value)
            except (TypeError, OverflowError) as problem:
                raise _wrong(name, f"a sequence of {base}", value) from problem
        else:
            raise _wrong(name, f"a sequence of {base} (from numpy: array.array({code!r}, a.tobytes()))", value)
        if bound and len(value) > bound:
            raise _wrong(name, f"of at most {bound} elements", value)
        return value

    label = IDL_NAMES.get(base, base)
    label = f"sequence<{label}, {bound}>" if bound else f"sequence<{label}>"
    return Field(name, label, lambda: array.array(code), check, is_array=True)


def _number_array(name: str, base: str, length: int) -> Field:
    dtype = DTYPES[base]

    def check(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype != dtype or value.shape != (length,):
                raise _wrong(name, f"a numpy.ndarray of {dtype} with {length} elements", value)
            return value
        if not isinstance(value, (Sequence, array.array)) or isinstance(value, str) or len(value) != length:
            raise _wrong(name, f"a sequence of {length} {base}", value)
        return np.array(value, dtype=dtype)

    label = f"{IDL_NAMES.get(base, base)}[{length}]"
    return Field(name, label, lambda: np.zeros(length, dtype), check, is_array=True)


def _list(name: str, element: Field, length: int, *, bounded: bool) -> Field:
    def check(value: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise _wrong(name, f"a sequence of {element.type_string}", value)
        if (bounded and length and len(value) > length) or (not bounded and len(value) != length):
            raise _wrong(name, f"a sequence of {'at most ' if bounded else ''}{length} elements", value)
        for item in value:
            element.check(item)
        return value

    if bounded:
        label = f"sequence<{element.type_string}, {length}>" if length else f"sequence<{element.type_string}>"
        return Field(name, label, list, check)
    label = f"{element.type_string}[{length}]"
    return Field(name, label, lambda: [element.default() for _ in range(length)], check)
