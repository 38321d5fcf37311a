"""The reward node on the wire: the numbers of the recording, and every fault of a camera refused or flagged."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from dr_interfaces.msg import RewardStamped
from numpy.typing import NDArray
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Bool, String

from dr_core.checkpoint import load_checkpoint, save_checkpoint
from dr_core.config import build
from dr_core.data.episodes import read_episode
from dr_core.data.images import decode_raw
from dr_core.presets import PRESETS, RewardModelConfig
from dr_core.rewards.model import Networks, RewardModel
from dr_core.rewards.rnd import RandomNetworkDistillation
from dr_core.rewards.train import train_reward
from dr_core.robot.live_reward import LiveReward, relabel
from dr_nodes.convert import array_to_image, header
from tests.core.moving_square import moving_square, record, record_set
from tests.nodes.conftest import TIMEOUT_S, NodeProcess, starter, values_of

RELIABLE = QoSProfile(depth=100)
PERIOD_NS = 10**8
Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained for seconds."""
    root = tmp_path_factory.mktemp("reward_model")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expert, other = record_set(root, episodes=2, length=8)
    preset = PRESETS["tiny"]()
    config = replace(preset, model=replace(preset.model, fsq=replace(preset.model.fsq, levels=(4, 4, 4))))
    train_reward(config, [expert], [other], root / "run", resume=False)
    torch.set_num_threads(threads)
    return root / "run" / "model"


@pytest.fixture(scope="module")
def model(model_path: Path) -> RewardModel:
    return RewardModel.load(model_path)


