"""Points in time, each on one clock; points of different clocks do not compare."""

from __future__ import annotations

from typing import Any

from dr_embedded.message import message_class
from dr_embedded.ros.clock_type import ClockType
from dr_embedded.ros.duration import S_TO_NS, Duration


class Time:
    """Nanoseconds since the epoch of `clock_type`."""

    def __init__(
        self, *, seconds: int | float = 0, nanoseconds: int = 0, clock_type: ClockType = ClockType.SYSTEM_TIME
    ) -> None:
        if not isinstance(clock_type, ClockType):
            raise TypeError("Clock type must be a ClockType enum")
        if seconds < 0:
            raise ValueError("Seconds value must not be negative")
        if nanoseconds < 0:
            raise ValueError("Nanoseconds value must not be negative")
        total = int(seconds * S_TO_NS) + int(nanoseconds)
        if total >= 2**63:
            raise OverflowError("Total nanoseconds value is too large to store in C time point.")
        self._nanoseconds = total
        self._clock_type = clock_type

    @property
    def nanoseconds(self) -> int:
        return self._nanoseconds

    @property
    def clock_type(self) -> ClockType:
        return self._clock_type

    def seconds_nanoseconds(self) -> tuple[int, int]:
        return divmod(self._nanoseconds, S_TO_NS)

    def __repr__(self) -> str:
        return f"Time(nanoseconds={self._nanoseconds}, clock_type={self._clock_type.name})"

    def _same_clock(self, other: Time, verb: str) -> None:
        if self._clock_type != other._clock_type:
            raise TypeError(f"Can't {verb} times with different clock types")

    def __add__(self, other: object) -> Time:
        if not isinstance(other, Duration):
            return NotImplemented
        total = self._nanoseconds + other.nanoseconds
        if not 0 <= total < 2**63:
            raise OverflowError("Addition leads to overflow in C storage.")
        return Time(nanoseconds=total, clock_type=self._clock_type)

    __radd__ = __add__

    def __sub__(self, other: object) -> Any:
        if isinstance(other, Time):
            self._same_clock(other, "subtract")
            return Duration(nanoseconds=self._nanoseconds - other._nanoseconds)
        if isinstance(other, Duration):
            total = self._nanoseconds - other.nanoseconds
            if total < 0:
                raise ValueError("Subtraction leads to negative time")
            return Time(nanoseconds=total, clock_type=self._clock_type)
        return NotImplemented

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Time):
            return False
        self._same_clock(other, "compare")
        return self._nanoseconds == other._nanoseconds

    def __hash__(self) -> int:
        return hash((self._nanoseconds, self._clock_type))

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Time):
            return NotImplemented
        self._same_clock(other, "compare")
        return self._nanoseconds < other._nanoseconds

    def __gt__(self, other: object) -> bool:
        return other < self if isinstance(other, Time) else NotImplemented

    def __le__(self, other: object) -> bool:
        return not other < self if isinstance(other, Time) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return not self < other if isinstance(other, Time) else NotImplemented

    def to_msg(self) -> Any:
        """As builtin_interfaces/Time."""
        seconds, nanoseconds = self.seconds_nanoseconds()
        return message_class("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)

    @classmethod
    def from_msg(cls, msg: Any, clock_type: ClockType = ClockType.ROS_TIME) -> Time:
        if not isinstance(msg, message_class("builtin_interfaces/msg/Time")):
            raise TypeError("Must pass a builtin_interfaces.msg.Time object")
        return cls(seconds=msg.sec, nanoseconds=msg.nanosec, clock_type=clock_type)
