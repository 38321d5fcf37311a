"""A simulated task that pays GenReward at every step, as a ``gymnasium.Env`` for agents of other libraries.

The training loop of ``dr_core.agent.loop`` pays when it knows whole episodes and batches; here a step is paid at once:

    success      as in the loop
    video        of `genreward_diffusion`: the default reward of the model, frame by frame
    goal_video   likeness to the goal video, at the step that ends a clip
    fb           F(s, a, z)ᵀB(ψ(I*)); 0 in the first episode. F and B learn between two episodes, from what this
                 environment has lived through, and stay as they are during one

What ``RewardConfig.centred`` subtracts is known beforehand too: of the video terms their means over the first episode,
in which both are 0; of r_fb the mean over a batch of the replay, drawn before the episode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from dr_core.agent.loop import EVALUATION_SEED, GOAL_VIDEO, SPARSE, VIDEO, reward_columns
from dr_core.agent.replay import Replay
from dr_core.errors import OutputInUseError
from dr_core.goals.imagine import imagine
from dr_core.rewards.combine import Terms, combine
from dr_core.rewards.genreward.encoders import CodecFrames, CodecVideo
from dr_core.rewards.genreward.goal import Goal, choose_frame, read_goal
from dr_core.rewards.genreward.reward import GenReward
from dr_core.rewards.genreward.video import clip_ends
from dr_core.rewards.model import RewardModel
from dr_core.rewards.online import ESTIMATORS, RewardConfig
from dr_core.seeding import numpy_generator
from dr_sim.agent_commands import IMAGINED_FRAMES, IMAGINED_SEED
from dr_sim.environment import SimulatedEnvironment
from dr_sim.environments import default_render, make_environment
from dr_sim.rendering import check_same_view
from dr_sim.tasks import resolve_task

Frame = NDArray[np.uint8]
WITH_VIDEO = "genreward_diffusion"


class RewardEnv(gymnasium.Env[Frame, NDArray[np.float32]]):
    """One simulated task: pictures (H, W, 3) uint8 as observations, actions (A,) in [-1, 1].

    ``info`` of a step holds "success" and each term as it is contained in the reward, named as in the metrics of the
    loop: "term_success", "term_video", "term_goal_video", "term_fb". ``info`` of ``reset`` holds the losses of the last
    update of F and B. Episodes end by their time only, truncated. One that is broken off by ``reset`` is forgotten.
    F and B are not saved: another process cannot go on.

    Args:
        environment: the task; closed with this one. Its frames are as large as those of the goal.
        genreward: the terms of a goal; F and B learn in it, one update for each ``fb.update_every`` steps.
        directory: new or empty, for the replay that they learn from.
        config: `genreward` or `genreward_diffusion`, without exploration, which is left to the agent.
        model: whose default reward is paid too, for `genreward_diffusion`.
        capacity: frames of the replay.
        seed: of the draws that F and B learn from.

    Raises:
        OutputInUseError: the directory holds something.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own declaration)

    def __init__(
        self,
        environment: SimulatedEnvironment,
        genreward: GenReward,
        directory: Path,
        config: RewardConfig,
        *,
        model: RewardModel | None = None,
        capacity: int = 100_000,
        seed: int = 0,
    ) -> None:
        if not config.from_goal or config.exploration > 0.0:
            raise ValueError(f"reward {config.name}, alpha {config.alpha}: expected one of a goal, without exploration")
        if (model is None) == (config.name == WITH_VIDEO):
            raise ValueError(f"a model belongs to the reward {WITH_VIDEO}, and to no other")
        if directory.is_dir() and any(directory.iterdir()):
            raise OutputInUseError(
                str(directory), expected="a new or empty directory", found="files", next_step="give another one"
            )
        height, width, channels = genreward.goal.frame.shape
        self.config = config
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, channels), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (environment.action_size,), np.float32)
        self._environment, self._genreward, self._seed = environment, genreward, seed
        self._clip_ends = set(clip_ends(environment.episode_steps, genreward.config.video_every).tolist())
        self._stream = None
        if model is not None:
            known = environment.task if environment.task in model.tasks else None
            self._stream = model.stream(task=known, estimator=ESTIMATORS[config.name])
        self._replay = Replay(
            directory,
            capacity=capacity,
            frame_shape=(height, width, channels),
            action_size=environment.action_size,
            reward_names=reward_columns(config),
            feature_size=genreward.feature_size,
        )
        self._due = 0.0  # updates of F and B
        self._means: dict[str, float] | None = None  # of the video terms, once the first episode is over
        self._mean_reach = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Let F and B learn from the episodes so far, and begin the first one of a seed, or the one that follows."""
        super().reset(seed=seed)
        self._learn()
        frame = self._environment.reset(int(self.np_random.integers(EVALUATION_SEED)))["image"]
        self._frames, self._clip_start = [frame], 0
        self._actions: list[NDArray[np.float32]] = []
        self._rewards: dict[str, list[float]] = {name: [] for name in reward_columns(self.config)}
        # In the first episode the scale of features is not known; they are computed when it is over.
        self._features = [self._encoded(frame)] if self._genreward.fb.ready else []
        if self._stream is not None:
            self._stream.reset()
            self._stream.push(frame, 0)
        return frame, dict(self._genreward.told)

    def step(self, action: NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """One step of the agent, and what it is worth."""
        settings = self.config
        clipped = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        observation, successes, over, info = self._environment.step(clipped)
        frame = observation["image"]
        self._frames.append(frame)
        self._actions.append(clipped)
        met = {VIDEO: self._video(frame), SPARSE: successes, GOAL_VIDEO: self._likeness()}
        for name, value in met.items():
            self._rewards[name].append(value)
        terms = combine(
            settings.video_weight * self._centred(VIDEO, met[VIDEO]),
            success=successes,
            alpha=settings.exploration,
            success_weight=settings.success_weight,
            goal_video=settings.goal.video_weight * self._centred(GOAL_VIDEO, met[GOAL_VIDEO]),
            fb=settings.goal.fb_weight * self._reach(clipped),
        )
        if self._features:
            self._features.append(self._encoded(frame))
        if over:
            self._keep()
        told = {f"term_{name}": float(getattr(terms, name)) for name in Terms._fields if name != "exploration"}
        return frame, float(terms.total), False, over, {**info, **told}

    @property
    def goal(self) -> Goal:
        """What is to be reached."""
        return self._genreward.goal

    @property
    def rate_hz(self) -> float:
        """Steps a second of simulated time."""
        return self._environment.rate_hz

    def close(self) -> None:
        """Free the simulator, and let go of the replay; harmless when repeated."""
        self._replay.close()
        self._environment.close()

    # ---- the terms of a step ----

    def _video(self, frame: Frame) -> float:
        """The default reward of the transition that led to the newest frame, as the loop scores it."""
        if self._stream is None:
            return 0.0
        stamp_ns = round(len(self._actions) * 1e9 / self.rate_hz)
        scored = self._stream.push(frame, stamp_ns)
        if scored is None or not scored.valid or (self.config.until_success and any(self._rewards[SPARSE])):
            return 0.0
        return scored.value

    def _likeness(self) -> float:
        """r_video of the clip that ends with the newest frame; 0 where none does."""
        step = len(self._actions)
        if step not in self._clip_ends:
            return 0.0
        clip, self._clip_start = np.stack(self._frames[self._clip_start :]), step
        return float(self._genreward.video(clip[None])[0, -1])

    def _centred(self, name: str, value: float) -> float:
        if not self.config.centred:
            return value
        return 0.0 if self._means is None else value - self._means[name]

    def _reach(self, action: NDArray[np.float32]) -> float:
        """r_fb of an action (A,) on the frame before the newest one."""
        if not self._features:
            return 0.0
        found = self._genreward.reach(self._features[-1][None], action[None], centred=False)
        return float(found[0]) - self._mean_reach

    def _encoded(self, frame: Frame) -> NDArray[np.float32]:
        """ψ of a frame, (D,)."""
        return self._genreward.encode(frame[None, None])[0, 0]

    # ---- between two episodes ----

    def _keep(self) -> None:
        """Put the episode that is over into the replay, with the rewards that the loop keeps."""
        frames = np.stack(self._frames)  # (T + 1, H, W, 3)
        features = np.stack(self._features) if self._features else self._genreward.encode(frames[None])[0]
        rewards = {name: np.array(values, np.float32) for name, values in self._rewards.items()}
        self._replay.add(frames, np.stack(self._actions), rewards, terminal=False, features=features)
        if self._means is None:
            self._means = {name: float(values.mean()) for name, values in rewards.items()}
        self._due += len(self._actions) / self._genreward.config.fb.update_every

    @torch.inference_mode(False)  # libraries step environments in it, where nothing can learn
    @torch.enable_grad()
    def _learn(self) -> None:
        """As many updates of F and B as the steps since the last ones are worth."""
        draw = numpy_generator(self._seed, "replay", self._replay.added)
        while self._due >= 1.0:
            self._due -= 1.0
            self._genreward.learn(self._replay, draw)
        if self.config.centred and self._replay.added:
            features, actions, *_ = self._replay.sample_steps(self._genreward.config.fb.batch_size, draw)
            self._mean_reach = float(self._genreward.reach(features, actions, centred=False).mean())


def make_reward_env(
    task: str,
    model: Path,
    directory: Path,
    config: RewardConfig,
    *,
    goal: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> RewardEnv:
    """A task with a reward model's camera, whose codec is both encoders of GenReward.

    Args:
        task: any accepted spelling.
        model: directory of a reward model.
        directory: of the replay.
        config: as for ``RewardEnv``.
        goal: the goal video, a file or a bag; None: what the model imagines from the first frame of an episode.
        seed: of F and B, of their draws and of an imagined goal.

    Raises:
        ConfigError: an unknown task, a view that is not the model's, or a goal video that cannot be used.
        CheckpointError: a model that cannot be used.
    """
    scorer, name = RewardModel.load(model, device), resolve_task(task)
    render = default_render(name)
    environment = make_environment(name, render)
    check_same_view(scorer, name, render, environment.rate_hz)
    if goal is not None:
        frames, source = read_goal(goal, scorer, task=name), str(goal)
    else:
        first = environment.reset(IMAGINED_SEED)["image"][None]  # (1, H, W, 3)
        frames, source = imagine(scorer, first, IMAGINED_FRAMES, seed), f"imagined, seed {seed}"
    encoder = CodecFrames(scorer)
    wanted = Goal(frames, *choose_frame(frames, "last"), source)
    size = environment.action_size
    genreward = GenReward(config.goal, wanted, encoder, CodecVideo(encoder), size, seed, device=device)
    video = scorer if config.name == WITH_VIDEO else None
    return RewardEnv(environment, genreward, directory, config, model=video, seed=seed)
