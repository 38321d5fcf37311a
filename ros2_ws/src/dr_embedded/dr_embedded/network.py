"""How far DDS reaches: this machine's loopback interface, unless DR_NETWORK asks for more.

DR_NETWORK=loopback (the default) refuses to start where a variable of ROS or of Cyclone asks for another reach, rather
than to ignore it. DR_NETWORK=configured leaves interfaces and peers to CYCLONEDDS_URI, and to nothing else.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping

CHOICES = ("loopback", "configured")
CLOSE = ("", "LOCALHOST")  # values of ROS_AUTOMATIC_DISCOVERY_RANGE that mean this machine; others ask for less or more


class NetworkRefused(RuntimeError):
    """The environment asks for another network than DR_NETWORK allows. One line, whatever a variable holds."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def loopback_only(environment: Mapping[str, str]) -> bool:
    """Whether DDS stays on the loopback interface; False: CYCLONEDDS_URI says where it goes.

    Raises:
        NetworkRefused: the variables contradict each other, ask for more than DR_NETWORK allows, or for security.
    """
    if environment.get("ROS_SECURITY_ENABLE") == "true":
        raise NetworkRefused(
            "ROS_SECURITY_ENABLE: expected false, as the stand-in has no security; found true; use ROS 2, or unset it"
        )
    wanted = environment.get("DR_NETWORK") or "loopback"
    if wanted not in CHOICES:
        raise NetworkRefused(f"DR_NETWORK: expected {' or '.join(CHOICES)}; found '{wanted}'; correct it or unset it")
    if wanted == "configured":
        _check_configured(environment)
        return False
    if asks := _asking_for_more(environment):
        raise NetworkRefused(
            f"{asks}: expected nothing that leaves the loopback interface; found '{environment[asks]}'; unset it, or "
            "set DR_NETWORK=configured and name interfaces and peers in CYCLONEDDS_URI"
        )
    return True


def _asking_for_more(environment: Mapping[str, str]) -> str:
    """The first variable that asks for something else than loopback; empty if none does."""
    peers = environment.get("ROS_STATIC_PEERS", "").replace(",", ";").split(";")
    asking = {
        "CYCLONEDDS_URI": bool(environment.get("CYCLONEDDS_URI")),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "") not in CLOSE,
        "ROS_STATIC_PEERS": not all(_is_loopback(peer.strip()) for peer in peers),
        "ROS_LOCALHOST_ONLY": environment.get("ROS_LOCALHOST_ONLY") == "0",
    }
    return next((name for name, asks in asking.items() if asks), "")


def _is_loopback(peer: str) -> bool:
    """An address of this machine; names are not looked up, as that would already send something."""
    if peer in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False


def internet_sockets() -> dict[int, str]:
    """The address that each IP socket of this process is bound to, by file descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:  # the directory's own descriptor, or one that another thread has closed meanwhile
            continue
        try:
            one = socket.socket(fileno=copy)
        except OSError:  # a file or a pipe
            os.close(copy)
            continue
        with one:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                found[int(name)] = str(one.getsockname()[0])
    return found


def keep_on_loopback(descriptors: set[int]) -> None:
    """Bind these sockets to the loopback device, unless their address is of it.

    Cyclone receives on the address of all interfaces even when it is told one; the kernel then drops what comes from
    elsewhere.

    Raises:
        NetworkRefused: the kernel does not do it (Linux before 5.7 asks for CAP_NET_RAW).
    """
    for descriptor, address in internet_sockets().items():
        if descriptor not in descriptors or ipaddress.ip_address(address).is_loopback:
            continue
        with socket.socket(fileno=os.dup(descriptor)) as one:
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            except OSError as error:
                raise NetworkRefused(
                    f"SO_BINDTODEVICE: expected sockets on the loopback device; found {error.strerror}; use Linux 5.7 "
                    "or later, or allow more with DR_NETWORK=configured and CYCLONEDDS_URI"
                ) from error


def _check_configured(environment: Mapping[str, str]) -> None:
    """Raises NetworkRefused: nothing is configured, or another variable insists on this machine."""
    if not environment.get("CYCLONEDDS_URI"):
        raise NetworkRefused(
            "DR_NETWORK=configured: expected a configuration in CYCLONEDDS_URI; found none; set it, or unset DR_NETWORK"
        )
    local = {
        "ROS_LOCALHOST_ONLY": environment.get("ROS_LOCALHOST_ONLY") == "1",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE") in ("LOCALHOST", "OFF"),
    }
    for name, insists in local.items():
        if insists:
            raise NetworkRefused(
                f"DR_NETWORK=configured: expected no variable that insists on this machine; found {name}="
                f"{environment[name]}; unset one of the two"
            )
