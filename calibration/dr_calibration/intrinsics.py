"""Intrinsics of one camera: choosing views of a board, calibrating, how far to trust it, and ROS's camera_info file.

The lens model is ROS's "plumb_bob" (OpenCV's k1, k2, p1, p2, k3). Pixels: integer coordinates are pixel centres.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, from_rodrigues
from dr_core.config import load_yaml
from dr_core.errors import ConfigError

Vector = NDArray[np.float64]
Size = tuple[int, int]
"""Width and height in pixels."""

COVERAGE_GRID = (8, 6)
"""Columns and rows of the coverage map."""
MIN_CORNERS = 8
"""A view with fewer says too little about the board's tilt."""
MIN_VIEWS = 8
ENOUGH_VIEWS = 20
MOST_VIEWS = 60
ENOUGH_COVERAGE = 0.8
"""Share of the cells of the coverage map."""
MIN_COVERAGE = 0.35
TILTED_RAD = math.radians(15.0)
VIEWS_PER_TILT = 2
VIEWS_PER_DISTANCE = 3
NEAR = 0.5
"""From this share of the picture's diagonal on, the board is near."""

FOLDS = 5
MAX_FOCAL_SD = 0.01
"""Standard deviation of the focal length above which it is not determined."""
MAX_CENTRE_SD = 0.02
"""The same for the principal point, as a share of the picture's width."""
MAX_RMS = 2.0 / 640
"""As a share of the picture's width: above it, board or camera is not what it is taken for."""
MAX_DROPPED = 0.3
"""Share of views that may be left out as outliers."""


class Detected(Protocol):
    """Corners of a board found in one picture; `boards.Detection` is one."""

    @property
    def ids(self) -> NDArray[Any]:
        """(N,) of the corners on the board."""

    @property
    def corners_px(self) -> Vector:
        """(N, 2)."""

    @property
    def points_m(self) -> Vector:
        """(N, 3) on the board, z = 0."""


@dataclass(frozen=True)
class View:
    """One picture of the board.

    Attributes:
        ids: (N,) of the corners on the board.
        corners_px: (N, 2).
        points_m: (N, 3) on the board, z = 0.
        size: of the picture.
    """

    ids: NDArray[np.int64]
    corners_px: Vector
    points_m: Vector
    size: Size

    @staticmethod
    def of(detection: Detected, size: Size) -> View:
        """Raises CalibrationError: shapes that do not fit, numbers that are not finite, corners outside the picture."""
        ids = np.asarray(detection.ids, np.int64).reshape(-1)
        corners, points = np.asarray(detection.corners_px, np.float64), np.asarray(detection.points_m, np.float64)
        if corners.shape != (len(ids), 2) or points.shape != (len(ids), 3):
            found = f"{len(ids)} ids, corners {corners.shape}, points {points.shape}"
            raise _refused("view", "as many corners (N, 2) and points (N, 3) as ids", found, "detect the board again")
        if not (np.isfinite(corners).all() and np.isfinite(points).all()):
            raise _refused("view", "finite corners and points", "others", "detect the board again")
        if len(ids) and (corners.min() < -1.0 or (corners.max(axis=0) > size).any()):
            found = f"a corner at {corners.max(axis=0).round().tolist()}"
            raise _refused("view", f"corners in a picture of {size[0]}x{size[1]}", found, "give the picture's own size")
        return View(ids, corners, points, (int(size[0]), int(size[1])))


def motion_px(before: Detected, after: Detected) -> float:
    """The median way of the corners seen in both pictures; infinite when there is none."""
    _, first, second = np.intersect1d(before.ids, after.ids, return_indices=True)
    if len(first) == 0:
        return math.inf
    ways = np.linalg.norm(np.asarray(before.corners_px)[first] - np.asarray(after.corners_px)[second], axis=1)
    return float(np.median(ways))


@dataclass(frozen=True)
class Offer:
    """What became of a view.

    Attributes:
        taken: it is kept.
        reason: why not, in words; empty when taken.
        progress: percent of what a good calibration needs.
        advice: what to do next, in words.
    """

    taken: bool
    reason: str
    progress: int
    advice: str


@dataclass(frozen=True)
class _Posture:
    """How the board is held, judged with a usual camera: good enough to tell views apart."""

    centre: Vector  # (2,) shares of width and height
    share: float  # of the board's diagonal in the picture's
    tilt_rad: Vector  # (2,): right and lower edge towards the camera
    roll_rad: float

    def resembles(self, other: _Posture) -> bool:
        turn = math.remainder(self.roll_rad - other.roll_rad, 2 * math.pi)
        return bool(
            np.abs(self.centre - other.centre).max() < 0.08
            and abs(math.log(self.share / other.share)) < 0.15
            and np.abs(self.tilt_rad - other.tilt_rad).max() < TILTED_RAD
            and abs(turn) < math.radians(15.0)
        )


