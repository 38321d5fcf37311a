"""Message and service classes, made on first use, and CDR to and from them."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np

from dr_embedded import cdr
from dr_embedded.fields import Field, make_field
from dr_embedded.interfaces import EMPTY_FIELD, interfaces


class Message:
    """Base of all message classes."""

    __slots__ = ()
    _ros_name: ClassVar[str]
    _ros_fields: ClassVar[tuple[Field, ...]]
    _fields_and_field_types: ClassVar[dict[str, str]]
    # Of each field: name, what stores a value without checks, the check, the default.
    _ros_slots: ClassVar[tuple[tuple[str, Callable[[Any, Any], None], Callable[[Any], Any], Callable[[], Any]], ...]]
    _set_defaults: Callable[[], None]

    def __init__(self, **kwargs: Any) -> None:
        if not kwargs:
            self._set_defaults()
            return
        for name, store, check, default in self._ros_slots:
            if name in kwargs:
                store(self, check(kwargs.pop(name)))
            else:
                store(self, default())
        if kwargs:
            raise AssertionError(f"Invalid arguments passed to constructor: {sorted(kwargs)}")

    @classmethod
    def get_fields_and_field_types(cls) -> dict[str, str]:
        return dict(cls._fields_and_field_types)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, self.__class__):
            return False
        for field in self._ros_fields:
            mine, theirs = getattr(self, f"_{field.name}"), getattr(other, f"_{field.name}")
            if not (np.array_equal(mine, theirs) if field.is_array else mine == theirs):
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        package, kind, name = self._ros_name.split("/")
        inside = ", ".join(f"{field.name}={getattr(self, f'_{field.name}')!r}" for field in self._ros_fields)
        return f"{package}.{kind}.{name}({inside})"


_classes: dict[str, Any] = {}
_making = threading.RLock()


def message_class(name: str) -> Any:
    """The class of `pkg/msg/Name` (or of half a service), a subclass of Message.

    Raises:
        KeyError: no definition has this name.
    """
    with _making:
        if name not in _classes:
            _classes[name] = _make_message(name)
        return _classes[name]


def _make_message(name: str) -> Any:
    known = interfaces()
    defaults = known.defaults.get(name, {})
    described = [entry for entry in known.fields(name) if entry[0] != EMPTY_FIELD[0]]
    fields = tuple(make_field(field, what, defaults.get(field), message_class) for field, what in described)
    package, kind, bare = name.split("/")
    members: dict[str, Any] = {
        "__slots__": tuple(f"_{field.name}" for field in fields),
        "__module__": f"{package}.{kind}",
        "_ros_name": name,
        "_ros_fields": fields,
        "_fields_and_field_types": {field.name: field.type_string for field in fields},
    }
    for constant, base, value in known.constants(name):
        members[constant] = bytes((int(value),)) if base == "byte" else value
    made: Any = type(bare, (Message,), members)
    stores = {field.name: made.__dict__[f"_{field.name}"].__set__ for field in fields}
    made._ros_slots = tuple((field.name, stores[field.name], field.check, field.default) for field in fields)
    made._set_defaults = _default_setter(fields)
    for field in fields:
        setattr(made, field.name, _accessor(field, stores[field.name]))
    return made


def _default_setter(fields: tuple[Field, ...]) -> Callable[[Message], None]:
    """A method that sets all fields of a new message, compiled, since nested messages have many."""
    names: dict[str, Any] = {f"make{i}": field.default for i, field in enumerate(fields)}
    lines = ["def set_defaults(self):", "    pass"]
    for i, field in enumerate(fields):
        value = field.default()
        fixed = math.isfinite(value) if isinstance(value, float) else isinstance(value, (int, str, bytes))
        lines.append(f"    self._{field.name} = {repr(value) if fixed else f'make{i}()'}")
    exec("\n".join(lines), names)
    made: Callable[[Message], None] = names["set_defaults"]
    return made


def _accessor(field: Field, store: Callable[[Any, Any], None]) -> property:
    check = field.check

    def write(self: Message, value: Any) -> None:
        store(self, check(value))

    return property(attrgetter(f"_{field.name}"), write)


def service_class(name: str) -> Any:
    """The class of `pkg/srv/Name`, with the attributes Request and Response."""
    with _making:
        if name not in _classes:
            if name not in interfaces().services:
                raise KeyError(name)
            package, kind, bare = name.split("/")
            halves = {half: message_class(f"{name}_{half}") for half in ("Request", "Response")}
            members = {"__module__": f"{package}.{kind}", "_ros_name": name, "__init__": _no_instances, **halves}
            _classes[name] = type(bare, (), members)
        return _classes[name]


def _no_instances(self: object) -> None:
    raise NotImplementedError("Service classes can not be instantiated")


def is_message_class(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Message)


def is_service_class(cls: object) -> bool:
    return getattr(cls, "_ros_name", None) in interfaces().services


def serialize(message: Message) -> bytes:
    """CDR with its 4-byte header; the size is not padded."""
    return cdr.writer(message._ros_name)(message)


def deserialize(data: bytes | memoryview, cls: type[Message]) -> Message:
    """The message in `data` (CDR with header).

    Raises:
        ValueError: the bytes are not a message of this type.
    """
    data = bytes(data)  # no copy where they are bytes already
    order = cdr.ORDERS.get(data[:2])
    if order is None or len(data) < len(cdr.HEADER):
        raise ValueError(f"{cls._ros_name}: no CDR header")
    try:
        made: Message = cdr.reader(cls._ros_name, order, message_class)(data)
    except (struct.error, ValueError) as problem:
        raise ValueError(f"{cls._ros_name}: {problem}") from problem
    return made
