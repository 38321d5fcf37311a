"""Guard conditions: callbacks that another thread asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dr_embedded import wire
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.waitable import Waitable, Work


class GuardCondition(Waitable):
    """Made by Node.create_guard_condition."""

    def __init__(self, session: Any, callback: Callable[[], Any] | None, callback_group: CallbackGroup) -> None:
        self._session = session
        self._guard = wire.GuardCondition(session.participant)
        self._destroyed = False
        self.callback = callback
        super().__init__(callback_group)

    def trigger(self) -> None:
        """Have the callback run once soon; thread-safe."""
        if not self._destroyed:
            self._guard.trigger()

    def conditions(self) -> tuple[int, ...]:
        return () if self._destroyed else (self._guard.entity,)

    def take_work(self) -> Work | None:
        return self.callback if not self._destroyed and self._guard.clear() else None

    def destroy(self) -> None:
        if not self._destroyed and not self._session.closed:
            self._guard.close()
        self._destroyed = True
