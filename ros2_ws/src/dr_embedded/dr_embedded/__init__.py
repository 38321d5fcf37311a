"""A stand-in for rclpy on machines without ROS 2, for tests and demos; not for driving a robot.

Call `activate()` before the first `import rclpy`, or start programs with `python -m dr_embedded.run`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

__all__ = ["activate"]


def activate() -> str:
    """Make `import rclpy` work; returns which stack runs: "real" or "embedded".

    A real rclpy always wins, and one that fails to import raises its error. The environment variable `DR_ROS` can
    insist: `real` or `embedded` instead of `auto`.

    Raises:
        RuntimeError: what DR_ROS insists on is not possible.
        ValueError: DR_ROS is something else.
    """
    from dr_embedded.finder import EmbeddedFinder

    wanted = os.environ.get("DR_ROS", "auto")
    if wanted not in ("auto", "real", "embedded"):
        raise ValueError(f"DR_ROS must be auto, real or embedded, not '{wanted}'")
    if any(isinstance(finder, EmbeddedFinder) for finder in sys.meta_path):
        return "embedded"
    if importlib.util.find_spec("rclpy") is not None:
        if wanted == "embedded":
            raise RuntimeError("DR_ROS=embedded, but a real rclpy is installed; leave its environment or unset DR_ROS")
        importlib.import_module("rclpy")
        return "real"
    if wanted == "real":
        raise RuntimeError("DR_ROS=real, but there is no rclpy; source a ROS 2 installation")
    sys.meta_path.append(EmbeddedFinder())
    return "embedded"


def banner(stack: str) -> str:
    """One line that says what runs."""
    if stack == "real":
        return "[dr_embedded] using the installed rclpy"
    scope = "as CYCLONEDDS_URI says" if os.environ.get("DR_NETWORK") == "configured" else "loopback only"
    domain = os.environ.get("ROS_DOMAIN_ID") or "0"
    return f"[dr_embedded] no ROS 2 here: using the embedded stand-in for rclpy (domain {domain}, {scope})"
