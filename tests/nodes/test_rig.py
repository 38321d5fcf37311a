"""The camera's calibration in the graph: TF, refused or invalid rewards, what recordings say, the robot's clock."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dr_interfaces.srv import StartEpisode, StopEpisode
from numpy.typing import NDArray
from rclpy.qos import DurabilityPolicy, QoSProfile
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from dr_calibration.intrinsics import Intrinsics
from dr_calibration.moved import Reference
from dr_calibration.rig import CameraPose, ReferencePicture, Rig, TimeOffset
from dr_core.agent.offline import transitions
from dr_core.data.cache import frame_store
from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter, read_episode, read_metadata
from dr_core.data.images import ImageRule
from dr_core.errors import BagError
from dr_core.presets import PRESETS
from dr_core.rewards.model import Networks, RewardModel
from dr_core.study.scoring import check_camera
from dr_nodes.convert import array_to_image
from dr_nodes.rig_watch import RigWatch
from tests.core.moving_square import moving_square
from tests.nodes.conftest import ROOT, TIMEOUT_S, NodeProcess, starter, values_of
from tests.nodes.test_reward_node import Camera

RELIABLE = QoSProfile(depth=100)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
WIDTH, HEIGHT = 320, 240
OFFSET_S = 0.04
# x of the camera looks along -y of the base, its z along +x and down.
T_BASE_CAMERA = np.eye(4)
T_BASE_CAMERA[:3, :3] = Rotation.from_euler("xyz", [-120, 0, -80], degrees=True).as_matrix()
T_BASE_CAMERA[:3, 3] = 0.4, -0.7, 0.9
LENS = Intrinsics(WIDTH, HEIGHT, np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]), np.zeros(5))


def scene() -> NDArray[np.float32]:
    """(300, 400) of boxes, larger than a picture."""
    random = np.random.default_rng(0)
    image = np.full((300, 400), 120, np.float32)
    for _ in range(60):
        x, y, width, height = random.integers([0, 0, 8, 8], [380, 280, 88, 88])
        cv2.rectangle(image, (int(x), int(y)), (int(x + width), int(y + height)), float(random.integers(30, 230)), -1)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0), np.float32)


SCENE = scene()


def picture(seed: int, shift_px: float = 0.0, covered: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) of the scene with noise; its content moved to the right, or behind a hand."""
    matrix = np.array([[1.0, 0, shift_px - 40], [0, 1, -30]])
    seen = cv2.warpAffine(SCENE, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)
    if covered:
        seen[:, 30:] = 90
    noisy = seen + np.random.default_rng(seed).normal(0, 3, seen.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None].repeat(3, 2)


