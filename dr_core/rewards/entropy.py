"""Rewards from the entropy of the video model's prediction, -H(p(next frame | history)), one per frame.

All functions work on a batch of B histories and keep every step on the device. ``value`` is in nats, summed
over the N tokens, before standardisation.

- ``paper``: the published sum of KL terms at the model's own sample. Unbiased for the expectation of that
  sum, which is not -H: noised tokens come from the model's own reverse process. Varies with every draw; 11
  calls at stride 10.
- ``likelihood``: the same sum for the observed frame; same cost.
- ``one_pass``: -Σ_i H(p(x_i)). At most -H, equal for independent tokens; no variance; 1 call.
- ``chain``: -Σ H(block given the blocks before). Unbiased for -H with one-token blocks, between that and
  ``one_pass`` otherwise; varies with the revealed tokens; num_steps calls.

The last two statements hold for a network whose predictions are the conditionals of one joint distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dr_core.diffusion.categorical import CategoricalDiffusion, Denoiser, Uniforms, clamped_log, sample


@dataclass(frozen=True)
class Estimate:
    """One estimate per history.

    Attributes:
        value: (B,) float32, nats.
        stderr: (B,) standard error of ``value`` over the draws; 0 where one draw tells no spread.
        calls: network calls spent on each history.
    """

    value: Tensor
    stderr: Tensor
    calls: int


@dataclass(frozen=True)
class Trajectory:
    """One draw of the reverse process.

    Attributes:
        x_start: (B, N) the final sample.
        steps: per network call (log_p (B, N, K+1), x_t (B, N), t (1,), s (1,)): log of the distribution of
            x_s given x_t, from which the next sample was drawn. About 2.9 MB a history at paper size.
    """

    x_start: Tensor
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]]


def reverse(
    diffusion: CategoricalDiffusion,
    denoiser: Denoiser,
    cache: Any,
    batch: int,
    *,
    stride: int,
    posterior: str,
    uniforms: Uniforms | None,
) -> Trajectory:
    """Sample a frame from all-[MASK]; ``uniforms`` None takes the most probable class at each step."""
    device = diffusion.cumulative.device
    x_t = torch.full((batch, denoiser.num_tokens), diffusion.mask_token, device=device)
    steps = []
    for step, times in enumerate(diffusion.jumps(stride, posterior)):
        t_network, t, s = (torch.full((1,), time, device=device) for time in times)  # one for the whole batch
        p_start = diffusion.p_start(denoiser(x_t, t_network, cache))
        p = diffusion.posterior(p_start, x_t, t, s)  # (B, N, K+1)
        steps.append((clamped_log(p), x_t, t, s))
        x_t = sample(p, None if uniforms is None else uniforms(step))
    return Trajectory(x_t, steps)


def bound(diffusion: CategoricalDiffusion, trajectory: Trajectory, x_start: Tensor) -> Tensor:
    """(B,) nats: log p(x_start | last x_t) - Σ KL(q(x_s | x_t, x_start) ‖ p(x_s | x_t)) over the other steps.

    The last step adds no KL: it ends at the clean tokens, where that would be -log p(x_start | x_t) again.
    """
    *before, (log_p_start, _, _, _) = trajectory.steps
    value = log_p_start.gather(-1, x_start.unsqueeze(-1)).squeeze(-1).sum(-1)
    for log_p, x_t, t, s in before:
        value = value - diffusion.kl_posterior(x_start, log_p, x_t, t, s).sum(-1)
    return value


@torch.no_grad()
def paper(
    diffusion: CategoricalDiffusion,
    denoiser: Denoiser,
    history: Tensor,
    *,
    noise: torch.Generator | Uniforms | None,
    stride: int = 10,
    num_samples: int = 1,
    posterior: str = "published",
    x_start: Tensor | None = None,
) -> Estimate:
    """The published reward: the bound of section 4 of arXiv 2312.14134 at the model's own sample.

    Args:
        history: (B, num_history·N) tokens, oldest frame first.
        noise: where the draws come from: a generator on the history's device; a function that maps the number
            of a step (counted on through all samples) to uniforms (B, N, K+1); or None, which takes the most
            probable class and makes every sample the same.
        stride: distance between the visited times; 10 is the published ``skip_step`` 9.
        num_samples: draws to average.
        posterior: "published" or "exact", see ``CategoricalDiffusion.jumps``.
        x_start: (B, N) tokens to score instead of the sample; ``likelihood`` passes the observed next frame.
    """
    batch = len(history)
    shape = (batch, denoiser.num_tokens, denoiser.num_codes + 1)
    calls = len(diffusion.jumps(stride, posterior))
    cache = denoiser.condition(history)
    values = []
    for draw in range(num_samples):
        uniforms = _uniforms(noise, shape, history.device, first=draw * calls)
        trajectory = reverse(diffusion, denoiser, cache, batch, stride=stride, posterior=posterior, uniforms=uniforms)
        values.append(bound(diffusion, trajectory, trajectory.x_start if x_start is None else x_start))
    return _average(values, num_samples * calls)


def likelihood(
    diffusion: CategoricalDiffusion,
    denoiser: Denoiser,
    history: Tensor,
    next_tokens: Tensor,
    *,
    noise: torch.Generator | Uniforms | None,
    stride: int = 10,
    num_samples: int = 1,
    posterior: str = "published",
) -> Estimate:
    """The paper's ablation "LL": the sum of ``paper`` with the observed next frame (B, N) as x_start."""
    return paper(
        diffusion,
        denoiser,
        history,
        noise=noise,
        stride=stride,
        num_samples=num_samples,
        posterior=posterior,
        x_start=next_tokens,
    )


