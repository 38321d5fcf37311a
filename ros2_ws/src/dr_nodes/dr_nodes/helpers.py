"""The services that an evaluation calls: what resets the scene, the gate and the recorder."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from dr_interfaces.msg import EpisodeInfo
from dr_interfaces.srv import ResetGate, StartEpisode, StopEpisode
from std_srvs.srv import Trigger

from dr_core.robot.evaluation import LABELS
from dr_core.robot.trial import Machine, Phase, Trials
from dr_nodes.common import OK, WARN

RETRY_S = 1.0
ANSWER_S = 30.0


class Helpers:
    """Asks for what the phase of an episode needs, until it is done; never waits for an answer.

    Args:
        node: whose clients they are; it destroys ``clients``.
        trials: what is told of the answers.
        reset: service that brings the scene to its start; empty: a person does, and tells ``trials``.
        gate: service that resets the gate; empty: a person does.
        recorder: node that records; empty: none.
    """

    def __init__(self, node: Any, trials: Trials, *, reset: str, gate: str, recorder: str) -> None:
        self.trials = trials
        self.info = EpisodeInfo()
        """The newest of the recorder."""
        wanted = {
            "reset": (Trigger, reset),
            "gate": (ResetGate, gate),
            "start": (StartEpisode, recorder and f"{recorder}/start"),
            "stop": (StopEpisode, recorder and f"{recorder}/stop"),
        }
        self.clients = {name: node.create_client(kind, service) for name, (kind, service) in wanted.items() if service}
        self._again_s = dict.fromkeys(self.clients, -math.inf)
        self._problems: dict[str, str] = {}

    def serve(self, phase: Phase, since_s: float) -> tuple[bytes, str]:
        """Do what this phase, which has lasted for ``since_s``, asks for; returns how it stands, in words."""
        trials = self.trials
        if phase is Phase.RESET:
            if "reset" not in self.clients:
                return WARN, "bring robot and scene to their start, then press Enter or call ~/ready"
            return self._ask("reset", Trigger.Request())
        if phase in (Phase.WAIT, Phase.OPEN):
            if "gate" in self.clients and trials.gate.stopped:
                return self._ask("gate", ResetGate.Request(operator_name=f"evaluator, {trials.settings.operator}"))
            missing = trials.machine.waiting_for
            return (WARN, missing) if missing else (OK, "ready")
        if phase is Phase.RECORD:
            return self._start()
        if phase is Phase.LABEL:
            return WARN, "how did it go? s: success, f: failure, a: aborted, then Enter; or call ~/label"
        if phase is Phase.SAVE:
            return self._stop(since_s)
        return OK, "running"

    def _start(self) -> tuple[bytes, str]:
        trials, settings = self.trials, self.trials.settings
        trials.name = trials.name or trials.results.reserve(trials.number)
        if "start" not in self.clients:
            trials.seen.recording = True
            return OK, "not recorded"
        unasked = time.monotonic() >= self._again_s["start"]
        if unasked and self.info.recording and self.info.name.startswith(trials.results.prefix):
            # Of a process that was killed, or of a request whose answer was lost: then the name is used up.
            if self.info.name == trials.name:
                trials.name = ""
            return self._ask("stop", StopEpisode.Request(outcome="aborted"))
        agent = trials.machine.agent
        driver = settings.operator if settings.mode == "shadow" else agent
        notes = f"evaluation of {agent}, mode {settings.mode}, operator {settings.operator}"
        request = StartEpisode.Request(name=trials.name, task=settings.task, operator_name=driver, notes=notes)
        return self._ask("start", request)

    def _stop(self, since_s: float) -> tuple[bytes, str]:
        trials = self.trials
        if "stop" not in self.clients:
            trials.seen.saved = True
        elif since_s > ANSWER_S:
            trials.recording, trials.seen.saved = "the recorder did not answer", True
        else:
            outcome = trials.machine.outcome
            return self._ask("stop", StopEpisode.Request(outcome=outcome if outcome in LABELS else "aborted"))
        return OK, "ended"

    def _ask(self, name: str, request: Any) -> tuple[bytes, str]:
        """Call a service, and again when it did not do it, or did not answer."""
        client, now_s = self.clients[name], time.monotonic()
        if now_s >= self._again_s[name]:
            if not client.service_is_ready():
                return WARN, f"waiting for the service {client.srv_name}"
            self._again_s[name] = now_s + ANSWER_S
            client.call_async(request).add_done_callback(partial(self._answered, name, self.trials.machine))
        if problem := self._problems.get(name):
            return WARN, f"{client.srv_name}: {problem}"
        return OK, f"asking {client.srv_name}"

    def _answered(self, name: str, machine: Machine, future: Any) -> None:
        response, trials = future.result(), self.trials
        self._again_s[name] = time.monotonic() + (0.0 if response.success else RETRY_S)
        self._problems[name] = "" if response.success else response.message
        if machine is not trials.machine:
            return
        if name == "reset":
            trials.seen.reset = response.success
        elif name == "start":
            trials.seen.recording = response.success
        elif name == "stop" and machine.phase is Phase.SAVE:
            trials.bag, trials.recording, trials.seen.saved = response.path, response.message, True
