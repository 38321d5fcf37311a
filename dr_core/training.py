"""One resumable training loop for every network of the package.

A stage says what one optimiser step does; this loop adds progress, curves, checkpoints and a clean stop. Each step
draws its randomness from a generator derived from (seed, stage, step), so a resumed run repeats the uninterrupted one
exactly, also with another number of processes (``dr_core.distributed``) but for the order of sums.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dr_core.checkpoint import MANIFEST, load_checkpoint, load_weights, remove_unfinished, save_checkpoint
from dr_core.distributed import ALONE, Team
from dr_core.errors import CheckpointError, UserError
from dr_core.stopping import stop_requested

METRICS = "metrics.jsonl"


class Stage(Protocol):
    """What is trained: one network (or a network and its discriminator) with its optimiser."""

    name: str
    steps: int

    def step(self, index: int) -> dict[str, Tensor]:
        """Do optimiser step ``index`` (from 0) and return scalar tensors to log; no host synchronisation inside.

        What is logged is of the whole batch, the same on every process.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Every weight and buffer."""

    def training_state(self) -> dict[str, Any]:
        """Optimiser states: tensors and plain numbers only."""

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Take back what ``tensors`` and ``training_state`` gave."""


class Metrics:
    """Curves: one JSON object per step in ``metrics.jsonl``, and TensorBoard scalars under ``tensorboard/``."""

    def __init__(self, path: Path) -> None:
        self._file = path / METRICS
        self._stream = self._file.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(path / "tensorboard"))

    def forget_after(self, stage: str, step: int) -> None:
        """Drop the lines of ``stage`` past ``step`` (and a torn last line): they are about to be written again."""
        self._stream.close()
        kept = [json.dumps(r) + "\n" for r in read_metrics(self._file) if r["stage"] != stage or r["step"] <= step]
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._file)
        self._stream = self._file.open("a", encoding="utf-8")

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Add one step."""
        self._stream.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)

    def flush(self) -> None:
        """Hand what is written to the operating system."""
        self._stream.flush()
        self._board.flush()

    def close(self) -> None:
        """Flush and close both."""
        self._stream.close()
        self._board.close()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a ``metrics.jsonl``; a last line torn by a kill is left out."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def train(
    stage: Stage,
    run: Path,
    metrics: Metrics | None,
    *,
    log_every: int = 10,
    checkpoint_every_s: float = 30.0,
    team: Team = ALONE,
) -> None:
    """Train ``stage`` to its last step, from its newest whole checkpoint under ``run/<stage>/`` if there is one.

    Args:
        stage: what to train.
        run: a directory this process, or rank 0 of its team, holds (``files.run_directory``).
        metrics: where the curves go; None on all processes but rank 0.
        log_every: steps between fetches of the losses from the device (all of them are logged).
        checkpoint_every_s: seconds between checkpoints.
        team: the processes that train together; rank 0 writes, all read ``run``.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, once the step is done and the checkpoint written. All processes
            stop after the same step, whichever of them got the signal.
        UserError: the loss is not finite; no checkpoint holds what follows from it.
    """
    folder = run / stage.name
    done = _restore_newest(stage, folder, team)
    if metrics is not None:
        metrics.forget_after(stage.name, done)
    pending: list[tuple[int, dict[str, Tensor]]] = []
    last_save = time.monotonic()

    def log() -> None:
        for step, tensors in pending:
            values = {name: float(value) for name, value in tensors.items()}
            if not math.isfinite(values["loss"]):
                raise UserError(
                    f"{stage.name} step {step}",
                    expected="a finite loss",
                    found=str(values["loss"]),
                    next_step="train anew with a lower learning_rate",
                )
            if metrics is not None:
                metrics.write(stage.name, step, values)
        pending.clear()
        if metrics is not None:
            metrics.flush()

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("loss {task.fields[loss]}"),
    )  # fmt: skip
    with stop_requested() as stop, Progress(*columns, disable=not team.is_first) as progress:
        bar = progress.add_task(f"train {stage.name}", total=stage.steps, completed=done, loss="-")
        for index in range(done, stage.steps):
            values = stage.step(index)
            pending.append((index + 1, values))
            # Read once: a signal that arrives below is for the next step.
            stopping = team.agree_to_stop(bool(stop))
            last = index + 1 == stage.steps
            if last or stopping or len(pending) >= log_every:
                shown = float(values["loss"])
                log()
                progress.update(bar, completed=index + 1, loss=f"{shown:.4g}")
            if team.is_first and (last or stopping or time.monotonic() - last_save > checkpoint_every_s):
                log()
                _save(stage, folder, index + 1)
                last_save = time.monotonic()
            if stopping:
                team.wait()  # for the checkpoint: torchrun kills what outlives the first of its processes by 30 s
                raise KeyboardInterrupt(f"stopped after step {index + 1} of {stage.name}; continue with --resume")
        if team.agree_to_stop(bool(stop)):  # it came while the last checkpoint was written
            raise KeyboardInterrupt(f"stopped at the end of {stage.name}; continue with --resume")


def _save(stage: Stage, folder: Path, step: int) -> None:
    """Write ``step_N`` whole, then drop the older ones."""
    older = _whole_checkpoints(folder)
    path = folder / f"step_{step:08d}"
    save_checkpoint(path, stage.tensors(), {"stage": stage.name}, {"step": step}, stage.training_state())
    for old in older:
        shutil.rmtree(old)


def _whole_checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*") if (p / MANIFEST).is_file()) if folder.exists() else []


def newest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a stage.

    Raises:
        CheckpointError: there is none.
    """
    found = _whole_checkpoints(folder)
    if not found:
        raise CheckpointError(
            str(folder), expected="a checkpoint step_N", found="none", next_step="train this stage first"
        )
    return found[-1]


