"""Campaign `power_cut`: what a disk may hold after the power fails at a random instant.

The recorder is stopped, its folder copied, and from the copy taken away what nobody has waited for: a file may end
anywhere behind the length of its last fsync, or be zeros from there on, and a rename may not have happened unless the
directory was synced after it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faults.campaigns.recording import Found, examine, in_child, kill, record_for_ever, summary

COUNT = 100
SYNCS = "syncs"


def run(count: int = COUNT, seed: int = 0, longest_s: float = 1.2) -> dict[str, Any]:
    """Cut the power ``count`` times; figures as of the campaign `kill`, and how often something was taken away."""
    rng, found, taken = random.Random(seed), [], 0
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            one, away = _one(Path(folder), seed * 10**6 + number, rng, longest_s)
            found.append(one)
            taken += away
    return {**summary(found), "unsynced_taken_away": taken}


def _one(folder: Path, seed: int, rng: random.Random, longest_s: float) -> tuple[Found, int]:
    live, copy = folder / "live", folder / "copy"
    live.mkdir()

    def record() -> None:
        note_syncs(live / SYNCS)
        record_for_ever(live, seed)

    child = in_child(record)
    try:
        end_s = time.monotonic() + 60.0
        while not (live / "pushed").exists() and time.monotonic() < end_s:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, longest_s))
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        away = cut(live, copy, rng)
    finally:
        kill(child)
    return examine(copy, live), away


def note_syncs(path: Path) -> None:
    """From now on note every fsync and rename of this process: [what, inode, length or new name]."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        os.write(notes, json.dumps(["fsync", status.st_ino, status.st_size]).encode() + b"\n")

    def noted_rename(source: Any, target: Any) -> None:
        parent = os.stat(Path(target).parent).st_ino
        rename(source, target)
        os.write(notes, json.dumps(["rename", parent, str(source), str(target)]).encode() + b"\n")

    os.fsync, os.rename = noted_fsync, noted_rename  # type: ignore[assignment]


def cut(live: Path, copy: Path, rng: random.Random) -> int:
    """Copy a folder without what was not synced; returns how many files and renames were taken away from."""
    text = (live / SYNCS).read_bytes() if (live / SYNCS).exists() else b""
    notes = [json.loads(line) for line in text.split(b"\n")[:-1]]
    lengths = {note[1]: note[2] for note in notes if note[0] == "fsync"}
    taken = 0
    (copy / "episodes").mkdir(parents=True)
    for file in sorted((live / "episodes").rglob("*")):
        target = copy / file.relative_to(live)
        if file.is_dir():
            target.mkdir(exist_ok=True)
            continue
        data, safe = file.read_bytes(), lengths.get(file.stat().st_ino, 0)
        if safe < len(data):
            keep = rng.randint(safe, len(data))
            data = data[:keep] + rng.choice((b"", bytes(len(data) - keep)))
            taken += 1
        target.write_bytes(data)
    for at, note in enumerate(notes):
        if note[0] != "rename" or ["fsync", note[1]] in [later[:2] for later in notes[at + 1 :]]:
            continue
        source, target = (copy / Path(name).relative_to(live) for name in note[2:])
        if rng.randrange(2) and target.exists():
            shutil.move(target, source)
            taken += 1
    return taken
