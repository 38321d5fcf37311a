"""What `import rclpy` gives: start and end, and spinning. The modules beside this one are rclpy's of the same name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dr_embedded.ros import logging as logging
from dr_embedded.ros.context import Context
from dr_embedded.ros.executors import Executor, SingleThreadedExecutor
from dr_embedded.ros.node import Node
from dr_embedded.ros.signals import SignalHandlerOptions, install_signal_handlers, uninstall_signal_handlers
from dr_embedded.ros.task import Future
from dr_embedded.ros.utilities import get_default_context, get_rmw_implementation_identifier, ok, remove_ros_args
from dr_embedded.ros.utilities import try_shutdown as _try_shutdown

__all__ = [
    "Context",
    "InitContextManager",
    "create_node",
    "get_default_context",
    "get_global_executor",
    "get_rmw_implementation_identifier",
    "init",
    "logging",
    "ok",
    "remove_ros_args",
    "shutdown",
    "spin",
    "spin_once",
    "spin_until_future_complete",
    "try_shutdown",
]

_executor: Executor | None = None


class InitContextManager:
    """`with rclpy.init():` shuts down at its end."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __enter__(self) -> InitContextManager:
        return self

    def __exit__(self, *_: object) -> None:
        _end_global_executor(self.context)
        self.context.try_shutdown()
        if self.context is get_default_context():
            uninstall_signal_handlers()


def init(
    *,
    args: Sequence[str] | None = None,
    context: Context | None = None,
    domain_id: int | None = None,
    signal_handler_options: SignalHandlerOptions | None = None,
) -> InitContextManager:
    """Start; SIGINT and SIGTERM end the default context unless told otherwise.

    Raises:
        RuntimeError: started already.
    """
    chosen = context or get_default_context()
    if signal_handler_options is None:
        is_default = chosen is get_default_context()
        signal_handler_options = SignalHandlerOptions.ALL if is_default else SignalHandlerOptions.NO
    chosen.init(args, domain_id=domain_id)
    install_signal_handlers(signal_handler_options)
    return InitContextManager(chosen)


def _end_global_executor(context: Context) -> None:
    global _executor
    if _executor is not None and _executor.context is context:
        _executor.shutdown()
        _executor = None


def shutdown(*, context: Context | None = None, uninstall_handlers: bool | None = None) -> None:
    """End; raises RuntimeError when it has ended already (try_shutdown does not)."""
    chosen = context or get_default_context()
    _end_global_executor(chosen)
    chosen.shutdown()
    if uninstall_handlers or (uninstall_handlers is None and chosen is get_default_context()):
        uninstall_signal_handlers()


def try_shutdown(*, context: Context | None = None, uninstall_handlers: bool | None = None) -> None:
    """End, if it has not ended yet."""
    chosen = context or get_default_context()
    _end_global_executor(chosen)
    _try_shutdown(context=chosen)
    if uninstall_handlers or (uninstall_handlers is None and chosen is get_default_context()):
        uninstall_signal_handlers()


def create_node(node_name: str, **kwargs: Any) -> Node:
    return Node(node_name, **kwargs)


def get_global_executor() -> Executor:
    """The executor of spin() and its kin when none is given."""
    global _executor
    if _executor is None or not _executor._session.valid:
        _executor = SingleThreadedExecutor()
    return _executor


def spin_once(node: Node, *, executor: Executor | None = None, timeout_sec: float | None = None) -> None:
    """Run one callback, waiting at most `timeout_sec` for it."""
    chosen = executor or get_global_executor()
    added = chosen.add_node(node)
    try:
        chosen.spin_once(timeout_sec=timeout_sec)
    finally:
        if added:
            chosen.remove_node(node)


def spin(node: Node, executor: Executor | None = None) -> None:
    """Run callbacks until the context ends.

    Raises:
        ExternalShutdownException: it ended by a signal or from another thread while waiting.
    """
    chosen = executor or get_global_executor()
    added = chosen.add_node(node)
    try:
        while chosen._session.valid and not chosen._is_shutdown:
            chosen.spin_once()
    finally:
        if added:
            chosen.remove_node(node)


def spin_until_future_complete(
    node: Node, future: Future, executor: Executor | None = None, timeout_sec: float | None = None
) -> None:
    """Run callbacks until `future` is done, for at most `timeout_sec`."""
    chosen = executor or get_global_executor()
    added = chosen.add_node(node)
    try:
        chosen.spin_until_future_complete(future, timeout_sec)
    finally:
        if added:
            chosen.remove_node(node)
