"""`dr import-checkpoint`: published weights become a reward model, every entry accounted for and nothing executed."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dr_core import cli, parity, published
from dr_core.checkpoint import load_checkpoint
from dr_core.codec.vqgan import VQGAN, VQGANConfig
from dr_core.data.cache import open_store
from dr_core.data.video import write_video
from dr_core.diffusion.denoiser import CrossAttentionConfig, CrossAttentionDenoiser
from dr_core.presets import PRESETS, EstimatorConfig, RewardModelConfig, TrainRewardConfig
from dr_core.rewards import train as reward_training
from dr_core.rewards.model import RewardModel
from dr_core.training import read_metrics
from tests.core.moving_square import moving_square, record_set

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parents[1] / "data" / "golden_open.npz"
# sha256 of the lines "name shape" of a published video model's state dict, sorted.
PUBLISHED_NAMES = "887ce95482fd6148e1b74963bd667db2bab9125d0b346a741e2a384670231196"
PAPER = PRESETS["paper"]()
NARROW = replace(
    PAPER.model,
    vqgan=VQGANConfig(channels=(32, 32, 32, 32), latent_dim=8, num_codes=32),
    cross_attention=CrossAttentionConfig(width=16, depth=2, heads=2, condition_width=8),
    estimator=EstimatorConfig(name="paper", stride=50),
)
Entries = dict[str, Tensor]


def constants(num_codes: int, depth: int) -> Entries:
    """The constants of a published transformer, from the definition of the noise process."""
    steps = np.arange(100) / 99
    kept = np.append(0.99999 + steps * (0.000009 - 0.99999), 1)  # the last entry: no noise
    masked = np.append(0.000009 + steps * (0.99999 - 0.000009), 0)
    keep = kept[:100] / np.roll(kept, 1)[:100]
    unmasked = (1 - masked[:100]) / (1 - np.roll(masked, 1)[:100])
    tables = {
        "log_at": keep,
        "log_bt": (unmasked - keep) / num_codes,
        "log_ct": 1 - unmasked,
        "log_1_min_ct": unmasked,
        "log_cumprod_at": kept,
        "log_cumprod_bt": (1 - kept - masked) / num_codes,
        "log_cumprod_ct": masked,
        "log_1_min_cumprod_ct": 1 - masked,
    }
    with np.errstate(divide="ignore"):
        entries = {name: torch.from_numpy(np.log(p).astype(np.float32)) for name, p in tables.items()}
    for block in range(depth):
        entries[f"transformer.blocks.{block}.attn2.mask"] = torch.ones(64, 64).tril()[None, None]
    return {**entries, "Lt_history": torch.arange(100.0), "Lt_count": torch.arange(100.0) + 20}


def published_files(folder: Path, config: RewardModelConfig, salt: str, *, with_ema: bool = True) -> tuple[Path, Path]:
    """vqgan.pt and a video model, filled by rule; the live weights differ from the averaged ones."""
    codec = VQGAN(config.vqgan).state_dict()
    video = CrossAttentionDenoiser(config.cross_attention, config.vqgan.num_codes).to_published()
    shapes = {parity.CODEC_PREFIX + name: value for name, value in codec.items()}
    shapes |= {parity.TRANSFORMER_PREFIX + name: value for name, value in video.items()}
    model = parity.fill_weights(shapes, salt)
    fixed = constants(config.vqgan.num_codes, config.cross_attention.depth)
    model |= {parity.TRANSFORMER_PREFIX + name: value for name, value in fixed.items()}
    prefix = parity.TRANSFORMER_PREFIX
    content: dict[str, Any] = {"last_epoch": 399, "last_iter": 5, "model": dict(model), "optimizer": {"lr": 0.1}}
    if with_ema:
        content["ema"] = {name[len(prefix) :]: value for name, value in model.items() if name.startswith(prefix)}
        for name in (f"{prefix}{name}" for name in video):
            content["model"][name] = model[name] + 0.01
    start = len(parity.CODEC_PREFIX)
    plain = {name[start:]: value for name, value in model.items() if name.startswith(parity.CODEC_PREFIX)}
    torch.save(plain, folder / "vqgan.pt")
    torch.save(content, folder / "video.pth")
    return folder / "vqgan.pt", folder / "video.pth"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper preset with narrow networks, trained for a moment."""
    config = TrainRewardConfig(
        model=NARROW,
        codec_training=replace(PAPER.codec_training, steps=1, batch_size=2),
        video_training=replace(PAPER.video_training, steps=6, batch_size=4, warmup_steps=1, ema_every=2),
        checkpoint_every_s=0.0,
    )
    monkeypatch.setitem(PRESETS, "paper", lambda: config)


