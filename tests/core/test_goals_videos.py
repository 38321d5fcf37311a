"""The cache of goal videos, and `dr goal-video`: recordings as they are, generated and imagined ones, goal frames."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dr_core import cli
from dr_core.data.images import ImageRule
from dr_core.data.video import read_video, write_video
from dr_core.errors import BagError, CheckpointError
from dr_core.goals.cache import PICTURE, PROVENANCE, VIDEO, cached_goal, key_of, read_goal, write_goal
from dr_core.goals.imagine import imagine
from dr_core.goals.videos import own_edge, read_clip, read_first_frames, read_picture, write_picture
from dr_core.presets import PRESETS
from dr_core.rewards.model import Networks, RewardModel
from tests.core.moving_square import RENDER, moving_square, record
from tests.core.tiny_networks import change_json, save_pipeline
from tests.core.tiny_vision import save_clip

pytestmark = pytest.mark.usefixtures("one_thread")
EXTRA = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the extra genreward is not installed")
MADE_FROM = {"way": "test", "first_frame_sha256": "00", "prompt": "push", "seed": 1, "settings": {"steps": 2}}


class Maker:
    """Counts how often it draws."""

    def __init__(self, seed: int = 0) -> None:
        self.calls, self.seed = 0, seed

    def __call__(self) -> NDArray[np.uint8]:
        self.calls += 1
        return moving_square(self.seed, expert=True, length=5)


# ---- cache ----


def test_the_same_question_is_answered_once(tmp_path: Path) -> None:
    maker = Maker()
    made = cached_goal(tmp_path / "cache", MADE_FROM, maker, 10.0)
    kept = cached_goal(tmp_path / "cache", MADE_FROM, maker, 10.0)
    assert maker.calls == 1
    np.testing.assert_array_equal(kept.frames, made.frames)
    assert kept.provenance == made.provenance and kept.rate_hz == 10.0
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.name == key_of({**MADE_FROM, "rate_hz": 10.0}) == kept.provenance["key"]
    assert kept.provenance["made_from"] == {**MADE_FROM, "rate_hz": 10.0}


def test_any_changed_input_is_another_entry(tmp_path: Path) -> None:
    maker = Maker()
    cached_goal(tmp_path, MADE_FROM, maker, 10.0)
    changes: list[dict[str, Any]] = [
        {"prompt": "Push"},
        {"seed": 2},
        {"seed": "1"},
        {"settings": {"steps": 3}},
        {"first_frame_sha256": "01"},
        {"model_files": {}},
    ]
    for change in changes:
        cached_goal(tmp_path, {**MADE_FROM, **change}, maker, 10.0)
    cached_goal(tmp_path, MADE_FROM, maker, 12.0)
    assert maker.calls == len(list(tmp_path.iterdir())) == 2 + len(changes)
    cached_goal(tmp_path, dict(reversed(MADE_FROM.items())), maker, 10.0)
    assert maker.calls == 2 + len(changes), "the order of names says nothing"


def other_video(entry: Path) -> None:
    (entry / VIDEO).unlink()
    write_video(entry / VIDEO, moving_square(8, expert=True, length=5), 10, lossless=True)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda e: (e / VIDEO).write_bytes((e / VIDEO).read_bytes()[:-100]),
    "a bit": lambda e: (e / VIDEO).write_bytes((e / VIDEO).read_bytes()[:-1] + b"\x07"),
    "other video": other_video,
    "no video": lambda e: (e / VIDEO).unlink(),
    "no provenance": lambda e: (e / PROVENANCE).unlink(),
    "torn provenance": lambda e: (e / PROVENANCE).write_text('{"format": 1'),
    "no mapping": lambda e: (e / PROVENANCE).write_text("[1]"),
    "other prompt": lambda e: change_json(e / PROVENANCE, made_from={**MADE_FROM, "prompt": "pull"}),
    "other key": lambda e: change_json(e / PROVENANCE, made_from={}, key=key_of({})),
    "other rate": lambda e: change_json(e / PROVENANCE, rate_hz=-1.0),
    "other format": lambda e: change_json(e / PROVENANCE, format=2),
    "a file": lambda e: (shutil.rmtree(e), e.write_bytes(b"x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew_and_told(tmp_path: Path, damage: str) -> None:
    made = cached_goal(tmp_path, MADE_FROM, Maker(), 10.0)
    (entry,) = tmp_path.iterdir()
    DAMAGE[damage](entry)
    maker, told = Maker(), list[str]()
    again = cached_goal(tmp_path, MADE_FROM, maker, 10.0, told.append)
    assert maker.calls == 1 and len(told) == 1 and entry.name in told[0]
    np.testing.assert_array_equal(again.frames, made.frames)
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]
    assert cached_goal(tmp_path, MADE_FROM, maker, 10.0, told.append).provenance["key"] == entry.name
    assert maker.calls == 1


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> NDArray[np.uint8]:
        raise CheckpointError("pipeline", expected="a", found="b", next_step="c")

    with pytest.raises(CheckpointError):
        cached_goal(tmp_path, MADE_FROM, fail, 10.0)
    with pytest.raises(ValueError, match="one size"):
        cached_goal(tmp_path, MADE_FROM, lambda: np.zeros((2, 8, 8), np.uint8), 10.0)
    assert list(tmp_path.iterdir()) == []


def test_a_quicker_process_wins(tmp_path: Path) -> None:
    """Another process that makes the same video finishes while this one draws."""

    def slow() -> NDArray[np.uint8]:
        cached_goal(tmp_path, MADE_FROM, Maker(), 10.0)
        return moving_square(1, expert=True, length=5)

    goal = cached_goal(tmp_path, MADE_FROM, slow, 10.0)
    np.testing.assert_array_equal(goal.frames, Maker()())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_goal_is_lossless_with_its_frame(tmp_path: Path) -> None:
    frames = moving_square(3, expert=True, length=7)
    write_goal(tmp_path / "goal", frames, 12.5, MADE_FROM, (4, "index"))
    read = read_goal(tmp_path / "goal")
    np.testing.assert_array_equal(read.frames, frames)
    np.testing.assert_array_equal(read_picture(tmp_path / "goal" / PICTURE), frames[4])
    assert read.provenance["goal_frame"] == {"index": 4, "chosen_by": "index"} and read.rate_hz == 12.5
    with pytest.raises(OSError):
        write_goal(tmp_path / "goal", frames, 12.5, MADE_FROM)
    write_picture(tmp_path / "goal" / PICTURE, frames[5])
    with pytest.raises(CheckpointError, match=r"a goal_frame\.png that was changed"):
        read_goal(tmp_path / "goal")


# ---- sources ----


def test_clips_and_first_frames_of_recordings(tmp_path: Path) -> None:
    frames = moving_square(1, expert=True, length=6)
    bag = record(tmp_path / "bag", frames)
    write_video(tmp_path / "video.mp4", frames[:, :48], 25, lossless=True)
    write_picture(tmp_path / "picture.png", frames[0, :48])
    center = ImageRule(48, "center")
    assert [own_edge(path, center) for path in (bag, tmp_path / "video.mp4", tmp_path / "picture.png")] == [64, 48, 48]
    assert own_edge(bag, ImageRule(10, (3, 4, 21, 21))) == 21
    clip, rate_hz = read_clip(bag, ImageRule(64))
    np.testing.assert_array_equal(clip, frames)
    assert rate_hz == 10.0
    clip, rate_hz = read_clip(tmp_path / "video.mp4", center)
    np.testing.assert_array_equal(clip, frames[:, :48, 8:56])
    assert rate_hz == 25.0
    first, render = read_first_frames(bag, 2, ImageRule(64))
    np.testing.assert_array_equal(first, frames[:2])
    assert render == RENDER
    first, render = read_first_frames(tmp_path / "picture.png", 1, center)
    np.testing.assert_array_equal(first, frames[:1, :48, 8:56])
    assert render is None


def test_unusable_sources(tmp_path: Path) -> None:
    short = record(tmp_path / "short", moving_square(1, expert=True, length=1))
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for read, found in (
        (lambda: read_clip(short, ImageRule(64)), "at least 2 frames"),
        (lambda: read_clip(tmp_path / "none.mp4", ImageRule(64)), "nothing there"),
        (lambda: read_first_frames(short, 2, ImageRule(64)), "at least 2 frames"),
        (lambda: read_picture(tmp_path / "none.png"), "nothing there"),
        (lambda: read_picture(tmp_path / "torn.png"), "whole PNG"),
    ):
        with pytest.raises(BagError, match=found):
            read()


# ---- without the extra ----

WITHOUT = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "transformers", "peft", "sentencepiece", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import dr_core.goals
for module in pkgutil.iter_modules(dr_core.goals.__path__, "dr_core.goals."):
    importlib.import_module(module.name)
importlib.util.find_spec = lambda name, plain=importlib.util.find_spec: None if name == "diffusers" else plain(name)
from dr_core.cli import main
recording, folder = sys.argv[1:]
print(main(["goal-video", recording, "--out", f"{folder}/goal"]))
print(main(["finetune-goal", recording, "--generator", folder, "--out", f"{folder}/run"]))
"""


