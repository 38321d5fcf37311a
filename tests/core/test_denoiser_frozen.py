"""The rearranged evaluation of the published denoiser, and what reduced precision does to a reward model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dr_core.codec.vqgan import VQGANConfig
from dr_core.diffusion.denoiser import CrossAttentionConfig, CrossAttentionDenoiser
from dr_core.diffusion.frozen import Convolution, Winograd
from dr_core.presets import PRESETS, EstimatorConfig
from dr_core.rewards.model import Networks, RewardModel

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (4, 12)])
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_convolve(grid: tuple[int, int], batch: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(32, 48, 3, padding=1)
    tiles = Winograd(grid, torch.float32, CPU)
    convolution = Convolution(layer, grid, torch.float32, tiles, gain=2.0, gain_bias=0.5)
    image = torch.randn(batch, 32, *grid)
    tokens = image.flatten(2).permute(2, 0, 1)  # (N, B, 32), row by row
    want = (2 * F.conv2d(image, layer.weight, padding=1)).flatten(2).permute(2, 0, 1) + 0.5 * layer.bias
    torch.testing.assert_close(convolution(tokens, tiled=False), want, atol=1e-5, rtol=1e-5)
    tiled = convolution(tokens[tiles.order].contiguous(), tiled=True)
    torch.testing.assert_close(tiled, want[tiles.order], atol=1e-5, rtol=1e-5)


def network(positions: bool = False) -> CrossAttentionDenoiser:
    torch.manual_seed(0)
    config = CrossAttentionConfig(width=32, depth=3, heads=4, condition_width=16, condition_positions=positions)
    denoiser = CrossAttentionDenoiser(config, num_codes=12, num_timesteps=9)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(5)  # so that the small start hides nothing
    return denoiser.eval()


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_t (B, 64), t (B,), history (B, 128)."""
    g = torch.Generator().manual_seed(1)
    return (
        torch.randint(13, (batch, 64), generator=g),
        torch.randint(9, (batch,), generator=g),
        torch.randint(12, (batch, 128), generator=g),
    )


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 9])
@torch.no_grad()
def test_freezing_changes_no_logit_whether_the_times_differ_or_not(positions: bool, batch: int) -> None:
    denoiser = network(positions)
    x_t, t, history = inputs(batch)
    for times in (t, t[:1]):
        denoiser.thaw()
        want = denoiser(x_t, times, denoiser.condition(history))
        denoiser.freeze()
        got = denoiser(x_t, times, denoiser.condition(history))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bfloat16_blocks_give_float32_logits_near_the_exact_ones_and_keep_the_weights() -> None:
    denoiser = network()
    x_t, t, history = inputs(9)
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    want = denoiser(x_t, t, denoiser.condition(history))
    denoiser.freeze(torch.bfloat16)
    got = denoiser(x_t, t, denoiser.condition(history))
    assert got.dtype == torch.float32 and not torch.equal(got, want)
    assert float((got - want).std() / want.std()) < 0.05
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


def test_moving_a_frozen_network_thaws_it() -> None:
    denoiser = network().freeze(torch.bfloat16).double()
    x_t, t, history = inputs(2)
    assert denoiser(x_t, t, denoiser.condition(history)).dtype == torch.float64


# ---- reward models ----


def reward_model(preset: str, **precisions: Any) -> RewardModel:
    config = PRESETS["tiny"]().model
    if preset == "paper":
        config = replace(
            config,
            codec="vqgan",
            vqgan=VQGANConfig(channels=(32, 32, 32, 32), num_codes=64),
            denoiser="cross_attention",
            cross_attention=CrossAttentionConfig(width=32, depth=2, heads=4, condition_width=16),
            background=False,
            estimator=EstimatorConfig(name="one_pass"),
        )
    torch.manual_seed(0)
    networks = Networks(config)
    with torch.no_grad():
        networks.video.to_logits.weight.mul_(50)
    return RewardModel(config, networks, {"tasks": [], "statistics": {}}, **precisions)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_reduced_precision_is_asked_for_and_stays_near(preset: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    plain, video, both = (
        reward_model(preset),
        reward_model(preset, precision="bfloat16"),
        reward_model(preset, precision="bfloat16", codec_precision="bfloat16"),
    )
    tokens = plain.tokenize(frames)
    assert np.array_equal(video.tokenize(frames), tokens)
    assert (both.tokenize(frames) != tokens).mean() < 0.3
    want, got = (model.score_tokens([tokens], estimator="one_pass")[0].raw for model in (plain, video))
    assert not np.array_equal(got, want)
    np.testing.assert_allclose(got, want, rtol=0.02)
    weights = plain.networks.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in both.networks.state_dict().items())


def test_the_noise_of_the_draws_does_not_change_with_what_was_scored_before() -> None:
    model = reward_model("paper")
    clip = model.tokenize(np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8))
    first = model.score_tokens([clip], estimator="paper")[0].raw
    for count in (1, 3, 33):
        part = model.score_tokens([clip[:count]], estimator="paper")[0].raw
        np.testing.assert_allclose(part, first[:count], rtol=1e-4)
