"""Commands ``dr calibrate ...``: from the printed board to the check before a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    from dr_calibration.samples import Sample, Track
    from dr_calibration.steps import Done


@dataclass(frozen=True)
class CalibrateBoard:
    """Write a calibration board at true scale, to be printed."""

    board: Positional[str]
    """For example charuco:7x5:30mm:22mm:4X4_50, chessboard:9x6:25mm, apriltag:5x4:40mm:30mm:APRILTAG_36h11."""
    out: Path
    """The file to write, .pdf or .svg; it must not exist."""
    paper: str = "A4"
    """A4, A3 or Letter."""

    def run(self) -> int:
        from dr_calibration.boards import Board
        from dr_calibration.errors import CalibrationError

        board = Board.parse(self.board)
        writers = {".pdf": board.write_pdf, ".svg": board.write_svg}
        kind = self.out.suffix.lower()
        if kind not in writers or self.out.exists():
            found = "a file that is there" if kind in writers else f"the suffix {kind!r}"
            raise CalibrationError(
                str(self.out), expected="a new .pdf or .svg", found=found, next_step="choose another name"
            )
        try:
            writers[kind](self.out, self.paper)
        except OSError as error:
            found = error.strerror or "an error"
            raise CalibrationError(
                str(self.out), expected="a file that can be written", found=found, next_step="choose another place"
            ) from error
        print(f"{self.out}: {board}; print at 100 %, then measure the ruler and a square")
        return 0


@dataclass(frozen=True)
class CalibrateIntrinsics:
    """Find a camera's lens from pictures of a board, and make its rig."""

    source: Positional[Path]
    """A bag, a folder of pictures or a video."""
    board: str
    """As given to dr calibrate board."""
    out: Path
    """The rig's directory."""
    name: str
    """Of the camera: letters, digits, _, - and ."""
    serial: str | None = None
    """The camera's serial number; by default that named in the bag."""
    factory: Path | None = None
    """The maker's lens to compare with: a camera_info YAML, or a bag with a CameraInfo topic."""
    factory_topic: str | None = None
    """CameraInfo topic of the bag given as source or as --factory."""
    image_topic: str | None = None
    """Needed where a bag has several."""
    replace: bool = False
    """Begin the rig anew; the later steps have to be done again."""

    def run(self) -> int:
        import time

        from dr_calibration import sources, steps
        from dr_calibration.boards import Board

        board = Board.parse(self.board)
        factory = None
        if self.factory is not None or self.factory_topic is not None:
            factory = sources.factory(self.factory or self.source, self.factory_topic)
        serial = sources.serial_of(self.source) if self.serial is None else self.serial
        with _read(self.source, self.image_topic, None) as (samples, _):
            done = steps.intrinsics(
                samples, board, self.out, name=self.name, serial=serial, now_unix_s=time.time(), factory=factory,
                replace=self.replace,
            )  # fmt: skip
        return _tell(done)


@dataclass(frozen=True)
class CalibrateHandEye:
    """Find where the camera is: on the tool or beside the robot."""

    source: Positional[Path]
    """A bag or a folder with pictures and the tool's poses."""
    board: str
    """As given to dr calibrate board."""
    out: Path
    """The rig's directory."""
    mode: Literal["eye-in-hand", "eye-to-hand"]
    """eye-in-hand: the camera is on the tool, the board lies still; eye-to-hand: the other way round."""
    frame: str
    """Name on TF of the tool's frame (eye-in-hand) or the base's (eye-to-hand): the parent of the camera's."""
    camera_frame: str
    """Name on TF of the camera's optical frame."""
    seed: int = 0
    """Of the search among poses and of the bootstrap."""
    image_topic: str | None = None
    """Needed where a bag has several."""
    tool_topic: str | None = None
    """PoseStamped topic of the tool's pose in the base's frame; needed where a bag has several."""
    replace: bool = False
    """Do the step again."""

    def run(self) -> int:
        import time

        from dr_calibration import steps
        from dr_calibration.boards import Board

        board = Board.parse(self.board)
        with _read(self.source, self.image_topic, self.tool_topic) as (samples, tool):
            done = steps.hand_eye(
                samples, board, self.out, mode="eye_in_hand" if self.mode == "eye-in-hand" else "eye_to_hand",
                frame=self.frame, camera_frame=self.camera_frame, seed=self.seed, tool=tool, replace=self.replace,
                now_unix_s=time.time(),
            )  # fmt: skip
        return _tell(done)


