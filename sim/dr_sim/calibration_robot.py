"""The simulated Panda with a board and a camera that has a lens, noise and a place that nobody has measured.

Task "panda-calibration": the camera is on the hand and looks at a board on the table. Task "panda-calibration-beside":
the camera stands before the arm, which holds the board. What the camera's driver would say of it, `camera_matrix` and
`camera_distortion`, is a little wrong, as factory values are; `truth` is known to tests and demonstrations alone.
Poses are 4x4 matrices, `T_a_b` maps points of frame b into frame a; the camera's frame is the optical one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from dr_core.errors import ConfigError
from dr_sim.arm import HAND, TOOL_POS_M, TOOL_QUAT_WXYZ, SimulatedArm, damped_least_squares
from dr_sim.calibration_scene import FlatBoard, Lens, add_board, add_noise
from dr_sim.rendering import RenderSettings
from dr_sim.robot import Pose, Vector
from dr_sim.tasks import CALIBRATION_TASKS

ON_HAND, BESIDE = CALIBRATION_TASKS
CAMERA = "calibrated"
K = np.array([[604.7, 0.0, 331.4], [0.0, 602.9, 230.6], [0.0, 0.0, 1.0]])
"""Of pictures 640 pixels wide and 480 high."""
DISTORTION = np.array([-0.243, 0.081, 0.0009, -0.0013, -0.006])
FACTORY_FOCAL = 1.01
"""By this factor the driver's focal length is too long; its principal point is this far off."""
FACTORY_CENTRE_PX = (1.6, -2.1)
NOISE = 2.0
"""Grey levels, standard deviation of a pixel."""
SAMPLES = 1
ROOM_RAD = 0.35
"""Joints stay so far from their limits where a pose counts as within reach."""
CLUTTER = 24
"""Coloured things on the table and behind it: what a picture of a place where people work shows."""


@dataclass(frozen=True)
class Truth:
    """What a calibration has to find.

    Attributes:
        mode: "eye_in_hand" or "eye_to_hand".
        K: (3, 3) px.
        distortion: (5,) plumb_bob: k1, k2, p1, p2, k3.
        camera: (4, 4) T_tool_camera of eye_in_hand, T_base_camera of eye_to_hand, m.
        board: (4, 4) T_base_board of eye_in_hand, T_tool_board of eye_to_hand, m.
    """

    mode: str
    K: Vector
    distortion: Vector
    camera: Vector
    board: Vector

    def T_camera_board(self, T_base_tool: ArrayLike) -> Vector:
        """(..., 4, 4) where the board is before the camera when the tool is at (..., 4, 4)."""
        tool = np.asarray(T_base_tool, np.float64)
        arm = np.linalg.inv(tool) if self.mode == "eye_in_hand" else tool
        return np.asarray(np.linalg.inv(self.camera) @ arm @ self.board)

    def T_base_tool(self, T_camera_board: ArrayLike) -> Vector:
        """(..., 4, 4) where the tool has to be for the camera to see the board so."""
        arm = self.camera @ np.asarray(T_camera_board, np.float64) @ np.linalg.inv(self.board)
        return np.asarray(np.linalg.inv(arm) if self.mode == "eye_in_hand" else arm)


