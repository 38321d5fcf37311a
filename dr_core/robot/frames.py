"""Which camera frames a live reward may use: stamps, resolution, stuck, black and over-exposed pictures, frame rate."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import UserError

FUTURE_LIMIT_NS = 50_000_000
JUMP_LIMIT_NS = 1_000_000_000
DARK_LEVEL = 12
BRIGHT_LEVEL = 243
EXTREME_SHARE = 0.9
"""Share of pixels below DARK_LEVEL or above BRIGHT_LEVEL in all channels that makes a picture useless."""
PIXEL_STRIDE = 4
"""Every fourth row and column tell whether a picture is black."""
RATE_FRAMES = 30
SLOW_SHARE = 0.6
"""Below this share of the usual frame rate a camera counts as slow."""


class FrameRefused(UserError):
    """The camera cannot be used as it is set up."""


@dataclass(frozen=True)
class FrameRules:
    """What a camera has to deliver.

    Attributes:
        width, height: declared resolution in pixels; 0 takes the first frame's.
        repeat_limit: as many identical pictures in a row make the rewards invalid; 0 allows any number (a simulated
            camera at rest has no noise).
        rate_hz: the camera's frame rate; 0 learns it from the first frames.
    """

    width: int = 0
    height: int = 0
    repeat_limit: int = 5
    rate_hz: float = 0.0


DEFAULT_RULES = FrameRules()


class Verdict(NamedTuple):
    """What to do with a frame.

    Attributes:
        accept: False: drop it.
        valid: False: it may enter the history, but its reward must not be used.
        restart: the history before it does not lead to it.
        cause: why not, in words; empty for a good frame.
    """

    accept: bool
    valid: bool
    restart: bool
    cause: str


class Repeats:
    """Counts identical pictures in a row: a camera that is stuck sends the same one with new stamps."""

    def __init__(self) -> None:
        self._last: NDArray[np.uint8] | None = None
        self._count = 0

    def count(self, picture: NDArray[np.uint8]) -> int:
        """How many pictures in a row are like this one, itself included; it is kept, not copied."""
        same = self._last is not None and np.array_equal(picture, self._last)
        self._last = picture
        self._count = self._count + 1 if same else 1
        return self._count

    def clear(self) -> None:
        """The next picture is the first."""
        self._last, self._count = None, 0


class FrameGate:
    """Judges the frames of one camera in the order of their arrival; ``counts`` tells how many had which fault."""

    def __init__(self, rules: FrameRules = DEFAULT_RULES) -> None:
        self.rules = rules
        self.counts: Counter[str] = Counter()
        self._resolution = (rules.width, rules.height) if rules.width and rules.height else None
        self._last_ns = 0
        self._last_now_ns = 0
        self._clock_went_back = False
        self._repeats = Repeats()
        self.repeated = 0
        """Pictures in a row that are like the newest, itself included."""
        self._intervals_ns: deque[int] = deque(maxlen=RATE_FRAMES)
        self._usual_hz = rules.rate_hz

    def check(self, stamp_ns: int, now_ns: int, frame: NDArray[np.uint8]) -> Verdict:
        """Judge one frame (H, W, 3) RGB by its stamp and the clock that stamps are read on.

        Raises:
            FrameRefused: no stamp, or another resolution than declared.
        """
        if stamp_ns <= 0:
            raise FrameRefused(
                "image stamp",
                expected="the time of exposure in header.stamp",
                found="zero",
                next_step="make the camera driver stamp its images",
            )
        self._check_resolution(frame)
        self._clock_went_back |= now_ns < self._last_now_ns
        self._last_now_ns = now_ns
        if stamp_ns > now_ns + FUTURE_LIMIT_NS:
            return self._drop("future", f"stamp {(stamp_ns - now_ns) / 1e6:.0f} ms in the future")
        step_ns = stamp_ns - self._last_ns
        first = self._last_ns == 0
        back = step_ns < -JUMP_LIMIT_NS or (self._clock_went_back and step_ns <= 0)
        if not first and step_ns <= 0 and not back:
            if step_ns == 0:
                return self._drop("duplicate", "the stamp of the frame before")
            return self._drop("out_of_order", f"stamp {-step_ns / 1e6:.0f} ms before that of the frame before")
        self._last_ns = stamp_ns
        self._clock_went_back = False
        restart = not first and (back or step_ns > JUMP_LIMIT_NS)
        if restart:
            self.counts["jump"] += 1
            self._intervals_ns.clear()
        elif not first:
            self._note_interval(step_ns)
        causes = [f"the stamps jump by {step_ns / 1e9:+.1f} s"] if restart else []
        fault = self._fault_of(frame)
        if fault:
            causes.append(fault)
        return Verdict(True, not fault, restart, "; ".join(causes))

    @property
    def rate_hz(self) -> float:
        """Frame rate of the last frames; 0 before there are any."""
        return 1e9 / float(np.median(self._intervals_ns)) if self._intervals_ns else 0.0

    @property
    def slow(self) -> str:
        """In words, that the camera is much slower than usual; empty if it is not."""
        if len(self._intervals_ns) < RATE_FRAMES // 2 or self.rate_hz >= SLOW_SHARE * self._usual_hz:
            return ""
        return f"{self.rate_hz:.1f} frames a second instead of {self._usual_hz:.1f}"

    def _drop(self, fault: str, cause: str) -> Verdict:
        self.counts[fault] += 1
        return Verdict(False, False, False, cause)

    def _check_resolution(self, frame: NDArray[np.uint8]) -> None:
        found = (frame.shape[1], frame.shape[0])
        self._resolution = self._resolution or found
        if found != self._resolution:
            raise FrameRefused(
                "image resolution",
                expected="{} x {}".format(*self._resolution),
                found="{} x {}".format(*found),
                next_step="set the camera to the declared resolution, or declare the new one (width, height)",
            )

    def _note_interval(self, step_ns: int) -> None:
        self._intervals_ns.append(step_ns)
        if not self._usual_hz and len(self._intervals_ns) == RATE_FRAMES:
            self._usual_hz = self.rate_hz

    def _fault_of(self, frame: NDArray[np.uint8]) -> str:
        self.repeated = self._repeats.count(frame)
        if 0 < self.rules.repeat_limit <= self.repeated:
            self.counts["repeated"] += 1
            return f"the same picture {self.repeated} times in a row"
        pixels = frame[::PIXEL_STRIDE, ::PIXEL_STRIDE]
        for name, extreme in (
            ("black", pixels.max(axis=2) <= DARK_LEVEL),
            ("over_exposed", pixels.min(axis=2) >= BRIGHT_LEVEL),
        ):
            if extreme.mean() >= EXTREME_SHARE:
                self.counts[name] += 1
                return f"the picture is {name.replace('_', '-')}"
        return ""


class Spacing:
    """Picks the frames of a faster camera that lie ``spacing_ns`` apart, as those did that a model learned from.

    Bags and live frames go through the same object, so both give the same frames. 0 picks every frame.
    """

    def __init__(self, spacing_ns: int) -> None:
        if spacing_ns < 0:
            raise ValueError(f"spacing_ns must not be negative, got {spacing_ns}")
        self._spacing_ns = spacing_ns
        self._last_ns = 0
        self._seen_ns = 0
        self._due_ns = 0

    def reset(self) -> None:
        """The next frame begins a new sequence."""
        self._due_ns = 0

    def pick(self, stamp_ns: int) -> Literal["take", "skip", "late"]:
        """``late``: taken, but so long after the frame before that the spacing is not met."""
        spacing = self._spacing_ns
        if spacing == 0:
            return "take"
        # Of two frames around the due time the nearer one, if the next one comes as soon as this one came.
        tolerance_ns = min(spacing // 4, (stamp_ns - self._seen_ns) // 2)
        self._seen_ns = stamp_ns
        if self._due_ns and stamp_ns < self._due_ns - tolerance_ns:
            return "skip"
        late = self._due_ns > 0 and stamp_ns - self._last_ns > spacing + spacing // 2
        # The sequence keeps its phase, so that jitter does not add up, unless the camera is slower than it.
        self._due_ns = max(self._due_ns + spacing, stamp_ns + spacing // 2) if self._due_ns else stamp_ns + spacing
        if late:
            self._due_ns = stamp_ns + spacing
        self._last_ns = stamp_ns
        return "late" if late else "take"
