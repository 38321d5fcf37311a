"""Episodes: what is written is what is read, by this package and by others; what is refused, and how."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from numpy.typing import NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from dr_core.data.bags import repair_bag
from dr_core.data.episodes import (
    EPISODE_TOPIC,
    IMAGE_TOPIC,
    EpisodeMetadata,
    EpisodeWriter,
    find_episodes,
    read_episode,
    read_metadata,
)
from dr_core.data.images import ImageRule
from dr_core.errors import BagError, OutputInUseError

RULE = ImageRule(64)
STORE = get_typestore(Stores.ROS2_HUMBLE)
METADATA = EpisodeMetadata(
    task="drawer-close-v3",
    outcome="partial",
    operator="scripted",
    camera="corner2",
    camera_serial="",
    quality=0,
    seed=7,
    rate_hz=10.0,
    render={"orientation": "upright"},
    versions={"mujoco": "3.3.0"},
    calibration_hash=None,
    drops={},
)


def noise(count: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (count, height, width, 3), np.uint8)


def record(path: Path, frames: NDArray[np.uint8], outcome: str = "success") -> None:
    with EpisodeWriter(path, METADATA) as writer:
        for k, frame in enumerate(frames):
            stamp_ns = 10**18 + k * 10**8
            writer.write_image(stamp_ns, frame)
            writer.write_camera_info(stamp_ns, frame.shape[1], frame.shape[0], np.eye(3), np.zeros(5))
            writer.write_joint_state(stamp_ns, ["a", "b"], np.array([k, 1.0]), np.zeros(2))
            writer.write_action(stamp_ns, np.array([k / 10, -k / 10, 0.5]))
        writer.close(outcome)  # type: ignore[arg-type]


def image_message(stamp_ns: int, rgb: NDArray[np.uint8], encoding: str = "rgb8", **changes: Any) -> Any:
    types = STORE.types
    stamp = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    height, width, _ = rgb.shape
    values = {
        "header": types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera"),
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": 0,
        "step": width * 3,
        "data": rgb.reshape(-1),
        **changes,
    }
    return types["sensor_msgs/msg/Image"](**values)


def compressed_message(stamp_ns: int, data: bytes, fmt: str) -> Any:
    header = image_message(stamp_ns, noise(1)[0]).header
    kind = STORE.types["sensor_msgs/msg/CompressedImage"]
    return kind(header=header, format=fmt, data=np.frombuffer(data, np.uint8))


def write_foreign(
    path: Path,
    messages: list[tuple[str, int, Any]],
    *,
    storage: StoragePlugin = StoragePlugin.MCAP,
    compression: CompressionMode = CompressionMode.NONE,
    version: Any = 8,
) -> None:
    """A bag as others write it: topic, log time, message."""
    writer = Writer(path, version=version, storage_plugin=storage)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, stamp_ns, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], stamp_ns, STORE.serialize_cdr(message, kind))


def stamps(count: int) -> list[int]:
    return [10**18 + k * 10**8 for k in range(count)]


def foreign_images(frames: NDArray[np.uint8], topic: str = "/camera") -> list[tuple[str, int, Any]]:
    return [(topic, s, image_message(s, frame)) for s, frame in zip(stamps(len(frames)), frames, strict=True)]


# ---- what is written is what is read ----


def test_round_trip_is_bit_identical(tmp_path: Path) -> None:
    frames = noise(30)
    record(tmp_path / "e", frames)
    episode = read_episode(tmp_path / "e", rule=RULE)
    assert (episode.frames == frames).all()
    assert episode.stamps_ns.tolist() == stamps(30)
    k = np.arange(30, dtype=np.float32)
    assert np.allclose(episode.actions, np.stack([k / 10, -k / 10, np.full(30, 0.5)], axis=1))
    assert episode.actions.dtype == np.float32
    assert episode.action_stamps_ns.tolist() == stamps(30)
    assert episode.metadata == dataclasses.replace(METADATA, outcome="success")
    assert read_metadata(tmp_path / "e") == episode.metadata


def test_large_frames_are_cropped_and_resized(tmp_path: Path) -> None:
    frames = noise(3, 480, 640)
    record(tmp_path / "e", frames)
    with pytest.raises(BagError, match="declare a crop"):
        read_episode(tmp_path / "e", rule=RULE)
    episode = read_episode(tmp_path / "e", rule=ImageRule(480, "center"))
    assert (episode.frames == frames[:, :, 80:560]).all()


def test_other_tools_read_the_bag(tmp_path: Path) -> None:
    frames = noise(12)
    record(tmp_path / "e", frames)
    with Reader(tmp_path / "e") as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        assert counts == {
            EPISODE_TOPIC: 2, IMAGE_TOPIC: 12, "/camera/color/camera_info": 12, "/joint_states": 12, "/action": 12,
        }  # fmt: skip
        for connection, _, data in reader.messages():
            STORE.deserialize_cdr(data, connection.msgtype)
    mcap_ros2 = pytest.importorskip("mcap_ros2.reader")  # knows the types from the file alone
    images = [
        np.frombuffer(message.ros_msg.data, np.uint8).reshape(64, 64, 3)
        for message in mcap_ros2.read_ros2_messages(str(tmp_path / "e" / "e_0.mcap"), topics=[IMAGE_TOPIC])
    ]
    assert (np.stack(images) == frames).all()


def test_message_types_are_the_same_in_humble_and_jazzy() -> None:
    jazzy = get_typestore(Stores.ROS2_JAZZY)
    for kind in ("Image", "CompressedImage", "CameraInfo", "JointState"):
        name = f"sensor_msgs/msg/{kind}"
        assert STORE.hash_rihs01(name) == jazzy.hash_rihs01(name)


def test_metadata_come_first_as_partial_and_last_with_the_outcome(tmp_path: Path) -> None:
    record(tmp_path / "e", noise(3), "failure")
    with Reader(tmp_path / "e") as reader:
        order = [(c.topic, STORE.deserialize_cdr(data, c.msgtype)) for c, _, data in reader.messages()]
    assert order[0][0] == order[-1][0] == EPISODE_TOPIC
    outcomes = [EpisodeMetadata.from_json(m.data).outcome for topic, m in order if topic == EPISODE_TOPIC]  # type: ignore[attr-defined]
    assert outcomes == ["partial", "failure"]


def test_an_empty_episode_is_still_a_bag(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e", METADATA) as writer:
        writer.close("failure", {"/camera": 3})
    assert read_metadata(tmp_path / "e") == dataclasses.replace(METADATA, outcome="failure", drops={"/camera": 3})
    with pytest.raises(BagError, match="images"):
        read_episode(tmp_path / "e", rule=RULE)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_aborts_the_episode(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), EpisodeWriter(tmp_path / "e", METADATA) as writer:
        writer.write_image(5, noise(1)[0])
        raise error
    assert read_metadata(tmp_path / "e").outcome == "aborted"


def test_an_episode_without_an_end_is_partial(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e", dataclasses.replace(METADATA, outcome="success")) as writer:
        writer.write_image(5, noise(1)[0])
    assert read_metadata(tmp_path / "e").outcome == "partial"
    with pytest.raises(RuntimeError, match="closed"):
        writer.write_image(6, noise(1)[0])


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.write_image(0, np.zeros((4, 4), np.uint8)),
        lambda w: w.write_image(0, np.zeros((4, 4, 3), np.float32)),
        lambda w: w.write_image(-1, np.zeros((4, 4, 3), np.uint8)),
        lambda w: w.write_action(0, np.zeros((2, 2))),
        lambda w: w.write_joint_state(0, ["a"], np.zeros(2), np.zeros(2)),
        lambda w: w.write_camera_info(0, 4, 4, np.eye(4), np.zeros(5)),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, write: Callable[[EpisodeWriter], None]) -> None:
    with EpisodeWriter(tmp_path / "e", METADATA) as writer, pytest.raises(ValueError):
        write(writer)


# ---- names and disk ----


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_an_existing_name_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "e"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = os.lstat(path)
    with pytest.raises(OutputInUseError):
        EpisodeWriter(path, METADATA)
    assert os.lstat(path) == before and [child.name for child in tmp_path.iterdir()] == ["e"]


def test_two_recordings_of_one_name_exclude_each_other(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "e", METADATA) as writer:
        with pytest.raises(OutputInUseError):
            EpisodeWriter(tmp_path / "e", METADATA)
        writer.close("success")


def test_a_name_taken_meanwhile_is_kept_and_the_recording_too(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "e", METADATA)
    writer.write_image(5, noise(1)[0])
    (tmp_path / "e").write_text("precious")
    with pytest.raises(BagError, match="dr bag repair"):
        writer.close("success")
    assert (tmp_path / "e").read_text() == "precious"
    repair_bag(tmp_path / ".e.recording", tmp_path / "f")
    assert len(read_episode(tmp_path / "f", rule=RULE).frames) == 1


def test_too_little_disk_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="free disk"):
        EpisodeWriter(tmp_path / "e", METADATA, reserve_bytes=2**62)
    assert list(tmp_path.iterdir()) == []


def test_reaching_the_reserve_ends_the_episode_as_aborted(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "e", METADATA, reserve_bytes=0)
    with pytest.raises(BagError, match="free disk"), writer:
        writer._bag._reserve_bytes = 2**62  # as if another program had filled the disk
        for k in range(100):
            writer.write_image(k, np.zeros((480, 640, 3), np.uint8))
    assert read_metadata(tmp_path / "e").outcome == "aborted"


@contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """The operating system fails writes beyond a size, as it does when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_a_partial_recording_never_a_success(tmp_path: Path) -> None:
    frames = noise(60)
    with largest_file(400_000), pytest.raises(BagError, match="dr bag repair"):
        record(tmp_path / "e", frames)
    assert not (tmp_path / "e").exists()
    repair_bag(tmp_path / ".e.recording", tmp_path / "e")
    episode = read_episode(tmp_path / "e", rule=RULE)
    assert episode.metadata.outcome == "partial"
    assert len(episode.frames) > 20 and (episode.frames == frames[: len(episode.frames)]).all()


