"""DrQ-v2: an update against the obvious one (benchmarks/agent_speed.py), learning against closed forms, resumption."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dr_core.agent.actor import ActorConfig, NetworkConfig
from dr_core.agent.drqv2 import (
    INSIDE,
    AgentConfig,
    DormantConfig,
    DrQV2,
    TwinLinear,
    dormant_ratio,
    draw_weights,
    perturb,
    random_shift,
    scaled,
)
from dr_core.data.images import ImageRule
from dr_core.errors import CheckpointError, ConfigError

PATH = Path(__file__).parents[2] / "benchmarks" / "agent_speed.py"
NETWORK = NetworkConfig(feature_size=8, hidden_size=32)
SMALL = ActorConfig(action_size=3, task="none", rate_hz=10.0, image=ImageRule(20), network=NETWORK)
PLAIN = AgentConfig(shift=2, learning_rate=1e-3)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def slow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agent_speed", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["agent_speed"] = module
    spec.loader.exec_module(module)
    return module


def same(left: Any, right: Any) -> bool:
    """Nested states, to the last bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, Tensor) else left == right


def test_a_random_shift_is_a_crop_of_the_padded_picture(slow: ModuleType) -> None:
    draws = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (81, 6, 20, 20), dtype=torch.uint8, generator=draws)
    shifts = torch.cartesian_prod(torch.arange(9), torch.arange(9))  # every one there is
    found = random_shift(pictures, shifts, 4)
    padded = np.pad(pictures.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="edge")
    for i, (row, column) in enumerate(shifts.tolist()):
        np.testing.assert_array_equal(found[i], padded[i, :, row : row + 20, column : column + 20])
    torch.testing.assert_close(found.float(), slow.slow_shift(pictures, shifts, 4), rtol=0, atol=0.01)  # as published
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(random_shift(pictures, shifts, 0), pictures)


def test_updates_are_those_of_the_slow_version(slow: ModuleType) -> None:
    agent, reference = DrQV2(SMALL, PLAIN, 0), slow.SlowDrQV2(SMALL, PLAIN)
    reference.take_weights(agent)
    batch, rewards = slow.transitions(SMALL, 32)
    draws = torch.Generator()
    for index in range(3):
        before = [weight.clone() for weight in agent.target.parameters()]
        draws.set_state(agent.state()["generators"]["update"])
        shifts = torch.randint(0, 5, (2, 32, 2), generator=draws)
        noise = torch.randn((2, 32, 3), generator=draws)
        told = agent.update(batch, rewards, 1_000_000, metrics=True)
        assert told["sigma"] == pytest.approx(0.7)
        expected = reference.update(batch, rewards, 0.7, (shifts, noise))
        for name, value in expected.items():
            assert told[name] == pytest.approx(float(value), rel=1e-3 if index else 1e-5)
        for old, new, live in zip(before, agent.target.parameters(), agent.critic.parameters(), strict=True):
            torch.testing.assert_close(new, 0.99 * old + 0.01 * live)
        if index == 0:  # later ones differ by what Adam makes of gradients that are nearly 0
            pairs = [(agent.actor.encoder, reference.encoder), (agent.actor.policy, reference.actor["policy"])]
            for ours, theirs in [*pairs, (agent.actor.trunk, reference.actor["trunk"])]:
                for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
                    torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-6)
    assert agent.update(batch, rewards, 0) == {}


def test_the_critics_find_known_values_and_the_actor_the_best_action(slow: ModuleType) -> None:
    # Two states that follow each other, dark and bright. Reward b_s - (a - a_s)², so with V the value of acting
    # near a_s with noise of deviation 0.1: Q(s, a) = b_s - (a - a_s)² + γ V_s', V_s = b_s - 0.01 + γ V_s'.
    bonus, best, gamma = torch.tensor([0.5, -0.5]), torch.tensor([0.6, -0.4]), 0.5
    alone = bonus - 0.01
    value = (alone + gamma * alone.flip(0)) / (1 - gamma**2)
    shape = replace(SMALL, action_size=1, image=ImageRule(16), network=replace(NETWORK, hidden_size=64))
    config = AgentConfig(shift=1, learning_rate=2e-3, tau=0.05, sigma_start=0.1, sigma_end=0.1)
    agent = DrQV2(shape, config, 1)
    look = torch.tensor([40, 200], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 16, 16)
    draws = torch.Generator().manual_seed(0)
    for step in range(400):
        states = torch.randint(0, 2, (32,), generator=draws)
        actions = 2.0 * torch.rand(32, 1, generator=draws) - 1.0
        rewards = bonus[states] - (actions[:, 0] - best[states]).square()
        agent.update(slow.Batch(look[states], actions, torch.full((32,), gamma), look[1 - states]), rewards, step)

    chosen = agent.act(look.permute(0, 2, 3, 1).numpy(), 0, explore=False)[:, 0]
    np.testing.assert_allclose(chosen, best, atol=0.1)
    with torch.no_grad():
        features = agent.actor.encoder(scaled(look))
        for action in (-0.8, -0.2, 0.4, 0.9):
            found = agent.critic(features, torch.full((2, 1), action))  # (critic, state)
            wanted = bonus - (action - best).square() + gamma * value.flip(0)
            np.testing.assert_allclose(found, wanted.expand(2, 2), atol=0.12)


