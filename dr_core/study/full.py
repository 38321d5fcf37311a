"""The full discrimination study: the published method, each correction alone, and the default, on the same videos.

Every arm is trained on the same tokens, for the same number of steps, with the same optimiser, for several seeds; each
seed has its own codec. All networks are small enough for a CPU: the published method is compared at this size, not at
its own (the `paper` preset trains that). Runs and studies that are finished are found again.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dr_core.config import to_mapping
from dr_core.data.episodes import find_episodes
from dr_core.diffusion.denoiser import CrossAttentionConfig
from dr_core.diffusion.inplace import InPlaceConfig
from dr_core.diffusion.train import VideoTraining
from dr_core.errors import BagError
from dr_core.presets import EstimatorConfig, EstimatorName, RewardModelConfig, TrainRewardConfig
from dr_core.rewards.model import RewardModel
from dr_core.rewards.train import train_reward
from dr_core.study import discrimination
from dr_core.study.discrimination import MEASURES, RESULTS, TRIVIAL
from dr_core.study.plots import auroc_chart, share_chart
from dr_core.study.report import figure_html, table_html

SUMMARY, TABLE, REPORT = "summary.json", "table.csv", "report.html"
FOLDERS = ("expert", "background", "test")
ENTROPIES: tuple[EstimatorName, ...] = ("paper", "one_pass", "chain", "likelihood", "one_pass_likelihood")
EVERY = {"paper": 8, "likelihood": 8, "chain": 8}
"""Frames scored by the estimators of many network calls: every n-th; by the others every fourth."""
TARGETS = {"seen": (0.95, 0.95), "unseen": (0.85, 0.90)}
"""AUROC against 25 % random, and share of pairs for the controls."""
CONTROLS = ("frozen", "reversed", "wrong_task", "truncated", "truncated_return")


@dataclass(frozen=True)
class Arm:
    """One thing compared: a trained model and the estimators read from it.

    Attributes:
        difference: from the arm it is compared with, in words.
        config: of the training; its seed is replaced.
        estimators: scored.
        trained_as: the arm whose networks it reads with its own ``config.model.estimator``; None: it trains its own.
    """

    difference: str
    config: TrainRewardConfig
    estimators: tuple[EstimatorName, ...] = ("paper",)
    trained_as: str | None = None


def arms(codec_steps: int | None = None, video_steps: int | None = None) -> dict[str, Arm]:
    """What is compared, by name. The steps default to those of the default preset."""
    default = TrainRewardConfig()
    codec = replace(default.codec_training, steps=codec_steps or default.codec_training.steps)
    video = replace(default.video_training, steps=video_steps or default.video_training.steps)

    def entropy_arm(difference: str, model: RewardModelConfig, training: VideoTraining, **more: Any) -> Arm:
        config = TrainRewardConfig(model=model, codec_training=codec, video_training=training)
        return Arm(difference, config, **more)

    bag = CrossAttentionConfig(width=128, depth=4, heads=4, condition_width=256)
    plain = replace(video, all_masked_share=0.0, distorted_share=0.0)
    paper = EstimatorConfig(name="paper")
    published = RewardModelConfig(denoiser="cross_attention", cross_attention=bag, background=False, estimator=paper)
    positions, trained = replace(bag, condition_positions=True), replace(bag, train_condition=True)
    exact = replace(paper, posterior="exact")
    in_place = replace(published, denoiser="in_place", in_place=InPlaceConfig())
    return {
        "default": Arm(
            "the default preset",
            replace(default, codec_training=codec, video_training=video),
            ("shaped_ratio", "ratio", "one_pass", "one_pass_likelihood"),
        ),
        "published": entropy_arm(
            "the published method at this size: an unordered, untrained bag of history codes",
            published,
            plain,
            estimators=ENTROPIES,
        ),
        "positions": entropy_arm(
            "published, history with positions", replace(published, cross_attention=positions), plain
        ),
        "trained condition": entropy_arm(
            "published, history table trained", replace(published, cross_attention=trained), plain
        ),
        "exact posterior": entropy_arm(
            "published, exact posterior of each jump",
            replace(published, estimator=exact),
            plain,
            trained_as="published",
        ),
        "in place": entropy_arm("published, history added in place", in_place, plain, estimators=ENTROPIES),
        "no distortion": Arm(
            "default without clips of distorted time",
            replace(default, codec_training=codec, video_training=replace(video, distorted_share=0.0)),
            ("shaped_ratio", "ratio"),
        ),
    }


def run(
    data: Path,
    out: Path,
    *,
    seeds: Sequence[int],
    only: Sequence[str] = (),
    codec_steps: int | None = None,
    video_steps: int | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train and study every arm for every seed, then compare.

    Args:
        data: directory with ``expert``, ``background`` and ``test`` recordings.
        out: directory of the study; what is finished there is kept.
        seeds: of the trainings.
        only: names of the arms to run; all when empty. Arms finished earlier are compared too.
        codec_steps, video_steps: length of every training; None: of the default preset.
        device: torch device.

    Returns:
        The summary, as written to ``out/summary.json``.

    Raises:
        BagError: recordings are missing.
    """
    console = console or Console()
    missing = [name for name in FOLDERS if not (data / name).is_dir()]
    if missing:
        raise BagError(
            str(data),
            expected=f"the directories {', '.join(FOLDERS)} of recordings",
            found=f"no {' and no '.join(missing)}",
            next_step="record them: examples/full_study.sh does",
        )
    compared = arms(codec_steps, video_steps)
    test = find_episodes([data / "test"])
    for seed in seeds:
        for name, arm in compared.items():
            if only and name not in only:
                continue
            folder = out / name.replace(" ", "_") / f"seed_{seed}"
            if not (folder / "study" / RESULTS).is_file():
                console.rule(f"{name}, seed {seed}: {arm.difference}")
                shared = out / "shared" / f"seed_{seed}"
                trained = out / (arm.trained_as or name).replace(" ", "_") / f"seed_{seed}"
                _train(compared[arm.trained_as or name], data, trained, seed, shared, device)
                _study(arm, trained / "model", folder, test, device, console)
    summary = summarise(out, compared)
    write(summary, out)
    return summary


