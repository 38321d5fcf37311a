"""Recording of expert episodes: one bag an episode, several tasks and qualities at once, resumable.

Layout: OUT/<task>/q<quality>/episode_<seed>. The parent process plans and counts; worker processes simulate
and write.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter, read_metadata
from dr_core.errors import OutputInUseError, UserError
from dr_core.files import exclusive
from dr_core.stopping import stop_requested
from dr_sim.environment import SimulatedEnvironment
from dr_sim.environments import make_environment, make_expert
from dr_sim.experts import MixedPolicy
from dr_sim.rendering import RenderSettings
from dr_sim.tasks import METAWORLD_TASKS
from dr_sim.workers import start_worker

EPOCH_NS = 1_000_000_000
"""Stamp of the first frame: simulated time counts from one second, since a zero stamp means "not set"."""


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to record. `task` is a resolved name, `quality` the per cent of random actions."""

    task: str
    quality: int
    seed: int
    render: RenderSettings
    path: Path
    adroit_weights: Path | None


@dataclass(frozen=True)
class EpisodeResult:
    """What a worker reports: agent steps simulated, and the four parts of a user error, if any."""

    success: bool
    steps: int
    error: tuple[str, str, str, str] | None = None


@dataclass
class Group:
    """Progress of one task at one quality."""

    task: str
    quality: int
    wanted: int
    next_seed: int
    recorded: int = 0
    skipped: int = 0
    successes: int = 0
    failures: int = 0
    leftovers: list[Path] = field(default_factory=list)

    @property
    def reached(self) -> int:
        """Episodes that count towards `wanted`: successes of pure experts, any episodes of diluted ones."""
        return self.successes if self.quality == 0 else self.recorded + self.skipped

    @property
    def complete(self) -> bool:
        """Whether the wanted number is there."""
        return self.reached >= self.wanted

    @property
    def hopeless(self) -> bool:
        """An expert that fails this often is not one; more seeds would not help."""
        return self.quality == 0 and self.failures >= 10 + 2 * self.wanted


def episode_path(out: Path, task: str, quality: int, seed: int) -> Path:
    """Directory of an episode's bag."""
    return out / task / f"q{quality}" / f"episode_{seed}"


def record(
    tasks: Sequence[str],
    qualities: Sequence[int],
    *,
    episodes: int,
    seed: int,
    out: Path,
    workers: int,
    renders: dict[str, RenderSettings],
    adroit_weights: Path | None,
    on_episode: Callable[[Sequence[Group], Group, int], None],
) -> list[Group]:
    """Record what is missing below `out` and return one `Group` for each task and quality.

    Pure experts (quality 0) are recorded until `episodes` of them succeeded; failures are kept as such. For
    other qualities exactly `episodes` are recorded, whatever their outcome. Seeds count up from `seed`. After
    SIGINT or SIGTERM the running episodes finish, so that only whole bags are left, then KeyboardInterrupt is raised.

    Args:
        tasks: resolved names.
        renders: settings of each task.
        on_episode: called after each episode with all groups, its own, and the agent steps it took (0:
        skipped).

    Raises: OutputInUseError: another run writes to `out`, or an episode there was made with other settings.
        UserError: a worker died or could not write.
    """
    groups = [Group(task, quality, episodes, seed) for task in tasks for quality in qualities]
    with exclusive(out), stop_requested() as stop, _worker_pool(workers) as pool:
        running: dict[Future[EpisodeResult], Group] = {}

        def advance(group: Group) -> None:
            """Take the group's next seed: count it if its bag is there, else hand it to a worker."""
            job_seed = group.next_seed
            group.next_seed += 1
            path = episode_path(out, group.task, group.quality, job_seed)
            job = EpisodeJob(group.task, group.quality, job_seed, renders[group.task], path, adroit_weights)
            if path.exists():
                group.skipped += 1
                count(group, _existing_success(job), 0)
            else:
                running[pool.submit(_work, job)] = group

        def count(group: Group, success: bool, steps: int) -> None:
            group.successes += success
            group.failures += not success
            on_episode(groups, group, steps)
            if group.quality == 0 and not success and not group.hopeless:
                advance(group)

        for group in groups:
            group.leftovers = find_leftovers(episode_path(out, group.task, group.quality, 0).parent)
            for _ in range(episodes):
                advance(group)
        while running:
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if stop:
                raise KeyboardInterrupt
            for future in done:
                group = running.pop(future)
                result = future.result()
                if result.error is not None:
                    what, expected, found, next_step = result.error
                    raise UserError(what, expected=expected, found=found, next_step=next_step)
                group.recorded += 1
                count(group, result.success, result.steps)
    return groups


