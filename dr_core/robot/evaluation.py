"""Evaluation of one agent, or of two in turn, on a robot: order, results and their statistics.

    dry-run  the agent proposes, nothing moves, nothing is judged
    shadow   a person drives; how far the agent agrees is measured
    slow     the agent drives, its wishes scaled down
    full     the agent drives

How one episode goes is in ``trial``.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_core.config import build
from dr_core.errors import ConfigError, OutputInUseError, UserError
from dr_core.files import exclusive, write_whole

MODES = ("dry-run", "shadow", "slow", "full")
MOVING = ("slow", "full")
"""Modes in which the agent moves the robot."""
OUTCOMES = ("success", "failure", "aborted", "not judged")
LABELS = ("success", "failure", "aborted")
PLAN, EPISODES, REWARDS = "evaluation.json", "episodes.jsonl", "rewards"
FORMAT = 1
AGREEMENT = {"cosine", "difference", "pairs", "moving"}
SAFE_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")
Z_95 = 1.959963984540054
PAIR_NS = 100_000_000

Floats = NDArray[np.float64]
Stamps = NDArray[np.int64]


# ---- order and statistics ----


def schedule(agents: Sequence[str], episodes: int, seed: int) -> tuple[str, ...]:
    """Whose turn it is: ``episodes`` blocks, each with every agent once, shuffled within the block."""
    generator = random.Random(seed)
    order: list[str] = []
    for _ in range(episodes):
        block = list(agents)
        generator.shuffle(block)
        order += block
    return tuple(order)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a success rate (Wilson, 1927); (0, 1) when nothing is known."""
    if count == 0:
        return 0.0, 1.0
    rate, z2 = successes / count, Z_95**2
    centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count**2))
    # At 0 and at 1 the bound is exact, but for rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == count else centre + half)


def rate_difference(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float, float]:
    """First success rate minus the second, with its 95 % interval (Newcombe, 1998, method 10).

    Args: successes and episodes of each, at least one episode.
    """
    rates = [successes / count for successes, count in (first, second)]
    (low_1, high_1), (low_2, high_2) = wilson(*first), wilson(*second)
    difference = rates[0] - rates[1]
    below = math.hypot(rates[0] - low_1, high_2 - rates[1])
    above = math.hypot(high_1 - rates[0], rates[1] - low_2)
    return difference, difference - below, difference + above


