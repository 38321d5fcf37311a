"""Campaign `untrusted`: thousands of damaged and hostile inputs of every kind, read in processes that may die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.campaigns.samples import KINDS, ROOT

SOURCES = (".", "sim", "calibration", "ros2_ws/src/dr_nodes")
COUNT = 10_000
ALARMS = ("SIGPROF", "SIGALRM")
MOST_FAULTS = 20
"""A kind with so many is not read further."""


def run(count: int = COUNT, seed: int = 0, kinds: Sequence[str] = (), keep: Path | None = None) -> dict[str, Any]:
    """Read ``count`` inputs of each of ``kinds`` (all, if empty).

    Args:
        keep: where inputs that are faults are left.

    Returns:
        By kind: inputs, how many were read and refused, the faults in words with the number of
        an input of each, growth of memory in MiB.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"read": 0, "refused": 0, "fault": 0, "faults": {}, "grown_mib": 0.0} for name in kinds or KINDS
    }
    with tempfile.TemporaryDirectory() as folder:
        _read_all(found, count, seed, Path(folder))
        if keep is not None and (Path(folder) / "faults").exists():
            shutil.copytree(Path(folder) / "faults", keep, dirs_exist_ok=True)
    for one in found.values():
        one["inputs"] = one["read"] + one["refused"] + one["fault"]
    return found


def _read_all(found: dict[str, dict[str, Any]], count: int, seed: int, folder: Path) -> None:
    """Start readers until all is read; what kills one is a fault of the input that it was reading."""
    paths = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    variables = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    begin = dict.fromkeys(found, 0)
    results, at = folder / "results.jsonl", folder / "at"
    while begin:
        arguments = [str(seed), str(count), str(folder), json.dumps(begin)]
        command = [sys.executable, "-m", "tests.faults.campaigns.worker", *arguments]
        with (folder / "output").open("w") as output:
            done = subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=output)
        for line in results.read_text().splitlines() if results.exists() else ():
            told = json.loads(line)
            one = found[told["kind"]]
            if "fault" in told:
                one["faults"].setdefault(told["fault"], told["input"])
                continue
            del begin[told["kind"]]
            one["grown_mib"] = max(one["grown_mib"], told["grown_mib"])
            _add(one, told["counts"])
        results.unlink(missing_ok=True)
        if done.returncode == 0:
            return
        if done.returncode > 0 or not at.exists():
            said = (folder / "output").read_text(errors="replace")
            raise RuntimeError(f"the reader ended with {done.returncode}:\n{said[-3000:]}")
        name, number, counts = json.loads(at.read_text())
        at.unlink()
        cause = signal.Signals(-done.returncode).name
        shutil.copytree(folder / "input", folder / "faults" / f"{name} {number}", dirs_exist_ok=True)
        found[name]["faults"][f"{'hangs' if cause in ALARMS else 'dies'}: {cause} at input {number}"] = number
        _add(found[name], {**counts, "fault": counts.get("fault", 0) + 1})
        begin[name] = number + 1
        if len(found[name]["faults"]) > MOST_FAULTS:
            del begin[name]


def _add(one: dict[str, Any], counts: dict[str, int]) -> None:
    for outcome, number in counts.items():
        one[outcome] += number
