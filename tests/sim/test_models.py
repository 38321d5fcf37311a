"""The trained models that come with the repository do what their names say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dr_core.agent.actor import ActingPolicy
from dr_core.rewards.model import RewardModel
from dr_sim.environments import default_render, make_environment
from dr_sim.experts import ScriptedExpert
from dr_sim.rendering import check_same_view

MODELS = Path(__file__).parents[2] / "models"
TASKS = sorted(path.name for path in MODELS.iterdir() if path.is_dir())
LIMIT_BYTES = 8_000_000


@pytest.mark.parametrize("task", TASKS)
def test_the_agent_succeeds(task: str) -> None:
    """In 6 episodes of seeds it was not trained on; one may fail."""
    policy, environment = ActingPolicy.load(MODELS / task / "agent"), make_environment(task)
    assert policy.config.task == task and policy.config.rate_hz == environment.rate_hz
    successes = 0
    for seed in range(2_000_000, 2_000_006):
        observation, done, success = environment.reset(seed), False, False
        while not done and not success:
            observation, _, done, info = environment.step(policy.act(observation["image"]))
            success = bool(info["success"])
        successes += success
    environment.close()
    assert successes >= 5


@pytest.mark.parametrize("task", TASKS)
def test_the_reward_prefers_the_expert(task: str) -> None:
    model, environment = RewardModel.load(MODELS / task / "reward"), make_environment(task)
    check_same_view(model, task, default_render(task), environment.rate_hz)
    expert, rng = ScriptedExpert(task), np.random.default_rng(0)
    policies: dict[str, Callable[[Any], NDArray[Any]]] = {
        "expert": lambda observation: expert(environment.expert_observation),
        "random": lambda observation: rng.uniform(-1.0, 1.0, environment.action_size),
    }
    means = {}
    for name, policy in policies.items():
        observation, frames = environment.reset(2_000_000), []
        for _ in range(25):  # shorter than the task: behind its end no expert was seen
            frames.append(observation["image"])
            observation, *_ = environment.step(policy(observation))
        reward = model.score(np.stack(frames)[None], task=task)
        means[name] = float(reward.value[0, 1:].mean())
    environment.close()
    assert means["expert"] > means["random"] + 1.0


def test_they_are_small_and_tell_how_they_were_made() -> None:
    readme = (MODELS / "README.md").read_text(encoding="utf-8")
    for manifest in MODELS.glob("*/*/manifest.json"):
        folder = manifest.parent
        assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT_BYTES
        assert f"`{folder.relative_to(MODELS).as_posix()}`" in readme
        assert json.loads(manifest.read_text(encoding="utf-8"))["render"]
