"""Many trainings of agents, tasks by rewards by seeds, and one table of what came of them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tyro

from dr_core.errors import ConfigError
from dr_core.rewards.names import RewardName
from dr_sim.workers import usable_cores

QUICK = ("agent.batch_size=16", "agent.seed_steps=100", "agent.explore_steps=100", "eval_episodes=2")
QUICK_FRAMES = 800
TAIL_LINES = 8

# Asks for SIGTERM at the death of its parent and becomes the command, so that a killed sweep leaves nothing running.
_TIED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Job:
    """One training."""

    task: str
    reward: str
    seed: int
    out: Path

    def __str__(self) -> str:
        return f"{self.task}, {self.reward}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return (self.out / "agent" / "manifest.json").is_file()

    @property
    def log(self) -> Path:
        """What the training said; beside its directory, which is a training's own."""
        return Path(f"{self.out}.log")


class Training(Protocol):
    """A job that was started, here or elsewhere."""

    def poll(self) -> int | None:
        """Exit status; None: it is not over."""

    def terminate(self) -> None:
        """Ask it to stop after the running round."""

    def kill(self) -> None:
        """Stop it now."""


@dataclass(frozen=True)
class Sweep:
    """Train agents on several tasks, from several rewards, with several seeds, and print one table.

    Runs are in OUT/<task>/<reward>/seed_<n>; those that are finished are kept and cut-short ones go on, so that a
    sweep can be interrupted and started again. OUT/table.md holds the table, OUT/curves.png and curves.csv the learning
    curves.
    """

    task: tuple[str, ...]
    """Tasks, as for train-agent."""
    out: Path
    """Directory of the sweep."""
    reward: tuple[RewardName, ...] = ("default", "sparse")
    """Rewards, as for train-agent."""
    seeds: int = 3
    """Seeds 0 to N - 1."""
    frames: int = 200_000
    """Simulator steps of each training."""
    jobs: int = 1
    """Trainings at a time; each uses all cores, so that more than one seldom pays on a small machine. With --ray, as
    many as the cluster has room for."""
    quick: bool = False
    """A few hundred frames each, to try the command: the numbers mean nothing."""
    model: Path | None = None
    """Reward model, for the rewards that need one."""
    viper: Path | None = None
    """VIPER model, for viper and viper_std."""
    experts: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Expert episodes, for amp, and goals for genreward."""
    goal: Path | None = None
    """Goal video for genreward, or a directory with one of each task, as for train-agent."""
    envs: int | None = None
    """Environments side by side in each training; left out: one for each core, with --ray as many as --ray-cpus."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Single overrides of each training, as for train-agent."""
    ray: str | None = None
    """Train on the Ray cluster whose head is at HOST:PORT ("auto": the one this machine is part of)."""
    ray_cpus: int = 2
    """Processor cores of each training on the cluster."""
    ray_gpus: float = 0.0
    """GPUs of each training on the cluster, for example 0.25; without, none is seen."""
    ray_dir: str = "~/.cache/dr_sweep"
    """Directory on each node for trainings under way. If all nodes share it, one that was cut short goes on anywhere,
    otherwise on its node."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.frames, self.jobs, self.ray_cpus) < 1 or self.ray_gpus < 0.0:
            raise ConfigError(
                "sweep",
                expected="--seeds, --frames, --jobs and --ray-cpus of at least 1, --ray-gpus of at least 0",
                found="less",
                next_step="raise them",
            )
        for flag, path in self.inputs():
            if not path.exists():
                raise ConfigError(flag, expected="a path", found=f"nothing at {path}", next_step="correct it")

    def run(self) -> int:
        """Train what is missing, print the table and draw the curves; exit status 1 when a training failed.

        Raises:
            KeyboardInterrupt: after SIGINT or SIGTERM, once all trainings have stopped.
        """
        from dr_core.files import exclusive, keep_settings
        from dr_sim.curves import curves_csv, curves_figure, learning_curves, read_evaluations, table
        from dr_sim.tasks import resolve_task

        tasks = list(dict.fromkeys(resolve_task(name) for name in self.task))
        rewards: list[str] = list(dict.fromkeys(self.reward))
        jobs = [
            Job(task, reward, seed, self.out / task / reward / f"seed_{seed}")
            for task, reward, seed in itertools.product(tasks, rewards, range(self.seeds))
        ]
        with exclusive(self.out):
            # Otherwise trainings that are not comparable could meet in one table.
            keep_settings(self.out / "sweep.yaml", self._settings(), "other frames, models, environments or settings")
            missing = [job for job in jobs if not job.done]
            failed = self._train(missing) if missing else []
            evaluations = [one for job in jobs for one in read_evaluations(job.out, job.task, job.reward, job.seed)]
            text = table(learning_curves(evaluations), tasks, rewards)
            (self.out / "table.md").write_text(text + "\n", encoding="utf-8")
            (self.out / "curves.csv").write_text(curves_csv(evaluations), encoding="utf-8")
            (self.out / "curves.png").write_bytes(curves_figure(evaluations, tasks))
        print(text)
        for job in failed:
            print(f"failed: {job}: see {job.log}", file=sys.stderr)
        return int(bool(failed))

    def inputs(self) -> list[tuple[str, Path]]:
        """What trainings read: option and path."""
        chosen = [("--model", self.model), ("--viper", self.viper), ("--goal", self.goal)]
        chosen += [("--experts", path) for path in itertools.chain(*self.experts)]
        return [(flag, path) for flag, path in chosen if path is not None]

    def words(self, job: Job) -> list[str]:
        """Options of train-agent for this job, but for its inputs and directory."""
        words = ["--task", job.task, "--reward", job.reward, "--seed", str(job.seed)]
        words += ["--frames", str(QUICK_FRAMES if self.quick else self.frames)]
        words += ["--envs", str(self._envs)] if self._envs is not None else []
        overrides = [*(QUICK if self.quick else ()), *itertools.chain(*self.set)]
        return words + [word for text in overrides for word in ("--set", text)]

    @property
    def _envs(self) -> int | None:
        # The nodes of a cluster may differ, and a training goes on only with as many as it began with.
        return self.envs if self.envs is not None or self.ray is None else self.ray_cpus

    def _settings(self) -> dict[str, object]:
        """What all trainings of one directory share."""
        return {
            "frames": QUICK_FRAMES if self.quick else self.frames,
            "quick": self.quick,
            "inputs": [[flag, str(path.resolve())] for flag, path in self.inputs()],
            "envs": self._envs,
            "set": list(itertools.chain(*self.set)),
        }

    def _train(self, jobs: Sequence[Job]) -> list[Job]:
        """Run the trainings here or on the cluster; returns those that failed."""
        if self.ray is None:
            return train_all(jobs, self._start, self.jobs)
        from dr_sim.ray_jobs import Cluster

        with Cluster(self.ray, self.out, self.ray_dir, self.inputs(), self.ray_cpus, self.ray_gpus) as cluster:
            return train_all(jobs, lambda job: cluster.start(job, self.words(job)), len(jobs))

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        paths = [word for flag, path in self.inputs() for word in (flag, str(path))]
        threads = max(1, usable_cores() // self.jobs) if self.jobs > 1 else None
        return start_training([*self.words(job), *paths], job.out, job.log, threads)


def start_training(words: Sequence[str], out: Path, log: Path, threads: int | None = None) -> subprocess.Popen[bytes]:
    """Begin or continue a training in ``out``, with the options ``words``; what it says is added to ``log``.

    On Linux it ends as with SIGTERM when the thread that called this is gone. ``threads`` bounds those of its
    arithmetic, unless OMP_NUM_THREADS says otherwise: trainings side by side would wait for each other's.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dr_core.cli", "train-agent", *words, "--out", str(out), "--resume"]
    if sys.platform == "linux":
        command = [sys.executable, "-c", _TIED, str(os.getpid()), *command]
    with log.open("ab") as stream:
        environment = dict(os.environ)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment)


