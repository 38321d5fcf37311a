"""Campaign `full`: the disk fills up at a random byte of a recording.

A small file system of its own stands for the disk where one may be mounted, otherwise the largest size of a file.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from dr_core.data.bags import repair_bag
from dr_core.data.episodes import read_metadata
from dr_core.data.raw import recording_path
from dr_core.errors import BagError, UserError
from tests.faults.campaigns.recording import digest, faults_of, image, in_child, recorder
from tests.faults.campaigns.samples import metadata

COUNT = 100
PICTURES = 60
DISK_BYTES = 4 * 2**20


def run(count: int = COUNT, seed: int = 0, mount: bool = True) -> dict[str, Any]:
    """Fill the disk ``count`` times.

    Returns:
        How often the episode was lost as a success (0), whether the words and the way on were there, what repair saved.
    """
    rng, problems, recovered = random.Random(seed), [], []
    mounted = 0
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            disk = Path(folder) / "disk"
            disk.mkdir()
            own = mount and _mount(disk)
            mounted += own
            try:
                told = _one(Path(folder), disk, rng.randrange(2000, 600_000), own)
            finally:
                if own:
                    subprocess.run(["umount", str(disk)], check=True)
        problems += told["problems"]
        recovered.append(told["recovered"])
    return {
        "runs": count,
        "full_file_systems": mounted,
        "file_size_limits": count - mounted,
        "pictures_recovered_of_60": {
            "min": min(recovered),
            "p50": sorted(recovered)[len(recovered) // 2],
            "max": max(recovered),
        },
        "problems": problems,
    }


def _mount(disk: Path) -> bool:
    """Whether there is a small file system at ``disk`` now."""
    if os.geteuid():
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _one(folder: Path, disk: Path, room: int, own: bool) -> dict[str, Any]:
    """Record until there is no room, in a child as its limits are its own; what it told."""
    out = folder / "told.json"

    def work() -> None:
        try:
            told = _record(disk, room, own)
        except BaseException:
            told = {"problems": [traceback.format_exc()[-500:]], "recovered": 0}
        out.write_text(json.dumps(told))

    _, status = os.waitpid(in_child(work), 0)
    if not out.exists():
        return {"problems": [f"the process died: {status}"], "recovered": 0}
    return dict(json.loads(out.read_text()))


def _record(disk: Path, room: int, own: bool) -> dict[str, Any]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    problems: list[str] = []
    one = recorder(disk / "episodes")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        """Leave ``room`` bytes."""
        if own:
            with (disk / "filler").open("wb") as filler:
                free = os.statvfs(disk)
                filler.write(bytes(max(0, free.f_bavail * free.f_frsize - room)))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))

    def make_space() -> None:
        if own:
            (disk / "filler").unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def push(numbers: range) -> None:
        for number in numbers:
            one.push("/image", 10**18 + number * 10**8, image(number, 64, 10**18 + number * 10**8))

    first = one.start("first", metadata())
    push(range(5))
    one.stop("success")
    before = digest(first)
    second = one.start("second", metadata())
    push(range(5))
    end_s = time.monotonic() + 60.0
    while one.status().counts.get("/image", 0) < 5 and time.monotonic() < end_s:
        time.sleep(0.001)
    fill()
    push(range(5, PICTURES))
    words = ""
    try:
        one.stop("success")
    except UserError as error:
        words = str(error)
    make_space()
    if not words and room < PICTURES * 12_000:
        problems.append("it said nothing")
    if words and ("dr bag repair" not in words or not one.status().failure or "\n" in words):
        problems.append(f"other words: {words}")
    recovered = PICTURES
    if words:
        if second.exists():
            problems.append("the episode has its name though it is not whole")
        try:
            report = repair_bag(recording_path(second), disk / "episodes" / "saved")
            recovered = report.messages.get("/image", 0)
            if report.metadata.outcome != "partial":
                problems.append(f"a part became a {report.metadata.outcome}")
        except BagError as error:
            recovered = 0
            if "record the episode again" not in str(error):
                problems.append(str(error))
    if digest(first) != before or faults_of(first):
        problems.append("the episode before is not what it was")
    third = one.start("third", metadata())
    push(range(PICTURES, PICTURES + 3))
    one.stop("failure")
    if read_metadata(third).outcome != "failure" or faults_of(third):
        problems.append("the next episode is not whole")
    return {"problems": problems, "recovered": recovered}