def agreement(agent_ns: Stamps, agent: Floats, human_ns: Stamps, human: Floats) -> dict[str, float | int | None]:
    """How far an agent wants what a person does.

    Args:
        agent_ns, human_ns: stamps (A,) and (H,), rising.
        agent, human: linear velocities (A, 3) and (H, 3), 1 being the robot's fastest.

    Returns:
        ``cosine``: mean cosine similarity of the pairs in which both move, None if there are none; ``difference``:
        mean absolute difference of the components, None without a pair; ``pairs``: wishes of the agent that have one
        of the person within 0.1 s, the nearest; ``moving``: pairs in which both move.
    """
    if not len(agent_ns) or not len(human_ns):
        return {"cosine": None, "difference": None, "pairs": 0, "moving": 0}
    after = np.searchsorted(human_ns, agent_ns).clip(0, len(human_ns) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(np.abs(human_ns[before] - agent_ns) <= np.abs(human_ns[after] - agent_ns), before, after)
    close = np.abs(human_ns[nearest] - agent_ns) <= PAIR_NS
    a, h = agent[close], human[nearest[close]]  # (P, 3)
    usable = np.isfinite(a).all(1) & np.isfinite(h).all(1)
    a, h = a[usable], h[usable]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(h, axis=1)
    moving = lengths > 0
    cosines = (a * h).sum(1)[moving] / lengths[moving]
    return {
        "cosine": float(cosines.mean()) if len(cosines) else None,
        "difference": float(np.abs(a - h).mean()) if len(a) else None,
        "pairs": len(a),
        "moving": len(cosines),
    }


# ---- what is kept ----


@dataclass(frozen=True)
class Settings:
    """What must be the same for an evaluation to be continued.

    Attributes:
        mode: one of MODES.
        agents: one name, or two to compare.
        episodes: of each agent.
        seed: of the order of two agents.
        task, operator: in words.
        episode_s: time limit.
        slow_factor: of the wishes in mode slow.
        success: the topic that tells of success; empty when a person does.
        success_hold_s: how long it must.
        robot_sha256: of the robot file.
    """

    mode: str
    agents: tuple[str, ...]
    episodes: int
    seed: int
    task: str
    operator: str
    episode_s: float
    slow_factor: float
    success: str
    success_hold_s: float
    robot_sha256: str

    def __post_init__(self) -> None:
        plain = all(name.isascii() and name.isidentifier() for name in self.agents)
        if not plain or len(set(self.agents)) != len(self.agents) or len(self.agents) not in (1, 2):
            raise ConfigError(
                "agents",
                expected="one name, or two different ones, of letters, digits and _",
                found=", ".join(map(repr, self.agents)) or "none",
                next_step="give the namespaces on which the agents publish, for example agents:=[a, b]",
            )


@dataclass(frozen=True)
class Result:
    """One episode.

    Attributes:
        number: its place in the order, from 0.
        agent: whose turn it was.
        name: of the recording and of the reward curve.
        outcome: one of OUTCOMES.
        cause: why it was aborted, or a note of the person who labelled it.
        started_unix_s, duration_s: without what came before and after it.
        rewards, invalid: rewards received, and how many of them must not be used.
        reward_mean, reward_return: over those that may be used; None without any.
        model_hashes, estimators: of the rewards.
        gate_stops, gate_holds: times the gate went there.
        agreement: of the agent with the person, in mode shadow.
        bag: path of the recording on the recorder's machine; empty without one.
        recording: what the recorder had to say, if anything.
    """

    number: int
    agent: str
    name: str
    outcome: str
    cause: str
    started_unix_s: float
    duration_s: float
    rewards: int = 0
    invalid: int = 0
    reward_mean: float | None = None
    reward_return: float | None = None
    model_hashes: tuple[str, ...] = ()
    estimators: tuple[str, ...] = ()
    gate_stops: int = 0
    gate_holds: int = 0
    agreement: dict[str, int | float | None] | None = None
    bag: str = ""
    recording: str = ""


@dataclass(frozen=True)
class Curve:
    """Rewards of one episode, (T,) each; ``ood`` is NaN where it was not told."""

    stamps_ns: Stamps
    value: Floats
    valid: NDArray[np.bool_]
    ood: Floats

    @classmethod
    def of(cls, rows: Sequence[tuple[int, float, bool, float]]) -> Curve:
        """From (stamp, value, valid, ood); a value that is no number is not valid."""
        stamps, value, valid, ood = zip(*rows, strict=True) if rows else ((), (), (), ())
        values = np.array(value, np.float64)
        usable = np.array(valid, bool) & np.isfinite(values)
        return cls(np.array(stamps, np.int64), values, usable, np.array(ood, np.float64))

    def facts(self) -> dict[str, Any]:
        """The fields of ``Result`` that it determines."""
        used = self.value[self.valid]
        return {
            "rewards": len(self.value),
            "invalid": int((~self.valid).sum()),
            "reward_mean": float(used.mean()) if len(used) else None,
            "reward_return": float(used.sum()) if len(used) else None,
        }


class Results:
    """The folder of one evaluation: its plan, its results one after another, its reward curves.

    The plan, with the order of all episodes, is on the disk before the first one. One process at a time has it open.

    Args:
        out: the folder, made if it is not there.
        settings: of this evaluation.
        provenance: further facts, kept from the first start.

    Raises:
        OutputInUseError: an evaluation with other settings or anything else is there, or another process has it open.
        UserError: its files are damaged, or it cannot be written.
    """

    def __init__(self, out: Path, settings: Settings, provenance: Mapping[str, Any]) -> None:
        self.out = out
        self._stack = ExitStack()
        try:
            found = [path.name for path in out.iterdir()] if out.is_dir() else []
            if PLAN not in found and not all(name.startswith(".") for name in found):
                raise _in_use(out, "an empty folder, or that of this evaluation", "other files")
            self._stack.enter_context(exclusive(out))
            wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
            order = schedule(settings.agents, settings.episodes, settings.seed)
            if not (out / PLAN).exists():
                plan = {"format": FORMAT, "settings": wanted, "order": order, "provenance": dict(provenance)}
                write_whole(out / PLAN, json.dumps(plan, indent=2) + "\n")
            known = read_plan(out)["settings"]
            for name, value in wanted.items():
                if known.get(name) != value:
                    raise _in_use(out, f"an evaluation with {name} {value!r}", f"one with {known.get(name)!r}")
            (out / REWARDS).mkdir(exist_ok=True)
            self.order: tuple[str, ...] = tuple(read_plan(out)["order"])
            self.done = read_results(out)
        except OSError as error:
            self.close()
            raise _not_written(out, error) from error
        except UserError:
            self.close()
            raise

    def missing(self) -> list[int]:
        """Numbers of the episodes without a result, in order."""
        known = {result.number for result in self.done}
        return [number for number in range(len(self.order)) if number not in known]

    @property
    def prefix(self) -> str:
        """What the names of its episodes begin with."""
        return f"{self.out.resolve().name}_"

    def reserve(self, number: int) -> str:
        """A name for the next try at an episode; an earlier try that was cut short keeps its own."""
        whole = f"{self.prefix}{number + 1:04d}_{self.order[number]}"
        name, tries = whole, 1
        while True:
            try:
                (self.out / REWARDS / f"{name}.csv").open("x").close()
                return name
            except FileExistsError:
                tries += 1
                name = f"{whole}_{tries}"

    def append(self, result: Result, curve: Curve) -> None:
        """Keep one more result; it is on the disk when this returns.

        Raises:
            UserError: the disk is full or gone.
        """
        lines = ["stamp_ns,value,valid,ood"]
        for row in zip(curve.stamps_ns, curve.value, curve.valid, curve.ood, strict=True):
            lines.append("{:d},{:.9g},{:d},{:.9g}".format(*row))
        done = [*self.done, result]
        try:
            write_whole(self.out / REWARDS / f"{result.name}.csv", "\n".join(lines) + "\n")
            write_whole(self.out / EPISODES, "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in done))
        except OSError as error:
            raise _not_written(self.out, error) from error
        self.done = done

    def close(self) -> None:
        """Let others open it."""
        self._stack.close()


def read_plan(out: Path) -> dict[str, Any]:
    """Settings, order and provenance of an evaluation.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
        if plan["format"] != FORMAT or not isinstance(plan["order"], list) or not isinstance(plan["provenance"], dict):
            raise ValueError(f"not of format {FORMAT}")
        settings = build(Settings, plan["settings"], PLAN)
        if settings.mode not in MODES or not set(plan["order"]) <= set(settings.agents):
            raise ValueError("an unknown mode, or an order of other agents")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise _damaged(out / PLAN, repr(error)) from error
    return dict(plan)


def read_results(out: Path) -> list[Result]:
    """The episodes so far.

    Raises:
        UserError: damaged.
    """
    path, found = out / EPISODES, []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            result = build(Result, json.loads(line), EPISODES)
            if result.agreement is not None and not set(result.agreement) >= AGREEMENT:
                raise ValueError(f"an agreement without {', '.join(sorted(AGREEMENT - set(result.agreement)))}")
            # The name leads to files.
            if not SAFE_NAME.fullmatch(result.name) or result.outcome not in OUTCOMES or result.number < 0:
                raise ValueError(f"{result.number} {result.name!r:.100} {result.outcome!r:.40}")
            found.append(result)
        except (ValueError, RecursionError, ConfigError) as error:
            raise _damaged(path, f"line {number}: {error}") from error
    return found


def read_curve(out: Path, name: str) -> Curve:
    """The rewards of one episode.

    Raises:
        UserError: missing or damaged.
    """
    path = out / REWARDS / f"{name}.csv"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [
                (int(row["stamp_ns"]), float(row["value"]), row["valid"] == "1", float(row["ood"]))
                for row in csv.DictReader(stream)
            ]
        return Curve.of(rows)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise _damaged(path, repr(error)) from error


def _in_use(out: Path, expected: str, found: str) -> OutputInUseError:
    return OutputInUseError(f"out {out}", expected=expected, found=found, next_step="give another out")


def _not_written(out: Path, error: OSError) -> UserError:
    return UserError(f"out {out}", expected="a folder to write to", found=str(error), next_step="mend it and try again")


def _damaged(path: Path, found: str) -> UserError:
    return UserError(
        str(path),
        expected="a whole file of an evaluation",
        found=found,
        next_step="restore it, or evaluate into another folder",
    )
