"""Scoring of recordings: the table, the picture and the video, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter
from dr_core.data.images import ImageRule
from dr_core.data.video import read_video, write_video
from dr_core.errors import BagError, ConfigError, OutputInUseError
from dr_core.rewards.model import RewardModel
from dr_core.study import plots
from dr_core.study.commands import Score
from dr_core.study.scoring import score, unique_names

RENDER = {"camera": "corner"}
STATISTICS = {"push": 0.0, "slide": 10.0, None: 100.0}


class BrightnessModel:
    """A reward model without networks: its raw reward is the mean grey level, without one for the first frame."""

    def __init__(self) -> None:
        self.tasks = ["push", "slide"]
        self.model_hash = "0123abcd"
        self.manifest = {"render": RENDER}
        self.config = SimpleNamespace(estimator=SimpleNamespace(name="grey"), image=ImageRule())

    def estimators(self) -> list[str]:
        return ["grey", "noisy"]

    def tokenize(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        return frames.reshape(len(frames), 8, 8, 8, 8, 3).mean((2, 4, 5)).astype(np.int64).reshape(len(frames), 64)

    def score_tokens(
        self,
        clips: Sequence[NDArray[np.int64]],
        *,
        estimator: str | None = None,
        task: str | None = None,
        every: int = 1,
    ) -> list[SimpleNamespace]:
        [clip] = clips
        raw = clip.mean(1).astype(np.float32)
        stderr = np.full_like(raw, 2.0 if estimator == "noisy" else 0.0)
        valid = np.arange(len(clip)) > 0
        ood = np.full_like(raw, 0.25)
        return [SimpleNamespace(value=raw - STATISTICS[task], raw=raw, stderr=stderr, valid=valid, calls=1, ood=ood)]


def brightening(count: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 64, 64, 3)).copy()


def write_bag(path: Path, task: str = "push", *, frames: int = 12, seed: int | None = 4, **changes: Any) -> Path:
    values = {
        "task": task, "outcome": "partial", "operator": "scripted", "camera": "corner", "camera_serial": "",
        "quality": 0, "seed": seed, "rate_hz": 10.0, "render": RENDER, "versions": {}, "calibration_hash": None,
        "drops": {}, **changes,
    }  # fmt: skip
    with EpisodeWriter(path, EpisodeMetadata(**values)) as writer:
        for number, frame in enumerate(brightening(frames)):
            writer.write_image(10**9 + number * 10**8, frame)
        writer.close("success")
    return path


def test_the_table_has_every_frame_with_its_reward_and_provenance(tmp_path: Path) -> None:
    bags = [write_bag(tmp_path / "a"), write_bag(tmp_path / "b", "slide", seed=None)]
    (tmp_path / "out").mkdir()
    score(BrightnessModel(), bags, tmp_path / "out", estimator=None, task=None)
    table = pd.read_parquet(tmp_path / "out" / "rewards.parquet")
    assert list(table.columns) == [
        "episode", "frame", "stamp_ns", "value", "raw", "stderr", "valid", "ood", "calls", "estimator", "model_hash",
        "noise_seed", "seed",
    ]  # fmt: skip
    assert table.episode.tolist() == [str(bags[0])] * 12 + [str(bags[1])] * 12
    first = table[table.episode == str(bags[0])]
    assert first.frame.tolist() == list(range(12))
    assert first.stamp_ns.tolist() == [10**9 + k * 10**8 for k in range(12)]
    assert first.raw.tolist() == list(range(12)) and first.value.tolist() == list(range(12))
    assert first.valid.tolist() == [False] + [True] * 11
    assert set(first.ood) == {0.25} and set(first.calls) == {1} and set(first.noise_seed) == {0}
    assert set(first.estimator) == {"grey"} and set(first.model_hash) == {"0123abcd"} and set(first.seed) == {4}
    second = table[table.episode == str(bags[1])]
    assert np.allclose(second.value, second.raw - 10)  # the statistics of its own task
    assert second.seed.isna().all()
    text = pd.read_csv(tmp_path / "out" / "rewards.csv")
    assert np.allclose(text.value, table.value) and text.stamp_ns.tolist() == table.stamp_ns.tolist()


def test_statistics_of_a_named_task_or_of_all_for_an_unknown_one(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "a", "unknown")
    for task, mean in ((None, 100), ("slide", 10)):
        out = tmp_path / f"out-{task}"
        out.mkdir()
        score(BrightnessModel(), [bag], out, estimator=None, task=task)
        table = pd.read_parquet(out / "rewards.parquet")
        assert np.allclose(table.value, table.raw - mean)


def test_the_video_shows_the_frames_over_their_curve_in_recorded_time(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "a", frames=60)
    (tmp_path / "out").mkdir()
    score(BrightnessModel(), [bag], tmp_path / "out", estimator="noisy", task=None)
    frames, stamps_ns = read_video(tmp_path / "out" / "a.mp4")
    assert frames.shape == (60, 384 + 192, 384, 3)
    assert np.median(np.diff(stamps_ns)) == pytest.approx(1e8, rel=1e-3)
    assert abs(float(frames[40, :380].mean()) - 40) < 3
    red = (frames[..., 0].astype(int) - frames[..., 1]) > 90  # the cursor, the only red in the strip
    cursor = [float(np.nonzero(red[k, 400:].any(0))[0].mean()) for k in (5, 30, 55)]
    assert cursor[0] < cursor[1] < cursor[2]
    assert cursor[2] - cursor[1] == pytest.approx(cursor[1] - cursor[0], abs=2)
    picture = cv2.imread(str(tmp_path / "out" / "a.png"))
    assert picture is not None and picture.std() > 10


def test_a_hundred_frames_take_a_moment(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "a", frames=100)
    (tmp_path / "out").mkdir()
    start = time.process_time()
    score(BrightnessModel(), [bag], tmp_path / "out", estimator=None, task=None)
    assert time.process_time() - start < 6  # about 1 s; x264 counts the time of all its threads


def test_a_long_recording_makes_a_shorter_video_of_the_same_duration(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "a", frames=250)
    (tmp_path / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dr_core.study.scoring.MAX_VIDEO_FRAMES", 100)
        score(BrightnessModel(), [bag], tmp_path / "out", estimator=None, task=None)
    frames, stamps_ns = read_video(tmp_path / "out" / "a.mp4")
    assert len(frames) == 84
    assert stamps_ns[-1] / 1e9 == pytest.approx(24.9, abs=0.1)
    assert len(pd.read_parquet(tmp_path / "out" / "rewards.parquet")) == 250


def test_a_plain_video_is_scored_with_a_note_about_its_camera(tmp_path: Path) -> None:
    (tmp_path / "slide").mkdir()
    video = tmp_path / "slide" / "demo.mp4"
    write_video(video, brightening(10), 5.0, lossless=True)
    (tmp_path / "out").mkdir()
    notes: list[str] = []
    score(BrightnessModel(), [video], tmp_path / "out", estimator=None, task=None, note=notes.append)
    assert len(notes) == 1 and "not checked" in notes[0]
    table = pd.read_parquet(tmp_path / "out" / "rewards.parquet")
    assert np.allclose(table.value, table.raw - 10)  # the directory names the task
    assert (tmp_path / "out" / "demo_mp4.png").exists() and (tmp_path / "out" / "demo_mp4.mp4").exists()


def test_one_frame_without_a_valid_reward_is_still_drawn(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    score(BrightnessModel(), [write_bag(tmp_path / "a", frames=1)], tmp_path / "out", estimator=None, task=None)
    assert read_video(tmp_path / "out" / "a.mp4")[0].shape == (1, 576, 384, 3)


def test_another_camera_task_or_estimator_is_refused(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "a")
    other = write_bag(tmp_path / "b", render={"camera": "top"})
    model = BrightnessModel()
    with pytest.raises(BagError, match="camera corner; found camera top"):
        score(model, [bag, other], tmp_path, estimator=None, task=None)
    with pytest.raises(ConfigError, match="push, slide"):
        score(model, [bag], tmp_path, estimator=None, task="pull")
    with pytest.raises(ConfigError, match="grey, noisy"):
        score(model, [bag], tmp_path, estimator="ratio", task=None)


def test_names_grow_by_parents_until_they_differ() -> None:
    assert unique_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert unique_names([Path("/x/q0/e"), Path("/x/q25/e")]) == ["q0-e", "q25-e"]
    assert unique_names([Path("/x/e.mp4"), Path("/x/e")]) == ["e_mp4", "e"]
    assert len(set(unique_names([Path("/x/e.1"), Path("/x/e_1")]))) == 2


def test_the_cursor_column_of_a_frame_is_where_its_point_is_drawn() -> None:
    value = np.zeros(11, np.float32)
    value[4] = 10
    strip, columns = plots.reward_strip(value, width_px=400, height_px=160)
    assert strip.shape == (160, 400, 3) and columns.shape == (11,)
    dark = (strip.astype(int).sum(2) < 400)[:60, 60:]  # the peak, right of the axis and its labels
    assert abs(np.nonzero(dark.any(0))[0].mean() + 60 - columns[4]) < 3


def test_the_command_writes_whole_or_not_at_all_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RewardModel, "load", lambda path, device, **precision: BrightnessModel())
    bag, out = write_bag(tmp_path / "bags" / "a"), tmp_path / "out"
    command = Score((bag.parent,), model=tmp_path, out=out)
    assert command.run() == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.mp4", "a.png", "rewards.csv", "rewards.parquet"]
    assert str(out) in capsys.readouterr().out
    with pytest.raises(OutputInUseError, match="another --out"):
        command.run()
    with pytest.raises(ConfigError):
        Score((bag,), model=tmp_path, out=tmp_path / "second", estimator="ratio").run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bags", "out"]
