"""Names of the simulated tasks. A leaf module: it imports neither MuJoCo nor the task packages."""

from __future__ import annotations

import difflib

from dr_core.errors import ConfigError

SEEN_TASKS = ("assembly", "coffee-push", "dial-turn", "door-close", "lever-pull", "peg-unplug-side", "reach")
"""Meta-World tasks of arXiv 2312.14134 whose expert videos train the video model."""
UNSEEN_TASKS = (
    "coffee-button",
    "faucet-open",
    "drawer-open",
    "window-open",
    "button-press",
    "door-lock",
    "handle-press",
    "reach-wall",
)
"""Meta-World tasks of the paper that the video model never sees."""
ADROIT_TASKS = ("adroit-door", "adroit-hammer", "adroit-pen")
"""Dexterous-hand tasks of the paper."""
PANDA_TASKS = ("panda-push",)
"""Tasks of the simulated Panda, recorded as its live camera sees them."""
CALIBRATION_TASKS = ("panda-calibration", "panda-calibration-beside")
"""The simulated Panda with a board and a camera to be calibrated, on its hand or beside it; nothing to learn."""

METAWORLD_TASKS = (
    *(
        "assembly",
        "basketball",
        "bin-picking",
        "box-close",
        "button-press-topdown",
        "button-press-topdown-wall",
    ),
    *(
        "button-press",
        "button-press-wall",
        "coffee-button",
        "coffee-pull",
        "coffee-push",
        "dial-turn",
        "disassemble",
    ),
    *("door-close", "door-lock", "door-open", "door-unlock", "hand-insert", "drawer-close", "drawer-open"),
    *(
        "faucet-open",
        "faucet-close",
        "hammer",
        "handle-press-side",
        "handle-press",
        "handle-pull-side",
        "handle-pull",
    ),
    *("lever-pull", "peg-insert-side", "pick-place-wall", "pick-out-of-hole", "reach", "push-back", "push"),
    *("pick-place", "plate-slide", "plate-slide-side", "plate-slide-back", "plate-slide-back-side"),
    *("peg-unplug-side", "soccer", "stick-push", "stick-pull", "push-wall", "reach-wall", "shelf-place"),
    *("sweep-into", "sweep", "window-open", "window-close"),
)
"""Every Meta-World v3 task."""


def resolve_task(name: str) -> str:
    """The task's own name: "door-close" for "door-close" and "door-close-v3", others for themselves.

    Raises: ConfigError: there is no such task; the message names the nearest.
    """
    known = METAWORLD_TASKS + ADROIT_TASKS + PANDA_TASKS
    task = name.removesuffix("-v3")
    if task in known:
        return task
    nearest = difflib.get_close_matches(task, known, n=1, cutoff=0.0)[0]
    raise ConfigError(
        "task",
        expected="a Meta-World v3 or Adroit task, or panda-push",
        found=repr(name),
        next_step=f"did you mean {nearest!r}?",
    )


CAMERAS = {"adroit-door": "fixed", "adroit-hammer": "fixed", "adroit-pen": "vil_camera", "panda-push": "front"}


def default_camera(task: str) -> str:
    """Camera that shows hand and object at 64x64: `corner4` in Meta-World, the published views in Adroit."""
    return CAMERAS.get(task, "corner4")
