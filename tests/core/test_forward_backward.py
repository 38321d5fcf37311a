"""The forward–backward representation: its loss against a slow one, what it learns against the truth, and resuming."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dr_core.errors import CheckpointError
from dr_core.rewards.genreward.forward_backward import (
    FBConfig,
    ForwardBackward,
    Steps,
    orthonormality_loss,
    temporal_loss,
)

Array = NDArray[np.float64]
STATES, ACTIONS, DISCOUNT = 8, 2, 0.9
SMALL = FBConfig(
    size=16, hidden_size=64, learning_rate=1e-3, discount=DISCOUNT, tau=0.02, batch_size=128
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Chain:
    """A Markov chain, its policy, and a long walk through it; states and actions are unit vectors."""

    def __init__(self, length: int = 20_000) -> None:
        rng = np.random.default_rng(0)
        self.moves = rng.dirichlet(np.full(STATES, 0.3), size=(STATES, ACTIONS))  # (s, a, s')
        self.policy = rng.dirichlet(np.ones(ACTIONS), size=STATES)
        self.states, self.actions = np.zeros(length + 1, int), np.zeros(length + 1, int)
        for t in range(length + 1):
            self.actions[t] = rng.choice(ACTIONS, p=self.policy[self.states[t]])
            if t < length:
                self.states[t + 1] = rng.choice(STATES, p=self.moves[self.states[t], self.actions[t]])
        self.rho = np.bincount(self.states[1:], minlength=STATES) / length
        self.state_features = np.eye(STATES, dtype=np.float32)
        self.action_vectors = np.eye(ACTIONS, dtype=np.float32)

    def successor_measure(self) -> Array:
        """M (s, a, s⁺), summed step by step until nothing is left."""
        measure, reached, weight = np.zeros_like(self.moves), self.moves, 1.0
        step = np.einsum("sa,sat->st", self.policy, self.moves)
        while weight > 1e-9:
            measure += weight * reached
            reached, weight = reached @ step, weight * DISCOUNT
        return measure

    def draw(self, rng: np.random.Generator, count: int) -> Steps:
        t = rng.integers(0, len(self.states) - 1, count)
        x, a = self.state_features[self.states], self.action_vectors[self.actions]
        return Steps(x[t], a[t], x[t + 1], a[t + 1])

    def learned(self, fb: ForwardBackward) -> Array:
        """The smaller FᵀB of all (s, a, s⁺)."""
        networks = fb.networks
        with torch.no_grad():
            x = networks.standardised(torch.from_numpy(self.state_features))
            every = torch.from_numpy(self.action_vectors).repeat(STATES, 1)
            forward = networks.F(x.repeat_interleave(ACTIONS, 0), every, fb.z())
            values = (forward @ networks.B(x).T).amin(0)
        return values.double().numpy().reshape(STATES, ACTIONS, STATES)


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


def made(chain: Chain, config: FBConfig = SMALL, seed: int = 0, goal: int = 3) -> ForwardBackward:
    fb = ForwardBackward(chain.state_features[goal], ACTIONS, seed, config)
    fb.standardise(chain.state_features[chain.states[:1000]])
    return fb


@pytest.mark.parametrize("z", ["goal", "zero"])
def test_it_learns_how_often_a_state_will_be_met(chain: Chain, z: str) -> None:
    """M / ρ, of which γ-discounted visits and those of the state that one starts in are different things."""
    fb, rng = made(chain, replace(SMALL, z=z)), np.random.default_rng(1)  # type: ignore[arg-type]
    for _ in range(2000):
        fb.update(chain.draw(rng, 128))
    truth, learned = chain.successor_measure(), chain.learned(fb)
    assert truth.sum(-1) == pytest.approx(1.0 / (1.0 - DISCOUNT), rel=1e-6)
    density = float(np.corrcoef(learned.ravel(), (truth / chain.rho).ravel())[0, 1])
    visits = float(np.corrcoef((learned * chain.rho).ravel(), truth.ravel())[0, 1])
    goal = float(np.corrcoef(learned[..., 3].ravel(), truth[..., 3].ravel())[0, 1])
    print(f"z {z}: correlation with M / rho {density:.4f}, with M {visits:.4f}, with M of the goal {goal:.4f}")
    assert min(density, visits, goal) >= 0.95
    assert (learned * chain.rho).sum(-1).mean() == pytest.approx(1.0 / (1.0 - DISCOUNT), rel=0.15)
    counted_from_s = (truth - chain.moves) / DISCOUNT  # what M would be if its first state were the one after s'
    assert goal > float(np.corrcoef(learned[..., 3].ravel(), counted_from_s[..., 3].ravel())[0, 1])
    score = fb.score(
        np.repeat(chain.state_features, ACTIONS, 0), np.tile(chain.action_vectors, (STATES, 1))
    )  # fmt: skip
    np.testing.assert_allclose(score, learned[..., 3].ravel(), rtol=1e-5)


def test_the_loss_is_the_formula_term_by_term() -> None:
    """Against loops over pairs of rows, in float64."""
    rng, (n, d) = np.random.default_rng(2), (5, 3)
    forward, target_forward = rng.normal(size=(2, 2, n, d))
    backward, target_backward = rng.normal(size=(2, n, d))
    slow = 0.0
    for twin in range(2):
        for i, j in itertools.permutations(range(n), 2):
            wanted = DISCOUNT * min(target_forward[k, i] @ target_backward[j] for k in range(2))
            slow += (forward[twin, i] @ backward[j] - wanted) ** 2 / (n * (n - 1))
        slow -= 2.0 * sum(forward[twin, i] @ backward[i] for i in range(n)) / n
    f, b, tf, tb = (torch.from_numpy(x) for x in (forward, backward, target_forward, target_backward))
    fast = temporal_loss(f @ b.T, DISCOUNT * (tf @ tb.T).amin(0))
    assert float(fast) == pytest.approx(slow, rel=1e-12)
    slow = sum((backward[i] @ backward[j]) ** 2 for i, j in itertools.permutations(range(n), 2)) / (n * (n - 1))
    slow += d - 2.0 * sum(row @ row for row in backward) / n
    assert float(orthonormality_loss(b)) == pytest.approx(slow, rel=1e-12)


def test_the_estimate_of_orthonormality_is_right_on_average_and_that_of_the_batch_is_not() -> None:
    """All pairs from a population of 6 rows, drawn with replacement: the mean over them is the population's value."""
    rows = np.random.default_rng(3).normal(size=(6, 4)) * 1.5
    truth = float(np.square(rows.T @ rows / 6 - np.eye(4)).sum())
    ours, naive = [], []
    for pair in itertools.product(range(6), repeat=2):
        batch = rows[list(pair)]
        ours.append(float(orthonormality_loss(torch.from_numpy(batch))))
        naive.append(float(np.square(batch.T @ batch / 2 - np.eye(4)).sum()))
    assert np.mean(ours) == pytest.approx(truth, rel=1e-9)
    assert np.mean(naive) > truth + 1.0


