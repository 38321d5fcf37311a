"""How familiar a frame looks: code frequencies of the training frames, per task and grid position.

A naive-Bayes model of single frames, independent of the video model and without a network call. It answers two
questions that a conditional model of motion cannot: does the camera see what it saw in training (``ood``), and which
training task does the scene look like (``log_posterior``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PRIOR_FRAMES = 20.0
"""Weight of the frequencies of all tasks together, in frames, when those of one task are estimated."""
LIMIT_QUANTILE = 0.999
MARGIN_NATS = 10.0


class Familiarity(nn.Module):
    """Code frequencies of ``num_tasks`` tasks; fill by ``fit`` or from a checkpoint.

    Attributes:
        log_p: (tasks, N, K) log frequency of each code at each grid position.
        typical, limit: (tasks,) median and 99.9 % quantile of -log p of a training frame, in nats, each frame judged by
            the other episodes of its task.
    """

    def __init__(self, num_tasks: int, num_codes: int, num_tokens: int = 64) -> None:
        super().__init__()
        self.log_p: Tensor
        self.typical: Tensor
        self.limit: Tensor
        self.register_buffer("log_p", torch.zeros(num_tasks, num_tokens, num_codes))
        self.register_buffer("typical", torch.zeros(num_tasks))
        self.register_buffer("limit", torch.ones(num_tasks))

    def fit(self, episodes: Mapping[str, Sequence[NDArray[np.integer]]]) -> Familiarity:
        """Count the codes (T, N) of each task's episodes, in the order of the tasks."""
        num_tokens, num_codes = self.log_p.shape[1:]
        counts = {task: [_count(codes, num_tokens, num_codes) for codes in own] for task, own in episodes.items()}
        totals = {task: np.sum(own, 0) for task, own in counts.items()}
        everything = np.sum(list(totals.values()), 0) + 0.5
        prior = PRIOR_FRAMES * everything / everything.sum(-1, keepdims=True)
        for index, (task, own) in enumerate(episodes.items()):
            # Frames of one episode resemble each other: each is judged by the other episodes.
            unseen = [
                _nll(_log_frequency(totals[task] - count, prior), codes)
                for codes, count in zip(own, counts[task], strict=True)
            ]
            typical, limit = np.quantile(np.concatenate(unseen), (0.5, LIMIT_QUANTILE))
            self.log_p[index] = torch.from_numpy(_log_frequency(totals[task], prior))
            self.typical[index], self.limit[index] = float(typical), float(max(limit, typical + 1))
        return self

    def ood(self, tokens: Tensor, task: int | None) -> Tensor:
        """Out-of-distribution score of frames (M, N) → (M,): 0 is a typical training frame, above 1 hardly any is.

        Args:
            task: index of the task whose frames it should look like; None: the task it resembles most.
        """
        if not len(self.log_p):
            return torch.full((len(tokens),), torch.nan, device=tokens.device)
        score = (-self._log_likelihood(tokens) - self.typical) / (self.limit - self.typical)  # (M, tasks)
        return score.amin(-1) if task is None else score[:, task]

    def log_posterior(self, tokens: Tensor, task: int) -> Tensor:
        """log p(task | frame) among the training tasks, all equally likely before. (M, N) → (M,) nats, at most 0."""
        return self._log_likelihood(tokens).log_softmax(-1)[:, task]

    def wrong_task(self, tokens: Tensor, task: int, most: float) -> Tensor:
        """What frames (M, N) that look like another training task are marked down by → (M,) nats, from -``most`` to 0.

        Nothing where the task is not worse than exp(-MARGIN_NATS) times as likely as the likeliest: the positions of a
        grid depend on each other, so naive Bayes is too sure of itself.
        """
        return (self.log_posterior(tokens, task) + MARGIN_NATS).clamp(-most, 0)

    def _log_likelihood(self, tokens: Tensor) -> Tensor:
        """(M, N) → (M, tasks) log p(frame | task)."""
        position = torch.arange(tokens.shape[1], device=tokens.device)
        return self.log_p[:, position, tokens].sum(-1).T  # log_p[...] is (tasks, M, N)


def _count(codes: NDArray[np.integer], num_tokens: int, num_codes: int) -> NDArray[np.float64]:
    """(T, N) codes → (N, K) how often each occurs."""
    flat = (np.arange(num_tokens) * num_codes + codes).ravel()
    return np.bincount(flat, minlength=num_tokens * num_codes).reshape(num_tokens, num_codes).astype(np.float64)


def _log_frequency(counts: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K) counts → (N, K) log frequencies, pulled towards ``prior``."""
    smoothed = counts + prior
    log_p: NDArray[np.float64] = np.log(smoothed / smoothed.sum(-1, keepdims=True))
    return log_p


def _nll(log_p: NDArray[np.float64], codes: NDArray[np.integer]) -> NDArray[np.float64]:
    """(T, N) codes → (T,) -log p of each frame."""
    nll: NDArray[np.float64] = -log_p[np.arange(codes.shape[1]), codes].sum(-1)
    return nll
