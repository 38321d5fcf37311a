"""The safety gate: a state machine through which every command to the robot goes.

    IDLE     no command source yet; nothing is sent
    ACTIVE   commands pass, within limits
    HOLD     something is missing for the moment; motion slows to rest and the set-point is kept; passes again by itself
    STOPPED  latched, with its causes; motion slows to rest, then nothing is sent; only `reset` leads back to IDLE

An emergency or protective stop ends the commands at once, without slowing down: the robot's own brakes are at work.
The gate is pure: it knows no clock and no messages. Times are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from dr_core.safety.limits import Limits
from dr_core.safety.motion import Axis, Follower, Outlook, fastest

Values = tuple[float, ...]
Kind = Literal["twist", "joint_position", "joint_velocity"]
"""twist: tool velocity, linear m/s and angular rad/s in base axes (6,); joint_…: rad or rad/s (J,)."""

SAME = 1e-9  # m/s, rad/s or rad between what is asked for and what is sent


class GateState(IntEnum):
    """The numbers are those of dr_interfaces/msg/GateState."""

    IDLE = 0
    ACTIVE = 1
    HOLD = 2
    STOPPED = 3


@dataclass(frozen=True)
class Command:
    """What somebody wants; `stamp_ns` is when the observation behind it was taken."""

    stamp_ns: int
    values: Values


@dataclass(frozen=True)
class RobotState:
    """The newest measurement of the robot."""

    stamp_ns: int
    joint_rad: Values
    joint_rad_s: Values
    tool_m: Values
    """(3,) in the base frame."""


@dataclass(frozen=True)
class Interlocks:
    """Inputs besides commands and robot state."""

    estop: bool = False
    """The emergency stop is pressed."""
    protective_stop: bool = False
    """The robot reports that its controller has stopped it."""
    deadman_released: bool = False
    """A dead-man switch is in use, and nobody holds it."""
    holds: tuple[str, ...] = ()
    """Other reasons to HOLD, in words, for example a heartbeat that is missing."""
    faults: tuple[str, ...] = ()
    """Other reasons to stop, in words, for example a second publisher."""

    @property
    def cuts(self) -> tuple[str, ...]:
        """Reasons to end the commands at once."""
        return ("emergency stop",) * self.estop + ("protective stop",) * self.protective_stop


@dataclass(frozen=True)
class GateOutput:
    """What is allowed now."""

    allowed: Values | None
    """Send this; None: send nothing."""
    state: GateState
    causes: tuple[str, ...]
    """Why the gate is not ACTIVE, in words; empty when it is."""


@dataclass
class Counts:
    """Since the start."""

    received: int = 0
    passed: int = 0
    limited: int = 0
    rejected: int = 0
    holds: int = 0
    stops: int = 0


class SafetyGate:
    """Call `step` on every command and at least every `limits.period_s`; send what it allows.

    Args:
        limits: bounds in SI units.
        kind: what the commands' values mean.
    """

    def __init__(self, limits: Limits, kind: Kind) -> None:
        self.limits = limits
        self.kind: Kind = kind
        self.counts = Counts()
        self.state = GateState.IDLE
        self._follower = Follower(_axes(limits, kind))
        self._size = len(self._follower.axes)
        self._causes: tuple[str, ...] = ()
        self._cut = False
        self._stepped_ns: int | None = None
        self._reset_ns: int | None = None
        self._last_sent_ns = 0
        self._clamps = self._invalid = 0
        self._forget()

    def step(
        self,
        now_ns: int,
        command: Command | None,
        state: RobotState | None,
        interlocks: Interlocks = Interlocks(),
    ) -> GateOutput:
        """Take a new command, or None, and say what is sent now.

        Args:
            now_ns: the monotonic clock.
            command: one that has not been given before.
            state: the newest measurement of the robot, None before the first.
            interlocks: emergency stop, dead-man, other faults.
        """
        dt_s = self._time_step(now_ns)
        if command is not None:
            self.counts.received += 1
        if causes := self._stop_causes(now_ns, state, interlocks):
            self._stop(causes, cut=bool(interlocks.cuts))
        accepted = False
        if self.state == GateState.STOPPED:
            self.counts.rejected += command is not None
        else:
            accepted = self._take(now_ns, command, state, interlocks)
            self._watch(now_ns, interlocks)
        still = [0.0] * self._size
        bounds = self._bounds(dt_s, now_ns, state) if self.state != GateState.IDLE else []
        wanted = self._wanted(dt_s, state) if self.state == GateState.ACTIVE else still
        if accepted and self.state == GateState.ACTIVE:
            self._clamps = self._clamps + 1 if self._clamped(wanted, bounds) else max(0, self._clamps - 1)
            if self._clamps > self.limits.max_clamps:
                self._stop((f"{self._clamps} commands had to be clamped at the limits",))
                wanted = still
        allowed = self._move(dt_s, wanted, bounds)
        if allowed is not None:
            self._last_sent_ns = now_ns
        if accepted:
            unchanged = allowed is not None and _same(allowed, self._target)
            self.counts.passed += unchanged
            self.counts.limited += not unchanged
        return GateOutput(allowed, self.state, self._causes)

    def _time_step(self, now_ns: int) -> float:
        """Seconds by which motion goes on, no more than a period."""
        before_ns, self._stepped_ns = self._stepped_ns, now_ns
        if before_ns is None or now_ns <= before_ns:
            return 0.0
        if any(self._velocity):
            self._sent.appendleft((before_ns, now_ns, tuple(self._velocity)))
            while self._sent and now_ns - self._sent[-1][1] > self.limits.state_max_age_s * 1e9:
                self._sent.pop()
        return min((now_ns - before_ns) * 1e-9, self.limits.period_s)

    def command_age_s(self, now_ns: int) -> float:
        """Since the observation behind the newest accepted command; -1 when there is none."""
        return -1.0 if self._source_ns is None else (now_ns - self._source_ns) * 1e-9

    def reset(
        self,
        now_ns: int,
        state: RobotState | None,
        interlocks: Interlocks = Interlocks(),
    ) -> tuple[str, ...]:
        """Clear a latched stop, unless its causes are still there: they are returned.

        Nothing moves until a command arrives whose observation is newer than the reset.
        """
        if self.state != GateState.STOPPED:
            return ()
        if causes := self._stop_causes(now_ns, state, interlocks, waking=True):
            return causes
        if self._follower.moving and not self._cut:
            return ("the arm is still slowing down",)
        if state is not None and state.stamp_ns < self._last_sent_ns:
            return ("the robot's state is older than the last command",)
        self.state, self._causes, self._cut, self._reset_ns = GateState.IDLE, (), False, now_ns
        self._forget()
        return ()

    def _forget(self) -> None:
        """Nothing has been commanded."""
        self._target: Values = ()
        self._source_ns: int | None = None
        self._heard_ns = 0
        self._rejection = ""
        self._clamps = self._invalid = 0
        self._follower.rest()
        self._velocity = [0.0] * self._size
        self._places = [0.0] * self._size  # of the leader, for joint_position
        self._sent: deque[tuple[int, int, Values]] = deque()  # newest first: from, until, velocity

    def _stop_causes(
        self, now_ns: int, state: RobotState | None, interlocks: Interlocks, *, waking: bool = False
    ) -> tuple[str, ...]:
        """Everything that forbids motion now. An idle gate does not need to know the robot's state yet."""
        causes: tuple[str, ...] = interlocks.cuts + interlocks.faults
        if not waking and self.state not in (GateState.ACTIVE, GateState.HOLD):
            return causes
        if problem := self._state_problem(now_ns, state):
            return (*causes, problem)
        assert state is not None
        if self.kind == "twist":
            lower, upper = self.limits.joint_bounds_rad
            for i, angle in enumerate(state.joint_rad):
                if not lower[i] <= angle <= upper[i]:
                    causes += (f"joint {i + 1} is within {self.limits.joint_margin_rad:g} rad of its limit",)
        elif not _inside(state.tool_m, self.limits.workspace_lower_m, self.limits.workspace_upper_m):
            causes += ("the tool is outside the workspace",)
        return causes

    def _state_problem(self, now_ns: int, state: RobotState | None) -> str:
        """Why the measurement cannot be used; empty when it can."""
        if state is None:
            return "the robot's state is unknown"
        count = len(self.limits.joint_lower_rad)
        if (len(state.joint_rad), len(state.joint_rad_s), len(state.tool_m)) != (count, count, 3):
            return "the robot's state has the wrong length"
        if not all(map(math.isfinite, (*state.joint_rad, *state.joint_rad_s, *state.tool_m))):
            return "the robot's state is not finite"
        if now_ns - state.stamp_ns > self.limits.state_max_age_s * 1e9:
            return f"the robot's state is older than {self.limits.state_max_age_s:g} s"
        if state.stamp_ns - now_ns > self.limits.future_s * 1e9:
            return "the robot's state is stamped in the future"
        return ""

    def _take(self, now_ns: int, command: Command | None, state: RobotState | None, interlocks: Interlocks) -> bool:
        """Returns whether the command is accepted as the new target."""
        if command is None:
            return False
        invalid = len(command.values) != self._size or not all(map(math.isfinite, command.values))
        rejection = self._rejection_of(now_ns, command, state, interlocks, invalid=invalid)
        if rejection:
            self._rejection = rejection
            self.counts.rejected += 1
            if invalid:
                self._invalid += 1
                if self._invalid > self.limits.max_invalid:
                    self._stop((f"{self._invalid} commands were not usable",))
                elif self.state == GateState.ACTIVE:
                    self._hold(rejection)
            return False
        assert state is not None
        if self.state == GateState.IDLE:
            self._places = list(state.joint_rad) if self.kind == "joint_position" else [0.0] * self._size
        self._invalid = max(0, self._invalid - 1)
        self._target, self._source_ns, self._heard_ns = command.values, command.stamp_ns, now_ns
        self.state, self._causes, self._rejection = GateState.ACTIVE, (), ""
        return True

    def _rejection_of(
        self, now_ns: int, command: Command, state: RobotState | None, interlocks: Interlocks, *, invalid: bool
    ) -> str:
        """Why the command is dropped whole; empty when it is not."""
        if invalid:
            return f"a command was not {self._size} finite numbers"
        age_ns = now_ns - command.stamp_ns
        if age_ns > self.limits.max_age_s * 1e9:
            return f"a command was {age_ns * 1e-9:.3f} s old, more than {self.limits.max_age_s:g} s"
        if -age_ns > self.limits.future_s * 1e9:
            return f"a command's stamp was {-age_ns * 1e-9:.3f} s in the future"
        if self._source_ns is not None and command.stamp_ns <= self._source_ns:
            return "a command was not newer than the one before"
        if self._reset_ns is not None and command.stamp_ns <= self._reset_ns:
            return "a command was older than the reset"
        if problem := self._state_problem(now_ns, state):
            return problem
        if held := self._held(interlocks):
            self._heard_ns = now_ns  # it would have passed
            return held
        return ""

    def _held(self, interlocks: Interlocks) -> str:
        """Why commands do not pass for the moment; empty when they do."""
        reasons = ("the dead-man switch is released",) * interlocks.deadman_released + interlocks.holds
        return "; ".join(reasons)

    def _watch(self, now_ns: int, interlocks: Interlocks) -> None:
        """HOLD or STOP when commands fail to come, HOLD when the dead-man is released."""
        if self.state == GateState.IDLE:
            self._causes = (self._held(interlocks) or self._rejection or "no command yet",)
        if self.state not in (GateState.ACTIVE, GateState.HOLD):
            return
        if interlocks.deadman_released:
            self._heard_ns = now_ns  # whoever lets go owes no commands
        silent_ns = now_ns - self._heard_ns
        held = self._held(interlocks)
        why = f"; {self._rejection}" if self._rejection else ""
        if silent_ns > self.limits.stop_after_s * 1e9:
            self._stop((f"no good command for {self.limits.stop_after_s:g} s{why}",))
        elif held:
            self._hold(held)
        elif silent_ns > self.limits.hold_after_s * 1e9:
            self._hold(f"no good command for {self.limits.hold_after_s:g} s{why}")

    def _hold(self, cause: str) -> None:
        self.counts.holds += self.state != GateState.HOLD
        self.state, self._causes = GateState.HOLD, (cause,)

    def _stop(self, causes: tuple[str, ...], *, cut: bool = False) -> None:
        if self.state != GateState.STOPPED:
            self.counts.stops += 1
            self.state, self._causes = GateState.STOPPED, ()
        self._causes += tuple(cause for cause in causes if cause not in self._causes)
        self._cut = self._cut or cut

    def _wanted(self, dt_s: float, state: RobotState | None) -> list[float]:
        """The velocity that the newest command asks for, within the speed limits."""
        axes = self._follower.axes
        if self.kind == "twist":
            scale = 1.0 if state is None else self._slow_near_joint_limits(state)
            linear, angular = _shorten(self._target[:3], axes[0].speed), _shorten(self._target[3:], axes[3].speed)
            return [scale * speed for speed in (*linear, *angular)]
        if self.kind == "joint_velocity":
            pairs = zip(self._target, axes, strict=True)
            return [min(max(speed, -axis.speed), axis.speed) for speed, axis in pairs]
        wanted = []
        lower, upper = self.limits.joint_bounds_rad
        for i, target in enumerate(self._target):
            way = min(max(target, lower[i]), upper[i]) - self._place_after(i, dt_s)
            axis = axes[i]
            wanted.append(math.copysign(min(axis.speed, fastest(abs(way), dt_s / 2.0, axis.acceleration)), way))
        return wanted

    def _slow_near_joint_limits(self, state: RobotState) -> float:
        """0 to 1, the less the nearer a joint comes to its margin."""
        lower, upper = self.limits.joint_bounds_rad
        scale = 1.0
        for i, speed in enumerate(state.joint_rad_s):
            room = upper[i] - state.joint_rad[i] if speed > 0 else state.joint_rad[i] - lower[i]
            if speed != 0 and room < self.limits.joint_slow_rad:
                scale = min(scale, max(0.0, room) / self.limits.joint_slow_rad)
        return scale

    def _place_after(self, i: int, dt_s: float) -> float:
        """Where the leader of joint i is after `dt_s` if its velocity goes to 0; with u it is u * dt_s / 2 further."""
        return self._places[i] + self._follower.leader[i] * dt_s / 2.0

    def _bounds(self, dt_s: float, now_ns: int, state: RobotState | None) -> list[tuple[float, float]]:
        """Lowest and highest velocity of each axis from which it can still stop before its bound."""
        limits, axes = self.limits, self._follower.axes
        if self.kind == "joint_position":
            bounds = []
            for i, (lower, upper) in enumerate(zip(*limits.joint_bounds_rad, strict=True)):
                place, most = self._place_after(i, dt_s), axes[i].acceleration
                bounds.append(
                    (-fastest(place - lower, dt_s / 2.0, most), fastest(upper - place, dt_s / 2.0, most)),
                )
            return bounds
        free = (-math.inf, math.inf)
        if state is None or self._state_problem(now_ns, state):
            return [free] * self._size  # slowing down to a stop without knowing where
        measured: Values = state.tool_m
        box: tuple[Values, Values] = (limits.workspace_lower_m, limits.workspace_upper_m)
        if self.kind == "joint_velocity":
            measured, box = state.joint_rad, limits.joint_bounds_rad
        travelled = self._travelled_since(state.stamp_ns)
        outlooks = self._follower.look(dt_s, len(measured))
        bounds = [
            self._bounds_of(place + travelled[i], lower, upper, outlooks[i], axes[i].acceleration)
            for i, (place, lower, upper) in enumerate(zip(measured, *box, strict=True))
        ]
        return bounds + [free] * (self._size - len(bounds))

    def _bounds_of(
        self, place: float, lower: float, upper: float, outlook: Outlook, acceleration: float
    ) -> tuple[float, float]:
        """The arm keeps each velocity until the next comes, which may take a period: what is sent is less by then."""
        period_s, gain = self.limits.period_s, outlook.way_gain
        high = min(
            fastest(upper - place - outlook.way, gain + period_s, acceleration),
            fastest(upper - place - outlook.way - period_s * outlook.peak_up, gain, acceleration),
        )
        low = min(
            fastest(place + outlook.way - lower, gain + period_s, acceleration),
            fastest(place + outlook.way - lower - period_s * outlook.peak_down, gain, acceleration),
        )
        return -low, high

    def _travelled_since(self, stamp_ns: int) -> list[float]:
        """How far each axis has moved since then, if it did as it was told; m or rad."""
        total = [0.0] * self._size
        for begin_ns, end_ns, velocity in self._sent:
            if end_ns <= stamp_ns:
                break
            seconds = (end_ns - max(begin_ns, stamp_ns)) * 1e-9
            total = [way + speed * seconds for way, speed in zip(total, velocity, strict=True)]
        return total

    def _clamped(self, wanted: list[float], bounds: list[tuple[float, float]]) -> bool:
        """Whether the target goes past a bound."""
        if self.kind == "joint_position":
            return not _inside(self._target, *self.limits.joint_bounds_rad)
        return any(not low <= speed <= high for speed, (low, high) in zip(wanted, bounds, strict=True))

    def _move(self, dt_s: float, wanted: list[float], bounds: list[tuple[float, float]]) -> Values | None:
        """What is sent now: the leader goes on by `dt_s` towards the wanted velocity, what is sent follows."""
        if self.state == GateState.IDLE or self._cut or (self.state == GateState.STOPPED and not self._follower.moving):
            self._follower.rest()
            self._velocity = [0.0] * self._size
            self._sent.clear()
            return None
        if dt_s > 0:
            before = self._follower.leader
            after = self._rate_limited(before, wanted, dt_s)
            for i, (low, high) in enumerate(bounds):
                step = self._follower.axes[i].acceleration * dt_s
                if after[i] > high:
                    after[i] = max(high, before[i] - step)
                elif after[i] < low:
                    after[i] = min(low, before[i] + step)
                if after[i] * before[i] < 0:
                    after[i] = 0.0
            ways = self._follower.advance(dt_s, after)
            self._places = [place + way for place, way in zip(self._places, ways, strict=True)]
        self._velocity, ways = self._follower.sent()
        if self.kind != "joint_position":
            return tuple(self._velocity)
        return tuple(place - way for place, way in zip(self._places, ways, strict=True))

    def _rate_limited(self, before: list[float], wanted: list[float], dt_s: float) -> list[float]:
        """`before`, moved towards `wanted` by what the accelerations allow in `dt_s`."""
        axes = self._follower.axes
        if self.kind == "twist" and any(wanted):
            # In a straight line, as two velocities within the speed limit have only such between them.
            linear = _towards(before[:3], wanted[:3], axes[0].acceleration * dt_s)
            return linear + _towards(before[3:], wanted[3:], axes[3].acceleration * dt_s)
        steps = zip(before, wanted, axes, strict=True)
        return [_towards([old], [new], axis.acceleration * dt_s)[0] for old, new, axis in steps]


