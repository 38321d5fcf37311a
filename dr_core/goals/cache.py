"""Goal videos kept with what they were made from, so that the same question is answered once.

An entry is a directory named after the sha256 of everything that decides the video: ``video.mp4`` (lossless) and
``provenance.json``. It is written under a temporary name and renamed; one that has changed since is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_core.checkpoint import git_commit, sha256_file
from dr_core.data.video import read_video, write_video
from dr_core.errors import BagError, CheckpointError
from dr_core.files import fsync
from dr_core.goals.videos import write_picture

FORMAT = 1
VIDEO, PROVENANCE, PICTURE = "video.mp4", "provenance.json", "goal_frame.png"
_MAX_PROVENANCE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class GoalVideo:
    """A goal video and where it comes from.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        rate_hz: frames per second.
        provenance: ``made_from``, which decides the video, and facts about the making.
    """

    frames: NDArray[np.uint8]
    rate_hz: float
    provenance: dict[str, Any]


def key_of(made_from: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of what decides a video."""
    text = json.dumps(made_from, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_array(frames: NDArray[np.uint8]) -> str:
    """sha256 of pixels and their shape."""
    digest = hashlib.sha256(json.dumps([str(frames.dtype), *frames.shape]).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the packages whose code decides a video."""
    return {package: metadata.version(package) for package in sorted({"torch", "numpy", "dr_core", *packages})}


def write_goal(
    folder: Path,
    frames: NDArray[np.uint8],
    rate_hz: float,
    made_from: Mapping[str, Any],
    goal_frame: tuple[int, str] | None = None,
) -> GoalVideo:
    """Write a goal video and its provenance into a new directory, whole or not at all.

    Args:
        goal_frame: which frame is the goal and how it was chosen, to be written as a picture too.

    Raises:
        OSError: something is at ``folder`` that is no empty directory.
    """
    temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_video(temporary / VIDEO, frames, rate_hz, lossless=True)
        provenance: dict[str, Any] = {
            "format": FORMAT,
            "key": key_of(made_from),
            "made_from": dict(made_from),
            "frames": list(frames.shape),
            "rate_hz": rate_hz,
            "sha256": {VIDEO: sha256_file(temporary / VIDEO)},
            "git_commit": git_commit(),
            "created_unix_s": round(time.time(), 3),
        }
        if goal_frame is not None:
            write_picture(temporary / PICTURE, frames[goal_frame[0]])
            provenance["sha256"][PICTURE] = sha256_file(temporary / PICTURE)
            provenance["goal_frame"] = {"index": goal_frame[0], "chosen_by": goal_frame[1]}
        (temporary / PROVENANCE).write_text(json.dumps(provenance, indent=2), encoding="utf-8")
        for file in (*temporary.iterdir(), temporary):
            fsync(file)
        temporary.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return GoalVideo(frames, rate_hz, provenance)


def read_goal(folder: Path) -> GoalVideo:
    """Read a goal video that ``write_goal`` wrote, and verify it.

    Raises:
        CheckpointError: missing, damaged, or changed since it was written.
    """
    damage = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, BagError)
    try:
        file = folder / PROVENANCE
        text = file.read_text(encoding="utf-8") if file.stat().st_size <= _MAX_PROVENANCE_BYTES else ""
        provenance = json.loads(text)
        rate_hz, shape = float(provenance["rate_hz"]), tuple(provenance["frames"])
        if provenance["format"] != FORMAT or provenance["key"] != key_of(provenance["made_from"]):
            raise ValueError("a provenance that was changed")
        for name in (VIDEO, *([PICTURE] if "goal_frame" in provenance else [])):
            if provenance["sha256"][name] != sha256_file(folder / name):
                raise ValueError(f"a {name} that was changed")
        frames, _ = read_video(folder / VIDEO)
        if frames.shape != shape or not 0 < rate_hz < float("inf"):
            raise ValueError(f"frames {frames.shape} at {rate_hz} Hz")
    except damage as error:
        raise CheckpointError(
            str(folder),
            expected=f"a whole goal video: {VIDEO} and {PROVENANCE} as they were written",
            found=" ".join(str(error).split())[:200] or repr(error),
            next_step="make it anew with dr goal-video",
        ) from error
    return GoalVideo(frames, rate_hz, provenance)


def cached_goal(
    cache: Path,
    made_from: Mapping[str, Any],
    make: Callable[[], NDArray[np.uint8]],
    rate_hz: float,
    tell: Callable[[str], None] = lambda line: None,
) -> GoalVideo:
    """The goal video made from ``made_from``: the kept one if it is whole, else a new one.

    Args:
        cache: a directory of entries; made if it is not there.
        made_from: everything that decides the video, as JSON; another value anywhere is another entry.
        make: draws (T, H, W, 3) uint8 frames.
        rate_hz: of the video; it belongs to what decides it.
        tell: gets a line where an entry is damaged.
    """
    decides = {**made_from, "rate_hz": rate_hz}
    entry = cache / key_of(decides)
    damaged = False
    if os.path.lexists(entry):
        try:
            return _read_entry(entry)
        except CheckpointError as error:
            damaged = True
            tell(f"made anew: {error}")
    frames = make()
    if damaged:
        aside = entry.with_name(f".{entry.name}.damaged-{os.getpid()}")
        entry.rename(aside)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()
    try:
        return write_goal(entry, frames, rate_hz, decides)
    except OSError:
        if not entry.exists():
            raise
        return _read_entry(entry)  # of another process that was quicker


def _read_entry(entry: Path) -> GoalVideo:
    """``read_goal``, which also refuses another entry under this one's name."""
    goal = read_goal(entry)
    if goal.provenance["key"] != entry.name:
        raise CheckpointError(str(entry), expected="its own key", found="another entry", next_step="remove it")
    return goal
