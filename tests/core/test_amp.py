"""The adversarial reward: tells experts from the agent, its penalty is the slope it claims, and resumes exactly."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dr_core.errors import CheckpointError
from dr_core.rewards.amp import AdversarialReward, AMPConfig, squared_slope
from tests.core.moving_square import moving_square

SMALL = AMPConfig(image_size=16, hidden_size=16, learning_rate=1e-3, batch_size=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def two_kinds(count: int = 40, channels: int = 3) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Noise with a bright spot on the left, and with one on the right."""
    noise = np.random.default_rng(5).integers(0, 120, (2, count, 16, 16, channels), np.uint8)
    noise[0, :, 5:9, 2:6] = 250
    noise[1, :, 5:9, 10:14] = 250
    return noise[0], noise[1]


def halves(seed: int, *, expert: bool) -> NDArray[np.uint8]:
    """(8, 32, 32, 3): the end of an episode at half the size."""
    return moving_square(seed, expert=expert, length=12)[4:, ::2, ::2]


def test_frames_of_the_expert_come_to_be_worth_more_than_the_agents() -> None:
    """Also those that it has not seen; they differ in where the square is."""
    expert, agent = (
        np.concatenate([halves(seed, expert=is_expert) for seed in range(100 * is_expert, 100 * is_expert + 8)])
        for is_expert in (True, False)
    )
    amp, rng = AdversarialReward(1, AMPConfig(image_size=32, batch_size=16)), np.random.default_rng(0)
    seen = [amp.update(expert, agent, rng) for _ in range(40)]
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    assert seen[-1]["expert_judged"] > 0.2 > -0.2 > seen[-1]["agent_judged"]
    unseen, other = amp.score(halves(120, expert=True)), amp.score(halves(60, expert=False))
    assert unseen.shape == (8,) and unseen.dtype == np.float32
    assert unseen.min() > other.max()
    assert other.min() >= 0 and unseen.max() <= 1


def test_the_reward_is_the_formula_of_the_paper() -> None:
    amp = AdversarialReward(config=SMALL)
    frames = two_kinds(3)[0]
    images = torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    for scale in (1.0, 30.0):  # the second one leaves [-1, 3], where the reward is not zero
        with torch.no_grad():
            list(amp.network.parameters())[-2].mul_(scale)
            judged = amp.network(images).squeeze(1).numpy()
        np.testing.assert_allclose(amp.score(frames), np.maximum(0, 1 - 0.25 * (judged - 1) ** 2), atol=1e-5)


def test_the_penalty_is_the_squared_slope_and_so_is_its_gradient() -> None:
    """Against central differences, in every pixel and along random directions of the weights, in float64."""
    network = AdversarialReward(config=SMALL).network.double()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def slopes() -> torch.Tensor:
        inputs = images.clone().requires_grad_()
        return squared_slope(network(inputs), inputs)

    step = 1e-6
    nudges = step * torch.eye(3 * 16 * 16, dtype=torch.float64).view(-1, 3, 16, 16)
    with torch.no_grad():
        slow = [((network(image + nudges) - network(image - nudges)) / (2 * step)).square().sum() for image in images]
    np.testing.assert_allclose(slopes().detach().numpy(), torch.stack(slow).numpy(), rtol=1e-5)

    weights = list(network.parameters())
    gradients = torch.autograd.grad(slopes().mean(), weights, allow_unused=True)  # the last bias has no say
    draws = torch.Generator().manual_seed(1)
    for _ in range(3):
        directions = [torch.randn(w.shape, dtype=torch.float64, generator=draws) for w in weights]
        means = []
        for sign in (1, -1):
            for move in (sign * step, -sign * step):
                with torch.no_grad():
                    for weight, direction in zip(weights, directions, strict=True):
                        weight.add_(direction, alpha=move)
                if move == sign * step:
                    means.append(float(slopes().detach().mean()))
        exact = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
        assert (means[0] - means[1]) / (2 * step) == pytest.approx(exact, rel=1e-4)


def test_a_larger_penalty_makes_the_discriminator_flatter() -> None:
    slopes = []
    for penalty in (0.0, 10.0):
        amp, rng = AdversarialReward(0, AMPConfig(**{**vars(SMALL), "penalty": penalty})), np.random.default_rng(0)
        slopes.append([amp.update(*two_kinds(), rng)["squared_slope"] for _ in range(60)][-1])
    assert slopes[1] < 0.5 * slopes[0]


def test_resumed_from_its_state_it_goes_on_as_if_never_stopped() -> None:
    """Also through torch.save, read back without a pickle; and pairs of frames work as frames do."""
    config = AMPConfig(**{**vars(SMALL), "num_frames": 2})
    expert, agent = two_kinds(channels=6)

    def updates(amp: AdversarialReward, first: int, last: int) -> list[dict[str, float]]:
        return [amp.update(expert, agent, np.random.default_rng(step)) for step in range(first, last)]

    whole = AdversarialReward(3, config)
    losses = updates(whole, 0, 12)

    stopped = AdversarialReward(3, config)
    assert updates(stopped, 0, 5) == losses[:5]
    state = stopped.state()
    file = io.BytesIO()
    torch.save(state, file)
    updates(stopped, 5, 9)  # must not reach into the copy
    for kept in (state, torch.load(io.BytesIO(file.getvalue()), weights_only=True)):
        resumed = AdversarialReward(4, config)
        assert not np.array_equal(resumed.score(agent), whole.score(agent))
        resumed.restore(kept)
        assert updates(resumed, 5, 12) == losses[5:]
        np.testing.assert_array_equal(resumed.score(agent), whole.score(agent))
    assert updates(AdversarialReward(4, config), 0, 1) != losses[:1], "the seed counts"


def test_a_foreign_state_and_wrong_frames_are_refused() -> None:
    amp = AdversarialReward(config=SMALL)
    other = AdversarialReward(0, AMPConfig(**{**vars(SMALL), "hidden_size": 8})).state()
    for state in (other, {}, {**amp.state(), "optimizer": {"state": {}, "param_groups": []}}):
        with pytest.raises(CheckpointError):
            amp.restore(state)
    for frames in (np.zeros((2, 16, 16, 6), np.uint8), np.zeros((2, 16, 16, 3), np.float32)):
        with pytest.raises(ValueError, match="frames are uint8"):
            amp.score(frames)  # type: ignore[arg-type]
