"""The few C functions of Cyclone DDS that carry serialised samples, called through ctypes.

ctypes releases the interpreter lock during a call; the wheel's own extension does not when it writes. Its typed
samples cost some 30 ms for a camera image, these calls about 1 ms.
"""

from __future__ import annotations

import ctypes as ct
from typing import Any

from cyclonedds.core import DDSException as DDSException
from cyclonedds.internal import DDS, dds_c_t

Entity = int  # a handle of the C library; negative means an error code
INFINITE_NS = 2**63 - 1
ANY_STATE = 0
SERDATA_KIND_DATA = 2
PADDING = bytes(4)


class TopicDescriptor(ct.Structure):
    """`dds_topic_descriptor_t`."""

    _fields_ = [
        ("size", ct.c_uint32),
        ("align", ct.c_uint32),
        ("flagset", ct.c_uint32),
        ("nkeys", ct.c_uint32),
        ("typename", ct.c_char_p),
        ("keys", ct.c_void_p),
        ("nops", ct.c_uint32),
        ("ops", ct.c_void_p),
        ("meta", ct.c_char_p),
        ("type_information", ct.c_void_p),
        ("type_information_size", ct.c_uint32),
        ("type_mapping", ct.c_void_p),
        ("type_mapping_size", ct.c_uint32),
        ("restrict_data_representation", ct.c_uint32),
    ]


class IoVec(ct.Structure):
    _fields_ = [("base", ct.c_void_p), ("length", ct.c_size_t)]


class Bytes(ct.Structure):
    """An IoVec made from bytes, which it keeps."""

    _fields_ = [("base", ct.c_char_p), ("length", ct.c_size_t)]


TwoBytes = Bytes * 2


SampleInfo = dds_c_t.sample_info

# A separate handle of the same library: argument types set here must not change those of the wheel.
_library = ct.CDLL(DDS._dll_handle._name)
_pointer, _size, _entity, _i64, _u32 = ct.c_void_p, ct.c_size_t, ct.c_int32, ct.c_int64, ct.c_uint32

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "dds_create_topic": (_entity, [_entity, _pointer, ct.c_char_p, _pointer, _pointer]),
    "dds_create_writer": (_entity, [_entity, _entity, _pointer, _pointer]),
    "dds_create_reader": (_entity, [_entity, _entity, _pointer, _pointer]),
    "dds_create_readcondition": (_entity, [_entity, _u32]),
    "dds_create_guardcondition": (_entity, [_entity]),
    "dds_create_waitset": (_entity, [_entity]),
    "dds_set_guardcondition": (_entity, [_entity, ct.c_bool]),
    "dds_take_guardcondition": (_entity, [_entity, _pointer]),
    "dds_waitset_attach": (_entity, [_entity, _entity, _i64]),
    "dds_waitset_detach": (_entity, [_entity, _entity]),
    "dds_waitset_wait": (_entity, [_entity, _pointer, _size, _i64]),
    "dds_set_status_mask": (_entity, [_entity, _u32]),
    "dds_get_guid": (_entity, [_entity, _pointer]),
    "dds_get_instance_handle": (_entity, [_entity, _pointer]),
    "dds_get_entity_sertype": (_entity, [_entity, _pointer]),
    "dds_get_matched_subscriptions": (_entity, [_entity, _pointer, _size]),
    "dds_get_matched_publications": (_entity, [_entity, _pointer, _size]),
    "dds_assert_liveliness": (_entity, [_entity]),
    "dds_wait_for_acks": (_entity, [_entity, _i64]),
    "dds_writecdr": (_entity, [_entity, _pointer]),
    "dds_takecdr": (_entity, [_entity, _pointer, _u32, _pointer, _u32]),
    "dds_delete": (_entity, [_entity]),
    "ddsi_serdata_from_ser_iov": (_pointer, [_pointer, ct.c_int, _size, _pointer, _size]),
    "ddsi_serdata_size": (_u32, [_pointer]),
    "ddsi_serdata_to_ser_ref": (_pointer, [_pointer, _size, _size, _pointer]),
    "ddsi_serdata_to_ser_unref": (None, [_pointer, _pointer]),
    "ddsi_serdata_unref": (None, [_pointer]),
}
for _name, (_result, _arguments) in _SIGNATURES.items():
    _function = getattr(_library, _name)
    _function.restype, _function.argtypes = _result, _arguments


