"""The fast evaluation equals the slow one (benchmarks/slow_reference.py) on the same weights and noise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dr_core.diffusion.categorical import CategoricalDiffusion
from dr_core.diffusion.denoiser import CrossAttentionConfig, CrossAttentionDenoiser
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.parity import filled_model
from dr_core.rewards import entropy

PATH = Path(__file__).parents[2] / "benchmarks" / "slow_reference.py"


@pytest.fixture(scope="module")
def slow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slow_reference", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slow_reference"] = module
    spec.loader.exec_module(module)
    return module


def check(
    slow: ModuleType,
    schedule: ScheduleConfig,
    denoiser: CrossAttentionDenoiser,
    grid: tuple[int, int],
    batch: int,
    stride: int = 10,
) -> None:
    """The same frames are drawn, and the rewards are the same."""
    codes, places = denoiser.num_codes, denoiser.num_tokens
    process = mask_and_uniform(schedule, codes)
    generator = torch.Generator().manual_seed(3)
    history = torch.randint(codes, (batch, 2 * places), generator=generator)
    noise = torch.rand(schedule.num_timesteps + 1, batch, places, codes + 1, generator=generator)
    network = slow.SlowDenoiser(denoiser.to_published(), denoiser.config.heads, grid)
    with torch.inference_mode():
        want, frame = slow.slow_reward(
            slow.SlowDiffusion(process), network, history, lambda step: noise[step], stride=stride
        )
        diffusion = CategoricalDiffusion(process)
        trajectory = entropy.reverse(
            diffusion,
            denoiser,
            denoiser.condition(history),
            batch,
            stride=stride,
            posterior="published",
            uniforms=lambda step: noise[step],
        )
        got = entropy.paper(diffusion, denoiser, history, noise=lambda step: noise[step], stride=stride).value
    assert torch.equal(trajectory.x_start, frame)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 11])
@pytest.mark.parametrize("grid", [(8, 8), (4, 8), (2, 3)])
def test_small_networks_draw_the_same_frames(slow: ModuleType, grid: tuple[int, int], batch: int) -> None:
    torch.manual_seed(0)
    config = CrossAttentionConfig(width=16, depth=2, heads=2, condition_width=8)
    denoiser = CrossAttentionDenoiser(config, num_codes=10, num_timesteps=20, grid=grid)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(5)  # so that the small start does not hide the history
    schedule = ScheduleConfig(num_timesteps=20, keep_first=0.9, keep_last=0.05, mask_first=0.04, mask_last=0.7)
    for network in (denoiser, denoiser.freeze()):
        check(slow, schedule, network, grid, batch, stride=6)


def test_the_paper_size_draws_the_same_frames(slow: ModuleType) -> None:
    _, _, denoiser = filled_model("open/")
    check(slow, ScheduleConfig(), denoiser, (8, 8), batch=2)
