"""Fine-tuning of a tiny pipeline: the loss falls, the adapter changes the videos, and a stop changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft", reason="the extra genreward is not installed")

from dr_core import cli
from dr_core.data.episodes import find_episodes, read_episode
from dr_core.data.images import ImageRule
from dr_core.data.video import write_video
from dr_core.errors import CheckpointError, ConfigError, OutputInUseError, UserError
from dr_core.goals.finetune import (
    AdapterStage,
    Clip,
    GoalTuning,
    denoising_loss,
    finetune_goal,
    mean_loss,
    prepare_clip,
)
from dr_core.goals.generate import Generation, GoalGenerator, resized
from dr_core.training import read_metrics
from tests.core.moving_square import moving_square, record
from tests.core.tiny_networks import save_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = GoalTuning(
    steps=30, batch_size=2, learning_rate=1e-2, warmup_steps=3, rank=4, alpha=4.0, draws=4, checkpoint_every_s=1e-3
)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each published version, and one that predicts the noise."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "1.0": save_pipeline(root / "1.0"),
        "1.5": save_pipeline(root / "1.5", version="1.5"),
        "noise": save_pipeline(root / "noise", prediction="epsilon"),
    }


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of different lengths, one of them a video of 48 pixels at another rate."""
    root = tmp_path_factory.mktemp("episodes")
    for seed, length in ((0, 16), (1, 11)):
        record(root / f"push_{seed}", moving_square(seed, expert=True, length=length), task="push-block", seed=seed)
    write_video(root / "push_2.mp4", moving_square(2, expert=True, length=20)[:, 8:56, 8:56], 25, lossless=True)
    return root


@pytest.fixture(scope="module")
def whole(pipelines: dict[str, Path], episodes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a stop."""
    out = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    finetune_goal(pipelines["1.0"], [episodes], out, CONFIG, prompt="push the block")
    torch.set_num_threads(threads)
    return out


def losses(out: Path) -> list[dict[str, Any]]:
    return read_metrics(out / "metrics.jsonl")


def test_the_loss_falls_on_real_clips(whole: Path, pipelines: dict[str, Path], episodes: Path) -> None:
    rows = losses(whole)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert np.mean([row["loss"] for row in rows[-8:]]) < 0.8 * np.mean([row["loss"] for row in rows[:8]])
    report = json.loads((whole / "report.json").read_text())
    assert report["loss_after"] < 0.8 * report["loss_before"]
    assert report["validated_on"] == "the 3 training episodes" and report["prompts"] == ["push the block"]
    assert report["adapter_sha256"] == hashlib.sha256((whole / "lora.safetensors").read_bytes()).hexdigest()
    # The losses again, from the pipeline as it is loaded with and without the adapter's file.
    for lora, wanted in ((None, "loss_before"), (whole / "lora.safetensors", "loss_after")):
        maker = GoalGenerator(pipelines["1.0"], lora=lora)
        read = [read_episode(path, rule=ImageRule(32)).frames for path in find_episodes([episodes])]
        clips = [prepare_clip(maker, frames, "push the block", "", 0) for frames in read]
        assert mean_loss(maker, clips, CONFIG) == pytest.approx(report[wanted], rel=1e-4)


def test_the_adapter_changes_the_video_and_makes_it_more_like_the_episodes(
    whole: Path, pipelines: dict[str, Path]
) -> None:
    first, settings = moving_square(7, expert=True, length=1)[0], Generation(steps=4, guidance=1.0)
    plain = GoalGenerator(pipelines["1.0"]).generate(first, "push the block", settings)
    tuned_generator = GoalGenerator(pipelines["1.0"], lora=whole / "lora.safetensors")
    tuned = tuned_generator.generate(first, "push the block", settings)
    assert (tuned != plain).mean() > 0.5
    assert "lora" in tuned_generator.hashes
    # What the tiny VAE itself makes of an episode is the most that can be asked of the video.
    frames = moving_square(7, expert=True, length=16)
    clip = prepare_clip(tuned_generator, frames, "push the block", "", 0)
    pipeline = tuned_generator.pipeline
    with torch.no_grad():
        decoded = pipeline.decode_latents(clip.latents[None]).clamp(-1, 1)[0].permute(1, 2, 3, 0).numpy()
    target = np.stack([resized(frame, 64, 64) for frame in ((decoded + 1) * 127.5).astype(np.uint8)])
    distance = lambda video: float(np.square(video.astype(float) - target).mean())  # noqa: E731
    assert distance(tuned) < distance(plain)


def test_any_program_of_diffusers_reads_the_adapter(whole: Path, pipelines: dict[str, Path]) -> None:
    from diffusers import CogVideoXImageToVideoPipeline
    from peft import get_peft_model_state_dict

    theirs = CogVideoXImageToVideoPipeline.from_pretrained(str(pipelines["1.0"]), local_files_only=True)
    theirs.load_lora_weights(str(whole), weight_name="lora.safetensors", adapter_name="x", local_files_only=True)
    placed = get_peft_model_state_dict(theirs.transformer, adapter_name="x")
    stored = load_file(whole / "lora.safetensors")
    assert {f"transformer.{name}" for name in placed} == set(stored)
    for name, value in placed.items():
        torch.testing.assert_close(value, stored[f"transformer.{name}"])
    config = theirs.transformer.peft_config["x"]
    assert (config.r, config.lora_alpha) == (4, 4.0)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real SIGINT while the step runs."""
    plain = AdapterStage.step

    def interrupted(self: AdapterStage, index: int) -> dict[str, torch.Tensor]:
        if index + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, index)

    monkeypatch.setattr(AdapterStage, "step", interrupted)


