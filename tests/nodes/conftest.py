"""Nodes of dr_nodes in processes of their own, over DDS; the stack and its fixtures are those of the conformance suite.

The tests use public rclpy API only and so run on a real ROS 2 as well as on the embedded stand-in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.conftest import STACK, make_node, node, ros, spin_until

__all__ = ["make_node", "node", "ros", "spin_until"]

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = ROOT / "ros2_ws" / "src"
SOURCES = [ROOT, ROOT / "sim", ROOT / "calibration", WORKSPACE / "dr_nodes", WORKSPACE / "dr_embedded"]
# Generous, as the machine may be busy with something else.
TIMEOUT_S = 90.0

if find_spec("dr_nodes") is None:
    sys.path.append(str(WORKSPACE / "dr_nodes"))


class NodeProcess:
    """`ros2 run dr_nodes NAME` with parameters, in a namespace of its own.

    Args:
        name: of the module below dr_nodes that has the node's main().
        folder: for its parameter file and its output.
        parameters: by name.
        namespace: of the node, so that several of one kind can run.
        remaps: other topics or services, from → to.
    """

    def __init__(
        self, name: str, folder: Path, parameters: dict[str, Any], namespace: str, remaps: dict[str, str]
    ) -> None:
        self.name, self.namespace = name, namespace
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._output = folder / f"{name}_{number}.out"
        values = folder / f"{name}_{number}.yaml"
        values.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters or {"autostart": True}}}))
        if STACK == "embedded":
            command = [sys.executable, "-m", "dr_embedded.run", f"dr_nodes.{name}:main"]
        else:
            start = f"import sys; from dr_nodes.{name} import main; sys.exit(main())"
            command = [sys.executable, "-c", start]
        command += ["--ros-args", "--params-file", str(values), "-r", f"__ns:=/{namespace}"]
        for source, target in remaps.items():
            command += ["-r", f"{source}:={target}"]
        paths = [*map(str, SOURCES), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def topic(self, name: str) -> str:
        """The full name of one of the node's relative topics; of a private one or a service with `~/`."""
        return f"/{self.namespace}/{name.replace('~', self.name, 1)}"

    def output(self) -> str:
        """Everything it has printed so far."""
        return self._output.read_text()

    def wait_for(self, text: str, timeout_s: float = TIMEOUT_S) -> str:
        """Wait until it has printed `text`; returns its output."""
        end = time.monotonic() + timeout_s
        while text not in self.output():
            assert self.process.poll() is None or text in self.output(), f"it ended:\n{self.output()}"
            assert time.monotonic() < end, f"no {text!r} in:\n{self.output()}"
            time.sleep(0.05)
        return self.output()

    def stop(self, number: int = signal.SIGINT, timeout_s: float = TIMEOUT_S) -> int:
        """Send a signal; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


def starter(folder: Path) -> Iterator[Callable[..., NodeProcess]]:
    """The body of `start_node`, for fixtures of a wider scope."""
    started: list[NodeProcess] = []

    def start(name: str, *, namespace: str = "", remaps: dict[str, str] | None = None, **values: Any) -> NodeProcess:
        own = namespace or f"{name}_{time.monotonic_ns()}"
        started.append(NodeProcess(name, folder, values, own, remaps or {}))
        return started[-1]

    yield start
    for one in started:
        one.stop(signal.SIGKILL)


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """`start_node("camera", path="x.mp4", …)`: the node's process; killed at the end."""
    yield from starter(tmp_path / "nodes")


@pytest.fixture
def call(node: Any, spin_until: Any) -> Callable[..., Any]:
    """`call(ServiceType, "/service", field=…)`: the response."""

    def ask(kind: Any, service: str, **fields: Any) -> Any:
        client = node.create_client(kind, service)
        assert client.wait_for_service(timeout_sec=TIMEOUT_S), service
        future = client.call_async(kind.Request(**fields))
        assert spin_until(future.done, node, timeout_s=TIMEOUT_S), service
        node.destroy_client(client)
        return future.result()

    return ask


@pytest.fixture
def state_of(call: Any) -> Callable[[NodeProcess], str]:
    """`state_of(process)`: the label of its lifecycle state."""
    from lifecycle_msgs.srv import GetState

    return lambda process: str(call(GetState, process.topic("~/get_state")).current_state.label)


@pytest.fixture
def change_state(call: Any) -> Callable[[NodeProcess, str], bool]:
    """`change_state(process, "activate")`: whether it succeeded."""
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    numbers = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}

    def change(process: NodeProcess, step: str) -> bool:
        transition = Transition(id=numbers[step])
        return bool(call(ChangeState, process.topic("~/change_state"), transition=transition).success)

    return change


@pytest.fixture
def diagnostics(node: Any) -> dict[str, Any]:
    """The newest status of every aspect of every node, by "namespace/node: aspect"; grows while the node spins."""
    from diagnostic_msgs.msg import DiagnosticArray

    found: dict[str, Any] = {}

    def note(message: Any) -> None:
        found.update({status.name: status for status in message.status})

    node.create_subscription(DiagnosticArray, "/diagnostics", note, 50)
    return found


def values_of(status: Any) -> dict[str, str]:
    """The numbers of one diagnostic status."""
    return {pair.key: pair.value for pair in status.values}
