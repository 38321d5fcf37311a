"""The camera-moved check on rendered pictures of the simulated arms: the camera really moves, and so does the arm."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

if importlib.util.find_spec("metaworld") is None or importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_calibration.moved import Reference
from dr_sim.arm import SimulatedArm
from dr_sim.sawyer import SimulatedSawyer

REFERENCE_PICTURES = 5
CHECKS = 8
MOVES = [
    (kind, axis)
    for kind in ("1 degree", "5 mm")
    for axis in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, -0.48, 0.64])
]
"""About, or along, an axis of the camera's frame."""


class Stage:
    """A simulated robot that wanders, and a camera that can be moved; pictures have noise and their own exposure."""

    def __init__(self, robot: SimulatedArm | SimulatedSawyer) -> None:
        import mujoco

        self.robot, self.random = robot, np.random.default_rng(0)
        self._forward = lambda: mujoco.mj_camlight(robot._model, robot._data)
        robot.render()
        self._camera = robot._draw()._camera_id
        self._place = robot._model.cam_pos[self._camera].copy()
        self._turn = robot._model.cam_quat[self._camera].copy()  # wxyz

    def wander(self, seconds: float) -> None:
        velocity = self.random.uniform(-0.4, 0.4, 3)
        for _ in range(round(seconds / 0.05)):
            self.robot.command_twist(velocity, np.zeros(3))
            self.robot.step(0.05)

    def move_camera(self, by_m: NDArray[np.float64], by_rad: NDArray[np.float64]) -> None:
        turn = Rotation.from_quat(np.roll(self._turn, -1))
        self.robot._model.cam_pos[self._camera] = self._place + turn.apply(by_m)
        self.robot._model.cam_quat[self._camera] = np.roll((turn * Rotation.from_rotvec(by_rad)).as_quat(), 1)

    def picture(self) -> NDArray[np.uint8]:
        self._forward()
        seen = self.robot.render().astype(np.float64)
        seen = seen * self.random.uniform(0.75, 1.25) + self.random.uniform(-12, 12)
        return np.clip(seen + self.random.normal(0, 4, seen.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["sawyer", "panda"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    robot = SimulatedSawyer("push") if request.param == "sawyer" else SimulatedArm()
    yield Stage(robot)
    robot.close()


def test_a_moved_camera_is_told_from_a_moving_arm(stage: Stage) -> None:
    pictures = []
    for seed in range(REFERENCE_PICTURES):
        stage.robot.reset(seed)
        stage.wander(1.5)
        pictures.append(stage.picture())
    reference = Reference(pictures)
    stage.robot.reset(100)
    for _ in range(CHECKS):
        stage.wander(0.4)
        result = reference.check(stage.picture())
        assert result.fine and result.shift_px < 0.4, result
    for kind, axis in MOVES:
        stage.wander(0.2)
        by_m = 0.005 * np.array(axis) if kind == "5 mm" else np.zeros(3)
        by_rad = np.radians(1.0) * np.array(axis) if kind == "1 degree" else np.zeros(3)
        stage.move_camera(by_m, by_rad)
        result = reference.check(stage.picture())
        assert result.moved and result.confident, (kind, axis, result)
    stage.move_camera(np.zeros(3), np.radians([0.0, 25.0, 0.0]))  # looks elsewhere
    assert not reference.check(stage.picture()).fine
    stage.move_camera(np.zeros(3), np.zeros(3))
    assert reference.check(stage.picture()).fine