@pytest.fixture(scope="module")
def start_wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., NodeProcess]]:
    yield from starter(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def reward_process(start_wide: Any, model_path: Path) -> NodeProcess:
    """One node for most tests: a reliable queue, so that every frame is scored."""
    settings = {"image_reliability": "reliable", "image_depth": 100, "ood_limit": 0.0}
    return start_wide("reward", namespace="shared", model=str(model_path), task="push", **settings)


class Camera:
    """Publishes frames to a reward node and collects what it answers."""

    def __init__(self, process: NodeProcess, node: Any, spin_until: Any, diagnostics: Any, kind: Any = Image) -> None:
        self.process, self.node, self._spin_until, self._diagnostics = process, node, spin_until, diagnostics
        topic = "camera/color/image_raw" + ("/compressed" if kind is CompressedImage else "")
        self.publisher = node.create_publisher(kind, process.topic(topic), RELIABLE)
        self.rewards: list[Any] = []
        node.create_subscription(RewardStamped, process.topic("reward"), self.rewards.append, RELIABLE)
        self.stop_requests: list[str] = []
        stops = lambda message: self.stop_requests.append(message.data)  # noqa: E731
        node.create_subscription(String, process.topic("stop_request"), stops, RELIABLE)
        # Far from the stamps of any other test, so that the history begins anew.
        self.start_ns = time.time_ns() - 3600 * 10**9

    def spin(self, condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> None:
        assert self._spin_until(condition, self.node, timeout_s=timeout_s), f"{what}\n{self.process.output()[-3000:]}"

    def connect(self) -> None:
        topic = self.process.topic("reward")
        self.spin(
            lambda: self.publisher.get_subscription_count() == 1 and self.node.count_publishers(topic) == 1, "no peer"
        )
        self.spin(lambda: self.node.count_publishers(self.process.topic("stop_request")) == 1, "no peer")
        self.spin(lambda: self.status("state") == "active", "not active")

    def status(self, aspect: str) -> str:
        """The words of one aspect."""
        found = self._diagnostics.get(f"{self.process.namespace}/reward: {aspect}")
        return str(found.message) if found else ""

    def count(self, fault: str) -> int:
        found = self._diagnostics.get(f"{self.process.namespace}/reward: frames")
        return int(values_of(found).get(fault, 0)) if found else 0

    def stamp_ns(self, k: float) -> int:
        return self.start_ns + round(k * PERIOD_NS)

    def send(self, frame: Any, k: float) -> None:
        """A frame (H, W, 3), or a ready message, stamped as frame number k."""
        message = array_to_image(frame, self.stamp_ns(k), "eye") if isinstance(frame, np.ndarray) else frame
        message.header = header(self.stamp_ns(k), "eye")
        self.publisher.publish(message)

    def show(self, frames: Any, first: float = 0) -> list[Any]:
        """Send frames that are all scored; their rewards."""
        before = len(self.rewards)
        for k, frame in enumerate(frames):
            self.send(frame, first + k)
        self.spin(lambda: len(self.rewards) >= before + len(frames), "rewards are missing")
        return self.rewards[before:]

    def silent(self, seconds: float = 0.5) -> bool:
        """Whether no reward arrives for a while."""
        before = len(self.rewards)
        self._spin_until(lambda: len(self.rewards) > before, self.node, timeout_s=seconds)
        return len(self.rewards) == before


@pytest.fixture
def camera(
    reward_process: NodeProcess, node: Any, spin_until: Any, diagnostics: Any, state_of: Any, change_state: Any
) -> Camera:
    """A camera of the shared node, which begins anew."""
    made = Camera(reward_process, node, spin_until, diagnostics)
    made.spin(lambda: state_of(reward_process) != "unconfigured", "not configured")
    if state_of(reward_process) == "active":
        assert change_state(reward_process, "deactivate")
    assert change_state(reward_process, "activate")
    made.connect()
    return made


def clip(seed: int = 500, length: int = 5) -> Frames:
    return moving_square(seed, expert=True, length=length)


def expected(model: RewardModel, frames: Any, start_ns: int) -> list[float]:
    live = LiveReward(model.stream(task="push"), model.config.image)
    judged = [live.push(f, start_ns + k * PERIOD_NS, start_ns + k * PERIOD_NS) for k, f in enumerate(frames)]
    return [float(np.float32(one.reward.value)) for one in judged if one.reward is not None]


# ---- the numbers ----


def test_live_relabelled_and_scored_rewards_are_the_same(camera: Camera, model: RewardModel, tmp_path: Path) -> None:
    bag = record(tmp_path / "bag", clip(length=10))
    episode = read_episode(bag, rule=model.config.image)
    before = len(camera.rewards)
    for frame, stamp_ns in zip(episode.frames, episode.stamps_ns, strict=True):
        camera.publisher.publish(array_to_image(frame, int(stamp_ns), "eye"))
    camera.spin(lambda: len(camera.rewards) == before + 10, "rewards are missing")
    live = camera.rewards
    again = relabel(bag, model, task="push")
    assert [one.header.stamp.sec * 10**9 + one.header.stamp.nanosec for one in live] == list(episode.stamps_ns)
    for name in ("value", "raw", "stderr"):
        assert [getattr(one, name) for one in live] == [float(np.float32(getattr(one, name))) for one in again]
    assert [one.valid for one in live] == [one.valid for one in again]
    whole = model.score(episode.frames[None], task="push")
    np.testing.assert_allclose([one.value for one in live], whole.value[0], rtol=0, atol=1e-4)
    assert [one.valid for one in live] == whole.valid[0].tolist()


def test_provenance_and_latency(camera: Camera, model: RewardModel) -> None:
    camera.start_ns = time.time_ns() - 3 * PERIOD_NS
    rewards = camera.show(clip(length=3))
    for one in rewards:
        assert (one.estimator, one.model_hash) == (model.config.estimator.name, model.model_hash)
        assert one.header.frame_id == "eye" and 0 < one.latency_s < TIMEOUT_S
    late = sum(one.latency_s > 0.1 for one in rewards)
    camera.spin(lambda: camera.count("late") == late, "deadline misses are not counted")


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "rgba8", "bgra8", "yuv422"])
def test_encodings_and_padded_rows(encoding: str, camera: Camera, model: RewardModel) -> None:
    frames = clip(length=3)
    opaque = np.full((*frames.shape[:3], 1), 255, np.uint8)
    pixels = {
        "rgb8": lambda: frames,
        "bgr8": lambda: frames[..., ::-1],
        "mono8": lambda: frames[..., 1],
        "rgba8": lambda: np.concatenate([frames, opaque], 3),
        "bgra8": lambda: np.concatenate([frames[..., ::-1], opaque], 3),
        "yuv422": lambda: frames[..., :2],  # any bytes are a picture
    }[encoding]()
    messages, decoded = [], []
    for frame in pixels:
        rows = np.ascontiguousarray(frame).reshape(64, -1)
        padded = np.pad(rows, ((0, 0), (0, 7)), constant_values=99)
        message = array_to_image(padded, 0, "", encoding)
        message.width, message.height, message.step = 64, 64, padded.shape[1]
        messages.append(message)
        decoded.append(decode_raw(padded.tobytes(), encoding=encoding, height=64, width=64, step=padded.shape[1]))
    if encoding not in ("mono8", "yuv422"):
        np.testing.assert_array_equal(decoded, frames)
    live = camera.show(messages)
    assert [one.value for one in live] == expected(model, decoded, camera.start_ns)


