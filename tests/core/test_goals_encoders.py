"""CLIP, DINOv2 and the 3D VAE from local directories, against the libraries that made them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="the extra genreward is not installed")

from dr_core.errors import CheckpointError, ConfigError
from dr_core.goals.encoders import ClipMatcher, CogVideoXLatents, Dinov2Frames
from dr_core.rewards.genreward.encoders import CLIP_FRAMES
from dr_core.rewards.genreward.goal import most_like_text
from dr_core.rewards.genreward.video import GoalLikeness
from tests.core.moving_square import moving_square
from tests.core.tiny_networks import change_json, save_pipeline
from tests.core.tiny_vision import MEAN, STD, save_clip, save_dinov2

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        "clip": save_clip(root / "clip"),
        "dinov2": save_dinov2(root / "dinov2"),
        "vae": save_pipeline(root / "pipeline"),
    }


def frames(seed: int = 0, edge: int = 32, count: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, edge, edge, 3), np.uint8)


def by_hand(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Frames of the network's size, normalised."""
    pixels = pictures.astype(np.float64) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)


def test_clip_compares_as_its_library_does(folders: dict[str, Path]) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    matcher = ClipMatcher(folders["clip"])
    network = CLIPModel.from_pretrained(str(folders["clip"]))
    tokens = CLIPTokenizer.from_pretrained(str(folders["clip"]))(["door closed"], return_tensors="pt")
    with torch.no_grad():
        scores = network(**tokens, pixel_values=by_hand(frames())).logits_per_text[0] / network.logit_scale.exp()
    np.testing.assert_allclose(matcher.similarity("door closed", frames()), scores, atol=1e-5)
    many = frames(1, count=40)  # more than a batch
    np.testing.assert_allclose(matcher.similarity("door", many)[33:], matcher.similarity("door", many[33:]), atol=1e-5)


def test_the_goal_frame_is_the_one_that_the_text_describes_best(folders: dict[str, Path]) -> None:
    matcher = ClipMatcher(folders["clip"])
    video = moving_square(2, expert=True, length=8)
    index, how = most_like_text(video, "the door is closed", matcher)
    one_by_one = [float(matcher.similarity("the door is closed", frame[None])[0]) for frame in video]
    assert index == int(np.argmax(one_by_one)) and "the door is closed" in how
    assert len({round(score, 6) for score in one_by_one}) > 1


def test_pictures_are_resized_as_the_publishers_library_does(folders: dict[str, Path]) -> None:
    """PIL's bicubic rounds to 8 bits in between, so that features agree closely, not exactly."""
    from PIL import Image

    large = moving_square(2, expert=True, length=3)
    small = np.stack([np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC)) for frame in large])
    encoder = Dinov2Frames(folders["dinov2"])
    ours, theirs, other = encoder.encode(large), encoder.encode(small), encoder.encode(frames(count=3))
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(ours - other).max()


def test_dinov2_gives_the_class_token(folders: dict[str, Path]) -> None:
    from transformers import Dinov2Model

    encoder = Dinov2Frames(folders["dinov2"])
    with torch.no_grad():
        wanted = Dinov2Model.from_pretrained(str(folders["dinov2"]))(by_hand(frames())).last_hidden_state[:, 0]
    features = encoder.encode(frames())
    assert features.dtype == np.float32 and features.shape == (5, encoder.size)
    np.testing.assert_allclose(features, wanted, atol=1e-5)
    assert encoder.name.startswith("DINOv2 ")


def test_the_vae_gives_the_means_of_its_latents(folders: dict[str, Path]) -> None:
    from diffusers import AutoencoderKLCogVideoX

    clip = frames(count=CLIP_FRAMES)
    encoder = CogVideoXLatents(folders["vae"])
    vae = AutoencoderKLCogVideoX.from_pretrained(str(folders["vae"] / "vae"))
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist.mean.permute(0, 2, 1, 3, 4).flatten()
    np.testing.assert_allclose(encoder.encode(clip), wanted, atol=1e-5)
    assert CogVideoXLatents(folders["vae"] / "vae").name == encoder.name
    odd = encoder.encode(frames(edge=30, count=CLIP_FRAMES))  # stretched to 32
    assert odd.shape == encoder.encode(clip).shape


