"""Finds the files of a bag and iterates over its messages, undecoded."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from dr_core.config import parse_yaml
from dr_core.data.mcap_file import read_mcap_index, scan_mcap
from dr_core.data.raw import (
    MCAP_MAGIC,
    SQLITE_MAGIC,
    UNPACKED_LIMIT_BYTES,
    Channel,
    OnDamage,
    RawMessage,
    is_recording,
    repair_hint,
    unzstd,
)
from dr_core.data.sqlite_file import scan_sqlite
from dr_core.errors import BagError, ConfigError

BAG_SUFFIXES = (".mcap", ".db3")
METADATA_LIMIT_BYTES = 2**20


@dataclass(frozen=True)
class BagFiles:
    """What belongs to one bag.

    Attributes:
        path: as the user named it.
        files: the storage files, in recording order.
        storage: their kind.
        information: the content of metadata.yaml; None where there is none.
        packed_messages: every message is compressed with zstd (rosbag2 compression mode "message").
    """

    path: Path
    files: tuple[Path, ...]
    storage: Literal["mcap", "sqlite3"]
    information: dict[str, Any] | None
    packed_messages: bool = False


def locate(path: Path, *, salvage: bool = False) -> BagFiles:
    """Find the files of a bag: a rosbag2 directory, with or without metadata.yaml, or a bare .mcap or .db3.

    Args:
        path: as the user named it.
        salvage: accept unfinished recordings, unreadable metadata.yaml and missing files.

    Raises:
        BagError: not a bag, not readable, or metadata.yaml names files outside of the bag.
    """
    if not os.path.exists(path):  # also where the name is too long for one
        raise BagError(str(path), expected="a bag", found="nothing there", next_step="check the path")
    if path.is_file():
        return BagFiles(path, (path,), _storage_of(path), None)
    if is_recording(path) and not salvage:
        raise BagError(
            str(path), expected="a complete bag", found="an unfinished recording", next_step=repair_hint(path)
        )
    information = None
    if os.path.lexists(path / "metadata.yaml"):
        try:
            information = _read_information(path)
        except _UnreadableMetadata as error:
            if not salvage:
                raise BagError(
                    str(path / "metadata.yaml"),
                    expected="rosbag2 metadata",
                    found=str(error),
                    next_step=repair_hint(path),
                ) from error
    if information is None:
        files = sorted(file for file in path.iterdir() if file.suffix in BAG_SUFFIXES)
    else:
        files = [path / _safe_name(path, name) for name in information["relative_file_paths"]]
        if information.get("compression_mode", "").lower() == "file":
            raise BagError(
                str(path),
                expected="a bag whose files are not compressed as a whole",
                found="compression_mode: file",
                next_step="convert it with: ros2 bag convert",
            )
        if salvage:
            files = [file for file in files if file.exists()]
    for file in files:
        _refuse_outside(path, file)
        if not file.is_file():
            raise BagError(str(file), expected="a file of the bag", found="it is missing", next_step=repair_hint(path))
    if not files:
        raise BagError(
            str(path),
            expected="a bag (metadata.yaml, or .mcap or .db3 files)",
            found="a directory without any",
            next_step="check the path",
        )
    kinds = {_storage_of(file) for file in files}
    if len(kinds) > 1:
        raise BagError(str(path), expected="one kind of storage", found="MCAP and sqlite3", next_step="name one file")
    packed = information is not None and information.get("compression_mode", "").lower() == "message"
    return BagFiles(path, tuple(files), kinds.pop(), information, packed)


class _UnreadableMetadata(ValueError):
    """metadata.yaml is damaged."""


def _read_information(path: Path) -> dict[str, Any]:
    file = path / "metadata.yaml"
    _refuse_outside(path, file)
    if not file.is_file():
        raise _UnreadableMetadata("no file")
    if file.stat().st_size > METADATA_LIMIT_BYTES:
        raise _UnreadableMetadata(f"more than {METADATA_LIMIT_BYTES} bytes")
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), "it")
    except (ConfigError, ValueError) as error:
        raise _UnreadableMetadata(" ".join(str(error).split())) from error
    information = content.get("rosbag2_bagfile_information") if isinstance(content, dict) else None
    if not isinstance(information, dict):
        raise _UnreadableMetadata("no rosbag2_bagfile_information")
    names = information.get("relative_file_paths")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _UnreadableMetadata("no list of relative_file_paths")
    if not isinstance(information.get("compression_mode", ""), str):
        raise _UnreadableMetadata("compression_mode is not text")
    return information


def _safe_name(path: Path, name: str) -> str:
    parts = PurePosixPath(name).parts
    if len(parts) == 1 and parts[0] not in ("..", "/") and name.isprintable() and len(name.encode()) <= 255:
        return name
    raise BagError(
        str(path / "metadata.yaml"),
        expected="names of files inside the bag",
        found=f"{name!r:.100}",
        next_step="do not use this bag, or correct relative_file_paths by hand",
    )


def _refuse_outside(path: Path, file: Path) -> None:
    if file.is_symlink() and file.resolve().parent != path.resolve():
        raise BagError(
            str(file),
            expected="a file inside the bag",
            found=f"a symbolic link to {file.resolve()}",
            next_step="replace the link by the file",
        )


def _storage_of(file: Path) -> Literal["mcap", "sqlite3"]:
    with file.open("rb") as stream:
        head = stream.read(len(SQLITE_MAGIC))
    if head.startswith(MCAP_MAGIC):
        return "mcap"
    if head == SQLITE_MAGIC:
        return "sqlite3"
    raise BagError(
        str(file),
        expected="an MCAP or sqlite3 bag",
        found="a file that starts otherwise" if head else "an empty file",
        next_step="check the path",
    )


def refuse_damage(path: Path) -> OnDamage:
    """A handler that makes any damage of ``path`` a BagError."""

    def refuse(description: str, lost_bytes: int) -> None:
        raise BagError(str(path), expected="a whole bag", found=description, next_step=repair_hint(path))

    return refuse


def scan(bag: BagFiles, topics: Collection[str] | None, on_damage: OnDamage) -> Iterator[RawMessage]:
    """All messages of ``topics`` (None: of all), in the order in which they were recorded.

    Damaged parts are passed over after ``on_damage`` was told, which may raise to stop.
    """
    for file in bag.files:
        messages = (scan_mcap if bag.storage == "mcap" else scan_sqlite)(file, topics, on_damage)
        for message in messages:
            if bag.packed_messages:
                try:
                    data = unzstd(message.data, UNPACKED_LIMIT_BYTES)
                except ValueError as error:
                    on_damage(f"a message on {message.channel.topic}: {error}", len(message.data))
                    continue
                message = message._replace(data=memoryview(data))
            yield message


class Survey(NamedTuple):
    """Message counts by channel, and the times of the first and the last message (0 where there is none)."""

    counts: dict[Channel, int]
    start_ns: int
    end_ns: int


def survey(bag: BagFiles, on_damage: OnDamage) -> Survey:
    """Count the messages, from the index where there is one."""
    counts: dict[Channel, int] = {}
    starts, ends = [], []
    for file in bag.files:
        index = read_mcap_index(file) if bag.storage == "mcap" else None
        if index is not None:
            for number, channel in index.channels.items():
                counts[channel] = counts.get(channel, 0) + index.counts.get(number, 0)
            if sum(index.counts.values()):
                starts.append(index.start_ns)
                ends.append(index.end_ns)
            continue
        for message in scan(BagFiles(bag.path, (file,), bag.storage, None), None, on_damage):
            counts[message.channel] = counts.get(message.channel, 0) + 1
            starts.append(message.log_time_ns)
            ends.append(message.log_time_ns)
            starts, ends = [min(starts)], [max(ends)]
    return Survey(counts, min(starts, default=0), max(ends, default=0))
