"""The safety gate: a state machine through which every command to the robot goes.

    IDLE     no command source yet; nothing is sent
    ACTIVE   commands pass, within limits
    HOLD     something is missing for the moment; motion slows to rest and the set-point is kept; passes again by itself
    STOPPED  latched, with its causes; motion slows to rest, then nothing is sent; only `reset` leads back to IDLE

An emergency stop ends the commands at once, without slowing down: then the robot's own brakes are at work.
The gate is pure: it knows no clock and no messages. Times are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from dr_core.safety.limits import Limits

Values = tuple[float, ...]
Kind = Literal["twist", "joint_position", "joint_velocity"]
"""twist: tool velocity, linear m/s and angular rad/s in base axes (6,); joint_…: rad or rad/s (J,)."""

REST = 1e-9  # m/s or rad/s below which nothing moves


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
    """The emergency stop is pressed, or the robot reports a protective stop."""
    deadman_released: bool = False
    """A dead-man switch is in use, and nobody holds it."""
    faults: tuple[str, ...] = ()
    """Other reasons not to move, in words, for example a second publisher."""


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


@dataclass
class _Motion:
    """What was sent last."""

    velocity: list[float]
    position: list[float] = field(default_factory=list)  # set-point of joint_position, else unused


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
        self._size = 6 if kind == "twist" else len(limits.joint_lower_rad)
        self._causes: tuple[str, ...] = ()
        self._cut = False
        self._last_ns: int | None = None
        self._reset_ns: int | None = None
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
        period_s = self.limits.period_s
        elapsed_s = 0.0 if self._last_ns is None else max(0, now_ns - self._last_ns) * 1e-9
        self._last_ns = now_ns
        if command is not None:
            self.counts.received += 1
        if causes := self._stop_causes(now_ns, state, interlocks):
            self._stop(causes, cut=interlocks.estop)
        accepted = False
        if self.state == GateState.STOPPED:
            self.counts.rejected += command is not None
        else:
            accepted = self._take(now_ns, command, state, interlocks)
            self._watch(now_ns, interlocks)
            if accepted and self._clamps > self.limits.max_clamps:
                self._stop((f"{self._clamps} commands had to be clamped at the limits",))
        allowed = self._advance(min(elapsed_s, period_s), now_ns, state)
        if accepted:
            unchanged = allowed is not None and _same(allowed, self._target)
            self.counts.passed += unchanged
            self.counts.limited += not unchanged
        return GateOutput(allowed, self.state, self._causes)

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
        self.state, self._causes, self._cut, self._reset_ns = GateState.IDLE, (), False, now_ns
        self._forget()
        return ()

    def _forget(self) -> None:
        """Nothing has been commanded."""
        self._target: Values = ()
        self._source_ns: int | None = None
        self._accepted_ns = 0
        self._rejection = ""
        self._clamps = self._invalid = 0
        self._motion = _Motion([0.0] * self._size)

    def _stop_causes(
        self, now_ns: int, state: RobotState | None, interlocks: Interlocks, *, waking: bool = False
    ) -> tuple[str, ...]:
        """Everything that forbids motion now. An idle gate does not need to know the robot's state yet."""
        causes: tuple[str, ...] = ("emergency stop",) if interlocks.estop else ()
        causes += interlocks.faults
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
            self._motion.position = list(state.joint_rad)
        self._invalid = max(0, self._invalid - 1)
        self._target, self._source_ns, self._accepted_ns = command.values, command.stamp_ns, now_ns
        self.state, self._causes, self._rejection = GateState.ACTIVE, (), ""
        self._clamps = self._clamps + 1 if self._clamped(now_ns, state) else max(0, self._clamps - 1)
        return True

    def _rejection_of(
        self, now_ns: int, command: Command, state: RobotState | None, interlocks: Interlocks, *, invalid: bool
    ) -> str:
        """Why the command is dropped whole; empty when it is not."""
        if invalid:
            return f"a command was not {self._size} finite numbers"
        if interlocks.deadman_released:
            return "the dead-man switch is released"
        age_ns = now_ns - command.stamp_ns
        if age_ns > self.limits.max_age_s * 1e9:
            return f"a command was {age_ns * 1e-9:.3f} s old, more than {self.limits.max_age_s:g} s"
        if -age_ns > self.limits.future_s * 1e9:
            return f"a command's stamp was {-age_ns * 1e-9:.3f} s in the future"
        if self._source_ns is not None and command.stamp_ns <= self._source_ns:
            return "a command was not newer than the one before"
        if self._reset_ns is not None and command.stamp_ns <= self._reset_ns:
            return "a command was older than the reset"
        return self._state_problem(now_ns, state)

    def _watch(self, now_ns: int, interlocks: Interlocks) -> None:
        """HOLD or STOP when commands fail to come, HOLD when the dead-man is released."""
        if self.state == GateState.IDLE:
            self._causes = (self._rejection or "no command yet",)
        if self.state not in (GateState.ACTIVE, GateState.HOLD):
            return
        if interlocks.deadman_released:
            self._accepted_ns = now_ns  # whoever lets go owes no commands
            self._hold("the dead-man switch is released")
            return
        silent_ns = now_ns - self._accepted_ns
        why = f"; {self._rejection}" if self._rejection else ""
        if silent_ns > self.limits.stop_after_s * 1e9:
            self._stop((f"no good command for {self.limits.stop_after_s:g} s{why}",))
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

    def _advance(self, dt_s: float, now_ns: int, state: RobotState | None) -> Values | None:
        """What is sent now, moved on by `dt_s` from what was sent last."""
        before = self._motion.velocity
        at_rest = all(abs(speed) < REST for speed in before)
        if self.state == GateState.IDLE or self._cut or (self.state == GateState.STOPPED and at_rest):
            self._motion.velocity = [0.0] * self._size
            return None
        wanted = self._wanted(dt_s, state) if self.state == GateState.ACTIVE else [0.0] * self._size
        velocity = self._rate_limited(before, wanted, dt_s)
        for i, (low, high) in enumerate(self._bounds(now_ns, state)):
            velocity[i] = min(max(velocity[i], low), high)
        self._motion.velocity = velocity
        if self.kind != "joint_position":
            return tuple(velocity)
        lower, upper = self.limits.joint_bounds_rad
        for i, before_rad in enumerate(self._motion.position):
            # A joint that starts beyond its bound may come back from there, and rounding does not carry one over it.
            low, high = min(lower[i], before_rad), max(upper[i], before_rad)
            self._motion.position[i] = min(max(before_rad + velocity[i] * dt_s, low), high)
        return tuple(self._motion.position)

    def _wanted(self, dt_s: float, state: RobotState | None) -> list[float]:
        """The velocity that the newest command asks for, within the speed limits."""
        limits = self.limits
        if self.kind == "twist":
            scale = 1.0 if state is None else self._slow_near_joint_limits(state)
            linear = _shorten(self._target[:3], limits.linear_speed_m_s)
            angular = _shorten(self._target[3:], limits.angular_speed_rad_s)
            return [scale * speed for speed in (*linear, *angular)]
        if self.kind == "joint_velocity":
            pairs = zip(self._target, limits.joint_speed_rad_s, strict=True)
            return [min(max(speed, -fastest), fastest) for speed, fastest in pairs]
        wanted = []
        lower, upper = limits.joint_bounds_rad
        for i, target in enumerate(self._target):
            way = min(max(target, lower[i]), upper[i]) - self._motion.position[i]
            brake = stopping_speed(abs(way), limits.joint_acceleration_rad_s2[i], limits.period_s)
            arrive = abs(way) / dt_s if dt_s > 0 else 0.0
            wanted.append(math.copysign(min(limits.joint_speed_rad_s[i], brake, arrive), way))
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

    def _rate_limited(self, before: list[float], wanted: list[float], dt_s: float) -> list[float]:
        """`before`, moved towards `wanted` by what the acceleration limits allow in `dt_s`."""
        limits = self.limits
        accelerations = limits.joint_acceleration_rad_s2
        if self.kind == "twist":
            if any(wanted):
                # In a straight line, as two velocities within the speed limit have only such between them.
                linear = _towards(before[:3], wanted[:3], limits.linear_acceleration_m_s2 * dt_s)
                return linear + _towards(before[3:], wanted[3:], limits.angular_acceleration_rad_s2 * dt_s)
            accelerations = (limits.linear_acceleration_m_s2,) * 3 + (limits.angular_acceleration_rad_s2,) * 3
        axes = zip(before, wanted, accelerations, strict=True)
        return [_towards([old], [new], acceleration * dt_s)[0] for old, new, acceleration in axes]

    def _bounds(self, now_ns: int, state: RobotState | None) -> list[tuple[float, float]]:
        """Lowest and highest velocity of each axis from which it can still stop before its bound."""
        limits = self.limits
        free = (-math.inf, math.inf)
        if self.kind == "joint_position":
            places, lower, upper = self._motion.position, *limits.joint_bounds_rad
            accelerations: Values = limits.joint_acceleration_rad_s2
        elif state is None or self._state_problem(now_ns, state):
            return [free] * self._size  # slowing down to a stop without knowing where
        else:
            # Where the axis is by now, if it has done as it was told since it was measured.
            age_s = max(0, now_ns - state.stamp_ns) * 1e-9
            measured = state.tool_m if self.kind == "twist" else state.joint_rad
            pairs = zip(measured, self._motion.velocity, strict=False)
            places = [place + speed * age_s for place, speed in pairs]
            if self.kind == "twist":
                lower, upper = limits.workspace_lower_m, limits.workspace_upper_m
                accelerations = (limits.linear_acceleration_m_s2,) * 3
            else:
                (lower, upper), accelerations = limits.joint_bounds_rad, limits.joint_acceleration_rad_s2
        bounds = [
            (
                -stopping_speed(place - lower[i], accelerations[i], limits.period_s),
                stopping_speed(upper[i] - place, accelerations[i], limits.period_s),
            )
            for i, place in enumerate(places)
        ]
        return bounds + [free] * (self._size - len(bounds))

    def _clamped(self, now_ns: int, state: RobotState) -> bool:
        """Whether the target goes past a bound."""
        if self.kind == "joint_position":
            return not _inside(self._target, *self.limits.joint_bounds_rad)
        pairs = zip(self._wanted(0.0, state), self._bounds(now_ns, state), strict=True)
        return any(not low <= speed <= high for speed, (low, high) in pairs)


def stopping_speed(distance: float, acceleration: float, period_s: float) -> float:
    """The fastest speed from which one comes to rest within `distance` (m or rad).

    One moves for a period at that speed, then for a period at a speed less by acceleration * period, and so on.
    """
    step = acceleration * period_s  # change of speed in a period
    if distance <= 0 or step <= 0:
        return 0.0
    unit = step * period_s
    whole = math.floor((math.sqrt(8.0 * distance / unit + 1.0) - 1.0) / 2.0)  # periods of slowing down
    return step * (distance / unit + whole * (whole + 1) / 2.0) / (whole + 1)


def _inside(point: Values, lower: Values, upper: Values) -> bool:
    return all(low <= value <= high for low, value, high in zip(lower, point, upper, strict=True))


def _same(a: Values, b: Values) -> bool:
    return all(abs(x - y) <= REST for x, y in zip(a, b, strict=True))


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
