"""Campaign `kill_node`: the recorder node, which takes its pictures over DDS, dies by SIGKILL at a random instant."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from dr_core.data.bags import check_bag, repair_bag
from dr_core.data.episodes import read_metadata
from dr_core.errors import BagError
from tests.faults.campaigns.recording import digest, spread

COUNT = 10
TIMEOUT_S = 90.0
PERIOD_S = 1 / 30


def run(count: int = COUNT, seed: int = 0) -> dict[str, Any]:
    """Kill ``count`` nodes, each in its second episode of 96 x 96 pictures at 30 Hz.

    Returns:
        First episodes that are not what they were (0), seconds lost of the second, problems in words.
    """
    import_module("tests.nodes.conftest")  # makes rclpy there where ROS 2 is not installed
    import rclpy

    rng, changed, lost_s, problems = random.Random(seed), 0, [], []
    rclpy.init(args=[])
    try:
        for number in range(count):
            with tempfile.TemporaryDirectory() as folder:
                other, seconds, faults = _one(Path(folder), f"kill_{number}", rng)
            changed += other
            lost_s += seconds
            problems += faults
    finally:
        rclpy.try_shutdown()
    return {"runs": count, "closed_changed": changed, "open_lost_s": spread(lost_s), "problems": problems}


def _one(folder: Path, name: str, rng: random.Random) -> tuple[int, list[float], list[str]]:
    import numpy as np
    import rclpy
    from dr_interfaces.srv import StartEpisode, StopEpisode
    from rclpy.node import Node
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image

    from dr_nodes.convert import array_to_image
    from tests.nodes.conftest import NodeProcess

    parameters = {"directory": str(folder / "episodes"), "topics": ["image"], "preroll_s": 0.0, "reserve_mib": 0}
    process = NodeProcess("recorder", folder / "nodes", parameters, name, {})
    node: Any = Node(f"{name}_camera")
    images = node.create_publisher(Image, process.topic("image"), QoSProfile(depth=100))

    def wait(condition: Callable[[], Any], what: str) -> None:
        end_s = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > end_s or process.process.poll() is not None:
                raise RuntimeError(f"{what}\n{process.output()[-3000:]}")
            rclpy.spin_once(node, timeout_sec=0.05)

    def call(kind: Any, service: str, **fields: Any) -> None:
        client = node.create_client(kind, process.topic(service))
        wait(client.service_is_ready, f"no {service}")
        future = client.call_async(kind.Request(**fields))
        wait(future.done, f"no answer of {service}")
        if not future.result().success:
            raise RuntimeError(future.result().message)

    def send(until_s: float) -> int:
        """Pictures until then; returns the stamp of the last one."""
        stamp_ns = 0
        while time.monotonic() < until_s:
            stamp_ns = time.time_ns()
            images.publish(array_to_image(np.full((96, 96, 3), 7, np.uint8), stamp_ns, "eye"))
            time.sleep(PERIOD_S)
        return stamp_ns

    try:
        wait(images.get_subscription_count, "no recorder")
        call(StartEpisode, "~/start", name="first", task="push", operator_name="ann", notes="")
        send(time.monotonic() + 0.5)
        call(StopEpisode, "~/stop", outcome="success", discard=False)
        before = digest(folder / "episodes" / "first")
        call(StartEpisode, "~/start", name="second", task="push", operator_name="ann", notes="")
        last_ns = send(time.monotonic() + rng.uniform(0.2, 2.0))
    finally:
        process.stop(signal.SIGKILL)
        node.destroy_node()
    return _examine(folder / "episodes", before, process.topic("image"), last_ns)


def _examine(episodes: Path, before: str, topic: str, last_ns: int) -> tuple[int, list[float], list[str]]:
    from dr_core.data.messages import decode_image
    from dr_core.data.storage import locate, scan

    first, saved = episodes / "first", episodes / "saved"
    problems = [line for line in check_bag(first) if "messages dropped" not in line]
    changed = int(digest(first) != before)
    try:
        repair_bag(episodes / ".second.recording", saved)
    except BagError as error:
        return changed, [], [*problems, str(error)]
    if read_metadata(saved).outcome != "partial":
        problems.append("a part became a success")
    stamps = [decode_image(message)[0] for message in scan(locate(saved), {topic}, lambda *_: None)]
    return changed, [(last_ns - stamps[-1]) / 1e9] if stamps else [], problems
