"""Published encoders from local directories, behind the interfaces of ``dr_core.rewards.genreward.encoders``.

Frames of any size are stretched whole to the size that a network takes: nothing is cropped away, so that what is at the
edge of a picture counts too. The published evaluations of CLIP and DINOv2 crop the centre instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import CheckpointError, ConfigError
from dr_core.goals.local import (
    check_directory,
    file_hashes,
    identity,
    load_network,
    load_other,
    read_json,
    readable,
    refused,
    require_packages,
)

BATCH = 32
"""Frames per network call."""
_PREPROCESSOR = "preprocessor_config.json"


class ClipMatcher:
    """How well a text describes each frame: the cosine of CLIP's features.

    Args:
        path: a directory of a ``CLIPModel`` with its tokenizer and preprocessor_config.json.

    Raises:
        MissingPackageError: the extra genreward is not installed.
        CheckpointError: a file is missing, pickled, damaged or of another network.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        require_packages(str(path))
        import torch
        import transformers

        check_directory(path, ["config.json", _PREPROCESSOR])
        if not (path / "tokenizer.json").is_file():
            check_directory(path, ["vocab.json", "merges.txt"])  # without them the class makes a vocabulary up
        self.path, self.device = path, torch.device(device)
        self._network = load_network(transformers.CLIPModel, path, torch.float32).to(self.device)
        self._tokenizer = load_other(transformers.CLIPTokenizer, path)
        self._pictures = _Pictures(path, self._network.config.vision_config.image_size, self.device)
        self.name = f"CLIP {identity(file_hashes(path))[:16]}"

    def similarity(self, text: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Cosine of the text with each frame, (N, H, W, 3) uint8 RGB → (N,) float32.

        Raises:
            ConfigError: an empty text, or one longer than the network reads.
            CheckpointError: the network gives what is no number.
        """
        import torch

        if not text.strip():
            raise ConfigError("text", expected="what the goal looks like", found="none", next_step="give a text")
        with readable(self.path):
            tokens = self._tokenizer([text], return_tensors="pt")
        length, most = tokens.input_ids.shape[1], self._network.config.text_config.max_position_embeddings
        if length > most:
            raise ConfigError("text", expected=f"at most {most} tokens", found=str(length), next_step="shorten it")
        if int(tokens.input_ids.max()) >= self._network.config.text_config.vocab_size:
            raise refused(self.path, "a tokenizer of this network", "tokens unknown to it", "copy the directory again")
        with torch.inference_mode():
            with readable(self.path, "a network that runs"):
                wanted = self._network.get_text_features(**tokens.to(self.device)).pooler_output  # (1, D)
            features = self._pictures.map(lambda part: self._network.get_image_features(part).pooler_output, frames)
            cosines = torch.nn.functional.cosine_similarity(features, wanted, dim=1)  # (N,)
        return _finite(cosines, self.path)


class Dinov2Frames:
    """ψ: the class token of DINOv2, one feature a frame.

    Args:
        path: a directory of a ``Dinov2Model`` with its preprocessor_config.json.

    Raises:
        MissingPackageError: the extra genreward is not installed.
        CheckpointError: a file is missing, pickled, damaged or of another network.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        require_packages(str(path))
        import torch
        import transformers

        check_directory(path, ["config.json", _PREPROCESSOR])
        self.path = path
        self._network = load_network(transformers.Dinov2Model, path, torch.float32).to(device)
        self._pictures = _Pictures(path, None, torch.device(device))
        patch = self._network.config.patch_size
        if self._pictures.edge % patch:
            raise refused(path / _PREPROCESSOR, f"a multiple of {patch}", f"crop_size {self._pictures.edge}", "mend it")
        self.size = int(self._network.config.hidden_size)
        self.name = f"DINOv2 {identity(file_hashes(path))[:16]}"

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB, N ≥ 1 → (N, D) float32.

        Raises:
            CheckpointError: the network gives what is no number.
        """
        import torch

        with torch.inference_mode():
            features = self._pictures.map(lambda part: self._network(pixel_values=part).pooler_output, frames)
        return _finite(features, self.path)


class CogVideoXLatents:
    """Latents of a clip in the 3D VAE of CogVideoX: the means, frame after frame of its latents.

    Args:
        path: a directory of an ``AutoencoderKLCogVideoX``, or of a pipeline that has one in ``vae``.

    Raises:
        MissingPackageError: the extra genreward is not installed.
        CheckpointError: a file is missing, pickled, damaged or of another network.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        require_packages(str(path))
        import diffusers
        import torch

        if (path / "model_index.json").is_file():
            path = path / "vae"
        check_directory(path, ["config.json"])
        self.path, self.device = path, torch.device(device)
        self._network = load_network(diffusers.AutoencoderKLCogVideoX, path, torch.float32).to(self.device)
        self._factor = 2 ** (len(self._network.config.block_out_channels) - 1)
        self.name = f"CogVideoX VAE {identity(file_hashes(path))[:16]}"

    def encode(self, clip: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(T, H, W, 3) uint8 RGB → (L,) float32; edges are stretched to the next multiple of the VAE's step (8).

        Raises:
            CheckpointError: the network gives what is no number.
        """
        import torch

        pixels = _channels_first(clip, self.device)  # (T, 3, H, W)
        height, width = (-(-edge // self._factor) * self._factor for edge in pixels.shape[2:])
        pixels = _stretched(pixels, height, width) * 2 - 1
        with torch.inference_mode():
            latents = self._network.encode(pixels.transpose(0, 1)[None]).latent_dist.mode()  # (1, C, T', H', W')
        return _finite(latents.transpose(1, 2).flatten(), self.path)


class _Pictures:
    """Frames as a vision network takes them, by its preprocessor_config.json."""

    def __init__(self, path: Path, edge: int | None, device: Any) -> None:
        import torch

        file = path / _PREPROCESSOR
        settings = read_json(file)
        try:
            crop: Any = settings.get("crop_size", edge)
            (self.edge,) = {int(value) for value in (crop.values() if isinstance(crop, dict) else [crop])}
            mean, std = (torch.tensor([float(v) for v in settings[name]]) for name in ("image_mean", "image_std"))
            if not 1 <= self.edge <= 4096 or mean.shape != (3,) or std.shape != (3,) or not (std > 0).all():
                raise ValueError(f"crop_size {crop}, image_mean {mean.tolist()}, image_std {std.tolist()}")
        except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            expected = "a square crop_size, and image_mean and image_std of 3 channels"
            raise refused(file, expected, " ".join(repr(error).split())[:160], "copy it again") from error
        if edge is not None and self.edge != edge:
            raise refused(file, f"crop_size {edge}, as in config.json", str(self.edge), "copy the directory again")
        self.device = device
        self._mean, self._std = mean.view(1, 3, 1, 1).to(device), std.view(1, 3, 1, 1).to(device)

    def map(self, function: Any, frames: NDArray[np.uint8]) -> Any:
        """Apply ``function`` to batches (B, 3, edge, edge) of frames (N, H, W, 3); its results (N, D)."""
        import torch

        parts = []
        for start in range(0, len(frames), BATCH):
            pixels = _channels_first(frames[start : start + BATCH], self.device)
            parts.append(function((_stretched(pixels, self.edge, self.edge) - self._mean) / self._std))
        return torch.cat(parts).float()


def _channels_first(frames: NDArray[np.uint8], device: Any) -> Any:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in [0, 1]."""
    import torch

    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"frames are uint8 (N, H, W, 3), not {frames.dtype} {frames.shape}")
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float() / 255


def _stretched(pixels: Any, height: int, width: int) -> Any:
    """(N, 3, H, W) → (N, 3, height, width), bicubic, averaging where it shrinks."""
    import torch

    if pixels.shape[2:] == (height, width):
        return pixels
    grown = torch.nn.functional.interpolate(
        pixels, (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return grown.clamp(0, 1)


def _finite(values: Any, path: Path) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.float().cpu().numpy()
    if not np.isfinite(found).all():
        raise CheckpointError(
            str(path), expected="finite features", found="others", next_step="copy the directory again"
        )
    return found