def test_an_update_descends_that_loss_and_leaves_the_targets_behind(chain: Chain) -> None:
    """The gradient is that of the two terms on the target networks' smaller product; targets follow by tau."""
    fb = made(chain)
    fb.update(chain.draw(np.random.default_rng(0), 32))  # so that the targets differ
    steps = chain.draw(np.random.default_rng(1), 32)
    networks, targets, z = fb.networks, fb.targets, fb.z()
    s, a, t, b = (torch.from_numpy(part) for part in steps)
    s, t = (s - networks.mean) / networks.scale, (t - networks.mean) / networks.scale
    with torch.no_grad():
        wanted = DISCOUNT * torch.minimum(*(targets.F(t, b, z) @ targets.B(t).T))
    loss = temporal_loss(networks.F(s, a, z) @ networks.B(t).T, wanted) + orthonormality_loss(networks.B(t))
    expected = torch.autograd.grad(loss, list(networks.parameters()))
    before = [p.detach().clone() for p in targets.parameters()]
    told = fb.update(steps, metrics=True)
    assert told["fb_loss"] + told["fb_orthonormality"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for parameter, gradient in zip(networks.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    for old, target, live in zip(before, targets.parameters(), networks.parameters(), strict=True):
        torch.testing.assert_close(target, old + 0.02 * (live - old))


def test_the_reward_is_the_smaller_of_the_twins_and_without_a_z_the_goal_is_not_told(chain: Chain) -> None:
    fb, zero = made(chain), made(chain, replace(SMALL, z="zero"))
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(64, STATES)).astype(np.float32), rng.normal(size=(64, ACTIONS)).astype(np.float32)
    networks = fb.networks
    with torch.no_grad():
        rows = networks.standardised(torch.from_numpy(x))
        goal = networks.B(networks.standardised(torch.from_numpy(chain.state_features[3:4])))[0]
        twins = 10.0 * networks.F(rows, torch.from_numpy(a), fb.z()) @ goal  # (2, N)
    assert (twins[0] > twins[1]).any() and (twins[0] < twins[1]).any()
    np.testing.assert_allclose(10.0 * fb.score(x, a), np.minimum(*twins.numpy()), rtol=1e-4)
    assert float(fb.z().norm()) == pytest.approx(4.0, rel=1e-5), "of length √d"
    assert not zero.z().any()
    assert not np.allclose(zero.score(x, a), fb.score(x, a))


def test_standardising_leaves_what_hardly_changes_alone(chain: Chain) -> None:
    features = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) * [1.0, 4.0, 1e-4] + [5.0, 0.0, 1.0]
    fb = ForwardBackward(np.zeros(3, np.float32), ACTIONS, config=SMALL)
    with pytest.raises(ValueError, match="standardise"):
        fb.score(np.zeros((1, 3), np.float32), np.zeros((1, ACTIONS), np.float32))
    fb.standardise(features.astype(np.float32))
    out = fb.networks.standardised(torch.from_numpy(features.astype(np.float32)))
    assert float(out.square().mean()) == pytest.approx(1.0, rel=1e-3)
    assert float(out[:, 2].abs().max()) < 1e-2 and float(out.mean(0).abs().max()) < 1e-4


