"""`dr train-reward`: killed anywhere and resumed it gives the uninterrupted run's numbers; mistakes cost one line."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dr_core import cli
from dr_core.checkpoint import load_checkpoint
from dr_core.codec.vqgan import VQGANConfig
from dr_core.config import override
from dr_core.data.cache import open_store
from dr_core.data.video import write_video
from dr_core.diffusion.denoiser import CrossAttentionConfig
from dr_core.errors import OutputInUseError
from dr_core.presets import PRESETS
from dr_core.rewards import train as reward_training
from dr_core.rewards.model import RewardModel
from dr_core.rewards.train import train_reward
from dr_core.training import newest_checkpoint, read_metrics
from tests.core.moving_square import RENDER, moving_square, record, record_set

ROOT = Path(__file__).parents[2]
STEPS = 60
SETTINGS = [
    *("model.fsq.levels=[4,4,4]", "model.fsq.channels=8", "model.estimator.stride=50", "checkpoint_every_s=0.05"),
    *("model.in_place.width=16", "model.in_place.depth=1", f"codec_training.steps={STEPS}"),
    *("codec_training.batch_size=4", f"video_training.steps={STEPS}", "video_training.batch_size=8"),
]
Summary = tuple[list[dict[str, Any]], str]


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of expert episodes and of others."""
    return record_set(tmp_path_factory.mktemp("episodes"), episodes=1, length=8)


