"""Campaign `reactions`: how soon a fault has its effect, over DDS.

Each fault is injected into processes of its own with the limits of config/robots/sim_panda.yaml, and the time is taken
on one monotonic clock from the injection to the moment its effect is received. An injection whose effect had another
cause (a hold or stop of a busy machine) tells nothing; it is counted as spoilt and repeated.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dr_core.config import dump_yaml, load_yaml
from tests.faults.rows import ROWS, Timing
from tests.nodes.conftest import ROOT, NodeProcess
from tests.nodes.test_arm_bridge import ACTIVE, FORWARD, HOLD, SIM_PANDA, STOPPED, PlayedRobot

COUNT = 20
TIMEOUT_S = 60.0
PERIOD_S = 0.1
REST = (0.0,) * 6
AT_THE_EDGE_M = (0.75, 0.0, 0.2)
SILENCE_S = 0.5
"""A gate that lives repeats its state each 0.2 s."""
STILL_RAD_S = 0.01
MOVING_RAD_S = 0.05
MODEL = ROOT / "models" / "door-close" / "reward"
LENS = {
    "image_width": 64, "image_height": 48, "camera_matrix": {"data": [60.0, 0.0, 32.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0]},
    "distortion_coefficients": {"data": [0.0] * 5},
}  # fmt: skip
CAMERA_BEAT = {
    "topic": "camera/color/camera_info", "type": "sensor_msgs/msg/CameraInfo", "timeout_s": 0.12, "action": "hold",
}  # fmt: skip

Reactions = dict[str, float]


class SpoiltError(Exception):
    """The fault could not be injected, or the gate did something of another cause."""


class MissedError(Exception):
    """A fault without its effect."""


def until(
    condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S, error: type[Exception] = MissedError
) -> Any:
    """The condition's value once it is true; ``error`` if it is not in time."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise error(what)
        time.sleep(0.005)
    return value


