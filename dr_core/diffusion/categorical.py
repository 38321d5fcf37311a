"""Discrete diffusion over tokens with the mask-and-uniform process.

Tokens are integers 0…K-1 and K = [MASK]; a frame has N of them. ``x_start`` are clean tokens, ``x_t`` noised
ones. Time t is in [0, T): t = 0 means one step of noise, t = -1 means none. Nothing here ever builds a
one-hot tensor: given x_start and x_t, a posterior takes at most four different values (at x_start, at x_t, at
[MASK], elsewhere).

Distributions are tensors (B, N, K+1) with the class last, or (B, N, K) for p(x_start), which is never [MASK].
Probabilities, not logarithms, are summed: every term is positive, so float32 loses nothing
(tests/core/test_categorical.py compares with dense float64 logarithms).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dr_core.diffusion.schedule import Schedule

LOG_FLOOR = -70.0
"""The published implementation clamps every log-probability to at least this."""
TINY = 1e-30
"""Stands in for probability 0 under a logarithm, as published."""


class Denoiser(Protocol):
    """The network: p(x_start | x_t, t, history) for all N tokens of the next frame."""

    num_codes: int
    num_tokens: int
    num_history: int

    def condition(self, history: Tensor) -> Any:
        """(B, num_history·N) tokens, oldest frame first → whatever does not depend on t, computed once."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, cache: Any) -> Tensor:
        """x_t (B, N) in [0, K], t (B,), or (1,) for all → logits (B, N, K)."""
        ...


@dataclass(frozen=True)
class LossParts:
    """Parts of the training loss in nats, each (B,), summed over the N tokens."""

    kl: Tensor
    """KL(q(x_{t-1} | x_t, x_start) ‖ p(x_{t-1} | x_t))."""
    decoder_nll: Tensor
    """-log p(x_{t-1} = x_start | x_t); at t = 0 this is the likelihood term of the bound."""
    aux_kl: Tensor
    """-log p(x_start | x_t)."""


