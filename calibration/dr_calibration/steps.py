"""The steps of a calibration, in order, into one rig directory: the same for a bag, a folder, a video and live.

Each step computes everything first and writes then: one that refuses writes nothing. The rig's file, camera_info.yaml,
the reference picture, steps.json, pictures/ and report.html are what they write.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dr_calibration import film, handeye, verdicts
from dr_calibration import intrinsics as lenses
from dr_calibration.boards import Board
from dr_calibration.collect import ENOUGH_REFERENCES, Collector, Step
from dr_calibration.errors import CalibrationError
from dr_calibration.folder import CAMERA_INFO_FILE, PICTURES, RigFolder
from dr_calibration.geometry import Pose, invert
from dr_calibration.intrinsics import Intrinsics
from dr_calibration.moved import Moved, Reference
from dr_calibration.rig import CameraPose, ReferencePicture, Rig, TimeOffset
from dr_calibration.samples import Floats, Sample, ToolPath, Track, same_pose, write_samples
from dr_calibration.time_offset import estimate

__all__ = [
    "Collector",
    "Done",
    "Sample",
    "Step",
    "Track",
    "check",
    "hand_eye",
    "intrinsics",
    "reference",
    "time_offset",
    "write_samples",
]

RUN, MAJORITY = 5, 3
"""The camera counts as moved where so many of so many pictures in a row say so: one picture may err."""


@dataclass(frozen=True)
class Done:
    """What a step wrote and found.

    Attributes:
        rig: the rig's file.
        report: the page about it.
        lines: figures with units, and last the verdict in plain words.
    """

    rig: Path
    report: Path
    lines: tuple[str, ...]


def intrinsics(
    samples: Iterable[Sample],
    board: Board,
    out: Path,
    *,
    name: str,
    serial: str,
    now_unix_s: float,
    factory: Intrinsics | None = None,
    replace: bool = False,
) -> Done:
    """Calibrate the lens and make the rig.

    Args:
        samples: their poses and, unless they are a film, their stamps are not used.
        out: the rig's directory.
        name, serial: of the camera.
        now_unix_s: the time.
        factory: what the camera's maker states, to be compared.
        replace: begin the rig anew: what later steps added is removed.

    Raises:
        CalibrationError: a rig is there, pictures of several sizes, too few good views, or a lens not determined.
    """
    _new(out, RigFolder.rigs(out)[:1], "a rig", replace)
    collector = Collector("intrinsics", board)
    _collect(collector, samples)
    if len(collector.views) < lenses.MIN_VIEWS:
        raise _too_few("pictures of the board", collector, f"{lenses.MIN_VIEWS} different good ones, better 20")
    result = lenses.calibrate(collector.views)
    difference = lenses.compare(factory, result.intrinsics) if factory else None
    lines, verdict = verdicts.of_intrinsics(result, difference)
    held_out_px = [float(np.sqrt((view.held_out_px**2).sum(1).mean())) for view in result.views]
    rig = Rig(name, serial, result.intrinsics, now_unix_s, board=board.to_dict())
    record = {
        "board": str(board),
        "lines": lines,
        "verdict": verdict,
        "seen": collector.seen,
        "rejected": dict(collector.rejected),
        "view_numbers": [view.index for view in result.views],
        "rms_px": [view.rms_px for view in result.views],
        "held_out_rms_px": held_out_px,
        "dropped": result.dropped,
        "coverage": result.coverage,
        "model": result.model,
        "held_out_by_model_px": result.held_out_by_model_px,
        "maker": verdicts.lens_of_maker(factory, difference) if factory and difference else None,
    }
    from dr_calibration.figures import overlay

    by_error = np.argsort(held_out_px)
    pictures = {}
    for text, place in (("best", by_error[0]), ("middle", by_error[len(by_error) // 2]), ("worst", by_error[-1])):
        view = result.views[place]
        caption = f"view {view.index}, the {text}: {held_out_px[place]:.2f} px when left out"
        seen = collector.samples[view.index].picture
        pictures[caption] = overlay(seen, view.corners_px, view.corners_px - view.held_out_px)
    for old in _parts_of_old_rig(out):
        old.unlink()
    return _done(RigFolder(out, rig, {}).write("intrinsics", record, pictures, now_unix_s), lines, verdict)


def hand_eye(
    samples: Iterable[Sample],
    board: Board,
    out: Path,
    *,
    mode: handeye.Mode,
    frame: str,
    camera_frame: str,
    now_unix_s: float,
    tool: Track | None = None,
    seed: int = 0,
    replace: bool = False,
) -> Done:
    """Find where the camera is on the tool (eye_in_hand) or beside the robot (eye_to_hand).

    Args:
        samples: pictures taken while the tool stood still, or a film from which those are taken.
        frame: name of the tool's (eye_in_hand) or the base's frame on TF.
        camera_frame: name of the camera's optical frame on TF.
        tool: the robot's own track; on it the tool's rest is judged, and the rig's time offset applied.
        seed: of the search and the bootstrap.

    Raises:
        CalibrationError: no rig, a pose that is there, too few poses or motions (saying which is missing), a board or
            poses that contradict each other, or a result too uncertain to be of use.
    """
    folder = RigFolder.load(out)
    rig = folder.rig
    _new(out, [rig.pose.key] if rig.pose else [], "a rig without a pose of the camera", replace)
    path = ToolPath(tool) if tool else None
    offset_s = rig.time_offset.offset_s if rig.time_offset else 0.0
    collector = Collector("hand_eye", board)
    _collect(collector, _at_rest(samples, path, offset_s, collector), rig)
    views, poses = collector.detections, np.array([sample.T_base_tool for sample in collector.samples])
    if len(views) < handeye.SMALLEST_VIEWS:
        raise _too_few("poses of the tool", collector, f"{handeye.SMALLEST_VIEWS} different ones, better 15 to 20")
    lens = rig.intrinsics
    rng = np.random.default_rng(seed)
    result = handeye.solve(poses, views, mode=mode, rng=rng, K=lens.K, distortion=lens.distortion)
    lines, verdict = verdicts.of_hand_eye(result)
    of = "tool" if mode == "eye_in_hand" else "base"
    pose = CameraPose.of_matrix(
        "tool" if of == "tool" else "base", result.pose, frame, camera_frame, result.total_sd_mm, result.total_sd_deg
    )
    record = {
        **result.to_dict(),
        "board": str(board),
        "lines": lines,
        "verdict": verdict,
        "frame": frame,
        "camera_frame": camera_frame,
        "seen": collector.seen,
        "rejected": dict(collector.rejected),
        "offset_applied_s": offset_s if path else 0.0,
    }
    pictures = _held_out_pictures(result, poses, collector, lens, seed)
    folder = RigFolder(out, dataclasses.replace(rig, pose=pose), folder.steps)
    return _done(folder.write("hand_eye", record, pictures, now_unix_s), lines, verdict)


def time_offset(
    samples: Iterable[Sample],
    tool: Track,
    board: Board,
    out: Path,
    *,
    now_unix_s: float,
    replace: bool = False,
) -> Done:
    """Find how much later the camera stamps a moment than the robot does.

    The board's poses in the pictures are compared with the tool's; the camera's own pose need not be known.

    Args:
        samples: a film of the moving tool's view, or of the board on it; their own poses are not used.
        tool: the robot's own track, over a longer time than the film.

    Raises:
        CalibrationError: no rig, an offset that is there, or a motion that does not tell.
    """
    folder = RigFolder.load(out)
    rig = folder.rig
    _new(out, ["time_offset"] if rig.time_offset else [], "a rig without a time offset", replace)
    path = ToolPath(tool)
    stamps, boards, rejected = film.see(samples, board, rig)
    if len(stamps) < 60:
        reasons = "; ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise CalibrationError(
            "film for the time offset", expected="60 pictures or more that show the board",
            found=f"{len(stamps)}" + (f" ({reasons})" if reasons else ""),
            next_step="keep the board in view, add light, move a little slower",
        )  # fmt: skip
    result = estimate(stamps, boards, path.stamps_s, path.poses)
    lines, verdict = verdicts.of_time_offset(result)
    record = {
        **result.to_dict(),
        "board": str(board),
        "lines": lines,
        "verdict": verdict,
        "seen": len(stamps) + sum(rejected.values()),
        "rejected": dict(rejected),
        "curve": film.curve(stamps, boards, path),
    }
    folder = RigFolder(
        out, dataclasses.replace(rig, time_offset=TimeOffset(result.offset_s, result.sd_s)), folder.steps
    )
    return _done(folder.write("time_offset", record, {}, now_unix_s), lines, verdict)


def reference(samples: Iterable[Sample], out: Path, *, now_unix_s: float, replace: bool = False) -> Done:
    """Keep how the still scene looks, for the camera-moved check.

    Args:
        samples: pictures in which the robot is in different places; of a camera on the tool, all with the tool in one
            place, to which it returns for every check.

    Raises:
        CalibrationError: no rig, a reference that is there, pictures too plain, or a camera that moved between them.
    """
    folder = RigFolder.load(out)
    rig = folder.rig
    _new(out, [rig.reference.file] if rig.reference else [], "a rig without a reference picture", replace)
    collector = Collector("reference")
    _collect(collector, samples, rig)
    made = Reference([sample.picture for sample in collector.samples])
    still = float(made.still.mean())
    lines, verdict = verdicts.of_reference(len(collector.samples), still, made.threshold_px, ENOUGH_REFERENCES)
    where = _one_place(collector.samples) if rig.pose and rig.pose.of == "tool" else None
    record = {
        "lines": lines,
        "verdict": verdict,
        "pictures": len(collector.samples),
        "still": still,
        "threshold_px": made.threshold_px,
        "T_base_tool": where,
    }
    from dr_calibration.figures import still_part

    file = out / f"reference_{rig.camera_name}.png"
    made.save(file, replace=True)
    folder = RigFolder(out, dataclasses.replace(rig, reference=ReferencePicture.of(file)), folder.steps)
    pictures = {"the reference; red where something moves, which is not compared": still_part(made.picture, made.still)}
    return _done(folder.write("reference", record, pictures, now_unix_s), lines, verdict)


def check(samples: Iterable[Sample], out: Path, *, now_unix_s: float | None = None) -> tuple[Moved, Done]:
    """Whether the camera stands where it stood for the reference.

    Returns: what the worst run of `RUN` pictures says, by the majority of them: a single picture may err.

    Raises:
        CalibrationError: no rig, no reference, a reference that is damaged, no pictures, or pictures of another size.
    """
    folder = RigFolder.load(out)
    rig = folder.rig
    file = rig.check_reference(out)
    if file is None:
        raise CalibrationError(
            str(out), expected="a rig with a reference picture", found="none", next_step="run dr calibrate reference"
        )
    made = Reference.load(file)
    known = folder.steps.get("reference", {}).get("T_base_tool")
    place = np.array(known, np.float64) if known else None
    results, elsewhere = [], 0
    for sample in samples:
        rig.check(width=sample.size[0], height=sample.size[1])
        if place is not None and sample.T_base_tool is not None and not same_pose(place[None], sample.T_base_tool):
            elsewhere += 1
            continue
        results.append(made.check(sample.picture))
    if not results:
        found = f"{elsewhere}, all with the tool elsewhere" if elsewhere else "none"
        next_step = "move the tool to where it was for the reference" if elsewhere else "give some"
        raise CalibrationError("pictures to check", expected="one or more", found=found, next_step=next_step)
    worst = worst_of(results)
    fine = sum(result.fine for result in results)
    lines = [f"{fine} of {len(results)} pictures show the camera where it was", worst.reason]
    if elsewhere:
        lines.append(f"{elsewhere} pictures with the tool elsewhere were not compared")
    verdict = "good: the camera stands" if worst.fine else "not usable: the camera has moved; calibrate again"
    if not worst.moved and not worst.confident:
        verdict = "not usable: it cannot be seen whether the camera stands"
    record = {
        "lines": lines,
        "verdict": verdict,
        "shift_px": [result.shift_px for result in results[:2000]],
        "threshold_px": made.threshold_px,
        "moved": worst.moved,
        "confident": worst.confident,
    }
    now_unix_s = time.time() if now_unix_s is None else now_unix_s
    return worst, _done(folder.write("check", record, {}, now_unix_s), lines, verdict)


def worst_of(results: list[Moved]) -> Moved:
    """What `RUN` pictures in a row say by majority, where that is worst; of fewer pictures, the majority of those.

    Whether the scene is seen at all is asked of all pictures together: a robot may stand before it for a while.
    """
    size = min(RUN, len(results))
    needed = MAJORITY * size // RUN + (MAJORITY * size % RUN > 0)
    seen = [result for result in results if result.confident]
    if 2 * len(seen) < len(results):
        return next(result for result in results if not result.confident)
    worst: Moved | None = None
    for first in range(len(results) - size + 1):
        run = sorted((one for one in results[first : first + size] if one.confident), key=lambda one: one.shift_px)
        moved = [one for one in run if one.moved]
        if not run:
            continue
        one = moved[len(moved) // 2] if len(moved) >= needed else next((o for o in run[::-1] if not o.moved), None)
        if one and (worst is None or (one.moved, one.shift_px) > (worst.moved, worst.shift_px)):
            worst = one
    return worst or seen[0]


# ---- pieces ----


def _new(out: Path, there: list[Any], expected: str, replace: bool) -> None:
    if out.exists() and not out.is_dir():
        raise CalibrationError(str(out), expected="a directory", found="a file", next_step="give another --out")
    if there and not replace:
        raise CalibrationError(
            str(out), expected="a directory without " + expected if expected == "a rig" else expected,
            found=str(getattr(there[0], "name", there[0])), next_step="add --replace to do the step again",
        )  # fmt: skip


def _collect(collector: Collector, samples: Iterable[Sample], rig: Rig | None = None) -> None:
    for sample in samples:
        if rig is not None:
            rig.check(width=sample.size[0], height=sample.size[1])
        said = collector.offer(sample)
        if said.startswith("rejected: mixed resolution"):
            raise CalibrationError(
                "pictures", expected="one resolution", found=said.partition(": ")[2], next_step="record at one"
            )


def _at_rest(
    samples: Iterable[Sample], path: ToolPath | None, offset_s: float, collector: Collector
) -> Iterator[Sample]:
    """Samples with the tool's pose at the moment of the picture, moving ones left out where a track tells."""
    for sample in samples:
        if path is None:
            yield sample
            continue
        pose = path.at(sample.stamp_s - offset_s)
        if pose is not None and path.rests(sample.stamp_s - offset_s):
            yield dataclasses.replace(sample, T_base_tool=pose)
            continue
        collector.seen += 1
        unknown = "the tool's pose at the picture's stamp is not known"
        collector.rejected[unknown if pose is None else "the tool is moving"] += 1


