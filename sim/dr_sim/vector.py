"""Several environments of one task side by side, each in its own process, for a training loop.

Nothing resets by itself (gymnasium's autoreset mode DISABLED): the step that ends an episode returns its true last
frame, and `reset` then returns the first one of the next episode.
"""

from __future__ import annotations

import functools
import multiprocessing.resource_tracker
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from dr_core.errors import ConfigError, UserError
from dr_sim.environment import SimulatedEnvironment
from dr_sim.environments import default_render, make_environment
from dr_sim.rendering import RenderSettings
from dr_sim.tasks import resolve_task
from dr_sim.workers import start_worker, usable_cores

Frame = NDArray[np.uint8]


class Steps(NamedTuple):
    """What one agent step of N environments leads to."""

    frames: Frame
    """(N, H, W, 3) uint8; of an episode that is over, its last frame."""
    rewards: NDArray[np.float32]
    """(N,) sparse reward: successful simulator steps."""
    dones: NDArray[np.bool_]
    """(N,) whether the episode's time is over: a limit, not a terminal state."""
    successes: NDArray[np.bool_]
    """(N,) whether any of the simulator steps succeeded."""


class VectorEnvironment:
    """`num` environments of one task that step together, each in a process with a renderer of its own.

    An environment plays the same episode as `make_environment(task, render)` with the same seed and actions. With
    `num` 1 it runs in this process. An exception in any call, Ctrl-C included, ends the workers before it leaves the
    call; workers also end when this process is killed. Workers are spawned: a script that makes a VectorEnvironment
    needs the guard `if __name__ == "__main__"`. A context manager; otherwise `close` it.

    Args:
        task: any accepted spelling.
        num: environments; None makes one for each usable core, and more than that is slower.
        render: how frames are drawn; None takes `default_render`.

    Attributes: `task`, `num`, `render`, `frame_shape` (H, W, 3), and of each environment `action_size`,
        `action_repeat`, `episode_steps`, `rate_hz`.

    Raises: ConfigError: unknown task or camera, or `num` below 1. RenderingError: no back-end. UserError: a worker was
        killed, which any later call may find too.
    """

    def __init__(self, task: str, num: int | None = None, render: RenderSettings | None = None) -> None:
        self.task = resolve_task(task)
        self.num = usable_cores() if num is None else num
        if self.num < 1:
            raise ConfigError("number of environments", expected="at least 1", found=str(num), next_step="raise it")
        self.render = default_render(self.task) if render is None else render
        width, height = self.render.frame_size
        self.frame_shape = (height, width, 3)
        # Tells the sizes, and shows most mistakes, before any process starts.
        environment = make_environment(self.task, self.render)
        self.action_size = environment.action_size
        self.action_repeat = environment.action_repeat
        self.episode_steps = environment.episode_steps
        self.rate_hz = environment.rate_hz
        make = functools.partial(_GymEnvironment, self.task, self.render, self.frame_shape, self.action_size)
        self._running = np.zeros(self.num, np.bool_)
        self._sent = np.zeros((self.num, self.action_size), np.float32)
        self._vector: AsyncVectorEnv[Any, Any] | SyncVectorEnv[Any, Any]
        if self.num == 1:
            self._vector = SyncVectorEnv([lambda: make(environment)], autoreset_mode=AutoresetMode.DISABLED)
            return
        environment.close()
        with _worker_errors():
            self._vector = _Workers([make] * self.num)
        with self._closed_on_error():
            for error in self._vector.call("build"):
                if error is not None:
                    raise error

    def reset(self, seeds: Sequence[int | None]) -> Frame:
        """Begin the episode of `seeds[i]` (non-negative) in environment i; None leaves it where it is.

        Returns: (N, H, W, 3) uint8: first frames of the new episodes, latest frames of the others.
        """
        if len(seeds) != self.num or all(seed is None for seed in seeds):
            raise ValueError(f"expected {self.num} seeds, at least one of them not None; found {seeds!r}")
        chosen = np.array([seed is not None for seed in seeds])
        options = None if chosen.all() else {"reset_mask": chosen}
        with self._closed_on_error():
            frames, _ = self._vector.reset(seed=[None if s is None else int(s) for s in seeds], options=options)
        self._running |= chosen
        return frames

    def step(self, actions: NDArray[Any]) -> Steps:
        """Apply `actions` (N, A), clipped to [-1, 1], for `action_repeat` simulator steps each.

        Raises: RuntimeError: an episode is over or has not begun: `reset` it first.
        """
        self.send(actions)
        return self.receive()

    def send(self, actions: NDArray[Any]) -> None:
        """The first half of `step`: the workers simulate while this process does something else."""
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.num, self.action_size):
            raise ValueError(f"expected actions of shape {(self.num, self.action_size)}, found {actions.shape}")
        if not self._running.all():
            waiting = np.flatnonzero(~self._running).tolist()
            raise RuntimeError(f"episodes of environments {waiting} are over or have not begun: call reset()")
        self._sent = actions
        if isinstance(self._vector, AsyncVectorEnv):
            with self._closed_on_error():
                self._vector.step_async(actions)

    def receive(self) -> Steps:
        """The second half of `step`."""
        with self._closed_on_error():
            if isinstance(self._vector, AsyncVectorEnv):
                frames, rewards, _, dones, infos = self._vector.step_wait()
            else:
                frames, rewards, _, dones, infos = self._vector.step(self._sent)
        self._running = ~dones
        return Steps(frames, rewards.astype(np.float32), dones, infos["success"])

    def close(self) -> None:
        """End the workers and free the renderers; harmless when repeated."""
        self._vector.close()

    def __enter__(self) -> VectorEnvironment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            with _worker_errors():
                yield
        except BaseException:
            self.close()
            raise


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Tell of a worker that has vanished in words."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise UserError(
            "simulation",
            expected="worker processes that live",
            found="one that was killed (out of memory?)",
            next_step="use fewer environments and run again",
        ) from error


