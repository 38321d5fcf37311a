"""Video files: lossless ones keep every bit, damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dr_core.data.episodes import find_episodes, read_episode, read_metadata
from dr_core.data.images import ImageRule
from dr_core.data.video import read_video, write_video
from dr_core.errors import BagError, OutputInUseError


def noise(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (33, 47)])
def test_lossless_video_keeps_every_bit(tmp_path: Path, height: int, width: int) -> None:
    frames = noise(9, height, width)
    write_video(tmp_path / "x.mp4", frames, 12.5, lossless=True)
    read, stamps_ns = read_video(tmp_path / "x.mp4")
    assert (read == frames).all()
    assert np.abs(np.diff(stamps_ns) - 80_000_000).max() < 100_000


def test_video_for_people_is_close_and_even(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:33, 0:47]
    frame = np.stack([rows * 7, columns * 5, np.full_like(rows, 90)], axis=2).astype(np.uint8)
    write_video(tmp_path / "x.mp4", (frame for _ in range(5)), 10, lossless=False)
    read, _ = read_video(tmp_path / "x.mp4")
    assert read.shape == (5, 34, 48, 3)
    assert np.abs(read[2, :33, :47].astype(int) - frame).mean() < 6


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("precious")
    with pytest.raises(OutputInUseError):
        write_video(tmp_path / "x.mp4", noise(2, 16, 16), 10, lossless=True)
    assert (tmp_path / "x.mp4").read_text() == "precious"


def test_a_source_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one size"):
        write_video(tmp_path / "x.mp4", [noise(1, 16, 16)[0], noise(1, 16, 18)[0]], 10, lossless=True)
    with pytest.raises(ValueError, match="at least one"):
        write_video(tmp_path / "x.mp4", [], 10, lossless=True)
    assert list(tmp_path.iterdir()) == []


def test_a_video_is_an_episode_of_the_task_its_directory_names(tmp_path: Path) -> None:
    frames = noise(6, 64, 64)
    path = tmp_path / "door-open" / "a.mp4"
    write_video(path, frames, 10, lossless=True)
    episode = read_episode(path, rule=ImageRule(64))
    assert (episode.frames == frames).all()
    assert (episode.metadata.task, episode.metadata.outcome) == ("door-open", "success")
    assert (episode.metadata.operator, episode.metadata.rate_hz) == ("unknown", 10.0)
    assert episode.metadata == read_metadata(path)
    assert episode.actions.shape == (0, 0)
    assert find_episodes([tmp_path]) == [path]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", noise(6, 64, 64), 10, lossless=True)
    whole = (tmp_path / "x.mp4").read_bytes()
    for name, content in {
        "empty": b"", "text": b"hello" * 100, "half": whole[: len(whole) // 2], "head": whole[:100],
    }.items():  # fmt: skip
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        for read in (lambda path: read_episode(path, rule=ImageRule(64)), read_video, read_metadata):
            with pytest.raises(BagError) as caught:
                read(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(BagError, match="nothing there"):
        read_episode(tmp_path / "missing.mp4", rule=ImageRule(64))
