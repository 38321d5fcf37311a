"""The acting half of DrQ-v2 (Yarats et al., arXiv 2107.09645): pictures in, the mean action out.

A checkpoint of an agent holds exactly this, so that a robot needs neither critics nor optimisers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dr_core.checkpoint import built_from, load_checkpoint, load_weights, save_checkpoint
from dr_core.config import build, to_mapping
from dr_core.data.images import ImageRule
from dr_core.errors import CheckpointError, ConfigError

KIND = "agent"
CHANNELS = 32


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the acting network; the defaults are the published ones."""

    strides: tuple[int, ...] = (2, 1, 1, 1)
    """Of the convolutions, one each."""
    feature_size: int = 50
    """Width of the bottleneck behind the convolutions."""
    hidden_size: int = 1024
    """Width of the two hidden layers."""
    frame_stack: int = 1
    """Newest pictures that the network sees at once."""

    def __post_init__(self) -> None:
        for name in ("feature_size", "hidden_size", "frame_stack"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides = {self.strides}: at least one, of at least 1 each")

    def side(self, size: int) -> int:
        """Height and width of what the convolutions make of a picture of ``size``.

        Raises:
            ValueError: nothing is left of it.
        """
        for stride in self.strides:
            size = (size - 3) // stride + 1
        if size < 1:
            raise ValueError(f"strides = {self.strides}: nothing is left of a picture this small")
        return size


@dataclass(frozen=True)
class ActorConfig:
    """What builds the network."""

    action_size: int
    """Numbers of an action, each in [-1, 1]."""
    task: str
    """What it was trained to do."""
    rate_hz: float
    """Actions a second in training; a robot is driven at the same rate."""
    image: ImageRule = field(default_factory=ImageRule)
    """How a camera's picture becomes the network's."""
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        if self.action_size < 1:
            raise ValueError(f"action_size = {self.action_size}: at least 1")
        self.network.side(self.image.size)
        if not 0.0 < self.rate_hz < 1e4:
            raise ValueError(f"rate_hz = {self.rate_hz}: actions a second, above 0")


class Encoder(nn.Module):
    """3x3 convolutions: (B, 3 * frame_stack, S, S) in [-0.5, 0.5] → (B, size)."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        network, before = config.network, 3 * config.network.frame_stack
        layers: list[nn.Module] = []
        for stride in network.strides:
            layers += [nn.Conv2d(before, CHANNELS, 3, stride=stride), nn.ReLU(inplace=True)]
            before = CHANNELS
        self.convolutions = nn.Sequential(*layers)
        self.size = CHANNELS * network.side(config.image.size) ** 2

    def forward(self, pictures: Tensor) -> Tensor:
        return self.convolutions(pictures).flatten(1)


def trunk(size: int, features: int) -> nn.Sequential:
    """What makes the encoder's output small: (B, size) → (B, features) in [-1, 1]."""
    return nn.Sequential(nn.Linear(size, features), nn.LayerNorm(features), nn.Tanh())


def perceptron(size: int, hidden: int, outputs: int, linear: type[nn.Module] = nn.Linear) -> nn.Sequential:
    """Two hidden layers of ReLU units: (B, size) → (B, outputs)."""
    layers = (linear(size, hidden), nn.ReLU(inplace=True), linear(hidden, hidden), nn.ReLU(inplace=True))
    return nn.Sequential(*layers, linear(hidden, outputs))


class Actor(nn.Module):
    """The policy's mean: pictures (B, 3 * frame_stack, S, S) uint8 → actions (B, action_size) in [-1, 1]."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        features, hidden = config.network.feature_size, config.network.hidden_size
        self.trunk = trunk(self.encoder.size, features)
        self.policy = perceptron(features, hidden, config.action_size)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.mean(self.encoder(pictures.float() / 255.0 - 0.5))

    def mean(self, features: Tensor) -> Tensor:
        """The encoder's features (B, encoder.size) → actions (B, action_size)."""
        return torch.tanh(self.policy(self.trunk(features)))

    def save(self, path: Path, **facts: object) -> None:
        """Write a checkpoint directory; ``facts`` go into its manifest. An existing one is refused."""
        save_checkpoint(path, self.state_dict(), to_mapping(self.config), {"kind": KIND, **facts})


class ActingPolicy:
    """A trained actor that is driven frame by frame.

    Args:
        actor: in evaluation.
        model_hash: sha256 of its weights.
    """

    def __init__(self, actor: Actor, model_hash: str) -> None:
        self.config, self.model_hash = actor.config, model_hash
        self._actor = actor.eval()
        self._stack: deque[NDArray[np.uint8]] = deque(maxlen=actor.config.network.frame_stack)

    @classmethod
    def load(cls, path: Path, device: str = "cpu", crop: str = "") -> ActingPolicy:
        """Read an agent's checkpoint; ``crop`` replaces the one it was trained with, see ``ImageRule.with_crop``.

        Raises:
            CheckpointError: missing, damaged, or no agent.
            ConfigError: not a crop.
        """
        checkpoint = load_checkpoint(path)
        if checkpoint.manifest.get("kind") != KIND:
            raise CheckpointError(
                str(path),
                expected="the checkpoint of an agent",
                found="another one, such as a reward model",
                next_step="give the agent's directory",
            )
        try:
            config = build(ActorConfig, checkpoint.config)
        except ConfigError as error:
            raise CheckpointError(
                str(path / "config.yaml"),
                expected="the settings of an agent",
                found=str(error),
                next_step="copy the checkpoint again whole",
            ) from error
        config = replace(config, image=config.image.with_crop(crop))
        with built_from(checkpoint.tensors, path):
            actor = Actor(config)
        load_weights(actor, checkpoint.tensors, "", path)
        return cls(actor.to(device), checkpoint.model_hash)

    def reset(self) -> None:
        """Forget the pictures of the last episode."""
        self._stack.clear()

    def act(self, frame: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The action (A,) in [-1, 1] on the newest camera picture (H, W, 3) RGB; earlier ones are remembered."""
        picture = self.config.image.apply(frame).transpose(2, 0, 1)
        self._stack.append(picture)
        # Before the stack is full, its first picture stands in for what came before it.
        missing = self.config.network.frame_stack - len(self._stack)
        stacked = np.concatenate([*[self._stack[0]] * missing, *self._stack])
        device = next(self._actor.parameters()).device
        with torch.inference_mode():
            action = self._actor(torch.from_numpy(stacked).to(device)[None])[0]
        return action.double().cpu().numpy()
