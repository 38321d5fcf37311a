"""Where the camera node gets its pictures: a video file, a V4L2 device, or a RealSense camera. Free of ROS."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dr_core.config import load_yaml
from dr_core.data.video import iterate_video, video_rate_hz
from dr_core.errors import ConfigError, UserError

Now = Callable[[], int]
FRAME_TIMEOUT_MS = 1000
DEFAULT_RATE_HZ = 30.0


class SourceLost(Exception):
    """The camera does not answer any more; it may come back."""


class SourceEnded(Exception):
    """There will be no more pictures."""


@dataclass(frozen=True)
class Calibration:
    """Pinhole matrix k (3, 3) in pixels and distortion d (D,) of pictures of ``width`` x ``height``."""

    width: int
    height: int
    k: NDArray[np.float64]
    d: NDArray[np.float64]
    model: str = "plumb_bob"


@dataclass(frozen=True)
class Picture:
    """One exposure.

    Attributes:
        stamp_ns: when it was taken.
        rgb: (H, W, 3) uint8.
        depth: (H, W) uint16 in mm, aligned to ``rgb``; None without a depth camera.
        calibration: None if it is not known.
    """

    stamp_ns: int
    rgb: NDArray[np.uint8]
    depth: NDArray[np.uint16] | None = None
    calibration: Calibration | None = None


class Source(Protocol):
    """Anything that takes pictures."""

    def open(self) -> None:
        """Raises UserError (set up wrongly, or not there)."""

    def read(self) -> Picture:
        """The next picture, waiting for it; raises SourceLost or SourceEnded."""

    def close(self) -> None:
        """May be called at any time, more than once."""


class VideoSource:
    """A video file, at its own rate, stamped as it is played.

    Args:
        loop: begin again at its end.
        rate_hz: 0 takes the file's.
    """

    def __init__(self, path: Path, *, loop: bool, rate_hz: float, now_ns: Now) -> None:
        self._path, self._loop, self._now_ns = path, loop, now_ns
        self._rate_hz = rate_hz
        self._frames: Iterator[tuple[NDArray[np.uint8], int]] | None = None
        self._first: NDArray[np.uint8] | None = None
        self._due_s = 0.0
        self._period_s = 0.0

    def open(self) -> None:
        if not self._path.is_file():
            raise _refused(str(self._path), "a video file", "nothing there", "give its path")
        self._period_s = 1 / (self._rate_hz or video_rate_hz(self._path) or DEFAULT_RATE_HZ)
        self._frames = iterate_video(self._path)
        self._first = next(self._frames, (None, 0))[0]
        if self._first is None:
            raise _refused(str(self._path), "a video with frames", "none", "encode it again")
        self._due_s = time.monotonic()

    def read(self) -> Picture:
        if self._frames is None:
            raise SourceLost("the video is not open")
        if self._first is not None:
            rgb, self._first = self._first, None
        else:
            following = next(self._frames, None)
            if following is None:
                if not self._loop:
                    raise SourceEnded("the video has ended")
                self._frames = iterate_video(self._path)
                following = next(self._frames)
            rgb = following[0]
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        self._due_s += self._period_s
        if self._due_s < time.monotonic():  # after a pause there is no burst of pictures
            self._due_s = time.monotonic() + self._period_s
        return Picture(self._now_ns(), rgb)

    def close(self) -> None:
        self._frames = None


class V4l2Source:
    """A webcam through OpenCV.

    Args:
        device: such as "/dev/video0", or its number.
        width, height, rate_hz: asked of the device; 0 leaves its own.
    """

    def __init__(self, device: str, *, width: int, height: int, rate_hz: float, now_ns: Now) -> None:
        self._device, self._now_ns = device, now_ns
        self._wanted = (width, height, rate_hz)
        self._capture: Any = None

    def open(self) -> None:
        import cv2

        name = int(self._device) if self._device.isdigit() else self._device
        capture = cv2.VideoCapture(name)
        if not capture.isOpened():
            raise _refused(self._device, "a camera", "none that opens", "plug it in, or see: v4l2-ctl --list-devices")
        width, height, rate_hz = self._wanted
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, width), (cv2.CAP_PROP_FRAME_HEIGHT, height), (cv2.CAP_PROP_FPS, rate_hz),
        ):  # fmt: skip
            if value:
                capture.set(key, value)
        # Old pictures in the driver's queue would be taken for new ones.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        found = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        if width and height and found != (width, height):
            capture.release()
            size = f"{found[0]} x {found[1]}"
            raise _refused(self._device, f"pictures of {width} x {height}", size, "choose a size the camera has")
        self._capture = capture

    def read(self) -> Picture:
        if self._capture is None:
            raise SourceLost("the camera is not open")
        good, bgr = self._capture.read()
        if not good:
            raise SourceLost("no picture")
        return Picture(self._now_ns(), np.ascontiguousarray(bgr[:, :, ::-1]))

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class RealSenseSource:
    """A RealSense camera: colour, depth aligned to it, and the factory calibration, with the camera's stamps.

    Args:
        serial: of the camera; empty takes the only one.
        playback: a recording made with the RealSense tools, played instead of a camera.
        width, height, rate_hz: of both streams; 0 leaves the choice to the library.
        context: of the library, with the cameras it knows; None: those that are plugged in.
    """

    def __init__(
        self,
        serial: str,
        playback: str,
        *,
        width: int,
        height: int,
        rate_hz: float,
        now_ns: Now,
        context: Any = None,
    ) -> None:
        self._serial, self._playback, self._now_ns, self._context = serial, playback, now_ns, context
        self._size = (width, height, round(rate_hz))
        self._pipeline: Any = None
        self._align: Any = None
        self._offset_ns: int | None = None
        self._newest_ns = 0
        self._frame_number: int | None = None
        self._paused: Any = None

    def open(self) -> None:
        rs = _pyrealsense2()
        self._context = self._context or rs.context()
        config = rs.config()
        if self._playback:
            if not Path(self._playback).is_file():
                raise _refused(self._playback, "a RealSense recording", "nothing there", "give its path")
            config.enable_device_from_file(self._playback, repeat_playback=False)
        else:
            config.enable_device(self._only(rs))
        config.enable_stream(rs.stream.color, -1, *self._size[:2], rs.format.rgb8, self._size[2])
        config.enable_stream(rs.stream.depth, -1, *self._size[:2], rs.format.z16, self._size[2])
        pipeline = rs.pipeline(self._context)
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise _refused(
                "RealSense", "colour and depth as asked for", text, "choose a size the camera has"
            ) from error
        self._pipeline, self._align = pipeline, rs.align(rs.stream.color)
        self._offset_ns = self._frame_number = None
        device = profile.get_device()
        key = rs.camera_info.serial_number
        found = device.get_info(key) if device.supports(key) else ""
        if self._playback:
            self._paused = device.as_playback()
            self._paused.pause()  # nothing is missed before the first picture is asked for
        if self._serial and found != self._serial:
            self.close()
            raise _wrong_serial(self._serial, [found])

    def read(self) -> Picture:
        rs = _pyrealsense2()
        if self._pipeline is None:
            raise SourceLost("the camera is not open")
        if self._paused is not None:
            self._paused.resume()
            self._paused = None
        color = None
        # A picture comes again with the next depth when the two are not in step.
        while color is None or color.get_frame_number() == self._frame_number:
            try:
                frames = self._align.process(self._pipeline.wait_for_frames(FRAME_TIMEOUT_MS))
            except RuntimeError as error:
                if self._playback:
                    raise SourceEnded("the recording has ended") from error
                raise SourceLost(" ".join(str(error).split())) from error
            color, depth = frames.get_color_frame(), frames.get_depth_frame()
            if not color:
                raise SourceLost("no colour picture")
        self._frame_number = color.get_frame_number()
        inner = color.profile.as_video_stream_profile().intrinsics
        k = np.array([[inner.fx, 0, inner.ppx], [0, inner.fy, inner.ppy], [0, 0, 1]])
        calibration = Calibration(inner.width, inner.height, k, np.array(inner.coeffs, np.float64))
        depth_mm = None
        if depth:
            raw = np.asanyarray(depth.get_data())
            scale = depth.get_units() * 1000  # of one unit, mm
            depth_mm = raw.copy() if abs(scale - 1) < 1e-6 else np.round(raw * scale).clip(0, 65535).astype(np.uint16)
        # The library reuses its buffers.
        return Picture(self._stamp_ns(rs, color), np.asanyarray(color.get_data()).copy(), depth_mm, calibration)

    def close(self) -> None:
        if self._pipeline is not None:
            with contextlib.suppress(RuntimeError):  # a camera that is gone cannot be stopped
                self._pipeline.stop()
            self._pipeline = None

    def _only(self, rs: Any) -> str:
        found = [device.get_info(rs.camera_info.serial_number) for device in self._context.query_devices()]
        if self._serial and self._serial not in found:
            raise _wrong_serial(self._serial, found)
        if not self._serial and len(found) != 1:
            listed = ", ".join(found) or "none"
            raise _refused("RealSense", "one camera", listed, "plug it in, or name one with the parameter serial")
        return self._serial or str(found[0])

    def _stamp_ns(self, rs: Any, frame: Any) -> int:
        stamp_ns = round(frame.get_timestamp() * 1e6)
        if frame.get_frame_timestamp_domain() != rs.timestamp_domain.hardware_clock:
            return stamp_ns
        # The camera's own clock: the picture that came fastest tells best how the clocks differ.
        offset_ns = self._now_ns() - stamp_ns
        self._offset_ns = offset_ns if self._offset_ns is None else min(self._offset_ns, offset_ns)
        # A better offset may not turn the order of pictures around.
        self._newest_ns = max(stamp_ns + self._offset_ns, self._newest_ns + 1)
        return self._newest_ns


def load_calibration(path: Path) -> Calibration:
    """Read a camera_info file as ROS's camera_calibration writes it.

    Raises:
        ConfigError: missing, or not such a file.
    """
    content = load_yaml(path)
    try:
        k = np.array(content["camera_matrix"]["data"], np.float64).reshape(3, 3)
        d = np.array(content["distortion_coefficients"]["data"], np.float64).reshape(-1)
        width, height = int(content["image_width"]), int(content["image_height"])
        if width <= 0 or height <= 0 or k[0, 0] <= 0 or k[1, 1] <= 0 or not np.isfinite([*k.flat, *d]).all():
            raise ValueError("a size or a focal length that is not positive")
        return Calibration(width, height, k, d, str(content.get("distortion_model", "plumb_bob")))
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(str(path), "a camera_info file", repr(error), "calibrate the camera again") from error


def _pyrealsense2() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        step = "pip install pyrealsense2 and apt install libusb-1.0-0"
        raise _refused("pyrealsense2", "the RealSense library", str(error), step) from error
    return pyrealsense2


def _wrong_serial(wanted: str, found: list[str]) -> UserError:
    listed = ", ".join(found) or "no camera"
    return _refused("RealSense", f"serial number {wanted}", listed, "plug in that camera, or correct serial")


def _refused(what: str, expected: str, found: str, next_step: str) -> ConfigError:
    return ConfigError(what, expected=expected, found=found, next_step=next_step)
