"""The reward model: a codec, a video model and statistics, loaded from one checkpoint and scoring clips or streams.

Reward k belongs to the transition that led to frame k and needs no later frame. Each frame is encoded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dr_core.checkpoint import Checkpoint, built_from, load_checkpoint, load_weights, save_checkpoint
from dr_core.codec.fsq import FSQCodec
from dr_core.codec.train import to_images
from dr_core.codec.vqgan import VQGAN
from dr_core.config import build, to_mapping
from dr_core.diffusion.categorical import CategoricalDiffusion, Denoiser
from dr_core.diffusion.denoiser import CrossAttentionDenoiser
from dr_core.diffusion.inplace import InPlaceDenoiser
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.diffusion.train import history_indices
from dr_core.errors import CheckpointError, ConfigError
from dr_core.memory import is_out_of_memory
from dr_core.presets import NEEDS_BACKGROUND, EstimatorConfig, EstimatorName, RewardModelConfig
from dr_core.rewards import entropy
from dr_core.rewards.familiarity import Familiarity
from dr_core.rewards.likelihood import one_pass_likelihood, ratio
from dr_core.rewards.progress import RATE_FRAMES, Progress, rate
from dr_core.rewards.view import calibration_of, common_rate_hz
from dr_core.seeding import generator, generator_on
from dr_core.types import Reward

BATCH = 32
"""Frames per network call: what a block works on then fits the processor's cache (docs/performance.md)."""
SMALL_BATCH = 4
"""The same once memory did not suffice."""
NOISE_SEED = 0
"""Of the draws of sampling estimators: the same for every frame, live and from a bag."""
Precision = Literal["float32", "bfloat16"]
Result = TypeVar("Result")
FRAME_BATCH = 2048
"""Frames per evaluation of what needs no network call."""


@dataclass(frozen=True)
class ClipReward:
    """Rewards of one clip of T frames.

    Attributes:
        value: (T,) float32, standardised with the statistics of the task.
        raw: (T,) float32, nats.
        stderr: (T,) float32, standard error of ``value`` over the estimator's draws; 0 for exact ones.
        valid: (T,) bool; False where the number is not finite or, for rewards of the observed frame, where
            there is no earlier frame to predict it from.
        calls: network calls spent on each frame.
        ood: (T,) float32, how unlike the training frames each frame looks (see ``Reward``); above 1, distrust it.
    """

    value: NDArray[np.float32]
    raw: NDArray[np.float32]
    stderr: NDArray[np.float32]
    valid: NDArray[np.bool_]
    calls: int
    ood: NDArray[np.float32]


@dataclass(frozen=True)
class StreamReward:
    """The reward of one pushed frame; fields as in ``ClipReward``."""

    stamp_ns: int
    value: float
    raw: float
    stderr: float
    valid: bool
    ood: float
    calls: int


class Networks(nn.Module):
    """All that a reward model has learned as one module, so that one state dict holds it.

    Args:
        num_tasks: tasks whose code frequencies it holds; 0 before they are known.
        num_centres: centres of the regression of progress; 0 before it is fitted.
    """

    def __init__(self, config: RewardModelConfig, num_tasks: int = 0, num_centres: int = 0) -> None:
        super().__init__()
        self.codec: FSQCodec | VQGAN = FSQCodec(config.fsq) if config.codec == "fsq" else VQGAN(config.vqgan)
        num_codes = self.codec.num_codes
        self.familiarity, self.progress = Familiarity(num_tasks, num_codes), Progress(num_centres)
        schedule = mask_and_uniform(ScheduleConfig(num_timesteps=config.num_timesteps), num_codes)
        self.diffusion = CategoricalDiffusion(schedule)
        self.video: InPlaceDenoiser | CrossAttentionDenoiser
        if config.denoiser == "in_place":
            behaviours = 2 if config.background else 1
            self.video = InPlaceDenoiser(
                config.in_place, num_codes, config.num_history, config.num_timesteps, behaviours
            )
        else:
            self.video = CrossAttentionDenoiser(
                config.cross_attention, num_codes, config.num_history, config.num_timesteps
            )


