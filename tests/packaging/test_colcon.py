"""The workspace as colcon builds it: what is found, what is installed, and that an installed node runs from there."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

REAL_ROS = bool(os.environ.get("ROS_DISTRO")) and find_spec("rclpy") is not None
TIMEOUT_S = 90.0
# Runs a file as `__main__` with the stand-in for rclpy, of which no installed node knows.
RUN_EMBEDDED = """
import runpy, sys
import dr_embedded
dr_embedded.activate()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def colcon(repository: Path) -> str:
    """The Python that has colcon."""
    own = repository / ".venv-colcon" / "bin" / "python"
    if REAL_ROS and find_spec("colcon_core") is not None:
        return sys.executable
    if not own.exists():
        pytest.skip("no colcon: make ros-build installs it into .venv-colcon")
    return str(own)


@pytest.fixture(scope="module")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if REAL_ROS or name != "PYTHONPATH"}
    kept.pop("PYTEST_ADDOPTS", None)
    defaults = repository / "ros2_ws" / "colcon_defaults.yaml"
    return {**kept, "COLCON_DEFAULTS_FILE": str(defaults), "COLCON_LOG_PATH": str(tmp_path_factory.mktemp("log"))}


@pytest.fixture(scope="module")
def install(
    repository: Path, colcon: str, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fresh install space."""
    folder = tmp_path_factory.mktemp("workspace")
    command = ["bash", str(repository / "scripts" / "colcon_build.sh")]
    command += ["--build-base", str(folder / "build"), "--install-base", str(folder / "install")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "install"


def ask(repository: Path, colcon: str, environment: dict[str, str], verb: str) -> list[str]:
    done = subprocess.run(
        [colcon, "-m", "colcon", verb], cwd=repository / "ros2_ws", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def sourced(install: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment after `source install/local_setup.bash`."""
    command = ["bash", "-c", f". '{install}/local_setup.bash' && env -0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def test_all_packages_are_found_with_their_build_types(
    repository: Path, colcon: str, environment: dict[str, str]
) -> None:
    """A manifest that catkin_pkg rejects turns an ament_python package into plain Python, silently."""
    found = {tuple(line.split("\t")) for line in ask(repository, colcon, environment, "list")}
    assert found == {
        ("dr_core", "..", "(ros.ament_python)"),
        ("dr_interfaces", "src/dr_interfaces", "(ros.ament_cmake)"),
        ("dr_nodes", "src/dr_nodes", "(ros.ament_python)"),
    }
    graph = ask(repository, colcon, environment, "graph")
    assert [line.split()[0] for line in graph][-1] == "dr_nodes", "built after what it depends on"
    assert {line.split()[0]: line.count("*") for line in graph} == {"dr_core": 1, "dr_interfaces": 1, "dr_nodes": 0}


def test_what_is_installed(repository: Path, install: Path, colcon: str) -> None:
    nodes = repository / "ros2_ws" / "src" / "dr_nodes"
    tree = ast.parse((nodes / "setup.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "NODES"
    )
    with_main = {path.stem for path in (nodes / "dr_nodes").glob("*.py") if "\ndef main(" in path.read_text("utf-8")}
    assert set(names) == with_main
    executables = {path.name: path for path in (install / "dr_nodes" / "lib" / "dr_nodes").iterdir()}
    assert set(executables) == set(names)
    for path in (*executables.values(), install / "dr_core" / "lib" / "dr_core" / "dr"):
        assert os.access(path, os.X_OK)
        assert path.read_text().splitlines()[0] == f"#!{colcon}", "of the Python that built it"
    for package in ("dr_core", "dr_nodes"):
        share = install / package / "share"
        assert (share / "ament_index" / "resource_index" / "packages" / package).is_file()
        assert (share / package / "package.xml").is_file()
    share = install / "dr_core" / "share" / "dr_core"
    wanted = [*(repository / "config").rglob("*.yaml"), *(repository / "launch").glob("*.launch.py")]
    assert [path for path in wanted if not (share / path.relative_to(repository)).is_file()] == []


def test_an_installed_node_runs_from_the_install_space(
    repository: Path, install: Path, colcon: str, environment: dict[str, str], tmp_path: Path
) -> None:
    variables = sourced(install, environment)
    where = "import dr_core, dr_nodes, dr_sim; print(dr_core.__file__, dr_nodes.__file__, dr_sim.__file__)"
    done = subprocess.run([colcon, "-c", where], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [name for name in done.stdout.split() if not name.startswith(str(install))] == []
    command = [str(install / "dr_nodes" / "lib" / "dr_nodes" / "recorder")]
    if not REAL_ROS:
        command = [colcon, "-c", RUN_EMBEDDED, *command]
        variables["PYTHONPATH"] += os.pathsep + str(repository / "ros2_ws" / "src" / "dr_embedded")
    command += ["--ros-args", "-r", "__ns:=/installed", "-p", f"directory:={tmp_path / 'episodes'}"]
    output = tmp_path / "output"
    with output.open("w") as stream:
        node = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=stream, stderr=subprocess.STDOUT)
    try:
        end_s = time.monotonic() + TIMEOUT_S
        while "nothing publishes /installed/camera/color/image_raw" not in output.read_text():
            assert node.poll() is None and time.monotonic() < end_s, output.read_text()
            time.sleep(0.05)
        node.send_signal(signal.SIGINT)
        assert node.wait(TIMEOUT_S) == 0, output.read_text()
    finally:
        node.kill()
        node.wait()
    assert (tmp_path / "episodes").is_dir() and "Traceback" not in output.read_text()
