"""The launch files' stand-in for `launch` and `launch_ros`: what a text becomes, what is started, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, List  # noqa: UP035  as launch_ros wants it

import pytest

from tests.conformance.conftest import EMBEDDED, STACK, TIMEOUT_S

if STACK == "real":
    pytest.skip("launch files run on the real launch here", allow_module_level=True)

from dr_embedded.launch import given_arguments, load, programs_of
from dr_embedded.launch_actions import (
    Context,
    IfCondition,
    LaunchConfiguration,
    LaunchError,
    Node,
    ParameterValue,
    PythonExpression,
    UnlessCondition,
    parameter,
    parameters_of,
)

TEXTS = {"whole": "3", "real": "3.0", "text": "three", "list": "[a, b]", "mixed": "[1, a]", "yes": "true", "none": ""}
CONTEXT = Context(TEXTS)


def of(name: str) -> LaunchConfiguration:
    return LaunchConfiguration(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # A text in the file stays a text; a substitution is read as YAML; value_type decides where it is given.
        ("3", "3"),
        (of("whole"), 3),
        (of("real"), 3.0),
        (of("text"), "three"),
        (of("yes"), True),
        (of("list"), ["a", "b"]),
        (["1", of("whole")], 13),
        ([1, 2.5], [1.0, 2.5]),
        (["1", "2"], ["1", "2"]),
        ([[of("whole")], ["4"]], [3, 4]),
        (ParameterValue(of("whole"), value_type=str), "3"),
        (ParameterValue(of("whole"), value_type=float), 3.0),
        (ParameterValue(of("none"), value_type=str), ""),
        (ParameterValue(of("yes"), value_type=bool), True),
        (ParameterValue(of("list"), value_type=List[str]), ["a", "b"]),  # noqa: UP006
        (ParameterValue([of("text"), "/x"]), "three/x"),
    ],
)
def test_what_becomes_of_parameters(value: Any, expected: Any) -> None:
    found = parameter(value, CONTEXT)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        of("none"),
        of("mixed"),
        [],
        [1, "a"],
        None,
        ParameterValue(of("text"), value_type=float),
        ParameterValue(of("whole"), value_type=bool),
        ParameterValue(of("list"), value_type=List[int]),  # noqa: UP006
    ],
)
def test_what_launch_ros_does_not_take(value: Any) -> None:
    with pytest.raises(LaunchError, match="parameter p"):
        list(parameters_of({"p": value}, CONTEXT))


def test_conditions_and_expressions() -> None:
    assert IfCondition("TRUE").evaluate(CONTEXT) and UnlessCondition("0").evaluate(CONTEXT)
    is_three = PythonExpression(["'", of("text"), "' == 'three' and pi > ", of("whole")])
    assert IfCondition(is_three).evaluate(CONTEXT) and not UnlessCondition(is_three).evaluate(CONTEXT)
    for wrong in ("maybe", of("missing"), PythonExpression("1 +"), PythonExpression("unknown")):
        with pytest.raises(LaunchError):
            IfCondition(wrong).evaluate(CONTEXT)


def test_what_is_not_implemented_says_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="respawn"):
        Node(package="p", executable="e", respawn=True)
    program = "import dr_embedded.finder as f; f.serve_launch(); "
    for line, name in (
        ("import launch.event_handlers", "launch.event_handlers"),
        ("from launch.actions import TimerAction", "launch.actions.TimerAction"),
        ("from launch import LaunchService", "launch.LaunchService"),
        ("import launch_ros.actions as a; a.LifecycleNode", "launch_ros.actions.LifecycleNode"),
    ):
        done = python(program + line, cwd=tmp_path)
        assert done.stderr.splitlines()[-1] == f"NotImplementedError: dr_embedded: {name}"
    fine = "from launch import LaunchDescription, actions; print(actions.Shutdown.__name__)"
    (tmp_path / "launch").mkdir()  # a folder of launch files beside it
    assert python(program + fine, cwd=tmp_path).stdout == "Shutdown\n"
    (tmp_path / "launch" / "__init__.py").touch()  # somebody else's package
    assert "is installed and is not the launch of a ROS 2" in python(program + fine, cwd=tmp_path).stderr


def python(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(cwd), str(EMBEDDED), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60)


LAUNCH_FILE = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, Shutdown
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

NAME = LaunchConfiguration("name")

def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument("name", default_value="first"),
        DeclareLaunchArgument("also", default_value="false"),
        Node(package="dr_embedded", executable="names", name=NAME, namespace="arm", arguments=["--fast"],
             parameters=["all.yaml", {"inner": {"rate": 1.0e-5}, "label": "yes"}],
             remappings=[("out", [NAME, "/out"])], emulate_tty=True, on_exit=Shutdown()),
        Node(package="dr_embedded", executable="names", prefix="nice -n 1", emulate_tty=True,
             condition=IfCondition(LaunchConfiguration("also"))),
        Node(package="dr_embedded", executable="fields", emulate_tty=True),
    ])
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`import launch` works, in this test only."""
    from dr_embedded.finder import LAUNCH_PACKAGES, serve_launch

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    serve_launch()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in LAUNCH_PACKAGES]:
        del sys.modules[name]