def call(name: str, *arguments: Any) -> int:
    """Call a function that returns an entity, a count or an error code.

    Raises:
        DDSException: it returned an error.
    """
    result: int = getattr(_library, name)(*arguments)
    if result < 0:
        raise DDSException(result, f"in {name}")
    return result


def try_call(name: str, *arguments: Any) -> int:
    """As `call`, but returns the error code."""
    result: int = getattr(_library, name)(*arguments)
    return result


def release(entity: Entity) -> None:
    """Delete an entity with all that it contains; one that is gone already is fine."""
    _library.dds_delete(entity)


def write(writer: Entity, sertype: ct.c_void_p, data: bytes) -> None:
    """Publish one serialised sample (CDR with header); blocks while the reliable protocol holds the writer back."""
    size, padding = len(data), -len(data) % 4  # whole words only
    vectors = TwoBytes(Bytes(data, size), Bytes(PADDING, padding))
    sample = _library.ddsi_serdata_from_ser_iov(sertype, SERDATA_KIND_DATA, 2, vectors, size + padding)
    if not sample:
        raise DDSException(DDSException.DDS_RETCODE_BAD_PARAMETER, "the bytes are not a sample of the topic's type")
    call("dds_writecdr", writer, sample)  # takes the reference over


def take(reader: Entity) -> tuple[bytes, Any] | None:
    """The next valid sample (CDR with header) and its SampleInfo; None when there is none."""
    sample, info = ct.c_void_p(), SampleInfo()
    while call("dds_takecdr", reader, ct.byref(sample), 1, ct.byref(info), ANY_STATE) == 1:
        try:
            if info.valid_data:
                part = IoVec()
                size = _library.ddsi_serdata_size(sample)
                held = _library.ddsi_serdata_to_ser_ref(sample, 0, size, ct.byref(part))
                try:
                    return ct.string_at(part.base, part.length), info
                finally:
                    _library.ddsi_serdata_to_ser_unref(held, ct.byref(part))
        finally:
            _library.ddsi_serdata_unref(sample)
    return None


def guid_of(entity: Entity) -> bytes:
    """The 16 bytes that identify an entity in the whole system."""
    guid = dds_c_t.guid()
    call("dds_get_guid", entity, ct.byref(guid))
    return bytes(guid.v)


def instance_handle_of(entity: Entity) -> int:
    handle = ct.c_uint64()
    call("dds_get_instance_handle", entity, ct.byref(handle))
    return handle.value


def matched(endpoint: Entity, *, readers: bool) -> list[int]:
    """Instance handles of the readers matched with a writer, or of the writers matched with a reader."""
    function = "dds_get_matched_subscriptions" if readers else "dds_get_matched_publications"
    count = call(function, endpoint, None, 0)
    handles = (ct.c_uint64 * count)()
    found = call(function, endpoint, handles, count) if count else 0
    return list(handles[: min(found, count)])


def sertype_of(endpoint: Entity) -> ct.c_void_p:
    """What turns bytes into samples of this endpoint's topic."""
    sertype = ct.c_void_p()
    call("dds_get_entity_sertype", endpoint, ct.byref(sertype))
    return sertype


def read_status(function: str, entity: Entity, status: Any) -> Any:
    """Fill `status` (a structure of the wheel's dds_c_t) and reset its change counters."""
    getter = getattr(_library, function)
    result = getter(_entity(entity), ct.byref(status))
    if result < 0:
        raise DDSException(result, f"in {function}")
    return status
