"""Faults of actions, robot, gripper, network and parameters, between real processes over DDS."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dr_core.config import dump_yaml, load_yaml
from tests.nodes.conftest import TIMEOUT_S, NodeProcess
from tests.nodes.test_arm_bridge import (
    ACTIVE,
    FORWARD,
    HOLD,
    MARGIN_S,
    PERIOD_S,
    SIM_PANDA,
    STOPPED,
    PlayedRobot,
    robot_file,
    wait,
)

__all__ = ["robot_file"]


@pytest.fixture
def play(ros: None) -> Iterator[Callable[..., PlayedRobot]]:
    robots: list[PlayedRobot] = []

    def make(namespace: str) -> PlayedRobot:
        robots.append(PlayedRobot(namespace))
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


@pytest.fixture
def reset(call: Any) -> Callable[[NodeProcess], Any]:
    from dr_interfaces.srv import ResetGate

    return lambda process: call(ResetGate, process.topic("~/reset_gate"), operator_name="test")


def test_at_the_edge_of_the_workspace_commands_are_clamped_and_then_stop(
    play: Any, start_node: Any, robot_file: str
) -> None:
    start_node("arm_bridge", namespace="edge", robot_file=robot_file)
    robot = play("edge")
    robot.tool_m = (load_yaml(SIM_PANDA)["limits"]["workspace_upper_m"][0], 0.0, 0.2)
    robot.send(FORWARD)
    robot.wait_for(ACTIVE)
    robot.wait_for(STOPPED)
    assert "had to be clamped" in robot.causes[0]
    assert robot.commands and all(message.twist.linear.x <= 0.0 for _, message in robot.commands)


def test_a_gripper_that_falls_silent_stops_the_arm(
    play: Any, start_node: Any, robot_file: str, reset: Any, tmp_path: Path
) -> None:
    from sensor_msgs.msg import JointState

    beat = {"topic": "gripper/joint_states", "type": "sensor_msgs/msg/JointState", "timeout_s": 1.0, "action": "stop"}
    dump_yaml(tmp_path / "robot.yaml", {**load_yaml(robot_file), "heartbeats": [beat]})
    process = start_node("arm_bridge", namespace="gripped", robot_file=str(tmp_path / "robot.yaml"))
    robot = play("gripped")
    fingers = robot.node.create_publisher(JointState, "gripper/joint_states", 10)
    answering = [True]
    robot.node.create_timer(0.1, lambda: answering[0] and fingers.publish(JointState(name=["finger"])))
    robot.send(FORWARD)
    robot.wait_for(ACTIVE)
    answering[0] = False
    robot.wait_for(STOPPED)
    assert robot.causes == ("nothing heard of gripper/joint_states for 1 s",)
    assert not reset(process).success
    answering[0] = True
    wait(lambda: reset(process).success)
    robot.wait_for(ACTIVE)


def test_an_agent_that_is_cut_off_stops_the_arm_and_rejoins_by_a_reset_only(
    play: Any, start_node: Any, robot_file: str, reset: Any
) -> None:
    """Frozen and thawed: for the gate that is a network that is cut and comes back."""
    bridge = start_node("arm_bridge", namespace="cut", robot_file=robot_file)
    robot = play("cut")
    acting = {"policy": "constant", "constant": [0.5, 0.0, 0.0], "rate_hz": 1.0 / (0.5 * PERIOD_S)}
    agent = start_node("agent", namespace="cut", robot_file=robot_file, **acting)
    robot.wait_for(ACTIVE)
    agent.process.send_signal(signal.SIGSTOP)
    try:
        robot.wait_for(HOLD)
        stopped_s = robot.wait_for(STOPPED)
    finally:
        agent.process.send_signal(signal.SIGCONT)
    assert "no good command" in robot.causes[0]
    wishes: list[Any] = []
    from geometry_msgs.msg import TwistStamped

    robot.node.create_subscription(TwistStamped, "desired_twist", wishes.append, 10)
    wait(lambda: len(wishes) >= 4)
    assert robot.state == STOPPED and not robot.since(stopped_s + MARGIN_S), "it is there again, and nothing moves"
    wait(lambda: reset(bridge).success)
    robot.wait_for(ACTIVE)


@pytest.mark.skipif(importlib.util.find_spec("gymnasium_robotics") is None, reason="the simulator is not installed")
def test_a_killed_gate_leaves_an_arm_that_stops_by_itself(
    play: Any, start_node: Any, robot_file: str, reset: Any
) -> None:
    from sensor_msgs.msg import JointState

    own = {"namespace": "orphaned", "robot_file": robot_file}
    start_node("sim_robot", **own, width=64, height=48, camera_rate_hz=1.0)
    bridge = start_node("arm_bridge", **own)
    robot = play("orphaned")
    robot.reporting = False
    speeds: list[float] = []
    robot.node.create_subscription(
        JointState, "joint_states", lambda one: speeds.append(max(map(abs, one.velocity))), 50
    )
    robot.send((0.0, 0.1, 0.0))

    def moving() -> bool:
        if robot.state == STOPPED:
            reset(bridge)
        return robot.state == ACTIVE and bool(speeds) and speeds[-1] > 0.05

    wait(moving)
    bridge.stop(signal.SIGKILL)
    wait(lambda: speeds[-1] < 0.01)
    del speeds[:]
    wait(lambda: len(speeds) >= 50)
    assert max(speeds) < 0.01, "nothing moves it again"


def test_a_parameter_of_another_type_or_range_is_rejected_and_the_old_value_stays(
    start_node: Any, call: Any, state_of: Any
) -> None:
    from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
    from rcl_interfaces.srv import GetParameters, SetParameters

    process = start_node("reward", autostart=False, deadline_s=0.25)
    wait(lambda: state_of(process) == "unconfigured", TIMEOUT_S)
    wrong = (
        ParameterValue(type=ParameterType.PARAMETER_STRING, string_value="soon"),
        ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=-1.0),
    )
    for value in wrong:
        change = [Parameter(name="deadline_s", value=value)]
        [answer] = call(SetParameters, process.topic("~/set_parameters"), parameters=change).results
        assert not answer.successful and answer.reason
        [kept] = call(GetParameters, process.topic("~/get_parameters"), names=["deadline_s"]).values
        assert kept.double_value == 0.25
