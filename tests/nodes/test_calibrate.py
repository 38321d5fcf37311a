"""The node calibrate: pictures and poses from topics, the same computation as offline, and refusals in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rclpy.qos import QoSProfile
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger

from dr_calibration import sources
from dr_calibration.boards import Board
from dr_calibration.geometry import Pose, from_parts, invert
from dr_calibration.intrinsics import Intrinsics
from dr_calibration.rig import Rig
from dr_nodes.convert import array_to_image, arrays_to_pose, camera_info
from tests.nodes.conftest import TIMEOUT_S, NodeProcess

RELIABLE = QoSProfile(depth=200)
BOARD = Board.parse("charuco:7x5:40mm:30mm:4X4_50")
WIDTH, HEIGHT = 640, 480
K = np.array([[610.0, 0, 322], [0, 612, 236], [0, 0, 1]])
PX_PER_M, MARGIN_M, FINE = 4000.0, 0.04, 2
START_S = 1.7e9
T_TOOL_CAMERA = from_parts(Rotation.from_euler("xyz", [4, -6, 85], degrees=True), [0.05, -0.03, 0.06])


def draw(T_camera_board: Pose, seed: int) -> NDArray[np.uint8]:
    """(H, W, 3): the board through a lens without distortion, with noise; every pixel the mean of finer ones."""
    drawn = BOARD.draw(PX_PER_M, MARGIN_M)
    # A pixel of the drawing in metres on the board, through the camera, in finer pixels: all are homographies.
    on_board = np.array([[1, 0, 0.5 - PX_PER_M * MARGIN_M], [0, 1, 0.5 - PX_PER_M * MARGIN_M], [0, 0, PX_PER_M]])
    through = K @ T_camera_board[:3, [0, 1, 3]] @ on_board
    finer = np.array([[FINE, 0, (FINE - 1) / 2], [0, FINE, (FINE - 1) / 2], [0, 0, 1]])
    large = cv2.warpPerspective(
        drawn, finer @ through, (FINE * WIDTH, FINE * HEIGHT), flags=cv2.INTER_AREA, borderValue=110
    )
    seen = 0.8 * cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float64) + 20
    noisy = seen + np.random.default_rng(seed).normal(0, 2, seen.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None].repeat(3, 2)


def view(x_px: float, y_px: float, depth_m: float, tilt_deg: tuple[float, float], roll_deg: float = 0.0) -> Pose:
    """T_camera_board with the board's centre in this pixel."""
    turn = Rotation.from_euler("xyz", [*tilt_deg, roll_deg], degrees=True)
    centre = np.array([*np.array(BOARD.size_m) / 2, 0.0])
    place = depth_m * np.linalg.solve(K, [x_px, y_px, 1.0])
    return from_parts(turn, place - turn.apply(centre))


def lens_views() -> list[Pose]:
    """The board in each ninth of the picture and in the middle, tilted to all sides, near and far."""
    tilts = [(30, 0), (-30, 0), (0, 30), (0, -30), (25, 25), (-25, 25), (25, -25), (-25, -25), (0, 0)]
    cells = [(150, 110), (320, 110), (490, 110), (150, 240), (320, 240), (490, 240), (150, 370), (320, 370), (490, 370)]
    far = [view(*cell, 0.75, tilt) for cell, tilt in zip(cells, tilts, strict=True)]
    near = [view(320 + 40 * k, 240 - 20 * k, 0.48, tilts[k], 10.0 * k) for k in range(4)]
    return [*far, *near, *(view(320, 240, 0.6, tilt, 90.0) for tilt in tilts[:4])]


