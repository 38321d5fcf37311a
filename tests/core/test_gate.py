"""The safety gate: each rule alone, then a state machine that tries everything in any order."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dr_core.safety.gate import (
    Command,
    GateOutput,
    GateState,
    GripperGate,
    Interlocks,
    Kind,
    RobotState,
    SafetyGate,
)
from dr_core.safety.limits import Limits

IDLE, ACTIVE, HOLD, STOPPED = GateState
LIMITS = Limits(
    workspace_lower_m=(0.0, -0.3, 0.0),
    workspace_upper_m=(0.6, 0.3, 0.4),
    linear_speed_m_s=0.25,
    angular_speed_rad_s=1.0,
    linear_acceleration_m_s2=2.0,
    angular_acceleration_rad_s2=8.0,
    linear_jerk_m_s3=100.0,
    angular_jerk_rad_s3=400.0,
    joint_lower_rad=(-1.0, 0.0),
    joint_upper_rad=(1.0, 2.0),
    joint_speed_rad_s=(1.0, 0.5),
    joint_acceleration_rad_s2=(5.0, 4.0),
    joint_jerk_rad_s3=(250.0, 100.0),
    joint_margin_rad=0.05,
    joint_slow_rad=0.1,
    gripper_width_m=0.08,
    gripper_speed_m_s=0.1,
    gripper_force_n=40.0,
    max_age_s=0.15,
    future_s=0.05,
    hold_after_s=0.15,
    stop_after_s=0.2,
    state_max_age_s=0.1,
    max_clamps=3,
    max_invalid=2,
    period_s=0.02,
)
CENTRE = (0.3, 0.0, 0.2)
MIDDLE = (0.0, 1.0)
FORWARD = (0.1, 0.0, 0.0, 0.0, 0.0, 0.0)
REST6 = (0.0,) * 6


class Rig:
    """A gate, a clock, and an arm that does exactly as it is told."""

    def __init__(self, kind: Kind = "twist", limits: Limits = LIMITS) -> None:
        self.gate = SafetyGate(limits, kind)
        self.kind, self.limits = kind, limits
        self.now_ns = 10**12
        self.tool, self.joints, self.joint_speeds = list(CENTRE), list(MIDDLE), [0.0, 0.0]
        self.interlocks = Interlocks()
        self.state_seen = True
        self.state_ns = self.now_ns
        self.output: GateOutput | None = None
        self.lag_s = 0.0
        self.was: list[RobotState] = []

    def state(self) -> RobotState | None:
        """The newest that is `lag_s` old, or the first."""
        if not self.state_seen:
            return None
        self.was.append(RobotState(self.state_ns, tuple(self.joints), tuple(self.joint_speeds), tuple(self.tool)))
        known_ns = self.now_ns - round(self.lag_s * 1e9)
        while len(self.was) > 1 and self.was[1].stamp_ns <= known_ns:
            self.was.pop(0)
        return self.was[0] if self.lag_s else self.was[-1]

    def step(self, dt_s: float = 0.02, values: Sequence[float] | None = None, age_s: float = 0.0) -> GateOutput:
        """Let time go by, then offer a command made `age_s` ago; the measurement is fresh."""
        self.move(dt_s)
        self.now_ns += round(dt_s * 1e9)
        self.state_ns = self.now_ns
        return self.ask(values, age_s)

    def ask(self, values: Sequence[float] | None = None, age_s: float = 0.0) -> GateOutput:
        command = None if values is None else Command(self.now_ns - round(age_s * 1e9), tuple(values))
        self.output = self.gate.step(self.now_ns, command, self.state(), self.interlocks)
        return self.output

    def move(self, dt_s: float) -> None:
        if self.output is None or self.output.allowed is None:
            return
        allowed = self.output.allowed
        if self.kind == "twist":
            self.tool = [p + v * dt_s for p, v in zip(self.tool, allowed[:3], strict=True)]
        elif self.kind == "joint_velocity":
            self.joints = [p + v * dt_s for p, v in zip(self.joints, allowed, strict=True)]
        else:
            self.joints = list(allowed)

    def drive(self, values: Sequence[float], seconds: float = 0.3) -> GateOutput:
        """The same command again and again."""
        output = self.step(values=values)
        for _ in range(round(seconds / 0.02)):
            output = self.step(values=values)
        return output

    def reset(self) -> tuple[str, ...]:
        return self.gate.reset(self.now_ns, self.state(), self.interlocks)


# ---- the way through the states ----


def test_nothing_is_sent_before_the_first_command() -> None:
    rig = Rig()
    for _ in range(5):
        output = rig.step()
        assert (output.allowed, output.state, output.causes) == (None, IDLE, ("no command yet",))


def test_a_command_within_limits_passes_unchanged() -> None:
    rig = Rig()
    output = rig.drive(FORWARD)
    assert output == GateOutput(FORWARD, ACTIVE, ())
    assert rig.gate.counts.received == 16
    assert rig.gate.counts.limited > 0 and rig.gate.counts.rejected == 0


def test_silence_leads_to_hold_and_then_to_a_latched_stop() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    seen = [rig.step() for _ in range(12)]
    states = [one.state for one in seen]
    assert states[:7] == [ACTIVE] * 7 and states[7:10] == [HOLD] * 3 and states[10:] == [STOPPED] * 2
    assert seen[8].allowed is not None and "0.15 s" in seen[8].causes[0]
    assert "no good command for 0.2 s" in seen[-1].causes[0]
    assert rig.step(values=FORWARD).state == STOPPED


def test_hold_slows_to_rest_and_passes_again_by_itself() -> None:
    rig = Rig(limits=replace(LIMITS, stop_after_s=10.0))
    rig.drive(FORWARD)
    for _ in range(7):
        rig.step()
    speeds = [rig.step().allowed for _ in range(10)]
    assert all(one is not None for one in speeds)
    assert [one[0] for one in speeds if one] == pytest.approx([0.09, 0.06, 0.0225, 0.0025] + [0.0] * 6)
    assert rig.drive(FORWARD) == GateOutput(FORWARD, ACTIVE, ())
    assert rig.gate.counts.holds == 1


def test_hold_keeps_the_set_point_under_position_control() -> None:
    rig = Rig("joint_position", replace(LIMITS, stop_after_s=10.0))
    rig.drive((0.2, 1.1), 1.0)
    held = [rig.step().allowed for _ in range(20)]
    assert held[0] == pytest.approx((0.2, 1.1)) and len(set(held)) == 1
    assert rig.output is not None and rig.output.state == HOLD


@pytest.mark.parametrize("kind", ["twist", "joint_velocity", "joint_position"])
def test_after_a_stop_motion_comes_to_rest_and_then_nothing_is_sent(kind: Kind) -> None:
    rig = Rig(kind)
    rig.drive({"twist": FORWARD, "joint_velocity": (0.4, 0.4), "joint_position": (0.5, 1.5)}[kind], 0.2)
    rig.interlocks = Interlocks(faults=("2 publishers on /command",))
    outputs = [rig.step(values=FORWARD) for _ in range(20)]
    assert all(one.state == STOPPED and one.causes == ("2 publishers on /command",) for one in outputs)
    assert outputs[0].allowed is not None and outputs[-1].allowed is None
    sent = [one.allowed for one in outputs if one.allowed is not None]
    if kind == "joint_position":
        steps = [abs(b[0] - a[0]) for a, b in pairwise(sent)]
        assert steps[2:] == sorted(steps[2:], reverse=True) and steps[-1] == 0.0
    else:
        assert sent[-1] == pytest.approx([0.0] * len(sent[-1]))


def test_reset_needs_the_causes_gone_and_then_a_new_command() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.interlocks = Interlocks(estop=True)
    assert rig.step().causes == ("emergency stop",)
    assert rig.reset() == ("emergency stop",)
    rig.interlocks = Interlocks()
    assert rig.step(values=FORWARD) == GateOutput(None, STOPPED, ("emergency stop",))
    assert rig.reset() == ()
    assert rig.step() == GateOutput(None, IDLE, ("no command yet",))
    assert rig.step(values=FORWARD, age_s=0.05).state == IDLE  # made before the reset
    assert rig.step(values=FORWARD).state == ACTIVE
    assert rig.reset() == () and rig.gate.state == ACTIVE


def test_reset_needs_to_know_the_robot() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.state_seen = False
    assert rig.ask().causes == ("the robot's state is unknown",)
    assert rig.reset() == ("the robot's state is unknown",)


def test_an_emergency_stop_ends_commands_at_once() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.interlocks = Interlocks(estop=True)
    assert rig.ask() == GateOutput(None, STOPPED, ("emergency stop",))


def test_an_emergency_stop_ends_the_slowing_down_of_another_stop() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.interlocks = Interlocks(faults=("fault",))
    assert rig.step().allowed is not None
    rig.interlocks = Interlocks(estop=True)
    output = rig.step()
    assert output.allowed is None and output.causes == ("fault", "emergency stop")


def test_an_idle_gate_is_stopped_too() -> None:
    rig = Rig()
    rig.interlocks = Interlocks(estop=True)
    assert rig.step().state == STOPPED
    assert rig.gate.counts.stops == 1


def test_dead_man() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.interlocks = Interlocks(deadman_released=True)
    output = rig.step(values=FORWARD)
    assert output.state == HOLD and output.causes == ("the dead-man switch is released",)
    for _ in range(50):  # as long as one likes
        output = rig.step(values=FORWARD)
    assert output.state == HOLD and output.allowed == REST6
    rig.interlocks = Interlocks()
    assert rig.step().state == HOLD
    assert rig.step(values=FORWARD).state == ACTIVE


def test_a_released_dead_man_keeps_an_idle_gate_idle() -> None:
    rig = Rig()
    rig.interlocks = Interlocks(deadman_released=True)
    output = rig.step(values=FORWARD)
    assert (output.allowed, output.state, output.causes) == (None, IDLE, ("the dead-man switch is released",))


# ---- commands that are not taken ----


@pytest.mark.parametrize("values", [(math.nan, *REST6[1:]), (math.inf, *REST6[1:]), REST6[:5], (*REST6, 0.0), ()])
def test_an_unusable_command_is_dropped_whole_and_repeated_ones_stop(values: Sequence[float]) -> None:
    rig = Rig()
    rig.drive(FORWARD)
    output = rig.step(values=values)
    assert output.state == HOLD and output.causes == ("a command was not 6 finite numbers",)
    assert output.allowed is not None and all(map(math.isfinite, output.allowed))
    assert rig.step(values=FORWARD).state == ACTIVE
    for _ in range(2):
        assert rig.step(values=values).state == HOLD
    output = rig.step(values=values)
    assert output.state == STOPPED and output.causes == ("3 commands were not usable",)
    assert rig.gate.counts.rejected == 4


@pytest.mark.parametrize(
    ("age_s", "taken"), [(0.0, True), (0.15, True), (0.151, False), (-0.05, True), (-0.051, False)]
)
def test_age_and_future(age_s: float, taken: bool) -> None:
    rig = Rig()
    rig.step()
    assert (rig.step(values=FORWARD, age_s=age_s).state == ACTIVE) is taken


def test_old_commands_do_not_keep_the_gate_open() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    outputs = [rig.step(values=FORWARD, age_s=0.2) for _ in range(12)]
    assert outputs[-1].state == STOPPED and "0.200 s old" in outputs[-1].causes[0]


def test_commands_must_become_newer() -> None:
    rig = Rig()
    rig.step(values=FORWARD)
    rejected = rig.gate.counts.rejected
    rig.step(values=FORWARD, age_s=0.02)
    rig.step(values=FORWARD, age_s=0.05)
    assert rig.gate.counts.rejected == rejected + 2


def test_without_a_measurement_nothing_begins() -> None:
    rig = Rig()
    rig.state_seen = False
    output = rig.step(values=FORWARD)
    assert (output.allowed, output.state, output.causes) == (None, IDLE, ("the robot's state is unknown",))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"joint_rad": (0.0,)}, "wrong length"),
        ({"joint_rad": (0.0, math.nan)}, "not finite"),
        ({"tool_m": (math.inf, 0.0, 0.0)}, "not finite"),
        ({"tool_m": ()}, "wrong length"),
        ({"stamp_ns": 0}, "older than 0.1 s"),
        ({"stamp_ns": 10**18}, "stamped in the future"),
    ],
)
def test_a_bad_measurement_stops(change: dict[str, Any], cause: str) -> None:
    rig = Rig()
    rig.drive(FORWARD)
    state = rig.state()
    assert state is not None
    output = rig.gate.step(rig.now_ns + 10**7, None, replace(state, **change))
    assert output.state == STOPPED and cause in output.causes[0]


def test_the_measurement_may_be_as_old_as_the_limit() -> None:
    rig = Rig(limits=replace(LIMITS, hold_after_s=5.0, stop_after_s=5.0))
    rig.drive(FORWARD)
    rig.now_ns += 10**8
    assert rig.ask().state == ACTIVE
    rig.now_ns += 1
    assert rig.ask().state == STOPPED


# ---- limits ----


def test_speed_is_limited_in_its_direction() -> None:
    rig = Rig()
    output = rig.drive((3.0, 4.0, 0.0, 0.0, 0.0, 5.0), 0.2)
    assert output.allowed == pytest.approx((0.15, 0.2, 0.0, 0.0, 0.0, 1.0))


def test_acceleration_and_jerk_are_limited() -> None:
    rig = Rig()
    rig.step()
    outputs = [rig.step(values=(0.25, 0.0, 0.0, 0.0, 0.0, 0.0)).allowed for _ in range(8)]
    assert [one[0] for one in outputs if one] == pytest.approx([0.01, 0.04, 0.08, 0.12, 0.16, 0.2, 0.2325, 0.2475])
    assert rig.step().allowed == (0.25, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_speed_limit_of_zero_is_a_limit() -> None:
    rig = Rig(limits=replace(LIMITS, linear_speed_m_s=0.0))
    assert rig.drive((0.1, 0.0, 0.0, 0.0, 0.0, 0.5)).allowed == pytest.approx((0, 0, 0, 0, 0, 0.5))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_tool_stops_at_the_box_and_repeated_clamping_stops_the_arm(axis: int, sign: float) -> None:
    rig = Rig(limits=replace(LIMITS, max_clamps=10**6))
    push = [0.0] * 6
    push[axis] = sign * 0.25
    bound = (LIMITS.workspace_lower_m if sign < 0 else LIMITS.workspace_upper_m)[axis]
    for _ in range(150):
        rig.step(values=push)
        assert sign * (rig.tool[axis] - bound) <= 1e-9
    assert rig.tool[axis] == pytest.approx(bound, abs=1e-3)
    rig = Rig()
    output = rig.drive(push, 3.0)
    assert output.state == STOPPED and output.causes == ("4 commands had to be clamped at the limits",)
    assert sign * (rig.tool[axis] - bound) <= 1e-9


def test_good_commands_take_clamped_ones_back() -> None:
    rig = Rig()
    rig.tool[2] = 0.0  # a bound of exactly 0.0
    down, up = (0.0, 0.0, -0.1, 0.0, 0.0, 0.0), (0.0, 0.0, 0.001, 0.0, 0.0, 0.0)
    for _ in range(20):
        assert rig.step(values=down).allowed == pytest.approx(REST6, abs=0.002)
        assert rig.step(values=up).state == ACTIVE


def test_a_tool_outside_the_box_may_come_back() -> None:
    rig = Rig(limits=replace(LIMITS, max_clamps=10**6))
    rig.tool[0] = 0.7
    assert rig.drive((0.1, 0.0, 0.0, 0.0, 0.0, 0.0)).allowed == pytest.approx(REST6)
    output = rig.drive((-0.1, 0.0, 0.0, 0.0, 0.0, 0.0))
    assert output.allowed is not None and output.allowed[0] == pytest.approx(-0.1)


@pytest.mark.parametrize("kind", ["joint_velocity", "joint_position"])
def test_joint_commands_stop_when_the_tool_leaves_the_box(kind: Kind) -> None:
    rig = Rig(kind)
    rig.drive((0.1, 1.0) if kind == "joint_position" else (0.1, 0.0), 0.1)
    rig.tool[2] = -0.001
    assert rig.step().causes == ("the tool is outside the workspace",)


def test_near_a_joint_limit_the_tool_slows_down_and_inside_the_margin_it_stops() -> None:
    rig = Rig()
    rig.joints[0], rig.joint_speeds[0] = 0.90, 0.2  # half of the slow zone is left before the margin
    output = rig.drive(FORWARD)
    assert output.allowed is not None and output.allowed[0] == pytest.approx(0.05)
    rig.joint_speeds[0] = -0.2  # away from the limit
    output = rig.drive(FORWARD)
    assert output.allowed is not None and output.allowed[0] == pytest.approx(0.1)
    rig.joints[0] = 0.951
    assert rig.step(values=FORWARD).causes == ("joint 1 is within 0.05 rad of its limit",)


@pytest.mark.parametrize("target", [(5.0, 1.0), (-5.0, 1.0), (0.0, 5.0), (0.0, -5.0)])
def test_joint_positions_end_at_the_margin(target: tuple[float, float]) -> None:
    rig = Rig("joint_position", replace(LIMITS, max_clamps=10**6))
    output = rig.drive(target, 6.0)
    assert output.allowed == pytest.approx((min(max(target[0], -0.95), 0.95), min(max(target[1], 0.05), 1.95)))
    assert rig.gate.counts.limited == rig.gate.counts.received
    rig = Rig("joint_position")
    assert rig.drive(target).state == STOPPED


def test_joint_positions_keep_to_speed_and_acceleration() -> None:
    rig = Rig("joint_position")
    rig.step()
    places = [(0.0, 1.0)]
    for _ in range(100):
        output = rig.step(values=(0.6, 0.7))
        assert output.allowed is not None
        places.append((output.allowed[0], output.allowed[1]))
    assert places[-1] == pytest.approx((0.6, 0.7))
    for joint in (0, 1):
        speeds = [(b[joint] - a[joint]) / 0.02 for a, b in pairwise(places)]
        assert max(map(abs, speeds)) <= LIMITS.joint_speed_rad_s[joint] + 1e-9
        changes = [abs(b - a) / 0.02 for a, b in pairwise(speeds)]
        assert max(changes) <= LIMITS.joint_acceleration_rad_s2[joint] + 1e-6


def test_a_joint_beyond_its_margin_may_come_back() -> None:
    rig = Rig("joint_position", replace(LIMITS, max_clamps=10**6))
    rig.joints[0] = 0.98
    places = [rig.step(values=(0.98, 1.0)).allowed for _ in range(30)]
    reached = [place[0] for place in places if place is not None]
    assert all(b <= a + 1e-9 for a, b in pairwise(reached)) and reached[-1] == pytest.approx(0.95)
    rig = Rig("joint_position")
    rig.joints[0] = 0.98
    assert rig.drive((0.5, 1.0), 1.5).allowed == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize("speeds", [(1.0, 0.5), (-1.0, -0.5)])
def test_joint_velocities_end_at_the_margin(speeds: tuple[float, float]) -> None:
    rig = Rig("joint_velocity", replace(LIMITS, max_clamps=10**6))
    for _ in range(200):
        rig.step(values=speeds)
        assert -0.95 - 1e-9 <= rig.joints[0] <= 0.95 + 1e-9 and 0.05 - 1e-9 <= rig.joints[1] <= 1.95 + 1e-9
    assert rig.joints == pytest.approx([math.copysign(0.95, speeds[0]), 1.95 if speeds[1] > 0 else 0.05], abs=1e-3)


def test_steps_too_soon_do_not_add_up() -> None:
    """Many calls within a period allow no more change than one."""
    reached = []
    for parts in (1, 20):
        rig = Rig()
        rig.step()
        for _ in range(3 * parts):
            output = rig.step(dt_s=0.02 / parts, values=(0.25, 0.0, 0.0, 0.0, 0.0, 0.0))
        assert output.allowed is not None
        reached.append(output.allowed[0])
    assert reached == pytest.approx([0.08, 0.08])
    assert rig.step(dt_s=0.0, values=FORWARD).allowed == output.allowed


def test_a_late_step_moves_no_further_than_a_punctual_one() -> None:
    rig = Rig("joint_position", replace(LIMITS, hold_after_s=9.0, stop_after_s=9.0))
    before = rig.drive((0.9, 1.0), 0.3).allowed
    after = rig.step(dt_s=1.0).allowed
    assert before is not None and after is not None and after[0] - before[0] <= 1.0 * 0.02 + 1e-9


@pytest.mark.parametrize("speed", [5e-324, 1e-300, 1e-13, 1e-11])
def test_speeds_next_to_nothing(speed: float) -> None:
    rig = Rig()
    for _ in range(5):
        rig.step(values=(speed, -speed, 0.0, 0.0, 0.0, 0.0))
        assert rig.step().state == ACTIVE
        rig.step(values=REST6)


def test_a_reset_waits_for_the_arm_to_slow_down() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.interlocks = Interlocks(faults=("fault",))
    rig.step()
    rig.interlocks = Interlocks()
    assert rig.step().allowed is not None
    assert rig.reset() == ("the arm is still slowing down",)
    for _ in range(10):
        rig.step()
    assert rig.reset() == ()


def test_a_reset_needs_a_measurement_newer_than_the_last_command() -> None:
    rig = Rig("joint_position")
    rig.drive((0.5, 1.5), 0.2)
    old = rig.state()
    assert old is not None
    rig.interlocks = Interlocks(estop=True)
    rig.step()
    assert rig.gate.reset(rig.now_ns, replace(old, stamp_ns=rig.now_ns - 3 * 10**7)) == (
        "the robot's state is older than the last command",
    )
    rig.interlocks = Interlocks()
    assert rig.reset() == ()


def test_a_protective_stop_is_told_apart() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.interlocks = Interlocks(protective_stop=True)
    assert rig.ask() == GateOutput(None, STOPPED, ("protective stop",))
    assert rig.reset() == ("protective stop",)
    rig.interlocks = Interlocks()
    assert rig.step(values=FORWARD).state == STOPPED
    assert rig.reset() == ()


def test_a_missing_heartbeat_holds_as_long_as_commands_come() -> None:
    rig = Rig()
    rig.drive(FORWARD)
    rig.interlocks = Interlocks(holds=("nothing heard of camera for 0.5 s",))
    output = rig.drive(FORWARD, 1.0)
    assert output == GateOutput(REST6, HOLD, ("nothing heard of camera for 0.5 s",))
    rig.interlocks = Interlocks()
    assert rig.drive(FORWARD).state == ACTIVE
    rig.interlocks = Interlocks(holds=("nothing heard of camera for 0.5 s",))
    outputs = [rig.step() for _ in range(12)]
    assert outputs[0].state == HOLD and outputs[-1].state == STOPPED, "nor do commands come"


@pytest.mark.parametrize("limit", ["linear_jerk_m_s3", "linear_acceleration_m_s2", "linear_speed_m_s"])
def test_a_limit_of_zero_lets_nothing_move(limit: str) -> None:
    rig = Rig(limits=replace(LIMITS, **{limit: 0.0}))  # type: ignore[arg-type]
    assert rig.drive((0.1, 0.0, 0.0, 0.0, 0.0, 0.5)).allowed == pytest.approx((0, 0, 0, 0, 0, 0.5))


def test_the_gripper_keeps_its_speed_and_range() -> None:
    gripper = GripperGate(LIMITS)
    assert gripper.step(0.02, closed_gate=False) is None
    gripper.want(math.nan)
    assert gripper.step(0.02, closed_gate=False) is None
    gripper.want(5.0)
    assert gripper.step(0.02, closed_gate=False) == 0.08, "where it is, is not known"
    gripper.want(-5.0)
    sent = [gripper.step(0.02, closed_gate=False) for _ in range(41)]
    assert [width for width in sent if width is not None] == pytest.approx([0.078 - 0.002 * i for i in range(40)])
    assert sent[-1] is None, "it has arrived"
    gripper.want(0.08)
    assert gripper.step(0.02, closed_gate=False) == pytest.approx(0.002)
    assert gripper.step(0.02, closed_gate=True) is None
    assert gripper.step(0.02, closed_gate=False) is None, "what was wanted before a stop does not come back"
    assert [gripper.force(force) for force in (10.0, 50.0, -1.0, math.nan)] == [10.0, 40.0, 0.0, 40.0]


def test_command_age() -> None:
    rig = Rig()
    assert rig.gate.command_age_s(rig.now_ns) == -1.0
    rig.step(values=FORWARD, age_s=0.1)
    assert rig.gate.command_age_s(rig.now_ns) == pytest.approx(0.1)


def test_the_gate_needs_neither_torch_nor_ros() -> None:
    code = "import dr_core.safety.gate, sys; print({'torch', 'rclpy', 'mujoco', 'numpy'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


# ---- everything in any order ----

NUMBERS = st.one_of(
    st.floats(-3.0, 3.0),
    st.sampled_from([0.0, -0.0, 0.25, 1e308, -1e308, 1e-320]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)


def derivative(points: Sequence[tuple[int, float]]) -> float:
    """The mean derivative of order n of what goes through n + 1 points (ns, value): divided differences, times n!."""
    rows = [value for _, value in points]
    for order in range(1, len(points)):
        rows = [
            order * (rows[i + 1] - rows[i]) / ((points[i + order][0] - points[i][0]) * 1e-9)
            for i in range(len(rows) - 1)
        ]
    return rows[0]


class AnyOrder(RuleBasedStateMachine):
    """Whatever is done, what the gate allows stays within the limits, is fresh, and ends with a stop.

    The model keeps what was sent and looks at its differences; of the gate it uses the answers only. Its clock is that
    of a robot that takes a command each period at the latest: a late one does not move it further.
    """

    kind: Kind
    steps = 0

    @initialize(
        clamps=st.sampled_from([0, 3, 10**6]),
        invalid=st.sampled_from([0, 2, 10**6]),
        lag_s=st.sampled_from([0.0, 0.03]),
    )
    def begin(self, clamps: int, invalid: int, lag_s: float) -> None:
        self.rig = Rig(self.kind, replace(LIMITS, max_clamps=clamps, max_invalid=invalid))
        self.rig.lag_s = lag_s
        self.size = 6 if self.kind == "twist" else 2
        self.good: list[tuple[int, int]] = []  # when offered, when made
        self.newest_ns = -1
        self.latched = self.cut = False
        self.sent: list[tuple[int, tuple[float, ...]]] = []
        self.clock_ns = 0
        self.step_s = self.ended_s = 0.0  # the last step; all since a stop
        self.check(self.rig.ask())

    # what may happen

    @rule(
        dt_s=st.sampled_from([0.0, 0.001, 0.005, 0.013, 0.02]),
        age_s=st.one_of(st.just(0.0), st.floats(-0.2, 0.4), st.sampled_from([-3600.0, -5.0, 5.0, 3600.0])),
        data=st.data(),
    )
    def command(self, dt_s: float, age_s: float, data: st.DataObject) -> None:
        """Ages of hours are those of a clock that has jumped."""
        length = data.draw(st.sampled_from([self.size] * 8 + [0, self.size - 1, self.size + 1]))
        usable = st.floats(-3.0, 3.0) if data.draw(st.booleans()) else NUMBERS
        values = data.draw(st.lists(usable, min_size=length, max_size=length))
        for _ in range(data.draw(st.sampled_from([1, 1, 5, 30]))):
            self.offer(dt_s, values, age_s)

    def offer(self, dt_s: float, values: list[float], age_s: float) -> None:
        now_ns = self.rig.now_ns + round(dt_s * 1e9)
        made_ns = now_ns - round(age_s * 1e9)
        fine = len(values) == self.size and all(map(math.isfinite, values))
        timely = -0.05 <= (now_ns - made_ns) * 1e-9 <= 0.15
        held = not (self.rig.interlocks.deadman_released or self.rig.interlocks.holds)
        if fine and timely and held and made_ns > self.newest_ns:
            self.good.append((now_ns, made_ns))
        self.advance(dt_s, values, age_s)

    @rule(data=st.data(), dt_s=st.sampled_from([0.007, 0.013, 0.02]), times=st.sampled_from([10, 120]))
    def drive(self, data: st.DataObject, dt_s: float, times: int) -> None:
        """All is well, and somebody drives far, so that speeds and bounds are reached."""
        self.recover()
        values = data.draw(st.lists(st.floats(-3.0, 3.0), min_size=self.size, max_size=self.size))
        for _ in range(times):
            self.offer(dt_s, values, 0.0)

    @rule(data=st.data())
    def shake(self, data: st.DataObject) -> None:
        """Commands that change their mind, at times without any order."""
        self.recover()
        ends = st.lists(st.sampled_from([-3.0, -0.1, 0.0, 0.1, 3.0]), min_size=self.size, max_size=self.size)
        turns = st.lists(st.tuples(st.floats(0.001, 0.03), ends), min_size=20, max_size=20)
        for dt_s, values in data.draw(turns):
            self.offer(dt_s, values, 0.0)

    def recover(self) -> None:
        self.rig.interlocks = Interlocks()
        for _ in range(20):  # until the arm is at rest
            self.advance(0.02)
            if self.latched:
                self.reset()

    @rule(dt_s=st.sampled_from([0.001, 0.013, 0.02]), times=st.sampled_from([1, 3, 12]))
    def wait(self, dt_s: float, times: int) -> None:
        for _ in range(times):
            self.advance(dt_s)

    @rule(pause_s=st.floats(0.02, 2.0))
    def hang(self, pause_s: float) -> None:
        """The gate's process gets no time; the arm, hearing nothing, holds."""
        self.rig.output = None
        self.advance(pause_s)

    @rule(pressed=st.booleans(), protective=st.booleans())
    def estop(self, pressed: bool, protective: bool) -> None:
        change = {"protective_stop" if protective else "estop": pressed}
        self.rig.interlocks = replace(self.rig.interlocks, **change)  # type: ignore[arg-type]
        self.advance(0.0)
        self.cut = self.cut or pressed

    @rule(released=st.booleans())
    def deadman(self, released: bool) -> None:
        self.rig.interlocks = replace(self.rig.interlocks, deadman_released=released)

    @rule(present=st.booleans())
    def silent_camera(self, present: bool) -> None:
        self.rig.interlocks = replace(self.rig.interlocks, holds=("camera is silent",) if present else ())

    @rule(present=st.booleans())
    def fault(self, present: bool) -> None:
        self.rig.interlocks = replace(self.rig.interlocks, faults=("fault",) if present else ())

    @rule(
        how=st.sampled_from(["stale", "future", "absent", "nan", "short", "outside"]),
        values=st.lists(st.floats(-3.0, 3.0), min_size=6, max_size=6),
    )
    def lose_the_robot(self, how: str, values: list[float]) -> None:
        """One bad measurement, with a command or none."""
        self.advance(0.02)
        rig, moving = self.rig, self.rig.gate.state in (ACTIVE, HOLD)
        good = rig.state()
        assert good is not None
        bad = {
            "stale": replace(good, stamp_ns=rig.now_ns - 2 * 10**8),
            "future": replace(good, stamp_ns=rig.now_ns + 10**9),
            "absent": None,
            "nan": replace(good, joint_rad=(0.0, math.nan)),
            "short": replace(good, tool_m=good.tool_m[:2]),
            "outside": replace(good, joint_rad=(0.97, 1.0), tool_m=(0.3, 0.0, 0.41)),
        }[how]
        offered = Command(rig.now_ns, tuple(values[: self.size])) if how != "outside" or moving else None
        output = rig.gate.step(rig.now_ns, offered, bad, rig.interlocks)
        assert output.state == (STOPPED if moving or self.latched else output.state)
        assert output.state not in (ACTIVE, HOLD)
        rig.output = output
        self.step_s = 0.0
        self.check(output)

    @precondition(lambda self: self.latched)
    @rule()
    def reset(self) -> None:
        before, before_cut = self.rig.interlocks, self.cut
        causes = self.rig.reset()
        assert bool(causes) or not (before.estop or before.protective_stop or before.faults)
        if not causes:
            if self.sent and not before_cut and self.kind != "joint_position":
                assert not any(self.sent[-1][1]), "a reset while the arm slows down"
            self.latched = self.cut = False
            self.sent, self.ended_s = [], 0.0
            self.good.clear()
            self.newest_ns = self.rig.now_ns

    # what must hold

    def advance(self, dt_s: float, values: list[float] | None = None, age_s: float = 0.0) -> None:
        type(self).steps += 1
        self.step_s = min(dt_s, 0.02)
        self.before_ns, self.joints_before = self.clock_ns, tuple(self.rig.joints)
        self.clock_ns += round(self.step_s * 1e9)
        self.check(self.rig.step(dt_s, values, age_s))

    def check(self, output: GateOutput) -> None:
        rig, limits, sent = self.rig, LIMITS, output.allowed
        assert output.state == rig.gate.state
        assert bool(output.causes) == (output.state != ACTIVE)
        if self.latched:
            assert output.state == STOPPED, "only a reset leads out of a stop"
        if output.state == IDLE:
            assert sent is None
        if rig.interlocks.estop or rig.interlocks.protective_stop:
            assert output.state == STOPPED and sent is None
        if self.cut and self.latched:
            assert sent is None
        if rig.interlocks.faults:
            assert output.state == STOPPED
        if rig.interlocks.deadman_released or rig.interlocks.holds:
            assert output.state != ACTIVE
        if output.state == ACTIVE:
            self.good = [one for one in self.good if rig.now_ns - one[0] <= 0.15e9]
            assert any(rig.now_ns - made <= 0.3e9 for _, made in self.good), "an old command passes"
            self.newest_ns = max(made for _, made in self.good)
        self.keep(sent)
        if sent is not None:
            assert len(sent) == self.size and all(map(math.isfinite, sent))
            self.check_limits()
            # From full speed the arm is at rest after 0.325 s (speed / acceleration + 2 acceleration / jerk) of steps.
            self.ended_s = self.ended_s + self.step_s if self.latched else 0.0
            assert self.ended_s <= 0.33, "commands go on after a stop"
        self.latched = output.state == STOPPED
        assert limits.joint_lower_rad[0] <= rig.joints[0] <= limits.joint_upper_rad[0]

    def keep(self, sent: tuple[float, ...] | None) -> None:
        """Note it; before the first there was rest."""
        now_ns = self.clock_ns
        if sent is None:
            self.sent = []
        elif self.sent and self.sent[-1][0] == now_ns:
            assert sent == self.sent[-1][1], "two answers at one time"
        else:
            if not self.sent:
                rest = self.joints_before if self.kind == "joint_position" else (0.0,) * self.size
                moments = [self.before_ns - back for back in (4 * 10**7, 2 * 10**7, 0)]
                self.sent = [(moment, rest) for moment in moments if moment < now_ns]
            self.sent.append((now_ns, sent))

    def check_limits(self) -> None:
        if self.kind == "twist":
            linear, angular = self.sent[-1][1][:3], self.sent[-1][1][3:]
            assert math.hypot(*linear) <= 0.25 + 1e-9 and math.hypot(*angular) <= 1.0 + 1e-9
            bounds = [(math.inf, 2.0, 100.0)] * 3 + [(math.inf, 8.0, 400.0)] * 3
        else:
            bounds = [(1.0, 5.0, 250.0), (0.5, 4.0, 100.0)]
        already = 1 if self.kind == "joint_position" else 0  # positions are derived once more
        for axis, limits in enumerate(bounds):
            points = [(moment, values[axis]) for moment, values in self.sent[-4:]]
            for order, limit in enumerate(limits, already):
                if len(points) > order:
                    rate = derivative(points[-1 - order :])
                    assert abs(rate) <= limit * (1 + 1e-4) + 1e-6, f"derivative {order} of axis {axis} is {rate}"
            if self.kind == "joint_position":
                low, high = ((-0.95, 0.95), (0.05, 1.95))[axis]
                assert low - 1e-9 <= points[-1][1] <= high + 1e-9

    @invariant()
    def the_arm_is_where_it_may_be(self) -> None:
        if not hasattr(self, "rig"):
            return
        tiny = 1e-6
        box = zip(LIMITS.workspace_lower_m, self.rig.tool, LIMITS.workspace_upper_m, strict=True)
        assert all(low - tiny <= place <= high + tiny for low, place, high in box)
        margins = zip(LIMITS.joint_bounds_rad[0], self.rig.joints, LIMITS.joint_bounds_rad[1], strict=True)
        assert all(low - tiny <= place <= high + tiny for low, place, high in margins)


def machine(of: Kind) -> Callable[..., Any]:
    class Machine(AnyOrder):
        kind = of

    Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
    return Machine.TestCase


TestAnyOrderOfTwists = machine("twist")
TestAnyOrderOfJointVelocities = machine("joint_velocity")
TestAnyOrderOfJointPositions = machine("joint_position")
