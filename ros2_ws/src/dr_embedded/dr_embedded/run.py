"""Start a node: `python -m dr_embedded.run package.module:main [arguments …] [--ros-args …]`.

A path to a .py file works too, and `:main` may be left out.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence

from dr_embedded import activate, banner


def run(target: str, arguments: Sequence[str]) -> int:
    """Run `target` with these arguments as its command line; returns its exit status."""
    print(banner(activate()), file=sys.stderr, flush=True)
    sys.argv = [target, *arguments]
    if target.endswith(".py"):
        runpy.run_path(target, run_name="__main__")
        return 0
    module, _, function = target.partition(":")
    return int(getattr(importlib.import_module(module), function or "main")() or 0)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    return run(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
