"""The fixtures of the node tests."""

from __future__ import annotations

from tests.nodes.conftest import call, diagnostics, make_node, node, ros, spin_until, start_node, state_of

__all__ = ["call", "diagnostics", "make_node", "node", "ros", "spin_until", "start_node", "state_of"]
