"""Every reward by its name: what it gives for whole episodes, and that an agent trains from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from dr_core.errors import ConfigError
from dr_core.presets import PRESETS
from dr_core.rewards.model import RewardModel
from dr_core.rewards.names import FROM_GOALS, RewardName
from dr_core.rewards.online import RewardConfig, video_reward
from dr_core.rewards.train import train_reward
from dr_core.rewards.viper import PRESETS as VIPER_PRESETS
from dr_core.rewards.viper import ViperModel
from dr_core.training import read_metrics
from tests.core.moving_square import moving_square, record_set
from tests.core.test_loop import CONFIG, EPISODE, GOAL_CONFIG, Run

NEED_A_MODEL = ("default", "diffusion_reward", "likelihood", "viper", "viper_std", "genreward_diffusion")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reward model and a VIPER model, trained for seconds."""
    root = tmp_path_factory.mktemp("models")
    torch.set_num_threads(1)
    expert, other = record_set(root, episodes=2, length=8)
    preset = PRESETS["tiny"]()
    config = replace(preset, model=replace(preset.model, fsq=replace(preset.model.fsq, levels=(4, 4, 4))))
    model = train_reward(config, [expert], [other], root / "reward", resume=False)
    viper = ViperModel.train(RewardModel.load(model), [expert], root / "viper", VIPER_PRESETS["tiny"])
    return {"model": model, "viper": viper}


def test_rewards_of_a_reward_model_are_its_own(models: dict[str, Path]) -> None:
    frames = np.stack([moving_square(seed, expert=True, length=EPISODE + 1) for seed in range(2)])
    model = RewardModel.load(models["model"])
    for name, estimator in (("default", None), ("diffusion_reward", "paper"), ("likelihood", "likelihood")):
        score = video_reward(name, "push", model=models["model"])  # type: ignore[arg-type]
        assert score is not None
        given = model.score(frames, task="push", estimator=estimator)
        np.testing.assert_array_equal(score(frames), np.where(given.valid, given.value, 0.0)[:, 1:])


@pytest.mark.parametrize("name", get_args(RewardName))
def test_an_agent_trains_from_each(tmp_path: Path, models: dict[str, Path], name: RewardName) -> None:
    experts = np.concatenate([moving_square(seed, expert=True) for seed in range(2)])
    score = video_reward(name, "push", model=models["model"], viper=models["viper"])
    assert (score is not None) == (name in NEED_A_MODEL)
    config = replace(CONFIG, frames=2 * EPISODE * 3, reward=RewardConfig(name, alpha=0.5, goal=GOAL_CONFIG))
    Run(tmp_path / "run", config, video=score, experts=experts)()
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line["loss"] > 0.0
    if name != "amp":  # whose reward of frames that are nothing like the experts' is 0
        assert (line["term_video"] != 0.0) == (name in NEED_A_MODEL)
    assert (line["term_exploration"] != 0.0) == (name != "sparse")
    assert ("term_fb" in line) == (name in FROM_GOALS)
    if name in FROM_GOALS:
        assert line["fb_spread"] > 0.0 and line["term_goal_video"] != 0.0


@pytest.mark.parametrize("name", NEED_A_MODEL)
def test_a_reward_without_its_model_is_refused(name: RewardName, models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="--model"):
        video_reward(name, "push")
    if name.startswith("viper"):
        with pytest.raises(ConfigError, match="--viper"):
            video_reward(name, "push", model=models["model"])
