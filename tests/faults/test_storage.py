"""Recordings that survive: killed recorders, full disks, cut power; the campaigns in small, and what they rest on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dr_core.data.bags import check_bag, repair_bag
from dr_core.data.episodes import EpisodeWriter, read_metadata
from dr_core.data.raw import recording_path
from dr_core.errors import BagError, OutputInUseError
from tests.faults.campaigns.recording import image, recorder
from tests.faults.campaigns.samples import ROOT, metadata

IN_CHILD = """
import json, sys
from importlib import import_module
name, options = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps(import_module(f"tests.faults.campaigns.{name}").run(**options)))
"""


def campaign(name: str, **options: Any) -> dict[str, Any]:
    """Run one in a process of its own: it forks."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "sim", "calibration"))
    done = subprocess.run(
        [sys.executable, "-c", IN_CHILD, name, json.dumps(options)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_killed_at_random_instants_closed_episodes_lose_nothing_and_the_open_one_is_recovered() -> None:
    figures = campaign("kill", count=10, seed=7, longest_s=0.4)
    assert figures["problems"] == [] and figures["closed_bytes_lost"] == figures["closed_changed"] == 0
    assert figures["runs"] == 10 and figures["open_pictures_recovered"] > 0, figures


def test_the_power_fails_and_what_was_synced_is_there() -> None:
    figures = campaign("power_cut", count=8, seed=7, longest_s=0.4)
    assert figures["problems"] == [] and figures["closed_bytes_lost"] == figures["closed_changed"] == 0
    assert figures["closed_episodes"] > 0 and figures["unsynced_taken_away"] > 0, figures


def test_a_full_disk_never_makes_a_success_and_the_next_episode_has_room() -> None:
    figures = campaign("full", count=8, seed=7, mount=False)
    assert figures["problems"] == [] and figures["file_size_limits"] == 8
    assert figures["pictures_recovered_of_60"]["max"] > 0, figures


def test_an_episode_has_its_name_only_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            first = arguments[0]
            name = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            done.append(f"{what} {Path(name).relative_to(tmp_path.parent)}")
            return real(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(os, "rename", noted("rename", os.rename))
    one = recorder(tmp_path)
    one.start("e", metadata())
    one.push("/image", 10**18, image(0, 8, 10**18))
    one.stop("success")
    here, building = tmp_path.name, f"{tmp_path.name}/.e.recording"
    assert done == [
        f"fsync {building}/e_0.mcap",
        f"fsync {building}/metadata.yaml",
        f"fsync {building}",
        f"rename {building}",
        f"fsync {here}",
    ]


@pytest.mark.parametrize("step", range(5))
def test_a_disk_that_fails_at_any_step_of_the_end_leaves_what_repair_reads(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(5))

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(steps) == step:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call

    path = tmp_path / "e"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(os.fsync))
        patched.setattr(os, "rename", failing(os.rename))
        one = recorder(tmp_path)
        one.start("e", metadata())
        one.push("/image", 10**18, image(0, 8, 10**18))
        with pytest.raises(BagError, match="No space left"):
            one.stop("success")
        assert one.status().failure and not one.recording
    if step == 4:  # it has its name; that it lasts is what could not be promised
        assert check_bag(path) == []
        return
    assert not path.exists()
    report = repair_bag(recording_path(path), tmp_path / "saved")
    assert report.messages["/image"] == 1 and check_bag(tmp_path / "saved") == []


def test_an_existing_name_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "e").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputInUseError, match="a free name"), EpisodeWriter(tmp_path / "e", metadata()):
        pytest.fail("it was opened")
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_repaired_is_never_a_success(tmp_path: Path) -> None:
    one = recorder(tmp_path)
    one.start("e", metadata())
    for number in range(20):
        one.push("/image", 10**18 + number * 10**8, image(number, 64, 10**18 + number * 10**8))
    one.stop("success")
    file = tmp_path / "e" / "e_0.mcap"
    file.write_bytes(file.read_bytes()[:150_000])
    report = repair_bag(tmp_path / "e", tmp_path / "saved")
    assert report.lost and read_metadata(tmp_path / "saved").outcome == "partial"
