"""Reads damaged inputs in processes that may die: `python -m tests.faults.campaigns.worker …`.

An input may be read or refused; anything else is a fault. One process makes the samples and forks as many readers as
there are jobs; each reads its part of the inputs. A reader has a limit of memory beyond what it takes to begin with,
and each input a limit of time, after which an alarm kills the reader: its input is then the fault, and another reader
is forked for those that are left.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.campaigns.samples import Files, Kind, check_message, make

MEMORY_BYTES = 2**30
"""What an input may take, beyond what the process has; the largest picture that is accepted takes 256 MB."""
CPU_S, WALL_S = 5.0, 60.0
ALARMS = (signal.SIGPROF, signal.SIGALRM)
MOST_DEATHS = 20
"""A kind with so many is not read further."""
GENERATED = 10
"""One input in so many is generated, the others are damaged samples."""
SPAWNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


@dataclass
class Told:
    """What became of the inputs of a kind.

    Attributes:
        faults: in words, with the number of an input of each.
        peak_mib: the most memory that a reader had.
        grown_mib: the most that was added to a reader's memory after its first whole sample.
    """

    kind: str
    read: int = 0
    refused: int = 0
    fault: int = 0
    hangs: int = 0
    deaths: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    peak_mib: float = 0.0
    grown_mib: float = 0.0
    seconds: float = 0.0


class Place:
    """What a reader tells while it reads, in memory that outlives it: its input's number, and how many were what."""

    _FORMAT = struct.Struct("<5q")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._FORMAT.size)

    def write(self, number: int, read: int, refused: int, fault: int, before_kib: int) -> None:
        self._FORMAT.pack_into(self._memory, 0, number, read, refused, fault, before_kib)

    def read(self) -> tuple[int, ...]:
        return self._FORMAT.unpack_from(self._memory)


@dataclass
class Part:
    """The inputs from ``begin`` to ``stop``, for one reader with a folder of its own."""

    folder: Path
    begin: int
    stop: int
    place: Place