def test_a_full_disk_at_the_very_end_is_not_a_success_either(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "e", METADATA)
    for k, frame in enumerate(noise(10)):
        writer.write_image(k, frame)
    with largest_file(80_000), pytest.raises(BagError):
        writer.close("success")
    assert not (tmp_path / "e").exists()
    assert repair_bag(tmp_path / ".e.recording", tmp_path / "f").metadata.outcome == "partial"


# ---- metadata ----


def test_metadata_survive_json() -> None:
    full = dataclasses.replace(METADATA, seed=None, quality=None, calibration_hash="ab", drops={"/x": 2}, notes="ä\n")
    assert EpisodeMetadata.from_json(full.to_json()) == full


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcom": "success"}, "unknown key 'outcom'"),
        ({"outcome": "won"}, "won"),
        ({"quality": 101}, "101"),
        ({"quality": True}, "True"),
        ({"rate_hz": "10"}, "rate_hz"),
        ({"rate_hz": -1.0}, "rate_hz"),
        ({"rate_hz": float("nan")}, "rate_hz"),
        ({"drops": {"/x": -1}}, "drops"),
        ({"render": {"a": 1}}, "render"),
        ({"task": None}, "task"),
    ],
)
def test_metadata_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    text = json.dumps({**dataclasses.asdict(METADATA), **change})
    with pytest.raises(BagError, match=message):
        EpisodeMetadata.from_json(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"task": "x"}', "[" * 100_000])
