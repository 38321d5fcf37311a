"""The table of faults is whole, names tests that exist, and is the page in docs/; the campaigns run in small."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.faults import reactions, soak
from tests.faults.rows import PAGE, ROOT, ROWS, page, read_figures


@cache
def functions_in(path: Path) -> frozenset[str]:
    """Names of the test functions in a file."""
    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return frozenset(one.name for one in functions if one.name.startswith("test_"))


def test_every_fault_has_a_row_and_every_row_a_test() -> None:
    assert [row.number for row in ROWS] == list(range(1, 61))
    assert all(row.tests for row in ROWS)


def test_the_named_tests_exist() -> None:
    named = [test.split("::") for row in ROWS for test in row.tests]
    assert [one for one in named if one[1] not in functions_in(ROOT / "tests" / one[0])] == []


def test_the_page_is_what_the_table_and_the_figures_say() -> None:
    assert PAGE.read_text() == page(read_figures()), "python -m tests.faults.rows writes it anew"


def test_every_timing_is_measured_by_a_campaign() -> None:
    assert {row.number for row in ROWS if row.timings} == set(reactions.FAULTS)


def test_figures_have_a_bound() -> None:
    for key, values in read_figures().get("reactions", {}).items():
        bound = reactions.bound_of(key)
        assert bound is not None and bound.bound_s > 0.0, key
        assert values["n"] >= reactions.COUNT and values["missed"] == [], key


def test_an_emergency_stop_is_measured() -> None:
    figures = reactions.run(count=1, only=(34,))
    assert set(figures) == {"34 emergency stop: commands end", "34 protective stop: commands end"}
    assert all(one["n"] == 1 and one["missed"] == [] and one["max_s"] < 5.0 for one in figures.values())


def test_growth_is_that_of_the_process_that_lived_longest() -> None:
    grows = [(float(s), 2, 100.0 + s / 36.0) for s in range(30, 630)]  # 100 MB an hour
    assert soak.slope([(float(s), 1, 50.0) for s in range(30)] + grows)["mb_per_h"] == pytest.approx(100.0, abs=0.5)
    level = soak.slope([(float(s), 1, 50.0 + s % 2) for s in range(600)])
    low, high = level["interval_95"]
    assert low <= 0.0 <= high and level["processes"] == 1
    assert "mb_per_h" not in soak.slope([(float(s), 1, 50.0) for s in range(30)])


def test_a_plot_of_memory(tmp_path: Path) -> None:
    soak.plot({"agent": [(0.0, 1, 50.0), (1.0, 1, 51.0), (5.0, 2, 50.0), (6.0, 2, 50.0)]}, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
