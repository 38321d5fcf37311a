"""The command `dr launch`: the launch files of this package, with `ros2 launch` or without a ROS 2."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from dr_core.errors import UserError

SUFFIX = ".launch.py"
PACKAGE = Path(__file__).resolve().parent


class LaunchError(UserError):
    """There is no such launch file or argument, or nothing to run it with."""


@dataclass(frozen=True)
class Launch:
    """Start the ROS 2 nodes of a launch file, with ROS 2 or without.

    sim_demo: the simulated arm, an agent that drives it, and if asked for the live reward and a recorder.

    record: a camera, teleoperation, the arm behind its safety gate, and the recorder.

    reward: a camera and its live reward.

    evaluate: episodes of one agent, or of two in turn, with a report.

    calibrate: a camera, teleoperation, and one step of its calibration, or a recording for it.

    Arguments follow the name as name:=value, as --name value or, for those that are true or false, as --name alone.
    For example: dr launch evaluate --sim --episodes 5 --out runs/evaluation

    A ROS 2 that is sourced is used; without one the stand-in of this repository is, on this machine only.
    DR_ROS=real or DR_ROS=embedded insists on one of them.

    Attributes:
        name: which launch file.
        arguments: of the launch file.
        show_args: explain the arguments of the launch file instead of starting it.
    """

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
    arguments: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="[name:=value ...]")] = ()
    show_args: bool = False

    @staticmethod
    def rewrite(words: Sequence[str]) -> list[str]:
        """The words of the command line with all `--name value` as `name:=value`, which tyro lets pass."""
        rewritten, rest = [], list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or word in ("--help", "--show-args"):
                rewritten.append(word)
                continue
            name, separator, value = word[2:].partition("=")
            if not separator:
                has_value = bool(rest) and not rest[0].startswith("--") and ":=" not in rest[0]
                value = rest.pop(0) if has_value else "true"
            rewritten.append(f"{name.replace('-', '_')}:={value}")
        return rewritten

    def run(self) -> int:
        path = launch_file(self.name)
        check_arguments(self.arguments, path)
        words = [*self.arguments, *(["--show-args"] if self.show_args else [])]
        command, environment = command_line(path, words, os.environ)
        sys.stdout.flush()
        os.execvpe(command[0], command, environment)


def launch_folder() -> Path:
    """Of the checkout that dr_core runs from, else where it is installed.

    Raises:
        LaunchError: neither is there.
    """
    folders = [PACKAGE.parent / "launch", *(parent / "share" / "dr_core" / "launch" for parent in PACKAGE.parents)]
    for folder in folders:
        if any(folder.glob(f"*{SUFFIX}")):
            return folder
    raise LaunchError(
        "dr launch",
        expected=f"launch files in {folders[0]}",
        found="none",
        next_step="install dr_core with pip install -e . in its checkout",
    )


def launch_file(name: str) -> Path:
    """The launch file of a name.

    Raises:
        LaunchError: there is none.
    """
    folder = launch_folder()
    path = folder / f"{name}{SUFFIX}"
    names = sorted(one.name.removesuffix(SUFFIX) for one in folder.glob(f"*{SUFFIX}"))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise LaunchError(
            f"dr launch {name}",
            expected=f"one of {', '.join(names)}",
            found="no launch file of this name",
            next_step=f"did you mean {near!r}?",
        )
    return path


def declared(path: Path) -> list[str]:
    """Names of the arguments that a launch file declares, read from its source, as nothing of ROS is imported here."""
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    return [
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "DeclareLaunchArgument"
        if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    ]


def check_arguments(words: Sequence[str], path: Path) -> None:
    """ROS 2 itself ignores names that are not declared.

    Raises:
        LaunchError: not `name:=value`, or a name that the launch file does not declare.
    """
    known = declared(path)
    for word in words:
        name, separator, value = word.partition(":=")
        if not (separator and value):
            raise LaunchError(
                f"argument {word!r}",
                expected="name:=value",
                found="no value" if separator else "no :=",
                next_step="correct it, or leave it out to get the default",
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise LaunchError(
                f"argument {name!r}",
                expected=f"one of {', '.join(known)}",
                found="no argument of this name",
                next_step=f"did you mean {near!r}? --show-args explains them",
            )


def command_line(path: Path, words: Sequence[str], variables: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What runs a launch file on this machine, and its environment.

    Raises:
        LaunchError: nothing does.
    """
    ros2, environment = _stack(variables)
    if ros2:
        return [ros2, "launch", "dr_core", path.name, *words], environment
    return [sys.executable, "-m", "dr_embedded.launch", str(path), *words], environment


def node_command_line(
    name: str, words: Sequence[str], variables: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """What runs one node of dr_nodes on this machine, and its environment; `words` begin with --ros-args.

    Raises:
        LaunchError: nothing does.
    """
    ros2, environment = _stack(variables)
    if ros2:
        return [ros2, "run", "dr_nodes", name, *words], environment
    return [sys.executable, "-m", "dr_embedded.run", f"dr_nodes.{name}:main", *words], environment


def _stack(variables: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The program ros2, or nothing where the stand-in is used, and the environment."""
    wanted, ros2 = variables.get("DR_ROS", "auto"), shutil.which("ros2")
    if wanted == "real" or (wanted == "auto" and ros2 and importlib.util.find_spec("rclpy")):
        if ros2 is None:
            raise LaunchError(
                "DR_ROS=real", expected="the program ros2", found="none", next_step="source a ROS 2 installation"
            )
        return ros2, dict(variables)
    root = PACKAGE.parent
    nodes, embedded = (root / "ros2_ws" / "src" / name for name in ("dr_nodes", "dr_embedded"))
    if not embedded.is_dir():
        raise LaunchError(
            "dr launch",
            expected="a ROS 2 that is sourced, or dr_core from a checkout",
            found="neither",
            next_step="source ROS 2, or pip install -e . in the checkout",
        )
    if importlib.util.find_spec("cyclonedds") is None:
        raise LaunchError(
            "dr launch",
            expected="a ROS 2 that is sourced, or the package cyclonedds",
            found="neither",
            next_step="source ROS 2, or pip install -e '.[embedded]' in the checkout",
        )
    folders = [nodes, embedded, root / "sim", root / "calibration", root]
    search = os.pathsep.join(filter(None, [*map(str, folders), variables.get("PYTHONPATH", "")]))
    return "", {**variables, "PYTHONPATH": search}
