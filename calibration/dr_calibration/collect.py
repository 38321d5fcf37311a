"""Choosing the pictures of a step while they come in, live or from a recording, and saying what is missing."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np

from dr_calibration import handeye
from dr_calibration.boards import Board, Detection, Rejection
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, angle_between_rad, distance_m
from dr_calibration.intrinsics import View, ViewSelector, motion_px
from dr_calibration.samples import Sample, same_pose

Step = Literal["intrinsics", "hand_eye", "time_offset", "reference", "check"]
STEPS_WITH_BOARD = ("intrinsics", "hand_eye", "time_offset")

LOOK_S = 0.09
"""Pictures of the lens's step that follow faster are passed over: they add nothing."""
STREAM_S = 0.3
"""Pictures farther apart than this are photographs, not a film: motion between them says nothing."""
MOVING_PX = 2.0
"""Median way of the corners from one picture looked at to the next, at 640 px of width: more blurs and shears them."""
DIFFERENT_M, DIFFERENT_RAD = 0.01, float(np.radians(2.0))
"""Poses of the tool that differ by neither add nothing to the hand-eye step."""
FEW_CORNERS = 8

ENOUGH_POSES = 20
MOST_POSES = 60
OFFSET_S = 20.0
"""Length of a good recording for the time offset."""
MOST_FRAMES = 3000
ENOUGH_REFERENCES, MOST_REFERENCES, REFERENCE_S = 8, 16, 0.5
"""Pictures for the reference, and their distance at least."""
CHECKS = 5


