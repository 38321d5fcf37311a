"""The numbers of the calibration on rendered pictures with known truth: every target, what was measured, and whether
it holds.

    python benchmarks/calibration.py                  # all parts; about 10 minutes on 2 cores
    python benchmarks/calibration.py --quick          # fewer trials, about 2 minutes
    python benchmarks/calibration.py --only moved --out calibration.json

Pictures are drawn by MuJoCo, bent by a lens whose principal point is off the centre, and get noise; corners are those
that the detectors find in them. The exit status is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "sim"), str(ROOT / "calibration")]

from dr_calibration import handeye, intrinsics, time_offset  # noqa: E402
from dr_calibration.boards import Board, Detection  # noqa: E402
from dr_calibration.errors import CalibrationError  # noqa: E402
from dr_calibration.geometry import angle_between_rad, distance_m, from_parts  # noqa: E402
from dr_calibration.moved import Reference  # noqa: E402
from dr_sim.calibration_scene import CalibrationScene, add_blur, add_noise, distort  # noqa: E402

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]
Rng = np.random.Generator

SIZE = (640, 480)
NOISE = 4.0
"""Of the pictures, grey levels."""
CORNER_PX = 0.5
"""Gaussian noise added to each coordinate of detected corners where a target says "at 0.5 px noise"."""
ROBOT_MM, ROBOT_DEG = 0.1, 0.02
"""Standard deviations of the robot's poses about each axis, where they err."""
BOARDS = ("charuco:8x6:30mm:22mm:4X4_50", "chessboard:9x6:25mm", "apriltag:5x4:40mm:30mm:APRILTAG_36h11")
CAMERAS = (
    # fx, fy, cx, cy and plumb_bob, for SIZE.
    ((612.0, 609.0, 331.0, 229.0), (0.12, -0.25, 8e-4, -6e-4, 0.08)),
    ((603.0, 603.5, 309.0, 246.0), (-0.28, 0.09, 1e-3, -8e-4, -0.01)),
    ((455.0, 457.0, 327.0, 251.0), (-0.20, 0.05, -5e-4, 1e-3, 0.0)),
    ((385.0, 385.0, 322.0, 236.0), (0.0, 0.0, 0.0, 0.0, 0.0)),
    ((910.0, 914.0, 300.0, 225.0), (0.05, -0.20, 1e-3, 1e-3, 0.0)),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        holds: None for a line that only informs.
    """

    quantity: str
    target: str
    measured: str
    n: int
    holds: bool | None
    numbers: dict[str, Any] = field(default_factory=dict)


def within(quantity: str, values: Sequence[float], limit: float | None, unit: str) -> Row:
    """Errors of trials: 95 % of them have to be within the limit, None being none."""
    p50, p95, largest = (float(value) for value in np.percentile(values, [50, 95, 100]))
    measured = f"p50 {p50:.3g}, p95 {p95:.3g}, max {largest:.3g} {unit}"
    numbers = {"p50": p50, "p95": p95, "max": largest, "unit": unit}
    if limit is None:
        return Row(quantity, "-", measured, len(values), None, numbers)
    return Row(quantity, f"p95 <= {limit:g} {unit}", measured, len(values), p95 <= limit, numbers | {"limit": limit})


def share(quantity: str, hits: Sequence[bool], low: float, high: float) -> Row:
    """The share of trials where something is so has to be from low to high; of less than 200 trials, its interval has
    to reach there."""
    n, part = len(hits), float(np.mean(hits))
    z = 1.96  # Wilson, 1927
    centre, half = part + z * z / (2 * n), z * math.sqrt(part * (1 - part) / n + z * z / (4 * n * n))
    bottom, top = (float(value) / (1 + z * z / n) for value in (centre - half, centre + half))
    target = f"<= {high:.0%}" if low == 0 else f">= {low:.0%}" if high == 1 else f"{low:.0%} to {high:.0%}"
    numbers = {"share": part, "interval": [bottom, top], "low": low, "high": high}
    measured = f"{part:.2%} [{bottom:.1%}, {top:.1%}]"
    holds = low <= part <= high if n >= 200 else bottom <= high and low <= top
    return Row(quantity, target, measured, n, holds, numbers)


def camera(index: int) -> tuple[Floats, Floats]:
    """K (3, 3) and plumb_bob (5,)."""
    (fx, fy, cx, cy), lens = CAMERAS[index]
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array(lens)


def detections(scene: CalibrationScene, board: Board, poses: Floats, rng: Rng) -> tuple[list[Detection], list[int]]:
    """What is found in noisy pictures of the board, and at which of the poses T_camera_board (N, 4, 4)."""
    found = [board.detect(add_noise(scene.render(pose), NOISE, rng)) for pose in poses]
    good = [i for i, one in enumerate(found) if isinstance(one, Detection)]
    return [one for one in found if isinstance(one, Detection)], good


# ---- intrinsics ----


def measure_intrinsics(rng: Rng, quick: bool) -> Iterator[Row]:
    """Of a rendered stream the selector takes 25 views; other orders of the stream give other trials."""
    stream, orders = (45, 1) if quick else (70, 3)
    focal: dict[str, list[float]] = {}
    centre: dict[str, list[float]] = {}
    scores: list[float] = []
    views: list[int] = []
    for text in BOARDS:
        board = Board.parse(text)
        for index in range(2 if quick else len(CAMERAS)):
            k, lens = camera(index)
            scene = CalibrationScene(board, *SIZE, k, lens)
            seen = detections(scene, board, scene.intrinsic_views(stream, rng), rng)[0]
            scene.close()
            for _ in range(orders):
                selector = intrinsics.ViewSelector(board.points_m, SIZE)
                for one in rng.permutation(len(seen)):
                    selector.offer(seen[one], SIZE)
                    if len(selector.views) == 25:
                        break
                result = intrinsics.calibrate(selector.views).intrinsics
                errors = (result.K - k)[[0, 1, 0, 1], [0, 1, 2, 2]]
                focal.setdefault(board.kind, []).append(100 * float(np.abs(errors[:2] / k[[0, 1], [0, 1]]).max()))
                centre.setdefault(board.kind, []).append(float(np.abs(errors[2:]).max()))
                scores += list(np.abs(errors / np.asarray(result.sd_px)))
                views.append(len(selector.views))
    for kind in focal:
        yield within(f"intrinsics, {kind}: focal length (worse of fx, fy)", focal[kind], 0.3, "%")
        yield within(f"intrinsics, {kind}: principal point (worse of cx, cy)", centre[kind], 1.0, "px")
    inside = [bool(score < 2) for score in scores]
    row = share("intrinsics: error of fx, fy, cx, cy within 2 stated sd", inside, 0.0, 1.0)
    yield Row(row.quantity, "-", row.measured, row.n, None, row.numbers)
    yield within("intrinsics: views taken by the selector", views, None, "views")


# ---- hand-eye ----


@dataclass(frozen=True)
class Bank:
    """Views from which trials draw.

    Attributes:
        tools: (N, 4, 4) T_base_tool.
        pose: T_tool_camera or T_base_camera.
    """

    mode: handeye.Mode
    tools: Floats
    views: list[Detection]
    pose: Floats
    K: Floats
    lens: Floats

    def trial(self, rng: Rng, corner_px: float, robot: bool, wrong: int = 0) -> tuple[float, float, handeye.HandEye]:
        """Error in mm and degrees, and the result, of 20 views with fresh noise of corners and robot."""
        chosen = rng.choice(len(self.tools), 20, replace=False)
        tools = self.tools[chosen].copy()
        for i in range(20 if robot else 0):
            tools[i] = disturbed(tools[i], ROBOT_MM, ROBOT_DEG, rng)
        for i in rng.choice(20, wrong, replace=False):
            tools[i] = disturbed(tools[i], rng.uniform(10, 100), rng.uniform(2, 15), rng)
        views = []
        for i in chosen:
            corners = self.views[i].corners_px
            noisy = corners + corner_px * rng.normal(size=corners.shape)
            views.append(handeye.View(self.views[i].points_m, noisy))
        result = handeye.solve(tools, views, mode=self.mode, rng=rng, K=self.K, distortion=self.lens)
        angle_deg = math.degrees(angle_between_rad(result.pose, self.pose))
        return 1e3 * distance_m(result.pose, self.pose), angle_deg, result


def disturbed(pose: Floats, mm: float, deg: float, rng: Rng) -> Floats:
    """The pose with Gaussian errors of so much along and about each axis."""
    turn = Rotation.from_rotvec(np.radians(deg) * rng.normal(size=3)).as_matrix()
    return from_parts(turn @ pose[:3, :3], pose[:3, 3] + 1e-3 * mm * rng.normal(size=3))


def measure_hand_eye(rng: Rng, quick: bool) -> Iterator[Row]:
    """Pictures of 150 poses are drawn once for each mode; a trial is 20 of them with fresh noise.

    Targets are for 0.5 px and an exact robot; a robot that errs makes directions worse, and those are only shown.
    """
    poses, trials = (40, 20) if quick else (150, 200)
    board, (k, lens) = Board.parse(BOARDS[0]), camera(0)
    scene = CalibrationScene(board, *SIZE, k, lens)
    modes: tuple[handeye.Mode, ...] = ("eye_in_hand", "eye_to_hand")
    for mode in modes:
        tools, seen, truth = scene.hand_eye_poses(poses, rng, mode)
        views, good = detections(scene, board, seen, rng)
        pose = truth["T_tool_camera" if mode == "eye_in_hand" else "T_base_camera"]
        bank = Bank(mode, tools[good], views, pose, k, lens)
        noisy = f"{mode}, 20 poses of {len(views)}, {CORNER_PX:g} px"
        robot = f", robot {ROBOT_MM:g} mm {ROBOT_DEG:g} deg"
        for text, corner_px, moves, wrong, limits, covers in (
            (noisy, CORNER_PX, False, 0, (1.0, 0.1), True),
            (f"{noisy}{robot}", CORNER_PX, True, 0, (1.0, None), True),
            (f"{noisy}{robot}, 3 wrong", CORNER_PX, True, 3, (3.0, 0.3), False),
            (f"{mode}, corners as detected{robot}", 0.0, True, 0, (1.0, 0.1), False),
        ):
            count = trials if covers else trials // 2
            results = [bank.trial(rng, corner_px, moves, wrong) for _ in range(count)]
            yield within(f"{text}: place", [mm for mm, _, _ in results], limits[0], "mm")
            yield within(f"{text}: direction", [deg for _, deg, _ in results], limits[1], "deg")
            if covers:
                covered = [mm < handeye.COVERAGE_FACTOR * one.total_sd_mm for mm, _, one in results]
                yield share(f"{text}: place within 1.8 stated total sd", covered, 0.9, 0.99)
                covered = [deg < handeye.COVERAGE_FACTOR * one.total_sd_deg for _, deg, one in results]
                yield share(f"{text}: direction within 1.8 stated total sd", covered, 0.9, 0.99)
    scene.close()


# ---- time offset ----


def smooth(rng: Rng, seconds: float, sizes: Sequence[float]) -> Callable[[Floats], Floats]:
    """Random motion (t,) → (t, 3) about zero with changes of direction about every second."""
    knots = np.arange(-2.0, seconds + 2.0, 0.6)
    path: Callable[[Floats], Floats] = make_interp_spline(
        knots, np.clip(rng.normal(size=(len(knots), 3)), -1.5, 1.5) * sizes, k=5
    )
    return path


@dataclass(frozen=True)
class Motion:
    """The board before the camera, turning about its middle 0.5 m away.

    Attributes:
        shifts: (t,) s → (t, 3) m.
        turns: (t,) s → (t, 3) rad.
        X, Y: T_tool_camera and T_base_board, or T_base_camera and T_tool_board.
    """

    shifts: Callable[[Floats], Floats]
    turns: Callable[[Floats], Floats]
    middle_m: Floats
    in_hand: bool
    X: Floats
    Y: Floats

    def camera_board(self, times: Floats) -> Floats:
        """(t, 4, 4)"""
        rotations = Rotation.from_rotvec(self.turns(times))
        places = self.shifts(times) + np.array([0.0, 0.0, 0.5]) - rotations.apply(self.middle_m)
        return np.stack([from_parts(*both) for both in zip(rotations, places, strict=True)])

    def base_tool(self, times: Floats) -> Floats:
        """(t, 4, 4)"""
        seen = self.camera_board(times)
        if self.in_hand:
            return np.asarray(self.Y @ np.linalg.inv(seen) @ np.linalg.inv(self.X))
        return np.asarray(self.X @ seen @ np.linalg.inv(self.Y))


def measure_time_offset(rng: Rng, quick: bool) -> Iterator[Row]:
    """Recordings at 30 fps are drawn once; a trial has its own offset, jitter of stamps and noise of the robot."""
    seconds, trials = (8.0, 5) if quick else (14.0, 20)
    board, (k, lens) = Board.parse(BOARDS[0]), camera(0)
    scene = CalibrationScene(board, *SIZE, k, lens)
    middle = np.append(np.array(board.size_m) / 2, 0.0)
    turning, shifting = ((0.03, 0.02, 0.05), (0.35, 0.35, 0.5)), ((0.05, 0.04, 0.06), (0.05, 0.05, 0.05))
    for text, mode, sizes in (
        ("strongly turning tool", "eye_in_hand", turning),
        ("strongly turning tool", "eye_to_hand", turning),
        ("hardly turning tool", "eye_in_hand", shifting),
    ):
        shifts, turns = (smooth(rng, seconds, size) for size in sizes)
        _, _, truth = scene.hand_eye_poses(1, rng, mode)
        motion = Motion(shifts, turns, middle, mode == "eye_in_hand", *truth.values())
        exposure_s = float(rng.uniform(0.004, 0.012))
        moments = np.arange(0.6, seconds + 0.6, 1 / 30)
        poses, kept = [], []
        for moment, pose in zip(moments, motion.camera_board(moments), strict=True):
            ends = motion.camera_board(moment + exposure_s * np.array([-0.5, 0.5]))
            way = scene.project(ends[1], middle)[0] - scene.project(ends[0], middle)[0]
            picture = add_blur(scene.render(pose), 0.0, (float(way[0]), float(way[1])))
            picture = np.clip(picture * rng.uniform(0.7, 1.1), 0, 255).astype(np.uint8)
            found = board.detect(add_noise(picture, NOISE, rng))
            if isinstance(found, Detection) and len(found.ids) >= 8:
                poses.append(handeye.board_pose(found, k, lens))
                kept.append(moment)
        robot_s = np.arange(0.0, seconds + 1.2, 0.01)
        tools = motion.base_tool(robot_s)
        errors, deviations = [], []
        for _ in range(trials):
            offset_s = rng.uniform(-0.2, 0.2)
            stamps = np.array(kept) + offset_s + 1e-3 * rng.normal(size=len(kept))
            robot_stamps = robot_s + 1e-3 * np.clip(rng.normal(size=len(robot_s)), -4, 4)
            arm = np.array([disturbed(tool, ROBOT_MM, ROBOT_DEG, rng) for tool in tools])
            result = time_offset.estimate(stamps, np.array(poses), robot_stamps, arm)
            errors.append(1e3 * abs(result.offset_s - offset_s))
            deviations.append(1e3 * result.sd_s)
        facts = f"{mode}, {len(kept)} of {len(moments)} frames, exposed {1e3 * exposure_s:.0f} ms, jitter 1 ms"
        yield within(f"time offset, {text}, {facts}", errors, 2.0, "ms")
        inside = [error < 2 * sd for error, sd in zip(errors, deviations, strict=True)]
        row = share(f"time offset, {text}, {mode}: error within 2 stated sd", inside, 0.0, 1.0)
        yield Row(row.quantity, "-", row.measured, row.n, None, row.numbers)
    scene.close()


# ---- camera moved ----


class Stage:
    """A simulated arm that wanders before a camera that can be moved."""

    def __init__(self, robot: Any, rng: Rng) -> None:
        import mujoco

        self.robot, self.rng = robot, rng
        self._forward = lambda: mujoco.mj_camlight(robot._model, robot._data)
        robot.render()
        self._camera = robot._draw()._camera_id
        self._place = robot._model.cam_pos[self._camera].copy()
        self._turn = robot._model.cam_quat[self._camera].copy()  # wxyz
        self._maps: tuple[Any, Any] | None = None

    def wander(self, seconds: float) -> None:
        velocity = self.rng.uniform(-0.4, 0.4, 3)
        for _ in range(round(seconds / 0.05)):
            self.robot.command_twist(velocity, np.zeros(3))
            self.robot.step(0.05)

    def move_camera(self, by_m: Floats, by_rad: Floats) -> None:
        """From its place, in its own frame."""
        turn = Rotation.from_quat(np.roll(self._turn, -1))
        self.robot._model.cam_pos[self._camera] = self._place + turn.apply(by_m)
        self.robot._model.cam_quat[self._camera] = np.roll((turn * Rotation.from_rotvec(by_rad)).as_quat(), 1)

    def picture(self, occluded: bool = False) -> Picture:
        """With a lens, its own exposure, noise and perhaps something in front of a part of it."""
        self._forward()
        seen = self._bent(self.robot.render()).astype(np.float32)
        height, width = seen.shape[:2]
        if occluded:
            grain = cv2.resize(self.rng.uniform(20, 230, (12, 16, 3)).astype(np.float32), (width, height))
            mask = np.zeros((height, width), np.uint8)
            place = self.rng.uniform([0, 0], [width, height]).astype(int).tolist()
            axes = self.rng.uniform([0.08 * width, 0.08 * width], [0.2 * width, 0.2 * width]).astype(int).tolist()
            cv2.ellipse(mask, place, axes, self.rng.uniform(0, 180), 0, 360, 1, -1)
            seen = np.where(mask[..., None] > 0, grain, seen)
        seen = seen * np.float32(self.rng.uniform(0.75, 1.25)) + np.float32(self.rng.uniform(-12, 12))
        return add_noise(np.clip(seen, 0, 255).astype(np.uint8), NOISE, self.rng)

    def _bent(self, picture: Picture) -> Picture:
        """Through a barrel lens, its principal point off the centre, that sees nothing outside the pin-hole picture."""
        if self._maps is None:
            height, width = picture.shape[:2]
            focal = float(width)
            grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
            plane = (grid - [0.49 * width, 0.51 * height]) / focal
            bent = distort(0.93 * plane, np.array([0.12, 0.0, 5e-4, -5e-4, 0.0])) * focal
            places = (bent + np.array([(width - 1) / 2, (height - 1) / 2])).astype(np.float32)
            self._maps = places[:, 0].reshape(height, width), places[:, 1].reshape(height, width)
        return np.asarray(cv2.remap(picture, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def measure_moved(rng: Rng, quick: bool) -> Iterator[Row]:
    """Two simulated arms; a third of the pictures has something else in front of it."""
    from dr_sim.arm import SimulatedArm
    from dr_sim.sawyer import SimulatedSawyer

    still, moves = (60, 20) if quick else (500, 150)
    alarms: list[bool] = []
    unsure: list[bool] = []
    detected: dict[str, list[bool]] = {"1 degree": [], "5 mm": []}
    shifts: dict[str, list[float]] = {"none": [], "1 degree": [], "5 mm": []}
    for make in (SimulatedArm, lambda: SimulatedSawyer("push")):
        robot = make()
        stage = Stage(robot, rng)
        pictures = []
        for seed in range(5):
            robot.reset(seed)
            stage.wander(1.5)
            pictures.append(stage.picture())
        reference = Reference(pictures)
        for count in range(still):
            if count % 50 == 0:
                robot.reset(100 + count)
            stage.wander(0.2)
            result = reference.check(stage.picture(occluded=count % 3 == 0))
            alarms.append(result.moved)
            unsure.append(not result.confident)
            shifts["none"].append(result.shift_px)
        for kind, hits in detected.items():
            for count in range(moves):
                if count % 50 == 0:
                    robot.reset(500 + count)
                stage.wander(0.2)
                axis = rng.normal(size=3)
                axis /= np.linalg.norm(axis)
                if kind == "5 mm":
                    stage.move_camera(0.005 * axis, np.zeros(3))
                else:
                    stage.move_camera(np.zeros(3), np.radians(1.0) * axis)
                result = reference.check(stage.picture(occluded=count % 3 == 0))
                hits.append(result.moved and result.confident)
                shifts[kind].append(result.shift_px)
            stage.move_camera(np.zeros(3), np.zeros(3))
        robot.close()
    for kind, hits in detected.items():
        yield share(f"camera moved by {kind}, any direction: detected", hits, 0.99, 1.0)
    yield share("camera at rest: false alarms", alarms, 0.0, 0.01)
    either = [bool(a or b) for a, b in zip(alarms, unsure, strict=True)]
    yield share("camera at rest: false alarms, and frames that do not tell", either, 0.0, 0.01)
    for kind, values in shifts.items():
        known = [value for value in values if math.isfinite(value)]
        yield within(f"camera moved by {kind}: shift seen (limit {reference.threshold_px:g} px)", known, None, "px")


# ---- all ----

PARTS: dict[str, Callable[[Rng, bool], Iterator[Row]]] = {
    "hand-eye": measure_hand_eye,
    "moved": measure_moved,
    "intrinsics": measure_intrinsics,
    "time-offset": measure_time_offset,
}
"""The longest first."""


def measure(name: str, seed: int, quick: bool) -> tuple[str, list[Row], float]:
    """Rows of a part and the processor's seconds."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, list(PARTS).index(name)])
    started = time.process_time()
    try:
        rows = list(PARTS[name](rng, quick))
    except CalibrationError as error:
        rows = [Row(name, "a result", str(error), 0, False)]
    return name, rows, time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials: a look, not a proof")
    parser.add_argument("--only", choices=list(PARTS), help="this part alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="parts measured at once")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    names = [options.only] if options.only else list(PARTS)
    jobs = [(name, options.seed, options.quick) for name in names]
    started = time.perf_counter()
    workers = min(options.workers, len(jobs))
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        results = pool.starmap(measure, jobs, chunksize=1)
    rows = [row for _, part, _ in results for row in part]
    width = max(len(row.quantity) for row in rows)
    print(f"picture noise {NOISE:g} grey levels, seed {options.seed}; shares with their 95 % interval (Wilson)")
    print("hand-eye: pictures are drawn once, a trial takes 20 of them with fresh noise of corners and robot")
    print(f"{'quantity':{width}}  {'target':15}  {'measured':44}  {'n':>5}  holds")
    for row in rows:
        holds = "" if row.holds is None else "yes" if row.holds else "NO"
        print(f"{row.quantity:{width}}  {row.target:15}  {row.measured:44}  {row.n:5}  {holds}")
    seconds = ", ".join(f"{name} {spent:.0f}" for name, _, spent in results)
    print(f"processor seconds: {seconds}; {time.perf_counter() - started:.0f} s by the clock")
    if options.out:
        facts = {"seed": options.seed, "quick": options.quick, "rows": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return int(any(row.holds is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
