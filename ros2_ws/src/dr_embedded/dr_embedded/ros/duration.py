"""Spans of time in nanoseconds."""

from __future__ import annotations

from typing import Any

from dr_embedded.message import message_class

S_TO_NS = 1_000_000_000


class Duration:
    """A span, `seconds + nanoseconds`, within a signed 64-bit count of nanoseconds."""

    def __init__(self, *, seconds: int | float = 0, nanoseconds: int = 0) -> None:
        total = int(seconds * S_TO_NS) + int(nanoseconds)
        if not -(2**63) <= total < 2**63:
            raise OverflowError("Total nanoseconds value is too large to store in C duration.")
        self._nanoseconds = total

    @property
    def nanoseconds(self) -> int:
        return self._nanoseconds

    def __repr__(self) -> str:
        return f"Duration(nanoseconds={self._nanoseconds})"

    def __str__(self) -> str:
        return "Infinite" if self == Infinite else f"{self._nanoseconds} nanoseconds"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and self._nanoseconds == other._nanoseconds

    def __hash__(self) -> int:
        return hash(self._nanoseconds)

    def __lt__(self, other: object) -> bool:
        return self._nanoseconds < other._nanoseconds if isinstance(other, Duration) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self._nanoseconds <= other._nanoseconds if isinstance(other, Duration) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self._nanoseconds > other._nanoseconds if isinstance(other, Duration) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self._nanoseconds >= other._nanoseconds if isinstance(other, Duration) else NotImplemented

    def to_msg(self) -> Any:
        """As builtin_interfaces/Duration."""
        seconds, nanoseconds = divmod(self._nanoseconds, S_TO_NS)
        return message_class("builtin_interfaces/msg/Duration")(sec=seconds, nanosec=nanoseconds)

    @classmethod
    def from_msg(cls, msg: Any) -> Duration:
        if not isinstance(msg, message_class("builtin_interfaces/msg/Duration")):
            raise TypeError("Must pass a builtin_interfaces.msg.Duration object")
        return cls(seconds=msg.sec, nanoseconds=msg.nanosec)


Infinite = Duration(nanoseconds=2**63 - 1)
