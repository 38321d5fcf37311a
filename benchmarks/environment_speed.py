"""Agent steps a second at 64x64: one environment, several in worker processes, and Meta-World's own rendering.

    python benchmarks/environment_speed.py                    # door-close, 2 workers; about a minute on 2 cores
    python benchmarks/environment_speed.py --out speed.json

All run the same physics with random actions and hand over one frame an agent step; resets are included. Meta-World's
side draws with gymnasium's own renderer at the model's own quality, in a process of its own: beside another renderer
it draws black pictures. They take turns, and the best turn of each counts, so that other programs on the machine
disturb all alike. Seconds are those of the clock.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


@functools.cache
def default_rendering(task: str) -> Any:
    """Meta-World as it comes: render_mode="rgb_array", 64x64, default quality."""
    import warnings

    import metaworld

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark = metaworld.MT1(f"{task}-v3", seed=0)
        env = benchmark.train_classes[f"{task}-v3"](render_mode="rgb_array", camera_name="corner4", width=64, height=64)
    env.set_task(benchmark.train_tasks[0])
    return env


def play_default(task: str, action_repeat: int, steps: int) -> int:
    """Agent steps played."""
    env = default_rendering(task)
    rng = np.random.default_rng(0)
    env.reset()
    for _ in range(steps):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        for _ in range(action_repeat):
            env.step(action)
        frame = env.render()
    assert frame.std() > 10, "the picture is empty"
    return steps


def play(environments: Any, steps: int) -> int:
    """Agent steps played in all of `environments` (a VectorEnvironment) together."""
    rng = np.random.default_rng(0)
    environments.reset(range(environments.num))
    for _ in range(steps):
        frames = environments.step(rng.uniform(-1, 1, (environments.num, environments.action_size))).frames
    assert frames.std() > 10, "the pictures are empty"
    return steps * environments.num


def measure(players: dict[str, Callable[[], int]], turns: int) -> dict[str, float]:
    """Best rate of each in agent steps a second."""
    best = dict.fromkeys(players, 0.0)
    for turn in range(turns + 1):
        for name, player in players.items():
            started = time.perf_counter()
            steps = player()
            if turn > 0:  # the first warms up
                best[name] = max(best[name], steps / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", default="door-close", help="Meta-World task without version")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100, help="agent steps of a turn, 100 at most")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "sim")]
    os.environ["LP_NUM_THREADS"] = "0"  # one thread each in software rendering, as in the workers
    from dr_sim.rendering import select_backend
    from dr_sim.vector import VectorEnvironment

    backend = select_backend()
    name = f"{options.workers} workers"
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        VectorEnvironment(options.task, 1) as single,
        VectorEnvironment(options.task, options.workers) as several,
    ):
        theirs = (options.task, single.action_repeat, options.steps)
        rates = measure(
            {
                "Meta-World default": lambda: pool.apply(play_default, theirs),
                "alone": lambda: play(single, options.steps),
                name: lambda: play(several, options.steps),
            },
            options.turns,
        )
    base = rates["Meta-World default"]
    print(f"{options.task}, 64x64, MUJOCO_GL={backend}, {platform.machine()}, agent steps/s:")
    for key, rate in rates.items():
        print(f"  {key:20s}{rate:8.1f}   x{rate / base:.1f}")
    print(f"  {name} against one environment: x{rates[name] / rates['alone']:.2f}")
    if options.out:
        facts = {"task": options.task, "workers": options.workers, "backend": backend, "steps_per_s": rates}
        options.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
