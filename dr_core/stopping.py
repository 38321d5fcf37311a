"""Ctrl-C and SIGTERM as something to look at between two steps of long work, instead of an exception in one.

An exception raised by a signal handler can come at any place, and is lost when it comes inside a destructor.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requested() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of raising, so that a step is never left half done.

    For the main thread; the handlers are those of before when the block ends.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
