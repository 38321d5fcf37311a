"""Small episodes with structure: a bright square on a textured table; experts carry it to a goal, others do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter

RENDER = {"camera": "corner2", "orientation": "upright"}
GOAL = np.array([44.0, 40.0])


def moving_square(seed: int, *, expert: bool, length: int = 16) -> NDArray[np.uint8]:
    """(length, 64, 64, 3) RGB: smooth motion to the goal, or a random walk from a like start."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(99).integers(60, 120, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    corner = rng.uniform(2, 20, 2)
    frames = []
    for _ in range(length):
        frame = table.copy()
        y, x = corner.round().astype(int)
        frame[y : y + 12, x : x + 12] = 250, 220, 30
        frames.append(frame)
        step = 0.2 * (GOAL - corner) if expert else rng.normal(0, 5, 2)
        corner = np.clip(corner + step, 0, 52)
    return np.stack(frames)


def record(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    task: str = "push",
    expert: bool = True,
    seed: int = 0,
    render: dict[str, str] = RENDER,
) -> Path:
    """Write an episode of 10 frames a second."""
    metadata = EpisodeMetadata(
        task=task,
        outcome="partial",
        operator="scripted",
        camera="corner2",
        camera_serial="",
        quality=0 if expert else 100,
        seed=seed,
        rate_hz=10.0,
        render=render,
        versions={},
        calibration_hash=None,
        drops={},
    )
    with EpisodeWriter(path, metadata) as writer:
        for k, frame in enumerate(frames):
            writer.write_image(10**18 + k * 10**8, frame)
        writer.close("success" if expert else "failure")
    return path


def record_set(root: Path, *, episodes: int = 3, length: int = 16) -> tuple[Path, Path]:
    """Episodes of two tasks, expert ones and others: the two directories."""
    for expert, name in ((True, "expert"), (False, "other")):
        for index, task in enumerate(("push", "slide")):
            for seed in range(100 * expert + 10 * index, 100 * expert + 10 * index + episodes):
                frames = moving_square(seed, expert=expert, length=length)
                record(root / name / f"{task}_{seed}", frames, task=task, expert=expert, seed=seed)
    return root / "expert", root / "other"
