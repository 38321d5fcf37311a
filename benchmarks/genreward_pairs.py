"""Is an expert's clip more like a goal video of its own task than like those of other tasks?

    dr record-expert --task door-close --episodes 8 --out data/pairs         # and so on, for each task
    python benchmarks/genreward_pairs.py data/pairs --model models/door-close/reward

The first episode of each task is its goal video. A pair is another episode of the task, with its likeness to that
goal video and to one of another task; printed is the share of pairs in which its own is larger, as whole pictures
(published) and as motions (preset `default`).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from dr_core.data.episodes import find_episodes, read_episode
from dr_core.rewards.genreward.encoders import CodecFrames, CodecVideo
from dr_core.rewards.genreward.video import GoalLikeness
from dr_core.rewards.model import RewardModel
from dr_core.robot.evaluation import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("episodes", type=Path, help="folder of expert episodes of several tasks")
    parser.add_argument("--model", type=Path, required=True, help="reward model whose codec gives the latents")
    asked = parser.parse_args()
    model = RewardModel.load(asked.model)
    clips = defaultdict(list)
    for path in find_episodes([asked.episodes]):
        episode = read_episode(path, rule=model.config.image)
        if episode.metadata.outcome == "success":
            clips[episode.metadata.task].append(episode.frames)
    if len(clips) < 2 or min(map(len, clips.values())) < 2:
        parser.error(
            f"{asked.episodes}: expected successful episodes of two tasks, two of each; found {dict(clips)!r:.80}"
        )
    for motion in (False, True):
        goals = {
            task: GoalLikeness(own[0], CodecVideo(CodecFrames(model)), motion=motion) for task, own in clips.items()
        }
        for task, own in clips.items():
            right = pairs = 0
            for clip in own[1:]:
                likeness = {other: goals[other].of_clip(clip) for other in goals}
                pairs += len(goals) - 1
                right += sum(likeness[task] > value for other, value in likeness.items() if other != task)
            low, high = wilson(right, pairs)
            kind = "motions" if motion else "whole pictures"
            interval = f"[{100 * low:.0f}, {100 * high:.0f}]"
            print(f"{kind}, {task}: {right} of {pairs} pairs, {100 * right / pairs:.0f} % {interval}")


if __name__ == "__main__":
    main()
