"""Comparison with the published implementation at paper size, by stored vectors and weights filled by rule.

Weights are not stored: both sides draw each tensor from a generator seeded by a salt and the tensor's
published name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_core.codec.vqgan import VQGAN, VQGANConfig
from dr_core.diffusion.categorical import CategoricalDiffusion
from dr_core.diffusion.denoiser import CrossAttentionConfig, CrossAttentionDenoiser
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.rewards import entropy

CODEC_PREFIX = "content_codec.model."
TRANSFORMER_PREFIX = "transformer."


@dataclass(frozen=True)
class Check:
    """One comparison: ``error`` is the largest deviation, absolute or relative as the name says."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance


def fill_weights(state: Mapping[str, Tensor], salt: str) -> dict[str, Tensor]:
    """Draw a tensor for each entry of ``state`` (published name → tensor of the right shape) by rule.

    Scalars, integers and constants (``log_*``, ``Lt_*``, ``*.mask``) are left out of the result.
    """
    filled = {}
    for name, like in state.items():
        last = name.rsplit(".", 1)[-1]
        constant = last == "mask" or last.startswith(("log_", "Lt_"))
        if constant or like.dim() == 0 or not like.is_floating_point():
            continue
        rng = np.random.Generator(np.random.PCG64(zlib.crc32((salt + name).encode())))
        n = rng.standard_normal(tuple(like.shape)).astype(np.float32)
        if name.endswith("bias"):
            n = 0.02 * n
        elif n.ndim == 1:
            n = 1 + 0.1 * n
        elif name.endswith("codebook.embedding.weight"):
            n = 0.6 * n
        elif n.ndim == 2 and "emb" in name and "linear" not in name:
            n = 0.5 * n
        else:
            n = n / math.sqrt(math.prod(n.shape[1:]))
            n = 6 * n if name.endswith("to_logits.1.weight") else n
        filled[name] = torch.from_numpy(n.astype(np.float32))
    return filled


def filled_model(salt: str) -> tuple[VQGAN, CategoricalDiffusion, CrossAttentionDenoiser]:
    """The paper-size codec, noise process and frozen denoiser with weights filled by the rule."""

    def fill(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        filled = fill_weights({prefix + name: value for name, value in state.items()}, salt)
        return {name.removeprefix(prefix): value for name, value in filled.items()}

    codec = VQGAN(VQGANConfig())
    codec.load_state_dict(fill(codec.state_dict(), CODEC_PREFIX))
    denoiser = CrossAttentionDenoiser(CrossAttentionConfig(), codec.num_codes)
    denoiser.from_published(fill(denoiser.to_published(), TRANSFORMER_PREFIX))
    diffusion = CategoricalDiffusion(mask_and_uniform(ScheduleConfig(), codec.num_codes))
    return codec.eval(), diffusion, denoiser.freeze()


@torch.no_grad()
def compare(golden_path: Path, salt: str) -> list[Check]:
    """Recompute every vector of a golden file and compare; about 0.3 TFLOP."""
    with np.load(golden_path) as file:
        golden: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
    tensors = {name: torch.from_numpy(value) for name, value in golden.items()}
    codec, diffusion, denoiser = filled_model(salt)
    checks: list[Check] = []

    def check(name: str, got: Tensor, want: Tensor, tolerance: float, *, relative: bool = False) -> None:
        difference = (got.double() - want.double()).abs()
        difference = difference / want.double().abs() if relative else difference
        checks.append(Check(name, float(difference.max()), tolerance))

    images = tensors["frames"].permute(0, 3, 1, 2).float() / 127.5 - 1
    tokens = codec.encode(images)
    check("tokens, differing", tokens, tensors["tokens"], 0)
    want = tensors["tokens"].long()
    decoded = (codec.decode(want[: len(tensors["decoded"])]).permute(0, 2, 3, 1) + 1) * 127.5
    check("decoded, grey levels of 255", decoded, tensors["decoded"], 1e-2)
    # (frame k-1, frame k), the first frame repeated.
    history = torch.cat([torch.cat([want[:1], want[:-1]]), want], 1)
    check("condition tokens, differing", history, tensors["condition_tokens"], 0)

    cache = denoiser.condition(history)
    batch, last = len(history), diffusion.num_timesteps - 1
    all_masked = torch.full_like(want, diffusion.mask_token)
    logits = denoiser(all_masked, torch.full((batch,), last), cache)
    log_p = tensors["log_p_start_all_masked_t99"].transpose(1, 2)
    check("log p(x_start), nats", logits.log_softmax(-1)[: len(log_p)], log_p, 2e-4)
    one_pass = -entropy.one_pass(diffusion, denoiser, history).value
    check("one-pass entropy, relative", one_pass, tensors["one_pass_entropy_nats"], 1e-3, relative=True)

    quiet = entropy.paper(diffusion, denoiser, history, noise=None)
    check("reward without noise, relative", quiet.value, tensors["reward_noise_off"], 1e-3, relative=True)
    rng = np.random.Generator(np.random.PCG64(12))
    shape = (batch, diffusion.num_codes + 1, denoiser.num_tokens)
    trajectory = entropy.reverse(
        diffusion,
        denoiser,
        cache,
        batch,
        stride=10,
        posterior="published",
        uniforms=lambda step: torch.from_numpy(rng.random(shape, dtype=np.float32)).transpose(1, 2),
    )
    x_t = torch.stack([x for _, x, _, _ in trajectory.steps[1:]] + [trajectory.x_start])
    check("x_t after each step, differing", x_t, tensors["x_t_after_each_step"], 0)
    injected = entropy.bound(diffusion, trajectory, trajectory.x_start)
    check("reward with given noise, relative", injected, tensors["reward_injected"], 1e-3, relative=True)

    t, loss_x_t = tensors["loss_t"], tensors["loss_x_t"].long()
    parts = diffusion.loss_parts(denoiser(loss_x_t, t, cache), want, loss_x_t, t)
    for name in ("kl", "decoder_nll", "aux_kl"):
        check(f"loss {name}, relative", getattr(parts, name), tensors[f"loss_{name}"], 1e-3, relative=True)
    return checks
