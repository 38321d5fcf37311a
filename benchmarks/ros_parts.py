"""The processes that ros_graph.py puts around the nodes: cameras, receivers, an agent that acts on pictures.

    ros_parts.py camera  --topic T --reliability best_effort --depth 1 --rate-hz 30 --exposure-ms 0 --result R.json
    ros_parts.py sink    --topics T T --reliability best_effort --depth 1 --result R.json
    ros_parts.py agent   --robot-file F --rate-hz 9.9
    ros_parts.py marker  --robot-file F
    ros_parts.py listener --robot-file F --result R.json

Each prints "ready", takes commands on standard input (camera: hold, go N; listener: go; marker: age MS), and ends with
that input.
Every image says in header.frame_id which one it is and when it was handed to publish(), on the monotonic clock that
all processes of a machine share: "17 123456789012". Numbers below 0 are sent before the measurement begins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from dr_interfaces.msg import RewardStamped
from geometry_msgs.msg import TwistStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import Image

from dr_core.data.images import ImageRule
from dr_core.safety.limits import load_robot
from dr_nodes.convert import array_to_image, header, stamp_to_ns, to_array
from dr_nodes.messages import twist_to_values, values_to_twist

WIDTH, HEIGHT = 640, 480
PICTURES = 4
MODEL_SIZE = 64
MARK_STEP, MARKS = 1e-6, 64
SWING_M_S, SWING_S = 0.03, 4.0


def image_qos(reliability: str, depth: int) -> QoSProfile:
    return QoSProfile(depth=depth, reliability=getattr(ReliabilityPolicy, reliability.upper()))


def commands(take: Callable[[str], object], ended: Callable[[], object]) -> None:
    """Hand on the lines of standard input in a thread, and its end: whoever started this process is gone then."""

    def read() -> None:
        for line in sys.stdin:
            take(line.strip())
        ended()

    threading.Thread(target=read, daemon=True).start()


def spin(node: Node, take: Callable[[str], object] = lambda line: None) -> None:
    """Run callbacks until standard input ends."""
    done = Future()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    commands(take, lambda: done.set_result(None))
    executor.spin_until_future_complete(done)


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


# ---- cameras and who receives them ----


def camera(options: argparse.Namespace) -> None:
    """Publish noise at a fixed rate. Late pictures follow at once, none is left out but those asked for.

    Stamps lie before the hand-over by the exposure.
    """
    node = Node("bench_camera")
    publisher = node.create_publisher(Image, options.topic, image_qos(options.reliability, options.depth))
    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    messages = [array_to_image(picture, 0, "") for picture in noise]
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    commands(told.put, lambda: told.put("end"))
    period_ns = round(1e9 / options.rate_hz)
    number, count, left_out = -1, 0, 0
    due_ns = time.monotonic_ns()
    to_stamp_ns = time.time_ns() - due_ns - round(1e6 * options.exposure_ms)
    print("ready", flush=True)
    while True:
        # With nothing to do it waits to be told.
        line = told.get() if number == count or not told.empty() else ""
        command, _, value = line.partition(" ")
        if command == "end":
            return
        if command == "hold":
            number = count
            print("held", flush=True)
            continue
        if command == "go":
            number, count, due_ns = 0, int(value), time.monotonic_ns()
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        if options.leave_out and number >= 0 and number % options.leave_out == options.leave_out - 1:
            left_out += 1
        else:
            message = messages[number % PICTURES]
            message.header = header(due_ns + to_stamp_ns, "")
            message.header.frame_id = f"{number} {time.monotonic_ns()}"
            publisher.publish(message)
        due_ns += period_ns
        if number >= 0:
            number += 1
            if number == count:
                write(options.result, {"published": count, "left_out": left_out})
                print("done", flush=True)


def sink(options: argparse.Namespace) -> None:
    """Note which images arrive, and when."""
    node = Node("bench_sink")
    arrived: dict[str, list[tuple[int, int]]] = {topic: [] for topic in options.topics}  # (number, latency in ns)
    heard: set[str] = set()

    def note(topic: str, message: Any) -> None:
        now_ns = time.monotonic_ns()
        number, published_ns = map(int, message.header.frame_id.split())
        if number >= 0:
            arrived[topic].append((number, now_ns - published_ns))
        elif topic not in heard:
            heard.add(topic)
            if len(heard) == len(arrived):
                print("ready", flush=True)

    qos = image_qos(options.reliability, options.depth)
    for topic in arrived:
        node.create_subscription(Image, topic, lambda message, topic=topic: note(topic, message), qos)
    spin(node)
    write(options.result, arrived)


# ---- from the picture to the command ----


def swing(stamp_ns: int, number: int) -> list[float]:
    """A motion to and fro (m/s, rad/s); a turning speed too small to see marks the twist of this number."""
    speed = SWING_M_S * math.cos(2 * math.pi * stamp_ns * 1e-9 / SWING_S)
    return [speed, 0.0, 0.0, 0.0, 0.0, MARK_STEP * (1 + number % MARKS)]


def agent(options: argparse.Namespace) -> None:
    """Ten times a second: decode, crop and resize the newest picture, ask for a motion with the picture's stamp.

    The arm swings to and fro, so that no two pictures are alike.
    """
    robot = load_robot(options.robot_file)
    node = Node("bench_agent")
    newest: list[Any] = []
    rule = ImageRule(MODEL_SIZE, "center")
    twists = node.create_publisher(TwistStamped, "desired_twist", 1)
    acted: list[int] = []  # stamps of the pictures

    def keep(message: Any) -> None:
        newest[:] = [message]

    def act() -> None:
        if not newest or (acted and stamp_to_ns(newest[0].header.stamp) <= acted[-1]):
            return
        stamp_ns = stamp_to_ns(newest[0].header.stamp)
        small = rule.apply(to_array(newest[0]))
        assert small.shape == (MODEL_SIZE, MODEL_SIZE, 3)
        acted.append(stamp_ns)
        twists.publish(values_to_twist(stamp_ns, robot.frames.base, swing(stamp_ns, len(acted))))

    node.create_subscription(Image, "camera/color/image_raw", keep, image_qos("best_effort", 1))
    node.create_timer(1 / options.rate_hz, act)
    print("ready", flush=True)
    spin(node)


def marker(options: argparse.Namespace) -> None:
    """Where the evaluator's valve is: between the twists of an agent node and the gate, keeping their stamps.

    The arm swings whatever the agent wants of it, as an agent that sees noise would run into a limit. The command "age"
    makes observations older than they are.
    """
    robot = load_robot(options.robot_file)
    node = Node("bench_marker")
    twists = node.create_publisher(TwistStamped, "desired_twist", 1)
    count, older_ns = 0, 0

    def forward(message: Any) -> None:
        nonlocal count
        count += 1
        stamp_ns = stamp_to_ns(message.header.stamp)
        twists.publish(values_to_twist(stamp_ns - older_ns, robot.frames.base, swing(stamp_ns, count)))

    def age(line: str) -> None:
        nonlocal older_ns
        older_ns = round(1e6 * float(line.split()[1]))

    node.create_subscription(TwistStamped, "wished/desired_twist", forward, 1)
    print("ready", flush=True)
    spin(node, age)


def listener(options: argparse.Namespace) -> None:
    """Note twists, commands and rewards, from the command "go" on."""
    robot = load_robot(options.robot_file)
    node = Node("bench_listener")
    noted: dict[str, list[tuple[int, int, float]]] = {"wanted": [], "commands": [], "rewards": []}

    def note_twist(name: str, message: Any) -> None:
        now_ns = node.get_clock().now().nanoseconds
        noted[name].append((stamp_to_ns(message.header.stamp), now_ns, twist_to_values(message)[5]))

    def note_reward(message: Any) -> None:
        noted["rewards"].append((stamp_to_ns(message.header.stamp), 0, message.latency_s))

    def begin(line: str) -> None:
        for one in noted.values():
            one.clear()

    node.create_subscription(TwistStamped, "desired_twist", lambda message: note_twist("wanted", message), 50)
    node.create_subscription(TwistStamped, robot.topics.twist, lambda message: note_twist("commands", message), 50)
    node.create_subscription(RewardStamped, "reward", note_reward, 50)
    print("ready", flush=True)
    spin(node, begin)
    write(options.result, noted)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("role", choices=("camera", "sink", "agent", "marker", "listener"))
    parser.add_argument("--topic")
    parser.add_argument("--topics", nargs="+")
    parser.add_argument("--reliability", choices=("reliable", "best_effort"))
    parser.add_argument("--depth", type=int)
    parser.add_argument("--rate-hz", type=float)
    parser.add_argument("--leave-out", type=int, default=0, help="do not publish every so manieth image")
    parser.add_argument("--exposure-ms", type=float, default=0.0)
    parser.add_argument("--namespace", default="")
    parser.add_argument("--robot-file", type=Path)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    namespace = ["--ros-args", "-r", f"__ns:=/{options.namespace}"] if options.namespace else []
    rclpy.init(args=namespace)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        {"camera": camera, "sink": sink, "agent": agent, "marker": marker, "listener": listener}[options.role](options)
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
