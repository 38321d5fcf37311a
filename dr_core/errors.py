"""Mistakes a user can make, each told in one line: what is wrong, what was expected, what was found, what to do.

This is a leaf module: it imports nothing, so that every other module can raise these.
"""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong (a file, a setting, the machine).

    Args:
        what: the subject, for example the path or the key.
        expected: what would have been right.
        found: what is there instead.
        next_step: the command or edit that mends it.
    """

    def __init__(self, what: str, *, expected: str, found: str, next_step: str) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        self.next_step = next_step
        # One line, whatever names and values a file holds.
        super().__init__(" ".join(f"{what}: expected {expected}; found {found}; {next_step}".splitlines()))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way back from a worker process."""
        return _rebuild, (type(self), self.what, self.expected, self.found, self.next_step)


def _rebuild(kind: type[UserError], what: str, expected: str, found: str, next_step: str) -> UserError:
    return kind(what, expected=expected, found=found, next_step=next_step)


class ConfigError(UserError):
    """A configuration file, key or value is not usable."""


class BagError(UserError):
    """A recording (bag or video) is missing, damaged or of a kind that is not read."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or does not fit what it is loaded into."""


class OutputInUseError(UserError):
    """The output already exists, or another run is writing to it."""


class RenderingError(UserError):
    """No off-screen rendering back-end works on this machine."""
