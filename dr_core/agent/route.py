"""Poses that a tool visits one after another, for example to calibrate a camera the same way again.

Poses are in the robot's base frame: metres, quaternions xyzw. Velocities are in base axes, m/s and rad/s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dr_core.config import build, load_yaml
from dr_core.errors import UserError

Vector = NDArray[np.float64]

GAIN_PER_S = 3.0
"""What is left of the way is made good at this rate."""
ARRIVED_M, ARRIVED_RAD = 0.001, 0.004
SLACK_S = 10.0
"""Time on top of twice the time a way should take, after which the pose counts as not reachable."""
SINES = ((0.37, 0.61), (0.43, 0.71), (0.31, 0.83))
"""Hz, of x, y and z of the wiggle, with weights 0.6 and 0.4: sums that do not repeat themselves within a minute."""
FADE_S = 1.0
"""The wiggle begins and ends within this time."""


class RouteError(UserError):
    """A route is not usable, or the tool does not get to one of its poses."""


@dataclass(frozen=True)
class Wiggle:
    """A smooth motion about the last pose in which no moment is like another: it tells clocks apart."""

    duration_s: float = 15.0
    linear_m: float = 0.03
    """Greatest way along each axis."""
    angular_rad: float = 0.1
    """Greatest turn about each axis."""

    def __post_init__(self) -> None:
        if not (2 * FADE_S <= self.duration_s <= 600 and 0 <= self.linear_m <= 0.2 and 0 <= self.angular_rad <= 0.5):
            raise ValueError(f"a wiggle lasts {2 * FADE_S:g} to 600 s and goes up to 0.2 m and 0.5 rad")

    def offset(self, time_s: float) -> Vector:
        """(6,): m and, as a rotation vector, rad from the pose that it is about."""
        fade = np.clip(min(time_s, self.duration_s - time_s) / FADE_S, 0.0, 1.0)
        fade = fade * fade * (3 - 2 * fade)
        waves = [
            0.6 * math.sin(2 * math.pi * slow * (time_s + shift))
            + 0.4 * math.sin(2 * math.pi * fast * (time_s + shift))
            for shift in (0.0, 0.7)
            for slow, fast in SINES
        ]
        return fade * np.array(waves) * np.repeat([self.linear_m, self.angular_rad], 3)


@dataclass(frozen=True)
class Route:
    """Where to go, as `load_route` reads it from YAML."""

    poses: tuple[tuple[float, ...], ...]
    """Of the tool: x y z in m, quaternion x y z w."""
    dwell_s: float = 1.0
    """How long the tool stays at each."""
    linear_m_s: float = 0.1
    """Fastest; the robot's own file and the safety gate may set less."""
    angular_rad_s: float = 0.4
    wiggle: Wiggle | None = None
    """What comes after the last pose."""

    def __post_init__(self) -> None:
        if not self.poses:
            raise ValueError("poses: at least one")
        for index, pose in enumerate(self.poses):
            if len(pose) != 7 or not np.isfinite(pose).all() or abs(np.linalg.norm(pose[3:]) - 1) > 1e-3:
                raise ValueError(f"poses[{index}]: 7 numbers, x y z in m and a unit quaternion x y z w")
            if max(map(abs, pose[:3])) > 5.0:
                raise ValueError(f"poses[{index}]: {pose[:3]} m is out of reach of any arm; are these millimetres?")
        if not (0 <= self.dwell_s <= 600 and 0 < self.linear_m_s <= 2 and 0 < self.angular_rad_s <= 5):
            raise ValueError("0 to 600 s at each pose, speeds above 0 and up to 2 m/s and 5 rad/s")


def load_route(path: Path | str) -> Route:
    """The route of a YAML file.

    Raises:
        ConfigError: it is missing, or a value is wrong.
    """
    return build(Route, load_yaml(path), str(path))