def main(seed: int, count: int, jobs: int, folder: Path, names: list[str]) -> None:
    """Read ``count`` inputs of each kind; a line of JSON on standard output tells of each."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.fsync = lambda _: None  # type: ignore[assignment]  # what is written here may be lost
    for name in names:
        told = read_kind(name, make(name), seed, count, jobs, folder)
        results.write(json.dumps(vars(told)) + "\n")
        results.flush()


def read_kind(name: str, kind: Kind, seed: int, count: int, jobs: int, folder: Path) -> Told:
    """Keep readers at work until all is read; what kills one is a fault of the input that it was reading."""
    told, begin_s = Told(name), time.monotonic()
    gc.collect()
    gc.freeze()
    readers = {}
    for job in range(min(jobs, count)):
        part = Part(folder / str(job), count * job // jobs, count * (job + 1) // jobs, Place())
        readers[_fork(name, kind, seed, part)] = part
    while readers:
        pid, status, used = os.wait4(-1, 0)
        part = readers.pop(pid)
        number, read, refused, fault, before_kib = part.place.read()
        if (not os.WIFSIGNALED(status) and status) or not before_kib:
            said = (part.folder / "said").read_text(errors="replace")
            raise RuntimeError(f"a reader of {name} ended with {status}:\n{said[-3000:]}")
        told.read, told.refused, told.fault = told.read + read, told.refused + refused, told.fault + fault
        told.peak_mib = max(told.peak_mib, round(used.ru_maxrss / 1024, 1))
        told.grown_mib = max(told.grown_mib, round((used.ru_maxrss - before_kib) / 1024, 1))
        for line in (part.folder / "faults.jsonl").read_text().splitlines():
            told.faults = json.loads(line) | told.faults
        if not os.WIFSIGNALED(status):
            continue
        cause = signal.Signals(os.WTERMSIG(status))
        told.fault += 1
        told.hangs += cause in ALARMS
        told.deaths += cause not in ALARMS
        told.faults[f"{'hangs' if cause in ALARMS else 'dies'}: {cause.name} at input {number}"] = number
        shutil.copytree(part.folder / "input", folder / "faults" / f"{name} {number}", dirs_exist_ok=True)
        part.begin = number + 1
        if told.hangs + told.deaths < MOST_DEATHS and part.begin < part.stop:
            readers[_fork(name, kind, seed, part)] = part
    told.seconds = round(time.monotonic() - begin_s, 1)
    return told


def _fork(name: str, kind: Kind, seed: int, part: Part) -> int:
    """A reader of a part; its process id."""
    part.folder.mkdir(exist_ok=True)
    part.place.write(part.begin, 0, 0, 0, 0)
    (part.folder / "faults.jsonl").write_text("")
    if pid := os.fork():
        return pid
    status = 1
    try:
        said = os.open(part.folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        _Reader(name, kind, part).read_all(seed)
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


class _Reader:
    """Reads one part, in a process of its own."""

    def __init__(self, name: str, kind: Kind, part: Part) -> None:
        self.name, self.kind, self.part = name, kind, part
        self.inputs, self.canary, self.secret = (part.folder / one for one in ("input", "canary", "outside/secret"))
        self.secret.parent.mkdir(exist_ok=True)
        self.secret.write_bytes(b"not for you")
        self.watch = _Watch(part.folder)
        self.counts = {"read": 0, "refused": 0, "fault": 0}
        self.seen: set[str] = set()
        self.before_kib = 0

    def read_all(self, seed: int) -> None:
        begin, stop = self.part.begin, self.part.stop
        # What the first reading loads and caches is not the input's.
        self.feed(begin, self.kind.samples[0])
        self.counts = dict.fromkeys(self.counts, 0)
        self.before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES, hard))
        if self.kind.generate is not None:
            begin = _generated(self.kind.generate(), seed, begin, begin + (stop - begin) // GENERATED, self.feed)
        for number in range(begin, stop):
            rng = random.Random(f"{self.name} {seed} {number}")
            self.feed(number, self.kind.break_one(rng, rng.choice(self.kind.samples), self.canary))
        self._tell(stop)

    def _tell(self, number: int) -> None:
        self.part.place.write(number, *self.counts.values(), self.before_kib)

    def feed(self, number: int, files: Files) -> None:
        shutil.rmtree(self.inputs, ignore_errors=True)
        for path, data in files.items():
            (self.inputs / path).parent.mkdir(parents=True, exist_ok=True)
            (self.inputs / path).write_bytes(data)
        self._tell(number)
        self.watch.events.clear()
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        fault = ""
        try:
            self.watch.on = True
            outcome = outcome_of(lambda: self.kind.read(self.inputs), self.kind.refusals)
        except BaseException as error:  # whatever it is, it is a fault
            outcome, fault = "fault", told_of(error)
        finally:
            self.watch.on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.canary.exists() or self.watch.events or self.secret.read_bytes() != b"not for you":
            events = sorted(set(self.watch.events))[:3]
            outcome, fault = "fault", f"reached out: {events}, canary {self.canary.exists()}"
            self.canary.unlink(missing_ok=True)
        self.counts[outcome] += 1
        if fault and fault not in self.seen:
            self.seen.add(fault)
            kept = self.part.folder.parent / "faults" / f"{self.name} {number}"
            shutil.copytree(self.inputs, kept, dirs_exist_ok=True)
            with (self.part.folder / "faults.jsonl").open("a") as file:
                file.write(json.dumps({fault: number}) + "\n")


class _Watch:
    """Notes what Python itself tells of programs started, pickles opened, and files written elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.on = False
        self.events: list[str] = []
        self._allowed = (str(folder), "/tmp", "/dev", os.environ.get("TMPDIR", "/tmp"))
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in SPAWNS:
            self.events.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], str):
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            real = os.path.abspath(path)
            if "/outside/" in real or (writes and not real.startswith(self._allowed)):
                self.events.append(f"open {real} {flags}")


def outcome_of(read: Callable[[], object], refusals: tuple[type[Exception], ...]) -> str:
    from dr_core.errors import UserError

    try:
        read()
    except UserError as error:
        check_message(error)
        return "refused"
    except refusals:
        return "refused"
    return "read"


def told_of(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/campaigns/" not in frame.filename]
    own = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*own[-2:], *frames[-1:])]
    return f"{type(error).__name__} at {' > '.join(dict.fromkeys(places))}"


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _generated(generate: Any, seed: int, begin: int, stop: int, feed: Callable[[int, Files], None]) -> int:
    """Feed what hypothesis makes up as inputs ``begin`` to ``stop``; the number that comes next, which may be lower."""
    import hypothesis

    if begin >= stop:
        return begin
    strategy, files = generate
    number = begin

    @hypothesis.seed(seed + begin)
    @hypothesis.settings(
        max_examples=stop - begin,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def one(value: Any) -> None:
        nonlocal number
        if number < stop:
            feed(number, files(value))
            number += 1

    one()
    return number


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))
