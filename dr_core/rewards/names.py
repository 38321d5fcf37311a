"""Names of the rewards that an agent can learn from; apart from what computes them, which takes long to import."""

from __future__ import annotations

from typing import Literal

RewardName = Literal[
    "sparse", "rnd", "amp", "viper", "viper_std", "default", "diffusion_reward", "likelihood", "genreward",
    "genreward_diffusion",
]  # fmt: skip
"""Explained in ``dr_core.rewards.online``."""

FROM_GOALS: tuple[RewardName, ...] = ("genreward", "genreward_diffusion")
"""Those that need a goal video."""
