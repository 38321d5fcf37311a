"""The discrimination study: does a reward tell experts from worse behaviour, without any reinforcement learning.

Recordings of experts and of experts diluted by random actions are scored by every estimator and by two trivial scores:
the number of tokens that change from frame to frame, and how well the codec reconstructs the frames. A reward that does
not beat these has learned nothing worth its cost. The score of a recording is the mean reward of its valid frames.

Scores are compared inside a task only, in nats: standardising by the task's statistics would change no order.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dr_core.data.episodes import EpisodeMetadata, read_episode, read_metadata
from dr_core.errors import BagError
from dr_core.seeding import numpy_generator
from dr_core.study import controls, metrics
from dr_core.study.metrics import Measure
from dr_core.study.scoring import check_camera, check_estimators
from dr_core.study.tables import counts_text

if TYPE_CHECKING:
    from dr_core.rewards.model import RewardModel

FORMAT = 2
RESULTS, TABLE, EPISODES, EXAMPLES = "results.json", "table.csv", "episodes.parquet", "examples.npz"
TOKENS_CHANGED, CODEC_PSNR = "tokens_changed", "codec_psnr"
TRIVIAL = (TOKENS_CHANGED, CODEC_PSNR)
LEVELS = (25, 50, 100)
DOUBLED = (25, 50)
EXAMPLE_TASKS, EXAMPLE_FRAMES = 3, 6

MEASURES: dict[str, str] = {
    **{f"auroc_{level}": f"AUROC, expert v {level} % random" for level in LEVELS},
    "kendall_tau": "Kendall tau over the levels",
    "voc": "VOC of the experts",
    **{f"double_speed_{level}": f"AUROC, expert v {level} % doubled" for level in DOUBLED},
    "wrong_task": "AUROC, expert v other tasks",
    "frozen": "P(expert > frozen), all three",
    "frozen_start": "P(expert > frozen start)",
    "frozen_middle": "P(expert > frozen middle)",
    "frozen_end": "P(expert > frozen end)",
    "reversed": "P(expert > reversed)",
    "shuffled": "P(expert > shuffled)",
    "truncated": "P(expert > first half)",
    "truncated_return": "P(expert > first half), by return",
    "shifted_camera": f"P(expert > shifted {controls.SHIFT_PIXELS} px)",
}
"""What is measured. Chance is 0.5 for AUROC and P, which count ties one half, and 0 for tau and VOC.

Clips are compared by their mean reward; "by return": by its sum over the frames, nothing being paid after the last one.
In "other tasks" the experts of all other tasks are scored as if they showed the task.
"""

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clip:
    """What is scored: codes (T, 64) and the reconstruction PSNR (T,) of each frame in dB."""

    tokens: NDArray[np.int64]
    psnr_db: Floats

    def pick(self, frames: NDArray[np.int64]) -> Clip:
        """The clip made of these frames."""
        return Clip(self.tokens[frames], self.psnr_db[frames])


@dataclass(frozen=True)
class Recording:
    """One episode, encoded once. ``clips`` holds it as "recorded", and the controls made from it."""

    path: Path
    metadata: EpisodeMetadata
    quality: int
    clips: dict[str, Clip]


@dataclass(frozen=True)
class Rewards:
    """Rewards of one clip: ``raw`` in the score's own unit, ``value`` standardised, both (T,), NaN where not valid."""

    raw: Floats
    value: Floats

    @property
    def mean(self) -> float:
        """The score of the clip; NaN without a valid frame."""
        return _mean(self.raw)

    @property
    def total(self) -> float:
        """The return of the clip; NaN without a valid frame."""
        return self.mean * int(np.isfinite(self.raw).sum())


