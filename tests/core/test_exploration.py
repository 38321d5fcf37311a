"""Exploration by random network distillation, the formula of the whole reward, and running out of memory."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from dr_core.errors import CheckpointError, OutputInUseError
from dr_core.memory import is_out_of_memory
from dr_core.rewards.combine import combine
from dr_core.rewards.rnd import RandomNetworkDistillation
from tests.core.moving_square import moving_square

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_what_was_seen_becomes_familiar_and_what_was_not_stays_new() -> None:
    network = RandomNetworkDistillation(3)
    known, new = moving_square(1, expert=True, length=8), noise(0, 8)
    before = network.score(known)
    assert before.shape == (8,) and before.dtype == np.float32 and (before > 0).all()
    np.testing.assert_array_equal(network.score(known), before, "scoring changes nothing")
    for _ in range(30):
        network.update(known)
    assert (network.score(known) < 0.3 * before).all()
    assert network.score(new).mean() > 3 * network.score(known).mean()


def test_the_score_is_half_the_squared_distance_of_512_features() -> None:
    network = RandomNetworkDistillation(0)
    frames = noise(1, 3)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        wanted, guess = network.target(images), network.predictor(images)
    assert wanted.shape == (3, 512)
    np.testing.assert_allclose(network.score(frames), 0.5 * ((wanted - guess) ** 2).sum(1).numpy(), rtol=1e-5)


def test_the_seed_decides_and_the_target_never_learns() -> None:
    frames = noise(2, 4)
    a, b, other = RandomNetworkDistillation(7), RandomNetworkDistillation(7), RandomNetworkDistillation(8)
    state = torch.get_rng_state()
    RandomNetworkDistillation(9)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's numbers change"
    target = [value.clone() for value in a.target.parameters()]
    for network in (a, b, other):
        network.update(frames)
    np.testing.assert_array_equal(a.score(frames), b.score(frames))
    assert not np.array_equal(a.score(frames), other.score(frames))
    assert all(torch.equal(x, y) for x, y in zip(target, a.target.parameters(), strict=True))


def test_standardised_scores_use_all_updates_so_far() -> None:
    plain, network = RandomNetworkDistillation(0), RandomNetworkDistillation(0, standardise=True)
    seen = []
    for seed, count in ((0, 5), (1, 1), (2, 7)):
        seen.append(plain.score(noise(seed, count)))
        np.testing.assert_array_equal(plain.update(noise(seed, count)), seen[-1], "what it scored before it learned")
        network.update(noise(seed, count))
    values = np.concatenate(seen).astype(np.float64)
    want = (plain.score(noise(3, 4)) - values.mean()) / values.std()
    np.testing.assert_allclose(network.score(noise(3, 4)), want, rtol=1e-4)


def test_a_saved_network_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    network = RandomNetworkDistillation(0, standardise=True)
    network.update(noise(0, 4))
    network.save(tmp_path / "rnd.safetensors")
    again = RandomNetworkDistillation(5, standardise=True)
    again.restore(tmp_path / "rnd.safetensors")
    for one in (network, again):
        one.update(noise(1, 4))
    np.testing.assert_array_equal(network.score(noise(2, 4)), again.score(noise(2, 4)))
    with pytest.raises(OutputInUseError):
        network.save(tmp_path / "rnd.safetensors")
    fresh = RandomNetworkDistillation(1)
    fresh.save(tmp_path / "fresh.safetensors")
    RandomNetworkDistillation(2).restore(tmp_path / "fresh.safetensors")


@pytest.mark.parametrize("fault", ["missing", "pickle", "key", "moment"])
def test_other_files_are_refused(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "rnd.safetensors"
    network = RandomNetworkDistillation(0)
    network.update(noise(0, 2))
    if fault == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif fault != "missing":
        network.save(tmp_path / "good")
        tensors = load_file(tmp_path / "good")
        del tensors["target.0.bias" if fault == "key" else "optimizer.0.step"]
        save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        RandomNetworkDistillation(0).restore(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_whole_reward_and_its_terms() -> None:
    terms = combine(2.0, 10.0, 1.0, alpha=0.95, success_weight=3.0)
    assert terms == pytest.approx((0.1, 9.5, 3.0, 0.0, 0.0)) and terms.total == pytest.approx(12.6)
    off = combine(0.123456789, math.nan, 0.0, alpha=0.0)
    assert off.total == 0.123456789, "without the others the video term is the reward, to the last bit"
    video, success = np.array([1.0, 2.0]), np.array([0.0, 2.0])
    np.testing.assert_allclose(combine(video, np.ones(2), success, alpha=0.5).total, [1.0, 3.5])
    assert math.isnan(combine(math.nan, 1.0, 0.0, alpha=0.5).total)
    with pytest.raises(ValueError, match="alpha"):
        combine(0.0, alpha=1.5)


# ---- memory ----

STARVED = """
import resource, sys
import numpy as np, torch
from dr_core.presets import PRESETS
from dr_core.codec.fsq import FSQConfig
from dataclasses import replace
from dr_core.rewards.model import SMALL_BATCH, Networks, RewardModel
torch.set_num_threads(1)
torch.manual_seed(0)
config = replace(PRESETS["tiny"]().model, fsq=FSQConfig(channels=64))
model = RewardModel(config, Networks(config), {"tasks": [], "statistics": {}})
frames = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
model._batch = SMALL_BATCH
wanted = model.tokenize(frames)  # also prepares the kernels of the small batches
model._batch = len(frames)  # 100 MB for the widest layer, 1 MB with the small batch
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 48 * 2**20, resource.RLIM_INFINITY))
found = model.tokenize(frames)
assert model._batch == SMALL_BATCH, model._batch
assert np.array_equal(found, wanted)
resource.setrlimit(resource.RLIMIT_AS, (used - 2**20, resource.RLIM_INFINITY))
try:
    for _ in range(50):
        hold = torch.zeros(2**22)
except RuntimeError as error:
    from dr_core.memory import is_out_of_memory
    assert is_out_of_memory(error)
    print("starved")
"""


def test_a_batch_that_does_not_fit_is_made_smaller_once(python: Callable[..., Any]) -> None:
    done = python("-c", STARVED, OMP_NUM_THREADS="1")
    assert done.returncode == 0 and "starved" in done.stdout, done.stderr[-3000:]


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("CUDA out of memory. Tried to"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
