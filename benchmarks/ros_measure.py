"""What ros_graph.py does with its measurements, and what it asks of the machine; knows nothing of ROS."""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

MARK_TOLERANCE = 1e-7
LOOK_AHEAD_NS = 10**9
BUSY_SHARE = 0.1
"""Share of all cores from which other programs are worth a warning."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """One line of the table. ``target`` is the largest value that is good enough; ``note`` says what was measured."""

    name: str
    value: float
    unit: str
    target: float | None = None
    n: int | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None without a target."""
        return None if self.target is None else self.value <= self.target


# ---- distributions, losses, pairs ----


def latency_rows(
    name: str, values_s: Sequence[float], targets_ms: tuple[float | None, float] | None, note: str
) -> list[Row]:
    """p50, p99 and the largest of latencies (N,) in s; without values a row that misses its target."""
    if not len(values_s):
        return [Row(f"{name}: p50", float("inf"), "ms", targets_ms and targets_ms[0], 0, f"nothing arrived; {note}")]
    p50, p99, most = (1e3 * float(np.percentile(values_s, share)) for share in (50, 99, 100))
    goal50, goal99 = targets_ms or (None, None)
    count = len(values_s)
    return [
        Row(f"{name}: p50", p50, "ms", goal50, count, note),
        Row(f"{name}: p99", p99, "ms", goal99, count),
        Row(f"{name}: max", most, "ms", None, count),
    ]


@dataclass(frozen=True)
class Loss:
    """What became of images number 0 to ``published - 1``."""

    published: int
    received: int
    """Different numbers that arrived."""
    lost: int
    repeated: int
    reordered: int
    """Arrivals after one with a larger number."""


def loss(numbers: Sequence[int], published: int) -> Loss:
    """Judge a stream by the numbers of its images in the order in which they arrived; negative ones do not count.

    Raises:
        ValueError: a number that was never published.
    """
    counted = [number for number in numbers if number >= 0]
    if counted and max(counted) >= published:
        raise ValueError(f"image {max(counted)} arrived, but only {published} were published")
    received = len(set(counted))
    highest = np.maximum.accumulate(counted) if counted else np.zeros(0)
    reordered = int(np.sum(np.asarray(counted[1:]) < highest[:-1])) if len(counted) > 1 else 0
    return Loss(published, received, published - received, len(counted) - received, reordered)


@dataclass(frozen=True)
class Wanted:
    """A desired twist: stamp of its observation, arrival, and the mark by which its command is known."""

    stamp_ns: int
    arrived_ns: int
    mark: float


@dataclass(frozen=True)
class Command:
    """A robot command: when the bridge made it, when it arrived, and the mark of the twist that it repeats."""

    stamp_ns: int
    arrived_ns: int
    mark: float


def pair(wanted: Iterable[Wanted], commands: Sequence[Command]) -> list[tuple[Wanted, Command]]:
    """Each desired twist with the first command that carries its mark; those without one are left out.

    Both in the order of their arrival. Marks repeat after seconds, so a second is as far as it looks.
    """
    pairs, start = [], 0
    for one in wanted:
        # The bridge's command may overtake the twist on the way to the listener, but not the picture behind it.
        for index in range(start, len(commands)):
            command = commands[index]
            if command.arrived_ns - one.arrived_ns > LOOK_AHEAD_NS:
                break
            if command.stamp_ns >= one.stamp_ns and abs(command.mark - one.mark) < MARK_TOLERANCE:
                pairs.append((one, command))
                start = index + 1
                break
    return pairs


# ---- the machine ----


def peak_mb(pid: int) -> float:
    """Largest resident memory of a process so far (VmHWM), in 10^6 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


def cpu_s(pid: int) -> float:
    """Processor time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class OtherLoad:
    """How busy others keep the cores: what the machine worked, less this process and its children that have ended."""

    def __init__(self) -> None:
        self._before = self._read()

    def share(self) -> float:
        """Of all cores since the start, 0 to 1; time taken by other virtual machines counts."""
        total, busy, own = (now - then for now, then in zip(self._read(), self._before, strict=True))
        return max(0.0, (busy - own) / total) if total > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(value) / TICKS_PER_S for value in Path("/proc/stat").read_text().split()[1:9]
        )
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        own = sum(one.ru_utime + one.ru_stime for one in used)
        # Network interrupts are mostly ours and belong to nobody.
        return user + nice + system + idle + iowait + irq + softirq + steal, user + nice + system + steal, own


def cpu_name() -> str:
    """Model of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


# ---- output ----


def show(rows: Sequence[Row], facts: dict[str, Any], warnings: Sequence[str]) -> None:
    """Print the table, the facts below it, and what makes the figures doubtful."""
    table = Table(title="ROS graph: separate processes over DDS")
    for title in ("", "measured", "target", "", "n", "of what"):
        table.add_column(title, justify="right" if title in ("measured", "target", "n") else "left")
    for row in rows:
        target = "" if row.target is None else f"≤ {row.target:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        count = "" if row.n is None else str(row.n)
        table.add_row(row.name, f"{row.value:.4g} {row.unit}", target, verdict, count, row.note)
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    for key, value in facts.items():
        console.print(f"{key}: {value}", highlight=False, markup=False, soft_wrap=True)
    missed = sum(row.met is False for row in rows)
    judged = sum(row.met is not None for row in rows)
    console.print(f"targets met: {judged - missed} of {judged}")
    for warning in warnings:
        console.print(f"WARNING: {warning}", style="bold", markup=False, soft_wrap=True)


def write(rows: Sequence[Row], facts: dict[str, Any], warnings: Sequence[str], path: Path) -> None:
    """The same as JSON; infinite values become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [asdict(row) | {"met": row.met, "value": row.value if np.isfinite(row.value) else None} for row in rows]
    content = {"machine": facts, "warnings": list(warnings), "rows": listed}
    path.write_text(json.dumps(content, indent=1) + "\n")
