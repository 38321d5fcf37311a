"""The simulated robot in a process of its own: what it publishes, how it obeys, and the whole graph at work."""

from __future__ import annotations

import importlib.util
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.config import dump_yaml, load_yaml
from tests.nodes.conftest import ROOT, NodeProcess, starter

ROBOT_FILE = str(ROOT / "config" / "robots" / "sim_panda.yaml")
TOPICS = load_yaml(ROBOT_FILE)["topics"]
JOINTS = load_yaml(ROBOT_FILE)["joints"]
SAWYER_FILE = str(ROOT / "config" / "robots" / "sim_sawyer.yaml")
IMAGE = "camera/color/image_raw"
NAMESPACE = "simulated"
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    for start in starter(tmp_path_factory.mktemp("sim_robot")):
        # The timeout is long enough for a machine that is busy with something else.
        yield start("sim_robot", namespace=NAMESPACE, robot_file=ROBOT_FILE, command_timeout_s=0.5)


class Watcher:
    """The newest message of each topic, and how many there were."""

    def __init__(self, node: Any, spin_until: Callable[..., bool], namespace: str = NAMESPACE) -> None:
        self.node, self._spin_until, self._namespace = node, spin_until, namespace
        self.newest: dict[str, Any] = {}
        self.count: dict[str, int] = {}
        self._publishers: dict[str, Any] = {}

    def watch(self, kind: Any, topic: str, qos: Any = 10) -> None:
        def note(message: Any) -> None:
            self.newest[topic] = message
            self.count[topic] = self.count.get(topic, 0) + 1

        self.node.create_subscription(kind, self.full(topic), note, qos)

    def full(self, topic: str) -> str:
        return topic if topic.startswith("/") else f"/{self._namespace}/{topic}"

    def until(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
        assert self._spin_until(condition, self.node, timeout_s=timeout_s), "it did not happen in time"

    def seen(self, *topics: str) -> None:
        self.until(lambda: all(topic in self.newest for topic in topics))

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def send(self, topic: str, message: Any, seconds: float) -> None:
        """The same again every 0.05 s."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(type(message), self.full(topic), 1)
            self.until(lambda: self._publishers[topic].get_subscription_count() > 0)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._publishers[topic].publish(message)
            self.spin(0.05)

    def picture(self) -> np.ndarray:
        """The newest one (H, W, 3), taken after this call."""
        before = self.count.get(IMAGE, 0)
        self.until(lambda: self.count.get(IMAGE, 0) > before + 2)
        message = self.newest[IMAGE]
        return np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.width, 3)

    def tool(self) -> np.ndarray:
        """The newest position, seen after this call."""
        topic = TOPICS["tool_pose"]
        before = self.count.get(topic, 0)
        self.until(lambda: self.count.get(topic, 0) > before + 2)
        place = self.newest[topic].pose.position
        return np.array([place.x, place.y, place.z])

    def joints(self) -> dict[str, float]:
        topic = TOPICS["joint_states"]
        before = self.count.get(topic, 0)
        self.until(lambda: self.count.get(topic, 0) > before + 2)
        message = self.newest[topic]
        return dict(zip(message.name, message.position, strict=True))


@pytest.fixture
def watcher(process: NodeProcess, node: Any, spin_until: Any, call: Any) -> Watcher:
    """Watches a robot that has just been reset."""
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import JointState
    from std_srvs.srv import Trigger

    made = Watcher(node, spin_until)
    made.watch(PoseStamped, TOPICS["tool_pose"])
    made.watch(JointState, TOPICS["joint_states"])
    assert call(Trigger, process.topic("~/reset")).success
    made.seen(TOPICS["tool_pose"], TOPICS["joint_states"])
    return made


def twist(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Any:
    from geometry_msgs.msg import TwistStamped

    message = TwistStamped()
    message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = x, y, z
    return message


def test_what_it_publishes(watcher: Watcher) -> None:
    from geometry_msgs.msg import PoseStamped
    from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
    from sensor_msgs.msg import CameraInfo, Image
    from std_msgs.msg import Bool
    from tf2_msgs.msg import TFMessage

    image, info = "camera/color/image_raw", "camera/color/camera_info"
    watcher.watch(Image, image, qos_profile_sensor_data)
    watcher.watch(CameraInfo, info, qos_profile_sensor_data)
    watcher.watch(PoseStamped, "object_pose")
    watcher.watch(PoseStamped, "goal_pose")
    watcher.watch(Bool, "success")
    watcher.watch(TFMessage, "/tf", 100)
    watcher.watch(TFMessage, "/tf_static", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    watcher.seen(image, info, "object_pose", "goal_pose", "success", "/tf", "/tf_static")
    picture, intrinsics = watcher.newest[image], watcher.newest[info]
    assert (picture.width, picture.height, picture.encoding, picture.step) == (640, 480, "rgb8", 1920)
    pixels = np.frombuffer(bytes(picture.data), np.uint8).reshape(480, 640, 3)
    assert 40 < pixels.mean() < 220 and pixels.std() > 15
    assert picture.header.frame_id == intrinsics.header.frame_id == "camera_color_optical_frame"
    assert (intrinsics.width, intrinsics.height) == (640, 480)
    assert intrinsics.k[0] == pytest.approx(240 / np.tan(np.deg2rad(17)))
    age_s = time.time() - picture.header.stamp.sec - 1e-9 * picture.header.stamp.nanosec
    assert -0.01 < age_s < 5.0
    joints = watcher.newest[TOPICS["joint_states"]]
    assert list(joints.name)[:7] == JOINTS and len(joints.position) == len(joints.velocity) == 9
    assert watcher.newest["/tf"].transforms[0].child_frame_id == "panda_hand_tcp"
    camera = watcher.newest["/tf_static"].transforms[0]
    assert (camera.header.frame_id, camera.child_frame_id) == ("panda_link0", "camera_color_optical_frame")
    assert camera.transform.translation.x == pytest.approx(1.25)
    assert not watcher.newest["success"].data


def test_pictures_and_states_keep_coming(watcher: Watcher) -> None:
    """At least half of the rates, on a machine that may be busy."""
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    image, joints = "camera/color/image_raw", TOPICS["joint_states"]
    watcher.watch(Image, image, qos_profile_sensor_data)
    watcher.seen(image)
    before = dict(watcher.count)
    watcher.spin(2.0)
    assert watcher.count[image] - before[image] > 0.5 * 2.0 * 30.0
    assert watcher.count[joints] - before[joints] > 0.5 * 2.0 * 50.0


def test_it_obeys_a_twist_until_the_timeout(watcher: Watcher) -> None:
    before = watcher.tool()
    watcher.send(TOPICS["twist"], twist(y=0.1), 1.0)
    watcher.spin(0.8)
    after = watcher.tool()
    assert 0.05 < after[1] - before[1] < 0.25 and np.abs(after - before)[[0, 2]].max() < 0.01
    watcher.spin(0.5)
    assert watcher.tool() == pytest.approx(after, abs=0.002)


def test_a_command_ends_in_time_though_its_process_stood_still(watcher: Watcher, process: NodeProcess) -> None:
    """The last one waits unread for longer than the timeout, as behind a slow picture; then the arm does not move."""
    watcher.send(TOPICS["twist"], twist(y=0.1), 0.6)
    watcher.until(lambda: max(map(abs, watcher.newest[TOPICS["joint_states"]].velocity)) > 0.05)
    process.process.send_signal(signal.SIGSTOP)
    try:
        watcher.spin(0.2)  # what was under way has come
        before = watcher.newest[TOPICS["tool_pose"]].pose.position.y
        watcher.send(TOPICS["twist"], twist(y=0.1), 0.1)
        watcher.spin(0.8)
    finally:
        process.process.send_signal(signal.SIGCONT)
    after = watcher.tool()
    assert after[1] - before < 0.02  # the way of 0.2 s; the timeout's would be 0.05
    watcher.spin(0.3)
    assert watcher.tool() == pytest.approx(after, abs=0.002)


def test_a_command_ends_in_time_though_pictures_take_long(start_node: Any, node: Any, spin_until: Any) -> None:
    """More pictures are asked for than can be drawn. Times are those of the states and of the sent commands."""
    from sensor_msgs.msg import JointState

    common = {"robot_file": ROBOT_FILE, "width": 1280, "height": 960, "camera_rate_hz": 120.0}
    start_node("sim_robot", namespace="drawing", **common)
    watcher = Watcher(node, spin_until, "drawing")
    moving_s: list[float] = []

    def note(message: Any) -> None:
        if max(map(abs, message.velocity)) > 0.01:
            moving_s.append(message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec)

    node.create_subscription(JointState, watcher.full(TOPICS["joint_states"]), note, 50)
    watcher.watch(JointState, TOPICS["joint_states"])
    watcher.seen(TOPICS["joint_states"])
    for _ in range(3):
        watcher.send(TOPICS["twist"], twist(y=0.1), 0.9)
        sent_s = time.time()  # the last one, 0.05 s ago
        watcher.spin(1.5)
        assert sent_s - 0.1 < moving_s[-1] < sent_s + 0.2 + 0.1  # the timeout, and the way to rest
        watcher.send(TOPICS["twist"], twist(y=-0.1), 0.9)
        watcher.spin(0.5)


def test_it_ignores_what_is_no_number(watcher: Watcher) -> None:
    before = watcher.tool()
    watcher.send(TOPICS["twist"], twist(x=float("nan")), 0.3)
    assert watcher.tool() == pytest.approx(before, abs=0.002)


def test_joint_trajectories_are_matched_by_name(watcher: Watcher, process: NodeProcess) -> None:
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    start = watcher.joints()
    target = {name: start[name] + 0.05 * (i - 3) for i, name in enumerate(JOINTS)}
    names = list(reversed(JOINTS))
    point = JointTrajectoryPoint(positions=[target[name] for name in names])
    watcher.send(TOPICS["trajectory"], JointTrajectory(joint_names=names, points=[point]), 1.0)
    reached = watcher.joints()
    assert [reached[name] for name in JOINTS] == pytest.approx([target[name] for name in JOINTS], abs=0.01)
    unknown = JointTrajectory(joint_names=[f"x{i}" for i in range(7)], points=[point])
    watcher.send(TOPICS["trajectory"], unknown, 0.2)
    process.wait_for("joint trajectory ignored")
    assert [watcher.joints()[name] for name in JOINTS] == pytest.approx([target[name] for name in JOINTS], abs=0.01)


@pytest.mark.parametrize("kind", ["joint_positions", "joint_velocities"])
def test_joint_arrays(watcher: Watcher, kind: str) -> None:
    from std_msgs.msg import Float64MultiArray

    start = watcher.joints()
    value = [start[name] for name in JOINTS] if kind == "joint_positions" else [0.0] * 7
    value[0] += 0.1
    watcher.send(TOPICS[kind], Float64MultiArray(data=value), 1.0)
    moved = watcher.joints()["panda_joint1"] - start["panda_joint1"]
    assert moved == pytest.approx(0.1, abs=0.01 if kind == "joint_positions" else 0.06)


def test_an_emergency_stop_is_latched_until_reset(watcher: Watcher, process: NodeProcess, call: Any) -> None:
    from std_msgs.msg import Bool
    from std_srvs.srv import Trigger

    watcher.send(TOPICS["twist"], twist(y=0.1), 0.5)
    watcher.send(TOPICS["estop"], Bool(data=True), 0.3)
    stopped = watcher.tool()
    watcher.send(TOPICS["estop"], Bool(data=False), 0.1)
    watcher.send(TOPICS["twist"], twist(y=0.1), 0.5)
    assert watcher.tool() == pytest.approx(stopped, abs=0.002)
    assert call(Trigger, process.topic("~/reset")).success
    assert watcher.tool()[1] == pytest.approx(0.0, abs=0.005)
    watcher.send(TOPICS["twist"], twist(y=0.1), 0.5)
    assert watcher.tool()[1] > 0.01


def test_pictures_are_those_that_rewards_are_learned_from(watcher: Watcher, process: NodeProcess, call: Any) -> None:
    """Cropped as by the reward node, a picture is the frame that the recorder's environment has of the same episode."""
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_srvs.srv import Trigger

    from dr_core.data.images import ImageRule
    from dr_sim.environments import make_environment

    watcher.watch(Image, IMAGE, qos_profile_sensor_data)
    watcher.seen(IMAGE)
    env = make_environment("panda-push")
    frames = []
    for _ in range(2):
        answer = call(Trigger, process.topic("~/reset"))
        seed = int(answer.message.removeprefix("seed "))
        env.reset(seed)
        frames.append([env.step(np.zeros(3))[0]["image"] for _ in range(5)][-1].astype(int))

        def alike(expected: np.ndarray = frames[-1]) -> bool:
            return bool(np.abs(ImageRule(64, "center").apply(watcher.picture()) - expected).max() <= 1)

        watcher.until(alike)  # as soon as the block has come to rest on the table here too
    env.close()
    assert np.abs(frames[0] - frames[1]).max() > 50


def test_a_task_of_the_sawyer(
    start_node: Any, node: Any, spin_until: Any, call: Any, diagnostics: dict[str, Any]
) -> None:
    """The same topics as the Panda: what it publishes, how it moves, stops and begins anew."""
    from geometry_msgs.msg import PoseStamped
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CameraInfo, Image, JointState
    from std_msgs.msg import Bool, Float64, Float64MultiArray
    from std_srvs.srv import Trigger
    from tf2_msgs.msg import TFMessage

    options = {"task": "push-v3", "robot_file": SAWYER_FILE, "seed": 3, "command_timeout_s": 0.5}
    process = start_node("sim_robot", namespace="sawyer", **options)
    watcher = Watcher(node, spin_until, "sawyer")
    info = "camera/color/camera_info"
    for kind, topic, qos in (
        (Image, IMAGE, qos_profile_sensor_data),
        (CameraInfo, info, qos_profile_sensor_data),
        (JointState, TOPICS["joint_states"], 10),
        (PoseStamped, TOPICS["tool_pose"], 10),
        (PoseStamped, "object_pose", 10),
        (PoseStamped, "goal_pose", 10),
        (Bool, "success", 10),
        (TFMessage, "/tf", 100),
    ):
        watcher.watch(kind, topic, qos)
    watcher.seen(IMAGE, info, TOPICS["joint_states"], TOPICS["tool_pose"], "object_pose", "goal_pose", "success")

    picture = watcher.picture()
    assert picture.shape == (480, 640, 3) and picture.std() > 15
    assert np.ptp(picture[:16, 400:].astype(int), axis=(0, 1)).max() < 10  # upright: plain background above
    assert watcher.newest[info].k[0] == pytest.approx(240 / np.tan(np.deg2rad(30)))
    assert list(watcher.newest[TOPICS["joint_states"]].name)[:7] == load_yaml(SAWYER_FILE)["joints"]
    assert not watcher.newest["success"].data
    moving = {transform.child_frame_id for transform in watcher.newest["/tf"].transforms}
    assert moving <= {"hand", "panda_hand_tcp"}  # the other robot of this file may be there too
    assert watcher.newest["object_pose"].header.frame_id == "base"

    before = watcher.tool()
    watcher.send(TOPICS["twist"], twist(x=0.1), 1.0)
    watcher.spin(0.8)
    after = watcher.tool()
    assert 0.05 < after[0] - before[0] < 0.25 and np.abs(after - before)[1:].max() < 0.02
    watcher.spin(0.5)
    assert watcher.tool() == pytest.approx(after, abs=0.002)
    open_fingers = watcher.joints()["r_close"]
    watcher.send(TOPICS["gripper"], Float64(data=0.0), 0.5)
    watcher.until(lambda: watcher.joints()["r_close"] > open_fingers + 0.03)

    turning = twist()
    turning.twist.angular.z = 0.5
    watcher.send(TOPICS["twist"], turning, 0.2)
    process.wait_for("does not turn")
    watcher.send(TOPICS["joint_velocities"], Float64MultiArray(data=[0.1] * 7), 0.2)
    process.wait_for("command ignored: joint velocities")
    watcher.send(TOPICS["joint_positions"], Float64MultiArray(data=[0.1] * 7), 1.2)
    process.wait_for("command ignored: joint positions")
    assert process.output().count("does not turn") == 1
    assert watcher.tool() == pytest.approx(after, abs=0.003)

    watcher.send(TOPICS["estop"], Bool(data=True), 0.3)
    stopped = watcher.tool()
    watcher.send(TOPICS["twist"], twist(x=0.1), 0.5)
    assert watcher.tool() == pytest.approx(stopped, abs=0.003)
    object_before = watcher.newest["object_pose"].pose.position.x
    assert call(Trigger, process.topic("~/reset")).message == "seed 4"
    start = watcher.tool()
    assert start == pytest.approx(before, abs=0.01)
    assert watcher.newest["object_pose"].pose.position.x != object_before
    watcher.send(TOPICS["twist"], twist(x=0.1), 0.5)
    assert watcher.tool()[0] > start[0] + 0.01
    watcher.until(lambda: any(name.endswith("simulation") for name in diagnostics))


@pytest.mark.parametrize(
    ("task", "file", "words"),
    [("door-close", ROBOT_FILE, "sim_sawyer.yaml"), ("door-closed", SAWYER_FILE, "did you mean 'door-close'")],
)
def test_a_task_it_cannot_simulate_is_refused(
    start_node: Any, state_of: Any, ros: None, task: str, file: str, words: str
) -> None:
    process = start_node("sim_robot", task=task, robot_file=file)
    assert words in process.wait_for("refused: ")
    assert state_of(process) == "unconfigured"


def test_without_a_robot_file_it_refuses(start_node: Any, state_of: Any, ros: None) -> None:
    process = start_node("sim_robot", namespace="fileless")
    process.wait_for("refused: ")
    assert state_of(process) == "unconfigured"


def test_agent_gate_and_robot_push_the_block_to_the_goal(
    start_node: Any, node: Any, spin_until: Any, tmp_path: Any
) -> None:
    from dr_interfaces.msg import GateState
    from geometry_msgs.msg import TwistStamped
    from std_msgs.msg import Bool, Float64MultiArray

    whole = load_yaml(ROBOT_FILE)
    patient = {"max_age_s": 2.0, "hold_after_s": 2.0, "stop_after_s": 4.0, "state_max_age_s": 2.0}
    path = tmp_path / "robot.yaml"
    dump_yaml(path, {**whole, "limits": {**whole["limits"], **patient}})
    common = {"namespace": "whole", "robot_file": str(path)}
    watcher = Watcher(node, spin_until, "whole")
    watcher.watch(Bool, "success")
    watcher.watch(GateState, "gate_state")
    watcher.watch(Float64MultiArray, "action")
    watcher.watch(TwistStamped, "desired_twist")
    start_node("sim_robot", **common, seed=16, camera_rate_hz=2.0, command_timeout_s=1.0)
    start_node("arm_bridge", **common)
    start_node("agent", **common, max_age_s=1.0, max_skew_s=0.5)
    watcher.seen("success", "gate_state", "action")
    watcher.until(lambda: watcher.newest["success"].data, 90.0)
    state = watcher.newest["gate_state"]
    assert state.state == GateState.ACTIVE and state.stops == 0 and state.commands_received > 10
    assert watcher.newest["action"].layout.dim[0].label == "action"
    assert watcher.newest["desired_twist"].header.frame_id == "panda_link0"
