"""A context: what rclpy.init() opens and rclpy.shutdown() ends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence

from dr_embedded import arguments
from dr_embedded.ros import logging, signals
from dr_embedded.ros.exceptions import NotInitializedException
from dr_embedded.session import Session


class Context:
    """Can be initialised again after a shutdown."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._arguments = arguments.Arguments()

    def init(
        self,
        args: Sequence[str] | None = None,
        *,
        initialize_logging: bool = True,
        domain_id: int | None = None,
    ) -> None:
        """Join the domain (`domain_id`, else ROS_DOMAIN_ID, else 0).

        Raises:
            RuntimeError: the context is initialised already.
        """
        with self._lock:
            if self.ok():
                raise RuntimeError("Context.init() must only be called once")
            self._arguments = arguments.parse(sys.argv[1:] if args is None else args)
            if domain_id is None:
                domain_id = int(os.environ.get("ROS_DOMAIN_ID") or 0)
            if initialize_logging:
                logging.apply_levels(self._arguments.log_levels)
            self._session = Session(domain_id, self._arguments.enclave)
            signals.register(self)

    def ok(self) -> bool:
        return self._session is not None and self._session.valid

    def _open_session(self) -> Session:
        """Raises NotInitializedException when the context is not initialised."""
        if self._session is None or not self._session.valid:
            raise NotInitializedException
        return self._session

    def get_domain_id(self) -> int:
        return self._open_session().participant.domain_id

    def shutdown(self) -> None:
        """Raises RuntimeError when the context is not initialised (any more)."""
        if not self.ok():
            raise RuntimeError("Context must be initialized before it can be shutdown")
        self.try_shutdown()

    def try_shutdown(self) -> None:
        """End the context if it is not ended yet; DDS closes once the last node is destroyed."""
        with self._lock:
            if self._session is not None:
                self._session.end()

    def on_shutdown(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the context ends, at once if it has ended."""
        if not callable(callback):
            raise TypeError("callback should be a callable, got {}", type(callback))
        if self._session is not None and self._session.valid:
            self._session.at_end(callback)
        else:
            callback()

    def _signal(self) -> None:
        if self._session is not None:
            self._session.invalidate()

    def __enter__(self) -> Context:
        if not self.ok():
            self.init()
        return self

    def __exit__(self, *_: object) -> None:
        self.try_shutdown()
