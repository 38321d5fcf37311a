"""The time offset against known truth: smooth random motion of a tool, seen by a noisy camera on a shifted clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from dr_calibration import time_offset
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import from_parts

Floats = NDArray[np.float64]
Path = Callable[[Floats], Floats]
FPS, ROBOT_HZ = 30.0, 100.0


def smooth(rng: np.random.Generator, seconds: float, size: float, knots_s: float = 0.6) -> Path:
    """Random motion (t,) -> (t, 3) with changes of direction about every second."""
    knots = np.arange(-2.0, seconds + 2.0, knots_s)
    path: Path = make_interp_spline(knots, size * rng.normal(size=(len(knots), 3)), k=5)
    return path


def recording(
    kind: str, offset_s: float, seed: int, seconds: float = 20.0, path: Path | None = None
) -> tuple[Floats, Floats, Floats, Floats]:
    """Camera stamps and values, robot stamps and values; 5 % of the frames dropped, stamps jittered by 0.3 ms."""
    rng = np.random.default_rng(seed)
    moments = np.arange(0.013, seconds, 1.0 / FPS)
    moments = moments[rng.random(len(moments)) > 0.05]
    camera_s = moments + offset_s + 3e-4 * rng.normal(size=len(moments))
    robot_s = np.arange(0.0, seconds, 1.0 / ROBOT_HZ)
    frame = Rotation.from_quat(rng.normal(size=4))
    if kind == "orientation":
        turn = smooth(rng, seconds, 0.35)
        noise = Rotation.from_rotvec(np.radians(0.3) * rng.normal(size=(len(moments), 3)))
        board = Rotation.from_rotvec([0.3, 0.2, 0.1])
        seen = noise * frame * Rotation.from_rotvec(turn(moments)) * board
        return camera_s, seen.as_quat(), robot_s, Rotation.from_rotvec(turn(robot_s)).as_quat()
    path = path or smooth(rng, seconds, 0.12)
    seen = frame.apply(path(moments)) + np.array([0.0, 0.0, 0.8])
    if kind == "speed":
        # A camera that looks across the plane of the motion, so that the flow is proportional to the speed.
        def flat(times: Floats) -> Floats:
            return path(times) * np.array([1.0, 1.0, 0.0])

        steps = np.linalg.norm(np.diff(700 / 0.8 * flat(moments), axis=0), axis=1)
        flow = np.append(0.0, steps / np.diff(moments)) + 10.0 * rng.normal(size=len(moments))
        return camera_s, flow, robot_s, flat(robot_s)
    return camera_s, seen + rng.normal(size=seen.shape) * [1e-3, 1e-3, 2e-3], robot_s, path(robot_s)


@pytest.mark.parametrize(("kind", "within_s"), [("position", 1e-3), ("orientation", 2e-3), ("speed", 2e-3)])
def test_the_offset_is_found_far_below_a_frame_with_its_direction(kind: str, within_s: float) -> None:
    errors, deviations = [], []
    for seed, offset_s in enumerate([0.083, -0.1412, 0.0, 0.31]):
        camera_s, seen, robot_s, arm = recording(kind, offset_s, seed)
        found = time_offset.estimate(camera_s, seen, robot_s, arm)
        errors.append(found.offset_s - offset_s)
        deviations.append(found.sd_s)
        assert found.correlation > 0.9 and found.second_peak < 0.8
        np.testing.assert_allclose(found.corrected(camera_s), camera_s - found.offset_s)
    assert np.abs(errors).max() < within_s
    assert (np.abs(errors) < 3.5 * np.array(deviations)).all() and max(deviations) < within_s


def test_positions_of_a_turning_tool_fall_back_to_speeds_and_say_less() -> None:
    rng = np.random.default_rng(5)
    camera_s, seen, robot_s, arm = recording("position", 0.05, 5)
    swing = smooth(rng, 20.0, 0.3)
    lever = Rotation.from_rotvec(swing(camera_s - 0.05)).apply([0.05, 0.0, 0.1])
    found = time_offset.estimate(camera_s, seen + lever, robot_s, arm)
    straight = time_offset.estimate(camera_s, seen, robot_s, arm)
    assert abs(found.offset_s - 0.05) < 2.5 * found.sd_s < 0.025
    assert straight.sd_s < found.sd_s / 3


@pytest.mark.parametrize("in_hand", [True, False])
@pytest.mark.parametrize(("turn_rad", "shift_m"), [(0.4, 0.12), (0.4, 0.0), (0.0, 0.12)])
def test_poses_tell_however_the_tool_moves(in_hand: bool, turn_rad: float, shift_m: float) -> None:
    rng = np.random.default_rng(21)
    turns, shifts = smooth(rng, 15.0, turn_rad), smooth(rng, 15.0, shift_m)
    X, Y = (from_parts(Rotation.from_quat(rng.normal(size=4)), rng.uniform(-0.2, 0.2, 3)) for _ in range(2))

    def tool(times: Floats) -> Floats:
        return np.array([from_parts(Rotation.from_rotvec(turns(t)), shifts(t)) for t in times])

    moments = np.arange(0.013, 15.0, 1.0 / FPS)
    moments = moments[rng.random(len(moments)) > 0.05]
    seen = tool(moments) if not in_hand else np.linalg.inv(tool(moments))
    noise = [
        from_parts(Rotation.from_rotvec(np.radians(0.3) * rng.normal(size=3)), rng.normal(size=3) * [3e-4, 3e-4, 2e-3])
        for _ in moments
    ]
    seen = np.array(noise) @ X @ seen @ Y
    stamps = moments - 0.0837 + 1e-3 * rng.normal(size=len(moments))
    robot_s = np.arange(0.0, 15.0, 1.0 / ROBOT_HZ)
    found = time_offset.estimate(stamps, seen, robot_s, tool(robot_s))
    assert abs(found.offset_s + 0.0837) < min(1e-3, 4.0 * found.sd_s)


def test_recordings_that_cannot_tell_are_refused_with_the_reason() -> None:
    def refused(text: str, camera_s: Floats, seen: Floats, robot_s: Floats, arm: Floats, **options: float) -> None:
        with pytest.raises(CalibrationError, match=text):
            time_offset.estimate(camera_s, seen, robot_s, arm, **options)

    camera_s, seen, robot_s, arm = recording("position", 0.1, 6)

    def circle(times: Floats) -> Floats:
        return 0.1 * np.stack([np.sin(6.0 * times), np.zeros_like(times), np.zeros_like(times)], axis=1)

    refused("a second offset that fits .* periodic", *recording("position", 0.1, 6, path=circle))
    refused("speeds that vary by 0.02 m/s", *recording("position", 0.1, 6, path=lambda t: 0.002 * smooth_path(t)))
    refused("speeds that correlate by 0.6", camera_s, seen, robot_s, recording("position", 0.1, 7)[3])
    refused("5 s and 60 frames", *recording("position", 0.1, 6, seconds=5.5))
    refused(r"search a wider range|search beyond", *recording("position", 0.4, 6), search_s=0.2)
    refused("the clocks are 1e.06 s apart", camera_s + 1e6, seen, robot_s, arm)
    refused("stamps in seconds", camera_s * 1e9, seen, robot_s * 1e9, arm)
    refused("stamps that increase", camera_s[::-1], seen, robot_s, arm)
    refused("finite", camera_s, np.where(seen > seen.max() - 1e-9, np.nan, seen), robot_s, arm)
    refused("one value per stamp", camera_s, seen[:-1], robot_s, arm)
    still = np.tile(np.eye(4), (len(camera_s), 1, 1))
    refused("speeds that vary", camera_s, still, robot_s, np.tile(np.eye(4), (len(robot_s), 1, 1)))
    refused("poses of the camera and positions of the robot; give matching signals", camera_s, still, robot_s, arm)
    still[3, :3, 3] = 900.0
    refused("camera pose 3: .* millimetres", camera_s, still, robot_s, arm)
    refused("matching signals", camera_s, seen, robot_s, Rotation.random(len(robot_s), random_state=0).as_quat())


def smooth_path(times: Floats) -> Floats:
    return smooth(np.random.default_rng(8), 20.0, 1.0)(times)
