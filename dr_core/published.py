"""Published Diffusion Reward weights as a reward model of ours (``dr import-checkpoint``).

A published codec, ``vqgan.pt``, is the state dict of the VQ-GAN. A published video model is a dict with ``model`` (the
codec again under ``content_codec.model.``, the video model under ``transformer.``), as a rule ``ema`` (the averaged
``transformer.`` entries without that prefix, used when there), ``last_epoch``, and the state of its training, which is
left out. Every entry is used, compared with what it has to be, or refused by name.
"""

from __future__ import annotations

import struct
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dr_core.checkpoint import refuse_inflation, sha256_file
from dr_core.codec.vqgan import VQGAN
from dr_core.data.cache import EXPERT, frame_store, token_store
from dr_core.data.episodes import find_episodes
from dr_core.diffusion.denoiser import CrossAttentionDenoiser
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.errors import CheckpointError, OutputInUseError
from dr_core.parity import CODEC_PREFIX, TRANSFORMER_PREFIX
from dr_core.presets import PRESETS, RewardModelConfig
from dr_core.rewards.model import Networks, RewardModel
from dr_core.rewards.train import facts, successful

COUNTERS = ("Lt_history", "Lt_count")
"""Running losses that steer the draw of t in training; ours have the same meaning and names."""
# An averaged constant drifts by some hundred roundings of float32; another schedule differs by far more.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5
_SHOWN = 3


@dataclass(frozen=True)
class Imported:
    """Networks with published weights, and what was done with the files, in lines for the user."""

    networks: Networks
    source: dict[str, Any]
    lines: list[str]


def import_checkpoint(
    codec: Path,
    video: Path,
    out: Path,
    experts: Sequence[Path] = (),
    *,
    device: str = "cpu",
) -> list[str]:
    """Write the reward model ``out`` of the paper preset from published weights.

    Args:
        codec: published codec.
        video: published video model.
        out: the checkpoint directory to create.
        experts: expert episodes, or directories of them: the tasks of the model and their statistics. Without any
            the model knows no task, and its rewards stay in nats.
        device: torch device that computes the rewards of the experts.

    Returns:
        What was used, checked and left out, in lines.

    Raises:
        CheckpointError: a file is unreadable or holds anything but tensors and plain values, or an entry is missing,
            unknown, of another shape or type, not finite, or a constant of another value.
        OutputInUseError: ``out`` exists.
        BagError, UserError: no usable expert episodes.
    """
    if out.exists() or out.is_symlink():
        raise OutputInUseError(
            str(out), expected="no such directory yet", found="one", next_step="give another --out or remove it"
        )
    config = PRESETS["paper"]().model
    episodes = successful(find_episodes(experts)) if experts else []
    imported = read_published(codec, video, config)
    networks, lines = imported.networks, imported.lines
    manifest: dict[str, Any] = {"tasks": [], "statistics": {config.estimator.name: {}}, "training_seeds": {}}
    if episodes:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.experts-", dir=out.parent) as folder:
            frames = frame_store(Path(folder, "frames"), [(EXPERT, path) for path in episodes], config.image)
            scorer = RewardModel(config, networks, manifest, device)
            tokens = token_store(Path(folder, "tokens"), lambda: frames, scorer.tokenize)
            manifest = facts(config, tokens, networks, device)
        lines.append(f"statistics: {len(episodes)} expert episodes of {', '.join(manifest['tasks'])}")
    else:
        lines.append("statistics: none, for no --experts were given; rewards stay raw, in nats")
    RewardModel(config, networks, {**manifest, "imported": imported.source}, device).save(out)
    return [*lines, f"reward model: {out}"]


