"""The discrimination study, on recordings of a moving square whose right answers are known."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from rich.console import Console

from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter
from dr_core.data.images import ImageRule
from dr_core.errors import BagError, ConfigError
from dr_core.study import controls, discrimination, tables
from dr_core.study.scoring import check_camera

RENDER = {"camera": "corner", "quality": "high"}


class SquareModel:
    """A reward model without networks: tokens are grey levels of an 8 x 8 grid, the reward is motion to the right.

    "backwards" prefers motion to the left, "blind" gives the same number everywhere.
    """

    def __init__(self, tasks: Sequence[str] = ("push", "slide"), **manifest: Any) -> None:
        self.tasks = list(tasks)
        self.model_hash = "0123abcd"
        self.manifest = {"render": RENDER, "dataset_sha256": "feed", **manifest}
        estimator = SimpleNamespace(name="right")
        self.config = SimpleNamespace(num_history=2, frame_skip=1, estimator=estimator, image=ImageRule())
        self.tokenized = 0
        self.every: dict[str, int] = {}

    def estimators(self) -> list[str]:
        return ["right", "backwards", "blind"]

    def tokenize(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        self.tokenized += len(frames)
        blocks = frames.reshape(len(frames), 8, 8, 8, 8, 3).mean((2, 4, 5))
        return blocks.round().astype(np.int64).reshape(len(frames), 64)

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        small = tokens.reshape(-1, 8, 8, 1).repeat(8, 1).repeat(8, 2)
        return np.broadcast_to(small, (*small.shape[:3], 3)).astype(np.uint8)

    def imagine(self, tokens: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
        return np.roll(tokens.reshape(-1, 8, 8), 1, axis=2).reshape(-1, 64)

    def wrong_task(self, tokens: NDArray[np.int64], task: str, estimator: str | None = None) -> NDArray[np.float32]:
        return np.zeros(len(tokens), np.float32)

    def score_tokens(
        self,
        clips: Sequence[NDArray[np.int64]],
        *,
        estimator: str | None = None,
        task: str | None = None,
        every: int = 1,
    ) -> list[SimpleNamespace]:
        assert task is None or task in self.tasks
        self.every[estimator or "right"] = every
        factor = {"right": 1.0, "backwards": -1.0, "blind": 0.0}[estimator or "right"]
        rewards = []
        for clip in clips:
            grid = clip.reshape(-1, 8, 8).astype(np.float64)
            place = (grid * np.arange(8)).sum((1, 2)) / grid.sum((1, 2))
            raw = (factor * np.diff(place, prepend=np.nan)).astype(np.float32)
            raw[np.arange(len(clip)) % every != every - 1] = np.nan
            valid = np.isfinite(raw)
            rewards.append(SimpleNamespace(value=2 * raw + 1, raw=raw, stderr=np.zeros_like(raw), valid=valid, calls=1))
        return rewards


def frames_of(columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A bright square of 8 x 8 pixels at each column (T,) in pixels."""
    frames = np.full((len(columns), 64, 64, 3), 40, np.uint8)
    for frame, column in zip(frames, columns, strict=True):
        frame[24:32, column : column + 8] = (200, 220, 240)
    return frames


def write_episode(path: Path, task: str, quality: int | None, seed: int, **changes: Any) -> Path:
    """An episode in which the square moves right, but for ``quality`` per cent of random steps."""
    rng = np.random.default_rng([seed, quality or 0])
    steps = np.where(rng.random(13) < (quality or 0) / 100, rng.choice([-4, 0, 4], 13), 4)
    columns = np.clip(np.cumsum(np.concatenate([[2], steps])), 0, 56)
    values = {
        "task": task, "outcome": "partial", "operator": "scripted", "camera": "corner", "camera_serial": "",
        "quality": quality, "seed": seed, "rate_hz": 10.0, "render": RENDER, "versions": {},
        "calibration_hash": None, "drops": {},
    }  # fmt: skip
    outcome = changes.pop("outcome", "success" if quality == 0 else "failure")
    with EpisodeWriter(path, EpisodeMetadata(**{**values, **changes})) as writer:
        for number, frame in enumerate(frames_of(columns)):
            writer.write_image(10**9 + number * 10**8, frame)
        writer.close(outcome)
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("episodes")
    return [
        write_episode(root / task / f"q{quality}" / f"episode_{seed}", task, quality, seed)
        for task in ("push", "slide", "turn")
        for quality in (0, 25, 50, 100)
        for seed in range(5)
    ]


