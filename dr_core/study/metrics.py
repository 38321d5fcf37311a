"""Measures of how well a score tells experts from others, with bootstrap intervals.

The bootstrap resamples episodes. A resample is kept as multiplicities (how often each episode is in it), in which every
measure here is a ratio of polynomials, so that thousands of resamples are a few matrix products. Intervals are
percentile intervals at 95 %: too narrow for a handful of episodes, and without width where all pairs are ordered alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """A measured number.

    Attributes:
        value: of the episodes as they are.
        samples: (R,) the same number on each resample.
        counts: episodes that entered, for each group compared.
    """

    value: float
    samples: Floats
    counts: tuple[int, ...]

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return float(np.quantile(self.samples, 0.025))

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return float(np.quantile(self.samples, 0.975))

    def minus(self, other: Measure) -> Measure:
        """The difference; paired where both were resampled by generators of the same seed."""
        return Measure(self.value - other.value, self.samples - other.samples, self.counts)

    def to_json(self) -> dict[str, Any]:
        """Value, interval and counts."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": list(self.counts)}


def mean_of(measures: Sequence[Measure]) -> Measure:
    """The mean over tasks; each resample of it takes one resample of every task (a stratified bootstrap)."""
    samples = np.mean([measure.samples for measure in measures], axis=0)
    counts = tuple(int(sum(n)) for n in zip(*(measure.counts for measure in measures), strict=True))
    return Measure(float(np.mean([measure.value for measure in measures])), samples, counts)


def auroc(positive: Floats, negative: Floats, generator: np.random.Generator, resamples: int = RESAMPLES) -> Measure:
    """P(a score of ``positive`` > one of ``negative``), ties counting one half.

    Args:
        positive: (n,) scores of the experts, n >= 1.
        negative: (m,) scores of the others, m >= 1.
    """
    wins = _wins(positive[:, None], negative[None, :])  # (n, m)
    count, other = wins.shape
    first, second = _multiplicities(count, resamples, generator), _multiplicities(other, resamples, generator)
    samples = ((first @ wins) * second).sum(1) / (count * other)
    return Measure(float(wins.mean()), samples, (count, other))


def kendall_tau(groups: Sequence[Floats], generator: np.random.Generator, resamples: int = RESAMPLES) -> Measure:
    """Agreement of the scores with the order of the groups, from -1 to 1: (concordant - discordant) / pairs.

    Pairs inside a group have no order and are left out (Somers' D of the score given the group, Kendall's tau where no
    group has two members), so that a perfect score reaches 1. It is 2 AUROC - 1 for two groups.

    Args:
        groups: scores (n_i,) of each group, the best group first; at least two, none empty.
    """
    weights = [_multiplicities(len(group), resamples, generator) for group in groups]
    value, pairs = 0.0, 0
    samples = np.zeros(resamples)
    for better in range(len(groups)):
        for worse in range(better + 1, len(groups)):
            order = np.sign(groups[better][:, None] - groups[worse][None, :])
            value += float(order.sum())
            samples += ((weights[better] @ order) * weights[worse]).sum(1)
            pairs += order.size
    return Measure(value / pairs, samples / pairs, tuple(len(group) for group in groups))


def paired_share(
    expert: Floats, control: Floats, generator: np.random.Generator, resamples: int = RESAMPLES
) -> Measure:
    """P(an expert episode scores above its own control), ties counting one half.

    Args:
        expert: (n,) scores, n >= 1.
        control: (n,) scores of the controls made from the same episodes, or (n, k) of k controls of each.
    """
    count = len(expert)
    wins = _wins(expert[:, None], control.reshape(count, -1)).mean(1)  # (n,)
    samples = _multiplicities(count, resamples, generator) @ wins / count
    return Measure(float(wins.mean()), samples, (count,))


def value_order_correlation(
    rewards: Sequence[Floats], generator: np.random.Generator, resamples: int = RESAMPLES
) -> Measure:
    """Rank correlation (Spearman) of the cumulative reward with time, over the pooled frames of all episodes.

    Args:
        rewards: per episode its rewards (T_i,), T_i >= 1. Their zero matters: a constant added to every reward adds a
            trend to the sum.
    """
    cumulative = np.concatenate([np.cumsum(reward) for reward in rewards])
    time = np.concatenate([np.arange(len(reward), dtype=np.float64) for reward in rewards])
    episode = np.repeat(np.arange(len(rewards)), [len(reward) for reward in rewards])
    weights = _multiplicities(len(rewards), resamples, generator)
    block = max(1, 2_000_000 // len(time))
    parts = [
        _rank_correlation(cumulative, time, weights[start : start + block, episode])
        for start in range(0, resamples, block)
    ]
    value = _rank_correlation(cumulative, time, np.ones((1, len(time))))[0]
    return Measure(float(value), np.concatenate(parts), (len(rewards),))


def _wins(first: Floats, second: Floats) -> Floats:
    return (first > second) + 0.5 * (first == second)


def _multiplicities(count: int, resamples: int, generator: np.random.Generator) -> Floats:
    """(R, count): how often each of ``count`` episodes is in each resample of as many."""
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _rank_correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's correlation of x (N,) and y (N,), each point repeated ``weights`` (R, N) times: (R,).

    Without any spread in x or y there is no order, and the correlation is 0.
    """
    total = weights.sum(1, keepdims=True)
    ranks = [_midranks(values, weights) for values in (x, y)]
    dx, dy = (rank - (weights * rank).sum(1, keepdims=True) / total for rank in ranks)
    spread = np.sqrt((weights * dx * dx).sum(1) * (weights * dy * dy).sum(1))
    return (weights * dx * dy).sum(1) / np.where(spread > 0, spread, np.inf)


def _midranks(values: Floats, weights: Floats) -> Floats:
    """Rank (R, N) of each value among the repeated ones, ties sharing the middle; counted from one half."""
    _, first, inverse = np.unique(np.sort(values), return_index=True, return_inverse=True)
    order = np.argsort(values, kind="stable")
    tied = np.add.reduceat(weights[:, order], first, axis=1)  # (R, distinct values)
    middle = np.cumsum(tied, axis=1) - tied / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, inverse]
    return ranks
