"""Checkpoints: a directory with ``model.safetensors``, ``config.yaml`` and ``manifest.json``; never a pickle.

The manifest holds the sha256 of every other file, so a truncated, swapped or foreign file is found before a number is
computed from it. A checkpoint is written under a temporary name, fsynced and renamed: a reader sees all of it or none.
Training state (optimiser, step) is a further file ``training.pt``, read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import struct
import subprocess
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dr_core.config import dump_yaml, load_yaml
from dr_core.errors import CheckpointError, OutputInUseError
from dr_core.files import fsync

FORMAT = 1
MODEL, CONFIG, MANIFEST, TRAINING = "model.safetensors", "config.yaml", "manifest.json", "training.pt"
_MAX_MANIFEST_BYTES = 16 * 2**20
_TYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
_SLACK_NUMBERS = 2**22
"""What a network may hold besides the weights of its file."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory.

    Attributes:
        path: where it was read from.
        tensors: every weight by name.
        config: the mapping of ``config.yaml``.
        manifest: the mapping of ``manifest.json``.
        training: the training state, or None.
    """

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    manifest: dict[str, Any]
    training: dict[str, Any] | None

    @property
    def model_hash(self) -> str:
        """sha256 of the weights: the provenance stored with every reward."""
        return str(self.manifest["sha256"][MODEL])


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


@cache
def git_commit() -> str:
    """The commit of the source tree this package runs from, or "unknown" when it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint directory in one step; an existing ``path`` is refused, never overwritten.

    Args:
        path: the directory to create.
        tensors: weights by name.
        config: what rebuilds the model.
        manifest: further facts (statistics, data set hash); hashes and versions are added here.
        training: optimiser state and step, when training is to be resumed from here.

    Raises:
        OutputInUseError: ``path`` exists.
    """
    if path.exists():
        raise OutputInUseError(
            str(path), expected="no such directory yet", found="one", next_step="give another --out or remove it"
        )
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / MODEL)
        dump_yaml(temporary / CONFIG, config)
        if training is not None:
            torch.save(dict(training), temporary / TRAINING)
        record = {
            "format": FORMAT,
            "sha256": {file.name: sha256_file(file) for file in sorted(temporary.iterdir())},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "safetensors": safetensors.__version__,
            },
            "git_commit": git_commit(),
            "created_unix_s": round(time.time(), 3),
            **manifest,
        }
        (temporary / MANIFEST).write_text(json.dumps(record, indent=2), encoding="utf-8")
        for file in temporary.iterdir():
            fsync(file)
        fsync(temporary)
        temporary.rename(path)
        fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Delete what killed writers left in ``folder``; only for the process that alone writes there."""
    for temporary in folder.glob(".*.writing-*"):
        shutil.rmtree(temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint directory.

    Raises:
        CheckpointError: missing, a pickle, truncated, changed since it was written, or of another format.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["sha256"].items():
        file = path / name
        if not _is_plain_file(path, name):
            raise CheckpointError(
                str(path / MANIFEST),
                expected="the names of plain files beside it",
                found=f"{name!r:.80}, which is missing or no such file",
                next_step="copy the checkpoint again whole",
            )
        found = sha256_file(file)
        if found != expected:
            raise CheckpointError(
                str(file),
                expected=f"sha256 {expected[:12]}… as in its manifest",
                found=f"{found[:12]}… (truncated or changed)",
                next_step="copy the checkpoint again or train it anew",
            )
    try:
        tensors = load_file(path / MODEL)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            str(path / MODEL),
            expected="safetensors",
            found=f"another format ({error}); pickles are never opened",
            next_step="train or export the model with this package",
        ) from error
    training = None
    if TRAINING in manifest["sha256"]:
        try:
            refuse_inflation(path / TRAINING)
            training = torch.load(path / TRAINING, weights_only=True, map_location="cpu")
        # Foreign bytes surprise the restricted reader in many ways; none of them runs code.
        except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
                AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
            raise _not_training_state(path) from error
        if not isinstance(training, dict):
            raise _not_training_state(path)
    return Checkpoint(path, tensors, load_yaml(path / CONFIG), manifest, training)