class Stage:
    """A gate in a process of its own between wishes at 10 Hz and a robot that are played here.

    Args:
        folder: for parameters and outputs of the processes.
        heartbeats: of the robot's file.
        gate: more parameters of the gate.
        simulated: the robot is sim_robot in a process of its own.
    """

    def __init__(self, folder: Path, *, heartbeats: tuple[Any, ...] = (), simulated: bool = False, **gate: Any) -> None:
        from dr_interfaces.srv import ResetGate
        from sensor_msgs.msg import JointState
        from std_srvs.srv import Trigger

        self.folder, self.gate_values = folder, gate
        self.namespace = f"stage_{time.monotonic_ns()}"
        self.robot_file = folder / f"{self.namespace}.yaml"
        self.robot_file.parent.mkdir(parents=True, exist_ok=True)
        dump_yaml(self.robot_file, {**load_yaml(SIM_PANDA), "heartbeats": list(heartbeats)})
        self.processes: list[NodeProcess] = []
        self.speeds: list[tuple[float, float]] = []
        if simulated:
            self.start("sim_robot", width=64, height=48, camera_rate_hz=1.0)
        self.bridge = self.start_gate()
        self.robot = PlayedRobot(self.namespace)
        self.robot.reporting = not simulated
        node = self.robot.node
        self.reset_client = node.create_client(ResetGate, "arm_bridge/reset_gate")
        self.scene_client = node.create_client(Trigger, "sim_robot/reset")
        node.create_subscription(JointState, "joint_states", self._note_speed, 50)

    def _note_speed(self, message: Any) -> None:
        self.speeds.append((time.monotonic(), max(map(abs, message.velocity))))

    def start(self, name: str, remaps: dict[str, str] | None = None, **values: Any) -> NodeProcess:
        """A node's process beside the gate."""
        if name in ("agent", "arm_bridge", "sim_robot"):
            values = {"robot_file": str(self.robot_file), **values}
        folder = self.folder / self.namespace
        self.processes.append(NodeProcess(name, folder, values, self.namespace, remaps or {}))
        return self.processes[-1]

    def start_gate(self) -> NodeProcess:
        return self.start("arm_bridge", **self.gate_values)

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.process.send_signal(signal.SIGCONT)
            process.stop(signal.SIGKILL)
        self.robot.close()

    def ask(self, client: Any, request: Any) -> bool:
        """Whether a service did it; one of a process that was killed does not answer."""
        if not client.service_is_ready():
            return False
        future = client.call_async(request)
        with suppress(MissedError):
            until(future.done, "", 3.0)
        return bool(future.done() and future.result() and future.result().success)

    def reset(self) -> bool:
        from dr_interfaces.srv import ResetGate

        return self.ask(self.reset_client, ResetGate.Request(operator_name="campaign"))

    def ready(self, settle_s: float) -> None:
        """Wait until the gate has been ACTIVE for so long without a break."""
        since_s = math.inf
        end_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() - since_s < settle_s:
            if time.monotonic() > end_s:
                raise SpoiltError(f"the gate does not stay open: {self.robot.state} {self.robot.causes}")
            if self.robot.state == ACTIVE and time.monotonic() - self.robot.states[-1][0] < SILENCE_S:
                since_s = min(since_s, time.monotonic())
            else:
                since_s = math.inf
                if self.robot.state == STOPPED:
                    self.reset()
            time.sleep(0.01)
        if self.robot.state != ACTIVE:
            raise SpoiltError(str(self.robot.causes))

    def seen(self, since_s: float, states: tuple[int, ...], words: str, timeout_s: float = 10.0) -> float:
        """Seconds until the gate told of one of these states.

        Raises:
            SpoiltError: its cause does not hold these words.
            MissedError: it did not.
        """

        def find() -> tuple[float, tuple[str, ...]] | None:
            for at_s, state, causes in reversed(list(self.robot.states)):
                if at_s < since_s:
                    return found[0] if found else None
                if state in states:
                    found[:] = [(at_s, causes)]
            return None

        found: list[tuple[float, tuple[str, ...]]] = []
        at_s, causes = until(find, f"no state {states} ({words})", timeout_s)
        if not any(words in cause for cause in causes):
            raise SpoiltError(f"{causes} instead of {words}")
        return float(at_s - since_s)

    def wish(self, values: tuple[float, ...]) -> float:
        """Ask for this from now on; returns when it was first sent."""
        before = len(self.robot.wishes)
        self.robot.send(values)

        def first() -> list[float]:
            return [at_s for at_s, sent in self.robot.wishes[before:] if sent is values]

        return float(until(first, "no wish is sent")[0])

    def last_command_s(self, since_s: float) -> float:
        """Seconds until the last command to the robot, 0 if there was none."""
        time.sleep(0.3)
        return max((at_s - since_s for at_s, _ in list(self.robot.commands) if at_s > since_s), default=0.0)


# ---- one fault each: makes a stage, then yields a function that injects once ----


@contextmanager
def played(folder: Path, wish: tuple[float, ...] | None = FORWARD, **options: Any) -> Iterator[Stage]:
    """A stage with this wish; None leaves the wishing to an agent."""
    stage = Stage(folder, **options)
    try:
        stage.robot.send(wish)
        yield stage
    finally:
        stage.close()


Injection = Callable[[float], Reactions]


