"""A trained agent in a process of its own: pictures in over DDS, actions out with the camera's stamps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dr_core.agent.actor import ActingPolicy, Actor, ActorConfig, NetworkConfig
from dr_core.data.images import ImageRule
from dr_core.safety.limits import load_robot
from tests.nodes.conftest import ROOT

ROBOT = ROOT / "config" / "robots" / "sim_panda.yaml"
RATE_HZ = 10.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small agent with a gripper, trained by nobody."""
    path = tmp_path_factory.mktemp("agent") / "agent"
    torch.manual_seed(0)
    network = NetworkConfig(feature_size=8, hidden_size=16)
    config = ActorConfig(4, "reach", RATE_HZ, ImageRule(64, "center"), network=network)
    Actor(config).save(path)
    return path


class Camera:
    """Publishes pictures and notes what the agent makes of them."""

    def __init__(self, node: Any, namespace: str) -> None:
        from geometry_msgs.msg import TwistStamped
        from sensor_msgs.msg import Image
        from std_msgs.msg import Float64, Float64MultiArray

        self.node, self.topic = node, f"/{namespace}/camera/color/image_raw"
        self.publisher = node.create_publisher(Image, self.topic, 1)
        self.seen: dict[str, list[Any]] = {"action": [], "desired_twist": [], "desired_gripper": []}
        for kind, name in (
            (Float64MultiArray, "action"), (TwistStamped, "desired_twist"), (Float64, "desired_gripper"),
        ):  # fmt: skip
            node.create_subscription(kind, f"/{namespace}/{name}", self.seen[name].append, 10)

    def show(self, pixels: np.ndarray, *, late_s: float = 0.0, encoding: str = "rgb8") -> int:
        """Publish one picture; returns its stamp."""
        from dr_nodes import convert

        stamp_ns = int(self.node.get_clock().now().nanoseconds - late_s * 1e9)
        message = convert.array_to_image(pixels, stamp_ns, "camera")
        message.encoding = encoding
        self.publisher.publish(message)
        return stamp_ns


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)


def test_actions_are_those_of_the_checkpoint_with_the_cameras_stamp(
    start_node: Callable[..., Any], node: Any, spin_until: Any, checkpoint: Path
) -> None:
    agent = start_node("agent", robot_file=str(ROBOT), policy="checkpoint", checkpoint=str(checkpoint), max_age_s=5.0)
    camera = Camera(node, agent.namespace)
    twists = camera.seen["desired_twist"]
    shown: dict[int, np.ndarray] = {}
    frames = iter(np.tile(pictures(8), (100, 1, 1, 1)))

    def acted() -> bool:
        pixels = next(frames)
        shown[camera.show(pixels)] = pixels
        spin_until(lambda: False, node, timeout_s=0.1)
        return len(twists) >= 4

    assert spin_until(acted, node, timeout_s=90.0), agent.output()
    spin_until(lambda: all(len(found) == len(twists) for found in camera.seen.values()), node, timeout_s=2.0)
    policy, robot = ActingPolicy.load(checkpoint), load_robot(ROBOT)
    stamps = [twist.header.stamp.sec * 10**9 + twist.header.stamp.nanosec for twist in twists]
    assert stamps == sorted(set(stamps)), "each picture at most once, in order"
    for stamp_ns, twist, action, width in zip(
        stamps, twists, camera.seen["action"], camera.seen["desired_gripper"], strict=False
    ):
        wanted = policy.act(shown[stamp_ns])
        np.testing.assert_allclose(action.data, wanted, atol=1e-6)
        linear = twist.twist.linear
        np.testing.assert_allclose([linear.x, linear.y, linear.z], robot.action.linear_m_s * wanted[:3], atol=1e-6)
        assert width.data == pytest.approx(robot.limits.gripper_width_m * (1.0 - wanted[3]) / 2.0, abs=1e-6)


def test_it_does_not_act_on_stale_future_or_unknown_pictures(
    start_node: Callable[..., Any],
    node: Any,
    spin_until: Any,
    checkpoint: Path,
    diagnostics: dict[str, Any],
    state_of: Callable[[Any], str],
) -> None:
    agent = start_node("agent", robot_file=str(ROBOT), policy="checkpoint", checkpoint=str(checkpoint))
    camera = Camera(node, agent.namespace)
    pixels = pictures(1)[0]
    aspect = f"{agent.namespace}/agent: observation"

    def told(words: str, **how: Any) -> bool:
        def heard() -> bool:
            camera.show(pixels, **how)
            spin_until(lambda: False, node, timeout_s=0.05)
            return aspect in diagnostics and words in diagnostics[aspect].message

        return bool(spin_until(heard, node, timeout_s=90.0))

    assert told("s old", late_s=1.0), agent.output()
    assert told("in the future", late_s=-1.0), agent.output()
    assert not camera.seen["action"]
    camera.show(pixels, encoding="16UC1")
    agent.wait_for("encoding '16UC1'")
    assert state_of(agent) == "inactive"
    assert not camera.seen["action"]


def test_two_cameras_on_the_topic_are_refused(
    start_node: Callable[..., Any], node: Any, spin_until: Any, checkpoint: Path, state_of: Callable[[Any], str]
) -> None:
    agent = start_node("agent", robot_file=str(ROBOT), policy="checkpoint", checkpoint=str(checkpoint), max_age_s=5.0)
    first, second = Camera(node, agent.namespace), Camera(node, agent.namespace)

    def refused() -> bool:
        first.show(pictures(1)[0])
        second.show(pictures(1)[0])
        spin_until(lambda: False, node, timeout_s=0.05)
        return "expected one publisher" in agent.output()

    assert spin_until(refused, node, timeout_s=90.0), agent.output()
    assert state_of(agent) == "inactive"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"policy": "checkpoint"}, "parameter checkpoint"),
        ({"policy": "checkpoint", "checkpoint": "/nowhere/agent"}, "no such directory"),
        ({"policy": "constant", "constant": [0.0, 2.0, 0.0]}, "numbers in [-1, 1]"),
        ({"robot_file": "/nowhere.yaml"}, "/nowhere.yaml"),
    ],
)
def test_it_refuses_to_work_without_what_it_needs(
    start_node: Callable[..., Any], values: dict[str, Any], words: str
) -> None:
    agent = start_node("agent", **{"robot_file": str(ROBOT), **values})
    agent.wait_for("refused: ")
    assert words in agent.wait_for(words)
