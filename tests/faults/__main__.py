"""`python -m tests.faults [--only ROW|CAMPAIGN ...] [--count N] [--seed S]`: measures, and writes docs/faults.md anew.

All reactions of `reactions` and all of `tests.faults.campaigns`, or those that are named. Exit status 1 if an effect
failed to appear, a campaign found a fault, or a reaction is over its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults import reactions
from tests.faults.campaigns.__main__ import CAMPAIGNS
from tests.faults.rows import ROOT, read_figures, write


def main() -> int:
    rows = [str(number) for number in reactions.FAULTS]
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--only", nargs="*", default=[], choices=(*rows, *CAMPAIGNS), metavar="ROW|CAMPAIGN")
    parser.add_argument("--count", type=int, help="injections or inputs; by default what each campaign says")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wanted = arguments.only or [*rows, *CAMPAIGNS]
    figures = read_figures()
    numbers = tuple(int(name) for name in wanted if name in rows)
    measured: dict[str, Any] = {}
    if numbers:
        measured = reactions.run(arguments.count or reactions.COUNT, arguments.seed, numbers)
        kept = {key: value for key, value in figures.get("reactions", {}).items() if int(key.split()[0]) not in numbers}
        ordered = sorted({**kept, **measured}.items(), key=lambda one: int(one[0].split()[0]))
        figures |= {"reactions": dict(ordered), "machine": machine()}
    status = 0
    if names := [name for name in wanted if name in CAMPAIGNS]:
        status, found = campaigns(names, arguments.count, arguments.seed)
        figures["campaigns"] = {**figures.get("campaigns", {}), **found}
    write(figures)
    late = [key for key, one in measured.items() if one["missed"] or not one["n"] or over_bound(key, one)]
    for key in late:
        print(f"row {key}: {json.dumps(measured[key])}")
    return 1 if late or status else 0


def over_bound(key: str, values: dict[str, Any]) -> bool:
    bound = reactions.bound_of(key)
    return bound is not None and values["max_s"] > bound.bound_s


def campaigns(names: list[str], count: int | None, seed: int) -> tuple[int, dict[str, Any]]:
    """Exit status and figures; in a process of their own, as they fork."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "tests.faults.campaigns", *names, "--seed", str(seed), "--out", str(out)]
        command += [] if count is None else ["--count", str(count)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        return status, json.loads(out.read_text()) if out.exists() else {}


def machine() -> str:
    """Cores and Python."""
    return f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