def test_without_the_extra_recordings_work_and_the_rest_names_it(
    episode: Path, tmp_path: Path, python: Callable[..., Any]
) -> None:
    done = python("-c", WITHOUT, str(episode), str(tmp_path))
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["0", "2"], done.stderr
    assert done.stderr.count("\n") == 1 and "pip install -e '.[genreward]'" in done.stderr
    assert (tmp_path / "goal" / VIDEO).exists() and not (tmp_path / "run").exists()


# ---- the command ----


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained reward model whose pictures are those of the episodes."""
    config = PRESETS["tiny"]().model
    config = replace(config, fsq=replace(config.fsq, levels=(4, 4, 4)))
    torch.manual_seed(0)
    table = {"all": {"mean": 0.0, "std": 1.0}, "push": {"mean": 0.0, "std": 1.0}}
    manifest = {"tasks": ["push"], "statistics": {config.estimator.name: table}, "render": RENDER}
    networks = Networks(config, 1)
    path = tmp_path_factory.mktemp("model") / "model"
    RewardModel(config, networks, {**manifest, "frame_rate_hz": {"push": 20.0}}).save(path)
    return path


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    return record(tmp_path / "episode", moving_square(1, expert=True, length=6))


def dr(*arguments: object) -> int:
    return cli.main(["goal-video", *map(str, arguments), "--device", "cpu"])


def test_a_recording_as_it_is(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "goal"
    assert dr(episode, "--out", out, "--frame", "last") == 0
    assert "6 frames of 64 x 64 at 10 Hz" in capsys.readouterr().out
    frames = moving_square(1, expert=True, length=6)
    np.testing.assert_array_equal(read_goal(out).frames, frames)
    np.testing.assert_array_equal(read_picture(out / PICTURE), frames[5])
    assert read_goal(out).provenance["made_from"]["source"] == str(episode)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert dr(episode, "--out", out) == 2
    assert "give another --out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # Other sizes and rates are taken over, or made as asked.
    write_video(tmp_path / "wide.mp4", frames[:, 10:50], 30, lossless=True)
    assert dr(tmp_path / "wide.mp4", "--out", tmp_path / "wide") == 2
    assert "declare a crop" in capsys.readouterr().err
    assert dr(tmp_path / "wide.mp4", "--out", tmp_path / "wide", "--crop", "center") == 0
    assert read_goal(tmp_path / "wide").frames.shape == (6, 40, 40, 3) and read_goal(tmp_path / "wide").rate_hz == 30
    assert dr(tmp_path / "wide.mp4", "--out", tmp_path / "small", "--crop", "center", "--size", 20, "--rate-hz", 5) == 0
    assert read_goal(tmp_path / "small").frames.shape == (6, 20, 20, 3)
    assert len(read_video(tmp_path / "small" / VIDEO)[1]) == 6


def test_an_imagined_video(
    episode: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--imagine", "--model", model, "--first-frame", episode, "--cache", tmp_path / "cache")
    assert dr(*options, "--out", tmp_path / "one", "--num-frames", 5, "--seed", 3) == 0
    wanted = imagine(RewardModel.load(model), moving_square(1, expert=True, length=1), 5, seed=3)
    goal = read_goal(tmp_path / "one")
    np.testing.assert_array_equal(goal.frames, wanted)
    assert goal.rate_hz == 20.0 and goal.provenance["made_from"]["seed"] == 3
    # The second time nothing is drawn; another first frame is another video.
    monkeypatch.setattr("dr_core.goals.imagine.imagine", lambda *_: pytest.fail("drawn again"))
    assert dr(*options, "--out", tmp_path / "two", "--num-frames", 5, "--seed", 3) == 0
    np.testing.assert_array_equal(read_goal(tmp_path / "two").frames, wanted)
    monkeypatch.undo()
    assert dr(*options, "--out", tmp_path / "three", "--num-frames", 5, "--seed", 3, "--first-frames", 2) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2
    capsys.readouterr()
    other = record(tmp_path / "other", moving_square(1, expert=True), render={"camera": "gripper"})
    assert dr("--imagine", "--model", model, "--first-frame", other, "--out", tmp_path / "four") == 2
    assert "camera corner2" in capsys.readouterr().err


@EXTRA
def test_a_generated_video_with_its_goal_frame(
    episode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dr_core.goals.generate import GoalGenerator

    pipeline, clip = save_pipeline(tmp_path / "pipeline"), save_clip(tmp_path / "clip")
    options = [
        *("--generator", pipeline, "--prompt", "push the block", "--steps", 2, "--cache", tmp_path / "cache"),
        *("--text", "the block is there", "--clip", clip),
    ]  # fmt: skip
    assert dr(*options, "--first-frame", episode, "--out", tmp_path / "one") == 0
    goal = read_goal(tmp_path / "one")
    assert goal.frames.shape == (9, 64, 64, 3) and goal.rate_hz == 8.0
    made_from, chosen = goal.provenance["made_from"], goal.provenance["goal_frame"]
    assert made_from["prompt"] == "push the block" and "transformer/config.json" in made_from["model_files"]
    assert {"torch", "diffusers", "transformers"} <= set(made_from["versions"])
    assert "the block is there" in chosen["chosen_by"] and "CLIP " in chosen["chosen_by"]
    np.testing.assert_array_equal(read_picture(tmp_path / "one" / PICTURE), goal.frames[chosen["index"]])
    # The same first frame from a picture is the same question.
    write_picture(tmp_path / "first.png", moving_square(1, expert=True, length=1)[0])
    monkeypatch.setattr(GoalGenerator, "generate", lambda *_: pytest.fail("drawn again"))
    assert dr(*options, "--first-frame", tmp_path / "first.png", "--out", tmp_path / "two") == 0
    np.testing.assert_array_equal(read_goal(tmp_path / "two").frames, goal.frames)
    monkeypatch.undo()
    change_json(pipeline / "scheduler" / "scheduler_config.json", snr_shift_scale=1.0)
    assert dr(*options, "--first-frame", tmp_path / "first.png", "--out", tmp_path / "three") == 0
    assert (read_goal(tmp_path / "three").frames != goal.frames).any()
    shutil.rmtree(pipeline / "vae")
    capsys.readouterr()
    assert dr(*options, "--first-frame", tmp_path / "first.png", "--out", tmp_path / "four") == 2
    assert "no vae/" in capsys.readouterr().err and not (tmp_path / "four").exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((), "found none"),
        (("E", "--imagine"), "a recording and --imagine"),
        (("--imagine", "--first-frame", "E"), "expected --model"),
        (("--generator", "G", "--prompt", " ", "--first-frame", "E"), "expected --prompt"),
        (("--generator", "G", "--prompt", "push"), "expected --first-frame"),
        (("E", "--text", "closed"), "expected --clip"),
        (("E", "--clip", "C"), "no text"),
        (("E", "--text", "closed", "--clip", "C", "--frame", "last"), "leave one out"),
        (("E", "--frame", "6"), "from 0 to 5"),
        (("E", "--frame", "-1"), "from 0 to 5"),
        (("E", "--size", "4"), "8 to 4096"),
        (("E", "--rate-hz", "nan"), "0 to 1000"),
        (("E", "--crop", "left"), "crop"),
        (("none.mp4",), "nothing there"),
        (("--imagine", "--model", "M", "--first-frame", "E", "--num-frames", "1"), "more than the 1 given"),
        (("--imagine", "--model", "M", "--first-frame", "E", "--first-frames", "7"), "at least 7 frames"),
        (("--imagine", "--model", "M", "--first-frame", "E", "--first-frames", "0"), "at least 1"),
        (("--generator", "G", "--prompt", "push", "--first-frame", "E", "--steps", "0"), "steps at least 1"),
        (("--generator", "none", "--prompt", "push", "--first-frame", "E"), "none"),
    ],
)
def test_unusable_options_are_refused_in_one_line(
    episode: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Any, found: str
) -> None:
    stand_for = {"E": episode, "M": model, "G": tmp_path / "G", "C": tmp_path / "C"}
    options = [stand_for.get(word, word) for word in arguments]
    assert dr(*options, "--out", tmp_path / "out", "--cache", tmp_path / "cache") == 2
    error = capsys.readouterr().err
    assert found in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
