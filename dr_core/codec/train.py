"""Training stages of the codecs: single frames in, reconstructions out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_core.checkpoint import load_weights
from dr_core.codec.fsq import FSQCodec, reconstruction_loss
from dr_core.codec.losses import VQGANLoss, VQGANLossConfig
from dr_core.codec.vqgan import VQGAN
from dr_core.distributed import ALONE, Team
from dr_core.seeding import numpy_generator


@dataclass(frozen=True)
class CodecTraining:
    """How the codec is trained."""

    steps: int = 900
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    """fsq: steps of linear warm-up before the cosine; vqgan: the rate is constant."""
    vqgan_loss: VQGANLossConfig = field(default_factory=VQGANLossConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError("steps and batch_size must be at least 1")


def to_images(frames: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [-1, 1]; bytes, not floats, travel to the device."""
    tensor = torch.as_tensor(frames if isinstance(frames, Tensor) else np.array(frames)).to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def cosine_rate(base: float, index: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 3 % of ``base`` at the last step."""
    cosine = 0.5 * (1 + math.cos(math.pi * index / steps))
    return base * min(1.0, (index + 1) / max(1, warmup)) * (0.03 + 0.97 * cosine)


def code_perplexity(tokens: Tensor, num_codes: int, team: Team = ALONE) -> Tensor:
    """exp(entropy of the codes in a batch), (): how many codes are in use, at most ``num_codes``."""
    share = team.mean(torch.bincount(tokens.flatten(), minlength=num_codes).float() / tokens.numel())
    return torch.exp(-torch.xlogy(share, share).sum())


def psnr_db(reconstruction: Tensor, images: Tensor, team: Team = ALONE) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], ()."""
    return 10 * torch.log10(4 / team.mean((reconstruction.clamp(-1, 1) - images).square().mean()))


def draw_images(
    frames: NDArray[np.uint8], batch_size: int, seed: int, index: int, device: torch.device, team: Team
) -> Tensor:
    """The images (B, 3, 64, 64) of step ``index``; on a team its own rows of them."""
    chosen = numpy_generator(seed, "codec", index).integers(0, len(frames), batch_size)[team.rows(batch_size)]
    return to_images(frames[chosen], device)


class FSQStage:
    """Reconstruction of single frames."""

    name = "codec"

    def __init__(
        self,
        codec: FSQCodec,
        frames: NDArray[np.uint8],
        config: CodecTraining,
        seed: int,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.codec, self.frames, self.config, self.seed, self.device = codec, frames, config, seed, device
        self.steps, self.team = config.steps, team
        self.optimizer = torch.optim.AdamW(
            codec.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def step(self, index: int) -> dict[str, Tensor]:
        """One optimiser step on a random batch of frames."""
        config = self.config
        rate = cosine_rate(config.learning_rate, index, config.steps, config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = draw_images(self.frames, config.batch_size, self.seed, index, self.device, self.team)
        reconstruction, tokens = self.codec(images)
        loss = reconstruction_loss(reconstruction, images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.team.average_gradients(self.codec.parameters())
        self.optimizer.step()
        with torch.no_grad():
            quality = {"psnr_db": psnr_db(reconstruction, images, self.team)}
            used = code_perplexity(tokens, self.codec.num_codes, self.team)
            return {"loss": self.team.mean(loss.detach()), **quality, "perplexity": used}

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


class VQGANStage:
    """Reconstruction with commitment, perceptual and adversarial terms: codec and discriminator in turn."""

    name = "codec"

    def __init__(
        self,
        codec: VQGAN,
        frames: NDArray[np.uint8],
        config: CodecTraining,
        seed: int,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.codec, self.frames, self.config, self.seed, self.device = codec, frames, config, seed, device
        self.steps, self.team = config.steps, team
        self.losses = VQGANLoss(config.vqgan_loss).to(device)
        if team.size > 1:
            team.share_batch_norm(self.losses.discriminator)
            # The adversarial weight compares norms of gradients there, which have to be those of the whole batch.
            codec.last_layer().register_hook(team.mean)
        rate, betas = config.learning_rate, (0.5, 0.9)
        self.optimizer = torch.optim.Adam(codec.parameters(), rate, betas=betas)
        self.discriminator_optimizer = torch.optim.Adam(self.losses.discriminator.parameters(), rate, betas=betas)

    def step(self, index: int) -> dict[str, Tensor]:
        """One step of the codec and, once the adversary has started, one of the discriminator."""
        images = draw_images(self.frames, self.config.batch_size, self.seed, index, self.device, self.team)
        reconstruction, tokens, quantisation = self.codec(images)
        loss = self.losses.generator(images, reconstruction, quantisation, self.codec.last_layer(), index)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self.team.average_gradients(self.codec.parameters())
        self.optimizer.step()
        values = {"loss": loss.total.detach(), "l1": loss.reconstruction, "perceptual": loss.perceptual}
        if index >= self.losses.config.adversarial_start:
            adversary = self.losses.discriminate(images, reconstruction)
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            adversary.backward()
            self.team.average_gradients(self.losses.discriminator.parameters())
            self.discriminator_optimizer.step()
            values |= {"adversarial": loss.adversarial, "discriminator": adversary.detach()}
        with torch.no_grad():
            quality = {"psnr_db": psnr_db(reconstruction, images, self.team)}
            used = code_perplexity(tokens, self.codec.num_codes, self.team)
            return {**self.team.means(values), **quality, "perplexity": used}

    def tensors(self) -> dict[str, Tensor]:
        """Weights of the codec and of the discriminator."""
        codec = {f"codec.{name}": value for name, value in self.codec.state_dict().items()}
        adversary = self.losses.discriminator.state_dict()
        return {**codec, **{f"discriminator.{name}": value for name, value in adversary.items()}}

    def training_state(self) -> dict[str, Any]:
        """Both optimisers' moments."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Continue from a checkpoint."""
        load_weights(self.codec, tensors, "codec.", where)
        load_weights(self.losses.discriminator, tensors, "discriminator.", where)
        self.optimizer.load_state_dict(training["optimizer"])
        self.discriminator_optimizer.load_state_dict(training["discriminator_optimizer"])