def _too_few(what: str, collector: Collector, expected: str) -> CalibrationError:
    found = f"{len(collector.samples)}" + (f" ({collector.reasons()})" if collector.rejected else "")
    return CalibrationError(what, expected=expected, found=found, next_step=collector.advice)


def _parts_of_old_rig(out: Path) -> list[Path]:
    """What belongs to the rig that is replaced."""
    old = [*RigFolder.rigs(out), *out.glob("reference_*.png"), *(out / PICTURES).glob("*_*.jpg")]
    return [*old, *(file for file in (out / CAMERA_INFO_FILE,) if file.exists())]


def _held_out_pictures(
    result: handeye.HandEye, poses: Floats, collector: Collector, lens: Intrinsics, seed: int
) -> dict[str, bytes]:
    """Pictures that take no part in a second solution, with the corners that it predicts for them."""
    used = np.flatnonzero(result.inliers)
    if len(used) < 2 * handeye.SMALLEST_VIEWS:
        return {}
    shown = used[[len(used) // 3, 2 * len(used) // 3]]
    rest = np.setdiff1d(used, shown)
    try:
        other = handeye.solve(
            poses[rest], [collector.detections[i] for i in rest], mode=result.mode, draws=20,
            rng=np.random.default_rng(seed), K=lens.K, distortion=lens.distortion,
        )  # fmt: skip
    except CalibrationError:  # the two were needed
        return {}
    import cv2

    from dr_calibration.figures import overlay
    from dr_calibration.geometry import to_rodrigues

    pictures = {}
    for i in shown:
        found = collector.detections[i]
        arm = poses[i] if result.mode == "eye_in_hand" else invert(poses[i])
        seen = invert(arm @ other.pose) @ other.board_pose
        px = cv2.projectPoints(found.points_m, *to_rodrigues(seen), lens.K, lens.distortion)[0].reshape(-1, 2)
        error = float(np.sqrt(((px - found.corners_px) ** 2).sum(1).mean()))
        caption = f"pose {i}, left out: predicted by the robot and the other poses, {error:.2f} px from what is seen"
        pictures[caption] = overlay(collector.samples[i].picture, found.corners_px, np.asarray(px, np.float64))
    return pictures


def _one_place(samples: list[Sample]) -> Pose | None:
    """Where the tool was for all reference pictures; None where that is not known."""
    poses = [sample.T_base_tool for sample in samples if sample.T_base_tool is not None]
    if len(poses) < len(samples):
        return None
    if not same_pose(np.array(poses), poses[0]):
        raise CalibrationError(
            "reference pictures", expected="the tool, which carries the camera, in one place", found="several",
            next_step="move the tool to one place, and there before every check",
        )  # fmt: skip
    return poses[0]


def _done(folder: RigFolder, lines: list[str], verdict: str) -> Done:
    last = (f"calibration hash {folder.rig.hash}", f"verdict: {verdict}")
    return Done(folder.rig_path, folder.report_path, (*lines, *last))
