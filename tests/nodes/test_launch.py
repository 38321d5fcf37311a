"""The launch files through `dr launch`: every graph started for real, seen on the wire, and ended without a trace."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dr_interfaces.msg import RewardStamped
from dr_interfaces.srv import StartEpisode, StopEpisode
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import GetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool

from dr_core.data.bags import bag_info
from dr_core.data.video import write_video
from dr_core.launching import declared
from dr_nodes.convert import joint_state
from tests.conformance.conftest import STACK
from tests.nodes.conftest import ROOT, SOURCES, TIMEOUT_S
from tests.nodes.test_reward_node import model_path

__all__ = ["model_path"]

FILES = sorted((ROOT / "launch").glob("*.launch.py"))
NAMES = [path.name.removesuffix(".launch.py") for path in FILES]
SENSOR = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
ROBOT_FILE = ROOT / "config" / "robots" / "sim_panda.yaml"
MARK = "DR_TEST_LAUNCH"


def dr(*words: str) -> list[str]:
    return [sys.executable, "-m", "dr_core.cli", "launch", *words]


def environment(mark: str = "") -> dict[str, str]:
    paths = [*map(str, SOURCES), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", MARK: mark}


def told(*words: str) -> subprocess.CompletedProcess[str]:
    """`dr launch …` that starts nothing."""
    return subprocess.run(dr(*words), env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)


class Launched:
    """`dr launch NAME …` in the background."""

    def __init__(self, output: Path, *words: str) -> None:
        self._output, self._mark = output, uuid.uuid4().hex
        with output.open("w") as stream:
            self.process = subprocess.Popen(
                dr(*words),
                cwd=output.parent,
                env=environment(self._mark),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        return self._output.read_text()

    def processes(self) -> list[int]:
        """It and everything that came from it, found by its environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # Of a process that has ended and is not waited for yet, the environment is empty.
                if f"{MARK}={self._mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # it has ended meanwhile, or is not ours
                continue
        return found

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal to it alone; its exit status, when it and all nodes have ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended()

    def ended(self, timeout_s: float = TIMEOUT_S) -> int:
        status = self.process.wait(timeout_s)
        if status < 0:  # nodes that it could not end itself
            end = time.monotonic() + TIMEOUT_S
            while self.processes() and time.monotonic() < end:
                time.sleep(0.05)
        assert self.processes() == [], self.output()
        return status


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """`launch("record", "path:=x.mp4", …)`; killed at the end."""
    started: list[Launched] = []

    def start(*words: str) -> Launched:
        started.append(Launched(tmp_path / f"launch_{len(started)}.out", *words))
        return started[-1]

    yield start
    for one in started:
        for pid in one.processes():
            os.kill(pid, signal.SIGKILL)
        one.process.wait()


class Listener:
    """Messages by topic."""

    def __init__(self, node: Any, spin_until: Any) -> None:
        self.node, self._spin_until = node, spin_until
        self.heard: dict[str, list[Any]] = {}

    def listen(self, kind: Any, topic: str, qos: Any = 10) -> list[Any]:
        self.heard[topic] = []
        self.node.create_subscription(kind, topic, self.heard[topic].append, qos)
        return self.heard[topic]

    def spin(self, condition: Callable[[], Any], launched: Launched) -> None:
        assert self._spin_until(condition, self.node, timeout_s=TIMEOUT_S), launched.output()[-5000:]

    def spin_for(self, seconds: float) -> None:
        self._spin_until(lambda: False, self.node, timeout_s=seconds)


@pytest.fixture
def listener(node: Any, spin_until: Any) -> Listener:
    return Listener(node, spin_until)


@pytest.fixture
def parameter(call: Any) -> Callable[[str, str], Any]:
    """`parameter("/agent", "policy")`: its value in a running node."""
    from rclpy.parameter import parameter_value_to_python

    def ask(node: str, name: str) -> Any:
        (value,) = call(GetParameters, f"{node}/get_parameters", names=[name]).values
        return parameter_value_to_python(value)

    return ask


