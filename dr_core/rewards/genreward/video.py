"""How like the goal video a clip of the agent is: the cosine of their latents (GenReward, arXiv 2512.00961)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dr_core.rewards.genreward.encoders import CLIP_FRAMES, VideoEncoder

VIDEO_EVERY = 128
"""Agent's steps from one clip to the next, as published."""


def resampled(clip: NDArray[np.uint8], count: int = CLIP_FRAMES) -> NDArray[np.uint8]:
    """``count`` frames of a clip (T, H, W, 3), T ≥ 1, evenly spaced from the first to the last one, each the nearest.

    Frame i of the result is frame i·(T - 1)/(count - 1), rounded, halves upwards: a longer clip loses frames, a shorter
    one repeats some, and a single frame stands still.
    """
    if not len(clip) or count < 2:
        raise ValueError(f"{len(clip)} frames to {count}: at least one, to at least two")
    last, gaps = len(clip) - 1, count - 1
    return clip[(2 * np.arange(count) * last + gaps) // (2 * gaps)]


def clip_ends(steps: int, every: int = VIDEO_EVERY) -> NDArray[np.int64]:
    """After how many steps of an episode of ``steps`` its clips end: every so many, and the last one with the episode.

    A rest of less than half an interval belongs to the clip before it. Each clip begins where the one before ends.
    """
    clips = max(1, (steps + every // 2) // every)
    return np.append(np.arange(1, clips, dtype=np.int64) * every, steps)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Of the angle between two vectors, in float64; 0 where one of them is 0."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    length = float(np.linalg.norm(a64) * np.linalg.norm(b64))
    return float(a64 @ b64) / length if length > 0.0 else 0.0


class GoalLikeness:
    """The video term of whole episodes.

    Args:
        goal: the goal video (T, H, W, 3).
        encoder: of clips.
        every: steps of a clip.
        motion: compare what differs from the goal's first frame standing still. Most of a fixed camera's picture never
            changes, so that without it everything is alike.
    """

    def __init__(
        self, goal: NDArray[np.uint8], encoder: VideoEncoder, every: int = VIDEO_EVERY, *, motion: bool = False
    ) -> None:
        self._encoder, self._every = encoder, every
        wanted = encoder.encode(resampled(goal))
        self._still = encoder.encode(resampled(goal[:1])) if motion else np.zeros_like(wanted)
        self._wanted = wanted - self._still

    def of_clip(self, clip: NDArray[np.uint8]) -> float:
        """Cosine of a clip (T, H, W, 3) of any length with the goal video, both as ``CLIP_FRAMES`` frames."""
        return cosine(self._encoder.encode(resampled(clip)) - self._still, self._wanted)

    def of_episode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Frames (T + 1, H, W, 3) → (T,): the likeness of each clip at the transition that ends it, 0 elsewhere."""
        rewards = np.zeros(len(frames) - 1, np.float32)
        start = 0
        for end in clip_ends(len(rewards), self._every).tolist():
            rewards[end - 1] = self.of_clip(frames[start : end + 1])
            start = end
        return rewards