# ---- faults of FAULTS rows 3 to 12 ----


def test_late_double_and_future_frames_are_dropped_and_counted(camera: Camera, model: RewardModel) -> None:
    frames = clip(length=4)
    noise = moving_square(900, expert=False, length=1)[0]
    live = camera.show(frames[:2])
    camera.send(noise, 1)
    camera.send(noise, 0.5)
    future = array_to_image(noise, time.time_ns() + 3600 * 10**9, "eye")
    camera.publisher.publish(future)
    live += camera.show(frames[2:], first=2)
    assert [one.value for one in live] == expected(model, frames, camera.start_ns), "the history is untouched"
    for fault in ("frames_duplicate", "frames_out_of_order", "frames_future"):
        camera.spin(lambda fault=fault: camera.count(fault) == 1, fault)
    assert "in the future" in camera.process.output()


def test_a_jump_of_the_clock_begins_a_new_history(camera: Camera, model: RewardModel) -> None:
    frames = clip(length=3)
    want = expected(model, frames, camera.start_ns)
    assert [one.value for one in camera.show(frames)] == want
    for jump in (50, -50):  # 5 s
        again = camera.show(frames, first=jump)
        assert [one.value for one in again] == want and not again[0].valid
    camera.spin(lambda: camera.count("frames_jump") == 2, "jumps are not counted")


def test_a_stuck_camera_is_not_rewarded(camera: Camera) -> None:
    frames = clip(length=4)
    rewards = camera.show([*frames, *frames[3:].repeat(6, 0)])
    assert [one.valid for one in rewards] == [False, *[True] * 6, *[False] * 3]
    camera.spin(lambda: "same picture" in camera.status("frames"), "not said")
    camera.spin(lambda: len(camera.stop_requests) == 3, "the gate is asked to stop with each picture from the 5th on")
    assert set(camera.stop_requests) == {"reward: the camera sends the same picture, 5 times or more"}
    assert camera.show(clip(501, 1), first=10)[0].valid
    assert len(camera.stop_requests) == 3


@pytest.mark.parametrize(("level", "word"), [(3, "black"), (252, "over-exposed")])
def test_black_and_over_exposed_pictures_are_not_rewarded(level: int, word: str, camera: Camera) -> None:
    frames = clip(length=3)
    rewards = camera.show([frames[0], frames[1], np.full_like(frames[0], level)])
    assert [one.valid for one in rewards] == [False, True, False]
    camera.spin(lambda: word in camera.status("frames"), "not said")


def test_damaged_messages_are_dropped_and_counted(camera: Camera) -> None:
    frames = clip(length=3)
    camera.show(frames[:2])
    short, wide = (array_to_image(frames[0], 0, "eye") for _ in range(2))
    short.data = short.data[:-1]
    wide.step = 10**6
    camera.send(short, 2)
    camera.send(wide, 2.1)
    assert camera.show(frames[2:], first=2.2)[0].valid
    camera.spin(lambda: camera.count("damaged") == 2, "not counted")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("zero", "image stamp: expected the time of exposure in header.stamp; found zero"),
        ("16UC1", "encoding '16UC1'"),
        ("larger", "image resolution: expected 64 x 64; found 128 x 128"),
        ("wide", "image resolution: expected 64 x 64; found 96 x 64"),
    ],
)
def test_a_camera_set_up_wrongly_is_refused(
    fault: str, words: str, camera: Camera, state_of: Any, change_state: Any
) -> None:
    frames = clip(length=2)
    camera.show(frames)
    bad: Any = {
        "zero": array_to_image(frames[0], 0, "eye"),
        "16UC1": array_to_image(np.zeros((64, 64), np.uint16), camera.stamp_ns(2), "eye", "16UC1"),
        "larger": array_to_image(np.zeros((128, 128, 3), np.uint8), camera.stamp_ns(2), "eye"),
        "wide": array_to_image(np.zeros((64, 96, 3), np.uint8), camera.stamp_ns(2), "eye"),
    }[fault]
    camera.publisher.publish(bad)
    camera.spin(lambda: words in camera.status("state"), f"{words}: {camera.status('state')}")
    assert "refused: " + words in camera.process.output()
    assert state_of(camera.process) == "inactive"
    camera.send(frames[1], 5)
    assert camera.silent(), "an inactive node gives no rewards"
    assert change_state(camera.process, "activate")
    assert len(camera.show(frames, first=100)) == 2, "it works again when the camera does"