@pytest.fixture
def recorded(listener: Listener, call: Any) -> Callable[..., set[str]]:
    """`recorded(launched, images)`: topics of an episode that is recorded until six more images have come."""

    def record(launched: Launched, images: list[Any]) -> set[str]:
        end = time.monotonic() + TIMEOUT_S
        while not (begun := call(StartEpisode, "/recorder/start", task="push")).success:
            assert time.monotonic() < end, begun.message  # until it has found the publishers
            listener.spin_for(0.1)
        seen = len(images)
        listener.spin(lambda: len(images) > seen + 5, launched)
        stopped = call(StopEpisode, "/recorder/stop", outcome="success")
        assert stopped.path, stopped.message
        return {topic.topic for topic in bag_info(Path(stopped.path)).topics}

    return record


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "noise.mp4", frames, 20.0, lossless=True)
    return tmp_path / "noise.mp4"


def test_the_five_launch_files_are_there() -> None:
    assert NAMES == ["calibrate", "evaluate", "record", "reward", "sim_demo"]
    documented = told("--help").stdout
    for path in FILES:
        assert len(path.read_text().splitlines()) < 90
        assert f"{path.name.removesuffix('.launch.py')}:" in documented


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_explained(name: str) -> None:
    shown = told(name, "--show-args")
    assert shown.returncode == 0, shown.stderr
    explained = dict(re.findall(r"^    '(\w+)':\n        (\S.*)$", shown.stdout, re.MULTILINE))
    assert list(explained) == declared(ROOT / "launch" / f"{name}.launch.py")
    assert len(explained) > 6
    assert not any("no description" in words or words.startswith("(default") for words in explained.values())


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["evaluat"], "'evaluate'"),
        (["sim_demo", "polcy:=disturbed"], "'policy'"),
        (["sim_demo", "--polcy", "disturbed"], "'policy'"),
        (["sim_demo", "policy"], "name:=value"),
        (["sim_demo", "--policy="], "no value"),
    ],
)
def test_names_are_checked_before_anything_starts(words: list[str], answer: str) -> None:
    done = told(*words)
    assert done.returncode == 2 and answer in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(STACK == "real", reason="ros2 launch says it in its own words")
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["sim_demo", "--policy", "drunk"], "policy is one of scripted, disturbed, not 'drunk'"),
        (["sim_demo", "--seed", "many"], "parameter seed"),
        (["record"], "'directory' was not provided"),
    ],
)
def test_values_are_checked_before_anything_starts(words: list[str], answer: str) -> None:
    done = told(*words)
    assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr
    assert "process started" not in done.stdout


def test_sim_demo_drives_and_records(
    launch: Any, listener: Listener, parameter: Any, recorded: Any, tmp_path: Path
) -> None:
    demo = launch(
        "sim_demo", "--policy", "disturbed", "--disturbance", "1", "--seed=3", "width:=64", "height:=48",
        f"directory:={tmp_path / 'episodes'}",
    )  # fmt: skip
    images = listener.listen(Image, "/camera/color/image_raw", SENSOR)
    commands = listener.listen(TwistStamped, "/servo_node/delta_twist_cmds")
    listener.spin(lambda: len(images) > 3 and len(commands) > 3, demo)
    assert (images[0].width, images[0].height) == (64, 48)
    assert (parameter("/agent", "policy"), parameter("/agent", "disturbance")) == ("disturbed", 1.0)
    assert [parameter(name, "seed") for name in ("/agent", "/sim_robot")] == [3, 3]
    topics = recorded(demo, images)
    assert {"/camera/color/image_raw", "/joint_states", "/servo_node/delta_twist_cmds", "/gate_state"} <= topics
    assert demo.stop() == 0, demo.output()
    assert "reward" not in demo.output(), "no model, no reward node"


