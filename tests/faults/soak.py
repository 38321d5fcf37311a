"""`python -m tests.faults.soak [--minutes M] [--seed S] [--out FOLDER] [--docs]`: the whole graph with random faults.

Simulated arm, gate, agent, recorder, reward and evaluator, each in a process of its own, on two cores. Every few
seconds a fault that the seed decides: a process is killed and started again or frozen for a while, wishes become NaN,
the emergency stop is pressed, another node publishes commands. Writes soak.json, and soak.png with the memory of each
process. Exit status 1 for a stop that did not come in time, a node that fell silent, or one that ended by itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.reactions import MODEL
from tests.faults.rows import read_figures, write
from tests.nodes.conftest import ROOT, NodeProcess
from tests.nodes.test_arm_bridge import ACTIVE, SIM_PANDA, STOPPED

NAMESPACE = "soak"
BOUND_S = 0.5
DRIVING_S = 20.0
"""So long a fault waits for an episode in which the agent moves the arm."""
SILENCE_S = 10.0
GRACE_S = 60.0
"""A node needs no longer to start; while it loads a model it is silent."""
BIN_S = 10.0
OUTPUTS = ("desired_twist", "action", "desired_gripper")
TOPICS = ["joint_states", "ee_pose", "action", "desired_twist", "gate_state", "reward"]
NODES = ("sim_robot", "arm_bridge", "agent", "recorder", "reward", "evaluator")


@dataclass
class Watch:
    """What is heard, with its times on the monotonic clock."""

    states: list[tuple[float, int, tuple[str, ...]]] = field(default_factory=list)
    wishes: list[tuple[float, bool]] = field(default_factory=list)
    """Whether motion was asked for."""
    commands: int = 0
    not_finite: int = 0
    heard_s: dict[str, float] = field(default_factory=dict)
    rewards: int = 0

    def state_after(self, moment_s: float, wanted: int) -> float | None:
        """When the gate first said this after a moment."""
        return next((at_s for at_s, state, _ in list(self.states) if at_s > moment_s and state == wanted), None)

    @property
    def driving(self) -> bool:
        """Whether an agent moves the robot now."""
        now_s = time.monotonic()
        recent = [moves for at_s, moves in self.wishes[-3:] if now_s - at_s < 0.3]
        return bool(self.states) and self.states[-1][1] == ACTIVE and len(recent) > 1 and all(recent)


class Graph:
    """The processes, and a node here that watches and disturbs them.

    Args:
        folder: for parameters, outputs, episodes.
        seed: of the simulated scenes.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from dr_interfaces.msg import GateState, RewardStamped
        from geometry_msgs.msg import TwistStamped
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node
        from std_msgs.msg import Bool

        self.folder, self.watch = folder, Watch()
        own = {"robot_file": str(SIM_PANDA)}
        self.values: dict[str, dict[str, Any]] = {
            "sim_robot": {**own, "width": 64, "height": 64, "camera_rate_hz": 10.0, "seed": seed},
            "arm_bridge": own,
            "agent": own,
            "recorder": {"directory": str(folder / "episodes"), "optional_topics": TOPICS, "reserve_mib": 1},
            "reward": {"model": str(MODEL), "ood_limit": 0.0, "stop_limit": 0},
            "evaluator": {
                **own, "out": str(folder / "results"), "episodes": 10000, "mode": "full", "agents": ["tried"],
                "task": "push", "operator": "nobody", "episode_s": 8.0, "reset_service": "sim_robot/reset",
                "reset_gate": True, "success_topic": "success",
            },
        }  # fmt: skip
        self.processes: dict[str, NodeProcess] = {}
        self.due_s: dict[str, float] = {}
        """By node: until then it need not be heard."""
        self.frozen: set[str] = set()
        self.node = Node("disturber", namespace=NAMESPACE)
        watch = self.watch

        def note_state(message: Any) -> None:
            watch.states.append((time.monotonic(), message.state, tuple(message.causes)))

        def note_wish(message: Any) -> None:
            linear = message.twist.linear
            watch.wishes.append((time.monotonic(), bool(abs(linear.x) + abs(linear.y) + abs(linear.z) > 1e-6)))

        def note_command(message: Any) -> None:
            linear = message.twist.linear
            watch.commands += 1
            watch.not_finite += not all(map(math.isfinite, (linear.x, linear.y, linear.z)))

        def note_diagnostics(message: Any) -> None:
            for status in message.status:
                watch.heard_s[status.name.split(":")[0].split("/")[-1]] = time.monotonic()

        def note_reward(message: Any) -> None:
            watch.rewards += 1

        for kind, topic, callback in (
            (GateState, "gate_state", note_state),
            (TwistStamped, "desired_twist", note_wish),
            (TwistStamped, "servo_node/delta_twist_cmds", note_command),
            (DiagnosticArray, "/diagnostics", note_diagnostics),
            (RewardStamped, "reward", note_reward),
        ):
            self.node.create_subscription(kind, topic, callback, 50)
        self.estop = self.node.create_publisher(Bool, "estop", 10)
        self.wish = self.node.create_publisher(TwistStamped, "tried/desired_twist", 10)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin)
        self.thread.start()
        for name in NODES:
            self.start(name)

    def start(self, name: str) -> None:
        remaps = {topic: f"tried/{topic}" for topic in OUTPUTS} if name == "agent" else {}
        self.processes[name] = NodeProcess(name, self.folder / "nodes", self.values[name], NAMESPACE, remaps)
        self.due_s[name] = time.monotonic() + GRACE_S

    def kill(self, name: str) -> None:
        self.processes[name].stop(signal.SIGKILL)

    def freeze(self, name: str) -> None:
        self.frozen.add(name)
        self.processes[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.processes[name].process.send_signal(signal.SIGCONT)
        self.due_s[name] = max(self.due_s[name], time.monotonic() + SILENCE_S)
        self.frozen.discard(name)

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.process.send_signal(signal.SIGCONT)
            process.stop(signal.SIGKILL)
        self.executor.shutdown()
        self.thread.join(10.0)
        self.node.destroy_node()


# ---- faults: do it, wait so long, mend it ----


def killed(name: str) -> Callable[[Graph, float], None]:
    def fault(graph: Graph, seconds: float) -> None:
        graph.kill(name)
        time.sleep(seconds)
        graph.start(name)

    return fault


def frozen(name: str) -> Callable[[Graph, float], None]:
    def fault(graph: Graph, seconds: float) -> None:
        graph.freeze(name)
        time.sleep(seconds)
        graph.thaw(name)

    return fault


def not_numbers(graph: Graph, seconds: float) -> None:
    from geometry_msgs.msg import TwistStamped

    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        message = TwistStamped()
        message.header.stamp = graph.node.get_clock().now().to_msg()
        message.twist.linear.x = math.nan
        graph.wish.publish(message)
        time.sleep(0.1)


def emergency_stop(graph: Graph, seconds: float) -> None:
    from std_msgs.msg import Bool

    graph.estop.publish(Bool(data=True))
    time.sleep(seconds)
    graph.estop.publish(Bool(data=False))


def second_publisher(graph: Graph, seconds: float) -> None:
    from geometry_msgs.msg import TwistStamped

    publisher = graph.node.create_publisher(TwistStamped, "servo_node/delta_twist_cmds", 1)
    time.sleep(seconds)
    graph.node.destroy_publisher(publisher)


@dataclass(frozen=True)
class Fault:
    """One kind; ``stops`` says that the gate has to stop while the agent drives."""

    do: Callable[[Graph, float], None]
    stops: bool = False
    by_wishes: bool = False
    """It stops as wishes fail to come, unless the episode ends at that moment and rest is wished for."""


FAULTS = {
    "agent killed": Fault(killed("agent"), stops=True, by_wishes=True),
    "agent frozen": Fault(frozen("agent"), stops=True, by_wishes=True),
    "pictures and states end": Fault(frozen("sim_robot"), stops=True),
    "emergency stop": Fault(emergency_stop, stops=True),
    "second publisher": Fault(second_publisher, stops=True),
    "wishes are NaN": Fault(not_numbers),
    "reward killed": Fault(killed("reward")),
    "reward frozen": Fault(frozen("reward")),
    "recorder killed": Fault(killed("recorder")),
    "recorder frozen": Fault(frozen("recorder")),
}


@dataclass
class Tally:
    """Of one kind of fault: how often, seconds until the stop, how often no stop was due or none came in time."""

    injected: int = 0
    stops_s: list[float] = field(default_factory=list)
    not_driving: int = 0
    moot: int = 0
    missed: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        stops = sorted(self.stops_s)
        figures: dict[str, Any] = {"injected": self.injected, "missed": self.missed}
        if stops:
            figures |= {"stops": len(stops), "p50_s": round(statistics.median(stops), 3), "max_s": round(stops[-1], 3)}
        return figures | {"not_driving": self.not_driving, "moot": self.moot}


def inject(graph: Graph, fault: Fault, seconds: float, tally: Tally) -> None:
    """One fault, and whether the stop that it needs came in time."""
    watch, end_s = graph.watch, time.monotonic() + DRIVING_S
    while fault.stops and not watch.driving and time.monotonic() < end_s:
        time.sleep(0.02)
    driving = watch.driving
    began_s = time.monotonic()
    fault.do(graph, max(seconds, 2.0 * BOUND_S))
    tally.injected += 1
    if not fault.stops:
        return
    if not driving:
        tally.not_driving += 1
        return
    stopped_s = watch.state_after(began_s, STOPPED)
    due_s = began_s + BOUND_S
    if stopped_s is not None and stopped_s <= due_s:
        tally.stops_s.append(stopped_s - began_s)
    elif fault.by_wishes and any(began_s < at_s < due_s and not moves for at_s, moves in list(watch.wishes)):
        tally.moot += 1
    else:
        after = [(round(at_s - began_s, 3), state, causes) for at_s, state, causes in list(watch.states)]
        tally.missed.append(str([one for one in after if -0.3 < one[0] < 1.5][:12]))


# ---- memory and heartbeats ----


class Sampler(threading.Thread):
    """Notes the memory of each process each second, and whether each is alive and heard."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.begun_s = time.monotonic()
        self.memory: dict[str, list[tuple[float, int, float]]] = {name: [] for name in NODES}
        """By node: seconds, process id, MB."""
        self.deadlocks: list[str] = []
        self.died: list[str] = []
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(1.0):
            for name, process in list(self.graph.processes.items()):
                self.look(name, process)

    def look(self, name: str, process: NodeProcess) -> None:
        now_s, pid = time.monotonic(), process.process.pid
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return  # killed a moment ago
        if pages:
            self.memory[name].append((now_s - self.begun_s, pid, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
        status = process.process.poll()
        what = f"{name} {pid}"
        if status is not None and status != -signal.SIGKILL and what not in self.died:
            self.died.append(what)
        if name in self.graph.frozen or status is not None:
            return
        due_s = max(self.graph.watch.heard_s.get(name, -math.inf) + SILENCE_S, self.graph.due_s[name])
        if now_s > due_s and what not in self.deadlocks:
            self.deadlocks.append(what)


def slope(samples: list[tuple[float, int, float]]) -> dict[str, Any]:
    """Growth of the process that lived longest, after the first third of its time, from means over 10 s."""
    from scipy.stats import t

    by_process: dict[int, list[tuple[float, float]]] = {}
    for at_s, pid, mb in samples:
        by_process.setdefault(pid, []).append((at_s, mb))
    longest = max(by_process.values(), key=len, default=[])
    facts: dict[str, Any] = {"processes": len(by_process)}
    if not longest:
        return facts
    start_s, end_s = longest[0][0], longest[-1][0]
    warm = [(at_s, mb) for at_s, mb in longest if at_s >= start_s + (end_s - start_s) / 3]
    facts |= {"seconds": round(warm[-1][0] - warm[0][0]), "first_mb": round(warm[0][1], 1)}
    facts |= {"last_mb": round(warm[-1][1], 1), "most_mb": round(max(mb for _, mb in longest), 1)}
    bins: dict[int, list[tuple[float, float]]] = {}
    for at_s, mb in warm:
        bins.setdefault(int(at_s // BIN_S), []).append((at_s, mb))
    means = np.array([np.mean(one, axis=0) for one in bins.values()])
    facts["means_mb"] = [round(float(mb), 2) for mb in means[:, 1]]
    if len(means) < 5:
        return facts
    hours, sizes = means[:, 0] / 3600.0, means[:, 1]
    spread = float(((hours - hours.mean()) ** 2).sum())
    growth = float(((hours - hours.mean()) * sizes).sum()) / spread
    rest = sizes - sizes.mean() - growth * (hours - hours.mean())
    half = float(t.ppf(0.975, len(sizes) - 2) * np.sqrt((rest**2).sum() / (len(sizes) - 2) / spread))
    return facts | {"mb_per_h": round(growth, 1), "interval_95": [round(growth - half, 1), round(growth + half, 1)]}


def plot(memory: dict[str, list[tuple[float, int, float]]], path: Path) -> None:
    """Memory over time, a line for each node; a restart begins it anew."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, samples) in enumerate(memory.items()):
        for k, pid in enumerate(dict.fromkeys(pid for _, pid, _ in samples)):
            own = [(at_s / 60.0, mb) for at_s, one, mb in samples if one == pid]
            axes.plot(*zip(*own, strict=True), color=f"C{number}", label=name if k == 0 else None)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", title="Soak: memory of each process", ylim=(0, None))
    figure.legend(loc="outside right upper", fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


# ---- the soak ----


def run(minutes: float, seed: int, out: Path, folder: Path) -> dict[str, Any]:
    """Run the graph for so long; returns the figures."""
    import rclpy

    rng = random.Random(seed)
    if len(cores := sorted(os.sched_getaffinity(0))) > 2:
        os.sched_setaffinity(0, cores[:2])
    rclpy.init(args=[])
    graph = Graph(folder, seed)
    sampler = Sampler(graph)
    tallies = {name: Tally() for name in FAULTS}
    try:
        sampler.start()
        begin_s = time.monotonic()
        while not graph.watch.driving:
            if time.monotonic() - begin_s > 180.0:
                raise RuntimeError("\n".join(one.output()[-2000:] for one in graph.processes.values()))
            time.sleep(0.1)
        print(f"the graph works after {time.monotonic() - begin_s:.0f} s", flush=True)
        end_s = time.monotonic() + 60.0 * minutes
        while time.monotonic() < end_s:
            # Each kind in turn, in shuffled rounds, so that none is left out.
            for name in rng.sample(list(FAULTS), len(FAULTS)):
                time.sleep(rng.uniform(1.0, 3.0))
                if time.monotonic() > end_s:
                    break
                inject(graph, FAULTS[name], rng.uniform(0.5, 3.0), tallies[name])
                print(f"{(time.monotonic() - begin_s) / 60:5.1f} min  {name}: {tallies[name].figures()}", flush=True)
        load = round(os.getloadavg()[0], 1)
    finally:
        sampler.ending.set()
        sampler.join()
        graph.close()
        rclpy.try_shutdown()
    figures = {
        "minutes": minutes,
        "seed": seed,
        "load": load,
        "faults": {name: tally.figures() for name, tally in tallies.items()},
        "missed_stops": sum(len(tally.missed) for tally in tallies.values()),
        "deadlocks": sampler.deadlocks,
        "died": sampler.died,
        "stops": sum(a[1] != STOPPED and b[1] == STOPPED for a, b in pairwise(graph.watch.states)),
        "commands": graph.watch.commands,
        "commands_not_finite": graph.watch.not_finite,
        "rewards": graph.watch.rewards,
        "episodes": outcomes(folder / "results"),
        "memory": {name: slope(samples) for name, samples in sampler.memory.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(figures, indent=2) + "\n")
    plot(sampler.memory, out / "soak.png")
    return figures


def outcomes(results: Path) -> dict[str, int]:
    """How the episodes ended."""
    from dr_core.robot.evaluation import read_results

    found: dict[str, int] = {}
    for one in read_results(results):
        found[one.outcome] = found.get(one.outcome, 0) + 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder for soak.json and soak.png")
    parser.add_argument("--docs", action="store_true", help="show the figures and the plot in docs/faults.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(arguments.minutes, arguments.seed, arguments.out, Path(folder))
    print(json.dumps(figures, indent=2))
    if arguments.docs:
        memory = {name: {k: v for k, v in one.items() if k != "means_mb"} for name, one in figures["memory"].items()}
        write({**read_figures(), "soak": {**figures, "memory": memory}})
        shutil.copyfile(arguments.out / "soak.png", ROOT / "docs" / "img" / "soak.png")
    bad = figures["missed_stops"] or figures["deadlocks"] or figures["died"] or figures["commands_not_finite"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
