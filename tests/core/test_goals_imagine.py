"""Imagined goal videos: each frame is drawn from the right history, and an expert's motion goes on to its goal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dr_core.errors import ConfigError
from dr_core.goals.imagine import imagine
from dr_core.presets import PRESETS, RewardModelConfig
from dr_core.rewards.model import Networks, RewardModel
from dr_core.rewards.train import train_reward
from dr_core.seeding import numpy_generator
from tests.core.moving_square import moving_square, record_set

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny() -> RewardModelConfig:
    config = PRESETS["tiny"]().model
    return replace(config, fsq=replace(config.fsq, levels=(4, 4, 4)))


def random_model(**changes: Any) -> RewardModel:
    """An untrained network with weights large enough that histories matter."""
    config = replace(tiny(), **changes)
    torch.manual_seed(0)
    networks = Networks(config)
    with torch.no_grad():
        for module in networks.video.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                module.weight.mul_(25 if isinstance(module, nn.Embedding) else 5)
    return RewardModel(config, networks, {"tasks": [], "statistics": {}})


def column(frame: np.ndarray) -> float:
    """Mean column of as many of the yellowest pixels (much red, little blue) as the square has."""
    yellow = frame[..., 0].astype(int) - frame[..., 2]
    return float((np.argsort(-yellow, None, kind="stable")[:144] % 64).mean())


@pytest.mark.parametrize(("num_history", "frame_skip", "given"), [(2, 1, 1), (3, 2, 1), (3, 2, 4), (1, 3, 2)])
def test_each_frame_follows_its_history(num_history: int, frame_skip: int, given: int) -> None:
    """Against the slow way: the whole clip so far, cut where the next frame's history ends."""
    model = random_model(num_history=num_history, frame_skip=frame_skip)
    first = moving_square(3, expert=True, length=given)
    video = imagine(model, first, 9, seed=5)
    tokens = model.tokenize(first)
    seeds = numpy_generator(5, "imagine").integers(0, 2**62, 9)
    for n in range(given, 9):
        after = model.imagine(tokens[: max(1, n - frame_skip + 1)], seed=int(seeds[n]))
        tokens = np.concatenate([tokens, after[-1:]])
    assert video.shape == (9, 64, 64, 3) and video.dtype == np.uint8
    np.testing.assert_array_equal(video[:given], first)
    np.testing.assert_array_equal(video[given:], model.decode(tokens[given:]))


def test_the_seed_decides_and_each_frame_has_its_own_noise() -> None:
    model = random_model()
    first = moving_square(3, expert=True, length=1)
    video = imagine(model, first, 6, seed=1)
    np.testing.assert_array_equal(imagine(model, first, 6, seed=1), video)
    np.testing.assert_array_equal(imagine(model, first, 4, seed=1), video[:4])
    assert (imagine(model, first, 6, seed=2) != video).any()
    assert len({frame.tobytes() for frame in video}) == 6


def test_given_frames_are_enough_when_no_more_are_wanted() -> None:
    first = moving_square(3, expert=True, length=5)
    np.testing.assert_array_equal(imagine(random_model(), first, 3), first[:3])


def test_an_expert_goes_on_to_the_goal(tmp_path: Path) -> None:
    preset = PRESETS["tiny"]()
    config = replace(
        preset,
        model=tiny(),
        codec_training=replace(preset.codec_training, steps=150, learning_rate=4e-3),
        video_training=replace(preset.video_training, steps=200, learning_rate=3e-3, warmup_steps=10),
    )
    expert, other = record_set(tmp_path)
    train_reward(config, [expert], [other], tmp_path / "run", resume=False)
    model = RewardModel.load(tmp_path / "run" / "model")
    real = moving_square(500, expert=True, length=12)
    video = imagine(model, real[:2], 12)
    moved, wanted = column(video[-1]) - column(real[0]), column(real[-1]) - column(real[0])
    assert wanted > 10 and moved == pytest.approx(wanted, abs=0.4 * wanted)


@pytest.mark.parametrize(
    ("first", "count", "found"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), 4, "(1, 32, 32, 3)"),
        (np.zeros((0, 64, 64, 3), np.uint8), 4, "(0, 64, 64, 3)"),
        (np.zeros((1, 64, 64, 3), np.float32), 4, "float32"),
        (np.zeros((1, 64, 64, 3), np.uint8), 0, "found 0"),
    ],
)
def test_unusable_beginnings_are_refused(first: Any, count: int, found: str) -> None:
    with pytest.raises(ConfigError) as refused:
        imagine(random_model(), first, count)
    assert found in str(refused.value)