def _is_plain_file(folder: Path, name: str) -> bool:
    """Whether ``name``, which stands in a file, is that of a file in ``folder`` itself and no link."""
    try:
        file = folder / name
        return Path(name).name == name and not file.is_symlink() and file.is_file()
    except (OSError, ValueError):  # too long, or with a zero in it
        return False


def refuse_inflation(path: Path) -> None:
    """ValueError unless it is an archive of torch that holds no more than the file: they are stored as they are.

    Torch takes memory for whatever its format from before the archives claims to hold.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("no archive")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("a compressed archive")


def _not_training_state(path: Path) -> CheckpointError:
    return CheckpointError(
        str(path / TRAINING),
        expected="tensors and plain numbers only",
        found="something else (nothing in it was executed)",
        next_step="start the training anew",
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.is_file():
        raise CheckpointError(
            str(path),
            expected="a checkpoint directory",
            found="a file (pickles such as .pt and .pth are never opened)",
            next_step="give the directory that holds manifest.json",
        )
    file = path / MANIFEST
    if not _is_plain_file(path, MANIFEST):
        found = "no such directory" if not path.exists() else "no manifest.json in it"
        raise CheckpointError(
            str(path), expected="a checkpoint directory", found=found, next_step="train one with dr train-reward"
        )
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise CheckpointError(
            str(file), expected="a manifest below 16 MiB", found="a larger file", next_step="copy it again"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        whole = isinstance(manifest, dict) and manifest["format"] == FORMAT
        whole = whole and {MODEL, CONFIG} <= manifest["sha256"].keys()
        whole = whole and all(isinstance(value, str) for value in manifest["sha256"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(
            str(file),
            expected=f"JSON of format {FORMAT} naming {MODEL} and {CONFIG}",
            found="something else",
            next_step="copy the checkpoint again or train it anew",
        )
    return dict(manifest)


@contextmanager
def built_from(tensors: Mapping[str, Tensor], where: Path) -> Iterator[None]:
    """While a network is built by the config of a checkpoint: it may not become larger than the checkpoint's weights.

    Raises:
        CheckpointError: it would, so that memory is not taken for weights that are not there; or the network refuses
            its config.
    """
    room_numbers = sum(value.numel() for value in tensors.values()) + _SLACK_NUMBERS
    room_tensors = 4 * len(tensors) + 64

    def count(_: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal room_numbers, room_tensors
        room_numbers -= value.numel() if value is not None else 0
        room_tensors -= 1
        if room_numbers < 0 or room_tensors < 0:
            raise ValueError("a larger network")

    hooks = (
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, ArithmeticError) as error:
        raise CheckpointError(
            str(where),
            expected="a config.yaml that describes a network of its weights",
            found=" ".join(str(error).split())[:200],
            next_step="use weights and config of the same training run",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, where: Path) -> None:
    """Copy ``tensors[prefix + name]`` into ``module``; every key must be there, fit, be finite, and be used.

    Raises:
        CheckpointError: naming the missing, unexpected, wrongly shaped or not finite keys.
    """
    own = module.state_dict()
    given = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    faults = [f"missing {prefix}{name}" for name in own if name not in given]
    faults += [f"unexpected {prefix}{name}" for name in given if name not in own]
    faults += [
        f"{prefix}{name} has shape {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    faults += [
        f"{prefix}{name} is of {given[name].dtype}" for name in own if name in given and given[name].dtype not in _TYPES
    ]
    faults = faults or [f"{prefix}{name} is not finite" for name in own if not given[name].isfinite().all()]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(
            str(where),
            expected="exactly the weights its config.yaml describes",
            found="; ".join(faults[:4]) + more,
            next_step="use weights and config of the same training run",
        )
    module.load_state_dict(given)