def make_rig(folder: Path, *, days: float = 1.0, serial: str = "123", reference: bool = True, **parts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pose = CameraPose.of_matrix("base", T_BASE_CAMERA, "base_link", "front_optical", 0.6, 0.05)
    rig = Rig("front", serial, LENS, time.time() - 86400 * days, pose, TimeOffset(OFFSET_S, 0.001))
    if reference:
        Reference([picture(1000 + k) for k in range(3)]).save(folder / "reference_front.png", replace=True)
        rig = replace(rig, reference=ReferencePicture.of(folder / "reference_front.png"))
    return replace(rig, **parts).save(folder, replace=True)


@pytest.fixture(scope="module")
def rig_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rig(tmp_path_factory.mktemp("rig"))


# ---- the watch, without a process ----


def test_one_covered_picture_is_no_verdict_and_two_checks_lie_apart(rig_file: Path) -> None:
    watch = RigWatch(str(rig_file), max_age_days=30, serial="123")
    looked = [watch.check(picture(k), k * 10**8) for k in range(3)]
    assert looked[:2] == [None, None] and looked[2] is not None and looked[2].fine and watch.verdict == "stands"
    assert watch.check(picture(9, 3.0), 4 * 10**8) is looked[2], "less than the period later nothing is looked at"
    for k, covered in enumerate([True, False, True, False]):
        seen = watch.check(picture(k, covered=covered), (k + 1) * 10**9)
        assert seen is not None and seen.fine and watch.guard(picture(k), (k + 1) * 10**9) == ""
    for k in range(3):
        watch.check(picture(k, covered=True), (k + 10) * 10**9)
    assert "seen again" in watch.guard(picture(0), 12 * 10**9), "a scene that stays covered is not taken as fine"


def test_a_turn_is_told_in_degrees(rig_file: Path) -> None:
    watch = RigWatch(str(rig_file), max_age_days=30)
    for k in range(3):
        watch.check(picture(k, 3.0), k * 10**8)
    turn_deg = math.degrees(math.atan(3.0 / 300.0))
    assert watch.verdict == "moved" and f"a turn by {turn_deg:.2f} degrees" in watch.words


# ---- TF ----


def test_a_point_through_tf_is_the_point_through_the_matrix(
    start_node: Any, node: Any, spin_until: Any, diagnostics: Any, tmp_path: Path
) -> None:
    process = start_node("rig", rig_file=str(make_rig(tmp_path, days=40)), image_reliability="reliable", image_depth=20)
    found: list[Any] = []
    node.create_subscription(TFMessage, "/tf_static", found.append, LATCHED)
    images = node.create_publisher(Image, process.topic("camera/color/image_raw"), RELIABLE)
    assert spin_until(lambda: found and images.get_subscription_count(), node, timeout_s=TIMEOUT_S), process.output()
    [transform] = found[0].transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("base_link", "front_optical")
    # As tf2 does it: a vector of the child turned by the quaternion, then moved, is of the parent.
    t, q = transform.transform.translation, transform.transform.rotation
    seen_m = np.array([0.1, -0.2, 1.5])
    through_tf = Rotation.from_quat([q.x, q.y, q.z, q.w]).apply(seen_m) + np.array([t.x, t.y, t.z])
    np.testing.assert_allclose(through_tf, (T_BASE_CAMERA @ [*seen_m, 1.0])[:3], atol=1e-9)
    assert through_tf[2] < T_BASE_CAMERA[2, 3], "what lies before a camera that looks down is below it"

    def status(aspect: str) -> Any:
        return diagnostics.get(f"{process.namespace}/rig: {aspect}")

    def told(aspect: str, words: str) -> bool:
        return bool(spin_until(lambda: words in getattr(status(aspect), "message", ""), node, timeout_s=TIMEOUT_S))

    assert told("age", "40.0 days old, older than 30: calibrate again")
    for k in range(3):
        images.publish(array_to_image(picture(k, 3.0), time.time_ns() + k * 10**8, "front_optical"))
    assert told("camera", "the camera moved: "), process.output()
    assert float(values_of(status("camera"))["shift_px"]) == pytest.approx(3.0, abs=0.2)
    assert status("camera").level == b"\x02"


# ---- the reward: rows 13 and 52 of the faults ----


def make_model(path: Path, hashes: list[str]) -> Path:
    """A reward model of untrained networks, whose recordings had these calibrations."""
    config = PRESETS["tiny"]().model
    statistics = {config.estimator.name: {"all": {"mean": 0.0, "std": 1.0}}}
    manifest = {"tasks": [], "statistics": statistics, "frame_rate_hz": {"push": 10.0}, "render": {}}
    manifest["calibration"] = {"hashes": hashes, "serials": ["123"] if hashes else []}
    RewardModel(config, Networks(config), manifest).save(path)
    return path


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One reward node that the tests configure."""
    settings = {"crop": "center", "image_reliability": "reliable", "image_depth": 100, "ood_limit": 0.0}
    for start in starter(tmp_path_factory.mktemp("nodes")):
        yield start("reward", namespace="rig_reward", autostart=False, **settings)


@pytest.fixture
def configure(
    process: NodeProcess, call: Any, state_of: Any, change_state: Any, node: Any, spin_until: Any, diagnostics: Any
) -> Callable[..., tuple[bool, Camera]]:
    """`configure(model=…, rig_file=…)`: whether the node took these parameters, and its camera."""
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import SetParameters

    def ask(**values: str) -> tuple[bool, Camera]:
        for state, step in (("active", "deactivate"), ("inactive", "cleanup")):
            if state_of(process) == state:
                assert change_state(process, step)
        values = {"rig_file": "", "camera_serial": "", **{name: str(value) for name, value in values.items()}}
        parameters = [
            Parameter(name=name, value=ParameterValue(type=4, string_value=text)) for name, text in values.items()
        ]
        answers = call(SetParameters, process.topic("~/set_parameters"), parameters=parameters).results
        assert all(answer.successful for answer in answers)
        return change_state(process, "configure"), Camera(process, node, spin_until, diagnostics)

    return ask


def test_a_model_without_its_calibration_is_refused(configure: Any, rig_file: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", [Rig.load(rig_file).hash])
    edited = make_rig(tmp_path / "edited")
    edited.write_text(edited.read_text().replace("sd_mm: 0.6", "sd_mm: 0.1"))
    gone = tmp_path / rig_file.name
    gone.write_bytes(rig_file.read_bytes())  # without the picture that lies beside it
    for rig, serial, words in (
        ("", "", "parameter rig_file: expected the calibration of the model's recordings"),
        (tmp_path / "rig_none.yaml", "", "rig_none.yaml: expected"),
        (make_rig(tmp_path / "old", days=31), "", "expected at most 30 days old; found 31.0 days"),
        (make_rig(tmp_path / "other"), "", f"expected hash {Rig.load(rig_file).hash[:12]}…; found "),
        (rig_file, "124", "expected camera 123; found 124"),
        (edited, "", "hash: expected the hash of"),
        (gone, "", "reference_front.png: expected a reference picture; found none"),
    ):
        done, camera = configure(model=model, rig_file=rig, camera_serial=serial)
        assert not done, words
        camera.spin(lambda w=words, c=camera: "refused: " in c.status("state") and w in c.status("state"), words)
        assert "\n" not in camera.status("state")
    assert configure(model=model, rig_file=rig_file, camera_serial="123")[0]
    assert "Traceback" not in camera.process.output()


def test_a_camera_that_moved_is_refused_at_start_and_makes_rewards_invalid_later(
    configure: Any, rig_file: Path, tmp_path: Path, change_state: Any, state_of: Any
) -> None:
    done, camera = configure(model=make_model(tmp_path / "model", [Rig.load(rig_file).hash]), rig_file=rig_file)
    assert done and change_state(camera.process, "activate")
    camera.connect()
    aspect = f"{camera.process.namespace}/reward: calibration"

    def show(first: int, count: int, shift_px: float = 0.0, covered: bool = False) -> list[bool]:
        return [one.valid for one in camera.show([picture(first + k, shift_px, covered) for k in range(count)], first)]

    assert show(0, 10) == [False, False, *[True] * 8], "not before three pictures were looked at"
    assert show(10, 1, covered=True) == [True] and all(show(11, 10)), "a hand before the camera ends nothing"
    moved = show(21, 20, 3.0)
    assert not any(moved[-4:]) and moved == sorted(moved, reverse=True), "from some picture on"
    camera.spin(lambda: camera._diagnostics[aspect].level == b"\x02", "no ERROR")
    words = re.match(r"the camera moved: (\S+) px, limit 0.3 px; a turn by", camera.status("calibration"))
    assert words is not None and float(words[1]) == pytest.approx(3.0, abs=0.2)
    assert state_of(camera.process) == "active"
    back = show(41, 25)
    assert all(back[-4:]) and back == sorted(back)
    camera.spin(lambda: camera._diagnostics[aspect].level == b"\x00", "still ERROR")

    assert change_state(camera.process, "deactivate") and change_state(camera.process, "activate")
    before = len(camera.rewards)
    for k in range(66, 72):
        camera.send(picture(k, 3.0), k)
    camera.spin(lambda: "refused: camera front: expected where it stood" in camera.status("state"), "not refused")
    assert " px, limit 0.3 px" in camera.status("state") and "degrees" in camera.status("state")
    assert state_of(camera.process) == "inactive"
    assert not any(one.valid for one in camera.rewards[before:])


def test_pictures_of_another_size_than_calibrated_are_refused(
    configure: Any, rig_file: Path, tmp_path: Path, change_state: Any
) -> None:
    done, camera = configure(model=make_model(tmp_path / "model", []), rig_file=rig_file)
    assert done and change_state(camera.process, "activate"), "a model without calibration takes any"
    camera.connect()
    camera.send(picture(0)[::2, ::2], 0)
    camera.spin(lambda: "expected pictures of 320x240; found 160x120" in camera.status("state"), "not refused")


def test_a_model_without_calibration_says_so(configure: Any, tmp_path: Path, change_state: Any) -> None:
    done, camera = configure(model=make_model(tmp_path / "model", []))
    assert done and change_state(camera.process, "activate")
    camera.connect()
    assert [one.valid for one in camera.show([picture(k) for k in range(3)])] == [False, True, True]
    camera.spin(lambda: "name no calibration" in camera.status("calibration"), "not said")


# ---- recordings ----


def test_a_recording_names_the_calibration_and_is_read_on_the_robots_clock(
    start_node: Any, node: Any, spin_until: Any, call: Any, diagnostics: Any, rig_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "episodes"
    common = {"directory": str(folder), "preroll_s": 0.0, "reserve_mib": 0}
    old = start_node("recorder", **common, rig_file=str(make_rig(tmp_path / "old", days=31)))
    process = start_node("recorder", **common, rig_file=str(rig_file))
    images = node.create_publisher(Image, process.topic("camera/color/image_raw"), RELIABLE)
    assert spin_until(images.get_subscription_count, node, timeout_s=TIMEOUT_S), process.output()
    begun = call(StartEpisode, process.topic("~/start"), name="one", task="push", operator_name="ann")
    assert begun.success, begun.message
    stamps_ns = 10**18 + np.arange(3) * 10**8
    for k, stamp_ns in enumerate(stamps_ns):
        images.publish(array_to_image(picture(k), int(stamp_ns), "front_optical"))
    path, aspect = folder / "one", f"{process.namespace}/recorder: episode"
    topic = process.topic("camera/color/image_raw")
    written = lambda: aspect in diagnostics and values_of(diagnostics[aspect]).get(topic) == "3"  # noqa: E731
    assert spin_until(written, node, timeout_s=TIMEOUT_S), process.output()
    assert call(StopEpisode, process.topic("~/stop"), outcome="success").success
    rig, metadata = Rig.load(rig_file), read_metadata(path)
    assert (metadata.calibration_hash, metadata.camera_serial) == (rig.hash, "123")
    assert metadata.camera_time_offset_s == OFFSET_S
    read = read_episode(path, rule=ImageRule(64, "center"))
    assert read.stamps_ns.tolist() == (stamps_ns - 40_000_000).tolist()
    assert "expected at most 30 days old" in old.wait_for("refused: ")


METADATA = EpisodeMetadata(
    task="push", outcome="partial", operator="ann", camera="front", camera_serial="123", quality=None, seed=None,
    rate_hz=10.0, render={}, versions={}, calibration_hash="a" * 64, drops={},
)  # fmt: skip


def record(path: Path, metadata: EpisodeMetadata) -> Path:
    """Six pictures, stamped 60 ms after the robot was there; action k is of the robot's step k."""
    with EpisodeWriter(path, metadata, reserve_bytes=0) as writer:
        for k, frame in enumerate(moving_square(0, expert=True, length=6)):
            writer.write_image(10**18 + k * 10**8 + 60_000_000, frame)
            writer.write_action(10**18 + k * 10**8 + 20_000_000, np.array([k / 10]))
        writer.close("success")
    return path


def test_the_time_offset_pairs_pictures_with_the_right_actions(tmp_path: Path) -> None:
    late = read_episode(record(tmp_path / "late", METADATA), rule=ImageRule(64))
    known = replace(METADATA, camera_time_offset_s=0.06)
    right = read_episode(record(tmp_path / "right", known), rule=ImageRule(64))
    # With the offset, picture k is of step k's begin: the action that led to picture k + 1 is k.
    np.testing.assert_allclose(transitions(right)[1][:, 0], np.arange(5) / 10, atol=1e-6)
    np.testing.assert_allclose(transitions(late)[1][:, 0], np.arange(1, 6) / 10, atol=1e-6)
    before = {name: value for name, value in json.loads(METADATA.to_json()).items() if name != "camera_time_offset_s"}
    assert EpisodeMetadata.from_json(json.dumps(before)) == METADATA, "bags of before"
    with pytest.raises(BagError, match="camera_time_offset_s"):
        EpisodeMetadata.from_json(json.dumps({**before, "camera_time_offset_s": 60.0}))


def test_recordings_of_several_calibrations_are_mixed_on_purpose_only(tmp_path: Path) -> None:
    one = record(tmp_path / "one", METADATA)
    for name, other in (("two", "b" * 64), ("none", None)):
        sources = [("expert", one), ("expert", record(tmp_path / name, replace(METADATA, calibration_hash=other)))]
        with pytest.raises(BagError, match=f"{name}: expected the calibration of .*one: aaaaaaaaaaaa….*--mixed-calib"):
            frame_store(tmp_path / f"store_{name}", sources, ImageRule(64))
        store = frame_store(tmp_path / f"store_{name}", sources, ImageRule(64), mixed_calibrations=True)
        hashes = ["a" * 64, *([other] if other else [])]
        assert store.calibration() == {"hashes": hashes, "serials": ["123"]}
    model = RewardModel.load(make_model(tmp_path / "model", ["a" * 64]))
    assert (model.calibration_hashes, model.camera_serials) == (["a" * 64], ["123"])
    check_camera(one, read_metadata(one), model.manifest, "record again")
    with pytest.raises(
        BagError, match="none: expected the calibration of the model's recordings: aaaaaaaaaaaa…; found"
    ):
        check_camera(tmp_path / "none", read_metadata(tmp_path / "none"), model.manifest, "record again")


def test_the_agent_takes_pictures_on_the_robots_clock(
    start_node: Any, node: Any, spin_until: Any, rig_file: Path, tmp_path: Path
) -> None:
    from geometry_msgs.msg import TwistStamped

    from dr_core.agent.actor import Actor, ActorConfig, NetworkConfig

    config = ActorConfig(
        4, "reach", 10.0, ImageRule(64, "center"), network=NetworkConfig(feature_size=8, hidden_size=16)
    )
    Actor(config).save(tmp_path / "agent")
    agent = start_node(
        "agent", robot_file=str(ROOT / "config" / "robots" / "sim_panda.yaml"), policy="checkpoint",
        checkpoint=str(tmp_path / "agent"), max_age_s=5.0, rig_file=str(rig_file),
    )  # fmt: skip
    images = node.create_publisher(Image, agent.topic("camera/color/image_raw"), 1)
    twists: list[Any] = []
    node.create_subscription(TwistStamped, agent.topic("desired_twist"), twists.append, 10)
    shown: list[int] = []

    def acted() -> bool:
        shown.append(int(node.get_clock().now().nanoseconds))
        images.publish(array_to_image(picture(len(shown)), shown[-1], "front_optical"))
        spin_until(lambda: False, node, timeout_s=0.1)
        return bool(twists)

    assert spin_until(acted, node, timeout_s=TIMEOUT_S), agent.output()
    stamp = twists[0].header.stamp
    assert stamp.sec * 10**9 + stamp.nanosec + round(1e9 * OFFSET_S) in shown
