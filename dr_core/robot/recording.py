"""Records serialised messages as episodes; receiving never waits for the disk.

An episode is a bag as ``dr_core.data.episodes`` writes it: built as ``.<name>.recording``, renamed when complete, its
metadata first and last on ``/episode``. A thread of its own writes; what it cannot take in time is dropped and counted.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import struct
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dr_core.data.bag_writer import BagWriter
from dr_core.data.bags import DROP_LIMIT
from dr_core.data.episodes import EPISODE_TOPIC, EpisodeMetadata, Outcome, read_metadata
from dr_core.data.messages import COMPRESSED_IMAGE, IMAGE, STRING, definition_of, typestore
from dr_core.data.raw import Channel, recording_path
from dr_core.data.storage import locate, refuse_damage, scan
from dr_core.errors import BagError, ConfigError, UserError

GAP = 1.5
"""An interval longer than this many periods has lost messages in it."""
LATCHED_DEPTH = 100
LATCHED_QOS = """\
- history: 1
  depth: 100
  reliability: 1
  durability: 1
  deadline: {sec: 9223372036, nsec: 854775807}
  lifespan: {sec: 9223372036, nsec: 854775807}
  liveliness: 1
  liveliness_lease_duration: {sec: 9223372036, nsec: 854775807}
  avoid_ros_namespace_conventions: false
"""
"""In rosbag2's notation: reliable and transient local, so that a replay reaches late subscribers too."""
FINAL_OUTCOMES: tuple[Outcome, ...] = ("success", "failure", "aborted")


@dataclass(frozen=True)
class Topic:
    """A topic to record.

    Attributes:
        name: of the topic.
        msgtype: such as "sensor_msgs/msg/Image".
        definition: its text with all types it is made of (ros2msg).
        stamped: the message begins with a std_msgs/Header.
        latched: transient local: its last messages belong to every episode.
        rate_hz: how often messages are expected; 0 learns it for images and expects nothing of others.
    """

    name: str
    msgtype: str
    definition: bytes
    stamped: bool = False
    latched: bool = False
    rate_hz: float = 0.0

    def channel(self) -> Channel:
        qos = LATCHED_QOS if self.latched else ""
        return Channel(self.name, self.msgtype, "cdr", "ros2msg", self.definition, qos)


class Item(NamedTuple):
    """One received message."""

    topic: str
    received_ns: int
    data: bytes | memoryview


@dataclass(frozen=True)
class Status:
    """The episode that is recorded, or was recorded last; ``path`` is None when there is none.

    Attributes:
        failure: why it ended on its own, in words; empty if it did not.
    """

    name: str
    path: Path | None
    metadata: EpisodeMetadata | None
    recording: bool
    recorded_s: float
    size_bytes: int
    counts: dict[str, int]
    drops: dict[str, int]
    failure: str

    @property
    def lossy(self) -> list[str]:
        """What in ``drops`` has a larger share of lost messages than a good episode may have."""
        return sorted(name for name, lost in self.drops.items() if lost > DROP_LIMIT * (lost + self._written(name)))

    @property
    def warning(self) -> str:
        """That too much is lost, in words; empty when it is not."""
        return f"more than {DROP_LIMIT:.0%} lost: {', '.join(self.lossy)}" if self.lossy else ""

    def _written(self, drop: str) -> int:
        return self.counts.get(drop.partition(":")[2], 0)


