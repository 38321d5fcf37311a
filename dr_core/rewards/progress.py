"""How far along its task an expert's frame looks: a self-supervised regression on the training experts.

Kernel ridge regression from the codes of one frame to the share of the episode that has passed, 0 at the first frame
and 1 at the last; solved in closed form, no label needed. Its rate shapes the reward as a potential (Ng, Harada and
Russell 1999), after the idea of progress rewards from expert videos (TimeRewarder, arXiv 2509.26627).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CENTRES = 1024
MAX_FRAMES = 20_000
RIDGE = 0.3
RATE_FRAMES = 8
"""Frames over which the rate of progress is taken: the reward is the difference of a moving average this long."""


class Progress(nn.Module):
    """Kernel ridge regression on frames; fill by ``fit`` or from a checkpoint.

    Attributes:
        centres: (P, N) codes of expert frames.
        weight: (P,) of each centre.
        bandwidth: squared length scale of the Gaussian kernel on the features of all codes of a frame.
    """

    def __init__(self, num_centres: int, num_tokens: int = 64) -> None:
        super().__init__()
        self.centres: Tensor
        self.weight: Tensor
        self.bandwidth: Tensor
        self.register_buffer("centres", torch.zeros(num_centres, num_tokens, dtype=torch.int32))
        self.register_buffer("weight", torch.zeros(num_centres))
        self.register_buffer("bandwidth", torch.ones(()))

    @classmethod
    def fit(cls, episodes: Sequence[NDArray[np.integer]], features: Tensor, rng: np.random.Generator) -> Progress:
        """Regress the share of each expert episode that has passed.

        Args:
            episodes: codes (T, N) of each, T >= 2 for those that tell anything.
            features: (K, F) of each code, see ``code_features`` of the codecs.
            rng: chooses centres, and frames where there are more than enough.
        """
        codes = np.concatenate(episodes)
        passed = np.concatenate([np.linspace(0, 1, len(own)) for own in episodes])
        frames = rng.permutation(len(codes))[:MAX_FRAMES]
        own = cls(min(CENTRES, len(frames)), codes.shape[1])
        own.centres.copy_(torch.from_numpy(codes[frames[: len(own.centres)]].astype(np.int32)))
        features = features.double()
        centre = _embed(own.centres.long(), features)
        distance = _squared_distance(centre, centre)
        own.bandwidth.copy_(distance.median().clamp(min=1e-6))
        chosen = _embed(torch.from_numpy(codes[frames].astype(np.int64)), features)
        kernel = torch.exp(-_squared_distance(chosen, centre) / own.bandwidth)  # (frames, P)
        among = torch.exp(-distance / own.bandwidth)
        penalty = RIDGE * len(frames) / len(centre) * among + 1e-6 * torch.eye(len(centre), dtype=torch.float64)
        target = kernel.T @ torch.from_numpy(passed[frames] - 0.5)
        own.weight.copy_(torch.linalg.solve(kernel.T @ kernel + penalty, target))
        return own

    def on(self, features: Tensor) -> FittedProgress:
        """The regression with the features of the codes it was fitted with, ready to be used."""
        return FittedProgress(self, features)


class FittedProgress:
    """Progress of frames, from 0 to 1; what does not depend on the frames is computed once.

    In float64: weights of both signs cancel, and a stream must give what a batch gives.
    """

    def __init__(self, progress: Progress, features: Tensor) -> None:
        self._progress, self._features = progress, features.double()
        self._centre = _embed(progress.centres.long(), self._features)  # (P, N·F)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(M, N) codes → (M,); 0.5 without a single expert frame."""
        distance = _squared_distance(_embed(tokens, self._features), self._centre)
        kernel = torch.exp(-distance / self._progress.bandwidth)
        return (kernel @ self._progress.weight.double() + 0.5).clamp(0, 1).float()


def rate(progress: NDArray[np.float32]) -> NDArray[np.float32]:
    """Progress (T,) of the frames of an episode → (T,) its rate per frame, over the last ``RATE_FRAMES`` frames.

    It is the difference of a causal moving average, hence of a potential of the history; the first frame repeats
    itself before the start, so the rates of an episode add up to the rise of that average.
    """
    before = np.concatenate([np.repeat(progress[:1], RATE_FRAMES), progress])[: len(progress)]
    return (progress - before) / np.float32(RATE_FRAMES)


def _embed(tokens: Tensor, features: Tensor) -> Tensor:
    """(M, N) codes → (M, N·F) features."""
    return features[tokens].flatten(1)


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """(A, F), (B, F) → (A, B)."""
    return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
