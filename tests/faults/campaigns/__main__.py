"""`python -m tests.faults.campaigns [names] [--count N] [--seed S] [--jobs N] [--out FILE.json]`: the long ones.

Exit status 1 if any of them finds a fault.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.faults.rows import UNTRUSTED

CAMPAIGNS = ("untrusted", "guided", "kill", "kill_node", "full", "power_cut")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaigns")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(CAMPAIGNS)}; all, if none is given")
    parser.add_argument("--count", type=int, help="inputs of each kind, or trials; by default what each campaign says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[], help="of untrusted input; all, if none is given")
    parser.add_argument("--jobs", type=int, default=0, help="readers of untrusted input at once; the cores by default")
    parser.add_argument("--keep", type=Path, help="folder for inputs that are faults")
    parser.add_argument("--out", type=Path, help="file for all figures, as JSON")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CAMPAIGNS):
        parser.error(f"unknown campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    figures: dict[str, Any] = {}
    for name in arguments.names or CAMPAIGNS:
        figures[name] = _run(name, arguments)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print_table(figures)
    return 1 if _faults(figures) else 0


def _run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    # Imported here, as the readers of untrusted input need more than the recorders.
    from importlib import import_module

    module = import_module(f"tests.faults.campaigns.{name}")
    own = {"kinds": arguments.kinds, "keep": arguments.keep, "jobs": arguments.jobs}
    extra = own if name == "untrusted" else {"jobs": arguments.jobs} if name == "guided" else {}
    return dict(module.run(arguments.count or module.COUNT, arguments.seed, **extra))


def _faults(figures: dict[str, Any]) -> list[str]:
    found = []
    for name, values in figures.items():
        for kind, one in values.items() if name == "untrusted" else ():
            found += [f"{kind}: {fault} (input {number})" for fault, number in one["faults"].items()]
        found += [f"{name}: {problem}" for problem in values.get("problems", ())]
        if values.get("closed_bytes_lost"):
            found.append(f"{name}: {values['closed_bytes_lost']} bytes of closed episodes lost")
    return found


def print_table(figures: dict[str, Any]) -> None:
    """The figures, and each fault in a line of its own."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=max(120, Console().width))
    for name, values in figures.items():
        if name == "untrusted":
            table = Table("kind", *UNTRUSTED.values(), title="untrusted input", title_justify="left")
            for kind, one in values.items():
                table.add_row(kind, *(str(one[key]) for key in UNTRUSTED))
        else:
            table = Table("figure", name, title_justify="left")
            for key, value in values.items():
                shown = len(value) if key == "problems" else value
                text = ", ".join(f"{k} {v}" for k, v in shown.items()) if isinstance(shown, dict) else str(shown)
                table.add_row(key.replace("_", " "), text)
        console.print(table)
    for line in _faults(figures):
        console.print(escape(line), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
