"""Meta-World's Sawyer as a robot: moves as told, times out, stops, runs for ever, and can be driven to success."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("metaworld") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.errors import ConfigError
from dr_core.safety.limits import load_robot
from dr_sim.experts import ScriptedExpert
from dr_sim.metaworld_env import MetaWorldEnv
from dr_sim.rendering import RenderSettings
from dr_sim.robot import make_robot
from dr_sim.sawyer import GRIPPER_MAX_WIDTH_M, SPEED_M_S, STEP_S, SimulatedSawyer

ROBOT = load_robot(Path(__file__).parents[2] / "config" / "robots" / "sim_sawyer.yaml")
ZERO = np.zeros(3)
# Where the hand is free to move about.
FREE_TASK = "push"


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatedSawyer]:
    sawyer = SimulatedSawyer(FREE_TASK)
    yield sawyer
    sawyer.close()


@pytest.fixture
def sawyer(shared: SimulatedSawyer) -> SimulatedSawyer:
    shared.reset(0)
    return shared


def drive(sawyer: SimulatedSawyer, linear_m_s: list[float], seconds: float) -> None:
    for _ in range(round(seconds / 0.05)):
        sawyer.command_twist(np.array(linear_m_s), ZERO)
        sawyer.step(0.05)


def test_the_robot_file_describes_this_robot(sawyer: SimulatedSawyer) -> None:
    limits = ROBOT.limits
    assert sawyer.joint_names[:7] == ROBOT.joints
    ranges = np.array([sawyer._model.joint(name).range for name in ROBOT.joints])
    assert limits.joint_lower_rad == pytest.approx(ranges[:, 0] - 0.1)
    assert limits.joint_upper_rad == pytest.approx(ranges[:, 1] + 0.1)
    assert ROBOT.action.linear_m_s == SPEED_M_S and limits.gripper_width_m == GRIPPER_MAX_WIDTH_M
    assert sawyer._env.dt == pytest.approx(STEP_S) and sawyer._env.action_scale == pytest.approx(SPEED_M_S * STEP_S)
    assert (np.array(limits.workspace_lower_m) < sawyer._env.mocap_low).all()
    assert (np.array(limits.workspace_upper_m) > sawyer._env.mocap_high).all()


@pytest.mark.parametrize("direction", [(0.2, 0, 0), (-0.2, 0, 0), (0, 0.2, 0), (0, 0, 0.2), (0.3, 0.2, 0.1)])
def test_the_commanded_velocity_is_the_measured_one(sawyer: SimulatedSawyer, direction: tuple[float, ...]) -> None:
    drive(sawyer, list(direction), 0.2)
    before, started_s = sawyer.tool_pose[0], sawyer.time_s
    drive(sawyer, list(direction), 0.4)
    measured = (sawyer.tool_pose[0] - before) / (sawyer.time_s - started_s)
    assert np.linalg.norm(measured - direction) < 0.08 * np.linalg.norm(direction)
    assert sawyer.joint_velocities[:7].any()


def test_a_velocity_that_is_too_fast_is_shortened(sawyer: SimulatedSawyer) -> None:
    drive(sawyer, [4.0, 2.0, 0.0], 0.1)
    before = sawyer.tool_pose[0]
    drive(sawyer, [4.0, 2.0, 0.0], 0.2)
    assert sawyer.tool_pose[0] - before == pytest.approx([0.16, 0.08, 0.0], abs=0.025)


def test_time_goes_on_past_the_end_of_an_episode_and_none_is_lost(sawyer: SimulatedSawyer) -> None:
    for _ in range(500):
        sawyer.step(0.02)
    assert sawyer.time_s == pytest.approx(10.0, abs=STEP_S)  # 800 steps: Meta-World's episodes have 500
    held = sawyer.tool_pose[0]
    sawyer.step(2.0)
    assert sawyer.holding and sawyer.tool_pose[0] == pytest.approx(held, abs=0.002)


def test_commands_time_out(sawyer: SimulatedSawyer) -> None:
    drive(sawyer, [0.2, 0.0, 0.0], 0.5)
    before = sawyer.tool_pose[0]
    sawyer.step(0.4)
    held = sawyer.tool_pose[0]
    assert sawyer.holding and held[0] - before[0] < 0.2 * (sawyer.command_timeout_s + 0.08)
    sawyer.step(1.0)
    assert sawyer.tool_pose[0] == pytest.approx(held, abs=0.002)
    drive(sawyer, [0.2, 0.0, 0.0], 0.3)
    assert sawyer.tool_pose[0][0] > held[0] + 0.03


def test_a_command_ages_by_time_that_is_left_out(sawyer: SimulatedSawyer) -> None:
    drive(sawyer, [0.2, 0.0, 0.0], 0.5)
    assert not sawyer.holding
    before = sawyer.tool_pose[0]
    sawyer.age_command(sawyer.command_timeout_s)
    sawyer.step(0.2)
    assert sawyer.holding and sawyer.tool_pose[0][0] - before[0] < 0.02


def test_emergency_stop_is_at_once_and_latched(sawyer: SimulatedSawyer) -> None:
    drive(sawyer, [0.3, 0.0, 0.0], 0.4)
    before, width = sawyer.tool_pose[0], sawyer.gripper_width_m
    sawyer.emergency_stop()
    sawyer.step(0.5)
    assert np.linalg.norm(sawyer.tool_pose[0] - before) < 0.008
    drive(sawyer, [0.3, 0.0, 0.0], 0.5)
    sawyer.command_gripper(0.0)
    sawyer.step(0.5)
    assert np.linalg.norm(sawyer.tool_pose[0] - before) < 0.008
    assert sawyer.gripper_width_m == pytest.approx(width, abs=0.003)
    sawyer.reset(0)
    assert not sawyer.estopped
    start = sawyer.tool_pose[0]
    drive(sawyer, [0.3, 0.0, 0.0], 0.4)
    assert sawyer.tool_pose[0][0] > start[0] + 0.08


def test_the_hand_stays_in_its_box_and_comes_back_at_once(sawyer: SimulatedSawyer) -> None:
    drive(sawyer, [0.0, 0.0, -0.8], 3.0)
    assert sawyer.tool_pose[0][2] > sawyer._env.mocap_low[2] - 0.02
    low = sawyer.tool_pose[0][2]
    drive(sawyer, [0.0, 0.0, 0.4], 0.3)
    assert sawyer.tool_pose[0][2] > low + 0.06


def test_gripper(sawyer: SimulatedSawyer) -> None:
    for asked, reached in ((0.05, 0.05), (0.0, 0.018), (9.0, GRIPPER_MAX_WIDTH_M)):
        sawyer.command_gripper(asked)
        sawyer.step(1.0)
        assert sawyer.gripper_width_m == pytest.approx(reached, abs=0.002)


def test_what_it_cannot_do_is_refused(sawyer: SimulatedSawyer) -> None:
    for bad in ([math.nan, 0, 0], [0, 0]):
        with pytest.raises(ValueError, match="finite numbers"):
            sawyer.command_twist(np.array(bad), ZERO)
        with pytest.raises(ValueError, match="finite numbers"):
            sawyer.command_twist(ZERO, np.array(bad))
    with pytest.raises(ValueError, match="finite numbers"):
        sawyer.command_gripper(math.inf)
    with pytest.raises(ValueError, match="joint positions"):
        sawyer.command_joint_positions(np.zeros(7))
    with pytest.raises(ValueError, match="joint velocities"):
        sawyer.command_joint_velocities(np.zeros(7))
    assert sawyer.holding and not sawyer.tool_turns


@pytest.mark.parametrize("task", ["pick-place", "button-press"])  # one that grasps, one that presses
def test_the_scripted_expert_succeeds_by_velocities_and_widths(task: str) -> None:
    """One action in two steps, as in MetaWorldEnv."""
    sawyer, expert = SimulatedSawyer(task), ScriptedExpert(task)
    for seed in range(2):
        sawyer.reset(seed)
        for _ in range(150):
            action = expert(sawyer.expert_observation)
            sawyer.command_twist(SPEED_M_S * action[:3], ZERO)
            sawyer.command_gripper(0.0 if action[3] > 0 else GRIPPER_MAX_WIDTH_M)
            sawyer.step(2 * STEP_S)
            if sawyer.success:
                break
        assert sawyer.success, f"seed {seed}"
    sawyer.close()


def test_an_episode_is_that_of_the_environment_with_its_seed(sawyer: SimulatedSawyer) -> None:
    env = MetaWorldEnv(FREE_TASK, render=sawyer.settings)
    pictures = []
    for seed in (3, 4):
        sawyer.reset(seed)
        pictures.append(sawyer.render())
        assert np.array_equal(pictures[-1], env.reset(seed)["image"])
        assert np.array_equal(sawyer.object_pose[0], env.expert_observation[4:7])
        assert np.array_equal(sawyer.goal_m, env.expert_observation[36:39])
    env.close()
    assert pictures[0].shape == (480, 640, 3) and not np.array_equal(*pictures)


def test_the_object_is_seen_where_the_camera_says(sawyer: SimulatedSawyer) -> None:
    colour = sawyer._model.geom("objGeom").rgba
    visible = colour.copy()
    with_object = sawyer.render().astype(int)
    colour[3] = 0.0
    without = sawyer.render()
    colour[:] = visible
    rows, columns = np.nonzero(np.abs(with_object - without).max(axis=2) > 20)
    place_m, (x, y, z, w) = sawyer.camera_pose
    base_from_optical = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    seen = sawyer.camera_matrix() @ base_from_optical.T @ (sawyer.object_pose[0] - place_m)
    assert [columns.mean(), rows.mean()] == pytest.approx(seen[:2] / seen[2], abs=8)


def test_robots_are_made_by_their_task() -> None:
    options = {"command_timeout_s": 0.3, "width": 64, "height": 48}
    sawyer = make_robot("door-close-v3", ROBOT.joints, **options)
    assert isinstance(sawyer, SimulatedSawyer) and sawyer.command_timeout_s == 0.3
    assert sawyer.settings == RenderSettings(64, 48, camera="corner4")
    sawyer.close()
    with pytest.raises(ConfigError, match=r"sim_panda\.yaml"):
        make_robot("panda-push", ROBOT.joints, **options)
    with pytest.raises(ConfigError, match="Adroit"):
        make_robot("adroit-pen", ROBOT.joints, **options)
    with pytest.raises(ConfigError, match="did you mean 'panda-push'"):
        make_robot("panda-pusch", ROBOT.joints, **options)
