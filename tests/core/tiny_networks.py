"""Randomly initialised networks of published classes, small enough for tests, saved as their published directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = "close the door with robot arm push a block turn dial open drawer to goal"


def save_tokenizer(folder: Path) -> None:
    """A T5 tokenizer as published: a sentencepiece model, here trained on a few words, and its settings."""
    import sentencepiece

    folder.mkdir(parents=True)
    text = folder / "words.txt"
    text.write_text("\n".join([WORDS] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.Train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=64, model_type="unigram", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    text.unlink()
    (folder / "spiece.vocab").unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def save_pipeline(folder: Path, *, version: str = "1.0", prediction: str = "v_prediction", frames: int = 9) -> Path:
    """A CogVideoX image-to-video pipeline of 32 x 32 pixels; the VAE halves twice in space and twice in time.

    Args:
        version: "1.0" (learned and rotary positions) or "1.5" (patches in time, the ofs embedding).
        prediction: of the scheduler.
        frames: that the transformer is made for.
    """
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXDPMScheduler,
        CogVideoXImageToVideoPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    save_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3, up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        sample_height=32, sample_width=32, scaling_factor=0.7, invert_scale_latents=version == "1.0",
    )  # fmt: skip
    later = {"patch_size_t": 2, "ofs_embed_dim": 8, "patch_bias": False} if version == "1.5" else {}
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=8,
        text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8, sample_frames=frames, patch_size=2,
        max_text_seq_length=16, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=version == "1.0", **later,
    )  # fmt: skip
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    )
    scheduler = CogVideoXDPMScheduler if version == "1.5" else CogVideoXDDIMScheduler
    tokenizer = T5Tokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    steps = scheduler(prediction_type=prediction, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    published = {path: path.read_bytes() for path in (folder / "tokenizer").iterdir()}
    CogVideoXImageToVideoPipeline(tokenizer, text_encoder, vae, transformer, steps).save_pretrained(str(folder))
    for path in (folder / "tokenizer").iterdir():  # not tokenizer.json, which published directories do not have
        if path in published:
            path.write_bytes(published[path])
        else:
            path.unlink()
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Set entries of a JSON file; None removes one."""
    mapping = json.loads(path.read_text(encoding="utf-8"))
    mapping = {key: value for key, value in {**mapping, **values}.items() if value is not None}
    path.write_text(json.dumps(mapping), encoding="utf-8")
