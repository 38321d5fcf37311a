"""Drive the arm by hand, from the keyboard or a gamepad, with a dead-man switch.

While the switch is held: desired_twist (geometry_msgs/TwistStamped) and action (for recordings). Always: deadman
(std_msgs/Bool), on which arm_bridge with use_deadman relies. Both sources have a key for the emergency stop.

    keyboard  w s: x   a d: y   r f: z   o c: gripper   space: emergency stop
              A terminal does not tell when a key is let go: motion ends key_hold_s after the last one.
    joy       sensor_msgs/Joy on joy; axes and buttons by parameter; motion only while deadman_button is pressed
"""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from numpy.typing import NDArray
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool, Float64, Float64MultiArray

from dr_core.errors import ConfigError
from dr_core.safety.limits import load_robot
from dr_nodes.common import ManagedNode, Param, needed, run
from dr_nodes.messages import labelled_action, values_to_twist

KEYS = {
    "w": (1.0, 0.0, 0.0),
    "s": (-1.0, 0.0, 0.0),
    "a": (0.0, 1.0, 0.0),
    "d": (0.0, -1.0, 0.0),
    "r": (0.0, 0.0, 1.0),
    "f": (0.0, 0.0, -1.0),
}
PARAMETERS = (
    Param("robot_file", "", "YAML file of the robot: what full deflection means, frames, topics"),
    Param("source", "keyboard", "what is used", choices=("keyboard", "joy")),
    Param("rate_hz", 20.0, "commands a second", 1.0, 200.0),
    Param("key_hold_s", 0.3, "keyboard: motion goes on for so long after the last key", 0.05, 2.0),
    Param("axes", [1, 0, 4], "joy: axes for x, y, z"),
    Param("deadman_button", 4, "joy: the button that must be held", 0, 100),
    Param("estop_button", 1, "joy: the button for the emergency stop", 0, 100),
    Param("joy_timeout_s", 0.2, "joy: without a message for so long, the dead-man counts as released", 0.02, 2.0),
)


class Teleop(ManagedNode):
    """Turns keys and axes into actions in [-1, 1]; never waits for either."""

    def __init__(self) -> None:
        super().__init__("teleop", PARAMETERS)
        self.terminal: list[Any] | None = None
        self.outputs: dict[str, Any] = {}
        self.joy_input: Any = None

    def configure(self) -> None:
        self.robot = load_robot(needed(self.value("robot_file"), "robot_file", "the robot's YAML file"))
        self.action: NDArray[np.float64] = np.zeros(3)
        self.held_until_s = 0.0
        if self.value("source") == "joy":
            self.joy_input = self.create_subscription(Joy, "joy", self.on_joy, 1)
        elif sys.stdin.isatty():
            self.terminal = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        else:
            raise ConfigError(
                "source keyboard",
                expected="a terminal on standard input",
                found="none",
                next_step="start teleop in a terminal of its own, or use -p source:=joy",
            )
        for name, kind, topic in (
            ("twist", TwistStamped, "desired_twist"),
            ("action", Float64MultiArray, "action"),
            ("deadman", Bool, "deadman"),
            ("gripper", Float64, "desired_gripper"),
            ("estop", Bool, self.robot.topics.estop),
        ):
            self.outputs[name] = self.create_lifecycle_publisher(kind, topic, 1)

    def activate(self) -> None:
        self.beat = self.create_timer(1.0 / self.value("rate_hz"), self.tick)

    def deactivate(self) -> None:
        self.destroy_timer(self.beat)

    def cleanup(self) -> None:
        if self.terminal is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self.terminal)
            self.terminal = None
        if self.joy_input is not None:
            self.destroy_subscription(self.joy_input)
            self.joy_input = None
        while self.outputs:
            self.destroy_lifecycle_publisher(self.outputs.popitem()[1])

    def tick(self) -> None:
        if self.terminal is not None:
            self.read_keys()
        held = time.monotonic() < self.held_until_s
        self.outputs["deadman"].publish(Bool(data=held))
        if not held:
            return
        linear = self.robot.action.linear_m_s * self.action
        stamp_ns, base = self.now_ns(), self.robot.frames.base
        self.outputs["twist"].publish(values_to_twist(stamp_ns, base, [*linear, 0.0, 0.0, 0.0]))
        self.outputs["action"].publish(labelled_action(self.action))

    def read_keys(self) -> None:
        while select.select([sys.stdin], [], [], 0.0)[0]:
            key = sys.stdin.read(1)
            if key == "":  # the terminal is gone
                self.held_until_s = 0.0
                return
            if key in KEYS:
                self.action = np.array(KEYS[key])
                self.held_until_s = time.monotonic() + self.value("key_hold_s")
            elif key in "oc":
                width_m = self.robot.limits.gripper_width_m if key == "o" else 0.0
                self.outputs["gripper"].publish(Float64(data=width_m))
            elif key == " ":
                self.press_estop()

    def on_joy(self, message: Any) -> None:
        axes, buttons = list(message.axes), list(message.buttons)
        wanted = [self.value("deadman_button"), self.value("estop_button")]
        if max(self.value("axes")) >= len(axes) or max(wanted) >= len(buttons):
            self.held_until_s = 0.0
            self.get_logger().warning(
                f"joy has {len(axes)} axes and {len(buttons)} buttons, fewer than the parameters name",
                throttle_duration_sec=2.0,
            )
            return
        if buttons[wanted[1]] and self.active:
            self.press_estop()
        action = np.array([axes[i] for i in self.value("axes")])
        usable = bool(buttons[wanted[0]]) and bool(np.isfinite(action).all())
        self.action = np.clip(action, -1.0, 1.0)
        self.held_until_s = time.monotonic() + self.value("joy_timeout_s") if usable else 0.0

    def press_estop(self) -> None:
        self.held_until_s = 0.0
        self.outputs["estop"].publish(Bool(data=True))
        self.get_logger().error("emergency stop")


def main() -> int:
    return run(Teleop)


if __name__ == "__main__":
    sys.exit(main())