def arguments(episodes: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    expert, other = map(str, episodes)
    return [
        *("train-reward", expert, "--background", other, "--out", str(out), "--device", "cpu", "--preset", "tiny"),
        *("--set", *SETTINGS, *more),
    ]


class Process:
    """A real `dr` on one thread; never outlives its test."""

    def __init__(self, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "dr_core.cli", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def when(self, condition: Callable[[], bool]) -> None:
        """Wait for it, or for the end of the process."""
        limit = time.monotonic() + 60
        while not condition() and self._popen.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        out, err = self._popen.communicate(timeout=60)
        return self._popen.returncode, out, err

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()


def finish(command: list[str]) -> None:
    with Process(*command) as process:
        status, _, err = process.end()
    assert status == 0, err
    assert err == ""


def summary(out: Path) -> Summary:
    """All losses, and the hash of the trained weights."""
    return (
        read_metrics(out / "metrics.jsonl"),
        hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest(),
    )


@pytest.fixture(scope="module")
def whole(episodes: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, float]:
    """The uninterrupted run, and the seconds from its first file to its end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with Process(*arguments(episodes, out)) as process:
        process.when((out / ".lock").exists)
        start = time.monotonic()
        status, stdout, err = process.end()
    assert status == 0, err
    assert "reward model:" in stdout and err == ""
    result = summary(out)
    assert [(row["stage"], row["step"]) for row in result[0]] == [
        (stage, step) for stage in ("codec", "video") for step in range(1, STEPS + 1)
    ]
    return result, time.monotonic() - start


def kill_within(stage: str, process: Process, out: Path) -> int:
    """kill -9 between a checkpoint of the stage and its end; the step to resume from."""
    process.when(lambda: any((out / stage).glob("step_*")))
    process.signal(signal.SIGKILL)
    assert process.end()[0] == -signal.SIGKILL
    step = int(load_checkpoint(newest_checkpoint(out / stage)).manifest["step"])
    assert 0 < step < STEPS
    return step


def test_killed_in_each_stage_and_robbed_of_its_images_it_ends_the_same(
    episodes: tuple[Path, Path], whole: tuple[Summary, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = (tmp_path / "expert", tmp_path / "other")
    for source, copy in zip(episodes, copies, strict=True):
        shutil.copytree(source, copy)
    out = tmp_path / "run"
    command = arguments(copies, out)
    with Process(*command) as process:
        process.when((out / ".lock").exists)
        # A second run on the directory, while the first one is at work.
        for more in ([], ["--resume"]):
            assert cli.main([*command, *more]) == 2
            assert capsys.readouterr().err.count("\n") == 1
        kill_within("codec", process, out)

    with Process(*command, "--resume") as process:
        kill_within("video", process, out)
    # From here on the tokens are all there is.
    for folder in (*copies, out / "frames"):
        shutil.rmtree(folder)
    finish([*command, "--resume"])
    assert summary(out) == whole[0]


def test_stopped_by_ctrl_c_and_then_killed_at_random_instants_it_ends_the_same(
    episodes: tuple[Path, Path], whole: tuple[Summary, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = arguments(episodes, out)
    with Process(*command) as process:
        process.when(lambda: any((out / "codec").glob("step_*")))
        process.signal(signal.SIGINT)
        status, _, err = process.end()
    assert status == 130
    assert err.startswith("dr: stopped after step ") and err.endswith("continue with --resume\n")
    assert err.count("\n") == 1
    step = int(err.split()[4])
    assert load_checkpoint(newest_checkpoint(out / "codec")).manifest["step"] == step < STEPS
    assert len(read_metrics(out / "metrics.jsonl")) == step

    command.append("--resume")
    rng = np.random.default_rng(3)
    kills = 0
    for _ in range(4):
        before = _opened_ns(out)
        with Process(*command) as process:
            process.when(lambda before=before: _opened_ns(out) != before)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.4) * whole[1])
            process.signal(signal.SIGKILL)
            kills += process.end()[0] == -signal.SIGKILL
    finish(command)
    assert kills >= 2
    assert summary(out) == whole[0]
    assert [path for path in out.rglob("*") if "writing" in path.name] == [], "nothing half written stays"


def _opened_ns(out: Path) -> int:
    """Changes when a process begins to work in the directory, after its imports."""
    return max((file.stat().st_mtime_ns for file in out.glob("tensorboard/*")), default=0)


# ---- mistakes: in this process, before anything is trained ----


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(reward_training, "train", never)


def one_line(command: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Exit status 2 and one line that holds all ``words``."""
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("dr: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err
    return err


@pytest.mark.usefixtures("no_training")
def test_an_existing_directory_or_file_is_refused(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("x")
    one_line(arguments(episodes, tmp_path), capsys, "--resume")
    one_line(arguments(episodes, tmp_path / "precious"), capsys, "a file")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.usefixtures("no_training")
def test_the_ratio_reward_needs_a_background_and_the_advice_helps(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train-reward", str(episodes[0]), "--out", str(tmp_path / "run"), "--preset", "tiny"]
    err = one_line(command, capsys, "--background PATH")
    assert not (tmp_path / "run").exists()
    advice = err[err.index("--set") :].split()
    for order in (advice[1:], advice[:0:-1]):
        for form in (["--set", *order], [word for setting in order for word in ("--set", setting)]):
            out = tmp_path / str(hash(tuple(form)))
            with pytest.raises(AssertionError, match="training began"):
                cli.main([*command[:3], str(out), *command[4:], *form])


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.estimator.nmae=ratio", ["'name'", "model.estimator.nmae"]),
        ("modle.frame_skip=2", ["'model'"]),
        ("sed=1", ["'seed'"]),
        ("model.estimator.name=ration", ["'ratio'"]),
        ("model.frame_skip=0", ["frame_skip"]),
        ("model.fsq.channels=20", ["channels"]),
        ("model.image.size=32", ["image.size"]),
        ("model.estimator.num_steps=65", ["num_steps"]),
        ("video_training.steps=0", ["steps"]),
        ("checkpoint_every_s=-1", ["checkpoint_every_s"]),
        ("seed", ["key=value"]),
    ],
)
def test_wrong_settings_are_told_by_name(
    setting: str, words: list[str], episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_line(arguments(episodes, tmp_path / "run", setting), capsys, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_training")
def test_a_config_file_and_single_settings_add_up(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("model: {frame_skip: 2, num_history: 3}\nseed: 5\n")
    command = arguments(episodes, tmp_path / "run", "seed=6")
    with pytest.raises(AssertionError, match="training began"):
        cli.main([*command, "--config", str(tmp_path / "my.yaml"), "--set", "model.frame_skip=3"])
    config = (tmp_path / "run" / "config.yaml").read_text()
    for line in ("frame_skip: 3", "num_history: 3", "seed: 6", "checkpoint_every_s: 0.05"):
        assert line in config
    # The same run again, but not quite.
    for more in (["--set", "seed=7"], ["--config", str(tmp_path / "my.yaml"), "--set", "seed=6"]):
        one_line([*command, "--resume", *more], capsys, "what this run was started with", "another preset")


@pytest.mark.usefixtures("no_training")
def test_episodes_rendered_in_different_ways_are_not_mixed(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = record(tmp_path / "odd", moving_square(0, expert=True, length=8), render={**RENDER, "orientation": "flipped"})
    command = arguments(episodes, tmp_path / "run")
    one_line([*command[:2], str(odd), *command[2:]], capsys, "flipped", str(odd))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("which", ["none", "missing", "empty"])
def test_without_experts_there_is_nothing_to_learn(
    which: str, episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    command = arguments(episodes, tmp_path / "run")
    command[1:2] = [] if which == "none" else [str(tmp_path / which)]
    one_line(command, capsys, "expected")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_training")
def test_a_run_is_not_continued_with_other_episodes(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(episodes, tmp_path / "run")
    with pytest.raises(AssertionError, match="training began"):
        cli.main(command)
    other = record(tmp_path / "other", moving_square(5, expert=True, length=8))
    one_line([*command[:2], str(other), *command[2:], "--resume"], capsys, "other episodes", "sources.yaml")


def test_experts_that_failed_are_left_out_but_recordings_without_metadata_are_trusted(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = record(tmp_path / "failed", moving_square(5, expert=False, length=8), expert=False)
    video = tmp_path / "push" / "own.mp4"
    video.parent.mkdir()
    write_video(video, moving_square(6, expert=True, length=8), 10.0, lossless=True)
    command = arguments(episodes, tmp_path / "run", "codec_training.steps=2", "video_training.steps=2")
    assert cli.main([*command[:2], str(failed), str(video), *command[2:]]) == 0
    assert "left out: 1 of outcome failure" in capsys.readouterr().out
    clips = open_store(tmp_path / "run" / "tokens").clips
    sources = {clip.source for clip in clips if clip.behaviour == "expert"}
    assert str(video) in sources and str(failed) not in sources
    command = arguments((failed, episodes[1]), tmp_path / "other")
    one_line(command, capsys, "1 of outcome failure")


def test_clips_shorter_than_the_spacing_are_told(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("model.frame_skip=8", "codec_training.steps=1", "codec_training.batch_size=1")
    one_line(arguments(episodes, tmp_path / "run", *settings), capsys, "frame_skip")


@pytest.mark.usefixtures("one_thread")
def test_many_short_episodes_have_statistics_too(
    episodes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with so many episodes that fewer than one frame of each is wanted.
    monkeypatch.setattr(reward_training, "STATISTICS_FRAMES", 0.5)
    quick = ("codec_training.steps=2", "video_training.steps=2")
    assert cli.main(arguments(episodes, tmp_path / "run", *quick)) == 0
    model = RewardModel.load(tmp_path / "run" / "model")
    assert all(table["push"]["frames"] >= 1 for table in model.manifest["statistics"].values())


# ---- other recipes ----


@pytest.mark.usefixtures("one_thread")
def test_the_published_recipe_trains_at_a_small_size(episodes: tuple[Path, Path], tmp_path: Path) -> None:
    preset = PRESETS["paper"]()
    model = replace(
        preset.model,
        vqgan=VQGANConfig(channels=(32, 32, 32, 32), latent_dim=8, num_codes=32),
        cross_attention=CrossAttentionConfig(width=16, depth=1, heads=2, condition_width=8),
        estimator=replace(preset.model.estimator, stride=50),
    )
    config = override(
        replace(preset, model=model),
        {
            "codec_training": {"steps": 2, "batch_size": 2, "vqgan_loss": {"adversarial_start": 1}},
            "video_training": {"steps": 3, "batch_size": 4, "warmup_steps": 1, "ema_every": 1},
        },
    )
    out = train_reward(config, [episodes[0]], [], tmp_path / "run", resume=False)
    reward = RewardModel.load(out)
    assert reward.estimators()[0] == "paper" and "ratio" not in reward.estimators()
    scored = reward.score(moving_square(1, expert=True, length=3)[None], task="push")
    assert scored.valid.all() and scored.calls == 3
    # The table of history codes is published as it starts: the averaged and the live one are the same.
    tensors = load_checkpoint(newest_checkpoint(tmp_path / "run" / "video")).tensors
    assert torch.equal(tensors["video.condition_codes.weight"], tensors["ema.condition_codes.weight"])
    assert not torch.equal(tensors["video.to_logits.weight"], tensors["ema.to_logits.weight"])


@pytest.mark.usefixtures("one_thread")
def test_an_entropy_reward_needs_no_background_and_the_finished_run_is_left_alone(
    episodes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train-reward", str(episodes[0]), "--out", str(tmp_path / "run"), "--preset", "tiny", "--device", "cpu"]
    quick = [*SETTINGS, "codec_training.steps=2", "video_training.steps=2"]
    command += ["--set", *quick, "model.background=false", "model.estimator.name=one_pass"]
    assert cli.main(command) == 0
    model = RewardModel.load(tmp_path / "run" / "model")
    assert model.estimators()[0] == "one_pass" and "ratio" not in model.estimators()
    assert open_store(tmp_path / "run" / "tokens").tasks("background") == []

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.main([*command, "--resume"]) == 0
    assert "nothing to do" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    with pytest.raises(OutputInUseError):
        model.save(tmp_path / "run" / "model")