def read_published(codec_path: Path, video_path: Path, config: RewardModelConfig) -> Imported:
    """Networks of ``config`` with the weights of two published files; see ``import_checkpoint`` for what is refused."""
    networks = Networks(config)
    codec, video = networks.codec, networks.video
    if not isinstance(codec, VQGAN) or not isinstance(video, CrossAttentionDenoiser):
        raise TypeError("published weights are those of codec vqgan and denoiser cross_attention")

    codec_entries = _mapping(codec_path, _load(codec_path), "the codec's entries")
    codec_shapes = _shapes(codec.state_dict())
    _check_entries(codec_path, "codec", codec_entries, codec_shapes)

    content = _mapping(video_path, _load(video_path), "model, ema and last_epoch")
    if "model" not in content:
        raise _refused(
            video_path, "a video model: a dict with the entry model", f"the entries {_some(list(map(repr, content)))}"
        )
    model = _mapping(video_path, content["model"], "model: a state dict")
    own = {name: value for name, value in model.items() if not name.startswith("content_codec.")}
    again = {name: value for name, value in model.items() if name not in own}
    constants, unused = _constants(config, video)
    weight_shapes = _shapes(video.to_published())
    # What is not learned may be absent: it is known, or only steers a training.
    others = {
        **{name: value.shape for name, value in constants.items()},
        **unused,
        **{name: torch.Size([config.num_timesteps]) for name in COUNTERS},
    }
    _check_entries(
        video_path,
        "video model",
        own,
        {TRANSFORMER_PREFIX + name: shape for name, shape in weight_shapes.items()},
        {TRANSFORMER_PREFIX + name: shape for name, shape in others.items()},
    )
    live = {name.removeprefix(TRANSFORMER_PREFIX): value for name, value in own.items()}
    _check_constants(video_path, f"model: {TRANSFORMER_PREFIX}", live, constants)
    if again:
        prefixed = {CODEC_PREFIX + name: shape for name, shape in codec_shapes.items()}
        _check_entries(video_path, "codec in the video model", again, prefixed)
        _check_same_codec(codec_path, video_path, codec_entries, again)
    weights = live
    if "ema" in content:
        weights = _mapping(video_path, content["ema"], "ema: a state dict")
        _check_entries(video_path, "averaged video model (ema)", weights, weight_shapes, others)
        _check_constants(video_path, "ema: ", weights, constants)
    epoch = content.get("last_epoch")
    if epoch is not None and type(epoch) is not int:
        raise _refused(video_path, "last_epoch: an integer", f"{epoch!r:.40}")

    used = video.to_published().keys()
    codec.load_state_dict(codec_entries)
    video.from_published({name: weights[name] for name in used})
    counters = [name for name in COUNTERS if name in live]
    networks.diffusion.load_state_dict({name: live[name] for name in counters}, strict=False)
    checked = [name for name in constants if name in live]

    left_out = [repr(key) for key in content if key not in ("model", "ema", "last_epoch")]
    kind = "averaged (ema)" if "ema" in content else "live, for the file has no ema"
    left_out = ([f"the {len(used)} live weights"] if "ema" in content else []) + left_out
    lines = [
        f"codec: {len(codec_entries)} entries used" + (", the same in both files" if again else ""),
        f"video model: {len(used)} entries used, {kind}; last epoch: {'not told' if epoch is None else epoch}",
        f"running losses: {len(counters)} entries used ({', '.join(counters) or 'none in the file'})",
        f"noise schedule: {len(checked)} entries checked ({', '.join(checked) or 'none in the file'})",
        f"never applied: {sum(name in live for name in unused)} masks of the cross-attention",
        f"left out: {', '.join(left_out) or 'nothing'}",
    ]
    source = {
        "codec_sha256": sha256_file(codec_path),
        "video_sha256": sha256_file(video_path),
        "weights": "ema" if "ema" in content else "model",
        "last_epoch": epoch,
    }
    return Imported(networks, source, lines)


# ---- what a file must hold ----


