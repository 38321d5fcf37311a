"""How much later the camera stamps a moment than the robot does, from one recording of a moving tool.

The camera's signal is compared with the robot's at times shifted by every candidate offset. The comparison needs no
hand-eye pose: it is made on speeds, which are the same in every frame. First the correlation over the whole search
range is looked at, where a wrong or ambiguous peak shows; then the offset is refined by least squares between stamps,
far below one frame. Whole poses are the best to give: whatever the hand-eye pose is, the board's pose by the camera is
a linear map of the tool's by the robot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline
from scipy.optimize import minimize_scalar
from scipy.spatial.transform import Rotation, Slerp

from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import check_pose

Floats = NDArray[np.float64]

SPAN_S = 0.1
"""Speeds are displacements over about this time: long against noise, short against the motion of an arm."""
SHORTEST_S = 5.0
BLOCK_S = 1.0
WEAKEST_M_PER_S = 0.02
WEAKEST_RAD_PER_S = 0.05
WEAKEST_CORRELATION = 0.6
SECOND_PEAK = 0.85
"""A second peak above this share of the first makes the offset ambiguous."""
UNCERTAIN_S = 0.01
STRAIGHT = 0.98
"""Share of the positions' variance that a linear map must explain before positions themselves refine the offset."""


@dataclass(frozen=True)
class TimeOffset:
    """``offset_s`` is the camera's stamp minus the robot's stamp of the same moment: subtract it from camera stamps."""

    offset_s: float
    sd_s: float
    """Standard deviation, by leaving out blocks of one second; errors are below twice this in about 95 % of cases."""
    correlation: float
    """Of the speeds at the offset, 0 to 1."""
    second_peak: float
    """The next highest peak's share of the correlation, 0 where there is none."""
    frames: int
    duration_s: float

    def corrected(self, camera_times_s: ArrayLike) -> Floats:
        """Camera stamps on the robot's clock."""
        return np.asarray(camera_times_s, np.float64) - self.offset_s

    def to_dict(self) -> dict[str, Any]:
        """Numbers alone, for YAML and the report."""
        return vars(self).copy()


@dataclass(frozen=True)
class _Signal:
    """Stamped poses (n, 4, 4), positions (n, 3) m, orientations as quaternions (n, 4), or speeds (n,)."""

    times_s: Floats
    values: Floats

    @property
    def kind(self) -> str:
        columns = self.values.size // len(self.values)
        return {1: "speed", 3: "position", 4: "orientation", 16: "pose"}[columns]

    def part(self, kind: str) -> _Signal:
        """Of poses, the positions or the orientations."""
        if kind == "position":
            return _Signal(self.times_s, self.values[:, :3, 3])
        return _Signal(self.times_s, Rotation.from_matrix(self.values[:, :3, :3]).as_quat())

    def interpolator(self) -> Callable[[Floats], Floats]:
        """At any time within the stamps: positions (n, 3) or rotation matrices (n, 3, 3)."""
        if self.kind == "orientation":
            slerp = Slerp(self.times_s, Rotation.from_quat(self.values))
            return lambda times: np.asarray(slerp(times).as_matrix())
        spline = make_interp_spline(self.times_s, self.values, k=3)
        return lambda times: np.asarray(spline(times))


def _lengths(before: Floats, after: Floats, kind: str) -> Floats:
    """(n,): m between positions or rad between rotation matrices."""
    if kind == "orientation":
        return np.asarray(Rotation.from_matrix(before.transpose(0, 2, 1) @ after).magnitude())
    return np.asarray(np.linalg.norm(after - before, axis=1))


