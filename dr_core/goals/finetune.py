"""LoRA fine-tuning of a local image-to-video pipeline on a lab's expert episodes, so that its videos look like them.

The transformer learns what it was trained for, in the terms of its scheduler: with x_start the latents of a clip,
x_t = sqrt(ᾱ_t)·x_start + sqrt(1 - ᾱ_t)·noise, and the loss is the mean square of its output against the noise
(epsilon), v = sqrt(ᾱ_t)·noise - sqrt(1 - ᾱ_t)·x_start (v_prediction) or x_start (sample). t = 0 is one step of noise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from dr_core.checkpoint import remove_unfinished, sha256_file
from dr_core.codec.train import cosine_rate
from dr_core.config import to_mapping
from dr_core.data.episodes import find_episodes, read_episode
from dr_core.data.images import ImageRule
from dr_core.errors import BagError, CheckpointError, ConfigError
from dr_core.files import fsync, keep_settings, run_directory, write_whole
from dr_core.goals.cache import sha256_array, versions
from dr_core.goals.generate import ADAPTER, GoalGenerator, resized
from dr_core.goals.local import identity
from dr_core.rewards.genreward.video import resampled
from dr_core.rewards.train import successful
from dr_core.seeding import generator, numpy_generator
from dr_core.training import Metrics, train

ADAPTER_FILE, REPORT = "lora.safetensors", "report.json"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that get an adapter: the projections of the attention, as in the published fine-tunings of CogVideoX."""


@dataclass(frozen=True)
class GoalTuning:
    """How the adapter is trained.

    Attributes:
        steps: of the optimiser.
        batch_size: clips per step.
        learning_rate: AdamW, after ``warmup_steps`` of linear warm-up, with a cosine down to 3 %.
        rank: of the adapter's matrices; ``alpha`` / rank scales what they add.
        num_frames: of a clip; 0 takes what the pipeline is made for. Each episode becomes one clip, whatever its
            length and rate: evenly spaced frames, its first and last one among them.
        draws: of t and noise, per clip, in the losses that are compared at the end.
        recompute: save memory by computing the blocks twice (gradient checkpointing).
        seed: of the adapter's start, of clips, t and noise.
    """

    steps: int = 1000
    batch_size: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 50
    rank: int = 64
    alpha: float = 64.0
    num_frames: int = 0
    draws: int = 8
    recompute: bool = False
    seed: int = 0
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.rank, self.draws) < 1 or self.num_frames < 0:
            raise ValueError("steps, batch_size, rank and draws must be at least 1, num_frames not negative")
        if not (self.learning_rate > 0 and self.alpha > 0 and self.warmup_steps >= 0 and self.checkpoint_every_s > 0):
            raise ValueError("learning_rate, alpha and checkpoint_every_s must be positive, warmup_steps not negative")


@dataclass(frozen=True)
class Clip:
    """One episode as the transformer sees it, on the CPU.

    Attributes:
        latents: (F, C, h, w), x_start.
        first: (F, C, h, w), the first frame's latents and zeros: the condition.
        text: (L, D), the prompt.
        prompt: in words.
        source: where it is from.
    """

    latents: Tensor
    first: Tensor
    text: Tensor
    prompt: str
    source: str


