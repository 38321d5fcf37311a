"""The recorder on the wire: whole episodes with true counts, and what happens when the disk or the process fails."""

from __future__ import annotations

import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dr_interfaces.msg import EpisodeInfo, RewardStamped
from dr_interfaces.srv import LabelEpisode, StartEpisode, StopEpisode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String

from dr_core.data.bags import bag_info, check_bag, repair_bag
from dr_core.data.episodes import read_episode, read_metadata
from dr_core.data.images import ImageRule
from dr_core.data.storage import locate, refuse_damage, scan
from dr_nodes.convert import array_to_image, header, joint_state
from tests.nodes.conftest import TIMEOUT_S, NodeProcess

RELIABLE = QoSProfile(depth=100)
PERIOD_NS = 10**8


class Stage:
    """A recorder process, publishers of what it records, and its services."""

    def __init__(self, process: NodeProcess, node: Any, spin_until: Any, call: Any, diagnostics: Any) -> None:
        self.process, self.node, self._spin_until, self._call = process, node, spin_until, call
        self.diagnostics = diagnostics
        self.images = node.create_publisher(Image, process.topic("camera/color/image_raw"), RELIABLE)
        self.joints = node.create_publisher(JointState, process.topic("joint_states"), RELIABLE)
        self.infos: list[Any] = []
        node.create_subscription(EpisodeInfo, process.topic("episode_info"), self.infos.append, 10)
        self.start_ns = time.time_ns()
        self.spin(lambda: self.images.get_subscription_count() and self.joints.get_subscription_count(), "no recorder")

    def spin(self, condition: Callable[[], Any], what: str) -> None:
        assert self._spin_until(condition, self.node, timeout_s=TIMEOUT_S), f"{what}\n{self.process.output()[-3000:]}"

    def status(self, aspect: str) -> str:
        found = self.diagnostics.get(f"{self.process.namespace}/recorder: {aspect}")
        return str(found.message) if found else ""

    def count(self, topic: str) -> int:
        """Messages written of a topic, as the recorder tells."""
        found = self.diagnostics.get(f"{self.process.namespace}/recorder: episode")
        values = {pair.key: pair.value for pair in found.values} if found else {}
        return int(values.get(self.process.topic(topic), 0))

    def send(self, numbers: Any, size: int = 32) -> None:
        for k in numbers:
            stamp_ns = self.start_ns + k * PERIOD_NS
            self.images.publish(array_to_image(np.full((size, size, 3), k % 256, np.uint8), stamp_ns, "eye"))
            self.joints.publish(joint_state(stamp_ns, ["elbow"], [k / 10]))

    def written(self, images: int) -> None:
        self.spin(lambda: self.count("camera/color/image_raw") >= images, f"not {images} images")

    def start(self, name: str = "one", **fields: str) -> Any:
        given = {"task": "push", "operator_name": "ann", "notes": "", **fields}
        return self._call(StartEpisode, self.process.topic("~/start"), name=name, **given)

    def stop(self, outcome: str = "success", discard: bool = False) -> Any:
        return self._call(StopEpisode, self.process.topic("~/stop"), outcome=outcome, discard=discard)

    def label(self, outcome: str, name: str = "", notes: str = "") -> Any:
        return self._call(LabelEpisode, self.process.topic("~/label"), name=name, outcome=outcome, notes=notes)


@pytest.fixture
def stage(
    start_node: Any, node: Any, spin_until: Any, call: Any, diagnostics: Any, tmp_path: Path
) -> Callable[..., Stage]:
    def make(**parameters: Any) -> Stage:
        settings = {
            "directory": str(tmp_path / "episodes"),
            "topics": ["camera/color/image_raw", "joint_states"],
            "camera": "front",
            "camera_serial": "123",
            "preroll_s": 0.0,
            "reserve_mib": 0,
            **parameters,
        }
        return Stage(start_node("recorder", **settings), node, spin_until, call, diagnostics)

    return make


@pytest.fixture
def episodes(tmp_path: Path) -> Path:
    return tmp_path / "episodes"


def test_an_episode_is_whole_and_says_what_it_is(stage: Any, episodes: Path) -> None:
    one = stage()
    answer = one.start(notes="first try")
    assert answer.success and answer.path == str(episodes / "one"), answer.message
    one.send(range(10))
    one.written(10)
    one.spin(lambda: one.infos and one.infos[-1].recording, "not told")
    told = one.infos[-1]
    assert (told.name, told.task, told.operator_name, told.outcome) == ("one", "push", "ann", "partial")
    assert not (episodes / "one").exists(), "unfinished"
    answer = one.stop("failure")
    assert answer.success and answer.path == str(episodes / "one") and answer.recorded_s > 0, answer.message
    assert check_bag(episodes / "one") == []
    episode = read_episode(episodes / "one", rule=ImageRule(32))
    assert episode.frames[:, 0, 0, 0].tolist() == list(range(10))
    assert episode.stamps_ns.tolist() == [one.start_ns + k * PERIOD_NS for k in range(10)]
    metadata = episode.metadata
    assert (metadata.task, metadata.outcome, metadata.operator) == ("push", "failure", "ann")
    assert (metadata.camera, metadata.camera_serial, metadata.notes) == ("front", "123", "first try")
    assert metadata.rate_hz == pytest.approx(10) and metadata.drops == {} and metadata.versions["dr_core"]
    counts = {topic.topic: topic.count for topic in bag_info(episodes / "one").topics}
    assert counts[one.process.topic("joint_states")] == 10
    one.spin(lambda: one.infos[-1].outcome == "failure" and not one.infos[-1].recording, "not told")
    assert one.process.stop() == 0 and "Traceback" not in one.process.output()


