"""The published denoiser rearranged for evaluation: the same function of the same weights in fewer operations.

Tokens come first, (N, B, width), so that a 3×3 convolution over the 8×8 grid is three matrix products (Winograd's
F(4×4, 3×3), one product per tile transform), and attention works on a few frames at a time, whose scores stay in the
cache. docs/performance.md has the measurements behind each choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from dr_core.diffusion.denoiser import Block, CrossAttentionDenoiser

ATTENTION_FRAMES = 8
"""Frames whose attention scores are computed together: 4 MB in float32, less than a level-2 or -3 cache."""
GELU_SLOPE = 1.702


@dataclass(frozen=True)
class _Block:
    """Weights of one block; each pair is (weight, bias)."""

    qkv: tuple[Tensor, Tensor]
    self_out: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    cross_out: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]
    conv_in: Convolution
    conv_out: Convolution


class FrozenDenoiser:
    """p(x_start | x_t, t, history) with everything that the weights alone decide computed once.

    Args:
        network: the trained network, whose later changes are not seen.
        dtype: precision of the blocks. The output layer, and with it the logits, is float32 always.
    """

    def __init__(self, network: CrossAttentionDenoiser, dtype: torch.dtype) -> None:
        config, self.dtype = network.config, dtype
        self.heads, self.depth, self.width = config.heads, config.depth, config.width
        self.num_tokens = network.num_tokens
        grid = (network.row.num_embeddings, network.column.num_embeddings)
        device = network.input.weight.device
        winograd = Winograd(grid, dtype, device) if not (grid[0] % 4 or grid[1] % 4) else None
        # Rows of the grid one by one, and tile by tile, as the tiles' transforms need them.
        self.order = torch.arange(self.num_tokens, device=device) if winograd is None else winograd.order
        self.raster = self.order.argsort()

        def pair(layer: nn.Linear, gain: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
            """Weight and bias of gain·layer."""
            gain = torch.as_tensor(gain, device=device)
            return (layer.weight * gain.unsqueeze(-1)).to(dtype), (layer.bias * gain).to(dtype)

        position = (network.row.weight.unsqueeze(1) + network.column.weight).flatten(0, 1)  # (N, width)
        self.position = position.unsqueeze(1)
        self.input = network.input.weight
        self.norm, self.to_logits = network.norm, network.to_logits
        # 1/sqrt(head_dim) of the scores goes into the queries, the slope of the GELU into the layer before it.
        scale = (self.width // self.heads) ** -0.5
        thirds = torch.ones(3, self.width, device=device)
        thirds[0] = scale
        blocks: list[Block] = list(network.blocks)  # type: ignore[arg-type]
        self.blocks = [
            _Block(
                qkv=pair(block.qkv, thirds.flatten()),
                self_out=pair(block.self_out),
                query=pair(block.query, scale),
                cross_out=pair(block.cross_out),
                norm=(block.norm.weight.to(dtype), block.norm.bias.to(dtype)),
                conv_in=Convolution(block.conv_in, grid, dtype, winograd, gain=GELU_SLOPE),
                conv_out=Convolution(block.conv_out, grid, dtype, winograd, gain=1 / GELU_SLOPE, gain_bias=1.0),
            )
            for block in blocks
        ]
        codes, positions = network.condition_tables()
        self.kv = codes.view(network.num_codes, self.depth, -1).transpose(0, 1).to(dtype).contiguous()
        self.position_kv = None
        if positions is not None:
            self.position_kv = positions.view(len(positions), self.depth, -1).transpose(0, 1).to(dtype)
        times = torch.arange(network.num_timesteps, device=device)
        modulation = network.modulation(times)  # (T, depth, 2, 2, width)
        modulation[:, :, :, 0] += 1
        self.modulation = modulation.flatten(1, 3).to(dtype)  # (T, depth·4, width)

    @torch.no_grad()
    def condition(self, history: Tensor) -> Tensor:
        """Keys and values (depth, 2, B, heads, head_dim, M) of the history (B, M), transposed for the products."""
        b, m = history.shape
        out = self.kv.new_empty(self.depth, 2, b, self.width, m)
        for index, table in enumerate(self.kv):
            rows = F.embedding(history, table)  # (B, M, 2·width)
            if self.position_kv is not None:
                rows = rows + self.position_kv[index]
            out[index] = rows.view(b, m, 2, self.width).permute(2, 0, 3, 1)
        return out.view(self.depth, 2, b, self.heads, -1, m)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, cache: Tensor) -> Tensor:
        """x_t (B, N), t (B,) or (1,) for all, cache from ``condition`` → logits (B, N, K) float32."""
        # A single frame is a convolution's own business; tiles pay from two frames on.
        tiled = len(x_t) > 1 and self.blocks[0].conv_in.tiles is not None
        order = self.order if tiled else slice(None)
        x = (F.embedding(x_t.t(), self.input) + self.position)[order].to(self.dtype)  # (N, B, width)
        shape = x.shape
        modulation = self.modulation[t].unbind(1)  # each (1 or B, width)
        for index, block in enumerate(self.blocks):
            scale1, shift1, scale2, shift2 = modulation[4 * index : 4 * index + 4]
            qkv = F.linear(_norm(x, scale1, shift1), *block.qkv).view(*shape[:2], 3, self.heads, -1)
            q, k, v = qkv.unbind(2)
            x = x.add_(F.linear(_attention(q, k.permute(1, 2, 3, 0), v.permute(1, 2, 3, 0)), *block.self_out))
            q = F.linear(_norm(x, scale2, shift2), *block.query).view(*shape[:2], self.heads, -1)
            x = x.add_(F.linear(_attention(q, cache[index, 0], cache[index, 1]), *block.cross_out))
            h = F.layer_norm(x, (self.width,), *block.norm)
            x = x.add_(block.conv_out(F.silu(block.conv_in(h, tiled), inplace=True), tiled))
        x = x[self.raster] if tiled else x
        h = self.norm(x.transpose(0, 1).float())
        logits: Tensor = self.to_logits(h)
        return logits


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm of x (N, B, width), then scale and shift (1 or B, width)."""
    if len(scale) == 1:
        return F.layer_norm(x, x.shape[-1:], scale[0], shift[0])
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (N, B, heads, head_dim), scaled; k and v (B, heads, head_dim, M) → (N, B, heads·head_dim).

    Products of small matrices with the long side last: with a head_dim of 8 these are 2 to 3 times as fast on a CPU
    as the fused kernel.
    """
    n, b, heads, length = q.shape
    q = q.permute(1, 2, 0, 3)
    out = q.new_empty(n, b, heads, length)
    for start in range(0, b, ATTENTION_FRAMES):
        part = slice(start, start + ATTENTION_FRAMES)
        scores = torch.bmm(q[part].reshape(-1, n, length), k[part].reshape(-1, length, k.shape[-1]))
        weights = scores.softmax(-1).transpose(1, 2)  # (·, M, N)
        attended = torch.bmm(v[part].reshape(-1, length, v.shape[-1]), weights)  # (·, head_dim, N)
        out[:, part] = attended.view(-1, heads, length, n).permute(3, 0, 1, 2)
    return out.flatten(2)


class Winograd:
    """Transforms of F(4×4, 3×3) over a grid of tokens: 36 products for 16 outputs of a 3×3 kernel, not 144.

    Correlation of 6 inputs with 3 taps is exact at 6 points of evaluation; these points keep the rounding error of
    float32 near 1e-6 of the result (the usual 0, ±1, ±2: twice that). Rounding to bfloat16 costs five times as much
    as in a direct convolution.
    """

    POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
    """And infinity."""

    def __init__(self, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        rows, columns = grid[0] // 4, grid[1] // 4
        powers = np.array(self.POINTS)[:, None] ** np.arange(6)

        def evaluation(length: int) -> NDArray[np.float64]:
            """Values at the points of a polynomial of ``length`` coefficients; at infinity, its last one."""
            return np.concatenate([powers[:, :length], np.eye(length)[-1:]])

        self.kernel = torch.from_numpy(evaluation(3)).to(device)  # (6, 3)
        inputs, outputs = np.linalg.inv(evaluation(6)).T, evaluation(4).T  # (6, 6), (4, 6)

        def axis(tiles: int) -> NDArray[np.float64]:
            """(6, tiles, 4·tiles): tile i sees the inputs 4i-1 … 4i+4, zero outside the grid."""
            padded = np.zeros((6, tiles, 4 * tiles + 2))
            for i in range(tiles):
                padded[:, i, 4 * i : 4 * i + 6] = inputs
            return padded[:, :, 1:-1]

        # Tokens are ordered by place in the tile, then by tile: a tile's outputs are one product then.
        place = np.arange(16 * rows * columns).reshape(rows, 4, columns, 4).transpose(1, 3, 0, 2).ravel()
        into = np.einsum("ary,bcx->abrcyx", axis(rows), axis(columns)).reshape(36 * rows * columns, -1)[:, place]
        back = np.einsum("ya,xb->yxab", outputs, outputs).reshape(16, 36)
        self.order = torch.from_numpy(place).to(device)
        self.into, self.back = (torch.from_numpy(m).to(device, dtype) for m in (into, back))


class Convolution:
    """A 3×3 convolution over the grid of tokens (N, B, inputs) → (N, B, outputs), its result times ``gain``."""

    def __init__(
        self,
        layer: nn.Conv2d,
        grid: tuple[int, int],
        dtype: torch.dtype,
        tiles: Winograd | None,
        *,
        gain: float,
        gain_bias: float | None = None,
    ) -> None:
        assert layer.bias is not None
        self.grid, self.tiles = grid, tiles
        self.bias = (layer.bias * (gain if gain_bias is None else gain_bias)).to(dtype)
        weight = layer.weight * gain
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        if tiles is not None:
            kernel = torch.einsum("ay,bx,oiyx->abio", tiles.kernel, tiles.kernel, weight.double())
            self.points = kernel.flatten(0, 1).to(dtype)  # (36, inputs, outputs)

    def __call__(self, x: Tensor, tiled: bool) -> Tensor:
        """``tiled``: the tokens are in the order of the tiles, else row by row."""
        n, b, inputs = x.shape
        if not tiled or self.tiles is None:
            image = x.transpose(0, 1).reshape(b, *self.grid, inputs).permute(0, 3, 1, 2)
            out = F.conv2d(image, self.weight, self.bias, padding=1)
            return out.permute(2, 3, 0, 1).reshape(n, b, -1)
        values = self.tiles.into @ x.view(n, -1)  # (36·tiles, B·inputs)
        products = torch.bmm(values.view(36, -1, inputs), self.points)  # (36, tiles·B, outputs)
        return (self.tiles.back @ products.view(36, -1)).view(n, b, -1).add_(self.bias)
