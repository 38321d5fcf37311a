"""What is in a bag, what is wrong with it, and what can be saved of it."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dr_core.data.bag_writer import BagWriter
from dr_core.data.episodes import (
    ACTION_TOPIC,
    EPISODE_TOPIC,
    EpisodeMetadata,
    read_metadata,
    unknown_metadata,
)
from dr_core.data.images import DamagedImage
from dr_core.data.messages import (
    COMPRESSED_IMAGE,
    FLOAT_ARRAY,
    IMAGE,
    STRING,
    choose_image_channel,
    decode_image,
    definition_of,
    deserialize,
    typestore,
)
from dr_core.data.raw import Channel, RawMessage, is_recording
from dr_core.data.storage import BagFiles, locate, refuse_damage, scan, survey
from dr_core.data.video import write_video
from dr_core.errors import BagError, OutputInUseError

# Share of lost messages above which an episode does not count as good.
DROP_LIMIT = 0.02


@dataclass(frozen=True)
class TopicSummary:
    """One topic: its type, its number of messages, and whether this package knows the type."""

    topic: str
    msgtype: str
    count: int
    known: bool


@dataclass(frozen=True)
class BagInfo:
    """What a whole bag holds.

    Attributes:
        path: the bag.
        storage: "mcap" or "sqlite3".
        size_bytes: of all its files.
        duration_s: from the first message to the last.
        topics: sorted by name.
        metadata: of the episode; None for a bag recorded by other means.
        has_index: metadata.yaml is there.
    """

    path: Path
    storage: str
    size_bytes: int
    duration_s: float
    topics: tuple[TopicSummary, ...]
    metadata: EpisodeMetadata | None
    has_index: bool


def bag_info(path: Path) -> BagInfo:
    """Summarise a bag, from its index where it has one.

    Raises:
        BagError: not a bag, or a damaged one.
    """
    bag = locate(path)
    counted = survey(bag, refuse_damage(path))
    topics = [
        TopicSummary(channel.topic, channel.msgtype, count, channel.msgtype in typestore().types)
        for channel, count in counted.counts.items()
    ]
    described = any(topic.topic == EPISODE_TOPIC and topic.msgtype == STRING and topic.count for topic in topics)
    return BagInfo(
        path=path,
        storage=bag.storage,
        size_bytes=sum(file.stat().st_size for file in bag.files),
        duration_s=(counted.end_ns - counted.start_ns) / 1e9,
        topics=tuple(sorted(topics, key=lambda topic: topic.topic)),
        metadata=read_metadata(path) if described else None,
        has_index=bag.information is not None,
    )


def check_bag(path: Path) -> list[str]:
    """Read every message of a bag and list what is wrong, one line each; empty if it is good."""
    try:
        bag = locate(path, salvage=True)
    except BagError as error:
        return [str(error)]
    problems: list[str] = []
    if is_recording(path):
        problems.append("the recording was never completed, or still goes on")
    elif path.is_dir() and bag.information is None:
        problems.append("metadata.yaml is missing or unreadable (the messages can be read without it)")
    damage = _Damage()
    counts: Counter[str] = Counter()
    cameras: dict[Channel, _ImageCheck] = {}
    actions = _ActionCheck()
    texts: list[str] = []
    for message in scan(bag, None, damage.note):
        channel = message.channel
        counts[channel.topic] += 1
        if channel.msgtype in (IMAGE, COMPRESSED_IMAGE):
            cameras.setdefault(channel, _ImageCheck(channel.topic)).see(message)
        try:
            if (channel.topic, channel.msgtype) == (ACTION_TOPIC, FLOAT_ARRAY):
                actions.see(deserialize(message, path).data)
            elif (channel.topic, channel.msgtype) == (EPISODE_TOPIC, STRING):
                texts.append(deserialize(message, path).data)
        except BagError as error:
            problems.append(str(error))
    problems += damage.lines
    problems += _missing_files(bag)
    problems += _count_problems(bag, counts)
    if not cameras:
        problems.append("no images")
    for camera in cameras.values():
        problems += camera.problems()
    problems += actions.problems()
    problems += _metadata_problems(path, texts, counts)
    return problems


class _Damage:
    """Collects what a scan reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.lost_bytes = 0

    def note(self, description: str, lost_bytes: int) -> None:
        self.lines.append(f"{description} ({lost_bytes} bytes)" if lost_bytes else description)
        self.lost_bytes += lost_bytes


