"""Slow, obvious categorical diffusion in dense float64: full transition matrices and Bayes' rule.

States are the codes 0…K-1 and K = [MASK]. A transition matrix has the old state in its rows, the new one in
columns.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from dr_core.diffusion.schedule import Schedule

Array = NDArray[np.float64]


def step_matrix(keep: float, uniform: float, mask: float, num_codes: int) -> Array:
    """(K+1, K+1) for given probabilities of one or several steps."""
    matrix = np.zeros((num_codes + 1, num_codes + 1))
    matrix[:num_codes, :num_codes] = uniform
    matrix[np.arange(num_codes), np.arange(num_codes)] += keep
    matrix[:num_codes, num_codes] = mask
    matrix[num_codes, num_codes] = 1
    return matrix


def jump_matrix(schedule: Schedule, s: int, t: int) -> Array:
    """q(x_t | x_s) as the product of the one-step matrices s+1 … t; the identity for s = t."""
    result = np.eye(schedule.num_codes + 1)
    for i in range(s + 1, t + 1):
        one = step_matrix(schedule.keep[i], schedule.uniform[i], schedule.mask[i], schedule.num_codes)
        result = result @ one
    return result


def q_posterior(from_s: Array, to_s: Array, x_start: int, x_t: int) -> Array:
    """q(x_s | x_t, x_start) (K+1,) by Bayes' rule, from q(x_t | x_s) and q(x_s | x_start)."""
    joint = to_s[x_start] * from_s[:, x_t]
    return joint / joint.sum()


def p_posterior(from_s: Array, to_s: Array, p_start: Array, x_t: int) -> Array:
    """Σ_{x_start} p(x_start) q(x_s | x_t, x_start) (K+1,), term by term."""
    return np.sum([p * q_posterior(from_s, to_s, x, x_t) for x, p in enumerate(p_start)], axis=0)


def kl(q: Array, p: Array) -> float:
    """KL(q ‖ p) in nats over one axis."""
    inside = q > 0
    return float(np.sum(q[inside] * (np.log(q[inside]) - np.log(p[inside]))))


def entropy(p: Array) -> float:
    """Entropy in nats of a distribution of any shape."""
    inside = p > 0
    return float(-np.sum(p[inside] * np.log(p[inside])))


def frames(num_states: int, num_tokens: int) -> list[tuple[int, ...]]:
    """All frames of num_tokens tokens, in the order of their index as a number in base num_states."""
    return list(product(range(num_states), repeat=num_tokens))


def expected_reward(
    schedule: Schedule,
    jumps: list[tuple[int, int, int]],
    p_start: Array,
    num_tokens: int,
    x_start: int | None,
) -> float:
    """Expectation of the paper's reward over every path of the reverse process.

    Args:
        jumps: (t_network, t_posterior, s) per call.
        p_start: (T, (K+1)^N, N, K), the network's output for every time and frame.
        x_start: index of the frame to score in base K, or None to score the sample itself.
    """
    K, N = schedule.num_codes, num_tokens
    noised, clean = frames(K + 1, N), frames(K, N)
    at = np.zeros(len(noised))  # distribution of x_t
    at[-1] = 1  # all masked
    transitions, kls = [], []
    for t_network, t, s in jumps:
        from_s, to_s = jump_matrix(schedule, s, t), jump_matrix(schedule, -1, s)
        # log p of every x_s and the KL for every x_start, given every x_t.
        transition = np.zeros((len(noised), len(noised)))
        kl_of = np.zeros((len(noised), len(clean)))
        for i, x_t in enumerate(noised):
            p = [p_posterior(from_s, to_s, p_start[t_network, i, n], x_t[n]) for n in range(N)]  # N of (K+1,)
            transition[i] = [np.prod([p[n][x[n]] for n in range(N)]) for x in noised]
            if s >= 0:
                q = [[q_posterior(from_s, to_s, x, x_t[n]) for x in range(K)] for n in range(N)]
                per_token = [[kl(q[n][x], p[n]) for x in range(K)] for n in range(N)]
                kl_of[i] = [sum(per_token[n][x[n]] for n in range(N)) for x in clean]
        transitions.append(transition)
        kls.append(kl_of)

    is_clean = [max(x) < K for x in noised]
    total = 0.0
    for index, transition in enumerate(transitions):
        to_end = np.eye(len(noised))
        for later in transitions[index:]:
            to_end = to_end @ later
        final = to_end[:, is_clean]
        if x_start is not None:
            final = np.tile(np.eye(len(clean))[x_start], (len(noised), 1))
        if index + 1 < len(transitions):
            total -= float(np.sum(at[:, None] * final * kls[index]))
        else:
            last = transition[:, is_clean]
            total += float(np.sum(at[:, None] * final * np.log(np.maximum(last, 1e-300))))
        at = at @ transition
    return total
