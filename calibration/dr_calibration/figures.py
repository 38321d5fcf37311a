"""Pictures of the calibration report: corners drawn into camera pictures (JPEG), and plots (PNG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dr_core.study.plots import COLOURS, DPI, png

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]

WIDTH_PX = 640
"""Of the pictures in the report."""
SEEN, PREDICTED = (0, 190, 60), (255, 40, 40)
QUALITY = 85
LONGER = 20
"""By how much differences are drawn longer than they are."""


def overlay(picture: Picture, seen_px: Floats, predicted_px: Floats) -> bytes:
    """A JPEG of the picture with corners seen (green circles), and the way to where they are predicted (red, longer).

    Args:
        picture: uint8 (H, W, 3) RGB.
        seen_px, predicted_px: (N, 2).
    """
    scale = WIDTH_PX / picture.shape[1]
    how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
    small = np.ascontiguousarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how), np.uint8)
    for seen, predicted in zip(seen_px, predicted_px, strict=True):
        start = (seen + 0.5) * scale - 0.5
        end = start + np.clip(LONGER * (predicted - seen) * scale, -WIDTH_PX, WIDTH_PX)
        cv2.circle(small, _point(start), 3 * 16, SEEN, 1, cv2.LINE_AA, 4)
        cv2.line(small, _point(start), _point(end), PREDICTED, 1, cv2.LINE_AA, 4)
    return _jpeg(small)


def still_part(gray: NDArray[np.uint8], still: NDArray[np.bool_]) -> bytes:
    """A JPEG of a gray picture (H, W), red where it does not stand still (H, W)."""
    picture = np.repeat(gray[..., None], 3, axis=2)
    picture[~still, 1:] //= 3
    scale = min(1.0, WIDTH_PX / gray.shape[1])
    return _jpeg(np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8))


def per_view(rms_px: Sequence[float], held_out_px: Sequence[float], numbers: Sequence[int]) -> bytes:
    """Error of each view, fitted and left out."""
    figure, axes = _figure(6.4, 2.6)
    places = np.arange(len(numbers))
    axes.bar(places, rms_px, color=COLOURS[5], label="fitted")
    axes.plot(places, held_out_px, "o", color=COLOURS[3], markersize=4, label="left out")
    axes.set(xlabel="view", ylabel="error (px, RMS)", ylim=(0, None))
    axes.set_xticks(places[:: max(1, len(places) // 15)], [str(n) for n in numbers][:: max(1, len(places) // 15)])
    _style(axes)
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def coverage(counts: NDArray[np.int64]) -> bytes:
    """Corners used in each cell of the picture (rows, columns)."""
    figure, axes = _figure(4.2, 3.0)
    axes.imshow(np.where(counts > 0, counts, np.nan), cmap="Greens", vmin=0, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        dark = count > 0.6 * counts.max()
        colour = "white" if dark else COLOURS[3] if count == 0 else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xticks=[], yticks=[], title="corners in each part of the picture")
    _style(axes, grid=False)
    return png(figure)


def per_pose(residuals: Sequence[float], inliers: Sequence[bool], unit: str) -> bytes:
    """Error of each pose, those left out in another colour."""
    figure, axes = _figure(6.4, 2.4)
    places = np.arange(len(residuals))
    values, used = np.array(residuals, np.float64), np.array(inliers, bool)
    axes.bar(places[used], values[used], color=COLOURS[0], label="used")
    if not used.all():
        top = 3.0 * float(np.nanmax(values[used]))
        axes.bar(places[~used], np.fmin(values[~used], top), color=COLOURS[3], label="left out (cut off)")
    axes.set(xlabel="pose", ylabel=f"error ({unit}, RMS)", ylim=(0, None))
    _style(axes)
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def offset_curve(offset_s: Sequence[float], correlation: Sequence[float], found_s: float) -> bytes:
    """How well the speeds agree at each offset."""
    figure, axes = _figure(6.4, 2.4)
    axes.plot(1e3 * np.array(offset_s, np.float64), np.array(correlation, np.float64), color=COLOURS[0])
    axes.axvline(1e3 * found_s, color=COLOURS[3], linewidth=1, linestyle="--")
    axes.set(xlabel="offset of the camera's stamps (ms)", ylabel="correlation of speeds")
    _style(axes)
    return png(figure)


def shifts(shift_px: Sequence[float], threshold_px: float) -> bytes:
    """The shift of each picture checked, and the limit."""
    figure, axes = _figure(6.4, 2.2)
    axes.plot(np.array(shift_px, np.float64), ".-", color=COLOURS[0], linewidth=0.8, markersize=4)
    axes.axhline(threshold_px, color=COLOURS[3], linewidth=1, linestyle="--")
    axes.set(xlabel="picture", ylabel="shift (px)", ylim=(0, None))
    _style(axes)
    return png(figure)


def reasons(counts: Mapping[str, int]) -> bytes:
    """Why pictures were left, a bar for each reason."""
    figure, axes = _figure(6.4, 0.8 + 0.28 * len(counts))
    names = sorted(counts, key=lambda name: counts[name])
    axes.barh(range(len(names)), [counts[name] for name in names], color=COLOURS[2])
    axes.set_yticks(range(len(names)), [name[:60] for name in names], parse_math=False)
    axes.set(xlabel="pictures")
    _style(axes)
    return png(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _style(axes: Axes, *, grid: bool = True) -> None:
    if grid:
        axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_fontsize(8)


def _point(px: Floats) -> tuple[int, int]:
    """In sixteenths of a pixel, as OpenCV draws."""
    x, y = np.rint(16.0 * px).astype(int)
    return int(x), int(y)


def _jpeg(picture: Picture) -> bytes:
    return cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
