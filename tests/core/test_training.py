"""The training loop: stopping, resuming, and what is left on disk after either."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dr_core.checkpoint import load_checkpoint, load_weights, save_checkpoint
from dr_core.codec.fsq import FSQCodec, FSQConfig
from dr_core.codec.losses import VQGANLossConfig
from dr_core.codec.train import CodecTraining, FSQStage, VQGANStage
from dr_core.codec.vqgan import VQGAN, VQGANConfig
from dr_core.errors import CheckpointError, OutputInUseError, UserError
from dr_core.files import run_directory
from dr_core.seeding import generator
from dr_core.training import ExponentialAverage, Metrics, newest_checkpoint, read_metrics, train
from tests.core.moving_square import moving_square

STEPS = 12


class Line:
    """Fits a line with Adam; ``at`` runs something inside a step, as a signal would come."""

    name, steps = "line", STEPS

    def __init__(self, at: Mapping[int, Callable[[], None]] | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.1)
        self.at = at or {}
        self.on_save: Callable[[], None] = lambda: None

    def step(self, index: int) -> dict[str, Tensor]:
        x = torch.randn(8, 3, generator=generator(0, "line", index))
        loss = (self.model(x).squeeze(1) - x.sum(1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.at.get(index, lambda: None)()
        self.optimizer.step()
        return {"loss": loss.detach(), "weight": self.model.weight.detach().sum()}

    def tensors(self) -> dict[str, Tensor]:
        self.on_save()
        return {f"line.{name}": value for name, value in self.model.state_dict().items()}

    def training_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], training: Mapping[str, Any], where: Path) -> None:
        load_weights(self.model, tensors, "line.", where)
        self.optimizer.load_state_dict(training["optimizer"])


def run(stage: Any, out: Path, **settings: Any) -> list[dict[str, Any]]:
    """Train; the curves so far, whether or not it is stopped."""
    out.mkdir(exist_ok=True)
    metrics = Metrics(out)
    try:
        train(stage, out, metrics, **settings)
    finally:
        metrics.close()
    return read_metrics(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Tensor]:
    """Curves and weights of the uninterrupted run."""
    stage = Line()
    return run(stage, tmp_path_factory.mktemp("whole")), stage.model.weight.detach()


def interrupt(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def steps_on_disk(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("log_every", [1, 10])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    number: int, log_every: int, tmp_path: Path, whole: tuple[list[dict[str, Any]], Tensor]
) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after step 5 of line; continue with --resume$"):
        run(Line({4: interrupt(number)}), tmp_path, log_every=log_every)
    assert signal.getsignal(number) is handler
    assert steps_on_disk(tmp_path / "line") == ["step_00000005"]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5

    resumed = Line()
    assert run(resumed, tmp_path, log_every=log_every) == whole[0]
    assert torch.equal(resumed.model.weight, whole[1])


def test_a_signal_during_a_checkpoint_waits_for_the_next_step(tmp_path: Path) -> None:
    stage = Line()
    stage.on_save = interrupt(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of line"):
        run(stage, tmp_path, checkpoint_every_s=0)
    assert steps_on_disk(tmp_path / "line") == ["step_00000002"]


def test_a_signal_during_the_last_checkpoint_is_not_lost(tmp_path: Path) -> None:
    stage = Line()
    stage.on_save = interrupt(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run(stage, tmp_path)
    assert steps_on_disk(tmp_path / "line") == [f"step_{STEPS:08d}"]


class Killed(BaseException):
    """Stands for the end of the process: nothing in the loop may catch it."""


def die() -> None:
    raise Killed


@pytest.mark.parametrize("checkpoint_every_s", [0.0, 30.0])
@pytest.mark.parametrize("step", [0, 1, 7, STEPS - 1])
def test_dying_anywhere_is_made_up_for(
    step: int, checkpoint_every_s: float, tmp_path: Path, whole: tuple[list[dict[str, Any]], Tensor]
) -> None:
    for _ in range(2):
        with pytest.raises(Killed):
            run(Line({step: die}), tmp_path, checkpoint_every_s=checkpoint_every_s, log_every=3)
    resumed = Line()
    assert run(resumed, tmp_path) == whole[0]
    assert torch.equal(resumed.model.weight, whole[1])
    assert steps_on_disk(tmp_path / "line") == [f"step_{STEPS:08d}"]


def test_a_finished_stage_is_found_finished(tmp_path: Path, whole: tuple[list[dict[str, Any]], Tensor]) -> None:
    run(Line(), tmp_path)
    again = Line({index: die for index in range(STEPS)})
    assert run(again, tmp_path) == whole[0]
    assert torch.equal(again.model.weight, whole[1])


def test_what_a_kill_leaves_of_a_checkpoint_is_passed_over_and_cleared(
    tmp_path: Path, whole: tuple[list[dict[str, Any]], Tensor]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Line({4: interrupt(signal.SIGINT)}), tmp_path)
    folder = tmp_path / "line"
    for name in (".step_00000008.writing-4711", "step_00000008", f"step_{STEPS:08d}"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(folder).name == "step_00000005"
    resumed = Line()
    assert run(resumed, tmp_path) == whole[0]
    assert torch.equal(resumed.model.weight, whole[1])
    assert steps_on_disk(folder) == [f"step_{STEPS:08d}"]


def test_a_changed_checkpoint_is_refused_not_skipped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Line({4: interrupt(signal.SIGINT)}), tmp_path)
    file = newest_checkpoint(tmp_path / "line") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated or changed"):
        run(Line(), tmp_path)


@pytest.mark.parametrize("lost", ["training", "optimizer", "shape", "step"])
def test_a_training_state_of_something_else_is_refused_in_one_line(lost: str, tmp_path: Path) -> None:
    line = Line()
    line.step(0)
    training: dict[str, Any] | None = line.training_state()
    if lost == "training":
        training = None
    elif lost == "optimizer":
        training = {"other": 1}
    elif lost == "shape":
        training = {"optimizer": torch.optim.Adam([nn.Parameter(torch.zeros(1))] * 1).state_dict()}
    manifest = {} if lost == "step" else {"step": 1}
    save_checkpoint(tmp_path / "line" / "step_00000001", line.tensors(), {}, manifest, training)
    with pytest.raises(CheckpointError, match="start the training anew") as caught:
        run(Line(), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_before_it_is_saved(value: float, tmp_path: Path) -> None:
    class Diverging(Line):
        def step(self, index: int) -> dict[str, Tensor]:
            values = super().step(index)
            return {**values, "loss": torch.tensor(value)} if index == 7 else values

    with pytest.raises(UserError, match=r"line step 8: expected a finite loss") as caught:
        run(Diverging(), tmp_path, checkpoint_every_s=0)
    assert "\n" not in str(caught.value) and "learning_rate" in str(caught.value)
    assert steps_on_disk(tmp_path / "line") == ["step_00000007"]


def test_a_stage_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        newest_checkpoint(tmp_path / "line")


# ---- curves ----


def test_a_torn_line_and_lines_past_the_checkpoint_are_forgotten_others_kept(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for stage, steps in (("codec", 3), ("video", 5)):
        for step in range(1, steps + 1):
            metrics.write(stage, step, {"loss": step / 10})
    metrics.close()
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as stream:
        stream.write('{"stage": "video", "st')
    assert len(read_metrics(file)) == 8
    metrics = Metrics(tmp_path)
    metrics.forget_after("video", 2)
    metrics.write("video", 3, {"loss": 7.0})
    metrics.close()
    rows = [(row["stage"], row["step"], row["loss"]) for row in read_metrics(file)]
    assert rows == [("codec", k, k / 10) for k in (1, 2, 3)] + [("video", 1, 0.1), ("video", 2, 0.2), ("video", 3, 7.0)]
    assert read_metrics(tmp_path / "none.jsonl") == []


# ---- the output directory ----


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with run_directory(out, resume=False):
        for resume, match in ((False, "--resume"), (True, "holds its lock")):
            with pytest.raises(OutputInUseError, match=match) as caught, run_directory(out, resume=resume):
                pass
            assert "\n" not in str(caught.value)
    with run_directory(out, resume=True):
        assert out.is_dir()


def test_a_directory_with_files_needs_resume_and_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OutputInUseError, match="add --resume"):
        run_directory(tmp_path, resume=False).__enter__()
    for resume in (False, True):
        with pytest.raises(OutputInUseError, match="found a file"):
            run_directory(tmp_path / "precious", resume=resume).__enter__()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious"]
    (tmp_path / "empty").mkdir()
    with run_directory(tmp_path / "empty", resume=False):
        pass


# ---- the codecs' stages ----


def codec_stage(kind: str) -> FSQStage | VQGANStage:
    torch.manual_seed(0)
    frames = moving_square(0, expert=True, length=6)
    training = CodecTraining(steps=4, batch_size=2, warmup_steps=1, vqgan_loss=VQGANLossConfig(adversarial_start=1))
    if kind == "fsq":
        return FSQStage(FSQCodec(FSQConfig(channels=8)), frames, training, 0, torch.device("cpu"))
    small = VQGANConfig(channels=(32, 32, 32, 32), latent_dim=8, num_codes=16)
    return VQGANStage(VQGAN(small), frames, training, 0, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["fsq", "vqgan"])
def test_a_codec_resumes_with_all_its_optimisers(kind: str, tmp_path: Path) -> None:
    uninterrupted = codec_stage(kind)
    curves = run(uninterrupted, tmp_path / "whole")

    resumed = codec_stage(kind)
    inner = resumed.step
    resumed.step = lambda index: die() if index == 2 else inner(index)  # type: ignore[assignment, method-assign]
    with pytest.raises(Killed):
        run(resumed, tmp_path / "run", checkpoint_every_s=0)
    again = codec_stage(kind)
    assert run(again, tmp_path / "run") == curves
    tensors = load_checkpoint(newest_checkpoint(tmp_path / "run" / "codec")).tensors
    for name, value in uninterrupted.tensors().items():
        assert torch.equal(tensors[name], value), name


# ---- averaged weights ----


def test_the_average_is_that_of_a_slow_loop_and_survives_a_restart() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 3)).astype(np.float32)
    module = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(values[0])[None])
    average = ExponentialAverage(module, decay=0.5, every=2)
    want = values[0].astype(np.float64)
    for step in range(1, 20):
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(values[step])[None])
        average.update(module, step)
        if step % 2 == 0:
            earlier = step // 2 - 1
            decay = min(0.5, earlier / (earlier + 10))
            want = decay * want + (1 - decay) * values[step]
    np.testing.assert_allclose(average.shadow["weight"].numpy()[0], want, rtol=1e-5)

    live = module.weight.detach().clone()
    restored = ExponentialAverage(nn.Linear(3, 1, bias=False), decay=0.5, every=2)
    restored.restore({"ema.weight": average.shadow["weight"]}, "ema.", module, Path("checkpoint"))
    assert torch.equal(restored.shadow["weight"], average.shadow["weight"])
    assert torch.equal(module.weight, live), "the live weights stay"
