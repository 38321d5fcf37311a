"""CDR of every known message type against another implementation of it, that of rosbags."""

from __future__ import annotations

import random
import string
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

dr_embedded = pytest.importorskip("dr_embedded", reason="the installed ROS 2 has its own CDR")
if dr_embedded.activate() != "embedded":
    pytest.skip("the installed ROS 2 has its own CDR", allow_module_level=True)

from dr_embedded.fields import INTEGERS, TYPE_CODES  # noqa: E402
from dr_embedded.interfaces import EMPTY_FIELD, interfaces  # noqa: E402
from dr_embedded.message import deserialize, message_class, serialize  # noqa: E402


def known_types() -> list[str]:
    """All messages and halves of services whose fields the stand-in supports."""
    names = []
    for name in sorted(interfaces().store.fielddefs):
        if name not in interfaces().services and not name.endswith("_Event"):
            try:
                message_class(name)
            except (KeyError, NotImplementedError):
                continue
            names.append(name)
    return names


def filled(name: str, rng: random.Random) -> tuple[Any, Any]:
    """A message with random values, and the same for rosbags."""
    mine, theirs = message_class(name)(), SimpleNamespace()
    for field, description in interfaces().fields(name):
        if field == EMPTY_FIELD[0]:
            theirs.structure_needs_at_least_one_member = 0
            continue
        value, reference = random_value(description, rng)
        setattr(mine, field, value)
        setattr(theirs, field, reference)
    return mine, theirs


def random_value(description: Any, rng: random.Random) -> tuple[Any, Any]:
    kind, detail = description
    if kind == Nodetype.NAME:
        return filled(detail, rng)
    if kind == Nodetype.BASE:
        return random_scalar(*detail, rng)
    (inner_kind, inner), length = detail
    count = length if kind == Nodetype.ARRAY else rng.randint(0, min(length or 4, 4))
    pairs = [random_value((inner_kind, inner), rng) for _ in range(count)]
    values, references = [one for one, _ in pairs], [one for _, one in pairs]
    if inner_kind == Nodetype.BASE and inner[0] in TYPE_CODES:
        return values, np.array(references, inner[0])
    if inner_kind == Nodetype.BASE and inner[0] in ("bool", "byte"):
        return values, np.array(references, np.uint8)
    return values, references


def random_scalar(base: str, bound: int, rng: random.Random) -> tuple[Any, Any]:
    if base == "string":
        text = "".join(rng.choices(string.ascii_letters + "äß漢", k=rng.randint(0, min(bound or 9, 9))))
        return text, text
    if base == "bool":
        flag = rng.random() < 0.5
        return flag, flag
    if base == "byte":
        number = rng.randrange(128)  # rosbags writes no larger ones
        return bytes((number,)), number
    if base in INTEGERS:
        number = rng.randint(*INTEGERS[base])
        return number, number
    value = float(np.float32(rng.gauss(0.0, 1e3)))
    return value, value


@pytest.fixture(scope="module")
def reference() -> Typestore:
    """rosbags with the same definitions."""
    store = Typestore()
    store.fielddefs = interfaces().store.fielddefs
    store.types = dict.fromkeys(store.fielddefs, SimpleNamespace)
    return store


def test_every_type_as_rosbags_writes_it(reference: Typestore) -> None:
    rng, names = random.Random(0), known_types()
    assert len(names) > 150 and "dr_interfaces/msg/GateState" in names
    for name in names:
        for _ in range(5):
            message, same = filled(name, rng)
            data = serialize(message)
            assert data == bytes(reference.serialize_cdr(same, name)), name
            again = deserialize(data, type(message))
            assert again == message and repr(again) == repr(message), name
            swapped = bytes(reference.serialize_cdr(same, name, little_endian=False))
            assert deserialize(swapped, type(message)) == message, name


def test_data_that_ends_too_soon_or_goes_on() -> None:
    rng = random.Random(1)
    for name in known_types():
        message, _ = filled(name, rng)
        data = serialize(message)
        for cut in {0, 3, len(data) // 2, len(data) - 1}:
            with pytest.raises(ValueError, match=name):
                deserialize(data[:cut], type(message))
        assert deserialize(data + bytes(-len(data) % 4), type(message)) == message  # padding of the middleware
        with pytest.raises(ValueError, match="too long"):
            deserialize(data + bytes(4), type(message))


def test_damaged_data_gives_a_message_or_value_error() -> None:
    rng = random.Random(2)
    refused = 0
    for name in ("sensor_msgs/msg/JointState", "diagnostic_msgs/msg/DiagnosticArray", "sensor_msgs/msg/CameraInfo"):
        for _ in range(500):
            data = bytearray(serialize(filled(name, rng)[0]))
            for _ in range(3):
                data[rng.randrange(len(data))] = rng.randrange(256)
            try:
                assert isinstance(deserialize(bytes(data), message_class(name)), message_class(name))
            except ValueError:
                refused += 1
    assert 300 < refused < 1500
