"""A recorder in a child process that is killed, and what is looked for afterwards; for the campaigns about storage."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dr_core.data.bags import check_bag, repair_bag
from dr_core.data.episodes import read_metadata
from dr_core.data.messages import IMAGE, decode_image, definition_of, typestore
from dr_core.data.raw import recording_path
from dr_core.data.storage import locate, scan
from dr_core.errors import BagError
from dr_core.robot.recording import EpisodeRecorder, Topic
from tests.faults.campaigns.samples import metadata

IMAGES = Topic("/image", IMAGE, definition_of(IMAGE), stamped=True)
LEDGER = "ledger"
NOTE = struct.Struct("<qq")
"""Episode and number of the picture that was pushed last."""


def image(number: int, size: int, stamp_ns: int) -> bytes:
    """A serialised picture that shows its number."""
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="eye")
    data = np.full(3 * size * size, number % 256, np.uint8)
    message = types[IMAGE](
        header=header, height=size, width=size, encoding="rgb8", is_bigendian=0, step=3 * size, data=data
    )
    return bytes(typestore().serialize_cdr(message, IMAGE))


def recorder(folder: Path) -> EpisodeRecorder:
    """One that takes pictures on /image."""
    made = EpisodeRecorder(folder, preroll_s=0.0, queue_bytes=2**28, reserve_bytes=0)
    made.add_topic(IMAGES)
    return made


def digest(path: Path) -> str:
    """Of the names and bytes below a folder."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        found.update(str(file.relative_to(path)).encode())
        if file.is_file():
            found.update(file.read_bytes())
    return found.hexdigest()


