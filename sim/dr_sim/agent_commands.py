"""Commands that train and evaluate agents. Heavy imports happen inside `run`, so that help stays quick."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from dr_core.errors import ConfigError
from dr_core.rewards.names import RewardName
from dr_sim.workers import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dr_core.agent.loop import LoopConfig
    from dr_core.rewards.genreward.encoders import FrameEncoder, VideoEncoder
    from dr_core.rewards.genreward.goal import Goal
    from dr_core.rewards.genreward.reward import GenReward
    from dr_core.rewards.model import RewardModel
    from dr_sim.vector import VectorEnvironment

IMAGINED_FRAMES = 48
"""Of an imagined goal video: about as many as an expert needs."""
IMAGINED_SEED = 2_000_000
"""Of the episode whose first frame an imagined goal video begins with; neither trained nor evaluated with."""


@dataclass(frozen=True)
class TrainAgent:
    """Train an agent (DrQ-v2) on a simulated task, from a learned reward or from one of the baselines.

    The run's directory holds curves (metrics.jsonl, TensorBoard), evaluations with videos, the replay, and in the end
    the agent in OUT/agent. Ctrl-C ends after the running episodes; --resume goes on exactly as if nothing had happened.
    """

    task: str
    """A Meta-World v3 task, adroit-door, adroit-hammer, adroit-pen, or panda-push."""
    out: Path
    """Directory of the run."""
    reward: RewardName = "default"
    """What the agent learns from; all but sparse with exploration and success added."""
    model: Path | None = None
    """Reward model (RUN/model), for default, diffusion_reward, likelihood, and the codec of viper and genreward."""
    viper: Path | None = None
    """VIPER model, for viper and viper_std."""
    experts: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Expert episodes, for amp; for genreward, the first one that succeeds is the goal, if none is given."""
    goal: Path | None = None
    """Goal video for genreward: a video file, a bag, or a directory with one of the task (TASK.mp4, or recorded of it).
    Left out: one of --experts, else what the reward model imagines from the first frame of the task."""
    goal_frame: str = "last"
    """Goal frame in that video: last, or its number from 0."""
    goal_picture: Path | None = None
    """JPEG or PNG of the goal: the goal frame is the one most like it."""
    goal_text: str | None = None
    """What the goal looks like: the goal frame is the one that CLIP finds most like it."""
    clip: Path | None = None
    """Directory of a CLIP model, for --goal-text."""
    frame_encoder: Path | None = None
    """Directory of a DINOv2 model whose features genreward learns on; left out: the codec of the reward model."""
    video_encoder: Path | None = None
    """Directory of a CogVideoX pipeline or its VAE, whose latents clips are compared by; left out: the same codec."""
    goal_unfamiliar: bool = False
    """Take a goal video even if it looks like nothing the reward model was trained on."""
    preset: Literal["default", "paper"] = "default"
    """Settings to start from: for a processor with a few cores, or the published ones."""
    frames: int | None = None
    """Simulator steps in all, action repeats counted; left out: the preset's 100,000, or 6,200,000 of the paper."""
    alpha: float | None = None
    """Share of exploration in the reward; left out: none, with the preset paper 0.95, or 0.5 for viper and none for
    genreward."""
    envs: int = field(default_factory=usable_cores)
    """Environments side by side; more than there are cores is slower."""
    seed: int = 0
    """Of weights, exploration, and the episodes' goals."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Single overrides, for example --set agent.batch_size=128 eval_every_frames=20000."""
    resume: bool = False
    """Continue a run that was stopped or killed."""
    time_limit: float | None = None
    """Hours after which the run stops cleanly; --resume goes on."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> int:
        """Train; exit status 0 when it is done or the time is over."""
        from dr_core.agent.actor import ActorConfig
        from dr_core.agent.drqv2 import DrQV2
        from dr_core.agent.loop import PRESETS, AgentStage, reward_columns
        from dr_core.agent.replay import Replay
        from dr_core.config import override, parse_set, to_mapping
        from dr_core.files import keep_settings, run_directory
        from dr_core.rewards.online import video_reward
        from dr_core.seeding import choose_device
        from dr_core.training import Metrics, train
        from dr_sim.rendering import check_same_view
        from dr_sim.tasks import resolve_task
        from dr_sim.vector import VectorEnvironment

        preset = PRESETS[self.preset]
        published = {"viper": 0.5, "viper_std": 0.5, "genreward": 0.0} if self.preset == "paper" else {}
        alpha = published.get(self.reward, preset.reward.alpha)
        alpha = self.alpha if self.alpha is not None else alpha
        reward = replace(preset.reward, name=self.reward, alpha=alpha)
        frames = preset.frames if self.frames is None else self.frames
        config = replace(preset, frames=frames, seed=self.seed, reward=reward)
        for text in itertools.chain(*self.set):
            config = override(config, parse_set(text))
        device = choose_device(self.device)
        task = resolve_task(self.task)
        score = video_reward(self.reward, task, model=self.model, viper=self.viper, device=device)
        with run_directory(self.out, resume=self.resume), VectorEnvironment(task, self.envs) as environments:
            genreward, about_goal = self.genreward(config, environments, device) if reward.from_goal else (None, {})
            keep_settings(
                self.out / "config.yaml",
                {**to_mapping(config), "task": environments.task, "envs": self.envs, **about_goal},
                "another task, goal, number of environments or setting",
            )
            if genreward is not None:
                keep_goal(genreward.goal, self.out / "goal", environments.rate_hz)
            learned: dict[str, object] = {"reward": self.reward, "seed": config.seed, "frames": config.frames}
            if genreward is not None:
                learned |= {**about_goal, "goal_from": genreward.goal.source}
            if self.model is not None:
                manifest = json.loads((self.model / "manifest.json").read_text(encoding="utf-8"))
                check_same_view(manifest, environments.task, environments.render, environments.rate_hz)
                learned["reward_model"] = manifest["sha256"]["model.safetensors"]
            actor = ActorConfig(
                environments.action_size, environments.task, environments.rate_hz, network=config.network
            )
            agent = DrQV2(actor, config.agent, config.seed, device)
            with Replay(
                self.out / "replay",
                capacity=config.replay_capacity,
                frame_shape=environments.frame_shape,
                action_size=environments.action_size,
                n_step=config.agent.n_step,
                discount=config.agent.discount,
                frame_stack=config.network.frame_stack,
                reward_names=reward_columns(config.reward),
                feature_size=0 if genreward is None else genreward.feature_size,
            ) as replay:
                experts = self.expert_frames() if self.reward == "amp" else None
                stage = AgentStage(config, agent, environments, replay, score, experts, self.out, genreward)
                if not any((self.out / stage.name).glob("step_*")):
                    replay.rewind(0)
                metrics = Metrics(self.out)
                try:
                    with _stopping_after(self.time_limit) as over:
                        train(stage, self.out, metrics, log_every=1, checkpoint_every_s=60.0)
                except KeyboardInterrupt:
                    if not over:
                        raise
                    print(f"the time is over: {self.out} can be continued with --resume")
                    return 0
                finally:
                    metrics.close()
            if not (self.out / "agent").exists():
                last = (self.out / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()[-1]
                learned["evaluation"] = json.loads(last)
                agent.actor.save(self.out / "agent", render=environments.render.to_dict(), learned=learned)
        print(f"agent: {self.out / 'agent'}")
        return 0

    def genreward(
        self, config: LoopConfig, environments: VectorEnvironment, device: str
    ) -> tuple[GenReward, dict[str, object]]:
        """The terms of the goal, and what a training that goes on must have the same; the goal is in OUT/goal."""
        from dr_core.goals.encoders import CogVideoXLatents, Dinov2Frames
        from dr_core.rewards.genreward.encoders import CodecFrames, CodecVideo
        from dr_core.rewards.genreward.reward import GenReward
        from dr_core.rewards.model import RewardModel

        if self.model is None:
            raise ConfigError(
                f"reward {self.reward}", expected="the directory of a reward model", found="none",
                next_step="give it with --model",
            )  # fmt: skip
        model = RewardModel.load(self.model, device)
        encoder: FrameEncoder = CodecFrames(model)
        video: VideoEncoder = CodecVideo(encoder)
        if self.frame_encoder is not None:
            encoder = Dinov2Frames(self.frame_encoder, device)
        if self.video_encoder is not None:
            video = CogVideoXLatents(self.video_encoder, device)
        goal = self.read_goal(model, environments, encoder, device)
        terms = GenReward(
            config.reward.goal, goal, encoder, video, environments.action_size, config.seed, device=device
        )
        return terms, {"goal": goal.sha256, "frame_encoder": encoder.name, "video_encoder": video.name}

    def read_goal(
        self, model: RewardModel, environments: VectorEnvironment, encoder: FrameEncoder, device: str
    ) -> Goal:
        """The goal video that was given, an expert's, or an imagined one, and the goal frame in it."""
        from dr_core.goals.encoders import ClipMatcher
        from dr_core.goals.imagine import imagine
        from dr_core.rewards.genreward.goal import (
            Goal,
            choose_frame,
            goal_of_experts,
            most_like_picture,
            most_like_text,
            read_goal,
            read_picture,
            require_text,
        )

        experts = tuple(itertools.chain(*self.experts))
        if self.goal is not None:
            frames = read_goal(self.goal, model, task=environments.task, unfamiliar=self.goal_unfamiliar)
            source = str(self.goal)
        elif experts:
            frames, path = goal_of_experts(experts, model, environments.task, unfamiliar=self.goal_unfamiliar)
            source = str(path)
        else:
            first = environments.reset([IMAGINED_SEED] * environments.num)[:1]  # (1, H, W, 3)
            frames, source = imagine(model, first, IMAGINED_FRAMES, self.seed), f"imagined, seed {self.seed}"
        if self.goal_text is not None:
            require_text(self.goal_text)
        ways = [self.goal_frame != "last", self.goal_picture is not None, self.goal_text is not None]
        if sum(ways) > 1:
            raise ConfigError(
                "goal frame", expected="one of --goal-frame, --goal-picture and --goal-text", found=f"{sum(ways)}",
                next_step="leave the others out",
            )  # fmt: skip
        if self.goal_picture is not None:
            index, chosen_by = most_like_picture(frames, read_picture(self.goal_picture, model), encoder)
        elif self.goal_text is not None:
            if self.clip is None:
                raise ConfigError(
                    "--goal-text",
                    expected="the directory of a CLIP model",
                    found="none",
                    next_step="give it with --clip",
                )
            index, chosen_by = most_like_text(frames, self.goal_text, ClipMatcher(self.clip, device))
        else:
            index, chosen_by = choose_frame(frames, self.goal_frame)
        return Goal(frames, index, chosen_by, source)

    def expert_frames(self) -> NDArray[np.uint8]:
        """All frames (M, 64, 64, 3) of the expert episodes."""
        import numpy as np

        from dr_core.data.episodes import find_episodes, read_episode
        from dr_core.data.images import ImageRule

        paths = find_episodes(tuple(itertools.chain(*self.experts)))
        if not paths:
            raise ConfigError("reward amp", expected="expert episodes", found="none", next_step="give --experts PATH")
        return np.concatenate([read_episode(path, rule=ImageRule()).frames for path in paths])


