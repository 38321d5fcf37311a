"""What the agent has lived through, on disk: a ring of frames from which transitions are drawn.

A frame is stored once. An episode of T transitions takes T + 1 rows one after the other: row i holds frame i, the
action taken there and the rewards of the transition from frame i to frame i + 1; the last row holds the last frame
only. Rows are counted without end and wrap around in the files:

    replay.json     what the files hold
    frames.bin      (rows, H, W, C) uint8
    steps.bin       (rows, action_size + rewards) float32
    features.bin    (rows, feature_size) float32, of the frames; only where there are any
    episodes.jsonl  a line when the writing of an episode begins, a line when all of it is on the disk

The files have 1/32 more rows than may be drawn from, so that a kill in the middle of an episode that fits there
costs none of those before it, and so that ``rewind`` finds again what the ring has dropped of late.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import UserError
from dr_core.files import exclusive, write_whole

log = logging.getLogger(__name__)

FORMAT = 1
SETTINGS, FRAMES, STEPS, EPISODES = "replay.json", "frames.bin", "steps.bin", "episodes.jsonl"
FEATURES = "features.bin"
SPARE = 32
"""One row in this many more than the capacity is kept behind the oldest episode that is drawn from."""
_PIECE_BYTES = 1 << 20


class ReplayError(UserError):
    """A replay on disk does not fit what is asked of it, or its disk is full."""


class Batch(NamedTuple):
    """B transitions, each over k ≤ n_step steps of one episode.

    Attributes:
        frames: (B, C * frame_stack, H, W) uint8, the newest frame last; channels last in memory.
        actions: (B, action_size) float32: what was done on ``frames``.
        rewards: by name, (B,) float32: r_0 + γ·r_1 + … + γ^(k-1)·r_(k-1).
        discounts: (B,) float32: γ^k; 0 where ``next_frames`` is terminal.
        next_frames: as ``frames``, k steps later.
        features: (B, feature_size) float32 of the newest of ``frames``, where the replay has any.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    rewards: dict[str, NDArray[np.float32]]
    discounts: NDArray[np.float32]
    next_frames: NDArray[np.uint8]
    features: NDArray[np.float32] | None = None


_EPISODE = np.dtype(
    [
        ("number", np.int64),  # in the order of arrival, from 0
        ("first", np.int64),  # its first row, counted without end
        ("length", np.int64),  # transitions
        ("terminal", np.bool_),
        ("oldest", np.int64),  # the oldest episode that could be drawn from when this one had been added
        ("sha256", "S64"),  # of its frames and steps
    ]
)
_NONE = np.zeros(0, _EPISODE)


class _Drawn(NamedTuple):
    """The episodes that are drawn from, oldest first, and where each one's transitions end among all of them."""

    episodes: NDArray[np.void]
    ends: NDArray[np.int64]


