"""The steps: what they refuse, with the reason and without a trace; the collector; the worst of many pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dr_calibration import steps
from dr_calibration.boards import Board
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import distance_m, from_parts, invert
from dr_calibration.moved import Moved
from dr_calibration.rig import Rig, TimeOffset
from dr_calibration.samples import Sample, ToolPath
from dr_calibration.steps import Collector
from tests.calibration import pictures as made

NOW = 1.7e9
HAND_EYE: dict[str, Any] = {"mode": "eye_in_hand", "frame": "tool0", "camera_frame": "optical", "now_unix_s": NOW}


def posed(change: Callable[[Any], Any]) -> list[Sample]:
    """The still samples, the tool's poses changed."""
    return [dataclasses.replace(one, T_base_tool=change(one.T_base_tool)) for one in made.still_samples()]


def refused(text: str, out: Path, step: Callable[[], Any]) -> None:
    before = made.files(out)
    with pytest.raises(CalibrationError, match=text):
        step()
    assert made.files(out) == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda samples: samples[:5], "8 different good ones, better 20; found 5"),
        (lambda samples: samples[:3] * 6, "too similar to a view already taken"),
        (lambda samples: [blurred(one) for one in samples], r"\d+ blurred|\d+ no board found"),
        (lambda samples: [partial(one) for one in samples], "found 0 .*(no board|too few corners)"),
        (
            lambda samples: [*samples[:9], *map(larger, samples[9:])],
            "one resolution; found mixed resolution: 640x480",
        ),
        (lambda samples: [], "8 different good ones, better 20; found 0; show the whole board"),
    ],
)
def test_pictures_that_do_not_make_a_lens_are_refused(change: Any, text: str, tmp_path: Path) -> None:
    samples = change(made.lens_samples())
    refused(text, tmp_path, lambda: steps.intrinsics(
        samples, made.BOARD, tmp_path / "rig", name="wrist", serial="", now_unix_s=NOW))  # fmt: skip


def blurred(one: Sample) -> Sample:
    return Sample(one.stamp_s, np.asarray(cv2.GaussianBlur(one.picture, (0, 0), 3.5), np.uint8))


def partial(one: Sample) -> Sample:
    picture = one.picture.copy()
    picture[:, 60:] = 90
    return Sample(one.stamp_s, picture)


def larger(one: Sample) -> Sample:
    return Sample(one.stamp_s, np.asarray(cv2.resize(one.picture, (640, 480)), np.uint8))


def millimetres(pose: Any) -> Any:
    return from_parts(pose[:3, :3], 1e3 * pose[:3, 3])


def stretched(pose: Any) -> Any:
    return from_parts(1.01 * pose[:3, :3], pose[:3, 3])


def w_first(pose: Any) -> Any:
    """What reading (w, x, y, z) as (x, y, z, w) makes of it."""
    return from_parts(Rotation.from_quat(np.roll(Rotation.from_matrix(pose[:3, :3]).as_quat(), 1)), pose[:3, 3])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda: made.still_samples()[:4], "5 different ones, better 15 to 20; found 4"),
        (lambda: made.still_samples()[:1] * 9, "found 1 .*the tool is where a picture was already taken"),
        (lambda: posed(millimetres), "give metres, not millimetres"),
        (lambda: posed(stretched), "orthonormal"),
        (lambda: posed(w_first), "quaternions in another order"),
        (lambda: posed(invert), "inverted poses"),
        (lambda: posed(lambda pose: None), "found 0 .*the tool's pose at the picture's stamp is not known"),
        (lambda: [larger(one) for one in made.still_samples()], "pictures of 320x240; found 640x480"),
        (lambda: [dataclasses.replace(partial(one), T_base_tool=one.T_base_tool) for one in made.still_samples()],
         "found 0 .*(no board|too few corners)"),
    ],
)  # fmt: skip
def test_poses_that_do_not_tell_where_the_camera_is_are_refused(change: Any, text: str, tmp_path: Path) -> None:
    out = made.true_rig(tmp_path / "rig")
    samples = change()
    refused(text, out, lambda: steps.hand_eye(samples, made.BOARD, out, **HAND_EYE))


def test_a_wrong_square_and_a_missing_motion_are_named(tmp_path: Path) -> None:
    out = made.true_rig(tmp_path / "rig")
    wrong = Board.parse("charuco:7x5:33mm:24.2mm:4X4_50")
    refused("size of the board: .*a board stated 1.1", out,
            lambda: steps.hand_eye(made.still_samples(), wrong, out, **HAND_EYE))  # fmt: skip
    rng, seen = np.random.default_rng(3), made.camera()
    flat = [made.held(np.zeros(2), angle, rng.uniform(-0.1, 0.1, 2), 0.33) for angle in np.linspace(-1, 1, 9)]
    samples = [Sample(float(i), seen.picture(pose, rng), made.tool_of(pose)) for i, pose in enumerate(flat)]
    refused("rotations about its .* axis alone .* about its [xy] or [xyz] axis", out,
            lambda: steps.hand_eye(samples, made.BOARD, out, **HAND_EYE))  # fmt: skip
    refused("no rig|directory of one rig", tmp_path, lambda: steps.hand_eye(
        samples, made.BOARD, tmp_path / "none", **HAND_EYE))  # fmt: skip