class GripperGate:
    """The opening that is sent: within its range, and changing no faster than its limit. The first is taken as it is.

    Args:
        limits: of the robot.
    """

    def __init__(self, limits: Limits) -> None:
        self._widest_m, self._speed_m_s, self._force_n = (
            limits.gripper_width_m,
            limits.gripper_speed_m_s,
            limits.gripper_force_n,
        )
        self._target_m: float | None = None
        self._sent_m: float | None = None

    def want(self, width_m: float) -> None:
        """What is not a number is ignored."""
        if math.isfinite(width_m):
            self._target_m = min(max(width_m, 0.0), self._widest_m)

    def force(self, force_n: float) -> float:
        """The allowed part of a force, N; the strongest for one that is not a number."""
        return min(max(force_n, 0.0), self._force_n) if math.isfinite(force_n) else self._force_n

    def step(self, dt_s: float, *, closed_gate: bool) -> float | None:
        """The opening to send after `dt_s` more seconds, m; None: nothing new. A closed gate forgets its target."""
        if closed_gate:
            self._target_m = None
        if self._target_m is None or self._target_m == self._sent_m:
            return None
        if self._sent_m is None:
            self._sent_m = self._target_m
        else:
            furthest = self._speed_m_s * max(0.0, dt_s)
            self._sent_m += min(max(self._target_m - self._sent_m, -furthest), furthest)
        return self._sent_m