def test_bytes_are_kept_as_they_came(stage: Any, node: Any, episodes: Path) -> None:
    from rclpy.serialization import serialize_message

    one = stage(topics=["reward"], optional_topics=["camera/color/image_raw", "joint_states", "never"])
    publisher = node.create_publisher(RewardStamped, one.process.topic("reward"), RELIABLE)
    one.spin(publisher.get_subscription_count, "no recorder")
    assert one.start().success
    message = RewardStamped(value=1.5, raw=float("nan"), valid=True, estimator="ratio", model_hash="ab" * 32)
    message.header = header(time.time_ns(), "eye")
    for _ in range(3):
        publisher.publish(message)
    one.spin(lambda: one.count("reward") == 3, "not written")
    assert one.stop().success
    path = episodes / "one"
    messages = list(scan(locate(path), {one.process.topic("reward")}, refuse_damage(path)))
    # On the wire a message is padded to whole words.
    want = bytes(serialize_message(message))
    assert [bytes(m.data)[: len(want)] for m in messages] == [want] * 3
    channel = messages[0].channel
    assert channel.msgtype == "dr_interfaces/msg/RewardStamped"
    text = channel.definition.decode()
    assert text.startswith("std_msgs/Header header\nfloat32 value\n")
    assert "MSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n" in text


def test_preroll_and_latched_messages_belong_to_the_episode(stage: Any, node: Any, episodes: Path) -> None:
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    one = stage(preroll_s=30.0, optional_topics=["description"])
    description = node.create_publisher(String, one.process.topic("description"), latched)
    description.publish(String(data="a robot"))
    one.spin(description.get_subscription_count, "no recorder")
    for name in ("one", "two"):
        one.send(range(5))
        time.sleep(1.0)  # nothing tells when messages are in the pre-roll
        assert one.start(name).success
        one.written(5)
        assert one.stop().success
        counts = {topic.topic: topic.count for topic in bag_info(episodes / name).topics}
        assert counts[one.process.topic("camera/color/image_raw")] == 5
        assert counts[one.process.topic("description")] == 1, "in every episode"


def test_lost_messages_are_counted_by_their_stamps(stage: Any, episodes: Path) -> None:
    one = stage(rates_hz=[0.0, 10.0])
    assert one.start().success
    one.send([*range(10), 12, 13, 17, 18])
    one.written(14)
    answer = one.stop()
    assert answer.success and "more than 2% lost" in answer.message
    drops = {f"gap:{one.process.topic(name)}": 5 for name in ("camera/color/image_raw", "joint_states")}
    assert read_metadata(episodes / "one").drops == drops
    assert len([line for line in check_bag(episodes / "one") if "5 messages dropped" in line]) == 2


def test_services_refuse_what_makes_no_sense(stage: Any, episodes: Path) -> None:
    one = stage()
    assert "expected one that is recorded" in one.stop().message
    for name in ("../up", ".hidden", "a/b"):
        assert "expected a plain file name" in one.start(name).message
    assert one.start().success
    assert "still recorded" in one.start("two").message
    one.send(range(2))
    one.written(2)
    answer = one.stop(outcome="")
    assert not answer.success and "outcome: expected success or failure or aborted" in answer.message
    assert one.infos[-1].recording, "it goes on until somebody says how it ended"
    assert one.stop("aborted").success
    answer = one.start("one")
    assert not answer.success and "expected a free name" in answer.message
    assert read_metadata(episodes / "one").outcome == "aborted"
    assert one.start("gone").success
    assert one.stop(outcome="", discard=True).success
    assert sorted(path.name for path in episodes.iterdir()) == ["one"]
    assert one.start("", task="open the drawer").success
    assert one.stop().success
    assert [path.name for path in episodes.iterdir() if path.name.startswith("open_the_drawer_")]


def test_a_label_is_corrected_afterwards(stage: Any, episodes: Path) -> None:
    one = stage()
    assert one.start(notes="quick").success
    one.send(range(3))
    one.written(3)
    assert "still recorded" in one.label("failure").message
    assert one.stop("success").success
    assert not one.label("perfect").success
    answer = one.label("failure", notes="the drawer was open before")
    assert answer.success, answer.message
    assert check_bag(episodes / "one") == []
    metadata = read_metadata(episodes / "one")
    assert (metadata.outcome, metadata.notes) == ("failure", "quick; the drawer was open before")
    assert len(read_episode(episodes / "one", rule=ImageRule(32)).frames) == 3
    assert [path.name for path in episodes.iterdir()] == ["one"]
    assert "nothing there" in one.label("failure", name="two").message


