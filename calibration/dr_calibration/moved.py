"""Whether a fixed camera still stands where it stood: a picture against a reference of the still scene.

The reference is aligned to the picture directly, by inverse compositional Lucas-Kanade (Baker and Matthews, 2004) over
pixels on edges and texture, with a robust loss: what moves in front of the scene, as a robot does, drops out. The
motion is a similarity (shift, turn and scale of the picture), the first order of what a small move of a camera does.
Where AprilTags stand in the scene, their corners are compared too.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dr_calibration.errors import CalibrationError
from dr_core.data.images import is_whole_png

Vector = NDArray[np.float64]
Gray = NDArray[np.uint8]

THRESHOLD_PX = 0.6
"""A picture moved by more (RMS over the picture, at 640 pixels of width) is of a camera that has moved."""
WORKING_WIDTH = 320
LEVELS = 4
POINTS = 3000
"""Pixels aligned, at the finest level."""
ITERATIONS = (10, 8, 8, 8)
"""At most, finest level first."""
MIN_SHARE = 0.2
"""Share of the reference's pixels that has to be seen again; below it, the check does not say that all is well."""
SURE_SHARE = 0.9
"""Above it, an alignment is not looked for elsewhere."""
CLEARLY = 0.85
"""What a motion leaves unexplained has to be below this share of what a camera at rest does. On rendered scenes a robot
that pulls at the alignment comes down to 0.91, and a camera moved by 5 mm or 1 degree to 0.70 or less."""
AROUND = (8.0 + 0.0j, 8.0j, -8.0 + 0.0j, -8.0j)
"""Shifts in pixels of the working resolution, about those of a camera turned by a degree, from which an alignment is
tried too where otherwise little is seen again."""
MIN_POINTS = 150
MAX_SD = 0.5
"""Standard deviation of the shift, as a share of the threshold, above which it is not known well enough."""
CELLS = (8, 6)
"""Columns and rows in which it is judged what is seen again."""
CORRELATION = 0.6
"""Between reference and picture in a cell that is seen again."""
MIN_CELL_PIXELS = 10
MATCH = 0.35
"""Difference of a pixel, in local contrasts, up to which it counts as the same."""
MOVING_LEVELS = 12.0
"""Grey levels by which pixels differ from the median of the reference pictures where something moves."""
TAG_MARGIN_PX = 60
MAX_FILE_BYTES = 2**26
MAX_PIXELS = 2**24
"""Of a stored reference picture; a camera's has at most a few million."""
SMALLEST_SIDE = 16
"""Of a stored reference picture, px."""
PNG_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@dataclass(frozen=True)
class Moved:
    """What a picture says.

    Attributes:
        shift_px: RMS way of the picture's pixels from where they were, at the picture's own resolution; NaN where
            nothing is known.
        moved: the camera has moved by more than the threshold.
        confident: enough of the still scene is seen again to say so; where it is not, do not take it as all well.
        reason: in words.
        share: of the reference's pixels that are seen again.
        sd_px: standard deviation of ``shift_px``.
        tags: AprilTags compared.
    """

    shift_px: float
    moved: bool
    confident: bool
    reason: str
    share: float
    sd_px: float
    tags: int = 0

    @property
    def fine(self) -> bool:
        """The camera surely stands where it stood."""
        return self.confident and not self.moved


@dataclass(frozen=True)
class _Level:
    """The reference at one resolution.

    Attributes:
        z: (P,) complex, pixels from the picture's centre.
        values: (P,) normalised.
        jacobian: (P, 4) of the values by (log scale, turn, shift x, shift y), all per pixel of this level.
        centre: complex.
        cell: (P,) in which of `CELLS` the pixel lies.
    """

    z: NDArray[np.complex128]
    values: NDArray[np.float32]
    jacobian: NDArray[np.float32]
    centre: complex
    cell: NDArray[np.int64]


@dataclass(frozen=True)
class _Alignment:
    """z_picture = scale z_reference + shift, both complex, in pixels of the working resolution from the centre.

    Attributes:
        cost: robust mean square of the differences, 0 to 1.
        share: of the pixels that are seen again.
        covariance: (4, 4) of log scale, turn, shift x, shift y.
    """

    scale: complex
    shift: complex
    cost: float
    share: float
    covariance: Vector


