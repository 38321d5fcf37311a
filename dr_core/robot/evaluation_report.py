"""The HTML page about an evaluation, made only from the files of its folder and the recordings they name.

Pictures are in the page; videos lie beside it in ``videos/``. Text from files is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from dr_core.data.bags import bag_info, export_video
from dr_core.data.episodes import read_metadata
from dr_core.data.messages import COMPRESSED_IMAGE, IMAGE
from dr_core.errors import BagError, OutputInUseError, UserError
from dr_core.robot.evaluation import (
    MOVING,
    Curve,
    Result,
    rate_difference,
    read_curve,
    read_plan,
    read_results,
    wilson,
)
from dr_core.study import plots
from dr_core.study.report import figure_html, page_html, table_html

REPORT, VIDEOS = "report.html", "videos"
GENERATOR = '<meta name="generator" content="dr evaluation">'
MODES_IN_WORDS = {
    "dry-run": "The agents proposed motions, nothing moved: nothing is judged.",
    "shadow": "A person drove; the agents only proposed. Outcomes are those of the person, not of an agent.",
    "slow": "The agents drove, their wishes scaled down.",
    "full": "The agents drove.",
}


def finish(out: Path) -> Path:
    """Write the page, then the videos, which take a while, then the page with them; returns its path.

    Raises:
        UserError: a file of the evaluation is damaged, or report.html is another one's.
    """
    write_report(out, {})
    return write_report(out, make_videos(out))


def make_videos(out: Path) -> dict[str, str]:
    """A video for each recorded episode that has none yet; returns why not, by the episode's name."""
    problems: dict[str, str] = {}
    for result in read_results(out):
        video = out / VIDEOS / f"{result.name}.mp4"
        if not result.bag or video.exists():
            continue
        try:
            _make_video(Path(result.bag), video)
        except UserError as error:
            problems[result.name] = str(error)
    return problems


def write_report(out: Path, problems: Mapping[str, str]) -> Path:
    """Write the page from what there is; ``problems``: why an episode has no video.

    Raises:
        UserError: a file of the evaluation is damaged, or report.html is another one's.
    """
    path = out / REPORT
    if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:400]:
        raise OutputInUseError(
            str(path), expected="a free name or an earlier report", found="another file", next_step="move it away"
        )
    page = render(out, problems)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def render(out: Path, problems: Mapping[str, str]) -> str:
    """The page as HTML.

    Raises:
        UserError: a file of the evaluation is damaged.
    """
    plan, results = read_plan(out), read_results(out)
    settings = plan["settings"]
    sections = {
        "Result": _result(plan, results),
        "Episodes": _table(results),
        "Agreement of agent and person": _agreement(results) if settings["mode"] == "shadow" else "",
        "Episode by episode": "".join(_episode(out, result, problems) for result in results),
        "Settings": table_html([["setting", "value"], *_rows(settings)], wrap=True),
        "Provenance": _provenance(plan, results),
    }
    title = f"Evaluation {out.resolve().name}: {settings['task'] or 'no task named'}, {settings['mode']}"
    return page_html(title, GENERATOR, sections)


def summary_html(out: Path) -> str:
    """Result, table and episodes for another page, with the videos in it: it needs no other file.

    Raises:
        UserError: a file of the evaluation is damaged.
    """
    plan, results = read_plan(out), read_results(out)
    episodes = "".join(_episode(out, result, {}, inside=True) for result in results)
    return _result(plan, results) + _table(results) + episodes


# ---- sections ----


def _result(plan: Mapping[str, Any], results: Sequence[Result]) -> str:
    mode, agents = plan["settings"]["mode"], plan["settings"]["agents"]
    parts = [f"<p>{MODES_IN_WORDS[mode]} {len(results)} of {len(plan['order'])} episodes are done.</p>"]
    if mode not in MOVING:
        return "".join([*parts, "<p>No success rate of an agent is claimed.</p>"])
    rows = [["agent", "success rate", "95 % interval (Wilson)", "n judged", "aborted"]]
    counts = {agent: count_outcomes(results, agent) for agent in agents}
    for agent, (successes, judged, aborted) in counts.items():
        low, high = wilson(successes, judged)
        rate = f"{successes / judged:.0%} ({successes} of {judged})" if judged else "none judged"
        rows.append([agent, rate, f"{low:.0%} to {high:.0%}", str(judged), str(aborted)])
    parts.append(table_html(rows))
    if any(aborted for _, _, aborted in counts.values()):
        text = ", ".join(f"{agent} {s / (n + a):.0%} of {n + a}" for agent, (s, n, a) in counts.items() if n + a)
        parts.append(f"<p>Aborted episodes are not judged. With each of them as a failure: {escape(text)}.</p>")
    if len(agents) == 2:
        first, second = (counts[agent][:2] for agent in agents)
        if first[1] and second[1]:
            points = [100 * number for number in rate_difference(first, second)]
            words = "The interval contains 0: this does not tell them apart." if points[1] <= 0 <= points[2] else ""
            parts.append(
                f"<p>Difference {escape(agents[0])} − {escape(agents[1])}: {points[0]:+.0f} points, 95 % interval "
                f"{points[1]:+.0f} to {points[2]:+.0f} (Newcombe). {words}</p>"
            )
        else:
            parts.append("<p>Difference: one of them has no judged episode.</p>")
    return "".join(parts)