class CategoricalDiffusion(nn.Module):
    """The noise process q, its posteriors, and the training loss. Holds no trainable parameter.

    ``Lt_history`` (T,) is the running mean of the squared loss at each t and ``Lt_count`` (T,) how often each
    t was drawn; they steer the importance sampling of t and belong to a training checkpoint.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.num_codes, self.num_timesteps = schedule.num_codes, schedule.num_timesteps
        self.mask_token = schedule.num_codes
        self.cumulative: Tensor
        self.transition: Tensor
        self.Lt_history: Tensor
        self.Lt_count: Tensor
        cumulative = np.stack([schedule.cum_keep, schedule.cum_uniform, schedule.cum_mask], 1)  # (T+1, 3)
        transition = schedule.transition()  # (T+1, T+1, 3)
        self.register_buffer("cumulative", torch.from_numpy(cumulative).float(), persistent=False)
        self.register_buffer("transition", torch.from_numpy(transition).float(), persistent=False)
        self.register_buffer("Lt_history", torch.zeros(self.num_timesteps))
        self.register_buffer("Lt_count", torch.zeros(self.num_timesteps))

    # ---- q: adding noise ----

    def q_sample(self, x_start: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x_t ~ q(x_t | x_start). x_start (B, N), t (B,) → (B, N)."""
        _, uniform, mask = self._cumulative(t)  # each (B, 1)
        u = torch.rand((2, *x_start.shape), generator=generator, device=x_start.device)
        other = torch.randint(self.num_codes, x_start.shape, generator=generator, device=x_start.device)
        # Two uniforms, because the uniform part can be as small as the spacing of float32 near the mask part.
        x_t = torch.where(u[1] < self.num_codes * uniform / (1 - mask), other, x_start)
        return torch.where(u[0] < mask, self.mask_token, x_t)

    def _cumulative(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keep, uniform and mask probabilities of q(x_t | x_start), each (B, 1)."""
        keep, uniform, mask = self.cumulative[t].unsqueeze(1).unbind(-1)
        return keep, uniform, mask

    def _transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keep, uniform and mask probabilities of q(x_t | x_s), each (B, 1)."""
        keep, uniform, mask = self.transition[s, t].unsqueeze(1).unbind(-1)
        return keep, uniform, mask

    # ---- posteriors: removing noise ----

    def p_start(self, logits: Tensor) -> Tensor:
        """Logits (B, N, K) → p(x_start | x_t) (B, N, K), not below exp(LOG_FLOOR)."""
        return logits.float().softmax(-1).clamp(min=math.exp(LOG_FLOOR))

    def posterior(self, p_start: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Σ_{x_start} q(x_s | x_t, x_start) p_start(x_start): the distribution of the less noisy x_s, s < t.

        s = t - 1 is the one-step posterior; any other s >= -1 is the exact posterior of a longer jump.

        Args:
            p_start: (B, N, K).
            x_t: (B, N) in [0, K].
            t, s: (B,) int64, or (1,) for the whole batch.

        Returns:
            (B, N, K+1) probabilities; they sum to 1.
        """
        masked = (x_t == self.mask_token).unsqueeze(-1)  # (B, N, 1)
        index = x_t.clamp(max=self.num_codes - 1).unsqueeze(-1)  # any code will do where x_t is [MASK]
        keep_t, uniform_t, mask_t = (p.unsqueeze(-1) for p in self._cumulative(t))  # (B, 1, 1)
        keep_s, uniform_s, mask_s = (p.unsqueeze(-1) for p in self._cumulative(s))
        keep, uniform, mask = (p.unsqueeze(-1) for p in self._transition(s, t))

        # Σ p(x_start) / q(x_t | x_start): the denominator is special at one class, x_t. In float64, because what the
        # other classes share may be far less than one rounding error of p(x_t).
        p_x_t = p_start.gather(-1, index)
        others = (p_start.sum(-1, keepdim=True, dtype=torch.float64) - p_x_t.double()).clamp(min=0).float()
        ordinary, special = torch.where(masked, mask_t, uniform_t), torch.where(masked, mask_t, keep_t + uniform_t)
        total = others / ordinary + p_x_t / special + TINY  # (B, N, 1)
        # q(x_s | x_start) averaged over that, times q(x_t | x_s), again special at x_t: linear in p(x_start).
        step = torch.where(masked, mask, uniform)
        codes = (p_start * (step * keep_s / ordinary)).add_(step * uniform_s * total)  # (B, N, K)
        at_x_t = (keep_s * p_x_t / special + uniform_s * total) * torch.where(masked, mask, keep + uniform)
        codes = codes.scatter_(-1, index, at_x_t)
        still_masked = torch.where(masked, mask_s * total, TINY)
        return torch.cat([codes, still_masked], -1)

    def q_posterior(self, log_p_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """``posterior`` of one step in logarithms: log p(x_start) (B, N, K) → log p(x_{t-1}) (B, N, K+1)."""
        return clamped_log(self.posterior(log_p_start.exp(), x_t, t, t - 1))

    def kl_posterior(self, x_start: Tensor, log_p: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_start) ‖ p) per token.

        Args:
            x_start: (B, N) in [0, K).
            log_p: (B, N, K+1), log of ``posterior`` for the same x_t, t and s.
            x_t: (B, N) in [0, K].
            t, s: (B,), or (1,) for the whole batch.

        Returns:
            (B, N) in nats.
        """
        masked = x_t == self.mask_token
        same = x_t == x_start
        keep_t, uniform_t, mask_t = self._cumulative(t)  # (B, 1)
        keep_s, uniform_s, mask_s = self._cumulative(s)
        keep, uniform, mask = self._transition(s, t)
        evidence = torch.where(masked, mask_t, torch.where(same, keep_t, 0.0) + uniform_t)  # q(x_t | x_start)
        step = torch.where(masked, mask, uniform) / evidence  # q(x_t | x_s) / evidence for x_s not x_t
        stay = (keep + uniform) / evidence  # the same for x_s = x_t, a code
        q_start = torch.where(same, stay, step) * (keep_s + uniform_s)
        separate = ~(masked | same)  # x_t is a code of its own
        q_x_t = torch.where(separate, stay * uniform_s, 0.0)
        q_mask = torch.where(masked, mask_s / evidence, 0.0)
        q_rest = step * uniform_s

        index = torch.stack([x_start, x_t], -1)
        log_start, log_x_t = log_p.gather(-1, index).unbind(-1)
        num_rest = self.num_codes - 1 - separate.int()
        log_rest = log_p[..., :-1].sum(-1) - log_start - torch.where(separate, log_x_t, 0.0)
        negative_entropy = (
            torch.xlogy(q_start, q_start)
            + torch.xlogy(q_x_t, q_x_t)
            + torch.xlogy(q_mask, q_mask)
            + num_rest * torch.xlogy(q_rest, q_rest)
        )
        cross = q_start * log_start + q_x_t * log_x_t + q_mask * log_p[..., -1] + q_rest * log_rest
        return negative_entropy - cross

    def jumps(self, stride: int, posterior: str = "published") -> list[tuple[int, int, int]]:
        """The times visited by a reverse process with a network call every ``stride`` steps from T-1 on.

        Returns:
            (t_network, t_posterior, s) per call: the network is asked at t_network, then x_s is drawn from
            q(x_s | x_{t_posterior}, x_start). "published" always takes one step, from
            t_network - (stride-1) where that is not before the start, else from t_network, so that most masks
            stay until the last call; "exact" jumps from one visited time to the next.
        """
        times = list(range(self.num_timesteps - 1, -1, -stride))
        if times[-1] != 0:
            times.append(0)
        if posterior == "exact":
            return [(t, t, s) for t, s in zip(times, [*times[1:], -1], strict=True)]
        if posterior != "published":
            raise ValueError(f"posterior must be 'published' or 'exact', got {posterior!r}")
        early = [t - (stride - 1) if t > stride - 1 else t for t in times]
        return [(t, e, e - 1) for t, e in zip(times, early, strict=True)]

    # ---- training ----

    def sample_time(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw t in proportion to the root of the running squared loss.

        Uniformly until every t has been drawn more than ten times.

        Returns:
            t (B,) int64 and the probability (B,) with which each was drawn.
        """
        weight = (self.Lt_history + 1e-10).sqrt() + 1e-4
        # t = 0 holds a likelihood, not a KL: it borrows its neighbour's weight.
        weight = torch.cat([weight[1:2], weight[1:]])
        uniform = torch.full_like(weight, 1 / self.num_timesteps)
        probability = torch.where((self.Lt_count > 10).all(), weight / weight.sum(), uniform)
        t = torch.multinomial(probability, batch, replacement=True, generator=generator)
        return t, probability[t]

    @torch.no_grad()
    def record_loss(self, t: Tensor, loss: Tensor) -> None:
        """Update the running squared loss at the drawn times. t (B,), loss (B,), in nats per frame.

        Several draws of one t in a batch count with their mean, so that the result depends on no order.
        """
        zeros = torch.zeros_like(self.Lt_history)
        count = zeros.index_add(0, t, torch.ones_like(loss))
        mean = zeros.index_add(0, t, loss.square()) / count.clamp(min=1)
        self.Lt_history.copy_(torch.where(count > 0, 0.1 * mean + 0.9 * self.Lt_history, self.Lt_history))
        self.Lt_count.add_(count)

    def loss_parts(self, logits: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor) -> LossParts:
        """Parts of the loss for logits (B, N, K) of p(x_start | x_t), x_start and x_t (B, N), t (B,)."""
        log_p = clamped_log(self.posterior(self.p_start(logits), x_t, t, t - 1))
        kl = self.kl_posterior(x_start, log_p, x_t, t, t - 1).sum(-1)
        decoder_nll = -log_p.gather(-1, x_start.unsqueeze(-1)).squeeze(-1).sum(-1)
        log_start = -F.cross_entropy(logits.float().flatten(0, 1), x_start.flatten(), reduction="none")
        aux_kl = -log_start.view_as(x_start).clamp(min=LOG_FLOOR).sum(-1)
        return LossParts(kl, decoder_nll, aux_kl)

    def training_loss(
        self,
        denoiser: Denoiser,
        x_start: Tensor,
        cache: Any,
        generator: torch.Generator,
        *,
        aux_weight: float = 1e-3,
    ) -> Tensor:
        """The weighted bound on -log p(x_start | history), in nats per token: a scalar to minimise.

        Draws t by importance and x_t by noise, and updates the running loss.

        Args:
            x_start: (B, N) tokens of the frame to predict.
            cache: ``denoiser.condition(history)``.
            aux_weight: weight of -log p(x_start | x_t), further weighted by 2 - t/T.
        """
        t, probability = self.sample_time(len(x_start), generator)
        x_t = self.q_sample(x_start, t, generator)
        logits = denoiser(x_t, t, cache)
        return self.weighted_loss(logits, x_start, x_t, t, probability, aux_weight=aux_weight)

    def weighted_loss(
        self,
        logits: Tensor,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        probability: Tensor,
        *,
        aux_weight: float = 1e-3,
    ) -> Tensor:
        """``training_loss`` for given times, drawn with the given probability (B,), and given x_t.

        Updates the running loss.
        """
        parts = self.loss_parts(logits, x_start, x_t, t)
        first = t == 0
        bound = torch.where(first, parts.decoder_nll, parts.kl)
        self.record_loss(t, bound.detach())
        auxiliary = torch.where(first, parts.decoder_nll, parts.aux_kl)
        auxiliary = auxiliary * aux_weight * (2 - t / self.num_timesteps)
        return ((bound + auxiliary) / probability).mean() / x_start.shape[1]


def clamped_log(probability: Tensor) -> Tensor:
    """log, not below LOG_FLOOR and not above 0."""
    return probability.clamp(min=math.exp(LOG_FLOOR), max=1.0).log()


def sample(probability: Tensor, uniform: Tensor | None) -> Tensor:
    """Draw from (..., C) by the Gumbel-argmax rule.

    Args:
        uniform: (..., C) in [0, 1), broadcast over the batch; None takes the most probable class.

    Returns:
        (...) int64.
    """
    if uniform is None:
        return probability.argmax(-1)
    # argmax(log p - log(-log u)) without two of the three logarithms.
    return (probability / (TINY - (uniform + TINY).log())).argmax(-1)


Uniforms = Callable[[int], Tensor]
"""step → uniforms (B, N, K+1) for the draw of that step."""
