"""Timers: due at multiples of their period, without drift."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.clock import Clock
from dr_embedded.waitable import Waitable, Work

SIMULATED_CHECK_NS = 50_000_000


class Timer(Waitable):
    """Made by Node.create_timer."""

    timed = True

    def __init__(
        self,
        callback: Callable[[], Any] | None,
        callback_group: CallbackGroup,
        timer_period_ns: int,
        clock: Clock,
        *,
        autostart: bool = True,
    ) -> None:
        if timer_period_ns < 0:
            raise ValueError("timer period must be non-negative")
        super().__init__(callback_group)
        self.callback = callback
        self.clock = clock
        self._period_ns = timer_period_ns
        self._lock = threading.Lock()
        self._canceled = not autostart
        self._simulated = clock._simulated()
        self._last_ns = clock._timer_ns()
        self._next_ns = self._last_ns + timer_period_ns
        self._wake: Callable[[], None] = lambda: None

    @property
    def timer_period_ns(self) -> int:
        return self._period_ns

    @timer_period_ns.setter
    def timer_period_ns(self, value: int) -> None:
        with self._lock:
            self._next_ns += int(value) - self._period_ns
            self._period_ns = int(value)
        self._wake()

    def is_ready(self) -> bool:
        return not self._canceled and self.time_until_next_call_ns() <= 0

    def is_canceled(self) -> bool:
        return self._canceled

    def cancel(self) -> None:
        self._canceled = True

    def reset(self) -> None:
        """Start a whole period from now, also after cancel()."""
        with self._lock:
            self._simulated = self.clock._simulated()
            self._last_ns = self.clock._timer_ns()
            self._next_ns = self._last_ns + self._period_ns
            self._canceled = False
        self._wake()

    def time_since_last_call(self) -> int:
        return self.clock._timer_ns() - self._last_ns

    def time_until_next_call(self) -> int | None:
        """Nanoseconds; None when cancelled."""
        return None if self._canceled else self.time_until_next_call_ns()

    def time_until_next_call_ns(self) -> int:
        if self._simulated != self.clock._simulated():
            self.reset()  # the clock counts from somewhere else now
        return self._next_ns - self.clock._timer_ns()

    def due_in_ns(self, now_ns: int) -> int | None:
        if self._canceled:
            return None
        if not self._simulated and self.clock._override_ns is None:
            return self._next_ns - now_ns
        left_ns = self.time_until_next_call_ns()
        # Simulated time moves when /clock arrives, at its own pace.
        return min(left_ns, SIMULATED_CHECK_NS) if left_ns > 0 and self._simulated else left_ns

    def take_work(self) -> Work | None:
        with self._lock:
            now = self.clock._timer_ns()
            if self._canceled or now < self._next_ns:
                return None
            self._last_ns = now
            self._next_ns += self._period_ns
            if self._next_ns <= now:  # late by whole periods: they are skipped, the phase stays
                missed = (now - self._next_ns) // self._period_ns + 1 if self._period_ns else 0
                self._next_ns = self._next_ns + missed * self._period_ns if self._period_ns else now
        return self.callback

    def destroy(self) -> None:
        self._canceled = True


class Rate:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("dr_embedded: Rate; use a timer")
