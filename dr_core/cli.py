"""The command `dr`: finds the command named on the command line, lets tyro fill it, and runs it.

A command is a frozen dataclass with documented fields and `run(self) -> int`, the exit status. Modules that
define commands import torch, OpenCV or MuJoCo inside `run`, so that help stays quick. Other packages add
commands through the entry-point group `dr_core.commands`.

Exit status: 0 done, 1 the command's own "no", 2 a mistake of the user in one line, 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from dr_core.errors import UserError

ENTRY_POINTS = "dr_core.commands"
COMMANDS = {
    "doctor": "dr_core.doctor:Doctor",
    "bag info": "dr_core.data.commands:BagInfo",
    "bag check": "dr_core.data.commands:BagCheck",
    "bag repair": "dr_core.data.commands:BagRepair",
    "bag export": "dr_core.data.commands:BagExport",
    "train-reward": "dr_core.rewards.commands:TrainReward",
    "train-viper": "dr_core.rewards.commands:TrainViper",
    "import-checkpoint": "dr_core.rewards.commands:ImportCheckpoint",
    "train-offline": "dr_core.agent.commands:TrainOffline",
    "parity": "dr_core.rewards.commands:Parity",
    "goal-video": "dr_core.goals.commands:GoalVideo",
    "finetune-goal": "dr_core.goals.commands:FinetuneGoal",
    "score": "dr_core.study.commands:Score",
    "study discrimination": "dr_core.study.commands:StudyDiscrimination",
    "report": "dr_core.study.commands:Report",
    "launch": "dr_core.launching:Launch",
}


class UnknownCommandError(UserError):
    """There is no command of this name."""


class UnavailableCommandError(UserError):
    """The command exists, but a package that it needs is not installed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dr` with `arguments` (default: those of the process) and return the exit status."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"dr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"dr: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130


def all_commands() -> dict[str, str]:
    """Command name to "module:Class": those of dr_core and those that installed packages add."""
    added = {entry.name: entry.value for entry in metadata.entry_points(group=ENTRY_POINTS)}
    return {**added, **COMMANDS}


def _run(arguments: list[str]) -> int:
    commands = all_commands()
    words = len(arguments)
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            words = position
            break
    # The longest name wins: "bag info" before a group "bag".
    for length in range(words, 0, -1):
        name = " ".join(arguments[:length])
        if name in commands:
            return _run_command(name, commands[name], arguments[length:])
    group = " ".join(arguments[:words])
    inside = {name: target for name, target in commands.items() if not group or name.startswith(f"{group} ")}
    if not inside:
        raise _unknown(group, commands)
    asked = not arguments or arguments[words:] in (["-h"], ["--help"])
    print(_overview(group, inside), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _run_command(name: str, target: str, arguments: list[str]) -> int:
    import tyro

    try:
        flags = (tyro.conf.FlagCreatePairsOff,)  # --json, without a --no-json that nobody needs
        command = _load(target)
        if hasattr(command, "rewrite"):  # it has options that tyro cannot know
            arguments = command.rewrite(arguments)
        status: int = tyro.cli(command, prog=f"dr {name}", args=arguments, config=flags).run()
    except ModuleNotFoundError as error:
        raise UnavailableCommandError(
            f"dr {name}",
            expected="the packages that it needs",
            found=str(error),
            next_step="install it; all that the simulator needs: pip install -e '.[sim]' in the checkout",
        ) from error
    return status


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _overview(group: str, commands: dict[str, str]) -> str:
    prog = f"dr {group}".rstrip()
    width = max(map(len, commands))
    lines = [f"usage: {prog} COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<{width}}  {_summary(target)}" for name, target in sorted(commands.items())]
    return "\n".join([*lines, "", "`dr COMMAND --help` explains one command."])


def _summary(target: str) -> str:
    """The first line of a command's docstring."""
    try:
        text: str = _load(target).__doc__ or ""
    except ModuleNotFoundError as error:
        return f"(not available: {error})"
    return text.strip().partition("\n")[0]


def _unknown(name: str, commands: dict[str, str]) -> UnknownCommandError:
    near = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
    return UnknownCommandError(
        f"dr {name}",
        expected=f"a command such as {near[0] if near else 'doctor'!r}",
        found="no command of this name",
        next_step="see dr --help",
    )


if __name__ == "__main__":
    sys.exit(main())
