"""The full study end to end with trainings of two steps, and what its summary and verdict say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dr_core import cli
from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter
from dr_core.study import full
from tests.core.moving_square import moving_square

RENDER = {"camera": "corner"}


def write_episode(path: Path, task: str, quality: int, seed: int) -> None:
    metadata = EpisodeMetadata(
        task=task, outcome="partial", operator="scripted", camera="corner", camera_serial="", quality=quality,
        seed=seed, rate_hz=10.0, render=RENDER, versions={}, calibration_hash=None, drops={},
    )  # fmt: skip
    with EpisodeWriter(path, metadata) as writer:
        for number, frame in enumerate(moving_square(seed, expert=quality == 0, length=17)):
            writer.write_image(10**9 + number * 10**8, frame)
        writer.close("success" if quality == 0 else "failure")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed in range(2):
        for task in ("push", "slide"):
            write_episode(root / "expert" / task / str(seed), task, 0, seed)
            write_episode(root / "background" / task / str(seed), task, 100, 50 + seed)
        for task in ("push", "slide", "turn"):
            for quality in (0, 25, 50, 100):
                write_episode(root / "test" / task / f"q{quality}" / str(seed), task, quality, 100 + seed)
    return root


def command(data: Path, out: Path, *arms: str) -> list[str]:
    short = ["--codec-steps", "2", "--video-steps", "2", "--seeds", "0"]
    return ["study", "discrimination", "--full", "--episodes", str(data), "--out", str(out), *short, "--arms", *arms]


def test_arms_are_trained_studied_and_compared(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    assert cli.main(command(data, out, "default", "exact posterior")) == 0
    assert "seen: AUROC, expert v 25 % random" in capsys.readouterr().out
    summary = json.loads((out / full.SUMMARY).read_text())
    assert summary["blocks"] == {"seen": ["push", "slide"], "unseen": ["turn"]}
    compared = {(row["arm"], row["score"]) for row in summary["rows"]}
    assert {("default", "shaped_ratio"), ("exact posterior", "paper"), ("", "tokens_changed")} <= compared
    assert ("published", "paper") not in compared, "its networks were trained, but it was not asked for"
    for name in (full.REPORT, full.TABLE, "auroc_seen.png", "controls_unseen.png"):
        assert (out / name).stat().st_size > 1000
    # One codec serves all arms of a seed.
    models = [out / arm / "seed_0" / "codec" for arm in ("default", "published")]
    weights = [next(path.rglob("model.safetensors")).read_bytes() for path in models]
    assert weights[0] == weights[1]

    # What is finished is found again, and compared with what is added.
    monkeypatch.setattr(full, "_train", lambda *args: pytest.fail("trained again"))
    assert cli.main(command(data, out, "default", "exact posterior")) == 0


def test_the_verdict_asks_for_a_margin_outside_the_intervals() -> None:
    def row(arm: str, score: str, measure: str, value: float) -> dict[str, object]:
        return {
            "arm": arm, "score": score, "block": "seen", "measure": measure, "value": value, "low": value - 0.02,
            "high": value + 0.02,
        }  # fmt: skip

    rows = [
        row("default", "shaped_ratio", "auroc_25", 0.96),
        row("published", "paper", "auroc_25", 0.93),
        row("", "tokens_changed", "auroc_25", 0.80),
        row("default", "shaped_ratio", "reversed", 0.9),
    ]
    states = {line["label"]: (round(line["value"], 3), line["state"]) for line in full._verdict(rows)}
    assert states == {
        "seen: AUROC, expert v 25 % random": (0.96, "met"),
        "seen: lower end less the upper end of paper, 25 % random": (-0.01, "missed"),
        "seen: lower end less the upper end of tokens_changed, 25 % random": (0.12, "met"),
        "seen: P(expert > reversed)": (0.9, "missed"),
    }


def test_seeds_are_averaged_and_their_extremes_kept(tmp_path: Path) -> None:
    for seed, value in enumerate((0.7, 0.9)):
        folder = tmp_path / "default" / f"seed_{seed}" / "study"
        folder.mkdir(parents=True)
        cell = {"value": value, "low": value - 0.1, "high": 1.0, "n": [4, 4]}
        tables = {"blocks": {"seen": {"auroc_25": cell}}}
        names = ("shaped_ratio", "ratio", "one_pass", "one_pass_likelihood", *full.TRIVIAL)
        scores = dict.fromkeys(names, tables)
        (folder / "results.json").write_text(json.dumps({"blocks": {"seen": ["push"]}, "scores": scores}))
    [row] = [r for r in full.summarise(tmp_path, full.arms())["rows"] if r["score"] == "shaped_ratio"]
    assert np.allclose([row["value"], row["low"], row["high"]], [0.8, 0.7, 1.0])
    assert (row["lowest"], row["highest"], row["seeds"]) == (0.7, 0.9, 2)


def test_wrong_use_is_refused_in_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(data / "expert", tmp_path / "out", "default")) == 2
    assert "no expert and no background and no test" in capsys.readouterr().err
    assert cli.main(command(data, tmp_path / "out", "defualt")) == 2
    assert "'exact posterior'" in capsys.readouterr().err
    assert cli.main(["study", "discrimination", "--episodes", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "--model RUN/model, or --full" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
