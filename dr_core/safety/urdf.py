"""The joints' limits in a URDF file, and whether those of a robot's YAML file keep within them.

Only http://wiki.ros.org/urdf/XML/joint is read: `robot/joint/limit`. The file may come from anywhere, so that its size
is bounded and a document type, without which XML has no entities to expand, is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.parsers import expat

from dr_core.errors import ConfigError

if TYPE_CHECKING:
    from dr_core.safety.limits import Limits

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64


@dataclass(frozen=True)
class JointLimit:
    """What the maker of a robot allows one joint; radians, or metres of a prismatic one, and per second."""

    lower: float
    upper: float
    speed: float


def joint_limits(path: Path) -> dict[str, JointLimit]:
    """Those of every joint that moves, by name; a continuous joint has infinite bounds.

    Raises:
        ConfigError: missing, larger than 4 MiB, deeper than 64 levels, not XML, with a document type, a joint twice or
            without its limits.
    """
    try:
        if not path.is_file():
            raise _refused(path, "a URDF file", "none", "give its path, relative to the robot's file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refused(path, "a readable URDF file", error.strerror or "an error", "give its path") from error
    if len(raw) > MAX_BYTES:
        raise _refused(path, f"at most {MAX_BYTES} bytes", "a larger file", "check that this is a URDF file")
    return _Reader(path).read(raw)


def check_within(limits: Limits, joints: tuple[str, ...], path: Path) -> None:
    """Refuse limits that are wider than those of the URDF file, or joints that it does not have.

    Raises:
        ConfigError: naming the joint.
    """
    allowed = joint_limits(path)
    for i, name in enumerate(joints):
        if name not in allowed:
            raise _refused(path, f"a joint {name}", "none that moves", "name the joints as in the URDF file")
        outer = allowed[name]
        for what, found, low, high in (
            ("joint_lower_rad", limits.joint_lower_rad[i], outer.lower, outer.upper),
            ("joint_upper_rad", limits.joint_upper_rad[i], outer.lower, outer.upper),
            ("joint_speed_rad_s", limits.joint_speed_rad_s[i], 0.0, outer.speed),
        ):
            if not low <= found <= high:
                raise ConfigError(
                    f"limits.{what} of {name}",
                    expected=f"{low:g} to {high:g}, as in {path}",
                    found=f"{found:g}",
                    next_step="narrow it",
                )


class _Reader:
    """Collects `robot/joint/limit` while the parser goes through the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, JointLimit] = {}
        self._open: list[str] = []
        self._joint: tuple[str, str] | None = None  # name and type

    def read(self, raw: bytes) -> dict[str, JointLimit]:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        try:
            parser.Parse(raw, True)
        except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: of a strange encoding
            raise _refused(self.path, "XML", str(error), "correct the file; run xacro first if it is one") from error
        return self.found

    def _doctype(self, *_: object) -> None:
        raise _refused(self.path, "no document type", "a DOCTYPE", "remove it")

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) == MAX_DEPTH:
            raise _refused(self.path, f"at most {MAX_DEPTH} levels", "more", "check that this is a URDF file")
        place = (*self._open, name)
        if not self._open and name != "robot":
            raise _refused(self.path, "<robot> at the top", f"<{name[:40]}>", "give a URDF file")
        if place == ("robot", "joint"):
            self._joint = (attributes.get("name", ""), attributes.get("type", ""))
        elif place == ("robot", "joint", "limit") and self._joint is not None:
            self._keep(*self._joint, attributes)
        self._open.append(name)

    def _end(self, name: str) -> None:
        self._open.pop()
        if (*self._open, name) != ("robot", "joint") or self._joint is None:
            return
        joint, kind = self._joint
        self._joint = None
        if kind in ("revolute", "prismatic") and joint not in self.found:
            raise _refused(self.path, f"a limit of joint {joint}", "none", "add <limit>")

    def _keep(self, joint: str, kind: str, attributes: dict[str, str]) -> None:
        if kind not in ("revolute", "prismatic", "continuous"):
            return
        if not joint or joint in self.found:
            raise _refused(self.path, "each joint with a name of its own", f"{joint!r} again", "correct the file")
        # The format's defaults of lower and upper are 0; speed has none.
        values = {name: self._number(joint, name, attributes.get(name, "0")) for name in ("lower", "upper")}
        if kind == "continuous":
            values = {"lower": -math.inf, "upper": math.inf}
        self.found[joint] = JointLimit(speed=self._number(joint, "velocity", attributes.get("velocity", "")), **values)

    def _number(self, joint: str, name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            found = repr(text[:40])
            raise _refused(self.path, f"a number as {name} of joint {joint}", found, "run xacro first if it is one")
        return value


def _refused(path: Path, expected: str, found: str, next_step: str) -> ConfigError:
    return ConfigError(str(path), expected=expected, found=found, next_step=next_step)
