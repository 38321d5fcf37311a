"""What the gate's node watches besides: topics that must not fall silent, stops asked for, a clock that may jump."""

from __future__ import annotations

from collections.abc import Sequence

from dr_core.safety.limits import Heartbeat

# Further than this a clock is not set, it jumps.
JUMP_BACK_NS, JUMP_AHEAD_NS = 10**8, 10**9


class Heartbeats:
    """When each topic was heard last, on a monotonic clock.

    Args:
        beats: of the robot's file.
    """

    def __init__(self, beats: Sequence[Heartbeat]) -> None:
        self._beats = tuple(beats)
        self._heard_ns: dict[str, int] = {}

    def hear(self, topic: str, now_ns: int) -> None:
        """A message has come."""
        self._heard_ns[topic] = now_ns

    def missing(self, now_ns: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Reasons to HOLD and reasons to stop, in words. What was never heard does not stop: nothing has begun yet."""
        holds: list[str] = []
        faults: list[str] = []
        for beat in self._beats:
            heard_ns = self._heard_ns.get(beat.topic)
            if heard_ns is None:
                holds.append(f"nothing heard of {beat.topic} yet")
            elif now_ns - heard_ns > beat.timeout_s * 1e9:
                (holds if beat.action == "hold" else faults).append(
                    f"nothing heard of {beat.topic} for {beat.timeout_s:g} s"
                )
        return tuple(holds), tuple(faults)


class StopRequests:
    """Stops that other nodes ask for, each for as long as it is repeated, and a moment more.

    Args:
        present_s: after its last repetition.
    """

    MOST = 16
    """Different causes that are kept; more of them say nothing more."""

    def __init__(self, present_s: float) -> None:
        self._present_ns = round(present_s * 1e9)
        self._heard_ns: dict[str, int] = {}

    def hear(self, cause: str, now_ns: int) -> None:
        """A node asks for a stop; only the first 200 characters of its words are kept."""
        cause = " ".join(cause[:200].split()) or "a node asks for a stop"
        if cause in self._heard_ns or len(self.present(now_ns)) < self.MOST:
            self._heard_ns[cause] = now_ns

    def present(self, now_ns: int) -> tuple[str, ...]:
        """The causes of stops that are asked for now."""
        if not self._heard_ns:
            return ()
        self._heard_ns = {
            cause: heard_ns for cause, heard_ns in self._heard_ns.items() if now_ns - heard_ns <= self._present_ns
        }
        return tuple(self._heard_ns)


class ClockWatch:
    """Tells a clock that jumps by comparing it with a monotonic one."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def look(self, clock_ns: int, monotonic_ns: int) -> tuple[str, ...]:
        """By how much it has jumped since the last look, in words; empty when it has not."""
        offset_ns, before_ns = clock_ns - monotonic_ns, self._offset_ns
        self._offset_ns = offset_ns
        if before_ns is None or -JUMP_BACK_NS <= offset_ns - before_ns <= JUMP_AHEAD_NS:
            return ()
        return (f"the clock jumped by {(offset_ns - before_ns) * 1e-9:+.1f} s",)
