"""Offline learning of a task from a fixed data set of mixed quality: does a learned label beat success alone?

Records several qualities of the scripted expert, trains with each label and several seeds, plays each agent, and prints
one table (OUT/table.md). Started again with the same options, it goes on where it was stopped.

    python examples/offline_study.py --model runs/door/model --out runs/offline
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from dr_core.robot.evaluation import wilson

DATA_SEED = 5000  # apart from those of a reward model's training
CLONE = "clone"
"""The same learner that weighs all actions alike, whatever the label."""


def dr(*words: object) -> None:
    """Run a command of `dr`; its failure is the study's."""
    status = subprocess.run([sys.executable, "-m", "dr_core.cli", *map(str, words)]).returncode
    if status:
        sys.exit(status)  # it has said why


def train_and_play(label: str, seed: int, asked: argparse.Namespace) -> list[bool]:
    """Success of each episode of the agent that learned from ``label`` with ``seed``."""
    run = asked.out / label / f"seed_{seed}"
    if not (run / "agent" / "manifest.json").is_file():
        words = ["train-offline", asked.out / "data", "--out", run, "--seed", seed, "--resume"]
        words += ["--reward", "sparse", "--set", "temperature=0"] if label == CLONE else ["--reward", label]
        words += ["--model", asked.model] if asked.model is not None else []
        words += [word for setting in asked.set for word in ("--set", setting)]
        dr(*words, "--steps", asked.steps)
    played = run / "played" / "episodes.jsonl"
    if not played.is_file() or len(played.read_text().splitlines()) != asked.eval_episodes:
        shutil.rmtree(run / "played", ignore_errors=True)  # of a run that was cut short
        dr("eval-agent", "--agent", run / "agent", "--out", run / "played", "--episodes", asked.eval_episodes)
    return [bool(json.loads(line)["success"]) for line in played.read_text().splitlines()]


def over_seeds(rates: Sequence[float]) -> str:
    """Mean and the 95 % interval of that mean (Student's t)."""
    mean, n = sum(rates) / len(rates), len(rates)
    if n == 1:
        return f"{mean:.0%}"
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (n - 1))
    return f"{mean:.0%} ± {100 * stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n):.0f}"


def row(name: str, seeds: Sequence[Sequence[bool]]) -> str:
    """One line of the table; the second interval is Wilson's, over all episodes as if they were independent."""
    episodes = [success for played in seeds for success in played]
    low, high = wilson(sum(episodes), len(episodes))
    pooled = f"{sum(episodes)} of {len(episodes)}, {low:.0%} to {high:.0%}"
    return f"| {name} | {over_seeds([sum(played) / len(played) for played in seeds])} | {len(seeds)} | {pooled} |"


def main() -> None:
    """Record, train, play, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="door-close")
    parser.add_argument("--out", type=Path, required=True, help="directory of the study")
    parser.add_argument("--model", type=Path, help="reward model, for all labels but sparse and clone")
    parser.add_argument("--labels", nargs="+", default=["sparse", "default", CLONE], help="as --reward, and clone")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each label")
    parser.add_argument("--quality", type=int, nargs="+", default=[0, 25, 50, 100], help="per cent of random actions")
    parser.add_argument("--episodes", type=int, default=20, help="recordings of each quality")
    parser.add_argument("--steps", type=int, default=5_000, help="updates of each training")
    parser.add_argument("--eval-episodes", type=int, default=20, help="episodes that each agent plays")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of each training")
    asked = parser.parse_args()

    record = ["record-expert", "--task", asked.task, "--episodes", asked.episodes, "--seed", DATA_SEED]
    dr(*record, "--out", asked.out / "data", "--quality", *asked.quality)
    lines = [
        f"| {asked.task}, offline | success, mean over seeds ± 95 % | seeds | all episodes, 95 % |",
        "|---|---|---|---|",
    ]
    for label in asked.labels:
        lines.append(row(label, [train_and_play(label, seed, asked) for seed in range(asked.seeds)]))
    labelled = json.loads((asked.out / asked.labels[0] / "seed_0" / "labels.json").read_text())
    lines.insert(2, row("the data", [[episode["success"] for episode in labelled["episodes"]]]))
    (asked.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
