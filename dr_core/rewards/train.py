"""A whole reward training run: frames → codec → tokens → video model → statistics → checkpoint.

Every part is finished once and found again by the next start, so a run that was stopped or killed goes on where it was.
Of several processes (``dr_core.distributed``) rank 0 reads the recordings and writes everything; the codec and the
video model are trained by all.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from dr_core.checkpoint import load_checkpoint, load_weights, remove_unfinished
from dr_core.codec.fsq import FSQCodec
from dr_core.codec.train import FSQStage, VQGANStage
from dr_core.config import to_mapping
from dr_core.data.cache import BACKGROUND, EXPERT, Store, frame_store, open_store, token_store
from dr_core.data.episodes import UNKNOWN_OPERATOR, find_episodes, read_metadata
from dr_core.diffusion.train import TransitionSampler, VideoStage
from dr_core.distributed import ALONE, Team
from dr_core.errors import ConfigError, UserError
from dr_core.files import keep_settings, run_directory
from dr_core.presets import RewardModelConfig, TrainRewardConfig
from dr_core.rewards.familiarity import Familiarity
from dr_core.rewards.model import Networks, RewardModel
from dr_core.rewards.progress import Progress
from dr_core.rewards.view import common_rate_hz
from dr_core.seeding import numpy_generator
from dr_core.training import Metrics, Stage, newest_checkpoint, train

CONFIG, SOURCES = "config.yaml", "sources.yaml"
STATISTICS_FRAMES = 100
"""Expert frames of each task from which an estimator's mean and spread are computed; the default estimator gets all."""


def train_reward(
    config: TrainRewardConfig,
    experts: Sequence[Path],
    background: Sequence[Path],
    out: Path,
    *,
    resume: bool,
    start: Path | None = None,
    mixed_calibrations: bool = False,
    device: str = "cpu",
    team: Team = ALONE,
) -> Path:
    """Train a reward model from recorded episodes.

    Args:
        config: what to train.
        experts: episodes of expert behaviour, or directories of them.
        background: the same of other behaviour; needed by the ratio reward.
        out: the run's directory.
        resume: continue the run in ``out``.
        start: a reward model to go on from: its codec is kept as it is, and its video model is trained further.
        mixed_calibrations: take episodes of several calibrations of the camera, or of none and some.
        device: torch device.
        team: the processes that train together; all see ``out``, rank 0 alone the episodes.

    Returns:
        The checkpoint directory, ``out/model``. Only on rank 0 is it there by then.

    Raises:
        UserError: wrong input, or an output directory that is in use.
        KeyboardInterrupt: stopped by a signal; everything so far is kept.
    """
    if config.model.background and not background:
        raise UserError(
            "background episodes",
            expected="recordings of non-expert behaviour, which the ratio reward compares with",
            found="none",
            next_step="give --background PATH, or train an entropy reward with "
            "--set model.background=false model.estimator.name=one_pass",
        )
    _check_batches(config, team)
    sources: dict[str, Any] = {
        "experts": [str(path) for path in experts],
        "background": [str(path) for path in background],
    }
    origin = None if start is None else _same_networks(start, config.model)
    if origin is not None:
        sources["from"] = {"path": str(start), "model_hash": origin.model_hash}
    started_with = json.dumps([to_mapping(config), origin and origin.model_hash], sort_keys=True).encode()
    same_start = "start all processes with the same preset, settings and --from"
    team.require_same("the settings", lambda: hashlib.sha256(started_with).digest(), same_start)
    if team.is_first and not (out / "tokens").exists():  # from then on no episode is read
        experts, background = successful(find_episodes(experts)), find_episodes(background)
    with run_directory(out, resume=resume) if team.is_first else nullcontext():
        if team.is_first:
            keep_settings(out / CONFIG, to_mapping(config), "another preset, --config or --set")
            keep_settings(out / SOURCES, sources, "other episodes, or another model to start from")
            remove_unfinished(out)
        team.wait()
        _check_shared(out / CONFIG, team)
        model = out / "model"
        if team.from_first(model.exists):
            if team.is_first:
                Console().print(f"{model} is complete; nothing to do", markup=False)
            return model
        metrics = Metrics(out) if team.is_first else None
        try:
            background = background if config.model.background else ()
            _train(config, experts, background, origin, out, metrics, device, team, mixed_calibrations)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or "stopped; continue with --resume") from None
        finally:
            if metrics is not None:
                metrics.close()
    return model


