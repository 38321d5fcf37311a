"""What the simulating worker processes of recording and of vectorised environments share."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def usable_cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Make this process a worker: leave Ctrl-C to the parent, use one core, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's software rasteriser otherwise starts a thread for every core in every process.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
