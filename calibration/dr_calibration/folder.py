"""The rig directory: the rig's file, what each step found (steps.json), example pictures and the page about it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dr_calibration.errors import CalibrationError
from dr_calibration.intrinsics import write_camera_info
from dr_calibration.rig import Rig
from dr_core.files import write_whole

FORMAT = 1
STEPS_FILE, REPORT_FILE, CAMERA_INFO_FILE, PICTURES = "steps.json", "report.html", "camera_info.yaml", "pictures"
NAMES = ("intrinsics", "hand_eye", "time_offset", "reference", "check")
LARGEST_BYTES = 2**24


@dataclass(frozen=True)
class RigFolder:
    """A rig and what is known of how it was made.

    Attributes:
        path: the directory.
        rig: its rig.
        steps: by name of the step, plain values.
    """

    path: Path
    rig: Rig
    steps: dict[str, dict[str, Any]]

    @property
    def rig_path(self) -> Path:
        return self.path / self.rig.file_name

    @property
    def report_path(self) -> Path:
        return self.path / REPORT_FILE

    @staticmethod
    def rigs(path: Path) -> list[Path]:
        return sorted(path.glob("rig_*.yaml")) if path.is_dir() else []

    @staticmethod
    def load(path: Path) -> RigFolder:
        """Raises CalibrationError: no rig there, several, or a damaged one."""
        rigs = RigFolder.rigs(path)
        if len(rigs) != 1:
            found = "none" if not rigs else ", ".join(file.name for file in rigs)
            next_step = "dr calibrate intrinsics makes it" if not rigs else "keep each rig in a directory of its own"
            raise _refused(str(path), "the directory of one rig", found, next_step)
        return RigFolder(path, Rig.load(rigs[0]), _read_steps(path / STEPS_FILE))

    def write(
        self, step: str, record: Mapping[str, Any], pictures: Mapping[str, bytes], now_unix_s: float
    ) -> RigFolder:
        """Write the rig, this step's record and JPEG pictures by their text, and the report anew.

        Raises:
            CalibrationError: it cannot be written.
        """
        from dr_calibration.report import write_report

        steps = dict(self.steps)
        try:
            folder = self.path / PICTURES
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"{step}_*.jpg"):
                old.unlink()
            shown = []
            for number, (text, data) in enumerate(pictures.items(), 1):
                name = f"{step}_{number}.jpg"
                write_whole(folder / name, data)
                shown.append({"file": name, "text": text})
            if step == "intrinsics":
                write_camera_info(self.path / CAMERA_INFO_FILE, self.rig.intrinsics, self.rig.camera_name, replace=True)
            if step != "check":
                self.rig.save(self.path, replace=True)
            content = {"made_unix_s": now_unix_s, "rig_hash": self.rig.hash, **record, "shown": shown}
            steps[step] = plain(content)
            text = json.dumps({"format": FORMAT, "steps": steps}, indent=1, allow_nan=False)
            write_whole(self.path / STEPS_FILE, text + "\n")
        except OSError as error:
            found = error.strerror or "an error"
            raise _refused(str(self.path), "a directory that can be written", found, "give another --out") from error
        written = RigFolder(self.path, self.rig, steps)
        write_report(self.path, now_unix_s)
        return written


def plain(value: Any) -> Any:
    """The same for JSON: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_steps(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    next_step = "calibrate again, or remove the file"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise ValueError(f"more than {LARGEST_BYTES} bytes")
        content = json.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())[:120]
        raise _refused(str(path), "what the steps wrote", found, next_step) from error
    steps = content.get("steps") if isinstance(content, dict) and content.get("format") == FORMAT else None
    good = isinstance(steps, dict) and all(name in NAMES and isinstance(one, dict) for name, one in steps.items())
    if not good:
        raise _refused(str(path), f"what the steps wrote, of format {FORMAT}", "something else", next_step)
    assert isinstance(steps, dict)
    return steps


def _refused(subject: str, expected: str, found: str, next_step: str) -> CalibrationError:
    return CalibrationError(subject, expected=expected, found=found, next_step=next_step)