def header_stamp_ns(data: bytes | memoryview) -> int:
    """Stamp in the header that a serialised message begins with (CDR, 4 bytes of encapsulation before it)."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds * 10**9 + nanoseconds)


def period_ns(stamps_ns: NDArray[np.int64]) -> float:
    """The usual interval of stamps (N,); 0 with fewer than three."""
    return float(np.median(np.diff(np.unique(stamps_ns)))) if len(stamps_ns) > 2 else 0.0


def lost_in_gaps(stamps_ns: NDArray[np.int64], period: float) -> int:
    """How many messages are missing between stamps (N,) that should lie ``period`` ns apart."""
    if period <= 0 or len(stamps_ns) < 2:
        return 0
    steps = np.diff(np.unique(stamps_ns)).astype(np.float64) / period
    return int(np.sum(np.round(steps[steps > GAP]) - 1))


class PreRoll:
    """The messages of the last ``span_ns``, and the last ones of latched topics however old they are."""

    def __init__(self, span_ns: int, limit_bytes: int) -> None:
        self._span_ns, self._limit_bytes = span_ns, limit_bytes
        self._recent: deque[Item] = deque()
        self._bytes = 0
        self._latched: dict[str, deque[Item]] = {}

    def push(self, item: Item, *, latched: bool) -> None:
        """Keep a message."""
        if latched:
            self._latched.setdefault(item.topic, deque(maxlen=LATCHED_DEPTH)).append(item)
            return
        self._recent.append(item)
        self._bytes += len(item.data)
        while self._recent and (
            item.received_ns - self._recent[0].received_ns > self._span_ns or self._bytes > self._limit_bytes
        ):
            self._bytes -= len(self._recent.popleft().data)

    def take(self) -> list[Item]:
        """Everything kept, latched messages first and as if they had arrived with the first of the others."""
        start_ns = self._recent[0].received_ns if self._recent else None
        latched = [one for kept in self._latched.values() for one in kept]
        if start_ns is not None:
            latched = [one._replace(received_ns=start_ns) for one in latched]
        taken = [*latched, *self._recent]
        self._recent.clear()
        self._bytes = 0
        return taken


class _Episode:
    """One recording: a bounded queue and the thread that writes it to the bag."""

    def __init__(self, path: Path, metadata: EpisodeMetadata, queue_bytes: int, reserve_bytes: int) -> None:
        self.path, self.metadata = path, metadata
        self.counts: Counter[str] = Counter()
        self.overflows: Counter[str] = Counter()
        self.stamps_ns: dict[str, array[int]] = {}
        self.start_ns = self.end_ns = 0
        self.failure: UserError | None = None
        self.size_bytes = 0
        self.ended = False
        self._bag = BagWriter(path, building=recording_path(path), reserve_bytes=reserve_bytes)
        self._topics: dict[str, Topic] = {}
        self._numbers: dict[str, int] = {}
        self._queue: deque[Item] = deque()
        self._queued_bytes = 0
        self._queue_bytes = queue_bytes
        self._outcome: Outcome | None = None
        self._discarded = False
        self._complete = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def begin(self, topics: dict[str, Topic], first: Sequence[Item]) -> None:
        """Start to write with the messages of the pre-roll; ``topics`` may grow afterwards."""
        self._topics = topics
        for item in first:
            self._note(item)
        self._queue.extend(first)
        self._thread.start()

    def push(self, item: Item) -> bool:
        """Queue a message, or drop and count it when the queue is full; False when the episode is ending."""
        with self._news:
            if self._outcome is not None:
                return False
            self._note(item)
            if self._queued_bytes + len(item.data) > self._queue_bytes:
                self.overflows[item.topic] += 1
                return True
            self._queue.append(item)
            self._queued_bytes += len(item.data)
            self._news.notify()
            return True

    def end(self, outcome: Outcome | None) -> None:
        """Write what is queued and complete the bag; None discards it. Returns when the bag is on the disk.

        Raises:
            UserError: the disk failed.
        """
        with self._news:
            self._outcome = outcome or "aborted"
            self._discarded = outcome is None
            self._news.notify()
        self._thread.join()
        if not (self._complete or self._discarded):
            raise self.failure or _refused(
                str(self.path), "an episode written to its end", "an error of the program", "see its output"
            )

    @property
    def recorded_s(self) -> float:
        return max(0.0, (self.end_ns - self.start_ns) / 1e9)

    def drops(self) -> dict[str, int]:
        """Lost messages: "gap:<topic>" on their way here, "queue:<topic>" on the way to the disk."""
        with self._news:  # after a disk failure messages still arrive
            found = {f"queue:{name}": count for name, count in self.overflows.items()}
            stamps_ns = {name: np.array(stamps, np.int64) for name, stamps in self.stamps_ns.items()}
        for name, known in stamps_ns.items():
            topic = self._topics[name]
            period = 1e9 / topic.rate_hz if topic.rate_hz else _image_period_ns(topic, known)
            if lost := lost_in_gaps(known, period):
                found[f"gap:{name}"] = lost
        return found

    def _note(self, item: Item) -> None:
        self.start_ns = self.start_ns or item.received_ns
        self.end_ns = max(self.end_ns, item.received_ns)
        if self._topics[item.topic].stamped and not self._topics[item.topic].latched and len(item.data) >= 12:
            self.stamps_ns.setdefault(item.topic, array("q")).append(header_stamp_ns(item.data))

    def _run(self) -> None:
        try:
            self._write_metadata(dataclasses.replace(self.metadata, outcome="partial"))
            while (item := self._next()) is not None:
                self._write(item)
            self._finish(self._outcome or "partial")
            self._complete = True
        except UserError as error:
            self.failure = error
            if not self._bag.broken and not self._discarded:
                self._close_after(error)
        finally:
            self._bag.abandon()
            self.ended = True
        if self._discarded:
            shutil.rmtree(recording_path(self.path), ignore_errors=True)

    def _next(self) -> Item | None:
        """The next message; None when the episode has ended and all is written, or it is discarded."""
        with self._news:
            while not self._queue and self._outcome is None:
                self._news.wait()
            if not self._queue or self._discarded:
                return None
            item = self._queue.popleft()
            self._queued_bytes = max(0, self._queued_bytes - len(item.data))
            return item

    def _write(self, item: Item) -> None:
        if item.topic not in self._numbers:
            self._numbers[item.topic] = self._bag.add_channel(self._topics[item.topic].channel())
        self._bag.write(self._numbers[item.topic], item.received_ns, item.data)
        self.counts[item.topic] += 1
        self.size_bytes += len(item.data)

    def _finish(self, outcome: Outcome) -> None:
        if self._discarded:
            return
        rate_hz = self.metadata.rate_hz or self._rate_hz()
        drops = self.drops()
        self.metadata = dataclasses.replace(self.metadata, outcome=outcome, rate_hz=rate_hz, drops=drops)
        self._write_metadata(self.metadata)
        self._bag.finish()

    def _close_after(self, error: UserError) -> None:
        """The disk has no room for more, but for the end of the bag: it stays readable, and partial."""
        notes = f"{self.metadata.notes}; {error}".removeprefix("; ")
        self.metadata = dataclasses.replace(self.metadata, notes=notes)
        try:
            self._finish("partial")
        except UserError as second:
            self.failure = second

    def _write_metadata(self, metadata: EpisodeMetadata) -> None:
        topic = Topic(EPISODE_TOPIC, STRING, definition_of(STRING))
        if EPISODE_TOPIC not in self._numbers:
            self._numbers[EPISODE_TOPIC] = self._bag.add_channel(topic.channel())
        content = typestore().types[STRING](data=metadata.to_json())
        stamp_ns = self.end_ns or time.time_ns()
        self._bag.write(self._numbers[EPISODE_TOPIC], stamp_ns, typestore().serialize_cdr(content, STRING))

    def _rate_hz(self) -> float:
        periods = [_image_period_ns(self._topics[name], np.array(s, np.int64)) for name, s in self.stamps_ns.items()]
        usable = [period for period in periods if period > 0]
        return 1e9 / usable[0] if usable else 0.0


def _image_period_ns(topic: Topic, stamps_ns: NDArray[np.int64]) -> float:
    return period_ns(stamps_ns) if topic.msgtype in (IMAGE, COMPRESSED_IMAGE) else 0.0


class EpisodeRecorder:
    """Receives messages all the time and writes those of episodes.

    ``push`` and ``add_topic`` may be called by one thread while another starts, ends and labels episodes.

    Args:
        folder: where the episodes go; made if it is not there.
        preroll_s: what an episode holds of the time before its start, seconds.
        queue_bytes: of messages that wait for the disk, and of the pre-roll.
        reserve_bytes: free disk space to leave; an episode is refused, or ended as partial, below it.
    """

    def __init__(self, folder: Path, *, preroll_s: float, queue_bytes: int, reserve_bytes: int) -> None:
        self.folder = folder
        self._queue_bytes, self._reserve_bytes = queue_bytes, reserve_bytes
        self._preroll = PreRoll(int(preroll_s * 1e9), queue_bytes)
        self._topics: dict[str, Topic] = {}
        self._episode: _Episode | None = None
        self._lock = threading.Lock()  # held for moments only, as receiving waits for it

    def add_topic(self, topic: Topic) -> None:
        """Declare a topic before its first message."""
        with self._lock:
            self._topics[topic.name] = topic

    def push(self, topic: str, received_ns: int, data: bytes | memoryview) -> None:
        """Take one message; never waits for the disk."""
        item = Item(topic, received_ns, data)
        with self._lock:
            latched = self._topics[topic].latched
            taken = self._episode is not None and self.recording and self._episode.push(item)
            if latched or not taken:
                self._preroll.push(item, latched=latched)

    @property
    def recording(self) -> bool:
        return self._episode is not None and not self._episode.ended

    def start(self, name: str, metadata: EpisodeMetadata, needed: Iterable[str] = ()) -> Path:
        """Begin an episode with the pre-roll; returns the path it will have.

        Args:
            name: of the episode; empty chooses one from the task and the time.
            metadata: what is known at the start.
            needed: topics without which the episode would be worth nothing.

        Raises:
            UserError: one is being recorded, a topic is missing, the name is taken or no name, or too little disk.
        """
        if self.recording:
            raise _refused("episode", "the last episode ended", "it is still recorded", "stop it first")
        if missing := sorted(set(needed) - set(self._topics)):
            raise _refused(missing[0], "a publisher of a known type", "none", "start it, or do not ask for it")
        path = self.folder / safe_name(name or f"{_plain(metadata.task)}_{time.strftime('%Y%m%d-%H%M%S')}")
        episode = _Episode(path, metadata, self._queue_bytes, self._reserve_bytes)
        with self._lock:
            episode.begin(self._topics, self._preroll.take())
            self._episode = episode
        return path

    def stop(self, outcome: str) -> Status:
        """End the episode and complete its bag.

        Raises:
            UserError: no episode is recorded, an outcome that is none, or the disk failed.
        """
        if outcome not in FINAL_OUTCOMES:
            raise _no_outcome(outcome)
        self._running().end(outcome)
        return self.status()

    def discard(self) -> None:
        """End the episode and delete it.

        Raises:
            UserError: no episode is recorded.
        """
        self._running().end(None)
        self._episode = None

    def status(self) -> Status:
        """Of the current episode, or of the last one."""
        episode = self._episode
        if episode is None:
            return Status("", None, None, False, 0.0, 0, {}, {}, "")
        failure = str(episode.failure) if episode.failure is not None else ""
        drops = episode.metadata.drops if episode.ended else dict(episode.overflows)
        return Status(
            episode.path.name,
            episode.path,
            episode.metadata,
            not episode.ended,
            episode.recorded_s,
            episode.size_bytes,
            dict(episode.counts),
            drops,
            failure,
        )

    def close(self) -> Status | None:
        """End what is recorded as aborted, because the program ends; None if nothing was."""
        return self.stop("aborted") if self.recording else None

    def label(self, name: str, outcome: str, notes: str = "") -> Path:
        """Change the outcome of an episode that has ended: the bag is written anew and takes the old one's place.

        Args:
            name: of the episode; empty for the last one.

        Raises:
            UserError: no such episode, it is still recorded or partial, an outcome that is none, or no disk space.
        """
        if outcome not in FINAL_OUTCOMES:
            raise _no_outcome(outcome)
        last = self._episode
        if not name and last is None:
            raise _refused("episode", "the name of one", "none was recorded yet", "name one")
        path = self.folder / safe_name(name) if name or last is None else last.path
        if last is not None and path == last.path and not last.ended:
            raise _refused(path.name, "an episode that has ended", "it is still recorded", "stop it first")
        metadata = relabel_episode(path, outcome, notes, self._reserve_bytes)
        if last is not None and path == last.path:
            last.metadata = metadata
        return path

    def _running(self) -> _Episode:
        episode = self._episode
        if episode is None or (episode.ended and episode.failure is None):
            raise _refused("episode", "one that is recorded", "none", "start one first")
        return episode


def usable_folder(path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        BagError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(str(path), "a folder", str(error), "give another directory") from error
    if not os.access(path, os.W_OK):
        raise _refused(str(path), "a folder to write to", "one that is read-only", "give another directory")
    return path


def rates_by_topic(topics: Sequence[str], rates_hz: Sequence[float]) -> dict[str, float]:
    """The expected rate of each topic; empty when none of ``rates_hz`` is given (all 0).

    Raises:
        BagError: there is not one for each topic.
    """
    if not any(rates_hz):
        return {}
    if len(rates_hz) != len(topics):
        raise _refused("rates_hz", f"{len(topics)} rates", f"{len(rates_hz)}", "give one for each topic")
    return dict(zip(topics, rates_hz, strict=True))


def robot_metadata(
    task: str,
    operator: str,
    notes: str,
    *,
    camera: str,
    camera_serial: str,
    calibration_hash: str | None = None,
    camera_time_offset_s: float | None = None,
) -> EpisodeMetadata:
    """What is known at the start of an episode on a robot."""
    return EpisodeMetadata(
        task=task,
        outcome="partial",
        operator=operator,
        camera=camera,
        camera_serial=camera_serial,
        quality=None,
        seed=None,
        rate_hz=0.0,
        render={},
        versions={"dr_core": importlib.metadata.version("dr_core"), "ros": os.environ.get("ROS_DISTRO", "")},
        calibration_hash=calibration_hash,
        drops={},
        notes=notes,
        camera_time_offset_s=camera_time_offset_s,
    )


def relabel_episode(path: Path, outcome: Outcome, notes: str, reserve_bytes: int = 0) -> EpisodeMetadata:
    """Give a complete episode another outcome and add to its notes; the old bag stays until the new one is whole.

    Raises:
        UserError: not a complete episode, or no disk space.
    """
    metadata = read_metadata(path)
    if metadata.outcome == "partial":
        raise _refused(str(path), "a complete episode", "a partial one", "record it again; a part is never a success")
    joined = f"{metadata.notes}; {notes}".removeprefix("; ") if notes else metadata.notes
    metadata = dataclasses.replace(metadata, outcome=outcome, notes=joined)
    work = path.with_name(f".{path.name}.label")
    shutil.rmtree(work, ignore_errors=True)
    # Inside a directory of its own the new bag has its final name, which its file names repeat.
    writer = BagWriter(work / path.name, building=work / ".new", reserve_bytes=reserve_bytes)
    try:
        _copy(path, writer, metadata)
        writer.finish()
        path.rename(work / "old")
        (work / path.name).rename(path)
    finally:
        writer.abandon()
        if path.exists():
            shutil.rmtree(work, ignore_errors=True)
    return metadata


def _copy(path: Path, writer: BagWriter, metadata: EpisodeMetadata) -> None:
    numbers: dict[Channel, int] = {}
    end_ns = 0
    for message in scan(locate(path), None, refuse_damage(path)):
        if message.channel not in numbers:
            numbers[message.channel] = writer.add_channel(message.channel)
        writer.write(numbers[message.channel], message.log_time_ns, message.data)
        end_ns = max(end_ns, message.log_time_ns)
    [episode] = [number for channel, number in numbers.items() if channel.topic == EPISODE_TOPIC]
    content = typestore().types[STRING](data=metadata.to_json())
    writer.write(episode, end_ns, typestore().serialize_cdr(content, STRING))


def safe_name(name: str) -> str:
    """The name itself.

    Raises:
        ConfigError: it would lead out of the folder, or is hidden.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable() or len(name) > 128:
        raise ConfigError(
            f"episode name {name!r}",
            expected="a plain file name",
            found="separators, a leading dot, or unprintable characters",
            next_step="choose another name",
        )
    return name


def _plain(task: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in task).strip("_")[:64] or "episode"


def _no_outcome(outcome: str) -> ConfigError:
    return ConfigError(
        "outcome",
        expected=" or ".join(FINAL_OUTCOMES),
        found=repr(outcome),
        next_step="say how the episode ended; failures are kept too",
    )


def _refused(what: str, expected: str, found: str, next_step: str) -> BagError:
    return BagError(what, expected=expected, found=found, next_step=next_step)
