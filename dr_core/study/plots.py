"""The pictures of the study and of the report, each as the bytes of a PNG file.

Figures are drawn without pyplot: no window, no state shared between callers. They are about as wide as a phone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

Floats = NDArray[Any]

DPI = 120
SMOOTHING_FRAMES = 5
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
QUALITY_COLOURS = {0: "#0072B2", 25: "#009E73", 50: "#E69F00", 100: "#D55E00"}
CURVE_LABELS = {
    "psnr_db": "reconstruction PSNR (dB)",
    "perplexity": "codes in use (perplexity)",
    "all_masked_nll": "next frame, all masked\n(nats per token)",
}


def png(figure: Figure) -> bytes:
    """The figure as a file, without the metadata that would name the drawing program."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()


def running_mean(values: Floats, window: int) -> Floats:
    """Centred mean of ``window`` entries (..., T), NaN left out; NaN where there is nothing but NaN."""
    before = window // 2
    padding = [(0, 0)] * (values.ndim - 1) + [(before, window - 1 - before)]
    padded = np.pad(values.astype(np.float64), padding, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)
    known = np.isfinite(windows)
    total = np.where(known, windows, 0).sum(-1)
    return np.where(np.isfinite(values), total / np.maximum(known.sum(-1), 1), np.nan)


