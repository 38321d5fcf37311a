"""Streams: a name always draws the same numbers, another name draws others, whatever was drawn before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dr_core.seeding import generator, numpy_generator

STREAMS: list[tuple[int | str, ...]] = [
    (0,), (1,), (-1,), (0, 0), (0, 1), (0, "a"), (0, "b"), (0, "1"), (0, "a", "b"), (0, "ab"), (0, "a", 1),
    (2**63,), (2**64,),
]  # fmt: skip


def draw(*stream: int | str) -> torch.Tensor:
    return torch.rand(64, generator=generator(*stream))  # type: ignore[arg-type]


def test_every_stream_draws_its_own_numbers() -> None:
    for one, other in itertools.combinations(STREAMS, 2):
        assert not torch.equal(draw(*one), draw(*other)), (one, other)


def test_a_resumed_run_draws_what_the_whole_run_drew() -> None:
    whole = [draw(7, "train", step) for step in range(6)]
    torch.rand(1000)
    resumed = [draw(7, "train", step) for step in range(3, 6)]
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], resumed, strict=True))


def test_numbers_stay_the_same_between_releases() -> None:
    assert numpy_generator(0, "a", 1).integers(0, 1000, 4).tolist() == [859, 397, 482, 255]
    assert torch.randint(0, 1000, (4,), generator=generator(0, "a", 1)).tolist() == [898, 928, 608, 306]


def test_numpy_integers_name_the_same_stream_as_python_ones() -> None:
    assert torch.equal(draw(3, 4), draw(int(np.int64(3)), int(np.int32(4))))
    assert numpy_generator(np.int64(3), np.int32(4)).random() == numpy_generator(3, 4).random()


def test_streams_are_uncorrelated() -> None:
    rows = np.stack([numpy_generator(0, step).standard_normal(4096) for step in range(32)])
    correlation = np.corrcoef(rows) - np.eye(32)
    assert np.abs(correlation).max() < 6 / np.sqrt(4096)


def test_a_fraction_is_no_seed() -> None:
    with pytest.raises(TypeError):
        generator(0.5)  # type: ignore[arg-type]
