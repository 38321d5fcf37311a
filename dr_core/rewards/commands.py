"""Commands ``dr train-reward``, ``dr import-checkpoint`` and ``dr parity``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class TrainReward:
    """Learn a reward from recorded expert episodes (bags or videos).

    On several GPUs or machines: torchrun --standalone --nproc-per-node 2 -m dr_core.cli train-reward ...
    """

    experts: tyro.conf.Positional[tuple[Path, ...]]
    """Expert episodes: bags, video files, or directories of them."""
    out: Path
    """Directory of the run: curves, checkpoints, and in the end the reward model in OUT/model."""
    background: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Episodes of other behaviour (random, failures, free motion); the default reward compares with them."""
    preset: Literal["default", "paper", "tiny"] = "default"
    """default: minutes on a CPU; paper: the published model (a GPU, hours); tiny: seconds, to try the command."""
    config: Path | None = None
    """YAML file with overrides of the preset."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Single overrides, for example --set video_training.steps=2000 seed=1."""
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Reward model of the same model settings to go on from: its codec is kept, its video model trained further."""
    mixed_calibrations: bool = False
    """Accept recordings of several calibrations of the camera; the live reward then accepts each of them."""
    resume: bool = False
    """Continue a run that was stopped or killed."""
    device: str = "auto"
    """cpu, cuda, or auto; with torchrun, each process takes the GPU of its LOCAL_RANK."""

    def run(self) -> int:
        """Train; exit status 0 when the model is written."""
        from dr_core.config import load_yaml, override, parse_set
        from dr_core.distributed import join
        from dr_core.presets import PRESETS
        from dr_core.rewards.train import train_reward
        from dr_core.seeding import choose_device

        with join() as team:
            # Merged before they are applied: settings that only fit together may come in any order.
            overrides = {} if self.config is None else load_yaml(self.config)
            for text in itertools.chain(*self.set):
                overrides = _merged(overrides, parse_set(text))
            train_reward(
                override(PRESETS[self.preset](), overrides),
                self.experts,
                tuple(itertools.chain(*self.background)),
                self.out,
                start=self.start,
                mixed_calibrations=self.mixed_calibrations,
                resume=self.resume,
                device=team.take_device(choose_device(self.device)),
                team=team,
            )
        return 0


@dataclass(frozen=True)
class ImportCheckpoint:
    """Make a reward model of published Diffusion Reward weights; the files are read as tensors, never executed."""

    codec: tyro.conf.Positional[Path]
    """Published codec, vqgan.pt."""
    video: tyro.conf.Positional[Path]
    """Published video model, a .pth file with the entries model and, as a rule, ema."""
    out: Path
    """Directory of the reward model to create."""
    experts: tuple[Path, ...] = ()
    """Expert episodes whose rewards standardise those of their tasks; without any, rewards stay raw, in nats."""
    device: str = "auto"
    """Where the rewards of the experts are computed: cpu, cuda, or auto."""

    def run(self) -> int:
        """Convert; exit status 0 when the model is written."""
        from dr_core.published import import_checkpoint
        from dr_core.seeding import choose_device

        lines = import_checkpoint(self.codec, self.video, self.out, self.experts, device=choose_device(self.device))
        print("\n".join(lines))
        return 0


@dataclass(frozen=True)
class Parity:
    """Recompute stored numbers of the published implementation and compare; exit status 1 when one is off."""

    vectors: tyro.conf.Positional[Path]
    """File of stored numbers (.npz); dr_core/parity.py lists its entries."""
    salt: str
    """What the weights of both sides are filled with; "open/" for tests/data/golden_open.npz."""

    def run(self) -> int:
        """Compare and print one line per figure."""
        from rich.console import Console
        from rich.progress import Progress

        from dr_core.parity import compare_vectors, read_vectors

        vectors = read_vectors(self.vectors)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("compare frames", total=None)
            checks = compare_vectors(
                vectors, self.salt, lambda done, total: progress.update(bar, completed=done, total=total)
            )
        width = max(len(check.name) for check in checks)
        print(f"{'figure':<{width}}  {'error':>9}  tolerance")
        for check in checks:
            state = "ok" if check.passed else "OUT OF TOLERANCE"
            note = f" ({check.note})" if check.note else ""
            print(f"{check.name:<{width}}  {check.error:>9.3g}  {check.tolerance:>9.3g}  {state}{note}")
        if vectors.unknown:
            print(f"not compared, for their names are unknown: {', '.join(vectors.unknown)}")
        return 0 if all(check.passed for check in checks) else 1


def _merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the values of ``more`` in their place, level by level."""
    merged = dict(settings)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


@dataclass(frozen=True)
class TrainViper:
    """Train VIPER, an autoregressive video model, as a baseline reward on the codes of a reward model's codec."""

    experts: tyro.conf.Positional[tuple[Path, ...]]
    """Expert episodes: bags, video files, or directories of them."""
    model: Path
    """Reward model whose codec makes the codes."""
    out: Path
    """Directory of the run; the model is in OUT/model."""
    preset: Literal["default", "paper", "tiny"] = "default"
    """default: minutes on a CPU; paper: the published size; tiny: seconds, to try the command."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Single overrides of the preset."""
    resume: bool = False
    """Continue a run that was stopped or killed."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> int:
        """Train; exit status 0 when the model is written."""
        from dr_core.config import override, parse_set
        from dr_core.rewards.model import RewardModel
        from dr_core.rewards.viper import PRESETS, ViperModel
        from dr_core.seeding import choose_device

        config = PRESETS[self.preset]
        for text in itertools.chain(*self.set):
            config = override(config, parse_set(text))
        device = choose_device(self.device)
        model = RewardModel.load(self.model, device)
        path = ViperModel.train(model, self.experts, self.out, config=config, resume=self.resume, device=device)
        print(f"VIPER: {path}")
        return 0