def test_the_likeness_to_a_goal_video_is_largest_for_the_goal_itself(folders: dict[str, Path]) -> None:
    goal = moving_square(5, expert=True, length=20)
    likeness = GoalLikeness(goal, CogVideoXLatents(folders["vae"]))
    same, near = likeness.of_clip(goal), likeness.of_clip(moving_square(6, expert=True, length=31))
    assert same == pytest.approx(1, abs=1e-5) and near < same
    assert likeness.of_clip(255 - goal) < near


def test_names_change_with_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["dinov2"], tmp_path / "copy"))
    assert Dinov2Frames(copy).name == Dinov2Frames(folders["dinov2"]).name
    tensors = load_file(copy / "model.safetensors")
    tensors["layernorm.bias"] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert Dinov2Frames(copy).name != Dinov2Frames(folders["dinov2"]).name


@pytest.mark.parametrize(("text", "found"), [("", "none"), ("  ", "none"), ("x" * 40, "at most 24 tokens")])
def test_unusable_texts(folders: dict[str, Path], text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        ClipMatcher(folders["clip"]).similarity(text, frames())


def test_numbers_that_are_none_are_refused(folders: dict[str, Path]) -> None:
    encoder = Dinov2Frames(folders["dinov2"])
    with torch.no_grad():
        encoder._network.layernorm.bias.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="finite features"):
        encoder.encode(frames())


# ---- directories ----

KINDS: dict[str, Any] = {"clip": ClipMatcher, "dinov2": Dinov2Frames, "vae": CogVideoXLatents}


def pickle_instead(folder: Path) -> None:
    (weights,) = folder.glob("*.safetensors")
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_directories_are_refused(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    source = folders[kind] / "vae" if kind == "vae" else folders[kind]

    def refuse(name: str, change: Any, found: str) -> None:
        copy = Path(shutil.copytree(source, tmp_path / name))
        change(copy)
        with pytest.raises(CheckpointError, match=found) as refused:
            KINDS[kind](copy)
        assert str(copy) in str(refused.value)

    refuse("gone", shutil.rmtree, "nothing there")
    refuse("pickle", pickle_instead, "pickled weights are never opened")
    refuse("config", lambda f: (f / "config.json").unlink(), "no config.json")
    refuse("class", lambda f: change_json(f / "config.json", _class_name="Other", architectures=["Other"]), "Other")
    refuse("torn", lambda f: next(f.glob("*.safetensors")).write_bytes(b"torn"), "files that can be read")

    def lose(folder: Path) -> None:
        (weights,) = folder.glob("*.safetensors")
        tensors = load_file(weights)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, weights, metadata={"format": "pt"})

    refuse("lost", lose, "missing keys")


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_the_preprocessor_is_needed_whole(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    for name, change, found in (
        ("none", None, "no preprocessor_config.json"),
        ("mean", {"image_mean": [0.5]}, "3 channels"),
        ("std", {"image_std": [0.0, 1.0, 1.0]}, "3 channels"),
        ("oblong", {"crop_size": {"height": 32, "width": 40}}, "square"),
        ("other", {"crop_size": 36}, "36"),
    ):
        copy = Path(shutil.copytree(folders[kind], tmp_path / name))
        if change is None:
            (copy / "preprocessor_config.json").unlink()
        else:
            change_json(copy / "preprocessor_config.json", **change)
        with pytest.raises(CheckpointError, match=found):
            KINDS[kind](copy)


def test_clip_without_its_vocabulary_makes_none_up(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["clip"], tmp_path / "copy"))
    (copy / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no merges\.txt"):
        ClipMatcher(copy)
