"""What the figures of a calibration say: which are good, which will do, and which are refused, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dr_calibration.errors import CalibrationError
from dr_calibration.handeye import HandEye
from dr_calibration.intrinsics import ENOUGH_VIEWS, Difference, Intrinsics, IntrinsicsResult
from dr_calibration.time_offset import TimeOffset

GOOD_FOCAL_SD = 0.0015
"""Standard deviation of the focal length as a share of it: the error is then hardly above 0.3 %."""
GOOD_CENTRE_SD = 1.0 / 640
"""Of the principal point, as a share of the picture's width."""
GOOD_HELD_OUT = 0.5 / 640
"""Error on views that were left out, as a share of the picture's width."""
GOOD_COVERAGE = 0.6
"""Share of the picture's cells in which corners were seen."""
GOOD_VIEWS = 15

GOOD_SD_MM, WORST_SD_MM = 1.0, 5.0
GOOD_SD_DEG, WORST_SD_DEG = 0.1, 0.5
"""Total standard deviations of the camera's pose; above the worst it is not usable and refused."""
GOOD_PREDICTION_MM, WORST_PREDICTION_MM = 3.0, 15.0
"""Between the board by the robot and by the camera, on poses that were left out."""
GOOD_LEFT_OUT = 0.15
"""Share of poses that disagree."""
GOOD_POSES = 15

GOOD_OFFSET_SD_S = 1e-3
GOOD_CORRELATION = 0.9
GOOD_SECOND_PEAK = 0.7

SAME_LENS = 1.5 / 640
"""Mean way of a ray between the maker's lens and ours, as a share of the width, above which they disagree."""

Judged = tuple[list[str], str]
"""Lines with figures, and the verdict: "good", or "usable, but ..."."""


def of_intrinsics(result: IntrinsicsResult, difference: Difference | None) -> Judged:
    lens = result.intrinsics
    assert lens.sd_px is not None and lens.rms_px is not None and lens.held_out_rms_px is not None
    fx, fy, cx, cy = lens.K[[0, 1, 0, 1], [0, 1, 2, 2]]
    sd, width = lens.sd_px, lens.width
    focal_sd = float((sd[:2] / [fx, fy]).max())
    centre_sd_px = float(sd[2:].max())
    coverage = float((result.coverage > 0).mean())
    good_held_out_px, good_centre_px = GOOD_HELD_OUT * width, GOOD_CENTRE_SD * width
    lines = [
        f"focal length {fx:.2f}, {fy:.2f} px, standard deviation {focal_sd:.3%} (good up to {GOOD_FOCAL_SD:.2%})",
        f"principal point {cx:.2f}, {cy:.2f} px, standard deviation {centre_sd_px:.2f} px "
        f"(good up to {good_centre_px:.2g} px)",
        f"lens {result.model}: {', '.join(f'{value:.4f}' for value in lens.distortion)}",
        f"error on views left out {lens.held_out_rms_px:.3f} px RMS (good up to {good_held_out_px:.2g} px), "
        f"on the views used {lens.rms_px:.3f} px",
        f"{len(result.views)} views used, {len(result.dropped)} left out (good from {GOOD_VIEWS}); "
        f"{coverage:.0%} of the picture covered (good from {GOOD_COVERAGE:.0%})",
    ]
    if difference is not None:
        lines.append(
            f"the maker's lens: the same ray is {difference.mean_px:.2f} px away on average, at most "
            f"{difference.max_px:.2f} px; focal length {difference.focal[0]:+.2%}, {difference.focal[1]:+.2%}, "
            f"principal point {difference.centre_px[0]:+.1f}, {difference.centre_px[1]:+.1f} px here"
        )
    doubts = [
        (focal_sd > GOOD_FOCAL_SD, f"the focal length is known to {2 * focal_sd:.1%} only: tilt the board more"),
        (centre_sd_px > good_centre_px, f"the principal point is known to {2 * centre_sd_px:.1f} px only"),
        (lens.held_out_rms_px > good_held_out_px, "the error is high: check that the board is flat"),
        (coverage < GOOD_COVERAGE, "parts of the picture were never covered"),
        (len(result.views) < GOOD_VIEWS, f"few views: take {ENOUGH_VIEWS}"),
        (
            difference is not None and difference.mean_px > SAME_LENS * width,
            "the maker's lens differs: check the resolution, and that the maker's values are of this stream",
        ),
    ]
    return lines, _verdict(doubts)