def _check_batches(config: TrainRewardConfig, team: Team) -> None:
    """Refuse batches that the processes cannot share alike."""
    for part in ("codec_training", "video_training"):
        batch = getattr(config, part).batch_size
        if batch % team.size:
            raise UserError(
                f"{part}.batch_size",
                expected=f"a multiple of the {team.size} processes, which share a batch",
                found=str(batch),
                next_step=f"give --set {part}.batch_size={batch + -batch % team.size}, or another --nproc-per-node",
            )


def _check_shared(path: Path, team: Team) -> None:
    """Refuse a rank that does not see what rank 0 has written."""
    if not path.exists():
        raise UserError(
            str(path),
            expected="what rank 0 has written there",
            found=f"nothing on rank {team.rank}, {socket.gethostname()}",
            next_step="give an --out on a file system that all machines share",
        )


def _shared_store(path: Path, make: Callable[[], Store], team: Team) -> Store:
    """The store that rank 0 makes, or finds, at ``path``, on all processes."""
    if team.is_first:
        store = make()
    team.wait()
    if not team.is_first:
        _check_shared(path, team)
        store = open_store(path)
    what = f"the recordings in OUT/{path.name}"
    team.require_same(what, lambda: bytes.fromhex(store.sha256), "give all processes the same --out")
    return store


def _same_networks(start: Path, wanted: RewardModelConfig) -> RewardModel:
    """The model at ``start``, if its networks are those of ``wanted``; the reward taken from them may be another.

    Raises:
        CheckpointError: it is no reward model.
        ConfigError: it has other networks.
    """
    model = RewardModel.load(start)
    own, asked = to_mapping(model.config), to_mapping(wanted)
    differing = [key for key in asked if key != "estimator" and own[key] != asked[key]]
    if differing:
        raise ConfigError(
            str(start),
            expected="a model with " + ", ".join(f"model.{key} {asked[key]}" for key in differing),
            found=", ".join(f"{key} {own[key]}" for key in differing),
            next_step="choose the --preset, --config and --set which that model was made with",
        )
    return model


def successful(experts: Sequence[Path]) -> list[Path]:
    """The expert episodes that ended well, and those whose recorder did not say how they ended.

    Raises:
        UserError: there are none.
    """
    metadata = {path: read_metadata(path) for path in experts}
    chosen = [path for path, m in metadata.items() if m.outcome == "success" or m.operator == UNKNOWN_OPERATOR]
    left_out = Counter(metadata[path].outcome for path in experts if path not in chosen)
    found = ", ".join(f"{count} of outcome {outcome}" for outcome, count in left_out.items())
    if not chosen:
        raise UserError(
            "expert episodes",
            expected="recordings of a task done well",
            found=found or "none",
            next_step="name recordings of outcome success, or directories of them",
        )
    if left_out:
        Console().print(f"expert episodes left out: {found}")
    return chosen


def _train(
    config: TrainRewardConfig,
    experts: Sequence[Path],
    background: Sequence[Path],
    origin: RewardModel | None,
    out: Path,
    metrics: Metrics | None,
    device: str,
    team: Team,
    mixed_calibrations: bool,
) -> None:
    console = Console(quiet=not team.is_first)
    on = torch.device(device)
    torch.manual_seed(config.seed)
    networks = Networks(config.model).to(on)

    def frames() -> Store:
        sources = [(EXPERT, path) for path in experts] + [(BACKGROUND, path) for path in background]
        with console.status("decoding episodes") as status:
            tell = lambda done, total: status.update(f"decoding episode {done} of {total}")  # noqa: E731
            rule, path = config.model.image, out / "frames"
            return frame_store(path, sources, rule, tell, mixed_calibrations=mixed_calibrations)

    if not team.from_first((out / "tokens").exists):
        store = _shared_store(out / "frames", frames, team)
        console.print(f"{len(store.clips)} episodes, {len(store.data)} frames; tasks: {', '.join(store.tasks(EXPERT))}")
        if origin is None:
            pixels = np.asarray(store.data, np.uint8)
            stage: Stage
            if isinstance(networks.codec, FSQCodec):
                stage = FSQStage(networks.codec, pixels, config.codec_training, config.seed, on, team)
            else:
                stage = VQGANStage(networks.codec, pixels, config.codec_training, config.seed, on, team)
            train(stage, out, metrics, checkpoint_every_s=config.checkpoint_every_s, team=team)
    if origin is None:
        codec = load_checkpoint(newest_checkpoint(out / "codec"))
        load_weights(networks.codec, codec.tensors, "codec.", codec.path)
    else:
        for part in ("codec", "video", "diffusion"):  # the rest is fitted to the new experts
            getattr(networks, part).load_state_dict(getattr(origin.networks, part).state_dict())
    networks.codec.eval()
    scorer = RewardModel(config.model, networks, {"tasks": [], "statistics": {}}, device)
    tokens = _shared_store(out / "tokens", lambda: token_store(out / "tokens", frames, scorer.tokenize), team)

    networks.video.train()
    sampler = TransitionSampler(
        tokens,
        config.video_training,
        num_history=config.model.num_history,
        spacing=config.model.frame_skip,
        seed=config.seed,
    )
    video = VideoStage(networks.video, networks.diffusion, sampler, config.video_training, config.seed, on, team)
    train(video, out, metrics, checkpoint_every_s=config.checkpoint_every_s, team=team)
    team.disband()
    if not team.is_first:
        return
    networks.video.load_state_dict(video.average.shadow)

    with console.status("computing statistics on the expert videos"):
        manifest = facts(config.model, tokens, networks, device)
    manifest["training"] = to_mapping(config)
    if origin is not None:
        manifest["started_from"] = origin.model_hash
    RewardModel(config.model, networks, manifest, device).save(out / "model")
    console.print(f"reward model: {out / 'model'}", markup=False)