class AdapterStage:
    """Training of the adapter; the pipeline's own weights stay as they are."""

    name = "adapter"

    def __init__(self, maker: GoalGenerator, clips: Sequence[Clip], config: GoalTuning) -> None:
        from peft import LoraConfig

        self._maker, self._clips, self.config, self.steps = maker, clips, config, config.steps
        transformer = maker.pipeline.transformer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapter = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(TARGETS))
            transformer.add_adapter(adapter, adapter_name=ADAPTER)
        if config.recompute:
            transformer.enable_gradient_checkpointing()
        self._weights = {name: value for name, value in transformer.named_parameters() if value.requires_grad}
        for value in self._weights.values():
            value.data = value.data.float()  # small steps would be lost in bfloat16
        self.optimizer = torch.optim.AdamW(list(self._weights.values()), config.learning_rate, weight_decay=1e-4)

    def step(self, index: int) -> dict[str, Tensor]:
        """One optimiser step on random clips at random times."""
        config, scheduler = self.config, self._maker.pipeline.scheduler
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_rate(config.learning_rate, index, config.steps, config.warmup_steps)
        rng = numpy_generator(config.seed, "goal tuning", index)
        chosen = [self._clips[k] for k in rng.integers(0, len(self._clips), config.batch_size)]
        times = torch.from_numpy(rng.integers(0, scheduler.config.num_train_timesteps, config.batch_size))
        noise = torch.randn(len(chosen), *chosen[0].latents.shape, generator=generator(config.seed, "noise", index))
        loss = denoising_loss(self._maker, chosen, times, noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        self.optimizer.step()
        return {"loss": loss.detach(), "gradient_norm": norm.detach()}

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's weights by name."""
        return {name: value.detach() for name, value in self._weights.items()}

    def training_state(self) -> dict[str, Any]:
        """The optimiser's moments."""
        return {"optimizer": self.optimizer.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        """Continue from a checkpoint."""
        differing = sorted(tensors.keys() ^ self._weights.keys()) + [
            name for name, value in self._weights.items() if name in tensors and tensors[name].shape != value.shape
        ]
        if differing or not all(torch.isfinite(value).all() for value in tensors.values()):
            raise CheckpointError(
                str(where),
                expected="the finite weights of this adapter",
                found=differing[0] if differing else "others",
                next_step="start the fine-tuning anew",
            )
        with torch.no_grad():
            for name, value in self._weights.items():
                value.copy_(tensors[name])
        self.optimizer.load_state_dict(training["optimizer"])

    def save(self, file: Path) -> None:
        """Write the adapter as diffusers reads it: safetensors with the rank, alpha and layers; by rename."""
        from peft import get_peft_model_state_dict

        pipeline = self._maker.pipeline
        temporary = file.with_name(f".{file.stem}.writing-{os.getpid()}{file.suffix}")
        described = {"r": self.config.rank, "lora_alpha": self.config.alpha, "target_modules": list(TARGETS)}
        pipeline.save_lora_weights(
            str(temporary.parent),
            transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer, adapter_name=ADAPTER),
            transformer_lora_adapter_metadata=described,
            weight_name=temporary.name,
        )
        fsync(temporary)
        temporary.rename(file)
        fsync(file.parent)


def denoising_loss(maker: GoalGenerator, clips: Sequence[Clip], times: Tensor, noise: Tensor) -> Tensor:
    """Mean square of the transformer's error, in the terms of its scheduler, ().

    Args:
        times: (B,) t of each clip.
        noise: (B, F, C, h, w) standard normal.
    """
    pipeline, device = maker.pipeline, maker.device
    transformer, scheduler = pipeline.transformer, pipeline.scheduler
    x_start = torch.stack([clip.latents for clip in clips]).to(device)  # (B, F, C, h, w)
    first = torch.stack([clip.first for clip in clips]).to(device)
    text = torch.stack([clip.text for clip in clips]).to(device, transformer.dtype)  # (B, L, D)
    times, noise = times.to(device), noise.to(device)
    x_t = scheduler.add_noise(x_start, noise, times)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        wanted = scheduler.get_velocity(x_start, noise, times)
    else:
        wanted = noise if kind == "epsilon" else x_start
    positions = None
    if transformer.config.use_rotary_positional_embeddings:
        positions = pipeline._prepare_rotary_positional_embeddings(*maker.size, x_start.shape[1], device)
    given = torch.cat([x_t, first], 2).to(transformer.dtype)  # (B, F, 2C, h, w)
    offset = None if transformer.config.ofs_embed_dim is None else given.new_full((1,), 2.0)  # as the pipeline has it
    found = transformer(
        hidden_states=given,
        encoder_hidden_states=text,
        timestep=times,
        ofs=offset,
        image_rotary_emb=positions,
        return_dict=False,
    )[0]
    return (found.float() - wanted).square().mean()


@torch.no_grad()
def mean_loss(maker: GoalGenerator, clips: Sequence[Clip], config: GoalTuning) -> float:
    """The loss over all clips at ``draws`` evenly spread times, each with its own noise: the same in every call."""
    last = maker.pipeline.scheduler.config.num_train_timesteps - 1
    times = np.linspace(0, last, config.draws + 2)[1:-1].round().astype(np.int64)
    losses = []
    for number, clip in enumerate(clips):
        for draw, time in enumerate(times):
            noise = torch.randn(1, *clip.latents.shape, generator=generator(config.seed, "validation", number, draw))
            losses.append(float(denoising_loss(maker, [clip], torch.tensor([time]), noise)))
    return float(np.mean(losses))


@torch.no_grad()
def prepare_clip(maker: GoalGenerator, frames: NDArray[np.uint8], prompt: str, source: str, num_frames: int) -> Clip:
    """Frames (T, H, W, 3) of a whole episode and its prompt → what the transformer sees.

    Raises:
        ConfigError: an unusable prompt or number of frames.
        CheckpointError: the VAE or the text encoder gives what is no number.
    """
    pipeline, device = maker.pipeline, maker.device
    maker.tokens(prompt)
    count, (height, width) = maker.num_frames(num_frames), maker.size
    dtype = pipeline.vae.dtype
    video = np.stack([resized(frame, height, width) for frame in resampled(frames, count)])
    pixels = torch.from_numpy(video).permute(3, 0, 1, 2)[None].to(device).float() / 127.5 - 1  # (1, 3, T, H, W)
    latents = pipeline.vae.encode(pixels.to(dtype)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    latents = latents.transpose(1, 2).float()  # (1, F, C, h, w)
    patch = pipeline.transformer.config.patch_size_t
    extra = -latents.shape[1] % patch if patch else 0
    latents = torch.cat([latents[:, :1].expand(-1, extra, -1, -1, -1), latents], 1)  # the pipeline drops them again
    _, first = pipeline.prepare_latents(
        pixels[:, :, 0].to(dtype), 1, latents.shape[2], count + extra * pipeline.vae_scale_factor_temporal, height,
        width, dtype, device, generator(0, "first frame"),
    )  # fmt: skip
    text, _ = pipeline.encode_prompt(
        prompt,
        do_classifier_free_guidance=False,
        max_sequence_length=pipeline.transformer.config.max_text_seq_length,
        device=device,
    )
    x_start, condition, embedding = (part[0].float().cpu() for part in (latents, first, text))
    if not all(torch.isfinite(part).all() for part in (x_start, condition, embedding)):
        raise CheckpointError(
            str(maker.path), expected="finite latents", found="others", next_step="copy the directory again"
        )
    return Clip(x_start, condition, embedding, prompt, source)


def finetune_goal(
    path: Path,
    experts: Sequence[Path],
    out: Path,
    config: GoalTuning,
    *,
    prompt: str | None = None,
    validation: Sequence[Path] = (),
    crop: str = "",
    resume: bool = False,
    device: str = "cpu",
    precision: str = "auto",
) -> Path:
    """Train an adapter: pipeline → clips → adapter → losses before and after; resumable.

    Args:
        path: the pipeline's directory.
        experts: episodes of the task done well, or directories of them.
        out: the run's directory: curves, checkpoints, and in the end ``lora.safetensors`` and ``report.json``.
        prompt: of all episodes; None takes the task of each, its dashes as spaces.
        validation: episodes that are not trained on, for the losses; without any, those of training.
        crop: how frames become square: none, center, or x,y,width,height.

    Returns:
        The adapter's file.

    Raises:
        UserError: wrong input, an output directory in use, or a run begun with something else.
        KeyboardInterrupt: stopped by a signal; everything so far is kept.
    """
    console, file = Console(), out / ADAPTER_FILE
    if prompt is not None and not prompt.strip():
        raise ConfigError(
            "prompt", expected="a text that says what is done", found="an empty one", next_step="give one"
        )
    training = successful(find_episodes(experts))
    held_out = find_episodes(validation) if validation else []
    both = sorted({source.resolve() for source in training} & {source.resolve() for source in held_out})
    if both:
        raise BagError(
            str(both[0]), expected="validation episodes of their own", found="one of training", next_step="remove one"
        )
    maker = GoalGenerator(path, device=device, precision=precision)
    rule = ImageRule(min(maker.size)).with_crop(crop)
    # What can be refused is refused before the run's directory is made.
    read = {source: _read(maker, source, rule, prompt, config) for source in (*training, *held_out)}
    with run_directory(out, resume=resume):
        remove_unfinished(out)
        with console.status("encoding the episodes"):
            clips, checked = (
                [prepare_clip(maker, *read[source], str(source), config.num_frames) for source in sources]
                for sources in (training, held_out)
            )
        begun_with = {
            "config": to_mapping(config),
            "pipeline": identity(maker.hashes),
            "precision": maker.precision,
            "clips": {clip.source: [clip.prompt, _digest(clip)] for clip in (*clips, *checked)},
        }
        keep_settings(out / "config.yaml", begun_with, "other settings, episodes, prompts, or another pipeline")
        if file.exists() and (out / REPORT).exists():
            console.print(f"{file} is complete; nothing to do", markup=False)
            return file
        if maker.device.type != "cpu":  # what is encoded needs them no more
            maker.pipeline.text_encoder.to("cpu")
            maker.pipeline.vae.to("cpu")
        stage = AdapterStage(maker, clips, config)
        metrics = Metrics(out)
        try:
            train(stage, out, metrics, checkpoint_every_s=config.checkpoint_every_s)
        finally:
            metrics.close()
        with console.status("comparing losses"):
            after = mean_loss(maker, checked or clips, config)
            maker.pipeline.transformer.disable_adapters()
            before = mean_loss(maker, checked or clips, config)
            maker.pipeline.transformer.enable_adapters()
        where = f"{len(checked)} validation episodes" if checked else f"the {len(clips)} training episodes"
        stage.save(file)
        report = {
            "loss_before": before,
            "loss_after": after,
            "validated_on": where,
            "prompts": sorted({clip.prompt for clip in clips}),
            "episodes": [clip.source for clip in clips],
            "pipeline_files": maker.hashes,
            "adapter_sha256": sha256_file(file),
            "versions": versions("diffusers", "transformers", "peft"),
        }
        write_whole(out / REPORT, json.dumps(report, indent=2))  # last: the run is complete once it is there
    console.print(f"loss on {where}: {before:.4g} before, {after:.4g} after", markup=False)
    if not after < before:
        console.print("the loss did not fall: train longer, or with another learning_rate")
    console.print(f"adapter: {file}", markup=False)
    return file


def _read(
    maker: GoalGenerator, source: Path, rule: ImageRule, prompt: str | None, config: GoalTuning
) -> tuple[NDArray[np.uint8], str]:
    """The frames of an episode that make its clip, and its prompt."""
    episode = read_episode(source, rule=rule)
    if len(episode.frames) < 2:
        raise BagError(
            str(source), expected="at least 2 frames", found=str(len(episode.frames)), next_step="leave it out"
        )
    words = prompt or episode.metadata.task.replace("-", " ").replace("_", " ")
    maker.tokens(words)
    return resampled(episode.frames, maker.num_frames(config.num_frames)).copy(), words


def _digest(clip: Clip) -> str:
    """sha256 of the latents, as bytes."""
    return sha256_array(clip.latents.numpy().view(np.uint8))