def test_what_is_started(tmp_path: Path, served: None) -> None:
    (tmp_path / "x.launch.py").write_text(LAUNCH_FILE)
    description = load(str(tmp_path / "x.launch.py"))
    first, second = programs_of(description, given_arguments(["name:=second"], description))
    assert (first.label, second.label) == ("second-1", "fields-2")
    assert (first.ends_all, second.ends_all, first.has_terminal, second.has_terminal) == (True, False, True, False)
    assert first.command[3:] == [
        "dr_embedded.names:main", "--fast", "--ros-args", "-r", "__node:=second", "-r", "__ns:=/arm",
        "--params-file", "all.yaml", "-p", "inner.rate:=1.0e-05", "-p", "label:='yes'", "-r", "out:=second/out",
    ]  # fmt: skip
    assert len(programs_of(description, {"also": "true"})) == 3
    with pytest.raises(LaunchError, match="did you mean 'name'"):
        given_arguments(["nam:=x"], description)
    with pytest.raises(LaunchError, match="malformed"):
        given_arguments(["name:="], description)


# ---- processes ----

SUPERVISED = """
import sys
from dr_embedded import launch_processes
from dr_embedded.launch_processes import Program, Supervisor

launch_processes.SIGTERM_AFTER_S, launch_processes.SIGKILL_AFTER_S = 0.3, 0.6
words = sys.argv[1:]
programs = [
    Program(f"{kind}-{number}", [sys.executable, "-c", BODY[kind]], kind == "brief", kind == "reads")
    for number, kind in enumerate(words, 1)
]
sys.exit(Supervisor().run(programs))
"""
BODY = {
    "waits": "import time; print('up', flush=True); time.sleep(1000)",
    "deaf": "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print('up', flush=True); "
    "time.sleep(1000)",
    "dies": "print('up', flush=True); raise SystemExit(3)",
    "brief": "print('up', end='', flush=True)",
    "reads": "import sys; print('up', sys.stdin.read(), flush=True)",
}


@pytest.fixture
def supervise() -> Iterator[Callable[..., Any]]:
    """`supervise("waits", "dies")`: a supervisor of these, when all of them are up."""
    started: list[subprocess.Popen[str]] = []

    def start(*kinds: str) -> tuple[subprocess.Popen[str], list[str]]:
        program = f"BODY = {BODY!r}\n{SUPERVISED}"
        environment = {**os.environ, "PYTHONPATH": str(EMBEDDED)}
        process = subprocess.Popen(
            [sys.executable, "-c", program, *kinds],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        lines: list[str] = []
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("typed")
        process.stdin.close()
        process.stdin = None
        while sum("] up" in line for line in lines) < len(kinds):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        return process, lines

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], lines: list[str]) -> tuple[int, str]:
    rest, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, "".join([*lines, rest])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all(supervise: Any, number: int) -> None:
    process, lines = supervise("waits", "waits")
    process.send_signal(number)
    status, output = ended(process, lines)
    assert status == 0, output
    assert output.count("process has finished cleanly") == 2 and "does not end" not in output
    assert "[waits-2] up\n" in output


def test_who_does_not_end_is_killed_and_reported(supervise: Any) -> None:
    process, lines = supervise("deaf")
    process.send_signal(signal.SIGINT)
    status, output = ended(process, lines)
    assert status == 1
    assert "sending SIGTERM" in output and "sending SIGKILL" in output and "process has died" in output


def test_who_dies_is_reported_and_the_others_go_on(supervise: Any) -> None:
    process, lines = supervise("waits", "dies")
    end = time.monotonic() + TIMEOUT_S
    while "exit status 3" not in lines[-1] and time.monotonic() < end:
        lines.append(process.stdout.readline())
    assert "[ERROR] [dies-2]: process has died" in lines[-1]
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process, lines)[0] == 1


def test_one_whose_end_ends_all(supervise: Any) -> None:
    status, output = ended(*supervise("waits", "brief"))
    assert status == 0 and "[brief-2] up\n" in output


def test_one_program_has_the_terminal(supervise: Any) -> None:
    process, lines = supervise("reads", "waits")
    while "[reads-1] up typed\n" not in lines:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    process.send_signal(signal.SIGINT)
    assert ended(process, lines)[0] == 0