class CalibrationArm(SimulatedArm):
    """The arm with a camera to be calibrated.

    Args:
        board: what the camera looks at.
        task: "panda-calibration" or "panda-calibration-beside".
        command_timeout_s: without a new command for so long, the arm holds its position.
        width, height: of the pictures, px.
        camera_bump: by how much, m and degrees, the camera has been knocked out of its place; `truth` stays.

    Attributes:
        truth: what a calibration has to find.
        lens: of the camera.

    Raises:
        ConfigError: another task, or pictures that are not as wide and high as 4 to 3.
    """

    def __init__(
        self,
        board: FlatBoard,
        task: str = ON_HAND,
        *,
        command_timeout_s: float = 0.2,
        width: int = 640,
        height: int = 480,
        camera_bump: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if task not in CALIBRATION_TASKS or width * 3 != height * 4:
            raise ConfigError(
                "camera to be calibrated",
                expected=f"task {ON_HAND} or {BESIDE}, pictures of 4 to 3",
                found=f"{task}, {width}x{height}",
                next_step="correct it",
            )
        self.board = board
        self.truth = _truth(task, board, width)
        self.lens = Lens(width, height, self.truth.K, self.truth.distortion, SAMPLES)
        self.start_m = np.array([0.45, 0.0, 0.28 if task == ON_HAND else 0.38])
        self._noise = np.random.default_rng(0)
        self._bumped = self.truth.camera @ _pose(
            Rotation.from_euler("yx", [0.8 * camera_bump[1], 0.6 * camera_bump[1]], degrees=True),
            camera_bump[0] * np.array([0.8, 0.0, 0.6]),
        )
        settings = RenderSettings(*self.lens.wide_size, camera=CAMERA, upright=False)
        super().__init__(command_timeout_s=command_timeout_s, settings=settings)

    def reset(self, seed: int) -> None:
        """Arm to its start; the pictures' noise begins anew; clears an emergency stop."""
        super().reset(seed)
        self._noise = np.random.default_rng(seed)
        # The block and the goal of the other task are out of the way.
        self._data.joint("block").qpos[:] = [0.0, -0.5, 0.025, 1.0, 0.0, 0.0, 0.0]
        self._data.mocap_pos[0] = [0.0, 0.5, 0.001]
        self._mujoco.mj_forward(self._model, self._data)

    def step(self, dt_s: float) -> None:
        """Let `dt_s` of simulated time go by, in whole steps of 2 ms; what is left over counts for the next call."""
        super().step(dt_s)
        self._mujoco.mj_camlight(self._model, self._data)  # the camera where the hand is now, not a step before

    @property
    def object_pose(self) -> Pose:
        """Of the board."""
        tool = np.eye(4) if self.truth.mode == "eye_in_hand" else _matrix(*self.tool_pose)
        board = tool @ self.truth.board
        return board[:3, 3], Rotation.from_matrix(board[:3, :3]).as_quat()

    @property
    def success(self) -> bool:
        """There is nothing to succeed in."""
        return False

    @property
    def camera_pose(self) -> Pose | None:
        """Not known."""
        return None

    def camera_matrix(self) -> Vector:
        """(3, 3) px, as the camera's driver states it."""
        factory = self.truth.K.copy()
        factory[[0, 1], [0, 1]] *= FACTORY_FOCAL
        factory[:2, 2] += FACTORY_CENTRE_PX
        return factory

    @property
    def camera_distortion(self) -> Vector:
        """(5,) plumb_bob, as the camera's driver states it."""
        return np.round(self.truth.distortion, 2)

    def render(self) -> NDArray[np.uint8]:
        """The camera's picture (H, W, 3) RGB."""
        return add_noise(self.lens.bend(super().render()), NOISE, self._noise)

    def follow(self, joints_rad: Vector, T_base_tool: Vector) -> Vector | None:
        """Angles (7,) after the tool has gone straight to a pose, or None where a joint would come near its limit."""
        joints = joints_rad.copy()
        for _ in range(400):
            position, rotation, jacobian = self._kinematics(joints)
            turn = Rotation.from_matrix(T_base_tool[:3, :3] @ rotation.T).as_rotvec()
            error = np.concatenate([T_base_tool[:3, 3] - position, turn])
            if np.abs(error).max() < 1e-4:
                return joints
            step = error * min(1.0, 0.01 / np.linalg.norm(error[:3]), 0.03 / np.linalg.norm(turn))
            joints = joints + damped_least_squares(jacobian, step)
            if (joints < self.joint_lower_rad + ROOM_RAD).any() or (joints > self.joint_upper_rad - ROOM_RAD).any():
                return None
        return None

    @property
    def home_rad(self) -> Vector:
        """(7,) angles at the start."""
        return self._home.copy()

    def _furnish(self, spec: Any) -> None:
        """The board, the camera and things to see; even light, so that paper stays below white."""
        spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.6] * 3, [0.2] * 3
        spec.lights[0].diffuse = [0.2] * 3
        spec.visual.map.znear = 0.01
        hand = spec.body(HAND)
        tool = _matrix(np.array(TOOL_POS_M), np.roll(TOOL_QUAT_WXYZ, -1))
        bodies = hand, spec.worldbody
        frames = tool, np.eye(4)
        if self.truth.mode == "eye_to_hand":
            bodies, frames = bodies[::-1], frames[::-1]
        turn = _pose(Rotation.from_euler("x", 180, degrees=True), [0.0, 0.0, 0.0])
        camera, board = frames[0] @ self._bumped @ turn, frames[1] @ self.truth.board @ turn
        bodies[0].add_camera(name=CAMERA, fovy=self.lens.fovy_deg, **_place(camera))
        add_board(spec, bodies[1].add_body(name="board", **_place(board)), self.board, solid=False)
        self._add_clutter(spec)

    def _add_clutter(self, spec: Any) -> None:
        import mujoco

        random = np.random.default_rng(5)
        for index in range(CLUTTER):
            behind = index % 2 == 1
            size = random.uniform(0.01, 0.04, 3) * (3.0 if behind else 1.0)
            side = random.choice([-1.0, 1.0])
            place = [random.uniform(0.2, 0.8), side * random.uniform(0.28, 0.5), size[2]]
            if behind:
                place = [random.uniform(-0.9, -0.5), random.uniform(-0.9, 0.9), random.uniform(-0.3, 0.9)]
            spec.worldbody.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=place, rgba=[*random.uniform(0.1, 0.8, 3), 1.0],
                contype=0, conaffinity=0, quat=np.roll(Rotation.random(random_state=index).as_quat(), 1),
            )  # fmt: skip


