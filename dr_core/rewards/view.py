"""Whether pictures were made as those that a reward model learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dr_core.errors import UserError

SAME_RATE = 1.05
"""Frame rates within this factor are one: those of real cameras are measured, and never quite equal."""


def check_view(
    what: str,
    render: Mapping[str, str],
    manifest: Mapping[str, Any],
    *,
    next_step: str,
    error: type[UserError] = UserError,
) -> None:
    """Refuse pictures made otherwise than those a model learned from.

    All training tasks of a model share camera and render quality, so what holds for them holds for unseen tasks.

    Args:
        what: whose pictures they are.
        render: how they are made, as in an episode's metadata; empty for a real camera.
        manifest: of the model. One without "render" was imported without experts: its camera is not known.
        next_step: what the user can do.
        error: the type that is raised.

    Raises:
        UserError: (an ``error``) naming the settings that differ, those that only one side has included.
    """
    if "render" not in manifest:
        return
    learned = manifest["render"]
    differing = sorted(key for key in {*render, *learned} if render.get(key) != learned.get(key))
    if differing:
        raise error(
            what,
            expected="the camera of the model: " + ", ".join(f"{k} {learned.get(k, '(none)')}" for k in differing),
            found=", ".join(f"{k} {render.get(k, '(none)')}" for k in differing),
            next_step=next_step,
        )


def calibration_of(manifest: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Hashes of the camera's calibrations, and serials of the cameras, of the recordings that a model learned from.

    Both are empty for a simulated camera and for recordings without a calibration.

    Raises:
        TypeError: a manifest that holds something else there.
    """
    known = manifest.get("calibration", {})
    lists = (known.get("hashes", []), known.get("serials", [])) if isinstance(known, Mapping) else (known, known)
    if not all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in lists):
        raise TypeError(f"calibration {known!r}")
    return lists


def check_calibration(
    what: str,
    calibration_hash: str | None,
    manifest: Mapping[str, Any],
    *,
    next_step: str,
    error: type[UserError] = UserError,
) -> None:
    """Refuse pictures of another calibration than those that a model learned from; other arguments as `check_view`.

    A model whose recordings had none takes every calibration.

    Raises:
        UserError: (an ``error``) naming both hashes.
    """
    hashes, _ = calibration_of(manifest)
    if hashes and calibration_hash not in hashes:
        found = f"{calibration_hash[:12]}…" if calibration_hash else "none"
        raise error(
            what,
            expected="the calibration of the model's recordings: " + " or ".join(f"{one[:12]}…" for one in hashes),
            found=found,
            next_step=next_step,
        )


def common_rate_hz(rates_hz: Sequence[float]) -> float:
    """The middle one of frame rates that mean the same; 0 if one is not known (0), or they differ."""
    if not rates_hz or min(rates_hz) <= 0 or max(rates_hz) > SAME_RATE * min(rates_hz):
        return 0.0
    return float(np.median(rates_hz))
