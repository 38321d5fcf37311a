"""Training stage of the default codec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_core.checkpoint import load_weights
from dr_core.codec.fsq import FSQCodec, reconstruction_loss
from dr_core.seeding import numpy_generator


@dataclass(frozen=True)
class CodecTraining:
    """How the codec is trained."""

    steps: int = 700
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError("steps and batch_size must be at least 1")


def to_images(frames: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [-1, 1]; bytes, not floats, travel to the device."""
    tensor = torch.as_tensor(frames).to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def cosine_rate(base: float, index: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 3 % of ``base`` at the last step."""
    cosine = 0.5 * (1 + math.cos(math.pi * index / steps))
    return base * min(1.0, (index + 1) / max(1, warmup)) * (0.03 + 0.97 * cosine)


class FSQStage:
    """Reconstruction of single frames."""

    name = "codec"

    def __init__(
        self, codec: FSQCodec, frames: NDArray[np.uint8], config: CodecTraining, seed: int, device: torch.device
    ) -> None:
        self.codec, self.frames, self.config, self.seed, self.device = codec, frames, config, seed, device
        self.steps = config.steps
        self.optimizer = torch.optim.AdamW(
            codec.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def step(self, index: int) -> dict[str, Tensor]:
        """One optimiser step on a random batch of frames."""
        config = self.config
        rate = cosine_rate(config.learning_rate, index, config.steps, config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        chosen = numpy_generator(self.seed, self.name, index).integers(0, len(self.frames), config.batch_size)
        images = to_images(self.frames[np.sort(chosen)], self.device)
        reconstruction, tokens = self.codec(images)
        loss = reconstruction_loss(reconstruction, images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            error = (reconstruction.clamp(-1, 1) - images).square().mean()
            usage = torch.bincount(tokens.flatten(), minlength=self.codec.num_codes).float()
            share = usage / usage.sum()
            perplexity = torch.exp(-(share * share.clamp_min(1e-12).log()).sum())
        return {"loss": loss.detach(), "psnr_db": 10 * torch.log10(4 / error), "perplexity": perplexity}

    def tensors(self) -> dict[str, Tensor]:
        """Weights by name."""
        return {f"codec.{name}": value for name, value in self.codec.state_dict().items()}

    def training_state(self) -> dict[str, Any]:
        """The optimiser's moments."""
        return {"optimizer": self.optimizer.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Continue from a checkpoint."""
        load_weights(self.codec, tensors, "codec.", where)
        self.optimizer.load_state_dict(training["optimizer"])
