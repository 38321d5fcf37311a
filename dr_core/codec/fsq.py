"""Small image codec with finite scalar quantisation (FSQ, arXiv 2309.15505): the default preset's tokens.

FSQ has no codebook to collapse, no commitment loss and no adversary: each latent channel is squashed to a few
integer levels, and the product of the levels is the code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FSQConfig:
    """Shape of the FSQ codec: 64×64 RGB images to an 8×8 grid of codes."""

    levels: tuple[int, ...] = (8, 8, 8)
    """Integer levels of each latent channel; their product is the number of codes."""
    channels: int = 48
    """Width at 16×16; the 8×8 stage has twice as many."""
    blocks: int = 1
    """Residual blocks per stage."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels must all be >= 2, got {self.levels}")
        if self.channels < 8 or self.channels % 8:
            raise ValueError(f"channels must be a multiple of 8, got {self.channels}")


class ChannelNorm(nn.Module):
    """Normalises each position of (B, C, H, W) over its channels, so that no place can change another's code.

    With GroupNorm, whose statistics span the image, a moving arm changes the codes of cells where nothing moves.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


def group_norm(channels: int) -> nn.Module:
    """The decoder's norm: there, statistics of the whole image do no harm."""
    return nn.GroupNorm(8, channels)


class Residual(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class FSQCodec(nn.Module):
    """64×64 RGB in [-1, 1] ↔ 8×8 codes."""

    grid = (8, 8)

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes = math.prod(config.levels)
        dims, c = len(config.levels), config.channels
        self.encoder = nn.Sequential(
            nn.Conv2d(3, c, 6, stride=4, padding=1),  # (B, c, 16, 16)
            *[Residual(c, ChannelNorm) for _ in range(config.blocks)],
            nn.Conv2d(c, 2 * c, 4, stride=2, padding=1),  # (B, 2c, 8, 8)
            *[Residual(2 * c, ChannelNorm) for _ in range(config.blocks)],
            ChannelNorm(2 * c),
            nn.SiLU(),
            nn.Conv2d(2 * c, dims, 1),
        )
        # What a fixed camera sees at each place: the static scene need not be spelled out by the codes.
        self.scene = nn.Parameter(torch.zeros(2 * c, *self.grid))
        self.spread = nn.Conv2d(dims, 2 * c, 3, padding=1)
        self.decoder = nn.Sequential(
            *[Residual(2 * c, group_norm) for _ in range(config.blocks)],
            nn.Conv2d(2 * c, 4 * c, 1),
            nn.PixelShuffle(2),  # (B, c, 16, 16)
            *[Residual(c, group_norm) for _ in range(config.blocks)],
            group_norm(c),
            nn.SiLU(),
            nn.Conv2d(c, 3 * 16, 3, padding=1),
            nn.PixelShuffle(4),  # (B, 3, 64, 64)
        )
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        basis = torch.cumprod(torch.tensor((1, *config.levels[:-1])), 0)
        self.register_buffer("basis", basis, persistent=False)
        self.levels: Tensor
        self.basis: Tensor

    def latents(self, images: Tensor) -> Tensor:
        """(B, 3, 64, 64) in [-1, 1] → (B, dims, 8, 8) in [0, levels - 1], not yet rounded."""
        dtype = next(self.encoder.parameters(), self.scene).dtype
        z = self.encoder(images.to(dtype)).to(self.scene.dtype)
        return torch.sigmoid(z) * (self.levels - 1).view(1, -1, 1, 1)

    def rounded(self, dtype: torch.dtype) -> FSQCodec:
        """A copy whose encoder computes in ``dtype``; it gives some images other codes. The rest stays as it is."""
        other = copy.deepcopy(self)
        other.encoder.to(dtype)
        return other

    def quantise(self, latents: Tensor) -> Tensor:
        """Round to the nearest level; the gradient passes straight through."""
        return latents + (latents.round() - latents).detach()

    def reconstruct(self, quantised: Tensor) -> Tensor:
        """(B, dims, 8, 8) levels → (B, 3, 64, 64) image, not clipped."""
        latents = 2 * quantised / (self.levels - 1).view(1, -1, 1, 1) - 1
        return self.decoder(self.spread(latents) + self.scene)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, 64, 64) in [-1, 1] → (B, 64) int64 codes, row by row."""
        levels = self.latents(images).round().long()  # (B, dims, 8, 8)
        return (levels * self.basis.view(1, -1, 1, 1)).sum(1).flatten(1)

    def code_features(self) -> Tensor:
        """(K, dims) what each code stands for, every latent channel in [-1, 1]: near codes look alike."""
        codes = torch.arange(self.num_codes, device=self.levels.device).unsqueeze(1)
        return 2 * (codes // self.basis % self.levels) / (self.levels - 1) - 1

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, 64) codes → (B, 3, 64, 64) in [-1, 1]."""
        grid = tokens.view(-1, 1, *self.grid)
        levels = (grid // self.basis.view(1, -1, 1, 1)) % self.levels.view(1, -1, 1, 1)
        return self.reconstruct(levels.float()).clamp(-1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (reconstruction (B, 3, 64, 64), codes (B, 64)) with gradients through the rounding."""
        quantised = self.quantise(self.latents(images))
        tokens = (quantised.detach().round().long() * self.basis.view(1, -1, 1, 1)).sum(1).flatten(1)
        return self.reconstruct(quantised), tokens


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute plus squared error; L1 keeps small moving parts that L2 alone averages away."""
    return F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)
