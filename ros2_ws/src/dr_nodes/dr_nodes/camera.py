"""Publishes the pictures of a camera: RealSense, a webcam (V4L2) or a video file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from sensor_msgs.msg import CameraInfo, Image

from dr_core.errors import ConfigError, UserError
from dr_nodes.common import ERROR, IMAGE_QOS, OK, WARN, ManagedNode, Param, image_qos, needed, run
from dr_nodes.convert import array_to_image, camera_info
from dr_nodes.sources import (
    Calibration,
    Picture,
    RealSenseSource,
    Source,
    SourceEnded,
    SourceLost,
    V4l2Source,
    VideoSource,
    load_calibration,
)

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 8.0
PARAMETERS = (
    Param("source", "video", "where the pictures come from", choices=("video", "v4l2", "realsense")),
    Param("path", "", "video: the file"),
    Param("loop", True, "video: begin again at its end"),
    Param("device", "/dev/video0", "v4l2: the device, or its number"),
    Param("serial", "", "realsense: serial number of the camera; empty takes the only one"),
    Param("playback", "", "realsense: a recording to play instead of a camera"),
    Param("width", 0, "of the pictures, pixels; 0 takes what comes", 0, 8192),
    Param("height", 0, "of the pictures, pixels; 0 takes what comes", 0, 8192),
    Param("rate_hz", 0.0, "frame rate; 0 takes what comes", 0.0, 1000.0),
    Param("frame_id", "camera_color_optical_frame", "frame of the pictures (REP 103: z forward)"),
    Param("camera_info", "", "camera_info file of the calibration; empty: the camera's own, if it has one"),
    *IMAGE_QOS,
)


class Camera(ManagedNode):
    """Reads in a thread of its own, and opens the camera again when it was unplugged."""

    def __init__(self) -> None:
        super().__init__("camera", PARAMETERS)
        self._source: Source | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._calibration: Calibration | None = None
        self._outputs: dict[str, Any] = {}
        self._count = self._reconnects = 0

    def configure(self) -> None:
        calibration = self.value("camera_info")
        self._calibration = load_calibration(Path(calibration)) if calibration else None
        self._source = self._make_source()
        self._source.open()
        qos = image_qos(self)
        self._outputs = {
            "color": self.create_publisher(Image, "camera/color/image_raw", qos),
            "info": self.create_publisher(CameraInfo, "camera/color/camera_info", qos),
        }
        if self.value("source") == "realsense":
            # The name that realsense2_camera gives it.
            topic = "camera/aligned_depth_to_color/image_raw"
            self._outputs["depth"] = self.create_publisher(Image, topic, qos)

    def activate(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    def deactivate(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def cleanup(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
        for publisher in self._outputs.values():
            self.destroy_publisher(publisher)
        self._outputs = {}

    def _make_source(self) -> Source:
        kind = self.value("source")
        size = {name: self.value(name) for name in ("width", "height", "rate_hz")}
        if kind == "realsense":
            return RealSenseSource(self.value("serial"), self.value("playback"), **size, now_ns=self.now_ns)
        if kind == "v4l2":
            return V4l2Source(self.value("device"), **size, now_ns=self.now_ns)
        path = Path(needed(self.value("path"), "path", "a video file"))
        return VideoSource(path, loop=self.value("loop"), rate_hz=size["rate_hz"], now_ns=self.now_ns)

    def _read(self) -> None:
        assert self._source is not None
        source = self._source
        while not self._stopping.is_set():
            try:
                self._publish(source.read())
            except SourceEnded as end:
                self.diagnostics.set("camera", OK, str(end), frames=self._count)
                return
            except SourceLost as lost:
                self.diagnostics.tell("camera", ERROR, f"no picture ({lost}), opening the camera again")
                self._reopen(source)
            except UserError as error:
                self.diagnostics.tell("camera", ERROR, f"refused: {error}")
                return

    def _reopen(self, source: Source) -> None:
        retry_s = FIRST_RETRY_S
        while not self._stopping.wait(retry_s):
            source.close()
            try:
                source.open()
            except UserError as error:
                retry_s = min(2 * retry_s, LAST_RETRY_S)
                self.diagnostics.tell("camera", ERROR, f"{error}; next attempt in {retry_s:.1f} s")
            else:
                self._reconnects += 1
                self.diagnostics.tell("camera", WARN, "the camera is back; what was recorded meanwhile has a gap")
                return

    def _publish(self, picture: Picture) -> None:
        if self._stopping.is_set() or not self.context.ok():
            return
        frame_id = self.value("frame_id")
        calibration = self._calibration or picture.calibration
        height, width = picture.rgb.shape[:2]
        if calibration is not None and (calibration.width, calibration.height) != (width, height):
            raise ConfigError(
                "camera_info",
                expected=f"a calibration of pictures of {width} x {height}",
                found=f"{calibration.width} x {calibration.height}",
                next_step="calibrate at this resolution, or set width and height",
            )
        self._outputs["color"].publish(array_to_image(picture.rgb, picture.stamp_ns, frame_id))
        if calibration is not None:
            info = camera_info(
                picture.stamp_ns, frame_id, width, height, calibration.k, calibration.d, calibration.model
            )
            self._outputs["info"].publish(info)
        if picture.depth is not None and "depth" in self._outputs:
            depth = array_to_image(picture.depth, picture.stamp_ns, frame_id, "16UC1")
            self._outputs["depth"].publish(depth)
        self._count += 1
        age_s = (self.now_ns() - picture.stamp_ns) / 1e9
        numbers = {"frames": self._count, "reconnects": self._reconnects, "age_s": f"{age_s:.3f}"}
        self.diagnostics.set("camera", OK, "running", **numbers)


def main() -> int:
    return run(Camera)


if __name__ == "__main__":
    raise SystemExit(main())
