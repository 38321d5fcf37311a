"""Loggers: one line on stderr per message in ROS format, and /rosout through the node that owns the logger."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import Any


class LoggingSeverity(IntEnum):
    UNSET = 0
    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    FATAL = 50


Publisher = Callable[[int, str, str, str, str, int], None]  # severity, logger, message, file, function, line

_lock = threading.Lock()
_levels: dict[str, LoggingSeverity] = {}  # "" is the root
_publishers: dict[str, Publisher] = {}
_seen: dict[tuple[str, int, str], float] = {}  # call sites of once=, skip_first= and throttle_duration_sec=


class RcutilsLogger:
    """A named logger; the level of the nearest ancestor that has one counts."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def get_child(self, name: str) -> RcutilsLogger:
        if not name:
            raise ValueError("Child logger name must not be empty.")
        return RcutilsLogger(f"{self.name}.{name}" if self.name else name)

    def set_level(self, level: LoggingSeverity | int) -> None:
        set_logger_level(self.name, level)

    def get_effective_level(self) -> LoggingSeverity:
        return get_logger_effective_level(self.name)

    def is_enabled_for(self, severity: LoggingSeverity | int) -> bool:
        return severity >= self.get_effective_level()

    def log(self, message: str, severity: LoggingSeverity | int, **kwargs: Any) -> bool:
        """Returns whether the message was output."""
        return self._log(message, severity, sys._getframe(1), **kwargs)

    def debug(self, message: str, **kwargs: Any) -> bool:
        return self._log(message, LoggingSeverity.DEBUG, sys._getframe(1), **kwargs)

    def info(self, message: str, **kwargs: Any) -> bool:
        return self._log(message, LoggingSeverity.INFO, sys._getframe(1), **kwargs)

    def warning(self, message: str, **kwargs: Any) -> bool:
        return self._log(message, LoggingSeverity.WARN, sys._getframe(1), **kwargs)

    warn = warning

    def error(self, message: str, **kwargs: Any) -> bool:
        return self._log(message, LoggingSeverity.ERROR, sys._getframe(1), **kwargs)

    def fatal(self, message: str, **kwargs: Any) -> bool:
        return self._log(message, LoggingSeverity.FATAL, sys._getframe(1), **kwargs)

    def _log(
        self,
        message: str,
        severity: LoggingSeverity | int,
        frame: FrameType,
        *,
        name: str | None = None,
        once: bool = False,
        skip_first: bool = False,
        throttle_duration_sec: float | None = None,
        throttle_time_source_type: Any = None,
    ) -> bool:
        severity = LoggingSeverity(severity)
        name = self.name if name is None else name
        if severity < get_logger_effective_level(name):
            return False
        site = (frame.f_code.co_filename, frame.f_lineno, name)
        now = time.monotonic()
        with _lock:
            last = _seen.get(site)
            if skip_first and last is None:
                _seen[site] = now
                return False
            if once and last is not None:
                return False
            if throttle_duration_sec is not None and last is not None and now - last < throttle_duration_sec:
                return False
            if once or skip_first or throttle_duration_sec is not None:
                _seen[site] = now
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        print(f"[{severity.name}] [{seconds}.{nanoseconds:09d}] [{name}]: {message}", file=sys.stderr, flush=True)
        if publish := _nearest(_publishers, name):
            publish(severity, name, str(message), site[0], frame.f_code.co_name, frame.f_lineno)
        return True


def _nearest(table: dict[str, Any], name: str) -> Any:
    while name:
        if name in table:
            return table[name]
        name = name.rpartition(".")[0]
    return None


def get_logger(name: str) -> RcutilsLogger:
    if not name:
        raise ValueError("Logger name must not be empty.")
    return RcutilsLogger(name)


def set_logger_level(name: str, level: LoggingSeverity | int, detailed_error: bool = False) -> None:
    _levels[name] = LoggingSeverity(level)


def get_logger_level(name: str) -> LoggingSeverity:
    return _levels.get(name, LoggingSeverity.UNSET)


def get_logger_effective_level(name: str) -> LoggingSeverity:
    return _nearest(_levels, name) or _levels.get("") or LoggingSeverity.INFO


def get_logging_severity_from_string(log_severity: str) -> LoggingSeverity:
    try:
        return LoggingSeverity[log_severity.upper()]
    except KeyError as problem:
        raise RuntimeError(f"unknown log severity '{log_severity}'") from problem


def initialize() -> None:
    return None


def shutdown() -> None:
    return None


def clear_config() -> None:
    _levels.clear()


def apply_levels(levels: dict[str | None, str]) -> None:
    """What `--log-level` says: `info`, or `node:=debug`."""
    for name, level in levels.items():
        set_logger_level(name or "", get_logging_severity_from_string(level))


def attach(name: str, publish: Publisher) -> None:
    """Send what this logger and its children say to /rosout as well."""
    _publishers[name] = publish


def detach(name: str) -> None:
    _publishers.pop(name, None)


def get_logging_directory() -> None:
    raise NotImplementedError("dr_embedded: rclpy.logging.get_logging_directory")