def test_stopped_and_resumed_it_ends_the_same(
    whole: Path, pipelines: dict[str, Path], episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def start(*, resume: bool) -> None:
        finetune_goal(pipelines["1.0"], [episodes], out, CONFIG, prompt="push the block", resume=resume)

    with monkeypatch.context() as patch:
        stop_after(11, patch)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 11 of adapter"):
            start(resume=False)
    assert not (out / "lora.safetensors").exists()
    with pytest.raises(OutputInUseError, match="--resume"):
        start(resume=False)
    start(resume=True)
    assert losses(out) == losses(whole)
    ours, theirs = load_file(out / "lora.safetensors"), load_file(whole / "lora.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_goes_on_only_with_what_it_was_begun_with(
    whole: Path, pipelines: dict[str, Path], episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    begun = (out / "lora.safetensors").read_bytes()
    other = tmp_path / "episodes"
    record(other / "push_0", moving_square(9, expert=True), task="push-block")
    for pipeline, experts, config, prompt in (
        (pipelines["1.0"], episodes, replace(CONFIG, rank=2), "push the block"),
        (pipelines["1.0"], episodes, CONFIG, "push it"),
        (pipelines["1.0"], other, CONFIG, "push the block"),
        (pipelines["noise"], episodes, CONFIG, "push the block"),
    ):
        with pytest.raises(ConfigError, match="what this run was started with"):
            finetune_goal(pipeline, [experts], out, config, prompt=prompt, resume=True)
    finetune_goal(pipelines["1.0"], [episodes], out, CONFIG, prompt="push the block", resume=True)
    assert "nothing to do" in capsys.readouterr().out.replace("\n", " ")
    assert (out / "lora.safetensors").read_bytes() == begun


@pytest.mark.parametrize("version", ["1.0", "1.5", "noise"])
def test_the_loss_is_the_error_of_x_start_as_published(pipelines: dict[str, Path], version: str) -> None:
    """CogVideoX is trained on the x_start that its output means, weighted by 1 / (1 - ᾱ_t); in terms of its own
    prediction that is a plain mean square, for the noise after a further factor ᾱ_t."""
    maker = GoalGenerator(pipelines[version])
    clip = prepare_clip(maker, moving_square(1, expert=True), "push", "", 0)
    outputs = []
    forward = maker.pipeline.transformer.forward
    maker.pipeline.transformer.forward = lambda **given: outputs.append((given, forward(**given))) or outputs[-1][1]
    noise = torch.randn(1, *clip.latents.shape, generator=torch.Generator().manual_seed(0))
    for time in (0, 300, 900):
        loss = float(denoising_loss(maker, [clip], torch.tensor([time]), noise))
        given, (output,) = outputs[-1]
        alpha = float(maker.pipeline.scheduler.alphas_cumprod[time])
        x_t = alpha**0.5 * clip.latents + (1 - alpha) ** 0.5 * noise[0]
        torch.testing.assert_close(given["hidden_states"][0], torch.cat([x_t, clip.first], 1), atol=1e-5, rtol=1e-4)
        if version == "noise":
            x_start, weight = (x_t - (1 - alpha) ** 0.5 * output[0]) / alpha**0.5, alpha / (1 - alpha)
        else:
            x_start, weight = alpha**0.5 * x_t - (1 - alpha) ** 0.5 * output[0], 1 / (1 - alpha)
        published = float((weight * (x_start - clip.latents).square()).mean())
        assert loss == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("version", ["1.0", "1.5"])
def test_the_transformer_is_trained_on_what_the_pipeline_gives_it(pipelines: dict[str, Path], version: str) -> None:
    """Shapes, condition, text, positions and offset are those of generating from the clip's first frame."""
    maker = GoalGenerator(pipelines[version])
    frames = np.stack([resized(frame, 32, 32) for frame in moving_square(1, expert=True, length=9)])
    clip = prepare_clip(maker, frames, "push", "", 0)
    seen: list[dict[str, Any]] = []
    forward = maker.pipeline.transformer.forward

    def watched(**given: Any) -> Any:
        seen.append(given)
        return forward(**given)

    maker.pipeline.transformer.forward = watched
    maker.generate(frames[0], "push", Generation(steps=1, guidance=1.0))
    denoising_loss(maker, [clip], torch.tensor([999]), torch.randn(1, *clip.latents.shape))
    theirs, ours = seen
    assert theirs["hidden_states"].shape == ours["hidden_states"].shape
    channels = clip.latents.shape[1]
    # The condition is drawn from the VAE's distribution, whose spread is small beside its means.
    torch.testing.assert_close(
        ours["hidden_states"][0, :, channels:].abs().sum((1, 2, 3)).bool(),
        theirs["hidden_states"][0, :, channels:].abs().sum((1, 2, 3)).bool(),
    )
    torch.testing.assert_close(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])
    for mine, own in zip(ours["image_rotary_emb"], theirs["image_rotary_emb"], strict=True):
        torch.testing.assert_close(mine, own)
    assert (ours["ofs"] is None) == (theirs["ofs"] is None)
    assert ours["ofs"] is None or torch.equal(ours["ofs"], theirs["ofs"])


def test_bfloat16_and_recomputed_blocks(pipelines: dict[str, Path]) -> None:
    results = []
    for precision, recompute in (("float32", False), ("float32", True), ("bfloat16", False)):
        maker = GoalGenerator(pipelines["1.5"], precision=precision)
        clip = prepare_clip(maker, moving_square(1, expert=True), "push", "", 0)
        stage = AdapterStage(maker, [clip], replace(CONFIG, recompute=recompute))
        results.append([float(stage.step(index)["loss"]) for index in range(3)])
        assert all(value.dtype == torch.float32 for value in stage.tensors().values())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)
    np.testing.assert_allclose(results[2], results[0], rtol=0.05)


