"""The commands that train agents, on a real simulated task, in processes of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dr_core.agent.actor import ActingPolicy
from dr_core.data.video import read_video, write_video
from dr_core.training import read_metrics

TASK = "door-close"
MODEL = Path(__file__).parents[2] / "models" / TASK / "reward"
SMALL = ("--envs", "1", "--set", "agent.batch_size=8", "agent.seed_steps=100", "agent.explore_steps=100")
SMALL += ("eval_episodes=1", "eval_every_frames=100000", "replay_capacity=2000")


def dr(*words: str, wait_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dr_core.cli", *words], capture_output=True, text=True, timeout=wait_s)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 800 frames from the sparse reward."""
    out = tmp_path_factory.mktemp("agent") / "run"
    done = dr("train-agent", "--task", TASK, "--reward", "sparse", "--frames", "800", "--out", str(out), *SMALL)
    assert done.returncode == 0, done.stderr
    return out


def test_a_training_ends_with_an_agent_that_plays(run: Path, tmp_path: Path) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["frames"] for line in lines] == [200.0, 400.0, 600.0, 800.0] and lines[-1]["loss"] > 0.0
    policy = ActingPolicy.load(run / "agent")
    assert (policy.config.task, policy.config.action_size) == (TASK, 4)
    played = dr("eval-agent", "--agent", str(run / "agent"), "--out", str(tmp_path / "played"), "--episodes", "2")
    assert played.returncode == 0, played.stderr
    assert re.search(r"success \d+% \([012] of 2\), 95 % interval", played.stdout)
    assert len(list((tmp_path / "played").glob("*.mp4"))) == 2
    again = dr("eval-agent", "--agent", str(run / "agent"), "--out", str(tmp_path / "played"))
    assert again.returncode == 2 and "files of an earlier run" in again.stderr


def test_a_killed_training_goes_on_as_if_nothing_had_happened(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    words = ["train-agent", "--task", TASK, "--reward", "sparse", "--frames", "800", "--out", str(out), *SMALL]
    process = subprocess.Popen([sys.executable, "-m", "dr_core.cli", *words], stdout=subprocess.DEVNULL)
    while len(read_metrics(out / "metrics.jsonl")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    resumed = dr(*words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    key = [[line["loss"] for line in read_metrics(folder / "metrics.jsonl")] for folder in (run, out)]
    assert key[0] == key[1]
    hashes = [json.loads((f / "agent" / "manifest.json").read_text())["sha256"] for f in (run, out)]
    assert hashes[0]["model.safetensors"] == hashes[1]["model.safetensors"]


def test_genreward_trains_from_an_imagined_goal_and_goes_on_exactly(tmp_path: Path) -> None:
    """Two rounds, then the rest; against one that ran through. A goal that is another one is refused."""
    words = ["train-agent", "--task", TASK, "--reward", "genreward", "--model", str(MODEL), "--frames", "600", *SMALL]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = dr(*words, "--out", str(whole))
    assert done.returncode == 0, done.stderr
    line = read_metrics(whole / "metrics.jsonl")[-1]
    assert line["term_video"] == 0.0 and line["term_goal_video"] != 0.0 and line["fb_spread"] > 0.0
    assert line["return_goal_video"] != 0.0 and {"fb_loss", "fb_orthonormality"} <= set(line)
    assert (whole / "goal" / "frame.png").is_file() and len(read_video(whole / "goal" / "goal.mp4")[0]) == 48
    about = json.loads((whole / "goal" / "goal.json").read_text())
    assert about["from"] == "imagined, seed 0" and (about["goal_frame"], about["chosen_by"]) == (47, "last")
    assert json.loads((whole / "agent" / "manifest.json").read_text())["learned"]["goal"] == about["sha256"]

    process = subprocess.Popen(
        [sys.executable, "-m", "dr_core.cli", *words, "--out", str(cut)], stdout=subprocess.DEVNULL
    )  # fmt: skip
    while len(read_metrics(cut / "metrics.jsonl")) < 1:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    other = dr(*words, "--out", str(cut), "--goal-frame", "3", "--resume")
    assert other.returncode == 2 and "another task, goal" in other.stderr
    resumed = dr(*words, "--out", str(cut), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    keys = ("loss", "return_goal_video")
    lines = [[[line[k] for k in keys] for line in read_metrics(f / "metrics.jsonl")] for f in (whole, cut)]
    assert lines[0] == lines[1]
    hashes = [json.loads((f / "agent" / "manifest.json").read_text())["sha256"] for f in (whole, cut)]
    assert hashes[0]["model.safetensors"] == hashes[1]["model.safetensors"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--goal", "{path}/none.mp4"], "nothing there"),
        (["--goal", "{path}/goal.mp4"], "out-of-distribution score"),
        (["--goal", "{path}/goal.mp4", "--goal-unfamiliar", "--goal-text", " "], "expected a text"),
        (["--goal", "{path}/goal.mp4", "--goal-unfamiliar", "--goal-text", "a shut door"], "give it with --clip"),
        (["--frame-encoder", "{path}/none"], "{path}/none"),
    ],
)
def test_a_goal_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, words: list[str], told: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    write_video(tmp_path / "goal.mp4", noise, 10.0, lossless=False)
    given = [word.format(path=tmp_path) for word in words]
    common = ["train-agent", "--task", TASK, "--reward", "genreward", "--model", str(MODEL), "--frames", "200", *SMALL]
    done = dr(*common, "--out", str(tmp_path / "run"), *given)
    assert done.returncode == 2 and told.format(path=tmp_path) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--reward", "default"], "give it with --model"),
        (["--reward", "genreward"], "give it with --model"),
        (["--reward", "amp"], "--experts"),
        (["--reward", "sparse", "--set", "agent.batch=3"], "batch_size"),
        (["--reward", "sparse", "--envs", "0"], "at least 1"),
    ],
)
def test_wrong_input_is_refused_in_one_line(tmp_path: Path, words: list[str], told: str) -> None:
    done = dr("train-agent", "--task", TASK, "--frames", "200", "--out", str(tmp_path / "run"), *words)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