class _GymEnvironment(gymnasium.Env[Frame, NDArray[np.float32]]):
    """A simulated task to gymnasium's interface, made where it runs: on the worker's `build`."""

    def __init__(
        self,
        task: str,
        render: RenderSettings,
        frame_shape: tuple[int, int, int],
        action_size: int,
        environment: SimulatedEnvironment | None = None,
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, frame_shape, np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)
        self._task, self._render = task, render
        self._environment = environment

    def build(self) -> UserError | None:
        """Make a worker of this process. A user's mistake is returned: gymnasium cannot pass it on as an exception."""
        start_worker()
        try:
            self._environment = make_environment(self._task, self._render)
        except UserError as error:
            return error
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        assert self._environment is not None and seed is not None
        return self._environment.reset(seed)["image"], {}

    def step(self, action: NDArray[np.float32]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        assert self._environment is not None
        observation, reward, done, info = self._environment.step(action)
        return observation["image"], reward, False, done, info

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None


class _Workers(AsyncVectorEnv[Any, Any]):
    """Gymnasium's workers with shared memory, ended in one way whatever state they are in.

    A worker holds nothing that outlives its process, so it is killed instead of asked: it may be busy, or gone.
    """

    processes: list[Any]
    parent_pipes: list[Any]

    def __init__(self, environments: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> None:
        self.processes, self.parent_pipes = [], []
        try:
            with _workers_deaf_to_interrupts():
                super().__init__(environments, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        except BaseException:
            self.close()
            raise

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Kill the workers and wait for them; both arguments belong to gymnasium's interface."""
        del timeout, terminate
        started = [process for process in self.processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()
        for pipe in self.parent_pipes:
            if pipe is not None:
                pipe.close()


@contextmanager
def _workers_deaf_to_interrupts() -> Iterator[None]:
    """Block SIGINT, which processes started meanwhile inherit: a terminal sends Ctrl-C to them too."""
    # This helper process of multiprocessing would unblock the signal at its start.
    multiprocessing.resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
