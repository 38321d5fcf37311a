"""The evaluator in a process of its own: in simulation with everything, and around played robots, agents and faults."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dr_core.config import dump_yaml, load_yaml
from dr_core.data.bags import check_bag
from dr_core.data.episodes import read_metadata
from dr_core.data.video import read_video
from dr_core.robot.evaluation import PLAN, Result, read_curve, read_results, schedule
from tests.nodes.conftest import SOURCES, STACK, TIMEOUT_S, NodeProcess
from tests.nodes.test_arm_bridge import ACTIVE, SIM_PANDA, SLOW, STOPPED, PlayedRobot

PATIENT = {**SLOW, "max_age_s": 2.0, "hold_after_s": 1.0, "stop_after_s": 2.0}


class World:
    """What happens in one namespace, and publishers of what a test plays."""

    def __init__(self, node: Any, spin_until: Callable[..., bool], namespace: str) -> None:
        self.node, self.namespace, self._spin_until = node, namespace, spin_until
        self.twists: list[tuple[float, float]] = []
        self._publishers: dict[str, Any] = {}
        self._playing: dict[str, Callable[[], None]] = {}
        node.create_timer(0.05, lambda: [one() for one in list(self._playing.values())])

    def topic(self, name: str) -> str:
        return f"/{self.namespace}/{name}"

    def watch_twists(self) -> None:
        """Note when, and how fast along x, the robot is wished to go."""
        from geometry_msgs.msg import TwistStamped

        def note(message: Any) -> None:
            self.twists.append((time.monotonic(), message.twist.linear.x))

        self.node.create_subscription(TwistStamped, self.topic("desired_twist"), note, 50)

    def play(self, topic: str, kind: Any, make: Callable[[], Any]) -> None:
        """Publish something at 20 Hz from now on."""
        publisher = self._publishers.setdefault(topic, self.node.create_publisher(kind, self.topic(topic), 10))
        self._playing[topic] = lambda: publisher.publish(make())

    def play_twist(self, topic: str, x: float, y: float = 0.0) -> None:
        from geometry_msgs.msg import TwistStamped

        def make() -> Any:
            message = TwistStamped()
            message.header.stamp = self.node.get_clock().now().to_msg()
            message.twist.linear.x, message.twist.linear.y = x, y
            return message

        self.play(topic, TwistStamped, make)

    def play_rewards(self, model_hash: str) -> None:
        """Every third is not valid."""
        from dr_interfaces.msg import RewardStamped

        count = iter(range(10**9))

        def make() -> Any:
            message = RewardStamped(value=1.5, valid=next(count) % 3 > 0, model_hash=model_hash, estimator="entropy")
            message.header.stamp = self.node.get_clock().now().to_msg()
            return message

        self.play("reward", RewardStamped, make)

    def until(self, condition: Callable[[], Any], what: str = "it did not happen in time") -> None:
        assert self._spin_until(condition, self.node, timeout_s=TIMEOUT_S), what

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def ended(self, process: NodeProcess) -> int:
        self.until(lambda: process.process.poll() is not None, f"it goes on:\n{process.output()[-2000:]}")
        return process.process.wait()


@pytest.fixture
def world(node: Any, spin_until: Any) -> Callable[[str], World]:
    return lambda namespace: World(node, spin_until, namespace)


@pytest.fixture(scope="module")
def robot_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    whole = load_yaml(SIM_PANDA)
    path = tmp_path_factory.mktemp("robot") / "robot.yaml"
    dump_yaml(path, {**whole, "limits": {**whole["limits"], **PATIENT}})
    return str(path)


@pytest.fixture
def played(ros: None, start_node: Any) -> Iterator[PlayedRobot]:
    robot = PlayedRobot("judged")
    yield robot
    robot.close()


def test_two_episodes_in_simulation(
    world: Any, start_node: Any, robot_file: str, node: Any, call: Any, tmp_path: Path
) -> None:
    if importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip("the simulator is not installed")
    here: World = world("evaluated")
    here.play_rewards("cafe01")
    own = {"namespace": "evaluated", "robot_file": robot_file}
    start_node("sim_robot", **own, camera_rate_hz=10.0, width=160, height=120, command_timeout_s=2.0)
    start_node("arm_bridge", **own)
    outputs = ("desired_twist", "action", "desired_gripper")
    start_node("agent", **own, max_age_s=1.5, max_skew_s=0.5, remaps={name: f"tried/{name}" for name in outputs})
    topics = ["joint_states", "action", "desired_twist", "reward"]
    start_node(
        "recorder",
        namespace="evaluated",
        directory=str(tmp_path / "bags"),
        optional_topics=topics,
        reserve_mib=1,
    )
    evaluator = start_node(
        "evaluator",
        **own,
        out=str(tmp_path / "first"),
        episodes=2,
        mode="full",
        agents=["tried"],
        task="push",
        operator="ann",
        episode_s=2.0,
        reset_service="sim_robot/reset",
        reset_gate=True,
        success_topic="success",
    )
    assert here.ended(evaluator) == 0, evaluator.output()
    results = read_results(tmp_path / "first")
    assert [one.name for one in results] == ["first_0001_tried", "first_0002_tried"]
    page = (tmp_path / "first" / "report.html").read_text()
    for one in results:
        assert one.outcome in ("failure", "success"), one
        assert 1.5 < one.duration_s < 4.0 and one.rewards > 10 and 0.2 < one.invalid / one.rewards < 0.5
        assert one.reward_mean == 1.5 and one.model_hashes == ("cafe01",) and one.gate_stops == 0
        assert len(read_curve(tmp_path / "first", one.name).value) == one.rewards
        bag = tmp_path / "bags" / one.name
        metadata = read_metadata(bag)
        assert (metadata.outcome, metadata.task, metadata.operator) == (one.outcome, "push", "tried")
        assert not [problem for problem in check_bag(bag) if not problem.startswith("gap:")], "a whole recording"
        frames, _ = read_video(tmp_path / "first" / "videos" / f"{one.name}.mp4")
        assert frames.shape[1:] == (120, 160, 3) and len(frames) > 10 and frames.std() > 10
        assert f'src="videos/{one.name}.mp4"' in page
    assert "cafe01" in page and "Wilson" in page and robot_file in page


def test_faults_in_the_middle_of_episodes(
    world: Any, start_node: Any, played: PlayedRobot, robot_file: str, node: Any, call: Any, tmp_path: Path
) -> None:
    """A killed agent, an emergency stop, a killed evaluator; and then success all the same."""
    from dr_interfaces.srv import ResetGate
    from std_msgs.msg import Bool
    from std_srvs.srv import Trigger

    here: World = world("judged")
    here.watch_twists()
    common = {"namespace": "judged", "robot_file": robot_file}
    acting = {"policy": "constant", "constant": [0.5, 0.0, 0.0]}
    remaps = {"desired_twist": "a/desired_twist", "action": "a/action"}
    bridge = start_node("arm_bridge", **common)
    agent = start_node("agent", **common, **acting, remaps=remaps)
    out = tmp_path / "slow"
    # `success_topic` never tells anything here but at the end.
    values = {"out": str(out), "mode": "slow", "agents": ["a"], "slow_factor": 0.5, "recorder": "", "episodes": 3}
    values |= {"success_topic": "done", "episode_s": 60.0}
    evaluator = start_node("evaluator", **common, **values)

    def begin(number: int) -> None:
        """Wait until it asks for the reset of episode `number`, and for the episode's first motion."""
        here.until(lambda: f"episode {number} of 3, a: bring" in evaluator.output(), evaluator.output())
        here.until(lambda: here.twists and here.twists[-1][1] == 0.0, "the gate is kept quiet")
        here.until(lambda: played.state == ACTIVE)
        del here.twists[:]
        assert call(Trigger, evaluator.topic("~/ready")).success
        here.until(lambda: any(x > 0.0 for _, x in here.twists))

    def reset_gate() -> bool:
        return bool(call(ResetGate, bridge.topic("~/reset_gate"), operator_name="test").success)

    def result(number: int) -> Result:
        here.until(lambda: len(read_results(out)) == number)
        return read_results(out)[-1]

    begin(1)
    here.spin(0.5)
    agent.stop(signal.SIGKILL)
    killed_s = time.monotonic()
    aborted = result(1)
    here.until(lambda: played.state == STOPPED)
    moving = [x for at_s, x in here.twists if at_s < killed_s + 1.0]
    first = next(i for i, x in enumerate(moving) if x > 0.0)
    # Half of what the agent asks for: 0.5 of 0.2 m/s; and not one zero before the gate has stopped.
    assert moving[first:] == [pytest.approx(0.05)] * len(moving[first:]) and len(moving) - first >= 3
    stopped_s = played.wait_for(STOPPED)
    assert not [x for at_s, x in here.twists if killed_s + 1.0 < at_s < stopped_s - 0.1]
    assert aborted.outcome == "aborted" and aborted.cause == "no wish of the agent for 1 s"

    start_node("agent", **common, **acting, remaps=remaps)
    assert reset_gate()
    begin(2)
    here.spin(0.3)
    played.estop.publish(Bool(data=True))
    aborted = result(2)
    assert (aborted.outcome, aborted.cause, aborted.gate_stops) == ("aborted", "the gate stopped: emergency stop", 1)
    played.estop.publish(Bool(data=False))
    here.until(reset_gate)

    begin(3)
    here.spin(0.3)
    evaluator.stop(signal.SIGKILL)
    here.until(lambda: played.state == STOPPED)
    assert "no good command" in played.causes[0]
    evaluator = start_node("evaluator", **common, **values)
    # The killed one counts as a second publisher until its lease ends; then the gate can be reset for good.
    here.until(lambda: "episode 3 of 3, a: bring" in evaluator.output(), evaluator.output())
    here.until(lambda: node.count_publishers(here.topic("desired_twist")) == 1)
    here.until(lambda: played.state == ACTIVE or (reset_gate() and False))
    begin(3)
    here.play("done", Bool, lambda: Bool(data=True))
    assert here.ended(evaluator) == 0, evaluator.output()
    assert [one.outcome for one in read_results(out)] == ["aborted", "aborted", "success"]
    assert read_results(out)[-1].name == "slow_0003_a_2"
    assert "100% (1 of 1)" in (out / "report.html").read_text()