class ViewSelector:
    """Takes the views that add something, and says what is missing. Offer it every detection.

    Args:
        board_points_m: (N, 3) all corners of the board, z = 0.
        size: of the pictures; later ones of another size are rejected.

    Attributes:
        views: those taken.
        coverage: (rows, columns) corners of the taken views in each cell of the picture.
    """

    def __init__(self, board_points_m: ArrayLike, size: Size) -> None:
        points = np.asarray(board_points_m, np.float64).reshape(-1, 3)
        self._centre_m = (points.min(axis=0) + points.max(axis=0)) / 2
        self._diagonal_m = float(np.linalg.norm(np.ptp(points, axis=0)))
        self._min_corners = max(MIN_CORNERS, len(points) // 4)
        if len(points) < MIN_CORNERS or self._diagonal_m <= 0.0:
            raise _refused("board", f"at least {MIN_CORNERS} corners", str(len(points)), "use a larger board")
        self.size = size
        self.views: list[View] = []
        self.coverage = np.zeros(COVERAGE_GRID[::-1], np.int64)
        self._postures: list[_Posture] = []

    def offer(self, detection: Detected, size: Size, *, moving: bool = False, blurred: bool = False) -> Offer:
        """Keep this view, or say why not.

        Args:
            moving: the board moved during the exposure (`motion_px` against the picture before).
            blurred: the picture is not sharp.

        Raises:
            CalibrationError: a malformed detection.
        """
        if tuple(size) != tuple(self.size):
            wanted = f"{self.size[0]}x{self.size[1]}"
            return self._rejected(f"mixed resolution: {size[0]}x{size[1]}, where the first was {wanted}")
        view = View.of(detection, size)
        if len(view.ids) < self._min_corners:
            return self._rejected(f"too few corners: {len(view.ids)} of at least {self._min_corners}")
        if moving:
            return self._rejected("the board is moving: hold it still")
        if blurred:
            return self._rejected("the picture is blurred: hold the board still, add light or focus")
        if len(self.views) >= MOST_VIEWS:
            return self._rejected(f"enough: {MOST_VIEWS} views are taken")
        posture = self._posture(view)
        if posture is None:
            return self._rejected("the corners lie on one line: show more of the board")
        if any(posture.resembles(other) for other in self._postures):
            return self._rejected("too similar to a view already taken: move or tilt the board")
        self.views.append(view)
        self._postures.append(posture)
        self.coverage += coverage_map([view], self.size)
        return Offer(True, "", self.progress, self.advice)

    @property
    def progress(self) -> int:
        """Percent of what a good calibration needs: number of views, coverage, tilts and distances."""
        tilts, distances = self._bins()
        parts = (
            len(self.views) / ENOUGH_VIEWS,
            float((self.coverage > 0).mean()) / ENOUGH_COVERAGE,
            sum(min(1.0, count / VIEWS_PER_TILT) for count in tilts.values()) / len(tilts),
            sum(min(1.0, count / VIEWS_PER_DISTANCE) for count in distances.values()) / len(distances),
        )
        return math.floor(100 * sum(min(1.0, part) for part in parts) / len(parts) + 1e-9)

    @property
    def advice(self) -> str:
        """The one thing that helps most now."""
        if not self.views:
            return "show the whole board"
        missing = [
            (text, count)
            for counts, wanted in zip(self._bins(), (VIEWS_PER_TILT, VIEWS_PER_DISTANCE), strict=True)
            for text, count in counts.items()
            if count < wanted
        ]
        if (self.coverage > 0).mean() < ENOUGH_COVERAGE:
            return f"hold the board in the {emptiest_region(self.coverage)}"
        if missing:
            return min(missing, key=lambda item: item[1])[0]
        if len(self.views) < ENOUGH_VIEWS:
            return f"show it in {ENOUGH_VIEWS - len(self.views)} more ways"
        return "enough: calibrate now"

    def _rejected(self, reason: str) -> Offer:
        return Offer(False, reason, self.progress, self.advice)

    def _bins(self) -> tuple[dict[str, int], dict[str, int]]:
        """Views by tilt and by distance; the keys say how to get more of them."""
        tilts = np.array([posture.tilt_rad for posture in self._postures]).reshape(-1, 2)
        shares = np.array([posture.share for posture in self._postures])
        return (
            {
                "tilt it more: its right edge towards the camera": int((tilts[:, 0] > TILTED_RAD).sum()),
                "tilt it more: its left edge towards the camera": int((tilts[:, 0] < -TILTED_RAD).sum()),
                "tilt it more: its lower edge towards the camera": int((tilts[:, 1] > TILTED_RAD).sum()),
                "tilt it more: its upper edge towards the camera": int((tilts[:, 1] < -TILTED_RAD).sum()),
            },
            {
                "hold it nearer to the camera": int((shares >= NEAR).sum()),
                "hold it farther from the camera": int((shares < NEAR).sum()),
            },
        )

    def _posture(self, view: View) -> _Posture | None:
        focal = 1.1 * max(self.size)
        camera = np.array([[focal, 0, self.size[0] / 2], [0, focal, self.size[1] / 2], [0, 0, 1.0]])
        if np.linalg.matrix_rank(view.points_m - view.points_m[0], tol=1e-9) < 2:
            return None
        found, turn, move = cv2.solvePnP(view.points_m, view.corners_px, camera, None, flags=cv2.SOLVEPNP_IPPE)
        if not found:
            return None
        pose = from_rodrigues(turn, move)
        x, y, z = pose[:3, 2] * (1.0 if pose[2, 2] > 0.0 else -1.0)  # the board's normal, away from the camera
        depth_m = float((pose[:3, :3] @ self._centre_m + pose[:3, 3])[2])
        if depth_m <= 0.0:
            return None
        share = focal * self._diagonal_m / depth_m / math.hypot(*self.size)
        roll = math.atan2(pose[1, 0], pose[0, 0])
        tilt = np.array([math.atan2(x, z), math.atan2(y, z)])
        return _Posture(view.corners_px.mean(axis=0) / np.array(self.size), share, tilt, roll)


def coverage_map(views: Iterable[View], size: Size) -> NDArray[np.int64]:
    """(rows, columns) = (6, 8): corners of the views in each cell of the picture."""
    columns, rows = COVERAGE_GRID
    counts = np.zeros((rows, columns), np.int64)
    for view in views:
        cells = np.clip((view.corners_px / size * COVERAGE_GRID).astype(int), 0, [columns - 1, rows - 1])
        np.add.at(counts, (cells[:, 1], cells[:, 0]), 1)
    return counts


def emptiest_region(coverage: NDArray[np.int64]) -> str:
    """Of the picture's nine regions, the one with the least covered cells, for example "lower left"."""
    rows, columns = np.indices(coverage.shape)
    region = 3 * (3 * rows // coverage.shape[0]) + 3 * columns // coverage.shape[1]
    share = [float((coverage[region == index] > 0).mean()) for index in range(9)]
    row, column = divmod(int(np.argmin(share)), 3)
    words = (("upper", "", "lower")[row], ("left", "", "right")[column])
    return " ".join(word for word in words if word) or "centre"


@dataclass(frozen=True)
class Intrinsics:
    """A camera's lens, for pictures of one size.

    Attributes:
        width, height: of the pictures, px.
        K: (3, 3) pinhole matrix, px.
        distortion: (5,) plumb_bob: k1, k2, p1, p2, k3.
        sd_px: (4,) standard deviations of fx, fy, cx, cy, px; None where unknown, as for a camera_info file.
        rms_px: over the corners of the views used, of the distance between seen and projected; None where unknown.
        held_out_rms_px: the same for views that the fit did not use.
    """

    width: int
    height: int
    K: Vector
    distortion: Vector
    sd_px: Vector | None = None
    rms_px: float | None = None
    held_out_rms_px: float | None = None

    def __post_init__(self) -> None:
        """Raises CalibrationError: sizes, shapes or numbers that no camera has."""
        k, d = np.array(self.K, np.float64), np.array(self.distortion, np.float64).reshape(-1)
        for name in ("width", "height"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 8 <= value <= 20_000:
                raise _refused(f"intrinsics, {name}", "8 to 20000 pixels", repr(value), "calibrate the camera again")
        if k.shape != (3, 3) or d.shape != (5,) or not (np.isfinite(k).all() and np.isfinite(d).all()):
            found = f"shapes {k.shape} and {d.shape}" if k.shape != (3, 3) or d.shape != (5,) else "others"
            raise _refused("intrinsics", "finite K (3, 3) and distortion (5,)", found, "calibrate the camera again")
        if np.abs(k[[0, 1, 2, 2], [1, 0, 0, 1]]).max() > 0.0 or k[2, 2] != 1.0:
            raise _refused("intrinsics, K", "fx 0 cx, 0 fy cy, 0 0 1", str(k.tolist()), "calibrate the camera again")
        focal, centre, size = k[[0, 1], [0, 1]], k[:2, 2], np.array([self.width, self.height])
        if (focal < 0.1 * self.width).any() or (focal > 100 * self.width).any():
            found = f"{focal.round(3).tolist()} for {self.width} px of width"
            raise _refused("intrinsics, focal lengths", "pixels", found, "calibrate the camera again")
        if (centre < -0.5 * size).any() or (centre > 1.5 * size).any():
            found = f"{centre.round(1).tolist()} in {self.width}x{self.height}"
            raise _refused("intrinsics, principal point", "near the picture", found, "calibrate the camera again")
        object.__setattr__(self, "K", k)
        object.__setattr__(self, "distortion", d)
        if self.sd_px is not None:
            object.__setattr__(self, "sd_px", np.array(self.sd_px, np.float64).reshape(4))

    @property
    def hash(self) -> str:
        """SHA-256 of size, K and distortion: pictures through this lens, however it was found."""
        content = [self.width, self.height, self.K.ravel().tolist(), self.distortion.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @staticmethod
    def of_camera(width: int, height: int, k: ArrayLike, distortion: ArrayLike, model: str = "plumb_bob") -> Intrinsics:
        """What a camera or its driver says, for example a RealSense's factory values.

        Args:
            model: ROS's or RealSense's name of the lens model; one that is not plumb_bob is taken where all its
                coefficients are zero.

        Raises:
            CalibrationError: another lens model.
        """
        d = np.asarray(distortion, np.float64).reshape(-1)
        known = model.lower().replace(" ", "_").rsplit(".", 1)[-1] in ("plumb_bob", "brown_conrady")
        if len(d) > 5 and not d[5:].any():
            d = d[:5]
        if (not known and d.any()) or len(d) not in (0, 4, 5):
            found = f"{model!r} with {len(d)} coefficients"
            raise _refused("lens model", "plumb_bob with up to 5 coefficients", found, "calibrate the camera")
        return Intrinsics(width, height, np.asarray(k, np.float64).reshape(3, 3), np.pad(d, (0, 5 - len(d))))


@dataclass(frozen=True)
class ViewResult:
    """A view after the fit.

    Attributes:
        index: among the views given.
        corners_px: (N, 2) seen.
        residuals_px: (N, 2) seen minus projected.
        held_out_px: (N, 2) the same, the lens being fitted without this view (and some others).
        T_camera_board: (4, 4).
        rms_px: of ``residuals_px``.
    """

    index: int
    corners_px: Vector
    residuals_px: Vector
    held_out_px: Vector
    T_camera_board: Pose

    @property
    def rms_px(self) -> float:
        return _rms(self.residuals_px)


@dataclass(frozen=True)
class IntrinsicsResult:
    """A calibration and its evidence.

    Attributes:
        views: those used.
        dropped: index of a view that was left out → why.
        coverage: (6, 8) corners used in each cell of the picture.
        model: the distortion coefficients fitted, others being zero: a key of `MODELS`.
        held_out_by_model_px: RMS on held-out views of every model tried.
    """

    intrinsics: Intrinsics
    views: list[ViewResult]
    dropped: dict[int, str]
    coverage: NDArray[np.int64]
    model: str
    held_out_by_model_px: dict[str, float] = field(default_factory=dict)


MODELS = {
    "k1 p1 p2": cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3,
    "k1 k2 p1 p2": cv2.CALIB_FIX_K3,
    "k1 k2 p1 p2 k3": 0,
}
"""Lens models, poorer ones first. The tangential terms are in all of them: left out, a principal point that is wrong by
pixels looks certain, and held-out views do not tell."""
_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3")


@dataclass(frozen=True)
class _Fit:
    k: Vector
    d: Vector
    turns: list[Vector]
    moves: list[Vector]

    def residuals_px(self, index: int, view: View) -> Vector:
        seen, _ = cv2.projectPoints(view.points_m, self.turns[index], self.moves[index], self.k, self.d)
        return view.corners_px - seen.reshape(-1, 2)


def calibrate(views: Sequence[View]) -> IntrinsicsResult:
    """Intrinsics from views of a flat board, by OpenCV's `calibrateCamera` (Zhang, 2000).

    Views that do not fit the others are left out. Of the lens models, a richer one is taken only where it predicts
    held-out views better by more than the standard error of that gain (their poses being fitted to them). Standard
    deviations are those of the jackknife over views, which allows for errors that the corners of a view share.

    Raises:
        CalibrationError: too few views, pictures of several sizes, corners in a part of the picture only, focal length
            or principal point not determined (as when the board is never tilted), errors that no camera explains.
    """
    sizes = sorted({view.size for view in views})
    if len(sizes) > 1:
        found = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise _refused("views", "pictures of one size", found, "record at one resolution")
    dropped: dict[int, str] = {}
    for index, view in enumerate(views):
        if len(view.ids) < MIN_CORNERS:
            dropped[index] = f"{len(view.ids)} corners, of at least {MIN_CORNERS}"
    _drop_false_boards(views, dropped)
    kept = _kept(views, dropped)
    size = views[kept[0]].size
    _check_coverage([views[index] for index in kept], size)

    fit = _fit(
        [views[index] for index in kept], MODELS["k1 k2 p1 p2"], _first_guess([views[i] for i in kept], size), size
    )
    while worst := _outliers([_rms(fit.residuals_px(place, views[index])) for place, index in enumerate(kept)]):
        for place, text in worst.items():
            dropped[kept[place]] = text
        kept = _kept(views, dropped)
        fit = _fit([views[index] for index in kept], MODELS["k1 k2 p1 p2"], (fit.k, fit.d), size)

    used = [views[index] for index in kept]
    rms = _rms(np.concatenate([fit.residuals_px(place, view) for place, view in enumerate(used)]))
    _check_result(fit, _standard_deviations(used, fit, "k1 k2 p1 p2"), rms, size)
    held_out: dict[str, list[Vector]] = {}
    fits: dict[str, _Fit] = {}
    best = ""
    for name, flags in MODELS.items():
        fits[name] = _fit(used, flags, (fit.k, np.zeros(5)), size)
        held_out[name] = _held_out(used, flags, fits[name], size)
        if not best or _predicts_better(held_out[name], held_out[best]):
            best = name
    fit = fits[best]
    results = [
        ViewResult(index, view.corners_px, fit.residuals_px(place, view), held_out[best][place],
                   from_rodrigues(fit.turns[place], fit.moves[place]))
        for place, (index, view) in enumerate(zip(kept, used, strict=True))
    ]  # fmt: skip
    held_out_rms = _rms(np.concatenate(held_out[best]))
    sd = _standard_deviations(used, fit, best)
    _check_result(fit, sd, held_out_rms, size)
    rms = _rms(np.concatenate([result.residuals_px for result in results]))
    intrinsics = Intrinsics(*size, fit.k, fit.d, sd, rms, held_out_rms)
    by_model = {name: _rms(np.concatenate(errors)) for name, errors in held_out.items()}
    return IntrinsicsResult(intrinsics, results, dropped, coverage_map(used, size), best, by_model)


def _kept(views: Sequence[View], dropped: Mapping[int, str]) -> list[int]:
    kept = [index for index in range(len(views)) if index not in dropped]
    if len(kept) < MIN_VIEWS:
        found = f"{len(kept)}" + (f", after leaving out {len(dropped)}: {_reasons(dropped)}" if dropped else "")
        raise _refused("views", f"at least {MIN_VIEWS} good ones", found, f"take about {ENOUGH_VIEWS}")
    if len(dropped) > MAX_DROPPED * len(views):
        found = f"{len(dropped)} of {len(views)}: {_reasons(dropped)}"
        next_step = "check that the board is flat and that its columns and rows are given right"
        raise _refused("views left out", f"at most {MAX_DROPPED:.0%}", found, next_step)
    return kept


def _reasons(dropped: Mapping[int, str]) -> str:
    return "; ".join(sorted(set(dropped.values()))[:3])


def _drop_false_boards(views: Sequence[View], dropped: dict[int, str]) -> None:
    """A homography explains a flat board up to the lens's distortion; confused corners it cannot explain."""
    errors: dict[int, float] = {}
    for index, view in enumerate(views):
        if index in dropped:
            continue
        homography: Any = cv2.findHomography(view.points_m[:, :2], view.corners_px)[0]
        if homography is None:  # not found
            dropped[index] = "corners on one line"
            continue
        mapped = cv2.perspectiveTransform(view.points_m[None, :, :2], homography)[0]
        errors[index] = _rms(view.corners_px - mapped)
    limit = max(0.01 * views[0].size[0], 5.0 * float(np.median(list(errors.values())))) if errors else 0.0
    for index, error in errors.items():
        if not error <= limit:
            dropped[index] = "corners that no flat board gives"


def _check_coverage(views: Sequence[View], size: Size) -> None:
    cells = coverage_map(views, size)
    if (share := float((cells > 0).mean())) < MIN_COVERAGE:
        next_step = f"hold the board in the {emptiest_region(cells)} too"
        raise _refused("views", f"corners in at least {MIN_COVERAGE:.0%} of the picture", f"{share:.0%}", next_step)


def _first_guess(views: Sequence[View], size: Size) -> tuple[Vector, Vector]:
    points = [view.points_m.astype(np.float32) for view in views]
    k: Any = cv2.initCameraMatrix2D(points, [view.corners_px.astype(np.float32) for view in views], size)
    # Of boards that are never tilted, the closed form makes nonsense; a usual lens is where to begin then.
    if not np.isfinite(k).all() or not (0.3 * size[0] < k[0, 0] < 10 * size[0] and 0.5 < k[1, 1] / k[0, 0] < 2.0):
        k = np.array([[size[0], 0, (size[0] - 1) / 2], [0, size[0], (size[1] - 1) / 2], [0, 0, 1.0]])
    return k, np.zeros(5)


def _fit(views: Sequence[View], flags: int, guess: tuple[Vector, Vector], size: Size) -> _Fit:
    points = [view.points_m.astype(np.float32) for view in views]
    corners = [view.corners_px.astype(np.float32) for view in views]
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-10)
    flags |= cv2.CALIB_USE_INTRINSIC_GUESS
    found: Any
    try:
        found = cv2.calibrateCamera(points, corners, size, guess[0].copy(), guess[1].copy(), flags=flags, criteria=stop)
    except cv2.error as error:
        text = " ".join(str(error).split())[:120]
        raise _refused("calibration", "a lens that explains the views", text, "take other views") from error
    _, k, d, turns, moves = found
    if not (np.isfinite(k).all() and np.isfinite(d).all()):
        raise _refused("calibration", "a lens that explains the views", "none", "take other views, tilt the board")
    turns, moves = [np.ravel(turn) for turn in turns], [np.ravel(move) for move in moves]
    return _Fit(k, np.ravel(d)[:5].astype(np.float64), turns, moves)


def _outliers(rms_px: Sequence[float]) -> dict[int, str]:
    """Places of views whose error stands out → why. The worst ones first: they spoil the fit of the others."""
    values = np.array(rms_px)
    middle = float(np.median(values))
    limit = 3.0 * middle + 1e-3
    limit = max(limit, 0.3 * float(values.max()))
    return {int(i): "an error far above that of the other views" for i in np.flatnonzero(values > limit)}


def _held_out(views: Sequence[View], flags: int, fit: _Fit, size: Size) -> list[Vector]:
    """(N, 2) for each view: what a lens fitted without it leaves unexplained."""
    errors: list[Vector] = [np.empty((0, 2))] * len(views)
    for fold in range(FOLDS):
        train = [view for place, view in enumerate(views) if place % FOLDS != fold]
        k_d = _fit(train, flags, (fit.k, fit.d), size)
        for place in range(fold, len(views), FOLDS):
            view = views[place]
            pose: Any = cv2.solvePnP(
                view.points_m, view.corners_px, k_d.k, k_d.d, fit.turns[place].copy(), fit.moves[place].copy(),
                useExtrinsicGuess=True, flags=cv2.SOLVEPNP_ITERATIVE,
            )  # fmt: skip
            errors[place] = _Fit(k_d.k, k_d.d, [pose[1]], [pose[2]]).residuals_px(0, view)
    return errors


def _predicts_better(richer: Sequence[Vector], simpler: Sequence[Vector]) -> bool:
    gains = np.array([(before**2).sum() - (after**2).sum() for before, after in zip(simpler, richer, strict=True)])
    return bool(gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains)))


def _standard_deviations(views: Sequence[View], fit: _Fit, model: str) -> Vector:
    """(4,) of fx, fy, cx, cy: the jackknife over views, linearised (cluster-robust variance CR3)."""
    # OpenCV's Jacobian: rotation 3, translation 3, fx, fy, cx, cy, k1, k2, p1, p2, k3.
    free = [6, 7, 8, 9] + [10 + i for i, name in enumerate(_COEFFICIENTS) if name in model.split()]
    scores, informations = [], []
    for place, view in enumerate(views):
        _, jacobian = cv2.projectPoints(view.points_m, fit.turns[place], fit.moves[place], fit.k, fit.d)
        pose, lens = jacobian[:, :6], jacobian[:, free]
        lens = lens - pose @ np.linalg.lstsq(pose, lens, rcond=None)[0]  # what the view's pose cannot take up
        scores.append(lens.T @ fit.residuals_px(place, view).ravel())
        informations.append(lens.T @ lens)
    total = np.sum(informations, axis=0)
    # Columns of very different size: work with a unit diagonal.
    scale = 1.0 / np.sqrt(np.maximum(np.diag(total), 1e-300))
    steps = []
    for score, information in zip(scores, informations, strict=True):
        without = (total - information) * np.outer(scale, scale)
        steps.append(scale * (np.linalg.pinv(without, rcond=1e-13) @ (scale * score)))
    steps_of_views = np.array(steps) - np.mean(steps, axis=0)
    variance = (len(views) - 1) / len(views) * (steps_of_views**2).sum(axis=0)
    return np.sqrt(variance[:4])


def _check_result(fit: _Fit, sd: Vector, rms_px: float, size: Size) -> None:
    focal = fit.k[[0, 1], [0, 1]]
    if rms_px > (limit := MAX_RMS * size[0]):
        next_step = "check that the board is flat, is the one named, and that pictures are sharp"
        raise _refused("error of the calibration", f"at most {limit:.2g} px", f"{rms_px:.2g} px", next_step)
    if not (worst := float((sd[:2] / focal).max())) <= MAX_FOCAL_SD:
        next_step = "tilt the board by 30 degrees and more, in all four directions"
        expected = f"a standard deviation of at most {MAX_FOCAL_SD:.0%}"
        raise _refused("focal length, not determined", expected, f"{worst:.2g} of it", next_step)
    if not (worst := float(sd[2:].max()) / size[0]) <= MAX_CENTRE_SD:
        expected = f"a standard deviation of at most {MAX_CENTRE_SD * size[0]:.2g} px"
        next_step = "tilt the board more, and turn it in the picture's plane"
        raise _refused("principal point, not determined", expected, f"{worst * size[0]:.2g} px", next_step)
    if abs(math.log(focal[0] / focal[1])) > 0.1:
        next_step = "measure the board both ways: it may be printed squeezed"
        raise _refused("focal lengths", "the same across and down", str(focal.round(1).tolist()), next_step)


def _rms(errors_px: Vector) -> float:
    return float(np.sqrt((errors_px**2).sum(axis=-1).mean()))


@dataclass(frozen=True)
class Difference:
    """Of two lenses, over a grid on the picture.

    Attributes:
        max_px, mean_px: how far apart the same ray hits the picture.
        focal: of the second, relative to the first, minus 1: (2,) across and down.
        centre_px: (2,) principal point of the second minus the first.
        moved_px: (24, 32, 2) the displacements.
    """

    max_px: float
    mean_px: float
    focal: Vector
    centre_px: Vector
    moved_px: Vector


def compare(a: Intrinsics, b: Intrinsics) -> Difference:
    """Where rays that ``a`` sees on a grid of pixels hit the picture of ``b``.

    Raises:
        CalibrationError: pictures of different sizes.
    """
    if (a.width, a.height) != (b.width, b.height):
        found = f"{a.width}x{a.height} and {b.width}x{b.height}"
        raise _refused("lenses to compare", "the same size of picture", found, "calibrate at that resolution")
    x, y = np.meshgrid(np.linspace(0, a.width - 1, 32), np.linspace(0, a.height - 1, 24))
    pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    rays = cv2.undistortPoints(pixels, a.K, a.distortion, None, None, None, stop).reshape(-1, 2)
    rays_z = np.pad(rays, ((0, 0), (0, 1)), constant_values=1.0)
    seen, _ = cv2.projectPoints(rays_z, np.zeros(3), np.zeros(3), b.K, b.distortion)
    moved = (seen - pixels).reshape(24, 32, 2)
    lengths = np.linalg.norm(moved, axis=-1)
    focal = b.K[[0, 1], [0, 1]] / a.K[[0, 1], [0, 1]] - 1.0
    return Difference(float(lengths.max()), float(lengths.mean()), focal, b.K[:2, 2] - a.K[:2, 2], moved)


def write_camera_info(path: Path, intrinsics: Intrinsics, camera_name: str, *, replace: bool = False) -> None:
    """Write the file that ROS's camera_calibration writes, and camera drivers read.

    Raises:
        CalibrationError: the file is there and ``replace`` is not set, or it cannot be written.
    """
    size = (intrinsics.width, intrinsics.height)
    inner, _ = cv2.getOptimalNewCameraMatrix(intrinsics.K, intrinsics.distortion, size, 0.0)
    projection = np.hstack([inner, np.zeros((3, 1))])
    content = {
        "image_width": intrinsics.width,
        "image_height": intrinsics.height,
        "camera_name": camera_name,
        "camera_matrix": _matrix(intrinsics.K),
        "distortion_model": "plumb_bob",
        "distortion_coefficients": _matrix(intrinsics.distortion[None]),
        "rectification_matrix": _matrix(np.eye(3)),
        "projection_matrix": _matrix(projection),
    }
    write_yaml(path, content, replace=replace)


def read_camera_info(path: Path) -> Intrinsics:
    """The lens in a camera_info file.

    Raises:
        CalibrationError: missing, no such file, an unknown key, or another lens model.
    """
    content = read_yaml(path)
    known = {
        "image_width", "image_height", "camera_name", "camera_matrix", "distortion_model", "distortion_coefficients",
        "rectification_matrix", "projection_matrix",
    }  # fmt: skip
    check_keys(path.name, content, known - {"camera_name", "rectification_matrix", "projection_matrix"}, known)
    sizes = content["image_width"], content["image_height"]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in sizes):
        raise _refused(f"{path.name}: image size", "whole numbers", str(sizes), "calibrate the camera again")
    k = _numbers(path.name, "camera_matrix", content["camera_matrix"], 3, 3)
    coefficients = content["distortion_coefficients"]
    count = coefficients.get("cols") if isinstance(coefficients, dict) else None
    count = count if isinstance(count, int) and 0 <= count <= 14 else 5
    d = _numbers(path.name, "distortion_coefficients", coefficients, 1, count)
    return Intrinsics.of_camera(*sizes, k, d, str(content["distortion_model"]))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of plain values, as `dr_core.config.load_yaml` reads it.

    Raises:
        CalibrationError: missing, unreadable, or something else.
    """
    try:
        content = load_yaml(path)
    except ConfigError as error:
        raise _refused(error.what, error.expected, error.found, error.next_step) from error
    if not all(isinstance(key, str) for key in content):
        raise _refused(str(path), "`key: value` lines", "a key that is no text", "give another file")
    return content


def write_yaml(path: Path, content: Mapping[str, Any], *, replace: bool) -> None:
    """Write plain values whole or not at all.

    Raises:
        CalibrationError: the file is there and ``replace`` is not set, or it cannot be written.
    """
    if path.exists() and not replace:
        raise _refused(str(path), "a new file", "one that is there", "move it away, or replace it on purpose")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            yaml.safe_dump(dict(content), file, sort_keys=False, default_flow_style=None, width=110)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _refused(str(path), "a file that can be written", error.strerror or "an error", "change it") from error


def check_keys(where: str, content: Mapping[str, Any], required: Iterable[str], known: Iterable[str]) -> None:
    """Raises CalibrationError: a required key is missing, or one is unknown (with the nearest known one)."""
    names = sorted(known)
    for key in content:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            next_step = f"did you mean {near[0]}?" if near else "remove it"
            raise _refused(where, f"the keys {', '.join(names)}", f"the unknown key {key!r}", next_step)
    if missing := sorted(set(required) - set(content)):
        raise _refused(where, f"the key {missing[0]}", "none", "calibrate again")


def _matrix(values: Vector) -> dict[str, Any]:
    return {"rows": values.shape[0], "cols": values.shape[1], "data": [float(value) for value in values.ravel()]}


def _numbers(where: str, name: str, value: object, rows: int, columns: int) -> Vector:
    """(rows * columns,) of a mapping rows, cols, data."""
    if not isinstance(value, dict):
        raise _refused(f"{where}: {name}", "rows, cols and data", str(value)[:60], "calibrate the camera again")
    check_keys(f"{where}: {name}", value, {"data"}, {"rows", "cols", "data"})
    return finite(f"{where}: {name}", value["data"], rows * columns)


def finite(where: str, value: object, count: int) -> Vector:
    """(count,) of a list of finite numbers. Raises CalibrationError."""
    good = isinstance(value, list) and len(value) == count
    good = good and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)  # type: ignore[attr-defined]
    good = good and all(abs(item) < 1e300 for item in value)  # type: ignore[attr-defined]
    numbers = np.array(value if good else [np.nan], np.float64)
    if not np.isfinite(numbers).all():
        raise _refused(where, f"{count} finite numbers", str(value)[:80], "calibrate the camera again")
    return numbers


def _refused(subject: str, expected: str, found: str, next_step: str) -> CalibrationError:
    return CalibrationError(subject, expected=expected, found=found, next_step=next_step)