class Stage:
    """A calibrate process, and the topics it hears."""

    def __init__(self, process: NodeProcess, node: Any, spin_until: Any) -> None:
        self.process = process
        self.images = node.create_publisher(Image, process.topic("camera/color/image_raw"), RELIABLE)
        self.info = node.create_publisher(CameraInfo, process.topic("camera/color/camera_info"), RELIABLE)
        self.poses = node.create_publisher(PoseStamped, process.topic("ee_pose"), RELIABLE)
        topics = (self.images, self.info, self.poses)
        assert spin_until(lambda: all(topic.get_subscription_count() for topic in topics), node, timeout_s=TIMEOUT_S), (
            process.output()
        )

    def show(self, T_camera_board: Pose, stamp_s: float, seed: int) -> None:
        self.images.publish(array_to_image(draw(T_camera_board, seed), round(1e9 * stamp_s), "eye_optical"))

    def stand(self, T_base_tool: Pose, stamp_s: float) -> None:
        turn = Rotation.from_matrix(T_base_tool[:3, :3]).as_quat()
        self.poses.publish(arrays_to_pose(round(1e9 * stamp_s), "base", T_base_tool[:3, 3], turn))


@pytest.fixture
def stage(start_node: Any, node: Any, spin_until: Any, tmp_path: Path) -> Callable[..., Stage]:
    def make(step: str, **parameters: Any) -> Stage:
        common = {
            "board": str(BOARD),
            "out": str(tmp_path / "rig"),
            "image_reliability": "reliable",
            "image_depth": 100,
        }
        return Stage(start_node("calibrate", step=step, **common, **parameters), node, spin_until)

    return make


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    """A directory with the true lens, as the step intrinsics leaves it."""
    (tmp_path / "rig").mkdir()
    lens = Intrinsics(WIDTH, HEIGHT, K, np.zeros(5))
    return Rig("front", "123", lens, time.time()).save(tmp_path / "rig")


