"""Online reinforcement learning from a learned reward, as a resumable training stage.

A step of the stage is a round: one episode in each of the parallel environments, which begin and end together, with
the agent's updates in between. The reward of the video model is computed for whole episodes as they end (published);
exploration is computed for what is sampled. Between two rounds nothing is half done, so that is where it is saved.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_core.agent.actor import NetworkConfig
from dr_core.agent.drqv2 import AgentConfig, DrQV2
from dr_core.agent.replay import Batch, Replay
from dr_core.data.video import write_video
from dr_core.rewards.amp import AdversarialReward
from dr_core.rewards.combine import Terms, combine, until_success
from dr_core.rewards.genreward.forward_backward import FBConfig
from dr_core.rewards.genreward.reward import GenReward, GenRewardConfig
from dr_core.rewards.online import EpisodeReward, RewardConfig
from dr_core.rewards.rnd import RandomNetworkDistillation
from dr_core.robot.evaluation import wilson
from dr_core.seeding import numpy_generator

Frames = NDArray[np.uint8]
VIDEO, SPARSE, GOAL_VIDEO = "video", "sparse", "goal_video"
EVALUATION_SEED = 1_000_000
"""Of the first evaluation episode; training draws from below."""
VIDEO_RATE_HZ = 20.0


class Environments(Protocol):
    """Episodes of one task in parallel that begin and end together."""

    num: int
    episode_steps: int
    action_repeat: int

    def reset(self, seeds: Sequence[int]) -> Frames:
        """The first frames (N, H, W, 3) of the episodes that belong to these seeds."""

    def step(self, actions: NDArray[np.float32]) -> tuple[Frames, NDArray[np.float32], NDArray[Any], NDArray[Any]]:
        """Frames (N, H, W, 3), successful simulator steps (N,), whether the time is over, whether it succeeded."""

    def send(self, actions: NDArray[np.float32]) -> None:
        """The first half of ``step``, which does not wait."""

    def receive(self) -> tuple[Frames, NDArray[np.float32], NDArray[Any], NDArray[Any]]:
        """The second half: what ``step`` returns."""


@dataclass(frozen=True)
class LoopConfig:
    """One training of an agent."""

    frames: int = 200_000
    """Simulator steps in all; an action that is repeated counts as often."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    eval_every_frames: int = 10_000
    eval_episodes: int = 10
    replay_capacity: int = 1_000_000
    """Transitions; the oldest episodes make room."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("frames", "eval_every_frames", "eval_episodes", "replay_capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if (self.reward.centred or self.reward.from_goal) and self.agent.discount == 1.0:
            raise ValueError("agent.discount = 1 needs reward.centred = false, and no goal video")


PRESETS: dict[str, LoopConfig] = {
    # For a processor: a fraction of the published update's work, and exploration that ends.
    "default": LoopConfig(
        frames=100_000,
        reward=RewardConfig(
            alpha=0.0,
            video_weight=0.2,
            goal=GenRewardConfig(
                video_weight=1.0,
                fb_weight=0.05,
                video_motion=True,
                fb_density=True,
                # Few updates have to do: a shorter look ahead, and targets that follow faster.
                fb=FBConfig(
                    hidden_size=256, learning_rate=1e-3, discount=0.95, tau=0.05, batch_size=64, update_every=8
                ),
            ),
        ),
        agent=AgentConfig(
            batch_size=64,
            learning_rate=3e-4,
            sigma_steps=20_000,
            explore_hold=10,
            saturation_penalty=0.05,
            precision="bfloat16",
        ),
        network=NetworkConfig(strides=(3, 2, 1, 1), hidden_size=256),
    ),
    # 3.1 million steps of the agent; here in simulator steps at the action repeat of most tasks.
    "paper": LoopConfig(frames=6_200_000, reward=RewardConfig(centred=False, until_success=False)),
}
"""Where a user's settings start from."""


def reward_columns(reward: RewardConfig) -> tuple[str, ...]:
    """The rewards of each transition that the replay keeps."""
    return (VIDEO, SPARSE, GOAL_VIDEO) if reward.from_goal else (VIDEO, SPARSE)