class Reference:
    """The still scene, as one camera saw it.

    Args:
        pictures: uint8, (H, W) gray or (H, W, 3) RGB, of one size. With three or more, in which the robot and what
            it handles are in different places, only what stays the same in all of them is used.
        ignore: (H, W) bool, where the robot may be; None: nowhere in particular.
        tag_dictionary: OpenCV's name, for example "DICT_APRILTAG_36h11", where tags stand in the scene.
        tag_ids: of those that are fixed.
        threshold_px: at this picture's resolution; None: `THRESHOLD_PX` at 640 pixels of width.

    Raises:
        CalibrationError: no picture, other shapes or sizes, a tag that no picture shows, pictures too plain to notice
            a moved camera, or a camera that moved between the pictures.
    """

    def __init__(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        *,
        ignore: NDArray[np.bool_] | None = None,
        tag_dictionary: str = "",
        tag_ids: Sequence[int] = (),
        threshold_px: float | None = None,
    ) -> None:
        if not len(pictures):
            raise _refused("reference pictures", "at least one", "none", "take some of the still scene")
        grays = [_gray(picture) for picture in pictures]
        shape = grays[0].shape
        if any(gray.shape != shape for gray in grays):
            found = ", ".join(sorted({f"{gray.shape[1]}x{gray.shape[0]}" for gray in grays}))
            raise _refused("reference pictures", "one size", found, "take them with the same settings")
        if ignore is not None and (ignore.shape != shape or ignore.dtype != np.bool_):
            found = f"{ignore.dtype} {ignore.shape}"
            raise _refused("region to ignore", f"bool of shape {shape}", found, "draw it on the reference picture")
        grays = [_exposed_as(grays[0], gray) for gray in grays]
        self.picture: Gray = grays[0] if len(grays) == 1 else np.median(np.stack(grays), axis=0).astype(np.uint8)
        still = np.ones(shape, np.bool_) if ignore is None else ~ignore
        if len(grays) > 2:
            still &= ~_moving(grays, self.picture)
        self.still: NDArray[np.bool_] = still
        self.size = shape[1], shape[0]
        self.threshold_px = THRESHOLD_PX * shape[1] / 640 if threshold_px is None else float(threshold_px)
        if not 0.0 < self.threshold_px < 0.1 * shape[1]:
            found = f"{self.threshold_px:g}"
            raise _refused("threshold", "pixels above 0 and below a tenth of the width", found, "correct it")
        self._factor = max(1, round(shape[1] / WORKING_WIDTH))
        self._levels = self._make_levels()
        self._tag_dictionary = tag_dictionary
        self._detector = _tag_detector(tag_dictionary) if tag_dictionary else None
        self.tags: dict[int, Vector] = {}
        """Corners (4, 2) in the reference of every fixed tag, px."""
        for gray in grays if tag_ids else ():
            found_tags = self._find_tags(gray, None)
            self.tags |= {tag: found_tags[tag] for tag in tag_ids if tag in found_tags and tag not in self.tags}
        if lost := sorted(set(tag_ids) - set(self.tags)):
            raise _refused("fixed tags", f"tag {lost[0]} in a reference picture", "none", "show it, or leave it out")
        own = self.check(self.picture)
        if not own.confident:
            next_step = "put an AprilTag or something with a pattern into the picture's still part"
            raise _refused("reference pictures", "a scene with enough edges and texture", own.reason, next_step)
        for index, gray in enumerate(grays if len(grays) > 1 else ()):
            if (result := self.check(gray)).moved:
                found = f"picture {index + 1} shifted by {result.shift_px:.1f} px"
                raise _refused("reference pictures", "a camera at rest", found, "fix the camera and take them again")

    def check(self, picture: NDArray[np.uint8]) -> Moved:
        """Compare a picture of the same size. About 5 ms on one core at 640x480.

        Raises:
            CalibrationError: another size or type.
        """
        gray = _gray(picture)
        if gray.shape[::-1] != self.size:
            found = f"{gray.shape[1]}x{gray.shape[0]}"
            expected = f"{self.size[0]}x{self.size[1]} as the reference"
            raise _refused("picture", expected, found, "set the camera to that size, or take a new reference")
        scene = self._check_scene(gray)
        return scene if not self.tags else self._with_tags(scene, gray)

    def save(self, path: Path, *, replace: bool = False) -> None:
        """Write reference and still part as one PNG: grey, and transparent where things move. Tags are not stored.

        Raises:
            CalibrationError: the file is there and ``replace`` is not set, or it cannot be written.
        """
        if path.exists() and not replace:
            raise _refused(str(path), "a new file", "one that is there", "move it away, or replace it on purpose")
        alpha = np.where(self.still, 255, 0).astype(np.uint8)
        _, data = cv2.imencode(".png", np.dstack([self.picture] * 3 + [alpha]))
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_bytes(data.tobytes())
            temporary.replace(path)
        except OSError as error:
            found = error.strerror or "an error"
            raise _refused(str(path), "a file that can be written", found, "change it") from error

    @staticmethod
    def load(path: Path, **settings: Any) -> Reference:
        """What `save` wrote.

        Args:
            settings: tag_dictionary, tag_ids and threshold_px as in the constructor.

        Raises:
            CalibrationError: missing, or no such picture.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            found = error.strerror or "an error"
            raise _refused(str(path), "a reference picture", found, "calibrate again") from error
        picture = None
        # The sizes are read before memory is taken for them.
        if data.startswith(PNG_BEGIN) and 33 <= len(data) <= MAX_FILE_BYTES and is_whole_png(data):
            width, height = struct.unpack_from(">II", data, 16)
            if min(width, height) >= SMALLEST_SIDE and width * height <= MAX_PIXELS:
                try:
                    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
                except cv2.error as error:
                    found = " ".join(str(error).split())[:200]
                    raise _refused(str(path), "a PNG with transparency", found, "calibrate again") from error
        if picture is None or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 4:
            raise _refused(str(path), "a PNG with transparency", "another file", "calibrate again")
        return Reference([np.ascontiguousarray(picture[..., 0])], ignore=picture[..., 3] < 128, **settings)

    def _make_levels(self) -> list[_Level]:
        levels = []
        still = self.still.astype(np.uint8)
        for depth, image in enumerate(_pyramid(self.picture, self._factor)):
            size = image.shape[1], image.shape[0]
            # Local contrasts near what moves are not those of the still scene.
            near = cv2.resize(still, size, interpolation=cv2.INTER_AREA)
            usable = cv2.erode(near, np.ones((5, 5), np.uint8), borderValue=0) > 0
            values, contrast = _normalised(image)
            grad_x = cv2.Scharr(values, cv2.CV_32F, 1, 0) / 32.0
            grad_y = cv2.Scharr(values, cv2.CV_32F, 0, 1) / 32.0
            strength = np.hypot(grad_x, grad_y)
            strength[~usable | (contrast < 2.0)] = 0.0
            y, x = _spread(strength, max(200, POINTS >> depth))
            centre = complex((size[0] - 1) / 2, (size[1] - 1) / 2)
            z = x + 1j * y - centre
            along_x, along_y = grad_x[y, x], grad_y[y, x]
            jacobian = np.stack(
                [along_x * z.real + along_y * z.imag, along_y * z.real - along_x * z.imag, along_x, along_y], axis=1
            )
            cell = y * CELLS[1] // size[1] * CELLS[0] + x * CELLS[0] // size[0]
            levels.append(_Level(z, values[y, x], jacobian.astype(np.float32), centre, cell))
        return levels

    def _check_scene(self, gray: Gray) -> Moved:
        unknown = math.nan
        if len(self._levels[0].z) < MIN_POINTS:
            reason = f"only {len(self._levels[0].z)} pixels of the still scene lie on edges or texture"
            return Moved(unknown, False, False, reason, 0.0, unknown)
        if (contrast := float(gray.std())) < 3.0:
            return Moved(unknown, False, False, f"the picture is plain: contrast {contrast:.1f}", 0.0, unknown)
        images = [_normalised(image)[0] for image in _pyramid(gray, self._factor)]
        # A camera that stands is found at once; one that moved from coarse to fine; one that moved far from guesses.
        # What explains the scene best is believed: also that nothing moved, where a robot pulls at the alignment.
        best = self._align(images[:1], 0.0j)
        if best.share < SURE_SHARE:
            still = self._judge(images[0], 1.0 + 0.0j, 0.0j)
            best = min(best, self._align(images, 0.0j), key=lambda result: result.cost)
            if min(best.share, still.share) < MIN_SHARE:
                guesses = [self._rough_shift(images), *AROUND]
                best = min(best, *(self._align(images, guess) for guess in guesses), key=lambda result: result.cost)
            best = best if best.cost < CLEARLY * still.cost else still
        scale, shift, share = best.scale, best.shift, best.share
        # RMS over the picture of |(scale - 1) z + shift|.
        width, height = self.size
        radius = math.hypot(width, height) / math.sqrt(12.0)
        shift_px = math.hypot(abs(shift) * self._factor, abs(scale - 1.0) * radius)
        weights = np.array([radius, radius, self._factor, self._factor])
        sd_px = float(np.sqrt(np.clip(np.diag(best.covariance), 0.0, None) @ weights**2))
        limit = self.threshold_px
        moved = shift_px > limit + sd_px
        if share < MIN_SHARE:
            reason = f"{share:.0%} of the still scene is seen again: it is covered, dark, or the camera looks elsewhere"
            return Moved(shift_px, False, False, reason, share, sd_px)
        if sd_px > MAX_SD * max(limit, shift_px):
            reason = f"too few edges are seen to know the shift: {shift_px:.1f} px with a deviation of {sd_px:.1f} px"
            return Moved(shift_px, False, False, reason, share, sd_px)
        verdict = "moved" if moved else "stands"
        reason = f"the camera {verdict}: {shift_px:.2f} px, limit {limit:g} px"
        return Moved(shift_px, moved, True, reason, share, sd_px)

    def _align(self, images: list[NDArray[np.float32]], shift: complex) -> _Alignment:
        """From coarse to fine, beginning with a guess of the shift in pixels of the working resolution."""
        scale = 1.0 + 0.0j
        for depth in reversed(range(len(images))):
            level, image = self._levels[depth], images[depth]
            if len(level.z) < 20:
                continue
            to_level = 0.5**depth
            move = shift * to_level
            for _ in range(ITERATIONS[depth]):
                residual, inside = _residual(level, image, scale, move)
                spread = 1.48 * float(np.median(np.abs(residual[inside]))) if inside.any() else 1.0
                size = min(max(1.5 * spread, 0.15), 0.6 if depth else 0.25)
                weight = np.where(inside, 1.0 / (1.0 + (residual / size) ** 2) ** 2, 0.0).astype(np.float32)
                weighted = level.jacobian * weight[:, None]
                normal = (weighted.T @ level.jacobian).astype(np.float64)
                normal[np.diag_indices(4)] *= 1.0 + 1e-6
                normal[np.diag_indices(4)] += 1e-9
                step = np.linalg.solve(normal, (weighted.T @ residual).astype(np.float64))
                # The reference moves by the step; the picture's motion takes its inverse.
                turn, way = 1.0 + complex(step[0], step[1]), complex(step[2], step[3])
                scale, move = scale / turn, move - scale / turn * way
                if np.abs(level.z).max() * abs(turn - 1.0) + abs(way) < 0.01:
                    break
            if not (0.5 < abs(scale) < 2.0 and abs(move) < image.shape[1]):
                return _Alignment(1.0 + 0.0j, 0.0j, 1.0, 0.0, np.full((4, 4), np.inf))
            shift = move / to_level
        return self._judge(images[0], scale, shift)

    def _judge(self, image: NDArray[np.float32], scale: complex, shift: complex) -> _Alignment:
        """How well this motion explains the picture, of the working resolution."""
        level = self._levels[0]
        residual, inside = _residual(level, image, scale, shift)
        square = np.where(inside, (residual / MATCH) ** 2, np.inf)
        cost = float((1.0 - 1.0 / (1.0 + square)).mean())
        share = _share_seen(level, residual + level.values, inside)
        match = square < 1.0
        if match.sum() < MIN_POINTS:
            return _Alignment(scale, shift, cost, 0.0, np.full((4, 4), np.inf))
        jacobian = level.jacobian[match].astype(np.float64)
        # Neighbouring pixels err together: each counts as a third of a measurement.
        normal = jacobian.T @ jacobian
        normal[np.diag_indices(4)] += 1e-9
        variance = 3.0 * float((residual[match] ** 2).mean())
        return _Alignment(scale, shift, cost, share, variance * np.linalg.inv(normal))

    def _rough_shift(self, images: list[NDArray[np.float32]]) -> complex:
        """Of the whole picture by phase correlation, in pixels of the working resolution."""
        depth = min(1, len(images) - 1)
        before = _normalised(_pyramid(self.picture, self._factor)[depth])[0]
        window = cv2.createHanningWindow(before.shape[::-1], cv2.CV_32F)
        (x, y), _ = cv2.phaseCorrelate(before, images[depth], window)
        return complex(x, y) * 2**depth

    def _with_tags(self, scene: Moved, gray: Gray) -> Moved:
        found = self._find_tags(gray, self.tags)
        seen = sorted(set(found) & set(self.tags))
        if not seen:
            return scene
        ways = np.concatenate([found[tag] - self.tags[tag] for tag in seen])  # (4 n, 2)
        shift_px = float(np.sqrt((ways**2).sum(axis=1).mean()))
        limit = self.threshold_px
        if shift_px > limit:
            reason = (
                f"tag {seen[0]} is {shift_px:.1f} px from where it was, limit {limit:g} px: the camera, or it, moved"
            )
            return Moved(shift_px, True, True, reason, scene.share, 0.1, len(seen))
        if scene.confident:
            return Moved(scene.shift_px, scene.moved, True, scene.reason, scene.share, scene.sd_px, len(seen))
        reason = f"{len(seen)} tags stand where they stood ({shift_px:.2f} px); {scene.reason}"
        return Moved(shift_px, False, True, reason, scene.share, 0.1, len(seen))

    def _find_tags(self, gray: Gray, expected: dict[int, Vector] | None) -> dict[int, Vector]:
        """Corners (4, 2) by id; where tags are expected somewhere, only there."""
        if self._detector is None:
            raise _refused(
                "fixed tags", "the dictionary of the tags", "none", "name it, for example DICT_APRILTAG_36h11"
            )
        low, high = np.zeros(2, int), np.array(self.size)
        if expected:
            corners = np.concatenate(list(expected.values()))
            low = np.clip(corners.min(axis=0) - TAG_MARGIN_PX, 0, high).astype(int)
            high = np.clip(corners.max(axis=0) + TAG_MARGIN_PX, 0, high).astype(int)
        part = np.ascontiguousarray(gray[low[1] : high[1], low[0] : high[0]])
        found, ids, _ = self._detector.detectMarkers(part)
        if not len(found):
            return {}
        return {int(i): quad.reshape(4, 2).astype(np.float64) + low for i, quad in zip(ids.ravel(), found, strict=True)}


def _gray(picture: ArrayLike) -> Gray:
    array: Any = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        found = f"{array.dtype} {array.shape}"
        raise _refused("picture", "uint8 of shape (H, W) or (H, W, 3)", found, "convert it")
    if min(array.shape[:2]) < 32:
        raise _refused(
            "picture", "at least 32 pixels each way", f"{array.shape[1]}x{array.shape[0]}", "use larger ones"
        )
    return array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_RGB2GRAY)


def _exposed_as(first: Gray, gray: Gray) -> Gray:
    """The picture with the gain and offset that bring most of it to the first one's brightness."""
    a, b = (cv2.blur(image, (9, 9))[4::8, 4::8].astype(np.float64).ravel() for image in (gray, first))
    used = (a > 5) & (a < 250) & (b > 5) & (b < 250)
    # From a plain fit to that of the half that fits best: what moves drops out.
    gain, offset = 1.0, 0.0
    for _ in range(10):
        if used.sum() < 20 or np.ptp(a[used]) < 5.0:
            break
        gain, offset = np.polyfit(a[used], b[used], 1)
        error = np.abs(gain * a + offset - b)
        used = error <= np.median(error)
    if not 0.3 < gain < 3.0:
        return gray
    return np.clip(np.round(gain * gray + offset), 0, 255).astype(np.uint8)