def _signal(times_s: ArrayLike, values: ArrayLike, name: str) -> _Signal:
    times, array = np.asarray(times_s, np.float64), np.asarray(values, np.float64)

    def refuse(expected: str, found: str, next_step: str) -> CalibrationError:
        return CalibrationError(f"{name} motion", expected=expected, found=found, next_step=next_step)

    if times.ndim != 1 or array.shape not in {(len(times), *rest) for rest in ((), (3,), (4,), (4, 4))}:
        raise refuse(
            "stamps (n,) with poses (n, 4, 4), positions (n, 3), quaternions (n, 4) or speeds (n,)",
            f"shapes {times.shape} and {array.shape}",
            "give one value per stamp",
        )
    if not (np.isfinite(times).all() and np.isfinite(array).all()):
        raise refuse("finite numbers", "some that are not", "leave out the frames without a detection")
    if len(times) < 30:
        raise refuse(f"{SHORTEST_S:g} s of motion", f"{len(times)} samples", "record longer")
    steps = np.diff(times)
    if (steps <= 0.0).any():
        first = int(np.argmax(steps <= 0.0)) + 1
        raise refuse("stamps that increase", f"{steps[first - 1]:g} s at sample {first}", "sort, and drop repeats")
    if float(np.median(steps)) > 1.0:
        raise refuse(
            "stamps in seconds", f"{np.median(steps):g} between samples", "divide nanoseconds by 1e9 before the call"
        )
    if array.shape[1:] == (4,) and np.abs(np.linalg.norm(array, axis=-1) - 1.0).max() > 1e-2:
        raise refuse("unit quaternions x, y, z, w", "other lengths", "normalise them")
    if array.ndim == 3:
        array = np.stack([check_pose(pose, f"{name} pose {i}") for i, pose in enumerate(array)])
    return _Signal(times, array)


def _fit(regressors: Floats, response: Floats) -> Floats:
    """(n, q): squared residuals of the best linear map from regressors (n, p) and a constant to response (n, q)."""
    matrix = np.concatenate([regressors - regressors.mean(0), np.ones((len(regressors), 1))], axis=1)
    solution = np.linalg.lstsq(matrix, response, rcond=1e-9)[0]
    return np.asarray((response - matrix @ solution) ** 2)


def _rows(poses: Floats) -> Floats:
    """(n, 12): translation (m) and the nine numbers of the rotation."""
    return np.concatenate([poses[:, :3, 3], poses[:, :3, :3].reshape(-1, 9)], axis=1)


def estimate(
    camera_times_s: ArrayLike,
    camera: ArrayLike,
    robot_times_s: ArrayLike,
    robot: ArrayLike,
    *,
    search_s: float = 0.5,
) -> TimeOffset:
    """The offset between the stamps of camera and robot.

    Args:
        camera_times_s: (n,) increasing; dropped frames may be missing.
        camera: of a tag or board poses T_camera_board (n, 4, 4), or in the camera's frame positions (n, 3) m or
            orientations (n, 4) x y z w, or speeds (n,) of any unit, for example optical flow: the speed at a stamp is
            the mean since the stamp before.
        robot_times_s: (m,) increasing, on its own clock.
        robot: poses T_base_tool (m, 4, 4), for a camera's poses; or of the tool positions (m, 3) m, for a camera's
            positions or speeds; or orientations (m, 4), for a camera's orientations or, where the camera turns in
            place, speeds.
        search_s: offsets from minus to plus this are searched.

    Poses compare exactly however the tool moves, with the camera on the tool or beside it. Positions compare exactly
    where the tool moves without turning.

    Raises:
        CalibrationError: input of other shapes, unsorted or not in seconds; clocks that do not overlap; less than
            5 s in common; too little or unrelated motion; motion that repeats itself, so that several offsets fit; an
            offset at the end of the search range.
    """
    seen, arm = _signal(camera_times_s, camera, "camera"), _signal(robot_times_s, robot, "robot")
    if arm.kind == "speed" or (seen.kind != arm.kind and (seen.kind != "speed" or arm.kind == "pose")):
        raise CalibrationError(
            "time offset",
            expected="poses with poses, positions with positions, orientations with orientations, or a camera's speeds "
            "with one of these two",
            found=f"{seen.kind}s of the camera and {arm.kind}s of the robot",
            next_step="give matching signals",
        )
    if not 0.0 < search_s <= 10.0:
        raise CalibrationError(
            "search_s", expected="above 0 to 10 s", found=f"{search_s:g}", next_step="0.5 suits most rigs"
        )
    low, high = arm.times_s[0] + search_s, arm.times_s[-1] - search_s
    inside = (seen.times_s >= low) & (seen.times_s <= high)
    times = seen.times_s[inside]
    duration = float(times[-1] - times[0]) if len(times) else 0.0
    if duration < SHORTEST_S or len(times) < 60:
        raise CalibrationError(
            "time offset",
            expected=f"{SHORTEST_S:g} s and 60 frames within the robot's recording less {search_s:g} s at each end",
            found=f"{duration:.1f} s with {len(times)} frames"
            + ("" if len(times) else f" (the clocks are {abs(seen.times_s[0] - arm.times_s[0]):.6g} s apart)"),
            next_step="record both together and longer" if len(times) else "use stamps of one clock, or nearly",
        )

    if seen.kind == "pose":
        # Both parts are looked at, for a tool may only turn or only shift: the one that fits better leads.
        found: list[_Coarse] = []
        refusals: list[CalibrationError] = []
        for kind in ("orientation", "position"):
            try:
                found.append(_coarse(seen.part(kind), arm.part(kind), inside, search_s))
            except CalibrationError as error:
                refusals.append(error)
        if not found:
            raise refusals[0]
        coarse = max(found, key=lambda one: one.correlation)
    else:
        coarse = _coarse(seen, arm, inside, search_s)
    offset, sd = _refine(*_comparison(seen, arm, inside, coarse), coarse.offset_s, 2.0 * coarse.step_s, search_s)
    if sd > UNCERTAIN_S:
        raise CalibrationError(
            "time offset",
            expected=f"a standard deviation below {1e3 * UNCERTAIN_S:g} ms",
            found=f"{1e3 * sd:.1f} ms",
            next_step="record longer, move faster, and give poses, or move without turning (positions)",
        )
    return TimeOffset(offset, sd, coarse.correlation, coarse.second, len(times), duration)


