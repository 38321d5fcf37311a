"""Pictures of a calibration board with known truth, drawn by MuJoCo and bent by a lens.

A wide pin-hole picture is drawn larger than needed; the lens, an off-centre principal point and unequal focal lengths
are put in by resampling it, and every pixel is the mean of several samples, as on a sensor. Pixels follow OpenCV: whole
numbers are the centres of pixels. Poses are 4x4 matrices, `T_a_b` maps points of frame b into frame a; the camera's
frame is the optical one (x right, y down, z into the picture).
"""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from dr_core.errors import ConfigError
from dr_sim.rendering import FrameRenderer, RenderSettings, select_backend

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]

SAMPLES = 2
"""Samples of a pixel each way, and how much larger the pin-hole picture is drawn."""
TEXTURE_PX = 2048
"""Longer edge of the board's texture, about."""
LARGEST_PX = 4096
"""Longer edge of the pin-hole picture."""
BLACK, WHITE = 30, 225
"""Grey values of ink and paper: away from the ends, so that noise is not cut off."""
BACKGROUND = 110


class FlatBoard(Protocol):
    """What the scene needs to know of a board. Its frame: x right, y down, z into the paper."""

    @property
    def points_m(self) -> Floats:
        """(N, 3) its corners."""

    @property
    def size_m(self) -> tuple[float, float]:
        """Width and height of what is printed."""

    @property
    def square_m(self) -> float:
        """Also the white border of its plate."""

    @property
    def needs_all(self) -> bool:
        """Whether it is only of use where all corners are in the picture."""

    def draw(self, px_per_m: float, margin_m: float | None = None) -> Picture:
        """(H, W); the point (x, y) is at the pixel ((x + margin_m) px_per_m - 0.5, (y + margin_m) px_per_m - 0.5)."""


class Lens:
    """Bends a wide pin-hole picture of the middle of the view into what a lens shows.

    Args:
        width: of the pictures, px.
        height: of the pictures, px.
        K: (3, 3) camera matrix, px.
        distortion: (5,) plumb_bob: k1, k2, p1, p2, k3.
        samples: of a pixel each way, and how much larger the pin-hole picture is drawn.

    Attributes:
        plane: (samples height samples width, 2) where the samples look on the plane z = 1, row by row.
        extent: (2,) how far they reach each way.
        wide_size: width and height of the pin-hole picture, px.
        fovy_deg: its vertical field of view.

    Raises:
        ConfigError: the lens folds the picture over, or sees more than a flat picture can hold.
    """

    def __init__(self, width: int, height: int, K: ArrayLike, distortion: ArrayLike, samples: int = SAMPLES) -> None:
        self.width, self.height, self.samples = width, height, samples
        self.K = np.asarray(K, np.float64).reshape(3, 3)
        self.distortion = np.asarray(distortion, np.float64).reshape(5)
        self.plane, self.extent = self._undistorted()
        focal_px = float(max(self.K[0, 0], self.K[1, 1]))
        # A margin of some samples for the interpolation.
        half = np.ceil(self.extent * focal_px * samples) + 4
        scale = min(1.0, LARGEST_PX / 2 / half.max())
        half = np.floor(half * scale)
        focal_px *= samples * scale
        x, y = (self.plane * focal_px + half - 0.5).astype(np.float32).reshape(samples * height, samples * width, 2).T
        self._map_x, self._map_y = cv2.convertMaps(x.T.copy(), y.T.copy(), cv2.CV_16SC2)
        self.wide_size = 2 * int(half[0]), 2 * int(half[1])
        self.fovy_deg = float(np.degrees(2 * np.arctan(half[1] / focal_px)))

    def bend(self, wide: Picture) -> Picture:
        """The picture (height, width, 3) that the lens makes of the pin-hole picture of `wide_size`."""
        fine = cv2.remap(wide, self._map_x, self._map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if self.samples == 1:
            return np.asarray(fine, np.uint8)
        return np.asarray(cv2.resize(fine, (self.width, self.height), interpolation=cv2.INTER_AREA), np.uint8)

    def _undistorted(self) -> tuple[Floats, Floats]:
        """Where the samples look, (M, 2) on the plane z = 1, and how far they reach each way (2,)."""
        u, v = ((np.arange(self.samples * n) + 0.5) / self.samples - 0.5 for n in (self.width, self.height))
        samples = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
        wanted = (samples - self.K[:2, 2]) / [self.K[0, 0], self.K[1, 1]]
        wanted[:, 0] -= self.K[0, 1] / self.K[0, 0] * wanted[:, 1]
        plane = wanted.copy()
        for _ in range(100):
            error = wanted - distort(plane, self.distortion)
            plane += error
            if not (largest := float(np.abs(error).max())) < 10 or largest < 1e-8:
                break
        if not largest * self.K[0, 0] < 1e-3 or not _spreads(plane, self.distortion):
            raise ConfigError(
                "lens", expected="a distortion that keeps the picture in order", found=str(self.distortion.tolist()),
                next_step="take a weaker one, or a longer focal length",
            )  # fmt: skip
        extent: Floats = np.abs(plane).max(0)
        view_deg = 2 * np.degrees(np.arctan(extent.max()))
        if extent.max() > 5:
            raise ConfigError(
                "camera", expected="less than 157 degrees of view", found=f"{view_deg:.0f}",
                next_step="take a longer focal length",
            )  # fmt: skip
        return plane, extent


def add_board(spec: Any, body: Any, board: FlatBoard, *, solid: bool = True) -> None:
    """Put a board on a plate with a white border of one square.

    Args:
        spec: the MjSpec of the model.
        body: where the plate belongs. The board's frame is this body's turned by half a turn about x.
        board: what is printed.
        solid: whether things collide with the plate.
    """
    import mujoco

    texture, plate_m, offset_m = _texture(board)
    paper = spec.add_texture(
        name="paper",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        width=texture.shape[1],
        height=texture.shape[0],
        nchannel=3,
    )
    paper.data = np.repeat(texture[..., None], 3, 2).tobytes()
    material = spec.add_material(name="paper", specular=0, shininess=0)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "paper"
    # MuJoCo lays the texture's first row at the far y of the upper face; x and y of the board's frame are turned
    # about x. Under the face, the plate has some thickness.
    thick_m = 0.001
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, size=[plate_m[0] / 2, plate_m[1] / 2, thick_m], material="paper",
        pos=[plate_m[0] / 2 - offset_m, offset_m - plate_m[1] / 2, -thick_m],
        contype=int(solid), conaffinity=int(solid),
    )  # fmt: skip


