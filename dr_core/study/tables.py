"""The results of a study as tables of text and lines for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print the tables of seen and unseen tasks, the cost, what was left out, and the verdict."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for block, tasks in results["blocks"].items():
        if not tasks:
            console.print(f"{block} tasks: none among the recordings")
            continue
        console.print(f"{block} tasks, mean over {len(tasks)}: {', '.join(tasks)}", markup=False, soft_wrap=True)
        lines = table_of(results, "blocks", block)
        if sum(max(map(len, column)) + 3 for column in zip(*lines, strict=True)) > console.width:
            # On a narrow terminal the intervals are left to table.csv and the report.
            lines = [[line[0], line[1], *(cell.split(" [")[0] for cell in line[2:])] for line in lines]
        table = Table(*map(escape, lines[0]), box=box.SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.no_wrap = True
        for line in lines[1:]:
            table.add_row(*map(escape, line))
        console.print(table)
    cost = ", ".join(f"{name} {ms:.3g}" for name, ms in results["ms_per_frame"].items())
    console.print(f"ms per frame: {cost}", markup=False, soft_wrap=True)
    if thinned := results["thinned"]:
        parts = ", ".join(f"{name} every {n}th" for name, n in thinned.items())
        console.print(f"frames scored: {parts}", markup=False)
    if left_out := results["left_out"]:
        reasons = Counter(entry["why"] for entry in left_out)
        console.print(
            "left out: " + ", ".join(f"{n} x {why}" for why, n in reasons.items()), markup=False, soft_wrap=True
        )
    console.print(f"verdict on {results['estimators'][0]}:", markup=False)
    for entry in results["verdict"]:
        console.print(f"  {verdict_line(entry)}", markup=False, highlight=False, soft_wrap=True)


def table_of(results: Mapping[str, Any], kind: str, group: str) -> list[list[str]]:
    """Rows of text, the header first: measure, n, and "value [low, high]" of each score.

    Args:
        kind: "blocks" or "tasks".
        group: "seen", "unseen" or the name of a task.
    """
    names = list(results["scores"])
    rows = [["mean [95 % interval]" if kind == "blocks" else "value [95 % interval]", "n", *names]]
    for key, title in results["measures"].items():
        cells = [results["scores"][name][kind][group].get(key) for name in names]
        counts = next((counts_text(cell) for cell in cells if cell), "")
        row = [title, counts]
        for cell in cells:
            if cell is None:
                row.append("not measured")
            else:
                own = counts_text(cell)
                extra = "" if own == counts else f" (n {own})"
                # Adding zero turns a rounded "-0.00" into "0.00".
                value, low, high = (f"{round(cell[key], 2) + 0.0:.2f}" for key in ("value", "low", "high"))
                row.append(f"{value} [{low}, {high}]{extra}")
        rows.append(row)
    return rows


def counts_text(cell: Mapping[str, Any]) -> str:
    """How many episodes of each group entered a cell."""
    counts = cell["n"]
    if len(counts) > 2 and len(set(counts)) == 1:
        return f"{counts[0]} x {len(counts)}"
    return " v ".join(map(str, counts))


def verdict_line(entry: Mapping[str, Any]) -> str:
    """One target, as "label: value [low, high] (target >= bound: met)"; three digits, so that a near miss shows."""
    target = f"target {entry['relation']} {entry['target']:g}"
    cell = entry["measured"]
    if cell is None:
        return f"{entry['label']}: not measured ({target})"
    numbers = f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    return f"{entry['label']}: {numbers} ({target}: {entry['state']})"
