"""The published video denoiser: a transformer on the 8x8 grid with cross-attention to the history (the paper
preset).

Blocks of self-attention, cross-attention and a 3x3 convolutional MLP, after arXiv 2312.14134. This is the network
that is trained; ``freeze`` replaces its arithmetic by the faster one of ``dr_core.diffusion.frozen``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dr_core.diffusion.frozen import FrozenDenoiser
from dr_core.errors import CheckpointError


@dataclass(frozen=True)
class CrossAttentionConfig:
    """Shape of the denoiser; the defaults are the published ones."""

    width: int = 128
    depth: int = 16
    """Number of blocks."""
    heads: int = 16
    condition_width: int = 1024
    """Length of the embedding of a history code."""
    mlp_ratio: int = 2
    """Hidden channels of the convolutional MLP, as a multiple of ``width``."""
    condition_positions: bool = False
    """Add a learned embedding of grid position and frame to the history; without it the history is an
    unordered bag of codes, as published."""
    train_condition: bool = False
    """Let the gradient reach the table of history codes; published: it stays at its random start."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")


class Block(nn.Module):
    """x + self-attention, x + cross-attention, x + convolutional MLP; the first two scaled and shifted by
    t."""

    def __init__(self, config: CrossAttentionConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_ratio * config.width
        self.grid, self.heads = grid, config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.cross_out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.conv_in = nn.Conv2d(width, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, x: Tensor, modulation: Tensor, kv: Tensor) -> Tensor:
        """x (B, N, width); modulation (B, 2, 2, width); kv (B, M, 2, heads, head_dim) → (B, N, width)."""
        b, n, width = x.shape
        # Each (B, 2, 1, width): for self-attention, for cross-attention.
        scale, shift = modulation.unsqueeze(3).unbind(2)

        h = modulated_norm(x, scale[:, 0], shift[:, 0])
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, -1).unbind(2)
        x = x + self.self_out(attention(q, k, v))

        h = modulated_norm(x, scale[:, 1], shift[:, 1])
        x = x + self.cross_out(attention(self.query(h).view(b, n, self.heads, -1), *kv.unbind(2)))

        # (B, N, width) is the channels-last memory of (B, width, rows, columns): no copy either way.
        h = self.norm(x).view(b, *self.grid, width).permute(0, 3, 1, 2)
        h = self.conv_in(h)
        h = self.conv_out(h * torch.sigmoid(1.702 * h))
        return x + h.permute(0, 2, 3, 1).reshape(b, n, width)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without weights, then scale and shift (B, 1, width) given by t."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, N, heads, head_dim), k and v (B, M, heads, head_dim) → (B, N, heads·head_dim).

    Of the layouts measured on a CPU (head_dim 8), transposed views without copies are the fastest.
    """
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


class CrossAttentionDenoiser(nn.Module):
    """p(x_start | x_t, t, history) for every token of the next frame.

    Args:
        num_codes: K; the token K is [MASK].
        num_history: frames of history, oldest first.
        num_timesteps: T of the diffusion process.
        grid: rows and columns of tokens.
    """

    def __init__(
        self,
        config: CrossAttentionConfig,
        num_codes: int = 1024,
        num_history: int = 2,
        num_timesteps: int = 100,
        grid: tuple[int, int] = (8, 8),
    ) -> None:
        super().__init__()
        width = config.width
        self.config, self.num_codes, self.num_history = config, num_codes, num_history
        self.num_tokens, self.num_timesteps = grid[0] * grid[1], num_timesteps
        self.input = nn.Embedding(num_codes + 1, width)
        self.row = nn.Embedding(grid[0], width)
        self.column = nn.Embedding(grid[1], width)
        self.blocks = nn.ModuleList(Block(config, grid) for _ in range(config.depth))
        # Two per block, for its self- and cross-attention.
        self.time = nn.ModuleList(nn.Embedding(num_timesteps, width) for _ in range(2 * config.depth))
        self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2 * config.depth))
        # Keys and values of the history for all blocks at once.
        self.condition_kv = nn.Linear(config.condition_width, config.depth * 2 * width)
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, num_codes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        # Unit variance, unlike the rest: the published table is never trained and stays as it starts.
        self.condition_codes = nn.Embedding(num_codes, config.condition_width)
        self.condition_codes.weight.requires_grad_(config.train_condition)
        if config.condition_positions:
            length = config.condition_width
            self.condition_position = nn.Parameter(0.02 * torch.randn(self.num_tokens, length))
            self.condition_frame = nn.Parameter(0.02 * torch.randn(num_history, length))
        self._frozen: FrozenDenoiser | None = None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.register_load_state_dict_post_hook(_thaw)

    # ---- what does not depend on x_t ----

    @torch.no_grad()
    def freeze(self, dtype: torch.dtype = torch.float32) -> CrossAttentionDenoiser:
        """Go to evaluation and compute once what the weights alone decide, until ``train()`` or new weights.

        No gradient passes through the result. ``dtype`` is the precision of the blocks: bfloat16 is faster and rounds
        the logits.
        """
        self.eval()
        self._frozen = FrozenDenoiser(self, dtype)
        return self

    def thaw(self) -> None:
        """Undo ``freeze``."""
        self._frozen = None

    def train(self, mode: bool = True) -> CrossAttentionDenoiser:
        """Set the mode as usual; training thaws."""
        if mode:
            self.thaw()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CrossAttentionDenoiser:
        """Moving the network to another device or type thaws it."""
        self.thaw()
        super()._apply(fn, recurse)
        return self

    def condition_tables(self) -> tuple[Tensor, Tensor | None]:
        """Keys and values of all blocks for each code (K, ·), and what positions and frames add (M, ·)."""
        codes = self.condition_kv(self.condition_codes.weight)
        if not self.config.condition_positions:
            return codes, None
        # (num_history, N, condition_width)
        where = self.condition_frame.unsqueeze(1) + self.condition_position
        return codes, F.linear(where.flatten(0, 1), self.condition_kv.weight)

    def condition(self, history: Tensor) -> Tensor:
        """Keys and values of the history for each block, the same for every t.

        Args:
            history: (B, M = num_history·N) int64 codes, oldest frame first.

        Returns:
            (B, M, depth, 2, heads, head_dim); another layout on a frozen network.
        """
        if self._frozen is not None:
            return self._frozen.condition(history)
        codes, positions = self.condition_tables()
        kv = F.embedding(history, codes)  # (B, M, depth·2·width)
        if positions is not None:
            kv = kv + positions
        return kv.unflatten(-1, (self.config.depth, 2, self.config.heads, -1))

    def modulation(self, t: Tensor) -> Tensor:
        """Scales and shifts of every block for t (B,) → (B, depth, 2, 2, width)."""
        rows = [modulate(F.silu(time(t))) for time, modulate in zip(self.time, self.modulate, strict=True)]
        return torch.stack(rows, 1).unflatten(1, (-1, 2)).unflatten(-1, (2, -1))

    def forward(self, x_t: Tensor, t: Tensor, cache: Tensor) -> Tensor:
        """x_t (B, N) in [0, K], t (B,) or (1,), cache from ``condition`` → logits (B, N, K) of x_start."""
        if self._frozen is not None:
            return self._frozen(x_t, t, cache)
        position = (self.row.weight.unsqueeze(1) + self.column.weight).flatten(0, 1)  # (N, width), row by row
        x = self.input(x_t) + position
        modulation = self.modulation(t)
        for index, block in enumerate(self.blocks):
            x = block(x, modulation[:, index], cache[:, :, index])
        return self.to_logits(self.norm(x))

    # ---- published weights ----

    def published_key_map(self) -> dict[str, tuple[str, ...]]:
        """Our parameter → the published entries whose concatenation along the first axis it is.

        Published names are those of a checkpoint's ``transformer.*`` entries (or of its ``ema``) without that
        prefix.
        """
        names: dict[str, tuple[str, ...]] = {
            "condition_codes.weight": ("condition_emb.emb.weight",),
            "input.weight": ("transformer.content_emb.emb.weight",),
            "row.weight": ("transformer.content_emb.height_emb.weight",),
            "column.weight": ("transformer.content_emb.width_emb.weight",),
        }
        blocks = [f"transformer.blocks.{i}" for i in range(self.config.depth)]
        for kind in ("weight", "bias"):
            keys_values = [f"{b}.attn2.{x}.{kind}" for b in blocks for x in ("key", "value")]
            names[f"condition_kv.{kind}"] = tuple(keys_values)
            names[f"norm.{kind}"] = (f"transformer.to_logits.0.{kind}",)
            names[f"to_logits.{kind}"] = (f"transformer.to_logits.1.{kind}",)
            for i, b in enumerate(blocks):
                qkv = [f"{b}.attn1.{x}.{kind}" for x in ("query", "key", "value")]
                names[f"blocks.{i}.qkv.{kind}"] = tuple(qkv)
                names[f"blocks.{i}.self_out.{kind}"] = (f"{b}.attn1.proj.{kind}",)
                names[f"blocks.{i}.query.{kind}"] = (f"{b}.attn2.query.{kind}",)
                names[f"blocks.{i}.cross_out.{kind}"] = (f"{b}.attn2.proj.{kind}",)
                names[f"blocks.{i}.norm.{kind}"] = (f"{b}.ln2.{kind}",)
                names[f"blocks.{i}.conv_in.{kind}"] = (f"{b}.mlp.conv1.{kind}",)
                names[f"blocks.{i}.conv_out.{kind}"] = (f"{b}.mlp.conv2.{kind}",)
                for j, norm in enumerate(("ln1", "ln1_1")):
                    names[f"modulate.{2 * i + j}.{kind}"] = (f"{b}.{norm}.linear.{kind}",)
                    names[f"time.{2 * i + j}.weight"] = (f"{b}.{norm}.emb.weight",)
        return names

    def to_published(self) -> dict[str, Tensor]:
        """The weights under their published names, as views."""
        state = self.state_dict()
        return {
            name: part
            for ours, names in self.published_key_map().items()
            for name, part in zip(names, state[ours].chunk(len(names)), strict=True)
        }

    def from_published(self, entries: Mapping[str, Tensor]) -> None:
        """Load weights given under their published names.

        Raises:
            CheckpointError: an entry is missing, unknown or of another shape, or the network has positions,
                which the published one lacks.
        """
        if self.config.condition_positions:
            raise CheckpointError(
                "published video-model weights",
                expected="a denoiser with condition_positions=false",
                found="condition_positions=true",
                next_step="use the paper preset",
            )
        shapes = {name: value.shape for name, value in self.to_published().items()}
        check_entries("published video-model weights", entries, shapes)
        parts = self.published_key_map().items()
        self.load_state_dict({ours: torch.cat([entries[name] for name in names]) for ours, names in parts})


def check_entries(what: str, entries: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raise CheckpointError unless ``entries`` has exactly the names and shapes of ``shapes``."""
    missing, unknown = sorted(shapes.keys() - entries.keys()), sorted(entries.keys() - shapes.keys())
    wrong = sorted(name for name in shapes.keys() & entries.keys() if entries[name].shape != shapes[name])
    if not (missing or unknown or wrong):
        return
    groups = {"missing": missing, "unknown": unknown, "of another shape": wrong}
    found = "; ".join(f"{len(names)} {kind}, first {names[0]!r}" for kind, names in groups.items() if names)
    raise CheckpointError(
        what,
        expected=f"exactly the {len(shapes)} entries of this model",
        found=found,
        next_step="check that the file belongs to this model and its configuration",
    )


def _thaw(module: nn.Module, _: object) -> None:
    assert isinstance(module, CrossAttentionDenoiser)
    module.thaw()
