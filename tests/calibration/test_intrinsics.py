"""Intrinsics against a camera that is known: corners projected by it, with noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dr_calibration.errors import CalibrationError
from dr_calibration.intrinsics import (
    Intrinsics,
    View,
    ViewSelector,
    calibrate,
    compare,
    motion_px,
    read_camera_info,
    write_camera_info,
)

SIZE = (640, 480)
BOARD = np.array([[0.03 * x, 0.03 * y, 0.0] for y in range(6) for x in range(9)])  # (54, 3) m
TRUTH = Intrinsics(
    *SIZE, np.array([[612.0, 0, 322.5], [0, 609.0, 236.0], [0, 0, 1]]), np.array([0.12, -0.25, 8e-4, -6e-4, 0.08])
)


@dataclass
class Found:
    ids: NDArray[np.int64]
    corners_px: NDArray[np.float64]
    points_m: NDArray[np.float64]


def held(tilt_rad: tuple[float, float], roll_rad: float, centre_px: tuple[float, float], depth_m: float) -> Found:
    """The board seen by TRUTH, with its centre there; only corners in the picture."""
    turn = Rotation.from_euler("xyz", [*tilt_rad, roll_rad])
    k = TRUTH.K
    centre = depth_m * np.array([(centre_px[0] - k[0, 2]) / k[0, 0], (centre_px[1] - k[1, 2]) / k[1, 1], 1.0])
    move = centre - turn.apply(BOARD.mean(axis=0))
    corners = np.float64(cv2.projectPoints(BOARD, turn.as_rotvec(), move, k, TRUTH.distortion)[0]).reshape(-1, 2)
    inside = ((corners > 1) & (corners < np.array(SIZE) - 2)).all(axis=1)
    return Found(np.flatnonzero(inside), corners[inside], BOARD[inside])


def views(seed: int, count: int, *, noise_px: float = 0.2, tilt_rad: float = 0.7) -> list[View]:
    random, result = np.random.default_rng(seed), list[View]()
    while len(result) < count:
        tilt = random.uniform(-tilt_rad, tilt_rad, 2)
        centre = random.uniform([60, 60], [580, 420])
        found = held((tilt[0], tilt[1]), random.uniform(-0.5, 0.5), (centre[0], centre[1]), random.uniform(0.25, 0.7))
        noise = random.normal(0, noise_px, found.corners_px.shape)
        found.corners_px = np.clip(found.corners_px + noise, 0, np.array(SIZE) - 1)
        if len(found.ids) >= 20:
            result.append(View.of(found, SIZE))
    return result


def test_the_lens_is_found_and_the_stated_deviation_is_true() -> None:
    scores = []
    for seed in range(5):
        result = calibrate(views(seed, 20))
        lens = result.intrinsics
        assert lens.sd_px is not None and lens.rms_px is not None and lens.held_out_rms_px is not None
        errors = (lens.K - TRUTH.K)[[0, 1, 0, 1], [0, 1, 2, 2]]
        scores.append(errors / lens.sd_px)
        assert (np.abs(errors[:2]) < 0.005 * 612).all() and (np.abs(errors[2:]) < 3.0).all()
        assert lens.rms_px == pytest.approx(0.2 * math.sqrt(2), rel=0.1)
        assert lens.rms_px < lens.held_out_rms_px < 1.2 * lens.rms_px
        assert not result.dropped and sum(len(view.residuals_px) for view in result.views) == result.coverage.sum()
    assert 0.5 < float(np.sqrt(np.mean(np.square(scores)))) < 1.6


def test_views_that_do_not_fit_are_left_out() -> None:
    good = views(1, 24)
    spoiled = list(good)
    random = np.random.default_rng(3)
    for index in (2, 9, 20):  # confused corners, a bent board
        spoiled[index] = View(good[index].ids, good[index].corners_px[::-1].copy(), good[index].points_m, SIZE)
    bent = good[15].corners_px + random.normal(0, 3, (len(good[15].ids), 2))
    spoiled[15] = View(good[15].ids, bent, good[15].points_m, SIZE)
    result = calibrate(spoiled)
    # Turned end for end, a whole grid is a view of the same board from another side, and no mistake.
    whole = {index for index in (2, 9, 20) if len(good[index].ids) == len(BOARD)}
    assert set(result.dropped) == {2, 9, 15, 20} - whole
    assert [view.index for view in result.views] == [index for index in range(24) if index not in result.dropped]
    assert np.abs(result.intrinsics.K - TRUTH.K).max() < 3.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (views(0, 7), "at least 8 good ones.*found 7"),
        (views(0, 20, tilt_rad=0.0), "focal length, not determined"),
        ([View.of(held((0.1 * i - 0.6, 0.4 - 0.1 * i), 0.1 * i, (180, 130), 0.7), SIZE) for i in range(12)],
         "hold the board in the .*right"),
        ([*views(0, 10), View(views(0, 1)[0].ids, views(0, 1)[0].corners_px, views(0, 1)[0].points_m, (1280, 960))],
         "640x480, 1280x960"),
        (views(0, 20, noise_px=6.0), "error of the calibration|views left out"),
        ([View(v.ids, v.corners_px, v.points_m * [1.0, 1.3, 1.0], SIZE) for v in views(0, 20)],
         "squeezed|error of the calibration|not determined"),
    ],
)  # fmt: skip
def test_views_that_do_not_tell_are_refused(bad: list[View], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(bad)


def test_the_selector_takes_what_adds_and_says_what_is_missing() -> None:
    selector = ViewSelector(BOARD, SIZE)
    assert selector.progress == 0 and selector.advice == "show the whole board"
    middle = held((0.0, 0.0), 0.0, (320, 240), 0.5)
    assert not selector.offer(middle, SIZE, moving=True).taken and not selector.offer(middle, SIZE, blurred=True).taken
    first = selector.offer(middle, SIZE)
    assert first.taken and first.reason == "" and 0 < first.progress < 30
    for found, size, reason in (
        (held((0.02, 0.0), 0.0, (322, 241), 0.5), SIZE, "too similar"),
        (held((0.4, 0.0), 0.0, (320, 240), 0.5), (1280, 720), "mixed resolution"),
        (held((0.0, 0.0), 0.0, (760, 240), 0.5), SIZE, "too few corners"),
    ):
        offer = selector.offer(found, size)
        assert not offer.taken and reason in offer.reason
    for x, y in ((130, 100), (320, 100), (510, 100), (510, 240), (510, 360), (360, 300)):
        for tilt in ((0.0, 0.0), (0.4, 0.0), (-0.4, 0.0)):
            selector.offer(held(tilt, 0.0, (x, y), 0.8), SIZE)
    assert selector.advice == "hold the board in the lower left"
    before = selector.progress
    for x in (60, 200, 320, 440, 580):
        for y in (60, 240, 420):
            selector.offer(held((0.0, 0.0), 0.0, (x, y), 0.35), SIZE)
    assert selector.progress > before and selector.advice.startswith("tilt it more: its")
    assert "left" in selector.advice or "right" in selector.advice
    random = np.random.default_rng(0)
    for _ in range(300):
        turn, centre = random.uniform(-0.6, 0.6, 2), random.uniform([60, 60], [580, 420])
        selector.offer(held((turn[0], turn[1]), 0.0, (centre[0], centre[1]), random.uniform(0.25, 0.7)), SIZE)
    assert selector.progress == 100 and selector.advice == "enough: calibrate now" and len(selector.views) <= 60
    assert motion_px(middle, held((0.0, 0.0), 0.0, (323, 244), 0.5)) == pytest.approx(5.0, abs=0.3)


def test_the_camera_info_file_is_ros_s(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    write_camera_info(path, TRUTH, "front")
    content = yaml.safe_load(path.read_text())
    assert list(content) == [
        "image_width", "image_height", "camera_name", "camera_matrix", "distortion_model", "distortion_coefficients",
        "rectification_matrix", "projection_matrix",
    ]  # fmt: skip
    assert content["projection_matrix"]["cols"] == 4 and len(content["projection_matrix"]["data"]) == 12
    assert read_camera_info(path).hash == TRUTH.hash
    with pytest.raises(CalibrationError, match="one that is there"):
        write_camera_info(path, TRUTH, "front")
    for key, value, message in (
        ("camera_matrx", 1, "did you mean camera_matrix"),
        ("distortion_model", "equidistant", "plumb_bob"),
        ("camera_matrix", {"rows": 3, "cols": 3, "data": [1.0]}, "9 finite numbers"),
        ("image_width", "640", "whole numbers"),
    ):
        path.write_text(yaml.safe_dump({**content, key: value}))
        with pytest.raises(CalibrationError, match=message):
            read_camera_info(path)
    path.write_text("image_width: !!python/name:os.system ''")
    with pytest.raises(CalibrationError, match="tags"):
        read_camera_info(path)


def test_lenses_are_compared_in_pixels() -> None:
    same = Intrinsics.of_camera(*SIZE, TRUTH.K, TRUTH.distortion)
    assert compare(TRUTH, same).max_px < 1e-6
    shifted = Intrinsics(*SIZE, TRUTH.K + np.array([[0, 0, 3.0], [0, 0, 4.0], [0, 0, 0]]), TRUTH.distortion)
    assert compare(TRUTH, shifted).mean_px == pytest.approx(5.0) == compare(TRUTH, shifted).max_px
    longer = Intrinsics(*SIZE, TRUTH.K * np.array([[1.01, 1, 1], [1, 1.01, 1], [1, 1, 1]]), TRUTH.distortion)
    corner = 0.01 * math.hypot(322.5, 479 - 236.0)  # from the principal point to the lower left
    assert compare(TRUTH, longer).max_px == pytest.approx(corner, rel=1e-3)
    assert compare(TRUTH, longer).focal == pytest.approx([0.01, 0.01])
    # Factory values of a RealSense whose distortion is none are taken, whatever its model is called.
    Intrinsics.of_camera(*SIZE, TRUTH.K, np.zeros(5), "distortion.inverse_brown_conrady")
    for arguments in (
        ((*SIZE, TRUTH.K, np.full(5, 0.1), "distortion.inverse_brown_conrady")),
        ((*SIZE, TRUTH.K, np.ones(8))),
        ((*SIZE, TRUTH.K / 640, np.zeros(5))),
    ):
        with pytest.raises(CalibrationError):
            Intrinsics.of_camera(*arguments)
