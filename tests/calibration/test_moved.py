"""The camera-moved check against pictures shifted by a known amount; rendered scenes are in tests/sim."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dr_calibration.errors import CalibrationError
from dr_calibration.moved import Reference

Picture = NDArray[np.uint8]
WIDTH, HEIGHT = 640, 480


def scene() -> Any:
    """(720, 960) of boxes and texture, larger than a picture."""
    random = np.random.default_rng(0)
    image = np.full((720, 960), 120, np.float32)
    for _ in range(60):
        x, y = random.integers(0, [900, 680])
        width, height = random.integers(20, 160, 2)
        cv2.rectangle(image, (int(x), int(y)), (int(x + width), int(y + height)), float(random.integers(30, 230)), -1)
    return cv2.GaussianBlur(image + cv2.blur(random.normal(0, 30, image.shape).astype(np.float32), (5, 5)), (0, 0), 1.0)


SCENE = scene()


def picture(
    shift: complex = 0j, *, turn_rad: float = 0.0, scale: float = 1.0, seed: int = 0, robot: int | None = None
) -> Picture:
    """What a camera sees whose picture moved, with noise; `robot`: a textured bar over a quarter of it, there."""
    factor = scale * complex(math.cos(turn_rad), math.sin(turn_rad))
    centre = complex((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    middle = complex((SCENE.shape[1] - 1) / 2, (SCENE.shape[0] - 1) / 2)
    offset = centre + shift - factor * middle
    matrix = np.array([[factor.real, -factor.imag, offset.real], [factor.imag, factor.real, offset.imag]])
    seen = cv2.warpAffine(SCENE, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    random = np.random.default_rng(seed)
    if robot is not None:
        bar = cv2.blur(np.random.default_rng(7).normal(150, 200, (HEIGHT, 160)).astype(np.float32), (9, 9))
        seen[:, robot : robot + 160] = bar
    return np.clip(np.round(seen + random.normal(0, 4, seen.shape)), 0, 255).astype(np.uint8)


def test_the_shift_is_measured() -> None:
    reference = Reference([picture()])
    radius = math.hypot(WIDTH, HEIGHT) / math.sqrt(12)
    for index, (shift, turn, scale) in enumerate(
        [(0j, 0, 1), (0.3j, 0, 1), (1.5 - 1j, 0, 1), (9 + 4j, 0, 1), (0j, math.radians(1), 1), (0j, 0, 1.006),
         (-25 + 8j, math.radians(-2), 0.99), (70 - 30j, 0, 1)]
    ):  # fmt: skip
        expected = math.hypot(abs(shift), abs(scale * complex(math.cos(turn), math.sin(turn)) - 1) * radius)
        result = reference.check(picture(shift, turn_rad=turn, scale=scale, seed=index + 1))
        assert result.confident and result.moved == (expected > reference.threshold_px)
        assert result.shift_px == pytest.approx(expected, abs=0.15)


def test_a_robot_in_front_and_other_light_change_nothing() -> None:
    reference = Reference([picture(robot=place) for place in (40, 240, 430)])
    assert reference.still[:, 60:180].mean() < 0.1 and reference.still[:, 600:].all()
    reference = Reference([picture(robot=0)], ignore=np.arange(WIDTH)[None].repeat(HEIGHT, 0) < 170)
    for index in range(20):
        dark = picture(robot=20 * index, seed=index) * (0.5 + 0.03 * index) + 10
        assert reference.check(dark.astype(np.uint8)).fine
        moved = reference.check(picture(1.2 + 0.5j, robot=20 * index, seed=index))
        assert moved.moved and moved.shift_px == pytest.approx(1.3, abs=0.2)


def test_what_shows_too_little_is_not_taken_as_fine() -> None:
    reference = Reference([picture()])
    other = np.ascontiguousarray(picture()[::-1, ::-1])
    covered = picture(seed=1)
    covered[:, 60:] = 90
    black = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    for hidden, word in ((other, "seen again"), (covered, "seen again"), (black, "plain")):
        result = reference.check(hidden)
        assert not result.confident and not result.fine and word in result.reason


def test_tags_speak_where_the_scene_is_plain() -> None:
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    tag = cv2.aruco.generateImageMarker(dictionary, 5, 80)

    def wall(shift: float, cover: bool = False) -> Picture:
        image: Any = np.full((HEIGHT, WIDTH), 200, np.float32)
        image[60:140, 80:160] = tag
        image = cv2.warpAffine(image, np.array([[1, 0, shift], [0, 1, 0.0]]), (WIDTH, HEIGHT), borderValue=200.0)
        if cover:
            image[100:, :] = 30
        noisy = cv2.GaussianBlur(image, (0, 0), 0.8) + np.random.default_rng(1).normal(0, 2, image.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    reference = Reference([wall(0)], tag_dictionary="DICT_APRILTAG_36h11", tag_ids=[5])
    fine, moved = reference.check(wall(0)), reference.check(wall(2.5))
    assert fine.fine and fine.tags == 1
    assert moved.moved and moved.confident
    assert not reference.check(wall(0, cover=True)).fine
    with pytest.raises(CalibrationError, match="tag 6"):
        Reference([wall(0)], tag_dictionary="DICT_APRILTAG_36h11", tag_ids=[5, 6])
    with pytest.raises(CalibrationError, match="DICT_APRILTAG_36h11"):
        Reference([wall(0)], tag_dictionary="36h11", tag_ids=[5])


def test_references_that_are_none_are_refused(tmp_path: Path) -> None:
    plain = np.full((HEIGHT, WIDTH), 128, np.uint8)
    for pictures, message in (
        ([], "at least one"),
        ([plain], "enough edges"),
        ([picture(), picture()[:240]], "one size"),
        ([picture().astype(np.float32)], "uint8"),
        ([picture(), picture(), picture(5 + 0j)], "picture 3 shifted by"),
    ):
        with pytest.raises(CalibrationError, match=message):
            Reference(pictures)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="640x480 as the reference"):
        Reference([picture()]).check(picture()[:240])


def test_a_saved_reference_is_the_same(tmp_path: Path) -> None:
    reference = Reference([picture(robot=place) for place in (40, 240, 430)])
    path = tmp_path / "reference.png"
    reference.save(path)
    loaded = Reference.load(path)
    np.testing.assert_array_equal(loaded.picture, reference.picture)
    np.testing.assert_array_equal(loaded.still, reference.still)
    assert loaded.check(picture(2 + 0j, seed=3)) == reference.check(picture(2 + 0j, seed=3))
    with pytest.raises(CalibrationError, match="one that is there"):
        reference.save(path)
    path.write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match="PNG"):
        Reference.load(path)