@contextmanager
def camera_stops(folder: Path) -> Iterator[Injection]:
    """The camera's process is frozen; a trained agent acts on its pictures, the gate hears of its camera_info."""
    from dr_core.data.video import write_video

    video, agent, lens = folder / "grey.mp4", folder / "agent", folder / "lens.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    untrained_agent(agent)
    write_video(video, np.stack([np.full((48, 64, 3), 90 + k, np.uint8) for k in range(30)]), 30.0, lossless=True)
    dump_yaml(lens, LENS)
    with played(folder, None, heartbeats=(CAMERA_BEAT,)) as stage:
        camera = stage.start("camera", path=str(video), camera_info=str(lens))
        stage.start("agent", policy="checkpoint", checkpoint=str(agent), rate_hz=10.0)
        until(lambda: stage.robot.state == ACTIVE or (stage.reset() and False), "the agent does not act")

        def inject(settle_s: float) -> Reactions:
            stage.ready(settle_s)
            began_s = time.monotonic()
            camera.process.send_signal(signal.SIGSTOP)
            try:
                held_s = stage.seen(began_s, (HOLD, STOPPED), "")
                return {"HOLD": held_s, "STOP": stage.seen(began_s, (STOPPED,), "no good command")}
            finally:
                camera.process.send_signal(signal.SIGCONT)

        yield inject


def untrained_agent(path: Path) -> None:
    """A small agent that nobody has trained."""
    import torch

    from dr_core.agent.actor import Actor, ActorConfig, NetworkConfig
    from dr_core.data.images import ImageRule

    torch.manual_seed(0)
    network = NetworkConfig(feature_size=8, hidden_size=16)
    Actor(ActorConfig(3, "reach", 10.0, ImageRule(64, "center"), network=network)).save(path)


@contextmanager
def qos_mismatch(folder: Path) -> Iterator[Injection]:
    """A best-effort publisher for the reward node, which asks for a reliable one."""
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    with played(folder) as stage:
        node = stage.robot.node
        told: list[tuple[float, bytes, str]] = []

        def note(message: Any) -> None:
            now_s = time.monotonic()
            told.extend((now_s, one.level, one.message) for one in message.status if one.name.endswith("reward: qos"))

        node.create_subscription(DiagnosticArray, "/diagnostics", note, 50)
        reward = stage.start("reward", model=str(MODEL), image_reliability="reliable")
        quiet = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        until(lambda: "active" in reward.output() or told, f"no reward node:\n{reward.output()}")

        def inject(settle_s: float) -> Reactions:
            topic = reward.topic("camera/color/image_raw")
            until(lambda: node.count_publishers(topic) == 0, "the publisher before is there", error=SpoiltError)
            until(lambda: not told or told[-1][1] == b"\x00", "the ERROR before is there", error=SpoiltError)
            time.sleep(settle_s)
            began_s = time.monotonic()
            publisher = node.create_publisher(Image, topic, quiet)

            def find() -> float | None:
                words = ("offers best_effort", "asks for reliable")
                late = [at for at, level, text in told if at > began_s and level == b"\x02" and all_in(words, text)]
                return late[0] if late else None

            try:
                return {"ERROR": until(find, "no ERROR with both policies", 20.0) - began_s}
            finally:
                node.destroy_publisher(publisher)

        yield inject


def all_in(words: tuple[str, ...], text: str) -> bool:
    return all(word in text for word in words)


@contextmanager
def not_a_number(folder: Path) -> Iterator[Injection]:
    """The wishes become NaN."""
    with played(folder) as stage:

        def inject(settle_s: float) -> Reactions:
            stage.robot.send(FORWARD)
            stage.ready(settle_s)
            began_s = stage.wish((math.nan, 0.0, 0.0))
            reactions = {"HOLD": stage.seen(began_s, (HOLD,), "finite")}
            reactions["STOP"] = stage.seen(began_s, (STOPPED,), "finite")
            if not all(math.isfinite(one.twist.linear.x) for _, one in stage.robot.commands):
                raise MissedError("NaN reached the robot")
            return reactions

        yield inject


@contextmanager
def outside_the_box(folder: Path) -> Iterator[Injection]:
    """At the edge of the workspace, wishes go outwards."""
    with played(folder) as stage:
        stage.robot.tool_m = AT_THE_EDGE_M

        def inject(settle_s: float) -> Reactions:
            stage.robot.send(REST)
            stage.ready(settle_s)
            began_s = stage.wish(FORWARD)
            reactions = {"STOP": stage.seen(began_s, (STOPPED,), "clamped")}
            if any(one.twist.linear.x > 0.0 for one in stage.robot.since(began_s)):
                raise MissedError("a command went out of the workspace")
            return reactions

        yield inject