def _texture(board: FlatBoard) -> tuple[Picture, Floats, float]:
    """Grey values (H, W), width and height of the plate in m, and how far inside it the board begins."""
    margin_m = board.square_m
    inner_m = np.array(board.size_m) + 2 * margin_m
    px_per_m = TEXTURE_PX / float(inner_m.max())
    drawn = board.draw(px_per_m, margin_m)
    # Halved six times without a rest, the smaller copies that the renderer samples stay where they belong.
    down, across = (-n % 64 for n in drawn.shape)
    whole = cv2.copyMakeBorder(drawn, 0, down, 0, across, cv2.BORDER_CONSTANT, value=255)
    grey = np.rint(BLACK + whole.astype(np.float64) * (WHITE - BLACK) / 255).astype(np.uint8)
    return grey, np.array(whole.shape[::-1]) / px_per_m, margin_m


class CalibrationScene:
    """One board before one camera.

    Args:
        board: what is drawn, on a plate with a white border of one square.
        width: of the pictures, px.
        height: of the pictures, px.
        K: (3, 3) camera matrix, px.
        distortion: (5,) plumb_bob: k1, k2, p1, p2, k3.

    Raises:
        ConfigError: the lens folds the picture over, or sees more than a flat picture can hold.
        RenderingError: no off-screen rendering.
    """

    def __init__(self, board: FlatBoard, width: int, height: int, K: ArrayLike, distortion: ArrayLike) -> None:
        self.board, self.width, self.height = board, width, height
        self.lens = Lens(width, height, K, distortion)
        self.K, self.distortion = self.lens.K, self.lens.distortion
        self._renderer = self._make_renderer()

    def _make_renderer(self) -> FrameRenderer:
        select_backend()
        import mujoco

        spec = mujoco.MjSpec()
        spec.visual.headlight.ambient = [1, 1, 1]
        spec.visual.headlight.diffuse = spec.visual.headlight.specular = [0, 0, 0]
        spec.visual.map.znear, spec.visual.map.zfar = 0.02, 20.0  # of the model's extent
        spec.stat.extent = 1.0
        sky = [BACKGROUND / 255] * 3
        spec.add_texture(
            name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
            rgb1=[0.75 * c for c in sky], rgb2=[1.25 * c for c in sky], width=64, height=384,
        )  # fmt: skip
        add_board(spec, spec.worldbody.add_body(name="board", mocap=True), self.board)
        spec.worldbody.add_camera(name="camera", fovy=self.lens.fovy_deg)
        model = spec.compile()
        self._data = mujoco.MjData(model)
        mujoco.mj_forward(model, self._data)
        self._model, self._mujoco = model, mujoco
        settings = RenderSettings(*self.lens.wide_size, camera="camera", upright=False)
        return FrameRenderer(model, self._data, settings)

    def render(self, T_camera_board: ArrayLike) -> Picture:
        """The picture (height, width, 3) of the board at this pose: sharp and without noise."""
        # The world is the camera's OpenGL frame (y up, looking along -z), the plate's frame has z towards the viewer.
        turn = np.diag([1.0, -1.0, -1.0, 1.0])
        pose = turn @ np.asarray(T_camera_board, np.float64).reshape(4, 4) @ turn
        self._data.mocap_pos[0] = pose[:3, 3]
        self._data.mocap_quat[0] = np.roll(Rotation.from_matrix(pose[:3, :3]).as_quat(), 1)
        self._mujoco.mj_kinematics(self._model, self._data)
        return self.lens.bend(self._renderer.render(self._data))

    def project(self, T_camera_board: ArrayLike, points_m: ArrayLike) -> Floats:
        """Pixels (N, 2) of points (N, 3) of the board's frame, also outside the picture."""
        pose = np.asarray(T_camera_board, np.float64).reshape(4, 4)
        rotation = Rotation.from_matrix(pose[:3, :3]).as_rotvec()
        points = np.asarray(points_m, np.float64).reshape(-1, 1, 3)
        return np.asarray(
            cv2.projectPoints(points, rotation, pose[:3, 3], self.K, self.distortion)[0], np.float64
        ).reshape(-1, 2)

    def visible(self, T_camera_board: ArrayLike, margin_px: float = 4.0) -> NDArray[np.bool_]:
        """(N,) which corners of the board are before the camera and inside the picture by a margin."""
        pose = np.asarray(T_camera_board, np.float64).reshape(4, 4)
        points = self.board.points_m @ pose[:3, :3].T + pose[:3, 3]
        px = self.project(pose, self.board.points_m)
        inside = ((px >= margin_px) & (px <= np.array([self.width, self.height]) - 1 - margin_px)).all(1)
        # Far outside, a lens model may lead back into the picture.
        seen = np.abs(points[:, :2]) <= self.lens.extent * points[:, 2:]
        return (points[:, 2] > 0.05) & inside & seen.all(1)

    def intrinsic_views(self, n: int, rng: np.random.Generator) -> Floats:
        """Poses T_camera_board (n, 4, 4) as a careful person takes them for the intrinsics.

        The board is in turn in each ninth of the picture, tilted by up to 45 degrees, near and far, turned by up to 20
        degrees or on its side; wholly visible, or at least seven tenths of it where the board's kind allows.
        """
        share = 1.0 if self.board.needs_all else 0.7
        cells = np.concatenate([rng.permutation(9) for _ in range(n // 9 + 1)])[:n]
        return np.stack([self._view(rng, int(cell), 45.0, 20.0, (0.35, 0.95), share) for cell in cells])

    def hand_eye_views(self, n: int, rng: np.random.Generator) -> Floats:
        """Poses T_camera_board (n, 4, 4) for a hand-eye calibration: the whole board, from all sides, turned."""
        return np.stack([self._view(rng, 4, 40.0, 60.0, (0.4, 0.8), 1.0) for _ in range(n)])

    def hand_eye_poses(
        self, n: int, rng: np.random.Generator, mode: str = "eye_in_hand"
    ) -> tuple[Floats, Floats, dict[str, Floats]]:
        """Poses of a robot that looks at a board from all sides, or shows it to a camera.

        Args:
            mode: "eye_in_hand": the camera is on the tool, the board on the table; "eye_to_hand": the other way round.

        Returns: T_base_tool (n, 4, 4), T_camera_board (n, 4, 4) and the truth: "T_tool_camera" and "T_base_board", or
            "T_base_camera" and "T_tool_board".

        Raises:
            ConfigError: another mode.
        """
        views = self.hand_eye_views(n, rng)
        if mode == "eye_in_hand":
            tool_camera = _near_pose(rng, Rotation.from_euler("z", -90, degrees=True), [0.04, -0.03, 0.06], 0.01)
            # The board lies face up before the robot: its z leads into the table.
            base_board = _near_pose(rng, Rotation.from_euler("x", 180, degrees=True), [0.45, 0.1, 0.02], 0.05)
            tools = base_board @ np.linalg.inv(views) @ np.linalg.inv(tool_camera)
            return tools, views, {"T_tool_camera": tool_camera, "T_base_board": base_board}
        if mode == "eye_to_hand":
            # The camera stands before the robot and looks back at it.
            looks = Rotation.from_matrix([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
            base_camera = _near_pose(rng, looks, [1.1, 0.05, 0.5], 0.05)
            tool_board = _near_pose(rng, Rotation.from_euler("y", 180, degrees=True), [0.1, -0.07, 0.03], 0.01)
            tools = base_camera @ views @ np.linalg.inv(tool_board)
            return tools, views, {"T_base_camera": base_camera, "T_tool_board": tool_board}
        raise ConfigError("mode", expected="eye_in_hand or eye_to_hand", found=repr(mode), next_step="take one of them")

    def _view(
        self,
        rng: np.random.Generator,
        cell: int,
        tilt_deg: float,
        roll_deg: float,
        fill: tuple[float, float],
        share: float,
    ) -> Floats:
        """A pose with the board's centre in a ninth of the picture.

        Args:
            cell: 0 to 8, row by row.
            fill: how much of the picture's width or height the board takes, from and to.
            share: of its corners that must be visible.
        """
        size = np.array(self.board.size_m)
        focal = np.array([self.K[0, 0], self.K[1, 1]])
        picture = np.array([self.width, self.height])
        for attempt in range(400):
            # Where the ninth cannot be had with so much of the board visible, the board moves inwards and away.
            inwards = max(0.0, (attempt - 100) / 300)
            target = (np.array([cell % 3, cell // 3]) + rng.uniform(0, 1, 2)) / 3
            target = (0.5 + (target - 0.5) * (1 - inwards)) * (picture - 1)
            on_side = 90.0 if roll_deg < 45 and rng.uniform() < 0.25 else 0.0
            roll = Rotation.from_euler("z", on_side + rng.uniform(-roll_deg, roll_deg), degrees=True)
            angle = rng.uniform(0, 2 * np.pi)
            tilt = np.radians(rng.uniform(0.0, tilt_deg)) * np.array([np.cos(angle), np.sin(angle), 0.0])
            rotation = Rotation.from_rotvec(tilt) * roll
            far_m = float((size * focal / picture).max() / (rng.uniform(*fill) * (1 - 0.4 * inwards)))
            column, row = np.clip(target.astype(int), 0, picture - 1) * self.lens.samples + self.lens.samples // 2
            ray = np.array([*self.lens.plane[row * self.width * self.lens.samples + column], 1.0])
            pose = np.eye(4)
            pose[:3, :3] = rotation.as_matrix()
            pose[:3, 3] = far_m * ray - rotation.apply([*(size / 2), 0.0])
            if self._front(pose) and self.visible(pose).mean() >= share:
                return pose
        raise ConfigError(
            "board",
            expected="a size that fits in the picture",
            found=f"{size.tolist()} m",
            next_step="take another board",
        )

    def _front(self, pose: Floats) -> bool:
        """Whether the camera sees the printed side by 30 degrees or more above its plane."""
        centre = pose[:3, 3] + pose[:3, :3] @ [*(np.array(self.board.size_m) / 2), 0.0]
        return bool(pose[:3, 2] @ centre / np.linalg.norm(centre) > 0.5)

    def close(self) -> None:
        """Free the OpenGL context; harmless when repeated."""
        self._renderer.close()


def distort(plane: Floats, distortion: Floats) -> Floats:
    """Points (M, 2) on the plane z = 1 bent by plumb_bob (OpenCV, "Camera calibration and 3D reconstruction")."""
    k1, k2, p1, p2, k3 = distortion
    x, y = plane.T
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.stack([bent_x, bent_y], 1)


def _spreads(plane: Floats, distortion: Floats) -> bool:
    """Whether points farther out are farther out in the picture, everywhere up to the outermost of these."""
    k1, k2, _, _, k3 = distortion
    r2 = np.linspace(0, float((plane**2).sum(1).max()), 200)
    return bool((1 + r2 * (3 * k1 + r2 * (5 * k2 + r2 * 7 * k3)) > 0.05).all())


def _near_pose(rng: np.random.Generator, rotation: Rotation, translation_m: ArrayLike, spread_m: float) -> Floats:
    """A pose near this one, so that no number of it is round."""
    pose = np.eye(4)
    pose[:3, :3] = (rotation * Rotation.from_rotvec(rng.normal(0, 0.1, 3))).as_matrix()
    pose[:3, 3] = np.asarray(translation_m, np.float64) + rng.uniform(-spread_m, spread_m, 3)
    return pose


def add_noise(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    """The picture (H, W, 3) with Gaussian noise of this many grey levels, the same in all three colours."""
    noise = rng.standard_normal((*picture.shape[:2], 1), dtype=np.float32) * np.float32(sigma)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def add_blur(picture: Picture, sigma_px: float, motion_px: tuple[float, float] = (0.0, 0.0)) -> Picture:
    """The picture out of focus by a Gaussian, and then moved by so much (x, y) while the shutter was open."""
    if sigma_px > 0:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px))
    if (length := float(np.hypot(*motion_px))) > 0:
        height, width = picture.shape[:2]
        total = np.zeros(picture.shape, np.float32)
        shifts = np.linspace(-0.5, 0.5, max(2, int(np.ceil(2 * length))) + 1)
        for shift in shifts:
            move = np.array([[1, 0, shift * motion_px[0]], [0, 1, shift * motion_px[1]]])
            total += cv2.warpAffine(picture, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
        picture = np.clip(np.rint(total / len(shifts)), 0, 255).astype(np.uint8)
    return picture
