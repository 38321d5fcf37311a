"""What the safety gate costs: CPU time of its process, memory, and the time from a command in to a command out.

    python benchmarks/gate_load.py --seconds 30

The node is a process of its own, at 50 Hz; this one plays robot (joint states and tool pose, 50 Hz each) and agent
(30 Hz). Latency is from just before `publish()` here to the arrival, here, of the first command that the gate made
after that moment. About one time in twenty that is the gate's regular one, which comes sooner than the answer.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ros_processes import ROOT, Graph, use_sources

COMMAND_HZ, STATE_HZ = 30.0, 50.0
ROBOT_FILE = ROOT / "config" / "robots" / "sim_panda.yaml"
HOME_RAD = (0.0, -0.1, 0.0, -2.7, 0.0, 1.0, 0.0)
HOME_M = (0.5, 0.0, 0.2)
HOME = np.array(HOME_M), np.array([0.0, 0.0, 0.0, 1.0])


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Its resident memory now."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Player:
    """Robot and agent in one ROS node; notes when commands were wanted and when they came."""

    def __init__(self, node: Any, robot: Any, command_hz: float = COMMAND_HZ, state_hz: float = STATE_HZ) -> None:
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from sensor_msgs.msg import JointState

        self.node, self.robot = node, robot
        self.wanted: list[tuple[int, int]] = []  # ROS time and monotonic time, ns
        self.came: list[tuple[int, int]] = []
        make = partial(node.create_publisher, qos_profile=1)
        name = "/bench/{}".format
        self.joints = make(JointState, name(robot.topics.joint_states))
        self.pose = make(PoseStamped, name(robot.topics.tool_pose))
        self.twist = make(TwistStamped, name("desired_twist"))
        node.create_subscription(TwistStamped, name(robot.topics.twist), self.note, 50)
        node.create_timer(1.0 / state_hz, self.report)
        node.create_timer(1.0 / command_hz, self.want)

    def note(self, message: Any) -> None:
        stamp = message.header.stamp
        self.came.append((stamp.sec * 10**9 + stamp.nanosec, time.monotonic_ns()))

    def report(self) -> None:
        from dr_nodes import convert

        now_ns = self.node.get_clock().now().nanoseconds
        self.joints.publish(convert.joint_state(now_ns, self.robot.joints, HOME_RAD, [0.0] * len(HOME_RAD)))
        self.pose.publish(convert.arrays_to_pose(now_ns, self.robot.frames.base, *HOME))

    def want(self) -> None:
        from dr_nodes.messages import values_to_twist

        now_ns = self.node.get_clock().now().nanoseconds
        speed = 0.05 * math.sin(2.0 * math.pi * now_ns * 1e-9)
        message = values_to_twist(now_ns, self.robot.frames.base, [speed, -speed, 0.0, 0.0, 0.0, 0.0])
        self.wanted.append((self.node.get_clock().now().nanoseconds, time.monotonic_ns()))
        self.twist.publish(message)

    def latencies_ms(self) -> list[float]:
        found, place = [], 0
        for asked_ns, begin_ns in self.wanted:
            while place < len(self.came) and self.came[place][0] < asked_ns:
                place += 1
            if place < len(self.came):
                found.append((self.came[place][1] - begin_ns) * 1e-6)
        return found


def arithmetic_s(robot: Any, calls: int = 2000) -> float:
    """CPU seconds of one `SafetyGate.step` while the arm moves."""
    from dr_core.safety.gate import Command, RobotState, SafetyGate

    gate = SafetyGate(robot.limits, "twist")
    now_ns, spent_s = 10**12, 0.0
    for i in range(calls):
        now_ns += 12_500_000
        state = RobotState(now_ns - 10**7, HOME_RAD, (0.0,) * 7, HOME_M)
        command = Command(now_ns, (0.1 * math.sin(0.1 * i), 0.05, 0.0, 0.0, 0.0, 0.0))
        begin_s = time.thread_time()
        gate.step(now_ns, command, state)
        spent_s += time.thread_time() - begin_s
    return spent_s / calls


def measure(seconds: float, stack: str) -> None:
    from dr_core.safety.limits import load_robot

    robot = load_robot(ROBOT_FILE)
    with tempfile.TemporaryDirectory() as folder, Graph(Path(folder) / "gate", stack) as graph:
        # For a busy machine: a gate that stops has less to do.
        slow = {"robot_file": str(patient(Path(folder) / "robot.yaml"))}
        bridge = graph.start_node("arm_bridge", **slow)
        graph.wait_active(bridge)
        player = Player(graph.node, robot)
        graph.spin_until(lambda: len(player.came) > 100, "commands of the gate")
        player.came.clear()
        player.wanted.clear()
        pid = bridge.process.pid
        spent_s, begin_s = cpu_s(pid), time.monotonic()
        graph.spin_for(seconds, "gate")
        wall_s = time.monotonic() - begin_s
        spent_s = cpu_s(pid) - spent_s
        latencies = player.latencies_ms()
        own = arithmetic_s(robot)
        rate_hz = len(player.came) / wall_s
        print(f"stack {stack}, {wall_s:.0f} s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"CPU {100 * spent_s / wall_s:.2f} % of one core (target 5); memory {memory_mb(pid):.0f} MB")
        print(f"  of it the gate's arithmetic {1e6 * own:.0f} us a step: {100 * own * rate_hz:.2f} %")
        print(f"commands out {rate_hz:.1f} a second, in {len(player.wanted) / wall_s:.1f}")
        print(
            f"command in -> command out p50 {percentile(latencies, 0.5):.2f}, p99 {percentile(latencies, 0.99):.2f}, "
            f"max {max(latencies):.2f} ms, n {len(latencies)}"
        )


def patient(path: Path) -> Path:
    """The robot's file with longer times."""
    from dr_core.config import dump_yaml, load_yaml

    whole = load_yaml(ROBOT_FILE)
    times = {"max_age_s": 2.0, "hold_after_s": 2.0, "stop_after_s": 4.0, "state_max_age_s": 2.0}
    dump_yaml(path, {**whole, "limits": {**whole["limits"], **times}})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    stack = use_sources()
    import rclpy

    rclpy.init()
    try:
        measure(options.seconds, stack)
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