def test_the_actors_loss_leaves_the_encoder_alone(slow: ModuleType) -> None:
    agent = DrQV2(SMALL, replace(PLAIN, shift=0), 0)
    batch, _ = slow.transitions(SMALL, 16)
    with torch.no_grad():
        for weight in agent.critic.twins.parameters():
            weight[1] = weight[0]
        # What the critics say already: nothing is left for them to learn.
        rewards = agent.critic(
            agent.actor.encoder(scaled(random_shift(batch.frames, torch.zeros(0), 0))), batch.actions
        )
    before = agent.state()["networks"]
    agent.update(replace(batch, discounts=torch.zeros(16)), rewards[0], 0)
    after = agent.state()["networks"]
    assert same(before["critic"], after["critic"])
    moved = {name.partition(".")[0] for name in after["actor"] if not same(before["actor"][name], after["actor"][name])}
    assert moved == {"trunk", "policy"}


def test_sigma_falls_linearly_and_acting_explores_at_first() -> None:
    agent = DrQV2(SMALL, replace(PLAIN, sigma_steps=1000, explore_steps=10), 3)
    assert [agent.sigma(step) for step in (0, 500, 1000, 5000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    frames = np.random.default_rng(0).integers(0, 256, (2000, 20, 20, 3), dtype=np.uint8)
    uniform = agent.act(frames, 9, explore=True)
    assert uniform.shape == (2000, 3) and uniform.dtype == np.float32
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [0.0, 1 / 3], atol=0.02)
    held = DrQV2(SMALL, replace(PLAIN, explore_steps=100, explore_hold=3), 3)
    actions = [held.act(frames[:2], step, explore=True) for step in range(0, 12, 2)]  # two environments
    for i, j in ((0, 1), (1, 2), (3, 4)):
        np.testing.assert_array_equal(actions[i], actions[j])
    assert not np.array_equal(actions[2], actions[3]) and not np.array_equal(actions[0][0], actions[0][1])
    first, second, third = (held.act(frames[:2], step, explore=True) for step in (600, 602, 606))
    np.testing.assert_allclose(first, second, atol=0.02)  # the noise too, while sigma falls
    assert np.abs(second - third).max() > 0.1
    mean = agent.act(frames, 1000, explore=False)
    np.testing.assert_array_equal(mean, agent.act(frames, 0, explore=False))
    noise = agent.act(frames, 1000, explore=True) - mean
    assert np.abs(mean).max() < 0.6, "the noise below is not cut"
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.0, 0.1], atol=0.005)
    assert np.abs(agent.act(frames, 10, explore=True)).max() == pytest.approx(INSIDE)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_restored_agent_goes_on_to_the_last_bit(slow: ModuleType, tmp_path: Path, precision: Any) -> None:
    config = replace(PLAIN, precision=precision, drm=DormantConfig(perturb_every=6))
    agent, other = DrQV2(SMALL, config, 0), DrQV2(SMALL, config, 1)
    batch, rewards = slow.transitions(SMALL, 16)
    frames = batch.frames.permute(0, 2, 3, 1).numpy()
    for step in range(0, 8, 2):  # past a perturbation
        agent.update(batch, rewards, step)
        agent.act(frames, 5000, explore=True)
    torch.save(agent.state(), tmp_path / "state.pt")
    other.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(8, 16, 2):  # past another one
        assert agent.update(batch, rewards, step, metrics=True) == other.update(batch, rewards, step, metrics=True)
        for at in (0, 5000):
            np.testing.assert_array_equal(agent.act(frames, at, explore=True), other.act(frames, at, explore=True))
    assert same(agent.state(), other.state())
    assert not same(agent.state(), torch.load(tmp_path / "state.pt", weights_only=True))
    with pytest.raises(CheckpointError, match="these settings"):
        DrQV2(replace(SMALL, network=replace(NETWORK, hidden_size=16)), config, 0).restore(agent.state())


