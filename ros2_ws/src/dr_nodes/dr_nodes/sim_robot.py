"""A simulated arm behind the topics of a real one: camera, joints, tool pose, command topics, emergency stop.

Also publishes what only a simulator knows: object_pose, goal_pose and success. The task says which arm it is: a Panda
that pushes a block, or the Sawyer of Meta-World's tasks.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Float64, Float64MultiArray
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory

from dr_calibration.boards import Board
from dr_core.errors import UserError
from dr_core.safety.limits import load_robot
from dr_nodes import convert
from dr_nodes.common import IMAGE_QOS, OK, WARN, ManagedNode, Param, image_qos, needed, run
from dr_nodes.messages import twist_to_values
from dr_sim.robot import make_robot

PARAMETERS = (
    Param("task", "panda-push", "panda-push, panda-calibration(-beside), or one of Meta-World such as door-close"),
    Param("robot_file", "", "YAML file of the robot: names of joints, frames and topics"),
    Param("seed", 0, "of the first episode: places of object and goal; each reset takes the next", 0, 2**31 - 1),
    Param("rate_hz", 50.0, "joint states and poses a second", 1.0, 500.0),
    Param("camera_rate_hz", 30.0, "pictures a second", 1.0, 120.0),
    Param("width", 640, "of the pictures, pixels", 8, 4096),
    Param("height", 480, "of the pictures, pixels", 8, 4096),
    Param("camera_latency_s", 0.0, "pictures are stamped so much after they were taken", 0.0, 1.0),
    Param("board", "charuco:7x5:30mm:22mm:4X4_50", "what the camera of panda-calibration looks at"),
    Param("camera_bump_m", 0.0, "so far the camera of panda-calibration was knocked aside", 0.0, 0.1),
    Param("camera_bump_deg", 0.0, "so far it was turned", 0.0, 45.0),
    Param("command_timeout_s", 0.2, "so long after a command was sent, the arm holds its position", 0.0, 10.0),
    *IMAGE_QOS,
)
# A slow picture is caught up with; after a longer pause of the process the simulation goes on where it was.
LONGEST_STEP_S = 0.2
WINDOW_S = 2.0


class SimRobot(ManagedNode):
    """Steps the simulation with the wall clock."""

    def __init__(self) -> None:
        super().__init__("sim_robot", PARAMETERS)
        self.arm: Any = None

    def configure(self) -> None:
        self.robot = load_robot(needed(self.value("robot_file"), "robot_file", "the robot's YAML file"))
        self.frames, topics = self.robot.frames, self.robot.topics
        options = {name: self.value(name) for name in ("command_timeout_s", "width", "height")}
        bump = self.value("camera_bump_m"), self.value("camera_bump_deg")
        board = Board.parse(self.value("board"))
        arm = make_robot(self.value("task"), self.robot.joints, **options, board=board, camera_bump=bump)
        self.seed = self.value("seed")
        arm.reset(self.seed)
        self.stepped_s = time.monotonic()
        self.k, self.distortion = arm.camera_matrix(), arm.camera_distortion
        self.arm = arm
        sensor, latched = image_qos(self), QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.outputs = {
            name: self.create_lifecycle_publisher(kind, topic, qos)
            for name, kind, topic, qos in (
                ("image", Image, "camera/color/image_raw", sensor),
                ("info", CameraInfo, "camera/color/camera_info", sensor),
                ("joints", JointState, topics.joint_states, 10),
                ("tool", PoseStamped, topics.tool_pose, 10),
                ("object", PoseStamped, "object_pose", 10),
                ("goal", PoseStamped, "goal_pose", 10),
                ("success", Bool, "success", 10),
                ("tf", TFMessage, "/tf", 100),
                ("tf_static", TFMessage, "/tf_static", latched),
            )
        }
        self.inputs = [
            self.create_subscription(kind, topic, callback, 1)
            for kind, topic, callback in (
                (TwistStamped, topics.twist, self.on_twist),
                (JointTrajectory, topics.trajectory, self.on_trajectory),
                (Float64MultiArray, topics.joint_positions, partial(self.on_numbers, "command_joint_positions")),
                (Float64MultiArray, topics.joint_velocities, partial(self.on_numbers, "command_joint_velocities")),
                (Float64, topics.gripper, self.on_gripper),
                (Bool, topics.estop, self.on_estop),
            )
        ]
        self.reset_service = self.create_service(Trigger, "~/reset", self.on_reset)

    def activate(self) -> None:
        now_s = self.window_s = time.monotonic()
        self.arm.age_command(now_s - self.stepped_s)
        self.stepped_s, self.simulated_s = now_s, 0.0
        self.timers_ = [
            self.create_timer(1.0 / self.value("rate_hz"), self.tick),
            self.create_timer(1.0 / self.value("camera_rate_hz"), self.take_picture),
            self.create_timer(WINDOW_S, self.report),
            self.create_timer(0.0, self.publish_camera_frame),  # once, when the publishers are active
        ]

    def deactivate(self) -> None:
        for timer in self.timers_:
            self.destroy_timer(timer)

    def cleanup(self) -> None:
        if self.arm is None:
            return
        self.arm.close()
        self.arm = None
        for subscription in self.inputs:
            self.destroy_subscription(subscription)
        for publisher in self.outputs.values():
            self.destroy_lifecycle_publisher(publisher)
        self.destroy_service(self.reset_service)

    def catch_up(self) -> int:
        """Let the time go by until now; returns the stamp of the new state. Commands age also by what is left out."""
        now_s, stamp_ns = time.monotonic(), self.now_ns()
        passed_s = now_s - self.stepped_s
        step_s = min(passed_s, LONGEST_STEP_S)
        self.arm.age_command(passed_s - step_s)
        self.stepped_s = now_s
        self.simulated_s += step_s
        self.arm.step(step_s)
        return stamp_ns

    def tick(self) -> None:
        """Publish the state."""
        stamp_ns, base = self.catch_up(), self.frames.base
        arm, out = self.arm, self.outputs
        out["joints"].publish(
            convert.joint_state(stamp_ns, arm.joint_names, arm.joint_positions.tolist(), arm.joint_velocities.tolist())
        )
        out["tool"].publish(convert.arrays_to_pose(stamp_ns, base, *arm.tool_pose))
        out["object"].publish(convert.arrays_to_pose(stamp_ns, base, *arm.object_pose))
        out["goal"].publish(convert.arrays_to_pose(stamp_ns, base, arm.goal_m, np.array([0.0, 0.0, 0.0, 1.0])))
        out["success"].publish(Bool(data=arm.success))
        tool = convert.arrays_to_transform(stamp_ns, base, self.frames.tool, *arm.tool_pose)
        out["tf"].publish(TFMessage(transforms=[tool]))

    def take_picture(self) -> None:
        # A picture of an older state would show motion at a wrong speed.
        stamp_ns, frame = self.catch_up(), self.frames.camera
        stamp_ns += round(1e9 * self.value("camera_latency_s"))
        pixels = self.arm.render()
        self.outputs["image"].publish(convert.array_to_image(pixels, stamp_ns, frame))
        size = self.value("width"), self.value("height")
        self.outputs["info"].publish(convert.camera_info(stamp_ns, frame, *size, self.k, self.distortion))

    def publish_camera_frame(self) -> None:
        self.destroy_timer(self.timers_.pop())
        pose = self.arm.camera_pose
        if pose is None:  # for a calibration to find
            return
        transform = convert.arrays_to_transform(self.now_ns(), self.frames.base, self.frames.camera, *pose)
        self.outputs["tf_static"].publish(TFMessage(transforms=[transform]))

    def report(self) -> None:
        """Whether the simulation keeps up with the clock."""
        now_s = time.monotonic()
        factor = self.simulated_s / (now_s - self.window_s)
        self.window_s, self.simulated_s = now_s, 0.0
        level, words = (OK, "in real time") if factor > 0.95 else (WARN, f"at {factor:.2f} of real time")
        self.diagnostics.set("simulation", level, words, factor=f"{factor:.3f}")

    def on_twist(self, message: Any, info: Any) -> None:
        values = np.array(twist_to_values(message))
        if values[3:].any() and not self.arm.tool_turns:
            self.get_logger().warning("the tool of this robot does not turn: rotation is ignored", once=True)
        self.move(info, "command_twist", values[:3], values[3:])

    def on_trajectory(self, message: Any, info: Any) -> None:
        """The arm goes straight to the last point."""
        if not message.points:
            return
        last = JointState(name=message.joint_names, position=message.points[-1].positions)
        try:
            positions, _ = convert.joints_by_name(last, self.robot.joints)
        except UserError as error:
            self.get_logger().warning(f"joint trajectory ignored: {error}", throttle_duration_sec=1.0)
            return
        self.move(info, "command_joint_positions", positions)

    def on_numbers(self, command: str, message: Any, info: Any) -> None:
        self.move(info, command, np.array(message.data))

    def on_gripper(self, message: Any) -> None:
        self.command("command_gripper", message.data)

    def move(self, info: Any, command: str, *values: Any) -> None:
        """A command of motion counts from when it was sent, however long a picture or the machine has kept it waiting.

        Where the middleware does not say when that was, it counts from now.
        """
        if self.command(command, *values):
            sent_ns = info["source_timestamp"]
            waited_s = max(0.0, (time.time_ns() - sent_ns) * 1e-9) if sent_ns > 0 else 0.0
            self.arm.age_command(waited_s - (time.monotonic() - self.stepped_s))

    def command(self, command: str, *values: Any) -> bool:
        """Hand a command to the arm; one that is no number or that it does not take is ignored, as by a real one."""
        try:
            getattr(self.arm, command)(*values)
        except ValueError as error:
            self.get_logger().warning(f"command ignored: {error}", throttle_duration_sec=1.0)
            return False
        return True

    def on_estop(self, message: Any) -> None:
        if message.data and not self.arm.estopped:
            self.arm.emergency_stop()
            self.get_logger().error("emergency stop: latched until ~/reset")

    def on_reset(self, request: Any, response: Any) -> Any:
        """Arm to its start, the next places of block and goal; clears an emergency stop."""
        self.seed += 1
        self.arm.reset(self.seed)
        response.success, response.message = True, f"seed {self.seed}"
        return response


def main() -> int:
    return run(SimRobot)


if __name__ == "__main__":
    sys.exit(main())
