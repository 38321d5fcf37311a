"""Video denoiser that adds the history in place: the default preset.

The code of each history frame at a grid position is embedded and added to the input at the same position, so that
what moves is seen as a change of code at one place. No cross-attention: 2.6 times faster to train than the published
denoiser and a lower held-out loss (docs/reward.md).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class InPlaceConfig:
    """Shape of the in-place denoiser."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")


class Block(nn.Module):
    """Self-attention over the grid, then an MLP with a 3×3 depthwise convolution; both scaled by t (AdaLN)."""

    def __init__(self, config: InPlaceConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        width = config.width
        self.grid, self.heads, self.dropout = grid, config.heads, config.dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, scale_shift: Tensor) -> Tensor:
        """x (B, N, width); scale_shift (B, 4, width) → (B, N, width)."""
        b, n, width = x.shape
        scale1, shift1, scale2, shift2 = scale_shift.unsqueeze(2).unbind(1)  # each (B, 1, width)
        h = F.layer_norm(x, (width,)) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, head_dim)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + F.dropout(self.proj(attended), self.dropout, self.training)
        h = F.layer_norm(x, (width,)) * (1 + scale2) + shift2
        local = self.mix(h.transpose(1, 2).reshape(b, width, *self.grid)).flatten(2).transpose(1, 2)
        h = self.down(F.relu(self.up(h + local)).square())  # squared ReLU: as good as GELU here, a sixth cheaper
        return x + F.dropout(h, self.dropout, self.training)


class InPlaceDenoiser(nn.Module):
    """p(x_start | x_t, t, history, behaviour) for every token of the next frame.

    Args:
        num_codes: K; the token K is [MASK].
        num_history: frames of history, oldest first.
        num_timesteps: T of the diffusion process.
        num_behaviours: 1, or 2 when one network holds the expert (0) and the background (1) model.
    """

    def __init__(
        self,
        config: InPlaceConfig,
        num_codes: int,
        num_history: int,
        num_timesteps: int,
        num_behaviours: int = 1,
        grid: tuple[int, int] = (8, 8),
    ) -> None:
        super().__init__()
        width = config.width
        self.config, self.num_codes, self.num_history = config, num_codes, num_history
        self.num_tokens, self.num_behaviours = grid[0] * grid[1], num_behaviours
        self.input = nn.Embedding(num_codes + 1, width)
        self.history = nn.ModuleList(nn.Embedding(num_codes, width) for _ in range(num_history))
        self.position = nn.Parameter(0.02 * torch.randn(self.num_tokens, width))
        self.behaviour = nn.Embedding(num_behaviours, width)
        self.time = nn.Embedding(num_timesteps, config.depth * 4 * width)
        self.blocks = nn.ModuleList(Block(config, grid) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, num_codes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def condition(self, history: Tensor, behaviour: int | Tensor = 0) -> Tensor:
        """(B, num_history·N) codes, oldest frame first → (B, N, width), the part of the input that no t changes."""
        frames = history.view(-1, self.num_history, self.num_tokens).unbind(1)
        x = self.position + sum(table(codes) for table, codes in zip(self.history, frames, strict=True))
        label = torch.as_tensor(behaviour, device=history.device).expand(history.shape[0])
        return x + self.behaviour(label).unsqueeze(1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x_t (B, N) in [0, K], t (B,) or (1,) → logits (B, N, K) of x_start."""
        x = self.input(x_t) + condition
        x = F.dropout(x, self.config.dropout, self.training)
        tables = self.time(t).view(-1, len(self.blocks), 4, x.shape[-1])  # (B, depth, 4, width)
        for index, block in enumerate(self.blocks):
            x = block(x, tables[:, index])
        return self.to_logits(self.norm(x.to(self.norm.weight.dtype)))

    def rounded(self, dtype: torch.dtype) -> InPlaceDenoiser:
        """A copy that computes in ``dtype``, but for the output layer, and with it the logits."""
        other = copy.deepcopy(self).to(dtype)
        other.norm, other.to_logits = copy.deepcopy(self.norm), copy.deepcopy(self.to_logits)
        return other