@dataclass(frozen=True)
class _Coarse:
    """Where the speeds fit best on the grid of offsets."""

    offset_s: float
    step_s: float
    """Between offsets of the grid."""
    correlation: float
    second: float
    starts_s: Floats
    """(k,) of the intervals, on the camera's clock."""
    speeds: Floats
    """(k,) over the intervals, by the camera."""
    robot_speed: Callable[[float], Floats]
    """(k,) the same by the robot, at an offset."""


def _coarse(seen: _Signal, arm: _Signal, inside: NDArray[np.bool_], search_s: float) -> _Coarse:
    """Correlates the speeds at all offsets; refuses what cannot tell. `inside` (n,): the camera's stamps to use."""
    times, values = seen.times_s[inside], seen.values[inside]
    # Displacements over `stride` frames, of both signals over the same intervals: no bias by smoothing.
    stride = max(1, round(SPAN_S / float(np.median(np.diff(times)))))
    start, end = times[:-stride], times[stride:]
    whole = end - start < 2.0 * SPAN_S + 2.0 * float(np.median(np.diff(times)))  # not over a gap in the recording
    start, end = start[whole], end[whole]
    if seen.kind == "speed":
        way = np.concatenate([[0.0], np.cumsum(values[1:] * np.diff(times))])
        lengths = way[stride:] - way[:-stride]
    else:
        poses = Rotation.from_quat(values).as_matrix() if seen.kind == "orientation" else values
        lengths = _lengths(poses[:-stride], poses[stride:], seen.kind)
    camera_speed = lengths[whole] / (end - start)
    at = arm.interpolator()

    def robot_speed(offset: float) -> Floats:
        return _lengths(at(start - offset), at(end - offset), arm.kind) / (end - start)

    speed = robot_speed(0.0)
    weakest, unit = (WEAKEST_RAD_PER_S, "rad/s") if arm.kind == "orientation" else (WEAKEST_M_PER_S, "m/s")
    if float(speed.std()) < weakest or float(camera_speed.std()) == 0.0:
        raise CalibrationError(
            "time offset",
            expected=f"speeds that vary by {weakest:g} {unit} or more",
            found=f"{float(speed.std()):.2g} {unit} by the robot",
            next_step="move the tool faster, with stops and changes of direction",
        )

    frame_s = float(np.median(np.diff(times)))
    grid = np.linspace(-search_s, search_s, 2 * int(np.ceil(2.0 * search_s / frame_s)) + 1)
    normal = (camera_speed - camera_speed.mean()) / camera_speed.std()

    def correlate(offset: float) -> float:
        other = robot_speed(offset)
        return float(np.mean(normal * (other - other.mean())) / max(float(other.std()), 1e-12))

    curve = np.array([correlate(offset) for offset in grid])
    peak = int(np.argmax(curve))
    correlation = float(curve[peak])
    if correlation < WEAKEST_CORRELATION:
        raise CalibrationError(
            "time offset",
            expected=f"speeds that correlate by {WEAKEST_CORRELATION:g} or more",
            found=f"{correlation:.2f} at best",
            next_step="check that both see the same motion, move faster, or search beyond "
            f"{search_s:g} s if the clocks may be farther apart",
        )
    if peak in (0, len(grid) - 1):
        raise CalibrationError(
            "time offset",
            expected=f"an offset within {search_s:g} s",
            found="the best one at the end of that range",
            next_step="search a wider range",
        )
    inner = np.flatnonzero((curve[1:-1] >= curve[:-2]) & (curve[1:-1] > curve[2:])) + 1
    others = curve[[i for i in (*inner, 0, len(grid) - 1) if abs(i - peak) > 2]]
    # An end of the range counts only where it is not still the slope of the peak itself.
    valley = [curve[min(i, peak) : max(i, peak) + 1].min() for i in (*inner, 0, len(grid) - 1) if abs(i - peak) > 2]
    separate = others[np.asarray(valley) < others - 0.02]
    second = max(float(separate.max()), 0.0) / correlation if len(separate) else 0.0
    if second > SECOND_PEAK:
        raise CalibrationError(
            "time offset",
            expected="motion that fits at one offset",
            found=f"a second offset that fits {second:.2f} times as well",
            next_step="vary the motion: periodic motion repeats itself; stop, change direction and speed",
        )

    return _Coarse(float(grid[peak]), float(grid[1] - grid[0]), correlation, second, start, camera_speed, robot_speed)