def test_record_with_a_gamepad_and_a_renamed_topic(
    launch: Any, listener: Listener, parameter: Any, recorded: Any, video: Path, tmp_path: Path
) -> None:
    session = launch(
        "record", f"path:={video}", f"--robot-file={ROBOT_FILE}", "--teleop", "joy", "--image-topic", "/front/image",
        f"directory:={tmp_path / 'episodes'}",
    )  # fmt: skip
    images = listener.listen(Image, "/front/image", SENSOR)
    deadman = listener.listen(Bool, "/deadman")
    listener.spin(lambda: len(images) > 3 and deadman, session)
    assert parameter("/arm_bridge", "use_deadman") is True
    assert {"/front/image", "/deadman"} <= recorded(session, images)
    assert session.stop(signal.SIGTERM) == 0, session.output()


def test_calibrate_records_images_and_joints(
    launch: Any, listener: Listener, recorded: Any, video: Path, tmp_path: Path
) -> None:
    session = launch("calibrate", f"path:={video}", "joint_topic:=/arm/joints", f"directory:={tmp_path / 'poses'}")
    images = listener.listen(Image, "/camera/color/image_raw", SENSOR)
    joints = listener.node.create_publisher(JointState, "/arm/joints", 10)
    listener.node.create_timer(0.05, lambda: joints.publish(joint_state(time.time_ns(), ["j"], [0.1], [0.0])))
    listener.spin(lambda: len(images) > 3 and joints.get_subscription_count(), session)
    assert {"/camera/color/image_raw", "/arm/joints"} <= recorded(session, images)
    assert session.stop() == 0, session.output()


def test_reward_of_a_video(launch: Any, listener: Listener, model_path: Path, video: Path) -> None:
    session = launch("reward", f"model:={model_path}", f"path:={video}", "--crop", "center", "--frame-rate-hz", "0")
    rewards = listener.listen(RewardStamped, "/reward")
    listener.spin(lambda: len(rewards) > 2, session)
    assert rewards[0].header.frame_id == "camera_color_optical_frame"
    assert session.stop() == 0, session.output()


def test_evaluate_two_agents_in_simulation_to_the_end(launch: Any, listener: Listener, tmp_path: Path) -> None:
    out = tmp_path / "result"
    session = launch(
        "evaluate", "--sim", "--episodes", "1", "--episode-s", "1.0", "--policy-b", "disturbed", "--out", str(out)
    )
    first = listener.listen(TwistStamped, "/agent_a/desired_twist")
    second = listener.listen(TwistStamped, "/agent_b/desired_twist")
    listener.spin(lambda: first and second, session)
    assert session.ended() == 0, session.output()
    results = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert sorted(result["agent"] for result in results) == ["agent_a", "agent_b"]
    assert list(out.glob("*.html")), "a report"
    assert list(Path(f"{out}.episodes").iterdir()), "recordings"


def test_a_trained_agent_drives_the_simulated_sawyer(launch: Any, tmp_path: Path) -> None:
    """At the rate it was trained at; whether it gets there in time depends on the machine, and is not asked here."""
    out, agent = tmp_path / "result", Path(__file__).parents[2] / "models" / "door-close" / "agent"
    session = launch(
        "evaluate", "--sim", "--sim-task", "door-close", "--sim-width", "64", "--sim-height", "64",
        "--sim-camera-rate-hz", "40", "--policy", "checkpoint", "--checkpoint", str(agent),
        "--episodes", "1", "--episode-s", "10.0", "--task", "door-close", "--out", str(out),
    )  # fmt: skip
    assert session.ended() == 0, session.output()
    (result,) = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert result["outcome"] in ("success", "failure"), session.output()


def test_a_killed_launcher_takes_its_nodes_along(launch: Any, listener: Listener, video: Path, tmp_path: Path) -> None:
    session = launch("record", f"path:={video}", f"directory:={tmp_path / 'episodes'}")
    images = listener.listen(Image, "/camera/color/image_raw", SENSOR)
    listener.spin(lambda: images, session)
    assert len(session.processes()) == 3
    assert session.stop(signal.SIGKILL) == -signal.SIGKILL
