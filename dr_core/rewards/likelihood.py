"""Rewards from how likely the observed frame is: one network call with every token masked, no sampling.

The log-likelihood alone loves stillness, because a frozen picture is easy to predict. The ratio to a model of
non-expert behaviour cancels what is easy for both: it is the density ratio that adversarial imitation estimates,
without the adversary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dr_core.diffusion.categorical import CategoricalDiffusion, Denoiser
from dr_core.rewards.entropy import Estimate


def one_pass_likelihood(
    diffusion: CategoricalDiffusion, denoiser: Denoiser, history: Tensor, observed: Tensor
) -> Estimate:
    """Σ_i log p(observed_i | all [MASK], history), tokens independent given the history.

    Args:
        history: (B, num_history·N) codes, oldest frame first.
        observed: (B, N) codes of the frame that followed.
    """
    value = _log_p(diffusion, denoiser, history, observed).float()
    return Estimate(value, torch.zeros_like(value), calls=1)


def ratio(
    diffusion: CategoricalDiffusion, expert: Denoiser, background: Denoiser, history: Tensor, observed: Tensor
) -> Estimate:
    """log p_expert(observed | history) - log p_background(observed | history), one call each."""
    log_expert = _log_p(diffusion, expert, history, observed)
    value = (log_expert - _log_p(diffusion, background, history, observed)).float()
    return Estimate(value, torch.zeros_like(value), calls=2)


def _log_p(diffusion: CategoricalDiffusion, denoiser: Denoiser, history: Tensor, observed: Tensor) -> Tensor:
    """(B,) float64: the sum is hundreds of nats, a ratio of two a few, so that float32 would show in the difference."""
    x_t = torch.full_like(observed, diffusion.mask_token)
    t = torch.full((len(observed),), diffusion.num_timesteps - 1, device=observed.device)
    log_p = denoiser(x_t, t, denoiser.condition(history)).float().log_softmax(-1)
    return log_p.gather(-1, observed.unsqueeze(-1)).squeeze(-1).double().sum(-1)
