"""Which frames a prediction is made from, against slow loops; what the video model is trained on; repeatable steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dr_core.data.cache import BACKGROUND, EXPERT, Clip, Store
from dr_core.diffusion.categorical import CategoricalDiffusion
from dr_core.diffusion.denoiser import CrossAttentionConfig, CrossAttentionDenoiser
from dr_core.diffusion.inplace import InPlaceConfig, InPlaceDenoiser
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.diffusion.train import TransitionSampler, VideoStage, VideoTraining, history_indices, transitions
from dr_core.errors import UserError

CPU = torch.device("cpu")
K = 64


def slow_history(length: int, num_history: int, spacing: int, observed: bool) -> list[list[int]]:
    rows = []
    for k in range(length):
        newest = k - spacing if observed else k
        rows.append([max(newest - back * spacing, 0) for back in reversed(range(num_history))])
    return rows


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_histories_are_those_of_a_slow_loop(length: int, num_history: int, spacing: int, observed: bool) -> None:
    got = history_indices(length, num_history, spacing, observed=observed)
    assert got.tolist() == slow_history(length, num_history, spacing, observed)


def test_histories_by_hand() -> None:
    assert history_indices(4, 2, 1, observed=False).tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert history_indices(4, 2, 1, observed=True).tolist() == [[0, 0], [0, 0], [0, 1], [1, 2]]
    assert history_indices(6, 2, 2, observed=False).tolist() == [[0, 0], [0, 1], [0, 2], [1, 3], [2, 4], [3, 5]]
    assert history_indices(6, 1, 3, observed=True).tolist() == [[0], [0], [0], [0], [1], [2]]


@given(st.integers(0, 12), st.integers(1, 4), st.integers(1, 3))
def test_transitions_are_those_of_a_slow_loop(length: int, num_history: int, spacing: int) -> None:
    order = np.random.default_rng(length).permutation(length) + 100
    want = [
        [*(order[i] for i in history), order[k]]
        for k, history in enumerate(slow_history(length, num_history, spacing, observed=True))
        if k >= spacing
    ]
    got = transitions(order, num_history, spacing)
    assert got.shape == (max(length - spacing, 0), num_history + 1)
    assert got.tolist() == want


# ---- what is drawn ----


def numbered_store(*lengths_and_behaviours: tuple[int, str]) -> Store:
    """A token store in which every token of frame i is i, so that a draw tells its frames."""
    clips, start = [], 0
    for length, behaviour in lengths_and_behaviours:
        clips.append(Clip("task", behaviour, start, length, f"clip {start}", None))
        start += length
    tokens = np.arange(start, dtype=np.int16)[:, None].repeat(64, 1)
    return Store(tokens, tuple(clips), "hash", {})


STORE = numbered_store((10, EXPERT), (8, EXPERT), (12, BACKGROUND), (3, BACKGROUND))
EXPERTS, OTHERS = [range(0, 10), range(10, 18)], [range(18, 30), range(30, 33)]


def sampler(store: Store = STORE, *, spacing: int = 1, num_history: int = 2, **settings: Any) -> TransitionSampler:
    config = replace(VideoTraining(batch_size=32), **settings)
    return TransitionSampler(store, config, num_history=num_history, spacing=spacing, seed=0)


def drawn(source: TransitionSampler, batches: int = 40) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """Distinct (history …, next) frame numbers: of behaviour 0, and of behaviour 1."""
    rows: tuple[set[tuple[int, ...]], set[tuple[int, ...]]] = set(), set()
    for index in range(batches):
        history, target, behaviour = source.draw(index)
        frames = torch.cat([history.view(len(target), -1, 64)[:, :, 0], target[:, :1]], 1)
        for row, label in zip(frames.tolist(), behaviour.tolist(), strict=True):
            rows[label].add(tuple(row))
    return rows


def windows(clips: Sequence[Sequence[int]], spacing: int = 1, num_history: int = 2) -> set[tuple[int, ...]]:
    return {tuple(row) for clip in clips for row in transitions(np.array(clip), num_history, spacing).tolist()}


@pytest.mark.parametrize("spacing", [1, 2])
def test_batches_hold_every_window_of_their_behaviour_and_cross_no_episode(spacing: int) -> None:
    expert, other = drawn(sampler(spacing=spacing, distorted_share=0.0))
    assert expert == windows(EXPERTS, spacing)
    assert other == windows(OTHERS, spacing)


def test_distorted_time_counts_as_background() -> None:
    expert, other = drawn(sampler(distorted_share=1.0), 200)
    everything = [*EXPERTS, *OTHERS]
    double = windows(EXPERTS, 2) | windows(OTHERS, 2)
    backwards = windows([clip[::-1] for clip in EXPERTS])
    still = {(i, i, i) for clip in everything for i in clip[::3]}
    assert expert == windows(EXPERTS), "expert frames are never distorted"
    assert double <= other and backwards <= other and still <= other
    shuffled = other - double - backwards - still
    assert len(shuffled) > 20
    assert all(any(set(row) <= set(clip) for clip in everything) for row in shuffled)


def test_half_a_batch_is_background_where_there_is_one() -> None:
    _, _, behaviour = sampler().draw(0)
    assert behaviour.tolist() == [0] * 16 + [1] * 16
    _, _, behaviour = sampler(batch_size=5).draw(0)
    assert behaviour.tolist() == [0] * 3 + [1] * 2
    history, target, behaviour = sampler(numbered_store((10, EXPERT))).draw(0)
    assert behaviour.tolist() == [0] * 32
    assert history.shape == (32, 128) and target.shape == (32, 64) and history.dtype == torch.int64


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    one, other = sampler(), sampler()
    for index in range(5):
        one.draw(index)
    for a, b in zip(one.draw(7), other.draw(7), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.draw(7)[0], one.draw(8)[0])


def test_clips_too_short_for_double_speed_are_no_obstacle() -> None:
    expert, other = drawn(sampler(numbered_store((2, EXPERT), (2, BACKGROUND)), distorted_share=1.0))
    assert expert == {(0, 0, 1)}
    assert (1, 1, 0) in other


@pytest.mark.parametrize("lengths", [(3, 9), (9, 3)])
def test_episodes_too_short_for_any_transition_are_refused_in_one_line(lengths: tuple[int, int]) -> None:
    store = numbered_store((lengths[0], EXPERT), (lengths[1], BACKGROUND))
    with pytest.raises(UserError, match="frame_skip") as caught:
        sampler(store, spacing=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"batch_size": 1}, {"all_masked_share": 1.5}, {"distorted_share": -0.1}]
)
def test_impossible_trainings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        VideoTraining(**settings)


# ---- the optimiser step ----


def stage(*, paper: bool = False, **settings: Any) -> VideoStage:
    """A small video stage, the same at every call."""
    torch.manual_seed(0)
    config = replace(VideoTraining(steps=8, batch_size=8, warmup_steps=2, ema_every=3), **settings)
    denoiser: InPlaceDenoiser | CrossAttentionDenoiser
    if paper:
        small = CrossAttentionConfig(width=16, depth=1, heads=2, condition_width=8)
        denoiser = CrossAttentionDenoiser(small, K, num_history=2, num_timesteps=10)
    else:
        small_in_place = InPlaceConfig(width=16, depth=1, heads=2)
        denoiser = InPlaceDenoiser(small_in_place, K, 2, num_timesteps=10, num_behaviours=2)
    diffusion = CategoricalDiffusion(mask_and_uniform(ScheduleConfig(num_timesteps=10), K))
    source = TransitionSampler(STORE, config, num_history=2, spacing=1, seed=0)
    return VideoStage(denoiser, diffusion, source, config, 0, CPU)


RECIPES: list[dict[str, Any]] = [
    {},
    {"all_masked_share": 0.0},
    {"all_masked_share": 1.0},
    {"paper": True, "schedule": "plateau", "all_masked_share": 0.0, "clip_steps": 3},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_restored_stage_continues_as_the_uninterrupted_one(recipe: dict[str, Any]) -> None:
    whole, first, second = stage(**recipe), stage(**recipe), stage(**recipe)
    losses = [float(whole.step(index)["loss"]) for index in range(8)]
    for index in range(4):
        first.step(index)
    state = {name: value.clone() for name, value in first.tensors().items()}
    torch.rand(13)  # whatever else was drawn in the other process
    second.restore(state, first.training_state(), Path("checkpoint"))
    torch.rand(7)
    assert [float(second.step(index)["loss"]) for index in range(4, 8)] == losses[4:]
    for name, value in whole.tensors().items():
        assert torch.equal(second.tensors()[name], value), name
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert second.plateau.state_dict() == whole.plateau.state_dict()


def test_the_published_condition_table_keeps_its_random_start() -> None:
    recipe = stage(paper=True)
    assert isinstance(recipe.denoiser, CrossAttentionDenoiser)
    start = {name: value.clone() for name, value in recipe.denoiser.state_dict().items()}
    for index in range(2):
        recipe.step(index)
    unchanged = [name for name, value in recipe.denoiser.state_dict().items() if torch.equal(value, start[name])]
    assert unchanged == ["condition_codes.weight"]


def test_training_learns_the_transitions() -> None:
    learner = stage(steps=60, learning_rate=1e-2, distorted_share=0.0)
    losses = [float(learner.step(index)["all_masked_nll"]) for index in range(60)]
    assert losses[0] == pytest.approx(np.log(K), rel=0.1)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_a_run_shorter_than_the_averaging_does_not_keep_its_random_start() -> None:
    short = stage(steps=2, ema_every=25)
    start = {name: value.clone() for name, value in short.average.shadow.items()}
    for index in range(2):
        short.step(index)
    assert not torch.equal(short.average.shadow["to_logits.weight"], start["to_logits.weight"])