def train_all(jobs: Sequence[Job], start: Starter, at_a_time: int) -> list[Job]:
    """Run all jobs; returns those that failed, whose last words are printed as they end.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, once all have stopped; a second one kills them.
    """
    from dr_core.stopping import stop_requested

    waiting, failed = deque(jobs), []
    running: dict[Job, Training] = {}
    with stop_requested() as stop:
        try:
            while (waiting or running) and not stop:
                while waiting and len(running) < at_a_time:
                    job = waiting.popleft()
                    print(f"{job}: {len(waiting)} more to come", flush=True)
                    running[job] = start(job)
                time.sleep(0.2)
                for job, status in _ended(running):
                    if status or not job.done:
                        failed.append(job)
                        print(f"{job}: {_last_words(job, status)}", file=sys.stderr, flush=True)
        finally:
            for training in running.values():
                training.terminate()
            if running:
                print("stopping after the running rounds; Ctrl-C again kills", file=sys.stderr, flush=True)
            asked = len(stop)
            while running:
                if len(stop) > asked:
                    asked = len(stop)
                    for training in running.values():
                        training.kill()
                time.sleep(0.1)
                _ended(running)
        if stop:
            raise KeyboardInterrupt("the sweep was stopped; the same command goes on")
    return failed


class Starter(Protocol):
    """Begins or continues a training."""

    def __call__(self, job: Job, /) -> Training: ...


def _ended(running: dict[Job, Training]) -> list[tuple[Job, int]]:
    """Take those that are over out of ``running``; with their exit status."""
    over = [(job, status) for job, training in running.items() if (status := training.poll()) is not None]
    for job, _ in over:
        del running[job]
    return over


def _last_words(job: Job, status: int) -> str:
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines() if job.log.is_file() else []
    tail = "".join(f"\n    {line}" for line in lines[-TAIL_LINES:])
    return f"failed with exit status {status}; the end of {job.log}:{tail}"
