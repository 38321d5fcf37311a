"""One suite for both stacks: real rclpy where it is installed, else the embedded stand-in.

The tests use public rclpy API only. Each run has its own DDS domain, so that runs do not hear each other.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
EMBEDDED = HERE.parents[1] / "ros2_ws" / "src" / "dr_embedded"
TIMEOUT_S = 15.0

# Real message classes check assignments only when asked to (Jazzy).
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
# Ports of higher domains reach into the range of ephemeral ports.
os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 100))

if find_spec("rclpy") is None:
    if find_spec("dr_embedded") is None:
        sys.path.append(str(EMBEDDED))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(EMBEDDED)]))
    import dr_embedded

    STACK = dr_embedded.activate()
else:
    STACK = "real"


@pytest.fixture(scope="session")
def stack() -> str:
    """Either `real` or `embedded`."""
    return STACK


@pytest.fixture
def ros() -> Iterator[None]:
    """rclpy between init and shutdown."""
    import rclpy

    rclpy.init(args=[])
    yield
    rclpy.try_shutdown()


@pytest.fixture
def make_node(ros: None) -> Iterator[Callable[..., Any]]:
    """`make_node("name", …)`; all nodes are destroyed at the end."""
    from rclpy.node import Node

    made: list[Any] = []

    def make(name: str, kind: Any = Node, **options: Any) -> Any:
        made.append(kind(name, **options))
        return made[-1]

    yield make
    for node in made:
        node.destroy_node()


@pytest.fixture
def node(make_node: Callable[..., Any]) -> Any:
    return make_node("tester")


@pytest.fixture
def spin_until(ros: None) -> Iterator[Callable[..., bool]]:
    """`spin_until(condition, *nodes)` runs callbacks until the condition holds; returns whether it does in time."""
    from rclpy.executors import SingleThreadedExecutor

    executor = SingleThreadedExecutor()

    def spin(condition: Callable[[], Any], *nodes: Any, timeout_s: float = TIMEOUT_S) -> bool:
        end = time.monotonic() + timeout_s
        for one in nodes:
            executor.add_node(one)
        try:
            while not condition():
                if time.monotonic() > end:
                    return False
                executor.spin_once(timeout_sec=0.05)
            return True
        finally:
            for one in nodes:
                executor.remove_node(one)

    yield spin
    executor.shutdown()


class Peer:
    """Another process with nodes of peers.py."""

    def __init__(self, role: str, *arguments: str) -> None:
        command = [sys.executable, str(HERE / "peers.py"), role, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.lines: list[str] = []
        while "ready" not in self.lines:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"peer {role} ended: {self.lines}")
            self.lines.append(line.strip())

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; returns the exit status and everything that was printed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            rest, _ = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, "\n".join([*self.lines, rest])


@pytest.fixture
def start_peer() -> Iterator[Callable[..., Peer]]:
    """`start_peer("role", arguments…)`: returns once the peer is ready; stopped at the end."""
    started: list[Peer] = []

    def start(role: str, *arguments: str) -> Peer:
        started.append(Peer(role, *arguments))
        return started[-1]

    yield start
    for peer in started:
        peer.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def peer() -> Iterator[Peer]:
    """A process that stays: echo, services, parameters, and a lifecycle node (see peers.py)."""
    one = Peer("all")
    yield one
    one.stop(signal.SIGKILL)
