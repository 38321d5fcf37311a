"""Does a goal video help? Agents from sparse, default, genreward and genreward_diffusion, on two tasks with seeds.

Records one successful expert for each task as its goal video (or takes those of --goals), and leaves the rest to
`dr sweep`: OUT/sweep/table.md, curves.png and curves.csv. Started again with the same options, it goes on where it was
stopped. Hours on a small machine.

    python examples/genreward_study.py --model models/door-close/reward --out runs/genreward
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from dr_core.data.episodes import find_episodes, read_episode
from dr_core.data.images import ImageRule
from dr_core.data.video import write_video

GOAL_SEED = 9000  # apart from those of a reward model's training
REWARDS = ["sparse", "default", "genreward", "genreward_diffusion"]


def dr(*words: object) -> None:
    """Run a command of `dr`; its failure is the study's."""
    status = subprocess.run([sys.executable, "-m", "dr_core.cli", *map(str, words)]).returncode
    if status:
        sys.exit(status)  # it has said why


def record_goal(task: str, folder: Path) -> None:
    """Write FOLDER/goals/TASK.mp4, an expert's first success, and beside it where it is from."""
    video = folder / "goals" / f"{task}.mp4"
    if video.exists():
        return
    dr("record-expert", "--task", task, "--episodes", 3, "--seed", GOAL_SEED, "--out", folder / "experts")
    for path in find_episodes([folder / "experts" / task]):
        episode = read_episode(path, rule=ImageRule())
        if episode.metadata.outcome == "success":
            about = {
                "from": str(path.relative_to(folder)),
                "seed": episode.metadata.seed,
                "frames": len(episode.frames),
            }
            video.parent.mkdir(parents=True, exist_ok=True)
            video.with_suffix(".json").write_text(json.dumps(about) + "\n", encoding="utf-8")
            write_video(video, episode.frames, episode.metadata.rate_hz, lossless=True)
            return
    sys.exit(f"the expert did not succeed at {task}: give goal videos with --goals")


def main() -> None:
    """Goals, then the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=["door-close", "dial-turn"])
    parser.add_argument("--out", type=Path, required=True, help="directory of the study")
    parser.add_argument("--model", type=Path, required=True, help="reward model that knows the tasks")
    parser.add_argument("--goals", type=Path, help="directory with a goal video TASK.mp4 of each task")
    parser.add_argument("--reward", nargs="+", default=REWARDS)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each reward and task")
    parser.add_argument("--frames", type=int, default=50_000, help="simulator steps of each training")
    parser.add_argument("--quick", action="store_true", help="a few hundred frames each, to try it")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of each training")
    asked = parser.parse_args()

    goals = asked.goals or asked.out / "goals"
    if asked.goals is None:
        for task in asked.task:
            record_goal(task, asked.out)
    words = [
        "sweep",
        "--task",
        *asked.task,
        "--reward",
        *asked.reward,
        "--seeds",
        asked.seeds,
        "--frames",
        asked.frames,
    ]
    words += ["--model", asked.model, "--goal", goals, "--out", asked.out / "sweep"]
    words += ["--quick"] if asked.quick else []
    dr(*words, *(word for setting in asked.set for word in ("--set", setting)))


if __name__ == "__main__":
    main()