def facts(config: RewardModelConfig, tokens: Store, networks: Networks, device: str) -> dict[str, Any]:
    """What a manifest says of the episodes in ``tokens``, the statistics of every estimator included.

    Also fits ``networks.familiarity`` to all episodes of the experts' tasks, and ``networks.progress`` to the experts.
    """
    tasks = tokens.tasks(EXPERT)
    codes = {clip: np.asarray(tokens.array(clip), np.int64) for clip in tokens.clips}
    of_task = {task: [codes[clip] for clip in codes if clip.task == task] for task in tasks}
    networks.familiarity = Familiarity(len(tasks), networks.codec.num_codes).fit(of_task).to(device)
    experts = [codes[clip] for clip in codes if clip.behaviour == EXPERT]
    features = networks.codec.code_features().cpu()
    networks.progress = Progress.fit(experts, features, numpy_generator(0, "progress")).to(device)
    seeds = {
        task: sorted(
            clip.seed
            for clip in tokens.clips
            if clip.task == task and clip.behaviour == EXPERT and clip.seed is not None
        )
        for task in tasks
    }
    manifest = {
        "tasks": tasks,
        "statistics": {},
        "frame_rate_hz": {task: frame_rate_of(tokens, task) for task in tasks},
        "render": tokens.render,
        "calibration": tokens.calibration(),
        "dataset_sha256": tokens.sha256,
        "training_seeds": seeds,
    }
    scorer = RewardModel(config, networks, manifest, device)
    manifest["statistics"] = {name: _statistics(scorer, tokens, name) for name in scorer.estimators()}
    return manifest


def frame_rate_of(tokens: Store, task: str) -> float:
    """At which rate the experts of a task were recorded; 0 where that is not known, or they differ."""
    return common_rate_hz([clip.rate_hz for clip in tokens.clips if clip.behaviour == EXPERT and clip.task == task])


def _statistics(scorer: RewardModel, tokens: Store, estimator: str) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the raw reward over expert frames, per task and pooled ("all")."""
    groups: dict[str, NDArray[np.float32]] = {}
    for task in tokens.tasks(EXPERT):
        clips = [clip for clip in tokens.clips if clip.behaviour == EXPERT and clip.task == task]
        frames = sum(clip.length for clip in clips)
        every = 1 if estimator == scorer.config.estimator.name else max(1, round(frames / STATISTICS_FRAMES))
        arrays = [np.asarray(tokens.array(clip), np.int64) for clip in clips]
        for step in (every, 1):  # short episodes may have no valid n-th frame
            rewards = scorer.score_tokens(arrays, estimator=estimator, task=task, every=step)
            groups[task] = np.concatenate([reward.raw[reward.valid] for reward in rewards])
            if len(groups[task]):
                break
    groups["all"] = np.concatenate(list(groups.values()))
    return {
        task: {"mean": float(values.mean()), "std": float(max(values.std(), 1e-6)), "frames": len(values)}
        for task, values in groups.items()
    }
