"""The calibration of the camera in use: refused where it does not hold, and watched while it is used. Free of ROS."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import ConfigError

if TYPE_CHECKING:
    from dr_calibration.moved import Moved
    from dr_calibration.rig import Rig

# dr_calibration is imported where a rig is given: a node without one starts sooner.
DAY_S = 86400.0
PERIOD_S = 0.5
"""Between two checks: one costs 3 to 5 ms."""
RUN, MAJORITY = 5, 3
"""Of so many checks so many that agree are the verdict, as in dr calibrate check: one covered picture is none."""
Verdict = Literal["unknown", "stands", "moved", "hidden"]


def load_rig(path: str, *, max_age_days: float, serial: str = "") -> Rig:
    """The rig in a file.

    Args:
        path: of rig_NAME.yaml.
        max_age_days: an older calibration is refused; 0 allows any age.
        serial: of the camera in use; empty: not known.

    Raises:
        CalibrationError: missing, damaged, changed by hand, too old, or of another camera.
    """
    from dr_calibration.rig import Rig

    rig = Rig.load(Path(path))
    rig.check(serial=serial or None, now_unix_s=time.time(), max_age_days=max_age_days or None)
    return rig


def time_offset_ns(path: str) -> int:
    """A picture's stamp minus it is when the robot was there; 0 without a rig, or one that does not know it.

    Raises:
        CalibrationError: as `load_rig`.
    """
    rig = load_rig(path, max_age_days=0.0) if path else None
    return round(1e9 * rig.time_offset.offset_s) if rig is not None and rig.time_offset is not None else 0


class RigWatch:
    """A rig, and whether its camera still stands where it stood when its reference picture was taken.

    Args:
        rig_path: of rig_NAME.yaml; its reference picture lies beside it.
        max_age_days: an older calibration is refused; 0 allows any age.
        serial: of the camera in use; empty: not known.
        limit_px: how far pictures may be shifted; None: as `dr_calibration.moved.Reference`.
        hashes: of the calibrations that are accepted; empty: any.

    Attributes:
        rig: the calibration.
        watches: it has a reference picture, of a camera beside the robot.
        verdict: of the last checks: "unknown" before enough of them agreed; "hidden": not enough of the scene is seen.

    Raises:
        CalibrationError: as `load_rig`, a hash that is not among ``hashes``, or a reference picture that is missing,
            or another.
    """

    def __init__(
        self,
        rig_path: str,
        *,
        max_age_days: float,
        serial: str = "",
        limit_px: float | None = None,
        hashes: Sequence[str] = (),
        period_s: float = PERIOD_S,
    ) -> None:
        from dr_calibration.moved import Reference

        self.rig = load_rig(rig_path, max_age_days=max_age_days, serial=serial)
        if hashes and self.rig.hash not in hashes:
            # One of several is named; all are in the model's manifest.
            self.rig.check(calibration_hash=hashes[0])
        picture = self.rig.check_reference(Path(rig_path).parent)
        # A camera on the tool shows the reference picture in one place of the tool only.
        self._on_tool = self.rig.pose is not None and self.rig.pose.of == "tool"
        self._reference = None
        if picture is not None and not self._on_tool:
            self._reference = Reference.load(picture, threshold_px=limit_px)
        self.watches = self._reference is not None
        self._period_ns = round(1e9 * period_s)
        self.reset()

    def reset(self) -> None:
        """Begin anew: nothing is known of the camera."""
        self._stood = False
        self._checks: deque[tuple[Verdict, Moved]] = deque(maxlen=RUN)
        self._checked_ns: int | None = None
        self._settled: Moved | None = None
        self.verdict: Verdict = "unknown"

    @property
    def age_days(self) -> float:
        return (time.time() - self.rig.made_unix_s) / DAY_S

    def check(self, picture: NDArray[np.uint8], stamp_ns: int) -> Moved | None:
        """Look at a picture (H, W, 3) RGB, or not if the last one looked at is less than the period older.

        Until there is a verdict every picture is looked at.

        Returns:
            The newest check that agrees with ``verdict``; None while that is "unknown".

        Raises:
            CalibrationError: pictures of another size than those that were calibrated.
        """
        height, width = picture.shape[:2]
        self.rig.check(width=width, height=height)
        if self._reference is None:
            return None
        settled = self._settled is not None and self._checked_ns is not None
        if settled and 0 <= stamp_ns - (self._checked_ns or 0) < self._period_ns:
            return self._settled
        self._checked_ns = stamp_ns
        seen = self._reference.check(picture)
        self._checks.append(("stands" if seen.fine else "moved" if seen.confident else "hidden", seen))
        for kind, check in self._checks:
            if sum(other == kind for other, _ in self._checks) >= MAJORITY:
                self.verdict, self._settled = kind, check  # the last one of its kind
        return self._settled

    def guard(self, picture: NDArray[np.uint8], stamp_ns: int) -> str:
        """Check a picture; why nothing that is computed from it is valid, in words, empty where nothing is wrong.

        Raises:
            CalibrationError: as `check`, or the camera had moved before it was ever seen where it stood.
        """
        from dr_calibration.errors import CalibrationError

        self.check(picture, stamp_ns)
        self._stood |= self.verdict == "stands"
        if self.verdict == "moved" and not self._stood:
            raise CalibrationError(
                f"camera {self.rig.camera_name}",
                expected="where it stood when it was calibrated",
                found=self.words,
                next_step="put it back, or calibrate, record and train again",
            )
        return "" if self.verdict == "stands" or not self.watches else self.words

    @property
    def words(self) -> str:
        """The verdict, with the shift of the picture and the turn of the camera that would cause it."""
        if not self.watches:
            why = "the camera is on the tool" if self._on_tool else "no reference picture"
            return f"{why}: a camera that moves is not noticed here; see dr calibrate check"
        if self._settled is None:
            return "where the camera stands is not known yet"
        if self.verdict != "moved":
            return self._settled.reason
        turn_deg = math.degrees(math.atan(self._settled.shift_px / float(self.rig.intrinsics.K[0, 0])))
        return f"{self._settled.reason}; a turn by {turn_deg:.2f} degrees, or a move, does this"


def watch_for_model(
    hashes: Sequence[str], rig_path: str, *, max_age_days: float, serial: str, simulated: bool
) -> tuple[RigWatch | None, str]:
    """What guards a reward model, and in words what it does not guard against.

    Args:
        hashes: of the calibrations of the model's recordings; empty: they had none.
        rig_path: of the rig in use; empty: none.
        simulated: the model's recordings are of a simulator, where no camera moves.

    Raises:
        ConfigError: the model needs a rig and there is none.
        CalibrationError: as `RigWatch`.
    """
    if rig_path:
        watch = RigWatch(rig_path, max_age_days=max_age_days, serial=serial, hashes=hashes)
        return watch, "" if watch.watches else watch.words
    if hashes:
        raise ConfigError(
            "parameter rig_file",
            expected=f"the calibration of the model's recordings, {hashes[0][:12]}…",
            found="none",
            next_step="give the camera's file: -p rig_file:=.../rig_NAME.yaml",
        )
    if simulated:
        return None, ""
    return None, "the model's recordings name no calibration: a camera that moves is not noticed"