def _train(arm: Arm, data: Path, folder: Path, seed: int, shared: Path, device: str) -> None:
    """Train one arm; codec and tokens of a seed are made by the first arm that needs them and used by all."""
    experts, background = [data / "expert"], [data / "background"]
    tokens = "tokens with background" if arm.config.model.background else "tokens of experts"
    parts = {"codec": "codec", tokens: "tokens"}
    if not folder.exists():
        building = _fresh(folder)
        building.mkdir(parents=True)
        for source, name in parts.items():
            if (shared / source).is_dir():
                shutil.copytree(shared / source, building / name)
        building.rename(folder)
    train_reward(replace(arm.config, seed=seed), experts, background, folder, resume=True, device=device)
    for target, name in parts.items():
        if not (shared / target).is_dir():
            building = _fresh(shared / target)
            shutil.copytree(folder / name, building)
            building.rename(shared / target)


def _fresh(path: Path) -> Path:
    """A name beside ``path`` to build it under, with nothing there."""
    building = path.with_name(f".{path.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    return building


def _study(arm: Arm, trained: Path, folder: Path, test: Sequence[Path], device: str, console: Console) -> None:
    model = RewardModel.load(trained, device)
    model.config = replace(model.config, estimator=arm.config.model.estimator)
    every: dict[str, int] = {name: EVERY.get(name, 4) for name in arm.estimators}
    with console.status("encoding and scoring the test recordings") as status:
        study = discrimination.run(
            model,
            test,
            estimators=arm.estimators,
            seed=0,
            every=every,
            progress=lambda what, done, total: status.update(f"{what}: {done} of {total}"),
        )
    study.results["command"] = {"model": str(trained), "device": device}
    building = _fresh(folder / "study")
    building.mkdir(parents=True)
    discrimination.write(study, building)
    building.rename(folder / "study")


# ---- comparing ----


def summarise(out: Path, compared: dict[str, Arm]) -> dict[str, Any]:
    """Mean over the seeds finished so far of every measure of every arm.

    Intervals are those of the episodes (the mean over seeds of the 95 % bootstrap intervals); ``lowest`` and
    ``highest`` are the extremes over the seeds.
    """
    rows: list[dict[str, Any]] = []
    blocks: dict[str, list[str]] = {}
    for name, arm in compared.items():
        paths = sorted((out / name.replace(" ", "_")).glob(f"seed_*/study/{RESULTS}"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if not found:
            continue
        blocks = found[0]["blocks"]
        trivial = TRIVIAL if name == "default" else ()
        for score in (*arm.estimators, *trivial):
            for block in blocks:
                for measure in MEASURES:
                    cells = [results["scores"][score]["blocks"][block].get(measure) for results in found]
                    cells = [cell for cell in cells if cell]
                    if cells:
                        values = [cell["value"] for cell in cells]
                        rows.append(
                            {
                                "arm": "" if score in TRIVIAL else name,
                                "score": score,
                                "block": block,
                                "measure": measure,
                                "value": float(np.mean(values)),
                                "low": float(np.mean([cell["low"] for cell in cells])),
                                "high": float(np.mean([cell["high"] for cell in cells])),
                                "lowest": min(values),
                                "highest": max(values),
                                "seeds": len(cells),
                                "n": list(cells[0]["n"]),
                            }
                        )
    return {
        "blocks": blocks,
        "measures": MEASURES,
        "arms": {n: {"difference": arm.difference, "config": to_mapping(arm.config)} for n, arm in compared.items()},
        "rows": rows,
        "verdict": _verdict(rows),
    }


def _verdict(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets of the default reward, and by how much each is met or missed."""

    def cell(arm: str, score: str, block: str, measure: str) -> dict[str, Any] | None:
        own = (arm, score, block, measure)
        return next((r for r in rows if (r["arm"], r["score"], r["block"], r["measure"]) == own), None)

    lines = []
    for block, (auroc, share) in TARGETS.items():
        hard = cell("default", "shaped_ratio", block, "auroc_25")
        if hard is None:
            continue
        lines.append({"label": f"{block}: AUROC, expert v 25 % random", "value": hard["value"], "target": auroc})
        for arm, score in (("published", "paper"), *(("", name) for name in TRIVIAL)):
            rival = cell(arm, score, block, "auroc_25")
            if rival:  # a margin outside the intervals: they do not overlap
                label = f"{block}: lower end less the upper end of {score}, 25 % random"
                lines.append({"label": label, "value": hard["low"] - rival["high"], "target": 0.0})
        for measure in CONTROLS:
            own = cell("default", "shaped_ratio", block, measure)
            if own:
                lines.append({"label": f"{block}: {MEASURES[measure]}", "value": own["value"], "target": share})
    for line in lines:
        line["state"] = "met" if line["value"] >= line["target"] else "missed"
    return lines


def table_of(summary: dict[str, Any], block: str, measures: Sequence[str]) -> list[list[str]]:
    """Rows of text, the header first: arm, score, then "mean [interval] (extremes over seeds)" of each measure."""
    cells = {(r["arm"], r["score"], r["measure"]): r for r in summary["rows"] if r["block"] == block}
    lines = [["arm", "score", "seeds", *(summary["measures"][measure] for measure in measures)]]
    for arm, score in dict.fromkeys((a, s) for a, s, _ in cells):
        own = [cells.get((arm, score, measure)) for measure in measures]
        seeds = max((cell["seeds"] for cell in own if cell), default=0)
        lines.append([arm or "trivial", score, str(seeds), *map(_text, own)])
    return lines


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "not measured"
    extremes = f" ({cell['lowest']:.2f}–{cell['highest']:.2f})" if cell["seeds"] > 1 else ""
    return f"{cell['value']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]{extremes}"


def verdict_lines(summary: dict[str, Any]) -> list[str]:
    """The targets as lines of text."""
    return [f"{v['label']}: {v['value']:.3f} (target {v['target']:g}: {v['state']})" for v in summary["verdict"]]


LEVELS = ("auroc_25", "auroc_50", "auroc_100", "kendall_tau", "voc")
ORDERS = ("frozen", "reversed", "shuffled", "truncated", "truncated_return", "wrong_task", "shifted_camera")
SPEED = ("double_speed_25", "double_speed_50")


def write(summary: dict[str, Any], out: Path) -> None:
    """Write summary, table, figures and report; an earlier summary of the same study is replaced."""
    pictures = {}
    for block, tasks in summary["blocks"].items():
        if not tasks:
            continue
        cells: dict[str, dict[str, Any]] = {}
        shares: dict[str, dict[str, float]] = {}
        for row in summary["rows"]:
            if row["block"] != block:
                continue
            name = f"{row['arm']}: {row['score']}" if row["arm"] else row["score"]
            if row["measure"] in LEVELS[:3]:
                cells.setdefault(name, {})[f"v {row['measure'].removeprefix('auroc_')} % random"] = row
            if row["measure"] in (*ORDERS, *SPEED):
                shares.setdefault(name, {})[row["measure"].replace("_", " ")] = row["value"]
        pictures[f"auroc_{block}.png"] = auroc_chart(cells, f"{block} tasks ({len(tasks)})")
        pictures[f"controls_{block}.png"] = share_chart(shares, f"{block} tasks: share of pairs the expert wins")
    for name, picture in pictures.items():
        _replace(out / name, picture)
    with (out / f".{TABLE}.writing").open("w", encoding="utf-8", newline="") as stream:
        columns = ["arm", "score", "block", "measure", "value", "low", "high", "lowest", "highest", "seeds"]
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(summary["rows"])
    (out / f".{TABLE}.writing").replace(out / TABLE)
    _replace(out / REPORT, _page(summary, pictures).encode())
    _replace(out / SUMMARY, json.dumps(summary, indent=1, allow_nan=False).encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_bytes(content)
    temporary.replace(path)


def _page(summary: dict[str, Any], pictures: dict[str, bytes]) -> str:
    parts = ["<h1>Discrimination study</h1>", "<h2>Verdict</h2><ul>"]
    parts += [f"<li>{escape(line)}</li>" for line in verdict_lines(summary)]
    parts.append("</ul><h2>Arms</h2><ul>")
    parts += [f"<li><b>{escape(n)}</b>: {escape(arm['difference'])}</li>" for n, arm in summary["arms"].items()]
    parts.append("</ul><p>Mean over seeds [95 % bootstrap interval over episodes] (extremes over seeds).</p>")
    for block, tasks in summary["blocks"].items():
        if not tasks:
            continue
        parts.append(f"<h2>{block} tasks</h2><p>{escape(', '.join(tasks))}</p>")
        for name in (f"auroc_{block}.png", f"controls_{block}.png"):
            parts.append(figure_html(pictures[name], name))
        parts += [table_html(table_of(summary, block, measures)) for measures in (LEVELS, ORDERS, SPEED)]
    head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Study</title><style>{_STYLE}</style>'
    return head + "".join(parts) + "</html>\n"


_STYLE = """
body { font-family: sans-serif; max-width: 80em; margin: auto; }
th, td { padding: .2em .6em; text-align: left; }
img { max-width: 100%; }
"""
