"""What lives between init and shutdown: a participant, its graph, and those who want to know when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dr_embedded.graph import Graph
from dr_embedded.wire import GuardCondition, Participant


class Session:
    """Ends once; its DDS entities go when it has ended and its last node is destroyed."""

    def __init__(self, domain_id: int, enclave: str = "/") -> None:
        self.participant = Participant(domain_id, enclave)
        self.graph = Graph(self.participant)
        self.valid = True
        self._nodes: set[Any] = set()
        self._wakers: set[GuardCondition] = set()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self.closed = False

    def waker(self) -> GuardCondition:
        """A guard condition that is triggered when the session ends."""
        made = GuardCondition(self.participant)
        self._wakers.add(made)
        return made

    def drop_waker(self, waker: GuardCondition) -> None:
        with self._lock:
            self._wakers.discard(waker)
            if not self.closed:
                waker.close()

    def add_node(self, node: Any) -> None:
        self._nodes.add(node)

    def remove_node(self, node: Any) -> None:
        self._nodes.discard(node)
        self._close_when_unused()

    def at_end(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def invalidate(self) -> None:
        """Stop all spinning. Signal handlers call this, so it takes no lock."""
        self.valid = False
        for waker in list(self._wakers):
            waker.trigger()

    def end(self) -> None:
        """Stop all spinning and tell those who asked."""
        if self.valid:
            self.invalidate()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        self._close_when_unused()

    def _close_when_unused(self) -> None:
        with self._lock:
            if self.valid or self._nodes or self.closed:
                return
            self.closed = True
            self._wakers.clear()
            self.participant.close()  # with every entity made through it
