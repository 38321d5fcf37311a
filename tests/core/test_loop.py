"""The training loop of an agent: what it collects, what it learns from, and that a resumed run is the whole one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dr_core.agent.actor import ActorConfig, NetworkConfig
from dr_core.agent.drqv2 import AgentConfig, DrQV2
from dr_core.agent.loop import EVALUATION_SEED, GOAL_VIDEO, SPARSE, VIDEO, AgentStage, LoopConfig, reward_columns
from dr_core.agent.replay import Replay
from dr_core.data.video import read_video
from dr_core.rewards.combine import until_success
from dr_core.rewards.genreward.encoders import CodecVideo
from dr_core.rewards.genreward.forward_backward import FBConfig
from dr_core.rewards.genreward.goal import Goal
from dr_core.rewards.genreward.reward import GenReward, GenRewardConfig
from dr_core.rewards.names import RewardName
from dr_core.rewards.online import RewardConfig
from dr_core.training import Metrics, read_metrics, train

Frames = NDArray[np.uint8]
EPISODE = 8
AGENT = AgentConfig(batch_size=8, seed_steps=16, explore_steps=16, sigma_steps=100)
CONFIG = LoopConfig(
    frames=2 * EPISODE * 6, reward=RewardConfig("sparse"), agent=AGENT, eval_every_frames=64, eval_episodes=3,
    replay_capacity=1000, network=NetworkConfig(feature_size=8, hidden_size=16),
)  # fmt: skip


class Squares:
    """A square that actions move; success while it is at the left edge. Two episodes side by side."""

    num, episode_steps, action_repeat = 2, EPISODE, 1

    def __init__(self) -> None:
        self.places = np.zeros((2, 2))
        self.seeds: list[list[int]] = []

    def reset(self, seeds: Sequence[int]) -> Frames:
        self.seeds.append(list(seeds))
        self.places = np.stack([np.random.default_rng(seed).uniform(10.0, 50.0, 2) for seed in seeds])
        return self.draw()

    def step(self, actions: NDArray[np.float32]) -> tuple[Frames, NDArray[np.float32], NDArray[Any], NDArray[Any]]:
        self.places = np.clip(self.places + 6.0 * actions[:, :2], 0.0, 56.0)
        success = self.places[:, 0] < 8.0
        return self.draw(), success.astype(np.float32), np.zeros(2, bool), success

    def send(self, actions: NDArray[np.float32]) -> None:
        self.sent = actions

    def receive(self) -> tuple[Frames, NDArray[np.float32], NDArray[Any], NDArray[Any]]:
        return self.step(self.sent)

    def draw(self) -> Frames:
        frames = np.zeros((2, 64, 64, 3), np.uint8)
        for frame, (x, y) in zip(frames, self.places.astype(int), strict=True):
            frame[y : y + 8, x : x + 8] = 255
        return frames


class Blocks:
    """A feature of a frame: how bright each block of 8 x 8 pixels is."""

    name, size = "blocks", 64

    def encode(self, frames: Frames) -> NDArray[np.float32]:
        means = frames[..., 0].reshape(-1, 8, 8, 8, 8).mean((2, 4), dtype=np.float32)
        return means.reshape(len(frames), -1) / np.float32(255.0)


def goal_frames() -> Frames:
    """The square goes to the left edge."""
    squares = Squares()
    squares.reset([0, 1])
    steps = [squares.step(np.full((2, 2), (-1.0, 0.0), np.float32))[0][:1] for _ in range(2 * EPISODE)]
    return np.concatenate(steps)


class Run:
    """A training in a folder, begun or resumed by each call."""

    def __init__(self, out: Path, config: LoopConfig = CONFIG, **options: Any) -> None:
        self.out, self.config, self.options = out, config, options
        out.mkdir(exist_ok=True)

    def __call__(self, rounds: int | None = None) -> tuple[AgentStage, Squares]:
        environments, metrics = Squares(), Metrics(self.out)
        actor = ActorConfig(2, "square", 10.0, network=self.config.network)
        agent = DrQV2(actor, self.config.agent, self.config.seed)
        reward = self.config.reward
        goal = GenReward(reward.goal, GOAL, Blocks(), CodecVideo(Blocks()), 2) if reward.from_goal else None
        with Replay(
            self.out / "replay", capacity=self.config.replay_capacity, action_size=2,
            reward_names=reward_columns(reward), frame_stack=self.config.network.frame_stack,
            feature_size=goal.feature_size if goal else 0,
        ) as replay:  # fmt: skip
            stage = AgentStage(
                self.config, agent, environments, replay, self.options.get("video"), self.options.get("experts"),
                self.out, goal,
            )  # fmt: skip
            stage.steps = rounds or stage.steps
            train(stage, self.out, metrics, log_every=1, checkpoint_every_s=0.0)
            self.digest, self.added = replay.digest(), replay.added
        metrics.close()
        return stage, environments


GOAL = Goal(goal_frames(), 2 * EPISODE - 1, "last", "a drawing")
GOAL_CONFIG = GenRewardConfig(
    video_weight=0.5, fb_weight=0.1, video_motion=True, fb_density=True,
    fb=FBConfig(size=16, hidden_size=64, batch_size=32, discount=0.9),
)  # fmt: skip


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(out / "metrics.jsonl")]


def test_rounds_evaluations_and_the_replay(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    _, environments = run()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["frames"] for line in lines] == [16.0 * k for k in range(1, 7)]
    assert lines[0]["loss"] == 0.0 and all(line["loss"] > 0.0 for line in lines[2:])
    assert run.added == 12
    played = [seed for seeds in environments.seeds for seed in seeds]
    training = [seed for seed in played if seed < EVALUATION_SEED]
    assert len(set(training)) == 12, "each episode has a goal of its own"
    evaluations = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [(one["frames"], one["n"]) for one in evaluations] == [(64, 3), (96, 3)], "the last round is evaluated too"
    assert evaluations[0]["low"] <= evaluations[0]["success"] <= evaluations[0]["high"]
    assert sorted(seed - EVALUATION_SEED for seed in played if seed >= EVALUATION_SEED) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(read_video(tmp_path / "run" / "videos" / "frames_00000064.mp4")[0]) == EPISODE + 1


def test_it_acts_on_the_newest_frames_of_the_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, act = [], DrQV2.act

    def watched(self: DrQV2, frames: Frames, step: int, *, explore: bool) -> NDArray[np.float32]:
        seen.append(frames)
        return act(self, frames, step, explore=explore)

    monkeypatch.setattr(DrQV2, "act", watched)
    Run(tmp_path / "run", replace(CONFIG, network=replace(CONFIG.network, frame_stack=3)))()
    for start in (0, EPISODE):
        episode = np.stack(seen[start : start + EPISODE])  # (T, 2, H, W, 9), oldest first
        newest = episode[..., 6:]
        np.testing.assert_array_equal(episode[0], np.concatenate([newest[0]] * 3, -1))
        np.testing.assert_array_equal(episode[2:, ..., :3], newest[:-2])
        np.testing.assert_array_equal(episode[1:, ..., 3:6], newest[:-1])


@pytest.mark.parametrize("reward", ["sparse", "rnd", "amp", "genreward"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, reward: RewardName) -> None:
    config = replace(CONFIG, reward=RewardConfig(reward, alpha=0.5, goal=GOAL_CONFIG))
    experts = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    whole, cut = (Run(tmp_path / name, config, experts=experts) for name in ("whole", "cut"))
    straight, _ = whole()
    cut(3)
    resumed, _ = cut()
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert whole.digest == cut.digest
    frames = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = straight.agent.act(frames, 100, explore=True)
    np.testing.assert_array_equal(resumed.agent.act(frames, 100, explore=True), expected)


def test_episodes_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    """A kill between the replay's commit and the next checkpoint."""
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    whole()
    cut(3)
    with Replay(tmp_path / "cut" / "replay", capacity=1000, action_size=2, reward_names=(VIDEO, SPARSE)) as replay:
        zeros = {name: np.zeros(EPISODE, np.float32) for name in (VIDEO, SPARSE)}
        replay.add(
            np.zeros((EPISODE + 1, 64, 64, 3), np.uint8), np.zeros((EPISODE, 2), np.float32), zeros, terminal=False
        )
    cut()
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut") and whole.digest == cut.digest


