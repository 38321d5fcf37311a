"""Files of others: damaged, hostile and generated ones are read or refused in one line, and nothing else happens."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from dr_calibration import sources
from dr_calibration.errors import CalibrationError
from dr_calibration.intrinsics import read_yaml
from dr_calibration.moved import Reference
from dr_calibration.rig import Rig
from dr_core import published
from dr_core.agent.actor import ActingPolicy
from dr_core.agent.replay import Replay, ReplayError
from dr_core.checkpoint import load_checkpoint
from dr_core.config import load_yaml
from dr_core.data.bags import bag_info, check_bag, repair_bag
from dr_core.data.episodes import read_episode
from dr_core.data.images import ImageRule
from dr_core.data.video import read_video, video_rate_hz
from dr_core.errors import BagError, CheckpointError, ConfigError, UserError
from dr_core.parity import compare
from dr_core.rewards.model import RewardModel
from dr_core.robot.evaluation import Curve, Results, Settings, read_results
from dr_sim.experts import AdroitExpert
from tests.faults.campaigns import formats, samples, untrusted, worker
from tests.faults.campaigns.recording import in_child

# By what an input costs; `make faults` reads ten thousand of each.
COUNTS = {
    60: (
        "parameters",
        "rig",
        "messages",
        "node messages",
        "calibration recording",
        "replay",
        "adroit policy",
        "agent checkpoint",
        "training state",
        "published weights",
        "video",
    ),
    20: ("robot file", "urdf", "config", "camera_info", "viper checkpoint", "reward checkpoint", "mcap", "sqlite3"),
    10: ("bag metadata", "reference picture", "expert weights", "evaluation"),
}
RULE = ImageRule(8)


def test_every_kind_is_fuzzed() -> None:
    assert sorted(kind for kinds in COUNTS.values() for kind in kinds) == sorted(samples.KINDS)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_and_hostile_files_are_read_or_refused(count: int) -> None:
    figures = untrusted.run(count, seed=1, kinds=COUNTS[count])
    assert {kind: one["faults"] for kind, one in figures.items() if one["faults"]} == {}
    for kind, one in figures.items():
        assert one["inputs"] >= count and one["refused"] > 0, (kind, one)


def test_every_way_to_fail_is_found_and_the_other_inputs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "CPU_S", 0.3)
    reads: dict[bytes, Callable[[Path], object]] = {
        b"fine": Path.exists,
        b"refused": lambda _: worker.check_message(UserError("a", expected="b", found="c", next_step="d")),
        b"error": lambda _: {}["x"],
        b"lines": lambda path: load_yaml(path / "a\nb.yaml"),
        b"memory": lambda _: bytearray(3 * worker.MEMORY_BYTES // 2),
        b"program": lambda _: os.system("true"),
        b"file": lambda path: (path.parent / "canary").write_text("x"),
        b"death": lambda _: os.kill(os.getpid(), signal.SIGKILL),
        b"hang": lambda _: [None for _ in iter(int, 1) if False],
    }
    kind = samples.Kind(
        [{"a": b"fine"}],
        lambda folder: reads[(folder / "a").read_bytes()](folder),
        lambda rng, files, canary: {"a": rng.choice(sorted(reads))},
    )

    def read() -> None:
        told = worker.read_kind("own", kind, seed=0, count=60, jobs=2, folder=tmp_path)
        (tmp_path / "told.json").write_text(json.dumps(vars(told)))

    os.waitpid(in_child(read), 0)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["read"] + told["refused"] + told["fault"] == 60
    assert told["deaths"] > 0 and told["hangs"] > 0 and told["read"] > 0
    found = "\n".join(told["faults"])
    for words in ("KeyError", "MemoryError", "os.system", "canary True", "dies: SIGKILL", "hangs: SIGPROF"):
        assert words in found
    (number,) = {number for fault, number in told["faults"].items() if "canary True" in fault}
    assert (tmp_path / "faults" / f"own {number}" / "a").read_bytes() == b"file"


@pytest.mark.parametrize("damage", [formats.mcap, formats.png, formats.archive, formats.sqlite])
def test_damage_that_keeps_to_a_format_has_sums_that_agree(damage: Callable[..., bytes], tmp_path: Path) -> None:
    made = {formats.mcap: "mcap", formats.png: "reference picture", formats.archive: "training state"}
    files = samples.make(made.get(damage, "sqlite3")).samples[0]
    name = next(one for one in sorted(files) if one.endswith((".mcap", ".png", ".pt", ".db3")))
    whole = {
        formats.mcap: lambda data: formats.records(data[8:-8]) is not None,
        formats.png: lambda data: samples.png_agrees(data) == data,
        formats.archive: lambda data: zipfile.ZipFile(io.BytesIO(data)).testzip() is None,
        formats.sqlite: integrity,
    }[damage]
    rngs = [random.Random(seed) for seed in range(40)]
    broken = [damage(rng, files[name]) for rng in rngs]
    assert sum(whole(data) for data in broken) >= 30
    assert sum(data != files[name] for data in broken) >= 30


def integrity(data: bytes) -> bool:
    database = sqlite3.connect(":memory:")
    if not hasattr(database, "deserialize"):
        pytest.skip("Python 3.11 takes a database apart")
    database.deserialize(data)
    try:
        return bool(database.execute("PRAGMA integrity_check").fetchone() == ("ok",))
    except sqlite3.DatabaseError:
        return False


def refused(read: Callable[[], object], words: str, kind: type[UserError] = UserError) -> None:
    """In one line with these words."""
    with pytest.raises(kind, match=words) as caught:
        read()
    assert len(str(caught.value).splitlines()) == 1


# ---- YAML ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!timestamp x", "tag"), ("a: !!int ''", "tag"), ("a: !!bool maybe", "tag"), ("a: !mine b", "tag"),
        ('a: !!python/object/apply:os.system ["touch /tmp/never"]', "no Python tags"),
        ("a: 0x" + "f" * 4000, "3000 characters"), ("a: " + "59:" * 200_000 + "59", "3000 characters"),
        ("a: [" + "1," * 400_000 + "1]", "10000 keys and values"), ("a: " + "[" * 100_000, "levels"),
        ("&a a: *a", "aliases"), ("a: -", "YAML|list"), ("a: +\nb: =", "plain YAML"),
    ],
)  # fmt: skip
def test_yaml_that_would_stop_its_reader_is_refused_at_once(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused(lambda: load_yaml(path), words, ConfigError)
    refused(lambda: read_yaml(path), words, CalibrationError)


# ---- checkpoints ----


@pytest.fixture
def model(tmp_path: Path) -> Path:
    samples.tiny_reward_model().save(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and make it agree with the files."""
    record = json.loads((path / "manifest.json").read_text())
    for name in record["sha256"]:
        record["sha256"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    change(record)
    (path / "manifest.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "x" * 300, "a\0b", "", ".", "..", "link", "folder", "pipe"]
)
def test_a_manifest_names_plain_files_beside_it_only(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (model / "link").symlink_to(tmp_path / "secret")
    (model / "folder").mkdir()
    os.mkfifo(model / "pipe")
    edit(model, lambda record: record["sha256"].update({name: hashlib.sha256(b"mine").hexdigest()}))
    refused(lambda: load_checkpoint(model), "plain files beside it", CheckpointError)


def test_a_manifest_is_no_link_and_its_hashes_are_text(model: Path, tmp_path: Path) -> None:
    edit(model, lambda record: record["sha256"].update({"config.yaml": 5}))
    refused(lambda: load_checkpoint(model), "expected JSON of format", CheckpointError)
    edit(model, lambda record: None)
    (model / "manifest.json").rename(tmp_path / "elsewhere.json")
    (model / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    refused(lambda: load_checkpoint(model), "no manifest.json in it", CheckpointError)


@pytest.mark.parametrize(
    "changes",
    [
        {"in_place": {"width": 2**20, "depth": 1, "heads": 2}}, {"in_place": {"width": 8, "depth": 10**6, "heads": 2}},
        {"num_timesteps": 10**9}, {"num_history": 10**9}, {"fsq": {"levels": [2] * 40, "channels": 8}},
        {"fsq": {"levels": [3, 3], "channels": 8 * 10**6}}, {"num_timesteps": -1}, {"num_history": 0},
    ],
)  # fmt: skip
def test_a_config_of_a_network_larger_than_its_weights_takes_no_memory(changes: dict[str, Any], model: Path) -> None:
    config = yaml.safe_load((model / "config.yaml").read_text())
    config.update({key: {**config[key], **v} if isinstance(v, dict) else v for key, v in changes.items()})
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    edit(model, lambda record: None)
    refused(lambda: RewardModel.load(model), str(model), CheckpointError)


def test_weights_of_odd_shapes_are_refused(model: Path) -> None:
    tensors = dict(load_checkpoint(model).tensors)
    save_file({**tensors, "progress.weight": torch.tensor(3.0)}, model / "model.safetensors")
    edit(model, lambda record: None)
    refused(lambda: RewardModel.load(model), "progress.weight", CheckpointError)
    refused(lambda: ActingPolicy.load(model), "the checkpoint of an agent", CheckpointError)


def test_a_training_state_that_unpacks_to_more_than_its_file_is_refused(model: Path) -> None:
    torch.save({"a": torch.zeros(2**22)}, model / "stored.pt")
    packed = zipfile.ZipFile(model / "training.pt", "w", zipfile.ZIP_DEFLATED)
    with packed, zipfile.ZipFile(model / "stored.pt") as stored:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    (model / "stored.pt").unlink()
    assert (model / "training.pt").stat().st_size < 2**20
    digest = hashlib.sha256((model / "training.pt").read_bytes()).hexdigest()
    edit(model, lambda record: record["sha256"].update({"training.pt": digest}))
    refused(lambda: load_checkpoint(model), "tensors and plain numbers only", CheckpointError)


def test_published_weights_that_unpack_to_more_than_their_file_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "stored.pt")
    assert published._load(tmp_path / "stored.pt")["a"].shape == (2**22,)
    packed = zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED)
    with packed, zipfile.ZipFile(tmp_path / "stored.pt") as stored:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    refused(lambda: published._load(tmp_path / "packed.pt"), "nothing in it was executed", CheckpointError)


def test_a_training_state_in_the_format_before_archives_takes_no_memory(model: Path) -> None:
    # Its reader takes memory for the sizes that it names before it finds that they are not there.
    torch.save({"a": torch.zeros(3)}, model / "training.pt", _use_new_zipfile_serialization=False)
    digest = hashlib.sha256((model / "training.pt").read_bytes()).hexdigest()
    edit(model, lambda record: record["sha256"].update({"training.pt": digest}))
    refused(lambda: load_checkpoint(model), "tensors and plain numbers only", CheckpointError)


# ---- bags and video ----


@pytest.mark.parametrize("name", ["../bag_0.mcap", "/etc/passwd", "x" * 300, "a\0b", "a\nb", "..", "/", "", "é" * 200])
def test_metadata_of_a_bag_names_plain_files_in_it_only(name: str, tmp_path: Path) -> None:
    bag = samples.small_bag(tmp_path / "bag")
    content = yaml.safe_load((bag / "metadata.yaml").read_text())
    content["rosbag2_bagfile_information"]["relative_file_paths"] = [name]
    (bag / "metadata.yaml").write_text(yaml.safe_dump(content))
    for read in (lambda: bag_info(bag), lambda: read_episode(bag, rule=RULE), lambda: repair_bag(bag, tmp_path / "o")):
        refused(read, "names of files inside the bag|YAML", BagError)
    assert not (tmp_path / "o").exists()


def test_a_recording_of_an_impossible_name_is_missing() -> None:
    refused(lambda: bag_info(Path("x" * 300)), "x" * 300, BagError)
    refused(lambda: read_episode(Path("a\0b.mcap"), rule=RULE), "a\0b", BagError)


def test_a_pipe_in_the_place_of_metadata_does_not_hold_its_reader(tmp_path: Path) -> None:
    bag = samples.small_bag(tmp_path / "bag")
    (bag / "metadata.yaml").unlink()
    os.mkfifo(bag / "metadata.yaml")
    refused(lambda: bag_info(bag), "rosbag2 metadata", BagError)
    assert repair_bag(bag, tmp_path / "saved").metadata.task == "push"


@pytest.mark.parametrize("command", [one for one in samples.HOSTILE_SQL if "RECURSIVE" in one or "zeroblob" in one])
def test_a_database_that_computes_its_messages_is_damaged(command: str, tmp_path: Path) -> None:
    samples.sqlite3_bag(tmp_path / "bag.db3")
    database = sqlite3.connect(tmp_path / "bag.db3")
    database.executescript(command)
    database.close()
    refused(lambda: bag_info(tmp_path / "bag.db3"), "is computed", BagError)
    assert any("is computed" in line for line in check_bag(tmp_path / "bag.db3"))


def test_a_log_beside_a_database_is_not_followed_elsewhere(tmp_path: Path) -> None:
    samples.sqlite3_bag(tmp_path / "bag.db3")
    (tmp_path / "secret").write_bytes(b"x" * 5000)
    (tmp_path / "bag.db3-wal").symlink_to(tmp_path / "secret")
    assert bag_info(tmp_path / "bag.db3").topics
    assert (tmp_path / "secret").read_bytes() == b"x" * 5000


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile other.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_a_video_that_names_other_files_is_refused(text: str, tmp_path: Path) -> None:
    from dr_core.data.video import write_video

    write_video(tmp_path / "other.mp4", np.zeros((3, 16, 16, 3), np.uint8), 10.0, lossless=False)
    (tmp_path / "list.avi").write_text(text)
    refused(lambda: read_video(tmp_path / "list.avi"), "a whole video", BagError)
    refused(lambda: video_rate_hz(tmp_path / "list.avi"), "a whole video", BagError)


def test_a_video_whose_frames_change_their_size_is_refused(tmp_path: Path) -> None:
    picture = cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        packet = av.Packet(picture)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 1, 1, True
        container.mux(packet)
    refused(lambda: read_video(tmp_path / "a.avi"), "frames of 16 x 16 and 32 x 32", BagError)


def test_a_video_of_more_frames_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dr_core.data import video

    video.write_video(tmp_path / "a.mp4", np.zeros((5, 16, 16, 3), np.uint8), 10.0, lossless=False)
    monkeypatch.setattr(video, "READ_LIMIT_BYTES", 5 * 16 * 16 * 3)
    assert len(read_video(tmp_path / "a.mp4")[0]) == 5
    monkeypatch.setattr(video, "READ_LIMIT_BYTES", 5 * 16 * 16 * 3 - 1)
    refused(lambda: read_video(tmp_path / "a.mp4"), "bytes of frames", BagError)


@pytest.mark.parametrize("read", [AdroitExpert, lambda path: compare(path, "")], ids=["expert", "vectors"])
@pytest.mark.parametrize("shape", ["(3,", "(3, '", "(\0", "(10**18,)", "(-1,)", "(True,)"])
def test_an_array_whose_header_is_no_header_is_refused(
    read: Callable[[Path], object], shape: str, tmp_path: Path
) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in AdroitExpert.ARRAYS:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(12))
    refused(lambda: read(tmp_path / "a.npz"), "an .npz archive")


