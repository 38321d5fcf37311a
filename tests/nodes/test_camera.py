"""The camera node on the wire: video files, webcams through OpenCV, and RealSense through its normal pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

from dr_core.data.video import write_video
from dr_core.errors import ConfigError
from dr_nodes.convert import image_to_array, stamp_to_ns
from dr_nodes.sources import RealSenseSource, SourceLost
from tests.nodes.conftest import TIMEOUT_S, NodeProcess

WIDTH, HEIGHT = 64, 48
SERIAL = "123456789"
K = [60.0, 0.0, 32.0, 0.0, 61.0, 24.0, 0.0, 0.0, 1.0]


def pictures(count: int = 5) -> Any:
    return np.stack([np.full((HEIGHT, WIDTH, 3), (40 * k, 20 * k, 10), np.uint8) for k in range(count)])


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_video(tmp_path / "five.mp4", pictures(), 20.0, lossless=True)
    return tmp_path / "five.mp4"


class Viewer:
    """What a subscriber of the camera's topics sees."""

    def __init__(self, node: Any, spin_until: Any) -> None:
        self.node, self._spin_until = node, spin_until
        self.images: list[Any] = []
        self.infos: list[Any] = []
        self.depths: list[Any] = []

    def watch(self, namespace: str) -> None:
        for kind, topic, seen in (
            (Image, "color/image_raw", self.images),
            (CameraInfo, "color/camera_info", self.infos),
            (Image, "aligned_depth_to_color/image_raw", self.depths),
        ):
            self.node.create_subscription(kind, f"/{namespace}/camera/{topic}", seen.append, QoSProfile(depth=100))

    def spin(self, condition: Callable[[], Any], process: NodeProcess, what: str = "") -> None:
        assert self._spin_until(condition, self.node, timeout_s=TIMEOUT_S), f"{what}\n{process.output()[-3000:]}"


@pytest.fixture
def viewer(node: Any, spin_until: Any) -> Viewer:
    return Viewer(node, spin_until)


def test_a_video_file_plays_in_a_loop_with_its_calibration(
    start_node: Any, viewer: Viewer, video: Path, tmp_path: Path
) -> None:
    calibration = {
        "image_width": WIDTH,
        "image_height": HEIGHT,
        "camera_name": "front",
        "camera_matrix": {"rows": 3, "cols": 3, "data": K},
        "distortion_model": "plumb_bob",
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.1, -0.2, 0.0, 0.0, 0.0]},
    }
    (tmp_path / "front.yaml").write_text(yaml.safe_dump(calibration))
    viewer.watch("cell")
    process = start_node(
        "camera", namespace="cell", path=str(video), camera_info=str(tmp_path / "front.yaml"),
        frame_id="front", image_reliability="reliable", image_depth=100,
    )  # fmt: skip
    viewer.spin(lambda: len(viewer.images) > 12 and len(viewer.infos) > 12, process)
    values = [int(image_to_array(one)[0, 0, 0]) // 40 for one in viewer.images[:12]]
    assert values == [(values[0] + k) % 5 for k in range(12)], "in order, and from the start again"
    assert viewer.images[0].header.frame_id == "front" and viewer.images[0].encoding == "rgb8"
    stamps = [stamp_to_ns(one.header.stamp) for one in viewer.images]
    assert abs(stamps[-1] - time.time_ns()) < 60e9
    assert stamps == sorted(set(stamps))
    assert (stamps[11] - stamps[0]) / 11 > 0.9 * 50e6, "not faster than 20 Hz"
    first = viewer.infos[0]
    assert list(first.k) == K and list(first.d) == [0.1, -0.2, 0.0, 0.0, 0.0]
    assert stamp_to_ns(first.header.stamp) in stamps
    assert process.stop() == 0 and "Traceback" not in process.output()


def test_a_video_that_ends_ends(start_node: Any, viewer: Viewer, video: Path, diagnostics: Any) -> None:
    viewer.watch("cell")
    settings = {"path": str(video), "loop": False, "image_reliability": "reliable", "image_depth": 100}
    process = start_node("camera", namespace="cell", **settings)
    status = lambda: diagnostics.get("cell/camera: camera")  # noqa: E731
    viewer.spin(lambda: status() and status().message == "the video has ended", process)
    assert len(viewer.images) <= 5 and not viewer.infos, "no calibration, no camera_info"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "parameter path: expected a video file; found nothing"),
        ({"path": "/nowhere.mp4"}, "/nowhere.mp4: expected a video file; found nothing there"),
        ({"source": "v4l2", "device": "/dev/nothing"}, "/dev/nothing: expected a camera"),
        ({"camera_info": "/nowhere.yaml"}, "/nowhere.yaml"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    settings: dict[str, str], words: str, start_node: Any, state_of: Any
) -> None:
    process = start_node("camera", **settings)
    output = process.wait_for("refused: " + words)
    assert state_of(process) == "unconfigured" and "Traceback" not in output


