"""Where the camera sits: on the tool (eye in hand) or beside the robot (eye to hand).

Both cases are one equation over the views i: ``A_i X B_i = Y`` with B_i = T_camera_board seen by the camera, and

- ``eye_in_hand``: A_i = T_base_tool, X = T_tool_camera (the result), Y = T_base_board;
- ``eye_to_hand``: A_i = T_tool_base, X = T_base_camera (the result), Y = T_tool_board.

Closed-form solvers give the start, a least-median-of-squares search finds the views that agree, and X and Y are then
refined together so that the corners of all those views reproject best. Corners err each by itself, while an error of
the robot's pose moves all corners of a view together: how large both are is estimated from the views, and the residuals
are weighted by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares, minimize
from scipy.spatial.transform import Rotation

from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, angle_between_rad, check_pose, distance_m, from_parts, from_rodrigues, invert

Floats = NDArray[np.float64]
Mode = Literal["eye_in_hand", "eye_to_hand"]

SMALLEST_VIEWS = 5
SMALLEST_ROTATION_DEG = 5.0
"""Rotation about the second axis (root mean square over pairs of views) below which the motion is degenerate."""
GOOD_ROTATION_DEG = 15.0
SCALE_TOLERANCE = 0.02
COVERAGE_FACTOR = 1.8
"""The error is shorter than this times the total standard deviation in 92.8 % (all of it along one axis) to 97.9 %
(equal along three) of cases, for normal errors: 90 to 99 % whatever their shape."""
OUTLIER_FACTOR = 3.0
LARGEST_DISTANCE = 28.0
"""Squared Mahalanobis distance of a view's pose above which it is left out: chi square of 6 exceeds it in 1e-4."""
_SOLVERS = ("tsai", "park", "horaud", "andreff", "daniilidis")


class Corners(Protocol):
    """The corners of the board that one view shows; `boards.Detection` is one."""

    @property
    def points_m(self) -> Floats:
        """(M, 3) on the board, m."""

    @property
    def corners_px(self) -> Floats:
        """(M, 2) in the distorted picture, px."""


@dataclass(frozen=True)
class View:
    """Corners as plain arrays: points_m (M, 3) on the board, corners_px (M, 2) in the distorted picture."""

    points_m: Floats
    corners_px: Floats


@dataclass(frozen=True)
class Diversity:
    """How well the motion of the tool determines the result."""

    rotation_deg: Floats
    """(3,): root mean square rotation between two views about each principal axis, largest first. Two are needed."""
    axes: Floats
    """(3, 3): those axes as rows, in the tool's frame."""
    translation_mm: Floats
    """(3,): standard deviation of the tool's position along its principal directions, largest first."""
    score: float
    """0 (degenerate) to 1 (15 degrees or more about two axes)."""
    advice: tuple[str, ...]


@dataclass(frozen=True)
class SolverRow:
    """One closed-form solver on the accepted views, compared with the refined result."""

    name: str
    rms: float
    """Reprojection, in `HandEye.unit`; infinite where the solver found nothing."""
    distance_mm: float
    angle_deg: float


@dataclass(frozen=True)
class HeldOut:
    """Errors (root mean square) on views that took no part in the solution."""

    views: int
    residual: float
    """Reprojection per corner, in `HandEye.unit`."""
    translation_mm: float
    """Between the board's centre by robot and result and the board's centre by the camera."""
    rotation_deg: float


