"""The published evaluation written the obvious way: what the fast path must equal and is timed against.

Plain float32, one trajectory of T frames as a batch. Nothing is kept between network calls: the history is embedded
and its keys and values, and the scales and shifts of the time, are computed anew in each. Every distribution is a
dense (B, K+1, N) tensor of logarithms, tokens included ("log one-hot"), as in VQ-Diffusion and arXiv 2312.14134.
Weights are those of ``CrossAttentionDenoiser.to_published()``; the time t and the log floor mean what they mean in
``dr_core.diffusion.categorical``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dr_core.diffusion.schedule import Schedule

LOG_FLOOR = -70.0
TINY = 1e-30


class SlowDenoiser:
    """log p(x_start | x_t, t, history) by the published transformer."""

    def __init__(self, published: Mapping[str, Tensor], heads: int, grid: tuple[int, int] = (8, 8)) -> None:
        self.weights, self.heads, self.grid = {k: v.contiguous() for k, v in published.items()}, heads, grid
        self.depth = 1 + max(int(name.split(".")[2]) for name in published if ".blocks." in name)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm_by_time(self, name: str, x: Tensor, t: Tensor) -> Tensor:
        time = F.silu(F.embedding(t, self.weights[f"{name}.emb.weight"]))
        scale, shift = self._linear(f"{name}.linear", time).unsqueeze(1).chunk(2, 2)
        return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift

    def _attention(self, name: str, x: Tensor, source: Tensor) -> Tensor:
        """x (B, N, width) looks at source (B, M, ·)."""
        b, n, width = x.shape
        length = width // self.heads
        # Each (B, heads, N or M, length).
        q = self._linear(f"{name}.query", x).view(b, n, self.heads, length).transpose(1, 2)
        k = self._linear(f"{name}.key", source).view(b, -1, self.heads, length).transpose(1, 2)
        v = self._linear(f"{name}.value", source).view(b, -1, self.heads, length).transpose(1, 2)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(length)).softmax(-1)  # (B, heads, N, M)
        return self._linear(f"{name}.proj", (weights @ v).transpose(1, 2).reshape(b, n, width))

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        b, n, width = x.shape
        h = x.transpose(1, 2).reshape(b, width, *self.grid)
        h = F.conv2d(h, self.weights[f"{name}.conv1.weight"], self.weights[f"{name}.conv1.bias"], padding=1)
        h = h * torch.sigmoid(1.702 * h)
        h = F.conv2d(h, self.weights[f"{name}.conv2.weight"], self.weights[f"{name}.conv2.bias"], padding=1)
        return h.reshape(b, width, n).transpose(1, 2)

    def log_p_start(self, x_t: Tensor, t: Tensor, history: Tensor) -> Tensor:
        """x_t (B, N), t (B,), history (B, M) codes → (B, K+1, N); [MASK] has the floor."""
        w = self.weights
        rows, columns = self.grid
        condition = F.embedding(history, w["condition_emb.emb.weight"])  # (B, M, condition_width)
        place = torch.arange(rows * columns, device=x_t.device)
        x = F.embedding(x_t, w["transformer.content_emb.emb.weight"])
        x = x + F.embedding(place // columns, w["transformer.content_emb.height_emb.weight"])
        x = x + F.embedding(place % columns, w["transformer.content_emb.width_emb.weight"])
        for i in range(self.depth):
            block = f"transformer.blocks.{i}"
            h = self._norm_by_time(f"{block}.ln1", x, t)
            x = x + self._attention(f"{block}.attn1", h, h)
            x = x + self._attention(f"{block}.attn2", self._norm_by_time(f"{block}.ln1_1", x, t), condition)
            x = x + self._mlp(f"{block}.mlp", self._norm(f"{block}.ln2", x))
        logits = self._linear("transformer.to_logits.1", self._norm("transformer.to_logits.0", x)).transpose(1, 2)
        log_p = F.log_softmax(logits, 1)
        return torch.cat([log_p, torch.full_like(log_p[:, :1], LOG_FLOOR)], 1).clamp(LOG_FLOOR, 0)


class SlowDiffusion:
    """q, its posterior and the reward with dense logarithms (B, K+1, N)."""

    def __init__(self, schedule: Schedule) -> None:
        self.num_codes, self.num_timesteps = schedule.num_codes, schedule.num_timesteps

        def log(p: object) -> Tensor:
            return torch.log(torch.as_tensor(p).double().clamp(min=TINY)).float()

        # One step and cumulative; index -1 is no noise.
        self.keep, self.uniform, self.mask = log(schedule.keep), log(schedule.uniform), log(schedule.mask)
        self.stay = log(1 - torch.as_tensor(schedule.mask).double())
        self.cum_keep, self.cum_uniform = log(schedule.cum_keep), log(schedule.cum_uniform)
        self.cum_mask = log(schedule.cum_mask)
        self.cum_stay = log(1 - torch.as_tensor(schedule.cum_mask).double())

    def one_hot(self, tokens: Tensor) -> Tensor:
        """(B, N) → logarithms (B, K+1, N)."""
        dense = F.one_hot(tokens, self.num_codes + 1).transpose(1, 2).float()
        return dense.clamp(min=TINY).log()

    def q_step(self, log_x: Tensor, t: Tensor) -> Tensor:
        """log q(x_t | x_{t-1}) for x_{t-1} given by log_x (B, K+1, N)."""
        keep, uniform, mask, stay = (
            table[t].view(-1, 1, 1) for table in (self.keep, self.uniform, self.mask, self.stay)
        )
        codes = torch.logaddexp(log_x[:, :-1] + keep, uniform)
        masked = torch.logaddexp(log_x[:, -1:] + stay, mask)
        return torch.cat([codes, masked], 1)

    def q_cumulative(self, log_x_start: Tensor, t: Tensor) -> Tensor:
        """log q(x_t | x_start)."""
        keep, uniform, mask, stay = (
            table[t].view(-1, 1, 1) for table in (self.cum_keep, self.cum_uniform, self.cum_mask, self.cum_stay)
        )
        codes = torch.logaddexp(log_x_start[:, :-1] + keep, uniform)
        masked = torch.logaddexp(log_x_start[:, -1:] + stay, mask)
        return torch.cat([codes, masked], 1)

    def q_posterior(self, log_x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """log Σ_{x_start} q(x_{t-1} | x_t, x_start) p(x_start) (B, K+1, N)."""
        log_x_t = self.one_hot(x_t)
        masked = (x_t == self.num_codes).unsqueeze(1)  # (B, 1, N)
        # q(x_t | x_start) as a function of x_start: symmetric in the codes, the mask probability where x_t is [MASK].
        evidence = self.q_cumulative(log_x_t, t)[:, :-1]
        evidence = torch.where(masked, self.cum_mask[t].view(-1, 1, 1), evidence)
        step = self.q_step(log_x_t, t)[:, :-1]
        step = torch.where(masked, self.mask[t].view(-1, 1, 1), step)
        step = torch.cat([step, torch.where(masked, 0.0, math.log(TINY))], 1)  # a [MASK] stays one

        quotient = log_x_start[:, :-1] - evidence
        quotient = torch.cat([quotient, torch.full_like(quotient[:, :1], math.log(TINY))], 1)
        total = quotient.logsumexp(1, keepdim=True)
        posterior = self.q_cumulative(quotient - total, t - 1) + step + total
        return posterior.clamp(LOG_FLOOR, 0)


def slow_reward(
    diffusion: SlowDiffusion,
    denoiser: SlowDenoiser,
    history: Tensor,
    uniforms: Callable[[int], Tensor],
    stride: int = 10,
) -> tuple[Tensor, Tensor]:
    """The published reward of each history (B, M): (B,) nats, and the sampled frame (B, N).

    ``uniforms(step)`` are (B, N, K+1), or (1, N, K+1) for noise common to all.
    """
    batch, tokens = len(history), denoiser.grid[0] * denoiser.grid[1]
    x_t = torch.full((batch, tokens), diffusion.num_codes, device=history.device)
    times = list(range(diffusion.num_timesteps - 1, -1, -stride))
    if times[-1] != 0:
        times.append(0)
    steps = []
    for index, time in enumerate(times):
        t_network = torch.full((batch,), time, device=history.device)
        log_p_start = denoiser.log_p_start(x_t, t_network, history)
        t = torch.full_like(t_network, time - (stride - 1) if time > stride - 1 else time)
        log_p = diffusion.q_posterior(log_p_start, x_t, t)
        steps.append((log_p, x_t, t))
        gumbel = -torch.log(-torch.log(uniforms(index).transpose(1, 2).expand_as(log_p) + TINY) + TINY)
        x_t = (log_p + gumbel).argmax(1)
    log_x_start = diffusion.one_hot(x_t)
    *before, (log_p, _, _) = steps
    reward = (log_x_start.exp() * log_p).sum((1, 2))
    for log_p, x_t_step, t in before:
        log_q = diffusion.q_posterior(log_x_start, x_t_step, t)
        reward = reward - (log_q.exp() * (log_q - log_p)).sum((1, 2))
    return reward, x_t
