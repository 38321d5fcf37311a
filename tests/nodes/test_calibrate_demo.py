"""`dr calibrate demo`: the whole calibration through the ROS graph against the truth, and how it is interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.errors import OutputInUseError
from tests.conformance.conftest import STACK
from tests.nodes.conftest import SOURCES

PROGRAM = """
import sys
from pathlib import Path
from dr_sim.calibrate_demo import CalibrateDemo
sys.exit(CalibrateDemo(Path(sys.argv[1]), quick=True).run())
"""


def start(out: Path, log: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(filter(None, [*map(str, SOURCES), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "DR_ROS": STACK}
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(out)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def of_demo(process_id: int) -> list[str]:
    """Command lines of the processes that the demonstration has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if f"calibrate_demo_{process_id}" in words:
            found.append(words)
    return found


@pytest.mark.skipif("DR_LONG_TESTS" not in os.environ, reason="two minutes and more: DR_LONG_TESTS=1 runs it")
def test_every_step_holds_its_target(tmp_path: Path) -> None:
    """Two minutes on a quiet machine, most of it motion of the arm in real time."""
    out, log = tmp_path / "rig", tmp_path / "log"
    process = start(out, log)
    try:
        status = process.wait(900)
    finally:
        process.kill()
    assert status == 0, log.read_text()
    results = json.loads((out / "demo" / "result.json").read_text())
    assert len(results) == 7 and all(row["holds"] for row in results.values()), results
    printed = log.read_text()
    assert printed.count("holds") == 7 and "MISSES" not in printed
    assert printed.strip().splitlines()[-1] == str(out / "report.html") and (out / "report.html").is_file()
    assert of_demo(process.pid) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc")
def test_an_interrupt_ends_every_process(tmp_path: Path) -> None:
    out, log = tmp_path / "rig", tmp_path / "log"
    process = start(out, log)
    end_s = time.monotonic() + 90.0
    while len(of_demo(process.pid)) < 4:
        assert process.poll() is None and time.monotonic() < end_s, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert "KeyboardInterrupt: interrupted; all processes are ended" in log.read_text()
    assert of_demo(process.pid) == []
    assert not (out / "report.html").exists()


def test_a_directory_with_files_is_left_alone(tmp_path: Path) -> None:
    from dr_sim.calibrate_demo import CalibrateDemo

    (tmp_path / "notes").write_text("mine")
    with pytest.raises(OutputInUseError, match="another --out"):
        CalibrateDemo(tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
