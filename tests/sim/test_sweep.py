"""`dr sweep`: restarts, failures, the table and the learning curves, here and on a Ray cluster of two nodes."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dr_core.data.video import write_video
from dr_core.robot.evaluation import wilson
from dr_core.training import read_metrics
from dr_sim.curves import (
    Evaluation,
    curves_csv,
    curves_figure,
    learning_curves,
    read_evaluations,
    success_interval,
    table,
)
from dr_sim.ray_jobs import pack, unpack

TASK = "door-close"


def words(out: Path, *more: str, reward: tuple[str, ...] = ("sparse",), seeds: int = 1) -> list[str]:
    command = [sys.executable, "-m", "dr_core.cli", "sweep", "--task", TASK, "--seeds", str(seeds), "--quick"]
    return [*command, "--out", str(out), "--reward", *reward, *more]


def sweep(command: list[str], wait_s: float = 400.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=wait_s)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any], wait_s: float = 300.0) -> None:
    until = time.monotonic() + wait_s
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)


def trainings(out: Path) -> list[str]:
    """Command lines of the running trainings whose directory is below ``out``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "train-agent" in line and str(out) in line:
            found.append(line)
    return found


# ---- the mathematics ----


def test_the_interval_of_one_seed_is_that_of_its_episodes_and_of_more_that_of_the_seeds() -> None:
    assert success_interval([0.7], [10]) == (0.7, *wilson(7, 10))
    # Two seeds: Student's t has one degree of freedom, whose quantile is tan(pi (p - 1/2)).
    mean, low, high = success_interval([0.50, 0.52], [50, 50])
    half = math.tan(0.475 * math.pi) * 0.02 / math.sqrt(2) / math.sqrt(2)
    assert (mean, low, high) == pytest.approx((0.51, 0.51 - half, 0.51 + half))
    rates = [0.2, 0.3, 0.4, 0.25, 0.35]
    reference = stats.ttest_1samp(rates, 0.0).confidence_interval(0.95)
    assert success_interval(rates, [20] * 5)[1:] == pytest.approx((reference.low, reference.high))
    assert success_interval([0.0, 1.0], [10, 10]) == (0.5, 0.0, 1.0)


def curve(reward: str, seed: int, *points: tuple[int, float], trained_s: float | None = None) -> list[Evaluation]:
    return [
        Evaluation(TASK, reward, seed, frames, rate, 10, trained_s and trained_s * frames) for frames, rate in points
    ]


def test_a_curve_has_the_points_that_all_its_seeds_have_reached(tmp_path: Path) -> None:
    evaluations = [
        *curve("sparse", 0, (100, 0.0), (200, 0.4), (300, 1.0), trained_s=0.5),
        *curve("sparse", 1, (100, 0.0), (200, 0.6), trained_s=1.5),
        *curve("rnd", 0, (100, 0.1)),
    ]
    curves = learning_curves(evaluations)
    assert [(p.frames, p.trained_s, p.success, p.seeds, p.episodes) for p in curves[TASK, "sparse"]] == [
        (100, 100.0, 0.0, 2, 20),
        (200, 200.0, 0.5, 2, 20),
    ]
    assert curves[TASK, "rnd"][0].trained_s is None
    text = table(curves, [TASK, "reach"], ["sparse", "rnd"])
    assert "| door-close | 50% [0, 100] (2 seeds, 20 episodes, 200 frames) | 10% [2, 40] (1 seed, 10 episodes" in text
    assert "| reach | not measured | not measured |" in text
    rows = list(csv.DictReader(curves_csv(evaluations).splitlines()))
    assert rows[2] == {
        **{"task": TASK, "reward": "sparse", "seed": "0", "frames": "300", "success": "1", "episodes": "10"},
        "trained_s": "150.0",
    }
    assert rows[5]["trained_s"] == ""
    with_times, without = (curves_figure(part, [TASK]) for part in (evaluations, evaluations[5:]))
    heights = [int.from_bytes(image[20:24], "big") for image in (with_times, without)]
    assert heights[0] > 1.5 * heights[1], "a second row of panels, against minutes"


def test_a_part_that_was_trained_twice_counts_once(tmp_path: Path) -> None:
    lines = [(100, 0.1), (200, 0.2), (200, 0.3)]
    text = "".join(json.dumps({"frames": f, "success": s, "n": 10, "trained_s": f / 10}) + "\n" for f, s in lines)
    (tmp_path / "evaluations.jsonl").write_text(text + '{"frames": 300, "succ')
    assert read_evaluations(tmp_path, TASK, "rnd", 3) == [
        Evaluation(TASK, "rnd", 3, 100, 0.1, 10, 10.0),
        Evaluation(TASK, "rnd", 3, 200, 0.3, 10, 20.0),
    ]


# ---- on this machine ----


