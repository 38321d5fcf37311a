"""Runs the processes of a launch file until they have ended, as `ros2 launch` does."""

from __future__ import annotations

import ctypes
import os
import selectors
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

# Real launch waits 5 s each; a recorder that closes its file on a slow disk gets more time here.
SIGTERM_AFTER_S, SIGKILL_AFTER_S = 10.0, 20.0
TERMINAL_S = 1.0
LOOK_S = 0.1
PR_SET_PDEATHSIG = 1
ASKED_TO_END = {0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class Program:
    """What to start.

    Attributes:
        label: its lines of output begin with `[label]`.
        command: with its arguments.
        ends_all: everything ends when it does.
        has_terminal: it reads the launcher's standard input.
    """

    label: str
    command: Sequence[str]
    ends_all: bool = False
    has_terminal: bool = False


@dataclass
class _Child:
    program: Program
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    rest: bytes = b""
    due: list[tuple[float, signal.Signals]] = field(default_factory=list)
    ended: bool = False


class Supervisor:
    """Starts programs, prints what they print, ends them all on a signal."""

    def __init__(self) -> None:
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._asked: signal.Signals | None = None
        self._ending = False
        self._failed = False
        self._watched = True

    def run(self, programs: Sequence[Program]) -> int:
        """The exit status: 0 if every program ended as it should."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        terminal = termios.tcgetattr(sys.stdin) if sys.stdin is not None and sys.stdin.isatty() else None
        try:
            for program in programs:
                self._start(program)
            while not all(child.ended for child in self._children):
                self._look()
        finally:
            for child in self._children:
                if child.process.poll() is None:
                    child.process.kill()
                    child.process.wait()
            if terminal is not None:  # a keyboard node that was killed leaves the terminal as it had set it
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, terminal)
            for number, handler in before.items():
                signal.signal(number, handler)
        return int(self._failed)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = self._asked or signal.Signals(number)

    def _start(self, program: Program) -> None:
        process = subprocess.Popen(
            program.command,
            stdin=None if program.has_terminal else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=_in_the_child(os.getpid(), own_group=not program.has_terminal),
        )
        assert process.stdout is not None
        child = _Child(program, process, process.stdout)
        self._children.append(child)
        self._selector.register(process.stdout, selectors.EVENT_READ, child)
        self._say(f"[INFO] [{program.label}]: process started with pid [{process.pid}]")

    def _look(self) -> None:
        for key, _ in self._selector.select(LOOK_S):
            self._read(key.data)
        if self._asked is not None and not self._ending:
            self._say(f"[INFO] [launch]: {self._asked.name}: ending all nodes")
            self._end_all(from_terminal=self._asked == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty())
        for child in self._children:
            if not child.ended and child.process.poll() is not None:
                self._note_end(child)
        now_s = time.monotonic()
        for child in self._children:
            while not child.ended and child.due and child.due[0][0] <= now_s:
                _, number = child.due.pop(0)
                if number != signal.SIGINT:
                    self._say(f"[ERROR] [{child.program.label}]: does not end, sending {number.name}")
                child.process.send_signal(number)

    def _end_all(self, *, from_terminal: bool = False) -> None:
        if self._ending:
            return
        self._ending = True
        now_s = time.monotonic()
        for child in self._children:
            # Ctrl-C reaches the group of the terminal, in which is the node that has it; others hear it from here.
            wait_s = TERMINAL_S if from_terminal and child.program.has_terminal else 0.0
            child.due = [
                (now_s + wait_s, signal.SIGINT),
                (now_s + SIGTERM_AFTER_S, signal.SIGTERM),
                (now_s + SIGKILL_AFTER_S, signal.SIGKILL),
            ]

    def _note_end(self, child: _Child) -> None:
        while not child.output.closed and _readable(child.output):
            self._read(child)
        self._close(child)
        child.ended = True
        status, label, pid = child.process.returncode, child.program.label, child.process.pid
        if status == 0 or (self._ending and status in ASKED_TO_END):
            self._say(f"[INFO] [{label}]: process has finished cleanly [pid {pid}]")
        else:
            self._failed = True
            words = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
            self._say(f"[ERROR] [{label}]: process has died [pid {pid}, {words}]: {shlex.join(child.program.command)}")
        if child.program.ends_all:
            self._end_all()

    def _read(self, child: _Child) -> None:
        data = os.read(child.output.fileno(), 65536)
        *lines, child.rest = (child.rest + data).split(b"\n")
        for line in lines:
            self._say(f"[{child.program.label}] {line.decode(errors='replace')}")
        if not data:
            self._close(child)

    def _close(self, child: _Child) -> None:
        if child.output.closed:
            return
        if child.rest:
            self._say(f"[{child.program.label}] {child.rest.decode(errors='replace')}")
        self._selector.unregister(child.output)
        child.output.close()

    def _say(self, line: str) -> None:
        if not self._watched:
            return
        try:
            print(line, flush=True)
        except OSError:  # a closed terminal or pipe: robots do not go on when nobody watches
            self._watched = False
            self._end_all()


def _readable(stream: IO[bytes]) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return bool(selector.select(0.0))


def _in_the_child(parent: int, *, own_group: bool) -> Callable[[], None]:
    """Between fork and exec. The launcher has one thread, so that this is safe."""

    def prepare() -> None:
        if own_group:  # the terminal's Ctrl-C goes to the launcher alone
            os.setpgid(0, 0)
        if LIBC is not None:
            # Should the launcher be killed, no node may go on commanding a robot unseen. SIGKILL ends stuck ones too.
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare
