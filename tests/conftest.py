"""What several test files need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and no time limit on a busy machine.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run this Python in a fresh process that sees the checkout: `python("-c", "...", MUJOCO_GL="egl")`."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT / folder) for folder in (".", "sim", "calibration")]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "160", **environment}
        return subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: sums in one order, and no fight over the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
