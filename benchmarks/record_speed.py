"""Agent steps a second of one Meta-World environment on one core at 64x64: Meta-World's rendering and ours.

    python benchmarks/record_speed.py --task assembly --steps 100

Both sides run the same physics with the scripted expert and hand over one frame an agent step. Meta-World's
side draws the task with gymnasium's own renderer at the model's own quality. Recording adds writing the bag
to ours. Seconds are those of the processor, so that other programs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def use_one_core() -> None:
    """Pin this process to a core and keep the software rasteriser from starting threads."""
    os.environ["LP_NUM_THREADS"] = "0"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def metaworld_steps_per_s(task: str, steps: int) -> float:
    """Meta-World as it comes: render_mode="rgb_array", 64x64, default quality."""
    import warnings

    import metaworld

    from dr_sim.environments import make_expert
    from dr_sim.metaworld_env import default_action_repeat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark = metaworld.MT1(f"{task}-v3", seed=0)
        env = benchmark.train_classes[f"{task}-v3"](render_mode="rgb_array", camera_name="corner4", width=64, height=64)
    env.set_task(benchmark.train_tasks[0])
    expert = make_expert(task)
    observation, _ = env.reset()
    env.render()
    started = time.process_time()
    for _ in range(steps):
        action = expert(observation)
        for _ in range(default_action_repeat(task)):
            observation, *_ = env.step(action)
        env.render()
    rate = steps / (time.process_time() - started)
    env.close()
    return rate


def our_steps_per_s(task: str, steps: int) -> float:
    """The environment alone: physics, frame, proprioception."""
    from dr_sim.environments import make_environment, make_expert

    env, expert = make_environment(task), make_expert(task)
    env.reset(0)
    env.step(np.zeros(env.action_size))
    env.reset(0)
    started = time.process_time()
    for _ in range(steps):
        env.step(expert(env.expert_observation))
    rate = steps / (time.process_time() - started)
    env.close()
    return rate


def recording_steps_per_s(task: str) -> float:
    """The recorder: one episode of 100 random agent steps, reset and bag included."""
    from dr_sim.environments import default_render, make_environment
    from dr_sim.record import EpisodeJob, record_episode

    env = make_environment(task)
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(2):  # the first one loads the message types
            job = EpisodeJob(task, 100, seed, default_render(task), Path(folder) / f"episode_{seed}", None)
            started = time.process_time()
            rates.append(record_episode(env, job).steps / (time.process_time() - started))
    env.close()
    return rates[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", default="door-close", help="Meta-World task without version")
    parser.add_argument("--steps", type=int, default=100, help="agent steps that are timed, 100 at most")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "sim")]
    use_one_core()
    from dr_sim.rendering import select_backend

    backend = select_backend()
    theirs = metaworld_steps_per_s(options.task, options.steps)
    ours = our_steps_per_s(options.task, options.steps)
    recording = recording_steps_per_s(options.task)
    print(f"{options.task}, 64x64, one core, MUJOCO_GL={backend}, agent steps/s:")
    print(f"  Meta-World default rendering  {theirs:7.1f}")
    print(f"  this package                  {ours:7.1f}   x{ours / theirs:.1f}")
    print(f"  this package, recording a bag {recording:7.1f}   x{recording / theirs:.1f}")


if __name__ == "__main__":
    main()
