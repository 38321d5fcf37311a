"""Acts at a fixed rate on the freshest synchronised observation.

Publishes the action in [-1, 1] on action (std_msgs/Float64MultiArray, for recordings) and what it means for the robot
on desired_twist (geometry_msgs/TwistStamped), with the stamp of the observation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from std_msgs.msg import Float64MultiArray

from dr_core.agent.pushing import Disturbance, push_action
from dr_core.errors import ConfigError
from dr_core.safety.limits import load_robot
from dr_nodes import convert
from dr_nodes.common import OK, WARN, ManagedNode, Param, needed, run
from dr_nodes.messages import labelled_action, values_to_twist

Vector = NDArray[np.float64]
PARAMETERS = (
    Param("robot_file", "", "YAML file of the robot: what an action of 1 means, frames, topics"),
    Param("policy", "scripted", "who acts", choices=("scripted", "disturbed", "constant")),
    Param("rate_hz", 10.0, "actions a second", 0.1, 200.0),
    Param("seed", 0, "of the random actions of policy disturbed", 0, 2**31 - 1),
    Param("disturbance", 0.3, "share of random actions of policy disturbed", 0.0, 1.0),
    Param("constant", [0.0, 0.0, 0.0], "the action of policy constant, x, y, z in [-1, 1]"),
    Param("max_age_s", 0.15, "no action on an older observation", 0.001, 10.0),
    Param("max_skew_s", 0.03, "parts of one observation are no further apart", 0.0, 1.0),
)


class Agent(ManagedNode):
    """Collects the newest parts of the observation; a timer asks the policy."""

    def __init__(self) -> None:
        super().__init__("agent", PARAMETERS)
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def configure(self) -> None:
        self.robot = load_robot(needed(self.value("robot_file"), "robot_file", "the robot's YAML file"))
        self.policy, self.needs = self.make_policy()
        self.newest: dict[str, tuple[int, Vector]] = {}
        self.acted_ns = -1
        self.actions = self.create_lifecycle_publisher(Float64MultiArray, "action", 1)
        self.twists = self.create_lifecycle_publisher(TwistStamped, "desired_twist", 1)
        self.outputs = [self.actions, self.twists]
        topics = {"tool": self.robot.topics.tool_pose, "object": "object_pose", "goal": "goal_pose"}
        self.inputs = [
            self.create_subscription(PoseStamped, topics[part], partial(self.on_pose, part), 1) for part in self.needs
        ]

    def make_policy(self) -> tuple[Callable[..., Vector], tuple[str, ...]]:
        """A function of the parts of the observation that are named, giving an action (3,)."""
        name = self.value("policy")
        if name == "constant":
            action = np.array(self.value("constant"))
            if action.shape != (3,) or not (np.abs(action) <= 1.0).all():
                raise ConfigError(
                    "constant", expected="three numbers in [-1, 1]", found=str(action), next_step="change it"
                )
            return (lambda: action), ()
        parts = ("tool", "object", "goal")
        if name == "scripted":
            return push_action, parts
        disturb = Disturbance(self.value("disturbance"), self.value("seed"))
        return (lambda *observation: disturb(push_action(*observation))), parts

    def activate(self) -> None:
        self.beat = self.create_timer(1.0 / self.value("rate_hz"), self.act)

    def deactivate(self) -> None:
        self.destroy_timer(self.beat)

    def cleanup(self) -> None:
        for subscription in self.inputs:
            self.destroy_subscription(subscription)
        for publisher in self.outputs:
            self.destroy_lifecycle_publisher(publisher)
        self.inputs, self.outputs = [], []

    def on_pose(self, part: str, message: Any) -> None:
        self.newest[part] = (convert.stamp_to_ns(message.header.stamp), convert.pose_to_arrays(message)[0])

    def act(self) -> None:
        stamp_ns, problem = self.observation_stamp()
        if problem:
            self.diagnostics.set("observation", WARN, problem)
            return
        self.diagnostics.set("observation", OK, "fresh")
        self.acted_ns = stamp_ns
        action = np.clip(self.policy(*(self.newest[part][1] for part in self.needs)), -1.0, 1.0)
        self.publish(action, stamp_ns)

    def observation_stamp(self) -> tuple[int, str]:
        """The stamp of the newest whole observation, that of its oldest part; or why there is none."""
        now_ns = self.now_ns()
        if missing := [part for part in self.needs if part not in self.newest]:
            return 0, f"nothing seen of: {', '.join(missing)}"
        stamps = [self.newest[part][0] for part in self.needs] or [now_ns]
        stamp_ns = min(stamps)
        if max(stamps) - stamp_ns > self.value("max_skew_s") * 1e9:
            return 0, f"the parts of the observation are {(max(stamps) - stamp_ns) * 1e-9:.3f} s apart"
        if now_ns - stamp_ns > self.value("max_age_s") * 1e9:
            return 0, f"the observation is {(now_ns - stamp_ns) * 1e-9:.3f} s old"
        if stamp_ns == self.acted_ns:
            return 0, "no new observation"
        return stamp_ns, ""

    def publish(self, action: Vector, stamp_ns: int) -> None:
        self.actions.publish(labelled_action(action))
        linear = self.robot.action.linear_m_s * action
        self.twists.publish(values_to_twist(stamp_ns, self.robot.frames.base, [*linear, 0.0, 0.0, 0.0]))


def main() -> int:
    return run(Agent)


if __name__ == "__main__":
    sys.exit(main())
