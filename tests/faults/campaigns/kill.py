"""Campaign `kill`: a recorder dies by SIGKILL at a random instant, over and over."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.campaigns.recording import Found, examine, in_child, kill, record_for_ever, summary

COUNT = 100


def run(count: int = COUNT, seed: int = 0, longest_s: float = 1.2) -> dict[str, Any]:
    """Kill ``count`` recorders, each within ``longest_s`` of its first picture.

    Returns:
        Bytes lost of closed episodes (0), seconds lost of the open one, problems in words.
    """
    rng, found = random.Random(seed), []
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            found.append(_one(Path(folder), seed * 10**6 + number, rng.uniform(0.0, longest_s)))
    return summary(found)


def _one(folder: Path, seed: int, after_s: float) -> Found:
    child = in_child(lambda: record_for_ever(folder, seed))
    try:
        end_s = time.monotonic() + 60.0
        while not (folder / "pushed").exists() and time.monotonic() < end_s:
            time.sleep(0.002)
        time.sleep(after_s)
    finally:
        kill(child)
    return examine(folder)