def test_an_eye_to_hand_camera_with_wrong_poses_and_the_board_on_the_tool(tmp_path: Path) -> None:
    """The same pictures seen from the other side: the base takes the board's place, the tool the camera's."""
    out = made.true_rig(tmp_path / "rig")
    rng, T_tool_board = np.random.default_rng(7), made.T_TOOL_CAMERA
    T_base_camera = from_parts(Rotation.from_euler("xyz", [-95.0, 4.0, -85.0], degrees=True), [1.1, 0.1, 0.5])
    poses, seen = made.still_poses(12, rng), made.camera()
    samples = [
        Sample(float(i), seen.picture(pose, rng), T_base_camera @ pose @ invert(T_tool_board))
        for i, pose in enumerate(poses)
    ]
    for i in (2, 9):
        place = samples[i].T_base_tool
        assert place is not None
        samples[i] = dataclasses.replace(samples[i], T_base_tool=from_parts(place[:3, :3], place[:3, 3] + [0.05, 0, 0]))
    done = steps.hand_eye(samples, made.BOARD, out, **{**HAND_EYE, "mode": "eye_to_hand", "frame": "base"})
    pose = Rig.load(done.rig).pose
    assert pose is not None and pose.key == "T_base_camera" and distance_m(pose.T, T_base_camera) < 1e-3
    assert "2 disagree and are left out" in "\n".join(done.lines)
    assert done.lines[-1].startswith("verdict: usable, but") and "2 of 12 poses disagree" in done.lines[-1]
    assert "2 of 12 poses disagree" in done.report.read_text()


def test_the_rigs_time_offset_is_applied_where_there_is_a_track(tmp_path: Path) -> None:
    """Poses taken at the moment of the stamp, while the tool moves on, would be wrong; here rests are short."""
    samples, track = made.tour_samples()
    late = (track[0] - 0.25, track[1])  # the robot's clock is behind: at the stamps the tool is on its way
    out = made.true_rig(tmp_path / "rig")
    refused("the tool is moving", out,
            lambda: steps.hand_eye(samples[::2], made.BOARD, out, tool=late, **HAND_EYE))  # fmt: skip
    out = made.true_rig(tmp_path / "timed", time_offset=TimeOffset(made.OFFSET_S + 0.25, 1e-3))
    done = steps.hand_eye(samples[::2], made.BOARD, out, tool=late, **HAND_EYE)
    pose = Rig.load(done.rig).pose
    assert pose is not None and distance_m(pose.T, made.T_TOOL_CAMERA) < 1e-3


def test_films_that_do_not_tell_the_offset_are_refused(tmp_path: Path) -> None:
    out = made.true_rig(tmp_path / "rig")
    samples, track = made.tour_samples()
    few = samples[:5]
    refused("60 pictures or more that show the board; found 5", out,
            lambda: steps.time_offset(few, track, made.BOARD, out, now_unix_s=NOW))  # fmt: skip
    still = [Sample(100.6 + 0.1 * i, samples[0].picture) for i in range(66)]
    there = (track[0], np.tile(track[1][:1], (len(track[0]), 1, 1)))
    refused("speeds that vary", out, lambda: steps.time_offset(still, there, made.BOARD, out, now_unix_s=NOW))
    backwards = (track[0][::-1], track[1])
    refused("stamps that increase", out, lambda: steps.time_offset(few, backwards, made.BOARD, out, now_unix_s=NOW))


def test_references_and_checks_that_say_nothing_are_refused(tmp_path: Path) -> None:
    out = made.true_rig(tmp_path / "rig")
    rng, seen = np.random.default_rng(4), made.camera()
    first, second = made.still_poses(2, rng)
    scene = [Sample(float(i), seen.picture(first, rng)) for i in range(4)]
    other = [Sample(9.0, seen.picture(second, rng))]
    plain = [Sample(float(i), np.full((240, 320, 3), 90, np.uint8)) for i in range(4)]
    refused("edges and texture", out, lambda: steps.reference(plain, out, now_unix_s=NOW))
    refused("at least one", out, lambda: steps.reference([], out, now_unix_s=NOW))
    refused("a camera at rest|edges and texture", out, lambda: steps.reference([*scene, *other], out, now_unix_s=NOW))
    refused("run dr calibrate reference", out, lambda: steps.check(scene, out))
    done = steps.reference(scene, out, now_unix_s=NOW)
    assert "few pictures" in done.lines[-1]
    refused("pictures of 320x240; found 640x480", out, lambda: steps.check(map(larger, scene), out))
    refused("one or more; found none", out, lambda: steps.check([], out))
    reference = out / "reference_wrist.png"
    reference.write_bytes(reference.read_bytes() + b"!")
    refused("make a new reference", out, lambda: steps.check(scene, out))


