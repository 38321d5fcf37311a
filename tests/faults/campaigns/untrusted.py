"""Campaign `untrusted`: thousands of damaged and hostile inputs of every kind, read in processes that may die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.campaigns.samples import KINDS, ROOT
from tests.faults.rows import UNTRUSTED

SOURCES = (".", "sim", "calibration", "ros2_ws/src/dr_nodes")
COUNT = 10_000
IN_MEMORY = Path("/dev/shm")


def run(
    count: int = COUNT, seed: int = 0, kinds: Sequence[str] = (), keep: Path | None = None, jobs: int = 0
) -> dict[str, Any]:
    """Read ``count`` inputs of each of ``kinds`` (all, if empty).

    Args:
        keep: where inputs that are faults are left.
        jobs: readers at once; one for each core, if 0.

    Returns:
        By kind: inputs, how many were read and refused, the faults in words with the number of an input of each, how
        many of them were hangs and deaths, peak and growth of memory in MiB, seconds and inputs per second.
    """
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as folder:
        arguments = [str(seed), str(count), str(jobs or len(os.sched_getaffinity(0))), folder]
        for told in _told_by_worker([*arguments, json.dumps(list(kinds or KINDS))], Path(folder)):
            name, inputs = told.pop("kind"), told["read"] + told["refused"] + told["fault"]
            found[name] = {"inputs": inputs, **told, "per_second": round(inputs / max(told["seconds"], 0.1))}
            shown = ", ".join(f"{found[name][key]} {word}" for key, word in UNTRUSTED.items())
            print(f"untrusted: {name}: {shown}", flush=True)
        if keep is not None and (Path(folder) / "faults").exists():
            shutil.copytree(Path(folder) / "faults", keep, dirs_exist_ok=True)
    return found


def _told_by_worker(arguments: list[str], folder: Path) -> Any:
    """What the process that forks the readers tells of each kind, as it comes."""
    paths = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "tests.faults.campaigns.worker", *arguments]
    with (folder / "output").open("w") as output:
        worker = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=output, text=True
        )
        assert worker.stdout is not None
        try:
            yield from (json.loads(line) for line in worker.stdout)
        finally:
            worker.stdout.close()
            status = worker.wait()
    if status:
        said = (folder / "output").read_text(errors="replace")
        raise RuntimeError(f"the reader ended with {status}:\n{said[-3000:]}")
