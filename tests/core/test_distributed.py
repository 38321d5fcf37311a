"""Training in two processes under a real torchrun: the numbers of one process, one writer, and ends that are explained.

This file is also the script that torchrun starts, where a test needs more than the command `dr`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dr_core import cli, distributed
from dr_core.checkpoint import load_checkpoint
from dr_core.codec.train import FSQStage, VQGANStage
from dr_core.config import load_yaml, override
from dr_core.diffusion.train import VideoStage
from dr_core.distributed import ALONE, Team, join
from dr_core.errors import UserError
from dr_core.presets import PRESETS
from dr_core.rewards.train import train_reward
from dr_core.training import newest_checkpoint, read_metrics
from tests.core.moving_square import record_set
from tests.core.test_training import codec_stage
from tests.core.test_transitions import RECIPES, stage

ROOT = Path(__file__).parents[2]
CODEC_STEPS, STEPS = 20, 100
TOLERANCE = 1e-5
"""Largest relative difference of any logged number from that of one process. Sums in another order make 1e-7, more as
training goes on. It stays so small only while no latent of the codec is so near the middle of two codes that it is
rounded to the other one; from there on losses differ by some 1e-3."""
SETTINGS = [
    *("model.fsq.levels=[4,4,4]", "model.fsq.channels=8", "model.estimator.stride=50", "checkpoint_every_s=0.02"),
    *("model.in_place.width=16", "model.in_place.depth=1", f"codec_training.steps={CODEC_STEPS}"),
    *("codec_training.batch_size=4", f"video_training.steps={STEPS}", "video_training.batch_size=8"),
]


def arguments(episodes: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    expert, other = map(str, episodes)
    return [
        *("train-reward", expert, "--background", other, "--out", str(out), "--device", "cpu", "--preset", "tiny"),
        *("--set", *SETTINGS, *more),
    ]


class TorchRun:
    """A real torchrun of two processes on one thread each; nothing of it outlives its test."""

    def __init__(self, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self._popen = subprocess.Popen(
            [*launcher, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._ranks: dict[int, int] = {}

    def when(self, condition: Callable[[], bool]) -> None:
        """Wait for it, or for the end of torchrun."""
        limit = time.monotonic() + 120
        while not condition() and self._popen.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.002)

    def find(self) -> bool:
        """Find the process of each rank; whether both are there."""
        children = Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/children").read_text().split()
        for child in children:
            for variable in Path(f"/proc/{child}/environ").read_text().split("\0"):
                if variable.startswith("RANK="):
                    self._ranks[int(variable.removeprefix("RANK="))] = int(child)
        return len(self._ranks) == 2

    def signal(self, rank: int, number: int) -> None:
        os.kill(self._ranks[rank], number)

    def line(self, start: str) -> str:
        """The next line of stderr that starts so."""
        assert self._popen.stderr is not None
        return next((line for line in self._popen.stderr if line.startswith(start)), "")

    def end(self) -> tuple[int, str, list[str]]:
        """Exit status, stdout, and what `dr` itself says on stderr."""
        out, err = self._popen.communicate(timeout=120)
        return self._popen.returncode, out, [line for line in err.splitlines() if line.startswith("dr: ")] or [err]

    def __enter__(self) -> TorchRun:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._ranks.values():
            if Path(f"/proc/{process}").exists():
                os.kill(process, signal.SIGKILL)
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()


def dr(*command: str) -> TorchRun:
    return TorchRun("-m", "dr_core.cli", *command)


def script(*command: str) -> TorchRun:
    return TorchRun(__file__, *command)


# ---- what the script does in each process ----


Curves = list[list[dict[str, float]]]


def curves_of_all_recipes(team: Team) -> tuple[Curves, list[Any]]:
    """What is logged when each kind of stage trains some steps, and the stages."""
    torch.set_num_threads(1)
    stages: list[FSQStage | VQGANStage | VideoStage] = []
    for kind in ("fsq", "vqgan"):
        codec = codec_stage(kind)
        codec = type(codec)(codec.codec, codec.frames, codec.config, 0, codec.device, team)  # type: ignore[arg-type]
        if isinstance(codec, VQGANStage):
            # Adam's first steps are signs, also of gradients that are zero but for rounding: they tell nothing.
            codec.optimizer = torch.optim.SGD(codec.codec.parameters(), 0.02)  # type: ignore[assignment]
            adversary = codec.losses.discriminator.parameters()
            codec.discriminator_optimizer = torch.optim.SGD(adversary, 0.02)  # type: ignore[assignment]
        stages.append(codec)
    for recipe in RECIPES:
        alone = stage(**recipe)
        stages.append(VideoStage(alone.denoiser, alone.diffusion, alone.sampler, alone.config, 0, alone.device, team))
    curves = [[{k: float(v) for k, v in one.step(i).items()} for i in range(one.steps)] for one in stages]
    return curves, stages


def recipes_and_refusals(team: Team, expert: str, other: str, folder: Path) -> None:
    """Write curves and weights of every recipe, and what this rank is told about wrong uses."""
    curves, stages = curves_of_all_recipes(team)
    torch.save([one.tensors() for one in stages], folder / f"weights_{team.rank}.pt")

    def start(settings: dict[str, Any], out: Path = folder / "run") -> None:
        config = override(PRESETS["tiny"](), settings)
        train_reward(config, [Path(expert)], [Path(other)], out, resume=out.exists(), team=team)

    said = []
    for wrong in (
        lambda: start({"video_training": {"batch_size": 7}}),
        lambda: start({"seed": team.rank}),
        lambda: start(load_yaml(folder / "out_0" / "config.yaml"), folder / f"out_{team.rank}"),
        lambda: team.take_device("cuda:1"),
        lambda: team.take_device("cuda"),
    ):
        try:
            wrong()
            said.append("")
        except UserError as error:
            said.append(str(error))
    (folder / f"rank_{team.rank}.json").write_text(json.dumps([curves, said]))


def freeze(team: Team) -> None:
    """Rank 1 is stopped; rank 0 is busy with something that exchanges nothing."""
    distributed.LOST_S, distributed.GRACE_S = 3.0, 0.5
    if team.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(120)


def main(what: str, *more: str) -> int:
    with join() as team:
        if what == "recipes":
            recipes_and_refusals(team, more[0], more[1], Path(more[2]))
        else:
            freeze(team)
    return 0


# ---- the tests ----


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories of expert episodes and of others."""
    return record_set(tmp_path_factory.mktemp("episodes"), episodes=1, length=8)