def test_the_base_weights_stay(pipelines: dict[str, Path]) -> None:
    maker = GoalGenerator(pipelines["1.0"])
    before = {name: value.clone() for name, value in maker.pipeline.transformer.state_dict().items()}
    clip = prepare_clip(maker, moving_square(1, expert=True), "push", "", 0)
    stage = AdapterStage(maker, [clip], CONFIG)
    start = {name: value.clone() for name, value in stage.tensors().items()}
    stage.step(0)
    after = maker.pipeline.transformer.state_dict()
    for name, value in before.items():
        kept = after.get(name)
        layer = name.removesuffix(".weight").removesuffix(".bias")
        kept = kept if kept is not None else after[name.replace(layer, f"{layer}.base_layer")]
        assert torch.equal(kept, value), name
    assert any(not torch.equal(value, start[name]) for name, value in stage.tensors().items())


# ---- adapters and input that are wrong ----


def test_wrong_adapters_are_refused(whole: Path, pipelines: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(whole / "lora.safetensors")
    good = next(iter(tensors))

    def refuse(file: Path, found: str) -> None:
        with pytest.raises(CheckpointError, match=found):
            GoalGenerator(pipelines["1.0"], lora=file)

    def written(name: str, content: dict[str, torch.Tensor]) -> Path:
        save_file(content, tmp_path / name)
        return tmp_path / name

    refuse(tmp_path / "none.safetensors", "nothing there")
    torch.save(tensors, tmp_path / "lora.bin")
    refuse(tmp_path / "lora.bin", "a pickle, which is never opened")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    refuse(tmp_path / "torn.safetensors", "files that can be read")
    refuse(written("none.safetensors", {}), "no tensor|files that can be read")
    refuse(written("plain.safetensors", {"weight": torch.zeros(2)}), "no place")
    elsewhere = {name.replace("attn1", "attn9"): value for name, value in tensors.items()}
    refuse(written("elsewhere.safetensors", elsewhere), "attn9|files that can be read")
    other = {f"unet.{name}": value for name, value in tensors.items()}
    refuse(written("other.safetensors", other), "no place")
    refuse(written("more.safetensors", {**tensors, "unet.lora_A.weight": torch.zeros(2, 2)}), "no place")
    refuse(written("wide.safetensors", {**tensors, good: torch.zeros(4, 99)}), "files that can be read|no place")
    refuse(written("nan.safetensors", {**tensors, good: torch.full_like(tensors[good], torch.nan)}), "finite")


def test_unusable_episodes(pipelines: dict[str, Path], episodes: Path, tmp_path: Path) -> None:
    short = record(tmp_path / "short", moving_square(0, expert=True, length=1))
    oblong = tmp_path / "oblong.mp4"
    write_video(oblong, moving_square(0, expert=True)[:, :40], 10, lossless=True)
    failed = record(tmp_path / "failed", moving_square(0, expert=False), expert=False)
    for experts, more, found in (
        (short, {}, "at least 2 frames"),
        (oblong, {}, "declare a crop"),
        (failed, {}, "done well"),
        (tmp_path / "nothing", {}, "nothing there"),
        (episodes, {"validation": [episodes / "push_0"]}, "validation episodes of their own"),
        (episodes, {"prompt": " "}, "found an empty one"),
    ):
        with pytest.raises(UserError, match=found):
            finetune_goal(pipelines["1.0"], [experts], tmp_path / "run", CONFIG, **more)
        assert not (tmp_path / "run").exists()


def test_the_command(
    pipelines: dict[str, Path], episodes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a held-out episode; the prompt is the task's name."""
    out = tmp_path / "run"
    status = cli.main([
        *("finetune-goal", str(episodes / "push_0"), "--generator", str(pipelines["1.5"]), "--out", str(out)),
        *("--validation", str(episodes / "push_1"), "--device", "cpu", "--set", "steps=12", "learning_rate=0.01"),
        *("rank=2", "alpha=2", "draws=4"),
    ])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0, printed.err
    report = json.loads((out / "report.json").read_text())
    assert report["prompts"] == ["push block"] and report["validated_on"] == "1 validation episodes"
    assert report["loss_after"] < report["loss_before"]
    assert "adapter:" in printed.out
    assert cli.main(["finetune-goal", str(episodes), "--generator", "none", "--out", str(tmp_path / "other")]) == 2
    assert "model_index.json" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_clips_are_as_long_as_the_pipeline_is_made_for(pipelines: dict[str, Path]) -> None:
    """Whatever the length of the episode: evenly spaced frames, the first and last one among them."""
    maker = GoalGenerator(pipelines["1.0"])
    frames = moving_square(3, expert=True, length=25)
    clips = [prepare_clip(maker, part, "push", "", 0) for part in (frames, frames[::3], frames[:2])]
    assert all(isinstance(clip, Clip) and clip.latents.shape == (3, 4, 8, 8) for clip in clips)
    torch.testing.assert_close(clips[0].latents, clips[1].latents)
    assert not torch.equal(clips[0].latents, clips[2].latents)