def test_what_is_not_metadata_is_refused(text: str) -> None:
    with pytest.raises(BagError):
        EpisodeMetadata.from_json(text)


# ---- bags of others ----


FOREIGN = [
    pytest.param(StoragePlugin.SQLITE3, CompressionMode.NONE, 8, id="sqlite3"),
    pytest.param(StoragePlugin.SQLITE3, CompressionMode.NONE, 9, id="sqlite3 version 9"),
    pytest.param(StoragePlugin.SQLITE3, CompressionMode.MESSAGE, 8, id="sqlite3 compressed messages"),
    pytest.param(StoragePlugin.MCAP, CompressionMode.NONE, 9, id="mcap version 9"),
    pytest.param(StoragePlugin.MCAP, CompressionMode.MESSAGE, 8, id="mcap compressed messages"),
    pytest.param(StoragePlugin.MCAP, CompressionMode.STORAGE, 8, id="mcap compressed chunks"),
]


@pytest.mark.parametrize(("storage", "compression", "version"), FOREIGN)
def test_bags_of_other_recorders_are_read(
    tmp_path: Path, storage: StoragePlugin, compression: CompressionMode, version: int
) -> None:
    frames = noise(5)
    path = tmp_path / "door-open" / "bag"
    write_foreign(path, foreign_images(frames), storage=storage, compression=compression, version=version)
    episode = read_episode(path, rule=RULE)
    assert (episode.frames == frames).all()
    assert episode.stamps_ns.tolist() == stamps(5)
    assert (episode.metadata.task, episode.metadata.outcome) == ("door-open", "partial")
    assert episode.metadata.rate_hz == pytest.approx(10.0)


