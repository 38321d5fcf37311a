"""Who is in the system: nodes from `ros_discovery_info`, endpoints from DDS discovery.

Nothing listens in the background: an executor takes over what has arrived when it arrives (``Graph.follow``), and so
do questions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from cyclonedds.builtin import (
    BuiltinDataReader,
    BuiltinTopicDcpsParticipant,
    BuiltinTopicDcpsPublication,
    BuiltinTopicDcpsSubscription,
)
from cyclonedds.builtin_types import cqos_to_qos
from cyclonedds.core import InstanceState
from cyclonedds.qos import Policy, Qos

from dr_embedded import cyclone
from dr_embedded.message import deserialize, message_class, serialize
from dr_embedded.wire import Participant

TOPIC = "ros_discovery_info"
INFO_TYPE = "rmw_dds_common/msg/ParticipantEntitiesInfo"
INFINITE_NS = 2**63 - 1
AT_ONCE = 100
GID = slice(4, 20)  # of the participant, in ros_discovery_info: the first field behind the header of CDR


@dataclass(frozen=True)
class Endpoint:
    """A reader or writer as discovery tells it; names and types are those of DDS."""

    gid: bytes
    topic: str
    type_name: str
    qos: Qos
    node: tuple[str, str]  # (name, namespace)

    @property
    def user_data(self) -> dict[str, str]:
        """The `key=value;` pairs that ROS 2 attaches."""
        return parse_user_data(self.qos)


def parse_user_data(qos: Qos) -> dict[str, str]:
    policy = qos[Policy.Userdata]
    text = policy.data.decode("utf-8", "replace") if policy else ""
    return dict(pair.split("=", 1) for pair in text.split(";") if "=" in pair)


UNKNOWN_NODE = ("_NODE_NAME_UNKNOWN_", "_NODE_NAMESPACE_UNKNOWN_")


@dataclass(frozen=True)
class _Discovered:
    """A reader or writer as DDS announces it."""

    gid: bytes
    topic: str
    type_name: str
    qos: Qos


class _Discovery:
    """Follows one of DDS's own topics: participants with their enclaves, or endpoints.

    Each sample is taken once, and QoS objects are made once for each, since that takes a fifth of a millisecond.
    """

    def __init__(self, participant: Participant, topic: Any) -> None:
        self._reader = BuiltinDataReader(participant.dds, topic)
        # What the wheel calls for each sample, while the C structure of its QoS lives.
        self._reader._cqos_conv = lambda qos: qos
        constructor: Any = self._participant if topic is BuiltinTopicDcpsParticipant else self._endpoint
        self._reader._constructor = constructor
        self._alive: dict[bytes, _Discovered | str] = {}

    def alive(self) -> dict[bytes, Any]:
        """All that are alive, by GID."""
        while len(self._reader.take(N=AT_ONCE)) == AT_ONCE:
            pass
        return self._alive

    def _participant(self, gid: bytes, qos: Any, info: Any) -> bool:
        return self._note(bytes(gid), info, lambda: parse_user_data(cqos_to_qos(qos)).get("enclave", "/"))

    def _endpoint(
        self, gid: bytes, participant: bytes, handle: int, topic: str, kind: str, qos: Any, info: Any, type_id: Any
    ) -> bool:
        return self._note(bytes(gid), info, lambda: _Discovered(bytes(gid), topic, kind, cqos_to_qos(qos)))

    def _note(self, gid: bytes, info: Any, make: Callable[[], _Discovered | str]) -> bool:
        if info.instance_state != InstanceState.Alive:
            self._alive.pop(gid, None)
        elif info.valid_data:
            self._alive[gid] = make()
        return True


class Graph:
    """Announces the nodes of this process and answers questions about all nodes."""

    def __init__(self, participant: Participant) -> None:
        self._participant = participant
        self._lock = threading.RLock()
        self._local: dict[tuple[str, str], tuple[set[bytes], set[bytes]]] = {}  # readers and writers per node
        self._infos: dict[bytes, Any] = {}  # by GID of the participant: the message, its bytes until somebody asks
        common = [
            Policy.Reliability.Reliable(INFINITE_NS),
            Policy.Durability.TransientLocal,
            Policy.DataRepresentation(use_cdrv0_representation=True),
        ]
        last = Policy.History.KeepLast(1)
        service = Policy.DurabilityService(0, last, -1, -1, -1)
        lifecycle = Policy.WriterDataLifecycle(autodispose=False)
        self._writer = participant.writer(TOPIC, INFO_TYPE, Qos(*common, last, service, lifecycle))
        self._reader = participant.reader(TOPIC, INFO_TYPE, Qos(*common, Policy.History.KeepAll))
        self._sertype = cyclone.sertype_of(self._writer)
        self.condition = cyclone.call("dds_create_readcondition", self._reader, cyclone.ANY_STATE)
        """Set while there is something to follow."""
        self._discoveries: dict[int, _Discovery] = {}

    def change(
        self,
        node: tuple[str, str],
        *,
        readers: Set[bytes] = frozenset(),
        writers: Set[bytes] = frozenset(),
        gone: bool = False,
    ) -> None:
        """Add the endpoints with these GIDs to (name, namespace), or with `gone` take them away; then announce."""
        with self._lock:
            known_readers, known_writers = self._local.setdefault(node, (set(), set()))
            if gone:
                known_readers -= readers
                known_writers -= writers
            else:
                known_readers |= readers
                known_writers |= writers
            self._announce()

    def remove_node(self, node: tuple[str, str]) -> None:
        with self._lock:
            self._local.pop(node, None)
            self._announce()

    def _announce(self) -> None:
        gid, entities = message_class("rmw_dds_common/msg/Gid"), message_class("rmw_dds_common/msg/NodeEntitiesInfo")

        def gids(raw: set[bytes]) -> list[Any]:
            return [gid(data=np.frombuffer(one, np.uint8)) for one in sorted(raw)]

        info = message_class(INFO_TYPE)(gid=gid(data=np.frombuffer(self._participant.guid, np.uint8)))
        info.node_entities_info_seq = [
            entities(
                node_name=name, node_namespace=namespace, reader_gid_seq=gids(readers), writer_gid_seq=gids(writers)
            )
            for (name, namespace), (readers, writers) in self._local.items()
        ]
        cyclone.write(self._writer, self._sertype, serialize(info))

    def _discovered(self, topic: Any) -> dict[bytes, Any]:
        key = topic._ref
        if key not in self._discoveries:
            self._discoveries[key] = _Discovery(self._participant, topic)
        return self._discoveries[key].alive()

    def count(self, topic: str, *, writers: bool) -> int:
        """How many writers, or readers, a topic has."""
        with self._lock:
            found = self._discovered(BuiltinTopicDcpsPublication if writers else BuiltinTopicDcpsSubscription)
            return sum(one.topic == topic for one in found.values())

    def follow(self) -> None:
        """Take over what has arrived. It would pile up in a process that asks nothing while others come and go."""
        with self._lock:
            while (sample := cyclone.take(self._reader)) is not None:
                self._infos[sample[0][GID]] = sample[0]
            alive = self._discovered(BuiltinTopicDcpsParticipant)
            # Humble sends 24 bytes, of which the first 16 are the GUID; they arrive as 16 here or not at all.
            self._infos = {gid: info for gid, info in self._infos.items() if gid in alive}
            for discovery in self._discoveries.values():
                discovery.alive()

    def _alive_infos(self) -> list[Any]:
        with self._lock:
            self.follow()
            for gid, info in self._infos.items():
                if isinstance(info, bytes):
                    self._infos[gid] = deserialize(info, message_class(INFO_TYPE))
            return list(self._infos.values())

    def nodes(self) -> list[tuple[str, str]]:
        """(name, namespace) of every node, this process's included."""
        return [
            (node.node_name, node.node_namespace)
            for info in self._alive_infos()
            for node in info.node_entities_info_seq
        ]

    def nodes_with_enclaves(self) -> list[tuple[str, str, str]]:
        """(name, namespace, enclave) of every node; nobody proves an enclave to this layer."""
        infos = self._alive_infos()
        with self._lock:
            enclaves = self._discovered(BuiltinTopicDcpsParticipant)
            return [
                (node.node_name, node.node_namespace, enclaves.get(info.gid.data.tobytes(), "/"))
                for info in infos
                for node in info.node_entities_info_seq
            ]

    def endpoints(self, *, writers: bool) -> Iterator[Endpoint]:
        """All writers, or all readers, of all topics."""
        owners = {}
        for info in self._alive_infos():
            for node in info.node_entities_info_seq:
                for gid in node.writer_gid_seq if writers else node.reader_gid_seq:
                    owners[gid.data.tobytes()] = (node.node_name, node.node_namespace)
        with self._lock:
            kind = BuiltinTopicDcpsPublication if writers else BuiltinTopicDcpsSubscription
            found = list(self._discovered(kind).values())
        for one in found:
            yield Endpoint(one.gid, one.topic, one.type_name, one.qos, owners.get(one.gid, UNKNOWN_NODE))
