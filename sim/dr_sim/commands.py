"""Commands of the simulator. Heavy imports happen inside `run`, so that help stays quick."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dr_core.errors import ConfigError
from dr_sim.workers import usable_cores

if TYPE_CHECKING:
    from dr_sim.record import Group


@dataclass(frozen=True)
class RecordExpert:
    """Record episodes of scripted experts, pure or diluted by random actions, one bag an episode.

    Bags are written to OUT/<task>/q<quality>/episode_<seed>. Episodes that are there already are skipped, so
    an interrupted recording goes on where it stopped. Ctrl-C ends after the running episodes.
    """

    task: tuple[str, ...]
    """Meta-World v3 tasks ("door-close dial-turn"), "adroit-door", "adroit-hammer", "adroit-pen", or "panda-push"."""
    out: Path
    """Directory of the recordings."""
    episodes: int = 20
    """Episodes of each task and quality. Pure experts are recorded until this many succeeded."""
    quality: tuple[int, ...] = (0,)
    """Per cent of agent steps replaced by random actions: 0 is the pure expert, 100 pure noise."""
    seed: int = 0
    """Seed of the first episode; the others count up. Test sets need seeds that no training set used."""
    workers: int = field(default_factory=usable_cores)
    """Simulating processes; more than there are cores is slower."""
    size: int = 64
    """Width and height of the frames in pixels."""
    adroit_weights: Path | None = None
    """Directory with door_policy.npz, hammer_policy.npz, pen_policy.npz: the experts of the Adroit tasks."""

    def __post_init__(self) -> None:
        for name, value, low in (
            ("episodes", self.episodes, 1),
            ("seed", self.seed, 0),
            ("workers", self.workers, 1),
        ):
            if value < low:
                raise ConfigError(f"--{name}", expected=f"at least {low}", found=str(value), next_step="raise it")
        if not self.task or not self.quality:
            raise ConfigError("--task, --quality", expected="at least one each", found="none", next_step="name one")
        for quality in self.quality:
            if not 0 <= quality <= 100:
                raise ConfigError("--quality", expected="0 to 100", found=str(quality), next_step="change it")

    def run(self) -> int:
        """Record; exit status 1 where an expert fails too often to reach the wanted number of successes."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from dr_sim.environments import default_render, make_expert
        from dr_sim.record import record
        from dr_sim.rendering import select_backend
        from dr_sim.tasks import ADROIT_TASKS, resolve_task

        tasks = list(dict.fromkeys(resolve_task(name) for name in self.task))
        qualities = list(dict.fromkeys(self.quality))
        renders = {task: default_render(task, size=self.size) for task in tasks}
        for task in tasks:
            if task in ADROIT_TASKS:
                make_expert(task, self.adroit_weights)
        select_backend()

        total, steps, started = self.episodes * len(tasks) * len(qualities), 0, time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("starting", total=total)

            def on_episode(groups: Sequence[Group], group: Group, new_steps: int) -> None:
                nonlocal steps
                steps += new_steps
                label = f"{group.task} q{group.quality}  {steps / (time.monotonic() - started):.0f} steps/s"
                progress.update(bar, completed=sum(item.reached for item in groups), description=label)

            groups = record(
                tasks,
                qualities,
                episodes=self.episodes,
                seed=self.seed,
                out=self.out,
                workers=self.workers,
                renders=renders,
                adroit_weights=self.adroit_weights,
                on_episode=on_episode,
            )
        for group in groups:
            print(summary(group, self.out))
        return 0 if all(group.complete for group in groups) else 1


def summary(group: Group, out: Path) -> str:
    """One line for a task and quality, and one for each recording that a killed run left unfinished."""
    lines = [
        f"{group.task} q{group.quality}: {group.recorded} recorded, {group.skipped} skipped (already there), "
        f"{group.successes} succeeded, {group.failures} failed"
    ]
    if not group.complete:
        lines.append(f"  the expert failed too often: {group.successes} of {group.wanted} successes")
    for path in group.leftovers:
        name = path.name.removeprefix(".").removesuffix(".recording")
        lines.append(f"  unfinished, from a killed run: dr bag repair {path} --out {out / 'repaired' / name}")
    return "\n".join(lines)
