"""Start the nodes of a launch file: `python -m dr_embedded.launch FILE [name:=value …] [--show-args]`.

The file is an ordinary ROS 2 launch file. Where a real ROS 2 is installed, `ros2 launch` runs it instead.
"""

from __future__ import annotations

import difflib
import os
import runpy
import shlex
import sys
from collections.abc import Sequence

from dr_embedded import activate, banner
from dr_embedded.finder import serve_launch
from dr_embedded.launch_actions import Context, LaunchDescription, LaunchError, text_of
from dr_embedded.launch_processes import Program, Supervisor


def load(path: str) -> LaunchDescription:
    """What the file's generate_launch_description() returns.

    Raises:
        LaunchError: there is no such file or function.
    """
    if not os.path.isfile(path):
        raise LaunchError(f"no launch file {path}")
    generate = runpy.run_path(path).get("generate_launch_description")
    if generate is None:
        raise LaunchError(f"{path} has no function generate_launch_description")
    description: LaunchDescription = generate()
    return description


def given_arguments(words: Sequence[str], description: LaunchDescription) -> dict[str, str]:
    """Name and value of each `name:=value`.

    Raises:
        LaunchError: a word of another form, or a name that the launch file does not declare.
    """
    given = {}
    known = [argument.name for argument in description.arguments]
    for word in words:
        name, separator, value = word.partition(":=")
        if not (name and separator and value):
            raise LaunchError(f"malformed launch argument '{word}', expected format '<name>:=<value>'")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise LaunchError(f"no launch argument '{name}'{hint} There are: {', '.join(known)}")
        given[name] = value
    return given


def show_arguments(description: LaunchDescription) -> None:
    """Print what `ros2 launch --show-args` prints, with the defaults worked out."""
    print("Arguments (pass arguments as '<name>:=<value>'):")
    context = Context({})
    for argument in description.arguments:
        choices = f". Valid choices are: {argument.choices}" if argument.choices else ""
        print(f"\n    '{argument.name}':\n        {argument.description or 'no description given'}{choices}")
        if argument.default_value is not None:
            argument.execute(context)
            print(f"        (default: '{context.launch_configurations[argument.name]}')")


def programs_of(description: LaunchDescription, given: dict[str, str]) -> list[Program]:
    """The processes to start; everything is checked before the first one runs."""
    context = Context(given)
    programs: list[Program] = []
    for number, node in enumerate(description.nodes(context), 1):
        prefix = shlex.split(text_of(node.prefix, context))
        command = [*prefix, sys.executable, "-m", "dr_embedded.run", node.target(context), *node.ros_arguments(context)]
        is_first = not any(program.has_terminal for program in programs)
        has_terminal = node.emulate_tty and not prefix and is_first
        programs.append(Program(f"{node.label(context)}-{number}", command, node.ends_all, has_terminal))
    return programs


def main() -> int:
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    stack = activate()
    print(banner(stack), file=sys.stderr, flush=True)
    if stack == "real":
        os.execvp("ros2", ["ros2", "launch", *words])
    try:
        serve_launch()
        description = load(words[0])
        if "--show-args" in words:
            show_arguments(description)
            return 0
        programs = programs_of(description, given_arguments(words[1:], description))
    except (LaunchError, NotImplementedError) as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    return Supervisor().run(programs)


if __name__ == "__main__":
    sys.exit(main())
