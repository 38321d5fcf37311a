"""A rig: one camera, how it sees, where it stands and when. One YAML file, refused where it may not hold any more."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, check_pose, from_quaternion, quaternion
from dr_calibration.intrinsics import Intrinsics, check_keys, finite, read_yaml, write_yaml

FORMAT = 1
LARGEST_FROM_TOOL_M = 2.0
"""A camera on a tool is nearer than this, or its place is in millimetres."""
FUTURE_S = 3600.0
"""By so much the clock of the machine that calibrated may be ahead."""
DAY_S = 86400.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CameraPose:
    """Where the camera's optical frame (x right, y down, z into the picture) is.

    Attributes:
        of: what it is fixed to: "base" for a camera beside the robot, "tool" for one on it.
        xyz_m: (3,) of the camera in the base's or tool's frame.
        quaternion_xyzw: (4,) of length 1; turns directions of the camera's frame into the base's or tool's.
        frame: name of the base's or tool's frame on TF.
        camera_frame: name of the optical frame on TF.
        sd_mm, sd_deg: standard deviations of place and direction.
    """

    of: Literal["base", "tool"]
    xyz_m: tuple[float, ...]
    quaternion_xyzw: tuple[float, ...]
    frame: str
    camera_frame: str
    sd_mm: float
    sd_deg: float

    def __post_init__(self) -> None:
        """Raises CalibrationError: no pose, millimetres, no frames, or deviations that are not positive."""
        if self.of not in ("base", "tool"):
            raise _refused("camera pose", "of base or tool", repr(self.of), "correct it")
        pose = from_quaternion(self.quaternion_xyzw, finite(f"{self.key}.xyz_m", list(self.xyz_m), 3), self.key)
        far = float(np.linalg.norm(pose[:3, 3]))
        if self.of == "tool" and far > LARGEST_FROM_TOOL_M:
            expected = f"a camera within {LARGEST_FROM_TOOL_M:g} m of the tool"
            raise _refused(self.key, expected, f"{far:g}", "give metres, not millimetres")
        for name, frame in (("frame", self.frame), ("camera_frame", self.camera_frame)):
            if not isinstance(frame, str) or not frame or frame.startswith("/") or any(c.isspace() for c in frame):
                raise _refused(f"{self.key}.{name}", "a frame's name without a leading slash", repr(frame), "name it")
        if self.frame == self.camera_frame:
            raise _refused(f"{self.key}.frame", "another frame than the camera's", self.frame, "name the base or tool")
        for name, sd in (("sd_mm", self.sd_mm), ("sd_deg", self.sd_deg)):
            _check_number(f"{self.key}.{name}", sd, 0.0, 1e4)
        object.__setattr__(self, "xyz_m", tuple(float(value) for value in self.xyz_m))
        object.__setattr__(self, "quaternion_xyzw", tuple(float(value) for value in self.quaternion_xyzw))

    @staticmethod
    def of_matrix(
        of: Literal["base", "tool"], pose: Pose, frame: str, camera_frame: str, sd_mm: float, sd_deg: float
    ) -> CameraPose:
        """From ``T_base_camera`` or ``T_tool_camera`` (4, 4), m. Raises CalibrationError: no pose, as `check_pose`."""
        pose = check_pose(pose, f"T_{of}_camera")
        return CameraPose(of, tuple(pose[:3, 3]), tuple(quaternion(pose)), frame, camera_frame, sd_mm, sd_deg)

    @property
    def T(self) -> Pose:
        """(4, 4) ``T_base_camera`` or ``T_tool_camera``, m: maps points of the camera's frame into base or tool."""
        return from_quaternion(self.quaternion_xyzw, self.xyz_m, self.key)

    @property
    def key(self) -> str:
        """ "T_base_camera" or "T_tool_camera"."""
        return f"T_{self.of}_camera"


@dataclass(frozen=True)
class TimeOffset:
    """``stamp of the picture - offset_s`` is when the robot was there, on the robot's clock; standard deviation, s."""

    offset_s: float
    sd_s: float

    def __post_init__(self) -> None:
        _check_number("time_offset.offset_s", self.offset_s, -10.0, 10.0)
        _check_number("time_offset.sd_s", self.sd_s, 0.0, 10.0)


@dataclass(frozen=True)
class ReferencePicture:
    """For the camera-moved check: a file beside the rig's, and its SHA-256."""

    file: str
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not _NAME.fullmatch(self.file):
            raise _refused("reference.file", "the name of a file beside the rig's", repr(self.file), "put it there")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise _refused("reference.sha256", "64 hexadecimal digits", repr(self.sha256), "make the reference again")

    @staticmethod
    def of(path: Path) -> ReferencePicture:
        """Raises CalibrationError: the file cannot be read."""
        return ReferencePicture(path.name, _sha256(path))