def of_hand_eye(result: HandEye) -> Judged:
    """Raises CalibrationError: too uncertain to be of use."""
    checked = result.cross_validation
    bounds = [
        ("standard deviation of the place", result.total_sd_mm, GOOD_SD_MM, WORST_SD_MM, "mm"),
        ("standard deviation of the direction", result.total_sd_deg, GOOD_SD_DEG, WORST_SD_DEG, "deg"),
        ("error on poses left out", checked.translation_mm, GOOD_PREDICTION_MM, WORST_PREDICTION_MM, "mm"),
    ]
    for name, value, _, worst, unit in bounds:
        if not value <= worst:
            next_step = result.advice[0] if result.advice else "take 20 poses, nearer to the board, at rest"
            raise CalibrationError(
                f"pose of the camera, {name}", expected=f"at most {worst:g} {unit}",
                found=f"{value:.3g} {unit}: not usable", next_step=next_step,
            )  # fmt: skip
    x, y, z = 1e3 * result.pose[:3, 3]
    used, left_out = int(result.inliers.sum()), int((~result.inliers).sum())
    sd = ", ".join(f"{value:.2f}" for value in result.sd_mm)
    sd_deg = ", ".join(f"{value:.3f}" for value in result.sd_deg)
    rms = float(np.sqrt(np.mean(result.residuals[result.inliers] ** 2)))
    scale_known = np.isfinite(result.scale_sd)
    lines = [
        f"{result.name}: x {x:.2f}, y {y:.2f}, z {z:.2f} mm; maps points of the camera's frame into the "
        f"{'tool' if result.mode == 'eye_in_hand' else 'base'}'s",
        f"standard deviation {result.total_sd_mm:.2f} mm (x, y, z {sd}; good up to {GOOD_SD_MM:g} mm) and "
        f"{result.total_sd_deg:.3f} deg (about x, y, z {sd_deg}; good up to {GOOD_SD_DEG:g} deg)",
        f"poses left out are predicted to {checked.translation_mm:.2f} mm (good up to {GOOD_PREDICTION_MM:g} mm), "
        f"{checked.rotation_deg:.3f} deg and {checked.residual:.2f} {result.unit}; {rms:.2f} {result.unit} remain on "
        "those used",
        f"{used} poses used, {left_out} disagree and are left out (good from {GOOD_POSES} used)",
        f"motion {result.diversity.score:.0%} of what is good: rotations of "
        + ", ".join(f"{angle:.0f}" for angle in result.diversity.rotation_deg)
        + " deg about its main axes",
        f"size of the squares by the robot's motion {result.scale:.4f} of the stated one, standard deviation "
        f"{result.scale_sd:.4f}" if scale_known else "size of the squares not checked: the motion does not show it",
    ]  # fmt: skip
    doubts = [(value > good, f"{name} is {value:.2g} {unit}") for name, value, good, _, unit in bounds]
    doubts += [
        (used < GOOD_POSES, f"few poses: take {GOOD_POSES} to 20"),
        (left_out > GOOD_LEFT_OUT * len(result.inliers), f"{left_out} of {len(result.inliers)} poses disagree"),
        (result.diversity.score < 1.0, next(iter(result.diversity.advice), "rotations are small")),
    ]
    return lines, _verdict(doubts)


def of_time_offset(result: TimeOffset) -> Judged:
    later = "later" if result.offset_s >= 0.0 else "earlier"
    lines = [
        f"the camera stamps a moment {1e3 * abs(result.offset_s):.2f} ms {later} than the robot: offset "
        f"{1e3 * result.offset_s:+.2f} ms, standard deviation {1e3 * result.sd_s:.2f} ms "
        f"(good up to {1e3 * GOOD_OFFSET_SD_S:g} ms)",
        f"speeds correlate by {result.correlation:.3f} (good from {GOOD_CORRELATION:g}); the next best offset "
        f"{result.second_peak:.2f} times as well (good up to {GOOD_SECOND_PEAK:g})",
        f"{result.frames} pictures over {result.duration_s:.1f} s",
    ]
    doubts = [
        (result.sd_s > GOOD_OFFSET_SD_S, f"it is known to {2e3 * result.sd_s:.1f} ms only: record longer and faster"),
        (result.correlation < GOOD_CORRELATION, "camera and robot agree little: check for lost pictures"),
        (result.second_peak > GOOD_SECOND_PEAK, "the motion nearly repeats itself: vary it"),
    ]
    return lines, _verdict(doubts)


def of_reference(pictures: int, still: float, threshold_px: float, enough: int) -> Judged:
    """``still``: share of the picture in which nothing moved."""
    lines = [
        f"{pictures} pictures (good from {enough}); {still:.0%} of the picture stands still and is compared",
        f"the camera counts as moved from {threshold_px:g} px on",
    ]
    doubts = [
        (pictures < enough, f"few pictures: take {enough} with the robot in other places"),
        (still < 0.3, "little of the picture stands still: keep the robot out of the way"),
    ]
    return lines, _verdict(doubts)


def lens_of_maker(lens: Intrinsics, difference: Difference) -> dict[str, object]:
    """Plain numbers for the report: the maker's lens, and how far it is from ours."""
    return {
        "fx_fy_cx_cy_px": [float(value) for value in lens.K[[0, 1, 0, 1], [0, 1, 2, 2]]],
        "distortion": [float(value) for value in lens.distortion],
        "mean_px": difference.mean_px,
        "max_px": difference.max_px,
    }


def _verdict(doubts: Sequence[tuple[bool, str]]) -> str:
    true = [text for doubtful, text in doubts if doubtful]
    return f"usable, but {'; '.join(true)}" if true else "good"
