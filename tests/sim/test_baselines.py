"""Every reward trains an agent on a real task for a few hundred steps, and a reward of other pictures is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from dr_core.rewards.names import FROM_GOALS, RewardName
from dr_core.training import read_metrics

TASK = "door-close"
MODEL = Path(__file__).parents[2] / "models" / TASK / "reward"
FROM_VIDEOS = set(get_args(RewardName)) - {"sparse", "rnd", "genreward"}


def dr(*words: str | Path, wait_s: float = 1800.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dr_core.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=wait_s)


def test_a_quick_sweep_trains_from_every_reward_and_prints_the_table(tmp_path: Path) -> None:
    experts, viper, out = tmp_path / "experts", tmp_path / "viper", tmp_path / "sweep"
    for prepare in (
        ("record-expert", "--task", TASK, "--episodes", "2", "--out", experts),
        ("train-viper", experts, "--model", MODEL, "--preset", "tiny", "--out", viper),
    ):
        done = dr(*prepare)
        assert done.returncode == 0, done.stderr
    names: tuple[str, ...] = get_args(RewardName)
    command = ["sweep", "--task", TASK, "--reward", *names, "--seeds", "1", "--quick", "--envs", "1", "--jobs", "2"]
    given: list[str | Path] = [
        "--model",
        MODEL,
        "--viper",
        viper / "model",
        "--experts",
        experts,
        "--set",
        "reward.alpha=0.5",
    ]
    done = dr(*command, *given, "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    header, _, row = done.stdout.split("| task |")[1].splitlines()[:3]
    assert [cell.strip() for cell in header.strip(" |").split("|")] == list(names)
    assert len(re.findall(r"\d+% \[\d+, \d+\] \(1 seed, 2 episodes, 800 frames\)", row)) == len(names)
    for name in names:
        last = read_metrics(out / TASK / name / "seed_0" / "metrics.jsonl")[-1]
        assert last["loss"] > 0.0
        assert (last["term_video"] != 0.0) == (name in FROM_VIDEOS), name
        assert (last["term_exploration"] != 0.0) == (name != "sparse"), name
        assert (last.get("term_goal_video", 0.0) != 0.0) == (last.get("fb_spread", 0.0) > 0.0) == (name in FROM_GOALS)


@pytest.mark.parametrize(("setting", "value"), [("camera", "corner2"), ("shadows", "true"), ("msaa", "4")])
def test_a_reward_of_another_camera_or_render_quality_is_refused(tmp_path: Path, setting: str, value: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["render"][setting] = value
    (model / "manifest.json").write_text(json.dumps(manifest))
    done = dr("train-agent", "--task", TASK, "--model", model, "--envs", "1", "--out", tmp_path / "run")
    assert done.returncode == 2 and f"expected the camera of the model: {setting} {value}; found" in done.stderr
    assert "Traceback" not in done.stderr


def test_both_spellings_of_a_task_get_the_statistics_of_its_experts(tmp_path: Path) -> None:
    terms = []
    for task in (TASK, f"{TASK}-v3"):
        out = tmp_path / task
        small = ("--set", "agent.batch_size=8", "agent.seed_steps=100", "agent.explore_steps=100", "eval_episodes=1")
        done = dr(
            "train-agent", "--task", task, "--model", MODEL, "--envs", "1", "--frames", "800", "--out", out, *small
        )
        assert done.returncode == 0, done.stderr
        terms.append(read_metrics(out / "metrics.jsonl")[-1]["term_video"])
    assert terms[0] == terms[1] != 0.0
