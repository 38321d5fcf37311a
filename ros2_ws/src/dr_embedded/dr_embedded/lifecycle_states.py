"""The state machine of managed nodes, with the numbers of lifecycle_msgs."""

from __future__ import annotations

from typing import NamedTuple

STATES = {  # number of each state by label
    "unknown": 0, "unconfigured": 1, "inactive": 2, "active": 3, "finalized": 4,
    "configuring": 10, "cleaningup": 11, "shuttingdown": 12, "activating": 13, "deactivating": 14,
    "errorprocessing": 15,
}  # fmt: skip
CALLBACKS = {
    "configuring": "on_configure", "cleaningup": "on_cleanup", "shuttingdown": "on_shutdown",
    "activating": "on_activate", "deactivating": "on_deactivate", "errorprocessing": "on_error",
}  # fmt: skip


class Transition(NamedTuple):
    number: int
    label: str
    start: str
    goal: str


def _outcomes(first: int, state: str, success: str, failure: str, error: str) -> list[Transition]:
    goals = {"success": success, "failure": failure, "error": error}
    return [Transition(first + i, f"transition_{name}", state, goal) for i, (name, goal) in enumerate(goals.items())]


TRANSITIONS: list[Transition] = [
    Transition(1, "configure", "unconfigured", "configuring"),
    *_outcomes(10, "configuring", "inactive", "unconfigured", "errorprocessing"),
    Transition(2, "cleanup", "inactive", "cleaningup"),
    *_outcomes(20, "cleaningup", "unconfigured", "inactive", "errorprocessing"),
    Transition(3, "activate", "inactive", "activating"),
    *_outcomes(30, "activating", "active", "inactive", "errorprocessing"),
    Transition(4, "deactivate", "active", "deactivating"),
    *_outcomes(40, "deactivating", "inactive", "active", "errorprocessing"),
    Transition(5, "shutdown", "unconfigured", "shuttingdown"),
    Transition(6, "shutdown", "inactive", "shuttingdown"),
    Transition(7, "shutdown", "active", "shuttingdown"),
    *_outcomes(50, "shuttingdown", "finalized", "finalized", "errorprocessing"),
    *_outcomes(60, "errorprocessing", "unconfigured", "finalized", "finalized"),
]


class StateMachine:
    """Where a node is, and where it may go."""

    def __init__(self) -> None:
        self.state = "unconfigured"

    @property
    def callback(self) -> str:
        """The method that the current (transition) state calls."""
        return CALLBACKS[self.state]

    def trigger(self, label: str) -> Transition | None:
        """Follow the transition of this label from the current state; None if there is none."""
        for transition in TRANSITIONS:
            if transition.start == self.state and transition.label == label:
                self.state = transition.goal
                return transition
        return None

    def label_of(self, number: int) -> str:
        """The label of a transition number that starts here; empty if there is none."""
        found = (one.label for one in TRANSITIONS if one.number == number and one.start == self.state)
        return next(found, "")