class _ImageCheck:
    """Faults of the images of one topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._last_ns = -1
        self._shape: tuple[int, ...] | None = None
        self._faults: Counter[str] = Counter()

    def see(self, message: RawMessage) -> None:
        try:
            stamp_ns, image = decode_image(message)
        except DamagedImage as error:
            self._faults[f"cannot be decoded: expected {error.expected}, found {error.found}"] += 1
            return
        except BagError as error:
            self._faults[f"refused: {error}"] += 1
            return
        if stamp_ns == self._last_ns:
            self._faults["repeat the stamp before"] += 1
        elif stamp_ns < self._last_ns:
            self._faults["go back in time"] += 1
        self._last_ns = max(self._last_ns, stamp_ns)
        self._shape = self._shape or image.shape
        if image.shape != self._shape:
            self._faults["differ in size from the first"] += 1

    def problems(self) -> list[str]:
        return [f"{self._topic}: {count} images {fault}" for fault, count in self._faults.items()]


class _ActionCheck:
    """Faults of the actions."""

    def __init__(self) -> None:
        self._sizes: set[int] = set()
        self._not_finite = 0

    def see(self, action: NDArray[np.float64]) -> None:
        self._sizes.add(action.shape[0])
        self._not_finite += not np.isfinite(action).all()

    def problems(self) -> Iterator[str]:
        if len(self._sizes) > 1:
            yield f"{ACTION_TOPIC}: lengths differ ({', '.join(map(str, sorted(self._sizes)))})"
        if self._not_finite:
            yield f"{ACTION_TOPIC}: {self._not_finite} actions are not finite"


def _count_problems(bag: BagFiles, counts: Counter[str]) -> Iterator[str]:
    """Disagreement between metadata.yaml and the messages that are there."""
    if bag.information is None:
        return
    promised = bag.information.get("message_count")
    if promised != sum(counts.values()):
        yield f"metadata.yaml promises {promised} messages, {sum(counts.values())} can be read"


def _metadata_problems(path: Path, texts: list[str], counts: Counter[str]) -> Iterator[str]:
    if not texts:
        yield f"no outcome: nothing on {EPISODE_TOPIC}"
        return
    try:
        metadata = EpisodeMetadata.from_json(texts[-1], where=f"{path} {EPISODE_TOPIC}")
    except BagError as error:
        yield str(error)
        return
    if metadata.outcome == "partial":
        yield "no outcome: the recording did not end properly (partial)"
    for topic, dropped in sorted(metadata.drops.items()):
        # Counts of faulty frames are kept as "<fault>:<topic>".
        recorded = counts[topic.rpartition(":")[2]]
        if dropped > DROP_LIMIT * (dropped + recorded):
            yield f"{topic}: {dropped} messages dropped, {recorded} recorded (limit {DROP_LIMIT:.0%})"


@dataclass(frozen=True)
class RepairReport:
    """What a repair saved and what it could not.

    Attributes:
        source: the damaged bag, unchanged.
        out: the new bag.
        messages: number of messages recovered, by topic.
        lost: what could not be read, one line each.
        lost_bytes: their size, as far as it is known.
        metadata: of the repaired episode.
    """

    source: Path
    out: Path
    messages: dict[str, int]
    lost: tuple[str, ...]
    lost_bytes: int
    metadata: EpisodeMetadata


def repair_bag(path: Path, out: Path) -> RepairReport:
    """Copy every readable message of a damaged bag to a new one.

    Takes unfinished recordings, truncated or damaged files, and directories without metadata.yaml. The
    outcome is "partial" unless the final metadata were recovered. The source is never written to.

    Raises:
        OutputInUseError: something is at ``out``.
        BagError: not a bag, nothing readable in it, or no space for the new one.
    """
    if os.path.lexists(out):
        raise OutputInUseError(
            str(out), expected="a free name", found="an existing file", next_step="choose another name"
        )
    bag = locate(path, salvage=True)
    damage = _Damage()
    for problem in _missing_files(bag):
        damage.note(problem, 0)
    messages = scan(bag, None, damage.note)
    first = next(messages, None)
    if first is None:
        raise BagError(
            str(path),
            expected="at least one whole chunk of messages",
            found="; ".join(damage.lines) or "a bag without messages",
            next_step="record the episode again",
        )
    writer = BagWriter(out, building=out.with_name(f".{out.name}.repair"))
    try:
        metadata, counts = _copy(path, chain([first], messages), writer, damage)
        writer.finish()
    finally:
        writer.abandon()
    return RepairReport(path, out, dict(counts), tuple(damage.lines), damage.lost_bytes, metadata)


def _missing_files(bag: BagFiles) -> Iterator[str]:
    names = bag.information["relative_file_paths"] if bag.information is not None else []
    for name in sorted(set(names) - {file.name for file in bag.files}):
        yield f"the file {name} is missing"


def _copy(
    path: Path, messages: Iterable[RawMessage], writer: BagWriter, damage: _Damage
) -> tuple[EpisodeMetadata, Counter[str]]:
    """Copy the messages, then add metadata that say that the bag was repaired."""
    numbers: dict[Channel, int] = {}
    counts: Counter[str] = Counter()
    text: str | None = None
    end_ns = 0
    episode = Channel(EPISODE_TOPIC, STRING, "cdr", "ros2msg", definition_of(STRING), "")
    for message in messages:
        channel = message.channel
        if (channel.topic, channel.msgtype) == (EPISODE_TOPIC, STRING):
            episode = channel
            try:
                text = deserialize(message, path).data
            except BagError as error:
                damage.note(str(error), 0)
        if channel not in numbers:
            numbers[channel] = writer.add_channel(_defined(channel))
        writer.write(numbers[channel], message.log_time_ns, message.data)
        counts[channel.topic] += 1
        end_ns = max(end_ns, message.log_time_ns)
    metadata = _repaired_metadata(path, text, damage)
    if episode not in numbers:
        numbers[episode] = writer.add_channel(episode)
    content = typestore().types[STRING](data=metadata.to_json())
    writer.write(numbers[episode], end_ns, typestore().serialize_cdr(content, STRING))
    return metadata, counts


def _repaired_metadata(path: Path, text: str | None, damage: _Damage) -> EpisodeMetadata:
    try:
        if text is None:
            metadata = unknown_metadata(path, "partial", 0.0)
        else:
            metadata = EpisodeMetadata.from_json(text, where=f"{path} {EPISODE_TOPIC}")
    except BagError as error:
        damage.note(str(error), 0)
        metadata = unknown_metadata(path, "partial", 0.0)
    note = f"repaired, {damage.lost_bytes} bytes lost" if damage.lines else "repaired, nothing lost"
    return dataclasses.replace(metadata, notes=f"{metadata.notes}; {note}".removeprefix("; "))


def _defined(channel: Channel) -> Channel:
    """The channel with the text of its type, which the sqlite3 files of ROS 2 Humble do not hold."""
    if channel.definition or channel.msgtype not in typestore().types:
        return channel
    return channel._replace(definition_format="ros2msg", definition=definition_of(channel.msgtype))


def export_video(path: Path, out: Path, image_topic: str | None = None, *, lossless: bool = True) -> int:
    """Write the images of a bag, in full resolution, to a video; returns the number of frames.

    Frames are evenly spaced at the episode's rate: a video does not keep their stamps. Damaged frames, and
    those whose stamp does not increase, are left out. ``lossless``: see :func:`~dr_core.data.video.write_video`.

    Raises:
        OutputInUseError: something is at ``out``.
        BagError: as :func:`~dr_core.data.episodes.read_episode`.
    """
    bag = locate(path)
    refuse = refuse_damage(path)
    counted = survey(bag, refuse)
    camera = choose_image_channel(path, counted.counts, image_topic)
    rate_hz = read_metadata(path).rate_hz
    if rate_hz <= 0:
        rate_hz = max(1.0, counted.counts[camera] * 1e9 / max(1, counted.end_ns - counted.start_ns))
    written = 0

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal written
        last_ns = -1
        for message in scan(bag, {camera.topic}, refuse):
            if message.channel != camera:
                continue
            try:
                stamp_ns, image = decode_image(message)
            except DamagedImage:
                continue
            if stamp_ns > last_ns:
                last_ns = stamp_ns
                written += 1
                yield image

    write_video(out, frames(), rate_hz, lossless=lossless)
    return written
