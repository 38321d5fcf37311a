"""Rendered boards: corners found in the pictures against projected truth, and the poses that are drawn."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_calibration.boards import Board, Detection, Rejection
from dr_core.errors import ConfigError
from dr_sim.calibration_scene import CalibrationScene, add_blur, add_noise, distort

K = np.array([[600.0, 0, 310], [0, 603, 246], [0, 0, 1]])
LENS = np.array([-0.28, 0.09, 0.001, -0.0008, -0.01])
BOARDS = ["charuco:7x5:30mm:22mm:4X4_50", "chessboard:9x6:25mm", "apriltag:5x4:40mm:30mm:APRILTAG_36h11"]


@pytest.fixture(scope="module")
def scene():
    made = CalibrationScene(Board.parse(BOARDS[0]), 640, 480, K, LENS)
    yield made
    made.close()


@pytest.mark.parametrize("text", BOARDS)
def test_corners_lie_where_the_lens_model_says(text):
    board = Board.parse(text)
    scene = CalibrationScene(board, 640, 480, K, LENS)
    rng = np.random.default_rng(3)
    for noise, most_px in ((0.0, 0.03), (2.0, 0.06)):
        errors = []
        for pose in scene.intrinsic_views(9, rng):
            picture = scene.render(pose)
            assert picture.shape == (480, 640, 3) and picture.dtype == np.uint8
            found = board.detect(add_noise(picture, noise, rng))
            assert isinstance(found, Detection), found
            errors.append(found.corners_px - scene.project(pose, found.points_m))
        error = np.concatenate(errors)
        assert np.abs(error.mean(0)).max() < 0.01
        assert np.linalg.norm(error, axis=1).mean() < most_px
    scene.close()


def test_a_camera_without_distortion_and_with_another_shape():
    board = Board.parse(BOARDS[0])
    matrix = np.array([[300.0, 0, 120], [0, 330, 90], [0, 0, 1]])
    scene = CalibrationScene(board, 320, 200, matrix, np.zeros(5))
    pose = np.eye(4)
    pose[:3, 3] = [-0.05, -0.06, 0.3]
    found = board.detect(scene.render(pose))
    points = board.points_m[found.ids] + pose[:3, 3]
    by_hand = points[:, :2] / points[:, 2:] * [300, 330] + [120, 90]
    assert len(found.ids) >= 20 and np.abs(found.corners_px - by_hand).max() < 0.05
    assert np.allclose(scene.project(pose, found.points_m), by_hand)
    scene.close()


def test_truth_follows_the_published_lens_model(scene):
    pose = scene.intrinsic_views(1, np.random.default_rng(0))[0]
    points = scene.board.points_m @ pose[:3, :3].T + pose[:3, 3]
    bent = distort(points[:, :2] / points[:, 2:], LENS)
    assert np.allclose(scene.project(pose, scene.board.points_m), bent * [600, 603] + [310, 246], atol=1e-6)


def test_views_for_the_intrinsics_fill_the_picture(scene):
    views = scene.intrinsic_views(27, np.random.default_rng(5))
    assert np.array_equal(views, scene.intrinsic_views(27, np.random.default_rng(5)))
    seen = np.concatenate([scene.project(pose, scene.board.points_m)[scene.visible(pose)] for pose in views])
    counts = np.histogram2d(*seen.T, [np.linspace(0, 640, 5), np.linspace(0, 480, 4)])[0]
    assert (counts > 5).all()
    tilts = np.degrees(np.arccos(views[:, 2, 2]))
    assert tilts.min() < 15 and tilts.max() > 30 and np.ptp(views[:, 2, 3]) > 0.1
    assert min(scene.visible(pose).mean() for pose in views) < 1.0


@pytest.mark.parametrize("mode", ["eye_in_hand", "eye_to_hand"])
def test_robot_poses_close_the_loop_and_keep_the_board_in_view(scene, mode):
    tools, views, truth = scene.hand_eye_poses(20, np.random.default_rng(1), mode)
    assert tools.shape == views.shape == (20, 4, 4)
    for tool, seen in zip(tools, views, strict=True):
        if mode == "eye_in_hand":
            assert np.allclose(tool @ truth["T_tool_camera"] @ seen, truth["T_base_board"])
        else:
            assert np.allclose(tool @ truth["T_tool_board"], truth["T_base_camera"] @ seen)
        assert scene.visible(seen).all()
    assert np.linalg.norm(tools[:, :3, 3], axis=1).max() < 1.5
    found = scene.board.detect(scene.render(views[0]))
    assert len(found.ids) == len(scene.board.points_m)


def test_noise_and_blur_are_what_they_say(scene):
    flat = np.full((480, 640, 3), 120, np.uint8)
    noisy = add_noise(flat, 2.0, np.random.default_rng(0))
    assert noisy.astype(float).std() == pytest.approx((4 + 1 / 12) ** 0.5, rel=0.01)  # rounding adds a twelfth
    assert abs(noisy.mean() - 120) < 0.02 and (noisy == noisy[..., :1]).all()
    assert np.array_equal(noisy, add_noise(flat, 2.0, np.random.default_rng(0)))
    pose = scene.hand_eye_poses(1, np.random.default_rng(2))[1][0]
    picture = scene.render(pose)
    sharp, soft = scene.board.detect(picture), scene.board.detect(add_blur(picture, 0.8))
    assert soft.edge_width_px > sharp.edge_width_px + 0.5
    assert np.linalg.norm(soft.corners_px - scene.project(pose, soft.points_m), axis=1).mean() < 0.02
    for blurred in (add_blur(picture, 2.5), add_blur(picture, 0.0, (9.0, 4.0))):
        refused = scene.board.detect(blurred)
        assert isinstance(refused, Rejection) and "blurred" in refused.reason


def test_what_cannot_be_drawn_is_refused(scene):
    with pytest.raises(ConfigError, match="keeps the picture in order"):
        CalibrationScene(scene.board, 640, 480, K, [-2.0, 0, 0, 0, 0])
    with pytest.raises(ConfigError, match="degrees of view"):
        CalibrationScene(scene.board, 640, 480, [[50, 0, 320], [0, 50, 240], [0, 0, 1]], np.zeros(5))
    with pytest.raises(ConfigError, match="eye_in_hand or eye_to_hand"):
        scene.hand_eye_poses(3, np.random.default_rng(0), "eye_on_hand")