def test_resumed_from_its_state_it_goes_on_as_if_never_stopped(chain: Chain) -> None:
    def updates(fb: ForwardBackward, first: int, last: int) -> list[dict[str, float]]:
        return [fb.update(chain.draw(np.random.default_rng(k), 32), metrics=True) for k in range(first, last)]

    x, a = chain.state_features, chain.action_vectors[np.ones(STATES, int)]
    whole = made(chain, seed=3)
    losses = updates(whole, 0, 12)
    stopped = made(chain, seed=3)
    assert updates(stopped, 0, 5) == losses[:5]
    state, file = stopped.state(), io.BytesIO()
    torch.save(state, file)
    updates(stopped, 5, 9)  # must not reach into the copy
    for kept in (state, torch.load(io.BytesIO(file.getvalue()), weights_only=True)):
        resumed = ForwardBackward(chain.state_features[3], ACTIONS, 4, SMALL)
        resumed.restore(kept)
        assert updates(resumed, 5, 12) == losses[5:]
        np.testing.assert_array_equal(resumed.score(x, a), whole.score(x, a))
    assert updates(made(chain, seed=4), 0, 1) != losses[:1], "the seed counts"
    other = ForwardBackward(chain.state_features[3], ACTIONS, 0, replace(SMALL, hidden_size=8)).state()
    for foreign in (other, {}, {**state, "optimizer": {"state": {}, "param_groups": []}}):
        with pytest.raises(CheckpointError):
            made(chain).restore(foreign)


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"batch_size": 1}, {"discount": 1.0}, {"tau": 0.0}, {"orthonormality": -1.0}, {"z": "one"}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FBConfig(**wrong)  # type: ignore[arg-type]