class Replay:
    """A ring of whole episodes in memory-mapped files, for one process at a time.

    Args:
        directory: made if it is not there; one that holds a replay is opened: every episode is read and compared
            with its hash (seconds for 10 GB), what is damaged or was not finished is left out and told in ``skipped``.
        capacity: frames of the episodes that are drawn from, at most; the oldest whole episodes make room. On disk a
            frame takes H * W * C + 4 * (action_size + rewards) bytes and 1/32 more, once it is written.
        frame_shape: (H, W, C).
        action_size: numbers of an action.
        n_step: steps of a transition that is drawn, at most; fewer where the episode ends before.
        discount: γ, for each step.
        frame_stack: frames that the agent sees at once; before the episode's start its first frame repeats.
        reward_names: the rewards kept of every step, each by itself.
        feature_size: numbers kept of every frame beside its pixels; 0: none.

    Attributes:
        skipped: what opening left out, a sentence for each.

    Raises:
        ReplayError: the directory holds a replay of other settings or something else, or the disk is too small.
        OutputInUseError: another process has it open.
    """

    def __init__(
        self,
        directory: Path,
        *,
        capacity: int,
        frame_shape: tuple[int, int, int] = (64, 64, 3),
        action_size: int,
        n_step: int = 3,
        discount: float = 0.99,
        frame_stack: int = 1,
        reward_names: Sequence[str],
        feature_size: int = 0,
    ) -> None:
        if capacity < 2 or min(frame_shape) < 1 or action_size < 1 or n_step < 1 or frame_stack < 1:
            raise ValueError("capacity at least 2; sizes, n_step and frame_stack at least 1")
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount = {discount}: from 0 to 1")
        if feature_size < 0:
            raise ValueError(f"feature_size = {feature_size}: at least 0")
        if not reward_names or len(set(reward_names)) != len(reward_names):
            raise ValueError(f"reward_names = {reward_names}: at least one, all different")
        self.directory, self.capacity = directory, capacity
        height, width, channels = frame_shape
        self.frame_shape, self.action_size = (height, width, channels), action_size
        self.n_step, self.discount, self.frame_stack = n_step, discount, frame_stack
        self.reward_names, self.feature_size = tuple(reward_names), feature_size
        self.skipped: tuple[str, ...] = ()
        self._slots = capacity + capacity // SPARE
        with ExitStack() as resources:
            resources.enter_context(exclusive(directory))
            settings = self._check_settings()
            names = (FRAMES, STEPS, FEATURES) if feature_size else (FRAMES, STEPS)
            self._files = tuple(_open(directory / name, resources) for name in names)
            row_bytes = (height * width * channels, 4 * (action_size + len(self.reward_names)), 4 * feature_size)
            self._row_bytes = row_bytes[: len(names)]
            self._read_episodes()
            self._allocate()
            # Last, so that a replay for which there is no room leaves no settings that the next one must have.
            write_whole(directory / SETTINGS, json.dumps(settings))
            frames_shape = (self._slots, height * width * channels)
            steps_shape = (self._slots, action_size + len(self.reward_names))
            # Without the memmap class, whose every view costs microseconds.
            self._frames = np.asarray(np.memmap(directory / FRAMES, np.uint8, "r", shape=frames_shape))
            self._steps = np.asarray(np.memmap(directory / STEPS, np.dtype("<f4"), "r", shape=steps_shape))
            self._features = np.zeros((0, 0), np.float32)
            if feature_size:
                features_shape = (self._slots, feature_size)
                self._features = np.asarray(np.memmap(directory / FEATURES, np.dtype("<f4"), "r", shape=features_shape))
            self._closed, self._resources = False, resources.pop_all()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process open it; what was added is on the disk already. Nothing else works afterwards."""
        self._frames, self._steps = np.zeros((0, 0), np.uint8), np.zeros((0, 0), np.float32)
        self._features = np.zeros((0, 0), np.float32)
        self._hold(_NONE)
        self._closed = True
        self._resources.close()

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return int(self._drawn.ends[-1]) if len(self._drawn.ends) else 0

    @property
    def episodes(self) -> int:
        """Episodes that can be drawn from."""
        return len(self._drawn.episodes)

    @property
    def added(self) -> int:
        """Episodes ever added: what a checkpoint of the agent remembers to ``rewind`` to."""
        return int(self._kept["number"][-1]) + 1 if len(self._kept) else 0

    def add(
        self,
        frames: NDArray[np.uint8],
        actions: NDArray[np.floating[Any]],
        rewards: Mapping[str, NDArray[np.floating[Any]]],
        terminal: bool,
        features: NDArray[np.float32] | None = None,
    ) -> None:
        """Add an episode; it is on the disk when this returns.

        Args:
            frames: (T + 1, H, W, C), T ≥ 1.
            actions: (T, action_size): action i leads from frame i to frame i + 1.
            rewards: for each of ``reward_names`` (T,).
            terminal: nothing can follow the last frame; False where only a time limit ended the episode.
            features: (T + 1, feature_size), where the replay has any.

        Raises:
            ReplayError: the episode is longer than the capacity, or the disk is full; the episodes before it stay.
            ValueError: shapes, types or names are wrong, or a number is not finite.
        """
        if self._closed:
            raise ValueError("the replay is closed")
        length = len(frames) - 1
        steps = self._checked(frames, actions, rewards)
        data_of_files = [np.ascontiguousarray(frames).view(np.uint8), steps.view(np.uint8)]
        if self.feature_size or features is not None:
            data_of_files.append(self._checked_features(features, length).view(np.uint8))
        if length + 1 > self.capacity:
            raise ReplayError(
                str(self.directory),
                expected=f"episodes of at most {self.capacity} frames, its capacity",
                found=f"one of {length + 1}",
                next_step="give the replay a greater capacity",
            )
        number, first = self.added, _end(self._kept)
        end = first + length + 1
        line = {"number": number, "first": first, "length": length}
        retained = self._kept[self._kept["first"] >= end - self._slots]
        drawable = retained["number"][retained["first"] >= end - self.capacity]
        oldest = int(max(drawable[0], self._kept["oldest"][-1])) if len(drawable) else number
        try:
            self._write_line({"event": "begin", **line})
            self._hold(retained)
            digest = hashlib.sha256(_heading(length, terminal))
            for file, data, row_bytes in zip(self._files, data_of_files, self._row_bytes, strict=True):
                digest.update(data.data)
                rows = data.reshape(-1).data
                for slot, start, count in self._spans(first, len(data)):
                    _write(file, rows[start * row_bytes : (start + count) * row_bytes], slot * row_bytes)
                os.fdatasync(file)
            facts = {"terminal": bool(terminal), "oldest": oldest, "sha256": digest.hexdigest()}
            self._write_line({"event": "commit", **line, **facts})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ReplayError(
                str(self.directory),
                expected=f"room on the disk for an episode of {length + 1} frames",
                found=os.strerror(error.errno),
                next_step="free disk space and resume",
            ) from error
        self._hold(np.append(retained, _records([{**line, **facts}])))

    def sample(self, batch: int, rng: np.random.Generator) -> Batch:
        """Draw ``batch`` transitions, with replacement, each one held as likely as any other.

        Raises:
            ValueError: there is none.
        """
        episodes, ends = self._drawn
        if not len(ends):
            raise ValueError("the replay is empty")
        drawn = rng.integers(ends[-1], size=batch)  # (B,) among all transitions, the oldest first
        which = np.searchsorted(ends, drawn, side="right")
        length = episodes["length"][which]
        first = episodes["first"][which] % self._slots
        t = drawn - ends[which] + length  # (B,) step in its episode
        k = np.minimum(self.n_step, length - t)

        ahead = np.arange(self.n_step)
        # Behind the episode's end stands its last step, with weight 0, not what another episode left there.
        window = np.minimum(t[:, None] + ahead, length[:, None] - 1)  # (B, n)
        steps = self._steps[(first[:, None] + window) % self._slots]  # (B, n, action_size + rewards)
        weights = np.where(ahead < k[:, None], self.discount**ahead, 0.0)
        sums = np.einsum("bn,bnr->rb", weights, steps[:, :, self.action_size :]).astype(np.float32, order="C")
        discounts = np.where(episodes["terminal"][which] & (t + k == length), 0.0, self.discount**k)

        back = np.arange(1 - self.frame_stack, 1)
        seen = np.maximum(np.stack([t, t + k])[:, :, None] + back, 0)  # (2, B, frame_stack)
        rows = (first[:, None] + seen) % self._slots
        height, width, channels = self.frame_shape
        pictures = self._frames[rows].reshape(2, batch, self.frame_stack, height, width, channels)
        stacked = pictures[:, :, 0]
        if self.frame_stack > 1:
            stacked = np.empty((2, batch, height, width, self.frame_stack * channels), np.uint8)
            for i in range(self.frame_stack * channels):  # five times as fast as one transposition
                stacked[..., i] = pictures[:, :, i // channels, :, :, i % channels]
        frames, next_frames = stacked.transpose(0, 1, 4, 2, 3)
        return Batch(
            frames=frames,
            actions=np.ascontiguousarray(steps[:, 0, : self.action_size]),
            rewards=dict(zip(self.reward_names, sums, strict=True)),
            discounts=discounts.astype(np.float32),
            next_frames=next_frames,
            features=self._features[(first + t) % self._slots] if self.feature_size else None,
        )

    def sample_steps(self, batch: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], ...]:
        """Draw ``batch`` single steps that another one follows, with replacement, each one as likely as any other.

        Returns:
            features (B, D), actions (B, action_size), and both of the step behind; without any frame.

        Raises:
            ValueError: there is none, or the replay keeps no features.
        """
        episodes, ends = self._drawn
        ends = ends - np.arange(1, len(ends) + 1)  # the last step of each episode has none behind it
        if not self.feature_size or not len(ends) or not ends[-1]:
            raise ValueError("the replay has no features, or no two steps in a row")
        drawn = rng.integers(ends[-1], size=batch)
        which = np.searchsorted(ends, drawn, side="right")
        t = drawn - ends[which] + episodes["length"][which] - 1
        rows = (episodes["first"][which] + t) % self._slots
        behind = (rows + 1) % self._slots
        actions = self._steps[:, : self.action_size]
        return self._features[rows], actions[rows], self._features[behind], actions[behind]

    def digest(self) -> str:
        """sha256 of the episodes that can be drawn from, in their order; not of where they lie in the files."""
        digest = hashlib.sha256(json.dumps(self._contents()).encode())
        digest.update(self._drawn.episodes["sha256"].tobytes())
        return digest.hexdigest()

    def rewind(self, added: int) -> int:
        """Go back to when ``added`` episodes had been added, and forget the later ones.

        Returns:
            How many of the episodes that could be drawn from then are gone, overwritten since or damaged. None are as
            long as no more than 1/32 of the capacity was added since.

        Raises:
            ReplayError: fewer were ever added, or the last of them is gone.
        """
        if self._closed:
            raise ValueError("the replay is closed")
        kept = self._kept[self._kept["number"] < added]
        last = int(kept["number"][-1]) + 1 if len(kept) else 0
        if last != added:
            raise ReplayError(
                str(self.directory),
                expected=f"the episode that was the last one when {added} had been added",
                found=f"episodes {self._kept['number'][0]} to {self.added - 1}" if len(self._kept) else "none",
                next_step="resume with the replay that the checkpoint was made with",
            )
        self._hold(kept)
        self._rewrite_lines()
        return int(added - kept["oldest"][-1]) - self.episodes if added else 0

    def _contents(self) -> dict[str, Any]:
        """What tells two replays' rows apart."""
        return {
            "frame_shape": list(self.frame_shape),
            "action_size": self.action_size,
            "reward_names": list(self.reward_names),
            **({"feature_size": self.feature_size} if self.feature_size else {}),
        }

    def _checked(
        self,
        frames: NDArray[np.uint8],
        actions: NDArray[np.floating[Any]],
        rewards: Mapping[str, NDArray[np.floating[Any]]],
    ) -> NDArray[np.float32]:
        """Steps (T, action_size + rewards) of an episode of the right shapes."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self.frame_shape or len(frames) < 2:
            raise ValueError(f"frames {frames.shape} {frames.dtype}: expected (2 or more, *{self.frame_shape}) uint8")
        length = len(frames) - 1
        if actions.shape != (length, self.action_size):
            raise ValueError(f"actions {actions.shape}: expected {(length, self.action_size)}")
        if set(rewards) != set(self.reward_names):
            raise ValueError(f"rewards {sorted(rewards)}: expected {sorted(self.reward_names)}")
        for name, values in rewards.items():
            if np.shape(values) != (length,):
                raise ValueError(f"reward {name} {np.shape(values)}: expected {(length,)}")
        steps = np.column_stack([actions, *(rewards[name] for name in self.reward_names)]).astype("<f4")
        if not np.isfinite(steps).all():
            raise ValueError("an action or a reward of the episode is not a finite 32-bit number")
        return np.ascontiguousarray(steps)

    def _checked_features(self, features: NDArray[np.float32] | None, length: int) -> NDArray[np.float32]:
        """Features (T + 1, feature_size) of the frames of an episode of ``length`` T."""
        shape = (length + 1, self.feature_size)
        if features is None or not self.feature_size or features.shape != shape:
            found = None if features is None else features.shape
            raise ValueError(f"features {found}: expected {shape if self.feature_size else None}")
        kept = np.ascontiguousarray(features, "<f4")
        if not np.isfinite(kept).all():
            raise ValueError("a feature of the episode is not a finite 32-bit number")
        return kept

    def _check_settings(self) -> dict[str, Any]:
        """The settings of the files, which are those of the replay that is there, if there is one."""
        path, index = self.directory / SETTINGS, self.directory / EPISODES
        settings = {"format": FORMAT, "capacity": self.capacity, **self._contents()}
        if not path.exists():
            if index.exists() and index.stat().st_size:
                raise ReplayError(
                    str(self.directory),
                    expected="a replay with its replay.json",
                    found="one without",
                    next_step="copy the replay again whole, or give another directory",
                )
            return settings
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ReplayError(
                str(path),
                expected="the settings of a replay",
                found=f"something else ({error})",
                next_step="copy the replay again whole, or give another directory",
            ) from error
        if found != settings:
            raise ReplayError(
                str(self.directory),
                expected=f"a replay of {settings}",
                found=str(found),
                next_step="give another directory, or the settings it was made with",
            )
        return settings

    def _allocate(self) -> None:
        """Give the files their full length; blocks that were never written take no room yet."""
        sizes = [self._slots * row_bytes for row_bytes in self._row_bytes]
        present = [os.fstat(file).st_blocks * 512 for file in self._files]
        missing = sum(max(0, size - there) for size, there in zip(sizes, present, strict=True))
        free = shutil.disk_usage(self.directory).free
        if missing > free:
            raise ReplayError(
                str(self.directory),
                expected=f"{missing / 1e9:.2f} GB of free disk space for {self.capacity} frames",
                found=f"{free / 1e9:.2f} GB",
                next_step="free disk space, give a directory on another disk, or a smaller capacity",
            )
        for file, size in zip(self._files, sizes, strict=True):
            os.ftruncate(file, size)

    def _read_episodes(self) -> None:
        """Find the episodes that are there whole; after this only they are in the index."""
        found: dict[int, dict[str, Any]] = {}
        skipped: list[str] = []
        begun: dict[str, Any] | None = None
        reached = 0
        for line in self._lines():
            record = _parse(line, self._slots)
            if record is None:
                if begun is None:
                    skipped.append("a line of the index is cut off, and with it an episode")
                continue
            if begun is not None and record["number"] != begun["number"]:
                skipped.append(_unfinished(begun))
            begun = record if record["event"] == "begin" else None
            reached = max(reached, record["first"] + record["length"] + 1)
            if record["event"] == "commit":
                found[record["number"]] = record
        if begun is not None:
            skipped.append(_unfinished(begun))
        records = _records([r for r in found.values() if r["first"] >= reached - self._slots])
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            whole = np.fromiter(pool.map(self._is_whole, records), np.bool_, len(records))
        for record in records[~whole]:
            skipped.append(
                f"episode {record['number']} ({record['length']} transitions) is damaged: data changed or cut off"
            )
        self.skipped = tuple(skipped)
        for sentence in skipped:
            log.warning("%s: %s; left out", self.directory, sentence)
        self._hold(records[whole])
        # Before the files get their full length again: what was cut off must not look whole next time.
        self._rewrite_lines()

    def _lines(self) -> list[bytes]:
        path = self.directory / EPISODES
        if path.exists():
            return path.read_bytes().splitlines()
        if os.fstat(self._files[0]).st_size:
            raise ReplayError(
                str(self.directory),
                expected="a replay with its episodes.jsonl",
                found="one without",
                next_step="copy the replay again whole, or give another directory",
            )
        return []

    def _is_whole(self, record: np.void) -> bool:
        """Whether the data of an episode are those that were added."""
        length = int(record["length"])
        digest = hashlib.sha256(_heading(length, bool(record["terminal"])))
        counts = (length + 1, length, length + 1)[: len(self._files)]
        for file, row_bytes, count in zip(self._files, self._row_bytes, counts, strict=True):
            for slot, _, rows in self._spans(int(record["first"]), count):
                for offset in range(0, rows * row_bytes, _PIECE_BYTES):
                    size = min(_PIECE_BYTES, rows * row_bytes - offset)
                    digest.update(os.pread(file, size, slot * row_bytes + offset))
        return digest.hexdigest().encode() == record["sha256"]

    def _spans(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Where ``count`` rows from ``first`` lie in the files: (slot, rows before it, rows), at most two of them."""
        slot = first % self._slots
        head = min(count, self._slots - slot)
        yield slot, 0, head
        if head < count:
            yield 0, head, count - head

    def _hold(self, kept: NDArray[np.void]) -> None:
        """Make ``kept`` the episodes in the files, and draw from those among them that are not yet dropped."""
        drawn = kept[kept["number"] >= kept["oldest"][-1]] if len(kept) else kept
        self._kept, self._drawn = kept, _Drawn(drawn, np.cumsum(drawn["length"]))

    def _write_line(self, record: Mapping[str, Any]) -> None:
        """Append to the index, over what a failed attempt may have left there; wait for the disk if it is a commit."""
        line = json.dumps(record).encode() + b"\n"
        with (self.directory / EPISODES).open("r+b", buffering=0) as index:
            index.truncate(self._lines_bytes)
            _write(index.fileno(), memoryview(line), self._lines_bytes)
            if record["event"] == "commit":
                os.fdatasync(index.fileno())
        self._lines_bytes += len(line)

    def _rewrite_lines(self) -> None:
        """Put an index of what is held in the place of the old one, in one step."""
        names = _EPISODE.names or ()
        lines = ""
        for episode in self._kept:
            facts = dict(zip(names, episode.item(), strict=True))
            lines += json.dumps({"event": "commit", **facts, "sha256": facts["sha256"].decode()}) + "\n"
        write_whole(self.directory / EPISODES, lines)
        self._lines_bytes = len(lines)