def test_topics_that_are_missing_or_unknown_are_named(
    start_node: Any, node: Any, spin_until: Any, call: Any, diagnostics: Any, episodes: Path
) -> None:
    process = start_node("recorder", directory=str(episodes), topics=["camera/color/image_raw"], reserve_mib=0)
    process.wait_for("nothing publishes " + process.topic("camera/color/image_raw"))
    answer = call(StartEpisode, process.topic("~/start"), name="one", task="push", operator_name="ann", notes="")
    assert f"{process.topic('camera/color/image_raw')}: expected a publisher" in answer.message
    assert process.stop() == 0


def test_too_little_disk_is_refused(stage: Any, episodes: Path) -> None:
    free_mib = shutil.disk_usage(episodes.parent).free // 2**20
    one = stage(reserve_mib=2 * free_mib)
    answer = one.start()
    assert not answer.success and f"expected at least {2 * free_mib} MiB of free disk" in answer.message
    assert list(episodes.iterdir()) == []


def test_a_full_disk_leaves_a_partial_episode_never_a_success(stage: Any, episodes: Path) -> None:
    one = stage()
    assert one.start().success
    # The largest file the recorder may write stands for the disk.
    resource.prlimit(one.process.process.pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
    one.send(range(60), size=128)
    one.spin(lambda: "ended as partial" in one.status("episode"), "not said")
    answer = one.stop("success")
    assert not answer.success and "dr bag repair" in answer.message
    assert not (episodes / "one").exists()
    resource.prlimit(one.process.process.pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
    report = repair_bag(episodes / ".one.recording", episodes / "saved")
    assert report.metadata.outcome == "partial" and report.messages[one.process.topic("camera/color/image_raw")] > 5
    assert not one.label("success", name="saved").success, "a part is never a success"
    assert one.start("two").success and one.stop("failure").success, "the next episode has room"


def test_sigterm_completes_the_metadata(stage: Any, episodes: Path) -> None:
    one = stage()
    assert one.start().success
    one.send(range(5))
    one.written(5)
    assert one.process.stop(signal.SIGTERM) == 0, one.process.output()
    assert check_bag(episodes / "one") == []
    assert read_metadata(episodes / "one").outcome == "aborted"
    assert "Traceback" not in one.process.output()


def test_an_impatient_ctrl_c_loses_nothing(stage: Any, episodes: Path) -> None:
    one = stage()
    assert one.start().success
    one.send(range(5))
    one.written(5)
    process = one.process.process
    while process.poll() is None:  # as fast as anybody can, all the while it closes its files
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert process.returncode == 0, one.process.output()
    assert check_bag(episodes / "one") == []
    assert read_metadata(episodes / "one").outcome == "aborted"
    assert "Traceback" not in one.process.output()


def test_sigterm_on_a_full_disk_ends_in_words(stage: Any, episodes: Path) -> None:
    one = stage()
    assert one.start().success
    one.send(range(3))
    one.written(3)
    resource.prlimit(one.process.process.pid, resource.RLIMIT_FSIZE, (2**10, 2**10))
    assert one.process.stop(signal.SIGTERM) == 0, one.process.output()
    assert "dr bag repair" in one.process.output() and "Traceback" not in one.process.output()
    assert not (episodes / "one").exists(), "never a complete episode"


def test_sigkill_leaves_earlier_episodes_whole_and_this_one_repairable(stage: Any, episodes: Path) -> None:
    one = stage()
    assert one.start("first").success
    one.send(range(3))
    one.written(3)
    assert one.stop("success").success
    assert one.start("second").success
    one.send(range(20), size=128)  # several chunks
    one.written(20)
    one.process.stop(signal.SIGKILL)
    assert check_bag(episodes / "first") == []
    report = repair_bag(episodes / ".second.recording", episodes / "saved")
    assert report.metadata.outcome == "partial" and report.metadata.task == "push"
    assert report.messages[one.process.topic("camera/color/image_raw")] >= 15


def test_best_effort_cameras_and_plain_arrays_are_recorded(stage: Any, node: Any, episodes: Path) -> None:
    one = stage(topics=["camera/side/image_raw", "action"], optional_topics=["camera/color/image_raw", "joint_states"])
    best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    side = node.create_publisher(Image, one.process.topic("camera/side/image_raw"), best_effort)
    action = node.create_publisher(Float64MultiArray, one.process.topic("action"), RELIABLE)
    one.spin(lambda: side.get_subscription_count() and action.get_subscription_count(), "no recorder")
    assert one.start().success
    for k in range(3):
        stamp_ns = one.start_ns + k * PERIOD_NS
        side.publish(array_to_image(np.zeros((32, 32, 3), np.uint8), stamp_ns, "eye"))
        action.publish(Float64MultiArray(data=[0.1 * k]))
        one.spin(lambda k=k: one.count("camera/side/image_raw") == k + 1 and one.count("action") == k + 1, "lost")
    assert one.stop().success
    assert check_bag(episodes / "one") == []