@pytest.mark.parametrize("mode", ["dry-run", "shadow"])
def test_two_agents_that_only_propose(
    mode: str, world: Any, start_node: Any, node: Any, robot_file: str, call: Any, tmp_path: Path
) -> None:
    from dr_interfaces.msg import GateState
    from dr_interfaces.srv import LabelEpisode
    from std_srvs.srv import Trigger

    namespace = mode.replace("-", "_")
    here: World = world(namespace)
    here.play_twist("left/desired_twist", 0.1)
    here.play_twist("right/desired_twist", -0.1)
    persons = 0
    if mode == "shadow":
        here.play_twist("desired_twist", 0.1, 0.1)
        here.play("gate_state", GateState, lambda: GateState(state=GateState.ACTIVE))
        persons = 1
    values = {"out": str(tmp_path / "ab"), "mode": mode, "agents": ["left", "right"], "episodes": 1, "seed": 5}
    values |= {"robot_file": robot_file, "recorder": "", "episode_s": 1.0}
    evaluator = start_node("evaluator", namespace=namespace, **values)
    order = list(schedule(("left", "right"), 1, 5))
    for number in (1, 2):
        evaluator.wait_for(f"episode {number} of 2, {order[number - 1]}: bring")
        assert json.loads((tmp_path / "ab" / PLAN).read_text())["order"] == order
        assert call(Trigger, evaluator.topic("~/ready")).success
        here.until(lambda: f"episode {number} of 2, {order[number - 1]}: running" in evaluator.output())  # noqa: B023
        for topic, count in (("desired_twist", persons), ("action", 0), ("desired_gripper", 0)):
            assert node.count_publishers(here.topic(topic)) == count
        if mode == "shadow":
            here.until(lambda: evaluator.output().count("how did it go?") == number)  # noqa: B023
            assert call(LabelEpisode, evaluator.topic("~/label"), outcome="success").success
    assert here.ended(evaluator) == 0, evaluator.output()
    results = read_results(tmp_path / "ab")
    assert [one.agent for one in results] == order
    if mode == "dry-run":
        assert {one.outcome for one in results} == {"not judged"}
    else:
        by_agent = {one.agent: one.agreement or {} for one in results}
        assert by_agent["left"]["cosine"] == pytest.approx(0.5**0.5)
        assert by_agent["right"]["cosine"] == pytest.approx(-(0.5**0.5))
        assert by_agent["left"]["difference"] == pytest.approx(0.5 / 3) and by_agent["left"]["pairs"] >= 5
        assert {one.outcome for one in results} == {"success"}
    again = start_node("evaluator", namespace=namespace, **values)
    assert here.ended(again) == 0 and "bring" not in again.output(), "all is done already"
    assert "No success rate of an agent is claimed" in (tmp_path / "ab" / "report.html").read_text()