def test_another_aspect_needs_a_declared_crop(start_node: Any, model_path: Path, node: Any, spin_until: Any,
                                              diagnostics: Any, model: RewardModel) -> None:  # fmt: skip
    frames = np.pad(clip(length=3), ((0, 0), (0, 0), (16, 16), (0, 0)))
    settings = {"image_reliability": "reliable", "image_depth": 100, "ood_limit": 0.0, "model": str(model_path)}
    camera = Camera(start_node("reward", **settings, task="push"), node, spin_until, diagnostics)
    camera.connect()
    camera.send(frames[0], 0)
    camera.spin(lambda: "frame of 96 x 64: expected a square" in camera.status("state"), "not refused")
    camera.process.stop()
    cropped = Camera(start_node("reward", **settings, task="push", crop="center"), node, spin_until, diagnostics)
    cropped.connect()
    live = cropped.show(frames)
    assert [one.value for one in live] == expected(model, clip(length=3), cropped.start_ns)


def test_a_truncated_jpeg_is_dropped_and_counted(
    start_node: Any, model_path: Path, node: Any, spin_until: Any, diagnostics: Any
) -> None:
    settings = {"image_reliability": "reliable", "image_depth": 100, "compressed": True, "ood_limit": 0.0}
    process = start_node("reward", model=str(model_path), **settings)
    camera = Camera(process, node, spin_until, diagnostics, CompressedImage)
    camera.connect()
    files = [cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in clip(length=4)]
    camera.show([CompressedImage(format="jpeg", data=files[0])])
    camera.send(CompressedImage(format="jpeg", data=files[1][:-200]), 1)
    rest = camera.show([CompressedImage(format="jpeg", data=data) for data in files[2:]], first=2)
    assert [one.valid for one in rest] == [False, True], "a gap is not the frame spacing of the model"
    camera.spin(lambda: camera.count("damaged") == 1, "not counted")


# ---- the graph, and what is missing ----


def test_a_qos_mismatch_names_both_policies(
    start_node: Any, model_path: Path, node: Any, diagnostics: Any, spin_until: Any
) -> None:
    process = start_node("reward", model=str(model_path), image_reliability="reliable")
    camera = Camera(process, node, spin_until, diagnostics)
    camera.connect()
    node.destroy_publisher(camera.publisher)
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    topic = process.topic("camera/color/image_raw")
    node.create_publisher(Image, topic, best_effort)
    began_s = time.monotonic()
    want = f"{topic}: reliability: tester offers best_effort, this node asks for reliable"
    camera.spin(lambda: want in camera.status("qos"), "not said")
    assert time.monotonic() - began_s < 10  # 2 s on an idle machine
    assert want in process.wait_for("[ERROR]")


