"""A scripted expert that pushes a block over a table to a goal, and a disturbance that spoils it.

Positions are metres in the robot's base frame with z up and the table at z = 0. The expert keeps no state, so it
takes up its work again from wherever a disturbance or a person leaves the tool.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

PUSH_HEIGHT_M = 0.02  # of the tool above the table while it pushes
TRAVEL_HEIGHT_M = 0.10  # clears the block
START_BEHIND_M = 0.065  # from the block's centre to where the push begins
LOST_M = 0.03  # aside the line of push at which the block would slip off
ARRIVED_M = 0.01
GAIN_PER_M = 12.0  # distance to action
PUSH_SPEED = 0.5  # of the fastest action


def push_action(tool_m: Vector, block_m: Vector, goal_m: Vector) -> Vector:
    """The next action (3,): tool velocity in [-1, 1], 1 being the fastest that the robot is told to go.

    Args: positions (3,) of the tool's tip, the block's centre and the goal.
    """
    remaining = goal_m[:2] - block_m[:2]
    distance = float(np.linalg.norm(remaining))
    if distance < ARRIVED_M:
        return np.zeros(3)
    line = remaining / distance  # from block to goal
    to_tool = tool_m[:2] - block_m[:2]
    along = float(to_tool @ line)
    aside = to_tool - along * line
    start = block_m[:2] - START_BEHIND_M * line
    low = tool_m[2] < PUSH_HEIGHT_M + 0.015
    lost = float(np.linalg.norm(aside)) > LOST_M

    if low and along < 0.0 and not lost:
        # Push straight on, and steer back to the line; slow down where the block must come to rest.
        speed = min(PUSH_SPEED, 0.12 + 4.0 * distance)
        planar = speed * line - 2.0 * GAIN_PER_M * aside
        return _limit(np.array([*planar, GAIN_PER_M * (PUSH_HEIGHT_M - tool_m[2])]))
    over_start = float(np.linalg.norm(tool_m[:2] - start)) < 0.012
    if over_start:
        return _limit(GAIN_PER_M * (np.array([*start, PUSH_HEIGHT_M]) - tool_m))
    if tool_m[2] < TRAVEL_HEIGHT_M - 0.02:
        return np.array([0.0, 0.0, 1.0])
    return _limit(GAIN_PER_M * (np.array([*start, TRAVEL_HEIGHT_M]) - tool_m))


class Disturbance:
    """Replaces a share of the actions by random ones, each kept for a while so that it shows.

    Args:
        share: 0 to 1, the part of the time that is random.
        seed: of the random numbers.
        hold_steps: how many actions each random one lasts.
    """

    def __init__(self, share: float, seed: int, hold_steps: int = 5) -> None:
        self._share, self._hold_steps = share, hold_steps
        self._random = np.random.default_rng(seed)
        self._left = 0
        self._action: Vector | None = None

    def __call__(self, action: Vector) -> Vector:
        """`action` (A,) or the random one that takes its place."""
        if self._left == 0:
            self._left = self._hold_steps
            spoilt = self._random.random() < self._share
            self._action = self._random.uniform(-1.0, 1.0, action.shape) if spoilt else None
        self._left -= 1
        return action if self._action is None else self._action


def _limit(action: Vector) -> Vector:
    """Shorter than 1, in the same direction."""
    return action / max(1.0, float(np.linalg.norm(action)))