def training_curve(steps: Floats, values: Floats, stage: str, key: str) -> bytes:
    """One logged number of a training stage over its steps, with a running mean."""
    figure, axes = _figure(3.9, 2.5)
    axes.plot(steps, values, color=COLOURS[0], alpha=0.3, linewidth=0.8)
    if 0 < values.min() < values.max() / 10:
        axes.set_yscale("log")  # or the first steps hide the last ones
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    window = max(1, len(values) // 30)
    axes.plot(steps, running_mean(values, window), color=COLOURS[0], linewidth=1.6)
    axes.set(xlabel="optimiser step", ylabel=CURVE_LABELS.get(key, key.replace("_", " ")), title=f"{stage}: {key}")
    _plain(axes)
    return png(figure)


def success_curve(frames: Floats, success: Floats, low: Floats, high: Floats) -> bytes:
    """Success rate of an agent's evaluations over the simulator steps of its training, (E,) each, with its interval."""
    figure, axes = _figure(5.2, 2.8)
    axes.fill_between(frames, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(frames, success, color=COLOURS[0], linewidth=1.6, marker="o", markersize=3)
    axes.set(xlabel="simulator steps", ylabel="success rate", ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain(axes)
    return png(figure)


def frame_rows(rows: Mapping[str, NDArray[np.uint8]], columns: Sequence[str]) -> bytes:
    """Frames (n, H, W, 3) of each row under one another, pixels as they are; labels at the left and above."""
    figure = Figure(figsize=(1.05 * len(columns) + 0.3, 1.12 * len(rows) + 0.25), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, frames) in zip(grid, rows.items(), strict=True):
        for axes, frame in zip(line, frames, strict=True):
            axes.imshow(frame, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=8)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=8)
    return png(figure)


def reward_curves(curves: Mapping[int, Floats], task: str) -> bytes:
    """Reward over time of the recordings of one task, (E, T) per quality, NaN past the end of each.

    Thin lines are single recordings, thick ones their mean, the band one standard deviation over the recordings. The
    mean ends where fewer than half of them go on.
    """
    figure, axes = _figure(3.9, 3.3)
    for quality, values in sorted(curves.items(), reverse=True):
        colour = QUALITY_COLOURS.get(quality, COLOURS[-1])
        smooth = running_mean(values, SMOOTHING_FRAMES)
        frames = np.arange(values.shape[1])
        axes.plot(frames, smooth.T, color=colour, alpha=0.25, linewidth=0.5)
        known = np.isfinite(smooth)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, smooth, 0).sum(0) / count
        deviation = np.sqrt(np.where(known, (smooth - mean) ** 2, 0).sum(0) / count)
        mean[known.sum(0) * 2 < len(values)] = np.nan
        axes.fill_between(frames, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        label = "expert" if quality == 0 else f"{quality} % random"
        axes.plot(frames, mean, color=colour, linewidth=1.8, label=f"{label} (n {len(values)})")
    axes.set(xlabel="frame", ylabel=f"reward, standardised\n(mean of {SMOOTHING_FRAMES} frames)", title=task)
    _plain(axes)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    return png(figure)


def auroc_chart(cells: Mapping[str, Mapping[str, Mapping[str, Any] | None]], title: str) -> bytes:
    """AUROC with its interval: one group of dots per score, one colour per comparison; 0.5 is chance."""
    figure, axes = _figure(6.4, 1.0 + 0.5 * len(cells))
    shown: set[str] = set()
    for row, measures in enumerate(cells.values()):
        for place, (label, cell) in enumerate(measures.items()):
            if cell is None:
                continue
            y = row + 0.22 * (place - (len(measures) - 1) / 2)
            colour = list(QUALITY_COLOURS.values())[1 + place % 3]
            axes.plot([cell["low"], cell["high"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(cell["value"], y, "o", color=colour, markersize=5, label=None if label in shown else label)
            shown.add(label)
    axes.axvline(0.5, color="0.5", linewidth=1, linestyle=":")
    axes.set(xlabel="AUROC with 95 % interval (0.5 is chance)", title=title, xlim=(-0.02, 1.02))
    axes.set_yticks(range(len(cells)), list(cells), parse_math=False)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    _plain(axes)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    return png(figure)


def share_chart(shares: Mapping[str, Mapping[str, float]], title: str) -> bytes:
    """Shares from 0 to 1 as a coloured table, a row for each score; one half is chance."""
    columns = list(dict.fromkeys(column for own in shares.values() for column in own))
    values = np.array([[own.get(column, np.nan) for column in columns] for own in shares.values()])
    figure, axes = _figure(2.4 + 0.75 * len(columns), 1.4 + 0.32 * len(shares))
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(shares)), list(shares), fontsize=8, parse_math=False)
    axes.set_title(title, fontsize=10)
    return png(figure)


def score_figure(seconds: Floats, value: Floats, stderr: Floats, title: str) -> bytes:
    """The reward (T,) of one recording over time, and its sum; NaN where it is not valid."""
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(seconds, value, ".-", color=COLOURS[0], linewidth=1, markersize=3)
    if np.any(stderr > 0):
        top.fill_between(seconds, value - stderr, value + stderr, color=COLOURS[0], alpha=0.25, linewidth=0)
    top.axhline(0, color="0.6", linewidth=0.8)
    bottom.plot(seconds, np.cumsum(np.nan_to_num(value)), color=COLOURS[3], linewidth=1.4)
    top.set_ylabel("reward per frame\n(standardised)")
    bottom.set(xlabel="time (s)", ylabel="cumulative reward")
    top.set_title(title)
    for axes in (top, bottom):
        _plain(axes)
    return png(figure)


def reward_strip(value: Floats, *, width_px: int, height_px: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The curve under a video: an image (height_px, width_px, 3), and the column (T,) in it of each frame."""
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    frames = np.arange(len(value))
    axes.plot(frames, value, color=COLOURS[0], linewidth=1.2)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(xlim=(-0.5, max(len(value) - 0.5, 0.5)))
    axes.set(xlabel="frame", ylabel="reward (s.d.)")
    _plain(axes)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    columns = axes.transData.transform(np.stack([frames, np.zeros(len(frames))], 1))[:, 0]
    return np.array(canvas.buffer_rgba())[:, :, :3], columns.round().astype(np.int64)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of ``width`` x ``height`` inches with one plot."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _plain(axes: Axes) -> None:
    """The common style; called once labels and title are set."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    axes.title.set_fontsize(9)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_parse_math(False)  # names from outside may hold a "$"
