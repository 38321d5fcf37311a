"""Many trainings of agents, tasks by rewards by seeds, and one table of what came of them."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from dr_core.errors import ConfigError
from dr_sim.agent_commands import RewardName

QUICK = ("agent.batch_size=16", "agent.seed_steps=100", "agent.explore_steps=100", "eval_episodes=2")
QUICK_FRAMES = 800


@dataclass(frozen=True)
class Job:
    """One training."""

    task: str
    reward: str
    seed: int
    out: Path

    @property
    def done(self) -> bool:
        return (self.out / "agent" / "manifest.json").is_file()


@dataclass(frozen=True)
class Sweep:
    """Train agents on several tasks, from several rewards, with several seeds, and print one table.

    Runs are in OUT/<task>/<reward>/seed_<n>; those that are finished are kept and cut-short ones go on, so that a
    sweep can be interrupted and started again. OUT/table.md holds the table.
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
    """Trainings at a time; each uses all cores, so that more than one seldom pays on a small machine."""
    quick: bool = False
    """A few hundred frames each, to try the command: the numbers mean nothing."""
    model: Path | None = None
    """Reward model, for the rewards that need one."""
    viper: Path | None = None
    """VIPER model, for viper and viper_std."""
    experts: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Expert episodes, for amp."""
    envs: int | None = None
    """Environments side by side in each training; left out: one for each core."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Single overrides of each training, as for train-agent."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.frames, self.jobs) < 1:
            raise ConfigError(
                "sweep", expected="--seeds, --frames and --jobs of at least 1", found="less", next_step="raise them"
            )

    def run(self) -> int:
        """Train what is missing and print the table; exit status 1 when a training failed."""
        from dr_core.files import exclusive
        from dr_sim.tasks import resolve_task

        tasks = [resolve_task(name) for name in self.task]
        jobs = [
            Job(task, reward, seed, self.out / task / reward / f"seed_{seed}")
            for task, reward, seed in itertools.product(tasks, self.reward, range(self.seeds))
        ]
        with exclusive(self.out):
            failed = self._train([job for job in jobs if not job.done])
            text = table(jobs)
            (self.out / "table.md").write_text(text + "\n", encoding="utf-8")
        print(text)
        for job in failed:
            print(f"failed: {job.out}: see {job.out}.log", file=sys.stderr)
        return int(bool(failed))

    def _train(self, jobs: Sequence[Job]) -> list[Job]:
        """Run the trainings, ``self.jobs`` at a time; returns those that failed."""
        waiting, failed = list(jobs), []
        running: dict[Job, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    job = waiting.pop(0)
                    print(f"{job.task}, {job.reward}, seed {job.seed}: {len(waiting)} more to come", flush=True)
                    running[job] = self._start(job)
                for job, process in list(running.items()):
                    try:
                        status = process.wait(0.2)
                    except subprocess.TimeoutExpired:
                        continue
                    del running[job]
                    failed += [job] if status else []
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        return failed

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        job.out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dr_core.cli", "train-agent", "--task", job.task, "--reward", job.reward]
        command += ["--seed", str(job.seed), "--out", str(job.out), "--resume"]
        command += ["--frames", str(QUICK_FRAMES if self.quick else self.frames)]
        chosen = {"--model": self.model, "--viper": self.viper, "--envs": self.envs}
        command += [word for name, value in chosen.items() if value is not None for word in (name, str(value))]
        command += [word for path in itertools.chain(*self.experts) for word in ("--experts", str(path))]
        overrides = [*(QUICK if self.quick else ()), *itertools.chain(*self.set)]
        command += [word for text in overrides for word in ("--set", text)]
        with Path(f"{job.out}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)


def table(jobs: Sequence[Job]) -> str:
    """Success of the last evaluation of each task and reward, mean over seeds, as Markdown."""
    rewards = list(dict.fromkeys(job.reward for job in jobs))
    lines = [["task", *rewards], ["---"] * (len(rewards) + 1)]
    for task in dict.fromkeys(job.task for job in jobs):
        cells = []
        for reward in rewards:
            rates = list(_last([job for job in jobs if (job.task, job.reward) == (task, reward)]))
            cells.append(_cell(rates))
        lines.append([task, *cells])
    note = "Success rate of the last evaluation, mean over seeds; ± 95 % interval of that mean (Student's t); n: seeds."
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines]) + f"\n\n{note}"


def _last(jobs: Sequence[Job]) -> Iterator[float]:
    for job in jobs:
        file = job.out / "evaluations.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        if lines:
            yield float(json.loads(lines[-1])["success"])


def _cell(rates: Sequence[float]) -> str:
    if not rates:
        return "not measured"
    mean, n = sum(rates) / len(rates), len(rates)
    if n == 1:
        return f"{mean:.0%} (n = 1)"
    from scipy import stats

    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (n - 1))
    return f"{mean:.0%} ± {100 * stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n):.0f} (n = {n})"