def test_two_publishers_are_refused_until_one_is_left(camera: Camera, node: Any, make_node: Any, state_of: Any) -> None:
    frames = clip(length=2)
    camera.show(frames)
    second = make_node("intruder")
    second.create_publisher(Image, camera.publisher.topic_name, RELIABLE)
    camera.spin(lambda: "found 2: intruder, tester" in camera.status("state"), "not refused")
    assert state_of(camera.process) == "inactive"
    camera.send(frames[0], 5)
    assert camera.silent()
    second.destroy_node()
    camera.spin(lambda: camera.status("state") == "active", "not active again")
    assert len(camera.show(frames, first=100)) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "parameter model: expected the directory of a reward model; found nothing"),
        ({"model": "/nowhere"}, "/nowhere: expected a checkpoint directory; found no such directory"),
        ({"task": "juggle"}, "task 'juggle': expected one the model was trained on: push, slide"),
        ({"estimator": "guess"}, "estimator 'guess': expected one of"),
        ({"crop": "1,2"}, "crop: expected none, center, or x,y,width,height; found 2 numbers"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    settings: dict[str, str], words: str, start_node: Any, model_path: Path, state_of: Any
) -> None:
    given = settings if not settings or "model" in settings else {"model": str(model_path), **settings}
    process = start_node("reward", **given)
    output = process.wait_for("refused: " + words)
    assert output.count("[ERROR]") == 1 and "Traceback" not in output
    assert state_of(process) == "unconfigured"
    assert process.stop() == 0
    assert "Traceback" not in process.output()


def test_a_parameter_out_of_range_ends_the_node(start_node: Any) -> None:
    process = start_node("reward", repeat_limit=-1)
    assert process.process.wait(TIMEOUT_S) == 2
    assert "repeat_limit" in process.output() and "Traceback" not in process.output()


# ---- one process with many models ----


