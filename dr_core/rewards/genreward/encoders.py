"""What turns pictures into numbers for GenReward: two small interfaces, and our codec as the default of both.

    FrameEncoder   ψ: a feature of each frame, for the forward–backward representation and the goal frame
    VideoEncoder   latents of a whole clip, for its likeness to the goal video

Both are fixed: the same pictures give the same numbers during a whole training, and nothing is learned in them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from dr_core.codec.fsq import FSQCodec
from dr_core.codec.train import to_images
from dr_core.rewards.model import BATCH, RewardModel

CLIP_FRAMES = 16
"""Frames of a clip that a ``VideoEncoder`` sees (arXiv 2512.00961)."""


class FrameEncoder(Protocol):
    """ψ, a feature of each frame by itself."""

    @property
    def name(self) -> str:
        """What it is, with the hash of its weights; a training goes on only with the same one."""

    @property
    def size(self) -> int:
        """D, numbers of a feature."""

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB, N ≥ 1 → (N, D) float32, finite."""


class VideoEncoder(Protocol):
    """Latents of a clip."""

    @property
    def name(self) -> str:
        """What it is, with the hash of its weights."""

    def encode(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(T, H, W, 3) uint8 RGB, T = ``CLIP_FRAMES`` → (L,) float32, flat and finite; L is the same for all clips."""


class TextMatcher(Protocol):
    """How well a text describes each frame, for choosing the goal frame."""

    def similarity(self, text: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB → (N,) float32, larger is better."""


class CodecFrames:
    """Each frame's latents in the codec of a reward model, not yet rounded to codes; one range for all channels.

    Args:
        model: a reward model; frames have the size that it was trained with.
    """

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        edge = model.config.image.size
        self.size = self.encode(np.zeros((1, edge, edge, 3), np.uint8)).shape[1]
        self.name = f"codec {model.model_hash[:16]}"

    @torch.inference_mode()
    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, S, S, 3) uint8 → (N, D); FSQ in [-1, 1], a VQ-GAN in units of the spread of its codes."""
        edge = self._model.config.image.size
        if frames.dtype != np.uint8 or frames.shape[1:] != (edge, edge, 3) or not len(frames):
            raise ValueError(f"frames are uint8 (N, {edge}, {edge}, 3), not {frames.dtype} {frames.shape}")
        return np.concatenate([self._part(frames[i : i + BATCH]) for i in range(0, len(frames), BATCH)])

    def _part(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        codec = self._model.networks.codec
        latents = codec.latents(to_images(frames, self._model.device)).float()
        if isinstance(codec, FSQCodec):
            latents = 2.0 * latents / (codec.levels - 1).view(1, -1, 1, 1) - 1.0
        else:
            # 2 x 2 cells together: a quarter of 4096 numbers a frame.
            latents = functional.avg_pool2d(latents / codec.codebook.embedding.weight.std().clamp(min=1e-12), 2)
        return latents.flatten(1).cpu().numpy()


class CodecVideo:
    """The latents of a clip's frames one after the other.

    Args:
        frames: encodes each of them.
    """

    def __init__(self, frames: FrameEncoder) -> None:
        self._frames = frames
        self.name = f"{frames.name}, frame by frame"

    def encode(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(T, S, S, 3) uint8 → (T·D,)."""
        return self._frames.encode(clip).reshape(-1)