def count_outcomes(results: Sequence[Result], agent: str) -> tuple[int, int, int]:
    """Of one agent: successes, judged episodes, aborted ones."""
    own = [result.outcome for result in results if result.agent == agent]
    successes = own.count("success")
    return successes, successes + own.count("failure"), own.count("aborted")


def _table(results: Sequence[Result]) -> str:
    header = "#,agent,outcome,duration s,reward mean,return,rewards,invalid,gate stops,gate holds,messages lost,cause"
    rows = [header.split(",")]
    for result in results:
        invalid = f"{result.invalid / result.rewards:.0%}" if result.rewards else "–"
        row = [str(result.number + 1), result.agent, result.outcome, f"{result.duration_s:.1f}"]
        row += [_number(result.reward_mean), _number(result.reward_return), str(result.rewards), invalid]
        row += [str(result.gate_stops), str(result.gate_holds), _drops(result)]
        rows.append([*row, "; ".join(filter(None, (result.cause, result.recording)))])
    return table_html(rows) + "<p>Mean and return are of the valid rewards only; invalid: share of the others.</p>"


def _agreement(results: Sequence[Result]) -> str:
    rows = [["#", "agent", "cosine similarity", "mean absolute difference", "pairs", "both moving"]]
    for result in results:
        if (found := result.agreement) is not None:
            numbers = [_number(found["cosine"]), _number(found["difference"])]
            rows.append(
                [str(result.number + 1), result.agent, *numbers, str(found["pairs"]), str(found["moving"])],
            )
    explained = "Linear velocities, 1 being the robot's fastest; each wish of the agent with the person's nearest one."
    return table_html(rows) + f"<p>{escape(explained)}</p>"


def _episode(out: Path, result: Result, problems: Mapping[str, str], *, inside: bool = False) -> str:
    """Curve and video of one episode; ``inside``: the video is part of the page instead of a file beside it."""
    curve = read_curve(out, result.name)
    label = f"{result.number + 1}: {result.agent}, {result.outcome}"
    picture = "<p>No reward was received.</p>"
    if len(curve.value):
        picture = figure_html(curve_figure(curve, label), f"reward of {result.name}, {len(curve.value)} frames")
    video = out / VIDEOS / f"{result.name}.mp4"
    if video.exists():
        source = escape(quote(f"{VIDEOS}/{video.name}"), quote=True)
        if inside:
            source = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode('ascii')}"
        film = f'<figure><video controls preload="metadata" src="{source}"></video></figure>'
    else:
        why = problems.get(result.name, "not recorded" if not result.bag else "not made yet")
        film = f"<p>No video: {escape(why)}</p>"
    return f'<h3>{escape(label)}</h3><div class="grid">{picture}{film}</div>'


def _provenance(plan: Mapping[str, Any], results: Sequence[Result]) -> str:
    hashes = sorted({one for result in results for one in result.model_hashes})
    estimators = sorted({one for result in results for one in result.estimators})
    rows = [
        ["reward model hash", ", ".join(hashes) or "no reward was received"],
        ["reward estimator", ", ".join(estimators) or "–"],
        *_rows(plan["provenance"]),
        ["order", ", ".join(plan["order"])],
        *([f"recording of episode {result.number + 1}", result.bag] for result in results if result.bag),
    ]
    warning = (
        '<p class="missed">The episodes were not all scored by the same reward model.</p>' if len(hashes) > 1 else ""
    )
    return warning + table_html([["what", "value"], *rows], wrap=True)


# ---- pieces ----


def curve_figure(curve: Curve, title: str) -> bytes:
    """The rewards over time as a PNG: a line where they are valid, marks at the bottom where they are not."""
    seconds = (curve.stamps_ns - curve.stamps_ns[0]) * 1e-9
    figure = Figure(figsize=(5.0, 2.8), dpi=plots.DPI, layout="constrained")
    axes = figure.subplots()
    shown = np.where(curve.valid, curve.value, np.nan)
    axes.plot(seconds, shown, ".-", color=plots.COLOURS[0], linewidth=1, markersize=3, label="valid")
    axes.axhline(0, color="0.6", linewidth=0.8)
    if (~curve.valid).any():
        bottom = np.full(int((~curve.valid).sum()), 0.03)
        # The height of the marks is a share of the plot: an invalid reward has no value to be drawn at.
        across = axes.get_xaxis_transform()
        axes.plot(seconds[~curve.valid], bottom, "x", color=plots.COLOURS[3], transform=across, label="invalid")
    axes.set(xlabel="time (s)", ylabel="reward (s.d.)")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=8, loc="best", frameon=False)
    return plots.png(figure)


def _make_video(bag: Path, video: Path) -> None:
    """The colour images of a recording as a video for any browser.

    Raises:
        UserError: no whole recording, or no images.
    """
    images = [topic.topic for topic in bag_info(bag).topics if topic.msgtype in (IMAGE, COMPRESSED_IMAGE)]
    if not images:
        raise BagError(str(bag), expected="images", found="none", next_step="let the recorder record an image topic")
    colour = next((topic for topic in images if "color" in topic), images[0])
    export_video(bag, video, colour, lossless=False)


def _drops(result: Result) -> str:
    if not result.bag:
        return "–"
    try:
        drops = read_metadata(Path(result.bag)).drops
    except UserError:
        return "recording not found"
    return ", ".join(f"{count} {name}" for name, count in drops.items()) or "0"


def _number(value: float | int | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _rows(mapping: Mapping[str, Any]) -> list[list[str]]:
    texts = [", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in mapping.values()]
    return [[key, text or "–"] for key, text in zip(mapping, texts, strict=True)]
