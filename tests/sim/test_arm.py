"""The simulated arm: moves as told, times out, stops, draws, and can be driven to success by its expert."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

import numpy as np
import pytest

if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.agent.pushing import Disturbance, push_action
from dr_sim.arm import START_M, SUCCESS_DISTANCE_M, SimulatedArm

ZERO = np.zeros(3)
DOWN_XYZW = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatedArm]:
    arm = SimulatedArm()
    yield arm
    arm.close()


@pytest.fixture
def arm(shared: SimulatedArm) -> SimulatedArm:
    shared.reset(0)
    return shared


def drive(arm: SimulatedArm, linear_m_s: list[float], seconds: float) -> None:
    for _ in range(round(seconds / 0.05)):
        arm.command_twist(np.array(linear_m_s), ZERO)
        arm.step(0.05)


def test_start(arm: SimulatedArm) -> None:
    position, quaternion = arm.tool_pose
    assert position == pytest.approx(START_M, abs=1e-6)
    assert np.abs(quaternion) == pytest.approx(DOWN_XYZW, abs=1e-6)
    assert len(arm.joint_names) == arm.joint_positions.size == arm.joint_velocities.size == 9
    assert arm.holding and not arm.success and arm.time_s == 0.0


def test_without_commands_it_stays(arm: SimulatedArm) -> None:
    arm.step(1.0)
    assert arm.tool_pose[0] == pytest.approx(START_M, abs=1e-4)
    assert arm.time_s == pytest.approx(1.0)


def test_twist_moves_the_tool_in_base_axes_and_keeps_its_orientation(arm: SimulatedArm) -> None:
    for direction in ([0.1, 0.0, 0.0], [0.0, -0.1, 0.0], [0.0, 0.0, 0.1]):
        before = arm.tool_pose[0]
        drive(arm, direction, 1.0)
        arm.step(0.5)  # what is left of the motion when commands end is less than the timeout's worth
        moved = arm.tool_pose[0] - before
        along = float(moved @ direction) / 0.1
        assert along == pytest.approx(0.115, abs=0.01)
        assert np.linalg.norm(moved - along * np.array(direction) / 0.1) < 0.002
        assert np.abs(arm.tool_pose[1]) == pytest.approx(DOWN_XYZW, abs=0.01)


def test_twist_turns_the_tool(arm: SimulatedArm) -> None:
    for _ in range(20):
        arm.command_twist(ZERO, np.array([0.0, 0.0, 0.5]))
        arm.step(0.05)
    x, y, _, _ = arm.tool_pose[1]
    turned = 2.0 * math.atan2(abs(y), abs(x))  # a turn about z of a gripper that points down
    assert turned == pytest.approx(0.5, abs=0.03)
    assert arm.tool_pose[0] == pytest.approx(START_M, abs=0.003)


def test_joint_velocity_and_position(arm: SimulatedArm) -> None:
    start = arm.joint_positions[:7]
    for _ in range(10):
        arm.command_joint_velocities(np.array([0.3, 0, 0, 0, 0, 0, -0.2]))
        arm.step(0.05)
    moved = arm.joint_positions[:7] - start
    assert moved[[0, 6]] == pytest.approx([0.15, -0.1], abs=0.02) and np.abs(moved[1:6]).max() < 0.01
    target = start + 0.2
    for _ in range(20):
        arm.command_joint_positions(target)
        arm.step(0.05)
    assert arm.joint_positions[:7] == pytest.approx(target, abs=0.005)


def test_joints_stop_at_their_limits(arm: SimulatedArm) -> None:
    for _ in range(80):
        arm.command_joint_velocities(np.array([2.0, 0, 0, 0, 0, 0, 0]))
        arm.step(0.05)
    assert arm.joint_positions[0] == pytest.approx(arm.joint_upper_rad[0], abs=0.01)


def test_gripper(arm: SimulatedArm) -> None:
    arm.command_gripper(0.06)
    arm.step(1.0)
    assert arm.joint_positions[7:].sum() == pytest.approx(0.06, abs=0.005)
    arm.command_gripper(9.0)
    arm.step(1.0)
    assert arm.joint_positions[7:].sum() == pytest.approx(0.08, abs=0.005)


def test_commands_time_out(arm: SimulatedArm) -> None:
    drive(arm, [0.0, 0.2, 0.0], 0.5)
    before = arm.tool_pose[0]
    arm.step(0.3)
    assert arm.holding
    held = arm.tool_pose[0]
    assert held[1] - before[1] < 0.2 * (arm.command_timeout_s + 0.06)
    arm.step(1.0)
    assert arm.tool_pose[0] == pytest.approx(held, abs=0.002)
    drive(arm, [0.0, 0.2, 0.0], 0.3)
    assert arm.tool_pose[0][1] > held[1] + 0.03


def test_a_command_ages_by_time_that_is_left_out(arm: SimulatedArm) -> None:
    drive(arm, [0.0, 0.2, 0.0], 0.5)
    arm.age_command(0.1)
    arm.step(0.05)  # the command's age is 0.1 + 0.1 s
    assert not arm.holding
    arm.step(0.02)
    assert arm.holding
    drive(arm, [0.0, 0.2, 0.0], 0.5)
    before = arm.tool_pose[0]
    arm.age_command(arm.command_timeout_s)
    arm.step(0.2)
    assert arm.holding and np.linalg.norm(arm.tool_pose[0] - before) < 0.005
    assert np.abs(arm.joint_velocities).max() < 0.01


def test_no_simulated_time_is_lost(arm: SimulatedArm) -> None:
    for _ in range(1000):
        arm.step(0.0009)
    assert arm.time_s == pytest.approx(0.9, abs=0.002)


def test_emergency_stop_is_at_once_and_latched(arm: SimulatedArm) -> None:
    drive(arm, [0.0, 0.2, 0.0], 0.5)
    before = arm.tool_pose[0]
    arm.emergency_stop()
    arm.step(0.1)
    assert np.linalg.norm(arm.tool_pose[0] - before) < 0.005
    assert np.abs(arm.joint_velocities).max() < 0.02
    drive(arm, [0.0, 0.2, 0.0], 0.5)
    arm.command_joint_positions(np.zeros(7))
    arm.command_gripper(0.08)
    arm.step(0.5)
    assert np.linalg.norm(arm.tool_pose[0] - before) < 0.005 and arm.joint_positions[7:].sum() < 0.005
    arm.reset(0)
    assert not arm.estopped
    drive(arm, [0.0, 0.2, 0.0], 0.5)
    assert arm.tool_pose[0][1] > 0.05


@pytest.mark.parametrize("bad", [[math.nan, 0, 0], [math.inf, 0, 0], [0, 0], [0, 0, 0, 0]])
def test_what_is_not_a_command_is_refused(arm: SimulatedArm, bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        arm.command_twist(np.array(bad), ZERO)
    with pytest.raises(ValueError, match="finite numbers"):
        arm.command_joint_positions(np.array(bad))
    with pytest.raises(ValueError, match="finite numbers"):
        arm.command_gripper(math.nan)
    assert arm.holding


def episode(arm: SimulatedArm, seed: int, share: float, seconds: float = 20.0) -> tuple[bool, np.ndarray]:
    """Whether the expert, disturbed for that share of the time, succeeds; and where the block went."""
    arm.reset(seed)
    disturb = Disturbance(share, seed)
    path = []
    for _ in range(round(seconds / 0.1)):
        arm.command_twist(0.2 * disturb(arm.expert_action()), ZERO)
        arm.step(0.1)
        path.append(arm.object_pose[0])
        if arm.success:
            return True, np.array(path)
    return False, np.array(path)


def test_the_expert_pushes_the_block_to_the_goal(arm: SimulatedArm) -> None:
    assert [episode(arm, seed, 0.0)[0] for seed in range(5)] == [True] * 5
    block, goal = arm.object_pose[0], arm.goal_m
    assert np.linalg.norm((block - goal)[:2]) < SUCCESS_DISTANCE_M


def test_disturbance_spoils_and_everything_is_repeatable(arm: SimulatedArm) -> None:
    first, second = episode(arm, 3, 0.9, 4.0), episode(arm, 3, 0.9, 4.0)
    assert not first[0] and (first[1] == second[1]).all()


def test_the_expert_starts_again_from_anywhere(arm: SimulatedArm) -> None:
    arm.reset(1)
    drive(arm, [0.2, 0.2, 0.0], 0.5)
    drive(arm, [0.0, 0.0, -0.2], 0.5)
    for _ in range(150):
        arm.command_twist(0.2 * arm.expert_action(), ZERO)
        arm.step(0.1)
    assert arm.success


def test_actions_of_the_expert() -> None:
    block, goal = np.array([0.5, 0.0, 0.025]), np.array([0.5, 0.2, 0.0])
    at_goal = push_action(np.array([0.5, 0.1, 0.02]), goal, goal)
    assert (at_goal == 0.0).all()
    pushing = push_action(np.array([0.5, -0.05, 0.02]), block, goal)
    assert pushing[1] > 0.3 and abs(pushing[0]) < 1e-9
    wrong_side = push_action(np.array([0.5, 0.06, 0.02]), block, goal)
    assert wrong_side == pytest.approx([0.0, 0.0, 1.0])
    assert np.linalg.norm(push_action(np.array([2.0, 2.0, 2.0]), block, goal)) <= 1.0 + 1e-9


def test_seeds_place_block_and_goal(arm: SimulatedArm) -> None:
    places = []
    for seed in (0, 1, 0):
        arm.reset(seed)
        places.append(np.concatenate([arm.object_pose[0], arm.goal_m]))
    assert (places[0] == places[2]).all() and np.abs(places[0] - places[1]).max() > 0.01


def test_pictures_show_the_block_where_the_camera_matrix_says(arm: SimulatedArm) -> None:
    frame = arm.render()
    assert frame.shape == (480, 640, 3) and frame.dtype == np.uint8
    pixels = frame.astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 110) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60))
    camera_m, (x, y, z, w) = arm.camera_pose
    base_from_optical = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    seen = arm.camera_matrix() @ base_from_optical.T @ (arm.object_pose[0] - camera_m)
    assert [columns.mean(), rows.mean()] == pytest.approx(seen[:2] / seen[2], abs=6)