def _moving(grays: Sequence[Gray], median: Gray) -> NDArray[np.bool_]:
    """(H, W) where a picture differs from the median one, beyond noise."""
    smooth = cv2.GaussianBlur(median, (0, 0), 2.0).astype(np.float32)
    moving = np.zeros(median.shape, np.uint8)
    for gray in grays:
        difference = cv2.GaussianBlur(gray, (0, 0), 2.0).astype(np.float32) - smooth
        moving |= (np.abs(difference) > MOVING_LEVELS).astype(np.uint8)
    return cv2.dilate(moving, np.ones((9, 9), np.uint8)).astype(np.bool_)


def _pyramid(gray: Gray, factor: int) -> list[Any]:
    """float32, finest first; every level half as large."""
    size = gray.shape[1] // factor, gray.shape[0] // factor
    image: Any = gray if factor == 1 else cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image.astype(np.float32), (3, 3), 0)
    images = [image]
    while len(images) < LEVELS and min(image.shape) >= 60:
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
        images.append(image)
    return images


def _normalised(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Difference from the neighbourhood's mean in units of its contrast, and that contrast: light drops out."""
    window = (15, 15)
    mean: Any = cv2.blur(image, window)
    contrast = np.sqrt(np.maximum(cv2.blur(image * image, window) - mean * mean, 0.0))
    return (image - mean) / (contrast + 4.0), contrast


def _spread(strength: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of at most `count` strong pixels: each cell's strongest, then each one's second, and so on."""
    border = 2
    rows, columns = 12, 16
    each = max(8, 4 * count // (rows * columns))
    chosen_y, chosen_x, ranks = [], [], []
    edges_y = np.linspace(border, strength.shape[0] - border, rows + 1).astype(int)
    edges_x = np.linspace(border, strength.shape[1] - border, columns + 1).astype(int)
    for top, bottom in itertools.pairwise(edges_y):
        for left, right in itertools.pairwise(edges_x):
            cell = strength[top:bottom, left:right]
            order = np.argsort(cell, axis=None)[::-1][:each]
            order = order[cell.ravel()[order] > 0.04]
            y, x = np.unravel_index(order, cell.shape)
            chosen_y.append(y + top)
            chosen_x.append(x + left)
            ranks.append(np.arange(len(x)))
    y, x = np.concatenate(chosen_y), np.concatenate(chosen_x)
    best = np.argsort(np.concatenate(ranks), kind="stable")[:count]
    return y[best], x[best]


def _residual(
    level: _Level, image: NDArray[np.float32], scale: complex, shift: complex
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(P,) picture minus reference, and (P,) where the pixel is in the picture."""
    z = scale * level.z + shift + level.centre
    x, y = z.real.astype(np.float32), z.imag.astype(np.float32)
    seen = cv2.remap(image, x[:, None], y[:, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).ravel()
    inside = (x >= 0) & (y >= 0) & (x <= image.shape[1] - 1) & (y <= image.shape[0] - 1)
    return seen - level.values, inside


def _share_seen(level: _Level, seen: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Share of the reference's pixels that lie in cells whose values correlate with those seen."""
    count = CELLS[0] * CELLS[1]

    def mean(values: NDArray[Any]) -> Vector:
        return np.bincount(level.cell, values, count) / np.maximum(pixels, 1)

    pixels = np.bincount(level.cell, minlength=count)
    seen = np.where(inside, seen, 0.0)
    mean_a, mean_b = mean(level.values), mean(seen)
    product = mean(level.values * seen) - mean_a * mean_b
    power = (mean(level.values**2) - mean_a**2) * (mean(seen**2) - mean_b**2)
    alike = product > CORRELATION * np.sqrt(np.maximum(power, 1e-9))
    usable = pixels >= MIN_CELL_PIXELS
    return float(pixels[usable & alike].sum() / max(1, pixels[usable].sum()))


def _tag_detector(name: str) -> cv2.aruco.ArucoDetector:
    number = getattr(cv2.aruco, name, None) if name.startswith("DICT_") else None
    if not isinstance(number, int):
        raise _refused("tag dictionary", "a name such as DICT_APRILTAG_36h11", repr(name), "correct it")
    parameters = cv2.aruco.DetectorParameters()
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    return cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(number), parameters)


def _refused(subject: str, expected: str, found: str, next_step: str) -> CalibrationError:
    return CalibrationError(subject, expected=expected, found=found, next_step=next_step)
