"""VIPER: exact probabilities of whole frames, the same live and in batches, learned from experts, of one codec only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dr_core.checkpoint import load_checkpoint
from dr_core.codec.train import CodecTraining, FSQStage
from dr_core.errors import CheckpointError, ConfigError
from dr_core.presets import PRESETS as REWARD_PRESETS
from dr_core.rewards.model import Networks, RewardModel
from dr_core.rewards.viper import PRESETS, VideoGPT, ViperConfig, ViperModel, ViperStage
from dr_core.training import read_metrics
from tests.core.moving_square import RENDER, moving_square, record_set

TRAINING = replace(
    PRESETS["tiny"], width=48, steps=150, batch_size=8, learning_rate=6e-3, keep=0.9, checkpoint_every_s=1e9
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sharp_network(config: ViperConfig, num_codes: int, num_tokens: int, seed: int = 0) -> VideoGPT:
    """Untrained, with weights large enough that every input matters."""
    torch.manual_seed(seed)
    network = VideoGPT(config, num_codes, num_tokens).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                module.weight.mul_(25 if isinstance(module, nn.Embedding) else 8)
    return network


def codes(num_codes: int, *shape: int) -> Tensor:
    return torch.randint(num_codes, shape, generator=torch.Generator().manual_seed(1))


# ---- the network ----


@pytest.fixture(scope="module")
def network() -> VideoGPT:
    return sharp_network(PRESETS["tiny"], 30, 16)


@torch.no_grad()
def test_a_later_code_changes_no_earlier_probability_and_every_earlier_code_counts(network: VideoGPT) -> None:
    history, following = codes(30, 1, 32), codes(30, 1, 16)
    before = network.log_p(history, following)  # (1, 16, 30)
    for changed in (0, 7, 15):
        other = following.clone()
        other[0, changed] = (other[0, changed] + 1) % 30
        moved = (network.log_p(history, other) - before).abs().amax(-1)[0]  # (16,)
        assert float(moved[: changed + 1].max()) < 1e-5
        assert (moved[changed + 1 :] > 1e-5).all()
    for changed in range(32):
        other = history.clone()
        other[0, changed] = (other[0, changed] + 1) % 30
        assert ((network.log_p(other, following) - before).abs().amax(-1) > 1e-5).all()


@torch.no_grad()
def test_one_call_equals_code_by_code_without_a_cache(network: VideoGPT) -> None:
    """The slow reference runs the network anew for each code, on what came before it only."""
    history, following = codes(30, 3, 32), codes(30, 3, 16)
    slow = torch.zeros(3, dtype=torch.float64)
    for i in range(16):
        start = torch.full((3, 1), 30)
        features, _ = network(torch.cat([start, history, following[:, :i]], 1))
        logits = network.to_logits(features[:, -1]).double()  # (3, 30)
        slow += logits[torch.arange(3), following[:, i]] - torch.logsumexp(logits, 1)
    for past in (None, network.past(history)):
        fast = network.log_p(history, following, past).gather(-1, following.unsqueeze(-1)).sum((1, 2))
        np.testing.assert_allclose(fast.numpy(), slow.numpy(), rtol=1e-5)
    # One history, several frames that may follow it.
    shared = network.log_p(history[:1].expand(3, -1), following, network.past(history[:1]))
    torch.testing.assert_close(shared, network.log_p(history[:1].expand(3, -1), following), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_probabilities_of_all_frames_sum_to_one() -> None:
    """3 codes, 4 cells: 81 frames. The entropies given what came before average to the entropy of the whole frame."""
    network = sharp_network(replace(PRESETS["tiny"], num_history=1), 3, 4)
    everything = torch.tensor(list(itertools.product(range(3), repeat=4)))  # (81, 4)
    for history in codes(3, 5, 4):
        log_p = network.log_p(history.expand(81, 4), everything).double()  # (81, 4, 3)
        whole = log_p.gather(-1, everything.unsqueeze(-1)).sum((1, 2))  # (81,)
        assert float(whole.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        assert float(whole.exp().max()) > 2 / 81, "not the uniform distribution"
        given = (log_p.exp() * log_p).sum((1, 2))
        assert float((whole.exp() * given).sum()) == pytest.approx(float((whole.exp() * whole).sum()), abs=1e-4)


def test_the_paper_preset_has_the_published_size() -> None:
    paper = PRESETS["paper"]
    assert (paper.depth, paper.heads, paper.width, paper.num_history) == (8, 8, 512, 2)
    with pytest.raises(ValueError, match="multiple of heads"):
        replace(paper, heads=7)


# ---- training and scoring ----


@pytest.fixture(scope="module")
def reward_model() -> RewardModel:
    """Only its codec is trained; VIPER looks at nothing else."""
    config = REWARD_PRESETS["tiny"]().model
    config = replace(config, fsq=replace(config.fsq, levels=(4, 4, 4)))
    torch.manual_seed(0)
    networks = Networks(config)
    frames = np.concatenate([moving_square(seed, expert=seed % 2 == 0) for seed in range(6)])
    training = CodecTraining(steps=80, batch_size=8, learning_rate=4e-3, warmup_steps=5)
    stage = FSQStage(networks.codec, frames, training, 0, torch.device("cpu"))  # type: ignore[arg-type]
    for index in range(training.steps):
        stage.step(index)
    return RewardModel(config, networks, {"tasks": [], "statistics": {}})


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_set(tmp_path_factory.mktemp("episodes"), episodes=3)[0]


@pytest.fixture(scope="module")
def run(reward_model: RewardModel, experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("viper") / "run"
    assert ViperModel.train(reward_model, [experts], out, TRAINING) == out / "model"
    return out


@pytest.fixture(scope="module")
def model(run: Path, reward_model: RewardModel) -> ViperModel:
    return ViperModel.load(run / "model", reward_model)


def test_training_lowers_the_loss_and_ranks_what_experts_do_above_the_same_frames_shuffled(
    run: Path, model: ViperModel
) -> None:
    losses = [row["next_nll"] for row in read_metrics(run / "metrics.jsonl")]
    assert len(losses) == TRAINING.steps
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert any((run / "tensorboard").iterdir())

    tokens = [model.reward_model.tokenize(moving_square(seed, expert=True)) for seed in range(300, 304)]
    rng = np.random.default_rng(0)
    shuffled = [clip[[0, *rng.permutation(np.arange(1, len(clip)))]] for clip in tokens]
    for name in model.estimators():
        ordered, mixed = (model.score_tokens(clips, task="push", estimator=name) for clips in (tokens, shuffled))
        if name == "likelihood":
            assert all(a.value[a.valid].mean() > b.value[b.valid].mean() for a, b in zip(ordered, mixed, strict=True))
        assert all(np.isfinite(reward.raw).all() for reward in ordered + mixed)


def test_experts_are_standardised_to_mean_zero_and_spread_one(run: Path, model: ViperModel) -> None:
    assert model.tasks == ["push", "slide"]
    assert model.manifest["render"] == RENDER
    assert model.manifest["training_seeds"]["push"] == [100, 101, 102]
    clips = [moving_square(seed, expert=True) for seed in (100, 101, 102)]
    tokens = [model.reward_model.tokenize(clip) for clip in clips]
    for name in model.estimators():
        rewards = model.score_tokens(tokens, task="push", estimator=name)
        value = np.concatenate([reward.value[reward.valid] for reward in rewards])
        assert len(value) == 3 * 15 and not any(reward.valid[0] for reward in rewards)
        assert value.mean() == pytest.approx(0, abs=1e-4) and value.std() == pytest.approx(1, abs=1e-4)
        mean, std = model.statistics(name, "push")
        np.testing.assert_allclose(rewards[0].raw, rewards[0].value * std + mean, rtol=1e-4)
    rewards = model.score_tokens(tokens, task="push")
    for standardise, name in ((True, "value"), (False, "raw")):
        steps = model.episode_reward("push", standardise=standardise)(np.stack(clips))
        np.testing.assert_allclose(steps, np.stack([getattr(reward, name)[1:] for reward in rewards]), rtol=1e-6)
    assert model.statistics("likelihood", "unknown task") == model.statistics("likelihood", None)
    with pytest.raises(ConfigError, match="likelihood, entropy"):
        model.score_tokens(tokens, estimator="ratio")


def test_batches_streams_and_single_clips_give_the_same_numbers(model: ViperModel) -> None:
    clips = np.stack([moving_square(seed, expert=True, length=9) for seed in (7, 8)])
    clips[1, 3:7] = clips[1, 3]  # it rests for a while
    for name in model.estimators():
        together = model.score(clips, task="slide", estimator=name)
        assert together.value.shape == (2, 9) and together.calls == 1
        for prepared, clip, want in zip((False, True), clips, together.value, strict=True):
            (alone,) = model.score_tokens([model.reward_model.tokenize(clip)], task="slide", estimator=name)
            np.testing.assert_allclose(alone.value, want, atol=2e-5)
            stream = model.stream(task="slide", estimator=name)
            for _ in range(2):  # the second time after a reset
                for k, frame in enumerate(clip):
                    pushed = stream.push(frame, 1000 + k)
                    assert pushed is not None and pushed.valid == (k > 0)
                    assert pushed.value == pytest.approx(want[k], abs=2e-5)
                    if prepared:
                        stream.prepare()
                assert stream.push(clip[0], 1000) is None
                stream.reset()
            assert stream.dropped == 2


def test_raw_rewards_equal_the_networks_probabilities_of_the_windows(model: ViperModel) -> None:
    tokens = model.reward_model.tokenize(moving_square(9, expert=False, length=5))
    (reward,) = model.score_tokens([tokens])
    for k, past in enumerate([(0, 0), (0, 0), (0, 1), (1, 2), (2, 3)]):
        history, following = (torch.from_numpy(tokens[list(which)]).reshape(1, -1) for which in (past, (k,)))
        with torch.no_grad():
            log_p = model.network.log_p(history, following)[0]
        assert reward.raw[k] == pytest.approx(float(log_p[torch.arange(64), following[0]].sum()), abs=1e-3)


def test_a_run_killed_between_checkpoints_and_robbed_of_its_episodes_ends_the_same(
    reward_model: RewardModel, experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(PRESETS["tiny"], steps=14, batch_size=4, dropout=0.1, checkpoint_every_s=0.0)
    ViperModel.train(reward_model, [experts], tmp_path / "whole", config)

    out, step = tmp_path / "stopped", ViperStage.step
    killed_at = 9

    def killed(stage: ViperStage, index: int) -> dict[str, Any]:
        if index == killed_at:
            raise MemoryError("killed")
        return step(stage, index)

    monkeypatch.setattr(ViperStage, "step", killed)
    with pytest.raises(MemoryError):
        ViperModel.train(reward_model, [experts], out, config)
    monkeypatch.undo()
    for changed in (replace(config, seed=1), replace(config, steps=20)):
        with pytest.raises(ConfigError):
            ViperModel.train(reward_model, [experts], out, changed, resume=True)
    torch.manual_seed(99)
    experts.rename(away := experts.with_name("away"))
    try:
        resumed = ViperModel.train(reward_model, [experts], out, config, resume=True)
    finally:
        away.rename(experts)
    whole, again = load_checkpoint(tmp_path / "whole" / "model"), load_checkpoint(resumed)
    assert again.model_hash == whole.model_hash
    assert again.manifest["statistics"] == whole.manifest["statistics"]
    assert read_metrics(out / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")


def test_parts_that_do_not_belong_together_are_refused(
    model: ViperModel, run: Path, reward_model: RewardModel, experts: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = reward_model.config
    foreign = RewardModel(config, Networks(config), {"tasks": [], "statistics": {}})
    with pytest.raises(CheckpointError, match="codec"):
        ViperModel.load(run / "model", foreign)
    with pytest.raises(ConfigError, match="codec"):
        ViperModel.train(foreign, [experts], run, TRAINING, resume=True)
    # The same codec beside another video model is the same codec; pictures cut in another way are not.
    foreign.networks.codec.load_state_dict(reward_model.networks.codec.state_dict())
    ViperModel.load(run / "model", foreign)
    foreign.config = replace(config, image=replace(config.image, crop=(0, 0, 32, 32)))
    with pytest.raises(CheckpointError, match="crop"):
        ViperModel.load(run / "model", foreign)
    reward_model.save(tmp_path / "reward")
    with pytest.raises(CheckpointError, match="a VIPER model"):
        ViperModel.load(tmp_path / "reward", reward_model)
