"""`dr doctor`: what works is found to work, and each fault comes with what to do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from dr_core import doctor
from dr_core.doctor import GIB, Check

NO_EGL = {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent"}


def test_report_as_json_and_as_table(python, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = python("-m", "dr_core.cli", "doctor", "--json", "--directory", str(tmp_path))
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"Rendering", "ROS 2", "Disk space", "Disk speed", "Memory"} < set(checks)
    assert report["ok"] == (done.returncode == 0)
    assert report["ok"] == all(check["status"] != "fail" for check in checks.values())
    assert all(check["next_step"] for check in checks.values() if check["status"] != "ok")
    for needed in ("Python", "PyTorch", "NumPy + OpenCV", "Video", "CPU"):
        assert checks[needed]["status"] == "ok", checks[needed]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_shown_and_exits_1(tmp_path: Path, python) -> None:  # type: ignore[no-untyped-def]
    done = python("-m", "dr_core.cli", "doctor", "--directory", str(tmp_path / "missing"))
    assert done.returncode == 1
    assert "give a directory" in done.stdout


@pytest.mark.parametrize(
    ("numpy", "opencv", "distro", "status"),
    [
        ("2.4.6", "5.0.0", "", "ok"),
        ("1.26.4", "4.10.0", "humble", "ok"),
        ("1.26.4", "5.0.0", "", "fail"),
        ("2.0.0", "4.10.0", "humble", "warn"),
        ("2.0.0", "4.10.0", "jazzy", "ok"),
    ],
)
def test_numpy_and_opencv_have_to_fit(numpy: str, opencv: str, distro: str, status: str) -> None:
    check = doctor.judge_numpy_opencv(numpy, opencv, distro)
    assert check.status == status
    assert bool(check.next_step) == (status != "ok")


@pytest.mark.parametrize(
    ("free", "status"), [(GIB - 1, "fail"), (GIB, "warn"), (10 * GIB - 1, "warn"), (10 * GIB, "ok")]
)
def test_free_disk(free: int, status: str) -> None:
    assert doctor.judge_disk_free(free).status == status


@pytest.mark.parametrize(("free", "status"), [(GIB - 1, "fail"), (GIB, "warn"), (4 * GIB, "ok")])
def test_free_memory(free: int, status: str) -> None:
    assert doctor.judge_memory(8 * GIB, free).status == status


def test_disk_speed_leaves_nothing_behind(tmp_path: Path) -> None:
    check = doctor.check_disk_speed(tmp_path, size_bytes=2**21)
    assert check.status in ("ok", "warn") and "MB/s" in check.found
    assert list(tmp_path.iterdir()) == []
    assert doctor.check_disk_speed(tmp_path / "missing").status == "fail"


def test_a_sourced_ros_without_rclpy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.check_ros({}).found == "not sourced"
    check = doctor.check_ros({"ROS_DISTRO": "jazzy"})
    assert check.status == "warn" and "rclpy" in check.found


def test_rendering_without_mujoco_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    check = doctor.check_rendering()
    assert check.status == "warn" and ".[sim]" in check.next_step


def need_mujoco() -> None:
    """Skip without MuJoCo, but do not import it: it would bind its back-end before the simulator chooses one."""
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("mujoco is not installed")


def works(backend: str) -> Check:
    need_mujoco()
    check = doctor.check_rendering([backend])
    if check.status != "ok":
        pytest.skip(f"{backend} does not render here: {check.found}")
    return check


def test_a_back_end_that_works_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert works("egl").found == "egl renders"


def test_without_any_back_end_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    need_mujoco()
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    for name, value in NO_EGL.items():
        monkeypatch.setenv(name, value)
    check = doctor.check_rendering(["egl"])
    assert check.status == "fail"
    assert "EGL" in check.found and "libegl1" in check.next_step and "libosmesa6" in check.next_step


def test_another_back_end_is_proposed_when_the_chosen_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    works("osmesa")
    for name, value in {**NO_EGL, "MUJOCO_GL": "egl"}.items():
        monkeypatch.setenv(name, value)
    check = doctor.check_rendering()
    assert check.status == "warn" and check.next_step == "export MUJOCO_GL=osmesa"
