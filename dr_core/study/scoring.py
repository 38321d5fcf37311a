"""Rewards of recordings, frame by frame: a table, and a picture and a video for each recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dr_core.data.episodes import Episode, EpisodeMetadata, read_episode, read_metadata
from dr_core.data.video import VIDEO_SUFFIXES, write_video
from dr_core.errors import BagError, ConfigError
from dr_core.rewards.model import NOISE_SEED, check_estimator
from dr_core.rewards.view import check_calibration, check_view

if TYPE_CHECKING:
    import pandas as pd

    from dr_core.rewards.model import ClipReward, RewardModel

TABLE = "rewards"
ENLARGEMENT = 6
CURVE_HEIGHT_PX = 192
DEFAULT_RATE_HZ = 10.0
MAX_VIDEO_FRAMES = 600


@dataclass(frozen=True)
class Scored:
    """One recording with its rewards.

    Attributes:
        name: unique among the recordings scored together; what its files are called.
        task: whose statistics standardise ``reward``; None where the model does not know the task.
    """

    name: str
    episode: Episode
    reward: ClipReward
    task: str | None


def check_camera(path: Path, metadata: EpisodeMetadata, manifest: Mapping[str, Any], next_step: str) -> None:
    """Refuse images made otherwise, or with another calibration, than those a model learned from.

    Raises:
        BagError: naming the settings that differ.
    """
    check_view(str(path), metadata.render, manifest, next_step=next_step, error=BagError)
    check_calibration(str(path), metadata.calibration_hash, manifest, next_step=next_step, error=BagError)


def check_estimators(model: RewardModel, names: Sequence[str]) -> None:
    """Refuse estimators that a model cannot compute.

    Raises:
        ConfigError: naming those it can.
    """
    for name in names:
        check_estimator(name, model.estimators())


def score(
    model: RewardModel,
    paths: Sequence[Path],
    out: Path,
    *,
    estimator: str | None,
    task: str | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Score recordings and write ``rewards.parquet``, ``rewards.csv``, ``<name>.png`` and ``<name>.mp4`` to ``out``.

    Args:
        model: the reward.
        paths: bags or videos.
        out: an existing directory without files of these names.
        estimator: None for the model's default.
        task: whose statistics standardise; None for the recorded task, and for tasks the model was not trained on
            those of its training tasks pooled.
        progress: called with (recordings done, recordings in all).
        note: called with what the reader should know.

    Raises:
        BagError: a recording that cannot be read, or of another camera than the model's.
        ConfigError: an estimator or a task that the model does not have.
    """
    import pandas as pd

    estimator = estimator or model.config.estimator.name
    check_estimators(model, [estimator])
    if task is not None and task not in model.tasks:
        raise ConfigError(
            f"task {task!r}",
            expected=f"one the model was trained on: {', '.join(model.tasks)}",
            found="another",
            next_step="leave --task out to standardise by all training tasks",
        )
    for path in paths:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            note(f"{path}: a video does not tell its camera settings; whether they fit the model is not checked")
        else:
            remedy = "record with the camera settings of the model, or train a model on this camera"
            check_camera(path, read_metadata(path), model.manifest, remedy)
    if not model.tasks:
        note("the model has no statistics of experts: rewards are not standardised, they are in nats")
    parts = []
    for done, (path, name) in enumerate(zip(paths, unique_names(paths), strict=True)):
        episode = read_episode(path, rule=model.config.image)
        own = task or (episode.metadata.task if episode.metadata.task in model.tasks else None)
        [reward] = model.score_tokens([model.tokenize(episode.frames)], estimator=estimator, task=own)
        scored = Scored(name, episode, reward, own)
        parts.append(table(scored, estimator, model.model_hash))
        _write_picture(out / f"{name}.png", scored, estimator)
        _write_clip(out / f"{name}.mp4", scored)
        progress(done + 1, len(paths))
    whole = pd.concat(parts, ignore_index=True)
    whole.to_parquet(out / f"{TABLE}.parquet", index=False)
    whole.to_csv(out / f"{TABLE}.csv", index=False)


def table(scored: Scored, estimator: str, model_hash: str) -> pd.DataFrame:
    """One row per frame: the reward of the transition that led to it, and where the number comes from.

    ``noise_seed`` is that of the estimator's draws; ``seed`` is the recorded seed of the environment, missing for a
    real camera; ``stderr`` is that of ``value``; ``ood`` above 1: hardly a training frame looks as foreign.
    """
    import pandas as pd

    episode, reward = scored.episode, scored.reward
    frames = len(episode.frames)
    return pd.DataFrame(
        {
            "episode": str(episode.path),
            "frame": np.arange(frames),
            "stamp_ns": episode.stamps_ns,
            "value": reward.value,
            "raw": reward.raw,
            "stderr": reward.stderr,
            "valid": reward.valid,
            "ood": reward.ood,
            "calls": reward.calls,
            "estimator": estimator,
            "model_hash": model_hash,
            "noise_seed": NOISE_SEED,
            "seed": pd.array([episode.metadata.seed] * frames, dtype="Int64"),
        }
    )


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each path: its last part, with as many parents before it as tell the paths apart."""
    parts = [[part.replace(".", "_") for part in path.resolve().parts[1:]] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name}-{number}" for number, name in enumerate(names)]


def _write_picture(path: Path, scored: Scored, estimator: str) -> None:
    from dr_core.study.plots import score_figure

    seconds = (scored.episode.stamps_ns - scored.episode.stamps_ns[0]) / 1e9
    standard = f"statistics of {scored.task}" if scored.task else "pooled statistics, if any"
    title = f"{scored.name}: {estimator}, {standard}"
    path.write_bytes(score_figure(seconds, _shown(scored.reward), scored.reward.stderr, title))


def _write_clip(path: Path, scored: Scored) -> None:
    """The enlarged frames over the curve of their reward, a cursor at the frame shown; in recorded time."""
    from dr_core.study.plots import reward_strip

    frames = scored.episode.frames
    every = -(-len(frames) // MAX_VIDEO_FRAMES)
    rate_hz = (scored.episode.metadata.rate_hz or DEFAULT_RATE_HZ) / every
    side = frames.shape[1] * ENLARGEMENT
    strip, cursor_px = reward_strip(_shown(scored.reward), width_px=side, height_px=CURVE_HEIGHT_PX)
    shown = np.arange(0, len(frames), every)
    clip = np.empty((len(shown), side + CURVE_HEIGHT_PX, side, 3), np.uint8)
    for picture, frame in zip(clip, shown, strict=True):
        picture[:side] = cv2.resize(frames[frame], (side, side), interpolation=cv2.INTER_CUBIC)
        picture[side:] = strip
        column = int(cursor_px[frame])
        picture[side:, max(column - 1, 0) : column + 1] = (214, 39, 40)
    write_video(path, clip, rate_hz, lossless=False)


def _shown(reward: ClipReward) -> NDArray[np.float32]:
    """(T,) the reward, NaN where it is not valid."""
    return np.where(reward.valid, reward.value, np.float32(np.nan))