def test_what_failed_is_told_and_what_was_cut_short_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    command = words(out, "--envs", "1", "--jobs", "2", reward=("amp", "sparse"))
    done = sweep(command)
    assert (
        done.returncode == 1 and f"{TASK} | not measured | 0% [0, 66] (1 seed, 2 episodes, 800 frames)" in done.stdout
    )
    log = out / TASK / "amp" / "seed_0.log"
    assert f"{TASK}, amp, seed 0: failed with exit status 2; the end of {log}:\n    dr: reward amp" in done.stderr

    run = out / TASK / "sparse" / "seed_0"
    before = read_metrics(run / "metrics.jsonl")
    shutil.rmtree(run / "agent")
    command = words(out, "--envs", "1")
    assert sweep(command).returncode == 0
    assert read_metrics(run / "metrics.jsonl") == before, "it went on from its last step"
    finished = sweep(command)
    assert finished.stdout == (out / "table.md").read_text(), "nothing is trained twice"
    assert len((out / "curves.csv").read_text().splitlines()) == 2
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    other = sweep([*command, "--set", "agent.batch_size=8"])
    assert other.returncode == 2 and "sweep.yaml" in other.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_or_killed_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "sweep"
    command = words(out, "--envs", "1")
    command.remove("--quick")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any("import ctypes" not in line for line in trainings(out)), process)  # past its first lines
    if number == signal.SIGINT:
        second = sweep(command)
        assert second.returncode == 2 and "no other run writes to" in second.stderr
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    if number == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on" in said
        assert not trainings(out)
    until = time.monotonic() + 300
    while trainings(out):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("flag", ["--model", "--goal"])
def test_an_input_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path, flag: str) -> None:
    done = sweep(words(tmp_path / "sweep", flag, str(tmp_path / "no_input")))
    assert done.returncode == 2 and f"{flag}: expected a path" in done.stderr and not (tmp_path / "sweep").exists()


# ---- on a Ray cluster ----

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'"
)


def test_files_travel_whole(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "part").mkdir(parents=True)
    for name in ("manifest.json", "part/a.bin", "z.bin"):
        (model / name).write_bytes(name.encode())
    unpack(pack(model), tmp_path / "there")
    unpack(pack(model / "z.bin"), tmp_path / "there")
    names = sorted(p.relative_to(tmp_path / "there").as_posix() for p in (tmp_path / "there").rglob("*") if p.is_file())
    assert names == ["model/manifest.json", "model/part/a.bin", "model/z.bin", "z.bin"]
    assert (tmp_path / "there" / "model" / "part" / "a.bin").read_bytes() == b"part/a.bin"


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    done = sweep(words(tmp_path / "sweep", "--ray", "auto"))
    assert done.returncode == 2 and "pip install -e '.[ray]'" in done.stderr


@needs_ray
def test_an_address_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        done = sweep(words(tmp_path / "sweep", "--ray", f"127.0.0.1:{taken.getsockname()[1]}"), wait_s=180.0)
    assert done.returncode == 2 and "expected a running Ray cluster" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Address of a Ray cluster of two nodes with one core each, and a home directory of its own."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for home in (tmp_path / "home_0", tmp_path / "home_1"):
            home.mkdir()
            # Ray kills trainings when other programs of the machine take the memory.
            variables = {**os.environ, "HOME": str(home), "RAY_memory_monitor_refresh_ms": "0"}
            nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False, env_vars=variables)
        yield nodes.address
    finally:
        nodes.shutdown()


@needs_ray
def test_a_sweep_on_two_nodes_is_stopped_goes_on_and_comes_back(tmp_path: Path, cluster: str) -> None:
    clip = tmp_path / "expert.mp4"
    write_video(clip, np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8), 20.0, lossless=False)
    out = tmp_path / "sweep"
    command = words(out, "--ray", cluster, "--ray-cpus", "1", "--experts", str(clip), reward=("amp", "sparse"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    nodes: dict[str, str] = {}
    while len(nodes) < 2:
        line = process.stdout.readline()
        assert line
        if ": on node " in line:
            job, _, node = line.partition(": on node ")
            nodes[job] = node
    assert len(set(nodes.values())) == 2, nodes
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert not trainings(tmp_path)

    done = sweep(command)
    assert done.returncode == 0, done.stderr
    back = dict(line.split(": on node ") for line in done.stdout.splitlines(True) if ": on node " in line)
    assert back.items() <= nodes.items(), "each where a part of it is"
    for reward in ("amp", "sparse"):
        run = out / TASK / reward / "seed_0"
        assert [line["frames"] for line in read_metrics(run / "metrics.jsonl")] == [200.0, 400.0, 600.0, 800.0]
        assert (run / "agent" / "model.safetensors").is_file() and list((run / "videos").glob("*.mp4"))
        assert "agent:" in Path(f"{run}.log").read_text()
    assert (out / "table.md").read_text().count("(1 seed, 2 episodes, 800 frames)") == 2
    assert not list(tmp_path.glob("home_*/.cache/dr_sweep/*")), "replays and checkpoints are gone"

    too_large = sweep(words(tmp_path / "large", "--ray", cluster, "--ray-cpus", "2"))
    assert too_large.returncode == 2 and "lower --ray-cpus" in too_large.stderr
