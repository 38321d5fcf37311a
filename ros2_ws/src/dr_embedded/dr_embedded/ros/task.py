"""Futures and the tasks that fill them; an executor runs the tasks."""

from __future__ import annotations

import inspect
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Generator
from typing import Any


class Future:
    """A result that comes later. Done callbacks run in the executor, if there is one."""

    def __init__(self, *, executor: Any = None) -> None:
        self._done = False
        self._cancelled = False
        self._result: Any = None
        self._exception: BaseException | None = None
        self._callbacks: list[Callable[[Any], Any]] = []
        self._lock = threading.Lock()
        self._executor = weakref.ref(executor) if executor is not None else lambda: None

    def __await__(self) -> Generator[Any, None, Any]:
        while not self._done:
            yield self
        return self.result()

    def cancel(self) -> None:
        with self._lock:
            if self._done:
                return
            self._cancelled = self._done = True
        self._schedule_callbacks()

    def cancelled(self) -> bool:
        return self._cancelled

    def done(self) -> bool:
        """Whether there is a result, an exception, or a cancellation."""
        return self._done

    def result(self) -> Any:
        """The result; None while there is none. Raises the exception that was set."""
        if self._exception is not None:
            raise self._exception
        return self._result

    def exception(self) -> BaseException | None:
        return self._exception

    def set_result(self, result: Any) -> None:
        with self._lock:
            self._result = result
            self._done, self._cancelled = True, False
        self._schedule_callbacks()

    def set_exception(self, exception: BaseException) -> None:
        with self._lock:
            self._exception = exception
            self._done, self._cancelled = True, False
        self._schedule_callbacks()

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(self)` once done, at once if it is done already."""
        with self._lock:
            if not self._done:
                self._callbacks.append(callback)
                return
        self._invoke(callback)

    def remove_done_callback(self, callback: Callable[[Any], Any]) -> int:
        with self._lock:
            before = len(self._callbacks)
            self._callbacks = [kept for kept in self._callbacks if kept != callback]
            return before - len(self._callbacks)

    def _set_executor(self, executor: Any) -> None:
        self._executor = weakref.ref(executor)

    def _schedule_callbacks(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._invoke(callback)

    def _invoke(self, callback: Callable[[Any], Any]) -> None:
        executor = self._executor()
        if executor is not None:
            executor.create_task(callback, self)
            return
        try:
            callback(self)
        except Exception:
            # As in rclpy: without an executor nobody else could report it.
            print(f"Unhandled exception in done callback: {traceback.format_exc()}", file=sys.stderr)


class Task(Future):
    """A function or coroutine run by an executor; calling the task advances it."""

    def __init__(self, handler: Any, args: Any = None, kwargs: Any = None, *, executor: Any = None) -> None:
        super().__init__(executor=executor)
        self._args, self._kwargs = args or (), kwargs or {}
        self._handler = handler
        if inspect.iscoroutinefunction(handler):
            self._handler = handler(*self._args, **self._kwargs)
        self._executing = threading.Lock()

    def __call__(self) -> None:
        with self._executing:  # another thread may still be leaving the previous step
            if self._done:
                return
            try:
                if inspect.iscoroutine(self._handler):
                    self._advance()
                else:
                    self.set_result(self._handler(*self._args, **self._kwargs))
            except Exception as problem:
                self.set_exception(problem)

    def _advance(self) -> None:
        try:
            awaited = self._handler.send(None)
        except StopIteration as end:
            self.set_result(end.value)
            return
        executor = self._executor()
        if executor is None:
            return
        if isinstance(awaited, Future):
            awaited.add_done_callback(lambda _: executor._resume(self))
        else:
            executor._resume(self)

    def executing(self) -> bool:
        return self._executing.locked()
