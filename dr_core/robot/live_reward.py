"""Rewards of a camera's frames as they arrive, and of a recording in the same way: equal frames give equal numbers."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dr_core.data.images import DamagedImage, ImageRule
from dr_core.data.messages import choose_image_channel, decode_image
from dr_core.data.storage import locate, refuse_damage, scan, survey
from dr_core.errors import ConfigError
from dr_core.memory import is_out_of_memory
from dr_core.rewards.combine import combine
from dr_core.robot.frames import DEFAULT_RULES, FrameGate, FrameRules, Spacing

if TYPE_CHECKING:
    from dr_core.rewards.model import RewardModel, StreamReward
    from dr_core.rewards.rnd import RandomNetworkDistillation


class Stream(Protocol):
    """What scores the frames; ``dr_core.rewards.model.RewardStream`` is one."""

    def push(self, frame: NDArray[np.uint8], stamp_ns: int) -> StreamReward | None: ...

    def reset(self) -> None: ...


class FrameReward(NamedTuple):
    """The reward of one camera frame; fields as in ``dr_core.rewards.model.StreamReward``.

    ``valid`` also takes the camera's faults into account. ``value`` is NaN where there is no number.

    Attributes:
        value: the whole reward: (1 - alpha) times the standardised video reward, plus ``exploration``, plus the weight
            of success times ``success``.
        exploration: what novelty adds to ``value``; 0 when it is off. It depends on all frames since the start.
        success: whether the task is done, 0 or 1.
    """

    stamp_ns: int
    value: float
    raw: float
    stderr: float
    valid: bool
    ood: float
    exploration: float = 0.0
    success: float = 0.0


class Judged(NamedTuple):
    """What became of one frame: its reward (None: dropped, or between two frames of the model) and what is wrong."""

    reward: FrameReward | None
    cause: str

    def distrusted(self, cause: str) -> Judged:
        """The same, not valid for one more cause."""
        reward = None if self.reward is None else self.reward._replace(valid=False)
        return Judged(reward, "; ".join(filter(None, (self.cause, cause))))


class LiveReward:
    """Gate, frame spacing, crop and reward of one camera.

    Args:
        stream: scores the frames.
        rule: crop and size of the model's frames.
        rules: what the camera has to deliver.
        spacing_ns: time between the model's frames; 0 scores every frame.
        ood_limit: rewards of frames less familiar than this are invalid; 0: of none.
        exploration_alpha: share of novelty in the reward; it learns from every frame that is scored. 0: off.
        success_weight: what ``success`` is worth.

    Attributes:
        success: whether the task is done now, 0 or 1; set it when that is told.
    """

    def __init__(
        self,
        stream: Stream,
        rule: ImageRule,
        rules: FrameRules = DEFAULT_RULES,
        *,
        spacing_ns: int = 0,
        ood_limit: float = 0.0,
        exploration_alpha: float = 0.0,
        success_weight: float = 1.0,
    ) -> None:
        self.gate = FrameGate(rules)
        self.success = 0.0
        self._stream, self._rule, self._ood_limit = stream, rule, ood_limit
        self._spacing = Spacing(spacing_ns)
        self._alpha, self._success_weight = exploration_alpha, success_weight
        self._not_numbers = 0
        self._novelty: RandomNetworkDistillation | None = None
        if exploration_alpha:
            from dr_core.rewards.rnd import RandomNetworkDistillation

            self._novelty = RandomNetworkDistillation()

    @property
    def counts(self) -> Counter[str]:
        """Frames by fault."""
        return self.gate.counts

    def stop_cause(self, limit: int) -> str:
        """Why the arm must not go on, in words: the camera is stuck, or the model gives no numbers; empty if it may.

        Args:
            limit: as many identical pictures, or scores without a number, in a row; 0: any number of them.
        """
        if 0 < limit <= self.gate.repeated:
            return f"the camera sends the same picture, {limit} times or more"
        if 0 < limit <= self._not_numbers:
            return f"the reward is not a number, {limit} times or more"
        return ""

    def push(self, frame: NDArray[np.uint8], stamp_ns: int, now_ns: int) -> Judged:
        """Score one frame (H, W, 3) RGB.

        Raises:
            UserError: the camera cannot be used: no stamps, or a resolution other than declared.
        """
        verdict = self.gate.check(stamp_ns, now_ns, frame)
        if not verdict.accept:
            return Judged(None, verdict.cause)
        if verdict.restart:
            self._restart()
        choice = self._spacing.pick(stamp_ns)
        if choice == "skip":
            return Judged(None, verdict.cause)
        causes = [verdict.cause] if verdict.cause else []
        valid = verdict.valid
        if choice == "late":
            self._stream.reset()
            valid = False
            causes.append("the camera is too slow for the frame spacing of the model")
            self.counts["late"] += 1
        reward = self._score(self._rule.apply(frame), stamp_ns, causes)
        if self._ood_limit and reward.ood > self._ood_limit:
            valid = False
            causes.append(f"unlike the training frames (score {reward.ood:.1f})")
            self.counts["unfamiliar"] += 1
        return Judged(reward._replace(valid=reward.valid and valid), "; ".join(causes))

    def _score(self, image: NDArray[np.uint8], stamp_ns: int, causes: list[str]) -> FrameReward:
        try:
            reward = self._stream.push(image, stamp_ns)
            novelty = self._explore(image)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._restart()
            causes.append(f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more'}")
            self.counts["out_of_memory"] += 1
            return FrameReward(stamp_ns, math.nan, math.nan, math.nan, False, math.nan, success=self.success)
        assert reward is not None, "the gate lets only increasing stamps pass"
        terms = combine(reward.value, novelty, self.success, alpha=self._alpha, success_weight=self._success_weight)
        value, finite = float(terms.total), math.isfinite(terms.total)
        self._not_numbers = 0 if finite else self._not_numbers + 1
        if not finite:
            causes.append("the reward is not a number")
            self.counts["not_a_number"] += 1
            value = math.nan
        return FrameReward(
            stamp_ns,
            value,
            reward.raw,
            reward.stderr,
            reward.valid and finite,
            reward.ood,
            float(terms.exploration),
            self.success,
        )

    def _explore(self, image: NDArray[np.uint8]) -> float:
        """How new a frame is, before it is learned; 0 when exploration is off."""
        if self._novelty is None:
            return 0.0
        novelty = float(self._novelty.score(image[None])[0])
        self._novelty.update(image[None])
        return novelty

    def _restart(self) -> None:
        self._stream.reset()
        self._spacing.reset()


def relabel(
    path: Path,
    model: RewardModel,
    *,
    task: str | None = None,
    estimator: str | None = None,
    rule: ImageRule | None = None,
    rules: FrameRules = DEFAULT_RULES,
    spacing_ns: int | None = None,
    ood_limit: float = 0.0,
    image_topic: str | None = None,
) -> list[FrameReward]:
    """The video rewards that a live node gives for the frames of a bag, in the order in which they arrived.

    Arguments are those of the node; a node that missed its deadline has fewer. Exploration is left out, as it depends
    on what was seen before the recording; success is in the recording itself.

    Args:
        spacing_ns: time between the model's frames; 0 scores every frame, None takes the model's own spacing.

    Raises:
        BagError: as :func:`~dr_core.data.episodes.read_episode`.
        ConfigError: a task or an estimator that the model does not have, or a frame spacing that it does not know.
    """
    live = LiveReward(
        model.stream(task=known_task(model, task), estimator=estimator),
        rule or model.config.image,
        rules,
        spacing_ns=frame_spacing_ns(model, task) if spacing_ns is None else spacing_ns,
        ood_limit=ood_limit,
    )
    bag = locate(path)
    refuse = refuse_damage(path)
    camera = choose_image_channel(path, survey(bag, refuse).counts, image_topic)
    rewards = []
    now_ns = 0
    for message in scan(bag, {camera.topic}, refuse):
        # The clock of a recording is that of its messages' arrival, which only goes forward.
        now_ns = max(now_ns, message.log_time_ns)
        try:
            stamp_ns, frame = decode_image(message)
        except DamagedImage:
            continue
        judged = live.push(frame, stamp_ns, now_ns)
        if judged.reward is not None:
            rewards.append(judged.reward)
    return rewards


def known_task(model: RewardModel, task: str | None) -> str | None:
    """The task itself; None for no task.

    Raises:
        ConfigError: the model was not trained on it.
    """
    if not task:
        return None
    if task not in model.tasks:
        raise ConfigError(
            f"task {task!r}",
            expected=f"one the model was trained on: {', '.join(model.tasks) or '(none)'}",
            found="another",
            next_step="name one of those, or none to standardise by all training tasks",
        )
    return task


def frame_spacing_ns(model: RewardModel, task: str | None, frame_rate_hz: float = -1.0) -> int:
    """Time between the frames of a reward; 0: every frame.

    Args:
        frame_rate_hz: of the recordings that the model learned from; 0 for every frame, below 0 for what it knows.

    Raises:
        ConfigError: it does not know it.
    """
    rate_hz = model.frame_rate_hz(task or None) if frame_rate_hz < 0 else frame_rate_hz
    if rate_hz == 0 and frame_rate_hz < 0:
        raise ConfigError(
            "parameter frame_rate_hz",
            expected="the frame rate of the recordings the model learned from, in Hz",
            found="nothing, and a model that does not know it or has tasks of several rates",
            next_step="give it: -p frame_rate_hz:=10.0, or 0.0 to use every frame",
        )
    return round(1e9 / rate_hz) if rate_hz else 0