def test_a_bag_of_ros_2_humble_sqlite3_without_definitions_is_read(tmp_path: Path) -> None:
    frames = noise(4)
    write_foreign(tmp_path / "b", foreign_images(frames), storage=StoragePlugin.SQLITE3)
    with sqlite3.connect(tmp_path / "b" / "b.db3") as database:
        database.execute("DROP TABLE message_definitions")
        database.execute("ALTER TABLE topics DROP COLUMN type_description_hash")
    database.close()
    metadata = tmp_path / "b" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("version: 8", "version: 5"))
    assert (read_episode(tmp_path / "b", rule=RULE).frames == frames).all()
    assert (read_episode(tmp_path / "b" / "b.db3", rule=RULE).frames == frames).all()
    repair_bag(tmp_path / "b", tmp_path / "c")
    with Reader(tmp_path / "c") as reader:
        assert all(connection.msgdef.data for connection in reader.connections)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("compression", [CompressionType.LZ4, CompressionType.NONE])
def test_mcap_without_any_index_is_read(tmp_path: Path, chunked: bool, compression: CompressionType) -> None:
    frames = noise(5)
    path = tmp_path / "x.mcap"
    with path.open("wb") as file:
        writer = McapWriter(
            file,
            use_chunking=chunked,
            compression=compression,
            index_types=IndexType.NONE,
            repeat_channels=False,
            repeat_schemas=False,
            use_statistics=False,
            use_summary_offsets=False,
        )
        writer.start(profile="ros2")
        kind = "sensor_msgs/msg/Image"
        schema = writer.register_schema(kind, "ros2msg", STORE.generate_msgdef(kind)[0].encode())
        channel = writer.register_channel("/camera", "cdr", schema)
        for _, stamp_ns, message in foreign_images(frames):
            writer.add_message(channel, stamp_ns, bytes(STORE.serialize_cdr(message, kind)), stamp_ns)
        writer.finish()
    assert (read_episode(path, rule=RULE).frames == frames).all()


def test_a_bare_mcap_and_a_directory_without_metadata_yaml_are_read(tmp_path: Path) -> None:
    frames = noise(5)
    record(tmp_path / "e", frames)
    assert (read_episode(tmp_path / "e" / "e_0.mcap", rule=RULE).frames == frames).all()
    (tmp_path / "e" / "metadata.yaml").unlink()
    assert (read_episode(tmp_path / "e", rule=RULE).frames == frames).all()


def test_compressed_images_are_read_and_truncated_ones_dropped_and_counted(tmp_path: Path) -> None:
    frames = noise(6)
    files = [bytes(cv2.imencode(".png", frame[:, :, ::-1])[1]) for frame in frames]
    files[2] = files[2][:-9]
    messages = [("/c", s, compressed_message(s, file, "png")) for s, file in zip(stamps(6), files, strict=True)]
    write_foreign(tmp_path / "b", messages)
    episode = read_episode(tmp_path / "b", rule=RULE)
    assert (episode.frames == np.delete(frames, 2, axis=0)).all()
    assert episode.metadata.drops == {"damaged:/c": 1}


def test_images_whose_size_disagrees_are_dropped_and_counted(tmp_path: Path) -> None:
    frames = noise(4)
    messages = foreign_images(frames)
    messages[1] = ("/camera", stamps(4)[1], image_message(stamps(4)[1], frames[1], step=200))
    messages[2] = ("/camera", stamps(4)[2], image_message(stamps(4)[2], frames[2], height=2**31))
    write_foreign(tmp_path / "b", messages)
    episode = read_episode(tmp_path / "b", rule=RULE)
    assert (episode.frames == frames[[0, 3]]).all()
    assert episode.metadata.drops == {"damaged:/camera": 2}


