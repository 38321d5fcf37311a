"""The published VQ-GAN codec: 64x64 RGB frames to an 8x8 grid of codes (the paper preset).

Module names are those of the published ``vqgan.pt``, so that its state dict loads as it is.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class VQGANConfig:
    """Shape of the VQ-GAN; the defaults are the published ones."""

    channels: tuple[int, ...] = (128, 128, 256, 256)
    """Widths from the image inwards; each step but the first halves the resolution."""
    image_size: int = 64
    """Height and width of a frame, pixels."""
    attention_size: int = 16
    """Resolution, pixels, whose residual blocks are followed by attention."""
    latent_dim: int = 64
    """Channels of the latent and length of a code."""
    num_codes: int = 1024
    beta: float = 0.25
    """Weight of the commitment term, which pulls the latent towards its code."""
    channels_last: bool = True
    """Memory layout of the convolutions."""

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or any(c % 32 for c in self.channels):
            raise ValueError(f"channels must be two or more multiples of 32, got {self.channels}")
        if self.image_size % 2 ** (len(self.channels) - 1):
            raise ValueError(f"image_size {self.image_size} is not divisible by 2^{len(self.channels) - 1}")


class Norm(nn.Module):
    """GroupNorm of 32 groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gn(x)
        return out


class Residual(nn.Module):
    """shortcut(x) + conv(swish(norm(conv(swish(norm(x))))))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Norm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            Norm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        if inputs != outputs:
            self.channel_up = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.channel_up(x) if hasattr(self, "channel_up") else x
        out: Tensor = shortcut + self.block(x)
        return out


class Attention(nn.Module):
    """x + single-head self-attention over the positions of norm(x).

    ``proj_out`` is never applied: the published network stores such weights but leaves them out of its
    forward pass, and applying them gives other tokens. It is here so that published weights load without an
    exception to the rule.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = Norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gn(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # (B, H·W, C)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + attended.transpose(1, 2).view_as(x)


class Down(nn.Module):
    """Halve the resolution; one row and column of zeros is added below and on the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Up(nn.Module):
    """Double the resolution: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Encoder(nn.Module):
    """(B, 3, S, S) → (B, latent_dim, S/8, S/8) with the default channels."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        channels, size = config.channels, config.image_size
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1)]
        for inputs, outputs in pairwise(channels):
            for width in (inputs, outputs):
                layers.append(Residual(width, outputs))
                if size == config.attention_size:
                    layers.append(Attention(outputs))
            layers.append(Down(outputs))
            size //= 2
        last = channels[-1]
        layers += [Residual(last, last), Attention(last), Residual(last, last)]
        layers += [Norm(last), nn.SiLU(), nn.Conv2d(last, config.latent_dim, 3, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class Decoder(nn.Module):
    """(B, latent_dim, S/8, S/8) → (B, 3, S, S) with the default channels, not clipped."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        inputs = config.channels[-1]
        size = config.image_size // 2 ** (len(config.channels) - 1)
        layers: list[nn.Module] = [nn.Conv2d(config.latent_dim, inputs, 3, padding=1)]
        layers += [Residual(inputs, inputs), Attention(inputs), Residual(inputs, inputs)]
        for stage, outputs in enumerate(reversed(config.channels)):
            if stage:
                layers.append(Up(inputs))
                size *= 2
            for width in (inputs, outputs):
                layers.append(Residual(width, outputs))
                if size == config.attention_size:
                    layers.append(Attention(outputs))
            inputs = outputs
        layers += [Norm(inputs), nn.SiLU(), nn.Conv2d(inputs, 3, 3, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class Codebook(nn.Module):
    """The table of codes."""

    def __init__(self, num_codes: int, latent_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, latent_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)


class VQGAN(nn.Module):
    """64x64 RGB in [-1, 1] ↔ 8x8 codes."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes = config.num_codes
        side = config.image_size // 2 ** (len(config.channels) - 1)
        self.grid = (side, side)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.codebook = Codebook(config.num_codes, config.latent_dim)
        self.quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_dim, config.latent_dim, 1)
        if config.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    def latents(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] → (B, latent_dim, rows, columns), not yet quantised."""
        images = images.to(self.quant_conv.weight.dtype)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        out: Tensor = self.quant_conv(self.encoder(images))
        return out.to(self.codebook.embedding.weight.dtype)

    def rounded(self, dtype: torch.dtype) -> VQGAN:
        """A copy whose encoder computes in ``dtype``; it gives some images other codes. The rest stays as it is."""
        other = copy.deepcopy(self)
        other.encoder.to(dtype)
        other.quant_conv.to(dtype)
        return other

    def nearest(self, latents: Tensor) -> Tensor:
        """(B, latent_dim, rows, columns) → (B, rows·columns) int64: the closest code in squared distance."""
        z = latents.flatten(2).transpose(1, 2)  # (B, N, latent_dim)
        codes = self.codebook.embedding.weight
        # |z - e|² = |z|² - 2 z·e + |e|²; |z|² does not change which code is the closest.
        distance = torch.addmm(codes.square().sum(1), z.flatten(0, 1), codes.t(), alpha=-2)  # (B·N, K)
        return distance.argmin(1).view(z.shape[:2])

    def look_up(self, tokens: Tensor) -> Tensor:
        """(B, rows·columns) codes → (B, latent_dim, rows, columns)."""
        vectors: Tensor = self.codebook.embedding(tokens)
        return vectors.view(-1, *self.grid, self.config.latent_dim).permute(0, 3, 1, 2)

    def reconstruct(self, quantised: Tensor) -> Tensor:
        """(B, latent_dim, rows, columns) code vectors → (B, 3, S, S) image, not clipped."""
        out: Tensor = self.decoder(self.post_quant_conv(quantised))
        return out

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] → (B, rows·columns) int64 codes, row by row."""
        return self.nearest(self.latents(images))

    def code_features(self) -> Tensor:
        """(K, latent_dim) what each code stands for: its vector, all of them scaled to unit variance."""
        vectors = self.codebook.embedding.weight.detach()
        return vectors / vectors.std().clamp(min=1e-12)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, rows·columns) codes → (B, 3, S, S) in [-1, 1]."""
        return self.reconstruct(self.look_up(tokens)).clamp(-1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (reconstruction (B, 3, S, S), codes (B, rows·columns), quantisation loss ()).

        The gradient passes straight through the rounding to a code. The loss is |sg(z) - e|² + beta |z -
        sg(e)|²: the first term moves the codes, the second, the commitment, moves the encoder.
        """
        latents = self.latents(images)
        tokens = self.nearest(latents.detach())
        codes = self.look_up(tokens)
        loss = F.mse_loss(codes, latents.detach()) + self.config.beta * F.mse_loss(latents, codes.detach())
        straight_through = latents + (codes - latents).detach()
        return self.reconstruct(straight_through), tokens, loss

    def last_layer(self) -> Tensor:
        """The weight of the decoder's last convolution, where the adversarial weight is balanced."""
        convolution = self.decoder.model[-1]
        assert isinstance(convolution, nn.Conv2d)
        return convolution.weight


def perplexity(tokens: Tensor, num_codes: int) -> float:
    """exp of the entropy of the codes' frequencies: how many codes are in use, 1 … num_codes."""
    frequency = torch.bincount(tokens.flatten(), minlength=num_codes).double() / tokens.numel()
    return math.exp(-float(torch.xlogy(frequency, frequency).sum()))