@pytest.mark.parametrize("read", [AdroitExpert, lambda path: compare(path, "")], ids=["expert", "vectors"])
def test_an_archive_that_unpacks_to_gigabytes_is_refused_before(read: Callable[[Path], object], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w0.npy", b"x" * 100)
    packed = bytearray((tmp_path / "a.npz").read_bytes())
    at = packed.index(b"PK\1\2") + 24  # the size of the member as the directory tells it
    packed[at : at + 4] = (3 * 2**30).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(packed)
    refused(lambda: read(tmp_path / "a.npz"), "bytes of arrays")


# ---- replay, evaluation, calibration ----


@pytest.mark.parametrize("name", ["x" * 300, "loop/a.png", "../secret", "a\0b", "/etc/passwd", "", 3, "pipe"])
def test_pictures_of_a_calibration_are_plain_files_in_its_folder(name: str | int, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"stamp_s": 1.0, "file": name}) + "\n")
    refused(lambda: sources.read(tmp_path), "a file", CalibrationError)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_replay_writes_to_its_own_plain_files_only(kind: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "replay").mkdir()
    frames = tmp_path / "replay" / "frames.bin"
    if kind == "link":
        frames.symlink_to(tmp_path / "precious")
    else:
        (Path.mkdir if kind == "folder" else os.mkfifo)(frames)
    make = lambda: Replay(  # noqa: E731
        tmp_path / "replay", capacity=8, frame_shape=(4, 4, 3), action_size=1, reward_names=("task",)
    )
    refused(make, "frames.bin", ReplayError)
    assert (tmp_path / "precious").read_text() == "mine"


