"""Evaluation: statistics against references, order, results that survive, the course of an episode, the report."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dr_core.data.episodes import EpisodeMetadata, EpisodeWriter
from dr_core.data.video import read_video
from dr_core.errors import ConfigError, OutputInUseError, UserError
from dr_core.robot.evaluation import (
    EPISODES,
    PLAN,
    Curve,
    Result,
    Results,
    Settings,
    agreement,
    rate_difference,
    read_curve,
    read_results,
    schedule,
    wilson,
)
from dr_core.robot.evaluation_report import REPORT, count_outcomes, finish
from dr_core.robot.trial import FrameOfReward, GateView, Phase, Trials
from dr_core.study.report import write_report

SETTINGS = Settings(
    mode="full",
    agents=("a", "b"),
    episodes=3,
    seed=7,
    task="push <the> block",
    operator="ann",
    episode_s=10.0,
    slow_factor=0.3,
    success="success",
    success_hold_s=0.3,
    robot_sha256="0" * 64,
)
EMPTY = Curve.of([])
S = 10**9


def results_of(out: Path, **changes: Any) -> Results:
    return Results(out, dataclasses.replace(SETTINGS, **changes), {"robot_file": "robot.yaml"})


def result_of(results: Results, number: int, outcome: str, **fields: Any) -> Result:
    name = fields.pop("name", "") or results.reserve(number)
    return Result(number, results.order[number], name, outcome, fields.pop("cause", ""), 1.7e9, 3.0, **fields)


# ---- statistics and order ----


def test_wilson_is_scipys() -> None:
    for count in (1, 5, 20, 333):
        for successes in {0, 1, count // 3, count}:
            found = stats.binomtest(successes, count).proportion_ci(method="wilson")
            assert wilson(successes, count) == pytest.approx((found.low, found.high), abs=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_difference_is_newcombes(first: tuple[int, int], second: tuple[int, int], low: float, high: float) -> None:
    """Table II of Newcombe (1998), method 10."""
    difference, lower, upper = rate_difference(first, second)
    assert difference == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert (lower, upper) == pytest.approx((low, high), abs=5e-5)


def test_the_order_is_balanced_in_blocks_and_follows_the_seed() -> None:
    order = schedule(("a", "b"), 50, 3)
    blocks = [order[i : i + 2] for i in range(0, 100, 2)]
    assert all(set(block) == {"a", "b"} for block in blocks)
    assert 10 < sum(block[0] == "a" for block in blocks) < 40, "shuffled"
    assert order == schedule(("a", "b"), 50, 3) != schedule(("a", "b"), 50, 4)
    assert schedule(("a",), 3, 0) == ("a", "a", "a")


def test_agreement_pairs_the_nearest_and_knows_what_is_not_comparable() -> None:
    agent_ns = np.array([0, 1, 2, 3, 4], np.int64) * S
    agent = np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [math.nan, 0, 0]])
    human_ns = np.array([-200_000_000, 90_000_000, S - 50_000_000, S + 20_000_000, 2 * S, 3 * S + 110_000_000, 4 * S])
    human = np.array([[9.0, 9, 9], [0, 1, 0], [9, 9, 9], [0.5, 0, 0], [0, 0, 0.6], [9, 9, 9], [1, 0, 0]])
    found = agreement(agent_ns, agent, human_ns.astype(np.int64), human)
    assert found["pairs"] == 3 and found["moving"] == 2
    assert found["cosine"] == pytest.approx((0.0 + 1.0) / 2)
    assert found["difference"] == pytest.approx((2 / 3 + 0.5 / 3 + 0.6 / 3) / 3)
    none = np.zeros(0, np.int64)
    assert agreement(none, agent[:0], human_ns.astype(np.int64), human)["cosine"] is None


# ---- results ----


def test_an_evaluation_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    out = tmp_path / "trial"
    results = results_of(out)
    order = results.order
    assert json.loads((out / PLAN).read_text())["order"] == list(order) == list(schedule(("a", "b"), 3, 7))
    curve = Curve.of([(5, 1.25, True, 0.5), (6, math.nan, True, math.nan), (7, 3.0, False, 0.1)])
    results.append(result_of(results, 0, "success", **curve.facts()), curve)
    cut = results.reserve(1)
    with pytest.raises(OutputInUseError, match="lock"):
        results_of(out)
    results.close()
    again = results_of(out)
    assert again.order == order and again.missing() == [1, 2, 3, 4, 5]
    assert again.reserve(1) == f"{cut}_2" and cut == f"trial_0002_{order[1]}"
    kept = read_curve(out, again.done[0].name)
    assert list(kept.valid) == [True, False, False] and list(kept.stamps_ns) == [5, 6, 7]
    assert (again.done[0].rewards, again.done[0].invalid, again.done[0].reward_return) == (3, 2, 1.25)
    again.append(result_of(again, 1, "failure"), EMPTY)
    again.close()
    assert [one.outcome for one in read_results(out)] == ["success", "failure"]


def test_other_settings_and_other_files_are_refused(tmp_path: Path) -> None:
    results_of(tmp_path / "one").close()
    before = (tmp_path / "one" / PLAN).read_bytes()
    for change in ({"mode": "slow"}, {"agents": ("a",)}, {"robot_sha256": "1" * 64}, {"episode_s": 11.0}):
        with pytest.raises(OutputInUseError, match=next(iter(change))):
            results_of(tmp_path / "one", **change)
    assert (tmp_path / "one" / PLAN).read_bytes() == before
    results_of(tmp_path / "one").close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(OutputInUseError, match="other files"):
        results_of(tmp_path / "other")
    (tmp_path / "one" / EPISODES).write_text('{"number": 0')
    with pytest.raises(UserError, match="line 1"):
        results_of(tmp_path / "one")


@pytest.mark.parametrize("agents", [(), ("a", "a"), ("a", "b", "c"), ("../a",), ("",)])
def test_names_of_agents_that_cannot_be_are_refused(agents: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="agents"):
        dataclasses.replace(SETTINGS, agents=agents)


# ---- an episode ----


class Played:
    """Trials with a world that a test plays: a clock, a gate, an agent."""

    def __init__(self, out: Path, **changes: Any) -> None:
        self.results = results_of(out, **{"agents": ("a",), "episodes": 1, **changes})
        self.trials = Trials(self.results_settings(), self.results, 0.2, 0.15)
        assert self.trials.next()
        self.now_s = 100.0
        self.gate, self.agent = GateView(), True
        self.sent: list[tuple[str, float | None]] = []

    def results_settings(self) -> Settings:
        plan = json.loads((self.results.out / PLAN).read_text())["settings"]
        return Settings(**{**plan, "agents": tuple(plan["agents"])})

    def play(self, seconds: float, *, until: Phase | None = None) -> Phase:
        """Ticks of 20 ms; a wish each 100 ms, 30 ms after its observation."""
        for _ in range(round(seconds / 0.02)):
            self.now_s += 0.02
            now_ns = round(self.now_s * S)
            self.trials.gate_said(self.now_s, self.gate)
            if self.agent and round(self.now_s / 0.02) % 5 == 0:
                factor = self.trials.wish("a", self.now_s, now_ns, now_ns - 30_000_000, (0.1, 0.0, 0.0))
                if factor is not None:
                    self.sent.append(("wish", factor))
            phase = self.trials.tick(self.now_s, now_ns)
            if self.trials.zero_due(self.now_s, now_ns):
                self.sent.append(("zero", 0.0))
            if phase is until:
                break
        return self.trials.machine.phase

    def start(self) -> None:
        self.trials.ready()
        self.trials.seen.recording = True
        assert self.play(1.0, until=Phase.RUN) is Phase.RUN
        self.sent.clear()

    def end(self) -> Result:
        self.trials.seen.saved = True
        assert self.play(1.0, until=Phase.DONE) is Phase.DONE
        return self.trials.result()[0]


@pytest.fixture
def play(tmp_path: Path) -> Any:
    return lambda **changes: Played(tmp_path / "out", **changes)


def test_nothing_but_zeros_before_an_episode_and_nothing_but_wishes_in_it(play: Any) -> None:
    world = play(mode="slow", success="")
    assert world.play(1.0) is Phase.RESET
    assert set(world.sent) == {("zero", 0.0)} and len(world.sent) >= 10
    world.gate = GateView(stopped=True, causes=("emergency stop",))
    world.trials.ready()
    assert world.play(0.5) is Phase.WAIT and "emergency stop" in world.trials.machine.waiting_for
    world.gate = GateView()
    assert world.play(0.5) is Phase.RECORD
    world.start()
    assert world.play(9.0) is Phase.RUN
    assert set(world.sent) == {("wish", 0.3)} and 88 <= len(world.sent) <= 91
    assert world.trials.passes("a") == 0.3 and world.trials.passes("b") is None
    world.sent.clear()
    assert world.play(2.0) is Phase.LABEL
    assert world.sent[-1] == ("zero", 0.0) and world.trials.passes("a") is None
    assert world.trials.label("great") and not world.trials.label("failure", "slipped")
    result = world.end()
    assert (result.outcome, result.cause) == ("failure", "slipped") and result.duration_s == pytest.approx(
        10.0, abs=0.1
    )


def test_an_episode_waits_for_rewards_where_they_are_wanted(play: Any, tmp_path: Path) -> None:
    world = play()
    world.trials = Trials(world.results_settings(), world.results, 0.2, 0.15, needs_reward=True)
    assert world.trials.next()
    world.trials.ready()
    assert world.play(1.0) is Phase.WAIT and "reward" in world.trials.machine.waiting_for
    world.trials.reward(world.now_s, FrameOfReward(round(world.now_s * S), 0.0, False, 0.0, "", ""))
    assert world.play(0.5) is Phase.RECORD


def test_success_must_hold(play: Any) -> None:
    world = play()
    world.start()
    world.trials.success(world.now_s, True)
    assert world.play(0.2) is Phase.RUN
    world.trials.success(world.now_s, False)
    assert world.play(0.5) is Phase.RUN
    world.trials.success(world.now_s, True)
    assert world.play(0.5) is Phase.SAVE
    assert world.end().outcome == "success"
    world.results.close()


def test_a_silent_agent_gets_no_zeros_until_the_gate_has_stopped(play: Any) -> None:
    world = play()
    world.start()
    world.agent = False
    assert world.play(1.5) is Phase.SAVE
    result = world.end()
    assert (result.outcome, result.cause) == ("aborted", "no wish of the agent for 1 s")
    world.play(1.0)
    assert world.sent == []
    world.gate = GateView(stopped=True, stops=1)
    world.play(0.5)
    assert set(world.sent) == {("zero", 0.0)}


@pytest.mark.parametrize("cause", ["gate", "abort", "deadman", "mute gate"])
def test_what_aborts_an_episode(play: Any, cause: str) -> None:
    world = play()
    world.start()
    trials = world.trials
    if cause == "gate":
        world.gate = GateView(stopped=True, causes=("2 publishers on x",), stops=1)
    elif cause == "abort":
        assert trials.abort() == ""
    elif cause == "deadman":
        trials.deadman(True)
        trials.deadman(False)
    else:
        trials.gate_said = lambda now_s, gate: None
    assert world.play(1.5) is Phase.SAVE
    result = world.end()
    words = {
        "gate": "the gate stopped: 2 publishers on x",
        "abort": "by the operator",
        "deadman": "the dead-man switch was released",
        "mute gate": "nothing was heard of the gate for 1 s",
    }
    assert (result.outcome, result.cause) == ("aborted", words[cause])
    assert result.gate_stops == (cause == "gate")
    assert trials.abort() == "no episode is running"


@pytest.mark.parametrize("mode", ["dry-run", "shadow"])
def test_where_the_agent_only_proposes_nothing_passes(play: Any, mode: str) -> None:
    world = play(mode=mode, episode_s=1.0, success="success")
    world.start()
    for k in range(60):
        world.trials.person(round(world.now_s * S), (0.1, 0.1, 0.0))
        reward = FrameOfReward(round(world.now_s * S), 2.0 * (k < 10), k < 10, 0.0, "beef", "entropy")
        world.trials.reward(world.now_s, reward)
        world.play(0.02)
    assert world.trials.passes("a") is None
    assert world.sent == []
    result = world.end()
    assert result.outcome == {"dry-run": "not judged", "shadow": "failure"}[mode]
    assert result.reward_mean == 2.0 and result.invalid >= 30 and result.model_hashes == ("beef",)
    if mode == "shadow":
        assert result.agreement is not None and result.agreement["pairs"] >= 8
        assert result.agreement["cosine"] == pytest.approx(math.sqrt(0.5))
        assert result.agreement["difference"] == pytest.approx(0.5 / 3)
    else:
        assert result.agreement is None


# ---- report ----


def write_bag(path: Path, count: int) -> None:
    metadata = EpisodeMetadata(
        task="push",
        outcome="partial",
        operator="a",
        camera="",
        camera_serial="",
        quality=None,
        seed=None,
        rate_hz=10.0,
        render={},
        versions={},
        calibration_hash=None,
        drops={},
    )
    with EpisodeWriter(path, metadata) as bag:
        for k in range(count):
            bag.write_image(S + k * S // 10, np.full((32, 48, 3), 8 * k, np.uint8))
        bag.close("success", {"queue:/joint_states": 4})


def test_the_report_says_what_happened(tmp_path: Path) -> None:
    results = results_of(tmp_path / "ab")
    write_bag(tmp_path / "bags" / "one", 12)
    curve = Curve.of([(k * S, 0.5, k != 1, 0.0) for k in range(4)])
    outcomes = {"a": ["success", "success", "aborted"], "b": ["failure", "failure", "success"]}
    for number, agent in enumerate(results.order):
        fields: dict[str, Any] = {"cause": "the gate stopped: <estop>"} if outcomes[agent][0] == "aborted" else {}
        if number == 0:
            fields |= {"bag": str(tmp_path / "bags" / "one"), "model_hashes": ("cafe01",), **curve.facts()}
        if number == 1:
            fields |= {"bag": str(tmp_path / "bags" / "lost")}
        results.append(result_of(results, number, outcomes[agent].pop(0), **fields), curve if number == 0 else EMPTY)
    results.close()
    assert count_outcomes(results.done, "a") == (2, 2, 1) and count_outcomes(results.done, "b") == (1, 3, 0)
    path = finish(tmp_path / "ab")
    page = path.read_text()
    low, high = wilson(1, 3)
    assert f"<td>b</td><td>33% (1 of 3)</td><td>{low:.0%} to {high:.0%}</td><td>3</td><td>0</td>" in page
    difference = [100 * number for number in rate_difference((2, 2), (1, 3))]
    assert f"{difference[0]:+.0f} points, 95 % interval {difference[1]:+.0f} to {difference[2]:+.0f}" in page
    assert "a 67% of 3" in page and "&lt;estop&gt;" in page and "<estop>" not in page and "<the>" not in page
    assert "cafe01" in page and "25%" in page and "4 queue:/joint_states" in page
    name = results.done[0].name
    assert f'src="videos/{name}.mp4"' in page and page.count("<video") == 1 and "recording not found" in page
    frames, stamps_ns = read_video(tmp_path / "ab" / "videos" / f"{name}.mp4")
    assert frames.shape == (12, 32, 48, 3) and stamps_ns[-1] == pytest.approx(11 * S / 10, abs=S / 100)
    assert finish(tmp_path / "ab").read_text() == page
    path.write_text("mine")
    with pytest.raises(OutputInUseError):
        finish(tmp_path / "ab")


def test_no_rate_is_claimed_where_the_agent_did_not_drive(tmp_path: Path) -> None:
    results = results_of(tmp_path / "s", mode="shadow", agents=("a",), episodes=1)
    found = {"cosine": 0.75, "difference": 0.125, "pairs": 40, "moving": 31}
    results.append(result_of(results, 0, "success", agreement=found), EMPTY)
    results.close()
    page = finish(tmp_path / "s").read_text()
    assert "No success rate of an agent is claimed" in page and "Wilson" not in page
    assert "<td>0.75</td><td>0.125</td><td>40</td><td>31</td>" in page
    assert (tmp_path / "s" / REPORT).is_file()


def test_the_report_of_a_run_holds_its_live_evaluation(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    results = results_of(tmp_path / "run" / "live", agents=("a",), episodes=1)
    write_bag(tmp_path / "bag", 12)
    curve = Curve.of([(k * S, 0.5, True, 0.0) for k in range(4)])
    results.append(result_of(results, 0, "success", bag=str(tmp_path / "bag"), **curve.facts()), curve)
    results.close()
    finish(tmp_path / "run" / "live")
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Live</h2>" in page and "100% (1 of 1)" in page
    film = page.split('src="data:video/mp4;base64,')[1].split('"')[0]
    (tmp_path / "film.mp4").write_bytes(base64.b64decode(film))
    assert len(read_video(tmp_path / "film.mp4")[0]) == 12
    (tmp_path / "other" / "model").mkdir(parents=True)
    write_report(tmp_path / "other", tmp_path / "other.html")
    assert "<h2>Live</h2>" not in (tmp_path / "other.html").read_text()
