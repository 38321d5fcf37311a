"""The regression of progress: its closed form, what it tells on made-up episodes, and its rate as a potential."""

from __future__ import annotations

import numpy as np
import torch

from dr_core.rewards.progress import RATE_FRAMES, RIDGE, Progress, rate

LEVELS = 8
FEATURES = torch.linspace(-1, 1, LEVELS).unsqueeze(1)  # a code stands for a grey level


def episodes(count: int, seed: int, length: int = 24) -> list[np.ndarray]:
    """A light that grows brighter at a pace of its own in four places; sixty places of noise."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        own = length + int(rng.integers(-6, 7))
        bright = np.floor(np.linspace(0, LEVELS - 0.01, own)).astype(np.int64)
        noise = rng.integers(3, 5, (own, 12))
        made.append(np.concatenate([np.repeat(bright[:, None], 4, 1), noise], 1))
    return made


def test_it_is_ridge_regression_in_closed_form() -> None:
    codes = episodes(3, seed=1)
    model = Progress.fit(codes, FEATURES, np.random.default_rng(0))
    frames = np.concatenate(codes)
    x = FEATURES.double()[torch.from_numpy(frames)].flatten(1)
    y = torch.from_numpy(np.concatenate([np.linspace(0, 1, len(own)) for own in codes])) - 0.5
    # With every frame a centre the inducing-point form is kernel ridge: (K + λ)⁻¹ y.
    kernel = torch.exp(-torch.cdist(x, x).square() / model.bandwidth.double())
    want = kernel @ torch.linalg.solve(kernel + RIDGE * torch.eye(len(x), dtype=torch.float64), y) + 0.5
    got = model.on(FEATURES)(torch.from_numpy(frames))
    assert len(model.centres) == len(frames)
    torch.testing.assert_close(got.double(), want.clamp(0, 1), atol=2e-3, rtol=0)


def test_new_episodes_rise_from_start_to_end() -> None:
    progress = Progress.fit(episodes(12, seed=1), FEATURES, np.random.default_rng(0)).on(FEATURES)
    for own in episodes(5, seed=2):
        told = progress(torch.from_numpy(own)).numpy()
        truth = np.linspace(0, 1, len(own))
        assert np.abs(told - truth).max() < 0.2 and np.corrcoef(told, truth)[0, 1] > 0.98


def test_the_rate_adds_up_to_the_rise_and_stillness_earns_nothing() -> None:
    rng = np.random.default_rng(3)
    progress = rng.random(30).astype(np.float32)
    padded = np.concatenate([np.repeat(progress[:1], RATE_FRAMES - 1), progress])
    average = np.convolve(padded, np.ones(RATE_FRAMES), "valid")
    want = np.diff(average / RATE_FRAMES, prepend=progress[0])
    np.testing.assert_allclose(rate(progress), want, atol=1e-6)
    np.testing.assert_allclose(rate(progress).sum(), average[-1] / RATE_FRAMES - progress[0], atol=1e-5)
    # A loop that returns to where it was earns nothing.
    loop = np.concatenate([progress, progress[::-1], np.repeat(progress[:1], RATE_FRAMES)])
    assert abs(rate(loop).sum()) < 1e-5
    assert (rate(np.full(9, 0.7, np.float32)) == 0).all()


def test_a_model_without_experts_knows_no_progress() -> None:
    assert (Progress(0, 16).on(FEATURES)(torch.zeros(3, 16, dtype=torch.long)) == 0.5).all()