def test_late_and_repeated_stamps_are_sorted_out_and_counted(tmp_path: Path) -> None:
    frames = noise(6)
    order = [0, 2, 1, 3, 3, 5, 4]  # 1 and 4 are late, 3 comes twice
    times = stamps(6)
    messages = [("/camera", 10**18 + k, image_message(times[i], frames[i])) for k, i in enumerate(order)]
    write_foreign(tmp_path / "b", messages)
    episode = read_episode(tmp_path / "b", rule=RULE)
    assert episode.stamps_ns.tolist() == times
    assert (episode.frames == frames).all()
    assert episode.metadata.drops == {"out_of_order:/camera": 2, "duplicate:/camera": 1}


def test_several_image_topics_need_a_choice(tmp_path: Path) -> None:
    left, right = noise(3), 255 - noise(3)
    write_foreign(tmp_path / "b", foreign_images(left, "/left") + foreign_images(right, "/right"))
    with pytest.raises(BagError, match="/left, /right"):
        read_episode(tmp_path / "b", rule=RULE)
    with pytest.raises(BagError, match="/left, /right"):
        read_episode(tmp_path / "b", rule=RULE, image_topic="/top")
    assert (read_episode(tmp_path / "b", rule=RULE, image_topic="/right").frames == right).all()


def test_unsupported_encoding_is_refused_by_name(tmp_path: Path) -> None:
    frame = noise(1)[0]
    write_foreign(tmp_path / "b", [("/depth", 9, image_message(9, frame, "16UC1"))])
    with pytest.raises(BagError, match="16UC1"):
        read_episode(tmp_path / "b", rule=RULE)


def test_a_resolution_that_changes_is_refused(tmp_path: Path) -> None:
    first, second = stamps(2)
    images = [image_message(first, noise(1)[0]), image_message(second, noise(1, 32, 32)[0])]
    write_foreign(tmp_path / "b", [("/camera", first, images[0]), ("/camera", second, images[1])])
    with pytest.raises(BagError, match="32 x 32"):
        read_episode(tmp_path / "b", rule=RULE)


def test_images_without_stamps_are_refused(tmp_path: Path) -> None:
    write_foreign(tmp_path / "b", [("/camera", s, image_message(0, noise(1)[0])) for s in stamps(3)])
    with pytest.raises(BagError, match="stamp zero"):
        read_episode(tmp_path / "b", rule=RULE)


def test_unknown_message_types_are_passed_over(tmp_path: Path) -> None:
    frames = noise(3)
    with Writer(tmp_path / "b", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        strange = writer.add_connection("/x", "a_msgs/msg/B", msgdef="int32 c", rihs01="RIHS01_0")
        images = writer.add_connection("/camera", "sensor_msgs/msg/Image", typestore=STORE)
        for _, stamp_ns, message in foreign_images(frames):
            writer.write(strange, stamp_ns, b"\0\1\0\0\1\0\0\0")
            writer.write(images, stamp_ns, STORE.serialize_cdr(message, "sensor_msgs/msg/Image"))
    assert (read_episode(tmp_path / "b", rule=RULE).frames == frames).all()


# ---- finding episodes ----


def test_whole_episodes_are_found_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a"):
        record(tmp_path / name, noise(1))
    unfinished = EpisodeWriter(tmp_path / "b" / "3", METADATA)
    bare = tmp_path / "c" / "x.mcap"
    bare.parent.mkdir()
    bare.write_bytes((tmp_path / "a" / "a_0.mcap").read_bytes())
    (tmp_path / "c" / "notes.txt").write_text("no episode")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_episodes([tmp_path, tmp_path / "b", tmp_path / "a"])
    assert found == [tmp_path / "a", tmp_path / "b" / "1", tmp_path / "b" / "2", bare]
    with pytest.raises(BagError, match="unfinished"):
        find_episodes([tmp_path / "b" / ".3.recording"])
    with pytest.raises(BagError, match="nothing there"):
        find_episodes([tmp_path / "missing"])
    with pytest.raises(BagError, match="at least one"):
        find_episodes([tmp_path / "c" / "notes.txt"])
    unfinished.close("failure")
