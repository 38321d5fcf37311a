"""What the steps of a calibration are computed from: pictures with stamps, and where the tool was; and their folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, check_pose, from_parts, quaternion

Floats = NDArray[np.float64]
Track = tuple[Floats, Floats]
"""The robot's own track: stamps_s (N,), T_base_tool (N, 4, 4) m; denser than the pictures."""

SAMPLES_FILE, TOOL_FILE, PICTURES = "samples.jsonl", "tool.jsonl", "pictures"

LONGEST_GAP_S = 0.25
"""Between two poses of a track that are farther apart, the tool's way is not known."""
REST_S = 0.15
"""A tool at rest has its pose for so long before and after."""
REST_M, REST_RAD = 1e-3, float(np.radians(0.2))
"""How much a pose may differ and still be the same."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture, and where the tool was.

    Attributes:
        stamp_s: of the picture, s, on the camera's clock.
        picture: uint8 (H, W, 3) RGB.
        T_base_tool: (4, 4) at the stamp, m; None where not known.
    """

    stamp_s: float
    picture: NDArray[np.uint8]
    T_base_tool: Pose | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.picture.shape[1], self.picture.shape[0]


class ToolPath:
    """Where the tool was at any moment of a track: never beyond its ends, nor across a gap.

    Raises:
        CalibrationError: shapes, stamps that do not increase, or what is no pose in metres.
    """

    def __init__(self, track: Track) -> None:
        stamps, poses = np.asarray(track[0], np.float64), np.asarray(track[1], np.float64)
        if stamps.ndim != 1 or poses.shape != (len(stamps), 4, 4) or len(stamps) < 2:
            found = f"shapes {stamps.shape} and {poses.shape}"
            raise _refused("track of the tool", "stamps (N,) and poses (N, 4, 4), two or more", found, "record longer")
        if not np.isfinite(stamps).all() or (np.diff(stamps) <= 0.0).any():
            raise _refused("track of the tool", "stamps that increase", "others", "sort them, and drop repeats")
        for number, pose in enumerate(poses):
            check_pose(pose, f"tool pose {number}")
        self.stamps_s, self.poses = stamps, poses
        self._slerp = Slerp(stamps, Rotation.from_matrix(poses[:, :3, :3]))

    def at(self, stamp_s: float) -> Pose | None:
        """(4, 4) T_base_tool: linear in place, slerp in rotation; None where it is not known."""
        after = int(np.searchsorted(self.stamps_s, stamp_s))
        if after < len(self.stamps_s) and self.stamps_s[after] == stamp_s:
            return self.poses[after].copy()
        if after in (0, len(self.stamps_s)):
            return None
        before_s, after_s = self.stamps_s[after - 1], self.stamps_s[after]
        if after_s - before_s > LONGEST_GAP_S:
            return None
        share = (stamp_s - before_s) / (after_s - before_s)
        place = (1.0 - share) * self.poses[after - 1, :3, 3] + share * self.poses[after, :3, 3]
        return from_parts(self._slerp(stamp_s), place)

    def rests(self, stamp_s: float) -> bool:
        """Whether the tool stood still from `REST_S` before to `REST_S` after; False where that is not known."""
        here = self.at(stamp_s)
        if here is None:
            return False
        near = np.abs(self.stamps_s - stamp_s) <= REST_S
        return same_pose(self.poses[near], here)


def same_pose(poses: Floats, one: Pose) -> bool:
    """Whether all poses (N, 4, 4) are as good as one (4, 4): within `REST_M` and `REST_RAD`."""
    ways = np.linalg.norm(poses[:, :3, 3] - one[:3, 3], axis=1)
    # The trace of a rotation is 1 + 2 cos of its angle.
    cosines = (np.einsum("nij,ij->n", poses[:, :3, :3], one[:3, :3]) - 1.0) / 2.0
    return bool((ways <= REST_M).all() and (np.arccos(np.clip(cosines, -1.0, 1.0)) <= REST_RAD).all())


def write_samples(folder: Path, samples: Iterable[Sample], tool: Track | None = None) -> Path:
    """Write a folder that `sources.read` reads, whole or not at all: samples.jsonl, tool.jsonl, pictures/*.png.

    Raises:
        CalibrationError: something is there already, nothing to write, or it cannot be written.
    """
    if os.path.lexists(folder):
        raise _refused(str(folder), "a free name", "something that is there", "choose another name")
    building = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    try:
        (building / PICTURES).mkdir(parents=True)
        lines = []
        for number, sample in enumerate(samples):
            name = f"{PICTURES}/{number:06d}.png"
            good, data = cv2.imencode(".png", sample.picture[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
            if not good:
                raise _refused("picture", "uint8 (H, W, 3)", str(sample.picture.shape), "convert it")
            (building / name).write_bytes(data.tobytes())
            pose = None if sample.T_base_tool is None else _numbers(sample.T_base_tool)
            lines.append(json.dumps({"stamp_s": float(sample.stamp_s), "file": name, "T_base_tool": pose}))
        if not lines:
            raise _refused(str(folder), "pictures to write", "none", "collect some first")
        (building / SAMPLES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        if tool is not None:
            entries = [
                json.dumps({"stamp_s": float(stamp), "T_base_tool": _numbers(pose)})
                for stamp, pose in zip(*tool, strict=True)
            ]
            (building / TOOL_FILE).write_text("\n".join(entries) + "\n", encoding="utf-8")
        building.rename(folder)
    except OSError as error:
        found = error.strerror or "an error"
        raise _refused(str(folder), "a folder that can be written", found, "choose another") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _numbers(pose: Pose) -> list[float]:
    """x, y, z, qx, qy, qz, qw."""
    return [float(value) for value in (*pose[:3, 3], *quaternion(pose))]


def _refused(subject: str, expected: str, found: str, next_step: str) -> CalibrationError:
    return CalibrationError(subject, expected=expected, found=found, next_step=next_step)