@contextmanager
def silent_robot(folder: Path) -> Iterator[Injection]:
    """joint_states and tool pose end."""
    with played(folder) as stage:

        def inject(settle_s: float) -> Reactions:
            stage.robot.reporting = True
            stage.ready(settle_s)
            began_s = time.monotonic()
            stage.robot.reporting = False
            try:
                return {"STOP": stage.seen(began_s, (STOPPED,), "state is older")}
            finally:
                stage.robot.reporting = True

        yield inject


@contextmanager
def second_publisher(folder: Path) -> Iterator[Injection]:
    """Another node can publish on the command topic."""
    from rclpy.node import Node

    with played(folder) as stage:
        intruder = Node("intruder", namespace=stage.namespace)

        def inject(settle_s: float) -> Reactions:
            stage.ready(settle_s)
            began_s = time.monotonic()
            publisher = intruder.create_publisher(stage.robot.command_class, stage.robot.command_topic, 1)
            try:
                return {"STOP": stage.seen(began_s, (STOPPED,), "2 publishers on")}
            finally:
                intruder.destroy_publisher(publisher)

        try:
            yield inject
        finally:
            intruder.destroy_node()


@contextmanager
def pressed(folder: Path) -> Iterator[Injection]:
    """Emergency and protective stop while the arm moves."""
    from std_msgs.msg import Bool

    with played(folder) as stage:

        def inject(settle_s: float) -> Reactions:
            reactions = {}
            for words, publisher in (
                ("emergency stop", stage.robot.estop),
                ("protective stop", stage.robot.protective_stop),
            ):
                stage.ready(settle_s)
                began_s = time.monotonic()
                publisher.publish(Bool(data=True))
                try:
                    stage.seen(began_s, (STOPPED,), words)
                    reactions[f"{words}: commands end"] = stage.last_command_s(began_s)
                finally:
                    publisher.publish(Bool(data=False))
                time.sleep(0.3)
                if stage.robot.state != STOPPED or stage.robot.since(began_s + 1.0):
                    raise MissedError("it resumed on release")
            return reactions

        yield inject


@contextmanager
def dead_man(folder: Path) -> Iterator[Injection]:
    """The dead-man switch is released."""
    from std_msgs.msg import Bool

    with played(folder, use_deadman=True) as stage:

        def inject(settle_s: float) -> Reactions:
            stage.robot.held = True
            stage.ready(settle_s)
            stage.robot.held = False
            began_s = time.monotonic()
            stage.robot.deadman.publish(Bool(data=False))
            return {"HOLD": stage.seen(began_s, (HOLD,), "dead-man")}

        yield inject


@contextmanager
def killed_agent(folder: Path) -> Iterator[Injection]:
    """SIGKILL of the agent."""
    with played(folder, None) as stage:

        def inject(settle_s: float) -> Reactions:
            agent = stage.start("agent", policy="constant", constant=[0.5, 0.0, 0.0], rate_hz=10.0)
            stage.ready(settle_s)
            began_s = time.monotonic()
            agent.process.send_signal(signal.SIGKILL)
            try:
                return {"STOP": stage.seen(began_s, (STOPPED,), "no good command")}
            finally:
                agent.stop(signal.SIGKILL)

        yield inject