def keep_goal(goal: Goal, folder: Path, rate_hz: float) -> None:
    """Write goal.mp4, frame.png and goal.json for people to look at; what a training goes on with is in config.yaml."""
    import cv2

    from dr_core.data.video import write_video
    from dr_core.files import write_whole

    folder.mkdir(exist_ok=True)
    (folder / "goal.mp4").unlink(missing_ok=True)  # of an earlier start
    write_video(folder / "goal.mp4", goal.frames, rate_hz, lossless=False)
    (folder / "frame.png").write_bytes(cv2.imencode(".png", goal.frame[..., ::-1])[1].tobytes())
    about = {"from": goal.source, "frames": len(goal.frames), "goal_frame": goal.index, "chosen_by": goal.chosen_by}
    write_whole(folder / "goal.json", json.dumps({**about, "sha256": goal.sha256}, indent=1) + "\n")


@dataclass(frozen=True)
class EvalAgent:
    """Play episodes with a trained agent: success rate with its interval, and a video of each episode."""

    agent: Path
    """Directory of the agent (RUN/agent)."""
    out: Path
    """Directory to create."""
    episodes: int = 10
    """Episodes to play."""
    seed: int = 1_000_000
    """Of the first episode; the others count up. Training draws its seeds from below a million."""
    task: str | None = None
    """Another task than the one it was trained on."""

    def run(self) -> int:
        """Play; exit status 0."""
        import numpy as np

        from dr_core.agent.actor import ActingPolicy
        from dr_core.data.video import write_video
        from dr_core.files import run_directory
        from dr_core.robot.evaluation import wilson
        from dr_sim.environments import make_environment

        policy = ActingPolicy.load(self.agent)
        environment = make_environment(self.task or policy.config.task)
        successes = 0
        with run_directory(self.out, resume=False), (self.out / "episodes.jsonl").open("w", encoding="utf-8") as log:
            for seed in range(self.seed, self.seed + self.episodes):
                policy.reset()
                observation, frames, success, done = environment.reset(seed), [], False, False
                while not done:
                    frames.append(observation["image"])
                    observation, _, done, info = environment.step(policy.act(observation["image"]))
                    success = success or bool(info["success"])
                successes += success
                log.write(json.dumps({"seed": seed, "success": success}) + "\n")
                write_video(self.out / f"episode_{seed}.mp4", np.stack(frames), environment.rate_hz, lossless=False)
        environment.close()
        low, high = wilson(successes, self.episodes)
        rate = successes / self.episodes
        print(f"success {rate:.0%} ({successes} of {self.episodes}), 95 % interval {low:.0%} to {high:.0%}")
        return 0


@contextmanager
def _stopping_after(hours: float | None) -> Iterator[list[bool]]:
    """Ask this process to stop, as SIGTERM does, when the time is over; the list then says that it was the time."""
    over: list[bool] = []

    def stop() -> None:
        over.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(3600.0 * (hours or 0.0), stop)
    timer.daemon = True
    if hours is not None:
        timer.start()
    try:
        yield over
    finally:
        timer.cancel()