def test_the_terms_of_the_reward(tmp_path: Path) -> None:
    video: Callable[[Frames], NDArray[np.float32]] = lambda frames: np.full((2, EPISODE), 2.0, np.float32)  # noqa: E731
    config = replace(CONFIG, reward=RewardConfig("default", alpha=0.25, centred=False, until_success=False))
    Run(tmp_path / "run", config, video=video)()
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    n_step_sum = 2.0 * (1 + 0.99 + 0.99**2)
    assert line["return_video"] == pytest.approx(2.0 * EPISODE)
    assert 0.75 * 2.0 < line["term_video"] <= 0.75 * n_step_sum + 1e-6, "sums of one to three steps"
    assert line["term_exploration"] > 0.0
    total = line["term_video"] + line["term_exploration"] + line["term_success"]
    assert line["batch_reward"] == pytest.approx(total, rel=1e-5)


def test_the_terms_of_a_goal(tmp_path: Path) -> None:
    """One by one in the metrics, by the one formula: neither has the share 1 - alpha, both have their own weight."""
    lines = {}
    for name, goal in (("one", GOAL_CONFIG), ("two", replace(GOAL_CONFIG, video_weight=1.0, fb_weight=0.0))):
        reward = RewardConfig("genreward", alpha=0.25, centred=False, goal=goal)
        Run(tmp_path / name, replace(CONFIG, frames=16 * 3, reward=reward))()
        lines[name] = read_metrics(tmp_path / name / "metrics.jsonl")[-1]
    one, two = lines["one"], lines["two"]
    # With another reward from the first update on, the agents part; the second update's batch is of the same episodes.
    assert one["term_video"] == two["term_video"] == 0.0 and one["term_exploration"] > 0.0
    assert one["term_fb"] != 0.0 == two["term_fb"]
    assert 0.0 < two["term_goal_video"] <= 1.0 and 0.0 < one["term_goal_video"] <= 0.5
    for line in lines.values():
        names = ("term_video", "term_exploration", "term_success", "term_goal_video", "term_fb")
        assert line["batch_reward"] == pytest.approx(sum(line[name] for name in names), rel=1e-4)
        assert {"fb_loss", "fb_orthonormality", "fb_measure"} <= set(line)


