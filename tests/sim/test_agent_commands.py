"""The commands that train agents, on a real simulated task, in processes of their own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dr_core.agent.actor import ActingPolicy
from dr_core.training import read_metrics

TASK = "door-close"
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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--reward", "default"], "give it with --model"),
        (["--reward", "amp"], "--experts"),
        (["--reward", "sparse", "--set", "agent.batch=3"], "batch_size"),
        (["--reward", "sparse", "--envs", "0"], "at least 1"),
    ],
)
def test_wrong_input_is_refused_in_one_line(tmp_path: Path, words: list[str], told: str) -> None:
    done = dr("train-agent", "--task", TASK, "--frames", "200", "--out", str(tmp_path / "run"), *words)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
