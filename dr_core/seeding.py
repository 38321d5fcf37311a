"""Random numbers that depend only on a seed and a name, never on what was drawn before.

A run that resumes at step k asks for `generator(seed, "train", k)` and draws what the uninterrupted run drew
there, without replaying the steps before. Generators live on the CPU, so that the numbers are the same on
every device, except where the draws themselves have to be made on it.
"""

from __future__ import annotations

import hashlib
import json
import operator
from typing import SupportsIndex

import numpy as np
import torch


def generator(seed: SupportsIndex, *stream: SupportsIndex | str) -> torch.Generator:
    """A CPU generator for one stream, for example `generator(0, "replay", step)`."""
    state = np.random.SeedSequence(_entropy(seed, *stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def generator_on(device: torch.device, seed: SupportsIndex, *stream: SupportsIndex | str) -> torch.Generator:
    """`generator` for draws made on ``device``, which takes no other one's; off the CPU its numbers are others."""
    own = generator(seed, *stream)
    return own if device.type == "cpu" else torch.Generator(device).manual_seed(own.initial_seed())


def numpy_generator(seed: SupportsIndex, *stream: SupportsIndex | str) -> np.random.Generator:
    """A NumPy generator for one stream; its numbers are not those of `generator` of the same name."""
    return np.random.default_rng(np.random.SeedSequence(_entropy(seed, *stream)))


def _entropy(seed: SupportsIndex, *stream: SupportsIndex | str) -> int:
    """128 bits that differ for every (seed, stream): JSON keeps 1 apart from "1", "a", "b" from "ab"."""
    names = [part if isinstance(part, str) else operator.index(part) for part in (seed, *stream)]
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:16], "little")


def choose_device(name: str) -> str:
    """ "auto" → "cuda" where there is a GPU, else "cpu"; any other torch device name stays as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
