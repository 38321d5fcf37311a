"""Executors: wait for what the nodes wait for, and run the callbacks, in one thread or in several."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future as PoolFuture
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import CoroutineType
from typing import Any

from dr_embedded.cyclone import DDSException
from dr_embedded.ros.callback_groups import CallbackGroup
from dr_embedded.ros.context import Context
from dr_embedded.ros.task import Future, Task
from dr_embedded.ros.utilities import get_default_context, timeout_sec_to_nsec
from dr_embedded.waitable import Waitable, Work
from dr_embedded.wire import WaitSet

# Waiting happens in C, where Python's signal handlers cannot run; the main thread looks up this often.
SIGNAL_CHECK_NS = 100_000_000


class TimeoutException(Exception):
    """Nothing became ready in time."""


class ShutdownException(Exception):
    """The executor was shut down."""


class ExternalShutdownException(Exception):
    """The context was shut down."""

    def __init__(self) -> None:
        super().__init__("The context was shut down")


class ConditionReachedException(Exception):
    """The condition that ends the spinning holds."""


@dataclass(frozen=True)
class _Sources:
    """What may become ready: by its DDS condition, or by time."""

    by_condition: dict[int, Waitable] = field(default_factory=dict)
    timed: list[Waitable] = field(default_factory=list)

    def add(self, waitable: Waitable) -> None:
        for condition in waitable.conditions():
            self.by_condition[condition] = waitable
        if waitable.timed:
            self.timed.append(waitable)


def _never() -> bool:
    return False


class Executor:
    """Base: keeps nodes and tasks, and finds the next thing to run."""

    def __init__(self, *, context: Context | None = None) -> None:
        self._context = context or get_default_context()
        self._session = self._context._open_session()
        self._nodes: set[Any] = set()
        self._tasks: deque[Task] = deque()
        self._sleeping: set[Task] = set()  # coroutines that wait for a future
        self._ready: deque[Waitable] = deque()
        self._taking: set[Waitable] = set()  # handed to a thread, data not taken yet
        self._changed = True  # the nodes have other entities than the sources below
        self._sources = _Sources()
        self._by_group: dict[CallbackGroup, list[Waitable]] = {}
        self._lock = threading.RLock()
        self._waiting = threading.RLock()
        self._guard = self._session.waker()
        self._waitset = WaitSet(self._session.participant)
        self._is_shutdown = False
        self._spinning_thread: int | None = None
        self._context.on_shutdown(self.wake)

    @property
    def context(self) -> Context:
        return self._context

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def add_node(self, node: Any) -> bool:
        """False if the node is here already."""
        with self._lock:
            if node in self._nodes:
                return False
            self._nodes.add(node)
            node.executor = self
        self._entities_changed()
        return True

    def remove_node(self, node: Any) -> None:
        with self._lock:
            self._nodes.discard(node)
            if node.executor is self:
                node.executor = None
        self._entities_changed()

    def get_nodes(self) -> list[Any]:
        return list(self._nodes)

    def create_task(self, callback: Any, *args: Any, **kwargs: Any) -> Task:
        """Run a function or coroutine in this executor."""
        task = Task(callback, args, kwargs, executor=self)
        self._resume(task)
        return task

    def _resume(self, task: Task) -> None:
        with self._lock:
            self._sleeping.discard(task)
            self._tasks.append(task)
        self.wake()

    def wake(self) -> None:
        """End the current wait, for example because there is something new to wait for."""
        if threading.get_ident() == self._spinning_thread:
            return
        with self._lock:
            if self._session.valid and not self._is_shutdown:
                self._guard.trigger()

    def _entities_changed(self) -> None:
        """A node came or went, or has other entities."""
        self._changed = True
        self.wake()

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """Stop; returns whether all callbacks ended in time."""
        with self._lock:
            if self._is_shutdown:
                return True
            self._is_shutdown = True
            if self._session.valid:
                self._guard.trigger()
            for node in list(self._nodes):
                self.remove_node(node)
        finished = self._finish(timeout_sec)
        with self._waiting, self._lock:  # a thread that spins has left its wait
            self._session.drop_waker(self._guard)
            if not self._session.closed:
                self._waitset.close()
        return finished

    def _finish(self, timeout_sec: float | None) -> bool:
        return True

    def spin(self) -> None:
        """Run callbacks until the context or this executor ends."""
        while self._session.valid and not self._is_shutdown:
            self._spin_once(None, _never)

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Run what is ready first, waiting at most `timeout_sec` (None or negative: for ever) for it."""
        self._spin_once(timeout_sec, _never)

    def spin_until_future_complete(self, future: Future, timeout_sec: float | None = None) -> None:
        future.add_done_callback(lambda _: self.wake())
        limit_ns = timeout_sec_to_nsec(timeout_sec)
        end = None if limit_ns < 0 else time.monotonic_ns() + limit_ns
        while self._session.valid and not future.done() and not self._is_shutdown:
            left_s = None if end is None else (end - time.monotonic_ns()) / 1e9
            if left_s is not None and left_s <= 0:
                return
            self._spin_once(left_s, future.done)

    def spin_once_until_future_complete(self, future: Future, timeout_sec: float | None = None) -> None:
        future.add_done_callback(lambda _: self.wake())
        self._spin_once(timeout_sec, future.done)

    def _spin_once(self, timeout_sec: float | None, condition: Callable[[], bool]) -> None:
        self._spinning_thread = threading.get_ident()
        try:
            with self._waiting:
                job = self._next_job(timeout_sec_to_nsec(timeout_sec), condition)
        except (TimeoutException, ShutdownException, ConditionReachedException):
            return
        else:
            self._run(job)
        finally:
            self._spinning_thread = None

    def _run(self, job: Task | Waitable) -> None:
        raise NotImplementedError

    def _next_job(self, timeout_ns: int, condition: Callable[[], bool]) -> Task | Waitable:
        """The next task, or the next waitable that may run; its callback group is entered and it is being taken."""
        end = None if timeout_ns < 0 else time.monotonic_ns() + timeout_ns
        looked = False
        while True:
            if self._is_shutdown:
                raise ShutdownException
            if not self._session.valid:
                raise ExternalShutdownException
            if self._tasks:
                return self._tasks.popleft()
            while self._ready:
                waitable = self._ready.popleft()
                if waitable not in self._taking and waitable.callback_group.beginning_execution(waitable):
                    self._taking.add(waitable)
                    return waitable
            if condition():
                raise ConditionReachedException
            if looked and end is not None and time.monotonic_ns() >= end:
                raise TimeoutException
            try:
                self._collect_ready(None if end is None else max(end - time.monotonic_ns(), 0))
            except DDSException:
                if self._session.valid:  # otherwise another thread has closed DDS during the wait
                    raise
            looked = True

    def _collect_ready(self, timeout_ns: int | None) -> None:
        """Wait for conditions, timers, tasks or a wake-up, and queue all that is ready."""
        if self._changed:
            self._list_sources()
        sources = self._free_sources() if self._taking else self._sources
        for group in self._by_group:
            if not group.can_execute(None):
                sources = self._free_sources()
                break
        now_ns, wait_ns = time.monotonic_ns(), SIGNAL_CHECK_NS
        if timeout_ns is not None and timeout_ns < wait_ns:
            wait_ns = timeout_ns
        for waitable in sources.timed:
            due_ns = waitable.due_in_ns(now_ns)
            if due_ns is not None and due_ns < wait_ns:
                wait_ns = due_ns
        graph = self._session.graph
        self._waitset.attach_exactly(sources.by_condition, self._guard.entity, graph.condition)
        set_conditions = self._waitset.wait(max(wait_ns, 0))
        now_ns = time.monotonic_ns()
        for waitable in sources.timed:
            due_ns = waitable.due_in_ns(now_ns)
            if due_ns is not None and due_ns <= 0:
                self._ready.append(waitable)
        for condition in set_conditions:
            if condition == self._guard.entity:
                self._guard.clear()
            elif condition == graph.condition:
                graph.follow()
            elif condition in sources.by_condition:
                self._ready.append(sources.by_condition[condition])

    def _list_sources(self) -> None:
        """Take over what the nodes have now."""
        with self._lock:
            self._changed = False
            waitables = [one for node in self._nodes for one in node._waitables()]
        self._sources, self._by_group = _Sources(), {}
        for waitable in waitables:
            self._sources.add(waitable)
            self._by_group.setdefault(waitable.callback_group, []).append(waitable)

    def _free_sources(self) -> _Sources:
        """Those that are not being taken and whose callback group may run something."""
        free = _Sources()
        for group, waitables in self._by_group.items():
            if group.can_execute(None):
                for waitable in waitables:
                    if waitable not in self._taking:
                        free.add(waitable)
        return free

    def _take(self, waitable: Waitable) -> Work | None:
        """Take the data in the thread that will run the callback."""
        try:
            return waitable.take_work()
        except DDSException:
            if self._session.valid and not waitable.is_destroyed():
                raise
            return None
        finally:
            self._taking.discard(waitable)

    def _perform(self, job: Task | Waitable) -> None:
        """Run a job to its end, or to its first await.

        Raises:
            Exception: what the callback raised.
        """
        if isinstance(job, Task):
            with self._lock:
                self._sleeping.add(job)
            job()
            if job.done():
                self._sleeping.discard(job)
                if (problem := job.exception()) is not None:
                    raise problem
            return
        group = job.callback_group
        result: Any = None
        try:
            work = self._take(job)
            self.wake()
            result = work() if work is not None else None
        finally:
            if not isinstance(result, CoroutineType):
                group.ending_execution(job)
                self.wake()
        if isinstance(result, CoroutineType):
            self.create_task(_in_group(result, job))