def test_a_wrong_choice_ends_the_node(start_node: Any) -> None:
    process = start_node("camera", source="film")
    assert process.process.wait(TIMEOUT_S) == 2
    assert "source is one of video, v4l2, realsense" in process.output()


def test_parameters_of_a_running_node_are_kept(start_node: Any, video: Path, call: Any, state_of: Any) -> None:
    from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
    from rcl_interfaces.srv import SetParameters

    process = start_node("camera", path=str(video))
    while state_of(process) != "active":
        time.sleep(0.05)
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="other")
    change = Parameter(name="frame_id", value=value)
    [answer] = call(SetParameters, process.topic("~/set_parameters"), parameters=[change]).results
    assert not answer.successful and "clean it up first" in answer.reason


def test_a_calibration_of_another_resolution_is_refused(start_node: Any, video: Path, tmp_path: Path) -> None:
    calibration = {
        "image_width": 640,
        "image_height": 480,
        "camera_matrix": {"data": K},
        "distortion_coefficients": {"data": [0.0] * 5},
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(calibration))
    process = start_node("camera", path=str(video), camera_info=str(tmp_path / "other.yaml"))
    process.wait_for("refused: camera_info: expected a calibration of pictures of 64 x 48; found 640 x 480")


def test_a_webcam_that_was_unplugged_is_opened_again(
    start_node: Any, viewer: Viewer, video: Path, tmp_path: Path, diagnostics: Any
) -> None:
    # OpenCV reads a file as it reads a device; at its end it gives no more pictures, as an unplugged camera.
    device = tmp_path / "device.mp4"
    video.rename(device)
    viewer.watch("cell")
    process = start_node(
        "camera", namespace="cell", source="v4l2", device=str(device), image_reliability="reliable", image_depth=100
    )
    viewer.spin(lambda: len(viewer.images) > 7, process, "not reopened")
    device.rename(tmp_path / "away.mp4")
    process.wait_for("next attempt in")
    seen = len(viewer.images)
    status = diagnostics.get("cell/camera: camera")
    viewer.spin(lambda: diagnostics["cell/camera: camera"].level == b"\x02", process, str(status))
    (tmp_path / "away.mp4").rename(device)
    viewer.spin(lambda: len(viewer.images) > seen + 2, process, "not back")
    assert np.array_equal(image_to_array(viewer.images[0]).shape, (HEIGHT, WIDTH, 3))
    assert "the camera is back" in process.output()
    assert process.stop() == 0


# ---- RealSense ----


@pytest.fixture(scope="module")
def realsense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording with stamps of the host's clock."""
    return record_realsense(tmp_path_factory.mktemp("realsense") / "recording.db3", 1.7e12, "global_time")


def record_realsense(path: Path, start_ms: float, clock: str) -> Path:
    """Record a software device: colour k*10, depth 1000 + k mm, stamps 33.3 ms apart on a clock of the library."""
    try:
        import pyrealsense2 as rs
    except ImportError as error:
        pytest.skip(f"pyrealsense2 does not load: {error}")
    device = rs.software_device()
    device.register_info(rs.camera_info.serial_number, SERIAL)
    sensors, profiles = [], []
    for uid, (name, stream, pixel_bytes, pixel) in enumerate(
        (("Depth", rs.stream.depth, 2, rs.format.z16), ("Color", rs.stream.color, 3, rs.format.rgb8))
    ):
        sensor = device.add_sensor(name)
        shape = rs.video_stream()
        shape.type, shape.index, shape.uid = stream, 0, uid
        shape.width, shape.height, shape.fps, shape.bpp, shape.fmt = WIDTH, HEIGHT, 30, pixel_bytes, pixel
        lens = rs.intrinsics()
        lens.width, lens.height, lens.fx, lens.fy, lens.ppx, lens.ppy = WIDTH, HEIGHT, K[0], K[4], K[2], K[5]
        lens.model, lens.coeffs = rs.distortion.brown_conrady, [0.0] * 5
        shape.intrinsics = lens
        profiles.append(sensor.add_video_stream(shape).as_video_stream_profile())
        sensors.append(sensor)
    sensors[0].add_read_only_option(rs.option.depth_units, 0.001)
    place = rs.extrinsics()
    place.rotation, place.translation = [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0], [0.0, 0, 0]
    profiles[0].register_extrinsics_to(profiles[1], place)
    profiles[1].register_extrinsics_to(profiles[0], place)
    device.create_matcher(rs.matchers.default)
    recorder = rs.recorder(str(path), device)
    syncer = rs.syncer()
    for sensor, profile in zip(sensors, profiles, strict=True):
        sensor.open(profile)
        sensor.start(syncer)
    for k in range(10):
        depth, color = np.full((HEIGHT, WIDTH), 1000 + k, np.uint16), np.full((HEIGHT, WIDTH, 3), 10 * k, np.uint8)
        for sensor, profile, pixels in zip(sensors, profiles, (depth, color), strict=True):
            frame = rs.software_video_frame()
            frame.pixels = pixels
            frame.bpp = 2 if pixels.ndim == 2 else 3
            frame.stride = frame.bpp * WIDTH
            frame.timestamp, frame.domain = start_ms + 100 / 3 * k, getattr(rs.timestamp_domain, clock)
            frame.frame_number, frame.profile = k, profile
            if pixels.ndim == 2:
                frame.depth_units = 0.001
            sensor.on_video_frame(frame)
        time.sleep(0.02)
    for sensor in sensors:
        sensor.stop()
        sensor.close()
    del recorder
    return path