def record_for_ever(folder: Path, seed: int) -> None:
    """Episode after episode in real time; each closed one is noted with its digest, each picture with its number.

    Notes go to files that nobody waits for: they survive the process, as all that it hands to the operating system.
    """
    rng = random.Random(seed)
    size, period_s = rng.choice(((64, 0.01), (240, 0.033), (24, 0.005)))
    one = recorder(folder / "episodes")
    ledger = os.open(folder / LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pushed = os.open(folder / "pushed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    episode = 0
    while True:
        path = one.start(f"e{episode:04}", metadata())
        for number in range(rng.randrange(3, 25)):
            stamp_ns = time.time_ns()
            one.push("/image", stamp_ns, image(number, size, stamp_ns))
            os.write(pushed, NOTE.pack(episode, stamp_ns))
            time.sleep(period_s)
        one.stop("success")
        os.write(ledger, f"{path.name} {digest(path)} {sum(f.stat().st_size for f in path.iterdir())}\n".encode())
        episode += 1


def in_child(work: Callable[[], None]) -> int:
    """Do it in a forked child; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def kill(child: int) -> None:
    """SIGKILL, and wait."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@dataclass(frozen=True)
class Found:
    """What is left of a run of `record_for_ever`.

    Attributes:
        closed: episodes whose end was told; changed: how many of them are not what they were, and their bytes.
        recovered: pictures of the open episode; None where it had none on the disk yet.
        lost_s: from the last picture that was recovered to the last one that was pushed.
    """

    closed: int
    changed: int
    bytes_lost: int
    recovered: int | None
    lost_s: float | None
    problems: list[str]


def examine(folder: Path, ledger_folder: Path | None = None) -> Found:
    """Compare what is in ``folder`` with the notes; repair the open episode."""
    notes = ledger_folder or folder
    episodes, problems = folder / "episodes", []
    closed = [line.split() for line in (notes / LEDGER).read_text().splitlines()] if (notes / LEDGER).exists() else []
    changed = bytes_lost = 0
    for name, expected, size in closed:
        path = episodes / name
        if not path.is_dir() or digest(path) != expected:
            changed, bytes_lost = changed + 1, bytes_lost + int(size)
        elif faults := faults_of(path):
            problems.append(f"{name}: {faults[0]}")
        elif read_metadata(path).outcome != "success":
            problems.append(f"{name} is {read_metadata(path).outcome}")
    data = (notes / "pushed").read_bytes() if (notes / "pushed").exists() else b""
    pushed = [NOTE.unpack_from(data, at) for at in range(0, len(data) - NOTE.size + 1, NOTE.size)]
    name = f"e{len(closed):04}"
    stamps = [stamp for episode, stamp in pushed if episode == len(closed)]
    recovered, lost_s = None, None
    open_one = recording_path(episodes / name)
    if (episodes / name).exists():  # it had its name, though nobody was told
        problems += faults_of(episodes / name)
    elif open_one.exists():
        before = digest(open_one)
        recovered, lost_s = _repair(open_one, folder / "repaired", stamps, problems)
        if digest(open_one) != before:
            problems.append(f"{open_one.name} was written to")
    return Found(len(closed), changed, bytes_lost, recovered, lost_s, problems)


def faults_of(path: Path) -> list[str]:
    """Of a bag, but for pictures that a busy machine pushed late."""
    return [line for line in check_bag(path) if "messages dropped" not in line]


def _repair(path: Path, out: Path, stamps: list[int], problems: list[str]) -> tuple[int, float]:
    """Pictures in the repaired episode, and seconds from the last of them to the last one pushed."""
    span_s = lambda until: (stamps[-1] - until) / 1e9 if stamps else 0.0  # noqa: E731
    whole = whole_chunks(path)
    try:
        report = repair_bag(path, out)
    except BagError as error:
        if whole:
            problems.append(f"{path.name}: {whole} messages in whole chunks, but {error}")
        return 0, span_s(stamps[0]) if stamps else 0.0
    if sum(report.messages.values()) != whole:
        problems.append(f"{report.messages} of {whole} messages in whole chunks")
    found = [message for message in scan(locate(out), {"/image"}, lambda *_: None)]
    times = [message.log_time_ns for message in found]
    if read_metadata(out).outcome == "success" and len(times) < len(stamps):
        problems.append("a part became a success")
    if times != stamps[: len(times)] and stamps:
        problems.append("other pictures than were pushed")
    for number, message in enumerate(found):
        if int(decode_image(message)[1][0, 0, 0]) != number % 256:
            problems.append(f"picture {number} shows another number")
    return len(times), span_s(times[-1]) if times and stamps else span_s(stamps[0]) if stamps else 0.0


def whole_chunks(path: Path) -> int:
    """Messages in the whole chunks of the MCAP file of a recording, by another reader than the package's."""
    from mcap.exceptions import McapError
    from mcap.records import Chunk, Message
    from mcap.stream_reader import StreamReader, breakup_chunk

    files = list(path.glob("*.mcap"))
    count = 0
    if files:
        with files[0].open("rb") as stream:
            try:
                for record in StreamReader(stream, emit_chunks=True).records:
                    if isinstance(record, Chunk):
                        count += sum(isinstance(one, Message) for one in breakup_chunk(record, validate_crc=True))
            except (McapError, struct.error, ValueError, KeyError):
                return count  # up to here
    return count


def spread(values: list[float]) -> dict[str, float]:
    """n, median and maximum."""
    if not values:
        return {"n": 0}
    return {"n": len(values), "p50": round(float(np.median(values)), 4), "max": round(max(values), 4)}


def summary(found: list[Found]) -> dict[str, Any]:
    """Figures of many runs."""
    return {
        "runs": len(found),
        "closed_episodes": sum(one.closed for one in found),
        "closed_changed": sum(one.changed for one in found),
        "closed_bytes_lost": sum(one.bytes_lost for one in found),
        "open_episodes": sum(one.recovered is not None for one in found),
        "open_pictures_recovered": sum(one.recovered or 0 for one in found),
        "open_lost_s": spread([one.lost_s for one in found if one.lost_s is not None]),
        "problems": [problem for one in found for problem in one.problems],
    }
