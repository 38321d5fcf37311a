"""A goal video without any foreign weights: a reward model's own video model rolled out from the first frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import ConfigError
from dr_core.rewards.model import RewardModel
from dr_core.seeding import numpy_generator


def imagine(model: RewardModel, first_frames: NDArray[np.uint8], num_frames: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw how an expert would go on after ``first_frames``, one frame after the other.

    Frame n is drawn from the model's expert distribution of what follows frame n - frame_skip and its history; every
    frame has its own noise. Errors add up, as each frame is drawn from drawn ones.

    Args:
        model: its video model need not know the task; a task it has not learned from is imagined badly.
        first_frames: (T0, H, W, 3) uint8 RGB, T0 ≥ 1, H and W as the model has them; more of them tell the direction.
        num_frames: T, frames of the result.
        seed: of the draws; the same seed gives the same video.

    Returns:
        (T, H, W, 3) uint8 RGB: ``first_frames`` as given, at most T of them, then what the model imagines.

    Raises:
        ConfigError: no frame, frames of another size, or fewer than one frame wanted.
    """
    edge = model.config.image.size
    if first_frames.dtype != np.uint8 or first_frames.shape[1:] != (edge, edge, 3) or not len(first_frames):
        raise ConfigError(
            "first frames",
            expected=f"one or more of {edge} x {edge} pixels, RGB, 8 bits",
            found=f"{first_frames.dtype} {first_frames.shape}",
            next_step="give the task's first frame as the model's camera shows it",
        )
    if num_frames < 1:
        raise ConfigError("frames", expected="at least 1", found=str(num_frames), next_step="ask for more frames")
    given = first_frames[:num_frames]
    spacing, window = model.config.frame_skip, model.config.frame_skip * (model.config.num_history - 1)
    tokens = list(model.tokenize(given))
    noise_seeds = numpy_generator(seed, "imagine").integers(0, 2**62, num_frames)
    for n in range(len(given), num_frames):
        last = max(0, n - spacing)
        history = np.stack(tokens[max(0, last - window) : last + 1])  # (at most window + 1, N)
        tokens.append(model.imagine(history, seed=int(noise_seeds[n]))[-1])
    if len(tokens) == len(given):
        return given.copy()
    return np.concatenate([given, model.decode(np.stack(tokens[len(given) :]))])
