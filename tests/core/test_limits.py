"""A robot's file: everything needed is there, a bound of 0.0 is a bound, mistakes are told in one line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from dr_core.config import dump_yaml, load_yaml, to_mapping
from dr_core.errors import ConfigError
from dr_core.safety.limits import Robot, load_robot

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
