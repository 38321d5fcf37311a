"""What GenReward adds to an update of the agent, and how long a clip is compared with the goal video.

    python benchmarks/genreward_speed.py                   # prints a table; about a minute on 2 cores
    python benchmarks/genreward_speed.py --out docs/img    # also genreward_speed.json

Both presets with their own sizes: batch, networks, precision, and how seldom F and B are updated. The parts take turns,
and the best of the turns counts, so that other programs on the machine disturb all alike. Each frame is encoded once by
the codec, which is shared out over the updates that an episode is worth.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from agent_speed import take_turns
from rich.console import Console
from rich.table import Table

from dr_core.agent.actor import ActorConfig
from dr_core.agent.drqv2 import DrQV2
from dr_core.agent.loop import PRESETS
from dr_core.agent.replay import Batch
from dr_core.rewards.genreward.encoders import CodecFrames, CodecVideo
from dr_core.rewards.genreward.forward_backward import Steps
from dr_core.rewards.genreward.goal import Goal
from dr_core.rewards.genreward.reward import GenReward
from dr_core.rewards.model import RewardModel

MODEL = Path(__file__).parents[1] / "models" / "door-close" / "reward"
SIZES = (("default", 192), ("paper", 192), ("paper", 768))
"""Presets, and numbers of a feature: 3 x 8 x 8 latents of the FSQ codec, or as many as DINOv2's middle size gives."""
ACTIONS, EPISODE_STEPS = 4, 100
TARGET_SHARE, TARGET_CLIP_MS = 0.20, 50.0


class Fixed:
    """Features of a given size, without any cost: what they are does not matter here."""

    name = "fixed"

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(frames), self.size)).astype(np.float32)


@dataclass(frozen=True)
class Row:
    """Costs of one preset, ms an update of the agent; those of F and B already divided by ``update_every``."""

    preset: str
    features: int
    batch: int
    fb_batch: int
    update_every: int
    agent_ms: float
    score_ms: float
    fb_update_ms: float
    encode_ms: float
    share: float


def measure(preset: str, size: int, repeat: int, device: str, encode_ms: float) -> Row:
    """One preset on random transitions with features of a ``size``; ``encode_ms`` is what encoding a frame costs."""
    config = PRESETS[preset]
    rng, count = np.random.default_rng(0), config.agent.batch_size
    frames = rng.integers(0, 256, (2, count, 64, 64, 3), dtype=np.uint8).transpose(0, 1, 4, 2, 3)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    features, actions = normal(count, size), normal(count, ACTIONS).clip(-1, 1)
    discounts = np.full(count, config.agent.discount**config.agent.n_step, np.float32)
    batch = Batch(frames[0], actions, {}, discounts, frames[1], features)
    settings = config.reward.goal
    goal = Goal(np.zeros((20, 64, 64, 3), np.uint8), 19, "last", "zeros")
    genreward = GenReward(settings, goal, Fixed(size), CodecVideo(Fixed(size)), ACTIONS, device=device)
    genreward.fb.standardise(normal(1000, size))
    agent = DrQV2(ActorConfig(ACTIONS, "none", 10.0, network=config.network), config.agent, 0, device)
    rewards, draws = normal(count), settings.fb.batch_size
    steps = Steps(normal(draws, size), normal(draws, ACTIONS), normal(draws, size), normal(draws, ACTIONS))
    contenders: dict[str, Callable[[], object]] = {
        "agent": lambda: agent.update(batch, rewards, 0),
        "score": lambda: genreward.reach(features, actions, centred=True),
        "update": lambda: genreward.fb.update(steps, metrics=True),
    }
    best = take_turns(repeat, device, contenders)
    update = best["update"] / settings.fb.update_every
    encode = encode_ms * config.agent.update_every
    share = (best["score"] + update + encode) / best["agent"]
    return Row(
        preset, size, count, draws, settings.fb.update_every, best["agent"], best["score"], update, encode, share
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="directory for genreward_speed.json")
    parser.add_argument("--model", type=Path, default=MODEL, help="reward model whose codec is measured")
    parser.add_argument("--repeat", type=int, default=10, help="turns of each part")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of torch")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    encoder = CodecFrames(RewardModel.load(options.model, options.device))
    episode = np.random.default_rng(0).integers(0, 256, (EPISODE_STEPS + 1, 64, 64, 3), dtype=np.uint8)
    goal = Goal(episode[:60], 59, "last", "noise")
    terms = GenReward(
        PRESETS["default"].reward.goal, goal, encoder, CodecVideo(encoder), ACTIONS, device=options.device
    )
    clips: dict[str, Callable[[], object]] = {
        "clip": lambda: terms.video(episode[None]),
        "episode": lambda: terms.encode(episode[None]),
    }
    best = take_turns(options.repeat, options.device, clips)
    encode_ms = best["episode"] / len(episode)
    rows = [measure(name, size, options.repeat, options.device, encode_ms) for name, size in SIZES]

    facts = {"device": options.device, "threads": options.threads, "torch": torch.__version__}
    table = Table(title=", ".join(f"{key} {value}" for key, value in facts.items()) + "; ms for an update of the agent")
    titles = ("", "the agent's", "r_fb", "F, B", "every", "features", "in all", "share")
    for title in titles:
        table.add_column(title, justify="right" if title else "left")
    for row in rows:
        added = row.score_ms + row.fb_update_ms + row.encode_ms
        cells = [f"{row.agent_ms:.1f}", f"{row.score_ms:.2f}", f"{row.fb_update_ms:.2f}", f"{row.update_every}"]
        table.add_row(
            f"{row.preset}, {row.features}", *cells, f"{row.encode_ms:.2f}", f"{added:.2f}", f"{row.share:.1%}"
        )
    Console().print(table)
    met = max(row.share for row in rows) <= TARGET_SHARE
    print(f"at most {TARGET_SHARE:.0%} of an update: {'yes' if met else 'no'}")
    print(
        f"r_video: {best['clip']:.1f} ms a clip, at most {TARGET_CLIP_MS:g}: "
        f"{'yes' if best['clip'] <= TARGET_CLIP_MS else 'no'}; features of an episode's {len(episode)} frames: "
        f"{best['episode']:.1f} ms"
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        result = {"machine": facts, "target": TARGET_SHARE, "met": met, "clip_ms": best["clip"]}
        result["rows"] = [asdict(row) for row in rows]
        (options.out / "genreward_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
