"""The one error of this package."""

from __future__ import annotations


class CalibrationError(ValueError):
    """A mistake that a person can correct; its text is one line.

    Args:
        subject: what it is about, for example a file or a value.
        expected: what was expected.
        found: what was found instead.
        next_step: what to do about it.
    """

    def __init__(self, subject: str, *, expected: str, found: str, next_step: str) -> None:
        super().__init__(f"{subject}: expected {expected}; found {found}; {next_step}")
        self.subject, self.expected, self.found, self.next_step = subject, expected, found, next_step
