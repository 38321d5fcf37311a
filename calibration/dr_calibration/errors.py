"""The one error of this package."""

from __future__ import annotations

from dr_core.errors import UserError


class CalibrationError(UserError):
    """A calibration, or what it is computed from, is not usable."""
