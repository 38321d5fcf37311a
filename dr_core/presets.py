"""Configuration of a reward model: frozen dataclasses, and the presets a user starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from dr_core.codec.fsq import FSQConfig
from dr_core.codec.train import CodecTraining
from dr_core.codec.vqgan import VQGANConfig
from dr_core.data.images import ImageRule
from dr_core.diffusion.denoiser import CrossAttentionConfig
from dr_core.diffusion.inplace import InPlaceConfig
from dr_core.diffusion.train import VideoTraining

MAX_CODES = 2**15
EstimatorName = Literal["shaped_ratio", "ratio", "one_pass_likelihood", "one_pass", "chain", "paper", "likelihood"]
NEEDS_BACKGROUND: tuple[EstimatorName, ...] = ("shaped_ratio", "ratio")


@dataclass(frozen=True)
class EstimatorConfig:
    """How a reward is computed from the trained networks (see docs/reward.md)."""

    name: EstimatorName = "shaped_ratio"
    """ratio: log p_expert - log p_background of the observed frame, one call each; shaped_ratio: the same plus the rate
    of progress, less a mark-down of frames of another task; one_pass_likelihood: the first term of the ratio; one_pass,
    chain: minus the entropy of the next frame; paper: the published sampled bound on it; likelihood: the same bound for
    the observed frame (the published ablation)."""
    stride: int = 10
    """paper, likelihood: timesteps between network calls."""
    posterior: Literal["published", "exact"] = "published"
    """paper, likelihood: published takes one step at each jump, so most masks stay until the last call; exact jumps."""
    num_samples: int = 1
    """paper: draws averaged."""
    noise: bool = True
    """paper: draw tokens; false takes the most likely one (the parity mode)."""
    num_steps: int = 8
    """chain: blocks in which the tokens are revealed."""
    progress_nats: float = 400.0
    """shaped_ratio: what the progress from the first to the last frame of an expert adds up to."""
    wrong_task_nats: float = 20.0
    """shaped_ratio: the most a frame is marked down for looking like another task of the training."""

    def __post_init__(self) -> None:
        if self.stride < 1 or self.num_samples < 1 or not 1 <= self.num_steps <= 64:
            raise ValueError("stride and num_samples must be at least 1, num_steps from 1 to 64")
        for name in ("progress_nats", "wrong_task_nats"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class RewardModelConfig:
    """Everything that rebuilds a reward model's networks."""

    codec: Literal["fsq", "vqgan"] = "fsq"
    fsq: FSQConfig = field(default_factory=FSQConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    denoiser: Literal["in_place", "cross_attention"] = "in_place"
    in_place: InPlaceConfig = field(default_factory=InPlaceConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    num_timesteps: int = 100
    """T of the diffusion process."""
    num_history: int = 2
    """Frames of history the next one is predicted from."""
    frame_skip: int = 1
    """Recorded frames between the frames of the history, and to the next."""
    background: bool = True
    """Also learn how non-expert behaviour moves, for the ratio reward."""
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    image: ImageRule = field(default_factory=ImageRule)

    def __post_init__(self) -> None:
        if not 1 <= self.num_history <= 64 or not 1 <= self.frame_skip <= 1000:
            raise ValueError("num_history must be from 1 to 64, frame_skip from 1 to 1000")
        if not 2 <= self.num_timesteps <= 10_000:
            raise ValueError(f"num_timesteps must be from 2 to 10000, got {self.num_timesteps}")
        if self.image.size != 64 or self.vqgan.image_size != 64 or len(self.vqgan.channels) != 4:
            raise ValueError("the video models need 64×64 images and 8×8 codes: image.size 64, four vqgan.channels")
        if math.prod(self.fsq.levels) > MAX_CODES or self.vqgan.num_codes > MAX_CODES:
            raise ValueError(f"at most {MAX_CODES} codes fit a token store")
        if self.background and self.denoiser != "in_place":
            raise ValueError("background: true needs denoiser: in_place, the one that holds several behaviours")
        if self.estimator.name in NEEDS_BACKGROUND and not self.background:
            raise ValueError(f"the {self.estimator.name} reward needs background: true")


@dataclass(frozen=True)
class TrainRewardConfig:
    """A whole reward training run."""

    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    codec_training: CodecTraining = field(default_factory=CodecTraining)
    video_training: VideoTraining = field(default_factory=VideoTraining)
    seed: int = 0
    checkpoint_every_s: float = 30.0
    """Seconds between checkpoints, which are all that a killed run loses."""

    def __post_init__(self) -> None:
        if self.checkpoint_every_s < 0:
            raise ValueError(f"checkpoint_every_s must not be negative, got {self.checkpoint_every_s}")


def _default() -> TrainRewardConfig:
    return TrainRewardConfig()


def _tiny() -> TrainRewardConfig:
    """Seconds on a laptop: for tests and for trying the commands."""
    return TrainRewardConfig(
        model=RewardModelConfig(fsq=FSQConfig(channels=16), in_place=InPlaceConfig(width=32, depth=2, heads=2)),
        codec_training=CodecTraining(steps=40, batch_size=8, warmup_steps=5),
        video_training=VideoTraining(steps=40, batch_size=16, warmup_steps=5),
    )


def _paper() -> TrainRewardConfig:
    """The published model and training (arXiv 2312.14134), its behaviour included where it is a weakness."""
    return TrainRewardConfig(
        model=RewardModelConfig(
            codec="vqgan", denoiser="cross_attention", background=False, estimator=EstimatorConfig(name="paper")
        ),
        codec_training=CodecTraining(steps=87_500, learning_rate=1e-4),
        video_training=VideoTraining(
            steps=40_000,
            learning_rate=4.5e-4,
            warmup_steps=5000,
            schedule="plateau",
            clip_norm=0.5,
            all_masked_share=0.0,
            distorted_share=0.0,
        ),
    )


PRESETS = {"default": _default, "paper": _paper, "tiny": _tiny}
