"""Networks of other projects from directories on this machine: nothing is fetched, no pickle is opened, no code is run.

A directory is what ``save_pretrained`` of diffusers or transformers writes: ``config.json`` and safetensors. The
weights have to be exactly those that its config describes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dr_core.checkpoint import built_from, sha256_file
from dr_core.errors import CheckpointError, UserError
from dr_core.memory import is_out_of_memory

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WEIGHTS = ".safetensors"
MOST = 10**7
"""No published configuration holds a larger number."""
_MAX_CONFIG_BYTES = 16 * 2**20


class MissingPackageError(UserError):
    """A package of the optional extra ``genreward`` is not installed."""


def require_packages(what: str) -> None:
    """Make sure that diffusers, transformers and peft can be imported.

    Raises:
        MissingPackageError: naming the first that cannot.
    """
    import importlib.util

    for package in ("diffusers", "transformers", "peft", "sentencepiece"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(
                what,
                expected="the packages of the extra genreward",
                found=f"no package {package}",
                next_step="install them: pip install -e '.[genreward]' in the checkout",
            )


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of such a directory.

    Raises:
        CheckpointError: missing, too large, or something else.
    """
    if not path.is_file():
        raise refused(path.parent, f"a file {path.name}", "none", "give the directory that holds it")
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_CONFIG_BYTES else ""
        mapping = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(path, "JSON", " ".join(str(error).split())[:120], "copy the directory again") from error
    if not isinstance(mapping, dict):
        raise refused(path, "a JSON mapping", type(mapping).__name__, "copy the directory again")
    return mapping


def check_directory(path: Path, files: Sequence[str]) -> None:
    """Refuse what is no directory, or one without ``files``.

    Raises:
        CheckpointError: naming all that is missing.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        raise refused(path, f"a directory with {', '.join(files)}", found, "copy the published directory whole")
    missing = [name for name in files if not (path / name).exists()]
    if missing:
        raise refused(path, f"{', '.join(files)}", f"no {', '.join(missing)}", "copy the published directory whole")


def check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors, or whose index names some that are not there.

    Raises:
        CheckpointError: naming pickled weights where there are those only.
    """
    if not any(folder.glob(f"*{_WEIGHTS}")):
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        found = f"{pickles[0]}; pickled weights are never opened" if pickles else "none"
        raise refused(folder, "weights in safetensors", found, "convert the weights to safetensors, or copy those")
    for index in sorted(folder.glob(f"*{_WEIGHTS}.index.json")):
        parts = read_json(index).get("weight_map", {})
        names = list(parts.values()) if isinstance(parts, dict) else []
        absent = [f"{name!r:.80}" for name in names if not isinstance(name, str) or not (folder / name).is_file()]
        if absent or not names:
            raise refused(index, "the names of files beside it", absent[0] if absent else "none", "copy them again")


def load_network(kind: Any, folder: Path, dtype: Any) -> Any:
    """A network of a class of diffusers or transformers, ready for use (in ``eval``).

    Args:
        kind: the class, which has to be the one that ``config.json`` names.
        folder: holds ``config.json`` and safetensors.
        dtype: torch type of the weights.

    Raises:
        CheckpointError: another class, other weights than the config describes, or a file that cannot be read.
    """
    config = read_json(folder / "config.json")
    named = config.get("_class_name", config.get("architectures"))
    if named not in (kind.__name__, [kind.__name__]):
        raise refused(folder / "config.json", f"the class {kind.__name__}", str(named), "give another directory")
    _check_numbers(folder / "config.json", config)
    check_weights(folder)
    _check_size(kind, folder)
    with readable(folder), silent():
        network, report = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, torch_dtype=dtype
        )
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = report.get(fault)
        if found:
            first = sorted(map(str, found))[0]
            raise refused(
                folder,
                "exactly the weights that its config.json describes",
                f"{fault.replace('_', ' ')}: {first}" + (f" and {len(found) - 1} more" if len(found) > 1 else ""),
                "copy config and weights of the same network",
            )
    damaged = next((name for name, value in network.named_parameters() if not value.isfinite().all()), None)
    if damaged is not None:
        raise refused(folder, "finite weights", f"{damaged} that is not", "copy the weights again")
    return network.eval().requires_grad_(False)


