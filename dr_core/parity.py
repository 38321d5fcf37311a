"""Comparison with the published implementation at paper size, by stored vectors and weights filled by rule.

Weights are not stored: both sides draw each tensor from a generator seeded by a salt and the tensor's published name.
The vectors lie in an ``.npz`` of F frames:

- ``frames`` (F, 64, 64, 3) uint8; ``tokens`` (F, 64) their codes; ``condition_tokens`` (F, 128) the codes of frames
  k - 1 and k, the first frame repeated; ``decoded`` (n, 64, 64, 3) the decoded first n frames, 0 to 255;
- ``log_p_start_all_masked_t99`` (n, 1024, 64) log p(x_start | all masked, t = 99) of the first n frames;
  ``one_pass_entropy_nats`` (F,);
- ``reward_noise_off`` (F,), the most probable class at every draw; ``reward_injected`` (F,) and
  ``x_t_after_each_step`` (11, F, 64), with uniforms (F, 1025, 64) float32 for each step from PCG64(S + 1); S is the
  entry ``seed``, 11 where there is none;
- ``loss_t`` (F,), ``loss_x_t`` (F, 64), and ``loss_kl``, ``loss_decoder_nll``, ``loss_aux_kl`` (F,) there.

Discrete results are exact up to ties: where two classes differ by less than the arithmetic of float32 can tell, either
is right, and what follows is compared from the stored choice on.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dr_core.codec.train import to_images
from dr_core.codec.vqgan import VQGAN, VQGANConfig
from dr_core.diffusion.categorical import TINY, CategoricalDiffusion, Uniforms, sample
from dr_core.diffusion.denoiser import CrossAttentionConfig, CrossAttentionDenoiser
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.errors import UserError
from dr_core.rewards import entropy

CODEC_PREFIX = "content_codec.model."
TRANSFORMER_PREFIX = "transformer."
BATCH = 32
MAX_VECTORS_BYTES = 2**30
"""Frames computed together: all batches but the last have this size, since every new size costs oneDNN memory."""
DEFAULT_SEED = 11
STRIDE = 10
LOG_P_NATS = 2e-4
"""Tolerance of log-probabilities; where two are this close, either class may be drawn."""
TIE_DISTANCE = 1e-4
"""The same for the squared distances to two codes, relative."""
SMALLEST_NATS = 0.1
"""Relative errors of the sums over a frame's tokens are relative to at least this, never to 0."""


@dataclass(frozen=True)
class Check:
    """One comparison: ``error`` is the largest deviation, absolute or relative as the name says, or a count.

    ``note`` says what the number does not.
    """

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance


# ---- the model ----


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


# ---- the file ----

_FRAMES, _PART = "F", "n"
_STEPS = 11
# Name → shape, and for codes and times the number of values they take from 0 on; the others are real numbers.
_ENTRIES: dict[str, tuple[tuple[int | str, ...], int | None]] = {
    "frames": ((_FRAMES, 64, 64, 3), 256),
    "tokens": ((_FRAMES, 64), 1024),
    "condition_tokens": ((_FRAMES, 128), 1024),
    "decoded": ((_PART, 64, 64, 3), None),
    "log_p_start_all_masked_t99": ((_PART, 1024, 64), None),
    "one_pass_entropy_nats": ((_FRAMES,), None),
    "reward_noise_off": ((_FRAMES,), None),
    "reward_injected": ((_FRAMES,), None),
    "x_t_after_each_step": ((_STEPS, _FRAMES, 64), 1025),
    "loss_t": ((_FRAMES,), 100),
    "loss_x_t": ((_FRAMES, 64), 1025),
    "loss_kl": ((_FRAMES,), None),
    "loss_decoder_nll": ((_FRAMES,), None),
    "loss_aux_kl": ((_FRAMES,), None),
}
SEED = "seed"


@dataclass(frozen=True)
class Vectors:
    """What a file holds.

    Attributes:
        tensors: name → tensor, codes and times as int64, frames as uint8.
        seed: S.
        unknown: names of entries that are not compared.
    """

    tensors: dict[str, Tensor]
    seed: int
    unknown: tuple[str, ...]


def read_vectors(path: Path) -> Vectors:
    """Read and check a file of stored vectors.

    Raises:
        UserError: no such file, another format, or entries missing, damaged, or of another shape, type or range.
    """
    arrays = _read_npz(path)
    missing = [name for name in _ENTRIES if name not in arrays]
    if missing:
        raise _wrong(path, f"the entries {', '.join(_ENTRIES)}", f"no {', no '.join(missing)}")
    frames = arrays["frames"]
    if not frames.ndim or not len(frames):
        raise _wrong(path, "frames (F, 64, 64, 3) uint8 with F at least 1", _describe(frames))
    tensors = {}
    for name, (shape, limit) in _ENTRIES.items():
        array = arrays[name]
        _check_array(path, name, array, shape, len(frames), limit)
        kind = np.float64 if limit is None else np.uint8 if name == "frames" else np.int64
        tensors[name] = torch.from_numpy(array.astype(kind))
    seed = arrays.get(SEED, np.array(DEFAULT_SEED))
    if seed.size != 1 or seed.dtype.kind not in "iu" or seed.item() < 0:
        raise _wrong(path, f"{SEED}: one integer, not negative", f"{seed.tolist()!r:.40} ({_describe(seed)})")
    return Vectors(tensors, int(seed.item()), tuple(sorted(arrays.keys() - _ENTRIES.keys() - {SEED})))


