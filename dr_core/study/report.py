"""One HTML page about a training run and its study, made only from files of the run.

The page holds its pictures and its style; it loads nothing. Text from files is escaped.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dr_core.config import load_yaml
from dr_core.errors import OutputInUseError, UserError
from dr_core.study import plots
from dr_core.study.discrimination import EXAMPLES, FORMAT, LEVELS, RESULTS, TRIVIAL
from dr_core.study.tables import table_of, verdict_line

METRICS = "metrics.jsonl"
LIVE = "live"
AGENT, AGENT_PLAYED, AGENT_LIVE = "agent", "agent_played", "agent_live"
GENERATOR = '<meta name="generator" content="dr report">'
ROW_LABELS = {"original": "real", "reconstruction": "codec", "next": "real next", "imagined": "imagined"}
STATES = {"met": "met", "missed": "missed", "not measured": "open"}

_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff }
body { margin: 0 auto; max-width: 62rem; padding: 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ccc }
figure { margin: 0 0 1rem } video { max-width: 100%; height: auto } figcaption { font-size: .85rem; color: #444 }
img { max-width: 100%; height: auto }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
.met { color: #006b3c } .missed { color: #a8200d } .open { color: #6b5900 }
code, pre { font-size: .8rem; overflow-wrap: anywhere; white-space: pre-wrap }
.missing { background: #f4f4f4; padding: .6rem }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt } h2 { break-after: avoid } figure, tr { break-inside: avoid }
  .wide { overflow: visible } table { font-size: 7pt; white-space: normal } }
"""


