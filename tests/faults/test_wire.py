"""Faults that concern several nodes at once, injected between real processes over DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dr_core.config import load_yaml
from tests.nodes.conftest import ROOT, SOURCES, STACK, starter
from tests.nodes.test_arm_bridge import (
    ACTIVE,
    FORWARD,
    HOLD,
    IDLE,
    PERIOD_S,
    SIM_PANDA,
    STOPPED,
    PlayedRobot,
    robot_file,
    wait,
)

__all__ = ["robot_file"]

TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory, robot_file: str) -> Iterator[Any]:
    for start in starter(tmp_path_factory.mktemp("bridge")):
        yield start("arm_bridge", namespace="chain", robot_file=robot_file)


@pytest.fixture
def robot(bridge: Any, ros: None, call: Any) -> Iterator[PlayedRobot]:
    """A robot whose gate waits for commands."""
    from dr_interfaces.srv import ResetGate

    played = PlayedRobot("chain")
    try:
        reset = lambda: call(ResetGate, bridge.topic("~/reset_gate"), operator_name="test").success  # noqa: E731
        wait(lambda: reset() and played.state == IDLE)
        yield played
    finally:
        played.close()


def test_the_robot_file_keeps_the_times_of_the_gate() -> None:
    limits = load_yaml(SIM_PANDA)["limits"]
    assert limits["hold_after_s"] <= 0.2 and limits["stop_after_s"] <= 0.5, "of control at 10 Hz"


def test_an_observation_that_stops_ends_the_agents_actions_then_holds_then_stops(
    robot: PlayedRobot, start_node: Any, robot_file: str, diagnostics: Any, node: Any, spin_until: Any
) -> None:
    from geometry_msgs.msg import PoseStamped

    seeing = [True]
    publishers = [robot.node.create_publisher(PoseStamped, name, 1) for name in ("object_pose", "goal_pose")]

    def show() -> None:
        pose = PoseStamped()
        pose.header.stamp = robot.node.get_clock().now().to_msg()
        pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = 0.6, 0.1, 0.05
        for publisher in publishers if seeing[0] else []:
            publisher.publish(pose)

    robot.node.create_timer(0.05, show)
    agent = start_node(
        "agent",
        namespace="chain",
        robot_file=robot_file,
        policy="scripted",
        rate_hz=10.0,
        max_age_s=0.5,
        max_skew_s=0.5,
    )
    robot.wait_for(ACTIVE)
    seeing[0] = False
    blind_s = time.monotonic()
    robot.wait_for(HOLD)
    status = lambda: diagnostics.get("chain/agent: observation")  # noqa: E731
    assert spin_until(lambda: status() and status().level == b"\x01", node, timeout_s=TIMEOUT_S)
    stopped_s = robot.wait_for(STOPPED)
    assert stopped_s - blind_s < 0.5 + 2 * PERIOD_S + 1.0
    assert "no good command" in robot.causes[0]
    time.sleep(0.5)
    assert not robot.since(stopped_s + 0.5)
    assert agent.stop() == 0, "by a signal that lets it say goodbye, or its topic would seem in use for a while"


def test_commands_from_the_future_hold_then_stop(robot: PlayedRobot) -> None:
    robot.send(FORWARD)
    robot.wait_for(ACTIVE)
    robot.age_s = -5.0  # the clock of whoever sends them jumps ahead
    robot.wait_for(HOLD)
    robot.wait_for(STOPPED)
    assert "in the future" in robot.causes[0]


def test_a_reward_node_that_hangs_does_not_disturb_control(
    robot: PlayedRobot, start_node: Any, node: Any, spin_until: Any, diagnostics: Any, tmp_path: Path
) -> None:
    from dr_interfaces.msg import RewardStamped
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image

    from dr_core.robot.live_reward import relabel
    from dr_nodes.convert import array_to_image
    from tests.core.moving_square import moving_square, record
    from tests.nodes.conftest import values_of

    model = tiny_model(tmp_path)
    path = tmp_path / "run" / "model"
    reward = start_node(
        "reward", model=str(path), task="push", image_reliability="reliable", image_depth=100, ood_limit=0.0
    )
    rewards: list[Any] = []
    reliable = QoSProfile(depth=100)
    images = node.create_publisher(Image, reward.topic("camera/color/image_raw"), reliable)
    node.create_subscription(RewardStamped, reward.topic("reward"), rewards.append, reliable)
    state = lambda: diagnostics.get(f"{reward.namespace}/reward: state")  # noqa: E731
    ready = lambda: images.get_subscription_count() and state() and state().message == "active"  # noqa: E731
    assert spin_until(ready, node, timeout_s=TIMEOUT_S), reward.output()
    robot.send(FORWARD)
    robot.wait_for(ACTIVE)
    began = len(robot.states)
    frames = moving_square(500, expert=True, length=6)
    reward.process.send_signal(signal.SIGSTOP)
    for frame in frames:
        images.publish(array_to_image(frame, time.time_ns(), "eye"))
        time.sleep(0.1)
    time.sleep(2 * PERIOD_S)  # long enough for the gate to stop, if it waited for rewards
    reward.process.send_signal(signal.SIGCONT)
    assert spin_until(lambda: len(rewards) == len(frames), node, timeout_s=TIMEOUT_S), reward.output()
    assert all(one.latency_s > 0.1 for one in rewards)
    counts = lambda: values_of(diagnostics[f"{reward.namespace}/reward: frames"])  # noqa: E731
    assert spin_until(lambda: counts().get("late") == str(len(frames)), node, timeout_s=TIMEOUT_S), counts()
    assert {one for _, one, _ in robot.states[began:]} <= {ACTIVE}, "control went on"
    again = relabel(record(tmp_path / "bag", frames), model, task="push")
    assert len(again) == len(frames) and [one.valid for one in again[1:]] == [True] * (len(frames) - 1)


@pytest.mark.parametrize("fault", ["stuck", "not a number"])
def test_what_the_reward_sees_stops_the_arm(
    fault: str, robot: PlayedRobot, start_node: Any, node: Any, spin_until: Any, diagnostics: Any, tmp_path: Path
) -> None:
    from sensor_msgs.msg import Image

    from dr_core.checkpoint import load_checkpoint
    from dr_nodes.convert import array_to_image
    from tests.core.moving_square import moving_square
    from tests.nodes.test_reward_node import rewritten

    tiny_model(tmp_path)
    path = tmp_path / "run" / "model"
    if fault == "not a number":
        weights = load_checkpoint(path).tensors
        huge = {k: v * 1e30 for k, v in weights.items() if k.startswith("video.") and v.is_floating_point()}
        path = rewritten(path, tmp_path / "huge", tensors=huge)
    # Every picture is scored: none is skipped for the frame spacing, and no picture is too unfamiliar.
    start_node("reward", namespace="chain", model=str(path), task="push", frame_rate_hz=0.0, ood_limit=0.0)
    images = node.create_publisher(Image, "/chain/camera/color/image_raw", 1)
    state = lambda: diagnostics.get("chain/reward: state")  # noqa: E731
    ready = lambda: images.get_subscription_count() and state() and state().message == "active"  # noqa: E731
    assert spin_until(ready, node, timeout_s=TIMEOUT_S)
    frames = moving_square(500, expert=True, length=8)
    robot.send(FORWARD)
    robot.wait_for(ACTIVE)
    shown = 0
    while robot.state != STOPPED and shown < 60:
        frame = frames[min(shown, 2)] if fault == "stuck" else frames[shown % 8]
        images.publish(array_to_image(frame, time.time_ns(), "eye"))
        shown += 1
        time.sleep(0.1)
    words = {"stuck": "reward: the camera sends the same picture", "not a number": "reward: the reward is not a number"}
    assert robot.state == STOPPED and words[fault] in robot.causes[0], robot.causes
    assert shown >= 5, "not before the fifth"


def test_a_stuck_camera_stops_the_arm_without_a_reward_too(
    robot: PlayedRobot, start_node: Any, node: Any, spin_until: Any, robot_file: str, tmp_path: Path
) -> None:
    from sensor_msgs.msg import Image

    from dr_nodes.convert import array_to_image
    from tests.core.moving_square import moving_square
    from tests.faults.reactions import untrained_agent

    untrained_agent(tmp_path / "agent")
    own = {"robot_file": robot_file, "policy": "checkpoint", "checkpoint": str(tmp_path / "agent"), "stop_limit": 3}
    start_node("agent", namespace="chain", **own)
    images = node.create_publisher(Image, "/chain/camera/color/image_raw", 1)
    assert spin_until(images.get_subscription_count, node, timeout_s=TIMEOUT_S)
    frames = moving_square(500, expert=True, length=8)

    def show(moving: bool) -> None:
        images.publish(array_to_image(frames[int(time.time() * 20) % 8 if moving else 0], time.time_ns(), "eye"))
        time.sleep(0.05)

    end_s = time.monotonic() + TIMEOUT_S
    while robot.state != ACTIVE and time.monotonic() < end_s:
        show(moving=True)
    began = len(robot.states)
    for _ in range(20):
        show(moving=True)
    assert {state for _, state, _ in robot.states[began:]} <= {ACTIVE, HOLD}
    while robot.state != STOPPED and time.monotonic() < end_s:
        show(moving=False)
    assert robot.causes[0] == "agent: the camera sends the same picture, 3 times or more"


def tiny_model(folder: Path) -> Any:
    """A reward model trained for seconds."""
    from dataclasses import replace

    from dr_core.presets import PRESETS
    from dr_core.rewards.model import RewardModel
    from dr_core.rewards.train import train_reward
    from tests.core.moving_square import record_set

    expert, other = record_set(folder, episodes=1, length=8)
    preset = PRESETS["tiny"]()
    config = replace(preset, model=replace(preset.model, fsq=replace(preset.model.fsq, levels=(4, 4, 4))))
    train_reward(config, [expert], [other], folder / "run", resume=False)
    return RewardModel.load(folder / "run" / "model")


# ---- starting, and types nobody knows ----


@pytest.mark.parametrize("node_name", ["camera", "reward"])
def test_a_missing_parameter_file_ends_a_node_in_one_line(node_name: str) -> None:
    if STACK == "embedded":
        command = [sys.executable, "-m", "dr_embedded.run", f"dr_nodes.{node_name}:main"]
    else:
        command = [sys.executable, "-c", f"import sys; from dr_nodes.{node_name} import main; sys.exit(main())"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    done = subprocess.run(
        [*command, "--ros-args", "--params-file", "/nowhere.yaml"],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode not in (0, None)
    said = [line for line in done.stderr.splitlines() if "embedded stand-in" not in line]
    assert len(said) == 1 and "/nowhere.yaml" in said[0], done.stderr


@pytest.mark.skipif(STACK == "real", reason="an installed ROS 2 takes its types from packages")
def test_a_type_nobody_knows_is_skipped_by_name(
    start_node: Any, node: Any, spin_until: Any, call: Any, tmp_path: Path
) -> None:
    from dr_embedded.interfaces import interfaces
    from dr_interfaces.srv import StartEpisode, StopEpisode
    from rclpy.qos import QoSProfile
    from std_msgs.msg import String

    from dr_core.data.bags import bag_info

    interfaces().add_message("strange_msgs/msg/Thing", "int32 number\n")
    from strange_msgs.msg import Thing  # type: ignore[import-not-found]

    recorder = start_node(
        "recorder", directory=str(tmp_path / "episodes"), topics=["known"], optional_topics=["strange"], reserve_mib=0
    )
    reliable = QoSProfile(depth=10)
    known = node.create_publisher(String, recorder.topic("known"), reliable)
    strange = node.create_publisher(Thing, recorder.topic("strange"), reliable)
    topic = recorder.topic("strange")
    recorder.wait_for(f"{topic} is skipped: unknown message type strange_msgs/msg/Thing")
    assert spin_until(known.get_subscription_count, node, timeout_s=TIMEOUT_S)
    fields = {"name": "one", "task": "push", "operator_name": "ann", "notes": ""}
    answer = call(StartEpisode, recorder.topic("~/start"), **fields)
    assert answer.success, answer.message
    strange.publish(Thing(number=1))
    known.publish(String(data="hello"))
    time.sleep(0.5)
    assert call(StopEpisode, recorder.topic("~/stop"), outcome="success", discard=False).success
    recorded = {one.topic for one in bag_info(tmp_path / "episodes" / "one").topics}
    assert recorder.topic("known") in recorded and topic not in recorded
