"""VIPER (Escontrela et al., arXiv 2305.14343): how likely an autoregressive video model finds the frame that came.

A transformer predicts the next frame code by code, in the tokens of a reward model's codec. The reward of frame k is
Σ_i log p(x_i | x_<i, history), exact, in one teacher-forced call; it needs no action and no later frame. As in the
baselines of arXiv 2312.14134 it comes raw (``viper``) and standardised by the experts (``viper_std``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from dr_core.checkpoint import built_from, load_checkpoint, load_weights, remove_unfinished, save_checkpoint
from dr_core.codec.train import cosine_rate
from dr_core.config import build, to_mapping
from dr_core.data.cache import EXPERT, Store, frame_store, token_store
from dr_core.data.episodes import find_episodes
from dr_core.diffusion.train import TransitionSampler, VideoTraining, history_indices
from dr_core.errors import CheckpointError, ConfigError
from dr_core.files import keep_settings, run_directory
from dr_core.rewards.model import ClipReward, RewardModel, StreamReward, check_estimator
from dr_core.rewards.train import CONFIG, SOURCES, frame_rate_of, successful
from dr_core.seeding import generator, generator_on
from dr_core.training import Metrics, train
from dr_core.types import Reward

KIND = "viper"
BATCH = 32
"""Windows per network call."""
Estimator = Literal["likelihood", "entropy"]
Past = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, L, head_dim) of the inputs so far, a pair for each block."""


@dataclass(frozen=True)
class ViperConfig:
    """The network and its training; the defaults are for a CPU."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1
    num_history: int = 2
    """Frames of history the next one is predicted from."""
    frame_skip: int = 1
    """Recorded frames between the frames of the history, and to the next."""
    steps: int = 800
    batch_size: int = 16
    """Windows of num_history + 1 frames a step."""
    learning_rate: float = 1e-3
    """Reached after the warm-up; a cosine lets it fall to 3 %."""
    warmup_steps: int = 50
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    """Of matrices, not of tables, biases and norms."""
    clip_norm: float = 1.0
    keep: float = 0.8
    """Share of the inputs that training shows to the network; the other codes are blank."""
    seed: int = 0
    checkpoint_every_s: float = 30.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.num_history > 64 or self.frame_skip > 1000:
            raise ValueError("num_history must be at most 64, frame_skip at most 1000")
        if min(self.depth, self.num_history, self.frame_skip, self.steps) < 1 or self.batch_size < 2:
            raise ValueError("depth, num_history, frame_skip and steps must be at least 1, batch_size at least 2")
        if not 0 < self.keep <= 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"keep must be in (0, 1] and dropout in [0, 1), got {self.keep} and {self.dropout}")


PRESETS = {
    "default": ViperConfig(),
    # The published size. Its learning rate, 4.5e-6 for two million steps, is exchanged for a schedule of a GPU's hour.
    "paper": ViperConfig(
        width=512, depth=8, heads=8, dropout=0.0, steps=40_000, batch_size=32, learning_rate=3e-4, warmup_steps=1000
    ),
    "tiny": ViperConfig(width=32, depth=2, heads=2, dropout=0.0, steps=40, learning_rate=3e-3, warmup_steps=5),
}


class Block(nn.Module):
    """Causal self-attention, then an MLP."""

    def __init__(self, config: ViperConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, L, width) → the same shape, and the keys and values of ``past`` and ``x``."""
        b, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, d)
        mask = None
        if past is not None:
            before = past[0].shape[2]
            k, v = torch.cat([past[0].expand(b, -1, -1, -1), k], 2), torch.cat([past[1].expand(b, -1, -1, -1), v], 2)
            mask = torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        x = x + F.dropout(self.proj(attended.transpose(1, 2).reshape(b, length, width)), self.dropout, self.training)
        x = x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), self.dropout, self.training)
        return x, (k, v)


