"""Training stage of the video model: predict the next frame's tokens from the history's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dr_core.checkpoint import load_weights
from dr_core.codec.train import cosine_rate
from dr_core.data.cache import BACKGROUND, EXPERT, Clip, Store
from dr_core.diffusion.categorical import CategoricalDiffusion
from dr_core.diffusion.denoiser import CrossAttentionDenoiser
from dr_core.diffusion.inplace import InPlaceDenoiser
from dr_core.distributed import ALONE, Team
from dr_core.errors import UserError
from dr_core.seeding import generator_on, numpy_generator
from dr_core.training import ExponentialAverage


@dataclass(frozen=True)
class VideoTraining:
    """How the video model is trained."""

    steps: int = 800
    batch_size: int = 32
    """Transitions a step; half of them background where there is one."""
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.045
    warmup_steps: int = 50
    schedule: Literal["cosine", "plateau"] = "cosine"
    """After the warm-up: cosine falls to 3 % at the last step; plateau halves when the loss stops falling (paper)."""
    clip_norm: float = 1.0
    """Largest gradient norm during the first ``clip_steps``."""
    clip_steps: int = 5000
    ema_decay: float = 0.99
    ema_every: int = 25
    """Steps between updates of the averaged weights."""
    all_masked_share: float = 0.9
    """Share of the batch at the last timestep with every token masked, where the one-call rewards look."""
    auxiliary_weight: float = 1e-3
    """Weight of -log p(x_start | x_t)."""
    distorted_share: float = 0.1
    """Share of the background that is made by distorting time: reversed, shuffled, still, or double speed."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError("steps must be at least 1 and batch_size at least 2")
        for name in ("all_masked_share", "distorted_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


def history_indices(length: int, num_history: int, spacing: int, *, observed: bool) -> NDArray[np.int64]:
    """Which frames are the history of reward k, for k = 0 … length - 1; before the start the first frame repeats.

    Args:
        length: frames in the clip, T.
        num_history: frames in a history.
        spacing: frames from one history frame to the next.
        observed: False: the history ends at frame k, and what comes next is only predicted. True: the history ends
            ``spacing`` before frame k, which is the observed outcome.

    Returns:
        (T, num_history), oldest first.
    """
    last = np.arange(length) - (spacing if observed else 0)
    offsets = spacing * np.arange(num_history - 1, -1, -1)
    return np.clip(last[:, None] - offsets, 0, None)


def transitions(order: NDArray[np.int64], num_history: int, spacing: int) -> NDArray[np.int64]:
    """Windows of the frames listed in ``order`` (T,): (T - spacing, num_history + 1) rows, the next frame last."""
    if len(order) <= spacing:
        return np.zeros((0, num_history + 1), np.int64)
    history = history_indices(len(order), num_history, spacing, observed=True)
    rows = np.concatenate([history, np.arange(len(order))[:, None]], 1)[spacing:]
    return order[rows]


class TransitionSampler:
    """Draws (history, next frame, behaviour) from a token store.

    The background is what non-expert behaviour looks like: the recorded one, and clips whose time is distorted, so that
    neither standing still nor haste nor a wrong order can pass for expert behaviour.
    """

    def __init__(self, store: Store, config: VideoTraining, *, num_history: int, spacing: int, seed: int) -> None:
        self.tokens = torch.from_numpy(np.array(store.data, np.int16))  # (frames, N)
        self.config, self.seed, self.num_history = config, seed, num_history

        def windows(clips: list[Clip], speed: int = 1, reverse: bool = False) -> NDArray[np.int64]:
            orders = [np.arange(clip.start, clip.start + clip.length) for clip in clips]
            orders = [order[::-1] for order in orders] if reverse else orders
            return np.concatenate([transitions(order, num_history, spacing * speed) for order in orders])

        experts = [clip for clip in store.clips if clip.behaviour == EXPERT]
        others = [clip for clip in store.clips if clip.behaviour == BACKGROUND]
        self.expert = windows(experts)
        self.groups = [windows(others)] if others else []
        if not all(map(len, [self.expert, *self.groups])):
            raise UserError(
                "training episodes",
                expected=f"some longer than frame_skip, {spacing} frames",
                found="none among the experts or none in the background",
                next_step="lower model.frame_skip or record longer episodes",
            )
        self.shares = np.array([1.0])
        if others and config.distorted_share > 0:
            rng = numpy_generator(seed, "shuffled")
            everything = experts + others
            shuffled = [rng.permutation(np.arange(c.start, c.start + c.length)) for c in everything]
            stills = np.concatenate([np.arange(c.start, c.start + c.length, 3) for c in everything])
            self.groups += [
                windows(others, speed=2),
                windows(experts, speed=2),
                windows(experts, reverse=True),
                np.concatenate([transitions(order, num_history, spacing) for order in shuffled]),
                np.repeat(stills[:, None], num_history + 1, 1),
            ]
            self.groups = [group for group in self.groups if len(group)]  # short clips have no double speed
            distorted = len(self.groups) - 1
            self.shares = np.array([1 - config.distorted_share, *[config.distorted_share / distorted] * distorted])

    def draw(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """The batch of step ``index``: histories (B, num_history·N), next frames (B, N), behaviours (B,), all int64."""
        rng = numpy_generator(self.seed, "transitions", index)
        batch = self.config.batch_size
        background = batch // 2 if self.groups else 0
        picked = [self.expert[rng.integers(0, len(self.expert), batch - background)]]
        counts = rng.multinomial(background, self.shares)
        for group, count in zip(self.groups, counts, strict=False):
            picked.append(group[rng.integers(0, len(group), count)])
        rows = torch.from_numpy(np.concatenate(picked))  # (B, num_history + 1)
        tokens = self.tokens[rows].long()  # (B, num_history + 1, N)
        behaviour = torch.zeros(batch, dtype=torch.long)
        behaviour[batch - background :] = 1
        return tokens[:, :-1].flatten(1), tokens[:, -1], behaviour


class VideoStage:
    """The denoiser of all behaviours, its averaged weights and its optimiser."""

    name = "video"

    def __init__(
        self,
        denoiser: InPlaceDenoiser | CrossAttentionDenoiser,
        diffusion: CategoricalDiffusion,
        sampler: TransitionSampler,
        config: VideoTraining,
        seed: int,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.denoiser, self.diffusion, self.sampler, self.team = denoiser, diffusion, sampler, team
        self.config, self.seed, self.device, self.steps = config, seed, device, config.steps
        parameters = [p for p in denoiser.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.5, patience=25000, threshold=0.1, threshold_mode="rel"
        )
        # A run shorter than ema_every would otherwise keep its random start.
        self.average = ExponentialAverage(denoiser, config.ema_decay, min(config.ema_every, config.steps))

    def step(self, index: int) -> dict[str, Tensor]:
        """One optimiser step; the dropout of the step is seeded like its data."""
        config, diffusion, team = self.config, self.diffusion, self.team
        self._set_rate(index)
        history, x_start, behaviour = (tensor.to(self.device) for tensor in self.sampler.draw(index))
        noise = generator_on(self.device, self.seed, self.name, index)
        torch.manual_seed(noise.initial_seed() % 2**63)

        batch = len(x_start)
        masked = round(config.all_masked_share * batch)
        t, probability = diffusion.sample_time(batch, noise)
        whole = torch.randperm(batch, generator=noise, device=self.device)[:masked]
        is_whole = torch.zeros(batch, dtype=torch.bool, device=self.device).index_fill(0, whole, True)
        t = torch.where(is_whole, diffusion.num_timesteps - 1, t)
        x_t = diffusion.q_sample(x_start, t, noise)
        x_t = torch.where(is_whole.unsqueeze(1), diffusion.mask_token, x_t)

        # Everything is drawn for the whole batch; from here on it is the rows of this process.
        own = team.rows(batch)
        history, x_start, behaviour, x_t = history[own], x_start[own], behaviour[own], x_t[own]
        t, probability, is_whole = t[own], probability[own], is_whole[own]
        with team.dropout(batch):
            if isinstance(self.denoiser, InPlaceDenoiser):
                condition = self.denoiser.condition(history, behaviour)
            else:
                condition = self.denoiser.condition(history)
            logits = self.denoiser(x_t, t, condition)
        nll = F.cross_entropy(logits.float().flatten(0, 1), x_start.flatten(), reduction="none").view_as(x_start)
        values: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        if masked:
            first = team.part(nll[is_whole], masked)
            values["all_masked_nll"] = first.detach()
            loss = loss + config.all_masked_share * first
        if masked < batch:
            rest = ~is_whole
            bound = self._bound(logits[rest], x_start[rest], x_t[rest], t[rest], probability[rest], batch - masked)
            values["bound"] = bound.detach()
            loss = loss + (1 - config.all_masked_share) * bound
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        team.average_gradients(self.denoiser.parameters())
        if index < config.clip_steps:
            nn.utils.clip_grad_norm_(self.denoiser.parameters(), config.clip_norm)
        self.optimizer.step()
        values = team.means({"loss": loss.detach(), **values})
        if config.schedule == "plateau":
            self.plateau.step(values["loss"])
        self.average.update(self.denoiser, index + 1)
        return values

    def _bound(
        self, logits: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor, probability: Tensor, total: int
    ) -> Tensor:
        """``weighted_loss`` of the own rows as their part of that of the ``total`` rows of all processes, ()."""
        diffusion, team, weight = self.diffusion, self.team, self.config.auxiliary_weight
        if team.size == 1:
            return diffusion.weighted_loss(logits, x_start, x_t, t, probability, aux_weight=weight)
        count = diffusion.Lt_count.clone()
        bound = torch.zeros((), device=self.device)
        if len(t):
            bound = diffusion.weighted_loss(logits, x_start, x_t, t, probability, aux_weight=weight)
        # The running loss at each t is linear in the mean over the rows there: the mean of what every process makes
        # of it, weighted with its rows, is what one process makes of all rows.
        drawn = diffusion.Lt_count - count
        drawn, running = team.sum(torch.stack([drawn, drawn * diffusion.Lt_history]))
        diffusion.Lt_history.copy_(torch.where(drawn > 0, running / drawn.clamp(min=1), diffusion.Lt_history))
        diffusion.Lt_count.copy_(count + drawn)
        return bound * (len(t) * team.size / total)

    def _set_rate(self, index: int) -> None:
        config = self.config
        if config.schedule == "cosine":
            rate = cosine_rate(config.learning_rate, index, config.steps, config.warmup_steps)
        elif index < config.warmup_steps:
            rate = config.learning_rate * (index + 1) / config.warmup_steps
        else:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def tensors(self) -> dict[str, Tensor]:
        """Live and averaged weights, and the running losses that steer the draw of t."""
        live = {f"video.{name}": value for name, value in self.denoiser.state_dict().items()}
        averaged = {f"ema.{name}": value for name, value in self.average.shadow.items()}
        return {**live, **averaged, **{f"diffusion.{n}": v for n, v in self.diffusion.state_dict().items()}}

    def training_state(self) -> dict[str, Any]:
        """The optimiser's moments and the plateau counter."""
        return {"optimizer": self.optimizer.state_dict(), "plateau": self.plateau.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Continue from a checkpoint."""
        self.average.restore(tensors, "ema.", self.denoiser, where)
        load_weights(self.denoiser, tensors, "video.", where)
        load_weights(self.diffusion, tensors, "diffusion.", where)
        self.optimizer.load_state_dict(training["optimizer"])
        self.plateau.load_state_dict(training["plateau"])
