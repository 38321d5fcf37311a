"""The stand-in stays on the loopback interface: read from the sockets that a running node really has."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import EMBEDDED, HERE, STACK, TIMEOUT_S

if STACK != "embedded":
    pytest.skip("a real ROS 2 chooses its own network", allow_module_level=True)

from dr_embedded.network import NetworkRefused, loopback_only

NETWORK = "10.99.7"
INTERFACES = """<CycloneDDS><Domain Id="any"><General><AllowMulticast>spdp</AllowMulticast>
<Interfaces><NetworkInterface name="{0}"/></Interfaces></General></Domain></CycloneDDS>"""
OWN = ("CYCLONEDDS_URI", "DR_NETWORK", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_STATIC_PEERS", "ROS_LOCALHOST_ONLY")
LIBC = ctypes.CDLL(None, use_errno=True)
PIDFD_GETFD = 438  # the number of this system call; Python has no name for it
KNOCK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.settimeout(2.0)
    one.connect((sys.argv[1], int(sys.argv[2])))
    one.send(b"RTPS")
    try:
        one.recv(1)
    except TimeoutError:
        print("taken")
    except ConnectionRefusedError:
        print("refused")
"""
"""One datagram: the kernel of the other side answers for a port on which nobody listens."""
LISTEN = """
import sys
import dr_embedded
dr_embedded.activate()
import rclpy
from std_msgs.msg import String
rclpy.init(args=[])
node = rclpy.create_node(sys.argv[1])
publisher = node.create_publisher(String, "word", 10)
node.create_subscription(String, "word", lambda m: print("heard", m.data, flush=True), 10)
node.create_timer(0.1, lambda: publisher.publish(String(data=sys.argv[1])))
print("ready", flush=True)
rclpy.spin(node)
"""


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in OWN}
    return {**clean, "PYTHONPATH": str(EMBEDDED), **variables}


class Talker:
    """A node that tells its name and prints what it hears, started with `prefix` before its command."""

    def __init__(self, name: str, folder: Path, *prefix: str, **variables: str) -> None:
        self._output = folder / f"{name}.out"
        command = [*prefix, sys.executable, "-c", LISTEN, name]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment(**variables)
            )

    def wait_for(self, text: str) -> str:
        end = time.monotonic() + 4 * TIMEOUT_S
        while text not in (said := self._output.read_text()):
            assert self.process.poll() is None, f"it ended: {said}"
            assert time.monotonic() < end, f"no {text!r} in {said!r}"
            time.sleep(0.05)
        return said

    def said(self) -> str:
        return self._output.read_text()


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[Callable[..., Talker]]:
    started: list[Talker] = []

    def start(name: str, *prefix: str, **variables: str) -> Talker:
        started.append(Talker(name, tmp_path, *prefix, **variables))
        return started[-1]

    yield start
    for one in started:
        one.process.send_signal(signal.SIGKILL)
        one.process.wait(TIMEOUT_S)


def sockets(pid: int) -> list[tuple[str, int, str]]:
    """Address, port and device that each IP socket of a child process is bound to; an empty device is any."""
    found = []
    handle = os.pidfd_open(pid)
    for name in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            continue
        copy = LIBC.syscall(PIDFD_GETFD, handle, int(name), 0)
        assert copy >= 0, os.strerror(ctypes.get_errno())
        with socket.socket(fileno=copy) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                device = one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()
                found.append((*one.getsockname()[:2], device))
    os.close(handle)
    return found


def is_local(bound: tuple[str, int, str]) -> bool:
    return ipaddress.ip_address(bound[0]).is_loopback or bound[2] == "lo"


def address(hexadecimal: str) -> str:
    """Of /proc/net, in the byte order of the machine, little-endian here."""
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(hexadecimal)))


def groups(pid: int) -> set[str]:
    """IPv4 multicast groups joined in the network namespace of a process, but for the one of every machine."""
    found = re.findall(r"^\t+([0-9A-F]{8}) ", Path(f"/proc/{pid}/net/igmp").read_text(), re.MULTILINE)
    return {address(one) for one in found} - {"224.0.0.1"}


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, and nothing else; their names."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    names = [f"dr{os.getpid()}{end}" for end in "ab"]
    made = []
    try:
        for name in names:
            added = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if added.returncode != 0:
                pytest.skip(f"no network namespaces here: {added.stderr.strip()}")
            made.append(name)
        cable = ["ip", "-n", names[0], "link", "add", "va", "type", "veth", "peer", "name", "vb", "netns", names[1]]
        if (added := subprocess.run(cable, capture_output=True, text=True)).returncode != 0:
            pytest.skip(f"no veth pairs here: {added.stderr.strip()}")
        for number, (name, device) in enumerate(zip(names, ("va", "vb"), strict=True), 1):
            setting = [["addr", "add", f"{NETWORK}.{number}/24", "dev", device]]
            setting += [["link", "set", one, "up", "multicast", "on"] for one in ("lo", device)]
            for words in setting:
                subprocess.run(["ip", "-n", name, *words], check=True)
        yield names
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=True)


