"""Clocks: the system's, a steady one, and ROS time, which follows /clock when a node uses simulated time."""

from __future__ import annotations

import time
from typing import Any

from dr_embedded.ros.clock_type import ClockType
from dr_embedded.ros.duration import Duration
from dr_embedded.ros.time import Time

__all__ = ["Clock", "ClockType", "JumpThreshold", "ROSClock"]


class JumpThreshold:
    def __init__(self, **_: Any) -> None:
        raise NotImplementedError("dr_embedded: rclpy.clock.JumpThreshold")


class Clock:
    """`Clock(clock_type=ClockType.ROS_TIME)` is a ROSClock."""

    _clock_type: ClockType
    _override_ns: int | None = None  # simulated time

    def __new__(cls, *, clock_type: ClockType = ClockType.SYSTEM_TIME) -> Clock:
        if not isinstance(clock_type, ClockType):
            raise TypeError("Clock type must be a ClockType enum")
        made = super().__new__(ROSClock if clock_type is ClockType.ROS_TIME else cls)
        made._clock_type = clock_type
        return made

    @property
    def clock_type(self) -> ClockType:
        return self._clock_type

    def __repr__(self) -> str:
        return f"Clock(clock_type={self._clock_type.name})"

    def now(self) -> Time:
        count = time.monotonic_ns() if self._clock_type is ClockType.STEADY_TIME else time.time_ns()
        return Time(nanoseconds=count, clock_type=self._clock_type)

    def _timer_ns(self) -> int:
        """What timers count: steady, so that a change of the system's date neither fires nor stalls them."""
        return time.monotonic_ns()

    def _simulated(self) -> bool:
        return False

    def sleep_until(self, until: Time, context: Any = None) -> bool:
        """Block until `until`; False if the context was shut down meanwhile."""
        from dr_embedded.ros.utilities import get_default_context

        context = context or get_default_context()
        if until.clock_type != self._clock_type:
            raise ValueError("until's clock type does not match this clock's type")
        while context.ok():
            left_s = (until.nanoseconds - self.now().nanoseconds) / 1e9
            if left_s <= 0:
                return True
            time.sleep(min(left_s, 0.01 if self._simulated() else 0.1))
        return False

    def sleep_for(self, rel_time: Duration, context: Any = None) -> bool:
        return self.sleep_until(self.now() + rel_time, context)

    def create_jump_callback(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("dr_embedded: Clock.create_jump_callback")


class ROSClock(Clock):
    """System time, or what /clock said last."""

    def __new__(cls, *, clock_type: ClockType = ClockType.ROS_TIME) -> ROSClock:
        return super().__new__(cls, clock_type=ClockType.ROS_TIME)  # type: ignore[return-value]

    @property
    def ros_time_is_active(self) -> bool:
        return self._override_ns is not None

    def _set_ros_time_is_active(self, enabled: bool) -> None:
        self._override_ns = 0 if enabled else None

    def set_ros_time_override(self, time: Time) -> None:
        self._override_ns = time.nanoseconds

    def now(self) -> Time:
        return (
            super().now()
            if self._override_ns is None
            else Time(nanoseconds=self._override_ns, clock_type=self._clock_type)
        )

    def _timer_ns(self) -> int:
        return time.monotonic_ns() if self._override_ns is None else self._override_ns

    def _simulated(self) -> bool:
        return self._override_ns is not None
