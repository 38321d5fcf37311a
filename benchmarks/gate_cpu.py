"""Where the CPU time of the safety gate's process goes, at the rates of a robot with an agent of 10 Hz.

    python benchmarks/gate_cpu.py --seconds 30

The node is a process of its own and sends 50 commands a second; this one plays robot (joint states and tool pose at
--state-hz each) and agent. What is measured is user and system time, which other load changes little. A wake-up is a
voluntary context switch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from gate_load import ROBOT_FILE, Player, cpu_s, patient
from ros_processes import Graph, use_sources

AGENT_HZ = 10.0


def threads(pid: int) -> dict[str, tuple[float, int]]:
    """CPU seconds and voluntary context switches of each thread of a process so far, by the thread's name and id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        ran_ns = int((task / "schedstat").read_text().split()[0])
        lines = (task / "status").read_text().splitlines()
        switches = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
        found[f"{(task / 'comm').read_text().strip()} {task.name}"] = (ran_ns * 1e-9, switches)
    return found


def measure(seconds: float, state_hz: float, stack: str) -> None:
    from dr_interfaces.msg import GateState

    from dr_core.safety.gate import GateState as State
    from dr_core.safety.limits import load_robot

    with tempfile.TemporaryDirectory() as folder, Graph(Path(folder) / "gate", stack) as graph:
        # For a busy machine: a gate that stops has less to do.
        bridge = graph.start_node("arm_bridge", robot_file=str(patient(Path(folder) / "robot.yaml")))
        graph.wait_active(bridge)
        player = Player(graph.node, load_robot(ROBOT_FILE), AGENT_HZ, state_hz)
        states: Counter[str] = Counter()
        note = graph.node.create_subscription(
            GateState, "/bench/gate_state", lambda message: states.update([State(message.state).name]), 50
        )
        graph.spin_until(lambda: states["ACTIVE"] > 5, "an active gate")
        states.clear()
        player.came.clear()
        pid = bridge.process.pid
        before, spent_s, begin_s = threads(pid), cpu_s(pid), time.monotonic()
        graph.spin_for(seconds, "gate")
        spent_s, wall_s = cpu_s(pid) - spent_s, time.monotonic() - begin_s
        after = threads(pid)
        graph.node.destroy_subscription(note)
    changes = {}
    for name, (ran_s, switches) in after.items():
        ran_before_s, switches_before = before.get(name, (0.0, 0))
        changes[name] = (ran_s - ran_before_s, switches - switches_before)
    print(f"stack {stack}, {wall_s:.0f} s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"CPU {100 * spent_s / wall_s:.2f} % of one core (target 5)")
    print(f"wake-ups {sum(count for _, count in changes.values()) / wall_s:.0f} a second")
    for name, (ran_s, count) in sorted(changes.items(), key=lambda entry: -entry[1][0]):
        print(f"  thread {name}: {100 * ran_s / wall_s:.2f} %, {count / wall_s:.0f} wake-ups a second")
    print(f"states told: {dict(states)}; commands out {len(player.came) / wall_s:.1f} a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--state-hz", type=float, default=50.0, help="joint states and tool poses a second, each")
    options = parser.parse_args()
    stack = use_sources()
    import rclpy

    rclpy.init()
    try:
        measure(options.seconds, options.state_hz, stack)
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
