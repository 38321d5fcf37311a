"""A film of the moving tool's view, compared with the robot's own track: for the time offset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from dr_calibration import handeye
from dr_calibration import time_offset as offsets
from dr_calibration.boards import Board, Rejection
from dr_calibration.collect import FEW_CORNERS
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, invert
from dr_calibration.rig import Rig
from dr_calibration.samples import Floats, Sample, ToolPath

SHORTEST_TURN_RAD_PER_S = 0.05
"""Spread of the tool's speed of rotation from which it is compared."""
CURVE_S = 0.5


def see(samples: Iterable[Sample], board: Board, rig: Rig) -> tuple[Floats, Floats, Counter[str]]:
    """Stamps (n,) s and T_camera_board (n, 4, 4) of the pictures that show the board; why others do not."""
    stamps, poses, rejected = [], [], Counter[str]()
    lens = rig.intrinsics
    for sample in samples:
        rig.check(width=sample.size[0], height=sample.size[1])
        found = board.detect(sample.picture)
        if isinstance(found, Rejection):
            rejected[found.reason.partition(":")[0]] += 1
        elif len(found.ids) < FEW_CORNERS:
            rejected["too few corners"] += 1
        else:
            try:
                poses.append(handeye.board_pose(found, lens.K, lens.distortion))
                stamps.append(sample.stamp_s)
            except CalibrationError as error:
                rejected[error.found] += 1
    return np.array(stamps), np.array(poses).reshape(-1, 4, 4), rejected


Signals = tuple[Floats, Floats, Floats, Floats]


def compare(
    stamps: Floats, boards: Floats, path: ToolPath, rig: Rig, known: dict[str, Any], board: Board
) -> tuple[offsets.TimeOffset, str, Signals]:
    """The best determined of the comparisons that the rig allows, what it compares, and its signals."""
    centre = board.points_m.mean(0)
    tools = path.poses
    turns = Rotation.from_matrix(tools[:, :3, :3])
    ways: dict[str, tuple[Floats, Floats]] = {}
    if rig.pose and rig.pose.of == "tool":
        ways["places of the camera"] = (
            np.array([invert(pose)[:3, 3] for pose in boards]), (tools @ rig.pose.T)[:, :3, 3]
        )  # fmt: skip
    elif rig.pose and (tool_board := known.get("T_tool_board")) is not None:
        on_tool = _pose_of(tool_board)[:3] @ np.append(centre, 1.0)
        ways["places of the board"] = _points(boards, centre), _points(tools, on_tool)
    if _turns_enough(path):
        ways["rotations"] = Rotation.from_matrix(boards[:, :3, :3]).as_quat(), turns.as_quat()
    elif not ways:
        ways["places"] = _points(boards, centre), tools[:, :3, 3]
    found: list[tuple[offsets.TimeOffset, str, Signals]] = []
    refusals: list[CalibrationError] = []
    for name, (seen, arm) in ways.items():
        signals = (stamps, seen, path.stamps_s, arm)
        try:
            found.append((offsets.estimate(*signals), name, signals))
        except CalibrationError as error:
            refusals.append(error)
    if not found:
        raise refusals[-1]
    return min(found, key=lambda one: one[0].sd_s)


def _turns_enough(path: ToolPath) -> bool:
    turn = path.poses[:-1, :3, :3].transpose(0, 2, 1) @ path.poses[1:, :3, :3]
    angles = np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1.0) / 2.0, -1.0, 1.0))
    return bool((angles / np.diff(path.stamps_s)).std() > SHORTEST_TURN_RAD_PER_S)


def _pose_of(value: Any) -> Pose:
    return np.asarray(value, np.float64).reshape(4, 4)


def _points(poses: Floats, point: Floats) -> Floats:
    """(N, 3) of one point (3,) under poses (N, 4, 4)."""
    return np.asarray(poses[:, :3, :3] @ point + poses[:, :3, 3])


def curve(camera_s: Floats, camera: Floats, robot_s: Floats, robot: Floats) -> dict[str, Floats]:
    """Correlation of the speeds of camera and robot at offsets (s): for the eye, not for the result."""

    def speeds(times: Floats, values: Floats) -> tuple[Floats, Floats]:
        if values.shape[1] == 4:
            lengths = 2.0 * np.arccos(np.clip(np.abs((values[1:] * values[:-1]).sum(1)), 0.0, 1.0))
        else:
            lengths = np.linalg.norm(np.diff(values, axis=0), axis=1)
        return (times[1:] + times[:-1]) / 2.0, lengths / np.diff(times)

    times, seen = speeds(camera_s, camera)
    arm_s, arm = speeds(robot_s, robot)
    grid = np.linspace(-CURVE_S, CURVE_S, 101)
    values = [float(np.corrcoef(seen, np.interp(times - offset, arm_s, arm))[0, 1]) for offset in grid]
    return {"offset_s": grid, "correlation": np.array(values)}
