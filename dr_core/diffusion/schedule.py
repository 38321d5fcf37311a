"""The mask-and-uniform noise schedule of VQ-Diffusion (arXiv 2111.14822), in float64.

One step of noise at time t leaves a code as it is with probability ``keep[t] + uniform[t]``, turns it into
each other code with probability ``uniform[t]`` and into [MASK] with probability ``mask[t]``; [MASK] never
changes again. t = 0 is the first step of noise. The cumulative probabilities describe all steps up to t
together; their last entry, index T (also reached as t = -1), is "no noise yet".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScheduleConfig:
    """End points of the cumulative probabilities, which are linear in t between them."""

    num_timesteps: int = 100
    """T, number of noise steps."""
    keep_first: float = 0.99999
    """Cumulative probability that a code was kept, after step 0."""
    keep_last: float = 9e-6
    """The same after step T-1."""
    mask_first: float = 9e-6
    """Cumulative probability that a code was masked, after step 0."""
    mask_last: float = 0.99999
    """The same after step T-1."""

    def __post_init__(self) -> None:
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps must be at least 2, got {self.num_timesteps}")
        if not 1 > self.keep_first >= self.keep_last > 0:
            raise ValueError(f"need 1 > keep_first >= keep_last > 0, got {self.keep_first}, {self.keep_last}")
        if not 0 < self.mask_first <= self.mask_last < 1:
            raise ValueError(f"need 0 < mask_first <= mask_last < 1, got {self.mask_first}, {self.mask_last}")
        if max(self.keep_first + self.mask_first, self.keep_last + self.mask_last) >= 1:
            raise ValueError("keep + mask must leave some probability for the uniform part")


@dataclass(frozen=True)
class Schedule:
    """Probabilities of the noise process over K codes.

    Attributes:
        num_codes: K.
        keep, uniform, mask: (T,) one step of noise: a_t, b_t (for each code), c_t.
        cum_keep, cum_uniform, cum_mask: (T+1,) all steps up to t; index T is "no noise".
    """

    num_codes: int
    keep: Array
    uniform: Array
    mask: Array
    cum_keep: Array
    cum_uniform: Array
    cum_mask: Array

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.keep)

    def transition(self) -> Array:
        """(T+1, T+1, 3): keep, uniform and mask probabilities of q(x_t | x_s) for s < t, at [s, t].

        Row T is s = -1, the clean tokens. Entries with s >= t mean nothing and are 0.
        """
        T = self.num_timesteps
        result = np.zeros((T + 1, T + 1, 3))
        for s in range(-1, T):
            for t in range(s + 1, T):
                keep = self.cum_keep[t] / self.cum_keep[s]
                unmasked = (1 - self.cum_mask[t]) / (1 - self.cum_mask[s])
                result[s, t] = keep, max(unmasked - keep, 0.0) / self.num_codes, 1 - unmasked
        return result

    def log_entries(self) -> dict[str, NDArray[np.float32]]:
        """The constants under their names in a published checkpoint, for comparison with one."""
        with np.errstate(divide="ignore"):  # the "no noise" entry has log 0
            entries = {
                "log_at": np.log(self.keep),
                "log_bt": np.log(self.uniform),
                "log_ct": np.log(self.mask),
                "log_cumprod_at": np.log(self.cum_keep),
                "log_cumprod_bt": np.log(self.cum_uniform),
                "log_cumprod_ct": np.log(self.cum_mask),
                "log_1_min_ct": np.log1p(-self.mask),
                "log_1_min_cumprod_ct": np.log1p(-self.cum_mask),
            }
        return {name: value.astype(np.float32) for name, value in entries.items()}


def mask_and_uniform(config: ScheduleConfig, num_codes: int) -> Schedule:
    """Build the schedule for ``num_codes`` codes and check ranges and sums."""
    T, K = config.num_timesteps, num_codes
    cum_keep = np.append(np.linspace(config.keep_first, config.keep_last, T), 1.0)
    cum_mask = np.append(np.linspace(config.mask_first, config.mask_last, T), 0.0)
    cum_uniform = (1 - cum_keep - cum_mask) / K
    before = np.arange(T) - 1  # -1 is the last entry: no noise
    keep = cum_keep[:T] / cum_keep[before]
    unmasked = (1 - cum_mask[:T]) / (1 - cum_mask[before])
    mask = 1 - unmasked
    uniform = (unmasked - keep) / K
    for name, (a, b, c) in {
        "one step": (keep, uniform, mask),
        "cumulative": (cum_keep, cum_uniform, cum_mask),
    }.items():
        assert all(np.all((p >= 0) & (p <= 1)) for p in (a, b, c)), f"{name}: a probability leaves [0, 1]"
        assert np.allclose(a + K * b + c, 1, rtol=0, atol=1e-12), f"{name}: probabilities do not sum to 1"
    return Schedule(K, keep, uniform, mask, cum_keep, cum_uniform, cum_mask)
