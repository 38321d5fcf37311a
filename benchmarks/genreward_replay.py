"""Does r_fb say how soon the goal is met? F and B of two presets, learned from the replay of a training.

    python benchmarks/genreward_replay.py runs/agent --model models/door-close/reward --updates 310

RUN is the directory of a finished `dr train-agent --reward genreward`. Of all its frames those 5 % that are nearest to
the goal frame (by ψ) count as met. Printed is the correlation, over all steps of the replay, of F(s, a, z)ᵀB(ψ(I*))
with the discounted number of times that the goal was met afterwards in the same episode: what F and B should tell.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dr_core.agent.loop import PRESETS
from dr_core.agent.replay import Replay
from dr_core.rewards.genreward.encoders import CodecFrames
from dr_core.rewards.genreward.forward_backward import ForwardBackward, Steps
from dr_core.rewards.model import RewardModel

NEAR = 0.05
FIRST_STEPS = 800  # those that fix the scale of features


def met_later(near: NDArray[np.bool_], lengths: list[int], discount: float) -> NDArray[np.float64]:
    """Σ γ^k·near(s of step t + 1 + k) of each step of episodes one behind the other, (N,)."""
    found, begin = np.zeros(len(near)), 0
    for length in lengths:
        for t in range(begin + length - 2, begin - 1, -1):
            found[t] = near[t + 1] + discount * found[t + 1]
        begin += length
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="directory of a training of an agent")
    parser.add_argument("--model", type=Path, required=True, help="the reward model whose codec is ψ")
    parser.add_argument(
        "--updates", type=int, default=310, help="of F and B; 310 are those of 10,000 frames by default"
    )
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    encoder = CodecFrames(RewardModel.load(asked.model))
    picture = cv2.imread(str(asked.run / "goal" / "frame.png"))
    if picture is None:
        parser.error(f"{asked.run / 'goal' / 'frame.png'}: expected the goal frame of a training from genreward")
    goal = encoder.encode(np.ascontiguousarray(picture[:, :, ::-1])[None])[0]
    about = json.loads((asked.run / "replay" / "replay.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(asked.run / "replay", Path(folder) / "replay")  # opening it takes its lock
        names = ("capacity", "action_size", "reward_names", "feature_size")
        replay = Replay(Path(folder) / "replay", **{name: about[name] for name in names})
        # In their order, which nothing but this asks for.
        episodes = replay._drawn.episodes
        rows = np.concatenate([one["first"] + np.arange(one["length"]) for one in episodes])
        lengths = [int(one["length"]) for one in episodes]
        features, actions = replay._features[rows], replay._steps[rows, : about["action_size"]]
        print(f"{len(rows)} steps of {len(lengths)} episodes, {asked.updates} updates")
        distance = np.linalg.norm(features - goal, axis=1)
        near = distance < np.quantile(distance, NEAR)
        for preset in PRESETS:
            config = PRESETS[preset].reward.goal.fb
            truth = met_later(near, lengths, config.discount)
            correlations, begin_s = [], time.perf_counter()
            for seed in range(asked.seeds):
                fb = ForwardBackward(goal, about["action_size"], seed, config)
                fb.standardise(features[:FIRST_STEPS])
                draw = np.random.default_rng(seed)
                for _ in range(asked.updates):
                    fb.update(Steps(*replay.sample_steps(config.batch_size, draw)))
                correlations.append(float(np.corrcoef(fb.score(features, actions), truth)[0, 1]))
            took_s = (time.perf_counter() - begin_s) / asked.seeds
            words = ", ".join(f"{value:.2f}" for value in correlations)
            print(f"preset {preset}: γ {config.discount:g}, correlation with what came: {words}; {took_s:.1f} s a seed")


if __name__ == "__main__":
    main()
