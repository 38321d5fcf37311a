"""Quality of service: policies, profiles, presets, and their translation to Cyclone DDS."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

from cyclonedds.qos import Policy, Qos

from dr_embedded.ros.duration import Duration, Infinite


class QoSPolicyKind(IntEnum):
    INVALID = 1 << 0
    DURABILITY = 1 << 1
    DEADLINE = 1 << 2
    LIVELINESS = 1 << 3
    RELIABILITY = 1 << 4
    HISTORY = 1 << 5
    LIFESPAN = 1 << 6
    DEPTH = 1 << 7
    LIVELINESS_LEASE_DURATION = 1 << 8
    AVOID_ROS_NAMESPACE_CONVENTIONS = 1 << 9


def qos_policy_name_from_kind(policy_kind: QoSPolicyKind | int) -> str:
    return QoSPolicyKind(policy_kind).name


class InvalidQoSProfileException(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__("Invalid QoSProfile", *args)


class QoSPolicyEnum(IntEnum):
    @classmethod
    def short_keys(cls) -> list[str]:
        return [name.lower() for name in cls.__members__]

    @classmethod
    def get_from_short_key(cls, name: str) -> int:
        return cls[name.upper()].value

    @property
    def short_key(self) -> str:
        return self.name.lower()


class HistoryPolicy(QoSPolicyEnum):
    SYSTEM_DEFAULT = 0
    KEEP_LAST = 1
    KEEP_ALL = 2
    UNKNOWN = 3


class ReliabilityPolicy(QoSPolicyEnum):
    SYSTEM_DEFAULT = 0
    RELIABLE = 1
    BEST_EFFORT = 2
    UNKNOWN = 3
    BEST_AVAILABLE = 4


class DurabilityPolicy(QoSPolicyEnum):
    SYSTEM_DEFAULT = 0
    TRANSIENT_LOCAL = 1
    VOLATILE = 2
    UNKNOWN = 3
    BEST_AVAILABLE = 4


class LivelinessPolicy(QoSPolicyEnum):
    SYSTEM_DEFAULT = 0
    AUTOMATIC = 1
    MANUAL_BY_TOPIC = 3
    UNKNOWN = 4
    BEST_AVAILABLE = 5


QoSHistoryPolicy = HistoryPolicy
QoSReliabilityPolicy = ReliabilityPolicy
QoSDurabilityPolicy = DurabilityPolicy
QoSLivelinessPolicy = LivelinessPolicy

_DEFAULTS: dict[str, Any] = {
    "history": HistoryPolicy.KEEP_LAST,
    "depth": 10,
    "reliability": ReliabilityPolicy.RELIABLE,
    "durability": DurabilityPolicy.VOLATILE,
    "lifespan": Duration(),  # zero: not specified, which means infinite
    "deadline": Duration(),
    "liveliness": LivelinessPolicy.SYSTEM_DEFAULT,
    "liveliness_lease_duration": Duration(),
    "avoid_ros_namespace_conventions": False,
}


class QoSProfile:
    """The policies of one endpoint; `history` and/or `depth` must be given."""

    history: HistoryPolicy
    depth: int
    reliability: ReliabilityPolicy
    durability: DurabilityPolicy
    lifespan: Duration
    deadline: Duration
    liveliness: LivelinessPolicy
    liveliness_lease_duration: Duration
    avoid_ros_namespace_conventions: bool

    __slots__ = tuple(f"_{name}" for name in _DEFAULTS)

    def __init__(self, **kwargs: Any) -> None:
        if unknown := kwargs.keys() - _DEFAULTS.keys():
            raise AssertionError(f"Invalid arguments passed to constructor: {sorted(unknown)}")
        if "history" not in kwargs and "depth" not in kwargs:
            raise InvalidQoSProfileException("History and/or depth settings are required.")
        if kwargs.get("history") == HistoryPolicy.KEEP_LAST and "depth" not in kwargs:
            raise InvalidQoSProfileException("History set to KEEP_LAST without a depth setting.")
        for name, default in _DEFAULTS.items():
            setattr(self, name, kwargs.get(name, default))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QoSProfile) and all(getattr(self, s) == getattr(other, s) for s in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"QoSProfile({', '.join(f'{name}={getattr(self, name)}' for name in _DEFAULTS)})"

    __repr__ = __str__

    def get_c_qos_profile(self) -> None:
        raise NotImplementedError("dr_embedded: QoSProfile.get_c_qos_profile")


def _policy(name: str, default: Any) -> property:
    kind = type(default)
    accepted = (kind, int) if isinstance(default, QoSPolicyEnum) else (kind,)

    def write(self: QoSProfile, value: Any) -> None:
        if not isinstance(value, accepted):
            raise AssertionError(f"QoSProfile.{name} must be a {kind.__name__}, not {value!r}")
        setattr(self, f"_{name}", kind(value) if isinstance(default, QoSPolicyEnum) else value)

    return property(lambda self: getattr(self, f"_{name}"), write)


for _name, _default in _DEFAULTS.items():
    setattr(QoSProfile, _name, _policy(_name, _default))

_best_effort, _local = ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.TRANSIENT_LOCAL
qos_profile_default = QoSProfile(depth=10)
qos_profile_unknown = QoSProfile(
    history=HistoryPolicy.UNKNOWN,
    depth=0,
    reliability=ReliabilityPolicy.UNKNOWN,
    durability=DurabilityPolicy.UNKNOWN,
    liveliness=LivelinessPolicy.UNKNOWN,
)
qos_profile_system_default = QoSProfile(
    history=HistoryPolicy.SYSTEM_DEFAULT,
    depth=0,
    reliability=ReliabilityPolicy.SYSTEM_DEFAULT,
    durability=DurabilityPolicy.SYSTEM_DEFAULT,
)
qos_profile_sensor_data = QoSProfile(depth=5, reliability=_best_effort)
qos_profile_services_default = QoSProfile(depth=10)
qos_profile_parameters = QoSProfile(depth=1000)
qos_profile_parameter_events = QoSProfile(depth=1000)
qos_profile_action_status_default = QoSProfile(depth=1, durability=_local)
qos_profile_rosout_default = QoSProfile(depth=1000, durability=_local, lifespan=Duration(seconds=10))


class QoSPresetProfiles(Enum):
    UNKNOWN = qos_profile_unknown
    DEFAULT = qos_profile_default
    SYSTEM_DEFAULT = qos_profile_system_default
    SENSOR_DATA = qos_profile_sensor_data
    SERVICES_DEFAULT = qos_profile_services_default
    PARAMETERS = qos_profile_parameters
    PARAMETER_EVENTS = qos_profile_parameter_events
    ACTION_STATUS_DEFAULT = qos_profile_action_status_default

    @classmethod
    def short_keys(cls) -> list[str]:
        return [name.lower() for name in cls.__members__]

    @classmethod
    def get_from_short_key(cls, name: str) -> QoSProfile:
        return cls[name.upper()].value


def as_profile(qos: QoSProfile | int) -> QoSProfile:
    """A depth stands for the default profile with this depth.

    Raises:
        TypeError: neither a profile nor a depth.
        ValueError: a negative depth.
    """
    if isinstance(qos, QoSProfile):
        return qos
    if not isinstance(qos, int):
        raise TypeError(f"Expected QoSProfile or int, but received {type(qos)!r}")
    if qos < 0:
        raise ValueError("history depth must be greater than or equal to zero")
    return QoSProfile(depth=qos)


def _span(duration: Duration) -> int:
    return duration.nanoseconds or Infinite.nanoseconds


def to_dds(profile: QoSProfile, user_data: str, *, writer: bool) -> Qos:
    """The DDS policies of an endpoint with this profile, as rmw_cyclonedds chooses them."""
    for policy in (profile.reliability, profile.durability, profile.liveliness):
        if policy.name == "BEST_AVAILABLE":
            raise NotImplementedError(f"dr_embedded: {type(policy).__name__}.BEST_AVAILABLE")
        if policy.name == "UNKNOWN":
            raise InvalidQoSProfileException(f"{type(policy).__name__}.UNKNOWN is no setting")
    keep_all = profile.history == HistoryPolicy.KEEP_ALL
    history = Policy.History.KeepAll if keep_all else Policy.History.KeepLast(profile.depth or 1)
    best_effort = profile.reliability == ReliabilityPolicy.BEST_EFFORT
    local = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    manual = profile.liveliness == LivelinessPolicy.MANUAL_BY_TOPIC
    liveliness = Policy.Liveliness.ManualByTopic if manual else Policy.Liveliness.Automatic
    policies: list[Any] = [
        history,
        Policy.Reliability.BestEffort if best_effort else Policy.Reliability.Reliable(Infinite.nanoseconds),
        Policy.Durability.TransientLocal if local else Policy.Durability.Volatile,
        Policy.Deadline(_span(profile.deadline)),
        liveliness(_span(profile.liveliness_lease_duration)),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.Userdata(user_data.encode()),
    ]
    if writer:
        policies += [Policy.Lifespan(_span(profile.lifespan)), Policy.WriterDataLifecycle(autodispose=False)]
        if local:
            policies.append(Policy.DurabilityService(0, history, -1, -1, -1))
    return Qos(*policies)


def from_dds(qos: Qos) -> QoSProfile:
    """What discovery tells about an endpoint; history and depth are not part of it."""
    reliable = isinstance(qos[Policy.Reliability], Policy.Reliability.Reliable)
    local = qos[Policy.Durability] == Policy.Durability.TransientLocal
    liveliness, lifespan = qos[Policy.Liveliness], qos[Policy.Lifespan]
    manual = isinstance(liveliness, Policy.Liveliness.ManualByTopic)
    return QoSProfile(
        history=HistoryPolicy.UNKNOWN,
        depth=0,
        reliability=ReliabilityPolicy.RELIABLE if reliable else _best_effort,
        durability=_local if local else DurabilityPolicy.VOLATILE,
        lifespan=Duration(nanoseconds=lifespan.lifespan) if lifespan else Infinite,
        deadline=Duration(nanoseconds=qos[Policy.Deadline].deadline) if qos[Policy.Deadline] else Infinite,
        liveliness=LivelinessPolicy.MANUAL_BY_TOPIC if manual else LivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(nanoseconds=liveliness.lease_duration) if liveliness else Infinite,
    )


class QoSCompatibility(IntEnum):
    OK = 0
    WARNING = 1
    ERROR = 2


def qos_check_compatible(publisher_qos: QoSProfile, subscription_qos: QoSProfile) -> tuple[QoSCompatibility, str]:
    """Whether a publisher's offer meets a subscription's request, and why not."""
    reasons = []
    if (publisher_qos.reliability, subscription_qos.reliability) == (_best_effort, ReliabilityPolicy.RELIABLE):
        reasons.append("ERROR: Best effort publisher and reliable subscription;")
    if publisher_qos.durability == DurabilityPolicy.VOLATILE and subscription_qos.durability == _local:
        reasons.append("ERROR: Volatile publisher and transient local subscription;")
    if _span(publisher_qos.deadline) > _span(subscription_qos.deadline):
        reasons.append("ERROR: Subscription deadline is less than publisher deadline;")
    manual = LivelinessPolicy.MANUAL_BY_TOPIC
    if publisher_qos.liveliness != manual and subscription_qos.liveliness == manual:
        reasons.append("ERROR: Publisher's liveliness is automatic and subscription's is manual by topic;")
    if _span(publisher_qos.liveliness_lease_duration) > _span(subscription_qos.liveliness_lease_duration):
        reasons.append("ERROR: Subscription liveliness lease duration is less than publisher;")
    return (QoSCompatibility.ERROR if reasons else QoSCompatibility.OK), "".join(reasons)
