"""What happens to an endpoint besides data: missed deadlines, lost peers, incompatible partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cyclonedds.core import DDSStatus
from cyclonedds.internal import dds_c_t

from dr_embedded import cyclone
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.logging import RcutilsLogger
from dr_embedded.ros.qos import QoSPolicyKind
from dr_embedded.waitable import Waitable, Work


@dataclass
class QoSRequestedDeadlineMissedInfo:
    total_count: int
    total_count_change: int


@dataclass
class QoSOfferedDeadlineMissedInfo:
    total_count: int
    total_count_change: int


@dataclass
class QoSLivelinessLostInfo:
    total_count: int
    total_count_change: int


@dataclass
class QoSMessageLostInfo:
    total_count: int
    total_count_change: int


@dataclass
class QoSLivelinessChangedInfo:
    alive_count: int
    alive_count_change: int
    not_alive_count: int
    not_alive_count_change: int


@dataclass
class QoSRequestedIncompatibleQoSInfo:
    total_count: int
    total_count_change: int
    last_policy_kind: int  # a QoSPolicyKind


QoSOfferedIncompatibleQoSInfo = QoSRequestedIncompatibleQoSInfo


@dataclass
class QoSSubscriptionMatchedInfo:
    total_count: int
    total_count_change: int
    current_count: int
    current_count_change: int


QoSPublisherMatchedInfo = QoSSubscriptionMatchedInfo

# Numbers of the policies in the DDS specification.
_POLICIES = {
    2: QoSPolicyKind.DURABILITY,
    4: QoSPolicyKind.DEADLINE,
    8: QoSPolicyKind.LIVELINESS,
    11: QoSPolicyKind.RELIABILITY,
    13: QoSPolicyKind.HISTORY,
    21: QoSPolicyKind.LIFESPAN,
}


@dataclass(frozen=True)
class _Kind:
    """A status of the C library and what users get of it."""

    mask: int
    function: str
    status: Any
    info: Any


def _kind(status_bit: int, name: str, info: Any) -> _Kind:
    return _Kind(status_bit, f"dds_get_{name}_status", getattr(dds_c_t, f"{name}_status"), info)


READER_EVENTS = {
    "deadline": _kind(DDSStatus.RequestedDeadlineMissed, "requested_deadline_missed", QoSRequestedDeadlineMissedInfo),
    "incompatible_qos": _kind(
        DDSStatus.RequestedIncompatibleQos, "requested_incompatible_qos", QoSRequestedIncompatibleQoSInfo
    ),
    "liveliness": _kind(DDSStatus.LivelinessChanged, "liveliness_changed", QoSLivelinessChangedInfo),
    "message_lost": _kind(DDSStatus.SampleLost, "sample_lost", QoSMessageLostInfo),
    "matched": _kind(DDSStatus.SubscriptionMatched, "subscription_matched", QoSSubscriptionMatchedInfo),
}
WRITER_EVENTS = {
    "deadline": _kind(DDSStatus.OfferedDeadlineMissed, "offered_deadline_missed", QoSOfferedDeadlineMissedInfo),
    "incompatible_qos": _kind(
        DDSStatus.OfferedIncompatibleQos, "offered_incompatible_qos", QoSOfferedIncompatibleQoSInfo
    ),
    "liveliness": _kind(DDSStatus.LivelinessLost, "liveliness_lost", QoSLivelinessLostInfo),
    "matched": _kind(DDSStatus.PublicationMatched, "publication_matched", QoSPublisherMatchedInfo),
}


class EventHandler(Waitable):
    """All events of one endpoint that somebody wants."""

    def __init__(
        self, endpoint: int, kinds: dict[str, _Kind], callbacks: dict[str, Callable[[Any], Any]], group: CallbackGroup
    ) -> None:
        super().__init__(group)
        self._endpoint = endpoint
        self._wanted = [(kinds[name], callback) for name, callback in callbacks.items()]
        self._destroyed = False
        mask = 0
        for kind, _ in self._wanted:
            mask |= int(kind.mask)
        cyclone.call("dds_set_status_mask", endpoint, mask)

    def conditions(self) -> tuple[int, ...]:
        return () if self._destroyed else (self._endpoint,)

    def take_work(self) -> Work | None:
        if self._destroyed:
            return None
        happened = []
        for kind, callback in self._wanted:
            status = cyclone.read_status(kind.function, self._endpoint, kind.status())
            changes = [getattr(status, name) for name, _ in status._fields_ if name.endswith("_change")]
            if any(changes):
                happened.append((callback, _info(kind, status)))
        if not happened:
            return None

        def work() -> None:
            for callback, info in happened:
                callback(info)

        return work


def _info(kind: _Kind, status: Any) -> Any:
    values = {name: getattr(status, name) for name in kind.info.__dataclass_fields__ if hasattr(status, name)}
    if hasattr(status, "last_policy_id"):
        values["last_policy_kind"] = int(_POLICIES.get(status.last_policy_id, QoSPolicyKind.INVALID))
    return kind.info(**values)


class UnsupportedEventTypeError(RuntimeError):
    """The middleware does not have this event."""


class _EventCallbacks:
    """Which callbacks the user gave, and the default for incompatible partners."""

    _kinds: dict[str, _Kind]
    _partner: str

    def __init__(self, *, use_default_callbacks: bool = True, incompatible_type: Any = None, **callbacks: Any) -> None:
        if incompatible_type is not None:
            raise NotImplementedError("dr_embedded: incompatible_type event")
        if unknown := callbacks.keys() - self._kinds.keys():
            raise TypeError(f"{type(self).__name__} got unexpected keyword arguments {sorted(unknown)}")
        self.use_default_callbacks = use_default_callbacks
        for name in self._kinds:
            setattr(self, name, callbacks.get(name))

    def make_handler(
        self, endpoint: int, group: CallbackGroup, topic: str, logger: RcutilsLogger
    ) -> EventHandler | None:
        """None when nobody wants any event."""
        wanted = {name: getattr(self, name) for name in self._kinds if getattr(self, name) is not None}
        if self.use_default_callbacks and "incompatible_qos" not in wanted:

            def warn(info: QoSRequestedIncompatibleQoSInfo) -> None:
                policy = QoSPolicyKind(info.last_policy_kind).name
                logger.warning(f"incompatible QoS of a {self._partner} on '{topic}', nothing is exchanged: {policy}")

            wanted["incompatible_qos"] = warn
        return EventHandler(endpoint, self._kinds, wanted, group) if wanted else None


class SubscriptionEventCallbacks(_EventCallbacks):
    """Keywords: deadline, incompatible_qos, liveliness, message_lost, matched, use_default_callbacks."""

    _kinds = READER_EVENTS
    _partner = "publisher"


class PublisherEventCallbacks(_EventCallbacks):
    """Keywords: deadline, incompatible_qos, liveliness, matched, use_default_callbacks."""

    _kinds = WRITER_EVENTS
    _partner = "subscription"
