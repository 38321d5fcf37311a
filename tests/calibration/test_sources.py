"""Samples from folders, bags and videos, and what is refused of files that others made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation

from dr_calibration import sources
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import from_parts, quaternion
from dr_calibration.intrinsics import Intrinsics, write_camera_info
from dr_calibration.samples import Sample, write_samples
from dr_core.data.messages import CAMERA_INFO, IMAGE, typestore
from dr_core.data.video import write_video
from dr_core.errors import BagError, UserError

K = np.array([[50.0, 0, 15.5], [0, 51.0, 11.5], [0, 0, 1]])


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def pose(moment: float) -> NDArray[np.float64]:
    return from_parts(Rotation.from_rotvec([0.1, 0.5 * moment, -0.2]), [0.4 + 0.1 * moment, 0.0, 0.3])


def samples() -> list[Sample]:
    return [Sample(10.0 + 0.1 * i, picture(i), pose(0.1 * i) if i != 1 else None) for i in range(4)]


def track() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    moments = np.arange(0.05, 0.4, 0.02)
    return 10.0 + moments, np.array([pose(moment) for moment in moments])


def test_a_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "a", samples(), track())
    read, tool = sources.read(folder)
    back = list(read)
    for one, first in zip(back, samples(), strict=True):
        assert one.stamp_s == first.stamp_s and np.array_equal(one.picture, first.picture)
        # What no line says is interpolated in the track.
        wanted = first.T_base_tool if first.T_base_tool is not None else pose(0.1)
        assert one.T_base_tool is not None and np.allclose(one.T_base_tool, wanted, atol=1e-9)
    assert tool is not None and np.array_equal(tool[0], track()[0]) and np.allclose(tool[1], track()[1], atol=1e-12)
    with pytest.raises(CalibrationError, match="a free name"):
        write_samples(folder, samples())
    with pytest.raises(CalibrationError, match="pictures to write"):
        write_samples(tmp_path / "b", [])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_pictures_alone_and_a_video_do_for_the_lens(tmp_path: Path) -> None:
    for name, seed in (("b.jpg", 1), ("a.png", 0), ("note.txt", 0)):
        data = cv2.imencode(name[1:] if name != "note.txt" else ".png", picture(seed)[:, :, ::-1])[1]
        (tmp_path / name).write_bytes(data.tobytes())
    read, tool = sources.read(tmp_path)
    first, second = list(read)
    assert tool is None and np.array_equal(first.picture, picture(0)) and second.stamp_s > first.stamp_s + 0.5
    film = tmp_path / "film.mkv"
    write_video(film, [picture(i) for i in range(5)], 10.0, lossless=True)
    read, tool = sources.read(film)
    frames = list(read)
    assert tool is None and len(frames) == 5 and np.array_equal(frames[3].picture, picture(3))
    assert frames[3].stamp_s == pytest.approx(0.3, abs=2e-3) and frames[3].T_base_tool is None


def write_bag(path: Path, plugin: StoragePlugin, tools: dict[str, float] | None = None, **changes: Any) -> Path:
    """Pictures at 10 Hz, poses at 50 Hz (topic: scale of the places), one CameraInfo."""
    store = typestore()
    types: Any = store.types

    def header(stamp_s: float) -> Any:
        stamp = types["builtin_interfaces/msg/Time"](int(stamp_s), round(stamp_s % 1 * 1e9))
        return types["std_msgs/msg/Header"](stamp, "frame")

    with Writer(path, version=9, storage_plugin=plugin) as bag:

        def channel(topic: str, kind: str) -> Any:
            return bag.add_connection(topic, kind, typestore=store)

        def write(where: Any, stamp_s: float, message: Any) -> None:
            bag.write(where, round(stamp_s * 1e9), store.serialize_cdr(message, message.__msgtype__))

        for topic, scale in ({"/tool_pose": 1.0} if tools is None else tools).items():
            where = channel(topic, sources.POSE_STAMPED)
            for stamp_s, one in zip(*track(), strict=True):
                point = types["geometry_msgs/msg/Point"](*(scale * one[:3, 3]))
                turn = types["geometry_msgs/msg/Quaternion"](*(changes.get("turn", 1.0) * quaternion(one)))
                placed = types["geometry_msgs/msg/Pose"](point, turn)
                write(where, stamp_s, types[sources.POSE_STAMPED](header(stamp_s), placed))
        where = channel("/camera/image_raw", IMAGE)
        for one in samples():
            rows = np.pad(one.picture[:, :, ::-1].reshape(24, 96), ((0, 0), (0, 4)))  # bgr8, padded rows
            write(where, one.stamp_s, types[IMAGE](
                header(one.stamp_s), 24, 32, "bgr8", 0, 100, np.ascontiguousarray(rows).reshape(-1)))  # fmt: skip
        where = channel("/camera/camera_info", CAMERA_INFO)
        region = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        write(where, 10.0, types[CAMERA_INFO](
            header(10.0), 24, 32, changes.get("model", "plumb_bob"), np.array([0.1, 0, 0, 0, 0]), K.ravel(),
            np.eye(3).ravel(), np.zeros(12), 0, 0, region))  # fmt: skip
    return path


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_a_bag_of_either_storage_gives_pictures_poses_and_the_makers_lens(
    tmp_path: Path, plugin: StoragePlugin
) -> None:
    bag = write_bag(tmp_path / "bag", plugin)
    read, tool = sources.read(bag)
    back = list(read)
    assert tool is not None and len(tool[0]) == len(track()[0]) and np.allclose(tool[1], track()[1])
    assert [one.T_base_tool is None for one in back] == [True, False, False, False]  # before the first pose: not known
    for one, first in zip(back, samples(), strict=True):
        assert one.stamp_s == pytest.approx(first.stamp_s, abs=1e-6) and np.array_equal(one.picture, first.picture)
    wanted = pose(0.2)
    assert back[2].T_base_tool is not None and np.allclose(back[2].T_base_tool, wanted, atol=1e-5)
    lens = sources.factory(bag)
    assert (lens.width, lens.height) == (32, 24) and np.array_equal(lens.K, K) and lens.distortion[0] == 0.1
    assert sources.serial_of(bag) == ""


def test_bags_that_are_ambiguous_or_wrong_are_refused(tmp_path: Path) -> None:
    mcap = StoragePlugin.MCAP
    several = write_bag(tmp_path / "several", mcap, {"/tool_pose": 1.0, "/other": 1.0})
    assert sources.read(several)[1] is None
    assert sources.read(several, tool_topic="/other")[1] is not None
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (several, {"tool_topic": "/none"}, "topics of this type: /other, /tool_pose"),
        (several, {"image_topic": "/none"}, "image topics: /camera/image_raw"),
        (write_bag(tmp_path / "mm", mcap, {"/tool_pose": 1e3}), {}, "/tool_pose, message 1.*not millimetres"),
        (write_bag(tmp_path / "long", mcap, turn=1.3), {}, "quaternion x, y, z, w of length 1"),
    ]
    for path, topics, text in wrong:
        with pytest.raises(UserError, match=text):
            sources.read(path, **topics)
    with pytest.raises(CalibrationError, match="topics of this type: /camera/camera_info"):
        sources.factory(several, "/none")
    with pytest.raises(CalibrationError, match="plumb_bob"):
        sources.factory(write_bag(tmp_path / "fish", mcap, model="equidistant"))
    file = next(several.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(BagError):
        list(sources.read(several)[0])
    write_camera_info(tmp_path / "maker.yaml", Intrinsics(32, 24, K, np.zeros(5)), "one")
    assert np.array_equal(sources.factory(tmp_path / "maker.yaml").K, K)


LINE = {"stamp_s": 10.5, "file": "pictures/000000.png", "T_base_tool": [0.4, 0, 0.3, 0, 0, 0, 1]}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 5: expected one line of JSON"),
        ("[1]", "line 5.*no object"),
        (json.dumps({**LINE, "extra": 1}), "line 5.*the keys"),
        (json.dumps({"stamp_s": 10.5}), "line 5.*the keys"),
        (json.dumps({**LINE, "stamp_s": 10.0}), "line 5.*stamps that increase"),
        (json.dumps({**LINE, "stamp_s": "late"}), "line 5: stamp_s"),
        (json.dumps(LINE).replace("10.5", "NaN"), "line 5: stamp_s"),
        (json.dumps({**LINE, "T_base_tool": [0.4, 0, 0.3, 0, 0, 1]}), "line 5: T_base_tool.*7 finite numbers"),
        (json.dumps({**LINE, "T_base_tool": [400.0, 0, 300, 0, 0, 0, 1]}), "line 5: T_base_tool.*not millimetres"),
        (json.dumps({**LINE, "T_base_tool": [0.4, 0, 0.3, 0, 0, 1, 1]}), "line 5: T_base_tool.*of length 1"),
        (json.dumps({**LINE, "file": "../secret.png"}), "a file in the folder; found '../secret.png'"),
        (json.dumps({**LINE, "file": "/etc/hostname"}), "a file in the folder; found '/etc/hostname'"),
        (json.dumps({**LINE, "file": 3}), "a file in the folder; found 3"),
        (json.dumps({**LINE, "file": "pictures/none.png"}), "none.png: expected a file; found none"),
        (json.dumps({**LINE, "file": "pictures/link.png"}), "a link to .*secret.png"),
        (json.dumps({**LINE, "file": "pictures/short.png"}), "short.png: expected a whole PNG"),
        (json.dumps({**LINE, "file": "pictures/huge.png"}), "huge.png: expected 1 to .* pixels"),
        ("x" * 5000, "line 5: expected at most 4096 bytes"),
        ("[" * 3000, "line 5"),
        ("\x00\udcff", "line 5"),
    ],
)
def test_damaged_and_hostile_lines_are_named(line: str, text: str, tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "a", samples())
    whole = (folder / "pictures/000000.png").read_bytes()
    (tmp_path / "secret.png").write_bytes(whole)
    (folder / "pictures/link.png").symlink_to(tmp_path / "secret.png")
    (folder / "pictures/short.png").write_bytes(whole[:-40])
    (folder / "pictures/huge.png").write_bytes(whole[:16] + b"\x00\x01\x00\x00" * 2 + whole[24:])
    with (folder / "samples.jsonl").open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(CalibrationError, match=text):
        list(sources.read(folder)[0])


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "film.mp4").write_bytes(b"no film")
    for name, text in [("none", "nothing there"), ("empty", "0 pictures"), ("file.txt", "found .txt"),
                       ("film.mp4", "a whole video")]:  # fmt: skip
        with pytest.raises(UserError, match=text):
            list(sources.read(tmp_path / name)[0])
    folder = write_samples(tmp_path / "a", samples(), track())
    (folder / "tool.jsonl").write_text(json.dumps({"stamp_s": 1.0, "T_base_tool": None}) + "\n")
    with pytest.raises(CalibrationError, match=r"tool\.jsonl: expected two poses or more; found none in line 1"):
        sources.read(folder)