def _check_array(
    path: Path, name: str, array: NDArray[Any], shape: tuple[int | str, ...], frames: int, limit: int | None
) -> None:
    part: int | str = len(array) if array.ndim and 1 <= len(array) <= frames else f"1 to {frames}"
    sizes: dict[int | str, int | str] = {_FRAMES: frames, _PART: part}
    wanted = tuple(sizes.get(size, size) for size in shape)
    kind = "uint8" if limit == 256 else "floating-point numbers" if limit is None else "integers"
    fits = array.dtype == np.uint8 if limit == 256 else array.dtype.kind in ("f" if limit is None else "iu")
    if array.shape != wanted or not fits:
        raise _wrong(path, f"{name} ({', '.join(map(str, wanted))}), {kind}", _describe(array))
    if limit is not None and (array.min() < 0 or array.max() >= limit):
        raise _wrong(path, f"{name} from 0 to {limit - 1}", f"values from {array.min()} to {array.max()}")


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise _wrong(path, "a file of stored vectors (.npz)", "a directory" if path.is_dir() else "no such file")
    try:
        if not zipfile.is_zipfile(path):  # np.load reads other formats as well
            raise ValueError("not a zip archive")
        with zipfile.ZipFile(path) as members:
            if sum(member.file_size for member in members.infolist()) > MAX_VECTORS_BYTES:
                raise ValueError(f"more than {MAX_VECTORS_BYTES} bytes of arrays")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    # A damaged archive surprises its reader in many ways; none of them runs code.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, SyntaxError, LookupError, TypeError,
            AttributeError, RuntimeError, OverflowError, MemoryError, tokenize.TokenError) as error:  # fmt: skip
        text = " ".join(str(error).split()) or type(error).__name__
        raise _wrong(path, "an .npz archive of plain arrays (pickles are never opened)", f"{text:.120}") from error
    foreign = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if foreign:
        raise _wrong(path, "an .npz archive of plain arrays", f"the member {foreign[0]!r}, which is none")
    return arrays


def _wrong(path: Path, expected: str, found: str) -> UserError:
    return UserError(
        str(path), expected=expected, found=found, next_step="give a file of vectors that was written whole"
    )


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} ({', '.join(map(str, array.shape))})"


# ---- the comparison ----


