"""Measures of the discrimination study, against brute force, SciPy and closed forms."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from dr_core.study.metrics import (
    Measure,
    auroc,
    kendall_tau,
    mean_of,
    paired_share,
    value_order_correlation,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picks(count: int, resamples: int, seed: int = 0) -> list[np.ndarray]:
    """The episodes of each resample that a measure draws from ``rng(seed)``, written out one by one."""
    multiplicities = rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return [np.repeat(np.arange(count), row) for row in multiplicities]


def auroc_by_counting(positive: np.ndarray, negative: np.ndarray) -> float:
    pairs = list(itertools.product(positive, negative))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def test_auroc_counts_pairs_and_halves_ties() -> None:
    positive, negative = rng(1).integers(0, 6, 9).astype(float), rng(2).integers(0, 6, 7).astype(float)
    measure = auroc(positive, negative, rng(), 10)
    assert measure.value == pytest.approx(auroc_by_counting(positive, negative))
    u = stats.mannwhitneyu(positive, negative).statistic
    assert measure.value == pytest.approx(u / 63)
    assert measure.counts == (9, 7)


def test_auroc_of_each_resample_is_that_of_the_repeated_episodes() -> None:
    positive, negative = rng(1).normal(size=5), rng(2).normal(size=5)
    generator = rng(7)
    first = generator.multinomial(5, np.full(5, 0.2), size=20)
    second = generator.multinomial(5, np.full(5, 0.2), size=20)
    expected = [
        auroc_by_counting(np.repeat(positive, a), np.repeat(negative, b)) for a, b in zip(first, second, strict=True)
    ]
    assert auroc(positive, negative, rng(7), 20).samples == pytest.approx(expected)


def test_auroc_of_constant_and_of_separated_scores() -> None:
    same = auroc(np.ones(4), np.ones(3), rng())
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)
    apart = auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0]), rng())
    assert (apart.value, apart.low, apart.high) == (1.0, 1.0, 1.0)


def test_kendall_tau_is_somers_d_and_reaches_both_ends() -> None:
    groups = [rng(i).normal(-i / 2, 1, size).round(1) for i, size in enumerate((6, 4, 5, 7))]
    levels = np.concatenate([np.full(len(group), -i) for i, group in enumerate(groups)])
    expected = stats.somersd(levels, np.concatenate(groups)).statistic
    assert kendall_tau(groups, rng(), 10).value == pytest.approx(expected)
    steps = [np.full(3, -float(i)) for i in range(4)]
    assert kendall_tau(steps, rng()).value == 1.0
    assert kendall_tau(steps[::-1], rng()).value == -1.0
    two = [rng(1).normal(size=5), rng(2).normal(size=6)]
    assert kendall_tau(two, rng()).value == pytest.approx(2 * auroc(*two, rng()).value - 1)


def test_paired_share_pools_the_controls_of_an_episode() -> None:
    expert = np.array([1.0, 2.0, 3.0, 4.0])
    controls = np.array([[0.0, 2.0], [2.0, 2.0], [0.0, 0.0], [1.0, 1.0]])  # one win, three ties; then wins only
    measure = paired_share(expert, controls, rng(), 50)
    assert measure.value == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert measure.counts == (4,)
    shares = np.array([0.5, 0.5, 1, 1])
    assert measure.samples == pytest.approx([shares[chosen].mean() for chosen in picks(4, 50)])
    assert paired_share(expert, expert, rng()).value == 0.5


def test_value_order_correlation_is_spearman_over_pooled_frames() -> None:
    rewards = [rng(i).normal(0.2, 1, length).round(1) for i, length in enumerate((8, 5, 11))]
    measure = value_order_correlation(rewards, rng(3), 30)

    def pooled(chosen: np.ndarray) -> float:
        sums = np.concatenate([np.cumsum(rewards[i]) for i in chosen])
        frames = np.concatenate([np.arange(len(rewards[i])) for i in chosen])
        return float(stats.spearmanr(sums, frames).statistic)

    assert measure.value == pytest.approx(pooled(np.arange(3)))
    assert measure.samples == pytest.approx([pooled(chosen) for chosen in picks(3, 30, seed=3)])


def test_value_order_correlation_follows_the_sign_of_the_reward() -> None:
    ups = [np.full(10, 0.5), np.full(6, 0.5)]
    assert value_order_correlation(ups, rng()).value == pytest.approx(1)
    assert value_order_correlation([-up for up in ups], rng()).value == pytest.approx(-1)
    assert value_order_correlation([np.zeros(10)], rng()).value == 0
    assert value_order_correlation([np.ones(1)], rng()).value == 0


def test_the_mean_over_tasks_weighs_tasks_alike_and_adds_counts() -> None:
    easy = auroc(np.ones(2), np.zeros(30), rng(1))
    hard = auroc(rng(2).normal(size=12), rng(3).normal(size=12), rng(4))
    mean = mean_of([easy, hard])
    assert mean.value == pytest.approx((easy.value + hard.value) / 2)
    assert mean.counts == (14, 42)
    assert mean.high - mean.low == pytest.approx((hard.high - hard.low) / 2)


def test_equal_generators_pair_two_scores() -> None:
    """A score that is the other one plus a constant differs by nothing, on every resample."""
    positive, negative = rng(1).normal(1, 1, 12), rng(2).normal(0, 1, 12)
    a = auroc(positive, negative, rng(5))
    b = auroc(positive + 3, negative + 3, rng(5))
    assert a.low < a.high
    assert np.array_equal(a.minus(b).samples, np.zeros(len(a.samples)))


def test_json_holds_value_interval_and_counts() -> None:
    measure = Measure(0.5, np.linspace(0, 1, 1001), (3, 4))
    assert measure.to_json() == {
        "value": 0.5,
        "low": pytest.approx(0.025),
        "high": pytest.approx(0.975),
        "n": [3, 4],
    }


def test_the_interval_covers_the_true_auroc() -> None:
    """Normal scores one standard deviation apart: the true AUROC is Φ(1/√2)."""
    truth = stats.norm.cdf(1 / np.sqrt(2))
    draw, hits = rng(0), 0
    for trial in range(300):
        measure = auroc(draw.normal(1, 1, 30), draw.normal(0, 1, 30), rng(trial), 400)
        hits += measure.low <= truth <= measure.high
    # 95 % nominal; three standard errors of 300 trials are 3.8 %, and the percentile interval is a little narrow.
    assert 0.90 <= hits / 300 <= 0.99


def test_the_pooled_interval_covers_the_mean_of_tasks() -> None:
    truth = np.mean([stats.norm.cdf(shift / np.sqrt(2)) for shift in (0.5, 1.0, 2.0)])
    draw, hits = rng(1), 0
    for trial in range(200):
        tasks = [
            auroc(draw.normal(shift, 1, 20), draw.normal(0, 1, 20), rng(10 * trial + k), 400)
            for k, shift in enumerate((0.5, 1.0, 2.0))
        ]
        pooled = mean_of(tasks)
        hits += pooled.low <= truth <= pooled.high
    assert 0.88 <= hits / 200 <= 0.99


def test_two_thousand_resamples_of_a_large_cell_take_a_moment() -> None:
    scores = [rng(i).normal(size=50) for i in range(4)]
    frames = [rng(i).normal(size=100) for i in range(20)]
    start = time.process_time()
    auroc(scores[0], scores[1], rng())
    kendall_tau(scores, rng())
    paired_share(scores[0], scores[1], rng())
    value_order_correlation(frames, rng())
    assert time.process_time() - start < 3  # four cells; about 0.3 s on an idle core
