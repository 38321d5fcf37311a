"""Offline learning from bags: the losses, the labels, that the policy is better than its data, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dr_core import cli
from dr_core.agent.actor import ActingPolicy, ActorConfig, NetworkConfig
from dr_core.agent.loop import SPARSE, VIDEO
from dr_core.agent.offline import (
    IQL,
    OfflineConfig,
    OfflineStage,
    expectile_loss,
    labelled,
    reward_scale,
    survey,
    transitions,
)
from dr_core.agent.replay import Batch
from dr_core.checkpoint import save_checkpoint
from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter, read_episode
from dr_core.data.images import ImageRule
from dr_core.errors import BagError
from dr_core.training import Metrics, read_metrics, train
from tests.core.test_loop import EPISODE, Squares

Frames = NDArray[np.uint8]
RENDER = {"camera": "corner"}
NETWORK = NetworkConfig(strides=(4, 2, 1, 1), feature_size=16, hidden_size=64)
CONFIG = OfflineConfig(
    steps=250, reward="sparse", return_span=EPISODE, batch_size=64, learning_rate=1e-3, n_step=1, tau=0.05,
    network=NETWORK,
)  # fmt: skip
ACTOR = ActorConfig(2, "square", 10.0, network=NETWORK)


# ---- data ----


def write_bag(
    path: Path, frames: Frames, actions: NDArray[np.float32], *, success: bool = True, late_ns: int = 0, **changes: Any
) -> Path:
    """An episode of 10 frames a second, its actions ``late_ns`` behind their frames."""
    values = {
        "task": "square", "outcome": "partial", "operator": "scripted", "camera": "corner", "camera_serial": "",
        "quality": 50, "seed": 0, "rate_hz": 10.0, "render": RENDER, "versions": {}, "calibration_hash": None,
        "drops": {}, **changes,
    }  # fmt: skip
    outcome = changes.get("outcome", "success" if success else "failure")
    with EpisodeWriter(path, EpisodeMetadata(**values)) as writer:
        for k, frame in enumerate(frames):
            writer.write_image(10**9 + k * 10**8, frame)
            if k < len(actions):
                writer.write_action(10**9 + k * 10**8 + late_ns, actions[k])
        writer.close(outcome)
    return path


def noise(count: int, actions: int, size: int = 2) -> tuple[Frames, NDArray[np.float32]]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8), rng.uniform(-1, 1, (actions, size)).astype("f4")


def record_squares(root: Path) -> float:
    """Bags of a random policy and of one whose every other action is good; the share of them that succeed."""
    environment, rng, successes = Squares(), np.random.default_rng(0), []
    for number in range(24):
        frames, actions = [environment.reset([2 * number, 2 * number + 1])], []
        edge = []
        for t in range(EPISODE):
            action = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
            if number % 2 and t % 2:
                action[:, 0] = -1.0
            frame, _, _, success = environment.step(action)
            frames.append(frame)
            actions.append(action)
            edge.append(success)
        for i in range(2):
            reached = np.flatnonzero(np.stack(edge)[:, i])
            steps = int(reached[0]) + 1 if len(reached) else EPISODE  # a recording ends at its success
            own = np.stack(frames)[: steps + 1, i], np.stack(actions)[:steps, i]
            write_bag(root / f"{number}_{i}", *own, success=bool(len(reached)))
            successes.append(len(reached) > 0)
    return float(np.mean(successes))


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], float]:
    root = tmp_path_factory.mktemp("squares")
    rate = record_squares(root)
    return sorted(root.iterdir()), rate


def towards_the_edge(frames: Frames) -> NDArray[np.float32]:
    """A dense label that says nothing of success: minus where the square is."""
    columns = frames[0, 1:, :, :, 0].astype(np.float32).sum(1)  # (T, W)
    return -((columns * np.arange(64)).sum(1) / columns.sum(1) / 56.0)[None]


def learn(out: Path, paths: list[Path], config: OfflineConfig, score: Any = None, stop: int | None = None) -> IQL:
    out.mkdir(exist_ok=True)
    agent = IQL(ACTOR, config)
    data = None if (out / "labels.json").exists() else survey(paths, config.image)
    with labelled(out, data, config, score) as (replay, labels):
        stage, metrics = OfflineStage(agent, replay, labels.scale), Metrics(out)
        stage.steps = stop or stage.steps
        train(stage, out, metrics, checkpoint_every_s=1000.0)
        metrics.close()
    return agent


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(out / "metrics.jsonl")]


# ---- the learner ----


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.95])
def test_the_expectile_of_a_coin(expectile: float) -> None:
    """Of 0 and 1 with equal chance: τ (1 - v) = (1 - τ) v, so v = τ."""
    q = torch.tensor([0.0, 1.0] * 8, dtype=torch.float64)
    slopes = []
    for v in (expectile - 0.01, expectile, expectile + 0.01):
        at = torch.tensor(v, dtype=torch.float64, requires_grad=True)
        expectile_loss(q - at, expectile).backward()
        assert at.grad is not None
        slopes.append(float(at.grad))
    assert slopes[0] < 0.0 < slopes[2] and slopes[1] == pytest.approx(0.0, abs=1e-12)
    errors = torch.tensor([-2.0, 3.0])
    assert float(expectile_loss(errors, expectile)) == pytest.approx(((1 - expectile) * 4 + expectile * 9) / 2)


def test_an_update_against_the_formulas() -> None:
    rng = np.random.default_rng(0)
    config = replace(CONFIG, shift=0, temperature=30.0, weight_clip=1.5, tau=0.25)
    agent = IQL(ACTOR, config)
    last, live = agent.target.get_parameter("twins.4.weight"), agent.critic.get_parameter("twins.4.weight")
    torch.nn.init.normal_(last, std=0.1, generator=torch.Generator().manual_seed(0))
    pictures = [rng.integers(0, 256, (6, 3, 64, 64), dtype=np.uint8) for _ in range(2)]
    actions, rewards = rng.uniform(-1, 1, (6, 2)).astype("f4"), rng.normal(size=6).astype("f4")
    discounts = np.array([0.9, 0.9, 0.0, 0.9, 0.9, 0.0], np.float32)
    with torch.no_grad():
        here, there = (agent.actor.encoder(torch.from_numpy(p).float() / 255.0 - 0.5) for p in pictures)
        value = agent.value(here).numpy()
        following = agent.value(there).numpy()
        q, judged = agent.critic(here, torch.from_numpy(actions)).numpy(), agent.target(here, torch.from_numpy(actions))
        mean = agent.actor.mean(here).numpy()
    error = judged.numpy().min(0) - value
    weight = np.minimum(np.exp(30.0 * error), 1.5)
    assert 0.0 < (weight == 1.5).mean() < 1.0, "of both kinds"
    target = rewards + discounts * following
    before = last.clone()
    told = agent.update(Batch(pictures[0], actions, {}, discounts, pictures[1]), rewards, 0)
    expected = {
        "critic_loss": ((q[0] - target) ** 2 + (q[1] - target) ** 2).mean(),
        "value_loss": np.mean([(0.7 if u > 0 else 0.3) * u * u for u in error]),
        "actor_loss": np.mean(weight * ((mean - actions) ** 2).sum(1) / 2),
        "weight": weight.mean(),
    }
    assert {name: float(told[name]) for name in expected} == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(last, 0.75 * before + 0.25 * live.detach())


def test_every_weight_learns_in_bfloat16() -> None:
    rng = np.random.default_rng(0)
    agent = IQL(ACTOR, replace(CONFIG, precision="bfloat16"))
    pictures = [rng.integers(0, 256, (16, 3, 64, 64), dtype=np.uint8) for _ in range(2)]
    actions, ones = rng.uniform(-1, 1, (16, 2)).astype("f4"), np.ones(16, np.float32)
    agent.update(Batch(pictures[0], actions, {}, ones, pictures[1]), ones, 0)
    for name in ("actor", "critic", "value"):
        for key, weight in agent.networks()[name].named_parameters():
            assert weight.grad is not None and weight.grad.dtype == torch.float32, key


@pytest.mark.parametrize("label", ["sparse", "dense"])
def test_the_policy_is_better_than_its_data(
    squares: tuple[list[Path], float], label: str, tmp_path: Path, one_thread: None
) -> None:
    paths, rate = squares
    agent = learn(tmp_path / "run", paths, CONFIG, towards_the_edge if label == "dense" else None)
    environment, successes = Squares(), np.zeros(0, bool)
    for number in range(20):
        frames, succeeded = environment.reset([10_000 + 2 * number, 10_001 + 2 * number]), np.zeros(2, bool)
        for _ in range(EPISODE):
            with torch.no_grad():
                action = agent.actor(torch.from_numpy(frames).permute(0, 3, 1, 2)).numpy()
            frames, _, _, success = environment.step(action)
            succeeded |= success
        successes = np.concatenate([successes, succeeded])
    assert 0.2 < rate < 0.5 and successes.mean() > rate + 0.4


def test_a_resumed_run_is_the_uninterrupted_one(
    squares: tuple[list[Path], float], tmp_path: Path, one_thread: None
) -> None:
    config = replace(CONFIG, steps=12, batch_size=8)
    bags = tmp_path / "bags"
    paths = [Path(shutil.copytree(path, bags / path.name)) for path in squares[0][:8]]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    straight = learn(whole, paths, config)
    learn(cut, paths, config, stop=5)
    shutil.rmtree(bags)  # what is labelled is not read again
    resumed = learn(cut, paths, config)
    assert losses(whole) == losses(cut) and len(losses(cut)) == 12
    for one, other in zip(straight.networks().values(), resumed.networks().values(), strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


# ---- the data ----


def test_actions_belong_to_the_frame_before_them(tmp_path: Path) -> None:
    frames, actions = noise(8, 7)
    exact = transitions(read_episode(write_bag(tmp_path / "exact", frames, actions), rule=ImageRule()))
    np.testing.assert_array_equal(exact[0], frames)
    np.testing.assert_array_equal(exact[1], actions)
    late = transitions(read_episode(write_bag(tmp_path / "late", frames, actions, late_ns=10**7), rule=ImageRule()))
    np.testing.assert_array_equal(late[1], actions)
    # 2.5 frames late and none for the last two: from frame 2 on, and no further than one frame behind the last action.
    shifted = write_bag(tmp_path / "shifted", frames, actions[:3], late_ns=25 * 10**7)
    found = transitions(read_episode(shifted, rule=ImageRule()))
    np.testing.assert_array_equal(found[0], frames[2:6])
    np.testing.assert_array_equal(found[1], actions[:3])


def test_what_the_replay_holds(tmp_path: Path) -> None:
    """A success is rewarded once and is the end; a failure goes on."""
    good, bad = noise(5, 4), noise(6, 5)
    paths = [write_bag(tmp_path / "a", *good), write_bag(tmp_path / "b", *bad, success=False)]
    (tmp_path / "run").mkdir()
    score = lambda frames: -np.arange(1.0, frames.shape[1], dtype=np.float32)[None]  # noqa: E731
    with labelled(tmp_path / "run", survey(paths, ImageRule()), CONFIG, score) as (replay, labels):
        batch = replay.sample(500, np.random.default_rng(0))
    assert [(e["steps"], e["success"], e["video"]) for e in labels.episodes] == [(4, True, -10.0), (5, False, -15.0)]
    assert labels.scale == pytest.approx(EPISODE / 15.0), "from -15 to 0, the end's worth"
    ended = batch.discounts == 0.0
    assert 0.05 < ended.mean() < 0.2
    np.testing.assert_array_equal(ended, batch.rewards[SPARSE] == 1.0)
    np.testing.assert_array_equal(batch.next_frames[ended][0], good[0][-1].transpose(2, 0, 1))
    assert set(batch.rewards[VIDEO]) == {-1.0, -2.0, -3.0, -4.0, -5.0}
    with pytest.raises(BagError, match="at least one with a reward"):
        reward_scale([{"video": 0.0, "success": False}], success_weight=1.0, span=100.0)


def test_unusable_episodes_are_left_out_with_a_reason(tmp_path: Path) -> None:
    usable = write_bag(tmp_path / "usable", *noise(4, 3))
    write_bag(tmp_path / "short", *noise(2, 1))
    write_bag(tmp_path / "silent", *noise(4, 0))
    write_bag(tmp_path / "partial", *noise(4, 3), outcome="partial")
    write_bag(tmp_path / "torques", noise(4, 3)[0], 40.0 * noise(4, 3)[1])
    write_bag(tmp_path / "timeless", *noise(4, 3), rate_hz=0.0)
    notes: list[str] = []
    data = survey(sorted(tmp_path.iterdir()), ImageRule(), notes.append)
    assert data.paths == (usable,) and data.frames == 4 and data.action_size == 2
    reasons = {
        "partial": "outcome partial",
        "short": "at least 2 steps; found 1",
        "silent": "recorded actions; found none",
        "timeless": "a known rate",
        "torques": "[-1, 1]",
    }
    for name, reason in reasons.items():
        [note] = [note for note in notes if f"/{name}:" in note]
        assert reason in note
    with pytest.raises(BagError, match="found 1 that cannot"):
        survey([tmp_path / "short"], ImageRule())


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({}, 3, "action_size 2, as in .*found 3"),
        ({"rate_hz": 20.0}, 2, "rate_hz 10.0, as in .*found 20.0"),
        ({"task": "circle"}, 2, "task square, as in .*found circle"),
        ({"render": {"camera": "other"}}, 2, "render .*found {'camera': 'other'}"),
    ],
)
def test_episodes_that_differ_are_refused(tmp_path: Path, changes: dict[str, Any], size: int, words: str) -> None:
    write_bag(tmp_path / "a", *noise(4, 3))
    write_bag(tmp_path / "b", *noise(4, 3, size), **changes)
    with pytest.raises(BagError, match=words):
        survey(sorted(tmp_path.iterdir()), ImageRule())


# ---- the command ----


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None) -> None:
    for number in range(3):
        write_bag(tmp_path / "bags" / str(number), *noise(6, 5), success=number > 0)
    write_bag(tmp_path / "bags" / "short", *noise(2, 1))
    out = tmp_path / "run"
    words = ["train-offline", str(tmp_path / "bags"), "--out", str(out), "--steps", "3", "--device", "cpu"]
    words += ["--set", "batch_size=8", "network.feature_size=8", "network.hidden_size=16", "--reward"]
    assert cli.main([*words, "sparse"]) == 0
    said = capsys.readouterr().out
    assert "left out: " in said and "3 episodes of square, 2 successful, 15 steps; rewards are scaled by 100" in said
    policy = ActingPolicy.load(out / "agent")
    assert (policy.config.task, policy.config.rate_hz, policy.act(noise(2, 1)[0][0]).shape) == ("square", 10.0, (2,))
    assert len(losses(out)) == 3
    assert cli.main([*words, "sparse", "--resume"]) == 0 and len(losses(out)) == 3

    mistakes = {
        ("sparse",): "--resume",
        ("sparse", "--resume", "--seed", "1"): "what this run was started with",
        ("default", "--out", str(tmp_path / "new")): "give it with --model",
        ("sparse", "--set", "expectile=1", "--out", str(tmp_path / "new")): "expectile in (0, 1)",
    }
    for more, expected in mistakes.items():
        assert cli.main([*words, *more]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("config", "render", "words"),
    [({}, {"camera": "gripper"}, "camera gripper"), ({"image": {"size": 64, "crop": "center"}}, RENDER, "image")],
)
def test_a_reward_model_of_other_pictures_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    render: Any,
    words: str,
) -> None:
    write_bag(tmp_path / "bags" / "one", *noise(6, 5))
    save_checkpoint(tmp_path / "model", {"weight": torch.zeros(1)}, config, {"kind": "reward", "render": render})
    monkeypatch.setattr("dr_core.rewards.online.video_reward", lambda *args, **options: towards_the_edge)
    bags, model, out = (str(tmp_path / name) for name in ("bags", "model", "run"))
    assert cli.main(["train-offline", bags, "--model", model, "--out", out]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()