class Collector:
    """Takes the samples that a step needs; offer it every one, in the order of their stamps.

    Args:
        step: for which the samples are.
        board: of intrinsics, hand_eye and time_offset.

    Attributes:
        samples: those kept.
        detections: the board in each of them; empty for steps without a board, and for time_offset, which looks for it
            when it is computed.
        views: those of the intrinsics step.
        rejected: how many were left, by reason.
        seen: how many were looked at.

    Raises:
        CalibrationError: a step that needs a board has none.
    """

    def __init__(self, step: Step, board: Board | None = None) -> None:
        if step in STEPS_WITH_BOARD and board is None:
            raise CalibrationError(
                f"step {step}", expected="a board", found="none", next_step="name the board before the camera"
            )
        self.step, self.board = step, board
        self.samples: list[Sample] = []
        self.detections: list[Detection] = []
        self.rejected: Counter[str] = Counter()
        self.seen = 0
        self._selector: ViewSelector | None = None
        self._last: tuple[float, Detection | None] | None = None
        self._poses: list[tuple[float, Pose]] = []
        self._size: tuple[int, int] | None = None
        self._stride_s = REFERENCE_S

    @property
    def views(self) -> list[View]:
        return self._selector.views if self._selector else []

    def offer(self, sample: Sample) -> str:
        """Take a sample or leave it; what was done with it and why: "kept 7", "rejected: blurred: ..."."""
        if self._last and 0.0 <= sample.stamp_s - self._last[0] < LOOK_S:
            return "passed over: pictures follow faster than they help"
        self.seen += 1
        self._size = self._size or sample.size
        if sample.size != self._size:
            size, first = (f"{width}x{height}" for width, height in (sample.size, self._size))
            reason = f"mixed resolution: {size}, where the first was {first}"
        else:
            reason = getattr(self, f"_offer_{self.step}")(sample)
        if reason:
            self.rejected[reason.partition(":")[0]] += 1
            return f"rejected: {reason}"
        return f"kept {len(self.samples)}"

    def reasons(self) -> str:
        """Why pictures were left, the most frequent reason first."""
        return "; ".join(f"{count} {reason}" for reason, count in self.rejected.most_common())

    @property
    def progress(self) -> int:
        """Percent of what the step needs; at 100 more does not help much."""
        if self.step == "intrinsics":
            return self._selector.progress if self._selector else 0
        share = {
            "hand_eye": len(self.samples) / ENOUGH_POSES,
            "time_offset": self._duration_s / OFFSET_S,
            "reference": len(self.samples) / ENOUGH_REFERENCES,
            "check": len(self.samples) / CHECKS,
        }[self.step]
        if self.step == "hand_eye" and (diversity := self._diversity):
            share = min(share, (share + diversity.score) / 2)
        return int(100 * min(1.0, share) + 1e-9)

    @property
    def advice(self) -> str:
        """What to do next."""
        if self.step == "intrinsics":
            return self._selector.advice if self._selector else "show the whole board"
        if self.progress >= 100:
            return "enough: compute it now"
        if self.step == "hand_eye":
            diversity = self._diversity
            if diversity and diversity.advice and len(self.samples) >= 5:
                return diversity.advice[0]
            more = max(1, ENOUGH_POSES - len(self.samples))
            return f"move the tool, hold it still with the board in view; {more} more poses"
        if self.step == "time_offset":
            left_s = OFFSET_S - self._duration_s
            return f"go on for {left_s:.0f} s: fast turns and stops, never in the same rhythm, the board in view"
        if self.step == "reference":
            return "move the robot to another place; the camera stays as it is"
        return "wait"

    @property
    def _duration_s(self) -> float:
        return self.samples[-1].stamp_s - self.samples[0].stamp_s if self.samples else 0.0

    @property
    def _diversity(self) -> handeye.Diversity | None:
        if len(self.samples) < 2:
            return None
        return handeye.diversity(np.array([sample.T_base_tool for sample in self.samples]))

    def _detect(self, sample: Sample) -> Detection | Rejection:
        assert self.board is not None
        return self.board.detect(sample.picture)

    def _offer_intrinsics(self, sample: Sample) -> str:
        assert self.board is not None
        found = self._detect(sample)
        last, self._last = self._last, (sample.stamp_s, found if isinstance(found, Detection) else None)
        if isinstance(found, Rejection):
            return found.reason
        moving = False
        if last and last[1] and 0.0 <= sample.stamp_s - last[0] < STREAM_S:
            moving = motion_px(last[1], found) > MOVING_PX * sample.size[0] / 640
        if self._selector is None:
            self._selector = ViewSelector(self.board.points_m, sample.size)
        offer = self._selector.offer(found, sample.size, moving=moving)
        if offer.taken:
            self._keep(sample, found)
        return offer.reason

    def _offer_hand_eye(self, sample: Sample) -> str:
        pose = sample.T_base_tool
        if pose is None:
            return "the tool's pose at the picture's stamp is not known"
        before = [one for stamp_s, one in self._poses if 0.0 < sample.stamp_s - stamp_s <= STREAM_S]
        self._poses = [*self._poses[-100:], (sample.stamp_s, pose)]
        if before and not same_pose(np.array(before), pose):
            return "the tool is moving"
        if len(self.samples) >= MOST_POSES:
            return f"enough: {MOST_POSES} poses are taken"
        kept = [one.T_base_tool for one in self.samples if one.T_base_tool is not None]
        if any(distance_m(pose, one) < DIFFERENT_M and angle_between_rad(pose, one) < DIFFERENT_RAD for one in kept):
            return "the tool is where a picture was already taken"
        found = self._detect(sample)
        if isinstance(found, Rejection):
            return found.reason
        if len(found.ids) < FEW_CORNERS:
            return f"too few corners: {len(found.ids)} of at least {FEW_CORNERS}"
        self._keep(sample, found)
        return ""

    def _offer_time_offset(self, sample: Sample) -> str:
        """Every frame counts, and looking for the board takes longer than a frame: here only now and then."""
        if self.samples and sample.stamp_s <= self.samples[-1].stamp_s:
            return "the stamp does not increase"
        if len(self.samples) >= MOST_FRAMES:
            return f"enough: {MOST_FRAMES} pictures are taken"
        if len(self.samples) % 15 == 0 and isinstance(found := self._detect(sample), Rejection):
            return found.reason
        self.samples.append(sample)
        return ""

    def _offer_reference(self, sample: Sample) -> str:
        """Spread over however long it takes: when there is no room, every second is dropped, and fewer are taken."""
        if self.samples and sample.stamp_s - self.samples[-1].stamp_s < self._stride_s:
            return "too soon after the picture before"
        self.samples.append(sample)
        if len(self.samples) > MOST_REFERENCES:
            self.samples = self.samples[::2]
            self._stride_s *= 2.0
        return ""

    def _offer_check(self, sample: Sample) -> str:
        self.samples.append(sample)
        return ""

    def _keep(self, sample: Sample, found: Detection) -> None:
        self.samples.append(sample)
        self.detections.append(found)
