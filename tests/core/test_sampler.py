"""Which tokens the reverse process draws, and when, against theory and exact enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from dr_core.diffusion.categorical import CategoricalDiffusion
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.rewards import entropy
from tests.core import reference

K, N = 3, 2
TOY = ScheduleConfig(num_timesteps=6, keep_first=0.9, keep_last=0.05, mask_first=0.04, mask_last=0.7)


class Indifferent:
    """Every code is as likely as any other, whatever is asked."""

    num_history = 1

    def __init__(self, num_codes: int, num_tokens: int) -> None:
        self.num_codes, self.num_tokens = num_codes, num_tokens

    def condition(self, history: Tensor) -> None:
        return None

    def __call__(self, x_t: Tensor, t: Tensor, cache: None) -> Tensor:
        return torch.zeros(*x_t.shape, self.num_codes)


class Table:
    """Independent random logits for every time and every noised frame."""

    num_codes, num_tokens, num_history = K, N, 1

    def __init__(self) -> None:
        frames = (K + 1) ** N
        self.logits = 1.5 * torch.randn(TOY.num_timesteps, frames, N, K, generator=torch.Generator().manual_seed(4))

    def condition(self, history: Tensor) -> None:
        return None

    def __call__(self, x_t: Tensor, t: Tensor, cache: None) -> Tensor:
        return self.logits[t, (x_t * torch.tensor([K + 1, 1])).sum(-1)]


def draw(
    diffusion: CategoricalDiffusion, denoiser: Indifferent | Table, batch: int, stride: int, posterior: str
) -> entropy.Trajectory:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, denoiser.num_tokens, denoiser.num_codes + 1)
    return entropy.reverse(
        diffusion,
        denoiser,
        None,
        batch,
        stride=stride,
        posterior=posterior,
        uniforms=lambda step: torch.rand(shape, generator=generator),
    )


def masked_shares(posterior: str) -> tuple[dict[int, float], int]:
    """Share of masked tokens that the network sees at each of its times, and how many tokens were drawn."""
    diffusion = CategoricalDiffusion(mask_and_uniform(ScheduleConfig(), 16))
    trajectory = draw(diffusion, Indifferent(16, 64), 400, 10, posterior)
    times = [t for t, _, _ in diffusion.jumps(10, posterior)]
    shares = {t: float((x_t == 16).double().mean()) for t, (_, x_t, _, _) in zip(times, trajectory.steps, strict=True)}
    assert not (trajectory.x_start == 16).any()
    return shares, 400 * 64


def test_the_exact_posterior_clears_masks_as_the_noise_sets_them() -> None:
    shares, count = masked_shares("exact")
    masks = mask_and_uniform(ScheduleConfig(), 16).cum_mask
    for t, share in shares.items():
        want = masks[t] / masks[99]
        assert share == pytest.approx(want, abs=5 * (want * (1 - want) / count) ** 0.5 + 1e-9)


def test_the_published_posterior_leaves_two_thirds_of_the_masks_to_the_last_call() -> None:
    shares, _ = masked_shares("published")
    found = [shares[t] for t in (89, 69, 49, 29, 9, 0)]
    assert found == pytest.approx([0.99, 0.96, 0.93, 0.87, 0.75, 0.66], abs=0.012)


def exact_frames(
    denoiser: Table, jumps: list[tuple[int, int, int]], schedule_config: ScheduleConfig
) -> NDArray[np.float64]:
    """Probability of every frame over K+1 states after the last jump, summed over all paths."""
    schedule = mask_and_uniform(schedule_config, K)
    frames = reference.frames(K + 1, N)
    p_start = denoiser.logits.double().softmax(-1).numpy()
    at = np.zeros(len(frames))
    at[-1] = 1  # all masked
    for t_network, t, s in jumps:
        from_s, to_s = reference.jump_matrix(schedule, s, t), reference.jump_matrix(schedule, -1, s)
        following = np.zeros_like(at)
        for i, x_t in enumerate(frames):
            tokens = [reference.p_posterior(from_s, to_s, p_start[t_network, i, n], x_t[n]) for n in range(N)]
            following += at[i] * np.array([np.prod([tokens[n][x[n]] for n in range(N)]) for x in frames])
        at = following
    return at


@pytest.mark.parametrize("posterior", ["published", "exact"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_drawn_frames_follow_the_exact_distribution(posterior: str, stride: int) -> None:
    diffusion, denoiser, batch = CategoricalDiffusion(mask_and_uniform(TOY, K)), Table(), 40_000
    x_start = draw(diffusion, denoiser, batch, stride, posterior).x_start
    counts = np.bincount((x_start * torch.tensor([K + 1, 1])).sum(-1).numpy(), minlength=(K + 1) ** N)
    want = exact_frames(denoiser, diffusion.jumps(stride, posterior), TOY)
    possible = want > 1e-9
    assert counts[~possible].sum() == 0 and possible.sum() == K**N
    assert stats.chisquare(counts[possible], want[possible] / want[possible].sum() * batch).pvalue > 1e-3
