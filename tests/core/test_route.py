"""Routes: an ideal tool that does as it is told visits every pose in time, and what cannot be driven is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dr_core.agent.route import FADE_S, Route, RouteError, Traveller, Wiggle, load_route
from dr_core.errors import ConfigError

TICK_S = 0.02
DOWN = (1.0, 0.0, 0.0, 0.0)
POSES = (
    (0.4, 0.0, 0.3, *DOWN),
    (0.5, 0.2, 0.2, *Rotation.from_euler("xz", [150, 40], degrees=True).as_quat()),
    (0.6, -0.1, 0.3, *-Rotation.from_euler("y", 160, degrees=True).as_quat()),
)


class Tool:
    """Goes exactly as fast as it is told."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.position, self.turned = np.array([0.3, 0.1, 0.4]), Rotation.from_quat(DOWN)
        self.way: list[tuple[float, np.ndarray, Rotation, np.ndarray, str]] = []

    def follow(self, traveller: Traveller, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            velocity = traveller(self.now_s, self.position, self.turned.as_quat())
            self.way.append((self.now_s, self.position, self.turned, velocity, traveller.status))
            self.position = self.position + velocity[:3] * TICK_S
            self.turned = Rotation.from_rotvec(velocity[3:] * TICK_S) * self.turned
            self.now_s += TICK_S


def test_every_pose_is_visited_for_the_dwell_and_within_the_speeds() -> None:
    traveller, tool = Traveller(Route(POSES, dwell_s=0.6, linear_m_s=0.5), 0.15, 0.7), Tool()
    tool.follow(traveller, 30.0)
    assert traveller.status == "route done"
    speeds = np.array([(np.linalg.norm(v[:3]), np.linalg.norm(v[3:])) for _, _, _, v, _ in tool.way])
    assert speeds.max(0) == pytest.approx([0.15, 0.4], rel=1e-6), "the robot's in m/s, the route's in rad/s"
    for number, pose in enumerate(POSES, start=1):
        last = " ".join(("at pose", str(number), "of 3"))
        stay = [(now, place, turned) for now, place, turned, _, status in tool.way if status == last]
        assert stay[-1][0] - stay[0][0] == pytest.approx(0.6, abs=2 * TICK_S)
        assert stay[-1][1] == pytest.approx(np.array(pose[:3]), abs=4e-4)
        assert (stay[-1][2].inv() * Rotation.from_quat(pose[3:])).magnitude() < 2e-3
    traveller.restart()
    tool.follow(traveller, 1.0)
    assert traveller.status == "to pose 1 of 3"


def test_the_wiggle_is_smooth_never_the_same_and_ends_where_it_began() -> None:
    wiggle = Wiggle(20.0, 0.03, 0.1)
    moments = np.array([wiggle.offset(time_s) for time_s in np.arange(0.0, 20.0, TICK_S)])
    assert np.abs(moments[:, :3]).max() < 0.03 and np.abs(moments[:, 3:]).max() < 0.1
    assert wiggle.offset(0.0) == pytest.approx(np.zeros(6)) and wiggle.offset(20.0) == pytest.approx(np.zeros(6))
    change = np.abs(np.diff(moments, 2, axis=0)).max(0) / TICK_S**2
    assert change.max() < 5.0, "no jumps"
    middle = moments[round(FADE_S / TICK_S) : -round(FADE_S / TICK_S)]
    for lag in range(round(0.5 / TICK_S), len(middle) // 2, 5):
        alike = np.corrcoef(middle[:-lag].ravel(), middle[lag:].ravel())[0, 1]
        assert alike < 0.85, f"it repeats itself after {lag * TICK_S:.2f} s"
    traveller, tool = Traveller(Route(POSES[:1], linear_m_s=1.0, angular_rad_s=2.0, wiggle=wiggle), 1.0, 2.0), Tool()
    tool.follow(traveller, 30.0)
    during = [one for one in tool.way if one[4].startswith("wiggle")]
    assert during[-1][0] - during[0][0] == pytest.approx(20.0, abs=2 * TICK_S)
    off = [place - POSES[0][:3] - wiggle.offset(now - during[0][0])[:3] for now, place, *_ in during]
    assert np.abs(off).max() < 2e-3
    assert tool.position == pytest.approx(np.array(POSES[0][:3]), abs=1e-4)


def test_a_tool_that_is_held_is_not_waited_for_for_ever() -> None:
    traveller = Traveller(Route(POSES[:1]), 0.1, 0.5)
    held = np.array([0.3, 0.0, 0.3]), np.array(DOWN)
    for now_s in np.arange(0.0, 11.9, 0.1):  # 2 x 1 s for 0.1 m, and 10 s
        assert traveller(now_s, *held)[0] == pytest.approx(0.1)
    with pytest.raises(RouteError, match="100 mm and 0 degrees away"):
        traveller(12.1, *held)
    with pytest.raises(RouteError, match="moves and turns"):
        Traveller(Route(POSES), 0.1, 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("poses: []", "at least one"),
        ("poses: [[0.4, 0, 0.3, 1, 0, 0]]", "7 numbers"),
        ("poses: [[0.4, 0, 0.3, 1, 1, 0, 0]]", "unit quaternion"),
        ("poses: [[400, 0, 300, 1, 0, 0, 0]]", "millimetres"),
        ("poses: [[0.4, 0, 0.3, 1, 0, 0, 0]]\nlinear_m_s: 0", "speeds above 0"),
        ("poses: [[0.4, 0, 0.3, 1, 0, 0, 0]]\nwiggle: {duration_s: 1}", "2 to 600 s"),
        ("poses: [[0.4, 0, 0.3, 1, 0, 0, 0]]\ndwel_s: 1", "dwell_s"),
    ],
)
def test_a_route_that_is_wrong_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "route.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_route(path)