def _axes(limits: Limits, kind: Kind) -> list[Axis]:
    """What bounds each number of a command."""
    if kind != "twist":
        each = zip(limits.joint_speed_rad_s, limits.joint_acceleration_rad_s2, limits.joint_jerk_rad_s3, strict=True)
        return [Axis.within(*one) for one in each]
    linear = Axis.within(limits.linear_speed_m_s, limits.linear_acceleration_m_s2, limits.linear_jerk_m_s3)
    angular = Axis.within(limits.angular_speed_rad_s, limits.angular_acceleration_rad_s2, limits.angular_jerk_rad_s3)
    return [linear] * 3 + [angular] * 3


def _inside(point: Values, lower: Values, upper: Values) -> bool:
    return all(low <= value <= high for low, value, high in zip(lower, point, upper, strict=True))


def _same(a: Values, b: Values) -> bool:
    return all(abs(x - y) <= SAME for x, y in zip(a, b, strict=True))


def _shorten(vector: Values, longest: float) -> list[float]:
    """The same direction, no longer than that."""
    length = math.hypot(*vector)
    if length <= longest:
        return list(vector)
    return [value * (longest / length) for value in vector]


def _towards(old: list[float], new: list[float], furthest: float) -> list[float]:
    """From `old` to `new`, but no further than that."""
    change = _shorten(tuple(b - a for a, b in zip(old, new, strict=True)), furthest)
    return [a + b for a, b in zip(old, change, strict=True)]
