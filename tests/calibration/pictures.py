"""Pictures of a board through a lens, drawn by ray casting: quick enough for films, with known truth."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from dr_calibration.boards import Board
from dr_calibration.geometry import from_parts, invert
from dr_calibration.intrinsics import Intrinsics
from dr_calibration.rig import Rig
from dr_calibration.samples import Sample, ToolPath, Track

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]


class BoardCamera:
    """A camera before one flat board on a plain, softly shaded background.

    Args:
        size: width and height of the pictures, px.
        K, distortion: (3, 3) px and plumb_bob (5,).
    """

    SAMPLES = 2

    def __init__(self, board: Board, size: tuple[int, int], K: Floats, distortion: Floats) -> None:
        self.board, self.size = board, size
        width, height = (self.SAMPLES * n for n in size)
        u, v = np.meshgrid(
            (np.arange(width) + 0.5) / self.SAMPLES - 0.5, (np.arange(height) + 0.5) / self.SAMPLES - 0.5
        )
        stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-10)
        pixels = np.stack([u, v], -1).reshape(-1, 1, 2)
        plane = cv2.undistortPoints(pixels, K, distortion, None, None, None, stop).reshape(height, width, 2)
        self.rays = np.concatenate([plane, np.ones((height, width, 1))], axis=2).astype(np.float32)
        self.px_per_m = 4000.0
        self.margin_m = board.square_m
        self.paper = 30 + (board.draw(self.px_per_m, self.margin_m) * (195.0 / 255.0)).astype(np.float32)
        self.background = (90 + 40 * u / size[0] + 20 * v / size[1]).astype(np.float32)

    def picture(self, T_camera_board: Floats, rng: np.random.Generator, noise: float = 1.5) -> Picture:
        """(H, W, 3): the board at this pose, with noise of so many grey levels."""
        pose = np.asarray(T_camera_board, np.float64)
        normal, height = pose[:3, 2], pose[:3, 2] @ pose[:3, 3]
        far = (height / (self.rays @ normal.astype(np.float32)))[..., None]
        on_board = (far * self.rays - pose[:3, 3].astype(np.float32)) @ pose[:3, :2].astype(np.float32)
        x, y = np.moveaxis((on_board + self.margin_m) * self.px_per_m - 0.5, 2, 0).astype(np.float32)
        seen = cv2.remap(self.paper, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=-1000.0)
        seen = np.where((seen < 0) | (far[..., 0] < 0), self.background, seen)
        small = cv2.resize(seen, self.size, interpolation=cv2.INTER_AREA)
        noisy = small + noise * rng.standard_normal(small.shape, dtype=np.float32)
        return np.repeat(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


BOARD = Board.parse("charuco:7x5:30mm:22mm:4X4_50")
SIZE = (320, 240)
K = np.array([[301.0, 0, 156.0], [0, 303.0, 123.0], [0, 0, 1]])
LENS = np.array([-0.18, 0.06, 0.001, -0.0008, 0.0])
OFFSET_S = 0.0371
"""The camera stamps so much later than the robot."""
T_TOOL_CAMERA = from_parts(Rotation.from_euler("xyz", [4.0, -3.0, -88.0], degrees=True), [0.041, -0.033, 0.062])
T_BASE_BOARD = from_parts(Rotation.from_euler("xyz", [178.0, 2.0, 10.0], degrees=True), [0.45, 0.1, 0.02])


def camera(board: Board = BOARD, size: tuple[int, int] = SIZE) -> BoardCamera:
    scale = np.diag([size[0] / SIZE[0], size[1] / SIZE[1], 1.0])
    return BoardCamera(board, size, scale @ K, LENS)


def held(tilt_rad: Floats, roll_rad: float, centre: Floats, depth_m: float) -> Floats:
    """T_camera_board with the board's centre on the ray `centre` (2,) of the plane z = 1."""
    turn = Rotation.from_rotvec([*tilt_rad, 0.0]) * Rotation.from_euler("z", roll_rad)
    middle = np.array([*np.array(BOARD.size_m) / 2, 0.0])
    return from_parts(turn, depth_m * np.array([*centre, 1.0]) - turn.apply(middle))