@pytest.fixture
def files(narrow: None, tmp_path: Path) -> tuple[Path, Path]:
    return published_files(tmp_path, NARROW, "narrow/")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_set(tmp_path_factory.mktemp("episodes"), episodes=1, length=6)[0]


def bring_in(files: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    return ["import-checkpoint", *map(str, files), "--out", str(out), "--device", "cpu", *more]


def one_line(command: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Exit status 2 and one line that holds all ``words``."""
    capsys.readouterr()
    assert cli.main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dr: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err
    return err


# ---- paper size ----


def test_published_weights_give_the_published_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = published_files(tmp_path, PAPER.model, "open/")
    names = torch.load(files[1], weights_only=True)["model"]
    listing = "".join(f"{name} {list(value.shape)}\n" for name, value in sorted(names.items()))
    assert len(names) == 719 and hashlib.sha256(listing.encode()).hexdigest() == PUBLISHED_NAMES
    assert cli.main(bring_in(files, tmp_path / "model")) == 0
    out = capsys.readouterr().out
    for words in (
        *("237 entries used, the same in both files", "456 entries used, averaged (ema); last epoch: 399"),
        *("8 entries checked", "16 masks", "'last_iter', 'optimizer'", "none, for no --experts"),
    ):
        assert words in out, out

    loaded = RewardModel.load(tmp_path / "model")
    assert loaded.config == PAPER.model and loaded.tasks == []
    assert loaded.networks.diffusion.Lt_count[3] == 23
    quiet = replace(PAPER.model, estimator=replace(PAPER.model.estimator, noise=False))
    model = RewardModel(quiet, loaded.networks, loaded.manifest)
    with np.load(GOLDEN) as golden:
        frames, tokens, rewards = golden["frames"], golden["tokens"], golden["reward_noise_off"]
    assert np.array_equal(model.tokenize(frames), tokens)
    [reward] = model.score_tokens([tokens.astype(np.int64)])
    np.testing.assert_allclose(reward.raw, rewards, rtol=1e-3)
    assert np.array_equal(reward.value, reward.raw), "not standardised"


# ---- narrow networks ----


@pytest.mark.parametrize("with_ema", [True, False])
def test_averaged_weights_are_preferred(with_ema: bool, narrow: None, tmp_path: Path) -> None:
    files = published_files(tmp_path, NARROW, "narrow/", with_ema=with_ema)
    assert cli.main(bring_in(files, tmp_path / "model")) == 0
    checkpoint = load_checkpoint(tmp_path / "model")
    content = torch.load(files[1], weights_only=True)
    name = "transformer.to_logits.1.weight"
    want = content["ema"][name] if with_ema else content["model"][parity.TRANSFORMER_PREFIX + name]
    assert torch.equal(checkpoint.tensors["video.to_logits.weight"], want)
    assert torch.equal(checkpoint.tensors["diffusion.Lt_history"], torch.arange(100.0))
    assert checkpoint.manifest["imported"]["weights"] == ("ema" if with_ema else "model")
    assert checkpoint.manifest["imported"]["codec_sha256"] == hashlib.sha256(files[0].read_bytes()).hexdigest()


def test_a_video_model_without_the_codec_is_used_with_the_codec_file(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(files[1], lambda content: [content["model"].pop(n) for n in list(content["model"]) if "codec" in n])
    assert cli.main(bring_in(files, tmp_path / "model")) == 0
    assert "the same in both files" not in capsys.readouterr().out


def test_experts_give_tasks_and_statistics(files: tuple[Path, Path], experts: Path, tmp_path: Path) -> None:
    assert cli.main(bring_in(files, tmp_path / "model", "--experts", str(experts))) == 0
    model = RewardModel.load(tmp_path / "model")
    assert model.tasks == ["push", "slide"] and model.manifest["training_seeds"] == {"push": [100], "slide": [110]}
    assert model.manifest["render"]["camera"] == "corner2" and len(model.manifest["dataset_sha256"]) == 64
    assert set(model.manifest["statistics"]) == set(model.estimators())
    [reward] = model.score_tokens([model.tokenize(moving_square(100, expert=True, length=6))], task="push")
    assert abs(reward.value.mean()) < 1e-4 and abs(reward.value.std() - 1) < 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "video.pth", "vqgan.pt"]
    # Bags of the same camera are scored.
    scored = ["score", str(experts), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "scores")]
    assert cli.main(scored) == 0


def test_without_experts_videos_are_scored_in_nats(files: tuple[Path, Path], tmp_path: Path) -> None:
    import pandas as pd

    assert cli.main(bring_in(files, tmp_path / "model")) == 0
    video = tmp_path / "clip.mp4"
    write_video(video, moving_square(6, expert=True, length=4), 10.0, lossless=True)
    assert cli.main(["score", str(video), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "scores")]) == 0
    table = pd.read_csv(tmp_path / "scores" / "rewards.csv")
    assert len(table) == 4 and table.valid.all() and np.allclose(table.value, table.raw)


# ---- training goes on from it ----


def test_training_goes_on_from_it_and_a_stopped_run_ends_the_same(
    files: tuple[Path, Path], experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(bring_in(files, tmp_path / "model")) == 0
    start = load_checkpoint(tmp_path / "model")

    def command(out: str, *more: str) -> list[str]:
        origin = ["--from", str(tmp_path / "model"), "--preset", "paper", "--device", "cpu"]
        return ["train-reward", str(experts), "--out", str(tmp_path / out), *origin, *more]

    assert cli.main(command("whole")) == 0
    whole = load_checkpoint(tmp_path / "whole" / "model")
    assert whole.manifest["started_from"] == start.model_hash
    assert not (tmp_path / "whole" / "codec").exists()
    for name, value in start.tensors.items():
        if name.startswith(("familiarity.", "progress.")):  # fitted to the experts, which the start did not have
            continue
        trained = name.startswith(("video.", "diffusion.")) and name != "video.condition_codes.weight"
        assert torch.equal(value, whole.tensors[name]) is not trained, name
        # Six steps of warm-up do not lead far from where they began.
        assert name.startswith("diffusion.") or torch.allclose(value, whole.tensors[name], atol=0.05), name
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [("video", step) for step in range(1, 7)]

    # Stopped once before the first step and once after the third, it ends with the same numbers.
    step = reward_training.VideoStage.step
    for stop in (0, 3):

        def stopping(stage: Any, index: int, stop: int = stop) -> dict[str, Tensor]:
            if index == stop:
                raise KeyboardInterrupt
            return step(stage, index)

        monkeypatch.setattr(reward_training.VideoStage, "step", stopping)
        assert cli.main(command("parts", *(["--resume"] if stop else []))) == 130
    monkeypatch.setattr(reward_training.VideoStage, "step", step)
    assert cli.main(command("parts", "--resume")) == 0
    parts = load_checkpoint(tmp_path / "parts" / "model")
    assert parts.model_hash == whole.model_hash
    assert read_metrics(tmp_path / "parts" / "metrics.jsonl") == rows
    assert open_store(tmp_path / "parts" / "tokens").tasks("expert") == ["push", "slide"]


def test_training_from_another_model_is_refused(
    files: tuple[Path, Path], experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(bring_in(files, tmp_path / "model")) == 0
    base = ["train-reward", str(experts), "--preset", "paper", "--device", "cpu", "--out", str(tmp_path / "run")]
    command = [*base, "--from", str(tmp_path / "model")]
    wrong = "model.frame_skip=2", "model.cross_attention.depth=1"
    one_line([*command, "--set", *wrong], capsys, "model.cross_attention", "model.frame_skip 2", "frame_skip 1")
    one_line([*base, "--from", str(tmp_path)], capsys, "no manifest.json")
    one_line([*base, "--from", str(files[1])], capsys, "a checkpoint directory")
    assert not (tmp_path / "run").exists()
    # The reward taken from the same networks may be another; a run keeps to the model it started from.
    quick = ["--set", "video_training.steps=1", "model.estimator.name=one_pass"]
    assert cli.main([*command, *quick]) == 0
    one_line([*base, *quick, "--resume"], capsys, "another model to start from")


# ---- what is refused ----


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


BIAS = "transformer.transformer.to_logits.1.bias"
CODEC_BIAS = "content_codec.model.quant_conv.bias"
MASK = "transformer.transformer.blocks.1.attn2.mask"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"].pop(BIAS), ["1 missing", BIAS]),
        (lambda c: c["model"].pop(CODEC_BIAS), ["1 missing", CODEC_BIAS]),
        (lambda c: c["model"].update({"loss.x\ny": torch.zeros(1)}), ["1 unknown", "loss.x\\ny"]),
        (lambda c: c["model"].update({BIAS: torch.zeros(7)}), [BIAS, "(7,) instead of (32,)"]),
        (lambda c: c["model"].update({BIAS: torch.zeros(32).double()}), [BIAS, "float64"]),
        (lambda c: c["model"].update({BIAS: torch.full([32], torch.nan)}), [BIAS, "not finite"]),
        (lambda c: c["model"].update({BIAS: 3}), [BIAS, "no plain tensor"]),
        (lambda c: c["model"].update({BIAS: torch.zeros(32).to_sparse()}), [BIAS, "no plain tensor"]),
        (lambda c: c["model"]["transformer.log_cumprod_ct"].mul_(1.01), ["log_cumprod_ct[0]", "another schedule"]),
        (lambda c: c["model"]["transformer.log_at"].fill_(torch.nan), ["log_at[0]", "nan"]),
        (lambda c: c["model"][CODEC_BIAS].add_(1e-6), ["1 of ", "quant_conv.bias", "published together"]),
        (lambda c: c["ema"].pop("transformer.to_logits.1.bias"), ["averaged", "1 missing", "to_logits.1.bias"]),
        (lambda c: c["ema"].update(log_bt=c["ema"]["log_bt"] + 0.1), ["ema: log_bt[0]"]),
        (lambda c: c.update(ema=[1]), ["ema: a state dict", "a list"]),
        (lambda c: c.update(last_epoch="x"), ["last_epoch"]),
        (lambda c: c.pop("model"), ["the entry model", "'last_epoch'"]),
        (lambda c: c.update(model={1: torch.zeros(1)}), ["model: a state dict"]),
    ],
)
def test_a_video_model_with_a_wrong_entry_is_refused_by_name(
    change: Callable[[dict[str, Any]], object],
    words: list[str],
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(files[1], change)
    one_line(bring_in(files, tmp_path / "model"), capsys, str(files[1]), *words)
    assert not (tmp_path / "model").exists()


def test_a_wrong_codec_is_refused_by_name(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = bring_in(files, tmp_path / "model")
    edit(files[0], lambda codec: codec.update({"discriminator.model.0.weight": torch.zeros(1)}))
    one_line(command, capsys, str(files[0]), "1 unknown", "discriminator.model.0.weight")
    edit(files[0], lambda codec: [codec.pop("discriminator.model.0.weight"), codec.pop("quant_conv.bias")])
    one_line(command, capsys, str(files[0]), "1 missing: quant_conv.bias")
    one_line(bring_in((files[1], files[0]), tmp_path / "model"), capsys, str(files[1]), "unknown: ", "'model'")


def test_constants_may_drift_as_averages_do(files: tuple[Path, Path], tmp_path: Path) -> None:
    def average(content: dict[str, Any]) -> None:
        for name, value in content["ema"].items():
            if name.startswith("log_"):
                now = value.clone()
                for _ in range(3000):
                    value.mul_(0.99).add_(now * (1 - 0.99))

    edit(files[1], average)
    assert cli.main(bring_in(files, tmp_path / "model")) == 0


def test_what_is_not_learned_may_be_absent(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def strip(content: dict[str, Any]) -> None:
        for part in ("model", "ema"):
            for name in list(content[part]):
                last = name.rsplit(".", 1)[-1]
                if last == "mask" or last.startswith(("log_", "Lt_")):
                    del content[part][name]

    assert cli.main(bring_in(files, tmp_path / "whole")) == 0
    edit(files[1], strip)
    assert cli.main(bring_in(files, tmp_path / "model")) == 0
    assert "noise schedule: 0 entries checked" in capsys.readouterr().out
    whole, model = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "model")
    for name, value in whole.tensors.items():
        assert torch.equal(value, model.tensors[name]) or name.startswith("diffusion."), name


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_in_a_file_is_executed(
    which: int, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sprung = tmp_path / "sprung"
    content = torch.load(files[which], weights_only=True)
    command = bring_in(files, tmp_path / "model")
    torch.save({**content, "x": Trap(sprung)}, files[which])
    with pytest.raises(FileExistsError):  # the trap works
        sprung.mkdir()
        torch.load(files[which], weights_only=False)
    sprung.rmdir()
    one_line(command, capsys, str(files[which]), "nothing in it was executed")
    torch.save({**content, "x": Trap(sprung)}, files[which], _use_new_zipfile_serialization=False)
    one_line(command, capsys, "nothing in it was executed")
    whole = files[which].read_bytes()
    for data in (pickle.dumps(Trap(sprung)), b"", b"text", whole[: len(whole) // 2]):
        files[which].write_bytes(data)
        one_line(command, capsys, "nothing in it was executed")
    files[which].unlink()
    one_line(command, capsys, "no such file")
    files[which].mkdir()
    one_line(command, capsys, "a directory")
    assert not sprung.exists() and not (tmp_path / "model").exists()


def test_an_existing_output_is_kept(
    files: tuple[Path, Path], experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "precious").write_text("x")
    for name in ("model", "precious"):
        one_line(bring_in(files, tmp_path / name), capsys, "another --out")
    one_line(bring_in(files, tmp_path / "new", "--experts", str(tmp_path / "none")), capsys, "none")
    assert (tmp_path / "precious").read_text() == "x" and list((tmp_path / "model").iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_only_networks_of_the_published_kind_take_published_weights(files: tuple[Path, Path]) -> None:
    with pytest.raises(TypeError, match="vqgan"):
        published.read_published(*files, PRESETS["default"]().model)
