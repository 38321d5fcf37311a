"""Where samples come from offline: a bag, a folder or a video. What lies there is not trusted.

A folder holds ``samples.jsonl`` (a line of JSON per picture: stamp_s, file, T_base_tool), if the robot's own track is
known ``tool.jsonl`` (stamp_s, T_base_tool) and the pictures, as `samples.write_samples` writes it; or pictures alone
(png, jpg), which do for the lens. Poses are x, y, z (m), qx, qy, qz, qw. In a bag the tool's pose is a
geometry_msgs/PoseStamped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, from_quaternion
from dr_calibration.intrinsics import Intrinsics, finite, read_camera_info
from dr_calibration.samples import SAMPLES_FILE, TOOL_FILE, Sample, ToolPath, Track
from dr_core.data.episodes import read_metadata
from dr_core.data.images import DamagedImage, decode_compressed
from dr_core.data.messages import CAMERA_INFO, choose_image_channel, decode_image, deserialize
from dr_core.data.raw import Channel
from dr_core.data.storage import BAG_SUFFIXES, BagFiles, locate, refuse_damage, scan, survey
from dr_core.data.video import VIDEO_SUFFIXES, iterate_video
from dr_core.errors import BagError

POSE_STAMPED = "geometry_msgs/msg/PoseStamped"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")

LARGEST_LIST_BYTES = 2**28
LARGEST_LINE_BYTES = 4096
LARGEST_PICTURE_BYTES = 2**27
MOST_PICTURES = 100_000


def read(
    source: Path, *, image_topic: str | None = None, tool_topic: str | None = None
) -> tuple[Iterator[Sample], Track | None]:
    """The pictures one by one in the order of their stamps, and the robot's own track where there is one.

    A picture's pose is that of the folder's line, or is interpolated in the track; it is None beyond the track's ends.
    Pictures of a bag that cannot be decoded or whose stamp does not increase are left out, as recorders lose some.

    Args:
        source: rosbag2 directory, .mcap, .db3; a folder as above; .mp4, .avi, .mkv.
        image_topic, tool_topic: of a bag; needed where it has several.

    Raises:
        CalibrationError, BagError: nothing usable there, damaged, ambiguous, a file outside the folder, or no pose in
            metres. Those of single pictures are raised while the samples are iterated.
    """
    if not source.exists():
        raise _refused(str(source), "a bag, a folder of pictures or a video", "nothing there", "check the path")
    if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
        return (Sample(1e-9 * stamp_ns, picture) for picture, stamp_ns in iterate_video(source)), None
    if is_bag(source):
        return _read_bag(source, image_topic, tool_topic)
    if not source.is_dir():
        kinds = ", ".join((*BAG_SUFFIXES, *VIDEO_SUFFIXES))
        raise _refused(str(source), f"a folder, or a file of {kinds}", source.suffix or "another", "name one of these")
    if (source / SAMPLES_FILE).exists():
        return _read_folder(source)
    return _read_pictures(source), None


def is_bag(source: Path) -> bool:
    """Whether this is a bag, whole or not."""
    if source.is_file():
        return source.suffix.lower() in BAG_SUFFIXES
    return (source / "metadata.yaml").exists() or any(source.glob("*.mcap")) or any(source.glob("*.db3"))


def serial_of(source: Path) -> str:
    """The camera's serial number that a recording names; "" where it names none."""
    return read_metadata(source).camera_serial if source.exists() and is_bag(source) else ""


def factory(path: Path, topic: str | None = None) -> Intrinsics:
    """The lens that a camera's maker states: a camera_info file, or the first message of a bag's CameraInfo topic.

    Raises:
        CalibrationError, BagError: not there, ambiguous, or another lens model.
    """
    if not is_bag(path):
        return read_camera_info(path)
    bag = locate(path)
    refuse = refuse_damage(path)
    channel = _choose(path, survey(bag, refuse).counts, CAMERA_INFO, topic, "--factory-topic")
    for message in scan(bag, {channel.topic}, refuse):
        if message.channel == channel:
            info = deserialize(message, path)
            k = np.asarray(info.k, np.float64)
            if not k.any():
                break
            return Intrinsics.of_camera(int(info.width), int(info.height), k, info.d, str(info.distortion_model))
    raise _refused(f"{path} {channel.topic}", "the lens of a calibrated camera", "zeros", "leave the comparison out")


