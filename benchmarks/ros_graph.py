"""What the ROS graph costs: image transport and loss, camera to command, recording, memory of every node.

    python benchmarks/ros_graph.py                                # about 14 minutes on 2 cores
    python benchmarks/ros_graph.py --only transport,loss --seconds 10 --out runs/ros.json

Every node is a process of its own; they talk over DDS, on a real ROS 2 where one is sourced, else on dr_embedded, in a
DDS domain chosen at random. A missed target is reported and does not change the exit status; what cannot be measured
does. docs/ros_performance.md says what each line means.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from ros_measure import (
    BUSY_SHARE,
    Command,
    OtherLoad,
    Row,
    Wanted,
    cpu_name,
    cpu_s,
    latency_rows,
    loss,
    pair,
    peak_mb,
    show,
    write,
)
from ros_processes import ROOT, START_TIMEOUT_S, Failed, Graph, Part, say, use_sources

ROBOT_FILE = ROOT / "config" / "robots" / "sim_panda.yaml"
CAMERAS = ("left", "right")
CAMERA_HZ = 30.0
IMAGE_BYTES = 640 * 480 * 3
IMAGE_TOPIC = "camera/color/image_raw"
# 101 ms: the phase between control and camera goes through all values instead of staying where it began.
CONTROL_HZ = 1 / 0.101
DRAIN_S = 0.5
SPARE_BYTES = 2 * 2**30
MEMORY_MB = 400.0
ENDLESS = 10**9  # pictures
PERIOD_MS = 20.0  # the gate repeats at 50 Hz or faster
TOO_OLD_MS, OLD_SECONDS = 160.0, 3.0
"""Added to the age of observations, and for so long."""
QOS = {"best effort, depth 1": ("best_effort", 1), "reliable, depth 10": ("reliable", 10)}
"""The nodes' default for images, and ROS's."""


@dataclass(frozen=True)
class Settings:
    """From the command line.

    Attributes:
        seconds, recorder_seconds: of each measurement.
        model: directory of a reward model; None makes an untrained one.
        agent: directory of a trained agent, for the budget.
        exposure_ms: between a picture's stamp and its hand-over, for the budget.
        leave_out: cameras do not publish every so manieth image; 0: all are published.
        folder: for everything that is written meanwhile.
        stack: real or embedded.
    """

    seconds: float
    recorder_seconds: float
    model: Path | None
    agent: Path
    exposure_ms: float
    leave_out: int
    folder: Path
    stack: str

    def graph(self, name: str) -> Graph:
        return Graph(self.folder / name.replace(" ", "_").replace(",", ""), self.stack)


class Used:
    """What processes use of the processor from now on."""

    def __init__(self, parts: list[Part]) -> None:
        self._before = [(part, cpu_s(part.process.pid)) for part in parts]
        self._begin_s = time.monotonic()

    def percent(self) -> dict[str, float]:
        """Of one core, by name."""
        passed_s = time.monotonic() - self._begin_s
        return {part.name: 100 * (cpu_s(part.process.pid) - before) / passed_s for part, before in self._before}

    def in_words(self) -> str:
        return ", ".join(f"{name.rpartition('/')[2]} {share:.0f}" for name, share in self.percent().items())


# ---- images from process to process ----


def start_cameras(graph: Graph, settings: Settings, names: tuple[str, ...], qos: tuple[str, int]) -> list[Part]:
    """Processes that publish on /NAME/camera/color/image_raw; nothing counts before `shoot`."""
    return [
        graph.start_part(
            "camera",
            f"camera_{name}",
            topic=topic_of(name),
            reliability=qos[0],
            depth=qos[1],
            rate_hz=CAMERA_HZ,
            leave_out=settings.leave_out,
        )
        for name in names
    ]


def topic_of(name: str) -> str:
    return f"/{name}/{IMAGE_TOPIC}"


def shoot(graph: Graph, cameras: list[Part], seconds: float, what: str) -> None:
    """Let the cameras publish for so long, wait until they have, and until the last images have arrived."""
    for camera in cameras:
        camera.tell(f"go {round(seconds * CAMERA_HZ)}")
    graph.spin_for(seconds, what)
    graph.spin_until(lambda: all(camera.said("done") for camera in cameras), "the cameras")
    graph.spin_for(DRAIN_S, what)


def stream(settings: Settings, names: tuple[str, ...], label: str) -> dict[str, tuple[int, list[tuple[int, int]]]]:
    """By camera: how many images it should have published, and (number, latency in ns) of those that arrived."""
    title = f"{len(names)} cameras, {label}"
    with settings.graph(title) as graph:
        reliability, depth = QOS[label]
        topics = [topic_of(name) for name in names]
        sink = graph.start_part("sink", "sink", topics=topics, reliability=reliability, depth=depth)
        cameras = start_cameras(graph, settings, names, QOS[label])
        graph.spin_until(lambda: sink.said("ready"), "first images")
        shoot(graph, cameras, settings.seconds, title)
        arrived = sink.results()
        published = [camera.results()["published"] for camera in cameras]
        return {name: (count, arrived[topic_of(name)]) for name, count in zip(names, published, strict=True)}


def transport(settings: Settings) -> list[Row]:
    """One camera process, one receiver: just before publish() to the first line of the callback."""
    rows = []
    for label in QOS:
        _, arrived = stream(settings, CAMERAS[:1], label)[CAMERAS[0]]
        rows += latency_rows(f"transport, {label}", [ns / 1e9 for _, ns in arrived], (3.0, 15.0), "640x480 rgb8, 30 Hz")
    return rows


def losses(settings: Settings) -> list[Row]:
    """Two camera processes, one receiver."""
    rows = []
    for label in QOS:
        found = stream(settings, CAMERAS, label)
        judged = [loss([number for number, _ in arrived], count) for count, arrived in found.values()]
        published, lost = sum(one.published for one in judged), sum(one.lost for one in judged)
        again, late = sum(one.repeated for one in judged), sum(one.reordered for one in judged)
        note = f"{lost} of {published} images, {again} twice, {late} out of order"
        reliable = QOS[label][0] == "reliable"
        share = Row(f"two cameras, {label}: lost", 100 * lost / published, "%", 0.5, published, note)
        rows.append(Row(share.name, lost, "images", 0, published, note) if reliable else share)
    return rows


# ---- camera to command ----


def watched_gate(graph: Graph) -> list[Any]:
    """The newest GateState, from now on. A benchmark goes on after a stop, which it counts; a robot would not."""
    from dr_interfaces.msg import GateState
    from dr_interfaces.srv import ResetGate

    newest: list[Any] = []
    asked: list[Any] = []
    client = graph.node.create_client(ResetGate, "/bench/arm_bridge/reset_gate")

    def watch(message: Any) -> None:
        newest[:] = [message]
        if message.state == GateState.STOPPED and (not asked or asked[-1].done()):
            asked[:] = [client.call_async(ResetGate.Request())]

    graph.node.create_subscription(GateState, "/bench/gate_state", watch, 10)
    return newest


def control(settings: Settings) -> list[Row]:
    """sim_robot, reward, arm_bridge, and an agent that acts on pictures."""
    from dr_interfaces.msg import GateState

    with settings.graph("control") as graph:
        sim = graph.start_node("sim_robot", robot_file=str(ROBOT_FILE))
        bridge = graph.start_node("arm_bridge", robot_file=str(ROBOT_FILE))
        reward = graph.start_node("reward", **reward_parameters(settings))
        listener = graph.start_part("listener", "listener", robot_file=ROBOT_FILE, namespace="bench")
        graph.wait_active(sim, bridge, reward)
        gate = watched_gate(graph)
        agent = graph.start_part("agent", "agent", robot_file=ROBOT_FILE, rate_hz=CONTROL_HZ, namespace="bench")
        graph.spin_until(lambda: agent.said("ready") and listener.said("ready"), "agent and listener")
        graph.spin_until(lambda: gate and gate[-1].state == GateState.ACTIVE, "an active gate")
        graph.spin_for(2.0, "control, warming up")
        stops_before, used = gate[-1].stops, Used(graph.parts)
        listener.tell("go")
        graph.spin_for(settings.seconds, "control")
        stops, busy = gate[-1].stops - stops_before, used.in_words()
        noted = listener.results()
        if not (rewards := noted["rewards"]):
            raise Failed(f"the reward node published nothing: {reward.tail()}")
    wanted = [Wanted(*one) for one in noted["wanted"]]
    pairs = pair(wanted, [Command(*one) for one in noted["commands"]])
    # The last twist's command may have come when the listener was gone already.
    lost = len(wanted) - len(pairs) - (bool(wanted) and (not pairs or pairs[-1][0] != wanted[-1]))
    weights = "untrained" if settings.model is None else "the given"
    note = f"reward node with {weights} weights beside it; % of a core: {busy}"
    whole = [(command.arrived_ns - one.stamp_ns) / 1e9 for one, command in pairs]
    made = [(command.stamp_ns - one.stamp_ns) / 1e9 for one, command in pairs]
    first = [(one.arrived_ns - one.stamp_ns) / 1e9 for one, _ in pairs]
    second = [(command.arrived_ns - one.arrived_ns) / 1e9 for one, command in pairs]
    return [
        *latency_rows("camera stamp → command arrives", whole, (40.0, 100.0), note),
        *latency_rows("camera stamp → command's own stamp", made, None, "set by the bridge as it publishes"),
        *latency_rows("  of it, camera stamp → desired_twist", first, None, "rendering, transport, waiting, resizing"),
        *latency_rows("  of it, desired_twist → command", second, None, "difference of two arrivals"),
        Row("twists without a command", lost, "", None, len(wanted), f"gate stopped {stops} times"),
        Row("rewards beside it", len(rewards) / settings.seconds, "1/s", None, len(rewards), "one for each image: 30"),
        *latency_rows("camera stamp → reward", [one[2] for one in rewards], None, "as the reward node reports it"),
    ]


def budget(settings: Settings) -> list[Row]:
    """A camera that hands pictures over after their exposure, the agent node with its network, the gate; the reward."""
    from dr_interfaces.msg import GateState

    robot = {"robot_file": str(ROBOT_FILE)}
    aside = {f"camera/color/{name}": f"unused/{name}" for name in ("image_raw", "camera_info")}
    qos = QOS["best effort, depth 1"]
    with settings.graph("budget") as graph:
        # The robot's state only: its pictures would cost what no camera costs.
        sim = graph.start_node("sim_robot", remaps=aside, width=32, height=24, camera_rate_hz=1.0, **robot)
        bridge = graph.start_node("arm_bridge", **robot)
        reward = graph.start_node("reward", **reward_parameters(settings))
        agent = graph.start_node(
            "agent",
            remaps={"desired_twist": "wished/desired_twist"},
            policy="checkpoint",
            checkpoint=str(settings.agent.resolve()),
            crop="center",
            rate_hz=CONTROL_HZ,
            **robot,
        )
        marker = graph.start_part("marker", "marker", namespace="bench", **robot)
        listener = graph.start_part("listener", "listener", namespace="bench", **robot)
        graph.wait_active(sim, bridge, reward, agent)
        camera = graph.start_part(
            "camera",
            "camera",
            topic=f"/bench/{IMAGE_TOPIC}",
            reliability=qos[0],
            depth=qos[1],
            rate_hz=CAMERA_HZ,
            exposure_ms=settings.exposure_ms,
        )
        gate = watched_gate(graph)
        parts = (marker, listener, camera)
        graph.spin_until(lambda: all(part.said("ready") for part in parts), "the parts")
        camera.tell(f"go {ENDLESS}")  # before, it repeats one picture
        graph.spin_until(lambda: gate and gate[-1].state == GateState.ACTIVE, "an active gate")
        graph.spin_for(2.0, "budget, warming up")
        stops_before, used, load = gate[-1].stops, Used(graph.parts), load_average()
        listener.tell("go")
        graph.spin_for(settings.seconds, "budget")
        stops, busy, end_ns = gate[-1].stops - stops_before, used.in_words(), time.time_ns()
        marker.tell(f"age {TOO_OLD_MS}")
        graph.spin_for(DRAIN_S, "budget, old observations")
        old_ns = time.time_ns()
        graph.spin_for(OLD_SECONDS, "budget, old observations")
        noted = listener.results()
    every = [Wanted(*one) for one in noted["wanted"]]
    wanted, old = (
        [one for one in every if begin_ns <= one.arrived_ns < stop_ns]
        for begin_ns, stop_ns in ((0, end_ns), (old_ns, time.time_ns()))
    )
    commands = [Command(*one) for one in noted["commands"]]
    pairs, marked = pair(wanted, commands), pair(old, commands)
    whole = [(command.arrived_ns - one.stamp_ns) / 1e9 for one, command in pairs]
    oldest_ms = max(((command.stamp_ns - one.stamp_ns) / 1e6 for one, command in pairs), default=float("inf"))
    arrived_s = [one.arrived_ns / 1e9 for one in commands if one.arrived_ns < end_ns]
    gaps_s = [after - before for before, after in pairwise(arrived_s)]
    mean_ms = 1e3 * sum(gaps_s) / len(gaps_s) if gaps_s else float("inf")
    note = f"{settings.exposure_ms:g} ms exposure, agent {settings.agent.name}; load {load}; % of a core: {busy}"
    missing = f"{len(wanted) - len(pairs)} of {len(wanted)} twists without; gate stopped {stops} times"
    rewards = [one[2] for one in noted["rewards"]]
    return [
        *latency_rows("budget: camera stamp → command arrives", whole, (80.0, 150.0), note),
        Row("budget: oldest observation of a command", oldest_ms, "ms", None, len(pairs), missing),
        Row("budget: commands by too old ones", len(marked), "", 0, len(old), f"{TOO_OLD_MS:g} ms added"),
        Row(
            "budget: mean time between commands",
            mean_ms,
            "ms",
            PERIOD_MS,
            len(gaps_s),
            f"longest {1e3 * max(gaps_s, default=0.0):.1f} ms",
        ),
        *latency_rows("budget: camera stamp → reward", rewards, (None, 100.0), "one for each image"),
    ]


def reward_parameters(settings: Settings) -> dict[str, Any]:
    """Every image is scored, by a model of the default preset's size when none is given.

    On one thread, as two would fight with the other nodes for the cores. The pictures of a simulated arm at rest are
    all the same, which is no reason to stop it.
    """
    common = {"threads": 1, "frame_rate_hz": 0.0, "stop_limit": 0}
    if settings.model is not None:
        return {"model": str(settings.model.resolve()), **common}
    path = settings.folder / "model"
    if not path.exists():
        save_untrained_model(path)
    return {"model": str(path), "crop": "center", **common}


def save_untrained_model(path: Path) -> None:
    """A reward model of the default preset before training; the load is that of a trained one."""
    import torch

    from dr_core.presets import PRESETS
    from dr_core.rewards.model import Networks, RewardModel

    torch.manual_seed(0)
    config = PRESETS["default"]().model
    statistics = {config.estimator.name: {"none": {"mean": 0.0, "std": 1.0}}}
    RewardModel(config, Networks(config, 1), {"tasks": ["none"], "statistics": statistics}).save(path)


# ---- recording ----


def recorder_node(graph: Graph, settings: Settings, seconds: float, topics: list[str]) -> Part:
    """A recorder that writes below the benchmark's folder.

    Raises:
        Failed: the disk has too little room.
    """
    wanted = int(2 * CAMERA_HZ * (seconds + 5) * IMAGE_BYTES) + SPARE_BYTES
    free = shutil.disk_usage(settings.folder).free
    if free < wanted:
        place = f"{settings.folder} has {free / 1e9:.0f} GB free"
        raise Failed(f"{place}, recording needs {wanted / 1e9:.0f} GB: set TMPDIR, or shorten --recorder-seconds")
    return graph.start_node("recorder", directory=str(graph.folder / "episodes"), topics=topics, preroll_s=0.0)


def start_episode(graph: Graph, name: str) -> None:
    """Ask until the recorder has found its topics; raises Failed when it keeps refusing."""
    from dr_interfaces.srv import StartEpisode

    end_s = time.monotonic() + START_TIMEOUT_S
    while not (answer := graph.call(StartEpisode, "/bench/recorder/start", name=name, task="bench")).success:
        if time.monotonic() > end_s:
            raise Failed(f"recorder: {answer.message}")
        graph.spin_for(0.2, "recorder")


def recording(settings: Settings) -> list[Row]:
    """Two cameras into one episode; what was published, what is in the bag, what the recorder says it lost."""
    from diagnostic_msgs.msg import DiagnosticArray
    from dr_interfaces.srv import StopEpisode

    from dr_core.data.bags import bag_info

    seconds, topics = settings.recorder_seconds, [topic_of(name) for name in CAMERAS]
    with settings.graph("recording") as graph:
        written: dict[str, int] = {}

        def note(message: Any) -> None:
            for status in message.status:
                if status.name == "bench/recorder: episode":
                    written.update({pair.key: int(pair.value) for pair in status.values if pair.key in topics})

        graph.node.create_subscription(DiagnosticArray, "/diagnostics", note, 10)
        recorder = recorder_node(graph, settings, seconds, topics)
        cameras = start_cameras(graph, settings, CAMERAS, QOS["best effort, depth 1"])
        graph.wait_active(recorder)
        # A first episode, thrown away, shows that the images of both arrive.
        start_episode(graph, "trial")
        graph.spin_until(lambda: all(written.get(topic, 0) > 3 for topic in topics), "images at the recorder")
        for camera in cameras:
            camera.tell("hold")
        graph.spin_until(lambda: all(camera.said("held") for camera in cameras), "cameras that hold still")
        graph.spin_for(DRAIN_S, "recorder")
        graph.call(StopEpisode, "/bench/recorder/stop", outcome="aborted", discard=True)
        start_episode(graph, "episode")
        used = Used([recorder])
        shoot(graph, cameras, seconds, "recorder")
        busy = used.percent()[recorder.name]
        answer = graph.call(StopEpisode, "/bench/recorder/stop", outcome="success")
        if not answer.success:
            raise Failed(f"recorder: {answer.message}")
        peak = peak_mb(recorder.process.pid)
        published = sum(camera.results()["published"] for camera in cameras)
    info = bag_info(Path(answer.path))
    kept = sum(topic.count for topic in info.topics if topic.topic in topics)
    drops = info.metadata.drops if info.metadata is not None else {}
    shutil.rmtree(settings.folder / "recording" / "episodes")
    said = ", ".join(f"{name} {count}" for name, count in drops.items()) or "none"
    span = f"two cameras, best effort, {seconds:g} s"
    rate = f"{info.size_bytes / 1e6 / info.duration_s:.0f} MB/s"
    return [
        Row("recorder: images not in the bag", published - kept, "images", 0, published, span),
        Row("recorder: drops it reports", sum(drops.values()), "images", 0, published, said),
        Row("recorder: written", info.size_bytes / 1e9, "GB", None, None, rate),
        Row("recorder: processor", busy, "% of a core"),
        Row("recorder: peak memory, two cameras", peak, "MB", MEMORY_MB),
    ]


# ---- memory ----


def memory(settings: Settings) -> list[Row]:
    """Every node at once, in use; the largest resident memory of each."""
    import numpy as np

    from dr_core.data.video import write_video

    topics = [f"/bench/{IMAGE_TOPIC}", f"/webcam/{IMAGE_TOPIC}"]
    with settings.graph("memory") as graph:
        video = graph.folder / "video.mp4"
        wide = np.random.default_rng(0).integers(0, 256, (480, 700, 3), dtype=np.uint8)
        write_video(video, (wide[:, k : k + 640] for k in range(60)), CAMERA_HZ, lossless=False)
        robot = {"robot_file": str(ROBOT_FILE)}
        to_valve = {name: f"tested/{name}" for name in ("desired_twist", "action")}
        apart = {name: f"by_hand/{name}" for name in to_valve}  # the bridge listens to one
        nodes = [
            graph.start_node("sim_robot", **robot),
            graph.start_node("arm_bridge", **robot),
            graph.start_node("reward", **reward_parameters(settings)),
            graph.start_node("agent", remaps=to_valve, **robot),
            graph.start_node("teleop", remaps=apart, source="joy", **robot),
            graph.start_node("camera", namespace="webcam", path=str(video)),
            recorder_node(graph, settings, settings.seconds, topics),
        ]
        graph.wait_active(*nodes)
        evaluator = graph.start_node(
            "evaluator",
            out=str(graph.folder / "evaluation"),
            mode="full",
            agents=["tested"],
            episodes=1000,
            episode_s=max(1.0, settings.seconds / 4),
            task="bench",
            reset_service="sim_robot/reset",
            reset_gate=True,
            success_topic="success",
            **robot,
        )
        graph.wait_active(evaluator)
        graph.spin_for(settings.seconds, "memory")
        peaks = {part.name: peak_mb(part.process.pid) for part in graph.parts}
    shutil.rmtree(settings.folder / "memory" / "episodes")
    note = {"reward": "default preset, untrained weights" if settings.model is None else "the model given"}
    rows = []
    for name, peak in peaks.items():
        node = name.rpartition("/")[2]
        rows.append(Row(f"peak memory: {node}", peak, "MB", MEMORY_MB, None, note.get(node, "")))
    return rows


# ---- all of it ----

SECTIONS = {
    "transport": transport,
    "loss": losses,
    "control": control,
    "budget": budget,
    "recorder": recording,
    "memory": memory,
}


def stack_name(stack: str) -> str:
    if stack == "embedded":
        return f"embedded (cyclonedds {version('cyclonedds')})"
    return f"real ({os.environ.get('ROS_DISTRO', '?')}, {os.environ.get('RMW_IMPLEMENTATION', 'default rmw')})"


def load_average() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement but the recorder's")
    parser.add_argument("--recorder-seconds", type=float, default=300.0, help="55 MB of disk each, removed afterwards")
    parser.add_argument("--only", default=",".join(SECTIONS), help="a selection of these, with commas between them")
    parser.add_argument("--model", type=Path, help="directory of a reward model instead of an untrained one")
    parser.add_argument("--agent", type=Path, default=ROOT / "models" / "door-close" / "agent", help="of the budget")
    parser.add_argument(
        "--exposure-ms", type=float, default=33.0, help="stamp to hand-over of a picture, in the budget"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--leave-out", type=int, default=0, help=argparse.SUPPRESS)  # a test of the counting
    options = parser.parse_args()
    options.only = [name.strip() for name in options.only.split(",")]
    if unknown := sorted(set(options.only) - set(SECTIONS)):
        parser.error(f"--only: {unknown[0]} is none of {', '.join(SECTIONS)}")
    if options.model is not None and not options.model.is_dir():
        parser.error(f"--model: {options.model} is no directory")
    if not options.agent.is_dir():
        parser.error(f"--agent: {options.agent} is no directory")
    if not 0 <= options.exposure_ms < 1000:
        parser.error("--exposure-ms is 0 to 1000")
    if min(options.seconds, options.recorder_seconds) <= 0:
        parser.error("seconds are more than 0")
    return options


def main() -> int:
    options = parse()
    stack = use_sources()
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    # Ctrl-C stays a KeyboardInterrupt, so that every process is ended.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stack": stack_name(stack),
        "cores": os.cpu_count(),
        "processor": cpu_name(),
        "python": platform.python_version(),
        "load average before": load_average(),
    }
    rows: list[Row] = []
    warnings: list[str] = []
    status = 0
    with tempfile.TemporaryDirectory(prefix="bench_ros_") as folder:
        settings = Settings(
            seconds=options.seconds,
            recorder_seconds=options.recorder_seconds,
            model=options.model,
            agent=options.agent,
            exposure_ms=options.exposure_ms,
            leave_out=options.leave_out,
            folder=Path(folder),
            stack=stack,
        )
        try:
            for name in options.only:
                say(f"{name} …")
                others = OtherLoad()
                try:
                    rows += SECTIONS[name](settings)
                except Failed as failure:
                    warnings.append(f"{name} is not measured: {failure}")
                    status = 1
                facts[f"other programs, {name}"] = f"{others.share():.0%} of all cores"
                if others.share() > BUSY_SHARE:
                    words = f"took {others.share():.0%} of all cores: the figures are those of a busy machine"
                    warnings.append(f"{name}: other programs {words}")
        except KeyboardInterrupt:
            warnings.append("interrupted: what follows is missing")
            status = 130
    rclpy.try_shutdown()
    facts["load average after"] = load_average()
    show(rows, facts, warnings)
    if options.out:
        write(rows, facts, warnings, options.out)
    return status


if __name__ == "__main__":
    sys.exit(main())