class RewardModel:
    """A trained reward.

    Args:
        config: what built ``networks``.
        networks: trained weights.
        manifest: facts from training: ``tasks``, ``statistics``, ``render``, ``calibration``, seeds, hashes.
        precision: of the video model's blocks; bfloat16 is faster and moves the rewards a little.
        codec_precision: of the codec's encoder; bfloat16 is faster and changes a few codes in a hundred, and with
            them the rewards.
    """

    def __init__(
        self,
        config: RewardModelConfig,
        networks: Networks,
        manifest: Mapping[str, Any],
        device: str = "cpu",
        *,
        precision: Precision = "float32",
        codec_precision: Precision = "float32",
    ) -> None:
        self.config, self.manifest, self.device = config, manifest, torch.device(device)
        self.networks = networks.to(self.device).eval()
        self._batch = BATCH
        self.tasks: list[str] = list(manifest["tasks"])
        self.model_hash: str = manifest.get("sha256", {}).get("model.safetensors", "")
        self.calibration_hashes, self.camera_serials = calibration_of(manifest)
        self._noise = lru_cache(maxsize=64)(self._draw_noise)
        self._progress = networks.progress.on(networks.codec.code_features())
        # ``networks`` keeps the weights as they were trained: they are what is saved.
        self._codec, self._video = networks.codec, networks.video
        if codec_precision != "float32":
            self._codec = networks.codec.rounded(torch.bfloat16)
        if isinstance(networks.video, CrossAttentionDenoiser):
            networks.video.freeze(getattr(torch, precision))
        elif precision != "float32":
            self._video = networks.video.rounded(torch.bfloat16)

    @classmethod
    def load(
        cls,
        path: Path,
        device: str = "cpu",
        *,
        precision: Precision = "float32",
        codec_precision: Precision = "float32",
    ) -> RewardModel:
        """Read a checkpoint written by ``dr train-reward``.

        Raises:
            CheckpointError: missing, damaged, or parts that do not belong together.
        """
        checkpoint = load_checkpoint(path)
        try:
            config = build(RewardModelConfig, checkpoint.config)
            statistics = checkpoint.manifest["statistics"]
            missing = [t for t in checkpoint.manifest["tasks"] if t not in statistics[config.estimator.name]]
            entries = [entry for table in statistics.values() for entry in table.values()]
            usable = all(math.isfinite(e["mean"]) and 0 < e["std"] < math.inf for e in entries)
            rates = checkpoint.manifest.get("frame_rate_hz", {})
            rates_known = all(0 <= rate < math.inf for rate in rates.values())
            calibration_of(checkpoint.manifest)
        except (ConfigError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise _not_a_reward_model(checkpoint, repr(error)) from error
        if missing:
            raise _not_a_reward_model(checkpoint, f"no statistics of task {missing[0]}")
        if not usable:
            raise _not_a_reward_model(checkpoint, "a mean that is not finite, or a spread that is not positive")
        if not rates_known:
            raise _not_a_reward_model(checkpoint, f"frame rates {rates}")
        num_centres = len(checkpoint.tensors.get("progress.weight", torch.zeros(0)).reshape(-1))
        with built_from(checkpoint.tensors, path):
            networks = Networks(config, len(checkpoint.manifest["tasks"]), num_centres)
        load_weights(networks, checkpoint.tensors, "", path)
        return cls(config, networks, checkpoint.manifest, device, precision=precision, codec_precision=codec_precision)

    def save(self, path: Path) -> None:
        """Write the checkpoint directory; an existing one is refused."""
        save_checkpoint(path, self.networks.state_dict(), to_mapping(self.config), self.manifest)

    # ---- what it can compute ----

    def estimators(self) -> list[str]:
        """Names of the estimators this model can use, its default first."""
        names = [self.config.estimator.name]
        others = [n for n in get_args(EstimatorName) if n not in names]
        return names + [n for n in others if self.config.background or n not in NEEDS_BACKGROUND]

    def estimator(self, name: str | None) -> EstimatorConfig:
        """The settings of an estimator by name; None is the model's default."""
        if name is None or name == self.config.estimator.name:
            return self.config.estimator
        check_estimator(name, self.estimators())
        return replace(self.config.estimator, name=name)  # type: ignore[arg-type]

    def statistics(self, estimator: str, task: str | None) -> tuple[float, float]:
        """Mean and standard deviation (nats) that standardise a task's rewards.

        A task the model was not trained on (or None) is standardised by all the training tasks pooled; an estimator
        without statistics is not standardised: (0, 1).
        """
        table = self.manifest["statistics"].get(estimator, {})
        entry = table.get(task) or table.get("all") or {"mean": 0.0, "std": 1.0}
        return float(entry["mean"]), float(entry["std"])

    def frame_rate_hz(self, task: str | None = None) -> float:
        """At which rate the recordings of a task were made; 0 if that is not known.

        Without a task, or for one the model was not trained on, the rate that all training tasks share.
        """
        rates: Mapping[str, float] = self.manifest.get("frame_rate_hz", {})
        if task is not None and task in rates:
            return float(rates[task])
        return common_rate_hz(list(rates.values()))

    # ---- frames and tokens ----

    @torch.inference_mode()
    def tokenize(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(T, 64, 64, 3) uint8 RGB → (T, 64) codes."""
        size = self.config.image.size
        if frames.dtype != np.uint8 or frames.shape[1:] != (size, size, 3) or not len(frames):
            raise ValueError(f"frames are uint8 (T, {size}, {size}, 3), not {frames.dtype} {frames.shape}")
        encode = lambda part: self._codec.encode(to_images(part, self.device))  # noqa: E731
        return self._in_memory(lambda batch: _in_batches(encode, frames, batch))

    @torch.inference_mode()
    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(T, 64) codes → (T, 64, 64, 3) uint8 RGB."""

        def decode(part: NDArray[np.int64]) -> Tensor:
            images = self.networks.codec.decode(torch.from_numpy(part).to(self.device))
            return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)

        return self._in_memory(lambda batch: _in_batches(decode, tokens, batch))

    @torch.inference_mode()
    def imagine(self, tokens: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
        """Draw what an expert would show next: entry k follows frame k. (T, 64) codes → (T, 64) codes."""
        indices = history_indices(len(tokens), self.config.num_history, self.config.frame_skip, observed=False)
        history = torch.from_numpy(tokens[indices].reshape(len(tokens), -1)).to(self.device)
        denoiser, diffusion = self._denoiser(0), self.networks.diffusion
        drawn = []
        for part in history.split(self._batch):
            trajectory = entropy.reverse(
                diffusion,
                denoiser,
                denoiser.condition(part),
                len(part),
                stride=self.config.estimator.stride,
                posterior="exact",
                uniforms=self._common_noise(seed),
            )
            drawn.append(trajectory.x_start)
        return torch.cat(drawn).cpu().numpy()

    # ---- rewards ----

    def score(self, frames: NDArray[np.uint8], *, task: str | None = None, estimator: str | None = None) -> Reward:
        """Rewards of B clips of T frames each: (B, T, 64, 64, 3) uint8 → ``Reward``."""
        clips = [self.tokenize(clip) for clip in frames]
        rewards = self.score_tokens(clips, task=task, estimator=estimator)
        return Reward(
            value=np.stack([r.value for r in rewards]),
            stderr=np.stack([r.stderr for r in rewards]),
            valid=np.stack([r.valid for r in rewards]),
            calls=rewards[0].calls,
            ood=np.stack([r.ood for r in rewards]),
        )

    def score_tokens(
        self,
        clips: Sequence[NDArray[np.int64]],
        *,
        estimator: str | None = None,
        task: str | None = None,
        every: int = 1,
    ) -> list[ClipReward]:
        """Rewards of clips given by their codes, each (T_i, 64); all frames of all clips are batched together.

        With ``every`` n > 1 only every n-th frame is computed; the others are NaN and not valid.
        """
        settings = self.estimator(estimator)
        observed = looks_at_outcome(settings.name)
        spacing = self.config.frame_skip
        histories, computed = [], []
        for clip in clips:
            indices = history_indices(len(clip), self.config.num_history, spacing, observed=observed)
            histories.append(clip[indices].reshape(len(clip), -1))
            computed.append(np.arange(len(clip)) % every == every - 1)
        chosen, frames = np.concatenate(computed), np.concatenate(list(clips))
        ood, wrong_task, progress = self._frames_alone(settings, frames, task)
        raw, stderr = np.full((2, len(chosen)), np.nan, np.float32)
        calls = 0
        if chosen.any():  # clips may be shorter than ``every``
            raw[chosen], stderr[chosen], calls = self._estimate(
                settings, np.concatenate(histories)[chosen], frames[chosen]
            )
        mean, std = self.statistics(settings.name, task)
        rewards = []
        start = 0
        for clip in clips:
            part = slice(start, start + len(clip))
            raw[part] += wrong_task[part] + settings.progress_nats * rate(progress[part])
            value = ((raw[part] - mean) / std).astype(np.float32)
            valid = np.isfinite(value)
            if observed:
                valid[:spacing] = False
            error = (stderr[part] / std).astype(np.float32)
            rewards.append(ClipReward(value, raw[part], error, valid, calls, ood[part]))
            start += len(clip)
        return rewards

    @torch.inference_mode()
    def wrong_task(self, tokens: NDArray[np.int64], task: str, estimator: str | None = None) -> NDArray[np.float32]:
        """What the raw rewards of frames (T, 64) are marked down by for looking like another task than ``task``.

        Returns:
            (T,) nats, at most 0; 0 for estimators that do not look at the task, and for tasks not in training.
        """
        if self.estimator(estimator).name != "shaped_ratio" or task not in self.tasks:
            return np.zeros(len(tokens), np.float32)
        most = self.config.estimator.wrong_task_nats
        marks = self.networks.familiarity.wrong_task(
            torch.from_numpy(tokens).to(self.device), self.tasks.index(task), most
        )
        return marks.cpu().numpy()

    def stream(self, *, task: str | None = None, estimator: str | None = None) -> RewardStream:
        """A reward per pushed frame, the same numbers as ``score`` gives for the whole clip."""
        return RewardStream(self, task=task, estimator=estimator)

    @torch.inference_mode()
    def _estimate(
        self, settings: EstimatorConfig, histories: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """Per frame: reward and standard error in nats. histories (M, num_history·64), targets (M, 64).

        The draws of sampling estimators are the same for every frame, so frames that look alike (a robot that rests)
        are computed once.
        """
        questions = np.concatenate([histories, targets], 1) if looks_at_outcome(settings.name) else histories
        _, first, inverse = np.unique(_as_rows(questions), return_index=True, return_inverse=True)
        values, errors, calls = self._in_memory(
            lambda batch: self._estimate_in_batches(settings, histories, targets, first, batch)
        )
        return values[inverse], errors[inverse], calls

    def _estimate_in_batches(
        self,
        settings: EstimatorConfig,
        histories: NDArray[np.int64],
        targets: NDArray[np.int64],
        rows: NDArray[np.int64],
        batch: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """As ``_estimate``, for the chosen rows only and without looking for equal ones."""
        values, errors, calls = [], [], 0
        for chosen in np.array_split(rows, range(batch, len(rows), batch)):
            count = len(chosen)
            # Few batch sizes, as kernels are prepared for each: the last batch repeats a frame up to a power of two.
            chosen = np.pad(chosen, (0, 2 ** (count - 1).bit_length() - count), mode="edge")
            history = torch.from_numpy(histories[chosen]).to(self.device)
            target = torch.from_numpy(targets[chosen]).to(self.device)
            estimate = self._estimate_batch(settings, history, target)
            values.append(estimate.value[:count])
            errors.append(estimate.stderr[:count])
            calls = estimate.calls
        return torch.cat(values).cpu().numpy(), torch.cat(errors).cpu().numpy(), calls

    def _in_memory(self, compute: Callable[[int], Result]) -> Result:
        """``compute(batch size)``; where memory does not suffice, once more with small batches, then and for good."""
        try:
            return compute(self._batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler: the error holds on to the tensors of the failed attempt.
        self._batch = SMALL_BATCH
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return compute(self._batch)

    @torch.inference_mode()
    def _frames_alone(
        self, settings: EstimatorConfig, frames: NDArray[np.int64], task: str | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """What is known of each frame (M, 64) without a network call: out-of-distribution score, what it is marked down
        by for looking like another task (nats), and progress; the last two only for the shaped ratio, else 0.
        """
        known = self.tasks.index(task) if task in self.tasks else None
        familiarity = self.networks.familiarity
        found = []
        for start in range(0, len(frames), FRAME_BATCH):
            tokens = torch.from_numpy(frames[start : start + FRAME_BATCH]).to(self.device)
            wrong_task = progress = torch.zeros(len(tokens), device=self.device)
            if settings.name == "shaped_ratio":
                progress = self._progress(tokens)
                if known is not None:
                    wrong_task = familiarity.wrong_task(tokens, known, settings.wrong_task_nats)
            found.append(torch.stack([familiarity.ood(tokens, known), wrong_task, progress]))
        ood, wrong_task, progress = torch.cat(found, 1).cpu().numpy()
        return ood, wrong_task, progress

    def _estimate_batch(self, settings: EstimatorConfig, history: Tensor, target: Tensor) -> entropy.Estimate:
        diffusion, denoiser = self.networks.diffusion, self._denoiser(0)
        name = settings.name
        if name in NEEDS_BACKGROUND:
            return ratio(diffusion, denoiser, self._denoiser(1), history, target)
        if name == "one_pass_likelihood":
            return one_pass_likelihood(diffusion, denoiser, history, target)
        if name == "one_pass":
            return entropy.one_pass(diffusion, denoiser, history)
        noise = self._common_noise(NOISE_SEED) if settings.noise else None
        if name == "chain":
            return entropy.chain(
                diffusion,
                denoiser,
                history,
                num_steps=settings.num_steps,
                order=entropy.spread_order(denoiser.num_tokens).to(self.device),
                generator=generator_on(self.device, NOISE_SEED, "chain"),
                num_samples=settings.num_samples,
            )
        return entropy.paper(
            diffusion,
            denoiser,
            history,
            noise=noise,
            stride=settings.stride,
            num_samples=settings.num_samples,
            posterior=settings.posterior,
            x_start=target if name == "likelihood" else None,
        )

    def _denoiser(self, behaviour: int) -> Denoiser:
        """The video model of the expert (0) or of the background (1)."""
        video = self._video
        if isinstance(video, InPlaceDenoiser):
            return OfBehaviour(video, behaviour)
        return video

    def _common_noise(self, seed: int) -> Callable[[int], Tensor]:
        """step → uniforms (1, 64, K+1), the same for every frame: differences between frames carry less noise, and a
        stream draws what a batch draws."""
        return lambda step: self._noise(seed, step)

    def _draw_noise(self, seed: int, step: int) -> Tensor:
        """Drawn on the CPU, so that every device draws the same."""
        shape = (1, self.networks.video.num_tokens, self.networks.codec.num_codes + 1)
        return torch.rand(shape, generator=generator(seed, "reward", step)).to(self.device)


class OfBehaviour:
    """One behaviour of a network that holds several, as a ``Denoiser``."""

    def __init__(self, network: InPlaceDenoiser, behaviour: int) -> None:
        self.network, self.behaviour = network, behaviour
        self.num_codes, self.num_tokens = network.num_codes, network.num_tokens
        self.num_history = network.num_history

    def condition(self, history: Tensor) -> Tensor:
        """(B, num_history·N) codes → what the network is conditioned on."""
        return self.network.condition(history, self.behaviour)

    def __call__(self, x_t: Tensor, t: Tensor, cache: Tensor) -> Tensor:
        """x_t (B, N), t (B,) → logits (B, N, K)."""
        return self.network(x_t, t, cache)


class RewardStream:
    """Rewards of frames pushed one by one. The codes of the last frames are kept, so each is encoded once.

    A frame whose stamp does not lie after the last one's is dropped and counted in ``dropped``.
    """

    def __init__(self, model: RewardModel, *, task: str | None, estimator: str | None) -> None:
        self._model, self._task, self._settings = model, task, model.estimator(estimator)
        self._observed = looks_at_outcome(self._settings.name)
        self._tokens: list[NDArray[np.int64]] = []
        self._progress: list[float] = []
        self._count = 0
        self._last_ns = -1
        self.dropped = 0

    def reset(self) -> None:
        """Forget the history: the next frame begins an episode."""
        self._tokens.clear()
        self._progress.clear()
        self._count = 0
        self._last_ns = -1

    def push(self, frame: NDArray[np.uint8], stamp_ns: int) -> StreamReward | None:
        """Score the transition that led to ``frame`` (64, 64, 3) uint8; None when its stamp is not new."""
        if stamp_ns <= self._last_ns:
            self.dropped += 1
            return None
        model = self._model
        spacing, num_history = model.config.frame_skip, model.config.num_history
        self._last_ns = stamp_ns
        self._tokens.append(model.tokenize(frame[None])[0])
        # With fewer frames than the window the first one repeats, which is what clipping at 0 gives; a full window
        # needs none before it.
        window = spacing * (num_history - 1 + self._observed) + 1
        del self._tokens[:-window]
        indices = history_indices(len(self._tokens), num_history, spacing, observed=self._observed)[-1]
        history = np.concatenate([self._tokens[i] for i in indices])
        estimate, stderr, calls = model._estimate(self._settings, history[None], self._tokens[-1][None])
        ood, wrong_task, progress = model._frames_alone(self._settings, self._tokens[-1][None], self._task)
        self._progress = [*self._progress, float(progress[0])][-RATE_FRAMES - 1 :]
        rates = rate(np.array(self._progress, np.float32))
        raw = float(estimate[0]) + float(wrong_task[0]) + self._settings.progress_nats * float(rates[-1])
        mean, std = model.statistics(self._settings.name, self._task)
        self._count += 1
        value = (raw - mean) / std
        valid = math.isfinite(value) and (self._count > spacing or not self._observed)
        return StreamReward(stamp_ns, value, raw, float(stderr[0]) / std, valid, float(ood[0]), calls)


def check_estimator(name: str, usable: Sequence[str]) -> None:
    """Refuse the name of an estimator that is not among the ``usable`` ones of a model.

    Raises:
        ConfigError: naming those.
    """
    if name not in usable:
        raise ConfigError(
            f"estimator {name!r}",
            expected=f"one of {', '.join(usable)}",
            found="a name this model cannot compute",
            next_step=f"choose one of those, or train with a background for {' and '.join(NEEDS_BACKGROUND)}",
        )


def looks_at_outcome(estimator: str) -> bool:
    """Whether an estimator scores the observed frame k (history before it) or only predicts what follows frame k."""
    return estimator in (*NEEDS_BACKGROUND, "likelihood", "one_pass_likelihood")


def _in_batches(function: Callable[[Any], Tensor], items: NDArray[Any], size: int) -> NDArray[Any]:
    """Apply ``function`` to pieces of one fixed size (the last one padded), except for a single item.

    Convolution kernels are prepared anew for every batch size they meet; two sizes keep that time and memory small.
    """
    if len(items) == 1:
        return function(items).cpu().numpy()
    parts = []
    for start in range(0, len(items), size):
        piece = items[start : start + size]
        count = len(piece)
        if count < size:
            piece = np.concatenate([piece, np.repeat(piece[-1:], size - count, 0)])
        parts.append(function(piece)[:count].cpu().numpy())
    return np.concatenate(parts)


def _as_rows(codes: NDArray[np.int64]) -> NDArray[np.void]:
    """(M, N) codes → (M,) opaque rows that compare as wholes."""
    packed = np.ascontiguousarray(codes, np.int16)
    return packed.view(np.dtype((np.void, packed.shape[1] * packed.itemsize))).ravel()


def _not_a_reward_model(checkpoint: Checkpoint, found: str) -> CheckpointError:
    return CheckpointError(
        str(checkpoint.path),
        expected="a reward model with its tasks and the statistics of its default estimator",
        found=found,
        next_step="give the model directory that dr train-reward wrote (RUN/model)",
    )