async def _in_group(coroutine: Any, waitable: Waitable) -> None:
    """The callback group stays entered until the coroutine ends."""
    try:
        await coroutine
    finally:
        waitable.callback_group.ending_execution(waitable)


class SingleThreadedExecutor(Executor):
    """Runs callbacks in the thread that spins."""

    def _run(self, job: Task | Waitable) -> None:
        self._perform(job)


class MultiThreadedExecutor(Executor):
    """Runs callbacks in a pool of threads (`num_threads`, else one per core and at least two)."""

    def __init__(self, num_threads: int | None = None, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        count = max(num_threads or os.cpu_count() or 2, 1 if num_threads else 2)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="executor")
        self._running: set[PoolFuture[None]] = set()

    def _run(self, job: Task | Waitable) -> None:
        done = {one for one in self._running if one.done()}
        self._running -= done
        self._running.add(self._pool.submit(self._perform, job))
        for one in done:
            one.result()  # raises what a callback raised

    def _spin_once(self, timeout_sec: float | None, condition: Callable[[], bool]) -> None:
        super()._spin_once(timeout_sec, condition)
        for one in [one for one in self._running if one.done() and one.exception() is not None]:
            self._running.discard(one)
            one.result()

    def _finish(self, timeout_sec: float | None) -> bool:
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while end is not None and time.monotonic() < end and not all(one.done() for one in self._running):
            time.sleep(0.005)
        finished = all(one.done() for one in self._running)
        self._pool.shutdown(wait=end is None or finished, cancel_futures=True)
        return end is None or finished