def test_one_picture_that_errs_is_no_moved_camera_and_a_few_in_a_row_are() -> None:
    def one(shift_px: float, confident: bool = True) -> Moved:
        return Moved(shift_px, shift_px > 0.6, confident, "", 0.9, 0.05)

    fine, wrong, blind = one(0.1), one(4.0), one(np.nan, confident=False)
    assert steps.worst_of([fine] * 20 + [wrong] + [fine] * 20).fine
    assert steps.worst_of([fine] * 20 + [wrong, fine, wrong] + [fine] * 20).fine
    assert steps.worst_of([fine] * 20 + [wrong] * 3).moved
    assert steps.worst_of([wrong]).moved and steps.worst_of([wrong, wrong, fine]).moved
    assert steps.worst_of([fine, wrong, fine]).fine
    assert steps.worst_of([fine] * 5 + [blind] * 3).fine
    assert not steps.worst_of([fine] * 2 + [blind] * 3).fine


def test_a_collector_takes_what_helps_and_says_what_is_missing() -> None:
    with pytest.raises(CalibrationError, match="a board"):
        Collector("hand_eye")
    lens = Collector("intrinsics", made.BOARD)
    assert lens.progress == 0 and lens.advice == "show the whole board"
    first = made.lens_samples()[0]
    assert lens.offer(first) == "kept 1"
    assert lens.offer(Sample(first.stamp_s + 0.03, first.picture)).startswith("passed over")
    assert lens.offer(Sample(first.stamp_s + 1.0, first.picture)).startswith("rejected: too similar")
    jerk = np.roll(made.lens_samples()[1].picture, 8, axis=1)
    assert lens.offer(Sample(5.0, made.lens_samples()[1].picture)) == "kept 2"
    assert lens.offer(Sample(5.1, jerk)) == "rejected: the board is moving: hold it still"
    assert lens.offer(larger(made.lens_samples()[2])).startswith("rejected: mixed resolution: 640x480")
    assert 0 < lens.progress < 50 and len(lens.samples) == len(lens.views) == 2

    arm = Collector("hand_eye", made.BOARD)
    before = -1
    for number, sample in enumerate(made.still_samples()[:6], 1):
        assert arm.offer(sample) == f"kept {number}" and arm.progress >= before
        before = arm.progress
    near = made.still_samples()[7]
    assert near.T_base_tool is not None
    drift = from_parts(near.T_base_tool[:3, :3], near.T_base_tool[:3, 3] + [0.0, 0.004, 0.0])
    assert arm.offer(near) == "kept 7"
    moving = Sample(near.stamp_s + 0.1, near.picture, drift)
    assert arm.offer(moving) == "rejected: the tool is moving" and "1 the tool is moving" in arm.reasons()
    assert "hold it still" in arm.advice or "turn" in arm.advice

    scene = Collector("reference")
    for number in range(100):
        scene.offer(Sample(0.5 * number, first.picture))
    assert scene.progress == 100 and 8 <= len(scene.samples) <= 16
    assert scene.samples[-1].stamp_s - scene.samples[0].stamp_s > 30.0


def test_a_track_is_never_guessed() -> None:
    poses = np.array([from_parts(Rotation.from_rotvec([0, 0, 0.2 * i]), [0.1 * i, 0, 0]) for i in range(4)])
    tool = ToolPath((np.array([0.0, 0.1, 0.2, 0.6]), poses))
    middle = tool.at(0.15)
    assert middle is not None and np.allclose(middle, from_parts(Rotation.from_rotvec([0, 0, 0.3]), [0.15, 0, 0]))
    assert np.array_equal(tool.at(0.6), poses[3])  # type: ignore[arg-type]
    assert tool.at(-0.01) is None and tool.at(0.61) is None and tool.at(0.4) is None
    assert not tool.rests(0.1) and ToolPath((np.array([0.0, 0.1]), poses[[0, 0]])).rests(0.05)
    for stamps, wrong, text in [
        (np.array([0.0, 0.0]), poses[:2], "increase"),
        (np.array([0.0]), poses[:1], "two or more"),
        (np.array([0.0, 0.1]), np.array([millimetres(pose) for pose in poses[2:]]), "millimetres"),
    ]:
        with pytest.raises(CalibrationError, match=text):
            ToolPath((stamps, wrong))
