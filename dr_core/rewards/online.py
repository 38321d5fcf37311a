"""The rewards that an agent can learn from, by name, with one interface: a number for each transition of an episode.

    sparse            success only
    rnd               success and exploration
    amp               an adversary that tells the agent's frames from the experts'
    viper, viper_std  log-likelihood of an autoregressive video model, raw and standardised (arXiv 2305.14343)
    default           the default of a reward model
    diffusion_reward  its published entropy bound (arXiv 2312.14134)
    likelihood        its likelihood of the observed frame
    genreward         likeness to a goal video, and how often its goal frame will be met (arXiv 2512.00961)
    genreward_diffusion   both, and the default of a reward model

Every name but `sparse` is added up with exploration and success by :func:`dr_core.rewards.combine.combine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import ConfigError
from dr_core.rewards.combine import PUBLISHED_ALPHA
from dr_core.rewards.genreward.reward import GenRewardConfig
from dr_core.rewards.names import FROM_GOALS, RewardName

ESTIMATORS = {
    "default": None,
    "diffusion_reward": "paper",
    "likelihood": "likelihood",
    "genreward_diffusion": None,
}
"""Of the rewards that come from a reward model."""

EpisodeReward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Frames (B, T + 1, H, W, 3) of whole episodes → rewards (B, T), entry k for the step from frame k to k + 1."""


@dataclass(frozen=True)
class RewardConfig:
    """Which reward the agent learns from."""

    name: RewardName = "default"
    alpha: float = PUBLISHED_ALPHA
    """Share of exploration; without effect on `sparse`, all of the dense reward for `rnd`."""
    video_weight: float = 1.0
    """What the video term is multiplied with, beside 1 - alpha; not the likeness to a goal video, see ``goal``."""
    success_weight: float = 1.0
    """What a successful simulator step adds."""
    centred: bool = True
    """Subtract the mean video term of the first, random episodes: values then start near their true size, instead of
    falling for long by the same amount everywhere (after Naik et al., arXiv 2405.09999). The same with the likeness to
    a goal video; of the forward–backward term, which changes while it is learned, the mean over each batch."""
    until_success: bool = True
    """The video term of the steps behind an episode's first success is 0, the experts' mean: their videos end there,
    so that a video model knows nothing of what follows. No effect on `viper`, whose scale has another zero, and on
    what a goal video is worth."""
    goal: GenRewardConfig = field(default_factory=GenRewardConfig)
    """Of `genreward` and `genreward_diffusion`: what a goal video is worth."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha = {self.alpha}: from 0 to 1")

    @property
    def from_goal(self) -> bool:
        """Whether it needs a goal video."""
        return self.name in FROM_GOALS

    @property
    def exploration(self) -> float:
        """The share of exploration that this reward really has."""
        return {"sparse": 0.0, "rnd": 1.0}.get(self.name, self.alpha)


def video_reward(
    name: RewardName, task: str, *, model: Path | None = None, viper: Path | None = None, device: str = "cpu"
) -> EpisodeReward | None:
    """What scores whole episodes; None for rewards without a video model.

    Args:
        name: which reward.
        task: whose statistics standardise it; those of all training tasks where it is none of them.
        model: directory of a reward model, for those that come from one; VIPER takes its codec.
        viper: directory of a VIPER model.

    Raises:
        ConfigError: the model it needs is not given.
        CheckpointError: a model that cannot be used.
    """
    if name in ("sparse", "rnd", "amp", "genreward"):
        return None
    from dr_core.rewards.model import RewardModel

    scorer = RewardModel.load(_given(model, name, "--model"), device)
    if name in ("viper", "viper_std"):
        from dr_core.rewards.viper import ViperModel

        other = ViperModel.load(_given(viper, name, "--viper"), scorer, device)
        return other.episode_reward(task, standardise=name == "viper_std")
    known = task if task in scorer.tasks else None

    def score(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        reward = scorer.score(frames, task=known, estimator=ESTIMATORS[name])
        # A transition without a number counts as an average one of an expert.
        return np.where(reward.valid, reward.value, 0.0)[:, 1:].astype(np.float32)

    return score


def _given(path: Path | None, name: str, option: str) -> Path:
    if path is None:
        raise ConfigError(
            f"reward {name}", expected="the directory of its model", found="none", next_step=f"give it with {option}"
        )
    return path
