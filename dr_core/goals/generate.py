"""Goal videos from a picture and a text: a CogVideoX image-to-video pipeline of diffusers in a local directory.

The directory is as published: ``model_index.json`` and a folder for each part. A first frame of any size is stretched
to the size that the pipeline is made for, and the video is stretched back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dr_core.checkpoint import sha256_file
from dr_core.errors import CheckpointError, ConfigError
from dr_core.goals.local import (
    check_directory,
    check_weights,
    file_hashes,
    load_network,
    load_other,
    read_json,
    readable,
    refused,
    require_packages,
    silent,
)
from dr_core.seeding import generator

PIPELINE = "CogVideoXImageToVideoPipeline"
PARTS = {
    "transformer": ("CogVideoXTransformer3DModel",),
    "vae": ("AutoencoderKLCogVideoX",),
    "text_encoder": ("T5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    "scheduler": ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
MOST_TIMESTEPS = 100_000
ADAPTER = "goal"
# What of an adapter's own description is taken over: numbers and names, nothing that names code.
_ADAPTER_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "lora_bias")


@dataclass(frozen=True)
class Generation:
    """How a goal video is drawn.

    Attributes:
        num_frames: 0 takes what the pipeline is made for; else 1 more than a multiple of 8 (twice the VAE's step).
        steps: of the denoising.
        guidance: weight of the text (classifier-free guidance); 1 is none.
    """

    num_frames: int = 0
    steps: int = 50
    guidance: float = 6.0

    def __post_init__(self) -> None:
        if self.num_frames < 0 or self.steps < 1 or not 1 <= self.guidance < 100:
            raise ValueError("num_frames must not be negative, steps at least 1, guidance between 1 and 100")


class GoalGenerator:
    """A pipeline in memory.

    Args:
        path: the published directory.
        lora: a LoRA adapter for its transformer in one safetensors file, or None.
        device: where it runs.
        precision: "auto" is bfloat16 on a GPU and float32 on the CPU.

    Raises:
        MissingPackageError: the extra genreward is not installed.
        CheckpointError: naming the part that is missing, of another class, pickled, damaged, or does not fit.
    """

    def __init__(self, path: Path, *, lora: Path | None = None, device: str = "cpu", precision: str = "auto") -> None:
        require_packages(str(path))
        import diffusers
        import torch
        import transformers

        self.path, self.lora, self.device = path, lora, torch.device(device)
        named = check_pipeline(path)
        if precision == "auto":
            precision = "float32" if self.device.type == "cpu" else "bfloat16"
        self.precision = precision
        dtype = getattr(torch, precision)
        self.pipeline = diffusers.CogVideoXImageToVideoPipeline(
            tokenizer=_load_tokenizer(path / "tokenizer"),
            text_encoder=load_network(transformers.T5EncoderModel, path / "text_encoder", dtype),
            vae=load_network(diffusers.AutoencoderKLCogVideoX, path / "vae", dtype),
            transformer=load_network(diffusers.CogVideoXTransformer3DModel, path / "transformer", dtype),
            scheduler=load_other(getattr(diffusers, named["scheduler"]), path / "scheduler"),
        )
        self._check_parts()
        if lora is not None:
            load_adapter(self.pipeline, lora)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(self.device)
        self.hashes = file_hashes(path)
        if lora is not None:
            self.hashes["lora"] = sha256_file(lora)

    def _check_parts(self) -> None:
        """Refuse parts that do not belong together."""
        pipeline = self.pipeline
        transformer, vae = pipeline.transformer.config, pipeline.vae.config
        width = pipeline.text_encoder.config.d_model
        ratio = pipeline.vae_scale_factor_temporal
        pairs = (
            ("transformer's in_channels", transformer.in_channels, 2 * vae.latent_channels),
            ("transformer's out_channels", transformer.out_channels, vae.latent_channels),
            ("transformer's text_embed_dim", transformer.text_embed_dim, width),
            ("transformer's temporal_compression_ratio", transformer.temporal_compression_ratio, ratio),
        )
        for what, found, wanted in pairs:
            if found != wanted:
                raise refused(self.path, f"the {what} {wanted}", str(found), "use the parts of one pipeline")
        for name in ("sample_height", "sample_width", "sample_frames"):
            value = transformer[name]
            if type(value) is not int or not 1 <= value <= 4096:
                raise refused(self.path / "transformer", f"{name} from 1 to 4096", f"{value!r:.40}", "copy it again")
        prediction = pipeline.scheduler.config.prediction_type
        if prediction not in PREDICTIONS:
            raise refused(self.path / "scheduler", f"one of {', '.join(PREDICTIONS)}", str(prediction), "copy it again")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the pipeline is made for."""
        config, factor = self.pipeline.transformer.config, self.pipeline.vae_scale_factor_spatial
        return config.sample_height * factor, config.sample_width * factor

    def num_frames(self, wanted: int = 0) -> int:
        """``wanted`` frames, or as many as the pipeline is made for.

        Raises:
            ConfigError: a number that its VAE cannot make.
        """
        count = wanted or self.pipeline.transformer.config.sample_frames
        step = 2 * self.pipeline.vae_scale_factor_temporal  # the VAE decodes latents in pairs, after an odd first one
        if (count - 1) % step or count <= step:
            below = max(1, (count - 1) // step) * step + 1
            raise ConfigError(
                "frames of the goal video",
                expected=f"1 more than a multiple of {step}, such as {below}",
                found=str(count),
                next_step="ask for such a number",
            )
        return int(count)

    def tokens(self, prompt: str) -> int:
        """How many tokens a prompt has.

        Raises:
            ConfigError: it is empty, or longer than the transformer reads.
        """
        if not prompt.strip():
            raise ConfigError("prompt", expected="a text that says what is done", found="none", next_step="give one")
        with readable(self.path / "tokenizer"):
            ids = self.pipeline.tokenizer(prompt).input_ids
        most, known = self.pipeline.transformer.config.max_text_seq_length, self.pipeline.text_encoder.config.vocab_size
        if len(ids) > most:
            raise ConfigError(
                "prompt", expected=f"at most {most} tokens", found=f"{len(ids)} of them", next_step="shorten it"
            )
        if max(ids) >= known:
            raise refused(self.path / "tokenizer", f"at most {known} tokens", f"token {max(ids)}", "copy it again")
        return len(ids)

    def generate(
        self,
        first_frame: NDArray[np.uint8],
        prompt: str,
        settings: Generation,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB and a text → (T, H, W, 3) uint8 RGB.

        Args:
            progress: called with (denoising steps done, steps in all).

        Raises:
            ConfigError: an unusable frame, prompt or number of frames.
            CheckpointError: the pipeline gives what is no number.
        """
        import torch

        self.tokens(prompt)
        count = self.num_frames(settings.num_frames)
        height, width = self.size

        def tell(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            progress(step + 1, settings.steps)
            return values

        image = self.image(first_frame).to(self.device)
        with torch.inference_mode(), readable(self.path, "a pipeline that runs"):
            video = self.pipeline(
                image=image,
                prompt=prompt,
                height=height,
                width=width,
                num_frames=count,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=generator(seed, "goal video"),
                max_sequence_length=self.pipeline.transformer.config.max_text_seq_length,
                callback_on_step_end=tell,
                output_type="np",
            ).frames[0]
        if len(video) != count or not np.isfinite(video).all():
            raise CheckpointError(
                str(self.path),
                expected=f"{count} frames of finite pixels",
                found=f"{len(video)} frames, or pixels that are no numbers",
                next_step="give weights of the right precision, or another --lora",
            )
        pixels = (video * 255).round().astype(np.uint8)
        return np.stack([resized(frame, first_frame.shape[0], first_frame.shape[1]) for frame in pixels])

    def image(self, frame: NDArray[np.uint8]) -> Any:
        """(H, W, 3) uint8 → (1, 3, height, width) float32 in [0, 1], stretched to the pipeline's size."""
        import torch

        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ConfigError(
                "first frame",
                expected="RGB (H, W, 3), 8 bits",
                found=f"{frame.dtype} {frame.shape}",
                next_step="give another",
            )
        return torch.from_numpy(resized(frame, *self.size)).permute(2, 0, 1)[None].float() / 255


def check_pipeline(path: Path) -> dict[str, str]:
    """Refuse a directory that holds no CogVideoX image-to-video pipeline; the class of each part.

    Raises:
        CheckpointError: naming what is missing or different.
    """
    check_directory(path, ["model_index.json", *(f"{part}/" for part in PARTS)])
    index = read_json(path / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise refused(
            path / "model_index.json", f"the class {PIPELINE}", str(index.get("_class_name")), "give another directory"
        )
    named = {}
    for part, classes in PARTS.items():
        entry = index.get(part)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if name not in classes:
            raise refused(path / "model_index.json", f"{part} of {classes[0]}", str(name), "give another directory")
        named[part] = str(name)
    for part in ("transformer", "vae", "text_encoder"):
        check_weights(path / part)
    steps = read_json(path / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 1 <= steps <= MOST_TIMESTEPS:
        raise refused(
            path / "scheduler", f"1 to {MOST_TIMESTEPS} num_train_timesteps", f"{steps!r:.40}", "copy it again"
        )
    return named


def _load_tokenizer(folder: Path) -> Any:
    """Without its vocabulary, or with a damaged one, the class makes one up."""
    import sentencepiece
    import transformers

    vocabulary = folder / "spiece.model"
    if not vocabulary.is_file() and not (folder / "tokenizer.json").is_file():
        raise refused(folder, "spiece.model or tokenizer.json", "neither", "copy the published directory whole")
    tokenizer = load_other(transformers.T5Tokenizer, folder)
    if vocabulary.is_file():
        with readable(vocabulary):
            pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
        if len(tokenizer) < pieces.get_piece_size():
            raise refused(folder, f"{pieces.get_piece_size()} tokens", str(len(tokenizer)), "copy the directory again")
    return tokenizer


def load_adapter(pipeline: Any, file: Path) -> None:
    """Put a LoRA adapter onto the transformer; all of the file's tensors have to find their place.

    Raises:
        CheckpointError: no safetensors, or the adapter of another network.
    """
    import torch
    from peft import get_peft_model_state_dict

    if file.suffix != ".safetensors" or not file.is_file():
        found = "a pickle, which is never opened" if file.is_file() else "nothing there"
        raise refused(file, "a LoRA adapter in a .safetensors file", found, "give the file of dr finetune-goal")
    kind = type(pipeline)
    with readable(file), silent():
        given, described = kind.lora_state_dict(
            str(file.parent), weight_name=file.name, local_files_only=True, use_safetensors=True,
            return_lora_metadata=True,
        )  # fmt: skip
        wanted = {f"transformer.{name}" for name in _ADAPTER_SETTINGS}
        settings = {name: value for name, value in (described or {}).items() if name in wanted} or None
        kind.load_lora_into_transformer(given, pipeline.transformer, adapter_name=ADAPTER, metadata=settings)
    placed: dict[str, Any] = {}
    if ADAPTER in getattr(pipeline.transformer, "peft_config", {}):
        placed = get_peft_model_state_dict(pipeline.transformer, adapter_name=ADAPTER)
    placed = {f"transformer.{name}": value for name, value in placed.items()}
    astray = sorted(given.keys() ^ placed.keys())
    differing = [name for name in given.keys() & placed.keys() if given[name].shape != placed[name].shape]
    if astray or differing or not given:
        found = (astray or differing or ["no tensor"])[0]
        raise refused(file, "an adapter of this transformer", f"{found}, which has no place", "give another --lora")
    if not all(torch.isfinite(value).all() for value in given.values()):
        raise refused(file, "finite weights", "others", "fine-tune anew with a lower learning rate")


def resized(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Stretch a frame to a size: averaged where it shrinks, bicubic where it grows."""
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height * width < frame.shape[0] * frame.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, (width, height), interpolation=method), np.uint8)
