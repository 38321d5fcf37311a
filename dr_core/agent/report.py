"""What a run's report says of its agent: the learning curve, the evaluation in simulation, and its films."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dr_core.errors import UserError
from dr_core.robot.evaluation import wilson
from dr_core.study import plots
from dr_core.study.report import figure_html

EVALUATIONS, EPISODES = "evaluations.jsonl", "episodes.jsonl"
FILMS = 4


def agent_html(training: Path, played: Path) -> str:
    """Curve of the directory of ``dr train-agent`` and result of that of ``dr eval-agent``; empty without both.

    Raises:
        UserError: a file is damaged.
    """
    parts = []
    read = _lines(training / EVALUATIONS, ("frames", "trained_s", "success", "low", "high", "n"))
    # Of a part that was trained twice, after a kill, the later ones.
    if lines := sorted({line["frames"]: line for line in read}.values(), key=lambda line: line["frames"]):
        last = lines[-1]
        parts.append(
            f"<p>Trained for {last['frames']:,.0f} simulator steps, {last['trained_s'] / 60:.0f} minutes without the "
            f"evaluations; {last['success']:.0%} of its last {last['n']} episodes succeeded.</p>"
        )
        columns = [np.array([line[name] for line in lines], np.float64) for name in ("frames", "success")]
        bounds = [np.array([line[name] for line in lines], np.float64) for name in ("low", "high")]
        picture = plots.success_curve(columns[0], columns[1], bounds[0], bounds[1])
        text = "Success of the agent without noise; band: 95 % interval (Wilson) of each evaluation."
        parts.append(figure_html(picture, text))
    if episodes := _lines(played / EPISODES, ("seed", "success")):
        count, successes = len(episodes), sum(bool(line["success"]) for line in episodes)
        low, high = wilson(successes, count)
        parts.append(
            f"<p>Played in simulation: {successes} of {count} episodes succeed, {successes / count:.0%}, 95 % interval "
            f"{low:.0%} to {high:.0%} (Wilson).</p>"
        )
        parts.append(f'<div class="grid">{"".join(_film(played, line) for line in episodes[:FILMS])}</div>')
    return "".join(parts)


def _film(played: Path, line: Mapping[str, Any]) -> str:
    video = played / f"episode_{line['seed']}.mp4"
    if not video.is_file():
        return ""
    source = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode('ascii')}"
    text = f"episode {line['seed']}: {'success' if line['success'] else 'failure'}"
    player = f'<video controls loop width="256" style="image-rendering: pixelated" src="{source}"></video>'
    return f"<figure>{player}<figcaption>{escape(text)}</figcaption></figure>"


def _lines(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a file, none if it is missing."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if not all(isinstance(line[name], int | float) for name in names):
                raise ValueError(f"{line}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            str(path),
            expected=f"lines of JSON with {', '.join(names)}",
            found=f"others ({error!r})",
            next_step="remove the directory and make it again",
        ) from error
    return lines