@pytest.fixture(scope="module")
def study(recordings: list[Path]) -> discrimination.Study:
    return discrimination.run(SquareModel(), recordings, estimators=["right", "backwards", "blind"], seed=0)


def cell(study: discrimination.Study, score: str, measure: str, block: str = "seen") -> dict[str, Any]:
    return study.results["scores"][score]["blocks"][block][measure]


def test_controls_pick_frames_of_the_recording() -> None:
    picked = controls.expert_controls(5, np.random.default_rng(0))
    assert picked["frozen_start"].tolist() == [0] * 5
    assert picked["frozen_middle"].tolist() == [2] * 5
    assert picked["frozen_end"].tolist() == [4] * 5
    assert picked["reversed"].tolist() == [4, 3, 2, 1, 0]
    assert sorted(picked["shuffled"].tolist()) == [0, 1, 2, 3, 4]
    assert picked["truncated"].tolist() == [0, 1, 2]
    assert controls.double_speed(5).tolist() == [0, 2, 4]
    again = controls.expert_controls(5, np.random.default_rng(0))
    assert all(np.array_equal(picked[name], again[name]) for name in picked)


def test_the_tokens_of_a_control_are_those_of_its_frames() -> None:
    frames = frames_of(np.arange(0, 40, 4))
    model = SquareModel()
    for numbers in controls.expert_controls(len(frames), np.random.default_rng(0)).values():
        assert np.array_equal(model.tokenize(frames)[numbers], model.tokenize(frames[numbers]))


def test_a_shifted_camera_moves_the_image_right_and_repeats_its_edge() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    shifted = controls.shifted_camera(frames)
    assert np.array_equal(shifted[:, :, 4:], frames[:, :, :60])
    assert np.array_equal(shifted[:, :, :4], frames[:, :, :1].repeat(4, 2))


def test_a_right_reward_beats_its_levels_and_controls(study: discrimination.Study) -> None:
    for block in ("seen", "unseen"):
        for level in (25, 50, 100):
            assert cell(study, "right", f"auroc_{level}", block)["value"] == 1
        for control in ("frozen", "frozen_start", "frozen_middle", "frozen_end", "reversed"):
            assert cell(study, "right", control, block)["value"] == 1
        assert cell(study, "right", "kendall_tau", block)["value"] > 0.8
        assert cell(study, "right", "voc", block)["value"] > 0.9
        assert cell(study, "right", "wrong_task", block)["value"] == 0.5  # the same motion in every task


def test_a_wrong_reward_and_a_blind_one_show_as_such(study: discrimination.Study) -> None:
    assert cell(study, "backwards", "auroc_100")["value"] == 0
    assert cell(study, "backwards", "reversed")["value"] == 0
    assert cell(study, "backwards", "voc")["value"] < -0.9
    for measure, value in (("auroc_25", 0.5), ("frozen", 0.5), ("kendall_tau", 0), ("voc", 0)):
        assert cell(study, "blind", measure)["value"] == value


def test_trivial_scores_are_always_there(study: discrimination.Study) -> None:
    for name in ("tokens_changed", "codec_psnr"):
        for block in ("seen", "unseen"):
            assert set(study.results["scores"][name]["blocks"][block]) == set(discrimination.MEASURES)
    assert cell(study, "tokens_changed", "frozen")["value"] == 1


def test_every_cell_says_how_many_episodes(study: discrimination.Study) -> None:
    assert cell(study, "right", "auroc_25")["n"] == [10, 10]
    assert cell(study, "right", "auroc_25", "unseen")["n"] == [5, 5]
    assert cell(study, "right", "kendall_tau")["n"] == [10, 10, 10, 10]
    assert cell(study, "right", "wrong_task")["n"] == [10, 20]
    assert cell(study, "right", "shuffled")["n"] == [10]
    assert study.results["scores"]["right"]["tasks"]["turn"]["auroc_25"]["n"] == [5, 5]


