"""DDS endpoints as ROS 2 makes them with Cyclone: a participant, topics by ROS type, readers, writers, wait sets."""

from __future__ import annotations

import ctypes as ct
import os
import threading
from collections.abc import Mapping
from typing import Any

from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.qos import Policy, Qos, _CQos

from dr_embedded import cyclone
from dr_embedded.descriptor import descriptor
from dr_embedded.network import NetworkRefused, internet_sockets, keep_on_loopback, loopback_only

# Nothing leaves the machine. Big fragments, buffers and watermarks keep several camera streams whole; a lost
# fragment of a reliable one is asked for again after 10 ms instead of 100.
LOOPBACK = """<CycloneDDS><Domain Id="any">
<General><AllowMulticast>false</AllowMulticast><MaxMessageSize>65500B</MaxMessageSize>
<FragmentSize>60000B</FragmentSize>
<Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>99</MaxAutoParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers></Discovery>
<Internal><SocketReceiveBufferSize min="default" max="8MB"/><NackDelay>10 ms</NackDelay>
<Watermarks><WhcHigh>8MB</WhcHigh><WhcLow>1MB</WhcLow><WhcHighInit>8MB</WhcHighInit></Watermarks></Internal>
</Domain></CycloneDDS>"""

_lock = threading.RLock()
_domains: dict[int, tuple[Domain, int]] = {}  # the domain and how many participants use it


def _local_domain(domain_id: int) -> Domain:
    """A domain whose sockets neither send nor receive beyond the loopback interface."""
    before = set(internet_sockets())
    made = Domain(domain_id, LOOPBACK)
    try:
        keep_on_loopback(set(internet_sockets()) - before)
    except NetworkRefused:
        cyclone.release(made._ref)
        raise
    return made


class Participant:
    """One process-wide view of a domain; owns every endpoint made through it.

    The enclave is only told to others: there is no security here.

    Raises:
        NetworkRefused: the environment asks for another network than loopback, and DR_NETWORK does not.
    """

    def __init__(self, domain_id: int, enclave: str = "/") -> None:
        self.domain_id = domain_id
        self._own_domain = loopback_only(os.environ)
        with _lock:
            if self._own_domain:
                domain, users = _domains.get(domain_id, (None, 0))
                _domains[domain_id] = (domain or _local_domain(domain_id), users + 1)
            self.dds = DomainParticipant(domain_id, Qos(Policy.Userdata(f"enclave={enclave};".encode())))
        self.entity: int = self.dds._ref
        self.guid = cyclone.guid_of(self.entity)

    def close(self) -> None:
        """Delete the participant with all endpoints; the domain goes with its last participant."""
        with _lock:
            cyclone.release(self.entity)
            if self._own_domain:
                domain, users = _domains.pop(self.domain_id)
                if users > 1:
                    _domains[self.domain_id] = (domain, users - 1)
                else:
                    cyclone.release(domain._ref)

    def _endpoint(self, function: str, topic: str, type_name: str, qos: Qos) -> int:
        described = ct.byref(descriptor(type_name))
        topic_entity = cyclone.call("dds_create_topic", self.entity, described, topic.encode(), None, None)
        native_qos = _CQos.qos_to_cqos(qos)
        try:
            return cyclone.call(function, self.entity, topic_entity, native_qos, None)
        finally:
            _CQos.cqos_destroy(native_qos)
            cyclone.release(topic_entity)  # the endpoint keeps what it needs

    def reader(self, topic: str, type_name: str, qos: Qos) -> int:
        """A reader of DDS topic `topic` for ROS type `type_name`; returns its handle."""
        return self._endpoint("dds_create_reader", topic, type_name, qos)

    def writer(self, topic: str, type_name: str, qos: Qos) -> int:
        """A writer on DDS topic `topic` for ROS type `type_name`; returns its handle."""
        return self._endpoint("dds_create_writer", topic, type_name, qos)


class GuardCondition:
    """A flag that wakes wait sets."""

    def __init__(self, participant: Participant) -> None:
        self.entity = cyclone.call("dds_create_guardcondition", participant.entity)

    def trigger(self) -> None:
        cyclone.call("dds_set_guardcondition", self.entity, True)

    def clear(self) -> bool:
        """Reset the flag; returns whether it was set."""
        was = ct.c_bool()
        cyclone.call("dds_take_guardcondition", self.entity, ct.byref(was))
        return was.value

    def close(self) -> None:
        cyclone.release(self.entity)


class WaitSet:
    """Waits for any of the attached conditions; attaching one twice is fine."""

    def __init__(self, participant: Participant) -> None:
        self.entity = cyclone.call("dds_create_waitset", participant.entity)
        self._attached: set[int] = set()
        self._asked: tuple[object, tuple[int, ...]] = (None, ())
        self._ready: Any = (ct.c_int64 * 1)()

    def attach_exactly(self, conditions: Mapping[int, Any], *more: int) -> None:
        """Wait for these conditions (keys) and no others from now on; those deleted meanwhile are left out.

        The mapping must not change as long as it is passed again: then there is nothing to do.
        """
        if self._asked[0] is conditions and self._asked[1] == more:
            return
        self._asked = (conditions, more)
        wanted = {*conditions, *more}
        for condition in self._attached - wanted:
            cyclone.try_call("dds_waitset_detach", self.entity, condition)
        new = wanted - self._attached
        attached = {one for one in new if cyclone.try_call("dds_waitset_attach", self.entity, one, one) >= 0}
        self._attached = (self._attached & wanted) | attached
        self._ready = (ct.c_int64 * max(len(self._attached), 1))()

    def wait(self, timeout_ns: int) -> list[int]:
        """The conditions that are set; empty after `timeout_ns`."""
        ready = self._ready
        room = len(ready)
        count = cyclone.call("dds_waitset_wait", self.entity, ready, room, timeout_ns)
        return ready[: min(count, room)]

    def close(self) -> None:
        cyclone.release(self.entity)