@pytest.fixture(scope="module")
def whole(episodes: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert cli.main(arguments(episodes, out)) == 0
    torch.set_num_threads(threads)
    return out


def assert_close(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    assert len(rows) == len(expected)
    for row, want in zip(rows, expected, strict=True):
        assert row.keys() == want.keys() and row.get("stage") == want.get("stage")
        for name in row.keys() - {"stage"}:
            assert row[name] == pytest.approx(want[name], rel=TOLERANCE), name


@pytest.mark.usefixtures("one_thread")
def test_every_recipe_gives_the_numbers_of_one_process_and_wrong_uses_are_refused_by_all(
    episodes: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    # What two machines that share no file system may have in directories of one name.
    for out in (tmp_path / "out_0", tmp_path / "out_1"):
        shutil.copytree(whole, out)
        shutil.rmtree(out / "model")
    index = tmp_path / "out_1" / "tokens" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "sha256": "ab" * 32}))
    with script("recipes", *map(str, episodes), str(tmp_path)) as run:
        status, _, err = run.end()
    assert status == 0, err
    (curves, said), other = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert other == [curves, said], "all processes know the same"
    expected, stages = curves_of_all_recipes(ALONE)
    for rows, want in zip(curves, expected, strict=True):
        assert_close(rows, want)
    ours, theirs = (torch.load(tmp_path / f"weights_{rank}.pt", weights_only=True) for rank in (0, 1))
    for own, their, one in zip(ours, theirs, stages, strict=True):
        for name, value in one.tensors().items():
            assert torch.equal(own[name], their[name]), name
            # A bias before a norm has no gradient but rounding, which Adam makes as large as any.
            assert name.endswith("bias") or torch.allclose(own[name], value, rtol=1e-4, atol=2e-5), name

    batch, settings, data, one_gpu, cuda = said
    assert "video_training.batch_size" in batch and "batch_size=8" in batch
    assert "the settings" in settings and "on rank 1" in settings
    assert "OUT/tokens" in data and "abababababab… on rank 1" in data
    assert "LOCAL_RANK" in one_gpu
    if torch.cuda.device_count() < 2:
        assert "NCCL" in cuda and "--device cpu" in cuda
    assert not (tmp_path / "run").exists()
    assert not any("\n" in line for line in said)


def test_killed_and_stopped_in_two_processes_it_ends_in_one_with_the_same_numbers(
    episodes: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = arguments(episodes, out)

    def saved() -> list[str]:
        return sorted(path.name for path in out.glob("video/step_*"))

    with dr(*command) as run:
        run.when(run.find)
        run.when(lambda: saved() != [])
        run.signal(0, signal.SIGKILL)
        killed = time.monotonic()
        status, stdout, said = run.end()
    assert status != 0 and time.monotonic() - killed < 60
    assert len(said) == 1 and said[0].startswith("dr: rank 0 (process "), said
    assert "killed" in said[0] and "--resume" in said[0]
    assert stdout.count("4 episodes") == 1

    # The signal reaches rank 1 alone.
    before = saved()
    with dr(*command, "--resume") as run:
        run.when(run.find)
        run.when(lambda: saved() != before)
        run.signal(1, signal.SIGTERM)
        status, _, said = run.end()
    step = int(load_checkpoint(newest_checkpoint(out / "video")).manifest["step"])
    assert 0 < step < STEPS
    assert status != 0 and said == [f"dr: stopped after step {step} of video; continue with --resume"]
    assert len(read_metrics(out / "metrics.jsonl")) == CODEC_STEPS + step

    assert cli.main([*command, "--resume"]) == 0
    assert_close(read_metrics(out / "metrics.jsonl"), read_metrics(whole / "metrics.jsonl"))
    assert len(list(out.glob("tensorboard/*"))) == 3, "one writer each time"
    files = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if "events" not in p.name) for f in (out, whole)]
    assert files[0] == files[1]


def test_a_process_that_freezes_ends_the_others_even_when_they_exchange_nothing() -> None:
    with script("freeze") as run:
        run.when(run.find)
        line = run.line("dr: rank 1 (process ")
        assert "frozen" in line
        run.signal(1, signal.SIGKILL)
        assert run.end()[0] != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
