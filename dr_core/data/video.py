"""Video files, through PyAV (FFmpeg)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from dr_core.data.images import PIXEL_LIMIT
from dr_core.errors import BagError, OutputInUseError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv")
# No play lists, which name further files and addresses to open.
READ_LIMIT_BYTES = 2**32
"""Of all frames at once; a small file may hold any number of equal ones."""
_CONTAINERS = {"format_whitelist": "mov,mp4,avi,matroska,webm", "protocol_whitelist": "file"}


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], rate_hz: float, *, lossless: bool) -> None:
    """Write frames as H.264; never overwrites.

    Args:
        path: the new file; its suffix chooses the container.
        frames: an array (T, H, W, 3), or any source of frames (H, W, 3), all RGB and of one size.
        rate_hz: frames per second; every frame gets the same duration.
        lossless: keep every bit (RGB, for FFmpeg-based players only), else plain yuv420p for any player; the
            latter repeats the last row or column of odd sizes.

    Raises:
        OutputInUseError: something is at ``path``.
    """
    if not rate_hz > 0:
        raise ValueError(f"rate_hz must be positive, not {rate_hz}")
    if os.path.lexists(path):
        raise OutputInUseError(
            str(path), expected="a free name", found="an existing file", next_step="choose another name"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.writing{path.suffix}")
    try:
        _encode(unfinished, frames, rate_hz, lossless)
        os.rename(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _encode(path: Path, frames: Iterable[NDArray[np.uint8]], rate_hz: float, lossless: bool) -> None:
    shape: tuple[int, ...] | None = None
    with av.open(str(path), "w") as container:
        rate = Fraction(rate_hz).limit_denominator(1000)
        stream = container.add_stream("libx264rgb" if lossless else "libx264", rate=rate)
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        # qp 0 is x264's lossless mode; crf 18 looks the same as the source.
        stream.options = {"preset": "veryfast", **({"qp": "0"} if lossless else {"crf": "18"})}
        for frame in frames:
            first = shape is None
            shape = shape or frame.shape
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != (*shape[:2], 3):
                raise ValueError(f"frames are uint8 (H, W, 3) of one size, not {frame.dtype} {frame.shape}")
            if not lossless:
                # yuv420p halves the colour planes, so both sizes have to be even.
                frame = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            if first:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        if shape is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode())


def iterate_video(path: Path) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Frames (H, W, 3) RGB, all of one size, of the first video stream with their stamps in ns, one at a time.

    Raises:
        BagError: not a video, or a damaged one.
    """
    try:
        with av.open(str(path), options=_CONTAINERS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise _not_a_video(path, "no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise _not_a_video(path, "an unknown codec")
            stream.codec_context.options = {"max_pixels": str(PIXEL_LIMIT)}
            if stream.width * stream.height > PIXEL_LIMIT:
                raise _not_a_video(path, f"frames of {stream.width} x {stream.height}")
            size = None
            for frame in container.decode(stream):
                if frame.pts is None or frame.time_base is None:
                    raise _not_a_video(path, "a frame without a time")
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise _not_a_video(path, f"frames of {size[0]} x {size[1]} and {frame.width} x {frame.height}")
                yield frame.to_ndarray(format="rgb24"), int(frame.pts * frame.time_base * 10**9)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _not_a_video(path, " ".join(str(error).split())) from error


def read_video(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All frames (T, H, W, 3) RGB and their stamps (T,) in ns since the start.

    Raises:
        BagError: not a video, a damaged one, one without frames, or frames of more than 4 GiB.
    """
    frames: list[NDArray[np.uint8]] = []
    stamps_ns: list[int] = []
    for frame, stamp_ns in iterate_video(path):
        if (len(frames) + 1) * frame.nbytes > READ_LIMIT_BYTES:
            raise _not_a_video(path, f"more than {READ_LIMIT_BYTES} bytes of frames")
        frames.append(frame)
        stamps_ns.append(stamp_ns)
    if not frames:
        raise _not_a_video(path, "no frames")
    return np.stack(frames), np.array(stamps_ns, np.int64)


def video_rate_hz(path: Path) -> float:
    """Nominal frame rate, 0 where the file does not say.

    Raises:
        BagError: not a video.
    """
    try:
        with av.open(str(path), options=_CONTAINERS, metadata_errors="replace") as container:
            if not container.streams.video:
                raise _not_a_video(path, "no video stream")
            return float(container.streams.video[0].average_rate or 0)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _not_a_video(path, " ".join(str(error).split())) from error


def _not_a_video(path: Path, found: str) -> BagError:
    return BagError(str(path), expected="a whole video", found=found, next_step="encode or copy it again")
