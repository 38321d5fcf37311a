"""Campaign `guided`: inputs that are bred for the lines and branches they reach, where `atheris` is installed.

`pip install atheris` (libFuzzer for Python, Linux); without it the campaign says so and tells nothing. The targets are
the readers that are written in Python here; a child is bred by libFuzzer or by what breaks samples in `untrusted`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.faults.campaigns.samples import ROOT, make
from tests.faults.campaigns.untrusted import IN_MEMORY, SOURCES
from tests.faults.campaigns.worker import WALL_S, outcome_of, told_of

COUNT = 10_000
MOST_S = 30
"""For one target; what it has read by then is told."""
MOST_MIB = 2048
LARGEST_BYTES = 2**16
TARGETS = {
    "agent checkpoint": "model/manifest.json",
    "mcap": "bag.mcap",
    "messages": "message",
    "bag metadata": "bag/metadata.yaml",
    "robot file": "robot.yaml",
    "urdf": "robot.urdf",
    "config": "config.yaml",
    "parameters": "p.yaml",
    "rig": "rig_front.yaml",
    "camera_info": "camera.yaml",
    "reference picture": "reference.png",
    "replay": "replay/episodes.jsonl",
    "adroit policy": "policy.pickle",
    "evaluation": "run/episodes.jsonl",
}
"""The file that is bred, by kind."""
PACKAGES = ["dr_core", "dr_calibration", "dr_sim", "dr_embedded", "mcap", "rosbags"]


def run(count: int = COUNT, seed: int = 0, jobs: int = 0) -> dict[str, Any]:
    """Breed ``count`` inputs for each target, at most for half a minute.

    Returns:
        By target: inputs, how many were read and refused, edges reached at first and at last, faults; all faults as
        problems.
    """
    if find_spec("atheris") is None:
        print("guided: atheris is not installed (pip install atheris); not run", flush=True)
        return {"not run": "atheris is not installed"}
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(TARGETS, pool.map(lambda name: _breed(name, count, seed), TARGETS), strict=True))
    problems = [f"{name}: {fault}" for name, one in found.items() for fault in one["faults"]]
    return {**found, "problems": problems}


def _breed(name: str, count: int, seed: int) -> dict[str, Any]:
    """One target in a process of its own, which libFuzzer ends."""
    paths = os.pathsep.join([*(str(ROOT / source) for source in SOURCES), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as folder:
        own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TMPDIR": folder}
        command = [sys.executable, "-m", "tests.faults.campaigns.guided", name, str(count), str(seed + 1), folder]
        with (Path(folder) / "said").open("w") as said:
            status = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, stdout=said, stderr=said).returncode
        text = (Path(folder) / "said").read_text(errors="replace")
        figures = Path(folder) / "figures.json"
        if not figures.exists():
            raise RuntimeError(f"the target {name} ended with {status}:\n{text[-3000:]}")
        one: dict[str, Any] = json.loads(figures.read_text())
    if status:
        one["faults"][f"ended with {status}: {text[-200:]}"] = one["inputs"]
    edges = [int(number) for number in re.findall(r"cov: (\d+)", text)] or [0]
    print(f"guided: {name}: {one['inputs']} inputs, {edges[0]} to {edges[-1]} edges", flush=True)
    return {**one, "edges at first": edges[0], "edges": edges[-1]}


def _target(name: str, count: int, seed: int, folder: Path) -> None:
    """Runs in the process of one target, and does not return."""
    import atheris

    with atheris.instrument_imports(include=PACKAGES):
        kind = make(name)
        corpus, inputs, canary = folder / "corpus", folder / "input", folder / "canary"
        corpus.mkdir()
        outcome_of(lambda: kind.read(_write(inputs, kind.samples[0])), kind.refusals)  # imports what it needs
    file = TARGETS[name]
    samples = [files for files in kind.samples if file in files]
    for i, files in enumerate(samples):
        (corpus / str(i)).write_bytes(files[file][:LARGEST_BYTES])
    counts, faults = {"inputs": 0, "read": 0, "refused": 0}, {}

    def tell() -> None:
        (folder / "figures.json").write_text(json.dumps({**counts, "faults": faults}))

    def one(data: bytes) -> None:
        counts["inputs"] += 1
        _write(inputs, {**samples[0], file: data})
        try:
            counts[outcome_of(lambda: kind.read(inputs), kind.refusals)] += 1
        except Exception as error:
            faults.setdefault(told_of(error), counts["inputs"])
        if canary.exists():
            faults.setdefault("ran what it read", counts["inputs"])
        if counts["inputs"] % 50 == 0 or counts["inputs"] == count:
            tell()

    def child(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.randrange(2):
            return bytes(atheris.Mutate(data, most))
        try:
            broken = kind.break_one(rng, {**samples[0], file: data}, canary)
        except Exception:  # what it breaks is a whole sample, which this may not be any more
            return bytes(atheris.Mutate(data, most))
        return bytes(broken[file][:most])

    tell()
    limits = [f"-timeout={WALL_S:.0f}", f"-rss_limit_mb={MOST_MIB}", f"-max_len={LARGEST_BYTES}"]
    ends = [f"-runs={count}", f"-max_total_time={MOST_S}", f"-seed={seed}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, *ends, str(corpus)], one, custom_mutator=child)
    atheris.Fuzz()


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


if __name__ == "__main__":
    _target(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
