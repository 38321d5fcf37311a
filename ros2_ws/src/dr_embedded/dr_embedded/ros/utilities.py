"""The default context, and small helpers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from dr_embedded import arguments
from dr_embedded.ros.context import Context

_lock = threading.Lock()
_default: Context | None = None


def get_default_context(*, shutting_down: bool = False) -> Context:
    """The context of plain rclpy.init()."""
    global _default
    with _lock:
        if _default is None:
            _default = Context()
        return _default


def ok(*, context: Context | None = None) -> bool:
    return (context or get_default_context()).ok()


def shutdown(*, context: Context | None = None) -> None:
    (context or get_default_context(shutting_down=True)).shutdown()


def try_shutdown(*, context: Context | None = None) -> None:
    (context or get_default_context(shutting_down=True)).try_shutdown()


def remove_ros_args(args: Sequence[str] | None = None) -> list[str]:
    """The command line without its ROS part."""
    return arguments.parse(sys.argv if args is None else args).others


def get_rmw_implementation_identifier() -> str:
    return "dr_embedded"


def timeout_sec_to_nsec(timeout_sec: float | None) -> int:
    """Nanoseconds; -1 for no limit (None or negative)."""
    return -1 if timeout_sec is None or timeout_sec < 0 else int(timeout_sec * 1e9)