def test_enter_on_the_terminal_and_an_interrupt_after_one_episode(world: Any, robot_file: str, tmp_path: Path) -> None:
    if STACK != "embedded":
        pytest.skip("started as the embedded layer does it")
    here: World = world("typed")
    here.play_twist("agent/desired_twist", 0.1)
    out, log, (master, slave) = tmp_path / "typed", tmp_path / "log", pty.openpty()
    command = [sys.executable, "-m", "dr_embedded.run", "dr_nodes.evaluator:main", "--ros-args", "-r", "__ns:=/typed"]
    for name, value in {"out": out, "robot_file": robot_file, "episode_s": 0.5, "recorder": "''"}.items():
        command += ["-p", f"{name}:={value}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdin=slave, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        os.close(slave)
        here.until(lambda: "episode 1 of 5, agent: bring" in log.read_text())
        os.write(master, b"s\n")
        here.spin(0.5)
        assert "running" not in log.read_text(), "a label is no permission to move"
        os.write(master, b"\n")
        here.until(lambda: "episode 2 of 5, agent: bring" in log.read_text())
        os.close(master)
        here.spin(0.5)
        assert "episode 2 of 5, agent: running" not in log.read_text(), "nor is the end of the terminal"
        process.send_signal(signal.SIGINT)
        here.until(lambda: process.poll() is not None)
        assert process.returncode == 1
        assert "1 of 5 episodes are done" in (out / "report.html").read_text()
    finally:
        process.kill()
        process.wait()


def test_it_refuses_in_one_line_and_ends_with_status_2(start_node: Any, robot_file: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    wrong = {
        "robot_file": {"out": str(tmp_path / "one")},
        "out": {"robot_file": robot_file},
        "other files": {"robot_file": robot_file, "out": str(tmp_path / "full")},
        "agents": {"robot_file": robot_file, "out": str(tmp_path / "two"), "agents": ["a", "a"]},
    }
    processes = {
        words: start_node("evaluator", namespace=f"wrong{i}", **v) for i, (words, v) in enumerate(wrong.items())
    }
    for words, process in processes.items():
        assert process.process.wait(90) == 2
        line = next(line for line in process.output().splitlines() if "refused: " in line)
        assert words in line and "; " in line
    assert not (tmp_path / "one").exists() and not (tmp_path / "two").exists()
