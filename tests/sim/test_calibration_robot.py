"""The robot whose camera is to be calibrated: its pictures show the truth, its driver does not; routes are driven."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_calibration.boards import Board, Detection
from dr_core.agent.route import ARRIVED_M, ARRIVED_RAD, Route, Traveller, Wiggle
from dr_core.errors import ConfigError
from dr_sim.calibrate_demo import BOARD, make_plan, route_poses, shifted
from dr_sim.calibration_robot import CalibrationArm
from dr_sim.robot import make_robot
from dr_sim.tasks import CALIBRATION_TASKS

CHARUCO = Board.parse(BOARD)
TICK_S = 0.05


@pytest.fixture(scope="module", params=CALIBRATION_TASKS)
def arm(request: pytest.FixtureRequest) -> Iterator[CalibrationArm]:
    made = CalibrationArm(CHARUCO, request.param)
    yield made
    made.close()


def tool(arm: CalibrationArm) -> np.ndarray:
    position, quaternion = arm.tool_pose
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_quat(quaternion).as_matrix(), position
    return pose


def seen(arm: CalibrationArm) -> np.ndarray:
    """T_camera_board of the picture, by the camera that is the truth."""
    found = CHARUCO.detect(arm.render())
    assert isinstance(found, Detection), found
    points, px = found.points_m.astype(np.float64), found.corners_px
    done, turn, move = cv2.solvePnP(points, px, arm.truth.K, arm.truth.distortion)
    assert done and len(found.ids) == len(CHARUCO.points_m)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], move[:, 0]
    return pose


def apart(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """m and rad."""
    between = np.linalg.inv(a) @ b
    return float(np.linalg.norm(between[:3, 3])), float(Rotation.from_matrix(between[:3, :3]).magnitude())


def drive(arm: CalibrationArm, traveller: Traveller, until: str, most_s: float) -> float:
    """Lead the arm until the traveller says so; returns the simulated time."""
    while until not in traveller.status:
        arm.command_twist(*np.split(traveller(arm.time_s, *arm.tool_pose), 2))
        arm.step(TICK_S)
        assert arm.time_s < most_s, traveller.status
    return arm.time_s


def test_pictures_show_the_truth_and_the_driver_does_not(arm: CalibrationArm) -> None:
    arm.reset(3)
    picture = arm.render()
    assert picture.shape == (480, 640, 3) and picture.dtype == np.uint8
    assert 30 < picture.mean() < 200 and picture.max() < 255, "paper is not over-exposed"
    poses = [seen(arm)]
    assert apart(poses[0], arm.truth.T_camera_board(tool(arm)))[0] < 0.5e-3
    for _ in range(10):  # the camera on the hand keeps up with a hand that moves
        arm.command_twist(np.array([0.1, 0.05, 0.05]), np.array([0.2, 0.1, -0.2]))
        arm.step(0.05)
    poses.append(seen(arm))
    far_m, turn_rad = apart(poses[1], arm.truth.T_camera_board(tool(arm)))
    assert far_m < 0.5e-3 and turn_rad < 3e-3
    assert apart(*poses)[0] > 0.03
    np.testing.assert_allclose(arm.truth.T_base_tool(arm.truth.T_camera_board(tool(arm))), tool(arm), atol=1e-12)
    factory, lens = arm.camera_matrix(), arm.truth.K
    assert factory[0, 0] / lens[0, 0] == pytest.approx(1.01) and np.abs(factory[:2, 2] - lens[:2, 2]).min() > 1
    assert arm.camera_pose is None and not np.array_equal(arm.camera_distortion, arm.truth.distortion)


def test_noise_belongs_to_the_seed(arm: CalibrationArm) -> None:
    pictures = []
    for seed in (1, 1, 2):
        arm.reset(seed)
        pictures.append(arm.render().astype(float))
    assert np.array_equal(pictures[0], pictures[1])
    assert (pictures[0] - pictures[2]).std() == pytest.approx(2.0 * 2**0.5, rel=0.05)


@pytest.mark.parametrize(("far_m", "turn_deg"), [(0.005, 0.0), (0.0, 1.0)])
def test_a_bump_moves_the_camera_by_as_much_as_it_says(far_m: float, turn_deg: float) -> None:
    options: dict[str, Any] = {"command_timeout_s": 0.2, "width": 640, "height": 480}
    arm = make_robot(CALIBRATION_TASKS[0], ["panda_joint1"], **options, board=CHARUCO, camera_bump=(far_m, turn_deg))
    assert isinstance(arm, CalibrationArm)
    # T_was_is of the camera, from where the board should be and where it is seen.
    between = arm.truth.T_camera_board(tool(arm)) @ np.linalg.inv(seen(arm))
    arm.close()
    moved_m, turned_rad = apart(np.eye(4), between)
    assert np.degrees(turned_rad) == pytest.approx(turn_deg, abs=0.15)
    assert moved_m == pytest.approx(far_m, abs=1e-3)


def test_what_is_no_such_robot_is_refused() -> None:
    options: dict[str, Any] = {"command_timeout_s": 0.2, "width": 640, "height": 480}
    with pytest.raises(ConfigError, match="a board"):
        make_robot(CALIBRATION_TASKS[0], [], **options)
    with pytest.raises(ConfigError, match="4 to 3"):
        make_robot(CALIBRATION_TASKS[0], [], **{**options, "height": 360}, board=CHARUCO)


@pytest.fixture(scope="module")
def plan(arm: CalibrationArm):  # type: ignore[no-untyped-def]
    task = CALIBRATION_TASKS[arm.truth.mode == "eye_to_hand"]
    return make_plan(task, CHARUCO, 1, Wiggle(26.0))


def test_a_plan_covers_the_picture_and_turns_about_two_axes(arm: CalibrationArm, plan) -> None:  # type: ignore[no-untyped-def]
    from dr_calibration.handeye import diversity

    assert len(plan.views) >= 25 and len(plan.poses) >= 20
    motion = diversity(plan.poses)
    assert motion.rotation_deg[1] > 15 and motion.score == 1.0 and not motion.advice
    angles = [apart(a, b)[1] for a in plan.poses for b in plan.poses]
    assert np.degrees(max(angles)) > 60
    corners = []
    for view in arm.truth.T_camera_board(plan.views):
        turn = cv2.Rodrigues(view[:3, :3])[0]
        px = cv2.projectPoints(CHARUCO.points_m, turn, view[:3, 3], arm.truth.K, arm.truth.distortion)[0]
        corners.append(px.reshape(-1, 2))
    x, y = np.concatenate(corners).T
    counts = np.histogram2d(x, y, [np.linspace(0, 640, 9), np.linspace(0, 480, 7)])[0]
    assert (counts > 0).mean() >= 0.8
    everywhere = np.concatenate([plan.views, plan.poses])[:, :3, 3]
    assert (everywhere > [0.25, -0.4, 0.012]).all() and (everywhere < [0.75, 0.4, 0.5]).all()


def test_the_arm_drives_the_route_of_a_plan(arm: CalibrationArm, plan) -> None:  # type: ignore[no-untyped-def]
    """All stops are reached without a gate, far from the joints' limits, and the end is where it should be."""
    arm.reset(0)
    few = np.concatenate([plan.views[:4], plan.middle[None]])
    wiggle = Wiggle(4.0)
    route = Route(tuple(map(tuple, route_poses(few))), dwell_s=0.4, linear_m_s=0.2, angular_rad_s=0.5, wiggle=wiggle)
    traveller = Traveller(route, 1.0, 1.0)
    stops = []
    for number in range(1, len(few) + 1):
        drive(arm, traveller, f"at pose {number} of {len(few)}", 60.0)
        stops.append(apart(tool(arm), few[number - 1]))
        near = np.minimum(arm.joint_positions[:7] - arm.joint_lower_rad, arm.joint_upper_rad - arm.joint_positions[:7])
        assert near.min() > 0.1
    assert np.max(stops, axis=0) == pytest.approx([0, 0], abs=1.2 * max(ARRIVED_M, ARRIVED_RAD))
    began_s = drive(arm, traveller, "wiggle", 60.0) - TICK_S
    way = []
    while traveller.status != "route done":
        arm.command_twist(*np.split(traveller(arm.time_s, *arm.tool_pose), 2))
        arm.step(TICK_S)
        way.append(apart(tool(arm), shifted(plan.middle, wiggle.offset(arm.time_s - began_s))))
    assert np.median(way, axis=0) == pytest.approx([0, 0], abs=0.015)
    for _ in range(40):
        arm.command_twist(*np.split(traveller(arm.time_s, *arm.tool_pose), 2))
        arm.step(TICK_S)
    assert apart(tool(arm), plan.middle) == pytest.approx([0, 0], abs=2e-4)