# ---- bags ----


def _read_bag(path: Path, image_topic: str | None, tool_topic: str | None) -> tuple[Iterator[Sample], Track | None]:
    bag = locate(path)
    counts = survey(bag, refuse_damage(path)).counts
    camera = choose_image_channel(path, counts, image_topic)
    posed = [channel for channel, count in counts.items() if count and channel.msgtype == POSE_STAMPED]
    track = None
    if tool_topic is not None or len(posed) == 1:
        track = _bag_track(path, bag, _choose(path, counts, POSE_STAMPED, tool_topic, "--tool-topic"))
    return _bag_samples(path, bag, camera, ToolPath(track) if track else None), track


def _choose(path: Path, counts: dict[Channel, int], msgtype: str, topic: str | None, option: str) -> Channel:
    fitting = [channel for channel, count in counts.items() if count and channel.msgtype == msgtype]
    chosen = [channel for channel in fitting if topic in (None, channel.topic)]
    if len(chosen) == 1:
        return chosen[0]
    topics = ", ".join(sorted(channel.topic for channel in fitting)) or "none"
    expected = f"one topic of {msgtype}" if topic is None else f"{msgtype} on {topic}"
    raise _refused(str(path), expected, f"topics of this type: {topics}", f"name one with {option}")


def _bag_track(path: Path, bag: BagFiles, channel: Channel) -> Track:
    stamps: list[float] = []
    poses: list[Pose] = []
    for message in scan(bag, {channel.topic}, refuse_damage(path)):
        if message.channel != channel:
            continue
        content = deserialize(message, path)
        place, turn = content.pose.position, content.pose.orientation
        where = f"{channel.topic}, message {len(stamps) + 1}"
        stamps.append(content.header.stamp.sec + 1e-9 * content.header.stamp.nanosec)
        poses.append(from_quaternion([turn.x, turn.y, turn.z, turn.w], [place.x, place.y, place.z], where))
    if len(stamps) < 2 or not max(stamps) > 0.0:
        found = f"{len(stamps)} poses" if len(stamps) < 2 else "stamps of zero"
        raise _refused(f"{path} {channel.topic}", "poses of the tool with their stamps", found, "record them")
    kept_s, first = np.unique(np.array(stamps), return_index=True)
    return kept_s, np.array(poses)[first]


def _bag_samples(path: Path, bag: BagFiles, camera: Channel, tool: ToolPath | None) -> Iterator[Sample]:
    last_s = -math.inf
    for message in scan(bag, {camera.topic}, refuse_damage(path)):
        if message.channel != camera:
            continue
        try:
            stamp_ns, picture = decode_image(message)
        except DamagedImage:
            continue
        if (stamp_s := 1e-9 * stamp_ns) > last_s:
            last_s = stamp_s
            yield Sample(stamp_s, picture, tool.at(stamp_s) if tool else None)


# ---- folders ----


def _read_folder(folder: Path) -> tuple[Iterator[Sample], Track | None]:
    track = None
    if (folder / TOOL_FILE).exists():
        entries = [(stamp, _pose(where, content)) for where, stamp, content in _lines(folder, TOOL_FILE, set())]
        missing = [number for number, (_, pose) in enumerate(entries, 1) if pose is None]
        if len(entries) < 2 or missing:
            found = f"none in line {missing[0]}" if missing else f"{len(entries)} lines"
            raise _refused(str(folder / TOOL_FILE), "two poses or more", found, "record the track, or remove the file")
        track = np.array([stamp for stamp, _ in entries]), np.array([pose for _, pose in entries])
    tool = ToolPath(track) if track else None
    # Read whole before the first picture: a mistake on the last line is told at once.
    listed = [
        (stamp, _inside(folder, where, content["file"]), _pose(where, content))
        for where, stamp, content in _lines(folder, SAMPLES_FILE, {"file"})
    ]

    def samples() -> Iterator[Sample]:
        for stamp, file, pose in listed:
            yield Sample(stamp, _picture(file), tool.at(stamp) if pose is None and tool else pose)

    return samples(), track


