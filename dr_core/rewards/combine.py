"""What a whole reward is made of: video, exploration, success, and a goal; one formula, live and in training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PUBLISHED_ALPHA = 0.95
"""Share of the exploration term in the published method."""


class Terms(NamedTuple):
    """The parts of a reward as they are contained in it; numbers or arrays of one shape.

    Attributes:
        video: (1 - alpha) times the standardised video reward.
        exploration: alpha times the novelty of the frame.
        success: the sparse reward, weighted.
        goal_video: likeness to a goal video, weighted.
        fb: how often the goal frame will be met, weighted.
    """

    video: Any
    exploration: Any
    success: Any
    goal_video: Any = 0.0
    fb: Any = 0.0

    @property
    def total(self) -> Any:
        """Their sum."""
        return self.video + self.exploration + self.success + self.goal_video + self.fb


def combine(
    video: Any,
    novelty: Any = 0.0,
    success: Any = 0.0,
    *,
    alpha: float,
    success_weight: float = 1.0,
    goal_video: Any = 0.0,
    fb: Any = 0.0,
) -> Terms:
    """(1 - alpha)·video + alpha·novelty + success_weight·success + goal_video + fb.

    The first three are arXiv 2312.14134, section 4.3; the last three arXiv 2512.00961, which knows no exploration.

    Args:
        video: the standardised reward of the video model; NaN stays NaN in the total.
        novelty: ½‖f(o') - f̂(o')‖² of the frame that was reached, see ``rnd``; ignored when ``alpha`` is 0.
        success: 1 when the task is done, else 0; or how many steps of an action repeat it was.
        alpha: from 0 (no exploration, the video term as it is) to 1.
        success_weight: what one success is worth.
        goal_video, fb: of GenReward, with its weights alpha and beta, which are not the alpha above.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if alpha == 0:
        return Terms(video, 0.0, success_weight * success, goal_video, fb)
    return Terms((1 - alpha) * video, alpha * novelty, success_weight * success, goal_video, fb)


def until_success(video: NDArray[np.float32], sparse: NDArray[np.float32]) -> NDArray[np.float32]:
    """The video term (N, T) of whole episodes, 0 behind the first transition that succeeds, see ``sparse`` (N, T)."""
    behind = np.cumsum(sparse[:, :-1] > 0.0, 1) > 0
    return np.concatenate([video[:, :1], np.where(behind, np.float32(0.0), video[:, 1:])], 1)
