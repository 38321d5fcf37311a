"""Learning curves of a sweep: success against frames and against time, mean over seeds with its interval."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import get_args

from dr_core.rewards.names import RewardName

COLUMNS = 4
COLOURED = ("diffusion_reward", "rnd", "amp", "default", "viper", "viper_std", "sparse")
"""Rewards in the order of the colours."""
FURTHER = {"genreward": "#999933", "genreward_diffusion": "#882255"}
"""Colours of some more; the others are grey."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one training.

    Args:
        frames: simulator steps of training until then.
        success: share of its episodes that succeeded.
        episodes: how many there were.
        trained_s: seconds of training until then, over all its starts; None: not known.
    """

    task: str
    reward: str
    seed: int
    frames: int
    success: float
    episodes: int
    trained_s: float | None


@dataclass(frozen=True)
class Point:
    """One point of a curve: the mean over seeds with its 95 % interval."""

    frames: int
    trained_s: float | None
    success: float
    low: float
    high: float
    seeds: int
    episodes: int


Curves = Mapping[tuple[str, str], Sequence[Point]]
"""Points of each task and reward, by frames."""


def read_evaluations(run: Path, task: str, reward: str, seed: int) -> list[Evaluation]:
    """The evaluations of the training in ``run`` by frames; of a part that was trained twice, the later ones."""
    from dr_core.training import read_metrics

    lines = {int(line["frames"]): line for line in read_metrics(run / "evaluations.jsonl")}
    return [
        Evaluation(task, reward, seed, frames, float(line["success"]), int(line["n"]), line.get("trained_s"))
        for frames, line in sorted(lines.items())
    ]


def success_interval(rates: Sequence[float], episodes: Sequence[int]) -> tuple[float, float, float]:
    """Mean of the success rates of several seeds, and its 95 % interval.

    One seed: the score interval of its episodes (Wilson, 1927), which says nothing about other seeds. More: Student's t
    over the seeds, cut at 0 and 1; its width is 0 when all seeds agree.

    Args:
        rates: of each seed, at least one.
        episodes: that each was measured with.
    """
    from scipy import stats

    from dr_core.robot.evaluation import wilson

    n = len(rates)
    mean = math.fsum(rates) / n
    if n == 1:
        return mean, *wilson(round(mean * episodes[0]), episodes[0])
    deviation = math.sqrt(math.fsum((rate - mean) ** 2 for rate in rates) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def learning_curves(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str], list[Point]]:
    """A curve for each task and reward; it has the points that all of its seeds have reached."""

    def curve(one: Evaluation) -> tuple[str, str]:
        return one.task, one.reward

    return {key: _points(list(own)) for key, own in groupby(sorted(evaluations, key=curve), curve)}


def _points(evaluations: Sequence[Evaluation]) -> list[Point]:
    seeds = {one.seed for one in evaluations}
    points = []
    for frames in sorted({one.frames for one in evaluations}):
        own = [one for one in evaluations if one.frames == frames]
        if len(own) == len(seeds):
            interval = success_interval([one.success for one in own], [one.episodes for one in own])
            times = [one.trained_s for one in own if one.trained_s is not None]
            trained_s = sum(times) / len(times) if len(times) == len(own) else None
            points.append(Point(frames, trained_s, *interval, len(own), sum(one.episodes for one in own)))
    return points


def curves_csv(evaluations: Sequence[Evaluation]) -> str:
    """All evaluations as CSV, a line each; ``trained_s`` is empty where it is not known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["task", "reward", "seed", "frames", "success", "episodes", "trained_s"])
    for one in evaluations:
        trained_s = "" if one.trained_s is None else f"{one.trained_s:.1f}"
        writer.writerow([one.task, one.reward, one.seed, one.frames, f"{one.success:.6g}", one.episodes, trained_s])
    return stream.getvalue()


def curves_figure(evaluations: Sequence[Evaluation], tasks: Sequence[str]) -> bytes:
    """A PNG with a panel for each task, success against frames; below, against minutes where they are known.

    Thick: the mean over seeds with its interval as a band; thin: single seeds. A reward has the same colour in all
    figures.
    """
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, PercentFormatter

    from dr_core.study.plots import COLOURS, DPI, png

    colours = {**dict.fromkeys(get_args(RewardName), "#999999"), **dict(zip(COLOURED, COLOURS, strict=True)), **FURTHER}
    curves = learning_curves(evaluations)
    timed = any(point.trained_s is not None for points in curves.values() for point in points)
    columns = min(len(tasks), COLUMNS)
    rows = (1 + timed) * -(-len(tasks) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 2.4 * rows + 0.5), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)

    def panel(axes: Axes, task: str, minutes: bool) -> None:
        def place(one: Evaluation | Point) -> float:
            return one.frames if not minutes else math.nan if one.trained_s is None else one.trained_s / 60.0

        here = sorted(
            (one for one in evaluations if one.task == task), key=lambda one: (one.reward, one.seed, one.frames)
        )
        for (reward, _), own in groupby(here, lambda one: (one.reward, one.seed)):
            line = list(own)
            axes.plot([place(o) for o in line], [o.success for o in line], color=colours[reward], alpha=0.3, lw=0.6)
        for reward, points in ((reward, points) for (name, reward), points in curves.items() if name == task):
            x = [place(point) for point in points]
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(x, low, high, color=colours[reward], alpha=0.15, linewidth=0)
            axes.plot(x, [point.success for point in points], ".-", color=colours[reward], lw=1.6, markersize=4)
        axes.set_title(task, fontsize=9)
        axes.set_xlabel("minutes of training" if minutes else "frames", fontsize=8)
        axes.set(xlim=(0, None), ylim=(-0.03, 1.03))
        if not minutes:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    for axes in grid.flat:
        axes.set_visible(False)
    for index, task in enumerate(tasks):
        for minutes in range(1 + timed):
            axes = grid[(1 + timed) * (index // columns) + minutes, index % columns]
            axes.set_visible(True)
            panel(axes, task, bool(minutes))
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            if index % columns == 0:
                axes.set_ylabel("success", fontsize=8)
    rewards = [reward for reward in colours if any(name == reward for _, name in curves)]
    lines = [Line2D([], [], color=colours[reward], lw=1.6) for reward in rewards]
    figure.legend(lines, rewards, fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    return png(figure)


def table(curves: Curves, tasks: Sequence[str], rewards: Sequence[str]) -> str:
    """The last point of each curve, as Markdown: a row for each task, a column for each reward."""
    lines = [["task", *rewards], ["---"] * (len(rewards) + 1)]
    for task in tasks:
        lines.append([task, *(_cell(curves.get((task, reward), ())) for reward in rewards)])
    note = (
        "Success rate, mean over seeds [95 % interval: of one seed Wilson's over its episodes, of more Student's t "
        "over seeds]; then the seeds, all their episodes, and the frames of training at which all were evaluated."
    )
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines]) + f"\n\n{note}"


def _cell(points: Sequence[Point]) -> str:
    if not points:
        return "not measured"
    last = points[-1]
    seeds = "1 seed" if last.seeds == 1 else f"{last.seeds} seeds"
    interval = f"[{100 * last.low:.0f}, {100 * last.high:.0f}]"
    return f"{last.success:.0%} {interval} ({seeds}, {last.episodes} episodes, {last.frames:,} frames)"