@dataclass(frozen=True)
class HandEye:
    """The result of `solve`."""

    mode: Mode
    pose: Pose
    """T_tool_camera (eye_in_hand) or T_base_camera (eye_to_hand)."""
    board_pose: Pose
    """T_base_board (eye_in_hand) or T_tool_board (eye_to_hand)."""
    sd_mm: Floats
    """(3,): standard deviation of the translation along x, y, z of the tool (eye_in_hand) or base frame."""
    sd_deg: Floats
    """(3,): standard deviation of the rotation about x, y, z of that frame."""
    inliers: NDArray[np.bool_]
    """(N,): the views that agree."""
    residuals: Floats
    """(N,): reprojection of each view, root mean square over its corners, in `unit`."""
    unit: Literal["px", "mm"]
    """px where corners were given, mm where only poses of the board were."""
    cross_validation: HeldOut
    """Each fifth of the accepted views, predicted from the other four fifths."""
    diversity: Diversity
    solvers: tuple[SolverRow, ...]
    robot_sd_mm: float
    """Standard deviation of the robot's position along each axis, as the views show it; NaN where poses were given."""
    robot_sd_deg: float
    """The same of its rotation about each axis."""
    scale: float
    """Size of the board as stated over its size by the robot's motion; 1 within 2 % or not significant."""
    scale_sd: float
    """Infinite where the motion does not show the scale: turning about one point, as around the board, hides it."""

    @property
    def total_sd_mm(self) -> float:
        """Root of the summed variances: the error in position is below 1.8 times this in 90 to 99 % of cases."""
        return float(np.linalg.norm(self.sd_mm))

    @property
    def total_sd_deg(self) -> float:
        """Root of the summed variances: the error angle is below 1.8 times this in 90 to 99 % of cases."""
        return float(np.linalg.norm(self.sd_deg))

    @property
    def name(self) -> str:
        """Which transform `pose` is."""
        return "T_tool_camera" if self.mode == "eye_in_hand" else "T_base_camera"

    @property
    def advice(self) -> tuple[str, ...]:
        """What would make the next calibration better, empty if nothing."""
        advice = list(self.diversity.advice)
        if (rejected := int((~self.inliers).sum())) > 0:
            which = ", ".join(map(str, np.flatnonzero(~self.inliers)))
            advice.append(f"{rejected} of {len(self.inliers)} views disagree and are left out: {which}")
        if self.scale_sd > SCALE_TOLERANCE / 2:
            advice.append("the square size could not be checked: move toward the board and across, not around it alone")
        rms = float(np.sqrt(np.mean(self.residuals[self.inliers] ** 2)))
        if self.unit == "px" and rms > 2.0:
            advice.append(f"{rms:.1f} px remain: check intrinsics, sharpness and that the arm stood still")
        return tuple(advice)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, lists and strings alone, for YAML and the report."""
        return {
            "mode": self.mode,
            self.name: self.pose.tolist(),
            "T_base_board" if self.mode == "eye_in_hand" else "T_tool_board": self.board_pose.tolist(),
            "sd_mm": self.sd_mm.tolist(),
            "sd_deg": self.sd_deg.tolist(),
            "total_sd_mm": self.total_sd_mm,
            "total_sd_deg": self.total_sd_deg,
            "inliers": self.inliers.tolist(),
            "residuals": self.residuals.tolist(),
            "unit": self.unit,
            "cross_validation": vars(self.cross_validation).copy(),
            "diversity": {
                "rotation_deg": self.diversity.rotation_deg.tolist(),
                "axes": self.diversity.axes.tolist(),
                "translation_mm": self.diversity.translation_mm.tolist(),
                "score": self.diversity.score,
            },
            "solvers": [vars(row).copy() for row in self.solvers],
            "robot_sd_mm": self.robot_sd_mm if np.isfinite(self.robot_sd_mm) else None,
            "robot_sd_deg": self.robot_sd_deg if np.isfinite(self.robot_sd_deg) else None,
            "scale": self.scale,
            "scale_sd": self.scale_sd if np.isfinite(self.scale_sd) else None,
            "advice": list(self.advice),
        }


# --- the joint problem ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Solution:
    X: Pose
    Y: Pose
    scale: float = 1.0
    """The robot's translations are multiplied by it to match the board's metres."""


@dataclass(frozen=True)
class _Problem:
    """All corners of all views in one array of T rows, view by view; A and B as in the text above."""

    mode: Mode
    A: Floats  # (N, 4, 4)
    B: Floats  # (N, 4, 4)
    view: NDArray[np.intp]  # (T,): which view a row is of
    points: Floats  # (T, 3) on the board, m
    observed: Floats  # (T, 2) px, or (T, 3) mm in the camera's frame
    K: Floats | None
    distortion: Floats

    @property
    def unit(self) -> Literal["px", "mm"]:
        return "mm" if self.K is None else "px"

    def rows_of(self, views: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return views[self.view]

    def evaluate(self, solution: _Solution, rows: NDArray[np.bool_] | slice) -> tuple[Floats, Floats, Floats]:
        """Residuals (T, d) and their derivatives (T, d, 13) by rotation and translation of X, of Y, and the scale;
        and those (T, d, 6) by rotation and translation of the view's T_base_tool.

        Rotations are perturbed from the left: exp(w) R.
        """
        X, Y = solution.X, solution.Y
        rotation, shift = self.A[self.view[rows], :3, :3], self.A[self.view[rows], :3, 3]  # (T, 3, 3), (T, 3)
        turned = self.points[rows] @ Y[:3, :3].T
        board = turned + Y[:3, 3]
        arm = np.einsum("tji,tj->ti", rotation, board - solution.scale * shift) - X[:3, 3]
        camera = arm @ X[:3, :3]  # (T, 3)
        if self.K is None:
            projected = 1e3 * camera
            by_camera = np.asarray(np.tile(1e3 * np.eye(3), (len(camera), 1, 1)), np.float64)
        else:
            camera[:, 2] = np.maximum(camera[:, 2], 1e-3)
            pixels, jacobian = cv2.projectPoints(camera, np.zeros(3), np.zeros(3), self.K, self.distortion)
            projected = pixels.reshape(-1, 2)
            by_camera = np.asarray(jacobian[:, 3:6].reshape(-1, 2, 3), np.float64)
        by_arm = by_camera @ X[:3, :3].T  # (T, d, 3)
        by_board = by_arm @ rotation.transpose(0, 2, 1)
        derivative = np.concatenate(
            [
                np.cross(by_arm, arm[:, None]),
                -by_arm,
                -np.cross(by_board, turned[:, None]),
                by_board,
                -np.einsum("tdi,ti->td", by_board, shift)[..., None],
            ],
            axis=2,
        )
        if self.mode == "eye_in_hand":
            by_turn, by_shift = np.cross(by_board, (board - solution.scale * shift)[:, None]), -by_board
        else:
            by_turn = -np.cross(by_arm, np.einsum("tji,tj->ti", rotation, board)[:, None])
            by_shift = by_arm
        return projected - self.observed[rows], derivative, np.concatenate([by_turn, by_shift], axis=2)

    def view_rms(self, solution: _Solution) -> Floats:
        """(N,): root mean square length of the residuals of each view; infinite where the board is behind."""
        squares = (self.evaluate(solution, slice(None))[0] ** 2).sum(1)
        counts = np.bincount(self.view, minlength=len(self.A))
        rms = np.sqrt(np.bincount(self.view, squares, minlength=len(self.A)) / counts)
        shift = self.A[:, :3, 3] * solution.scale
        centre = np.einsum("nji,nj->ni", self.A[:, :3, :3], solution.Y[:3, 3] - shift) - solution.X[:3, 3]
        behind = (centre @ solution.X[:3, 2] <= 0.0) & (self.K is not None)
        return np.where(behind, np.inf, rms)


@dataclass(frozen=True)
class _Noise:
    """How corners and robot poses err, and what makes their residuals independent and of one size.

    A view's residuals have the covariance corner^2 (1 + U diag(l) U^T), U being orthonormal: dividing their part along
    the columns of U by sqrt(1 + l) whitens them.
    """

    corner: float
    """Standard deviation of a coordinate, px."""
    turn_rad: float
    shift_m: float
    basis: Floats  # (T, d, 6): U of the view
    shrink: Floats  # (N, 6): 1 - 1 / sqrt(1 + l)
    distances: Floats
    """(N,): squared Mahalanobis distance between the robot's pose of a view and the one that its corners ask for."""

    def whiten(self, problem: _Problem, rows: NDArray[np.bool_], values: Floats) -> Floats:
        """Values (T, d, k) of these rows; all rows of a view or none."""
        view, basis = problem.view[rows], self.basis[rows]
        starts, number = np.unique(view, return_index=True, return_inverse=True)[1:]
        along = np.add.reduceat(np.einsum("tdi,tdk->tik", basis, values), starts) * self.shrink[view[starts], :, None]
        return np.asarray(values - np.einsum("tdi,tik->tdk", basis, along[number]))