def test_an_index_of_a_replay_that_could_not_be_is_left_out(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"capacity": 64, "frame_shape": (4, 4, 3), "action_size": 1, "reward_names": ("task",)}
    with Replay(tmp_path, **settings):
        pass
    good = {"event": "commit", "number": 0, "first": 0, "length": 3, "terminal": False, "oldest": 0, "sha256": "0" * 64}
    changes: list[dict[str, Any]] = [
        {"length": 10**18}, {"first": -5}, {"first": 2**63}, {"number": "x"}, {"number": None}, {"length": [1]},
        {"terminal": 5}, {"sha256": "é" * 64}, {"sha256": 3}, {"oldest": 1e9}, {"event": {}},
    ]  # fmt: skip
    lines = [json.dumps({**good, **change}) for change in changes]
    (tmp_path / "episodes.jsonl").write_text("\n".join([*lines, "[" * 100_000, "null", "3"]) + "\n")
    with Replay(tmp_path, **settings) as found:
        assert len(found) == 0 and len(found.skipped) == len(changes) + 3


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", ".hidden", "a/b", "a\nb", ""])
def test_a_result_of_an_evaluation_names_files_in_its_folder_only(name: str, tmp_path: Path) -> None:
    settings = Settings("full", ("a",), 1, 0, "push", "ann", 10.0, 0.3, "", 0.3, "0" * 64)
    results = Results(tmp_path / "run", settings, {})
    from tests.core.test_evaluation import result_of

    results.append(result_of(results, 0, "success"), Curve.of([]))
    results.close()
    file = tmp_path / "run" / "episodes.jsonl"
    assert len(read_results(tmp_path / "run")) == 1
    file.write_text(json.dumps({**json.loads(file.read_text()), "name": name}) + "\n")
    refused(lambda: read_results(tmp_path / "run"), "a whole file of an evaluation")