def _truth(task: str, board: FlatBoard, width: int) -> Truth:
    scale = width / 640
    k = K.copy()
    k[:2] *= scale
    k[:2, 2] += (scale - 1) / 2  # whole numbers are the centres of pixels
    middle = [*(np.array(board.size_m) / 2), 0.0]
    if task == ON_HAND:
        # Before the hand, looking past the fingers.
        camera = _pose(Rotation.from_euler("zyx", [91.3, -0.9, 1.7], degrees=True), [0.0713, -0.0121, -0.1034])
        # So that the last joint is near its middle where the board is upright, or on its side, in the picture.
        lies = Rotation.from_euler("xz", [180, -116.3], degrees=True)
        return Truth("eye_in_hand", k, DISTORTION, camera, _pose(lies, [0.5312, 0.0187, 0.0021] - lies.apply(middle)))
    looks = Rotation.from_matrix([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    looks = Rotation.from_euler("zy", [10.4, 3.1], degrees=True) * looks * Rotation.from_euler("z", 2.2, degrees=True)
    held = Rotation.from_matrix([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    held = held * Rotation.from_euler("xyz", [1.9, -2.4, 1.1], degrees=True)
    camera = _pose(looks, [0.9873, 0.0912, 0.3178])
    return Truth("eye_to_hand", k, DISTORTION, camera, _pose(held, [0.0043, 0.0021, 0.1152] - held.apply(middle)))


def _pose(rotation: Rotation, translation_m: ArrayLike) -> Vector:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.as_matrix(), translation_m
    return pose


def _matrix(position_m: Vector, quaternion_xyzw: Vector) -> Vector:
    return _pose(Rotation.from_quat(quaternion_xyzw), position_m)


def _place(pose: Vector) -> dict[str, Any]:
    """A pose as MjSpec takes it."""
    return {"pos": pose[:3, 3], "quat": np.roll(Rotation.from_matrix(pose[:3, :3]).as_quat(), 1)}
