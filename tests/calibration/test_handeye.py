"""Hand-eye calibration against known truth: corners by the camera model, with noise on corners and robot poses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dr_calibration import handeye
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, angle_between_rad, distance_m, from_parts, invert, to_rodrigues

K = np.array([[610.0, 0, 322], [0, 612, 238], [0, 0, 1]])
LENS = np.array([0.05, -0.1, 0.0005, -0.0003, 0.02])
COLUMNS, ROWS, SQUARE_M = 8, 5, 0.025
POINTS = SQUARE_M * np.array([[x, y, 0.0] for y in range(ROWS) for x in range(COLUMNS)])


@dataclass(frozen=True)
class Scene:
    mode: handeye.Mode
    tool: NDArray[np.float64]  # T_base_tool (N, 4, 4)
    views: list[handeye.View]
    pose: NDArray[np.float64]
    board_pose: NDArray[np.float64]

    def solve(self, seed: int = 0) -> handeye.HandEye:
        rng = np.random.default_rng(seed)
        return handeye.solve(self.tool, self.views, mode=self.mode, rng=rng, K=K, distortion=LENS)


def disturbed(pose: Pose, mm: float, deg: float, rng: np.random.Generator) -> Pose:
    turn = Rotation.from_rotvec(np.radians(deg) * rng.normal(size=3)).as_matrix()
    return from_parts(turn @ pose[:3, :3], pose[:3, 3] + 1e-3 * mm * rng.normal(size=3))


def scene(
    mode: handeye.Mode,
    seed: int,
    n: int = 20,
    pixel_noise: float = 0.5,
    robot_mm: float = 0.0,
    robot_deg: float = 0.0,
    tilt_deg: tuple[float, float, float] = (30.0, 30.0, 30.0),
    shift: float = 1.0,
    square: float = 1.0,
) -> Scene:
    """Boards 0.4 to 0.7 m before the camera, tilted about the camera's axes; `square`: stated over true size."""
    rng = np.random.default_rng(seed)

    def random_pose(half_m: float, centre_m: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Pose:
        return from_parts(Rotation.from_quat(rng.normal(size=4)), rng.uniform(-half_m, half_m, 3) + centre_m)

    in_hand = mode == "eye_in_hand"
    pose = random_pose(0.1) if in_hand else random_pose(0.5, (0.6, 0.0, 0.5))
    board_pose = random_pose(0.3) if in_hand else random_pose(0.08)
    tool: list[Pose] = []
    views: list[handeye.View] = []
    while len(views) < n:
        turn = Rotation.from_rotvec(np.radians(rng.uniform(-1.0, 1.0, 3) * tilt_deg))
        centre = np.array([0.0, 0, 0.55]) + shift * rng.uniform(-1.0, 1.0, 3) * [0.12, 0.08, 0.15]
        camera_board = from_parts(turn, centre - turn.apply(POINTS.mean(0)))
        corners = cv2.projectPoints(POINTS, *to_rodrigues(camera_board), K, LENS)[0][:, 0]
        if corners.min() < 5 or corners[:, 0].max() > 635 or corners[:, 1].max() > 475:
            continue
        arm = board_pose @ invert(pose @ camera_board)
        tool.append(disturbed(arm if in_hand else invert(arm), robot_mm, robot_deg, rng))
        views.append(handeye.View(POINTS * square, corners + pixel_noise * rng.normal(size=corners.shape)))
    return Scene(mode, np.array(tool), views, pose, board_pose)


def errors(result: handeye.HandEye, truth: Scene) -> tuple[float, float]:
    """mm, deg"""
    return 1e3 * distance_m(result.pose, truth.pose), float(np.degrees(angle_between_rad(result.pose, truth.pose)))


@pytest.mark.parametrize("mode", ["eye_in_hand", "eye_to_hand"])
def test_without_noise_the_truth_is_found_and_the_direction_is_as_stated(mode: handeye.Mode) -> None:
    truth = scene(mode, seed=1, n=8, pixel_noise=0.0)
    result = truth.solve()
    np.testing.assert_allclose(result.pose, truth.pose, atol=1e-7)
    np.testing.assert_allclose(result.board_pose, truth.board_pose, atol=1e-7)
    # By the stated direction a point of the board comes to the same place by both ways.
    camera_board = handeye.board_pose(truth.views[0], K, LENS)
    arm = truth.tool[0] if mode == "eye_in_hand" else invert(truth.tool[0])
    np.testing.assert_allclose(arm @ result.pose @ camera_board, result.board_pose, atol=1e-6)
    assert result.name == ("T_tool_camera" if mode == "eye_in_hand" else "T_base_camera")
    # Every closed-form solver is exact without noise.
    assert [row.name for row in result.solvers] == ["tsai", "park", "horaud", "andreff", "daniilidis"]
    assert all(row.distance_mm < 1e-3 and row.angle_deg < 1e-4 for row in result.solvers)


@pytest.mark.skipif(not hasattr(cv2, "calibrateHandEye"), reason="OpenCV 5.0.0 does not export calibrateHandEye")
def test_closed_forms_agree_with_opencv() -> None:
    truth = scene("eye_in_hand", seed=2, n=12, pixel_noise=0.1)
    seen = np.array([handeye.board_pose(view, K, LENS) for view in truth.views])
    for name, found in handeye._closed_form(truth.tool, seen).items():
        method = getattr(cv2, f"CALIB_HAND_EYE_{name.upper()}")
        rotation, shift = cv2.calibrateHandEye(  # type: ignore[attr-defined, unused-ignore]
            truth.tool[:, :3, :3], truth.tool[:, :3, 3], seen[:, :3, :3], seen[:, :3, 3], method=method
        )
        assert distance_m(found.X, from_parts(rotation, shift)) < 1e-3


@pytest.mark.parametrize("mode", ["eye_in_hand", "eye_to_hand"])
def test_derivatives_agree_with_differences(mode: handeye.Mode) -> None:
    truth = scene(mode, seed=3, n=5)
    problem = handeye._problem(truth.tool, truth.views, truth.mode, K, LENS, None)
    start = handeye._Solution(truth.pose, truth.board_pose, 1.02)
    _, derivative, _ = problem.evaluate(start, slice(None))
    for i in range(13):
        step = 1e-6 * np.eye(13)[i]
        after, before = (problem.evaluate(handeye._moved(start, sign * step), slice(None))[0] for sign in (1, -1))
        difference = (after - before) / 2e-6
        np.testing.assert_allclose(derivative[..., i], difference, atol=1e-5 * np.abs(difference).max())
    start = replace(start, scale=1.0)  # of what the robot says, and not of its errors
    by_robot = problem.evaluate(start, slice(None))[2]
    for i in range(6):
        sides = []
        for step in (1e-6 * np.eye(6)[i], -1e-6 * np.eye(6)[i]):
            turn = Rotation.from_rotvec(step[:3]).as_matrix()
            tool = np.array([from_parts(turn @ pose[:3, :3], pose[:3, 3] + step[3:]) for pose in truth.tool])
            other = handeye._problem(tool, truth.views, mode, K, LENS, None)
            sides.append(other.evaluate(start, slice(None))[0])
        difference = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(by_robot[..., i], difference, atol=1e-5 * np.abs(difference).max())


@pytest.mark.parametrize("mode", ["eye_in_hand", "eye_to_hand"])
def test_the_noise_of_corners_and_of_the_robot_are_told_apart(mode: handeye.Mode) -> None:
    """Sharp corners and a robot that is less so: weighing them makes the result as good as the robot allows."""
    robots, plain, weighed, covered = [], [], [], []
    for seed in range(5):
        truth = scene(mode, seed=200 + seed, pixel_noise=0.04, robot_mm=0.1, robot_deg=0.02)
        result = truth.solve()
        assert result.inliers.all()
        robots.append([result.robot_sd_mm, result.robot_sd_deg])
        weighed.append(errors(result, truth))
        covered += [weighed[-1][0] < 1.8 * result.total_sd_mm, weighed[-1][1] < 1.8 * result.total_sd_deg]
        problem = handeye._problem(truth.tool, truth.views, mode, K, LENS, None)
        start = handeye._Solution(result.pose, result.board_pose)
        other = handeye._refine(problem, start, result.inliers, free_scale=False)
        plain.append(errors(replace(result, pose=other.X), truth))
        noise = handeye._noise(problem, start, result.inliers)
        assert noise.corner == pytest.approx(0.04, rel=0.15)
    np.testing.assert_allclose(np.mean(robots, axis=0), [0.1, 0.02], rtol=0.2)
    assert (np.mean(weighed, axis=0) < 0.8 * np.mean(plain, axis=0)).all() and sum(covered) >= 8


@pytest.mark.parametrize(("mode", "robot_mm", "robot_deg"), [("eye_in_hand", 0.0, 0.0), ("eye_to_hand", 0.1, 0.02)])
def test_twenty_poses_are_within_a_millimetre_and_a_tenth_of_a_degree_and_the_stated_sd_holds(
    mode: handeye.Mode, robot_mm: float, robot_deg: float
) -> None:
    covered = []
    for seed in range(5):
        truth = scene(mode, seed=100 + seed, robot_mm=robot_mm, robot_deg=robot_deg)
        result = truth.solve()
        mm, deg = errors(result, truth)
        assert mm < 1.0 and deg < 0.1
        assert result.inliers.all()
        assert abs(result.scale - 1.0) < 4 * result.scale_sd < 0.01
        assert 0.05 < result.total_sd_mm < 1.0 and 0.005 < result.total_sd_deg < 0.1
        covered += [mm < handeye.COVERAGE_FACTOR * result.total_sd_mm, deg < 1.8 * result.total_sd_deg]
    assert sum(covered) >= 8  # of 10; 0.95 each


@pytest.mark.parametrize(("wrong_mm", "wrong_deg"), [(100.0, 15.0), (10.0, 2.0)])
def test_wrong_poses_are_found_and_left_out(wrong_mm: float, wrong_deg: float) -> None:
    truth = scene("eye_in_hand", seed=7, robot_mm=0.1, robot_deg=0.02)
    wrong = [2, 11, 17]  # 15 %
    tool = truth.tool.copy()
    for i in wrong:
        tool[i] = disturbed(tool[i], wrong_mm, wrong_deg, np.random.default_rng(i))
    result = replace(truth, tool=tool).solve()
    assert np.flatnonzero(~result.inliers).tolist() == wrong
    mm, deg = errors(result, truth)
    assert mm < 3.0 and deg < 0.3
    assert "3 of 20 views disagree and are left out: 2, 11, 17" in result.advice


def test_held_out_views_and_the_dictionary() -> None:
    truth = scene("eye_in_hand", seed=8, n=30)
    used = replace(truth, tool=truth.tool[:20], views=truth.views[:20])
    result = used.solve()
    held_out = handeye.verify(result, truth.tool[20:], truth.views[20:], K=K, distortion=LENS)
    assert held_out.views == 10
    # 0.5 px in each of x and y, and little more.
    assert 0.6 < held_out.residual < 0.8 and 0.6 < result.cross_validation.residual < 0.85
    assert held_out.translation_mm < 3.0 and held_out.rotation_deg < 1.0
    moved = from_parts(np.eye(3), [0.005, 0, 0]) @ result.pose
    worse = handeye.verify(replace(result, pose=moved), truth.tool[20:], truth.views[20:], K=K, distortion=LENS)
    assert worse.residual > 2 * held_out.residual
    plain = result.to_dict()
    assert plain["T_tool_camera"] == result.pose.tolist() and plain["mode"] == "eye_in_hand" and not plain["advice"]


def test_poses_of_the_board_alone_are_enough() -> None:
    truth = scene("eye_to_hand", seed=9)
    seen = np.array([handeye.board_pose(view, K, LENS) for view in truth.views])
    result = handeye.solve(truth.tool, mode=truth.mode, rng=np.random.default_rng(0), T_camera_board=seen)
    mm, deg = errors(result, truth)
    assert result.unit == "mm" and mm < 2.0 and deg < 0.2 and mm < 3 * result.total_sd_mm


@pytest.mark.parametrize("mode", ["eye_in_hand", "eye_to_hand"])
def test_degenerate_motion_is_refused_and_the_missing_motion_named(mode: handeye.Mode) -> None:
    # Turning about the camera's y axis alone; the tool's axis is chosen to be its z axis.
    truth = scene(mode, seed=10, tilt_deg=(0.0, 30.0, 0.0), robot_deg=0.02)
    axis = handeye.diversity(truth.tool).axes[0]
    aligned = from_parts(Rotation.align_vectors(axis[None], [[0.0, 0, 1]])[0], np.zeros(3))
    one_axis = replace(truth, tool=truth.tool @ aligned)
    with pytest.raises(
        CalibrationError, match=r"about its z axis alone .* turned by 15 to 30 deg about its x or y axis"
    ):
        one_axis.solve()
    with pytest.raises(CalibrationError, match="two of its axes: missing are all rotations"):
        scene(mode, seed=11, tilt_deg=(1.0, 1.0, 1.0)).solve()


def test_advice_names_what_would_help() -> None:
    small = scene("eye_to_hand", seed=12, tilt_deg=(9.0, 9.0, 9.0)).solve()
    assert any("rotations are small" in line for line in small.advice) and small.diversity.score < 1.0
    tool = np.array([from_parts(Rotation.from_euler("xy", [i % 4, i // 4]), [0.01 * i, 0, 0]) for i in range(16)])
    assert any("translations lie along one line, x of the base" in line for line in handeye.diversity(tool).advice)


@pytest.mark.parametrize("square", [1.04, 0.8])
def test_a_wrong_square_size_is_refused_with_the_factor(square: float) -> None:
    with pytest.raises(CalibrationError, match="size of the board") as caught:
        scene("eye_in_hand", seed=13, square=square, robot_mm=0.1, robot_deg=0.02).solve()
    assert float(caught.value.found.split()[3]) == pytest.approx(square, abs=0.005)


def test_turning_around_the_board_alone_hides_its_size_and_is_said() -> None:
    truth = scene("eye_in_hand", seed=17, shift=0.0)
    result = truth.solve()
    assert errors(result, truth)[0] < 2.0 and result.scale == 1.0 and result.to_dict()["scale_sd"] is None
    assert any("square size could not be checked" in line for line in result.advice)


def test_mistakes_in_the_poses_are_refused_with_the_reason() -> None:
    truth = scene("eye_in_hand", seed=14)
    numbers = Rotation.from_matrix(truth.tool[:, :3, :3]).as_quat()

    def refused(text: str, **changes: Any) -> None:
        with pytest.raises(CalibrationError, match=text):
            replace(truth, **changes).solve()

    w_first = truth.tool.copy()
    w_first[:, :3, :3] = Rotation.from_quat(numbers[:, [3, 0, 1, 2]]).as_matrix()
    refused("likely quaternions in another order", tool=w_first)
    refused("likely quaternions in another order", tool=np.array([invert(p) for p in w_first]), mode="eye_to_hand")
    refused("likely inverted poses", tool=np.array([invert(pose) for pose in truth.tool]))
    refused("likely inverted poses", mode="eye_to_hand")
    refused("no usual mistake", tool=truth.tool[np.random.default_rng(0).permutation(20)])

    millimetres, sheared, missing = truth.tool.copy(), truth.tool.copy(), truth.tool.copy()
    millimetres[:, :3, 3] *= 1000
    refused("metres, not millimetres", tool=millimetres)
    sheared[4, 0, 1] += 0.01
    refused(r"T_base_tool\[4\]: expected a rotation", tool=sheared)
    missing[3, 0, 3] = np.nan
    refused("not finite", tool=missing)
    refused("5 different robot poses or more", tool=truth.tool[[0, 1, 2, 3] * 5])
    refused("20 robot poses and 4 views", views=truth.views[:4])
    refused("mode: expected eye_in_hand or eye_to_hand", mode="in_hand")
    views = list(truth.views)
    views[6] = handeye.View(POINTS[:COLUMNS], views[6].corners_px[:COLUMNS])
    refused("view 6: expected corners over an area", views=views)
    refused("view 0: .* millimetres", views=[handeye.View(1e3 * v.points_m, v.corners_px) for v in truth.views])


def test_small_arms_in_millimetres_are_noticed_by_the_scale() -> None:
    """Translations of a few units pass as metres; the board's motion tells."""
    truth = scene("eye_in_hand", seed=15)
    tool = truth.tool.copy()
    tool[:, :3, 3] *= 1000 * 0.02 / np.abs(tool[:, :3, 3]).max()  # below 20 "m"
    with pytest.raises(CalibrationError, match=r"size of the board|same rigid motion"):
        replace(truth, tool=tool).solve()


def test_half_of_the_views_wrong_is_refused() -> None:
    truth = scene("eye_in_hand", seed=16)
    tool = truth.tool.copy()
    for i in range(12):
        tool[i] = disturbed(tool[i], 100.0, 15.0, np.random.default_rng(i))
    with pytest.raises(CalibrationError, match=r"half of all that agree|same rigid motion"):
        replace(truth, tool=tool).solve()