def _comparison(
    seen: _Signal, arm: _Signal, inside: NDArray[np.bool_], coarse: _Coarse
) -> tuple[Floats, Floats, Callable[[float], Floats]]:
    """What the camera saw (k, q), when (k,), and what of the robot at an offset (k, p) it is a linear map of."""
    times, values = seen.times_s[inside], seen.values[inside]
    if seen.kind == "pose":
        place, turn = (arm.part(kind).interpolator() for kind in ("position", "orientation"))

        def tool(offset: float) -> Floats:
            poses = np.tile(np.eye(4), (len(times), 1, 1))
            poses[:, :3, 3], poses[:, :3, :3] = place(times - offset), turn(times - offset)
            return poses

        # T_camera_board = T_camera_base T_base_tool T_tool_board beside the robot, and with the inverse on the tool.
        response = _rows(values)
        ways = (
            lambda offset: _rows(tool(offset)),
            lambda offset: _rows(np.asarray(np.linalg.inv(tool(offset)), np.float64)),
        )
        return response, times, min(ways, key=lambda way: _misfit(_fit(way(coarse.offset_s), response)))
    if seen.kind == "position":
        # Without turning, positions in both frames are a linear map of each other, and positions carry far less noise
        # than the speeds made from them.
        at = arm.interpolator()
        variance = float(((values - values.mean(0)) ** 2).sum())
        if _fit(at(times - coarse.offset_s), values).sum() < (1.0 - STRAIGHT) * variance:
            return values, times, lambda offset: at(times - offset)
    return coarse.speeds[:, None], coarse.starts_s, lambda offset: coarse.robot_speed(offset)[:, None]


def _misfit(squares: Floats) -> float:
    """Of squared residuals (n, q): minus twice the log likelihood per row, each column having its own variance."""
    return float(np.log(squares.mean(0) + 1e-14).sum())


def _refine(
    response: Floats,
    stamps: Floats,
    regressors: Callable[[float], Floats],
    start: float,
    width: float,
    search_s: float,
) -> tuple[float, float]:
    """The offset of least squares around a start, and its standard deviation by a jackknife over blocks of time."""

    def best(kept: NDArray[np.bool_], centre: float, half: float) -> float:
        bounds = (max(centre - half, -search_s), min(centre + half, search_s))
        found = minimize_scalar(
            lambda offset: _misfit(_fit(regressors(float(offset))[kept], response[kept])),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-6},
        )
        return float(found.x)

    everything = np.ones(len(stamps), bool)
    offset = best(everything, start, width)
    blocks = ((stamps - stamps[0]) / BLOCK_S).astype(int)
    numbers = np.unique(blocks)
    left_out = np.array([best(blocks != block, offset, width) for block in numbers])
    n = len(numbers)
    return offset, float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)))