def knock(space: str, port: int) -> str:
    """What becomes of a datagram from this network namespace to the first one: "taken" or "refused"."""
    command = ["ip", "netns", "exec", space, sys.executable, "-c", KNOCK, f"{NETWORK}.1", str(port)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout.strip()


def test_sockets_are_loopback_only(talker: Callable[..., Talker]) -> None:
    node = talker("alone")
    node.wait_for("heard alone")
    bound = sockets(node.process.pid)
    assert len(bound) >= 3 and all(map(is_local, bound)), bound


def test_without_the_flag_nothing_goes_through_the_cable(talker: Callable[..., Talker], spaces: list[str]) -> None:
    first, second = (talker(name, "ip", "netns", "exec", name) for name in spaces)
    for node, name in ((first, spaces[0]), (second, spaces[1])):
        node.wait_for(f"heard {name}")
        assert groups(node.process.pid) == set(), "a multicast group was joined"
    bound = sockets(first.process.pid)
    assert len(bound) >= 3 and all(map(is_local, bound)), bound
    assert {knock(spaces[1], port) for address, port, _ in bound if address == "0.0.0.0"} == {"refused"}
    assert f"heard {spaces[1]}" not in first.said() and f"heard {spaces[0]}" not in second.said()


def test_with_the_flag_the_configured_interface_is_used(talker: Callable[..., Talker], spaces: list[str]) -> None:
    uris = [INTERFACES.format(device) for device in ("va", "vb")]
    first, second = (
        talker(name, "ip", "netns", "exec", name, DR_NETWORK="configured", CYCLONEDDS_URI=uri)
        for name, uri in zip(spaces, uris, strict=True)
    )
    first.wait_for(f"heard {spaces[1]}")
    second.wait_for(f"heard {spaces[0]}")
    bound = sockets(first.process.pid)
    assert any(address == f"{NETWORK}.1" for address, _, _ in bound), bound
    assert "taken" in {knock(spaces[1], port) for address, port, _ in bound if address == "0.0.0.0"}
    assert groups(first.process.pid) == {"239.255.0.1"}, "the group of DDS discovery"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CYCLONEDDS_URI": INTERFACES.format("eth0")}, "CYCLONEDDS_URI: expected nothing that leaves the loopback"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}, "found 'SUBNET'"),
        ({"ROS_STATIC_PEERS": "127.0.0.1;192.0.2.7"}, "found '127.0.0.1;192.0.2.7'"),
        ({"DR_NETWORK": "configured"}, "expected a configuration in CYCLONEDDS_URI"),
    ],
)
def test_a_node_refuses_to_bind_elsewhere(variables: dict[str, str], words: str) -> None:
    command = [sys.executable, str(HERE / "peers.py"), "plain"]
    result = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=4 * TIMEOUT_S
    )
    assert result.returncode != 0 and "name=" not in result.stdout, result.stdout
    assert words in result.stderr.splitlines()[-1], result.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"CYCLONEDDS_URI": "", "DR_NETWORK": ""},
        {"DR_NETWORK": "loopback", "ROS_LOCALHOST_ONLY": "1"},
        {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": "127.0.0.1; localhost;::1"},
    ],
)
def test_loopback_needs_no_flag(variables: dict[str, str]) -> None:
    assert loopback_only(variables)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"CYCLONEDDS_URI": "file:///here.xml"}, "CYCLONEDDS_URI"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "SYSTEM_DEFAULT"}, "ROS_AUTOMATIC_DISCOVERY_RANGE"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, "ROS_AUTOMATIC_DISCOVERY_RANGE"),
        ({"ROS_STATIC_PEERS": "robot.example"}, "ROS_STATIC_PEERS"),
        ({"ROS_STATIC_PEERS": "0.0.0.0"}, "ROS_STATIC_PEERS"),
        ({"ROS_LOCALHOST_ONLY": "0"}, "ROS_LOCALHOST_ONLY"),
        ({"DR_NETWORK": "yes"}, "DR_NETWORK"),
        ({"ROS_SECURITY_ENABLE": "true"}, "the stand-in has no security"),
        ({"DR_NETWORK": "configured", "CYCLONEDDS_URI": "x", "ROS_LOCALHOST_ONLY": "1"}, "ROS_LOCALHOST_ONLY"),
    ],
)
def test_contradictions_are_refused_by_name(variables: dict[str, str], name: str) -> None:
    with pytest.raises(NetworkRefused, match=name):
        loopback_only(variables)


def test_the_flag_allows_what_is_configured() -> None:
    assert not loopback_only({"DR_NETWORK": "configured", "CYCLONEDDS_URI": "file:///here.xml"})


def test_a_node_tells_its_enclave(start_peer: Callable[..., object], node: Any, spin_until: Any) -> None:
    start_peer("plain", "--ros-args", "--enclave", "/evaluated/agent", "-r", "__node:=wary")

    def found() -> list[str]:
        return [enclave for name, _, enclave in node.get_node_names_and_namespaces_with_enclaves() if name == "wary"]

    assert spin_until(found, node) and found() == ["/evaluated/agent"]
    assert ("tester", "/", "/") in node.get_node_names_and_namespaces_with_enclaves()


def test_a_wrong_enclave_is_refused() -> None:
    from dr_embedded.arguments import parse
    from rclpy.exceptions import UnknownROSArgsError

    assert parse(["--ros-args", "-e", "/a/b"]).enclave == "/a/b"
    for wrong in ("relative", "/a/", ""):
        with pytest.raises(UnknownROSArgsError, match="enclave"):
            parse(["--ros-args", "--enclave", wrong])
