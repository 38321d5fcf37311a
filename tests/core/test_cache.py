"""Training data on disk: decoded once, tokenised once, found again without the recordings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dr_core.data.cache import BACKGROUND, EXPERT, Clip, Store, frame_store, open_store, token_store
from dr_core.data.images import ImageRule
from dr_core.errors import BagError
from tests.core.moving_square import RENDER, moving_square, record

RULE = ImageRule(64)


def sources(root: Path) -> list[tuple[str, Path]]:
    """Two experts of two tasks and one other episode, of different lengths."""
    a = record(root / "a", moving_square(1, expert=True, length=5), task="push", seed=1)
    b = record(root / "b", moving_square(2, expert=True, length=7), task="slide", seed=2)
    c = record(root / "c", moving_square(3, expert=False, length=4), task="push", expert=False, seed=3)
    return [(EXPERT, a), (EXPERT, b), (BACKGROUND, c)]


def first_pixels(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A codec: 64 numbers of each frame."""
    return frames[:, ::8, ::8, 0].reshape(len(frames), 64).astype(np.int64)


def test_frames_are_those_of_the_episodes_with_their_index(tmp_path: Path) -> None:
    given = sources(tmp_path)
    told: list[tuple[int, int]] = []
    store = frame_store(tmp_path / "frames", given, RULE, lambda done, total: told.append((done, total)))
    want = [moving_square(1, expert=True, length=5), moving_square(2, expert=True, length=7)]
    want.append(moving_square(3, expert=False, length=4))
    assert store.data.dtype == np.uint8 and store.data.shape == (16, 64, 64, 3)
    for clip, frames in zip(store.clips, want, strict=True):
        np.testing.assert_array_equal(store.array(clip), frames)
    assert store.clips[1] == Clip("slide", EXPERT, 5, 7, str(given[1][1]), 2, 10.0)
    assert store.tasks(EXPERT) == ["push", "slide"] and store.tasks(BACKGROUND) == ["push"]
    assert store.render == RENDER
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_store_is_found_again_without_the_recordings(tmp_path: Path) -> None:
    given = sources(tmp_path / "bags")
    first = frame_store(tmp_path / "frames", given, RULE)
    shutil.rmtree(tmp_path / "bags")
    again = frame_store(tmp_path / "frames", given, RULE)
    np.testing.assert_array_equal(again.data, first.data)
    assert (again.clips, again.sha256, again.render) == (first.clips, first.sha256, first.render)
    with pytest.raises(FileNotFoundError):
        open_store(tmp_path / "none")


def test_the_hash_is_of_the_data_not_of_its_place(tmp_path: Path) -> None:
    given = sources(tmp_path / "one")
    hashes = [frame_store(tmp_path / "frames", given, RULE).sha256]
    hashes.append(frame_store(tmp_path / "same", sources(tmp_path / "two"), RULE).sha256)
    swapped = [(BACKGROUND, given[0][1]), *given[1:]]
    hashes.append(frame_store(tmp_path / "swapped", swapped, RULE).sha256)
    brighter = moving_square(1, expert=True, length=5)
    brighter[0, 0, 0, 0] ^= 1
    other = record(tmp_path / "brighter", brighter, task="push", seed=1)
    hashes.append(frame_store(tmp_path / "other", [(EXPERT, other), *given[1:]], RULE).sha256)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_a_half_written_store_is_written_again(tmp_path: Path) -> None:
    scrap = tmp_path / ".frames.writing"
    scrap.mkdir()
    (scrap / "data.npy").write_bytes(b"half")
    store = frame_store(tmp_path / "frames", sources(tmp_path / "bags"), RULE)
    assert len(store.data) == 16 and not scrap.exists()


@pytest.mark.parametrize("render", [{}, {**RENDER, "camera": "corner3"}, {**RENDER, "msaa": "8"}])
def test_episodes_rendered_otherwise_are_refused_in_one_line(render: dict[str, str], tmp_path: Path) -> None:
    given = sources(tmp_path)
    odd = record(tmp_path / "odd", moving_square(4, expert=True, length=4), render=render)
    with pytest.raises(BagError, match="recorded alike") as caught:
        frame_store(tmp_path / "frames", [*given, (EXPERT, odd)], RULE)
    assert "\n" not in str(caught.value) and str(odd) in str(caught.value)
    assert not (tmp_path / "frames").exists()


def test_tokens_are_made_once_and_without_opening_the_frames_again(tmp_path: Path) -> None:
    frames = frame_store(tmp_path / "frames", sources(tmp_path), RULE)
    tokens = token_store(tmp_path / "tokens", lambda: frames, first_pixels)
    assert tokens.data.dtype == np.int16 and tokens.data.shape == (16, 64)
    np.testing.assert_array_equal(tokens.data, first_pixels(np.asarray(frames.data, np.uint8)))
    assert (tokens.clips, tokens.sha256, tokens.render) == (frames.clips, frames.sha256, frames.render)

    def never() -> Store:
        raise AssertionError("the frames were opened")

    again = token_store(tmp_path / "tokens", never, first_pixels)
    np.testing.assert_array_equal(again.data, tokens.data)
    assert again.clips == tokens.clips
