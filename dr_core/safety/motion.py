"""Velocities that change within limits of acceleration and jerk, and from which one can stop before a bound.

A leader follows the wanted velocity with limited acceleration A; it turns round at rest only. What is sent is the mean
of the leader over the last `window_s` = 2 A / jerk seconds: such a mean leaves no convex set that the leader stays in
(a box of places, a ball of speeds, an interval of accelerations), and its acceleration changes by no more than 2 A in a
window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

REST = 1e-12  # m/s or rad/s below which nothing moves


@dataclass(frozen=True)
class Axis:
    """One direction of motion: m or rad, and per second.

    Attributes:
        acceleration: of the leader, as much of the limit as makes for the shortest way to rest with this jerk.
        window_s: over which the leader is averaged; 0 where nothing may move.
    """

    speed: float
    acceleration: float
    window_s: float

    @classmethod
    def within(cls, speed: float, acceleration: float, jerk: float) -> Axis:
        """Of these limits. From full speed it takes speed / A + 2 A / jerk to come to rest: least at the root below."""
        used = min(acceleration, math.sqrt(speed * jerk / 2.0))
        return cls(speed, used, 2.0 * used / jerk) if used > 0 else cls(0.0, 0.0, 0.0)


class Outlook(NamedTuple):
    """One axis at the end of a step, before the leader's new speed u is chosen.

    If the leader stood still from then on, what is sent would still lead `way + way_gain * u` further. `velocity` is
    what is sent if u = 0. `peak_up` and `peak_down` are the leader's fastest in the window, 0 or more.
    """

    velocity: float
    way: float
    way_gain: float
    peak_up: float
    peak_down: float


class Follower:
    """The leader's past, as far as it still matters.

    Args:
        axes: their limits.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = tuple(axes)
        self._longest_s = max(axis.window_s for axis in self.axes)
        self.rest()

    def rest(self) -> None:
        """Nothing has moved for a long time."""
        self.leader = [0.0] * len(self.axes)
        self._pieces: deque[tuple[float, list[float], list[float]]] = deque()  # newest first: seconds, from, to

    @property
    def moving(self) -> bool:
        """Whether something else than zeros has been or will be sent."""
        return any(self.leader) or any(any(begin) or any(end) for _, begin, end in self._pieces)

    def advance(self, dt_s: float, leader: Sequence[float]) -> list[float]:
        """In the last `dt_s` the leader has changed to this velocity; returns how far it has gone, m or rad.

        It has changed evenly; if to 0, then with its whole acceleration at first, and has rested since. Its sign has
        not changed, nor has it changed by more than its acceleration allows.
        """
        before, self.leader = self.leader, [0.0 if abs(speed) < REST else speed for speed in leader]
        self._pieces.appendleft((dt_s, before, self.leader))
        known_s = math.fsum(piece[0] for piece in self._pieces)
        while self._pieces and known_s - self._pieces[-1][0] >= self._longest_s:
            known_s -= self._pieces.pop()[0]
        ramps = enumerate(zip(before, self.leader, strict=True))
        return [self._ramp_s(i, dt_s, old, new) * (old + new) / 2.0 for i, (old, new) in ramps]

    def _ramp_s(self, i: int, dt_s: float, begin: float, end: float) -> float:
        """How long the change has taken."""
        if end or not begin:
            return dt_s
        return min(dt_s, abs(begin) / self.axes[i].acceleration)

    def look(self, dt_s: float, count: int | None = None) -> list[Outlook]:
        """Each axis, or the first `count` of them, `dt_s` after the last step."""
        return [self._look(i, dt_s) for i in range(len(self.axes) if count is None else count)]

    def _look(self, i: int, dt_s: float) -> Outlook:
        window_s, newest = self.axes[i].window_s, self.leader[i]
        if window_s == 0.0:
            return Outlook(0.0, 0.0, 0.0, 0.0, 0.0)
        velocity = way = way_gain = 0.0
        low, high = min(newest, 0.0), max(newest, 0.0)
        if dt_s > 0:
            end_s = min(dt_s, window_s)
            share = end_s / dt_s
            way_gain = (end_s * window_s * (1.0 - share / 2.0) - end_s * end_s * (0.5 - share / 3.0)) / window_s
            # The rest of the newest piece: from its old velocity, here as if to 0.
            velocity = newest * end_s * share / 2.0 / window_s
            way = newest * end_s * share * (window_s / 2.0 - end_s / 3.0) / window_s
        age_s = dt_s
        for length_s, begins, ends in self._pieces:
            if age_s >= window_s:
                break
            begin, end = begins[i], ends[i]
            if not begin and not end:
                age_s += length_s
                continue
            ramp_s = self._ramp_s(i, length_s, begin, end)
            left_s = window_s - age_s - (length_s - ramp_s)  # of the window before the change ended
            if left_s > 0:
                within_s = min(ramp_s, left_s)
                # Ages count backwards: the piece's end is the nearer. Linear in age, the second times linear: Simpson.
                far = end + (begin - end) * (within_s / ramp_s)
                middle = (end + far) / 2.0
                velocity += within_s * middle / window_s
                way += (
                    within_s
                    / 6.0
                    * (end * left_s + 4.0 * middle * (left_s - within_s / 2.0) + far * (left_s - within_s))
                    / window_s
                )
                low, high = min(low, begin, end), max(high, begin, end)
            age_s += length_s
        return Outlook(velocity, way, way_gain, high, -low)

    def sent(self) -> tuple[list[float], list[float]]:
        """The velocity that is sent now, and how much further it leads than the leader's place."""
        velocities, ways = [], []
        for i, outlook in enumerate(self.look(0.0)):
            newest = self.leader[i]
            steady = self._steady(i)
            velocities.append(newest if steady else outlook.velocity)
            ways.append(outlook.way)
        return velocities, ways

    def _steady(self, i: int) -> bool:
        """Whether the leader has been as it is now for a window; then rounding shall not show."""
        left_s, newest = self.axes[i].window_s, self.leader[i]
        for length_s, begins, ends in self._pieces:
            if left_s <= 0:
                return True
            if not begins[i] == ends[i] == newest:
                return False
            left_s -= length_s
        return left_s <= 0 or newest == 0.0


def fastest(distance: float, gain: float, acceleration: float) -> float:
    """The greatest u >= 0 with u**2 / (2 acceleration) + gain * u <= distance: one stops within that distance."""
    if distance <= 0 or acceleration <= 0:
        return 0.0
    # As a quotient, as a difference of nearly equal numbers would lose digits.
    return 2.0 * distance / (gain + math.sqrt(gain * gain + 2.0 * distance / acceleration))
