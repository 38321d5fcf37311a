"""One episode of an evaluation at a time: its phases, the valve between agent and robot, and what is noted meanwhile.

Pure: times are seconds of one monotonic clock, stamps are nanoseconds; what happens is told to ``Trials``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from dr_core.robot.evaluation import LABELS, MOVING, Curve, Result, Results, Settings, agreement

SILENCE_S = 1.0
"""Without a wish of the agent, or a word of the gate, for so long, an episode is aborted."""
FRESH_S = 0.5

Velocity = tuple[float, ...]


class Phase(Enum):
    """Where an episode stands."""

    RESET = "reset"  # the robot and the scene are brought to their start
    WAIT = "wait"  # for the gate and for the agent
    RECORD = "record"  # the recorder begins
    OPEN = "open"  # the next wish of the agent begins the episode
    RUN = "run"
    LABEL = "label"  # a person says how it went
    SAVE = "save"  # the recorder ends
    DONE = "done"


@dataclass
class Seen:
    """What is known of the world; ages in seconds, infinite for never."""

    reset: bool = False
    gate_age_s: float = math.inf
    gate_stopped: bool = False
    gate_causes: tuple[str, ...] = ()
    agent_age_s: float = math.inf
    reward_missing: bool = False
    recording: bool = False
    success_s: float = 0.0
    """How long success has been told of without a break."""
    abort: str = ""
    label: str = ""
    saved: bool = False


class Machine:
    """One episode, from the reset to the result.

    Args:
        settings: of the evaluation.
        agent: whose turn it is.
    """

    def __init__(self, settings: Settings, agent: str) -> None:
        self.settings, self.agent = settings, agent
        self.phase = Phase.RESET
        self.waiting_for = ""
        self.outcome, self.cause = "", ""
        self.silent = False
        self.duration_s = 0.0
        self._begun_s = 0.0

    def step(self, now_s: float, seen: Seen) -> Phase:
        """Look at the world and go on as far as possible."""
        while (following := self._next(now_s, seen)) != self.phase:
            self.phase = following
        return self.phase

    def begin(self, now_s: float) -> bool:
        """A wish of the agent has come: whether it begins the episode."""
        if self.phase is not Phase.OPEN or self.waiting_for:
            return False
        self.phase, self._begun_s = Phase.RUN, now_s
        return True

    def _next(self, now_s: float, seen: Seen) -> Phase:
        if self.phase is Phase.RESET:
            return Phase.WAIT if seen.reset else Phase.RESET
        if self.phase in (Phase.WAIT, Phase.OPEN):
            self.waiting_for = self._missing(seen)
            return Phase.RECORD if self.phase is Phase.WAIT and not self.waiting_for else self.phase
        if self.phase is Phase.RECORD:
            return Phase.OPEN if seen.recording else Phase.RECORD
        if self.phase is Phase.RUN:
            self._judge(now_s, seen)
            if self.outcome or now_s - self._begun_s >= self.settings.episode_s:
                self.duration_s = now_s - self._begun_s
                return Phase.SAVE if self.outcome else Phase.LABEL
        if self.phase is Phase.LABEL and seen.label:
            self.outcome = seen.label
            return Phase.SAVE
        return Phase.DONE if self.phase is Phase.SAVE and seen.saved else self.phase

    def _missing(self, seen: Seen) -> str:
        """What the episode cannot begin without; empty when all is there."""
        if self.settings.mode != "dry-run":
            if seen.gate_age_s > SILENCE_S:
                return "nothing is heard of the gate: is arm_bridge active?"
            if seen.gate_stopped:
                causes = "; ".join(seen.gate_causes)
                return f"the gate is STOPPED ({causes}): make the robot safe, then reset the gate by hand"
        if seen.agent_age_s > FRESH_S:
            return f"no fresh wishes on {self.agent}/desired_twist"
        return "no reward arrives: is the reward node active?" if seen.reward_missing else ""

    def _judge(self, now_s: float, seen: Seen) -> None:
        """Outcome and cause, if the episode is to end; without an outcome at the time limit a person decides."""
        mode = self.settings.mode
        if seen.abort:
            self.outcome, self.cause = "aborted", seen.abort
        elif seen.label:
            self.outcome = seen.label
        elif mode != "dry-run" and seen.gate_stopped:
            self.outcome, self.cause = "aborted", f"the gate stopped: {'; '.join(seen.gate_causes)}"
        elif mode != "dry-run" and seen.gate_age_s > SILENCE_S:
            self.outcome, self.cause = "aborted", f"nothing was heard of the gate for {SILENCE_S:g} s"
        elif seen.agent_age_s > SILENCE_S:
            self.outcome, self.cause = "aborted", f"no wish of the agent for {SILENCE_S:g} s"
            self.silent = True
        elif mode != "dry-run" and self.settings.success and seen.success_s >= self.settings.success_hold_s:
            self.outcome = "success"
        elif now_s - self._begun_s >= self.settings.episode_s:
            self.outcome = "not judged" if mode == "dry-run" else "failure" if self.settings.success else ""


@dataclass
class Valve:
    """Decides what is sent on as the wish behind the robot's motion.

    Open, the agent's wishes pass. Shut, zeros are sent so that the gate does not miss its commands. Cut, nothing is
    sent at all: an agent that has died must lead to the gate's stop.

    Attributes:
        factor: what the agent's wishes are multiplied by while it is open.
        hold_after_s: without a command for so long, the gate holds.
    """

    factor: float
    hold_after_s: float
    state: str = field(default="shut", init=False)
    _sent_s: float = field(default=-math.inf, init=False)
    _stamp_ns: int = field(default=0, init=False)

    def newer(self, stamp_ns: int) -> bool:
        """Whether the gate would take a wish of this stamp after what was sent last."""
        return stamp_ns > self._stamp_ns

    def wish(self, now_s: float, stamp_ns: int, *, opening: bool) -> float | None:
        """What to multiply this wish of the agent by before it is sent on; None: it is not.

        While the valve is about to open, zeros take the agent's own stamps: one with the present time would be newer
        than the agent's next observation, and the gate takes commands in the order of their observations only.
        """
        if self.state == "open" or (self.state == "shut" and opening and self.newer(stamp_ns)):
            self._sent_s, self._stamp_ns = now_s, max(stamp_ns, self._stamp_ns)
            return self.factor if self.state == "open" else 0.0
        return None

    def beat(self, now_s: float, now_ns: int, *, opening: bool) -> bool:
        """Whether a zero with the present time is due; while the valve is about to open, as late as possible."""
        share = 0.9 if opening else 0.5
        if self.state != "shut" or now_s - self._sent_s < share * self.hold_after_s:
            return False
        self._sent_s, self._stamp_ns = now_s, now_ns
        return True


@dataclass
class GateView:
    """What the gate has said last; ``stops`` and ``holds`` since its start."""

    stopped: bool = False
    idle: bool = False
    causes: tuple[str, ...] = ()
    stops: int = 0
    holds: int = 0


@dataclass(frozen=True)
class FrameOfReward:
    """One reward of a camera frame; ``ood`` is NaN where it was not told."""

    stamp_ns: int
    value: float
    valid: bool
    ood: float
    model_hash: str
    estimator: str


class Trials:
    """The episodes of an evaluation, one after another.

    Args:
        settings, results: of the evaluation.
        linear_m_s: the robot's fastest, by which velocities are divided for the agreement.
        hold_after_s: of the gate.
        needs_reward: no episode begins while no rewards arrive.
    """

    def __init__(
        self,
        settings: Settings,
        results: Results,
        linear_m_s: float,
        hold_after_s: float,
        *,
        needs_reward: bool = False,
    ) -> None:
        self.settings, self.results = settings, results
        self.moving = settings.mode in MOVING
        self.valve = Valve(settings.slow_factor if settings.mode == "slow" else 1.0, hold_after_s)
        self.gate = GateView()
        self._linear_m_s, self._needs_reward = linear_m_s, needs_reward
        self._gate_s = self._reward_s = -math.inf
        self._heard_s: dict[str, float] = {}
        self._prepare(0, settings.agents[0])

    def next(self) -> bool:
        """Prepare the next episode; False when all are done."""
        if not (missing := self.results.missing()):
            return False
        self._prepare(missing[0], self.results.order[missing[0]])
        return True

    def _prepare(self, number: int, agent: str) -> None:
        self.number, self.name, self.bag, self.recording = number, "", "", ""
        self.machine, self.seen = Machine(self.settings, agent), Seen()
        if self.valve.state == "open":
            self.valve.state = "shut"
        self._notes = ""
        self._held = False
        self._success_s: float | None = None
        self._begun_ns = self._ended_ns = 0
        self._begun_unix_s = 0.0
        self._before = self._after = self.gate
        self._rewards: list[FrameOfReward] = []
        self._agent: list[tuple[int, Velocity]] = []
        self._person: list[tuple[int, Velocity]] = []

    @property
    def running(self) -> bool:
        return self.machine.phase is Phase.RUN

    def tick(self, now_s: float, now_ns: int) -> Phase:
        """Go on as far as possible."""
        seen, gate, agent = self.seen, self.gate, self.machine.agent
        seen.gate_age_s, seen.gate_stopped, seen.gate_causes = now_s - self._gate_s, gate.stopped, gate.causes
        seen.agent_age_s = now_s - self._heard_s.get(agent, -math.inf)
        seen.reward_missing = self._needs_reward and now_s - self._reward_s > SILENCE_S
        seen.success_s = 0.0 if self._success_s is None else now_s - self._success_s
        running = self.running
        phase = self.machine.step(now_s, seen)
        if running and phase is not Phase.RUN:
            self._ended_ns, self._after = now_ns, gate
            self.valve.state = "cut" if self.machine.silent else "shut"
            seen.label = ""
        return phase

    def zero_due(self, now_s: float, now_ns: int) -> bool:
        """Whether a twist of zero with the present time is to be sent."""
        return self.moving and self.valve.beat(now_s, now_ns, opening=self.machine.phase is Phase.OPEN)

    # ---- what happens ----

    def wish(self, agent: str, now_s: float, now_ns: int, stamp_ns: int, linear: Velocity) -> float | None:
        """A twist of an agent has come: what to multiply it by before it is sent on; None: it is not."""
        self._heard_s[agent] = now_s
        if agent != self.machine.agent:
            return None
        opening = self.machine.phase is Phase.OPEN
        if opening and self.valve.newer(stamp_ns) and self.machine.begin(now_s):
            self._begun_ns, self._begun_unix_s, self._before = now_ns, time.time(), self.gate
            self._success_s, self._held = None, False
            self.valve.state = "open" if self.moving else "shut"
        if self.running and self.settings.mode == "shadow":
            self._agent.append((stamp_ns, linear))
        return self.valve.wish(now_s, stamp_ns, opening=opening) if self.moving else None

    def passes(self, agent: str) -> float | None:
        """The factor of the agent's other wishes; None: they are not sent on."""
        return self.valve.factor if self.moving and self.running and agent == self.machine.agent else None

    def person(self, stamp_ns: int, linear: Velocity) -> None:
        """A twist of the person who drives in mode shadow."""
        if self.running:
            self._person.append((stamp_ns, linear))

    def gate_said(self, now_s: float, gate: GateView) -> None:
        """A state of the gate has come."""
        self._gate_s, self.gate = now_s, gate
        if self.valve.state == "cut" and (gate.stopped or gate.idle):
            self.valve.state = "shut"

    def success(self, now_s: float, value: bool) -> None:
        """The topic of success has told."""
        self._success_s = (self._success_s or now_s) if value else None

    def deadman(self, held: bool) -> None:
        """The dead-man switch has told: letting go of it ends an episode in which the agent moves the robot."""
        if self._held and not held and self.running and self.moving:
            self.seen.abort = "the dead-man switch was released"
        self._held = held

    def reward(self, now_s: float, reward: FrameOfReward) -> None:
        """A reward has come; of which episode, its stamp decides."""
        self._reward_s = now_s
        if self.machine.phase in (Phase.RUN, Phase.LABEL, Phase.SAVE):
            self._rewards.append(reward)

    def ready(self) -> str:
        """The person has reset the scene; why not, in words."""
        if self.machine.phase is not Phase.RESET:
            return f"nobody is asked to reset anything: {self.machine.phase.value}"
        self.seen.reset = True
        return ""

    def abort(self) -> str:
        """The person ends the episode; why not, in words."""
        if not self.running:
            return "no episode is running"
        self.seen.abort = "by the operator"
        return ""

    def label(self, outcome: str, notes: str = "", name: str = "") -> str:
        """The person says how the episode went, which ends it; why not, in words."""
        allowed = ("aborted",) if self.settings.mode == "dry-run" else LABELS
        if self.machine.phase not in (Phase.RUN, Phase.LABEL) or name not in ("", self.name):
            return "only the episode that is running, or waits for its label, can be labelled"
        if outcome not in allowed:
            return f"the outcome is one of {', '.join(allowed)}, not {outcome!r}"
        self.seen.label, self._notes = outcome, notes
        return ""

    # ---- what comes of it ----

    def result(self) -> tuple[Result, Curve]:
        """Of an episode that is done."""
        own = [one for one in self._rewards if self._begun_ns <= one.stamp_ns <= self._ended_ns]
        curve = Curve.of([(one.stamp_ns, one.value, one.valid, one.ood) for one in own])
        machine = self.machine
        result = Result(
            number=self.number,
            agent=machine.agent,
            name=self.name,
            outcome=machine.outcome,
            cause="; ".join(filter(None, (machine.cause, self._notes))),
            started_unix_s=self._begun_unix_s,
            duration_s=machine.duration_s,
            model_hashes=tuple(sorted({one.model_hash for one in own})),
            estimators=tuple(sorted({one.estimator for one in own})),
            gate_stops=self._after.stops - self._before.stops,
            gate_holds=self._after.holds - self._before.holds,
            agreement=self._agreement() if self.settings.mode == "shadow" else None,
            bag=self.bag,
            recording=self.recording,
            **curve.facts(),
        )
        return result, curve

    def _agreement(self) -> dict[str, float | int | None]:
        stamps: list[NDArray[np.int64]] = []
        velocities: list[NDArray[np.float64]] = []
        for samples in (self._agent, self._person):
            ordered = sorted(samples)
            stamps.append(np.array([stamp for stamp, _ in ordered], np.int64))
            velocities.append(np.array([linear for _, linear in ordered], np.float64).reshape(-1, 3))
        scale = self._linear_m_s or 1.0
        return agreement(stamps[0], velocities[0] / scale, stamps[1], velocities[1] / scale)
