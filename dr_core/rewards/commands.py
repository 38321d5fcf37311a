"""The command ``dr train-reward``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class TrainReward:
    """Learn a reward from recorded expert episodes (bags or videos)."""

    experts: tyro.conf.Positional[tuple[Path, ...]]
    """Expert episodes: bags, video files, or directories of them."""
    out: Path
    """Directory of the run: curves, checkpoints, and in the end the reward model in OUT/model."""
    background: tuple[Path, ...] = ()
    """Episodes of other behaviour (random, failures, free motion); the default reward compares with them."""
    preset: Literal["default", "paper", "tiny"] = "default"
    """default: minutes on a CPU; paper: the published model (a GPU, hours); tiny: seconds, to try the command."""
    config: Path | None = None
    """YAML file with overrides of the preset."""
    set: tuple[str, ...] = ()
    """Single overrides, for example --set video_training.steps=2000 seed=1."""
    resume: bool = False
    """Continue a run that was stopped or killed."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    def run(self) -> int:
        """Train; exit status 0 when the model is written."""
        from dr_core.config import load_yaml, override, parse_set
        from dr_core.data.episodes import find_episodes
        from dr_core.presets import PRESETS
        from dr_core.rewards.train import train_reward
        from dr_core.seeding import choose_device

        config = PRESETS[self.preset]()
        if self.config is not None:
            config = override(config, load_yaml(self.config))
        for text in self.set:
            config = override(config, parse_set(text))
        train_reward(
            config,
            find_episodes(self.experts),
            find_episodes(self.background) if self.background else [],
            self.out,
            resume=self.resume,
            device=choose_device(self.device),
        )
        return 0