def _check_numbers(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration with numbers that nothing can be built of.

    Raises:
        CheckpointError: it has one.
    """
    if not _largest(config) <= MOST:
        raise refused(file, f"numbers up to {MOST}", f"{_largest(config):.4g}", "copy the directory again")


def _largest(value: Any) -> float:
    """The largest number in a configuration: some classes count up to it before a network is built."""
    if isinstance(value, Mapping):
        return max(map(_largest, value.values()), default=0)
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int | float) else 0


def _check_size(kind: Any, folder: Path) -> None:
    """Refuse a config that describes a larger network than the weights, before memory is taken for it.

    Raises:
        CheckpointError: it does, or the class refuses it.
    """
    import safetensors
    import torch

    sizes = {}
    for file in sorted(folder.glob(f"*{_WEIGHTS}")):
        with readable(file), safetensors.safe_open(str(file), framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (no mapping)
                sizes[name] = torch.empty(weights.get_slice(name).get_shape(), device="meta")
    # Twice: weights that two layers share are registered by both.
    room = {f"{copy} {name}": value for copy in (1, 2) for name, value in sizes.items()}
    with readable(folder / "config.json"), silent():
        if hasattr(kind, "config_class") and kind.config_class is not None:
            config = kind.config_class.from_pretrained(str(folder), local_files_only=True)
            build = lambda: kind(config)  # noqa: E731
        else:
            config = kind.load_config(str(folder), local_files_only=True)
            build = lambda: kind.from_config(config)  # noqa: E731
        with built_from(room, folder), torch.device("meta"):
            build()


def load_other(kind: Any, folder: Path) -> Any:
    """A tokenizer or a scheduler, which have no weights.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    if not folder.is_dir():
        raise refused(folder, f"the files of {kind.__name__}", "no such directory", "copy the directory again whole")
    for file in sorted(folder.glob("*_config.json")):
        # The published way to say that a tokenizer sets no limit is 10^30.
        _check_numbers(file, {key: value for key, value in read_json(file).items() if key != "model_max_length"})
    with readable(folder), silent():
        return kind.from_pretrained(str(folder), local_files_only=True)


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of all JSON, text, tokenizer and safetensors files below ``folder`` by relative name; reads all of them.

    Hidden files and pictures, readme files and pickles beside them, which nothing reads, do not count.
    """
    wanted = (_WEIGHTS, ".json", ".txt", ".model")
    files = sorted(file for file in folder.rglob("*") if file.suffix in wanted and file.is_file())
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: sha256_file(file) for name, file in named.items() if not any(p[0] == "." for p in name.split("/"))}


def identity(hashes: Mapping[str, str]) -> str:
    """One sha256 of many files' names and hashes."""
    return hashlib.sha256(json.dumps(dict(sorted(hashes.items()))).encode()).hexdigest()


@contextmanager
def readable(path: Path, expected: str = "files that can be read") -> Iterator[None]:
    """While a foreign library uses ``path``: what it refuses, or stumbles over, becomes one line.

    Raises:
        CheckpointError: in place of the library's error; want of memory is left as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of foreign code, which fails in any way on damaged files
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:200]
        raise refused(path, expected, text or repr(error), "copy the directory again whole") from error


@contextmanager
def silent() -> Iterator[None]:
    """No bars and notes of a library on the terminal; what matters in them is an error here."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def refused(path: Path, expected: str, found: str, next_step: str) -> CheckpointError:
    """The error for a directory or file that is not usable."""
    return CheckpointError(str(path), expected=expected, found=found, next_step=next_step)