class Traveller:
    """Leads a tool along a route: call it with where the tool is, as often as one likes.

    Args:
        route: where to go.
        linear_m_s, angular_rad_s: fastest that the robot is told to go.

    Attributes:
        status: what it is about, in words; "route done" when the route is over and the last pose is kept.

    Raises:
        RouteError: a robot that is not to move or not to turn.
    """

    def __init__(self, route: Route, linear_m_s: float, angular_rad_s: float) -> None:
        if not (linear_m_s > 0 and angular_rad_s > 0):
            raise RouteError(
                "route", expected="a robot that moves and turns its tool",
                found=f"{linear_m_s:g} m/s and {angular_rad_s:g} rad/s for an action of 1",
                next_step="give another robot, or correct its file",
            )  # fmt: skip
        self.route = route
        self._speeds = min(route.linear_m_s, linear_m_s), min(route.angular_rad_s, angular_rad_s)
        self.restart()

    def restart(self) -> None:
        """To the first pose again."""
        self._next = 0
        self._patience_s = self._set_out_s = self._arrived_s = math.nan
        self.status = "route not begun"

    def __call__(self, now_s: float, position_m: Vector, quaternion_xyzw: Vector) -> Vector:
        """The velocity (6,) with which to go on: linear m/s, angular rad/s.

        Args:
            now_s: of the measurement, on any clock that only goes forward.
            position_m: (3,) of the tool.
            quaternion_xyzw: (4,) of the tool.

        Raises:
            RouteError: the tool has not reached the pose within twice the time that it should take, and 10 s.
        """
        turned = Rotation.from_quat(quaternion_xyzw)
        error = self._error(np.zeros(6), position_m, turned)
        if math.isnan(self._arrived_s):
            self._approach(now_s, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:])))
        if math.isnan(self._arrived_s):
            return self._limited(error)
        stayed_s = now_s - self._arrived_s - self.route.dwell_s
        if stayed_s < 0:
            return self._limited(error)
        if self._next < len(self.route.poses) - 1:
            self._next += 1
            self._set_out_s = self._arrived_s = math.nan
            return self(now_s, position_m, quaternion_xyzw)
        wiggle = self.route.wiggle
        if wiggle is None or stayed_s >= wiggle.duration_s:
            self.status = "route done"
            return self._limited(error)
        self.status = f"wiggle for {wiggle.duration_s:g} s"
        step_s = 1e-3
        now, soon = wiggle.offset(stayed_s), wiggle.offset(stayed_s + step_s)
        turn = (Rotation.from_rotvec(soon[3:]) * Rotation.from_rotvec(now[3:]).inv()).as_rotvec()
        ahead = np.concatenate([soon[:3] - now[:3], turn]) / step_s
        return self._limited(self._error(now, position_m, turned), ahead)

    def _approach(self, now_s: float, far_m: float, far_rad: float) -> None:
        """Note that the tool has arrived, or that it should have long ago."""
        count = len(self.route.poses)
        if math.isnan(self._set_out_s):
            self._set_out_s = now_s
            self._patience_s = 2 * max(far_m / self._speeds[0], far_rad / self._speeds[1]) + SLACK_S
            self.status = f"to pose {self._next + 1} of {count}"
        if far_m < ARRIVED_M and far_rad < ARRIVED_RAD:
            self._arrived_s = now_s
            self.status = f"at pose {self._next + 1} of {count}"
        elif now_s - self._set_out_s > self._patience_s:
            raise RouteError(
                f"pose {self._next + 1} of the route",
                expected=f"to be reached within {self._patience_s:.0f} s",
                found=f"the tool {1e3 * far_m:.0f} mm and {math.degrees(far_rad):.0f} degrees away",
                next_step="look what holds the arm (gate_state, joint limits), or leave the pose out",
            )

    def _error(self, offset: Vector, position_m: Vector, turned: Rotation) -> Vector:
        """(6,) from where the tool is to where it shall be: m, and rad in base axes."""
        pose = np.array(self.route.poses[self._next])
        wanted = Rotation.from_rotvec(offset[3:]) * Rotation.from_quat(pose[3:])
        return np.concatenate([pose[:3] + offset[:3] - position_m, (wanted * turned.inv()).as_rotvec()])

    def _limited(self, error: Vector, ahead: Vector | float = 0.0) -> Vector:
        """The velocity that mends the error, on a straight way, within the speeds."""
        velocity = ahead + GAIN_PER_S * error
        fastest = max(
            float(np.linalg.norm(velocity[:3])) / self._speeds[0], float(np.linalg.norm(velocity[3:])) / self._speeds[1]
        )
        return np.asarray(velocity / max(1.0, fastest))