@pytest.fixture(scope="module")
def bare_process(start_wide: Any) -> NodeProcess:
    """A node that is configured by the tests. What it frees goes back to the system at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        process: NodeProcess = start_wide("reward", namespace="bare", autostart=False)
    return process


@pytest.fixture
def load(
    bare_process: NodeProcess,
    node: Any,
    spin_until: Any,
    diagnostics: Any,
    state_of: Any,
    change_state: Any,
    call: Any,
) -> Callable[..., Camera]:
    """`load(path, name=value, …)`: that model with these parameters, configured but not active; and its camera."""
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import SetParameters

    kinds = {str: (4, "string_value"), float: (3, "double_value"), int: (2, "integer_value")}
    common = {"task": "push", "image_reliability": "reliable", "image_depth": 100, "ood_limit": 0.0}
    common |= {
        "camera_rate_hz": 0.0,
        "frame_rate_hz": -1.0,
        "exploration_alpha": 0.0,
        "success_topic": "",
        "stop_limit": 5,
    }

    def give(path: Path, **settings: Any) -> Camera:
        for state, step in (("active", "deactivate"), ("inactive", "cleanup")):
            if state_of(bare_process) == state:
                assert change_state(bare_process, step)
        given = {**common, "model": str(path), **settings}
        values = []
        for name, value in given.items():
            number, field = kinds[type(value)]
            values.append(Parameter(name=name, value=ParameterValue(type=number, **{field: value})))
        for answer in call(SetParameters, bare_process.topic("~/set_parameters"), parameters=values).results:
            assert answer.successful, answer.reason
        return Camera(bare_process, node, spin_until, diagnostics)

    return give


@pytest.fixture
def run_model(load: Any, bare_process: NodeProcess, change_state: Any) -> Callable[..., Camera]:
    """`run_model(path, name=value, …)`: the camera of a node that is active with this model."""

    def start(path: Path, **settings: Any) -> Camera:
        made: Camera = load(path, **settings)
        assert change_state(bare_process, "configure"), bare_process.output()[-3000:]
        assert change_state(bare_process, "activate"), bare_process.output()[-3000:]
        made.connect()
        return made

    return start


def rewritten(model_path: Path, path: Path, *, without: str = "", **changes: Any) -> Path:
    """The model with other parts, hashes included."""
    whole = load_checkpoint(model_path)
    own = ("sha256", "format", "versions", "git_commit", "created_unix_s", without)
    manifest = {key: value for key, value in whole.manifest.items() if key not in own}
    tensors, config = whole.tensors | changes.get("tensors", {}), whole.config | changes.get("config", {})
    save_checkpoint(path, tensors, config, manifest | changes.get("manifest", {}))
    return path


def copied(model_path: Path, path: Path, change: Callable[[bytes], bytes], *, honest: bool = False) -> Path:
    """The model with changed bytes of its weights; with ``honest`` the manifest has their true hash."""
    shutil.copytree(model_path, path)
    weights = path / "model.safetensors"
    weights.write_bytes(change(weights.read_bytes()))
    if honest:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["sha256"][weights.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))
    return path


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_models_that_cannot_be_trusted_are_refused(
    load: Any, model_path: Path, tmp_path: Path, change_state: Any, state_of: Any
) -> None:
    sprung = tmp_path / "sprung"
    pickled = pickle.dumps(Trap(sprung))
    (tmp_path / "model.pt").write_bytes(pickled)
    gone = copied(model_path, tmp_path / "gone", bytes)
    (gone / "model.safetensors").unlink()
    whole = load_checkpoint(model_path)
    other_codec = {"fsq": whole.config["fsq"] | {"levels": [8, 4, 4]}}
    first = next(iter(whole.tensors))
    flipped = lambda content: content[:-1] + bytes([content[-1] ^ 1])  # noqa: E731
    pickle_inside = copied(model_path, tmp_path / "pickled", lambda content: pickled, honest=True)
    rate_free = rewritten(model_path, tmp_path / "rate_free", without="frame_rate_hz")
    cases = [
        (gone, f"{gone}/manifest.json: expected the names of plain files beside it"),
        (copied(model_path, tmp_path / "short", lambda c: c[:-100]), "short/model.safetensors: expected sha256"),
        (copied(model_path, tmp_path / "flipped", flipped), "flipped/model.safetensors: expected sha256"),
        (tmp_path / "model.pt", "model.pt: expected a checkpoint directory; found a file (pickles"),
        (pickle_inside, "pickled/model.safetensors: expected safetensors; found another format"),
        (rewritten(model_path, tmp_path / "more", tensors={"extra": torch.zeros(1)}), "unexpected extra"),
        (rewritten(model_path, tmp_path / "other", tensors={first: torch.zeros(3)}), f"{first} has shape (3,)"),
        (rewritten(model_path, tmp_path / "codec", config=other_codec), "has shape"),
        (rewritten(model_path, tmp_path / "tasks", manifest={"tasks": ["push", "pull"]}), "no statistics of task pull"),
        (rate_free, "parameter frame_rate_hz: expected the frame rate of the recordings"),
    ]
    camera: Any = None
    for path, words in cases:
        camera = load(path)
        assert not change_state(camera.process, "configure"), path
        status = camera.status
        camera.spin(lambda words=words, status=status: words in status("state"), f"{words}: {status('state')}")
        assert state_of(camera.process) == "unconfigured"
    assert not sprung.exists(), "a pickle was opened"
    assert camera.process.output().count("refused: ") == len(cases), "one line for each"
    assert "Traceback" not in camera.process.output()
    load(rate_free, frame_rate_hz=10.0)
    assert change_state(camera.process, "configure"), "the rate is told by hand"


def test_the_frame_spacing_is_that_of_the_training(run_model: Any, model_path: Path, model: RewardModel) -> None:
    frames = moving_square(500, expert=True, length=13)
    camera = run_model(model_path)
    before = len(camera.rewards)
    for k, frame in enumerate(frames):  # at 30 Hz, where the model learned from 10
        camera.send(frame, k / 3)
    camera.spin(lambda: len(camera.rewards) == before + 5, "not every third")
    assert [one.value for one in camera.rewards] == expected(model, frames[::3], camera.start_ns)


def test_a_slower_camera_is_told_and_too_slow_a_one_is_not_rewarded(run_model: Any, model_path: Path) -> None:
    camera = run_model(model_path, camera_rate_hz=20.0)
    frames = moving_square(500, expert=False, length=43)
    for k in range(20):
        camera.send(frames[k], k / 2)
    camera.spin(lambda: len(camera.rewards) == 10, "every second of 20 Hz")
    assert all(one.valid for one in camera.rewards[1:])
    half = camera.show(frames[20:40], first=10)
    assert all(one.valid for one in half), "the spacing is still met"
    camera.spin(lambda: "frames a second instead of 20.0" in camera.status("frames"), camera.status("frames"))
    for k in range(3):
        [slow] = camera.show(frames[40 + k : 41 + k], first=31 + 2 * k)
        assert not slow.valid
    camera.spin(lambda: camera.count("frames_late") == 3, "not counted")
    camera.spin(lambda: "too slow for the frame spacing" in camera.status("frames"), camera.status("frames"))


def test_pictures_unlike_the_training_are_flagged(run_model: Any, model_path: Path) -> None:
    camera = run_model(model_path, ood_limit=2.0)
    strange = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    known, again, noise = camera.show([*moving_square(100, expert=True, length=2), strange])
    assert again.valid and again.ood < 2.0 and known.ood < 2.0
    assert not noise.valid and noise.ood > 2.0 and math.isfinite(noise.value)
    camera.spin(lambda: "unlike the training frames" in camera.status("frames"), camera.status("frames"))
    camera.spin(lambda: camera.count("frames_unfamiliar") == 1, "not counted")


def test_exploration_and_success_are_added_and_told(
    run_model: Any, model_path: Path, model: RewardModel, node: Any
) -> None:
    camera = run_model(model_path, exploration_alpha=0.75, success_topic="success", success_weight=2.0)
    told = node.create_publisher(Bool, camera.process.topic("success"), RELIABLE)
    camera.spin(told.get_subscription_count, "nobody listens")
    frames = np.concatenate([clip(length=4), clip(501, length=1)])
    rewards = camera.show(frames[:2])
    told.publish(Bool(data=True))
    k = 2
    while not rewards[-1].success:  # it takes its time on another topic
        rewards += camera.show(frames[2:3], first=k)
        k += 1
        assert k < 500
    rewards += camera.show(frames[3:], first=k)
    seen = [frames[0], frames[1], *[frames[2]] * (k - 2), *frames[3:]]
    video = expected(model, seen, camera.start_ns)
    network = RandomNetworkDistillation()
    for one, frame, term in zip(rewards, seen, video, strict=True):
        novelty = float(network.score(frame[None])[0])
        network.update(frame[None])
        assert one.exploration == pytest.approx(0.75 * novelty, rel=1e-3)
        assert one.value == pytest.approx(0.25 * term + one.exploration + 2.0 * one.success, rel=1e-4, abs=1e-4)
    assert [one.success for one in rewards[:2]] == [0.0, 0.0] and rewards[-1].success == 1.0
    assert rewards[0].exploration > 0


def test_not_a_number_is_never_a_valid_reward(run_model: Any, model_path: Path, tmp_path: Path) -> None:
    weights = load_checkpoint(model_path).tensors
    huge = {
        name: value * 1e30 for name, value in weights.items() if name.startswith("video.") and value.is_floating_point()
    }
    camera = run_model(rewritten(model_path, tmp_path / "huge", tensors=huge), stop_limit=2)
    rewards = camera.show(clip(length=3))
    assert all(math.isnan(one.value) and not one.valid for one in rewards)
    camera.spin(lambda: len(camera.stop_requests) == 2, "the gate is asked to stop with the 2nd and the 3rd")
    assert set(camera.stop_requests) == {"reward: the reward is not a number, 2 times or more"}
    camera.spin(lambda: "the reward is not a number" in camera.status("frames"), camera.status("frames"))
    camera.spin(lambda: camera.count("frames_not_a_number") == 3, "not counted")


def test_out_of_memory_makes_rewards_invalid_until_there_is_enough(
    run_model: Any, model_path: Path, tmp_path: Path
) -> None:
    config = load_checkpoint(model_path).config
    wide = build(RewardModelConfig, config | {"fsq": config["fsq"] | {"channels": 256}})
    networks = Networks(wide)
    statistics = {name: {"all": {"mean": 0.0, "std": 1.0}} for name in ("shaped_ratio",)}
    rates = {"tasks": [], "statistics": statistics, "frame_rate_hz": {"push": 10.0}}
    RewardModel(wide, networks, rates).save(tmp_path / "wide")
    camera = run_model(tmp_path / "wide", task="")
    frames = clip(length=7)
    camera.show(frames[:2])  # prepares the kernels
    number = camera.process.process.pid
    used = int(Path(f"/proc/{number}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(number, resource.RLIMIT_AS, (used + 2**20, resource.RLIM_INFINITY))
    [starved] = camera.show(frames[2:3], first=2)
    assert not starved.valid and math.isnan(starved.value)
    camera.spin(lambda: camera.count("frames_out_of_memory") == 1, "not counted")
    resource.prlimit(number, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [one.valid for one in camera.show(frames[3:], first=3)] == [False, True, True, True]
