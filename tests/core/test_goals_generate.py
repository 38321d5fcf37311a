"""Generated goal videos: the pipeline of a local directory as diffusers runs it; what is wrong there is one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="the extra genreward is not installed")

from dr_core.errors import CheckpointError, ConfigError
from dr_core.goals import local
from dr_core.goals.generate import Generation, GoalGenerator
from dr_core.goals.local import MissingPackageError, file_hashes
from tests.core.moving_square import moving_square
from tests.core.tiny_networks import change_json, save_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = Generation(steps=2)
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {version: save_pipeline(root / version, version=version) for version in ("1.0", "1.5")}


@pytest.fixture
def copy(pipelines: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipelines["1.0"], tmp_path / "pipeline"))


def first_frame() -> np.ndarray:
    return moving_square(3, expert=True, length=1)[0]


@pytest.mark.parametrize("version", ["1.0", "1.5"])
def test_a_video_is_what_diffusers_makes_of_the_directory(pipelines: dict[str, Path], version: str) -> None:
    from diffusers import CogVideoXImageToVideoPipeline
    from PIL import Image

    frame = first_frame()[:32, :32]  # of the pipeline's size, so that both see the same pixels
    maker = GoalGenerator(pipelines[version])
    video = maker.generate(frame, "close the door", FEW, seed=7)
    assert video.shape == (9, 32, 32, 3) and video.dtype == np.uint8 and video.std() > 5
    theirs = CogVideoXImageToVideoPipeline.from_pretrained(str(pipelines[version]), local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    wanted = theirs(
        image=Image.fromarray(frame), prompt="close the door", height=32, width=32, num_frames=9,
        num_inference_steps=2, generator=local_generator(), max_sequence_length=16, output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs(video - wanted * 255).max() <= 0.5 + 1e-2


def local_generator() -> torch.Generator:
    from dr_core.seeding import generator

    return generator(7, "goal video")


def test_frame_prompt_seed_and_settings_decide(pipelines: dict[str, Path]) -> None:
    maker = GoalGenerator(pipelines["1.0"])
    video = maker.generate(first_frame(), "close the door", FEW)
    assert video.shape == (9, 64, 64, 3), "as the first frame"
    np.testing.assert_array_equal(maker.generate(first_frame(), "close the door", FEW), video)
    other = moving_square(4, expert=True, length=1)[0]
    for changed in (
        maker.generate(other, "close the door", FEW),
        maker.generate(first_frame(), "push a block", FEW),
        maker.generate(first_frame(), "close the door", FEW, seed=1),
        maker.generate(first_frame(), "close the door", Generation(steps=3)),
        maker.generate(first_frame(), "close the door", Generation(steps=2, guidance=1)),
    ):
        assert (changed != video).any()
    steps: list[tuple[int, int]] = []
    longer = maker.generate(
        first_frame()[:40], "push", Generation(num_frames=17, steps=2), 0, lambda *seen: steps.append(seen)
    )
    assert longer.shape == (17, 40, 64, 3) and steps == [(1, 2), (2, 2)]


def test_the_text_is_tokenised_as_sentencepiece_does(pipelines: dict[str, Path]) -> None:
    import sentencepiece

    maker = GoalGenerator(pipelines["1.0"])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(pipelines["1.0"] / "tokenizer" / "spiece.model"))
    text = "push the block"
    assert maker.pipeline.tokenizer(text).input_ids == [*pieces.encode(text), pieces.eos_id()]


@pytest.mark.parametrize("frames", [8, 10, 1, 4, 5, 13])
def test_numbers_of_frames_that_the_vae_cannot_make(pipelines: dict[str, Path], frames: int) -> None:
    with pytest.raises(ConfigError, match="1 more than a multiple of 8"):
        GoalGenerator(pipelines["1.0"]).generate(first_frame(), "push", Generation(num_frames=frames))


@pytest.mark.parametrize(("prompt", "found"), [("", "none"), (" \n", "none"), ("close the door " * 9, "at most 16")])
def test_unusable_prompts(pipelines: dict[str, Path], prompt: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        GoalGenerator(pipelines["1.0"]).generate(first_frame(), prompt, FEW)


@pytest.mark.parametrize("frame", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)])
def test_unusable_first_frames(pipelines: dict[str, Path], frame: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="first frame"):
        GoalGenerator(pipelines["1.0"]).generate(frame, "push", FEW)


# ---- directories ----


def pickled(folder: Path) -> None:
    """Weights as a pickle that would write a file when opened."""
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def altered(part: str, **values: object) -> Change:
    return lambda folder: change_json(folder / part, **values)


def weights(part: str, name: str, alter: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / part / name)
        alter(tensors)
        save_file(tensors, folder / part / name, metadata={"format": "pt"})

    return change


TRANSFORMER = "diffusion_pytorch_model.safetensors"
WRONG: dict[str, tuple[Change, str]] = {
    "absent": (shutil.rmtree, "nothing there"),
    "index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "other pipeline": (altered("model_index.json", _class_name="StableDiffusionPipeline"), "StableDiffusionPipeline"),
    "own code": (altered("model_index.json", transformer=["my_module", "MyTransformer"]), "MyTransformer"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "no vae/"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no scheduler/"),
    "no vocabulary": (lambda f: (f / "tokenizer" / "spiece.model").unlink(), "found neither"),
    "torn vocabulary": (
        lambda f: (f / "tokenizer" / "spiece.model").write_bytes(b"\x0a\x0e\x0a"),
        "spiece.model|token",
    ),
    "pickle": (pickled, "pickled weights are never opened"),
    "torn weights": (lambda f: (f / "vae" / TRANSFORMER).write_bytes(b"\x10" * 99), "files that can be read"),
    "torn index": (lambda f: (f / "model_index.json").write_text("{"), "found Expecting"),
    "no config": (lambda f: (f / "vae" / "config.json").unlink(), "config.json"),
    "other class": (altered("transformer/config.json", _class_name="UNet2DModel"), "UNet2DModel"),
    "other text encoder": (altered("text_encoder/config.json", architectures=["T5ForMe"]), "T5ForMe"),
    "missing weights": (weights("transformer", TRANSFORMER, lambda t: t.pop("proj_out.weight")), "missing keys"),
    "further weights": (
        weights("transformer", TRANSFORMER, lambda t: t.update(more=torch.zeros(1))),
        "unexpected keys: more",
    ),
    "missing text weights": (
        weights("text_encoder", "model.safetensors", lambda t: t.pop("encoder.final_layer_norm.weight")),
        "missing keys",
    ),
    "not finite": (weights("vae", TRANSFORMER, lambda t: next(iter(t.values())).fill_(float("nan"))), "finite"),
    "a larger network": (altered("transformer/config.json", num_layers=9**7), "a larger network"),
    "wider text": (altered("text_encoder/config.json", d_ff=10**6), "a larger network"),
    "endless noise": (altered("scheduler/scheduler_config.json", num_train_timesteps=2**40), "num_train_timesteps"),
    "endless tokens": (altered("tokenizer/tokenizer_config.json", extra_ids=2**40), "numbers up to"),
    "other shapes": (altered("transformer/config.json", num_attention_heads=4), "files that can be read"),
    "other latents": (altered("transformer/config.json", out_channels=2), "transformer"),
    "other positions": (altered("transformer/config.json", sample_frames=17), "pos_embedding"),
    "other prediction": (altered("scheduler/scheduler_config.json", prediction_type="flow"), "flow"),
    "lost shard": (
        lambda f: (f / "vae" / f"{TRANSFORMER}.index.json").write_text('{"weight_map": {"a": "lost.safetensors"}}'),
        "lost.safetensors",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_directory_is_refused(copy: Path, fault: str) -> None:
    change, found = WRONG[fault]
    change(copy)
    with pytest.raises(CheckpointError, match=found) as refused:
        GoalGenerator(copy)
    assert str(copy) in str(refused.value)


def test_parts_of_different_pipelines_are_refused(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Without learned positions, no weight tells that the steps in time differ."""
    copy = Path(shutil.copytree(pipelines["1.5"], tmp_path / "pipeline"))
    change_json(copy / "transformer" / "config.json", temporal_compression_ratio=8)
    with pytest.raises(CheckpointError, match="temporal_compression_ratio 4; found 8"):
        GoalGenerator(copy)


