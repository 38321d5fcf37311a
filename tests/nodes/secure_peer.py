"""A participant of Cyclone DDS with DDS-Security, through ctypes: no ROS, one number on one topic.

    secure_peer.py LIBRARY DOMAIN ENCLAVE_FOLDER|none write|read TOPIC FIRST_NUMBER

Prints "participant refused", "TOPIC refused", or "ready"; a reader prints the numbers that arrive; ends after 60 s.
`none` is a participant without security. The library has its plugins in a folder named after it, as Debian's has.
"""

from __future__ import annotations

import ctypes as ct
import sys
import time
from pathlib import Path

LOOPBACK = """<Domain Id="any"><General><AllowMulticast>false</AllowMulticast>
<Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain>"""
PLUGINS = {"auth": "authentication", "access": "access_control", "crypto": "crypto"}
DOCUMENTS = {
    "auth.identity_ca": "identity_ca.cert.pem",
    "auth.identity_certificate": "cert.pem",
    "auth.private_key": "key.pem",
    "access.permissions_ca": "permissions_ca.cert.pem",
    "access.governance": "governance.p7s",
    "access.permissions": "permissions.p7s",
}
OPERATIONS = (ct.c_uint32 * 3)(0x01030000, 0, 0)  # a number of four bytes at offset 0, and the end
LIFE_S, PERIOD_S = 60.0, 0.05
RELIABLE, TRANSIENT_LOCAL = 1, 1


class Descriptor(ct.Structure):
    """`dds_topic_descriptor_t`."""

    _fields_ = [
        *((name, ct.c_uint32) for name in ("size", "align", "flags", "keys_count")),
        ("typename", ct.c_char_p),
        ("keys", ct.c_void_p),
        ("operations_count", ct.c_uint32),
        ("operations", ct.c_void_p),
        ("meta", ct.c_char_p),
        ("others", ct.c_uint64 * 5),  # what XTypes would say
    ]


class Info(ct.Structure):
    """`dds_sample_info_t`, of which only the flag counts."""

    _fields_ = [("states", ct.c_uint32 * 3), ("valid", ct.c_bool), ("rest", ct.c_uint64 * 8)]


def main() -> None:
    library, domain, enclave, access, topic_name, first = sys.argv[1:]
    dds = ct.CDLL(library)
    dds.dds_create_qos.restype = ct.c_void_p
    dds.dds_create_domain(int(domain), LOOPBACK.encode())
    qos = ct.c_void_p(dds.dds_create_qos())
    if enclave != "none":
        plugins = Path(library).parent / "libddsc0debian"
        for plugin, function in PLUGINS.items():
            file = plugins / f"libdds_security_{'ac' if plugin == 'access' else plugin}.so"
            for name, value in (("path", file), ("init", f"init_{function}"), ("finalize", f"finalize_{function}")):
                dds.dds_qset_prop(qos, f"dds.sec.{plugin}.library.{name}".encode(), str(value).encode())
        for name, document in DOCUMENTS.items():
            dds.dds_qset_prop(qos, f"dds.sec.{name}".encode(), f"file:{enclave}/{document}".encode())
    participant = dds.dds_create_participant(int(domain), qos, None)
    if participant < 0:
        print("participant refused", flush=True)
        return
    described = Descriptor(4, 4, 0, 0, b"Number", None, 2, ct.addressof(OPERATIONS), b"")
    topic = dds.dds_create_topic(participant, ct.byref(described), topic_name.encode(), None, None)
    safe = ct.c_void_p(dds.dds_create_qos())
    dds.dds_qset_reliability(safe, RELIABLE, ct.c_int64(10**9))
    dds.dds_qset_durability(safe, TRANSIENT_LOCAL)
    create = dds.dds_create_writer if access == "write" else dds.dds_create_reader
    endpoint = create(participant, topic, safe, None) if topic >= 0 else topic
    if endpoint < 0:
        print(f"{topic_name} refused", flush=True)
        return
    print("ready", flush=True)
    number = ct.c_uint32(int(first))
    samples, info = (ct.c_void_p * 1)(ct.addressof(number)), Info()
    end_s = time.monotonic() + LIFE_S
    while time.monotonic() < end_s:
        if access == "write":
            dds.dds_write(endpoint, ct.byref(number))
            number.value += 1
        elif dds.dds_take(endpoint, samples, ct.byref(info), ct.c_size_t(1), 1) > 0 and info.valid:
            print("heard", number.value, flush=True)
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main()
