"""Commands ``dr score``, ``dr study discrimination`` and ``dr report``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dr_core.errors import ConfigError, OutputInUseError


@dataclass(frozen=True)
class Score:
    """Write the reward of every frame of recordings: a table, and a picture and a video for each."""

    bags: Positional[tuple[Path, ...]]
    """Bags, videos, or directories that hold some."""
    model: Path
    """Directory of the reward model, RUN/model."""
    out: Path
    """Directory to create."""
    estimator: str | None = None
    """How the reward is computed; left out: as the model was trained for."""
    task: str | None = None
    """Training task whose statistics standardise the rewards; left out: the task each bag names."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda, ..."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the video model; bfloat16 is faster and moves the rewards a little (docs/performance.md)."""
    codec_precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the codec's encoder; bfloat16 is faster, but gives some places of a frame other codes."""

    def run(self) -> int:
        """Score everything, or write nothing."""
        from rich.console import Console
        from rich.progress import Progress

        from dr_core.data.episodes import find_episodes
        from dr_core.rewards.model import RewardModel
        from dr_core.study.scoring import score

        with _new_directory(self.out) as folder:
            paths = find_episodes(self.bags)
            model = RewardModel.load(
                self.model, self.device, precision=self.precision, codec_precision=self.codec_precision
            )
            console = Console(stderr=True)
            with Progress(console=console) as progress:
                bar = progress.add_task("score recordings", total=len(paths))
                score(
                    model,
                    paths,
                    folder,
                    estimator=self.estimator,
                    task=self.task,
                    progress=lambda done, total: progress.update(bar, completed=done, total=total),
                    note=lambda text: console.print(f"note: {text}", markup=False, soft_wrap=True),
                )
        print(f"rewards of {len(paths)} recordings: {self.out}")
        return 0


@dataclass(frozen=True)
class StudyDiscrimination:
    """Measure how well a reward tells experts from worse behaviour, on recordings it was not trained on."""

    episodes: tuple[Path, ...]
    """Test recordings of known quality (0, 25, 50, 100 per cent random), or directories that hold some. With --full:
    one directory that holds expert/, background/ and test/."""
    out: Path
    """Directory to create; the report looks for RUN/study. With --full an interrupted study goes on in it."""
    model: Path | None = None
    """Directory of the reward model, RUN/model."""
    full: bool = False
    """Train and compare the default, the published method and its corrections one by one (docs/reward.md)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """With --full: seeds of the trainings."""
    arms: tuple[str, ...] = ()
    """With --full: what to train now; left out: everything."""
    codec_steps: int | None = None
    """With --full: length of each codec training; left out: that of the default preset."""
    video_steps: int | None = None
    """With --full: length of each video-model training; left out: that of the default preset."""
    estimators: tuple[str, ...] = ()
    """Estimators to compare, the one to judge first; left out: the model's own."""
    seed: int = 0
    """Seed of the bootstrap and of the shuffled clips."""
    thin: int = 1
    """Score only every n-th frame with the estimators after the first: the published one is slow on a CPU."""
    allow_other_camera: bool = False
    """Accept recordings made with other camera or render settings than the model's."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda, ..."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the video model; bfloat16 is faster and moves the rewards a little (docs/performance.md)."""
    codec_precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the codec's encoder; bfloat16 is faster, but gives some places of a frame other codes."""

    def run(self) -> int:
        """Run the study, write its files, and print its tables; missed targets do not change the exit status."""
        if self.full:
            return self._run_full()
        if self.model is None:
            raise ConfigError(
                "dr study discrimination",
                expected="--model RUN/model, or --full to train what is compared",
                found="neither",
                next_step="see dr study discrimination --help",
            )
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        from dr_core.data.episodes import find_episodes
        from dr_core.rewards.model import RewardModel
        from dr_core.study import discrimination
        from dr_core.study.tables import show

        with _new_directory(self.out) as folder:
            paths = find_episodes(self.episodes)
            model = RewardModel.load(
                self.model, self.device, precision=self.precision, codec_precision=self.codec_precision
            )
            columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, console=Console(stderr=True)) as progress:
                bars = {}

                def advance(what: str, done: int, total: int) -> None:
                    if what not in bars:
                        bars[what] = progress.add_task(what, total=total)
                    progress.update(bars[what], completed=done)

                study = discrimination.run(
                    model,
                    paths,
                    estimators=self.estimators or (model.config.estimator.name,),
                    seed=self.seed,
                    allow_other_camera=self.allow_other_camera,
                    thin=self.thin,
                    progress=advance,
                )
            study.results["command"] = {
                "model": str(self.model),
                "device": self.device,
                "precision": self.precision,
                "codec_precision": self.codec_precision,
            }
            discrimination.write(study, folder)
        # A file or a pipe has no width of its own: give the table what it needs.
        show(study.results, Console(width=None if sys.stdout.isatty() else 160))
        print(f"results: {self.out}")
        return 0

    def _run_full(self) -> int:
        from dr_core.study import full

        known = full.arms(self.codec_steps, self.video_steps)
        wrong = [name for name in self.arms if name not in known]
        if len(self.episodes) != 1 or self.model is not None or wrong:
            raise ConfigError(
                "dr study discrimination --full",
                expected=f"one --episodes directory, no --model, and --arms among {', '.join(map(repr, known))}",
                found=f"{len(self.episodes)} directories, model {self.model}, arms {', '.join(map(repr, self.arms))}",
                next_step="see docs/reward.md",
            )
        summary = full.run(
            self.episodes[0],
            self.out,
            seeds=self.seeds,
            only=self.arms,
            codec_steps=self.codec_steps,
            video_steps=self.video_steps,
            device=self.device,
        )
        for line in full.verdict_lines(summary):
            print(line)
        print(f"report: {self.out / full.REPORT}")
        return 0


@dataclass(frozen=True)
class Report:
    """Write one HTML page about a training run and its study; it needs no other file and no network."""

    run_directory: Positional[Path]
    """Directory of the run, which holds metrics.jsonl, model/ and study/."""
    out: Path | None = None
    """The page; left out: report.html in the run directory. An earlier report is replaced, any other file is kept."""

    def run(self) -> int:
        """Write the page from what is on disk; what is missing is named in it."""
        from dr_core.study.report import write_report

        out = self.out or self.run_directory / "report.html"
        write_report(self.run_directory, out)
        print(f"report: {out}")
        return 0


@contextmanager
def _new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        OutputInUseError: something is at ``path``.
    """
    in_use = OutputInUseError(
        str(path), expected="a name that is free", found="existing files", next_step="give another --out, or remove it"
    )
    if os.path.lexists(path):
        raise in_use
    building = path.with_name(f".{path.name}.writing-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if os.path.lexists(path):
            raise in_use
        building.rename(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