def test_the_goal_terms_count_from_random_behaviour(tmp_path: Path) -> None:
    """Centred, what all transitions have in common is no part of the forward–backward term, nor of the likeness."""
    agent = replace(AGENT, batch_size=64)
    reward = RewardConfig("genreward", alpha=0.0, goal=replace(GOAL_CONFIG, fb_weight=0.5))
    stage, _ = Run(tmp_path / "run", replace(CONFIG, agent=agent, reward=reward))()
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert abs(line["term_fb"]) < 0.2 * line["fb_spread"], "a little is left, as not all transitions have three steps"
    total, count = stage._random[GOAL_VIDEO]
    assert count == 2 * EPISODE, "of the round before the first update"
    assert 0.0 < abs(total / count) < 1.0 / EPISODE, "one clip an episode, its cosine at most 1"


def test_a_goal_and_a_reward_without_one_do_not_go_together(tmp_path: Path) -> None:
    stage, _ = Run(tmp_path / "run", replace(CONFIG, reward=RewardConfig("genreward"), frames=16))()
    for config, goal in ((CONFIG, stage._genreward), (stage.config, None)):
        with pytest.raises(ValueError, match="do not belong together"):
            AgentStage(config, stage.agent, Squares(), stage.replay, None, None, tmp_path, goal)


def test_it_learns_to_move_the_square_from_a_goal_alone(tmp_path: Path) -> None:
    """Without the sparse reward: r_fb draws it towards the goal frame."""
    torch.set_num_threads(1)
    agent = AgentConfig(batch_size=32, seed_steps=64, explore_steps=64, sigma_steps=300, learning_rate=1e-3)
    goal = replace(GOAL_CONFIG, fb_weight=0.1, video_weight=0.0, fb=replace(GOAL_CONFIG.fb, learning_rate=1e-3))
    reward = RewardConfig("genreward", alpha=0.0, success_weight=0.0, goal=goal)
    config = replace(
        CONFIG, frames=16 * 30, agent=agent, reward=reward, eval_every_frames=16 * 30, eval_episodes=20
    )  # fmt: skip
    Run(tmp_path / "run", config)()
    evaluation = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text())
    print(f"success {evaluation['success']:.0%} from the goal frame alone")
    assert evaluation["success"] >= 0.8


def test_the_video_term_counts_from_random_behaviour(tmp_path: Path) -> None:
    video: Callable[[Frames], NDArray[np.float32]] = lambda frames: np.full((2, EPISODE), -3.0, np.float32)  # noqa: E731
    config = replace(CONFIG, reward=RewardConfig("default", alpha=0.0, video_weight=0.5, until_success=False))
    stage, _ = Run(tmp_path / "run", config, video=video)()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["term_video"] == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(ValueError, match="centred"):
        replace(config, agent=replace(config.agent, discount=1.0))
    assert stage.config.reward.centred


def test_the_video_term_ends_with_the_first_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4)
    sparse = np.array([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(until_success(video, sparse), [[1.0, 2.0, 0.0, 0.0], [5.0, 6.0, 7.0, 8.0]])

    def succeeding(self: Squares, actions: NDArray[np.float32]) -> tuple[Any, ...]:
        return self.draw(), np.ones(2, np.float32), np.zeros(2, bool), np.ones(2, bool)

    monkeypatch.setattr(Squares, "step", succeeding)
    constant: Callable[[Frames], NDArray[np.float32]] = lambda frames: np.full((2, EPISODE), -3.0, np.float32)  # noqa: E731
    for name, ends, wanted in (("default", True, -3.0), ("default", False, -3.0 * EPISODE), ("viper", True, -24.0)):
        reward = RewardConfig(name, alpha=0.0, until_success=ends)  # type: ignore[arg-type]
        run = tmp_path / f"{name}_{ends}"
        Run(run, replace(CONFIG, reward=reward, frames=16), video=constant)()
        assert read_metrics(run / "metrics.jsonl")[-1]["return_video"] == wanted


def test_it_learns_to_move_the_square(tmp_path: Path) -> None:
    """From the sparse reward alone, in a minute's worth of updates."""
    torch.set_num_threads(1)
    agent = AgentConfig(batch_size=32, seed_steps=64, explore_steps=64, sigma_steps=300, learning_rate=1e-3)
    config = replace(CONFIG, frames=16 * 40, agent=agent, eval_every_frames=16 * 40, eval_episodes=20)
    Run(tmp_path / "run", config)()
    evaluation = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text())
    assert evaluation["success"] >= 0.9
