"""The command `dr`: help that is quick and complete, mistakes in one line with their exit status."""

from __future__ import annotations

import importlib
import re
import sys
import types
from dataclasses import dataclass, is_dataclass

import pytest

from dr_core import cli
from dr_core.errors import ConfigError


@dataclass(frozen=True)
class Say:
    """Say a word several times.

    More about it here.
    """

    word: str
    """The word."""
    times: int = 1
    """How often."""
    loud: bool = False
    """In capitals."""

    def run(self) -> int:
        if self.word == "mistake":
            raise ConfigError("word", expected="another", found=self.word, next_step="change it")
        if self.word == "stop":
            raise KeyboardInterrupt
        if self.word == "bug":
            raise ZeroDivisionError
        if self.word == "import":
            importlib.import_module("no_such_package")
        print(" ".join([self.word.upper() if self.loud else self.word] * self.times))
        return 3 if self.word == "no" else 0


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this test in place of the real ones."""
    module = types.ModuleType("commands_of_this_test")
    module.Say = Say  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    table = {"say": "Say", "group say": "Say", "group deep say": "Say"}
    monkeypatch.setattr(cli, "COMMANDS", {name: f"{module.__name__}:{target}" for name, target in table.items()})
    monkeypatch.setattr(
        cli.metadata,
        "entry_points",
        lambda group: [cli.metadata.EntryPoint("added", "not_installed.commands:Say", group)],
    )


@pytest.mark.parametrize("name", ["say", "group say", "group deep say"])
def test_a_command_gets_its_arguments(commands: None, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--word", "hello", "--times", "2", "--loud"]) == 0
    assert capsys.readouterr().out == "HELLO HELLO\n"


def test_exit_status_is_the_commands_own(commands: None) -> None:
    assert cli.main(["say", "--word", "no"]) == 3


def test_a_users_mistake_is_one_line(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["say", "--word", "mistake"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "dr: word: expected another; found mistake; change it\n"


def test_interrupting_is_one_line(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["say", "--word", "stop"]) == 130
    assert capsys.readouterr().err == "dr: interrupted\n"


def test_a_bug_is_not_hidden(commands: None) -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["say", "--word", "bug"])


def test_a_missing_package_is_one_line(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["say", "--word", "import"]) == 2
    assert cli.main(["added"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no_such_package" in first and "install" in first
    assert "not_installed" in second and "install" in second


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(["sya"], "'say'"), (["group", "deep", "sy"], "'group deep say'"), (["xyzzy"], "see dr --help")],
)
def test_an_unknown_command_names_the_nearest(
    commands: None, arguments: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert near in err and err.count("\n") == 1


def test_wrong_options_exit_2(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["say", "--wrod", "x"])
    assert caught.value.code == 2
    assert "--word" in capsys.readouterr().err


def test_help_of_a_command_explains_its_fields(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["group", "say", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "dr group say" in out and "How often." in out and "--no-loud" not in out


def test_overview_lists_each_command_with_its_first_line(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  group deep say +Say a word several times\.$", out, re.M)
    assert re.search(r"^  added +\(not available: No module named 'not_installed'\)$", out, re.M)
    assert cli.main([]) == 0
    assert capsys.readouterr().out == out


def test_a_group_lists_only_its_own(commands: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["group", "--help"]) == 0
    out = capsys.readouterr().out
    assert "group deep say" in out and "added" not in out
    assert cli.main(["group"]) == 2
    assert capsys.readouterr().out == ""


def test_real_help_loads_nothing_heavy(python) -> None:  # type: ignore[no-untyped-def]
    heavy = ("torch", "cv2", "mujoco", "gymnasium", "metaworld", "scipy", "pandas", "rclpy", "matplotlib")
    program = (
        "import sys; from dr_core.cli import main; status = main(['--help']);"
        f"print('loaded:', *sorted(set(sys.modules) & set({heavy!r}))); sys.exit(status)"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +\S", done.stdout, re.M), name


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_real_command_is_a_documented_dataclass(name: str) -> None:
    command = cli._load(cli.COMMANDS[name])
    assert is_dataclass(command) and callable(command.run)
    first = command.__doc__.strip().partition("\n")[0]
    assert first and not first.startswith(f"{command.__name__}("), "dataclass signature in place of a docstring"
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])
    assert caught.value.code == 0
