"""Checkpoints: what is read is what was written, or it is refused in one line; nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dr_core.checkpoint import load_checkpoint, load_weights, remove_unfinished, save_checkpoint
from dr_core.errors import CheckpointError, OutputInUseError, UserError

FILES = ["config.yaml", "manifest.json", "model.safetensors", "training.pt"]


class Bomb:
    """A pickle that creates a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def write(path: Path) -> Path:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "count": torch.tensor([3])}
    save_checkpoint(path, tensors, {"width": 3}, {"step": 7}, {"optimizer": {"lr": 0.1, "m": torch.zeros(2)}})
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoint")


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest agree, as somebody who means harm would."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_written_is_what_is_read(checkpoint: Path) -> None:
    assert sorted(path.name for path in checkpoint.iterdir()) == FILES
    read = load_checkpoint(checkpoint)
    assert torch.equal(read.tensors["a.weight"], torch.arange(6.0).view(2, 3))
    assert read.tensors["count"].dtype == torch.int64
    assert read.config == {"width": 3} and read.manifest["step"] == 7
    assert read.training is not None and read.training["optimizer"]["lr"] == 0.1
    assert read.model_hash == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert {"python", "torch", "safetensors"} <= read.manifest["versions"].keys()


def test_without_training_state_there_is_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {"a": torch.zeros(1)}, {}, {})
    assert load_checkpoint(tmp_path / "c").training is None
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == FILES[:3]


@pytest.mark.parametrize("kind", ["checkpoint", "directory", "file"])
def test_nothing_is_ever_overwritten(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    if kind == "checkpoint":
        write(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_text("precious")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(OutputInUseError) as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError):  # safetensors refuses tensors that share memory
        save_checkpoint(tmp_path / "c", {"a": shared, "b": shared[:2]}, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_half_written_names_are_cleared_and_nothing_else(checkpoint: Path) -> None:
    scrap = checkpoint.with_name(".checkpoint.writing-4711")
    scrap.mkdir()
    (scrap / "model.safetensors").write_bytes(b"half")
    other = checkpoint.with_name(".hidden")
    other.mkdir()
    remove_unfinished(checkpoint.parent)
    assert not scrap.exists() and other.exists()
    load_checkpoint(checkpoint)


# ---- damage ----


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "training.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "one bit", "missing"])
def test_damage_to_any_file_is_found(name: str, damage: str, checkpoint: Path) -> None:
    file = checkpoint / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        del content[-1:]
    elif damage == "empty":
        content.clear()
    elif damage == "longer":
        content += b"\0"
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if damage == "missing":
        file.unlink()
    refused(checkpoint, name)


def test_another_models_weights_are_found(checkpoint: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 3)}, checkpoint / "model.safetensors")
    refused(checkpoint, "sha256")


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such directory")
    refused(tmp_path, "no manifest.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": 2, "sha256": {"model.safetensors": "", "config.yaml": ""}}',
        '{"format": 1, "sha256": {"model.safetensors": ""}}',
        '{"format": 1, "sha256": ["model.safetensors", "config.yaml"]}',
        '{"format": 1, "sha256": "model.safetensors config.yaml"}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_foreign_manifest_is_refused(text: str, checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(checkpoint, "manifest.json: expected JSON of format 1")


def test_a_huge_manifest_is_not_read(checkpoint: Path) -> None:
    with (checkpoint / "manifest.json").open("r+b") as stream:
        stream.truncate(2**30)
    refused(checkpoint, "below 16 MiB")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", ".", "", "sub/file", "a\0b"])
def test_a_manifest_cannot_name_files_elsewhere(name: str, checkpoint: Path) -> None:
    (checkpoint.parent / "outside").write_text("x")
    (checkpoint / "sub").mkdir()
    (checkpoint / "sub" / "file").write_text("x")
    file = checkpoint / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["sha256"][name] = hashlib.sha256(b"x").hexdigest()
    file.write_text(json.dumps(manifest))
    refused(checkpoint, "plain files beside it")


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "training.pt"])
def test_a_link_in_place_of_a_file_is_refused(name: str, checkpoint: Path) -> None:
    outside = checkpoint.parent / "outside"
    (checkpoint / name).rename(outside)
    (checkpoint / name).symlink_to(outside)
    refused(checkpoint, "plain files beside it")


def test_a_pipe_in_place_of_a_file_does_not_block(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    os.mkfifo(checkpoint / "model.safetensors")
    refused(checkpoint, "plain files beside it")


# ---- pickles ----


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors", ".pkl"])
def test_a_pickle_given_as_a_checkpoint_is_not_opened(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save({"weights": Bomb(tmp_path / "mark")}, file)
    refused(file, "pickles such as .pt and .pth are never opened")
    assert not (tmp_path / "mark").exists()


def bombs(mark: Path) -> dict[str, bytes]:
    """Files that run code when unpickled, plain and as torch writes them, and other rubbish."""
    zipped, legacy = mark.with_name("zip.pt"), mark.with_name("legacy.pt")
    torch.save({"optimizer": Bomb(mark)}, zipped)
    torch.save({"optimizer": Bomb(mark)}, legacy, _use_new_zipfile_serialization=False)
    plain = {f"protocol {protocol}": pickle.dumps(Bomb(mark), protocol) for protocol in range(6)}
    rubbish = {"empty": b"", "text": b"hello", "zeros": bytes(4096), "half": zipped.read_bytes()[:-99]}
    return {**plain, **rubbish, "zipped": zipped.read_bytes(), "legacy": legacy.read_bytes()}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["model.safetensors", "training.pt"])
def test_a_pickle_inside_a_checkpoint_is_refused_and_not_executed(name: str, checkpoint: Path) -> None:
    mark = checkpoint.parent / "mark"
    for kind, content in bombs(mark).items():
        rewrite(checkpoint, name, content)
        refused(checkpoint, name)
        assert not mark.exists(), kind


def test_training_state_is_a_mapping(checkpoint: Path) -> None:
    file = checkpoint.parent / "list.pt"
    torch.save([1, 2], file)
    rewrite(checkpoint, "training.pt", file.read_bytes())
    refused(checkpoint, "training.pt")


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch mark']", "- a list", "a: 1\na: 2", "\0", "a: [1"]
)
def test_a_config_that_is_no_plain_mapping_is_refused(text: str, checkpoint: Path) -> None:
    rewrite(checkpoint, "config.yaml", text.encode())
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        load_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


# ---- weights into a network ----


def test_weights_must_fit_exactly(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    good = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(9)}
    load_weights(module, good, "a.", tmp_path)
    assert torch.equal(module.weight, torch.ones(2, 3))

    faults: dict[str, dict[str, torch.Tensor]] = {
        "missing a.bias": {"a.weight": torch.ones(2, 3)},
        "unexpected a.extra": {**good, "a.extra": torch.ones(1)},
        r"a.weight has shape \(3, 2\) instead of \(2, 3\)": {**good, "a.weight": torch.ones(3, 2)},
        "a.bias is not finite": {**good, "a.bias": torch.tensor([1.0, float("nan")])},
        "a.weight is not finite": {**good, "a.weight": torch.full((2, 3), float("-inf"))},
    }
    for match, tensors in faults.items():
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.raises(CheckpointError, match=match) as caught:
            load_weights(module, tensors, "a.", tmp_path)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_many_faults_stay_one_short_line(tmp_path: Path) -> None:
    module = nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])
    with pytest.raises(CheckpointError, match="and 96 more") as caught:
        load_weights(module, {}, "", tmp_path)
    assert len(str(caught.value)) < 400