@dataclass(frozen=True)
class Rig:
    """Everything that has to stay as it is for a reward to hold.

    Attributes:
        camera_name: letters, digits, "_", "-", "."; part of the file's name.
        camera_serial: as the camera reports it; "" for one that has none.
        intrinsics: of its lens.
        made_unix_s: when it was calibrated.
        pose: None before hand-eye calibration.
        time_offset: None before it was measured.
        board: what it was calibrated with, plain values (`Board.to_dict`).
        reference: None without a camera-moved check.
    """

    camera_name: str
    camera_serial: str
    intrinsics: Intrinsics
    made_unix_s: float
    pose: CameraPose | None = None
    time_offset: TimeOffset | None = None
    board: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: ReferencePicture | None = None

    def __post_init__(self) -> None:
        """Raises CalibrationError: a name, serial, date or board that cannot be written."""
        if not isinstance(self.camera_name, str) or not _NAME.fullmatch(self.camera_name):
            raise _refused("camera.name", "letters, digits, _, - and .", repr(self.camera_name), "choose another")
        if not isinstance(self.camera_serial, str) or len(self.camera_serial) > 200:
            raise _refused("camera.serial", "text", repr(self.camera_serial)[:60], "write it in quotes")
        _check_number("made_unix_s", self.made_unix_s, 1e9, 1e11)
        for key, value in self.board.items():
            plain = isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
            if not isinstance(key, str) or not plain:
                raise _refused(f"board.{key}", "text or a number", repr(value)[:60], "give Board.to_dict()")

    @property
    def hash(self) -> str:
        """SHA-256 of the content: the calibration hash of bags and checkpoints."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def file_name(self) -> str:
        return f"rig_{self.camera_name}.yaml"

    def save(self, folder: Path, *, replace: bool = False) -> Path:
        """Write `file_name` whole or not at all; the reference picture is in `folder` already.

        Raises:
            CalibrationError: the file is there and ``replace`` is not set, it cannot be written, or the reference
                picture is missing or another.
        """
        self.check_reference(folder)
        path = folder / self.file_name
        write_yaml(path, {**self._content(), "hash": self.hash}, replace=replace)
        return path

    @staticmethod
    def load(path: Path) -> Rig:
        """Read what `save` wrote.

        Raises:
            CalibrationError: missing, not plain YAML, unknown keys, values that cannot be, or changed by hand.
        """
        content = read_yaml(path)
        where = path.name
        if content.get("format") != FORMAT:
            raise _refused(where, f"a rig of format {FORMAT}", repr(content.get("format")), "calibrate again")
        poses = {"T_base_camera", "T_tool_camera"}
        needed = {"format", "camera", "intrinsics", "made_unix_s", "hash"}
        check_keys(where, content, needed, needed | poses | {"time_offset", "board", "reference"})
        if len(both := sorted(poses & set(content))) > 1:
            raise _refused(where, "one pose of the camera", " and ".join(both), "remove one")
        camera = _part(where, content, "camera", ("name", "serial"))
        pose = _pose(where, content, both[0]) if both else None
        offset = _part(where, content, "time_offset", ("offset_s", "sd_s")) if "time_offset" in content else None
        reference = _part(where, content, "reference", ("file", "sha256")) if "reference" in content else None
        board = content.get("board", {})
        if not isinstance(board, dict):
            raise _refused(f"{where}: board", "key: value lines", repr(board)[:60], "calibrate again")
        rig = Rig(
            camera["name"],
            camera["serial"],
            _intrinsics(where, content),
            content["made_unix_s"],
            pose,
            TimeOffset(**offset) if offset else None,
            board,
            ReferencePicture(**reference) if reference else None,
        )
        if rig.hash != content["hash"]:
            found = f"{str(content['hash'])[:12]}… for content of {rig.hash[:12]}…"
            raise _refused(f"{where}: hash", "the hash of the content", found, "do not edit it: calibrate again")
        return rig

    def check(
        self,
        *,
        serial: str | None = None,
        now_unix_s: float | None = None,
        max_age_days: float | None = None,
        width: int | None = None,
        height: int | None = None,
        calibration_hash: str | None = None,
    ) -> None:
        """Refuse a calibration that is not of this camera, these pictures or this time.

        Args:
            serial: of the camera that is plugged in.
            now_unix_s: the time; needed for the age.
            max_age_days: how old the calibration may be.
            width, height: of the pictures, px.
            calibration_hash: of the bag or model that the calibration shall agree with.

        Raises:
            CalibrationError: what does not agree.
        """
        where = f"calibration of {self.camera_name}"
        if serial is not None and serial != self.camera_serial:
            next_step = "plug in that camera, or calibrate this one"
            raise _refused(where, f"camera {self.camera_serial or 'without serial'}", serial or "none", next_step)
        size = (self.intrinsics.width, self.intrinsics.height)
        given = (size[0] if width is None else width, size[1] if height is None else height)
        if given != size:
            found = f"{given[0]}x{given[1]}"
            raise _refused(where, f"pictures of {size[0]}x{size[1]}", found, "set the camera to that size")
        if calibration_hash is not None and calibration_hash != self.hash:
            next_step = "use the calibration of the recordings, or record and train again"
            raise _refused(where, f"hash {calibration_hash[:12]}…", f"{self.hash[:12]}…", next_step)
        if max_age_days is not None:
            if now_unix_s is None:
                raise ValueError("max_age_days needs now_unix_s")
            days = (now_unix_s - self.made_unix_s) / DAY_S
            if days > max_age_days:
                raise _refused(where, f"at most {max_age_days:g} days old", f"{days:.1f} days", "calibrate again")
        if now_unix_s is not None and self.made_unix_s - now_unix_s > FUTURE_S:
            raise _refused(where, "a date in the past", "one in the future", "set the clock, or calibrate again")

    def check_reference(self, folder: Path) -> Path | None:
        """The reference picture's path, or None where the rig has none.

        Raises:
            CalibrationError: it is missing, or another picture.
        """
        if self.reference is None:
            return None
        path = folder / self.reference.file
        if (found := _sha256(path)) != self.reference.sha256:
            expected = f"the picture of hash {self.reference.sha256[:12]}…"
            raise _refused(str(path), expected, f"{found[:12]}…", "put it back, or make a new reference")
        return path

    def _content(self) -> dict[str, Any]:
        lens = self.intrinsics
        content: dict[str, Any] = {
            "format": FORMAT,
            "camera": {"name": self.camera_name, "serial": self.camera_serial},
            "made_unix_s": float(self.made_unix_s),
            "intrinsics": {
                "width": lens.width,
                "height": lens.height,
                "fx_fy_cx_cy_px": _floats(lens.K[[0, 1, 0, 1], [0, 1, 2, 2]]),
                "distortion_plumb_bob": _floats(lens.distortion),
                "hash": lens.hash,
            },
        }
        if lens.sd_px is not None:
            content["intrinsics"]["sd_px"] = _floats(lens.sd_px)
        for name in ("rms_px", "held_out_rms_px"):
            if (value := getattr(lens, name)) is not None:
                content["intrinsics"][name] = float(value)
        if self.pose is not None:
            content[self.pose.key] = {
                "frame": self.pose.frame,
                "camera_frame": self.pose.camera_frame,
                "xyz_m": list(self.pose.xyz_m),
                "quaternion_xyzw": list(self.pose.quaternion_xyzw),
                "sd_mm": float(self.pose.sd_mm),
                "sd_deg": float(self.pose.sd_deg),
            }
        if self.time_offset is not None:
            content["time_offset"] = {key: float(value) for key, value in vars(self.time_offset).items()}
        if self.board:
            content["board"] = dict(self.board)
        if self.reference is not None:
            content["reference"] = dict(vars(self.reference))
        return content


def _intrinsics(where: str, content: Mapping[str, Any]) -> Intrinsics:
    needed = ("width", "height", "fx_fy_cx_cy_px", "distortion_plumb_bob", "hash")
    part = _part(where, content, "intrinsics", needed, ("sd_px", "rms_px", "held_out_rms_px"))
    where = f"{where}: intrinsics"
    fx, fy, cx, cy = finite(f"{where}.fx_fy_cx_cy_px", part["fx_fy_cx_cy_px"], 4)
    errors = {}
    for name in ("rms_px", "held_out_rms_px"):
        if name in part:
            _check_number(f"{where}.{name}", part[name], 0.0, 1e4)
            errors[name] = float(part[name])
    lens = Intrinsics(
        part["width"],
        part["height"],
        np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]),
        finite(f"{where}.distortion_plumb_bob", part["distortion_plumb_bob"], 5),
        finite(f"{where}.sd_px", part["sd_px"], 4) if "sd_px" in part else None,
        **errors,
    )
    if lens.hash != part["hash"]:
        raise _refused(f"{where}.hash", "the hash of the lens", str(part["hash"])[:12], "calibrate again")
    return lens


def _pose(where: str, content: Mapping[str, Any], key: str) -> CameraPose:
    part = _part(where, content, key, ("frame", "camera_frame", "xyz_m", "quaternion_xyzw", "sd_mm", "sd_deg"))
    xyz_m = tuple(finite(f"{where}: {key}.xyz_m", part["xyz_m"], 3))
    turn = tuple(finite(f"{where}: {key}.quaternion_xyzw", part["quaternion_xyzw"], 4))
    of: Literal["base", "tool"] = "base" if key == "T_base_camera" else "tool"
    return CameraPose(of, xyz_m, turn, part["frame"], part["camera_frame"], part["sd_mm"], part["sd_deg"])


def _part(
    where: str, content: Mapping[str, Any], key: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    part = content[key]
    if not isinstance(part, dict):
        raise _refused(f"{where}: {key}", f"the keys {', '.join(needed)}", repr(part)[:60], "calibrate again")
    check_keys(f"{where}: {key}", part, needed, needed + optional)
    return part


def _check_number(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise _refused(name, f"a number from {low:g} to {high:g}", repr(value)[:60], "calibrate again")


def _floats(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in values]


def _sha256(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        found = "a link" if path.is_symlink() else "none"
        raise _refused(str(path), "a reference picture", found, "put it back, or make a new reference")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        found = error.strerror or "an error"
        raise _refused(str(path), "a reference picture", found, "put it back, or make a new reference") from error


def _refused(subject: str, expected: str, found: str, next_step: str) -> CalibrationError:
    return CalibrationError(subject, expected=expected, found=found, next_step=next_step)