@contextmanager
def killed_gate(folder: Path) -> Iterator[Injection]:
    """SIGKILL of the gate while the simulated arm moves."""
    from std_srvs.srv import Trigger

    with played(folder, (0.0, 0.2, 0.0), simulated=True) as stage:

        def inject(settle_s: float) -> Reactions:
            if stage.bridge.process.poll() is not None:
                stage.bridge = stage.start_gate()
            until(lambda: stage.ask(stage.scene_client, Trigger.Request()), "no reset", error=SpoiltError)
            stage.ready(settle_s)
            until(lambda: stage.speeds[-1][1] > MOVING_RAD_S, "the arm does not move", 5.0, SpoiltError)
            began_s = time.monotonic()
            stage.bridge.stop(signal.SIGKILL)
            time.sleep(1.5)
            after = [(at_s, speed) for at_s, speed in list(stage.speeds) if at_s > began_s]
            if not after or after[-1][1] > STILL_RAD_S:
                raise MissedError("the arm goes on without the gate")
            return {"arm still": max((at_s - began_s for at_s, speed in after if speed > STILL_RAD_S), default=0.0)}

        yield inject


@contextmanager
def partition(folder: Path) -> Iterator[Injection]:
    """Nothing passes between agent and gate: the agent's process is frozen, then goes on as if nothing had been."""
    with played(folder, None) as stage:
        agent = stage.start("agent", policy="constant", constant=[0.5, 0.0, 0.0], rate_hz=10.0)

        def inject(settle_s: float) -> Reactions:
            stage.ready(settle_s)
            began_s = time.monotonic()
            agent.process.send_signal(signal.SIGSTOP)
            try:
                stopped_s = stage.seen(began_s, (STOPPED,), "no good command")
            finally:
                agent.process.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            if stage.robot.state != STOPPED:
                raise MissedError("it rejoined by itself")
            return {"STOP": stopped_s}

        yield inject


FAULTS: dict[int, Callable[[Path], Any]] = {
    1: camera_stops,
    15: qos_mismatch,
    27: not_a_number,
    28: outside_the_box,
    31: silent_robot,
    33: second_publisher,
    34: pressed,
    35: dead_man,
    36: killed_agent,
    37: killed_gate,
    60: partition,
}


# ---- the campaign ----


def run(count: int = COUNT, seed: int = 0, only: tuple[int, ...] = ()) -> dict[str, Any]:
    """Inject each fault ``count`` times.

    Returns:
        By "ROW EFFECT": n, p50_s, max_s, spoilt, missed (in words), load of the machine at the end.
    """
    import rclpy

    rng, figures = random.Random(seed), {}
    rclpy.init(args=[])
    try:
        for number in only or FAULTS:
            try:
                with tempfile.TemporaryDirectory() as folder, FAULTS[number](Path(folder)) as inject:
                    measured = _measure(inject, count, rng)
            except MissedError as error:  # the processes did not begin to work
                measured = {"nothing": _figures([], 0, [str(error)])}
            for name, values in measured.items():
                figures[f"{number} {name}"] = values
                print(f"row {number} {name}: {json.dumps(values)}", flush=True)
    finally:
        rclpy.try_shutdown()
    return figures


def _measure(inject: Injection, count: int, rng: random.Random) -> dict[str, dict[str, Any]]:
    times: dict[str, list[float]] = {}
    spoilt, missed, done = 0, [], 0
    while done < count and spoilt < 5 * count:
        try:
            reactions = inject(rng.uniform(0.3, 0.6))
        except SpoiltError:
            spoilt += 1
            continue
        except MissedError as error:
            missed.append(str(error))
            reactions = {}
        done += 1
        for name, seconds in reactions.items():
            times.setdefault(name, []).append(seconds)
    return {name: _figures(values, spoilt, missed) for name, values in (times or {"nothing": []}).items()}


def _figures(values: list[float], spoilt: int, missed: list[str]) -> dict[str, Any]:
    return {
        "n": len(values),
        "p50_s": round(statistics.median(values), 4) if values else None,
        "max_s": round(max(values), 4) if values else None,
        "spoilt": spoilt,
        "missed": missed,
        "load": round(os.getloadavg()[0], 1),
    }


def bound_of(key: str) -> Timing | None:
    """Of "ROW EFFECT"."""
    number, effect = key.split(" ", 1)
    row = next(row for row in ROWS if row.number == int(number))
    return next((timing for timing in row.timings if timing.effect == effect), None)
