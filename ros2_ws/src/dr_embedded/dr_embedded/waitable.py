"""What an executor waits for and runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dr_embedded.ros.callback_groups import CallbackGroup

Work = Callable[[], Any]  # calls the user's callback; may return a coroutine


class Waitable:
    """One source of callbacks of a node.

    Attributes:
        timed: it may become ready by itself.
    """

    timed = False

    def __init__(self, callback_group: CallbackGroup) -> None:
        self.callback_group = callback_group
        callback_group.add_entity(self)

    def conditions(self) -> tuple[int, ...]:
        """The DDS conditions to wait for."""
        return ()

    def due_in_ns(self, now_ns: int) -> int | None:
        """Time until it is ready by itself, on the monotonic clock, which is at `now_ns`; None if it never is."""
        return None

    def is_destroyed(self) -> bool:
        """Whether another thread has taken the entity away meanwhile."""
        return bool(getattr(self, "_destroyed", False))

    def take_work(self) -> Work | None:
        """Take what is ready; None when nothing is (any more)."""
        raise NotImplementedError
