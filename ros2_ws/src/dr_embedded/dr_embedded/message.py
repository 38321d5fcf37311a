"""Message and service classes, made on first use, and CDR (little-endian XCDR1) to and from them."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from rosbags.serde import SerdeError

from dr_embedded.fields import Field, make_field
from dr_embedded.interfaces import EMPTY_FIELD, interfaces


class Message:
    """Base of all message classes."""

    __slots__ = ()
    _ros_name: ClassVar[str]
    _ros_fields: ClassVar[tuple[Field, ...]]
    _fields_and_field_types: ClassVar[dict[str, str]]

    def __init__(self, **kwargs: Any) -> None:
        for field in self._ros_fields:
            if field.name in kwargs:
                setattr(self, field.name, kwargs.pop(field.name))
            else:
                setattr(self, f"_{field.name}", field.default())
        if kwargs:
            raise AssertionError(f"Invalid arguments passed to constructor: {sorted(kwargs)}")

    @classmethod
    def get_fields_and_field_types(cls) -> dict[str, str]:
        return dict(cls._fields_and_field_types)

    def _to_wire(self) -> SimpleNamespace:
        """The same values as rosbags serialises them: arrays as numpy, bytes as int."""
        made = SimpleNamespace()
        for field in self._ros_fields:
            value = getattr(self, f"_{field.name}")
            made.__dict__[field.name] = value if field.to_wire is None else field.to_wire(value)
        return made

    @classmethod
    def _from_wire(cls, *values: Any) -> Message:
        """Build from what rosbags read, in the order of the fields, without checks."""
        made = cls.__new__(cls)
        for field, value in zip(cls._ros_fields, values, strict=True):
            setattr(made, f"_{field.name}", value if field.from_wire is None else field.from_wire(value))
        return made

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
    for field in fields:
        members[field.name] = _accessor(field)
    made: Any = type(bare, (Message,), members)
    # An empty struct still carries one byte on the wire.
    from_wire: Any = made._from_wire if fields else lambda _: made()
    known.store.types[name] = from_wire
    return made


def _accessor(field: Field) -> property:
    slot, check = f"_{field.name}", field.check

    def read(self: Message) -> Any:
        return getattr(self, slot)

    def write(self: Message, value: Any) -> None:
        setattr(self, slot, check(value))

    return property(read, write)


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


def serialize(message: Message) -> memoryview:
    """CDR with its 4-byte header; the size is not padded."""
    wire = message._to_wire()
    if not message._ros_fields:
        wire.structure_needs_at_least_one_member = 0
    return interfaces().store.serialize_cdr(wire, message._ros_name)


def deserialize(data: bytes | memoryview, cls: type[Message]) -> Message:
    """The message in `data` (CDR with header).

    Raises:
        ValueError: the bytes are not a message of this type.
    """
    try:
        return interfaces().store.deserialize_cdr(memoryview(data), cls._ros_name)  # type: ignore[return-value]
    except SerdeError as problem:
        raise ValueError(f"{cls._ros_name}: {problem}") from problem
