"""A film of the moving tool's view beside the robot's own track: for the time offset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from scipy.spatial.transform import Rotation

from dr_calibration import handeye
from dr_calibration.boards import Board, Rejection
from dr_calibration.collect import FEW_CORNERS
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import invert
from dr_calibration.rig import Rig
from dr_calibration.samples import Floats, Sample, ToolPath

SHORTEST_TURN_RAD_PER_S = 0.05
"""Spread of the tool's speed of rotation from which that is drawn."""
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


def curve(stamps: Floats, boards: Floats, path: ToolPath) -> dict[str, Floats]:
    """Correlation of the speeds of camera and robot at offsets (s): for the eye, not for the result.

    Speeds of rotation are compared, or of places where the tool hardly turns.

    Args:
        stamps, boards: what `see` gave.
        path: of the tool.
    """
    arm_s, arm = _speeds(path.stamps_s, path.poses)
    times, seen = _speeds(stamps, np.array([invert(pose) for pose in boards]))
    part = int(arm[0].std() < SHORTEST_TURN_RAD_PER_S)
    grid = np.linspace(-CURVE_S, CURVE_S, 101)
    values = [float(np.corrcoef(seen[part], np.interp(times - offset, arm_s, arm[part]))[0, 1]) for offset in grid]
    return {"offset_s": grid, "correlation": np.array(values)}


def _speeds(times: Floats, poses: Floats) -> tuple[Floats, tuple[Floats, Floats]]:
    """Times (n - 1,) between poses (n, 4, 4), and there the speeds in rad/s and m/s."""
    steps = np.diff(times)
    turns = Rotation.from_matrix(poses[:-1, :3, :3].transpose(0, 2, 1) @ poses[1:, :3, :3]).magnitude()
    ways = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    return (times[1:] + times[:-1]) / 2.0, (turns / steps, ways / steps)
