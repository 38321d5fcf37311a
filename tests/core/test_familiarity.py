"""How familiar frames look: the closed form on a toy alphabet, and what it must notice."""

from __future__ import annotations

import math

import numpy as np
import torch

from dr_core.rewards.familiarity import MARGIN_NATS, PRIOR_FRAMES, Familiarity

K, N = 8, 4


def episodes(favourite: int, seed: int, count: int = 6) -> list[np.ndarray]:
    """Episodes of a scene in which each position shows its favourite code four times out of five."""
    rng = np.random.default_rng(seed)
    return [
        np.where(rng.random((30, N)) < 0.8, (favourite + np.arange(N)) % K, rng.integers(0, K, (30, N)))
        for _ in range(count)
    ]


def fitted() -> Familiarity:
    return Familiarity(2, K, N).fit({"a": episodes(0, 1), "b": episodes(3, 2)})


def tokens(favourite: int, seed: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(episodes(favourite, seed, 20)))


def test_frequencies_are_counts_pulled_towards_all_tasks() -> None:
    own = {"a": [np.array([[0, 1, 2, 3], [0, 1, 2, 4]])], "b": [np.array([[5, 1, 2, 3]])]}
    model = Familiarity(2, K, N).fit(own)
    # Position 0: code 0 twice in a, code 5 once in b, half a count for each of 8 codes.
    prior = PRIOR_FRAMES * 2.5 / (3 + 0.5 * K)
    assert math.isclose(model.log_p[0, 0, 0].item(), math.log((2 + prior) / (2 + PRIOR_FRAMES)), rel_tol=1e-6)
    assert torch.allclose(model.log_p.exp().sum(-1), torch.ones(2, N), atol=1e-5)


def test_new_frames_of_the_scene_are_familiar_and_others_are_not() -> None:
    model = fitted()
    own, other, foreign = model.ood(tokens(0), 0), model.ood(tokens(3), 0), model.ood(tokens(5), None)
    assert abs(own.median()) < 0.25 and (own > 1).float().mean() < 0.02
    assert (other > 0.5).float().mean() > 0.9
    assert foreign.median() > 0.5
    # Without a task a frame is compared with the task it resembles most.
    assert torch.equal(model.ood(tokens(3), None), torch.minimum(model.ood(tokens(3), 0), model.ood(tokens(3), 1)))


def test_the_task_posterior_is_bayes_rule() -> None:
    model = fitted()
    frames = tokens(0)[:7]
    likelihood = torch.stack(
        [sum(model.log_p[task, i, frames[:, i]] for i in range(N)).double().exp() for task in range(2)]
    )
    want = (likelihood[0] / likelihood.sum(0)).log()
    assert torch.allclose(model.log_posterior(frames, 0).double(), want, atol=1e-5)


def test_only_frames_of_another_task_are_marked_down_and_not_without_end() -> None:
    model = Familiarity(2, K, 64)
    model.log_p[0], model.log_p[1] = math.log(0.1), math.log(0.05)
    frame = torch.zeros(1, 64, dtype=torch.long)
    assert model.wrong_task(frame, 0, most=20.0).item() == 0
    nats = 64 * math.log(2) - MARGIN_NATS
    assert math.isclose(model.wrong_task(frame, 1, most=100.0).item(), -nats, rel_tol=1e-4)
    assert model.wrong_task(frame, 1, most=20.0).item() == -20


def test_a_model_without_training_frames_does_not_know() -> None:
    assert Familiarity(0, K, N).ood(tokens(0), None).isnan().all()