def _noise(problem: _Problem, solution: _Solution, views: NDArray[np.bool_]) -> _Noise:
    """The noise by these views: that of the corners is what no motion of the view explains, that of the robot is the
    restricted maximum likelihood of the motions that the corners ask for (Patterson and Thompson 1971)."""
    residual, derivative, by_robot = problem.evaluate(solution, slice(None))
    n = len(problem.A)
    basis, lost = np.zeros(by_robot.shape), np.zeros(residual.shape)
    asked, inverse, design = np.zeros((n, 6)), np.zeros((n, 6, 6)), np.zeros((n, 6, 12))
    freedom = 0
    for i in range(n):
        rows = problem.view == i
        matrix = by_robot[rows].reshape(-1, 6)
        pseudo = np.linalg.pinv(matrix)
        asked[i] = pseudo @ residual[rows].ravel()
        design[i] = pseudo @ derivative[rows].reshape(-1, 13)[:, :12]
        inverse[i] = pseudo @ pseudo.T
        lost[rows] = (residual[rows].ravel() - matrix @ asked[i]).reshape(-1, residual.shape[1])
        freedom += len(matrix) - 6 if views[i] else 0
    rows = problem.rows_of(views)
    corner = 1.4826 * float(np.median(np.abs(lost[rows]))) * np.sqrt(residual[rows].size / freedom)
    corner = max(corner, 1e-3)

    def covariance(logs: Floats) -> Floats:  # (N, 6, 6)
        return np.asarray(corner**2 * inverse + np.diag(np.repeat(np.exp(2 * logs), 3)))

    def unlikely(logs: Floats) -> float:
        spread = covariance(logs)[views]
        weight = np.linalg.inv(spread)
        normal = np.einsum("nip,nij,njq->pq", design[views], weight, design[views])
        right = np.einsum("nip,nij,nj->p", design[views], weight, asked[views])
        squares = np.einsum("ni,nij,nj->", asked[views], weight, asked[views]) - right @ np.linalg.solve(normal, right)
        return float(np.linalg.slogdet(spread)[1].sum() + np.linalg.slogdet(normal)[1] + squares)

    bounds = np.log([(1e-6, 0.1), (1e-6, 0.1)])
    logs = minimize(unlikely, np.log([3e-4, 1e-4]), method="Nelder-Mead", bounds=bounds, options={"xatol": 0.02}).x
    shrink = np.zeros((n, 6))
    for i in range(n):
        rows = problem.view == i
        scaled = by_robot[rows].reshape(-1, 6) * np.repeat(np.exp(logs), 3)
        columns, values, _ = np.linalg.svd(scaled, full_matrices=False)
        basis[rows] = columns.reshape(-1, residual.shape[1], 6)
        shrink[i] = 1.0 - corner / np.hypot(corner, values)
    distances = np.einsum("ni,ni->n", asked, np.linalg.solve(covariance(logs), asked[..., None])[..., 0])
    return _Noise(corner, float(np.exp(logs[0])), float(np.exp(logs[1])), basis, shrink, distances)


def _left_jacobian(vector: Floats) -> Floats:
    """d(log of exp(v + d) exp(-v)) / dd at d = 0 (Barfoot, State Estimation for Robotics, eq. 7.77)."""
    angle = float(np.linalg.norm(vector))
    cross = _cross_matrices(vector[None])[0]
    if angle < 1e-6:
        return np.eye(3) + cross / 2
    first, second = (1 - np.cos(angle)) / angle**2, (angle - np.sin(angle)) / angle**3
    return np.asarray(np.eye(3) + first * cross + second * cross @ cross)


def _moved(start: _Solution, step: Floats) -> _Solution:
    def move(pose: Pose, part: Floats) -> Pose:
        return from_parts(Rotation.from_rotvec(part[:3]).as_matrix() @ pose[:3, :3], pose[:3, 3] + part[3:])

    scale = start.scale + step[12] if len(step) == 13 else start.scale
    return _Solution(move(start.X, step[:6]), move(start.Y, step[6:12]), float(scale))


def _huber_width(residual: Floats) -> float:
    return max(2.5 * 1.4826 * float(np.median(np.abs(residual))), 1e-3)


def _weighted(
    problem: _Problem, solution: _Solution, rows: NDArray[np.bool_], noise: _Noise | None
) -> tuple[Floats, Floats]:
    """Residuals (T, d) and derivatives (T, d, 13) of these rows, whitened where the noise is known."""
    residual, derivative, _ = problem.evaluate(solution, rows)
    if noise is None:
        return residual, derivative
    both = noise.whiten(problem, rows, np.concatenate([residual[..., None], derivative], axis=2))
    return both[..., 0], both[..., 1:]


def _refine(
    problem: _Problem,
    start: _Solution,
    views: NDArray[np.bool_],
    noise: _Noise | None = None,
    *,
    free_scale: bool,
    evaluations: int = 50,
) -> _Solution:
    """X, Y (and the scale) of the least Huber loss over the corners of these views."""
    rows, size = problem.rows_of(views), 13 if free_scale else 12

    def residual(step: Floats) -> Floats:
        return _weighted(problem, _moved(start, step), rows, noise)[0].ravel()

    def derivative(step: Floats) -> Floats:
        matrix = _weighted(problem, _moved(start, step), rows, noise)[1].reshape(-1, 13)[:, :size].copy()
        for first in (0, 6):
            matrix[:, first : first + 3] = matrix[:, first : first + 3] @ _left_jacobian(step[first : first + 3])
        return matrix

    width = _huber_width(residual(np.zeros(size)))
    found = least_squares(
        residual, np.zeros(size), derivative, loss="huber", f_scale=width, x_scale="jac", max_nfev=evaluations
    )
    return _moved(start, found.x)


def _bootstrap(
    problem: _Problem,
    solution: _Solution,
    views: NDArray[np.bool_],
    noise: _Noise | None,
    *,
    free_scale: bool,
    draws: int,
    rng: np.random.Generator,
) -> Floats:
    """(12 or 13,): standard deviations of the parameters, by a Bayesian bootstrap over views (Rubin 1981).

    Every draw weighs the views anew (exponential weights: no draw is degenerate, unlike drawing views with
    replacement) and takes one Gauss-Newton step of the Huber loss from the solution. Errors of a view's robot pose
    move all its corners together; weighing whole views keeps them together. The fit follows the views that it leans
    on, and their gradients come out too small: each is corrected by its leverage (Bell and McCaffrey 2002, CR2). The
    variance of such draws is that of n + 1 views in place of n - 1, which the last factor makes good.
    """
    rows, size = problem.rows_of(views), 13 if free_scale else 12
    residual, derivative = _weighted(problem, solution, rows, noise)
    derivative = derivative[:, :, :size]
    width = _huber_width(residual)
    numbers = np.unique(problem.view[rows], return_inverse=True)[1]
    n = int(views.sum())
    inside = (np.abs(residual) <= width).astype(np.float64)
    hessian, gradient = np.zeros((n, size, size)), np.zeros((n, size))
    np.add.at(hessian, numbers, np.einsum("tdi,td,tdj->tij", derivative, inside, derivative))
    np.add.at(gradient, numbers, np.einsum("tdi,td->ti", derivative, np.clip(residual, -width, width)))
    half = np.linalg.cholesky(hessian.sum(0))
    white = np.linalg.solve(half, np.linalg.solve(half, hessian).transpose(0, 2, 1))  # (n, 12, 12), sums to 1
    values, vectors = np.linalg.eigh(np.eye(size) - white)
    turned = np.einsum("nji,nj->ni", vectors, np.linalg.solve(half, gradient.T).T) / np.sqrt(np.maximum(values, 1e-3))
    gradient = np.einsum("nij,nj->ni", half @ vectors, turned)
    gradient -= gradient.mean(0)
    weights = rng.exponential(size=(draws, n))  # (draws, n)
    steps = np.linalg.solve(
        np.einsum("bn,nij->bij", weights, hessian), np.einsum("bn,ni->bi", weights, gradient)[..., None]
    )[..., 0]
    return np.asarray(steps.std(axis=0) * np.sqrt((n + 1) / (n - 1)))


