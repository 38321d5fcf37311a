"""Clips that a reward must not love: made from a recording by picking its frames again, so nothing is re-encoded.

Each control is a list of frame numbers. The codec encodes every frame alone, so the tokens of a control are the tokens
of the recording at those numbers, exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FROZEN = ("frozen_start", "frozen_middle", "frozen_end")
ORDER = ("reversed", "shuffled", "truncated")
SHIFT_PIXELS = 4


def expert_controls(length: int, generator: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Frame numbers of the controls of an expert clip of ``length`` frames, by name.

    frozen_start, frozen_middle, frozen_end: one frame, for as long as the clip; reversed: backwards; shuffled: in an
    order drawn from ``generator``; truncated: the first half, rounded up.
    """
    forward = np.arange(length)
    return {
        "frozen_start": np.zeros(length, np.int64),
        "frozen_middle": np.full(length, length // 2),
        "frozen_end": np.full(length, length - 1),
        "reversed": forward[::-1],
        "shuffled": generator.permutation(length),
        "truncated": forward[: (length + 1) // 2],
    }


def double_speed(length: int) -> NDArray[np.int64]:
    """Every second frame: a degraded episode that moves as far in a frame as a faster one."""
    return np.arange(0, length, 2)


def shifted_camera(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) moved to the right by 4 pixels, the edge repeated.

    A stand-in for a camera that was moved: without parallax, and the only control that has to be encoded again.
    """
    padded = np.pad(frames, ((0, 0), (0, 0), (SHIFT_PIXELS, 0), (0, 0)), mode="edge")
    return padded[:, :, :-SHIFT_PIXELS]
