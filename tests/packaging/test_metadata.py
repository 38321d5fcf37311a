"""The package as pip and colcon see it."""

from __future__ import annotations

import configparser
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

SOURCES = (
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "package.xml",
    "resource",
    "dr_core",
    "sim",
    "calibration",
    "launch",
)


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the sources without fetching anything."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, "config", "README.md", "LICENSE"):
        if (repository / name).is_dir():
            shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (repository / name).exists():
            shutil.copy(repository / name, copy / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("dr_core-*.whl")))


def read(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_the_wheel_holds_every_module_and_nothing_else(repository: Path, wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(repository / root).as_posix()
        for root, package in ((".", "dr_core"), ("sim", "dr_sim"), ("calibration", "dr_calibration"))
        for path in (repository / root / package).rglob("*.py")
    }
    inside = {name for name in wheel.namelist() if name.endswith(".py") and ".data/data/share/" not in name}
    assert inside == expected
    assert "dr_core/py.typed" in wheel.namelist()
    assert {name.split("/")[0] for name in inside} <= {"dr_core", "dr_sim", "dr_calibration"}


def test_the_wheel_brings_what_ros_looks_for(repository: Path, wheel: zipfile.ZipFile) -> None:
    data = {name.split(".data/data/")[1] for name in wheel.namelist() if ".data/data/" in name}
    assert "share/ament_index/resource_index/packages/dr_core" in data
    assert "share/dr_core/package.xml" in data
    for path in [*(repository / "config").rglob("*.yaml"), *(repository / "launch").glob("*.launch.py")]:
        assert f"share/dr_core/{path.relative_to(repository).as_posix()}" in data


def test_entry_points(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser()
    entries.read_string(read(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"dr": "dr_core.cli:main"}
    calibrate = ("board", "intrinsics", "hand-eye", "time-offset", "reference", "check", "report", "demo")
    assert set(entries["dr_core.commands"]) == {
        *("record-expert", "train-agent", "eval-agent", "sweep", "import-adroit-policy"),
        *(f"calibrate {step}" for step in calibrate),
    }
    for target in entries["dr_core.commands"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name).run), target


def test_package_xml_agrees_with_setup_py(repository: Path, wheel: zipfile.ZipFile) -> None:
    package = ElementTree.parse(repository / "package.xml").getroot()
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert package.tag == "package" and package.get("format") == "3"
    assert package.findtext("name") == metadata["Name"].replace("-", "_") == "dr_core"
    assert package.findtext("version") == metadata["Version"]
    assert package.findtext("description") == metadata["Summary"]
    assert package.findtext("license") == "Apache-2.0"
    assert package.findtext("export/build_type") == "ament_python"
    maintainer = package.find("maintainer")
    assert maintainer is not None and maintainer.get("email") == metadata["Maintainer-email"]
    # The pattern of catkin_pkg: with an address that it rejects colcon takes the package for plain Python.
    assert re.fullmatch(
        r"[-a-zA-Z0-9_%+]+(\.[-a-zA-Z0-9_%+]+)*@[-a-zA-Z0-9%]+(\.[-a-zA-Z0-9%]+)*\.[a-zA-Z]{2,}",
        maintainer.get("email", ""),
    )
    assert metadata["Requires-Python"] == ">=3.10"
    assert "test" in metadata.get_all("Provides-Extra", [])  # colcon runs pytest only with this extra


def test_the_root_does_not_depend_on_its_nodes(repository: Path) -> None:
    package = ElementTree.parse(repository / "package.xml").getroot()
    names = {element.text for element in package if element.tag.endswith("depend")}
    assert names.isdisjoint({"dr_nodes", "dr_interfaces"})


def test_the_workspace_finds_the_root_package(repository: Path) -> None:
    workspace = repository / "ros2_ws"
    defaults = yaml.safe_load((workspace / "colcon_defaults.yaml").read_text(encoding="utf-8"))
    for verb in ("build", "test", "list"):
        folders = [(workspace / path).resolve() for path in defaults[verb]["base-paths"]]
        assert folders == [workspace / "src", repository]
    assert (workspace / "src").is_dir()


@pytest.mark.skipif(shutil.which("git") is None, reason="git, which lists the files, is not installed")
def test_no_file_names_a_home_directory(repository: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    home = re.compile(rb"/(?:home|Users)/[A-Za-z0-9_.-]+|(?<![\w/.])/root\b|[A-Z]:\\Users\\")
    wrong = []
    for name in listed.stdout.decode().split("\0"):
        path = repository / name
        if name and path.is_file() and path != Path(__file__).resolve() and home.search(path.read_bytes()):
            wrong.append(name)
    assert wrong == []
