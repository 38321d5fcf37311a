"""SIGINT and SIGTERM end the contexts; SIGINT raises KeyboardInterrupt as usual afterwards."""

from __future__ import annotations

import signal
import threading
import weakref
from enum import Enum
from types import FrameType
from typing import Any


class SignalHandlerOptions(Enum):
    NO = 0
    SIGINT = 1
    SIGTERM = 2
    ALL = 3


_contexts: weakref.WeakSet[Any] = weakref.WeakSet()
_previous: dict[int, Any] = {}


def register(context: Any) -> None:
    """End this context too when a signal comes."""
    _contexts.add(context)


def _handle(number: int, frame: FrameType | None) -> None:
    for context in list(_contexts):
        context._signal()
    previous = _previous.get(number)
    if number == signal.SIGINT and callable(previous):
        previous(number, frame)


def install_signal_handlers(options: SignalHandlerOptions = SignalHandlerOptions.ALL) -> None:
    """Only the main thread can; elsewhere the caller keeps its own handling, as the signals reach the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    wanted = {
        SignalHandlerOptions.NO: (),
        SignalHandlerOptions.SIGINT: (signal.SIGINT,),
        SignalHandlerOptions.SIGTERM: (signal.SIGTERM,),
        SignalHandlerOptions.ALL: (signal.SIGINT, signal.SIGTERM),
    }[options]
    for number in wanted:
        if number not in _previous:
            _previous[number] = signal.signal(number, _handle)


def uninstall_signal_handlers() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, previous in _previous.items():
        if signal.getsignal(number) is _handle:  # else somebody has set another one since
            signal.signal(number, previous)
    _previous.clear()


def get_current_signal_handlers_options() -> SignalHandlerOptions:
    bits = (signal.SIGINT in _previous) + 2 * (signal.SIGTERM in _previous)
    return SignalHandlerOptions(bits)