def write_report(run: Path, out: Path) -> None:
    """Write the page about the directory ``run`` to ``out``.

    Raises:
        UserError: there is no run, or a file of it is damaged.
        OutputInUseError: ``out`` is a file that this function did not write.
    """
    if not (run / METRICS).is_file() and not (run / "model").is_dir():
        raise UserError(
            str(run),
            expected=f"a training run with {METRICS} and model/",
            found="neither" if run.is_dir() else "no such directory",
            next_step="give the --out of dr train-reward",
        )
    if os.path.lexists(out) and not _is_report(out):
        raise OutputInUseError(
            str(out), expected="a free name or an earlier report", found="another file", next_step="give another --out"
        )
    page = render(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(out)


def render(run: Path) -> str:
    """The page about ``run`` as HTML.

    Raises:
        UserError: a file of the run is damaged.
    """
    manifest = _read_json(run / "model" / "manifest.json")
    results = _read_json(run / "study" / RESULTS)
    if results is not None and results.get("format") != FORMAT:
        raise _damaged(run / "study" / RESULTS, f"results of format {FORMAT}", f"format {results.get('format')!r}")
    examples = _read_examples(run / "study" / EXAMPLES) if results else {}
    try:
        sections = {
            "Summary": _summary(run, manifest, results),
            "Training": _training(run),
            "What the codec keeps": _pictures(run, results, examples, "original", "reconstruction"),
            "Imagined next frames": _pictures(run, results, examples, "next", "imagined"),
            "Agent": _agent(run),
            "Live": _live(run / LIVE),
            "Reward over time": _curves(run, results, examples),
            "Expert against worse behaviour": _tables(run, results),
            "Cost": _cost(run, results),
            "Provenance": _provenance(run, manifest, results),
        }
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(run / "study", "the files of one whole study", f"parts that do not fit ({error!r})") from error
    return page_html(f"Reward model {run.resolve().name}", GENERATOR, sections)


# ---- sections ----


def _summary(run: Path, manifest: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> str:
    parts = []
    if manifest is None:
        parts.append(_missing("There is no finished model yet.", "dr train-reward … (with --resume to go on)"))
    if results is None:
        return "".join([*parts, _no_study(run)])
    verdict = results["verdict"]
    met = sum(entry["state"] == "met" for entry in verdict)
    judged = escape(results["estimators"][0])
    parts.append(f"<p>The reward <b>{judged}</b> meets {met} of {len(verdict)} targets. {_in_words(results)}</p>")
    items = "".join(f'<li class="{STATES[entry["state"]]}">{escape(verdict_line(entry))}</li>' for entry in verdict)
    parts.append(f"<ul>{items}</ul>")
    hashes = (manifest or {}).get("sha256", {}).get("model.safetensors"), results["model"]["hash"]
    if manifest is not None and hashes[0] != hashes[1]:
        parts.append('<p class="missed">The study was made with another model than the one in this run.</p>')
    if results["allow_other_camera"]:
        parts.append("<p>Recordings of other cameras than the model's were allowed in the study.</p>")
    if thinned := results["thinned"]:
        text = ", ".join(f"{name} every {n}th" for name, n in thinned.items())
        parts.append(f"<p>Frames scored: {escape(text)}.</p>")
    return "".join(parts)


def _in_words(results: Mapping[str, Any]) -> str:
    """What the numbers say, for a reader who does not know AUROC."""
    sentences = []
    for block, name in (("seen", "tasks it was trained on"), ("unseen", "tasks it never saw")):
        cells = results["scores"][results["estimators"][0]]["blocks"][block]
        found = [(level, cells[f"auroc_{level}"]["value"]) for level in LEVELS if f"auroc_{level}" in cells]
        if found:
            shares = ", ".join(f"{100 * value:.0f} % ({level} % random)" for level, value in found)
            sentences.append(f"On {name} it prefers an expert to a worse episode in {shares} of the pairs.")
    return escape(" ".join([*sentences, "A coin would do so in 50 %."]))


def _training(run: Path) -> str:
    from dr_core.training import read_metrics

    records = read_metrics(run / METRICS)
    if not records:
        return _missing("No training curves yet.", "dr train-reward …")
    stages: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        for key, value in record.items():
            if key not in ("stage", "step"):
                stages.setdefault(record["stage"], {}).setdefault(key, []).append((record["step"], value))
    figures = []
    for stage, keys in stages.items():
        for key, pairs in keys.items():
            steps, values = np.array(pairs, np.float64).T
            picture = plots.training_curve(steps, values, stage, key)
            figures.append(figure_html(picture, f"{stage}: {key} over the optimiser steps"))
    return f'<div class="grid">{"".join(figures)}</div>' + _caption(
        "Thin: every step. Thick: running mean. PSNR: how close reconstructed frames are; at 25 dB small parts "
        "are lost, at 35 dB it hardly shows. Perplexity: how many codes are really in use."
    )


def _pictures(
    run: Path, results: Mapping[str, Any] | None, examples: Mapping[str, NDArray[Any]], first: str, second: str
) -> str:
    """Pairs of frames of each example recording, the real ones above."""
    if results is None:
        return _no_study(run)
    parts = []
    for entry in results["examples"]["frames"]:
        number, later = entry["number"], entry["spacing"] if first == "next" else 0
        rows = {ROW_LABELS[name]: examples[f"{name}_{number}"] for name in (first, second)}
        kind = "seen" if entry["seen"] else "unseen"
        columns = [f"frame {frame + later}" for frame in entry["frames"]]
        text = f"{entry['task']} ({kind} in training), {entry['path']}"
        parts.append(figure_html(plots.frame_rows(rows, columns), text))
    if not parts:
        return "<p>No recording was long enough to show.</p>"
    explained = {
        "original": "Above the frames, below what is left of them after the codec. What is missing below, the reward "
        "cannot see.",
        "next": "Above the frames that came, below what the video model draws as an expert's next frame, given "
        "the frames before it.",
    }
    return _caption(explained[first]) + "".join(parts)


def _agent(run: Path) -> str:
    """The agent that learned from this reward, in simulation and through the ROS graph; empty if there is none."""
    from dr_core.agent.report import agent_html

    live = _live(run / AGENT_LIVE)
    return agent_html(run / AGENT, run / AGENT_PLAYED) + (f"<h3>Through the ROS graph</h3>{live}" if live else "")


def _live(live: Path) -> str:
    """An evaluation of ``dr launch evaluate``; empty if there is none."""
    from dr_core.robot.evaluation import PLAN
    from dr_core.robot.evaluation_report import summary_html

    if not (live / PLAN).is_file():
        return ""
    return summary_html(live) + _caption(
        "Robot, agents, safety gate, recorder and reward were processes of their own that exchanged ROS 2 messages "
        "over DDS. The curves are the rewards as they were published for each camera picture."
    )


def _curves(run: Path, results: Mapping[str, Any] | None, examples: Mapping[str, NDArray[Any]]) -> str:
    if results is None:
        return _no_study(run)
    tasks: dict[str, dict[int, NDArray[Any]]] = {}
    for entry in results["examples"]["curves"]:
        tasks.setdefault(entry["task"], {})[entry["quality"]] = examples[f"curves_{entry['number']}"]
    parts = []
    for block, own in results["blocks"].items():
        if own:
            figures = [figure_html(plots.reward_curves(tasks[task], task), f"reward over time, {task}") for task in own]
            parts.append(f'<h3>{escape(block)} tasks</h3><div class="grid">{"".join(figures)}</div>')
    return "".join(parts) + _caption(
        f"Reward {results['estimators'][0]}. Thin: single recordings. Thick: their mean while at least half of them go "
        "on; band: one standard deviation. Zero is the mean reward of the training experts."
    )


def _tables(run: Path, results: Mapping[str, Any] | None) -> str:
    if results is None:
        return _no_study(run)
    parts = [
        _caption(
            "AUROC: how often an expert episode scores above one of the other kind; 0.5 is chance, 1 always, below "
            "0.5 the reward prefers the other kind. P: the same for an expert episode and a control made of its own "
            "frames. Kendall tau: order over all four levels, -1 to 1. VOC: rank correlation of the summed reward with "
            f"time. In brackets: 95 % bootstrap interval over episodes ({results['resamples']} resamples), too narrow "
            "for few episodes. n: episodes compared. tokens_changed and codec_psnr are trivial scores, to be beaten."
        )
    ]
    for block, own in results["blocks"].items():
        if not own:
            parts.append(f"<h3>{escape(block)} tasks</h3><p>None among the recordings.</p>")
            continue
        cells = {
            name + (" (trivial)" if name in TRIVIAL else ""): {
                f"against {level} % random": tables["blocks"][block].get(f"auroc_{level}") for level in LEVELS
            }
            for name, tables in results["scores"].items()
        }
        chart = figure_html(plots.auroc_chart(cells, f"{block} tasks"), f"AUROC of each score, {block} tasks")
        parts.append(f"<h3>{escape(block)} tasks: {escape(', '.join(own))}</h3>")
        parts.append(chart + table_html(table_of(results, "blocks", block)))
    parts.append("<h3>Task by task</h3>")
    for own in results["blocks"].values():
        for task in own:
            inside = table_html(table_of(results, "tasks", task))
            parts.append(f"<details><summary>{escape(task)}</summary>{inside}</details>")
    left_out = results["left_out"]
    if left_out:
        items = "".join(f"<li><code>{escape(e['path'])}</code>: {escape(e['why'])}</li>" for e in left_out)
        parts.append(f"<p>{len(left_out)} recordings were left out:</p><ul>{items}</ul>")
    return "".join(parts)


def _cost(run: Path, results: Mapping[str, Any] | None) -> str:
    if results is None:
        return _no_study(run)
    rows = [["part", "ms per frame"], *([name, f"{ms:.3g}"] for name, ms in results["ms_per_frame"].items())]
    device = results.get("command", {}).get("device", "cpu")
    return table_html(rows) + _caption(
        f"Measured during the study on {device} ({results['machine']}), many frames at a time. A reward costs one "
        "encoding and its own row; decoding is for pictures and for codec_psnr only."
    )


def _provenance(run: Path, manifest: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> str:
    rows = [["what", "value"], ["run", str(run)]]
    if manifest is not None:
        rows.append(["model hash", str(manifest.get("sha256", {}).get("model.safetensors", "not recorded"))])
        for key in ("dataset_sha256", "git_commit", "tasks", "render", "versions"):
            if key in manifest:
                rows.append([key, _flat(manifest[key])])
        if "created_unix_s" in manifest:
            rows.append(["model written", _date(float(manifest["created_unix_s"]))])
    if results is not None:
        rows.append(["model hash of the study", str(results["model"]["hash"])])
        rows.append(["study", f"seed {results['seed']}, {len(results['episodes'])} recordings"])
        rows.append(["versions of the study", _flat(results["versions"])])
        rows.append(["machine of the study", str(results["machine"])])
    config = run / "model" / "config.yaml"
    text = _flat_yaml(config) if config.is_file() else "no config.yaml"
    return table_html(rows, wrap=True) + f"<h3>Configuration</h3><pre>{escape(text)}</pre>"


# ---- pieces ----


def page_html(title: str, generator: str, sections: Mapping[str, str]) -> str:
    """A whole page; ``sections``: HTML by heading, empty ones are left out; ``generator``: how to know it again."""
    body = "".join(f"<section><h2>{escape(name)}</h2>{html}</section>\n" for name, html in sections.items() if html)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{generator}\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def figure_html(picture: bytes, text: str) -> str:
    """A PNG in the page itself, with its caption."""
    data = base64.b64encode(picture).decode("ascii")
    label = escape(text, quote=True)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{label}"><figcaption>{label}</figcaption></figure>'


def table_html(rows: Sequence[Sequence[str]], *, wrap: bool = False) -> str:
    """Rows of text, the header first; nothing in them is taken for HTML."""
    header, *lines = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    style = ' style="white-space: normal; overflow-wrap: anywhere"' if wrap else ""
    return f'<div class="wide"><table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _caption(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _missing(text: str, command: str) -> str:
    return f'<p class="missing">{escape(text)} To make it: <code>{escape(command)}</code></p>'


def _no_study(run: Path) -> str:
    command = f"dr study discrimination --model {run / 'model'} --episodes PATH… --out {run / 'study'}"
    return _missing("There is no study of this run yet.", command)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat_yaml(path: Path) -> str:
    """``a.b: value`` lines: shorter on a phone than nested ones."""
    lines = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            lines.append(f"{prefix}: {value}")

    walk("", load_yaml(path))
    return "\n".join(lines)


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return GENERATOR.encode() in stream.read(400)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, "JSON", str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(path, "a JSON object", type(value).__name__)
    return value


def _read_examples(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise _damaged(path, "the example arrays of the study", str(error)) from error


def _damaged(path: Path, expected: str, found: str) -> UserError:
    return UserError(
        str(path), expected=expected, found=found, next_step="remove it and run dr study discrimination again"
    )
