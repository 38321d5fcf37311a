"""Names of the rewards that an agent can learn from; apart from what computes them, which takes long to import."""

from __future__ import annotations

from typing import Literal

RewardName = Literal["sparse", "rnd", "amp", "viper", "viper_std", "default", "diffusion_reward", "likelihood"]
"""Explained in ``dr_core.rewards.online``."""
