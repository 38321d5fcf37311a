"""The benchmark of the ROS graph measures what it says: real processes, seconds instead of minutes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.nodes.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
SECONDS = 1
IMAGES = 30 * SECONDS
TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ros_measure", BENCHMARKS / "ros_measure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ros_measure"] = module
    spec.loader.exec_module(module)
    return module


def bench(out: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Run it for seconds; its rows by name, the rest of its JSON, and what it printed."""
    command = [sys.executable, str(BENCHMARKS / "ros_graph.py"), "--seconds", str(SECONDS), "--out", str(out)]
    command += ["--recorder-seconds", str(SECONDS), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(out.read_text())
    return {row["name"]: row for row in content["rows"]}, content, result.stdout


def test_figures_are_there_and_agree(tmp_path: Path) -> None:
    rows, content, printed = bench(tmp_path / "r.json", "--only", "transport,loss")
    for qos in ("best effort, depth 1", "reliable, depth 10"):
        p50, p99, most = (rows[f"transport, {qos}: {which}"] for which in ("p50", "p99", "max"))
        assert IMAGES // 3 <= p50["n"] == p99["n"] == most["n"] <= IMAGES
        assert 0.05 < p50["value"] <= p99["value"] <= most["value"] < 1e4, "milliseconds"
        assert p50["met"] == (p50["value"] <= 3) and p99["met"] == (p99["value"] <= 15) and most["met"] is None
        lost = rows[f"two cameras, {qos}: lost"]
        assert lost["n"] == 2 * IMAGES and lost["value"] >= 0 and lost["met"] == (lost["value"] <= lost["target"])
    machine = content["machine"]
    assert machine["cores"] == os.cpu_count() and machine["stack"].startswith(("embedded", "real"))
    assert len(machine["load average before"].split()) == len(machine["load average after"].split()) == 3
    assert "transport, reliable, depth 10: p99" in printed and "targets met:" in printed


def test_images_that_never_come_are_counted(tmp_path: Path) -> None:
    rows, _, printed = bench(tmp_path / "r.json", "--only", "loss,recorder", "--leave-out", "10")
    left_out = 2 * IMAGES // 10
    missing, drops = rows["recorder: images not in the bag"], rows["recorder: drops it reports"]
    assert rows["two cameras, best effort, depth 1: lost"]["value"] >= 100 * left_out / (2 * IMAGES)
    for row in (rows["two cameras, reliable, depth 10: lost"], missing):
        assert row["n"] == 2 * IMAGES and left_out <= row["value"] < row["n"] and row["met"] is False
    assert drops["value"] >= left_out - 2, "the last one of each camera leaves no gap"
    assert "MISSED" in printed
    bag_bytes = (missing["n"] - missing["value"]) * 640 * 480 * 3
    assert bag_bytes < rows["recorder: written"]["value"] * 1e9 < 1.01 * bag_bytes + 1e6
    assert rows["recorder: processor"]["value"] > 0 and 20 < rows["recorder: peak memory, two cameras"]["value"] < 4000


def test_the_budget_counts_the_exposure_and_nothing_too_old(tmp_path: Path) -> None:
    rows, _, printed = bench(tmp_path / "r.json", "--only", "budget", "--exposure-ms", "60", "--seconds", "3")
    way = [rows[f"budget: camera stamp → command arrives: {which}"] for which in ("p50", "p99", "max")]
    assert way[0]["n"] == way[2]["n"] > 5
    assert 60 < way[0]["value"] <= way[1]["value"] <= way[2]["value"] and "60 ms exposure" in way[0]["note"]
    assert way[0]["met"] == (way[0]["value"] <= 80) and way[1]["met"] == (way[1]["value"] <= 150)
    assert rows["budget: oldest observation of a command"]["value"] > 60
    old = rows["budget: commands by too old ones"]
    assert old["n"] > 5 and old["value"] == 0 and old["met"]
    assert rows["budget: mean time between commands"]["n"] > 30
    assert rows["budget: camera stamp → reward: p50"]["value"] > 60
    assert "targets met:" in printed


@pytest.mark.parametrize(
    ("numbers", "lost", "repeated", "reordered"),
    [
        ([-1, -1, 0, 1, 2, 3], 0, 0, 0),
        ([0, 1, 3], 1, 0, 0),
        ([1, 2], 2, 0, 0),
        ([], 4, 0, 0),
        ([0, 2, 1, 3, 3], 0, 1, 1),
        ([3, 0, 1, 2], 0, 0, 3),
    ],
)
def test_loss(measure: ModuleType, numbers: list[int], lost: int, repeated: int, reordered: int) -> None:
    found = measure.loss(numbers, 4)
    assert (found.lost, found.repeated, found.reordered) == (lost, repeated, reordered)
    assert found.received + found.lost == found.published == 4


def test_an_image_nobody_published_is_an_error(measure: ModuleType) -> None:
    with pytest.raises(ValueError, match="image 4 arrived"):
        measure.loss([0, 4], 4)


def test_commands_are_paired_with_the_twist_behind_them(measure: ModuleType) -> None:
    ms = 10**6
    wanted = [measure.Wanted(100 * k * ms, (100 * k + 30) * ms, mark) for k, mark in enumerate((1e-6, 2e-6, 3e-6))]
    commands = [
        measure.Command(20 * ms, 21 * ms, 0.0),  # of before
        measure.Command(31 * ms, 29 * ms, 1e-6),  # arrives before the twist that it follows
        measure.Command(50 * ms, 51 * ms, 1e-6),  # repeated by the gate
        # the second twist is refused
        measure.Command(235 * ms, 236 * ms, 3e-6),
        measure.Command(735 * ms, 736 * ms, 2e-6),  # another one, with the mark of the second
    ]
    pairs = measure.pair(wanted[:1] + wanted[2:], commands)
    assert [(one.mark, command.arrived_ns // ms) for one, command in pairs] == [(1e-6, 29), (3e-6, 236)]
    later = measure.Command(2000 * ms, 2001 * ms, 2e-6)
    assert measure.pair([wanted[1]], [commands[0], later]) == []


def test_latencies(measure: ModuleType) -> None:
    rows = {row.name: row for row in measure.latency_rows("x", [k / 1000 for k in range(1, 101)], (60.0, 98.0), "")}
    assert rows["x: p50"].value == pytest.approx(50.5) and rows["x: p50"].met
    assert rows["x: p99"].value == pytest.approx(99.01) and not rows["x: p99"].met
    assert rows["x: max"].value == pytest.approx(100) and rows["x: max"].met is None
    (nothing,) = measure.latency_rows("x", [], (60.0, 98.0), "")
    assert nothing.n == 0 and not nothing.met