def test_scores_are_mean_rewards_of_valid_frames(study: discrimination.Study) -> None:
    rows = pd.DataFrame(study.rows)
    assert len(rows) == 60 * 5
    expert = rows[(rows.score == "right") & (rows.quality == 0)]
    assert (expert.frames == 14).all() and (expert.valid_frames == 13).all()
    assert np.allclose(expert.mean_value, 2 * expert.mean_raw + 1)


def test_each_recording_is_encoded_once_and_experts_shifted_once_more(recordings: list[Path]) -> None:
    model = SquareModel()
    discrimination.run(model, recordings[:20], estimators=["right", "backwards"], seed=0)
    assert model.tokenized == 14 * (20 + 5)


def test_the_same_seed_gives_the_same_results(recordings: list[Path]) -> None:
    def once(seed: int) -> str:
        results = discrimination.run(SquareModel(), recordings[:20], estimators=["right"], seed=seed).results
        del results["ms_per_frame"]
        return json.dumps(results)

    assert once(3) == once(3)
    assert once(3) != once(4)


def test_the_verdict_judges_the_first_estimator(recordings: list[Path], study: discrimination.Study) -> None:
    lines = [tables.verdict_line(entry) for entry in study.results["verdict"]]
    assert lines[0] == "expert vs 100 % random, seen: 1.000 [1.000, 1.000] (target >= 0.98: met)"
    assert lines[-1] == "expert above its frozen frame, seen pairs: 1.000 [1.000, 1.000] (target >= 0.95: met)"
    worse = discrimination.run(SquareModel(), recordings, estimators=["backwards"], seed=0).results["verdict"]
    assert {entry["state"] for entry in worse} == {"missed"}
    unseen = discrimination.run(SquareModel(tasks=["other"]), recordings, estimators=["right"], seed=0).results
    assert {entry["state"] for entry in unseen["verdict"]} == {"not measured"}


def test_without_a_level_its_cells_are_missing_and_said_to_be(recordings: list[Path]) -> None:
    some = [path for path in recordings[:20] if path.parent.name in ("q0", "q25")]
    study = discrimination.run(SquareModel(), some, estimators=["right"], seed=0)
    assert "auroc_25" in study.results["scores"]["right"]["blocks"]["seen"]
    assert "auroc_100" not in study.results["scores"]["right"]["blocks"]["seen"]
    assert study.results["verdict"][0]["state"] == "not measured"
    assert "not measured" in shown(study)


def test_written_files_hold_the_results(study: discrimination.Study, tmp_path: Path) -> None:
    discrimination.write(study, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "episodes.parquet", "examples.npz", "results.json", "table.csv"
    ]  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text()) == study.results
    assert len(pd.read_parquet(tmp_path / "episodes.parquet")) == len(study.rows)
    lines = list(csv.DictReader((tmp_path / "table.csv").open(newline="")))
    found = [line for line in lines if (line["score"], line["group"], line["measure"]) == ("right", "seen", "voc")]
    assert float(found[0]["value"]) == cell(study, "right", "voc")["value"]
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as arrays:
        assert arrays["original_0"].shape == (6, 64, 64, 3)
        assert {arrays[f"{name}_0"].dtype for name in ("reconstruction", "next", "imagined")} == {np.dtype(np.uint8)}
        curves = {
            (c["task"], c["quality"]): arrays[f"curves_{c['number']}"] for c in study.results["examples"]["curves"]
        }
    assert curves["push", 0].shape == (5, 14)
    assert np.isnan(curves["push", 0][:, 0]).all() and np.isfinite(curves["push", 0][:, 1:]).all()


def test_imagined_frames_stand_beside_the_frames_that_came(study: discrimination.Study) -> None:
    entry = study.results["examples"]["frames"][0]
    assert (entry["task"], entry["seen"], entry["frames"][0]) == ("push", True, 0)
    assert np.array_equal(study.examples["original_0"][0], frames_of(np.array([2]))[0])
    assert np.array_equal(study.examples["next_0"][0], frames_of(np.array([6]))[0])


