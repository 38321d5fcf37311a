"""Milliseconds to draw a batch of 256: the replay, and one .npz file per episode as published agents keep it.

    python benchmarks/replay_speed.py                    # a minute, 1 GB of disk for a while
    python benchmarks/replay_speed.py --frames 500000    # as a long run leaves it; 6 GB

The other side is written in the straightforward way: an episode is drawn, its file read, a step drawn, and the items
are put together one by one. It is measured twice, reading the file for every item, which bounds the memory as the
replay does, and with all episodes decoded in memory, which does not; with 50 episodes only, which the processor's
caches favour. The sides take turns; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
STEPS, SIZE, ACTIONS, N_STEP, GAMMA, BATCH = 100, 64, 4, 3, 0.99, 256
Arrays = dict[str, Any]


def make_episode(rng: np.random.Generator) -> Arrays:
    """A smooth picture that drifts, which compresses about as well as a rendered one."""
    corners = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1)))
    frames = np.stack([np.roll(corners, step // 4, 1) for step in range(STEPS + 1)]).astype(np.uint8)
    frames ^= rng.integers(0, 4, frames.shape, dtype=np.uint8)
    actions = rng.uniform(-1, 1, (STEPS, ACTIONS)).astype(np.float32)
    return {"frames": frames, "actions": actions, "video": rng.normal(size=STEPS), "success": np.zeros(STEPS)}


def item(episode: Arrays, rng: np.random.Generator) -> tuple[Any, ...]:
    """One transition over n steps of an episode that a time limit ended."""
    t = int(rng.integers(STEPS))
    sums, k = {"video": 0.0, "success": 0.0}, 0
    while k < N_STEP and t + k < STEPS:
        for name in sums:
            sums[name] += GAMMA**k * episode[name][t + k]
        k += 1
    frames = [episode["frames"][i].transpose(2, 0, 1) for i in (t, t + k)]
    return frames[0], episode["actions"][t], *sums.values(), GAMMA**k, frames[1]


def file_batch(episodes: list[Callable[[], Arrays]], rng: np.random.Generator) -> list[Any]:
    items = [item(episodes[rng.integers(len(episodes))](), rng) for _ in range(BATCH)]
    return [np.stack(column) for column in zip(*items, strict=True)]


def reader(path: Path) -> Callable[[], Arrays]:
    def read() -> Arrays:
        with np.load(path) as file:
            return dict(file)

    return read


def constant(episode: Arrays) -> Callable[[], Arrays]:
    return lambda: episode


def median_ms(times: list[float]) -> float:
    return 1e3 * float(np.median(times))


def timed(draw: Callable[[], object], into: list[float]) -> None:
    started = time.perf_counter()
    draw()
    into.append(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=50_000, help="frames that the replay holds")
    parser.add_argument("--directory", type=Path, help="where the files are made (default: the temporary folder)")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    from dr_core.agent.replay import Replay

    rng = np.random.default_rng(0)
    different = [make_episode(rng) for _ in range(50)]
    count = max(1, options.frames // (STEPS + 1))
    adding: list[float] = []
    saving: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        root = Path(folder)
        settings: Arrays = {"action_size": ACTIONS, "n_step": N_STEP, "discount": GAMMA}
        settings.update(capacity=count * (STEPS + 1), reward_names=("video", "success"))
        with Replay(root / "replay", **settings) as replay:
            for i in range(count):
                one = different[i % len(different)]
                rewards = {name: one[name] for name in replay.reward_names}
                timed(partial(replay.add, one["frames"], one["actions"], rewards, terminal=False), adding)
        files = [root / f"{i}.npz" for i in range(len(different))]
        for file, one in zip(files, different, strict=True):
            timed(partial(np.savez_compressed, file, **one), saving)
        started = time.perf_counter()
        with Replay(root / "replay", **settings) as replay:
            opening_s = time.perf_counter() - started
            reading = [reader(file) for file in files]
            in_memory = [constant(read()) for read in reading]
            ours: list[float] = []
            theirs: list[float] = []
            cached: list[float] = []
            for _ in range(3):
                for _ in range(200):
                    timed(partial(replay.sample, BATCH, rng), ours)
                for _ in range(20):
                    timed(partial(file_batch, in_memory, rng), cached)
                timed(partial(file_batch, reading, rng), theirs)
            transitions = len(replay)
            size = sum(os.stat(file).st_blocks * 512 for file in (root / "replay").iterdir())
    print(f"replay of {transitions} transitions, {SIZE}x{SIZE}x3, batch {BATCH}, {N_STEP} steps; medians:")
    for name, times in (("a file read for each item", theirs), ("all files in memory", cached), ("the replay", ours)):
        print(f"  {name:27s}{median_ms(times):9.2f} ms   x{median_ms(theirs) / median_ms(times):.1f}")
    print(f"  the replay draws x{median_ms(cached) / median_ms(ours):.1f} as fast as from files that are all in memory")
    print(f"  adding an episode: a file {median_ms(saving):.1f} ms, the replay {median_ms(adding):.1f} ms, on the disk")
    print(f"  on the disk {size / 1e9:.2f} GB; opened and compared with its hashes in {opening_s:.1f} s")


if __name__ == "__main__":
    main()