def record_episode(env: SimulatedEnvironment, job: EpisodeJob) -> EpisodeResult:
    """Simulate `job` and write its bag: frame 0, then one frame an agent step.

    The episode ends one frame after the first success, or when its time is over. Frame k, and action k that
    was computed from it, carry the stamp `EPOCH_NS` + k / rate.
    """
    rng = np.random.default_rng([job.seed, job.quality])
    policy = MixedPolicy(make_expert(job.task, job.adroit_weights), job.quality, env.action_size, rng)
    observation = env.reset(job.seed)
    success, steps, last_step = False, 0, env.episode_steps
    with _staged(job.path) as path, EpisodeWriter(path, _metadata(env, job)) as writer:
        while True:
            stamp_ns = EPOCH_NS + round(steps * 1e9 / env.rate_hz)
            writer.write_image(stamp_ns, observation["image"])
            writer.write_camera_info(stamp_ns, *job.render.frame_size, env.camera_matrix(), np.zeros(5))
            writer.write_joint_state(stamp_ns, *env.joint_state())
            if steps == last_step:
                break
            action = policy(env.expert_observation)
            writer.write_action(stamp_ns, action)
            observation, _, _, info = env.step(action)
            steps += 1
            if info["success"] and not success:
                success, last_step = True, min(steps + 1, last_step)
        writer.close("success" if success else "failure")
    return EpisodeResult(success, steps)


def find_leftovers(folder: Path) -> list[Path]:
    """Unfinished recordings of killed runs below `folder`, sorted."""
    return sorted(folder.rglob(".*.recording"))


def _metadata(env: SimulatedEnvironment, job: EpisodeJob) -> EpisodeMetadata:
    simulator = "metaworld" if job.task in METAWORLD_TASKS else "gymnasium-robotics"
    return EpisodeMetadata(
        task=job.task,
        outcome="partial",
        operator="scripted",
        camera=job.render.camera,
        camera_serial="",
        quality=job.quality,
        seed=job.seed,
        rate_hz=env.rate_hz,
        render=job.render.to_dict(),
        versions={name: _version(name) for name in ("mujoco", simulator, "dr_core")},
        calibration_hash=None,
        drops={},
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source tree


def _existing_success(job: EpisodeJob) -> bool:
    """Whether the whole bag at `job.path` holds a success.

    Raises: OutputInUseError: it was made with other settings, or not finished.
    """
    metadata = read_metadata(job.path)
    wanted = {"task": job.task, "quality": job.quality, "seed": job.seed, "render": job.render.to_dict()}
    for key, value in wanted.items():
        if getattr(metadata, key) != value:
            raise OutputInUseError(
                str(job.path),
                expected=f"an episode with {key} {value}",
                found=f"{key} {getattr(metadata, key)}",
                next_step="give another --out or --seed, or move the old recordings away",
            )
    if metadata.outcome not in ("success", "failure"):
        raise OutputInUseError(
            str(job.path),
            expected="a finished episode",
            found=f"outcome {metadata.outcome}",
            next_step="move it away and run again",
        )
    return metadata.outcome == "success"


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """Where to write the bag that ends up at `path`.

    The writer builds at a hidden name beside its target. Where a killed run left that name behind, the bag is
    built in a hidden directory and moved, so that the leftover stays for `dr bag repair`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.with_name(f".{path.name}.recording").exists():
        yield path
        return
    folder = path.with_name(f".again-{path.name}-{os.getpid()}")
    folder.mkdir(exist_ok=True)
    yield folder / path.name
    (folder / path.name).rename(path)
    folder.rmdir()


@contextmanager
def _worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; leaving the block cancels what waits and lets running episodes finish."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "recording",
            expected="worker processes that live",
            found="one that was killed (out of memory?)",
            next_step="lower --workers and run again: whole episodes are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_environments: dict[tuple[str, RenderSettings], SimulatedEnvironment] = {}  # the one this worker used last


def _work(job: EpisodeJob) -> EpisodeResult:
    """Run `job` in a worker. User errors travel as values: their exceptions do not pickle."""
    key = (job.task, job.render)
    try:
        if key not in _environments:
            while _environments:
                _environments.popitem()[1].close()
            _environments[key] = make_environment(job.task, job.render)
        return record_episode(_environments[key], job)
    except UserError as error:
        return EpisodeResult(False, 0, (error.what, error.expected, error.found, error.next_step))
    except OSError as error:
        wanted, next_step = (
            "a writable disk with free space",
            "mend it and run again: whole episodes are kept",
        )
        return EpisodeResult(False, 0, (str(job.path), wanted, str(error), next_step))