class AgentStage:
    """What ``dr_core.training.train`` repeats: a round of episodes and updates.

    Args:
        config: of the training.
        agent: what learns.
        environments: where it acts.
        replay: where episodes are kept, with the ``reward_columns`` of the reward and the features of ``genreward``.
        video_reward: scores whole episodes; None: no such reward.
        experts: frames (M, H, W, 3) of experts, for the reward `amp`.
        out: folder of evaluations and videos.
        genreward: the terms of a goal video, for the rewards that have them.
    """

    name = "drqv2"

    def __init__(
        self,
        config: LoopConfig,
        agent: DrQV2,
        environments: Environments,
        replay: Replay,
        video_reward: EpisodeReward | None,
        experts: Frames | None,
        out: Path,
        genreward: GenReward | None = None,
    ) -> None:
        if config.reward.from_goal == (genreward is None):
            raise ValueError(f"reward {config.reward.name} and a goal video do not belong together")
        self.config, self.agent, self.replay, self.out = config, agent, replay, out
        self._environments, self._video_reward, self._experts = environments, video_reward, experts
        self._round_frames = environments.num * environments.episode_steps * environments.action_repeat
        self.steps = -(-config.frames // self._round_frames)
        explores = config.reward.exploration > 0.0
        self._rnd = RandomNetworkDistillation(config.seed, device=str(agent.device)) if explores else None
        self._amp = AdversarialReward(config.seed, device=str(agent.device)) if config.reward.name == "amp" else None
        self._genreward = genreward
        self._due = 0.0
        self._updates = 0
        self._trained_s = 0.0
        # Sum and number of the video terms before the first update.
        self._random = {name: np.zeros(2) for name in reward_columns(config.reward) if name != SPARSE}

    # ---- a round ----

    def step(self, index: int) -> dict[str, Tensor]:
        """Play one episode in each environment, with updates in between; what happened, as scalars."""
        begun_s = time.monotonic()
        envs, seed = self._environments, self.config.seed
        seeds = [int(s) for s in numpy_generator(seed, "episodes", index).integers(0, EVALUATION_SEED, envs.num)]
        draw = numpy_generator(seed, "replay", index)
        frames, actions, sparse, success = [envs.reset(seeds)], [], [], np.zeros(envs.num, bool)
        losses: dict[str, float] = {}
        for t in range(envs.episode_steps):
            acted = (index * envs.episode_steps + t) * envs.num
            action = self.agent.act(self._seen(frames), acted, explore=True)
            envs.send(action)
            losses = self._learn(acted, draw, metrics=t == envs.episode_steps - 1) or losses  # while they simulate
            frame, reward, _, succeeded = envs.receive()
            frames.append(frame)
            actions.append(action)
            sparse.append(reward)
            success |= np.asarray(succeeded, bool)
        rewards = self._keep(np.stack(frames, 1), np.stack(actions, 1), np.stack(sparse, 1))
        done = (index + 1) * self._round_frames
        # The training loop refuses losses that are not finite; before the first update there is none.
        numbers = {"loss": losses.get("critic_loss", 0.0), "frames": float(done), "success": success.mean(), **losses}
        numbers |= {f"return_{name}": values.sum(1).mean() for name, values in rewards.items()}
        took_s = time.monotonic() - begun_s
        self._trained_s += took_s
        numbers["frames_per_s"] = self._round_frames / took_s
        every = self.config.eval_every_frames
        if index + 1 == self.steps or done // every > (done - self._round_frames) // every:
            numbers["eval_success"] = self.evaluate(done)
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()}

    def _keep(
        self, frames: Frames, actions: NDArray[np.float32], sparse: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        """Reward the episodes (N, T) and put them into the replay."""
        video = np.zeros_like(sparse) if self._video_reward is None else self._video_reward(frames)
        if self.config.reward.until_success and self.config.reward.name != "viper":
            video = until_success(video, sparse)
        rewards, features = {VIDEO: video, SPARSE: sparse}, None
        if self._genreward is not None:
            rewards[GOAL_VIDEO], features = self._genreward.video(frames), self._genreward.encode(frames)
        if not self._updates:
            for name, tally in self._random.items():
                tally += rewards[name].sum(dtype=np.float64), rewards[name].size
        for i in range(len(frames)):
            own = {name: values[i] for name, values in rewards.items()}
            feature = None if features is None else features[i]
            self.replay.add(frames[i], actions[i], own, terminal=False, features=feature)
        return rewards

    def _learn(self, acted: int, draw: np.random.Generator, *, metrics: bool) -> dict[str, float]:
        """As many updates as the steps in the environments are worth."""
        settings = self.config.agent
        if acted < settings.seed_steps or not len(self.replay):
            return {}
        self._due += self._environments.num / settings.update_every
        told: dict[str, float] = {}
        while self._due >= 1.0:
            self._due -= 1.0
            batch = self.replay.sample(settings.batch_size, draw)
            terms = self._reward(batch, draw)
            told = self.agent.update(batch, terms.total, acted, metrics=metrics)
            if self._genreward is not None and self._updates % self._genreward.config.fb.update_every == 0:
                self._genreward.learn(self.replay, draw)
            self._updates += 1
            if metrics:
                names = Terms._fields if self._genreward is not None else Terms._fields[:3]
                told |= {f"term_{name}": float(np.mean(getattr(terms, name))) for name in names}
                if self._genreward is not None:  # the mean of a centred term says nothing
                    told |= {"fb_spread": float(np.std(terms.fb)), **self._genreward.told}
        return told

    def _reward(self, batch: Batch, draw: np.random.Generator) -> Terms:
        """The terms of the reward of a batch, (B,) each: sums over n steps, but novelty of the frame reached."""
        settings = self.config.reward
        video, novelty = self._centred(batch, VIDEO), np.zeros_like(batch.rewards[VIDEO])
        goal_video = fb = np.float32(0.0)
        if self._genreward is not None and batch.features is not None:
            goal_video = settings.goal.video_weight * self._centred(batch, GOAL_VIDEO)
            # Of the first step, for each of them: another two passes of F would cost more than they tell.
            reach = self._genreward.reach(batch.features, batch.actions, centred=settings.centred)
            fb = settings.goal.fb_weight * self._steps_of(batch) * reach
        if self._rnd is not None or self._amp is not None:
            newest = np.ascontiguousarray(batch.next_frames[:, -3:].transpose(0, 2, 3, 1))  # (B, H, W, 3)
        if self._rnd is not None:
            novelty = self._rnd.update(newest)
        if self._amp is not None and self._experts is not None:
            video = self._amp.score(newest)
            if self._updates % self._amp.config.update_every == 0:
                self._amp.update(self._experts, newest, draw)
        return combine(
            settings.video_weight * video,
            novelty,
            batch.rewards[SPARSE],
            alpha=settings.exploration,
            success_weight=settings.success_weight,
            goal_video=goal_video,
            fb=fb,
        )

    def _centred(self, batch: Batch, name: str) -> NDArray[np.float32]:
        """A reward column of a batch (B,), without the mean of the first, random episodes where that is asked for."""
        values = batch.rewards[name]
        if not self.config.reward.centred:
            return values
        total, count = self._random[name]
        return values - np.float32(total / count) * self._steps_of(batch)

    def _steps_of(self, batch: Batch) -> NDArray[np.float32]:
        """1 + γ + ... + γ^(n - 1) of each transition, (B,); its discount is γ^n."""
        return (1.0 - batch.discounts) / (1.0 - self.config.agent.discount)

    def _seen(self, frames: Sequence[Frames]) -> Frames:
        """What the agent sees of the frames (N, H, W, 3) of running episodes: (N, H, W, 3 * frame_stack)."""
        stack = self.config.network.frame_stack
        if stack == 1:
            return frames[-1]
        return np.concatenate([frames[max(0, len(frames) - stack + i)] for i in range(stack)], -1)

    # ---- evaluation ----

    def evaluate(self, frames: int) -> float:
        """Success rate of the mean action; a line in ``evaluations.jsonl`` and a video of the first episode."""
        successes, video = self._play_evaluation()
        low, high = wilson(int(successes.sum()), len(successes))
        line = {"frames": frames, "trained_s": round(self._trained_s, 1), "success": float(successes.mean())}
        line |= {"low": low, "high": high, "n": len(successes)}
        with (self.out / "evaluations.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        folder = self.out / "videos"
        folder.mkdir(exist_ok=True)
        path = folder / f"frames_{frames:08d}.mp4"
        path.unlink(missing_ok=True)  # of a run that was killed after it
        write_video(path, video, VIDEO_RATE_HZ, lossless=False)
        return float(successes.mean())

    def _play_evaluation(self) -> tuple[NDArray[np.bool_], Frames]:
        """Success (K,) at any step of each episode, and the frames (T + 1, H, W, 3) of the first one."""
        envs, wanted = self._environments, self.config.eval_episodes
        successes = np.zeros(0, bool)
        film: list[Frames] = []
        while len(successes) < wanted:
            seeds = [EVALUATION_SEED + len(successes) + i for i in range(envs.num)]
            frames, succeeded = [envs.reset(seeds)], np.zeros(envs.num, bool)
            for _ in range(envs.episode_steps):
                frame, _, _, success = envs.step(self.agent.act(self._seen(frames), 0, explore=False))
                succeeded |= np.asarray(success, bool)
                frames.append(frame)
            film = film or [frame[0] for frame in frames]
            successes = np.concatenate([successes, succeeded])
        return successes[:wanted], np.stack(film)

    # ---- saving ----

    def tensors(self) -> dict[str, Tensor]:
        """Weights by name."""
        return {f"actor.{name}": value for name, value in self.agent.actor.state_dict().items()}

    def training_state(self) -> dict[str, Any]:
        """Everything else that the next round depends on."""
        return {
            "agent": self.agent.state(),
            "rnd": None if self._rnd is None else _state_of(self._rnd),
            "amp": None if self._amp is None else self._amp.state(),
            "due": self._due,
            "updates": self._updates,
            "trained_s": self._trained_s,
            **{f"random_{name}": tally.tolist() for name, tally in self._random.items()},
            "genreward": None if self._genreward is None else self._genreward.state(),
            "episodes": self.replay.added,
        }

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Go on from what the two above gave; episodes of later rounds are forgotten."""
        self.agent.restore(training["agent"])
        if self._rnd is not None:
            self._rnd.load_state_dict(training["rnd"]["network"])
            self._rnd.optimizer.load_state_dict(training["rnd"]["optimizer"])
        if self._amp is not None:
            self._amp.restore(training["amp"])
        self._due, self._updates = float(training["due"]), int(training["updates"])
        self._trained_s = float(training["trained_s"])
        self._random = {name: np.array(training[f"random_{name}"], np.float64) for name in self._random}
        if self._genreward is not None:
            self._genreward.restore(training["genreward"])
        self.replay.rewind(int(training["episodes"]))


def _state_of(rnd: RandomNetworkDistillation) -> dict[str, Any]:
    return copy.deepcopy({"network": dict(rnd.state_dict()), "optimizer": rnd.optimizer.state_dict()})
