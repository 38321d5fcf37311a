"""Files that survive: one writer per output directory, and what is said to be written is on the disk."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dr_core.config import dump_yaml, load_yaml
from dr_core.errors import ConfigError, OutputInUseError


def fsync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file under a temporary name, then rename: a reader, or a restart, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Be the one process that writes to ``out``, which is made if it is not there.

    The lock is an flock: the kernel drops it when the process ends, however it ends, so a killed run can go on.

    Raises:
        OutputInUseError: another process writes there, or ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise OutputInUseError(str(out), expected="an output directory", found="a file", next_step="give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputInUseError(
                str(out),
                expected="an output directory no other run writes to",
                found="a running process that holds its lock",
                next_step="wait for it to end, or give another --out",
            ) from error
        yield


@contextmanager
def run_directory(out: Path, *, resume: bool) -> Iterator[None]:
    """``exclusive`` for a run that either begins in an empty directory or continues what is there.

    Raises:
        OutputInUseError: also when the directory holds something and ``resume`` is not set.
    """
    if out.is_dir() and any(out.iterdir()) and not resume:
        raise OutputInUseError(
            str(out),
            expected="a new or empty output directory",
            found="files of an earlier run",
            next_step="add --resume to continue it, or give another --out",
        )
    with exclusive(out):
        yield


def keep_settings(file: Path, mapping: dict[str, Any], otherwise: str) -> None:
    """Write to YAML what a new run is started with; refuse to continue a run with something else.

    Args:
        otherwise: what then differs, in words.

    Raises:
        ConfigError: the file is there and says something else.
    """
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        dump_yaml(temporary, mapping)
        temporary.replace(file)
    elif load_yaml(file) != mapping:
        raise ConfigError(
            str(file),
            expected="what this run was started with",
            found=otherwise,
            next_step="repeat the options of the first start, or give another --out",
        )
