"""Acts at a fixed rate on the freshest synchronised observation.

Publishes the action in [-1, 1] on action (std_msgs/Float64MultiArray, for recordings) and what it means for the robot
on desired_twist (geometry_msgs/TwistStamped) and, where it has a gripper, desired_gripper (std_msgs/Float64, m). The
stamp is that of the observation: the camera's of a trained policy's picture, less the time offset of rig_file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Float64, Float64MultiArray, String

from dr_core.agent.pushing import Disturbance, push_action
from dr_core.agent.route import Traveller, load_route
from dr_core.data.images import DamagedImage
from dr_core.errors import ConfigError, UserError
from dr_core.robot.frames import FUTURE_LIMIT_NS, Repeats
from dr_core.safety.limits import load_robot
from dr_nodes import convert
from dr_nodes.common import (
    IMAGE_QOS,
    OK,
    STOP_LIMIT,
    WARN,
    ManagedNode,
    Param,
    image_qos,
    needed,
    refuse_second_publisher,
    run,
)
from dr_nodes.messages import action_to_motion, labelled_action, values_to_twist
from dr_nodes.rig_watch import time_offset_ns

Vector = NDArray[np.float64]
IMAGES = "camera/color/image_raw"
ACTION_SIZES = (3, 4, 6, 7)
PARAMETERS = (
    Param("robot_file", "", "YAML file of the robot: what an action of 1 means, frames, topics"),
    Param("policy", "scripted", "who acts", choices=("scripted", "disturbed", "constant", "route", "checkpoint")),
    Param("route", "", "YAML file of policy route: poses [[x, y, z, qx, qy, qz, qw], ...] of the tool, dwell_s"),
    Param("checkpoint", "", "directory of the trained agent, for policy checkpoint"),
    Param("device", "cpu", "of the trained agent, cpu or cuda:N"),
    Param("crop", "", "none, center, or x,y,width,height in pixels; empty: as the agent was trained"),
    Param("rate_hz", 0.0, "actions a second; 0: as the agent was trained, 10 for the other policies", 0.0, 200.0),
    Param("seed", 0, "of the random actions of policy disturbed", 0, 2**31 - 1),
    Param("disturbance", 0.5, "share of random actions of policy disturbed", 0.0, 1.0),
    Param("constant", [0.0, 0.0, 0.0], "the action of policy constant, x, y, z in [-1, 1]"),
    Param("max_age_s", 0.15, "no action on an older observation", 0.001, 10.0),
    Param("max_skew_s", 0.03, "parts of one observation are no further apart", 0.0, 1.0),
    Param("rig_file", "", "calibration of the camera: its time offset puts pictures on the robot's clock; empty: none"),
    STOP_LIMIT,
    *IMAGE_QOS,
)


class Agent(ManagedNode):
    """Collects the newest parts of the observation; a timer asks the policy."""

    def __init__(self) -> None:
        super().__init__("agent", PARAMETERS)
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def configure(self) -> None:
        self.robot = load_robot(needed(self.value("robot_file"), "robot_file", "the robot's YAML file"))
        self.rate_hz = self.value("rate_hz") or 10.0
        self.forget: Callable[[], None] = lambda: None
        self.policy, self.needs = self.make_policy()
        self.newest: dict[str, tuple[int, Any]] = {}
        self.acted_ns = -1
        self.image_offset_ns = time_offset_ns(self.value("rig_file"))
        self.actions = self.create_lifecycle_publisher(Float64MultiArray, "action", 1)
        self.twists = self.create_lifecycle_publisher(TwistStamped, "desired_twist", 1)
        self.gripper = self.create_lifecycle_publisher(Float64, "desired_gripper", 1)
        self.stops = self.create_lifecycle_publisher(String, "stop_request", 10)
        self.outputs = [self.actions, self.twists, self.gripper, self.stops]
        self.repeats = Repeats()
        poses = {"tool": self.robot.topics.tool_pose, "object": "object_pose", "goal": "goal_pose"}
        self.inputs = [
            self.create_subscription(PoseStamped, poses[part], partial(self.on_part, part), 1)
            for part in self.needs
            if part in poses
        ]
        if "image" in self.needs:
            images = self.create_subscription(Image, IMAGES, partial(self.on_part, "image"), image_qos(self))
            self.image_topic = images.topic_name
            self.inputs.append(images)

    def make_policy(self) -> tuple[Callable[..., Vector], tuple[str, ...]]:
        """A function of the parts of the observation that are named (as messages), giving an action (A,)."""
        name = self.value("policy")
        if name == "constant":
            action = np.array(self.value("constant"))
            if len(action) not in ACTION_SIZES or not (np.abs(action) <= 1.0).all():
                raise ConfigError(
                    "constant", expected="3, 4, 6 or 7 numbers in [-1, 1]", found=str(action), next_step="change it"
                )
            return (lambda: action), ()
        if name == "checkpoint":
            return self.load_policy(), ("image",)
        if name == "route":
            return self.load_route(), ("tool",)
        parts = ("tool", "object", "goal")
        disturb = Disturbance(self.value("disturbance") if name == "disturbed" else 0.0, self.value("seed"))
        return (lambda *poses: disturb(push_action(*(convert.pose_to_arrays(pose)[0] for pose in poses)))), parts

    def load_route(self) -> Callable[..., Vector]:
        route = load_route(needed(self.value("route"), "route", "the poses to visit, in a YAML file"))
        scale = self.robot.action
        traveller = Traveller(route, scale.linear_m_s, scale.angular_rad_s)
        self.forget = traveller.restart

        def act(tool: Any) -> Vector:
            before = traveller.status
            velocity = traveller(1e-9 * convert.stamp_to_ns(tool.header.stamp), *convert.pose_to_arrays(tool))
            if traveller.status != before:
                self.get_logger().info(traveller.status)
            return velocity / np.repeat([scale.linear_m_s, scale.angular_rad_s], 3)

        return act

    def load_policy(self) -> Callable[..., Vector]:
        path = Path(needed(self.value("checkpoint"), "checkpoint", "the directory of a trained agent"))
        from dr_core.agent.actor import ActingPolicy

        policy = ActingPolicy.load(path, self.value("device"), self.value("crop"))
        if policy.config.action_size not in ACTION_SIZES:
            raise ConfigError(
                str(path),
                expected="an agent with actions of 3, 4, 6 or 7 numbers: x y z, turns, gripper",
                found=f"{policy.config.action_size}",
                next_step="give an agent that was trained for an arm",
            )
        self.rate_hz = self.value("rate_hz") or policy.config.rate_hz
        self.forget = policy.reset
        return lambda image: policy.act(convert.to_array(image))

    def activate(self) -> None:
        self.forget()
        self.newest.clear()
        self.repeats.clear()
        self.due = False
        self.beat = self.create_timer(1.0 / self.rate_hz, self.tick)

    def deactivate(self) -> None:
        self.destroy_timer(self.beat)

    def cleanup(self) -> None:
        for subscription in self.inputs:
            self.destroy_subscription(subscription)
        for publisher in self.outputs:
            self.destroy_lifecycle_publisher(publisher)
        self.inputs, self.outputs = [], []

    def on_part(self, part: str, message: Any) -> None:
        stamp_ns = convert.stamp_to_ns(message.header.stamp)
        self.newest[part] = (stamp_ns - self.image_offset_ns * (part == "image"), message)
        if self.active and self.due:
            self.act()

    def tick(self) -> None:
        """An action is due; without an observation for it, it follows as soon as there is one."""
        if self.due:
            self.diagnostics.set("observation", WARN, self.observation_stamp()[1] or "late")
        self.due = True
        self.act()

    def act(self) -> None:
        stamp_ns, problem = self.observation_stamp()
        if problem:
            return
        self.due = False
        self.acted_ns = stamp_ns
        try:
            if "image" in self.needs:
                refuse_second_publisher(self, self.image_topic)
                self.watch_camera(self.newest["image"][1])
            action = self.policy(*(self.newest[part][1] for part in self.needs))
        except DamagedImage as damaged:
            self.diagnostics.set("observation", WARN, f"dropped: {damaged}")
            return
        except UserError as error:
            self.refuse(error)
            return
        self.diagnostics.set("observation", OK, "fresh")
        self.publish(np.clip(action, -1.0, 1.0), stamp_ns)

    def watch_camera(self, image: Any) -> None:
        """Ask for a stop when the camera is stuck: the same bytes, each time with a new stamp."""
        count, limit = self.repeats.count(np.frombuffer(image.data, np.uint8)), self.value("stop_limit")
        if 0 < limit <= count:
            self.stops.publish(String(data=f"agent: the camera sends the same picture, {limit} times or more"))

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
        if max(stamps) - now_ns > FUTURE_LIMIT_NS:
            return 0, f"the observation is {(max(stamps) - now_ns) * 1e-9:.3f} s in the future"
        if stamp_ns == self.acted_ns:
            return 0, "no new observation"
        return stamp_ns, ""

    def publish(self, action: Vector, stamp_ns: int) -> None:
        velocity, width_m = action_to_motion(action, self.robot)
        self.actions.publish(labelled_action(action))
        self.twists.publish(values_to_twist(stamp_ns, self.robot.frames.base, velocity))
        if width_m is not None:
            self.gripper.publish(Float64(data=width_m))


def main() -> int:
    return run(Agent)


if __name__ == "__main__":
    sys.exit(main())