# --- the start --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """What the least-median search found."""

    solution: _Solution
    errors_m: Floats  # (N,): mean displacement of the board's corners between prediction and camera
    rotation_deg: float  # median over the views
    best_views: NDArray[np.bool_]  # (N,): the half that agrees best

    @property
    def median_m(self) -> float:
        return float(np.median(self.errors_m))


def _pair_vectors(first: Floats, second: Floats) -> Floats:
    """(N, N, 3): rotation vectors of first[i] @ second[j]."""
    products = first[:, None] @ second[None]
    vectors = Rotation.from_matrix(products.reshape(-1, 3, 3)).as_rotvec()
    return np.asarray(vectors.reshape(len(first), len(second), 3))


def _project_rotation(matrix: Floats) -> Floats:
    """(..., 3, 3): the nearest rotation."""
    u, _, vt = np.linalg.svd(matrix)
    u[..., :, 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return np.asarray(u @ vt)


def _linear(
    A: Floats, B: Floats, alpha: Floats, beta: Floats, subsets: NDArray[np.intp]
) -> tuple[Floats, Floats, Floats]:
    """X (S, 4, 4), Y (S, 4, 4) and scale (S,) of S subsets (S, k) of the views.

    Rotations by the rotation vectors of all pairs (Park and Martin 1994), then both translations and the scale of the
    robot's translations by linear least squares: R_A t_X - t_Y + s t_A = -R_A R_X t_B.
    """
    a = alpha[subsets[:, :, None], subsets[:, None]]  # (S, k, k, 3)
    b = beta[subsets[:, :, None], subsets[:, None]]
    # Near 180 degrees the sign of a rotation vector is chance.
    usable = (np.linalg.norm(a, axis=-1) < 2.9) & (np.linalg.norm(b, axis=-1) < 2.9)
    RX = _project_rotation(np.einsum("spqi,spqj,spq->sij", a, b, usable.astype(np.float64)))
    RA, RB = A[subsets, :3, :3], B[subsets, :3, :3]  # (S, k, 3, 3)
    tA, tB = A[subsets, :3, 3], B[subsets, :3, 3]  # (S, k, 3)
    RY = _project_rotation((RA @ RX[:, None] @ RB).sum(1))
    count, k = subsets.shape
    rows = np.zeros((count, k, 3, 7))
    rows[..., :3], rows[..., 3:6], rows[..., 6] = RA, -np.eye(3), tA
    matrix = rows.reshape(count, 3 * k, 7)
    right = -np.einsum("skij,sjl,skl->ski", RA, RX, tB).reshape(count, 3 * k)
    # A millimetre's worth of belief in scale 1 decides only where the tool does not translate at all.
    prior = np.diag([1e-10] * 6 + [1e-6])
    normal = np.einsum("sri,srj->sij", matrix, matrix) + prior
    unknown = np.linalg.solve(normal, (np.einsum("sri,sr->si", matrix, right) + prior[:, 6])[..., None])[..., 0]
    X, Y = np.tile(np.eye(4), (count, 1, 1)), np.tile(np.eye(4), (count, 1, 1))
    X[:, :3, :3], X[:, :3, 3], Y[:, :3, :3], Y[:, :3, 3] = RX, unknown[:, :3], RY, unknown[:, 3:6]
    return X, Y, unknown[:, 6]


def _search(A: Floats, B: Floats, corners_m: Floats, rng: np.random.Generator, tries: int = 400) -> _Search:
    """The solution of four views with the least median error over all views (Rousseeuw 1984), then of the best half.

    corners_m (4, 3): of the board, by which errors are measured.
    """
    n = len(A)
    alpha = _pair_vectors(A[:, :3, :3].transpose(0, 2, 1), A[:, :3, :3])
    beta = _pair_vectors(B[:, :3, :3], B[:, :3, :3].transpose(0, 2, 1))
    half = min(n, (n + 5) // 2)
    seen = corners_m @ B[:, :3, :3].transpose(0, 2, 1) + B[:, None, :3, 3]  # (N, 4, 3)

    def errors(X: Floats, Y: Floats, scale: Floats) -> Floats:
        board = corners_m @ Y[:, :3, :3].transpose(0, 2, 1) + Y[:, None, :3, 3]  # (S, 4, 3)
        moved = board[:, None] - (scale[:, None, None] * A[:, :3, 3])[:, :, None]  # (S, N, 4, 3)
        arm = moved @ A[:, :3, :3] - X[:, None, None, :3, 3]
        return np.asarray(np.linalg.norm(arm @ X[:, None, :3, :3] - seen, axis=-1).mean(-1))  # (S, N)

    subsets = np.argsort(rng.random((tries, n)), axis=1)[:, :4]
    every = errors(*_linear(A, B, alpha, beta, subsets))
    agreeing = np.argsort(every[np.argmin(np.sort(every, axis=1)[:, half - 1])])[:half]
    for _ in range(5):
        X, Y, scale = _linear(A, B, alpha, beta, agreeing[None])
        found = errors(X, Y, scale)[0]
        agreeing = np.argsort(found)[:half]
    turned = A[:, :3, :3] @ X[0, :3, :3] @ B[:, :3, :3]
    angles = Rotation.from_matrix(turned @ Y[0, :3, :3].T).magnitude()
    best = np.zeros(n, bool)
    best[agreeing] = True
    return _Search(_Solution(X[0], Y[0], float(scale[0])), found, float(np.degrees(np.median(angles))), best)


def _translation(Ra: Floats, ta: Floats, RX: Floats, tb: Floats) -> Floats:
    """t_X (3,) of (R_a - 1) t_X = R_X t_b - t_a, least squares over the pairs."""
    return np.asarray(np.linalg.lstsq((Ra - np.eye(3)).reshape(-1, 3), (tb @ RX.T - ta).ravel(), rcond=None)[0])


def _tsai(a: Rotation, b: Rotation) -> Floats:
    """R_X by Rodrigues' parameters (Tsai and Lenz 1989, eq. 12)."""
    pa, pb = (2.0 * _canonical(rotation)[:, :3] for rotation in (a, b))
    gibbs = np.linalg.lstsq(_cross_matrices(pa + pb).reshape(-1, 3), (pb - pa).ravel(), rcond=None)[0]
    return np.asarray(Rotation.from_quat(np.append(gibbs, 1.0)).as_matrix())


def _park(a: Rotation, b: Rotation) -> Floats:
    """R_X by rotation vectors (Park and Martin 1994)."""
    return _project_rotation(a.as_rotvec().T @ b.as_rotvec())


def _horaud(a: Rotation, b: Rotation) -> Floats:
    """R_X by the axes of rotation alone (Horaud and Dornaika 1995, section 4)."""
    axes = [rotation.as_rotvec() / rotation.magnitude()[:, None] for rotation in (a, b)]
    return _project_rotation(axes[0].T @ axes[1])


def _andreff(a: Rotation, b: Rotation) -> Floats:
    """R_X by the null space of R_a R_X = R_X R_b, linear in its nine entries (Andreff, Horaud and Espiau 1999)."""
    products = np.einsum("pij,pkl->pikjl", a.as_matrix(), b.as_matrix()).reshape(-1, 9, 9)
    entries = np.linalg.svd((products - np.eye(9)).reshape(-1, 9), full_matrices=False)[2][-1].reshape(3, 3)
    return _project_rotation(entries * np.sign(np.linalg.det(entries)))


def _daniilidis(a: Rotation, ta: Floats, b: Rotation, tb: Floats) -> Pose:
    """X by dual quaternions (Daniilidis 1999, eq. 31 to 35)."""
    qa, qb = _canonical(a), _canonical(b)  # (P, 4), x y z w

    def dual(q: Floats, t: Floats) -> Floats:
        return 0.5 * (q[:, 3:] * t + np.cross(t, q[:, :3]))  # the vector part of t q / 2

    da, db = dual(qa, ta), dual(qb, tb)
    rows = np.zeros((len(qa), 6, 8))  # of the unknowns (w, x, y, z) of X's rotation and of its dual part
    rows[:, :3, 0], rows[:, :3, 1:4] = qa[:, :3] - qb[:, :3], _cross_matrices(qa[:, :3] + qb[:, :3])
    rows[:, 3:, 0], rows[:, 3:, 1:4] = da - db, _cross_matrices(da + db)
    rows[:, 3:, 4:] = rows[:, :3, :4]
    u, v = np.split(np.linalg.svd(rows.reshape(-1, 8), full_matrices=False)[2][-2:], 2, axis=1)  # (2, 4) each
    ratios = np.roots([u[0] @ v[0], u[0] @ v[1] + u[1] @ v[0], u[1] @ v[1]]).real
    ratio = max(ratios, key=lambda s: float(s * s * (u[0] @ u[0]) + 2 * s * (u[0] @ u[1]) + u[1] @ u[1]))
    real, dual_part = ratio * u[0] + u[1], ratio * v[0] + v[1]
    (w, *x), (dw, *dx) = real, dual_part
    length = real @ real
    shift = 2.0 * (-dw * np.array(x) + w * np.array(dx) + np.cross(x, dx)) / length
    return from_parts(Rotation.from_quat([*x, w]), shift)


def _canonical(rotation: Rotation) -> Floats:
    """(P, 4): quaternions x, y, z, w with w >= 0."""
    numbers = rotation.as_quat()
    return np.asarray(np.where(numbers[:, 3:] < 0.0, -numbers, numbers))


def _cross_matrices(vectors: Floats) -> Floats:
    """(P, 3, 3): M with M x = v x x."""
    return np.asarray(np.cross(np.eye(3)[None], vectors[:, None]), np.float64)


def _closed_form(A: Floats, B: Floats) -> dict[str, _Solution]:
    """What each closed-form solver finds from all pairs of views.

    Written out here because OpenCV 5.0.0 exports the names of these methods to Python but not `calibrateHandEye`.
    """
    first, second = np.triu_indices(len(A), 1)
    a = np.linalg.inv(A[second]) @ A[first]  # a X = X b
    b = B[second] @ np.linalg.inv(B[first])
    Qa, Qb = Rotation.from_matrix(a[:, :3, :3]), Rotation.from_matrix(b[:, :3, :3])
    # Tiny rotations have no axis, and near 180 degrees its sign is chance.
    usable = (np.minimum(Qa.magnitude(), Qb.magnitude()) > 0.02) & (np.maximum(Qa.magnitude(), Qb.magnitude()) < 2.9)
    Qa, Qb, Ra, ta, tb = Qa[usable], Qb[usable], a[usable, :3, :3], a[usable, :3, 3], b[usable, :3, 3]
    if usable.sum() < 2:
        return {}
    poses = {"daniilidis": _daniilidis(Qa, ta, Qb, tb)}
    for name, rotate in {"tsai": _tsai, "park": _park, "horaud": _horaud, "andreff": _andreff}.items():
        RX = rotate(Qa, Qb)
        poses[name] = from_parts(RX, _translation(Ra, ta, RX, tb))
    solutions = {}
    for name, X in poses.items():
        boards = A @ X @ B
        if np.isfinite(boards).all():
            Y = from_parts(_project_rotation(boards[:, :3, :3].sum(0)), np.median(boards[:, :3, 3], axis=0))
            solutions[name] = _Solution(X, Y)
    return solutions


# --- checks -----------------------------------------------------------------------------------------------------------


def board_pose(view: Corners, K: ArrayLike, distortion: ArrayLike | None, name: str = "view") -> Pose:
    """T_camera_board of the corners of one view; of a flat board's two poses the one that fits better.

    Args:
        K: (3, 3) of the camera, px.
        distortion: OpenCV's 4, 5, 8, 12 or 14 numbers, or None.

    Raises:
        CalibrationError: fewer than four corners, corners on one line, arrays of other shapes, or no pose found.
    """
    points, corners = np.asarray(view.points_m, np.float64), np.asarray(view.corners_px, np.float64)
    shapes = f"shapes {points.shape} and {corners.shape}"
    if points.ndim != 2 or points.shape[1:] != (3,) or corners.shape != (len(points), 2) or len(points) < 4:
        raise CalibrationError(
            name, expected="4 corners or more: (M, 3) m and (M, 2) px", found=shapes, next_step="leave this view out"
        )
    if not (np.isfinite(points).all() and np.isfinite(corners).all()):
        raise CalibrationError(
            name, expected="finite corners", found="numbers that are not", next_step="leave this view out"
        )
    centred = points - points.mean(0)
    spread = np.linalg.svd(centred, compute_uv=False)
    if spread[1] < 0.02 * spread[0]:
        raise CalibrationError(
            name, expected="corners over an area", found="corners on one line", next_step="leave this view out"
        )
    if (size := float(np.ptp(points, axis=0).max())) > 5.0:
        raise CalibrationError(
            name, expected="a board below 5 m", found=f"{size:g}", next_step="give metres, not millimetres"
        )
    camera = np.asarray(K, np.float64)
    lens = np.zeros(5) if distortion is None else np.asarray(distortion, np.float64)
    flat = float(np.abs(points[:, 2]).max()) < 1e-9
    flags = cv2.SOLVEPNP_IPPE if flat else cv2.SOLVEPNP_SQPNP
    best, least = None, np.inf
    for rotation, shift in zip(*cv2.solvePnPGeneric(points, corners, camera, lens, flags=flags)[1:3], strict=True):
        rotation, shift = cv2.solvePnPRefineLM(points, corners, camera, lens, rotation, shift)
        error = float(np.square(cv2.projectPoints(points, rotation, shift, camera, lens)[0][:, 0] - corners).mean())
        if error < least and shift[2] > 0:
            best, least = from_rodrigues(rotation, shift), error
    if best is None:
        raise CalibrationError(
            name, expected="a pose of the board", found="none that fits the corners", next_step="leave this view out"
        )
    return best


def _axis_name(axis: Floats) -> str:
    strongest = int(np.argmax(np.abs(axis)))
    if abs(axis[strongest]) > 0.94:  # within 20 degrees
        return "xyz"[strongest]
    axis = axis * np.sign(axis[strongest])
    return "(" + ", ".join(f"{number:.2f}" for number in axis + 0.0) + ")"


def diversity(T_base_tool: Floats) -> Diversity:
    """How well a motion (N, 4, 4) determines the hand-eye pose, and what is missing; refuses nothing."""
    n = len(T_base_tool)
    rotations = T_base_tool[:, :3, :3]
    vectors = _pair_vectors(rotations.transpose(0, 2, 1), rotations)[np.triu_indices(n, 1)]
    values, columns = np.linalg.eigh(vectors.T @ vectors / len(vectors))
    angles = np.degrees(np.sqrt(np.maximum(values[::-1], 0.0)))
    axes = np.ascontiguousarray(columns[:, ::-1].T)
    centred = T_base_tool[:, :3, 3] - T_base_tool[:, :3, 3].mean(0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    spread = 1e3 * lengths / np.sqrt(n)
    advice = []
    if angles[0] < GOOD_ROTATION_DEG:
        advice.append(f"rotations are small ({angles[0]:.1f} deg between views): turn the tool by 15 to 30 deg")
    if angles[1] < GOOD_ROTATION_DEG:
        advice.append(f"little rotation except about the tool's {_axis_name(axes[0])} axis: {_other_axes(axes[0])}")
    if spread[0] < 20.0:
        advice.append("the tool hardly translates: move it by 100 mm or more")
    elif spread[1] < 0.1 * spread[0]:
        along = _axis_name(directions[0])
        advice.append(f"translations lie along one line, {along} of the base: move the tool across it too")
    score = float(min(1.0, angles[1] / GOOD_ROTATION_DEG))
    return Diversity(angles, axes, spread, score, tuple(advice))


def _other_axes(axis: Floats) -> str:
    name = _axis_name(axis)
    others = " or ".join(letter for letter in "xyz" if letter != name)
    about = f"its {others} axis" if name in "xyz" else f"an axis across {name}"
    return f"add views with the tool turned by 15 to 30 deg about {about}"


def _refuse_degenerate(motion: Diversity) -> None:
    first, second = float(motion.rotation_deg[0]), float(motion.rotation_deg[1])
    if second >= SMALLEST_ROTATION_DEG:
        return
    if first < SMALLEST_ROTATION_DEG:
        found = f"{first:.1f} deg between views (root mean square)"
        next_step = "turn the tool by 15 to 30 deg between views, about two of its axes: missing are all rotations"
    else:
        found = f"rotations about its {_axis_name(motion.axes[0])} axis alone ({second:.1f} deg about any other)"
        next_step = _other_axes(motion.axes[0])
    raise CalibrationError(
        "hand-eye motion", expected="rotations of the tool about two axes", found=found, next_step=next_step
    )


def _refuse_disagreement(A: Floats, B: Floats, corners_m: Floats, search: _Search, rng: np.random.Generator) -> None:
    """Refuses where robot and camera do not describe one rigid motion, and says which mistake explains it."""
    if search.median_m < 0.015 and search.rotation_deg < 2.0:
        return
    numbers = Rotation.from_matrix(A[:, :3, :3]).as_quat()

    def reordered(order: list[int]) -> Floats:
        changed = A.copy()
        changed[:, :3, :3] = Rotation.from_quat(numbers[:, order]).as_matrix()
        return changed

    inverse = np.array([invert(pose) for pose in A])
    # In eye_to_hand A is the inverse of what was given; the inverse only flips the sign of the vector part, and with
    # it the order of mistakes in the quaternion, so each is tried on both.
    flipped = numbers * [-1, -1, -1, 1]

    def reordered_inverse(order: list[int]) -> Floats:
        given = Rotation.from_quat(flipped[:, order])
        changed = np.tile(np.eye(4), (len(A), 1, 1))
        changed[:, :3, :3] = given.as_matrix()
        changed[:, :3, 3] = inverse[:, :3, 3]
        return np.array([invert(pose) for pose in changed])

    wxyz, xyzw = [1, 2, 3, 0], [3, 0, 1, 2]
    order = "quaternions in another order (w first and w last are exchanged)"
    other = "inverted poses: T_tool_base in place of T_base_tool, or the other mode"
    tried = [(inverse, other)]
    tried += [(build(which), order) for build in (reordered, reordered_inverse) for which in (wxyz, xyzw)]
    outcomes = [(_search(poses, B, corners_m, rng).median_m, text) for poses, text in tried]
    least, cause = min(outcomes, key=lambda outcome: outcome[0])
    if least > search.median_m / 4:
        cause = "no usual mistake explains it: check that camera and robot stamps match and that the board is fixed"
    raise CalibrationError(
        "hand-eye poses",
        expected="the same rigid motion by robot and camera",
        found=f"a median disagreement of {1e3 * search.median_m:.0f} mm and {search.rotation_deg:.1f} deg",
        next_step=f"likely {cause}" if least <= search.median_m / 4 else cause,
    )


def _scale_shows(problem: _Problem, search: _Search) -> bool:
    """Whether a change of scale moves the corners in a way that no change of X and Y does.

    It does not where the tool turns about one point. Asked for is a standard deviation of 2 % at 1 px (or mm).
    """
    derivative = problem.evaluate(search.solution, problem.rows_of(search.best_views))[1].reshape(-1, 13)
    poses, scale = derivative[:, :12], derivative[:, 12]
    alone = scale - poses @ np.linalg.lstsq(poses, scale, rcond=None)[0]
    return bool(np.linalg.norm(alone) * search.solution.scale > 50.0)


def _refuse_scale(scale: float, sd: float) -> None:
    if abs(scale - 1.0) <= SCALE_TOLERANCE or abs(scale - 1.0) <= 3.0 * sd:
        return
    if scale < 0.01 or scale > 100.0:
        which = "the robot's poses" if scale < 1.0 else "the board's squares"
        next_step = f"give {which} in metres, not millimetres"
    else:
        next_step = f"measure the squares (likely {1 / scale:.4f} of the stated size) and check the focal length"
    raise CalibrationError(
        "size of the board",
        expected="the same scale by the robot's motion and by the board, within 2 %",
        found=f"a board stated {scale:.4g} times its size (sd {sd:.2g})",
        next_step=next_step,
    )


def _checked_poses(poses: ArrayLike, name: str) -> Floats:
    array = np.asarray(poses, np.float64)
    if array.ndim != 3 or array.shape[1:] != (4, 4):
        raise CalibrationError(
            name, expected="poses (N, 4, 4)", found=f"shape {array.shape}", next_step="give one pose per view"
        )
    return np.array([check_pose(pose, f"{name}[{i}]") for i, pose in enumerate(array)]).reshape(-1, 4, 4)


def _distinct(poses: Floats) -> int:
    """How many poses are 1 mm or 0.2 degrees apart from all before them."""
    kept: list[Pose] = []
    for pose in poses:
        if all(distance_m(pose, one) > 1e-3 or angle_between_rad(pose, one) > np.radians(0.2) for one in kept):
            kept.append(pose)
    return len(kept)


def _problem(
    T_base_tool: ArrayLike,
    views: Sequence[Corners] | None,
    mode: Mode,
    K: ArrayLike | None,
    distortion: ArrayLike | None,
    T_camera_board: ArrayLike | None,
) -> _Problem:
    if mode not in get_args(Mode):
        raise CalibrationError(
            "mode", expected=" or ".join(get_args(Mode)), found=repr(mode), next_step="choose where the camera sits"
        )
    tool = _checked_poses(T_base_tool, "T_base_tool")
    if (views is None) == (T_camera_board is None) or (views is not None and K is None):
        raise CalibrationError(
            "hand-eye input",
            expected="either corners with K and distortion, or T_camera_board",
            found="both, neither or corners without K",
            next_step="give the corners where there are any",
        )
    lens = np.zeros(5) if distortion is None else np.asarray(distortion, np.float64).ravel()
    if views is not None:
        camera: Floats | None = np.asarray(K, np.float64)
        assert camera is not None
        fine = camera.shape == (3, 3) and np.isfinite(camera).all() and camera[0, 0] > 0 and camera[1, 1] > 0
        if not fine or len(lens) not in (4, 5, 8, 12, 14) or not np.isfinite(lens).all():
            raise CalibrationError(
                "intrinsics",
                expected="K (3, 3) with positive focal lengths and 4, 5, 8, 12 or 14 distortion numbers, finite",
                found=f"K {camera.tolist()}, distortion {lens.tolist()}",
                next_step="calibrate the intrinsics first",
            )
        board = np.array([board_pose(v, camera, lens, f"view {i}") for i, v in enumerate(views)]).reshape(-1, 4, 4)
        points = [np.asarray(v.points_m, np.float64) for v in views]
        observed = [np.asarray(v.corners_px, np.float64) for v in views]
    else:
        camera = None
        board = _checked_poses(np.asarray(T_camera_board, np.float64), "T_camera_board")
        points = [0.1 * np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])] * len(board)
        observed = [1e3 * (p @ b[:3, :3].T + b[:3, 3]) for p, b in zip(points, board, strict=True)]
    if len(board) != len(tool) or not len(tool):
        raise CalibrationError(
            "hand-eye input",
            expected="a robot pose for every view",
            found=f"{len(tool)} robot poses and {len(board)} views",
            next_step="pair them by time",
        )
    numbers = np.repeat(np.arange(len(points)), [len(p) for p in points])
    A = tool if mode == "eye_in_hand" else np.array([invert(pose) for pose in tool])
    return _Problem(mode, A, board, numbers, np.concatenate(points), np.concatenate(observed), camera, lens)


def _board_corners(points: Floats) -> Floats:
    """(4, 3): of the rectangle around the points."""
    low, high = points.min(0), points.max(0)
    return np.array([[low[0], low[1], 0], [high[0], low[1], 0], [high[0], high[1], 0], [low[0], high[1], 0]])


def _prediction_errors(problem: _Problem, solution: _Solution, views: NDArray[np.bool_]) -> tuple[Floats, ...]:
    """Of these views: squared residual lengths (T,), distances of the board's centre (V,) mm and angles (V,) deg."""
    squares = (problem.evaluate(solution, problem.rows_of(views))[0] ** 2).sum(1)
    centre = np.append(problem.points.mean(0), 1.0)
    boards = problem.A[views] @ solution.X @ problem.B[views]
    distances = 1e3 * np.linalg.norm((boards @ centre - solution.Y @ centre)[:, :3], axis=1)
    angles = np.degrees(Rotation.from_matrix(boards[:, :3, :3] @ solution.Y[:3, :3].T).magnitude())
    return squares, distances, angles


def _held_out(parts: Sequence[tuple[Floats, ...]]) -> HeldOut:
    squares, distances, angles = (np.concatenate(part) for part in zip(*parts, strict=True))
    rms = [float(np.sqrt(np.mean(values))) for values in (squares, distances**2, angles**2)]
    return HeldOut(len(distances), *rms)


def verify(
    result: HandEye,
    T_base_tool: ArrayLike,
    views: Sequence[Corners] | None = None,
    *,
    K: ArrayLike | None = None,
    distortion: ArrayLike | None = None,
    T_camera_board: ArrayLike | None = None,
) -> HeldOut:
    """Errors of a result on other views of the same, unmoved board. Arguments and errors as in `solve`."""
    problem = _problem(T_base_tool, views, result.mode, K, distortion, T_camera_board)
    everything = np.ones(len(problem.A), bool)
    return _held_out([_prediction_errors(problem, _Solution(result.pose, result.board_pose), everything)])


def solve(
    T_base_tool: ArrayLike,
    views: Sequence[Corners] | None = None,
    *,
    mode: Mode,
    rng: np.random.Generator,
    K: ArrayLike | None = None,
    distortion: ArrayLike | None = None,
    T_camera_board: ArrayLike | None = None,
    draws: int = 500,
) -> HandEye:
    """The pose of the camera on the tool or in the base.

    Args:
        T_base_tool: (N, 4, 4), N >= 5, by the robot, at the moment of each picture.
        views: the corners that each picture shows, of one rigid board; or `T_camera_board` (N, 4, 4) alone.
        mode: "eye_in_hand" (the board stands still) or "eye_to_hand" (the board is on the tool).
        rng: for the search among views and the bootstrap.
        K: (3, 3) px, with `views`.
        distortion: OpenCV's 4, 5, 8, 12 or 14 numbers, None for none.
        draws: of the bootstrap.

    The stated standard deviation covers noise of corners and of robot poses, not errors of the intrinsics or a bent
    board.

    Raises:
        CalibrationError: too few views, poses that are no rigid motions or not in metres, motion that leaves the
            result undetermined (naming the missing rotation), robot and camera that disagree (quaternion order,
            inverted poses), half of the views wrong, or a board whose size contradicts the robot by over 2 %.
    """
    problem = _problem(T_base_tool, views, mode, K, distortion, T_camera_board)
    tool = np.asarray(T_base_tool, np.float64)
    if (different := _distinct(tool)) < SMALLEST_VIEWS:
        raise CalibrationError(
            "hand-eye views",
            expected=f"{SMALLEST_VIEWS} different robot poses or more, better 15 to 20",
            found=str(different),
            next_step="record more views",
        )
    _refuse_degenerate(diversity(tool))
    corners_m = _board_corners(problem.points)
    search = _search(problem.A, problem.B, corners_m, rng)
    _refuse_degenerate(diversity(tool[search.best_views]))
    visible = _scale_shows(problem, search)
    if visible and abs(np.log(max(search.solution.scale, 1e-9))) > np.log(1.5) and search.rotation_deg < 2.0:
        _refuse_scale(search.solution.scale, 0.0)
    _refuse_disagreement(problem.A, problem.B, corners_m, search, rng)

    best = search.best_views
    starts = [search.solution, *_closed_form(problem.A[best], problem.B[best]).values()]
    solution = min(starts, key=lambda start: float(np.median(problem.view_rms(start))))
    solution, inliers = _agreeing(problem, solution, best, free_scale=visible)
    solution, inliers, noise = _weighing(problem, solution, inliers, free_scale=visible)
    _refuse_degenerate(diversity(tool[inliers]))
    scale, scale_sd = 1.0, float("inf")
    if visible:
        scale = solution.scale
        scale_sd = float(_bootstrap(problem, solution, inliers, noise, free_scale=True, draws=draws, rng=rng)[12])
        _refuse_scale(scale, scale_sd)
    solution, inliers, noise = _weighing(problem, _Solution(solution.X, solution.Y), inliers, free_scale=False)
    motion = diversity(tool[inliers])
    _refuse_degenerate(motion)

    sd = _bootstrap(problem, solution, inliers, noise, free_scale=False, draws=draws, rng=rng)
    parts = []
    order = rng.permutation(np.flatnonzero(inliers))
    for fold in range(SMALLEST_VIEWS):
        left_out = np.zeros(len(inliers), bool)
        left_out[order[fold::SMALLEST_VIEWS]] = True
        other = _refine(problem, solution, inliers & ~left_out, noise, free_scale=False, evaluations=10)
        parts.append(_prediction_errors(problem, other, left_out))
    found = _closed_form(problem.A[inliers], problem.B[inliers])
    return HandEye(
        mode=mode,
        pose=solution.X,
        board_pose=solution.Y,
        sd_mm=1e3 * sd[3:6],
        sd_deg=np.degrees(sd[:3]),
        inliers=inliers,
        residuals=problem.view_rms(solution),
        unit=problem.unit,
        cross_validation=_held_out(parts),
        diversity=motion,
        solvers=tuple(_solver_row(problem, name, found.get(name), solution, inliers) for name in _SOLVERS),
        robot_sd_mm=1e3 * noise.shift_m if noise else float("nan"),
        robot_sd_deg=float(np.degrees(noise.turn_rad)) if noise else float("nan"),
        scale=scale,
        scale_sd=scale_sd,
    )


def _agreeing(
    problem: _Problem, start: _Solution, views: NDArray[np.bool_], *, free_scale: bool
) -> tuple[_Solution, NDArray[np.bool_]]:
    """Refines over the views that agree, until the same views agree: within three times their median residual."""
    solution, smallest = start, 0.2  # px or mm: below it no view is worth rejecting
    for _ in range(8):
        solution = _refine(problem, solution, views, free_scale=free_scale)
        rms = problem.view_rms(solution)
        agreeing = rms <= max(OUTLIER_FACTOR * float(np.median(rms[views])), smallest)
        if (agreeing == views).all():
            break
        views = agreeing
    _refuse_few(views)
    return solution, views


def _weighing(
    problem: _Problem, start: _Solution, views: NDArray[np.bool_], *, free_scale: bool
) -> tuple[_Solution, NDArray[np.bool_], _Noise | None]:
    """Refines with the noise of corners and robot as these views show it, and chooses the views that agree by it."""
    if problem.K is None:  # poses of the board do not tell its noise from the robot's
        return *_agreeing(problem, start, views, free_scale=free_scale), None
    solution = start
    for _ in range(4):
        solution = _refine(problem, solution, views, _noise(problem, solution, views), free_scale=free_scale)
        noise = _noise(problem, solution, views)
        agreeing = noise.distances <= LARGEST_DISTANCE
        if (agreeing == views).all():
            break
        views = agreeing
        _refuse_few(views)
    return solution, views, noise


def _refuse_few(views: NDArray[np.bool_]) -> None:
    if (count := int(views.sum())) < max(SMALLEST_VIEWS, len(views) / 2):
        raise CalibrationError(
            "hand-eye views",
            expected=f"at least {SMALLEST_VIEWS} views and half of all that agree",
            found=f"{count} of {len(views)}",
            next_step="check that arm and board stand still in every picture, and record again",
        )


def _solver_row(
    problem: _Problem, name: str, found: _Solution | None, best: _Solution, views: NDArray[np.bool_]
) -> SolverRow:
    if found is None:
        return SolverRow(name, float("inf"), float("inf"), float("inf"))
    rms = float(np.sqrt(np.mean(problem.view_rms(found)[views] ** 2)))
    return SolverRow(
        name, rms, 1e3 * distance_m(found.X, best.X), float(np.degrees(angle_between_rad(found.X, best.X)))
    )