def test_the_reference_of_a_rig_is_a_plain_file_beside_it(tmp_path: Path) -> None:
    made = samples.make("rig").samples[0]
    for file, data in made.items():
        (tmp_path / file).write_bytes(data)
    rig = Rig.load(tmp_path / "rig_front.yaml")
    assert rig.check_reference(tmp_path) == tmp_path / "reference.png"
    (tmp_path / "reference.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "reference.png").symlink_to(tmp_path / "elsewhere.png")
    refused(lambda: rig.check_reference(tmp_path), "a link", CalibrationError)
    (tmp_path / "reference.png").unlink()
    os.mkfifo(tmp_path / "reference.png")
    refused(lambda: rig.check_reference(tmp_path), "a reference picture", CalibrationError)


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (10**5, 10**5), (0, 5), (1, 1)])
def test_a_reference_picture_of_impossible_size_takes_no_memory(size: tuple[int, int], tmp_path: Path) -> None:
    data = bytearray(samples.png_of_still_scene(tmp_path))
    data[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(samples.png_agrees(bytes(data)))
    refused(lambda: Reference.load(tmp_path / "huge.png"), "a PNG with transparency", CalibrationError)


def test_weights_of_odd_types_and_many_dimensions_are_refused(model: Path) -> None:
    tensors = dict(load_checkpoint(model).tensors)
    name = sorted(tensors)[0]
    for other, words in ((torch.zeros([1] * 65), "has shape"), (tensors[name].to(torch.float8_e5m2), "is of")):
        save_file({**tensors, name: other}, model / "model.safetensors")
        edit(model, lambda record: None)
        refused(lambda: RewardModel.load(model), words, CheckpointError)
