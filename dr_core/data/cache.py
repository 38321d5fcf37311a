"""Training data on disk: every frame decoded once, then every frame tokenised once.

``frames/`` holds one uint8 array of all frames, ``tokens/`` one int16 array of all codes; each with an index naming the
episodes. Training the video model reads tokens only, never an image.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dr_core.data.episodes import UNKNOWN_OPERATOR, read_episode
from dr_core.data.images import ImageRule
from dr_core.errors import BagError
from dr_core.files import fsync

EXPERT, BACKGROUND = "expert", "background"
_INDEX = "index.json"
_ARRAY = "data.npy"


@dataclass(frozen=True)
class Clip:
    """One episode of a store: ``length`` entries from ``start``.

    ``rate_hz`` is 0 if it is not known; hash and serial are empty where the recording names no calibration or camera.
    """

    task: str
    behaviour: str
    start: int
    length: int
    source: str
    seed: int | None
    rate_hz: float = 0.0
    calibration_hash: str = ""
    camera_serial: str = ""


@dataclass(frozen=True)
class Store:
    """Frames (N, H, W, 3) uint8 or tokens (N, 64) int16 of many episodes, memory-mapped, and their index.

    Attributes:
        data: all entries, episode after episode.
        clips: where each episode lies.
        sha256: hash of the frames the store was made from: the identity of the data set.
        render: the camera, orientation and render quality that all the episodes share (empty for a real camera).
    """

    data: NDArray[np.generic]
    clips: tuple[Clip, ...]
    sha256: str
    render: dict[str, str]

    def tasks(self, behaviour: str) -> list[str]:
        """The tasks with episodes of ``behaviour``, sorted."""
        return sorted({clip.task for clip in self.clips if clip.behaviour == behaviour})

    def calibration(self) -> dict[str, list[str]]:
        """Hashes of the calibrations in use while these episodes were recorded, and serials of the cameras, sorted."""
        hashes, serials = {clip.calibration_hash for clip in self.clips}, {clip.camera_serial for clip in self.clips}
        return {"hashes": sorted(hashes - {""}), "serials": sorted(serials - {""})}

    def array(self, clip: Clip) -> NDArray[np.generic]:
        """The entries of one episode."""
        return self.data[clip.start : clip.start + clip.length]


def open_store(path: Path) -> Store:
    """Map a store that was written whole; raises FileNotFoundError when there is none."""
    index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
    data = np.load(path / _ARRAY, mmap_mode="r", allow_pickle=False)
    return Store(data, tuple(Clip(**clip) for clip in index["clips"]), index["sha256"], index["render"])


def _write_store(path: Path, data: NDArray[np.generic], clips: Sequence[Clip], sha256: str, render: object) -> Store:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    np.save(temporary / _ARRAY, data, allow_pickle=False)
    index = {"clips": [asdict(clip) for clip in clips], "sha256": sha256, "render": render}
    (temporary / _INDEX).write_text(json.dumps(index), encoding="utf-8")
    for file in (temporary / _ARRAY, temporary / _INDEX, temporary):
        fsync(file)
    temporary.rename(path)
    return open_store(path)


def frame_store(
    path: Path,
    sources: Sequence[tuple[str, Path]],
    rule: ImageRule,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    mixed_calibrations: bool = False,
) -> Store:
    """Open the frame store at ``path``, or decode ``sources`` into it.

    Args:
        path: the store's directory.
        sources: (behaviour, episode path), behaviour "expert" or "background".
        rule: how frames become square.
        progress: called with (episodes done, episodes in all).
        mixed_calibrations: take episodes of several calibrations of the camera, or of none and some.

    Raises:
        BagError: an episode is unreadable, or the episodes do not share camera, render quality and calibration.
    """
    if path.exists():
        return open_store(path)
    parts: list[NDArray[np.uint8]] = []
    clips: list[Clip] = []
    digest = hashlib.sha256()
    render: dict[str, str] | None = None
    start = 0
    for done, (behaviour, source) in enumerate(sources):
        episode = read_episode(source, rule=rule)
        own = episode.metadata.render
        known = episode.metadata.operator != UNKNOWN_OPERATOR  # a plain video does not say how it was made
        if known and render is None:
            render, first, calibration = own, source, episode.metadata.calibration_hash
        if known and own != render:
            raise BagError(
                str(source),
                expected=f"the camera and render quality of {first}: {render}",
                found=str(own),
                next_step="train on episodes recorded alike",
            )
        length, metadata = len(episode.frames), episode.metadata
        if known and metadata.calibration_hash != calibration and not mixed_calibrations:
            raise BagError(
                str(source),
                expected=f"the calibration of {first}: {_short(calibration)}",
                found=_short(metadata.calibration_hash),
                next_step="train on episodes of one calibration, or add --mixed-calibrations",
            )
        digest.update(f"{behaviour} {metadata.task} {length}\n".encode())
        digest.update(np.ascontiguousarray(episode.frames).data)
        rate_hz = float(metadata.rate_hz)
        camera = (metadata.calibration_hash or "", metadata.camera_serial)
        clips.append(Clip(metadata.task, behaviour, start, length, str(source), metadata.seed, rate_hz, *camera))
        parts.append(episode.frames)
        start += length
        progress(done + 1, len(sources))
    return _write_store(path, np.concatenate(parts), clips, digest.hexdigest(), render or {})


def _short(calibration_hash: str | None) -> str:
    return f"{calibration_hash[:12]}…" if calibration_hash else "none"


def token_store(
    path: Path, frames: Callable[[], Store], encode: Callable[[NDArray[np.uint8]], NDArray[np.int64]]
) -> Store:
    """Open the token store at ``path``, or encode every frame into it once.

    Args:
        path: the store's directory.
        frames: opens the frame store; called only when the tokens are not there yet.
        encode: (B, H, W, 3) uint8 → (B, 64) codes.
    """
    if path.exists():
        return open_store(path)
    source = frames()
    tokens = np.concatenate([encode(np.asarray(source.array(clip), np.uint8)) for clip in source.clips])
    return _write_store(path, tokens.astype(np.int16), source.clips, source.sha256, source.render)
