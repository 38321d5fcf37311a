"""Episodes: one bag per attempt at a task, with its metadata, written crash-safe and read into arrays.

Topics of an episode:

    /camera/color/image_raw    sensor_msgs/Image, rgb8
    /camera/color/camera_info  sensor_msgs/CameraInfo
    /joint_states              sensor_msgs/JointState
    /action                    std_msgs/Float64MultiArray, layout.dim[0].label "action"
    /episode                   std_msgs/String, the metadata as JSON; the last message is the truth
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dr_core.data.bag_writer import BagWriter
from dr_core.data.images import DamagedImage, ImageRule
from dr_core.data.messages import (
    CAMERA_INFO,
    FLOAT_ARRAY,
    IMAGE,
    JOINT_STATE,
    STRING,
    choose_image_channel,
    decode_image,
    definition_of,
    deserialize,
    typestore,
)
from dr_core.data.raw import Channel, is_recording, recording_path, repair_hint
from dr_core.data.storage import BAG_SUFFIXES, locate, refuse_damage, scan, survey
from dr_core.data.video import VIDEO_SUFFIXES, iterate_video, video_rate_hz
from dr_core.errors import BagError

Outcome = Literal["success", "failure", "aborted", "partial"]

IMAGE_TOPIC = "/camera/color/image_raw"
JOINT_TOPIC = "/joint_states"
ACTION_TOPIC = "/action"
EPISODE_TOPIC = "/episode"
LARGEST_OFFSET_S = 10.0
UNKNOWN_OPERATOR = "unknown"
"""Operator of an episode whose recorder wrote no metadata: how it ended is not known either."""


@dataclass(frozen=True)
class EpisodeMetadata:
    """What is known about an episode besides its data.

    Attributes:
        task: name of the task, for example "drawer-close-v3".
        outcome: "partial" until the recording is closed properly.
        operator: "scripted", "random", or the name of the person who demonstrated.
        camera: name of the camera.
        camera_serial: serial number; empty for a simulated camera.
        quality: percentage of random actions, 0 for a pure expert; None if unknown.
        seed: seed of the simulated environment; None on a robot.
        rate_hz: nominal rate of images; 0 if unknown.
        render: how the images came about (quality settings, orientation, MuJoCo version); empty for a camera.
        versions: package name to version.
        calibration_hash: hash of the camera calibration in use, if any.
        drops: number of messages lost or left out, by topic.
        notes: free text.
        camera_time_offset_s: a picture's stamp minus it is when the robot was there; None where it was not measured.
    """

    task: str
    outcome: Outcome
    operator: str
    camera: str
    camera_serial: str
    quality: int | None
    seed: int | None
    rate_hz: float
    render: dict[str, str]
    versions: dict[str, str]
    calibration_hash: str | None
    drops: dict[str, int]
    notes: str = ""
    camera_time_offset_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("task", "operator", "camera", "camera_serial", "notes"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, not {getattr(self, name)!r}")
        if self.outcome not in get_args(Outcome):
            raise ValueError(f"outcome must be one of {', '.join(get_args(Outcome))}, not {self.outcome!r}")
        if self.quality is not None and not (_is_int(self.quality) and 0 <= self.quality <= 100):
            raise ValueError(f"quality must be a whole percentage, not {self.quality!r}")
        if self.seed is not None and not _is_int(self.seed):
            raise ValueError(f"seed must be a whole number, not {self.seed!r}")
        if not (_is_int(self.rate_hz) or isinstance(self.rate_hz, float)) or not 0 <= self.rate_hz < math.inf:
            raise ValueError(f"rate_hz must be a finite rate, not {self.rate_hz!r}")
        if self.calibration_hash is not None and not isinstance(self.calibration_hash, str):
            raise ValueError(f"calibration_hash must be text, not {self.calibration_hash!r}")
        offset = self.camera_time_offset_s
        if offset is not None and not (isinstance(offset, float) and abs(offset) <= LARGEST_OFFSET_S):
            raise ValueError(f"camera_time_offset_s must be at most {LARGEST_OFFSET_S} s, not {offset!r}")
        for name in ("render", "versions"):
            _check_mapping(name, getattr(self, name), lambda value: isinstance(value, str))
        _check_mapping("drops", self.drops, lambda value: _is_int(value) and value >= 0)

    def to_json(self) -> str:
        """One line of JSON with sorted keys; equal metadata give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, where: str = EPISODE_TOPIC) -> EpisodeMetadata:
        """Parse what :meth:`to_json` wrote.

        Raises:
            BagError: not JSON, a key unknown or missing, or a value of the wrong kind; names ``where``.
        """
        try:
            mapping = json.loads(text)
            if not isinstance(mapping, dict):
                raise ValueError(f"a JSON object is needed, not {type(mapping).__name__}")
            known = {field.name for field in dataclasses.fields(cls)}
            if unknown := sorted(set(mapping) - known):
                raise ValueError(f"unknown key {unknown[0]!r}")
            if missing := sorted(known - {"notes", "camera_time_offset_s"} - set(mapping)):
                raise ValueError(f"key {missing[0]!r} is missing")
            return cls(**mapping)
        except (ValueError, RecursionError) as error:
            raise BagError(
                where,
                expected="episode metadata as written by this package",
                found=str(error),
                next_step="read it with the version of the package that recorded it",
            ) from error


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_mapping(name: str, value: object, item_is_valid: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a mapping, not {value!r}")
    for key, item in value.items():
        if not isinstance(key, str) or not item_is_valid(item):
            raise ValueError(f"{name} must not hold {key!r}: {item!r}")


class EpisodeWriter:
    """Records one episode as a rosbag2 directory; use it as a context manager and call :meth:`close`.

    A killed recording leaves ``.<name>.recording/``, which ``dr bag repair`` turns into a bag of outcome
    "partial". Leaving the with-block by an exception closes the episode as "aborted", leaving it without
    :meth:`close` as "partial".

    Args:
        path: the bag directory to create; never overwritten.
        metadata: what is known at the start; its outcome is ignored in favour of that given to :meth:`close`.
        image_topic: topic of the images; the camera_info topic lies beside it.
        reserve_bytes: free disk space to leave; recording refuses to start, or aborts, below it.

    Raises:
        OutputInUseError: the name is taken.
        BagError: too little free disk.
    """

    def __init__(
        self,
        path: Path,
        metadata: EpisodeMetadata,
        *,
        image_topic: str = IMAGE_TOPIC,
        reserve_bytes: int = 256 * 2**20,
    ) -> None:
        self.metadata = metadata
        self._types = typestore().types
        self._bag = BagWriter(path, building=recording_path(path), reserve_bytes=reserve_bytes)
        self._image_topic = image_topic
        self._camera_info_topic = image_topic.rsplit("/", 1)[0] + "/camera_info"
        self._channels: dict[str, int] = {}
        self._end_ns = 0
        self._closed = False

    def write_image(self, stamp_ns: int, rgb: NDArray[np.uint8]) -> None:
        """Append one frame (H, W, 3), taken at ``stamp_ns``."""
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise ValueError(f"an image is uint8 (H, W, 3), not {rgb.dtype} {rgb.shape}")
        height, width, _ = rgb.shape
        message = self._types[IMAGE](
            header=self._header(stamp_ns),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(rgb).reshape(-1),
        )
        self._write(self._image_topic, stamp_ns, message)

    def write_joint_state(
        self, stamp_ns: int, names: Sequence[str], position: NDArray[Any], velocity: NDArray[Any]
    ) -> None:
        """Append joint positions (rad or m) and velocities (rad/s, m/s), each (J,), ordered as ``names``."""
        position, velocity = np.asarray(position, np.float64), np.asarray(velocity, np.float64)
        if position.shape != (len(names),) or velocity.shape != (len(names),):
            raise ValueError(f"{len(names)} joints need as many values: {position.shape}, {velocity.shape}")
        message = self._types[JOINT_STATE](
            header=self._header(stamp_ns),
            name=list(names),
            position=position,
            velocity=velocity,
            effort=np.zeros(0),
        )
        self._write(JOINT_TOPIC, stamp_ns, message)

    def write_action(self, stamp_ns: int, action: NDArray[Any]) -> None:
        """Append the action (A,) applied from ``stamp_ns`` on."""
        action = np.asarray(action, np.float64)
        if action.ndim != 1:
            raise ValueError(f"an action is (A,), not {action.shape}")
        size = action.shape[0]
        dimension = self._types["std_msgs/msg/MultiArrayDimension"](label="action", size=size, stride=size)
        layout = self._types["std_msgs/msg/MultiArrayLayout"](dim=[dimension], data_offset=0)
        self._write(ACTION_TOPIC, stamp_ns, self._types[FLOAT_ARRAY](layout=layout, data=action))

    def write_camera_info(self, stamp_ns: int, width: int, height: int, k: NDArray[Any], d: NDArray[Any]) -> None:
        """Append the pinhole matrix ``k`` (3, 3) in pixels and plumb_bob distortion ``d`` (5,)."""
        k, d = np.asarray(k, np.float64), np.asarray(d, np.float64)
        if k.shape != (3, 3) or d.shape != (5,):
            raise ValueError(f"k is (3, 3) and d is (5,), not {k.shape} and {d.shape}")
        message = self._types[CAMERA_INFO](
            header=self._header(stamp_ns),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=d,
            k=k.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.hstack([k, np.zeros((3, 1))]).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=self._types["sensor_msgs/msg/RegionOfInterest"](
                x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )
        self._write(self._camera_info_topic, stamp_ns, message)

    def close(self, outcome: Outcome, drops: dict[str, int] | None = None) -> None:
        """Write the final metadata and give the bag its name; ``drops`` counts lost messages by topic.

        Raises:
            BagError: the disk failed; what was written is under ``.<name>.recording``.
        """
        if self._closed:
            raise RuntimeError("the episode is closed")
        drops = self.metadata.drops if drops is None else drops
        self.metadata = dataclasses.replace(self.metadata, outcome=outcome, drops=drops)
        self._closed = True
        if not self._bag.broken:
            if not self._channels:
                self._write_metadata(dataclasses.replace(self.metadata, outcome="partial"))
            self._write_metadata(self.metadata)
        self._bag.finish()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._closed:
            return
        if error is None:
            self.close("partial")
        elif self._bag.broken:
            self._bag.abandon()
        else:
            self.close("aborted")

    def _header(self, stamp_ns: int) -> Any:
        seconds, nanoseconds = divmod(int(stamp_ns), 10**9)
        if not 0 <= seconds < 2**31:
            raise ValueError(f"stamp {stamp_ns} ns does not fit a ROS time")
        stamp = self._types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
        return self._types["std_msgs/msg/Header"](stamp=stamp, frame_id=self.metadata.camera)

    def _write(self, topic: str, stamp_ns: int, message: Any) -> None:
        if self._closed:
            raise RuntimeError("the episode is closed")
        self._end_ns = max(self._end_ns, int(stamp_ns))
        if not self._channels:
            # First, so that a recording that is killed later says what it is and reads as partial.
            self._write_metadata(dataclasses.replace(self.metadata, outcome="partial"))
        self._append(topic, int(stamp_ns), message)

    def _write_metadata(self, metadata: EpisodeMetadata) -> None:
        self._append(EPISODE_TOPIC, self._end_ns, self._types[STRING](data=metadata.to_json()))

    def _append(self, topic: str, stamp_ns: int, message: Any) -> None:
        msgtype = message.__msgtype__
        if topic not in self._channels:
            channel = Channel(topic, msgtype, "cdr", "ros2msg", definition_of(msgtype), "")
            self._channels[topic] = self._bag.add_channel(channel)
        self._bag.write(self._channels[topic], stamp_ns, typestore().serialize_cdr(message, msgtype))


@dataclass(frozen=True)
class Episode:
    """One episode in memory.

    Attributes:
        path: where it was read from.
        metadata: of the recording; its drops also count the frames left out while reading.
        frames: (T, H, W, 3) uint8 RGB, T >= 1, in the order of their stamps.
        stamps_ns: (T,) int64, strictly increasing; of the robot's clock, where the camera's time offset was measured.
        actions: (N, A) float32; (0, 0) where none were recorded.
        action_stamps_ns: (N,) int64, not decreasing.
    """

    path: Path
    metadata: EpisodeMetadata
    frames: NDArray[np.uint8]
    stamps_ns: NDArray[np.int64]
    actions: NDArray[np.float32]
    action_stamps_ns: NDArray[np.int64]


def read_episode(path: Path, *, rule: ImageRule, image_topic: str | None = None) -> Episode:
    """Read an episode from a bag (rosbag2 directory, .mcap, .db3) or a video file.

    Frames are put in the order of their header stamps. Frames that repeat a stamp or cannot be decoded are
    left out; metadata.drops counts them under "duplicate:<topic>" and "damaged:<topic>", and those that
    arrived late under "out_of_order:<topic>". Where the camera's time offset is known, it is taken from their
    stamps. A bag without metadata reads as outcome "partial" of an unknown operator. A video is a "success" at
    the task its directory is named after.

    Args:
        path: the bag or the video.
        rule: crop and size of the frames.
        image_topic: needed where a bag has several image topics.

    Raises:
        BagError: nothing usable at ``path``, a damaged bag, an image topic that is missing or ambiguous, an
            encoding, resolution or aspect that is refused, or frames without stamps.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _read_video_episode(path, rule)
    bag = locate(path)
    refuse = refuse_damage(path)
    counts = survey(bag, refuse).counts
    camera = choose_image_channel(path, counts, image_topic)
    frames = _allocate(path, counts[camera], rule.size)
    stamps_ns: list[int] = []
    actions: list[NDArray[np.float64]] = []
    action_stamps_ns: list[int] = []
    metadata_json: str | None = None
    damaged = 0
    resolution = None
    for message in scan(bag, {camera.topic, ACTION_TOPIC, EPISODE_TOPIC}, refuse):
        kind = (message.channel.topic, message.channel.msgtype)
        if message.channel == camera:
            try:
                stamp_ns, image = decode_image(message)
            except DamagedImage:
                damaged += 1
                continue
            resolution = resolution or image.shape
            if image.shape != resolution:
                raise _refused(path, f"frames of one size ({_size(resolution)})", _size(image.shape), "record one size")
            if len(stamps_ns) == len(frames):
                raise _refused(path, f"{len(frames)} images", "more of them", repair_hint(path))
            frames[len(stamps_ns)] = rule.apply(image)
            stamps_ns.append(stamp_ns)
        elif kind == (ACTION_TOPIC, FLOAT_ARRAY):
            actions.append(np.array(deserialize(message, path).data))  # a copy, as it is a view of its chunk
            action_stamps_ns.append(message.log_time_ns)
        elif kind == (EPISODE_TOPIC, STRING):
            metadata_json = deserialize(message, path).data
    if len(stamps_ns) + damaged != counts[camera]:
        raise _refused(path, f"{counts[camera]} images", f"{len(stamps_ns) + damaged} images", repair_hint(path))
    if not stamps_ns:
        raise _refused(path, f"images on {camera.topic}", f"{damaged} that cannot be decoded", "check the camera")
    frames, stamps, faults = _in_order(frames[: len(stamps_ns)], np.array(stamps_ns, np.int64))
    faults["damaged"] = damaged
    found = {f"{fault}:{camera.topic}": count for fault, count in faults.items() if count}
    if metadata_json is None:
        metadata = unknown_metadata(path, "partial", _rate_hz(stamps))
    else:
        metadata = EpisodeMetadata.from_json(metadata_json, where=f"{path} {EPISODE_TOPIC}")
    metadata = dataclasses.replace(metadata, drops={**metadata.drops, **found})
    stamps -= round(1e9 * (metadata.camera_time_offset_s or 0.0))
    return Episode(path, metadata, frames, stamps, *_actions(path, actions, action_stamps_ns))


def read_metadata(path: Path) -> EpisodeMetadata:
    """The metadata of a bag or a video, without reading its images.

    Raises:
        BagError: as :func:`read_episode`.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES:
        _require(path)
        return unknown_metadata(path, "success", video_rate_hz(path))
    bag = locate(path)
    text = None
    for message in scan(bag, {EPISODE_TOPIC}, refuse_damage(path)):
        if message.channel.msgtype == STRING:
            text = deserialize(message, path).data
    if text is None:
        return unknown_metadata(path, "partial", 0.0)
    return EpisodeMetadata.from_json(text, where=f"{path} {EPISODE_TOPIC}")


def find_episodes(paths: Sequence[Path]) -> list[Path]:
    """All complete bags and videos at and below ``paths``, sorted, each once.

    Hidden names, among them unfinished recordings, are passed over below a directory, and symbolic links are
    not followed there.

    Raises:
        BagError: a path that does not exist, holds no episode, or is itself an unfinished recording.
    """
    found: set[Path] = set()
    for path in paths:
        _require(path)
        here = set(_walk(path))
        if not here:
            raise _refused(path, "at least one bag or video", "none", "check the path, or record some")
        found |= here
    return sorted(found)


def _walk(path: Path) -> Iterator[Path]:
    if path.is_file():
        if path.suffix.lower() in (*BAG_SUFFIXES, *VIDEO_SUFFIXES):
            yield path
    elif is_recording(path):
        raise _refused(path, "a complete bag", "an unfinished recording", repair_hint(path))
    elif (path / "metadata.yaml").exists():
        yield path
    else:
        for child in path.iterdir():
            if not child.name.startswith(".") and not child.is_symlink():
                yield from _walk(child)


def _read_video_episode(path: Path, rule: ImageRule) -> Episode:
    _require(path)
    frames, stamps_ns = [], []
    for frame, stamp_ns in iterate_video(path):
        frames.append(rule.apply(frame))
        stamps_ns.append(stamp_ns)
    if not frames:
        raise _refused(path, "a video with frames", "none", "encode or copy it again")
    ordered, stamps, faults = _in_order(np.stack(frames), np.array(stamps_ns, np.int64))
    metadata = unknown_metadata(path, "success", video_rate_hz(path))
    metadata = dataclasses.replace(metadata, drops={fault: count for fault, count in faults.items() if count})
    return Episode(path, metadata, ordered, stamps, *_actions(path, [], []))


def unknown_metadata(path: Path, outcome: Outcome, rate_hz: float) -> EpisodeMetadata:
    """Metadata of a recording that carries none; the directory it lies in names its task."""
    return EpisodeMetadata(
        task=path.resolve().parent.name,
        outcome=outcome,
        operator=UNKNOWN_OPERATOR,
        camera="",
        camera_serial="",
        quality=None,
        seed=None,
        rate_hz=rate_hz,
        render={},
        versions={},
        calibration_hash=None,
        drops={},
    )


def _rate_hz(stamps_ns: NDArray[np.int64]) -> float:
    return float(1e9 / np.median(np.diff(stamps_ns))) if len(stamps_ns) > 1 else 0.0


def _allocate(path: Path, count: int, size: int) -> NDArray[np.uint8]:
    """Room for the frames. The count comes from the file, but pages are only taken as frames fill them."""
    try:
        return np.empty((count, size, size, 3), np.uint8)
    except (MemoryError, ValueError) as error:
        raise _refused(path, "an episode that fits into memory", f"{count} frames", repair_hint(path)) from error


def _in_order(
    frames: NDArray[np.uint8], stamps_ns: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, int]]:
    """Frames by increasing stamp, the first of those that share one; and how many were late or left out."""
    steps = np.diff(stamps_ns)
    if (steps > 0).all():
        return frames, stamps_ns, {}
    kept_ns, kept = np.unique(stamps_ns, return_index=True)
    late = int((stamps_ns < np.maximum.accumulate(stamps_ns)).sum())
    return frames[kept], kept_ns, {"out_of_order": late, "duplicate": len(stamps_ns) - len(kept)}


def _actions(
    path: Path, actions: list[NDArray[np.float64]], stamps_ns: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if not actions:
        return np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    sizes = sorted({action.shape[0] for action in actions})
    if len(sizes) > 1:
        raise _refused(path, "actions of one length", f"lengths {sizes}", "record the episode again")
    stamps = np.array(stamps_ns, np.int64)
    order = np.argsort(stamps, kind="stable")
    return np.stack(actions).astype(np.float32)[order], stamps[order]


def _require(path: Path) -> None:
    if not path.exists():
        raise _refused(path, "a bag, a video or a directory of them", "nothing there", "check the path")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _refused(path: Path, expected: str, found: str, next_step: str) -> BagError:
    return BagError(str(path), expected=expected, found=found, next_step=next_step)
