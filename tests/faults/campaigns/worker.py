"""Reads damaged inputs in a process of its own: `python -m tests.faults.campaigns.worker …`.

An input may be read or refused; anything else is a fault. The process has a limit of memory beyond what it takes to
begin with, and each input a limit of time, after which the process is killed by an alarm: whoever started it finds the
input that it died of still in its folder.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.campaigns.samples import Files, Kind, check_message, make

MEMORY_BYTES = 2**30
"""What an input may take, beyond what the process has; the largest picture that is accepted takes 256 MB."""
CPU_S, WALL_S = 5.0, 60.0
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


def main(seed: int, count: int, folder: Path, begin: dict[str, int]) -> None:
    """Read the inputs of some kinds, from the number that ``begin`` has for each, to ``count``.

    A line of JSON in results.jsonl tells each new fault, one the end of each kind; ``at`` is where it is.
    """
    inputs, canary, outside = folder / "input", folder / "canary", folder / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_bytes(b"not for you")
    os.fsync = lambda _: None  # type: ignore[assignment]  # what is written here may be lost
    watch = _Watch(folder)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)

    def tell(**values: Any) -> None:
        with (folder / "results.jsonl").open("a") as results:
            results.write(json.dumps(values) + "\n")

    for name, first in begin.items():
        kind, counts, seen = make(name), Counter[str](), set[str]()

        def feed(
            number: int,
            files: Files,
            name: str = name,
            kind: Kind = kind,
            counts: Counter[str] = counts,
            seen: set[str] = seen,
        ) -> None:
            shutil.rmtree(inputs, ignore_errors=True)
            for path, data in files.items():
                (inputs / path).parent.mkdir(parents=True, exist_ok=True)
                (inputs / path).write_bytes(data)
            (folder / "at").write_text(json.dumps([name, number, counts]))
            watch.events.clear()
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            signal.setitimer(signal.ITIMER_REAL, WALL_S)
            fault = ""
            try:
                watch.on = True
                outcome = _outcome(lambda: kind.read(inputs), kind.refusals)
            except BaseException as error:  # whatever it is, it is a fault
                outcome, fault = "fault", _told(error)
            finally:
                watch.on = False
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            if canary.exists() or watch.events or (outside / "secret").read_bytes() != b"not for you":
                outcome, fault = "fault", f"reached out: {sorted(set(watch.events))[:3]}, canary {canary.exists()}"
                canary.unlink(missing_ok=True)
            counts[outcome] += 1
            if fault and fault not in seen:
                seen.add(fault)
                shutil.copytree(inputs, folder / "faults" / f"{name} {number}", dirs_exist_ok=True)
                tell(kind=name, input=number, fault=fault)

        # What the first reading loads and caches is not the input's.
        feed(first, kind.samples[0])
        counts.clear()
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES, hard))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stop = count - count // GENERATED if kind.generate is not None else count
        for number in range(first, stop):
            rng = random.Random(f"{name} {seed} {number}")
            feed(number, kind.break_one(rng, rng.choice(kind.samples), canary))
        if kind.generate is not None and first < count:
            _generated(kind.generate(), seed, count - max(first, stop), max(first, stop), feed)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        tell(kind=name, counts=counts, grown_mib=round(grown_mib, 1), cpu_s=round(time.process_time(), 1))


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


def _outcome(read: Callable[[], object], refusals: tuple[type[Exception], ...]) -> str:
    from dr_core.errors import UserError

    try:
        read()
    except UserError as error:
        check_message(error)
        return "refused"
    except refusals:
        return "refused"
    return "read"


def _told(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/campaigns/" not in frame.filename]
    own = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*own[-2:], *frames[-1:])]
    return f"{type(error).__name__} at {' > '.join(dict.fromkeys(places))}"


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _generated(generate: Any, seed: int, count: int, first: int, feed: Callable[[int, Files], None]) -> None:
    """Inputs that hypothesis makes up."""
    import hypothesis

    strategy, files = generate
    number = iter(range(first, first + 10 * count))

    @hypothesis.seed(seed + first)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def one(value: Any) -> None:
        feed(next(number), files(value))

    one()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
