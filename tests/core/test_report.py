"""The report: one page from the files of a run, whole or not."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter
from dr_core.data.images import ImageRule
from dr_core.errors import OutputInUseError, UserError
from dr_core.study import discrimination, plots
from dr_core.study.commands import Report, StudyDiscrimination
from dr_core.study.report import render, write_report

HOSTILE = '<script>alert("$\\frac{$")</script>'
SECTIONS = [
    "Summary", "Training", "What the codec keeps", "Imagined next frames", "Reward over time",
    "Expert against worse behaviour", "Cost", "Provenance",
]  # fmt: skip


class StillModel:
    """A reward model without networks that likes the mean colour of a frame."""

    def __init__(self) -> None:
        self.tasks = ["push"]
        self.model_hash = "feed0123"
        self.manifest = {"render": {"camera": "corner"}}
        estimator = SimpleNamespace(name="grey")
        self.config = SimpleNamespace(num_history=2, frame_skip=1, estimator=estimator, image=ImageRule())

    def estimators(self) -> list[str]:
        return ["grey"]

    def tokenize(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        return frames.reshape(len(frames), 8, 8, 8, 8, 3).mean((2, 4, 5)).astype(np.int64).reshape(len(frames), 64)

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        small = tokens.reshape(-1, 8, 8, 1).repeat(8, 1).repeat(8, 2)
        return np.broadcast_to(small, (*small.shape[:3], 3)).astype(np.uint8)

    def imagine(self, tokens: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
        return tokens

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
        means = [clip.mean(1).astype(np.float32) for clip in clips]
        return [SimpleNamespace(value=m, raw=m, stderr=0 * m, valid=np.isfinite(m), calls=1) for m in means]


def write_episode(path: Path, task: str, quality: int, seed: int) -> Path:
    metadata = EpisodeMetadata(
        task=task, outcome="partial", operator="scripted", camera="corner", camera_serial="", quality=quality,
        seed=seed, rate_hz=10.0, render={"camera": "corner"}, versions={}, calibration_hash=None, drops={},
    )  # fmt: skip
    rng = np.random.default_rng([seed, quality])
    with EpisodeWriter(path, metadata) as writer:
        for number in range(10):
            writer.write_image(10**9 + number * 10**8, rng.integers(100 - quality, 180, (64, 64, 3)).astype(np.uint8))
        writer.close("success")
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> discrimination.Study:
    root = tmp_path_factory.mktemp("episodes")
    paths = [
        write_episode(root / f"{number}-{quality}-{seed}", task, quality, seed)
        for number, task in enumerate(("push", HOSTILE))
        for quality in (0, 25, 50, 100)
        for seed in range(2)
    ]
    return discrimination.run(StillModel(), paths, estimators=["grey"], seed=0)


def write_run(run: Path, study: discrimination.Study) -> Path:
    """A whole run: curves, a model's papers, a study."""
    (run / "model").mkdir(parents=True)
    (run / "study").mkdir()
    lines = [
        {"stage": stage, "step": step, "loss": 1 / step, **extra}
        for stage, extra in (("codec", {"psnr_db": 20.0, "perplexity": 300.0}), ("video", {}))
        for step in range(1, 41)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {"sha256": {"model.safetensors": "feed0123"}, "tasks": ["push"], "git_commit": HOSTILE}
    (run / "model" / "manifest.json").write_text(json.dumps({**manifest, "dataset_sha256": "da7a"}))
    (run / "model" / "config.yaml").write_text("estimator:\n  name: grey\n")
    discrimination.write(study, run / "study")
    return run


@pytest.fixture(scope="module")
def html(study: discrimination.Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(write_run(tmp_path_factory.mktemp("runs") / "demo", study))


@pytest.fixture
def run(study: discrimination.Study, tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo", study)


class Page(HTMLParser):
    """Tags, headings, picture data and text of a page; fails on what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def pictures(self) -> list[tuple[str, NDArray[np.uint8]]]:
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, data = str(attributes["src"]).partition(",")
                assert kind == "data:image/png;base64"
                picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
                assert picture is not None
                found.append((str(attributes["alt"]), picture))
        return found


def test_a_whole_run_fills_every_section(html: str) -> None:
    page = Page(html)
    assert page.headings == SECTIONS
    names = [name for name, _ in page.pictures()]
    for stage, key in (("codec", "loss"), ("codec", "psnr_db"), ("codec", "perplexity"), ("video", "loss")):
        assert f"{stage}: {key} over the optimiser steps" in names
    assert names.count(f"reward over time, {HOSTILE}") == 1 and names.count("reward over time, push") == 1
    assert sum(name.startswith("push (seen in training)") for name in names) == 2
    assert sum(name.startswith(f"{HOSTILE} (unseen in training)") for name in names) == 2
    assert "AUROC of each score, seen tasks" in names
    for words in ("tokens_changed", "codec_psnr", "P(expert > frozen), all three", "2 v 2", "feed0123", "da7a"):
        assert words in page.text
    assert "estimator.name: grey" in page.text
    assert re.search(r"meets \d of 5 targets", page.text)
    assert "On tasks it was trained on it prefers an expert" in page.text
    assert "another model" not in page.text


def test_the_page_needs_nothing_else_and_stays_small(html: str) -> None:
    assert len(html) < 10 * 2**20
    assert not re.search(r"https?://|<link|<script|url\(|@import", html)
    for tag, attributes in Page(html).tags:
        assert tag not in ("iframe", "object", "embed")
        assert "href" not in attributes
        assert str(attributes.get("src", "data:")).startswith("data:")
    assert 'name="viewport"' in html and "@media print" in html


def test_text_from_files_is_escaped(html: str) -> None:
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert HOSTILE in page.text  # shown, not run


def test_pictures_are_not_blank(html: str) -> None:
    for name, picture in Page(html).pictures():
        assert picture.std() > 5, name


def test_missing_pieces_say_how_to_make_them(run: Path, tmp_path: Path) -> None:
    for path in (run / "study").iterdir():
        path.unlink()
    page = Page(render(run))
    assert page.headings == SECTIONS
    assert f"dr study discrimination --model {run / 'model'}" in page.text
    early = tmp_path / "early"
    early.mkdir()
    (early / "metrics.jsonl").write_text("")
    page = Page(render(early))
    assert "There is no finished model yet." in page.text and "No training curves yet." in page.text


def test_a_study_of_another_model_is_pointed_out(run: Path) -> None:
    (run / "model" / "manifest.json").write_text(json.dumps({"sha256": {"model.safetensors": "other"}}))
    assert "The study was made with another model" in Page(render(run)).text


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_damaged_results_are_refused(run: Path, content: str) -> None:
    (run / "study" / "results.json").write_text(content)
    with pytest.raises(UserError, match="run dr study discrimination again"):
        render(run)


def test_damaged_examples_are_refused(run: Path) -> None:
    (run / "study" / "examples.npz").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match=r"examples\.npz"):
        render(run)
    (run / "study" / "examples.npz").unlink()
    with pytest.raises(UserError, match=r"examples\.npz"):
        render(run)


def test_a_report_replaces_only_reports(run: Path, tmp_path: Path) -> None:
    (run / "study" / "results.json").unlink()
    assert Report(run).run() == 0
    assert Report(run).run() == 0
    assert "<title>Reward model demo</title>" in (run / "report.html").read_text()
    letter = tmp_path / "letter.html"
    letter.write_text("<html>dear reader</html>")
    with pytest.raises(OutputInUseError):
        write_report(run, letter)
    assert letter.read_text() == "<html>dear reader</html>"
    assert not list(run.glob(".report*"))


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out of dr train-reward"):
        Report(tmp_path / "nothing").run()


def test_the_study_command_refuses_an_existing_output_before_any_work(run: Path) -> None:
    with pytest.raises(OutputInUseError):
        StudyDiscrimination(model=run / "model", episodes=(run,), out=run / "study").run()


def test_frames_are_drawn_upright() -> None:
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[0, :32] = (255, 0, 0)
    frame[0, 32:] = (0, 0, 255)
    data = plots.frame_rows({"row": frame}, ["frame 0"])
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    red, blue = (np.nonzero((bgr == colour).all(2))[0].mean() for colour in ((0, 0, 255), (255, 0, 0)))
    assert red < blue


def test_the_running_mean_leaves_gaps_out() -> None:
    values = np.array([np.nan, 1.0, 3.0, np.nan, 5.0])
    assert plots.running_mean(values, 3) == pytest.approx([np.nan, 2.0, 2.0, np.nan, 5.0], nan_ok=True)
    assert plots.running_mean(np.array([[1.0, 2.0]]), 1) == pytest.approx(np.array([[1.0, 2.0]]))