@dataclass(frozen=True)
class Scores:
    """Rewards of one recording and its controls, by name of the clip.

    Attributes:
        marked_down: what the score falls by when the recording is taken for one of another task, by task, in nats.
    """

    recording: Recording
    rewards: dict[str, Rewards]
    marked_down: dict[str, float]


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        results: plain values for JSON: the tables, the verdict and where they come from.
        rows: one mapping per recording and score.
        examples: arrays the report draws; ``results["examples"]`` says what they are.
    """

    results: dict[str, Any]
    rows: list[dict[str, Any]]
    examples: dict[str, NDArray[Any]]


def run(
    model: RewardModel,
    episodes: Sequence[Path],
    *,
    estimators: Sequence[str],
    seed: int,
    allow_other_camera: bool = False,
    thin: int = 1,
    every: Mapping[str, int] = MappingProxyType({}),
    progress: Progress = lambda what, done, total: None,
) -> Study:
    """Score recordings and compare.

    Args:
        model: the reward; recordings of tasks in ``model.tasks`` count as seen.
        episodes: bags with task and quality; experts that failed and recordings that were not finished are left out.
        estimators: names of the model's estimators.
        seed: of the bootstrap, of shuffled clips and of imagined frames.
        allow_other_camera: score recordings whose render settings are not those of the model.
        thin: the estimators after the first score every n-th frame only; the mean of a recording stays unbiased.
        every: the same for single estimators, by name.
        progress: called with (what, done, total).

    Raises:
        BagError: a recording of another camera, of unknown quality, or that the model was trained on; no experts.
        ConfigError: an estimator that the model does not have.
    """
    check_estimators(model, estimators)
    chosen, left_out = _choose(model, episodes, allow_other_camera)
    reader = _Reader(model, seed, progress)
    recordings, examples = reader.read(chosen)
    tasks = sorted({recording.metadata.task for recording in recordings})
    seen = [task for task in tasks if task in model.tasks]
    blocks = {"seen": seen, "unseen": [task for task in tasks if task not in seen]}
    per_task: dict[str, dict[str, dict[str, Measure]]] = {}
    pooled: dict[str, dict[str, dict[str, Measure]]] = {}
    cost: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    thinned = {name: every.get(name, 1 if name == estimators[0] else thin) for name in estimators}
    for name in (*estimators, *TRIVIAL):
        scores, seconds, frames = _score(model, recordings, name, tasks, thinned.get(name, 1), progress)
        per_task[name] = {task: _measure(scores, task, seed) for task in tasks}
        pooled[name] = {block: _pool([per_task[name][task] for task in own]) for block, own in blocks.items()}
        cost[name] = 1e3 * seconds / max(frames, 1)
        rows += [_row(name, score, score.recording.metadata.task in model.tasks) for score in scores]
        if name == estimators[0]:
            examples.add_curves(scores, tasks)
    results = {
        "format": FORMAT,
        "seed": seed,
        "resamples": metrics.RESAMPLES,
        "model": {
            "hash": model.model_hash,
            "tasks": list(model.tasks),
            "dataset_sha256": model.manifest.get("dataset_sha256"),
            "render": model.manifest.get("render", {}),
        },
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "torch")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "estimators": list(estimators),
        "trivial": list(TRIVIAL),
        "measures": MEASURES,
        "blocks": blocks,
        "scores": {name: {"blocks": _plain(pooled[name]), "tasks": _plain(per_task[name])} for name in per_task},
        "ms_per_frame": {
            "codec encode": 1e3 * reader.encode_s / reader.frames,
            "codec decode": 1e3 * reader.decode_s / reader.frames,
            **{name: cost[name] for name in (*estimators, TOKENS_CHANGED)},
        },
        "verdict": _verdict(pooled, estimators[0]),
        "episodes": [{"path": str(r.path), "task": r.metadata.task, "quality": r.quality} for r in recordings],
        "left_out": left_out,
        "allow_other_camera": allow_other_camera,
        "thinned": {name: n for name, n in thinned.items() if n > 1},
        "examples": examples.index,
    }
    return Study(results, rows, examples.arrays)


# ---- what is scored ----


def _choose(
    model: RewardModel, episodes: Sequence[Path], allow_other_camera: bool
) -> tuple[list[tuple[Path, EpisodeMetadata]], list[dict[str, str]]]:
    """The recordings to score, and those left out with the reason; nothing is decoded yet."""
    chosen, left_out = [], []
    training_seeds = model.manifest.get("training_seeds", {})
    for path in episodes:
        metadata = read_metadata(path)
        if metadata.quality not in (0, *LEVELS):
            raise BagError(
                str(path),
                expected=f"a recording of quality 0 (expert) or {', '.join(map(str, LEVELS))} per cent random",
                found="no quality" if metadata.quality is None else f"{metadata.quality}",
                next_step="record test episodes with dr record-expert --quality 0 25 50 100",
            )
        if not allow_other_camera:
            remedy = "record with the settings of the model, or add --allow-other-camera to study the difference"
            check_camera(path, metadata, model.manifest, remedy)
        if metadata.quality == 0 and metadata.seed in training_seeds.get(metadata.task, ()):
            raise BagError(
                str(path),
                expected="test episodes that the model was not trained on",
                found=f"seed {metadata.seed} of {metadata.task}, which is in its training data",
                next_step="record test episodes from another --seed",
            )
        if metadata.outcome in ("aborted", "partial"):
            left_out.append({"path": str(path), "why": f"outcome {metadata.outcome}"})
        elif metadata.quality == 0 and metadata.outcome != "success":
            left_out.append({"path": str(path), "why": "an expert that failed"})
        else:
            chosen.append((path, metadata))
    if not any(metadata.quality == 0 for _, metadata in chosen):
        raise BagError(
            f"{len(episodes)} recordings",
            expected="successful experts (quality 0) to compare with",
            found="none",
            next_step="record some with dr record-expert --quality 0 25 50 100",
        )
    return chosen, left_out


class _Examples:
    """Arrays for the report, and an index that says what they are."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.index: dict[str, list[dict[str, Any]]] = {"frames": [], "curves": []}

    def add_frames(self, model: RewardModel, path: Path, task: str, frames: Any, clip: Clip, seed: int) -> None:
        """Frames of one recording beside their reconstruction, and the next frames beside imagined ones."""
        spacing = model.config.frame_skip
        if len(frames) <= spacing:
            return
        number = len(self.index["frames"])
        at = np.linspace(0, len(frames) - 1 - spacing, EXAMPLE_FRAMES).round().astype(int)
        # A clip that begins with the history of a frame ends with what is imagined to follow it.
        window = spacing * (model.config.num_history - 1)
        imagined = [model.imagine(clip.tokens[max(0, k - window) : k + 1], seed=seed)[-1] for k in at]
        self.arrays |= {
            f"original_{number}": frames[at],
            f"reconstruction_{number}": model.decode(clip.tokens[at]),
            f"next_{number}": frames[at + spacing],
            f"imagined_{number}": model.decode(np.stack(imagined)),
        }
        entry = {"number": number, "task": task, "seen": task in model.tasks, "path": str(path), "frames": at.tolist()}
        self.index["frames"].append({**entry, "spacing": spacing})

    def add_curves(self, scores: Sequence[Scores], tasks: Sequence[str]) -> None:
        """The standardised reward of every recording, (E, T) by task and quality, NaN past the end of each."""
        for task in tasks:
            for quality in (0, *LEVELS):
                own = [s.rewards["recorded"].value for s in scores if _is(s, task, quality)]
                if own:
                    number = len(self.index["curves"])
                    padded = np.full((len(own), max(map(len, own))), np.nan, np.float32)
                    for row, values in zip(padded, own, strict=True):
                        row[: len(values)] = values
                    self.arrays[f"curves_{number}"] = padded
                    self.index["curves"].append({"number": number, "task": task, "quality": quality})