def test_realsense_gives_color_depth_calibration_and_its_own_stamps(
    start_node: Any, viewer: Viewer, realsense: Path, diagnostics: Any, change_state: Any
) -> None:
    viewer.watch("cell")
    process = start_node(
        "camera", namespace="cell", source="realsense", playback=str(realsense), serial=SERIAL, autostart=False,
        image_reliability="reliable", image_depth=100,
    )  # fmt: skip
    assert change_state(process, "configure"), process.output()
    topics = [f"/cell/camera/{name}" for name in ("color/image_raw", "color/camera_info")]
    viewer.spin(lambda: all(viewer.node.count_publishers(topic) == 1 for topic in topics), process)
    assert change_state(process, "activate"), process.output()
    status = lambda: diagnostics.get("cell/camera: camera")  # noqa: E731
    viewer.spin(lambda: status() and status().message == "the recording has ended", process)
    assert len(viewer.images) >= 5
    depths, infos = ({stamp_to_ns(m.header.stamp): m for m in seen} for seen in (viewer.depths, viewer.infos))
    assert len(depths) >= 5 and len(infos) >= 5
    for image in viewer.images:
        k, stamp_ns = int(image_to_array(image)[0, 0, 0]) // 10, stamp_to_ns(image.header.stamp)
        assert stamp_ns == pytest.approx(1.7e18 + 1e8 / 3 * k, abs=1e6)
        if stamp_ns in depths and stamp_ns in infos:
            depth, info = depths[stamp_ns], infos[stamp_ns]
            assert depth.encoding == "16UC1" and depth.step == 2 * WIDTH
            assert (np.frombuffer(depth.data, np.uint16) == 1000 + k).all()
            assert list(info.k) == K and (info.width, info.height) == (WIDTH, HEIGHT)


def test_another_realsense_is_refused(start_node: Any, realsense: Path, state_of: Any) -> None:
    process = start_node("camera", source="realsense", playback=str(realsense), serial="999")
    process.wait_for(f"refused: RealSense: expected serial number 999; found {SERIAL}")
    assert state_of(process) == "unconfigured"


def test_no_realsense_is_refused(start_node: Any, realsense: Path) -> None:
    start_node("camera", source="realsense", serial="999").wait_for(
        "refused: RealSense: expected serial number 999; found no camera"
    )


def test_a_realsense_that_was_unplugged_is_opened_again_with_its_own_clock(tmp_path: Path) -> None:
    """The source alone: cameras are plugged into its context, where recordings can be loaded as cameras."""
    recording = str(record_realsense(tmp_path / "camera.db3", 5000.0, "hardware_clock"))
    import pyrealsense2 as rs

    context = rs.context()
    plugged = [context.load_device(recording)]
    source = RealSenseSource(SERIAL, "", width=0, height=0, rate_hz=0.0, now_ns=time.time_ns, context=context)
    stamps: list[int] = []
    for _ in range(2):
        source.open()
        first = len(stamps)
        with pytest.raises(SourceLost, match="didn't arrive"):
            while True:  # until no more pictures come
                picture = source.read()
                stamps.append(picture.stamp_ns)
                assert picture.depth is not None and picture.rgb.shape == (HEIGHT, WIDTH, 3)
                assert 0 <= time.time_ns() - picture.stamp_ns < 5e9, "the camera's clock began at its start"
        assert len(stamps) - first >= 3
        context.unload_device(recording)
        source.close()
        plugged.clear()
        with pytest.raises(ConfigError, match=f"serial number {SERIAL}; found no camera"):
            source.open()
        plugged.append(context.load_device(recording))
    assert (np.diff(stamps) > 0).all(), "no picture twice, none before another"
    stranger = RealSenseSource("999", "", width=0, height=0, rate_hz=0.0, now_ns=time.time_ns, context=context)
    with pytest.raises(ConfigError, match=f"expected serial number 999; found {SERIAL}"):
        stranger.open()