@dataclass(frozen=True)
class CalibrateTimeOffset:
    """Find how much later the camera stamps a moment than the robot, from a film of a moving tool."""

    source: Positional[Path]
    """A bag or a folder with pictures and the tool's track."""
    board: str
    """As given to dr calibrate board."""
    out: Path
    """The rig's directory."""
    image_topic: str | None = None
    """Needed where a bag has several."""
    tool_topic: str | None = None
    """PoseStamped topic of the tool's pose in the base's frame; needed where a bag has several."""
    replace: bool = False
    """Do the step again."""

    def run(self) -> int:
        import time

        from dr_calibration import steps
        from dr_calibration.boards import Board
        from dr_calibration.errors import CalibrationError

        board = Board.parse(self.board)
        with _read(self.source, self.image_topic, self.tool_topic) as (samples, tool):
            if tool is None:
                raise CalibrationError(
                    str(self.source), expected="the tool's track (tool.jsonl, or one PoseStamped topic)",
                    found="none, or several topics", next_step="record it, or name it with --tool-topic",
                )  # fmt: skip
            done = steps.time_offset(samples, tool, board, self.out, now_unix_s=time.time(), replace=self.replace)
        return _tell(done)


@dataclass(frozen=True)
class CalibrateReference:
    """Keep how the still scene looks, for the check whether the camera has moved."""

    source: Positional[Path]
    """A bag, a folder of pictures or a video in which the robot is in several places."""
    out: Path
    """The rig's directory."""
    image_topic: str | None = None
    """Needed where a bag has several."""
    tool_topic: str | None = None
    """For a camera on the tool: PoseStamped topic of the tool's pose."""
    replace: bool = False
    """Do the step again."""

    def run(self) -> int:
        import time

        from dr_calibration import steps

        with _read(self.source, self.image_topic, self.tool_topic) as (samples, _):
            done = steps.reference(samples, self.out, now_unix_s=time.time(), replace=self.replace)
        return _tell(done)


@dataclass(frozen=True)
class CalibrateCheck:
    """Check that a calibration still holds; exit status 1 if the camera has moved or cannot be judged."""

    source: Positional[Path]
    """A bag, a folder of pictures or a video of now."""
    out: Path
    """The rig's directory."""
    serial: str | None = None
    """Of the camera that is plugged in; by default that named in the bag, if any."""
    max_age_days: float | None = None
    """Refuse an older calibration."""
    image_topic: str | None = None
    """Needed where a bag has several."""
    tool_topic: str | None = None
    """For a camera on the tool: PoseStamped topic of the tool's pose."""

    def run(self) -> int:
        import time

        from dr_calibration import sources, steps
        from dr_calibration.folder import RigFolder

        now_unix_s = time.time()
        serial = (sources.serial_of(self.source) or None) if self.serial is None else self.serial
        rig = RigFolder.load(self.out).rig
        rig.check(serial=serial, now_unix_s=now_unix_s, max_age_days=self.max_age_days)
        with _read(self.source, self.image_topic, self.tool_topic) as (samples, _):
            worst, done = steps.check(samples, self.out, now_unix_s=now_unix_s)
        print(f"camera {rig.camera_name}, {(now_unix_s - rig.made_unix_s) / 86400:.1f} days old, serial "
              + (serial or f"{rig.camera_serial or 'none'} (not compared)"))  # fmt: skip
        _tell(done)
        return 0 if worst.fine else 1


@dataclass(frozen=True)
class CalibrateReport:
    """Write the page about a rig anew."""

    path: Positional[Path]
    """The rig's directory."""

    def run(self) -> int:
        import time

        from dr_calibration.report import write_report

        print(write_report(self.path, time.time()))
        return 0


@contextmanager
def _read(
    source: Path, image_topic: str | None, tool_topic: str | None
) -> Iterator[tuple[Iterator[Sample], Track | None]]:
    """The samples of a source, with a count of those read while it goes on."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from dr_calibration import sources

    samples, tool = sources.read(source, image_topic=image_topic, tool_topic=tool_topic)
    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} pictures"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        def counted() -> Iterator[Sample]:
            for sample in samples:
                yield sample
                progress.advance(bar)

        yield counted(), tool


def _tell(done: Done) -> int:
    for line in done.lines:
        print(line)
    print(f"{done.rig}\n{done.report}")
    return 0
