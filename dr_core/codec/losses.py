"""Training losses of the VQ-GAN: reconstruction, perceptual (LPIPS) and adversarial (PatchGAN).

Generator and discriminator losses are separate functions. The generator's is computed with a discriminator
whose parameters are detached, the discriminator's on a detached reconstruction, so neither gradient reaches
the other side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dr_core.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VQGANLossConfig:
    """Weights of the terms; the defaults are the published ones."""

    reconstruction: float = 1.0
    """Weight of the mean absolute error."""
    perceptual: float = 0.1
    """Weight of LPIPS, when its weights are there."""
    adversarial: float = 0.1
    """Weight of the adversarial term, on top of its balance with the reconstruction."""
    adversarial_start: int = 1000
    """Step from which the discriminator is trained and used."""
    perceptual_path: str = ""
    """Directory with ``vgg16.pth`` and ``lpips_vgg.pth``; empty trains without the perceptual term."""


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) → (B, 1, h, w): one real-or-fake score per overlapping patch."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        net: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            stride = 2 if i < layers - 1 else 1
            net += [
                nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2),
            ]
        net.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.model = nn.Sequential(*net)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.model(images)
        return out


class Perceptual(nn.Module):
    """LPIPS distance (arXiv 1801.03924) on VGG-16 features; never trained."""

    taps = (3, 8, 15, 22, 29)
    """Indices in torchvision's ``vgg16().features`` of the ReLUs that are compared."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for repeats, outputs in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(repeats):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.weights = nn.ParameterList(torch.zeros(1, c, 1, 1) for c in (64, 128, 256, 512, 512))
        self.mean: Tensor
        self.std: Tensor
        mean, std = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).view(2, 1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance (B,) of images (B, 3, H, W) in [-1, 1]."""
        x = (torch.cat([a, b]) - self.mean) / self.std
        distance = torch.zeros(len(a), device=a.device)
        weights = iter(self.weights)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                unit_a, unit_b = F.normalize(x, dim=1, eps=1e-10).chunk(2)
                weighted = (unit_a - unit_b).square() * next(weights)
                distance = distance + weighted.sum(1).mean((1, 2))
        return distance


def load_perceptual(directory: str) -> Perceptual | None:
    """LPIPS from local files, or None with a line in the log when ``directory`` is empty.

    Args:
        directory: holds ``vgg16.pth`` (torchvision's ImageNet weights) and ``lpips_vgg.pth`` (the ``lpips``
            package's ``weights/v0.1/vgg.pth``).

    Raises:
        CheckpointError: a file is missing or holds something else.
    """
    if not directory:
        log.warning("perceptual_path is empty: the codec trains without the perceptual term")
        return None
    vgg = _read(Path(directory) / "vgg16.pth")
    linear = _read(Path(directory) / "lpips_vgg.pth")
    state = {name: value for name, value in vgg.items() if name.startswith("features.")}
    state |= {f"weights.{i}": linear[n] for i in range(5) if (n := f"lin{i}.model.1.weight") in linear}
    model = Perceptual()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            directory,
            expected="torchvision's VGG-16 and LPIPS v0.1 weights",
            found=str(error).splitlines()[1].strip(),
            next_step="copy the two files again or leave perceptual_path empty",
        ) from error
    return model


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(
            str(path),
            expected="a file of perceptual weights",
            found="no such file",
            next_step="put it there or leave perceptual_path empty to train without the perceptual term",
        )
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@dataclass(frozen=True)
class GeneratorLoss:
    """Terms of the generator's loss, scalars; ``total`` is to be minimised, the others are detached."""

    total: Tensor
    reconstruction: Tensor
    perceptual: Tensor
    adversarial: Tensor
    adaptive_weight: Tensor


class VQGANLoss(nn.Module):
    """The losses with their discriminator, whose parameters need an optimiser of their own."""

    def __init__(self, config: VQGANLossConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator()
        self.perceptual = load_perceptual(config.perceptual_path)

    def generator(
        self, images: Tensor, reconstruction: Tensor, quantisation: Tensor, last_layer: Tensor, step: int
    ) -> GeneratorLoss:
        """Loss of the codec.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            reconstruction: the codec's output for them.
            quantisation: the codec's quantisation loss, ().
            last_layer: weight of the decoder's last layer, where the gradients' norms are compared.
            step: training step; before ``adversarial_start`` the adversarial term is zero.
        """
        config = self.config
        absolute = F.l1_loss(reconstruction, images)
        zero = torch.zeros_like(absolute)
        perceptual = zero if self.perceptual is None else self.perceptual(reconstruction, images).mean()
        faithful = config.reconstruction * absolute + config.perceptual * perceptual
        total = faithful + quantisation
        adversarial = adaptive = zero
        if step >= config.adversarial_start:
            detached = {name: p.detach() for name, p in self.discriminator.named_parameters()}
            adversarial = -functional_call(self.discriminator, detached, (reconstruction,)).mean()
            (towards_images,) = torch.autograd.grad(faithful, last_layer, retain_graph=True)
            (towards_real,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
            adaptive = (towards_images.norm() / (towards_real.norm() + 1e-4)).clamp(max=1e4).detach()
            total = total + config.adversarial * adaptive * adversarial
        return GeneratorLoss(total, absolute.detach(), perceptual.detach(), adversarial.detach(), adaptive)

    def discriminate(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Hinge loss of the discriminator, (). Used from ``adversarial_start`` on."""
        real = self.discriminator(images)
        fake = self.discriminator(reconstruction.detach())
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