def _open(path: Path, resources: ExitStack) -> int:
    """Open a plain file, made if it is not there; a link could lead to somebody else's, which would be overwritten.

    Raises:
        ReplayError: it is something else.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "not a plain file")
    except OSError as error:
        raise ReplayError(
            str(path),
            expected="a plain file that can be written",
            found=os.strerror(error.errno or 0),
            next_step="copy the replay again whole, or give another directory",
        ) from error
    resources.callback(os.close, file)
    return file


def _write(file: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``. Through the mapping, a full disk would be a signal that ends the process."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _heading(length: int, terminal: bool) -> bytes:
    return f"{length} {int(terminal)}\n".encode()


def _end(episodes: NDArray[np.void]) -> int:
    """The row behind the last episode."""
    return int(episodes["first"][-1] + episodes["length"][-1] + 1) if len(episodes) else 0


def _unfinished(record: Mapping[str, Any]) -> str:
    return f"episode {record['number']} ({record['length']} transitions) was not finished"


def _parse(line: bytes, slots: int) -> dict[str, Any] | None:
    """A line of the index, or None where it is not whole, or not of a replay of so many rows."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("event") not in ("begin", "commit"):
        return None
    counts = ["number", "first", "length", *(["oldest"] if record["event"] == "commit" else [])]
    if not all(type(record.get(name)) is int and 0 <= record[name] < 2**62 for name in counts):
        return None
    if not 1 <= record["length"] < slots:
        return None
    digest = record.get("sha256")
    hashed = isinstance(digest, str) and len(digest) == 64 and digest.isascii()
    return record if record["event"] == "begin" or (hashed and isinstance(record.get("terminal"), bool)) else None


def _records(episodes: Sequence[Mapping[str, Any]]) -> NDArray[np.void]:
    """Lines of the index as an array, in the order of their numbers."""
    rows = [tuple(episode[name] for name in _EPISODE.names or ()) for episode in episodes]
    return np.sort(np.array(rows, _EPISODE), order="number")