def lens_views(count: int, rng: np.random.Generator) -> list[Floats]:
    """As a careful person holds the board: in each part of the picture, tilted every way, near and far."""
    poses = []
    for number in range(count):
        angle = 2.4 * number
        centre = np.array([(number % 3 - 1) * 0.25, (number // 3 % 3 - 1) * 0.18])
        tilt = 0.55 * np.array([np.cos(angle), np.sin(angle)])
        poses.append(held(tilt, float(rng.uniform(-0.4, 0.4)), centre, (0.24, 0.32, 0.42)[number // 2 % 3]))
    return poses


def tool_of(T_camera_board: Floats) -> Floats:
    """T_base_tool of a camera on the tool that sees the board so."""
    return T_BASE_BOARD @ invert(T_camera_board) @ invert(T_TOOL_CAMERA)


def still_poses(count: int, rng: np.random.Generator, tilt_rad: float = 0.5) -> list[Floats]:
    poses = []
    for number in range(count):
        tilt = tilt_rad * rng.uniform(0.5, 1.0) * np.array([np.cos(2.4 * number), np.sin(2.4 * number)])
        poses.append(
            held(tilt, float(rng.uniform(-0.8, 0.8)), rng.uniform(-0.1, 0.1, 2), float(rng.uniform(0.27, 0.4)))
        )
    return poses


def tour(poses: list[Floats], seen: BoardCamera, rng: np.random.Generator) -> tuple[list[Sample], Track]:
    """A tool that stops at each pose for 0.6 s and moves on in 0.4 s: a picture at each stop, one in each move."""
    tools = [tool_of(pose) for pose in poses]
    stamps = np.arange(0.0, len(poses), 0.02)
    track = np.array([_between(tools, stamp) for stamp in stamps])
    moments = np.sort(np.concatenate([np.arange(len(poses)) + 0.3, np.arange(len(poses) - 1) + 0.8]))
    samples = []
    for moment in moments:
        view = invert(T_BASE_BOARD) @ _between(tools, moment) @ T_TOOL_CAMERA
        samples.append(Sample(100.0 + moment + OFFSET_S, seen.picture(invert(view), rng)))
    return samples, (100.0 + stamps, track)


def _between(tools: list[Floats], moment: float) -> Floats:
    number = min(int(moment), len(tools) - 1)
    share = max(0.0, (moment - number - 0.6) / 0.4)
    if share == 0.0 or number + 1 == len(tools):
        return tools[number]
    first, second = tools[number], tools[number + 1]
    turn = Rotation.from_matrix(first[:3, :3].T @ second[:3, :3]).as_rotvec()
    place = first[:3, 3] + share * (second[:3, 3] - first[:3, 3])
    return from_parts(first[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix(), place)


def film(seconds: float, rate_hz: float, seen: BoardCamera, rng: np.random.Generator) -> tuple[list[Sample], Track]:
    """A camera on a tool that moves without a rhythm before the board, and the track at 100 Hz."""
    knots = np.arange(-2.0, seconds + 2.0, 0.6)
    way = make_interp_spline(knots, rng.normal(size=(len(knots), 6)) * [0.12, 0.12, 0.15, 0.02, 0.02, 0.02], k=5)

    def view(moment: float) -> Floats:
        x, y, roll, right, down, far = way(moment)
        return held(np.array([x, 0.35 + y]), roll, np.array([right, down]) / 0.33, 0.33 + far)

    robot_s = np.arange(0.0, seconds, 0.01)
    track = np.array([tool_of(view(moment)) for moment in robot_s])
    moments = np.arange(0.5, seconds - 0.5, 1.0 / rate_hz) + 1e-3 * rng.uniform(size=1)
    return [Sample(100.0 + t + OFFSET_S, seen.picture(view(t), rng)) for t in moments], (100.0 + robot_s, track)


@lru_cache(maxsize=1)
def lens_samples() -> list[Sample]:
    rng, seen = np.random.default_rng(1), camera()
    return [Sample(float(number), seen.picture(pose, rng)) for number, pose in enumerate(lens_views(18, rng))]


@lru_cache(maxsize=1)
def tour_samples() -> tuple[list[Sample], Track]:
    rng = np.random.default_rng(2)
    return tour(still_poses(15, rng), camera(), rng)


@lru_cache(maxsize=1)
def still_samples() -> list[Sample]:
    """The pictures of the tour at its stops, with the tool's pose and no track."""
    samples, track = tour_samples()
    tool = ToolPath(track)
    return [
        Sample(one.stamp_s, one.picture, tool.at(one.stamp_s - OFFSET_S))
        for one in samples
        if tool.rests(one.stamp_s - OFFSET_S)
    ]


def true_rig(out: Path, **parts: Any) -> Path:
    """A rig directory whose lens is the truth, without a search."""
    out.mkdir(parents=True, exist_ok=True)
    Rig("wrist", "0123", Intrinsics(*SIZE, K, LENS), 1.7e9, **parts).save(out)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
