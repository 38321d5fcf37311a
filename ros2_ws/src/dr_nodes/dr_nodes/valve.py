"""The evaluator's valve between agents and the safety gate.

An agent X publishes its wishes on X/desired_twist, X/action and X/desired_gripper. Only in the modes slow and full, and
only while one of its episodes runs, they go on to desired_twist, action and desired_gripper. In dry-run and shadow
there are no publishers of these at all.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float64, Float64MultiArray

from dr_core.robot.evaluation import MOVING, Settings
from dr_core.robot.trial import Trials
from dr_nodes.common import ManagedNode
from dr_nodes.convert import stamp_to_ns
from dr_nodes.messages import twist_to_values, values_to_twist

KINDS = {"desired_twist": TwistStamped, "action": Float64MultiArray, "desired_gripper": Float64}


class Valve:
    """Hears the agents, asks ``trials`` what may pass, and sends that on.

    Args:
        node: the evaluator.
        trials: knows which agent's episode runs and how much of its wishes counts.
        settings: mode and agents.
        base_frame: of velocities.
    """

    def __init__(self, node: ManagedNode, trials: Trials, settings: Settings, base_frame: str) -> None:
        self._node, self._trials, self._base_frame = node, trials, base_frame
        moving = settings.mode in MOVING
        self._outputs = {
            topic: node.create_lifecycle_publisher(kind, topic, 1) for topic, kind in KINDS.items() if moving
        }
        callbacks = {"desired_twist": self._on_twist, "action": self._on_action, "desired_gripper": self._on_gripper}
        self._inputs = [
            node.create_subscription(KINDS[topic], f"{agent}/{topic}", partial(callback, agent), 10)
            for agent in settings.agents
            for topic, callback in callbacks.items()
        ]

    def rest(self, stamp_ns: int) -> None:
        """Ask for no motion."""
        self._outputs["desired_twist"].publish(values_to_twist(stamp_ns, self._base_frame, [0.0] * 6))

    def close(self) -> None:
        for subscription in self._inputs:
            self._node.destroy_subscription(subscription)
        for publisher in self._outputs.values():
            self._node.destroy_lifecycle_publisher(publisher)

    def _on_twist(self, agent: str, message: Any) -> None:
        if not self._node.active:
            return
        stamp_ns, values = stamp_to_ns(message.header.stamp), twist_to_values(message)
        factor = self._trials.wish(agent, time.monotonic(), self._node.now_ns(), stamp_ns, values[:3])
        if factor is not None:
            # Zeros are zeros also where the agent's numbers are not finite.
            scaled = [factor * value if factor else 0.0 for value in values]
            self._outputs["desired_twist"].publish(values_to_twist(stamp_ns, message.header.frame_id, scaled))

    def _on_action(self, agent: str, message: Any) -> None:
        if (factor := self._trials.passes(agent)) is not None:
            message.data = [factor * value for value in message.data]
            self._outputs["action"].publish(message)

    def _on_gripper(self, agent: str, message: Any) -> None:
        if self._trials.passes(agent) is not None:
            self._outputs["desired_gripper"].publish(message)
