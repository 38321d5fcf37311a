"""Evaluates one agent, or two in turn: episodes with reset, time limit, label and recording, and a report.

It is also the valve between agents and gate, see valve.py: in dry-run and shadow nothing of an agent goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import select
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rclpy
from dr_interfaces.msg import EpisodeInfo, GateState, RewardStamped
from dr_interfaces.srv import LabelEpisode
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from dr_core.errors import UserError
from dr_core.robot.evaluation import LABELS, MODES, Results, Settings
from dr_core.robot.trial import FrameOfReward, GateView, Phase, Trials
from dr_core.safety.limits import load_robot
from dr_nodes.common import OK, ManagedNode, Param, needed, run
from dr_nodes.convert import stamp_to_ns
from dr_nodes.helpers import Helpers
from dr_nodes.messages import twist_to_values
from dr_nodes.valve import Valve

PARAMETERS = (
    Param("out", "", "folder of the results; one of the same settings is continued"),
    Param("episodes", 5, "episodes of each agent", 1, 10000),
    Param("mode", "dry-run", "how much an agent may do", choices=MODES),
    Param("agents", ["agent"], "namespaces of one agent, or of two that are compared in shuffled order"),
    Param("robot_file", "", "YAML file of the robot"),
    Param("task", "", "what the robot should do, for the recordings"),
    Param("operator", "", "who is responsible, and drives in mode shadow"),
    Param("episode_s", 30.0, "time limit of an episode", 0.1, 3600.0),
    Param("slow_factor", 0.3, "what wishes are multiplied by in mode slow", 0.0, 1.0),
    Param("seed", 0, "of the order of two agents", 0, 2**31 - 1),
    Param("reset_service", "", "std_srvs/Trigger that brings the scene to its start; empty: a person does"),
    Param("reset_gate", False, "reset the gate without asking anybody: for simulations only"),
    Param("success_topic", "", "std_msgs/Bool that tells of success; empty: a person labels each episode"),
    Param("success_hold_s", 0.3, "success counts when it has been told of for so long", 0.0, 60.0),
    Param("needs_reward", False, "begin no episode while no rewards arrive"),
    Param("recorder", "recorder", "node that records the episodes; empty: none"),
)
TICK_S = 0.02
KEYS = {label[0]: label for label in LABELS}


class Evaluator(ManagedNode):
    """Tells ``Trials`` what happens, sends on what it lets pass, and calls the services that the phase asks for."""

    one_task = True

    def __init__(self) -> None:
        super().__init__("evaluator", PARAMETERS)
        self.results: Results | None = None
        self.valve: Valve | None = None
        self.made: list[tuple[Any, Any]] = []
        self.writer = ThreadPoolExecutor(1)  # the disk must not delay the valve

    def configure(self) -> None:
        out = Path(needed(self.value("out"), "out", "a folder for the results"))
        robot_file = Path(needed(self.value("robot_file"), "robot_file", "the robot's YAML file"))
        self.robot = load_robot(robot_file)
        same = ("mode", "episodes", "seed", "task", "operator", "episode_s", "slow_factor", "success_hold_s")
        self.settings = Settings(
            agents=tuple(self.values("agents")),
            success=self.value("success_topic"),
            robot_sha256=hashlib.sha256(robot_file.read_bytes()).hexdigest(),
            **{name: self.value(name) for name in same},
        )
        versions = f"dr_core {importlib.metadata.version('dr_core')}, ROS {os.environ.get('ROS_DISTRO', 'unknown')}"
        self.results = Results(out, self.settings, {"robot_file": str(robot_file.resolve()), "versions": versions})
        limits, action = self.robot.limits, self.robot.action
        self.trials = Trials(
            self.settings,
            self.results,
            action.linear_m_s,
            limits.hold_after_s,
            needs_reward=self.value("needs_reward"),
        )
        self.said = ""
        self.valve = Valve(self, self.trials, self.settings, self.robot.frames.base)
        self.listen()
        self.helpers = Helpers(
            self,
            self.trials,
            reset=self.value("reset_service"),
            gate="arm_bridge/reset_gate" if self.value("reset_gate") else "",
            recorder=self.value("recorder"),
        )
        served = [(Trigger, "ready", self.on_ready), (Trigger, "abort", self.on_abort)]
        served.append((LabelEpisode, "label", self.on_label))
        services = [self.create_service(kind, f"~/{name}", callback) for kind, name, callback in served]
        self.made += [(self.destroy_service, one) for one in services]
        self.made += [(self.destroy_client, one) for one in self.helpers.clients.values()]

    def listen(self) -> None:
        heard: list[Any] = [(GateState, "gate_state", self.on_gate), (RewardStamped, "reward", self.on_reward)]
        heard += [(EpisodeInfo, "episode_info", self.on_info), (Bool, "deadman", self.on_deadman)]
        if self.settings.mode == "shadow":
            heard.append((TwistStamped, "desired_twist", self.on_person))
        if self.settings.success:
            heard.append((Bool, self.settings.success, self.on_success))
        for kind, topic, callback in heard:
            self.made.append((self.destroy_subscription, self.create_subscription(kind, topic, callback, 10)))

    def activate(self) -> None:
        self.prepared, self.terminal = False, sys.stdin.isatty()
        self.beat = self.create_timer(TICK_S, self.tick)

    def deactivate(self) -> None:
        self.destroy_timer(self.beat)

    def cleanup(self) -> None:
        while self.made:
            destroy, entity = self.made.pop()
            destroy(entity)
        if self.valve is not None:
            self.valve.close()
            self.valve = None
        if self.results is not None:
            self.results.close()

    def finish(self) -> int:
        """The report, with videos, now that ROS has ended; 1 if episodes are missing, 2 if it never began."""
        self.writer.shutdown()
        if self.results is None:
            return 2
        if not self.results.done:
            return 1
        from dr_core.robot.evaluation_report import finish

        try:
            with contextlib.suppress(KeyboardInterrupt):  # by then there is a report, if without all videos
                signal.signal(signal.SIGINT, signal.default_int_handler)
                print(f"report: {finish(self.results.out)}", flush=True)
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
        return 1 if self.results.missing() else 0

    # ---- the course of an episode ----

    def prepare(self) -> None:
        self.keeping: Future[None] | None = None
        self.phase, self.since_s = Phase.RESET, time.monotonic()
        self.prepared = self.trials.next()
        if not self.prepared:
            self.say(OK, "all episodes are done")
            rclpy.try_shutdown()

    def tick(self) -> None:
        if not self.prepared:
            self.prepare()
            return
        assert self.valve is not None
        now_s, trials = time.monotonic(), self.trials
        self.read_keys()
        phase = trials.tick(now_s, self.now_ns())
        if phase is not self.phase:
            self.phase, self.since_s = phase, now_s
        if trials.zero_due(now_s, self.now_ns()):
            self.valve.rest(self.now_ns())
        if phase is Phase.DONE:
            self.keep()
        else:
            self.say(*self.helpers.serve(phase, now_s - self.since_s))

    def keep(self) -> None:
        if self.keeping is None:
            result, curve = self.trials.result()
            self.say(OK, " ".join(filter(None, (result.outcome, result.cause))))
            self.keeping = self.writer.submit(self.trials.results.append, result, curve)
        elif self.keeping.done():
            try:
                self.keeping.result()
            except UserError as error:
                self.refuse(error)
                return
            self.prepared = False

    def say(self, level: bytes, words: str) -> None:
        """How the episode stands; logged when it is news."""
        number, total = self.trials.number + 1, len(self.trials.results.order)
        text = f"episode {number} of {total}, {self.trials.machine.agent}: {words}"
        if text != self.said:
            self.said = text
            self.diagnostics.tell("episode", level, text)
            if level == OK:
                self.get_logger().info(text)

    def read_keys(self) -> None:
        """A line on the terminal, if there is one: it never waits. A terminal that is gone says nothing."""
        if not self.terminal or not select.select([sys.stdin], [], [], 0.0)[0]:
            return
        try:
            line = os.read(sys.stdin.fileno(), 1024).decode(errors="replace").lower()
        except OSError:
            line = ""
        self.terminal = bool(line)
        if self.phase is Phase.RESET and line in ("\n", "\r\n") and not self.value("reset_service"):
            self.trials.ready()
        elif line[:1] in KEYS:
            self.trials.label(KEYS[line[:1]])

    # ---- what arrives ----

    def on_person(self, message: Any) -> None:
        self.trials.person(stamp_to_ns(message.header.stamp), twist_to_values(message)[:3])

    def on_gate(self, message: Any) -> None:
        stopped, idle = message.state == GateState.STOPPED, message.state == GateState.IDLE
        view = GateView(stopped, idle, tuple(message.causes), message.stops, message.holds)
        self.trials.gate_said(time.monotonic(), view)

    def on_reward(self, message: Any) -> None:
        values = (message.value, message.valid, message.ood, message.model_hash, message.estimator)
        self.trials.reward(time.monotonic(), FrameOfReward(stamp_to_ns(message.header.stamp), *values))

    def on_success(self, message: Any) -> None:
        self.trials.success(time.monotonic(), message.data)

    def on_deadman(self, message: Any) -> None:
        self.trials.deadman(message.data)

    def on_info(self, message: Any) -> None:
        self.helpers.info = message

    def on_ready(self, request: Any, response: Any) -> Any:
        return self.answer(response, self.trials.ready())

    def on_abort(self, request: Any, response: Any) -> Any:
        return self.answer(response, self.trials.abort())

    def on_label(self, request: Any, response: Any) -> Any:
        return self.answer(response, self.trials.label(request.outcome, request.notes, request.name))

    def answer(self, response: Any, problem: str) -> Any:
        response.success, response.message = not problem, problem
        return response


def main() -> int:
    return run(Evaluator)


if __name__ == "__main__":
    sys.exit(main())