class _Reader:
    """Decodes and encodes every recording once; frames are dropped as soon as their tokens are there."""

    def __init__(self, model: RewardModel, seed: int, progress: Progress) -> None:
        self.model, self.seed, self.progress = model, seed, progress
        self.encode_s, self.decode_s, self.frames = 0.0, 0.0, 0

    def read(self, chosen: Sequence[tuple[Path, EpisodeMetadata]]) -> tuple[list[Recording], _Examples]:
        recordings, examples = [], _Examples()
        pictured: set[str] = set()
        per_block: Counter[bool] = Counter()
        for done, (path, metadata) in enumerate(chosen):
            frames = read_episode(path, rule=self.model.config.image).frames
            recording = self._recording(path, metadata, frames)
            recordings.append(recording)
            task, seen = metadata.task, metadata.task in self.model.tasks
            if recording.quality == 0 and task not in pictured and per_block[seen] < EXAMPLE_TASKS:
                pictured.add(task)
                per_block[seen] += 1
                examples.add_frames(self.model, path, task, frames, recording.clips["recorded"], self.seed)
            self.progress("encode recordings", done + 1, len(chosen))
        return recordings, examples

    def _recording(self, path: Path, metadata: EpisodeMetadata, frames: NDArray[np.uint8]) -> Recording:
        assert metadata.quality is not None
        recorded = self._encode(frames)
        clips = {"recorded": recorded}
        if metadata.quality == 0:
            generator = numpy_generator(self.seed, "controls", metadata.task, metadata.seed or 0)
            picked = controls.expert_controls(len(frames), generator)
            clips |= {name: recorded.pick(numbers) for name, numbers in picked.items()}
            clips["shifted_camera"] = self._encode(controls.shifted_camera(frames))
        elif metadata.quality in DOUBLED:
            clips["double_speed"] = recorded.pick(controls.double_speed(len(frames)))
        return Recording(path, metadata, metadata.quality, clips)

    def _encode(self, frames: NDArray[np.uint8]) -> Clip:
        start = time.perf_counter()
        tokens = self.model.tokenize(frames)
        encoded = time.perf_counter()
        reconstruction = self.model.decode(tokens)
        self.decode_s += time.perf_counter() - encoded
        self.encode_s += encoded - start
        self.frames += len(frames)
        error = np.square(frames.astype(np.float32) - reconstruction).mean((1, 2, 3), dtype=np.float64)
        return Clip(tokens, 10 * np.log10(255**2 / np.maximum(error, 1e-3)))  # an exact frame counts as 78 dB