def shown(study: discrimination.Study, width: int = 200) -> str:
    stream = StringIO()
    tables.show(study.results, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_terminal_shows_tables_cost_and_verdict(study: discrimination.Study) -> None:
    text = shown(study)
    assert "seen tasks, mean over 2: push, slide" in text
    assert "unseen tasks, mean over 1: turn" in text
    assert "1.00 [1.00, 1.00]" in text and "10 v 10" in text and "10 x 4" in text
    assert "tokens_changed" in text and "codec_psnr" in text
    assert "ms per frame: codec encode" in text
    assert "(target >= 0.98: met)" in text


def test_a_narrow_terminal_cuts_no_number(recordings: list[Path]) -> None:
    study = discrimination.run(SquareModel(), recordings[:20], estimators=["right"], seed=0)
    text = shown(study, width=80)
    assert "…" not in text
    # Intervals are left to the table file and the report; the header and the five lines of the verdict keep theirs.
    assert text.count("[") == 1 + 5
    assert "5 v 5" in text
    assert shown(study, width=160).count("[") == 3 * (len(discrimination.MEASURES) - 1) + 1 + 5


def test_thinned_estimators_score_every_nth_frame_and_the_first_all(recordings: list[Path]) -> None:
    model = SquareModel()
    study = discrimination.run(model, recordings[:20], estimators=["right", "backwards"], seed=0, thin=4)
    assert model.every == {"right": 1, "backwards": 4}
    assert cell(study, "right", "auroc_100")["value"] == 1 and cell(study, "backwards", "auroc_100")["value"] < 0.2
    assert "frames scored: backwards every 4th" in shown(study)


def test_failed_experts_and_unfinished_recordings_are_left_out_and_counted(
    recordings: list[Path], tmp_path: Path
) -> None:
    failed = write_episode(tmp_path / "failed", "push", 0, 90, outcome="failure")
    aborted = write_episode(tmp_path / "aborted", "push", 50, 91, outcome="aborted")
    study = discrimination.run(SquareModel(), [*recordings[:20], failed, aborted], estimators=["right"], seed=0)
    assert cell(study, "right", "auroc_50")["n"] == [5, 5]
    assert [entry["why"] for entry in study.results["left_out"]] == ["an expert that failed", "outcome aborted"]
    assert "left out: 1 x an expert that failed, 1 x outcome aborted" in shown(study)


def test_another_camera_is_refused_unless_allowed(recordings: list[Path], tmp_path: Path) -> None:
    other = write_episode(tmp_path / "other", "push", 0, 90, render={**RENDER, "quality": "low"})
    with pytest.raises(BagError, match=r"quality high; found quality low.*--allow-other-camera"):
        discrimination.run(SquareModel(), [*recordings[:20], other], estimators=["right"], seed=0)
    study = discrimination.run(
        SquareModel(), [*recordings[:20], other], estimators=["right"], seed=0, allow_other_camera=True
    )
    assert study.results["allow_other_camera"] and cell(study, "right", "reversed")["n"] == [6]


def test_a_setting_that_only_one_side_has_differs(recordings: list[Path]) -> None:
    metadata = discrimination.read_metadata(recordings[0])
    check_camera(recordings[0], metadata, {"render": RENDER}, "")
    for render in ({}, {**RENDER, "flipped": "yes"}):
        with pytest.raises(BagError):
            check_camera(recordings[0], metadata, {"render": render}, "")
    check_camera(recordings[0], dataclasses.replace(metadata, render={}), {}, "")


def test_experts_of_the_training_data_are_refused(recordings: list[Path]) -> None:
    with pytest.raises(BagError, match="seed 3 of push, which is in its training data"):
        discrimination.run(
            SquareModel(training_seeds={"push": [3], "slide": []}), recordings, estimators=["right"], seed=0
        )


def test_unknown_quality_no_experts_and_unknown_estimators_are_refused(recordings: list[Path], tmp_path: Path) -> None:
    robot = write_episode(tmp_path / "robot", "push", None, 0)
    with pytest.raises(BagError, match="no quality"):
        discrimination.run(SquareModel(), [robot], estimators=["right"], seed=0)
    with pytest.raises(BagError, match="successful experts"):
        discrimination.run(SquareModel(), recordings[5:10], estimators=["right"], seed=0)
    with pytest.raises(ConfigError, match="one of right, backwards, blind"):
        discrimination.run(SquareModel(), recordings, estimators=["rihgt"], seed=0)
