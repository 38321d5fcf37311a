"""The command ``dr train-reward``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class TrainReward:
    """Learn a reward from recorded expert episodes (bags or videos)."""

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
    resume: bool = False
    """Continue a run that was stopped or killed."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> int:
        """Train; exit status 0 when the model is written."""
        from dr_core.config import load_yaml, override, parse_set
        from dr_core.presets import PRESETS
        from dr_core.rewards.train import train_reward
        from dr_core.seeding import choose_device

        # Merged before they are applied: settings that only fit together may come in any order.
        overrides = {} if self.config is None else load_yaml(self.config)
        for text in itertools.chain(*self.set):
            overrides = _merged(overrides, parse_set(text))
        train_reward(
            override(PRESETS[self.preset](), overrides),
            self.experts,
            tuple(itertools.chain(*self.background)),
            self.out,
            resume=self.resume,
            device=choose_device(self.device),
        )
        return 0


def _merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the values of ``more`` in their place, level by level."""
    merged = dict(settings)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
