"""A robot's file: everything needed is there, a bound of 0.0 is a bound, mistakes are told in one line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from dr_core.config import dump_yaml, load_yaml, to_mapping
from dr_core.errors import ConfigError
from dr_core.safety.limits import Robot, load_robot
from dr_core.safety.watch import ClockWatch, Heartbeats, StopRequests

SIM_PANDA = Path(__file__).resolve().parents[2] / "config" / "robots" / "sim_panda.yaml"


@pytest.fixture
def robot() -> Robot:
    return load_robot(SIM_PANDA)


def test_the_simulated_panda(robot: Robot) -> None:
    assert robot.name == "sim_panda"
    assert len(robot.joints) == 7
    lower, upper = robot.limits.joint_bounds_rad
    assert lower[3] == pytest.approx(-3.0718 + 0.05) and upper[3] == pytest.approx(-0.4 - 0.05)


def test_round_trip(robot: Robot, tmp_path: Path) -> None:
    dump_yaml(tmp_path / "robot.yaml", to_mapping(robot))
    assert load_robot(tmp_path / "robot.yaml") == robot


def test_without_a_file_nothing_is_loaded(tmp_path: Path) -> None:
    for path in ("", tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError) as caught:
            load_robot(path)
        assert "\n" not in str(caught.value)


def test_every_limit_is_required(tmp_path: Path) -> None:
    whole = load_yaml(SIM_PANDA)
    for name in whole["limits"]:
        limits = {key: value for key, value in whole["limits"].items() if key != name}
        dump_yaml(tmp_path / "robot.yaml", {**whole, "limits": limits})
        with pytest.raises(ConfigError, match=f"limits.{name}"):
            load_robot(tmp_path / "robot.yaml")
    del whole["limits"]
    dump_yaml(tmp_path / "robot.yaml", whole)
    with pytest.raises(ConfigError, match="limits"):
        load_robot(tmp_path / "robot.yaml")


def test_zero_is_a_bound(robot: Robot) -> None:
    limits = replace(robot.limits, workspace_lower_m=(0.0, 0.0, 0.0), linear_speed_m_s=0.0, max_clamps=0)
    assert limits.workspace_lower_m == (0.0, 0.0, 0.0) and limits.linear_speed_m_s == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"linear_speed_m_s": -0.1},
        {"linear_speed_m_s": math.inf},
        {"linear_speed_m_s": math.nan},
        {"workspace_lower_m": (0.0, math.nan, 0.0)},
        {"workspace_lower_m": (1.0, 0.0, 0.1)},
        {"joint_lower_rad": (0.0,)},
        {"joint_upper_rad": (3.0, 3.0)},
        {"joint_margin_rad": 5.0},
        {"period_s": 0.0},
        {"period_s": 0.05},
        {"hold_after_s": 0.5},
        {"max_invalid": -1},
    ],
)
def test_impossible_limits(robot: Robot, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(robot.limits, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("joints", [(), ("a",), ("a",) * 7])
def test_joints_fit_the_limits(robot: Robot, joints: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="joints"):
        replace(robot, joints=joints)


def test_a_mistyped_limit_names_the_nearest(tmp_path: Path) -> None:
    whole = load_yaml(SIM_PANDA)
    whole["limits"]["linear_sped_m_s"] = whole["limits"].pop("linear_speed_m_s")
    dump_yaml(tmp_path / "robot.yaml", whole)
    with pytest.raises(ConfigError, match="linear_speed_m_s"):
        load_robot(tmp_path / "robot.yaml")


# ---- the URDF file as outer bound ----


def urdf(robot: Robot, **changed: str) -> str:
    """A URDF file's text with the robot's own limits; `panda_joint2="upper='1.0'"` replaces attributes of one joint."""
    joints = [
        "<joint name='fixed' type='fixed'/>",
        "<joint name='wheel' type='continuous'><limit velocity='9'/></joint>",
    ]
    for i, name in enumerate(robot.joints):
        limits = robot.limits
        own = f"lower='{limits.joint_lower_rad[i]}' upper='{limits.joint_upper_rad[i]}'"
        attributes = changed.get(name, f"{own} velocity='{limits.joint_speed_rad_s[i]}' effort='87'")
        joints.append(f"<joint name='{name}' type='revolute'><limit {attributes}/><mimic joint='x'/></joint>")
    return f"<?xml version='1.0'?>\n<robot name='r'>{''.join(joints)}<link><joint name='panda_joint1'/></link></robot>"


def load_with(folder: Path, text: str | bytes) -> Robot:
    """sim_panda with a URDF file of this text."""
    (folder / "robot.urdf").write_bytes(text if isinstance(text, bytes) else text.encode())
    dump_yaml(folder / "robot.yaml", {**load_yaml(SIM_PANDA), "urdf": "robot.urdf"})
    return load_robot(folder / "robot.yaml")


def test_limits_within_the_urdf(robot: Robot, tmp_path: Path) -> None:
    assert load_with(tmp_path, urdf(robot)).limits == robot.limits


@pytest.mark.parametrize(
    ("attributes", "key"),
    [
        ("lower='-1.7' upper='1.7628' velocity='1'", "joint_lower_rad"),
        ("lower='-1.7628' upper='1.76' velocity='1'", "joint_upper_rad"),
        ("lower='-1.7628' upper='1.7628' velocity='0.79'", "joint_speed_rad_s"),
        ("velocity='1'", "joint_lower_rad"),
    ],
)
def test_limits_wider_than_the_urdf_are_refused_by_name(
    robot: Robot, tmp_path: Path, attributes: str, key: str
) -> None:
    with pytest.raises(ConfigError, match=f"limits.{key} of panda_joint2") as caught:
        load_with(tmp_path, urdf(robot, panda_joint2=attributes))
    assert "\n" not in str(caught.value)


BOMB = "<!DOCTYPE r [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]><robot name='&b;'/>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<robot><joint", "XML"),
        ("", "XML"),
        ("<sdf/>", "<robot>"),
        ("<robot name='r'/>", "a joint panda_joint1"),
        (BOMB, "document type"),
        ("<!DOCTYPE r SYSTEM 'file:///etc/passwd'><robot/>", "document type"),
        ("<robot>" + "<a>" * 10**6, "at most 64 levels"),
        ("<robot><joint name='a' type='revolute'/></robot>", "a limit of joint a"),
        ("<robot><joint name='a' type='revolute'><limit lower='${x}' velocity='1'/></joint></robot>", "xacro"),
        ("<robot><joint name='a' type='revolute'><limit lower='nan' velocity='1'/></joint></robot>", "joint a"),
        ("<robot><joint name='a' type='revolute'><limit lower='0'/></joint></robot>", "velocity of joint a"),
        ("<robot>" + "<joint name='a' type='prismatic'><limit velocity='1'/></joint>" * 2 + "</robot>", "'a' again"),
        (b"<?xml version='1.0' encoding='strange'?><robot/>", "XML"),
        (b" " * (4 * 2**20 + 1), "at most 4194304 bytes"),
    ],
)  # fmt: skip
def test_urdf_files_that_are_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_urdf_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("missing.urdf", "."):
        dump_yaml(tmp_path / "robot.yaml", {**load_yaml(SIM_PANDA), "urdf": name})
        with pytest.raises(ConfigError, match="a URDF file"):
            load_robot(tmp_path / "robot.yaml")


# ---- heartbeats, clock ----


def test_heartbeats(robot: Robot, tmp_path: Path) -> None:
    beats = [
        {"topic": "camera", "type": "sensor_msgs/msg/Image", "timeout_s": 0.5, "action": "stop"},
        {"topic": "episode_info", "type": "dr_interfaces/msg/EpisodeInfo", "timeout_s": 2.0, "action": "hold"},
    ]
    dump_yaml(tmp_path / "robot.yaml", {**load_yaml(SIM_PANDA), "heartbeats": beats})
    watch = Heartbeats(load_robot(tmp_path / "robot.yaml").heartbeats)
    second = 10**9
    both = ("nothing heard of camera yet", "nothing heard of episode_info yet")
    assert watch.missing(100 * second) == (both, ())
    for topic in ("camera", "episode_info"):
        watch.hear(topic, 100 * second)
    assert watch.missing(100 * second + second // 2) == ((), ())
    assert watch.missing(101 * second) == ((), ("nothing heard of camera for 0.5 s",))
    watch.hear("camera", 102 * second)
    assert watch.missing(102 * second + 1) == (("nothing heard of episode_info for 2 s",), ())


@pytest.mark.parametrize("wrong", [{"timeout_s": 0.0}, {"timeout_s": math.inf}, {"action": "ignore"}])
def test_wrong_heartbeats(tmp_path: Path, wrong: dict[str, object]) -> None:
    beat = {"topic": "camera", "type": "std_msgs/msg/Bool", "timeout_s": 0.5, "action": "stop", **wrong}
    dump_yaml(tmp_path / "robot.yaml", {**load_yaml(SIM_PANDA), "heartbeats": [beat]})
    with pytest.raises(ConfigError, match="heartbeats"):
        load_robot(tmp_path / "robot.yaml")


def test_stop_requests() -> None:
    second = 10**9
    requests = StopRequests(1.0)
    assert requests.present(100 * second) == ()
    requests.hear("reward: the camera\nis stuck", 100 * second)
    requests.hear("", 100 * second + second // 2)
    assert requests.present(101 * second) == ("reward: the camera is stuck", "a node asks for a stop")
    requests.hear("reward: the camera\nis stuck", 101 * second)
    assert requests.present(102 * second) == ("reward: the camera is stuck",), "the other was not asked for again"
    assert requests.present(102 * second + 1) == ()
    for number in range(1000):
        requests.hear(f"{number}" * 1000, 200 * second)
    kept = requests.present(200 * second)
    assert len(kept) == StopRequests.MOST and max(map(len, kept)) <= 200, "whoever floods it takes no memory"


def test_a_clock_that_jumps() -> None:
    watch, second = ClockWatch(), 10**9
    assert watch.look(1000 * second, 5 * second) == ()
    assert watch.look(1001 * second + 10**7, 6 * second) == ()  # set a little
    assert watch.look(1003 * second, 7 * second) == ()
    assert watch.look(1009 * second, 8 * second) == ("the clock jumped by +5.0 s",)
    assert watch.look(1010 * second, 9 * second) == ()
    assert watch.look(11 * second, 10 * second) == ("the clock jumped by -1000.0 s",)