@pytest.mark.parametrize("value", [[], -1, True, None, 5000])
def test_a_size_that_is_none_is_refused(pipelines: dict[str, Path], tmp_path: Path, value: object) -> None:
    copy = Path(shutil.copytree(pipelines["1.5"], tmp_path / "pipeline"))
    change_json(copy / "transformer" / "config.json", sample_height=value)
    if value is None:  # left out, the class's own size is taken
        assert GoalGenerator(copy).size == (60 * 4, 32)
    else:
        with pytest.raises(CheckpointError, match="transformer"):
            GoalGenerator(copy)


def test_without_the_extra_the_error_names_it(pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    with pytest.raises(MissingPackageError, match=r"no package peft.*\[genreward\]"):
        GoalGenerator(pipelines["1.0"])


def test_hashes_tell_what_decides_a_video(copy: Path) -> None:
    before = file_hashes(copy)
    assert {"model_index.json", "vae/config.json", f"transformer/{TRANSFORMER}", "tokenizer/spiece.model"} <= set(
        before
    )
    (copy / "README.md").write_text("read me")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "other.json").write_text("{}")
    assert file_hashes(copy) == before
    change_json(copy / "scheduler" / "scheduler_config.json", snr_shift_scale=1.0)
    changed = {name for name, value in file_hashes(copy).items() if before.get(name) != value}
    assert changed == {"scheduler/scheduler_config.json"}
    assert local.identity(before) != local.identity(file_hashes(copy))