def _lines(folder: Path, name: str, more: set[str]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Where it stands, the stamp and the content of each line; stamps increase."""
    path = _inside(folder, str(folder), name)
    if (size := path.stat().st_size) > LARGEST_LIST_BYTES:
        raise _refused(str(path), f"at most {LARGEST_LIST_BYTES} bytes", str(size), "split the recording")
    last_s, known = -math.inf, {"stamp_s", "T_base_tool"} | more
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST_LINE_BYTES + 1), b""), 1):
            where = f"{path}, line {number}"
            if len(line) > LARGEST_LINE_BYTES:
                raise _refused(where, f"at most {LARGEST_LINE_BYTES} bytes", "more", "remove or correct the line")
            try:
                content = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                found = " ".join(str(error).split())[:80]
                raise _refused(where, "one line of JSON", found, "remove or correct the line") from error
            if not isinstance(content, dict) or set(content) - known or {"stamp_s", *more} - set(content):
                found = f"the keys {', '.join(sorted(content))}"[:120] if isinstance(content, dict) else "no object"
                expected = f"the keys {', '.join(sorted(known))}"
                raise _refused(where, expected, found, "remove or correct the line")
            stamp = float(finite(f"{where}: stamp_s", [content["stamp_s"]], 1)[0])
            if stamp <= last_s:
                raise _refused(where, "stamps that increase", f"{stamp!r} after {last_s!r}", "sort the lines")
            last_s = stamp
            yield where, stamp, content
            if number >= 10 * MOST_PICTURES:
                raise _refused(str(path), f"at most {10 * MOST_PICTURES} lines", "more", "split the recording")


def _pose(where: str, content: dict[str, Any]) -> Pose | None:
    if content.get("T_base_tool") is None:
        return None
    numbers = finite(f"{where}: T_base_tool (x, y, z, qx, qy, qz, qw)", content["T_base_tool"], 7)
    return from_quaternion(numbers[3:], numbers[:3], f"{where}: T_base_tool")


def _inside(folder: Path, where: str, name: object) -> Path:
    """The file of this name, which lies in the folder and is no way out of it."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or "\0" in str(name) or PurePosixPath(str(name)).is_absolute():
        raise _refused(where, "the name of a file in the folder", repr(name)[:80], "remove or correct it")
    path = folder.joinpath(*parts)
    try:
        real, is_file = path.resolve(), path.is_file()
    except (OSError, RuntimeError) as error:  # too long, or links in a circle
        found = " ".join(str(error).split())[:80]
        raise _refused(where, "the name of a file in the folder", found, "remove or correct it") from error
    if not real.is_relative_to(folder.resolve()):
        raise _refused(str(path), "a file inside the folder", f"a link to {real}", "put the file there")
    if not is_file:
        raise _refused(str(path), "a file", "none", "put it there, or remove its line")
    return path


def _read_pictures(folder: Path) -> Iterator[Sample]:
    """Pictures alone, by name, a second apart."""
    names = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    if not 0 < len(names) <= MOST_PICTURES:
        expected = f"{SAMPLES_FILE}, a bag, or 1 to {MOST_PICTURES} pictures (png, jpg)"
        raise _refused(str(folder), expected, f"{len(names)} pictures", "name the folder that holds them")
    files = [_inside(folder, str(folder), name) for name in names]
    return (Sample(float(number), _picture(file)) for number, file in enumerate(files))


def _picture(file: Path) -> NDArray[np.uint8]:
    if (size := file.stat().st_size) > LARGEST_PICTURE_BYTES:
        raise _refused(str(file), f"at most {LARGEST_PICTURE_BYTES} bytes", str(size), "give a smaller picture")
    try:
        return decode_compressed(file.read_bytes(), "png; jpeg")
    except BagError as error:
        raise _refused(str(file), error.expected, error.found, "replace or remove the picture") from error


def _refused(subject: str, expected: str, found: str, next_step: str) -> CalibrationError:
    return CalibrationError(subject, expected=expected, found=found, next_step=next_step)