def test_bfloat16_changes_the_losses_little(slow: ModuleType) -> None:
    batch, rewards = slow.transitions(SMALL, 64)
    exact, rounded = (
        DrQV2(SMALL, replace(PLAIN, precision=precision), 0).update(batch, rewards, 0, metrics=True)
        for precision in ("float32", "bfloat16")
    )
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.05, abs=0.01)


def test_dormant_neurons_are_counted() -> None:
    agent = DrQV2(SMALL, PLAIN, 0)
    features = torch.rand(16, agent.actor.encoder.size, generator=torch.Generator().manual_seed(0))
    assert dormant_ratio(agent.actor, features, 0.0) == 0.0
    first, second, _ = (layer for layer in agent.actor.policy if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight[:10] = 0.0  # 10 of 32 are silent
        second.weight[:] = 0.0
        second.bias[:] = 1.0
        second.bias[:7] = 0.01  # 7 of 32 whisper
        second.bias[7] = -1.0  # loud, whatever its sign
    assert float(dormant_ratio(agent.actor, features, 0.025)) == pytest.approx(17 / (8 + 32 + 32 + 3))
    assert float(dormant_ratio(agent.actor, features, 0.001)) == pytest.approx(10 / 75)


def test_a_perturbation_mixes_fresh_weights_into_linear_layers() -> None:
    agent = DrQV2(SMALL, PLAIN, 0)
    for network in (agent.actor, agent.critic):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        perturb(network, torch.tensor(0.75), torch.Generator().manual_seed(5))
        mixed = {name: value.clone() for name, value in network.state_dict().items()}
        draw_weights(network, torch.Generator().manual_seed(5))
        for name, fresh in network.state_dict().items():
            untouched = "convolutions" in name or name.startswith("trunk.1")
            wanted = before[name] if untouched else 0.75 * before[name] + 0.25 * fresh
            torch.testing.assert_close(mixed[name], wanted)
    hidden = agent.critic.twins[2]
    assert isinstance(hidden, TwinLinear)
    for weight in hidden.weight.detach():
        torch.testing.assert_close(weight @ weight.T, torch.eye(32))


def test_sleeping_agents_explore_more_and_perturbations_come_when_due(slow: ModuleType) -> None:
    drm = DormantConfig(threshold=0.0, perturb_every=100)
    agent = DrQV2(SMALL, replace(PLAIN, sigma_steps=1000, drm=drm), 0)
    assert float(agent.sigma(10**6)) == pytest.approx(1 / (1 + math.exp(-(1.0 - 0.2) / 0.1))), "asleep at first"
    batch, rewards = slow.transitions(SMALL, 8)
    told = agent.update(batch, rewards, 50, metrics=True)  # with this threshold nothing sleeps: it wakes at step 50
    assert told["dormant_ratio"] == 0.0
    assert told["sigma"] == 1.0
    assert float(agent.sigma(550)) == pytest.approx(0.55)
    assert float(agent.sigma(5000)) == pytest.approx(max(0.1, 1 / (1 + math.exp(2.0))))

    def updates_since_perturbation(step: int) -> float:
        agent.update(batch, rewards, step)
        return float(next(iter(agent.state()["optimizers"]["actor"]["state"].values()))["step"])

    assert [updates_since_perturbation(step) for step in (60, 99, 103, 150, 420)] == [2, 3, 1, 2, 1]


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cpu or cuda"):
        DrQV2(SMALL, PLAIN, 0, "meta")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        DrQV2(SMALL, replace(PLAIN, compile=True), 0)
    for wrong in ({"tau": 0.0}, {"sigma_end": 2.0}, {"precision": "float16"}, {"batch_size": 0}, {"shift": -1}):
        with pytest.raises(ValueError):
            replace(PLAIN, **wrong)
    with pytest.raises(ValueError):
        DormantConfig(smallest_factor=0.95)
