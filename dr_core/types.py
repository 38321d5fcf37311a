"""The small values every part of the package exchanges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Reward:
    """Rewards of a batch of clips, B clips of T frames; entry k belongs to the transition that led to frame k.

    Attributes:
        value: (B, T) float32, standardised when the model carries statistics.
        stderr: (B, T) float32, standard error of ``value`` over the estimator's own draws; 0 for exact ones.
        valid: (B, T) bool; an entry that is not finite is never valid.
        calls: network calls spent on each frame.
        ood: (B, T) float32, how unlike the training frames each frame looks: 0 is typical, above 1 hardly any of them
            is; NaN when the model has no training frames to compare with.
    """

    value: NDArray[np.float32]
    stderr: NDArray[np.float32]
    valid: NDArray[np.bool_]
    calls: int
    ood: NDArray[np.float32]