class _Worst:
    """The largest error, or the number of differences, under each name, over all batches."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._ties: dict[str, int] = {}

    def error(self, name: str, got: Tensor, want: Tensor, tolerance: float, *, relative: bool = False) -> None:
        """Largest difference of two tensors of one shape; NaN where there is one, or where both are infinite."""
        assert got.shape == want.shape, (name, got.shape, want.shape)
        difference = (got.double() - want.double()).abs()
        difference = difference / want.double().abs().clamp(min=SMALLEST_NATS) if relative else difference
        before = self._checks[name].error if name in self._checks else 0.0
        # Tensor.max keeps a NaN, the max of floats may drop it.
        worst = torch.cat([difference.flatten(), torch.tensor([before], dtype=torch.float64)]).max()
        self._checks[name] = Check(name, float(worst), tolerance)

    def differing(self, name: str, got: Tensor, want: Tensor, tie: Tensor | None = None) -> None:
        """How many codes differ, but for those at a ``tie``, which are counted in the note."""
        assert got.shape == want.shape, (name, got.shape, want.shape)
        differ = got != want
        wrong = differ if tie is None else differ & ~tie
        before = self._checks[name].error if name in self._checks else 0.0
        self._ties[name] = self._ties.get(name, 0) + int(differ.sum()) - int(wrong.sum())
        note = f"and {self._ties[name]} ties decided the other way" if self._ties[name] else ""
        self._checks[name] = Check(name, before + int(wrong.sum()), 0, note)

    def checks(self) -> list[Check]:
        """All of them, in the order of their first appearance."""
        return list(self._checks.values())


def compare(golden_path: Path, salt: str) -> list[Check]:
    """``read_vectors`` and ``compare_vectors``."""
    return compare_vectors(read_vectors(golden_path), salt)


@torch.no_grad()
def compare_vectors(
    vectors: Vectors, salt: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Check]:
    """Recompute every vector and compare; about 0.05 TFLOP a frame.

    Args:
        vectors: what a file holds.
        salt: what the weights were filled with.
        progress: called with (frames done, frames in all).
    """
    codec, diffusion, denoiser = filled_model(salt)
    worst = _Worst()
    tokens = vectors.tensors["tokens"]
    count = len(tokens)
    # (frame k-1, frame k), the first frame repeated.
    histories = torch.cat([torch.cat([tokens[:1], tokens[:-1]]), tokens], 1)
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        _compare_codec(worst, codec, vectors.tensors, part)
        worst.differing("condition tokens, differing", histories[part], vectors.tensors["condition_tokens"][part])
        _compare_video(worst, diffusion, denoiser, vectors, histories[part], part)
        progress(part.stop, count)
    return worst.checks()


def _compare_codec(worst: _Worst, codec: VQGAN, want: Mapping[str, Tensor], part: slice) -> None:
    images, tokens = to_images(want["frames"][part], torch.device("cpu")), want["tokens"][part]
    got = codec.encode(images)
    worst.differing("tokens, differing", got, tokens, None if torch.equal(got, tokens) else _tie(codec, images, tokens))
    decoded = want["decoded"][part]
    if len(decoded):
        images = (codec.decode(tokens[: len(decoded)]).permute(0, 2, 3, 1) + 1) * 127.5
        worst.error("decoded, grey levels of 255", images, decoded, 1e-2)


def _tie(codec: VQGAN, images: Tensor, tokens: Tensor) -> Tensor:
    """Where the codes ``tokens`` (B, N) are as near to the latents of ``images`` as the nearest ones: (B, N) bool."""
    latents = codec.latents(images).flatten(2).transpose(1, 2).double()  # (B, N, latent_dim)
    codes = codec.codebook.embedding.weight.double()
    distance = torch.cdist(latents, codes.expand(len(latents), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    own = distance.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return own <= (1 + TIE_DISTANCE) * distance.amin(-1)


def _compare_video(
    worst: _Worst,
    diffusion: CategoricalDiffusion,
    denoiser: CrossAttentionDenoiser,
    vectors: Vectors,
    history: Tensor,
    part: slice,
) -> None:
    want, count = vectors.tensors, len(vectors.tensors["tokens"])
    cache = denoiser.condition(history)
    batch, last = len(history), diffusion.num_timesteps - 1
    all_masked = torch.full((batch, denoiser.num_tokens), diffusion.mask_token)
    log_p = want["log_p_start_all_masked_t99"][part].transpose(1, 2)
    if len(log_p):
        logits = denoiser(all_masked, torch.full((batch,), last), cache)[: len(log_p)]
        worst.error("log p(x_start), nats", logits.log_softmax(-1), log_p, LOG_P_NATS)
    one_pass = -entropy.one_pass(diffusion, denoiser, history).value
    worst.error("one-pass entropy, relative", one_pass, want["one_pass_entropy_nats"][part], 1e-3, relative=True)

    quiet = entropy.paper(diffusion, denoiser, history, noise=None, stride=STRIDE).value
    worst.error("reward without noise, relative", quiet, want["reward_noise_off"][part], 1e-3, relative=True)

    def noise(step: int) -> Tensor:
        return _noise(vectors.seed, step, part, count, diffusion.num_codes + 1, denoiser.num_tokens)

    def draw(uniforms: Uniforms) -> entropy.Trajectory:
        return entropy.reverse(
            diffusion, denoiser, cache, batch, stride=STRIDE, posterior="published", uniforms=uniforms
        )

    stored = want["x_t_after_each_step"][:, part]  # (steps, B, N)
    trajectory = draw(noise)
    drawn = torch.stack([x for _, x, _, _ in trajectory.steps[1:]] + [trajectory.x_start])
    tie = torch.zeros_like(stored, dtype=torch.bool)
    if not torch.equal(drawn, stored):
        # One draw changes all that follow it, so each is compared where the stored ones before it are the same. A
        # uniform of 1 has infinite Gumbel noise: its class is taken.
        trajectory = draw(lambda step: F.one_hot(stored[step], diffusion.num_codes + 1).float())
        for step, (log_p, _, _, _) in enumerate(trajectory.steps):
            uniform = noise(step)
            drawn[step] = sample(log_p.exp(), uniform)
            score = log_p - (TINY - (uniform + TINY).log()).log()
            tie[step] = score.gather(-1, stored[step].unsqueeze(-1)).squeeze(-1) >= score.amax(-1) - LOG_P_NATS
    worst.differing("x_t after each step, differing", drawn, stored, tie)
    injected = entropy.bound(diffusion, trajectory, trajectory.x_start)
    worst.error("reward with given noise, relative", injected, want["reward_injected"][part], 1e-3, relative=True)

    t, loss_x_t = want["loss_t"][part], want["loss_x_t"][part]
    parts = diffusion.loss_parts(denoiser(loss_x_t, t, cache), want["tokens"][part], loss_x_t, t)
    for name in ("kl", "decoder_nll", "aux_kl"):
        worst.error(f"loss {name}, relative", getattr(parts, name), want[f"loss_{name}"][part], 1e-3, relative=True)


def _noise(seed: int, step: int, part: slice, count: int, classes: int, tokens: int) -> Tensor:
    """The uniforms (B, tokens, classes) of some frames at a step, of (count, classes, tokens) drawn for each step."""
    bits = np.random.PCG64(seed + 1)
    # One state of PCG64 gives two float32 numbers.
    bits.advance((step * count + part.start) * classes * tokens // 2)
    shape = (part.stop - part.start, classes, tokens)
    return torch.from_numpy(np.random.Generator(bits).random(shape, dtype=np.float32)).transpose(1, 2)