def _clear(folder: Path) -> int:
    """Remove what is no whole checkpoint; return how many are left."""
    remove_unfinished(folder)
    whole = _whole_checkpoints(folder)
    for scrap in set(folder.glob("step_*")) - set(whole):
        shutil.rmtree(scrap)
    return len(whole)


def _restore_newest(stage: Stage, folder: Path, team: Team) -> int:
    step = _restore(stage, newest_checkpoint(folder)) if team.from_first(lambda: _clear(folder)) else 0
    next_step = "use the same PyTorch and one shared --out on all machines"
    team.require_same(f"weights of {stage.name} at step {step}", lambda: _digest(stage.tensors()), next_step)
    return step


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    """sha256 of the values, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].detach().cpu().contiguous().numpy().data)
    return digest.digest()


def _restore(stage: Stage, path: Path) -> int:
    """Take the checkpoint back; returns its step."""
    checkpoint = load_checkpoint(path)
    try:
        stage.restore(checkpoint.tensors, checkpoint.training or {}, checkpoint.path)
        return int(checkpoint.manifest["step"])
    except (KeyError, ValueError, TypeError) as error:  # torch's refusals of a foreign optimiser state
        raise CheckpointError(
            str(checkpoint.path),
            expected=f"the training state of the stage {stage.name}",
            found=repr(error),
            next_step="start the training anew",
        ) from error


class ExponentialAverage:
    """Exponential moving average of a module's parameters, updated every ``every`` steps."""

    def __init__(self, module: nn.Module, decay: float, every: int) -> None:
        self.decay, self.every = decay, every
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Call after each optimiser step; ``step`` counts from 1."""
        if step % self.every:
            return
        updates = step // self.every - 1  # the first update copies: nothing of the random start stays
        decay = min(self.decay, updates / (updates + 10))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)

    def restore(self, tensors: Mapping[str, Tensor], prefix: str, module: nn.Module, where: Path) -> None:
        """Take the average back from ``tensors[prefix + name]``; ``module`` gives the expected names and shapes."""
        live = {name: value.clone() for name, value in module.state_dict().items()}
        load_weights(module, tensors, prefix, where)
        self.shadow = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(live)
