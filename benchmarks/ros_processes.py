"""Starts, watches and ends the processes of ros_graph.py."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKSPACE = ROOT / "ros2_ws" / "src"
SOURCES = [ROOT, ROOT / "sim", ROOT / "calibration", ROOT / "benchmarks", WORKSPACE / "dr_nodes"]
if find_spec("rclpy") is None:
    SOURCES.append(WORKSPACE / "dr_embedded")
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 20.0
TOLD_PERIOD_S = 30.0


class Failed(Exception):
    """Something could not be measured."""


def use_sources() -> str:
    """Make this process and those that it starts find the checkout and ROS; returns which stack: real or embedded.

    Call ``rclpy.init()`` afterwards.
    """
    sys.path += [str(path) for path in SOURCES if str(path) not in sys.path]
    # Nobody else's nodes are measured, and ports of higher domains reach into the range of ephemeral ports.
    os.environ["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 100))
    if find_spec("dr_embedded") is None:
        return "real"
    import dr_embedded

    return dr_embedded.activate()


class Part:
    """A process whose output goes to a file. It ends with its standard input, or by a signal.

    Args:
        result: the file that it writes when it has ended; None for a node.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, result: Path | None = None) -> None:
        self.name, self.result = name, result
        self._output = folder / f"{name.replace('/', '_')}.out"
        paths = [*map(str, SOURCES), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment, text=True
            )

    def said(self, line: str) -> bool:
        """Whether it has printed this line."""
        return line in self._output.read_text().splitlines()

    def check(self) -> None:
        """Raises Failed when it has ended."""
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with status {self.process.returncode}: {self.tail()}")

    def tail(self) -> str:
        """The end of its output, in one line."""
        return " | ".join(self._output.read_text().strip().splitlines()[-4:]) or "no output"

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.process.wait(END_TIMEOUT_S)
            self.check()

    def close(self) -> None:
        """Ask it to end; a second time does nothing."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        if self.result is None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """End it, by force if it takes too long."""
        self.close()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def results(self) -> Any:
        """End it; what it has measured."""
        self.end()
        if self.result is None or not self.result.exists():
            raise Failed(f"{self.name} has no result: {self.tail()}")
        return json.loads(self.result.read_text())


class Graph:
    """The processes of one measurement and a ROS node that looks after them; all end with it.

    Args:
        folder: for output, parameter files and results.
        stack: real or embedded.
    """

    def __init__(self, folder: Path, stack: str) -> None:
        self.folder, self.stack = folder, stack
        self.parts: list[Part] = []

    def __enter__(self) -> Graph:
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        self.folder.mkdir()
        self.node = Node("bench")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        return self

    def __exit__(self, *_: object) -> None:
        for part in self.parts:
            part.close()
        for part in self.parts:
            part.end()
        self._executor.shutdown()
        self.node.destroy_node()

    def start_part(self, role: str, name: str, **options: Any) -> Part:
        """A process of ros_parts.py."""
        result = self.folder / f"{name}.json"
        command = [sys.executable]
        if self.stack == "embedded":
            command += ["-m", "dr_embedded.run"]
        command += [str(ROOT / "benchmarks" / "ros_parts.py"), role, "--result", str(result)]
        for key, value in options.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            command += [f"--{key.replace('_', '-')}", *map(str, values)]
        self.parts.append(Part(name, command, self.folder, result))
        return self.parts[-1]

    def start_node(
        self, name: str, *, namespace: str = "bench", remaps: dict[str, str] | None = None, **parameters: Any
    ) -> Part:
        """`ros2 run dr_nodes NAME` with these parameters."""
        label = f"{namespace}/{name}"
        values = self.folder / f"{namespace}_{name}.yaml"
        values.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"autostart": True, **parameters}}}))
        if self.stack == "embedded":
            command = [sys.executable, "-m", "dr_embedded.run", f"dr_nodes.{name}:main"]
        else:
            command = [sys.executable, "-c", f"import sys; from dr_nodes.{name} import main; sys.exit(main())"]
        command += ["--ros-args", "--params-file", str(values), "-r", f"__ns:=/{namespace}"]
        for source, target in (remaps or {}).items():
            command += ["-r", f"{source}:={target}"]
        self.parts.append(Part(label, command, self.folder))
        return self.parts[-1]

    def spin_until(self, condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Run callbacks until the condition holds.

        Raises:
            Failed: it does not hold in time, or a process has ended.
        """
        end_s = time.monotonic() + timeout_s
        while not condition():
            for part in self.parts:
                part.check()
            if time.monotonic() > end_s:
                said = "; ".join(f"{part.name}: {part.tail()}" for part in self.parts)
                raise Failed(f"{what}: not within {timeout_s:g} s ({said})")
            self._executor.spin_once(timeout_sec=0.05)

    def spin_for(self, seconds: float, what: str) -> None:
        """Run callbacks for a while, and show that time goes by."""
        begin_s = shown_s = time.monotonic()
        terminal = sys.stderr.isatty()
        while (passed_s := time.monotonic() - begin_s) < seconds:
            for part in self.parts:
                part.check()
            if time.monotonic() - shown_s > (1.0 if terminal else TOLD_PERIOD_S):
                shown_s = time.monotonic()
                say(f"  {what}: {passed_s:.0f} of {seconds:.0f} s", end="\r" if terminal else "\n")
            self._executor.spin_once(timeout_sec=min(0.2, max(0.0, seconds - passed_s)))
        if terminal:
            say("\x1b[K", end="")

    def call(self, kind: Any, service: str, **fields: Any) -> Any:
        """The response of a service."""
        client = self.node.create_client(kind, service)
        self.spin_until(client.service_is_ready, f"service {service}")
        future = client.call_async(kind.Request(**fields))
        self.spin_until(future.done, f"an answer of {service}")
        self.node.destroy_client(client)
        return future.result()

    def wait_active(self, *nodes: Part) -> None:
        """Wait until these nodes work."""
        from lifecycle_msgs.srv import GetState

        for part in nodes:
            service = f"/{part.name}/get_state"
            # A node that refuses stays as it is, and its output says why.
            end_s = time.monotonic() + START_TIMEOUT_S
            while (state := self.call(GetState, service).current_state.label) != "active":
                if time.monotonic() > end_s or "refused" in part.tail():
                    raise Failed(f"{part.name} is {state}: {part.tail()}")
                self._executor.spin_once(timeout_sec=0.2)


def say(text: str, end: str = "\n") -> None:
    """Progress, beside the table on standard output."""
    print(text, end=end, file=sys.stderr, flush=True)