@torch.no_grad()
def one_pass(diffusion: CategoricalDiffusion, denoiser: Denoiser, history: Tensor) -> Estimate:
    """-Σ_i H(p(x_i | all [MASK], history)): one call, no sampling noise. history (B, num_history·N)."""
    batch = len(history)
    x_t = torch.full((batch, denoiser.num_tokens), diffusion.mask_token, device=history.device)
    t = torch.full((1,), diffusion.num_timesteps - 1, device=history.device)
    value = -token_entropy(denoiser(x_t, t, denoiser.condition(history))).sum(-1)
    return Estimate(value, torch.zeros_like(value), calls=1)


@torch.no_grad()
def chain(
    diffusion: CategoricalDiffusion,
    denoiser: Denoiser,
    history: Tensor,
    *,
    num_steps: int,
    order: Tensor,
    generator: torch.Generator,
    num_samples: int = 1,
) -> Estimate:
    """Reveal the tokens in blocks, adding each block's exact entropy given what is revealed.

    The draws of the revealed tokens use the same noise for every history of the batch (common random
    numbers), so that differences between frames are less noisy than the values.

    Args:
        history: (B, num_history·N) tokens, oldest frame first.
        num_steps: number of blocks, 1 … N; 1 is ``one_pass``, N reveals one token at a time.
        order: (N,) the order in which tokens are revealed, a permutation; see ``spread_order``.
        generator: source of the draws, on the history's device.
        num_samples: draws to average.
    """
    batch, num_tokens = len(history), denoiser.num_tokens
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(f"num_steps must be in 1 … {num_tokens}, got {num_steps}")
    if sorted(order.tolist()) != list(range(num_tokens)):
        raise ValueError(f"order must be a permutation of 0 … {num_tokens - 1}")
    blocks = order.to(history.device).tensor_split(num_steps)
    cache = denoiser.condition(history)
    values = []
    for _ in range(num_samples):
        x = torch.full((batch, num_tokens), diffusion.mask_token, device=history.device)
        value = torch.zeros(batch, device=history.device)
        hidden = num_tokens
        for block in blocks:
            # The time at which the noise process would have masked this share of the tokens.
            time = round(hidden / num_tokens * diffusion.num_timesteps) - 1
            t = torch.full((1,), max(time, 0), device=history.device)
            logits = denoiser(x, t, cache)[:, block].float()  # (B, block, K)
            value = value - token_entropy(logits).sum(-1)
            uniform = torch.rand(logits.shape[1:], generator=generator, device=history.device)
            x = x.index_copy(1, block, sample(logits.softmax(-1), uniform))
            hidden -= len(block)
        values.append(value)
    return _average(values, num_samples * num_steps)


def spread_order(num_tokens: int) -> Tensor:
    """A fixed random permutation (N,): the tokens of a block lie apart, hence depend less on each other."""
    return torch.randperm(num_tokens, generator=torch.Generator().manual_seed(0))


def token_entropy(logits: Tensor) -> Tensor:
    """Logits (..., K) → entropy (...) in nats."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def _uniforms(
    noise: torch.Generator | Uniforms | None, shape: tuple[int, int, int], device: torch.device, *, first: int
) -> Uniforms | None:
    if isinstance(noise, torch.Generator):
        generator = noise
        return lambda step: torch.rand(shape, generator=generator, device=device)
    if noise is None:
        return None
    given = noise
    return lambda step: given(first + step)


def _average(values: list[Tensor], calls: int) -> Estimate:
    """Mean and standard error over draws, each (B,)."""
    stacked = torch.stack(values)
    count = len(values)
    value = stacked.mean(0)
    stderr = stacked.std(0) / count**0.5 if count > 1 else torch.zeros_like(value)
    return Estimate(value, stderr, calls)