def files(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_lens_from_a_topic(stage: Any, call: Any, node: Any, spin_until: Any, tmp_path: Path) -> None:
    one = stage("intrinsics", camera_name="front", serial="123")
    early = call(Trigger, one.process.topic("~/solve"))
    assert not early.success and "expected" in early.message and "\n" not in early.message
    assert not (tmp_path / "rig").exists(), "a refusal writes nothing"
    one.info.publish(camera_info(round(1e9 * START_S), "eye_optical", WIDTH, HEIGHT, K, np.zeros(5)))
    views = lens_views()
    for k, pose in enumerate(views):
        one.show(pose, START_S + 0.5 * k, k)
    one.process.wait_for(f"kept {len(views)};")
    answer = call(Trigger, one.process.topic("~/solve"))
    assert answer.success and "verdict: " in answer.message, answer.message
    made = Rig.load(tmp_path / "rig" / "rig_front.yaml")
    assert made.camera_serial == "123" and made.board == BOARD.to_dict()
    np.testing.assert_allclose(made.intrinsics.K[[0, 1], [0, 1]], K[[0, 1], [0, 1]], rtol=0.005)
    np.testing.assert_allclose(made.intrinsics.K[:2, 2], K[:2, 2], atol=3.0)
    # What was collected is on the disk, and gives the same again.
    samples, track = sources.read(tmp_path / "rig.samples" / "intrinsics-1")
    assert len(list(samples)) == len(views) and track is None
    again = call(Trigger, one.process.topic("~/solve"))
    assert not again.success and "rig_front.yaml" in again.message, "not replaced unless asked"
    assert one.process.stop() == 0


def hand_eye(one: Stage, tools: list[Pose], T_base_board: Pose) -> None:
    """The tool stands in each place for a while, and a picture is taken; waits until it is kept."""
    for k, tool in enumerate(tools):
        stamp_s = START_S + 2.0 * k
        for step in range(5):
            one.stand(tool, stamp_s - 0.2 + 0.05 * step)
        one.show(invert(tool @ T_TOOL_CAMERA) @ T_base_board, stamp_s, k)
        later_s, end_s = stamp_s, time.monotonic() + TIMEOUT_S
        while f"kept {k + 1};" not in one.process.output():
            assert time.monotonic() < end_s, one.process.output()
            later_s = min(later_s + 0.05, stamp_s + 1.5)
            one.stand(tool, later_s)
            time.sleep(0.02)


def test_a_tool_that_never_turns_is_refused_and_nothing_is_written(
    stage: Any, call: Any, rig: Path, tmp_path: Path
) -> None:
    before = list(files(rig.parent))
    one = stage("hand-eye", frame="tool0", auto_capture=True)
    base_board = from_parts(Rotation.from_euler("x", 180, degrees=True), [0.4, 0.1, 0.0])
    first = base_board @ invert(view(320, 240, 0.6, (20, 10))) @ invert(T_TOOL_CAMERA)
    moves = [(0.04 * (k % 3 - 1), 0.03 * (k // 3 - 1), 0.02 * (k % 2)) for k in range(7)]
    hand_eye(one, [from_parts(first[:3, :3], first[:3, 3] + move) for move in moves], base_board)
    answer = call(Trigger, one.process.topic("~/solve"))
    assert not answer.success and "turn" in answer.message and "\n" not in answer.message, answer.message
    assert list(files(rig.parent)) == before
    samples, track = sources.read(tmp_path / "rig.samples" / "hand-eye-1")
    assert len(list(samples)) == 7 and track is not None and len(track[0]) > 35
    assert "Traceback" not in one.process.output() and one.process.stop() == 0


def test_hand_eye_with_once_ends_by_itself(stage: Any, rig: Path) -> None:
    one = stage("hand-eye", frame="tool0", once=True)
    base_board = from_parts(Rotation.from_euler("xyz", [178, 3, 40], degrees=True), [0.4, 0.1, 0.0])
    random = np.random.default_rng(3)
    tools = []
    for k in range(20):
        tilt = (30.0 * np.cos(2.4 * k), 30.0 * np.sin(2.4 * k))
        x_px, y_px, depth_m = random.uniform([260, 200, 0.55], [380, 280, 0.7])
        seen = view(x_px, y_px, depth_m, tilt, 18.0 * (k % 5 - 2))
        tools.append(base_board @ invert(seen) @ invert(T_TOOL_CAMERA))
    hand_eye(one, tools, base_board)
    assert one.process.process.wait(TIMEOUT_S) == 0, one.process.output()
    pose = Rig.load(rig).pose
    assert pose is not None and (pose.key, pose.frame, pose.camera_frame) == ("T_tool_camera", "tool0", "eye_optical")
    error = invert(T_TOOL_CAMERA) @ pose.T
    assert np.linalg.norm(error[:3, 3]) < 0.001
    assert Rotation.from_matrix(error[:3, :3]).magnitude() < np.radians(0.1)


def test_what_cannot_work_is_refused_before_anybody_moves(
    rig: Path, start_node: Any, call: Any, change_state: Any
) -> None:
    from rcl_interfaces.msg import Parameter, ParameterValue
    from rcl_interfaces.srv import SetParameters

    process = start_node("calibrate", board=str(BOARD), out=str(rig.parent), autostart=False)
    for number, (name, text, words) in enumerate([
        ("step", "intrinsics", "rig: expected a new calibration; found rig_front.yaml"),
        ("step", "hand-eye", "parameter frame: expected the TF frame of tool or base"),
        ("board", "charuco:7x5:40:30:4X4_50", "board 'charuco:7x5:40:30:4X4_50': expected"),
        ("out", "/nowhere/rig", "/nowhere/rig: expected a calibration with the step intrinsics"),
    ], 1):  # fmt: skip
        value = ParameterValue(type=4, string_value=text)
        call(SetParameters, process.topic("~/set_parameters"), parameters=[Parameter(name=name, value=value)])
        assert not change_state(process, "configure")
        assert f"refused: {words}" in process.output().replace(str(rig.parent), "rig"), process.output()
        assert process.output().count("refused: ") == number, "one line each"
