"""Randomly initialised CLIP and DINOv2 in directories like the published ones; pixels of 32 x 32."""

from __future__ import annotations

import json
from pathlib import Path

import torch

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
START, END = 512, 513


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def save_clip(folder: Path) -> Path:
    """A ``CLIPModel`` whose tokenizer knows single bytes only, in the two files of the published directories."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    config = CLIPConfig(
        text_config={**size, **ends, "vocab_size": 514, "max_position_embeddings": 24},
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(str(folder))
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    _save_preprocessor(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    """A ``Dinov2Model``."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=8
    )
    Dinov2Model(config).save_pretrained(str(folder))
    _save_preprocessor(folder)
    return folder


def _save_preprocessor(folder: Path) -> None:
    settings = {"crop_size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
