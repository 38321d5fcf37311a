"""Goal videos and first frames from what a lab has: videos, bags, pictures."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dr_core.data.episodes import read_episode, read_metadata
from dr_core.data.images import DamagedImage, ImageRule, decode_compressed
from dr_core.data.messages import choose_image_channel, decode_image
from dr_core.data.storage import BAG_SUFFIXES, locate, refuse_damage, scan, survey
from dr_core.data.video import VIDEO_SUFFIXES, iterate_video
from dr_core.errors import BagError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
LEAST_FRAMES = 2
DEFAULT_RATE_HZ = 10.0
"""Of a video that does not say at which rate it was made."""


def read_clip(path: Path, rule: ImageRule, image_topic: str | None = None) -> tuple[NDArray[np.uint8], float]:
    """(T, S, S, 3) frames of a video or bag, and their rate in Hz (``DEFAULT_RATE_HZ`` where nothing says it).

    Raises:
        BagError: not readable, or fewer than two frames.
    """
    episode = read_episode(path, rule=rule, image_topic=image_topic)
    if len(episode.frames) < LEAST_FRAMES:
        raise BagError(
            str(path),
            expected=f"a goal video of at least {LEAST_FRAMES} frames",
            found=str(len(episode.frames)),
            next_step="give a longer one",
        )
    return episode.frames, float(episode.metadata.rate_hz) or DEFAULT_RATE_HZ


def read_first_frames(path: Path, count: int, rule: ImageRule) -> tuple[NDArray[np.uint8], dict[str, str] | None]:
    """The first ``count`` frames (count, S, S, 3) of an episode or a picture, and how the episode was rendered.

    Returns:
        Frames, and the episode's render settings (empty for a real camera); None where the source does not say.

    Raises:
        BagError: not readable, or fewer frames than ``count``.
    """
    if path.suffix.lower() in PICTURE_SUFFIXES:
        frames, render = rule.apply(read_picture(path))[None], None
    else:
        frames = read_episode(path, rule=rule).frames
        is_bag = path.is_dir() or path.suffix.lower() in BAG_SUFFIXES
        render = dict(read_metadata(path).render) if is_bag else None
    if len(frames) < count:
        raise BagError(
            str(path), expected=f"at least {count} frames", found=str(len(frames)), next_step="ask for fewer first ones"
        )
    return frames[:count], render


def own_edge(path: Path, rule: ImageRule) -> int:
    """Edge in pixels of the square that ``rule`` cuts from the frames of a picture, video or bag, as they are.

    Raises:
        BagError: not readable.
    """
    if not path.exists():
        raise BagError(
            str(path), expected="a video, a bag or a picture", found="nothing there", next_step="check the path"
        )
    if isinstance(rule.crop, tuple):
        return rule.crop[2]
    frame: NDArray[np.uint8] | None
    if path.suffix.lower() in PICTURE_SUFFIXES:
        frame = read_picture(path)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        frame = next((frame for frame, _ in iterate_video(path)), None)
    else:
        frame = _first_image(path)
    if frame is None:
        raise BagError(str(path), expected="a video or bag with frames", found="none", next_step="record it again")
    return min(frame.shape[:2])


def _first_image(path: Path) -> NDArray[np.uint8] | None:
    """The first whole image (H, W, 3) of a bag's only image topic."""
    bag, refuse = locate(path), refuse_damage(path)
    camera = choose_image_channel(path, survey(bag, refuse).counts, None)
    for message in scan(bag, {camera.topic}, refuse):
        if message.channel == camera:
            with suppress(DamagedImage):  # read_episode counts those
                return decode_image(message)[1]
    return None


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a PNG or JPEG file.

    Raises:
        BagError: missing, or not a whole picture.
    """
    if not path.is_file():
        raise BagError(str(path), expected="a picture (PNG, JPEG)", found="nothing there", next_step="check the path")
    return decode_compressed(path.read_bytes(), path.suffix.lower().lstrip("."))


def write_picture(path: Path, frame: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) RGB as a PNG file."""
    done, data = cv2.imencode(".png", frame[:, :, ::-1])
    if not done:
        raise ValueError(f"no picture: {frame.shape}")
    path.write_bytes(data.tobytes())
