"""Who may import whom, read from the source; and what importing dr_core must never load."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# package: (folder, what it may import of this repository)
PACKAGES = {
    "dr_core": ("dr_core", set()),
    "dr_calibration": ("calibration/dr_calibration", {"dr_core"}),
    "dr_sim": ("sim/dr_sim", {"dr_core", "dr_calibration"}),
    "dr_nodes": ("ros2_ws/src/dr_nodes/dr_nodes", {"dr_core", "dr_calibration", "dr_interfaces"}),
}
LOCAL = {*PACKAGES, "dr_interfaces", "dr_embedded"}
ROS = {
    "rclpy",
    "launch",
    "launch_ros",
    "sensor_msgs",
    "std_msgs",
    "geometry_msgs",
    "cv_bridge",
    "rosbag2_py",
    "tf2_ros",
}
SIMULATORS = {"mujoco", "gymnasium", "gymnasium_robotics", "metaworld"}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the absolute imports in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_imports_only_what_it_may(repository: Path, package: str) -> None:
    folder, allowed = PACKAGES[package]
    forbidden = LOCAL - allowed - {package}
    if package != "dr_nodes":
        forbidden |= ROS
    if package != "dr_sim":
        forbidden |= SIMULATORS
    wrong = [
        f"{path.relative_to(repository)} imports {name}"
        for path in sorted((repository / folder).rglob("*.py"))
        for name in imported(path)
        if name in forbidden
        if (path.name, name) != ("sim_robot.py", "dr_sim")  # the one node that simulates
    ]
    assert wrong == []


def test_launch_files_name_nodes_as_strings(repository: Path) -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in sorted((repository / "launch").glob("*.py"))
        for name in imported(path)
        if name in LOCAL
    ]
    assert wrong == []
    assert not (repository / "launch" / "__init__.py").exists(), "it would shadow the package launch of ROS 2"


def test_importing_all_of_dr_core_loads_neither_ros_nor_a_simulator(python) -> None:  # type: ignore[no-untyped-def]
    program = f"""
import importlib, pkgutil, sys
import dr_core
for module in pkgutil.walk_packages(dr_core.__path__, "dr_core."):
    importlib.import_module(module.name)
print("loaded:", *sorted({ROS | SIMULATORS!r} & set(sys.modules)))
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_folder_with_modules_is_a_package(repository: Path, package: str) -> None:
    """setuptools leaves out a folder without __init__.py, silently."""
    folders = {path.parent for path in (repository / PACKAGES[package][0]).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_only_the_standard_library_is_needed_to_read_the_errors(repository: Path) -> None:
    assert set(imported(repository / "dr_core" / "errors.py")) <= set(sys.stdlib_module_names)