def _score(
    model: RewardModel,
    recordings: Sequence[Recording],
    name: str,
    tasks: Sequence[str],
    thin: int,
    progress: Progress,
) -> tuple[list[Scores], float, int]:
    """Score every clip of every recording; also the seconds it took and the frames scored."""
    scores, seconds, frames = [], 0.0, 0
    for done, task in enumerate(tasks):
        own = [recording for recording in recordings if recording.metadata.task == task]
        clips = [clip for recording in own for clip in recording.clips.values()]
        start = time.perf_counter()
        rewards = iter(_rewards(model, name, task, clips, thin))
        seconds += time.perf_counter() - start
        frames += sum(len(clip.tokens) // (1 if name in TRIVIAL else thin) for clip in clips)
        for recording in own:
            scored = {clip: next(rewards) for clip in recording.clips}
            scores.append(Scores(recording, scored, _marked_down(model, name, recording, tasks)))
        progress(f"score by {name}", done + 1, len(tasks))
    return scores, seconds, frames


def _rewards(model: RewardModel, name: str, task: str, clips: Sequence[Clip], thin: int) -> list[Rewards]:
    if name == TOKENS_CHANGED:
        changed = [(clip.tokens[1:] != clip.tokens[:-1]).sum(1).astype(np.float64) for clip in clips]
        return [Rewards(series, series) for series in (np.concatenate([[np.nan], c]) for c in changed)]
    if name == CODEC_PSNR:
        return [Rewards(clip.psnr_db, clip.psnr_db) for clip in clips]
    scored = model.score_tokens(
        [clip.tokens for clip in clips], estimator=name, task=task if task in model.tasks else None, every=thin
    )
    return [
        Rewards(np.where(r.valid, r.raw.astype(np.float64), np.nan), np.where(r.valid, r.value, np.nan)) for r in scored
    ]


def _marked_down(model: RewardModel, name: str, recording: Recording, tasks: Sequence[str]) -> dict[str, float]:
    """How much less an expert scores when it is taken for one of another task."""
    if name in TRIVIAL or recording.quality != 0:
        return {}
    tokens = recording.clips["recorded"].tokens
    own = float(model.wrong_task(tokens, recording.metadata.task, name).mean())
    return {task: float(model.wrong_task(tokens, task, name).mean()) - own for task in tasks if task in model.tasks}


# ---- what is measured ----


def _measure(scores: Sequence[Scores], task: str, seed: int) -> dict[str, Measure]:
    """Every measure of one task that its recordings allow.

    Each measure resamples with its own generator, the same for every score: the scores of a study are compared on the
    same resamples.
    """

    def generator(measure: str) -> np.random.Generator:
        return numpy_generator(seed, "bootstrap", task, measure)

    own = [score for score in scores if score.recording.metadata.task == task]
    experts = [score for score in own if score.recording.quality == 0]
    if not experts:
        return {}
    expert = _means(experts, "recorded")
    foreign = [s for s in scores if s.recording.quality == 0 and s.recording.metadata.task != task]
    at_level = {level: [s for s in own if s.recording.quality == level] for level in LEVELS}
    rivals = {
        "wrong_task": _means(foreign, "recorded") + [score.marked_down.get(task, 0.0) for score in foreign],
        **{f"auroc_{level}": _means(at_level[level], "recorded") for level in LEVELS},
        **{f"double_speed_{level}": _means(at_level[level], "double_speed") for level in DOUBLED},
    }
    found = {}
    finite = expert[np.isfinite(expert)]
    for name, rival in rivals.items():
        rival = rival[np.isfinite(rival)]
        if len(finite) and len(rival):
            found[name] = metrics.auroc(finite, rival, generator(name))
    groups = [finite, *(rivals[f"auroc_{level}"] for level in LEVELS)]
    groups = [group[np.isfinite(group)] for group in groups]
    if all(map(len, groups)):
        found["kendall_tau"] = metrics.kendall_tau(groups, generator("kendall_tau"))
    series = [reward[np.isfinite(reward)] for reward in (s.rewards["recorded"].raw for s in experts)]
    series = [reward for reward in series if len(reward)]
    if series:
        # Counted from the mean of all the task's recordings, so that the unit and the zero of a score do not matter.
        zero = float(np.nanmean(np.concatenate([s.rewards["recorded"].raw for s in own])))
        found["voc"] = metrics.value_order_correlation([reward - zero for reward in series], generator("voc"))
    paired = {name: (name,) for name in (*controls.FROZEN, *controls.ORDER, "shifted_camera")}
    for name, members in {"frozen": controls.FROZEN, **paired}.items():
        control = np.stack([_means(experts, member) for member in members], 1)  # (experts, members)
        usable = np.isfinite(expert) & np.isfinite(control).all(1)
        if usable.any():
            found[name] = metrics.paired_share(expert[usable], control[usable], generator(name))
    whole, half = (np.array([s.rewards[clip].total for s in experts]) for clip in ("recorded", "truncated"))
    usable = np.isfinite(whole) & np.isfinite(half)
    if usable.any():
        found["truncated_return"] = metrics.paired_share(whole[usable], half[usable], generator("truncated"))
    return {name: found[name] for name in MEASURES if name in found}


def _pool(tasks: Sequence[Mapping[str, Measure]]) -> dict[str, Measure]:
    """The mean over the tasks of each measure, of those tasks that have it."""
    own = {name: [found[name] for found in tasks if name in found] for name in MEASURES}
    return {name: metrics.mean_of(found) for name, found in own.items() if found}


def _plain(groups: Mapping[str, Mapping[str, Measure]]) -> dict[str, dict[str, Any]]:
    return {group: {key: measure.to_json() for key, measure in found.items()} for group, found in groups.items()}


def _verdict(pooled: Mapping[str, Mapping[str, Mapping[str, Measure]]], estimator: str) -> list[dict[str, Any]]:
    """The targets of a reward on the tasks it was trained on, each with what was measured."""
    own = pooled[estimator]["seen"]
    easy, hard = own.get("auroc_25"), own.get("auroc_100")
    targets = [("expert vs 100 % random, seen", hard, 0.98), ("expert vs 25 % random, seen", easy, 0.90)]
    lines = [_target(label, measure, ">=", bound) for label, measure, bound in targets]
    for trivial, title in ((TOKENS_CHANGED, "tokens changed"), (CODEC_PSNR, "codec PSNR")):
        rival = pooled[trivial]["seen"].get("auroc_25")
        gain = easy.minus(rival) if easy and rival else None
        lines.append(_target(f"AUROC gained over {title}, 25 % random, seen", gain, ">", 0.0))
    lines.append(_target("expert above its frozen frame, seen pairs", own.get("frozen"), ">=", 0.95))
    return lines


def _target(label: str, measure: Measure | None, relation: str, bound: float) -> dict[str, Any]:
    if measure is None:
        return {"label": label, "measured": None, "relation": relation, "target": bound, "state": "not measured"}
    met = measure.value >= bound if relation == ">=" else measure.value > bound
    state = "met" if met else "missed"
    return {
        "label": label, "measured": measure.to_json(), "relation": relation, "target": bound, "state": state
    }  # fmt: skip


def _is(score: Scores, task: str, quality: int) -> bool:
    return score.recording.metadata.task == task and score.recording.quality == quality


def _means(scores: Sequence[Scores], clip: str) -> Floats:
    return np.array([score.rewards[clip].mean for score in scores], np.float64)


def _mean(series: Floats) -> float:
    finite = series[np.isfinite(series)]
    return float(finite.mean()) if len(finite) else float("nan")


def _row(name: str, score: Scores, seen: bool) -> dict[str, Any]:
    recording, rewards = score.recording, score.rewards["recorded"]
    metadata = recording.metadata
    return {
        "path": str(recording.path),
        "task": metadata.task,
        "seen": seen,
        "quality": recording.quality,
        "outcome": metadata.outcome,
        "seed": metadata.seed,
        "score": name,
        "frames": len(rewards.raw),
        "valid_frames": int(np.isfinite(rewards.raw).sum()),
        "mean_raw": rewards.mean,
        "mean_value": _mean(rewards.value),
    }


# ---- what is written ----


def write(study: Study, out: Path) -> None:
    """Write the four files of a study into the directory ``out``."""
    import pandas as pd

    temporary = out / f".{RESULTS}.writing"
    rows = pd.DataFrame(study.rows).astype({"seed": "Int64"})
    rows.to_parquet(out / EPISODES, index=False)
    np.savez_compressed(out / EXAMPLES, **study.examples)  # type: ignore[arg-type]
    with (out / TABLE).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["score", "kind", "group", "measure", "value", "low", "high", "n"])
        for name, tables in study.results["scores"].items():
            for kind, groups in tables.items():
                for group, measures in groups.items():
                    for key, cell in measures.items():
                        numbers = [cell[column] for column in ("value", "low", "high")]
                        writer.writerow([name, kind, group, key, *numbers, counts_text(cell)])
    temporary.write_text(json.dumps(study.results, indent=1, allow_nan=False), encoding="utf-8")
    temporary.rename(out / RESULTS)