def _constants(
    config: RewardModelConfig, video: CrossAttentionDenoiser
) -> tuple[dict[str, Tensor], dict[str, torch.Size]]:
    """Published constants by name: those of the noise process with their values, the others with their shapes."""
    schedule = mask_and_uniform(ScheduleConfig(num_timesteps=config.num_timesteps), video.num_codes)
    tables = {name: torch.from_numpy(value) for name, value in schedule.log_entries().items()}
    # Stored beside the weights, but the published forward pass attends to the whole history.
    square = torch.Size([1, 1, video.num_tokens, video.num_tokens])
    masks = {f"transformer.blocks.{i}.attn2.mask": square for i in range(config.cross_attention.depth)}
    return tables, masks


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _check_entries(
    path: Path,
    where: str,
    entries: Mapping[str, Any],
    needed: Mapping[str, torch.Size],
    optional: Mapping[str, torch.Size] = MappingProxyType({}),
) -> None:
    """Refuse anything but a plain float32 tensor of the right shape, with finite weights, under each name."""
    shapes = {**needed, **optional}
    missing = [name for name in needed if name not in entries]
    unknown = [repr(name) for name in entries if name not in shapes]  # a foreign name may hold a line break
    wrong = []
    for name, shape in shapes.items():
        if name not in entries:
            continue
        value = entries[name]
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
            wrong.append(f"{name}, no plain tensor")
        elif value.shape != shape:
            wrong.append(f"{name} of shape {tuple(value.shape)} instead of {tuple(shape)}")
        elif value.dtype != torch.float32:
            wrong.append(f"{name} of {value.dtype} instead of torch.float32")
        # The logarithms of the noise process hold log 0; their values are checked one by one.
        elif not name.rsplit(".", 1)[-1].startswith("log_") and not value.isfinite().all():
            wrong.append(f"{name}, not finite")
    groups = {"missing": missing, "unknown": unknown, "wrong": wrong}
    found = [f"{len(names)} {kind}: {_some(names)}" for kind, names in groups.items() if names]
    if found:
        raise _refused(path, f"exactly the {len(shapes)} published entries of the {where}", "; ".join(found))


def _check_constants(path: Path, where: str, entries: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> None:
    for name, wanted in constants.items():
        if name not in entries:
            continue
        wrong = ~torch.isclose(entries[name], wanted, rtol=_RELATIVE, atol=_ABSOLUTE)  # equal infinities are close
        if wrong.any():
            t = int(wrong.nonzero()[0])
            raise _refused(
                path,
                f"the published noise schedule: {where}{name}[{t}] {float(wanted[t]):.6g}",
                f"{float(entries[name][t]):.6g}, another schedule",
            )


def _check_same_codec(codec: Path, video: Path, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    differing = [name for name, value in one.items() if not torch.equal(value, other[CODEC_PREFIX + name])]
    if differing:
        raise CheckpointError(
            str(video),
            expected=f"the codec it was trained with, the same as in {codec}",
            found=f"{len(differing)} of {len(one)} entries differ, first {differing[0]}",
            next_step="give the codec and the video model that were published together",
        )


# ---- reading ----


def _load(path: Path) -> Any:
    """The content of a file of tensors and plain values; nothing in it is executed."""
    if not path.is_file():
        raise _refused(path, "a file of published weights", "a directory" if path.is_dir() else "no such file")
    try:
        if zipfile.is_zipfile(path):  # or of the format before
            refuse_inflation(path)
        with warnings.catch_warnings():  # of a file that is then read or refused
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    # Foreign bytes surprise the restricted reader in many ways; none of them runs code.
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
            AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        raise _refused(
            path, "tensors and plain values saved by torch.save", "something else (nothing in it was executed)"
        ) from error


def _mapping(path: Path, value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _refused(path, f"a dict with {what}", f"a {type(value).__name__}")
    return dict(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _refused(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        expected=expected,
        found=found,
        next_step="give the codec (vqgan.pt) and the video model (.pth) as Diffusion Reward publishes them",
    )
