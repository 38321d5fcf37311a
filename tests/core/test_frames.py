"""The gate of camera frames and the frame spacing, without ROS."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dr_core.robot.frames import FrameGate, FrameRefused, FrameRules, Spacing

MS = 10**6
START_NS = 10**18


def picture(seed: int = 0, shape: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def feed(gate: FrameGate, *stamps_ms: float) -> list[bool]:
    """Whether frames with these stamps, in arrival order on a clock just ahead of the newest, are accepted."""
    newest, accepted = 0.0, []
    for seed, stamp_ms in enumerate(stamps_ms):
        newest = max(newest, stamp_ms)
        now_ns = START_NS + round((newest + 5) * MS)
        accepted.append(gate.check(START_NS + round(stamp_ms * MS), now_ns, picture(seed)).accept)
    return accepted


def test_late_and_double_frames_are_dropped() -> None:
    gate = FrameGate()
    assert feed(gate, 0, 33, 33, 20, 66, 40, 100) == [True, True, False, False, True, False, True]
    assert gate.counts == {"duplicate": 1, "out_of_order": 2}


def test_future_frames_are_dropped_and_change_nothing() -> None:
    gate = FrameGate()
    assert gate.check(START_NS, START_NS, picture()).accept
    assert gate.check(START_NS + 49 * MS, START_NS, picture(1)).accept
    verdict = gate.check(START_NS + 151 * MS, START_NS + 100 * MS, picture(2))
    assert not verdict.accept and "51 ms in the future" in verdict.cause
    assert gate.check(START_NS + 99 * MS, START_NS + 100 * MS, picture(3)).accept, "the future one is forgotten"


@pytest.mark.parametrize("stamp_ns", [0, -5])
def test_no_stamp_is_refused(stamp_ns: int) -> None:
    with pytest.raises(FrameRefused, match="found zero"):
        FrameGate().check(stamp_ns, START_NS, picture())


def test_another_resolution_is_refused() -> None:
    gate = FrameGate()
    gate.check(START_NS, START_NS, picture())
    with pytest.raises(FrameRefused, match="expected 64 x 48; found 48 x 64"):
        gate.check(START_NS + 1, START_NS + 1, picture(shape=(64, 48)))
    with pytest.raises(FrameRefused, match="expected 640 x 480"):
        FrameGate(FrameRules(width=640, height=480)).check(START_NS, START_NS, picture())


@pytest.mark.parametrize("jump_ms", [1001, 60_000, -1001, -3_600_000])
def test_a_jump_restarts_the_history(jump_ms: int) -> None:
    gate = FrameGate()
    gate.check(START_NS, START_NS, picture())
    stamp_ns = START_NS + jump_ms * MS
    verdict = gate.check(stamp_ns, stamp_ns, picture(1))
    assert verdict.accept and verdict.restart and "jump" in verdict.cause
    assert not gate.check(stamp_ns + 33 * MS, stamp_ns + 33 * MS, picture(2)).restart


def test_a_small_step_back_of_the_clock_restarts_too() -> None:
    gate = FrameGate()
    gate.check(START_NS, START_NS, picture())
    verdict = gate.check(START_NS - 100 * MS, START_NS - 100 * MS, picture(1))
    assert verdict.accept and verdict.restart, "the clock itself has gone back: this is no late frame"


def test_the_same_picture_many_times_is_not_valid() -> None:
    gate = FrameGate(FrameRules(repeat_limit=3))
    valid = [gate.check(START_NS + k * MS, START_NS + k * MS, picture(max(k - 4, 0))).valid for k in range(7)]
    assert valid == [True, True, False, False, False, True, True]
    free = FrameGate(FrameRules(repeat_limit=0))
    assert all(free.check(START_NS + k * MS, START_NS + k * MS, picture()).valid for k in range(20))


@pytest.mark.parametrize(
    ("level", "cause"), [(0, "black"), (12, "black"), (13, ""), (242, ""), (243, "over-exposed"), (255, "over-exposed")]
)
def test_black_and_over_exposed_pictures(level: int, cause: str) -> None:
    verdict = FrameGate().check(START_NS, START_NS, np.full((48, 64, 3), level, np.uint8))
    assert verdict.accept and verdict.valid == (not cause) and cause in verdict.cause


def test_a_camera_that_slows_down_is_noticed() -> None:
    gate = FrameGate()
    feed(gate, *(33.3 * k for k in range(40)))
    assert gate.rate_hz == pytest.approx(30, rel=0.01) and gate.slow == ""
    begin = 33.3 * 40
    for k in range(30):
        stamp_ns = START_NS + round((begin + 66.6 * k) * MS)
        gate.check(stamp_ns, stamp_ns, picture(k))
    assert gate.slow == "15.0 frames a second instead of 30.0"


# ---- spacing ----


def picked(spacing: Spacing, stamps_ms: list[float]) -> list[float]:
    return [ms for ms in stamps_ms if spacing.pick(START_NS + round(ms * MS)) != "skip"]


def test_a_third_of_the_frames_at_a_third_of_the_rate() -> None:
    stamps = [33.34 * k for k in range(31)]
    assert picked(Spacing(100 * MS), stamps) == stamps[::3]
    assert picked(Spacing(0), stamps) == stamps


@given(st.lists(st.floats(-0.2, 0.2), min_size=60, max_size=60))
def test_jitter_does_not_add_up(jitter: list[float]) -> None:
    stamps = [33.33 * (k + offset) for k, offset in enumerate(jitter)]
    spacing = Spacing(100 * MS)
    chosen = [round(ms / 33.33) for ms in picked(spacing, stamps)]
    assert abs(len(chosen) - 20) <= 1
    steps = np.diff(chosen)
    assert steps.min() >= 2 and steps.max() <= 4


def test_a_camera_of_the_same_rate_loses_no_frame() -> None:
    stamps = [101.0 * k for k in range(100)]
    assert picked(Spacing(100 * MS), stamps) == stamps


def test_a_gap_is_late_and_begins_anew() -> None:
    spacing = Spacing(100 * MS)
    choices = [spacing.pick(START_NS + ms * MS) for ms in (0, 100, 200, 351, 451, 500, 551)]
    assert choices == ["take", "take", "take", "late", "take", "skip", "take"]
    slow = Spacing(100 * MS)
    assert [slow.pick(START_NS + 200 * MS * k) for k in range(4)] == ["take", "late", "late", "late"]
