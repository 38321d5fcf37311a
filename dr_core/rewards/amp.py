"""Adversarial reward (AMP, Peng et al., arXiv 2104.02180) on frames, as the baseline of arXiv 2312.14134 uses it.

A discriminator D learns +1 for expert frames and -1 for the agent's by least squares; the reward of a frame is
max(0, 1 - ¼(D - 1)²), from 0 to 1. Scoring changes nothing; ``update`` does, so scores depend on all updates before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dr_core.checkpoint import load_weights
from dr_core.codec.train import to_images
from dr_core.errors import CheckpointError
from dr_core.seeding import generator


@dataclass(frozen=True)
class AMPConfig:
    """The discriminator and its training."""

    num_frames: int = 1
    """Frames it sees at once, stacked as channels: 1 as in the baseline, 2 for transitions as in AMP."""
    image_size: int = 64
    hidden_size: int = 256
    learning_rate: float = 1e-4
    batch_size: int = 32
    """Expert frames, and as many of the agent's, an update."""
    penalty: float = 10.0
    """Weight of ½‖∇D‖² at expert frames (AMP, equation 8)."""
    update_every: int = 10
    """Updates of the agent from one update of the discriminator to the next; for the loop that calls it."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "hidden_size", "batch_size", "update_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if self.image_size < 16 or self.penalty < 0:
            raise ValueError("image_size must be at least 16 and penalty not negative")


class AdversarialReward:
    """A discriminator, its optimiser, and the reward they make.

    Args:
        seed: of the first weights.
    """

    def __init__(self, seed: int = 0, config: AMPConfig = AMPConfig(), *, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "amp").initial_seed() % 2**63)
            self.network = _discriminator(config).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate)

    @torch.no_grad()
    def score(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rewards of frames (B, S, S, 3·num_frames) uint8 → (B,) float32 in [0, 1]."""
        judged = self.network(self._images(frames)).squeeze(1)
        return (1 - 0.25 * (judged - 1).square()).clamp(min=0).cpu().numpy()

    def update(
        self, expert_frames: NDArray[np.uint8], agent_frames: NDArray[np.uint8], rng: np.random.Generator
    ) -> dict[str, float]:
        """One step of the discriminator on frames drawn from both; returns its losses before it.

        Args:
            expert_frames: (N, S, S, 3·num_frames) uint8, may be memory-mapped.
            agent_frames: (M, S, S, 3·num_frames) uint8, for example of a batch of the replay.
            rng: draws ``batch_size`` of each.
        """
        expert, agent = (
            self._images(frames[np.sort(rng.integers(0, len(frames), self.config.batch_size))])
            for frames in (expert_frames, agent_frames)
        )
        expert.requires_grad_()
        judged_expert, judged_agent = self.network(expert), self.network(agent)
        expert_loss, agent_loss = (judged_expert - 1).square().mean(), (judged_agent + 1).square().mean()
        slope = squared_slope(judged_expert, expert).mean()
        loss = expert_loss + agent_loss + 0.5 * self.config.penalty * slope
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        values = {"loss": loss, "expert_loss": expert_loss, "agent_loss": agent_loss, "squared_slope": slope}
        values |= {"expert_judged": judged_expert.mean(), "agent_judged": judged_agent.mean()}
        return dict(zip(values, torch.stack([v.detach() for v in values.values()]).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """A copy of weights and optimiser, tensors and plain numbers only."""
        return copy.deepcopy({"network": dict(self.network.state_dict()), "optimizer": self.optimizer.state_dict()})

    def restore(self, state: Mapping[str, Any], where: Path = Path("the discriminator's state")) -> None:
        """Go on from what ``state`` gave: the same scores and updates.

        Args:
            where: named in errors.

        Raises:
            CheckpointError: of another network, or no such state.
        """
        try:
            load_weights(self.network, state["network"], "", where)
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        except (KeyError, ValueError, TypeError) as error:  # torch's refusals of a foreign optimiser state
            raise CheckpointError(
                str(where),
                expected="weights and optimiser of a discriminator",
                found=repr(error),
                next_step="give the state as it was saved",
            ) from error

    def _images(self, frames: NDArray[np.uint8]) -> Tensor:
        """(B, S, S, 3·num_frames) uint8 → (B, 3·num_frames, S, S) in [-1, 1]."""
        size = self.config.image_size
        shape = (size, size, 3 * self.config.num_frames)
        if frames.dtype != np.uint8 or frames.shape[1:] != shape:
            raise ValueError(f"frames are uint8 (B, {', '.join(map(str, shape))}), not {frames.dtype} {frames.shape}")
        return to_images(frames, self.device)


def squared_slope(judged: Tensor, images: Tensor) -> Tensor:
    """‖∂D/∂image‖² of each image, (B,), to be differentiated further; ``judged`` (B, 1) comes from ``images``."""
    (slope,) = torch.autograd.grad(judged.sum(), images, create_graph=True)
    return slope.flatten(1).square().sum(1)


def _discriminator(config: AMPConfig) -> nn.Sequential:
    """(B, 3·num_frames, S, S) → (B, 1), the network of the baseline; orthogonal weights, biases of zero."""
    side = (config.image_size - 3) // 2 + 1 - 4
    hidden = config.hidden_size
    network = nn.Sequential(
        *(nn.Conv2d(3 * config.num_frames, 32, 3, 2), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * side * side, hidden), nn.Tanh()),
        *(nn.Linear(hidden, hidden), nn.Tanh()),
        nn.Linear(hidden, 1),
    )
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight, gain=2**0.5 if isinstance(module, nn.Conv2d) else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