class VideoGPT(nn.Module):
    """p(code | all codes before it) over windows of ``num_history`` + 1 frames, in reading order.

    Args:
        num_codes: K; the input K is what stands before the first code.
    """

    def __init__(self, config: ViperConfig, num_codes: int, num_tokens: int = 64) -> None:
        super().__init__()
        self.config, self.num_codes, self.num_tokens = config, num_codes, num_tokens
        self.code = nn.Embedding(num_codes + 1, config.width)
        self.frame = nn.Embedding(config.num_history + 1, config.width)
        self.cell = nn.Embedding(num_tokens, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.to_logits = nn.Linear(config.width, num_codes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def shifted(self, codes: Tensor) -> Tensor:
        """Codes (B, L) → the inputs (B, L) that predict them: each sees the one before."""
        return F.pad(codes[:, :-1], (1, 0), value=self.num_codes)

    def forward(self, inputs: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Inputs (B, L) in [0, K], which follow those of ``past``.

        Returns:
            Features (B, L, width), from which ``to_logits`` predicts, and the keys and values of all inputs so far.
        """
        config = self.config
        start = 0 if past is None else past[0][0].shape[2]
        position = torch.arange(start, start + inputs.shape[1], device=inputs.device)
        x = self.code(inputs)  # (B, L, width)
        if self.training:
            x = x * (torch.rand(inputs.shape, device=x.device) < config.keep).unsqueeze(-1)
        x = x + self.frame(position // self.num_tokens) + self.cell(position % self.num_tokens)
        x = F.dropout(x, config.dropout, self.training)
        reached = []
        for index, block in enumerate(self.blocks):
            x, kv = block(x, None if past is None else past[index])
            reached.append(kv)
        return self.norm(x), reached

    def past(self, history: Tensor) -> Past:
        """What ``log_p`` needs of histories (B, num_history·N); the same for every frame that may follow."""
        return self(self.shifted(history))[1]

    def log_p(self, history: Tensor, following: Tensor, past: Past | None = None) -> Tensor:
        """log p(· | x_<i, history) of every code i of the next frame, in one call.

        Args:
            history: (B, num_history·N) codes, oldest frame first.
            following: (B, N) codes of the next frame; entry i sees those before i only.
            past: ``past(history)`` if it is known: a third of the work is left.

        Returns:
            (B, N, K) float32.
        """
        inputs = self.shifted(torch.cat([history, following], 1))
        features, _ = self(inputs) if past is None else self(inputs[:, history.shape[1] :], past)
        return self.to_logits(features[:, -self.num_tokens :]).float().log_softmax(-1)


class ViperStage:
    """Training stage of the network: the codes of whole windows, the history's own included as published."""

    name = "viper"

    def __init__(
        self, network: VideoGPT, sampler: TransitionSampler, config: ViperConfig, device: torch.device
    ) -> None:
        self.network, self.sampler, self.config, self.device = network, sampler, config, device
        self.steps = config.steps
        matrices = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
        known = set(map(id, matrices))
        others = [p for p in network.parameters() if id(p) not in known]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, fused=True)

    def step(self, index: int) -> dict[str, Tensor]:
        """One optimiser step; loss in nats a code, ``next_nll`` in nats a frame."""
        config, network = self.config, self.network
        rate = cosine_rate(config.learning_rate, index, config.steps, config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(generator_on(self.device, config.seed, self.name, index).initial_seed() % 2**63)
        history, following, _ = self.sampler.draw(index)
        codes = torch.cat([history, following], 1).to(self.device)  # (B, (num_history + 1)·N)
        features, _ = network(network.shifted(codes))
        logits = network.to_logits(features).float()
        nll = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
        loss = nll.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        self.optimizer.step()
        return {"loss": loss.detach(), "next_nll": nll[:, -network.num_tokens :].detach().sum(1).mean()}

    def tensors(self) -> dict[str, Tensor]:
        """All weights."""
        return {f"network.{name}": value for name, value in self.network.state_dict().items()}

    def training_state(self) -> dict[str, Any]:
        """The optimiser's moments."""
        return {"optimizer": self.optimizer.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Continue from a checkpoint."""
        load_weights(self.network, tensors, "network.", where)
        self.optimizer.load_state_dict(training["optimizer"])


class ViperModel:
    """A trained VIPER reward; scores like a ``RewardModel``, whose codec it shares.

    Args:
        config: what built ``network``.
        network: trained weights.
        reward_model: gives the codec and the rule by which pictures become frames; it may be on another device.
        manifest: facts from training: ``tasks``, ``statistics``, ``codec_sha256``, ``render``, ``training_seeds``.
    """

    def __init__(
        self,
        config: ViperConfig,
        network: VideoGPT,
        reward_model: RewardModel,
        manifest: Mapping[str, Any],
        device: str = "cpu",
    ) -> None:
        self.config, self.manifest, self.device = config, manifest, torch.device(device)
        self.network, self.reward_model = network.to(self.device).eval(), reward_model
        self.tasks: list[str] = list(manifest["tasks"])
        self.model_hash: str = manifest.get("sha256", {}).get("model.safetensors", "")

    @staticmethod
    def train(
        reward_model: RewardModel,
        experts: Sequence[Path],
        out: Path,
        config: ViperConfig = PRESETS["default"],
        *,
        resume: bool = False,
        device: str = "cpu",
    ) -> Path:
        """Learn from expert episodes: frames → tokens → network → statistics → checkpoint, each once and resumable.

        Args:
            reward_model: whose codec is used, as it is.
            experts: episodes of expert behaviour, or directories of them.
            out: the run's directory: curves, checkpoints, and in the end ``out/model``.

        Returns:
            The checkpoint directory, ``out/model``.

        Raises:
            UserError: wrong input, an output directory that is in use, or a run begun with something else.
            KeyboardInterrupt: stopped by a signal; everything so far is kept.
        """
        on, console, model = torch.device(device), Console(), out / "model"
        sources = {"experts": [str(path) for path in experts], "codec_sha256": codec_sha256(reward_model)}
        if not (out / "tokens").exists():  # from then on no episode is read
            experts = successful(find_episodes(experts))
        with run_directory(out, resume=resume):
            keep_settings(out / CONFIG, to_mapping(config), "another configuration")
            keep_settings(out / SOURCES, sources, "other episodes, or a reward model with another codec")
            remove_unfinished(out)
            if model.exists():
                console.print(f"{model} is complete; nothing to do", markup=False)
                return model

            def frames() -> Store:
                return frame_store(out / "frames", [(EXPERT, path) for path in experts], reward_model.config.image)

            tokens = token_store(out / "tokens", frames, reward_model.tokenize)
            network = _network(config, reward_model).to(on)
            sampler = TransitionSampler(
                tokens,
                VideoTraining(steps=config.steps, batch_size=config.batch_size),
                num_history=config.num_history,
                spacing=config.frame_skip,
                seed=config.seed,
            )
            metrics = Metrics(out)
            try:
                stage = ViperStage(network, sampler, config, on)
                train(stage, out, metrics, checkpoint_every_s=config.checkpoint_every_s)
            finally:
                metrics.close()
            with console.status("computing statistics on the expert videos"):
                manifest = _facts(config, network, reward_model, tokens, device)
            ViperModel(config, network, reward_model, manifest, device).save(model)
        console.print(f"VIPER model: {model}", markup=False)
        return model

    @classmethod
    def load(cls, path: Path, reward_model: RewardModel, device: str = "cpu") -> ViperModel:
        """Read a checkpoint written by ``train``.

        Raises:
            CheckpointError: missing, damaged, something else, or trained on the codes of another codec than that of
                ``reward_model``.
        """
        checkpoint = load_checkpoint(path)
        try:
            config, manifest = build(ViperConfig, checkpoint.config), checkpoint.manifest
            codec, image = manifest["codec_sha256"], manifest["image"]
            tables = manifest["statistics"]
            entries = [tables[name][task] for name in get_args(Estimator) for task in (*manifest["tasks"], "all")]
            usable = manifest["kind"] == KIND and all(
                math.isfinite(e["mean"]) and 0 < e["std"] < math.inf for e in entries
            )
        except (ConfigError, LookupError, TypeError, OverflowError) as error:
            raise _not_a_viper_model(path, repr(error)) from error
        if not usable:
            raise _not_a_viper_model(path, f"kind {manifest['kind']!r}, or statistics that are not finite")
        own = codec_sha256(reward_model)
        if (codec, image) != (own, to_mapping(reward_model.config.image)):
            raise CheckpointError(
                str(path),
                expected="a model of the codes of this reward model's codec",
                found=f"one of the codec {codec!s:.12} with pictures cut as {image}; the reward model's is {own[:12]}",
                next_step="give the reward model it was trained with, or train it anew with this one",
            )
        with built_from(checkpoint.tensors, path):
            network = _network(config, reward_model)
        load_weights(network, checkpoint.tensors, "", path)
        return cls(config, network, reward_model, manifest, device)

    def save(self, path: Path) -> None:
        """Write the checkpoint directory; an existing one is refused."""
        save_checkpoint(path, self.network.state_dict(), to_mapping(self.config), self.manifest)

    def estimators(self) -> list[str]:
        """likelihood: log p of the frame that came; entropy: minus the entropies of its codes, given those before."""
        return list(get_args(Estimator))

    def statistics(self, estimator: str, task: str | None) -> tuple[float, float]:
        """Mean and standard deviation (nats) of a task's experts; of all experts for a task not in training."""
        table = self.manifest["statistics"].get(estimator, {})
        entry = table.get(task) or table.get("all") or {"mean": 0.0, "std": 1.0}
        return float(entry["mean"]), float(entry["std"])

    # ---- rewards ----

    def score(self, frames: NDArray[np.uint8], *, task: str | None = None, estimator: str | None = None) -> Reward:
        """Standardised rewards of B clips of T frames each: (B, T, 64, 64, 3) uint8 → ``Reward``."""
        clips = [self.reward_model.tokenize(clip) for clip in frames]
        rewards = self.score_tokens(clips, task=task, estimator=estimator)
        value, stderr, valid, ood = (
            np.stack([getattr(r, name) for r in rewards]) for name in ("value", "stderr", "valid", "ood")
        )
        return Reward(value=value, stderr=stderr, valid=valid, calls=1, ood=ood)

    def score_tokens(
        self, clips: Sequence[NDArray[np.int64]], *, estimator: str | None = None, task: str | None = None
    ) -> list[ClipReward]:
        """Rewards of clips given by their codes, each (T_i, 64); all frames of all clips are batched together.

        ``raw`` is what VIPER computes, in nats; ``value`` is standardised.
        """
        name = self._estimator(estimator)
        mean, std = self.statistics(name, task)
        raw = self._raw(name, np.concatenate([self._windows(clip) for clip in clips]))
        rewards = []
        for own in np.split(raw, np.cumsum([len(clip) for clip in clips])[:-1]):
            value = ((own - mean) / std).astype(np.float32)
            valid = np.isfinite(value)
            valid[: self.config.frame_skip] = False  # nothing came before
            rewards.append(ClipReward(value, own, np.zeros_like(own), valid, 1, np.full_like(own, np.nan)))
        return rewards

    def episode_reward(
        self, task: str | None, *, standardise: bool
    ) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """``viper_std``, or ``viper`` if not standardised, of whole episodes.

        Returns:
            Frames (B, T + 1, 64, 64, 3) uint8 → rewards (B, T), entry k for the step from frame k to k + 1; a
            transition without a number counts as an average one of an expert.
        """
        missing = 0.0 if standardise else self.statistics(self._estimator(None), task)[0]

        def score(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
            rewards = self.score_tokens([self.reward_model.tokenize(clip) for clip in frames], task=task)
            numbers = [np.where(r.valid, r.value if standardise else r.raw, missing)[1:] for r in rewards]
            return np.stack(numbers).astype(np.float32)

        return score

    def stream(self, *, task: str | None = None, estimator: str | None = None) -> ViperStream:
        """A reward per pushed frame, the same numbers as ``score_tokens`` gives for the whole clip."""
        return ViperStream(self, task=task, estimator=estimator)

    def _estimator(self, name: str | None) -> str:
        if name is not None:
            check_estimator(name, self.estimators())
        return name or self.estimators()[0]

    def _windows(self, clip: NDArray[np.int64]) -> NDArray[np.int64]:
        """(T, N) codes → (T, (num_history + 1)·N): the history of each frame, and the frame."""
        indices = history_indices(len(clip), self.config.num_history, self.config.frame_skip, observed=True)
        return np.concatenate([clip[indices].reshape(len(clip), -1), clip], 1)

    @torch.inference_mode()
    def _raw(self, estimator: str, windows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(M, (num_history + 1)·N) → (M,) nats; windows that are alike (a robot that rests) are computed once."""
        own, inverse = np.unique(windows, axis=0, return_inverse=True)
        values = []
        for part in torch.from_numpy(own).split(BATCH):
            history, following = part.to(self.device).tensor_split([part.shape[1] - self.network.num_tokens], 1)
            values.append(_reward(estimator, self.network.log_p(history, following), following))
        return torch.cat(values).cpu().numpy()[inverse.reshape(-1)]


class ViperStream:
    """Rewards of frames pushed one by one; each is encoded once.

    A window slides by a frame, and with it every position in it, so keys and values of one frame do not serve the next;
    those of the history serve the frame that follows it. ``prepare`` computes them while that frame is awaited.
    """

    def __init__(self, model: ViperModel, *, task: str | None, estimator: str | None) -> None:
        self._model, self._estimator = model, model._estimator(estimator)
        self._mean, self._std = model.statistics(self._estimator, task)
        self.dropped = 0
        self.reset()

    def reset(self) -> None:
        """Forget the history: the next frame begins an episode."""
        self._tokens: list[NDArray[np.int64]] = []
        self._count, self._last_ns = 0, -1
        self._known: tuple[NDArray[np.int64], Past] | None = None

    @torch.inference_mode()
    def prepare(self) -> None:
        """Do the part of the next ``push`` that needs no new frame, about two thirds of it; optional."""
        if self._tokens:
            self._past(self._window([*self._tokens, self._tokens[-1]])[0])

    @torch.inference_mode()
    def push(self, frame: NDArray[np.uint8], stamp_ns: int) -> StreamReward | None:
        """Score the transition that led to ``frame`` (64, 64, 3) uint8; None when its stamp is not new."""
        if stamp_ns <= self._last_ns:
            self.dropped += 1
            return None
        model = self._model
        self._last_ns = stamp_ns
        self._count += 1
        self._tokens.append(model.reward_model.tokenize(frame[None])[0])
        del self._tokens[: -model.config.frame_skip * model.config.num_history - 1]
        history, following = self._window(self._tokens)
        past = self._past(history)
        observed = torch.from_numpy(following).to(model.device)
        log_p = model.network.log_p(torch.from_numpy(history).to(model.device), observed, past)
        raw = float(_reward(self._estimator, log_p, observed))
        value = (raw - self._mean) / self._std
        valid = math.isfinite(value) and self._count > model.config.frame_skip
        return StreamReward(stamp_ns, value, raw, 0.0, valid, math.nan, 1)

    def _window(self, tokens: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """History (1, num_history·N) and codes (1, N) of the last of ``tokens``."""
        window = self._model._windows(np.stack(tokens))[-1:]
        return window[:, : -self._model.network.num_tokens], window[:, -self._model.network.num_tokens :]

    def _past(self, history: NDArray[np.int64]) -> Past:
        if self._known is None or not np.array_equal(self._known[0], history):
            model = self._model
            self._known = history, model.network.past(torch.from_numpy(history).to(model.device))
        return self._known[1]


def codec_sha256(reward_model: RewardModel) -> str:
    """Hash of the weights of a reward model's codec: what its codes mean."""
    digest = hashlib.sha256()
    for name, value in sorted(reward_model.networks.codec.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reward(estimator: str, log_p: Tensor, following: Tensor) -> Tensor:
    """log_p (B, N, K) and codes (B, N) → (B,) float32 nats; summed in float64, as hundreds of nats differ by a few."""
    if estimator == "entropy":
        terms = (log_p.exp() * log_p).sum(-1)
    else:
        terms = log_p.gather(-1, following.unsqueeze(-1)).squeeze(-1)
    return terms.double().sum(-1).float()


def _network(config: ViperConfig, reward_model: RewardModel) -> VideoGPT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, "viper network").initial_seed() % 2**63)
        return VideoGPT(config, reward_model.networks.codec.num_codes, reward_model.networks.video.num_tokens)


def _facts(
    config: ViperConfig, network: VideoGPT, reward_model: RewardModel, tokens: Store, device: str
) -> dict[str, Any]:
    """The manifest: of which codec and episodes, and the mean and spread of the raw rewards of the experts."""
    tasks = tokens.tasks(EXPERT)
    manifest: dict[str, Any] = {
        "kind": KIND,
        "tasks": tasks,
        "statistics": {},
        "codec_sha256": codec_sha256(reward_model),
        "reward_model": reward_model.model_hash,
        "image": to_mapping(reward_model.config.image),
        "render": tokens.render,
        "frame_rate_hz": {task: frame_rate_of(tokens, task) for task in tasks},
        "dataset_sha256": tokens.sha256,
        "training_seeds": {
            task: sorted(clip.seed for clip in tokens.clips if clip.task == task and clip.seed is not None)
            for task in tasks
        },
    }
    scorer = ViperModel(config, network, reward_model, manifest, device)
    clips = [np.asarray(tokens.array(clip), np.int64) for clip in tokens.clips]
    for name in scorer.estimators():
        rewards = [reward.raw[reward.valid] for reward in scorer.score_tokens(clips, estimator=name)]
        groups = {
            task: np.concatenate([r for r, clip in zip(rewards, tokens.clips, strict=True) if clip.task == task])
            for task in tasks
        }
        groups["all"] = np.concatenate(rewards)
        manifest["statistics"][name] = {
            task: {"mean": float(values.mean()), "std": float(max(values.std(), 1e-6)), "frames": len(values)}
            for task, values in groups.items()
        }
    return manifest


def _not_a_viper_model(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        expected="a VIPER model with its tasks, codec and statistics",
        found=found,
        next_step="give the model directory that its training wrote (RUN/model)",
    )
