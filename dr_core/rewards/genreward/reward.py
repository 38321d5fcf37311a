"""GenReward (arXiv 2512.00961) as an agent's training uses it: r = alpha·r_video + beta·r_fb, beside all other terms.

r_video is the likeness of a clip to the goal video, for the transition that ends the clip; r_fb = F(s, a, z)ᵀB(ψ(I*))
is how often the goal frame will be met. Frames are encoded once, when their episode ends; F and B learn on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_core.agent.replay import Replay
from dr_core.rewards.genreward.encoders import FrameEncoder, VideoEncoder
from dr_core.rewards.genreward.forward_backward import FBConfig, Floats, ForwardBackward, Steps
from dr_core.rewards.genreward.goal import Goal
from dr_core.rewards.genreward.video import VIDEO_EVERY, GoalLikeness


@dataclass(frozen=True)
class GenRewardConfig:
    """What a goal video is worth; the defaults are the published ones."""

    video_weight: float = 0.01
    """alpha: what the likeness of a clip is multiplied with."""
    fb_weight: float = 1e-5
    """beta: what F(s, a, z)ᵀB(ψ(I*)) is multiplied with."""
    video_every: int = VIDEO_EVERY
    """Steps of a clip; the last one ends with the episode."""
    video_motion: bool = False
    """Compare what differs from the goal's first frame standing still, instead of whole pictures."""
    fb_density: bool = False
    """Multiply r_fb with 1 - γ too: it is then 1 for a goal that is met as often as ever, whatever γ is."""
    fb: FBConfig = field(default_factory=FBConfig)

    def __post_init__(self) -> None:
        if self.video_every < 1:
            raise ValueError(f"video_every = {self.video_every}: at least 1")
        if not (np.isfinite(self.video_weight) and np.isfinite(self.fb_weight)):
            raise ValueError("video_weight and fb_weight must be finite")


class GenReward:
    """The terms of one goal.

    Args:
        goal: what is to be reached.
        frame_encoder: ψ.
        video_encoder: of clips.
        action_size: numbers of an action.
        seed: of F's and B's first weights.
    """

    def __init__(
        self,
        config: GenRewardConfig,
        goal: Goal,
        frame_encoder: FrameEncoder,
        video_encoder: VideoEncoder,
        action_size: int,
        seed: int = 0,
        *,
        device: str = "cpu",
    ) -> None:
        self.config, self.goal, self.feature_size = config, goal, frame_encoder.size
        self._encoder = frame_encoder
        self._likeness = GoalLikeness(goal.frames, video_encoder, config.video_every, motion=config.video_motion)
        feature = frame_encoder.encode(goal.frame[None])[0]
        self.fb = ForwardBackward(feature, action_size, seed, config.fb, device=device)
        self.told: dict[str, float] = {}
        """The losses of the last update of F and B."""

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (N, T + 1, D) of the frames (N, T + 1, H, W, 3) of episodes; the first ones fix their scale."""
        features = self._encoder.encode(frames.reshape(-1, *frames.shape[2:]))
        if not self.fb.ready:
            self.fb.standardise(features)
        return features.reshape(*frames.shape[:2], -1)

    def video(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """r_video (N, T) of the frames (N, T + 1, H, W, 3) of whole episodes."""
        return np.stack([self._likeness.of_episode(one) for one in frames])

    def reach(self, features: Floats, actions: Floats, *, centred: bool) -> Floats:
        """r_fb of single steps: features (B, D), actions (B, A) → (B,).

        Args:
            centred: without the mean over the batch, so that only differences between transitions count. F and B grow
                while they learn; the values of all states would follow that for long.
        """
        found = self.fb.score(features, actions)
        found = found - found.mean() if centred else found
        return found * np.float32(1.0 - self.config.fb.discount) if self.config.fb_density else found

    def learn(self, replay: Replay, draw: np.random.Generator) -> None:
        """One update of F and B on single steps of the replay."""
        self.told = self.fb.update(Steps(*replay.sample_steps(self.config.fb.batch_size, draw)), metrics=True)

    def state(self) -> dict[str, Any]:
        """What later terms depend on: tensors and plain numbers."""
        return {"fb": self.fb.state(), "told": dict(self.told)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave.

        Raises:
            CheckpointError: of other networks.
        """
        self.fb.restore(state["fb"])
        self.told = dict(state["told"])
