"""A whole calibration through the commands, from recordings on the disk, with errors against truth."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dr_calibration.commands import (
    CalibrateBoard,
    CalibrateCheck,
    CalibrateHandEye,
    CalibrateIntrinsics,
    CalibrateReference,
    CalibrateReport,
    CalibrateTimeOffset,
)
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import angle_between_rad, distance_m, from_parts, invert
from dr_calibration.intrinsics import Intrinsics, read_camera_info, write_camera_info
from dr_calibration.rig import Rig
from dr_calibration.samples import Sample, write_samples
from tests.calibration import pictures as made

TEXT = str(made.BOARD)


def test_an_eye_in_hand_camera_from_the_first_picture_to_the_check(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    rng, seen, out = np.random.default_rng(5), made.camera(), tmp_path / "rig"
    write_samples(tmp_path / "lens", made.lens_samples())
    samples, tool = made.tour_samples()
    write_samples(tmp_path / "stops", samples, tool)
    samples, tool = made.film(7.5, 12.0, seen, rng)
    write_samples(tmp_path / "film", samples, tool)

    # The maker's lens is another by 1 % of focal length.
    wrong = made.K * np.array([[1.01], [1.01], [1.0]])
    wrong[:2, 2] = made.K[:2, 2]
    write_camera_info(tmp_path / "maker.yaml", Intrinsics(*made.SIZE, wrong, made.LENS), "wrist")
    lens = CalibrateIntrinsics(tmp_path / "lens", TEXT, out, "wrist", serial="0123", factory=tmp_path / "maker.yaml")
    assert lens.run() == 0
    printed = capsys.readouterr().out
    assert (
        re.search(r"the maker's lens: .* focal length -(0.9|1.0)", printed)
        and "verdict: " in printed
        and "px RMS (good up to" in printed
    )
    rig = Rig.load(out / "rig_wrist.yaml")
    k = rig.intrinsics.K
    assert np.abs(k[[0, 1], [0, 1]] / made.K[[0, 1], [0, 1]] - 1.0).max() < 0.003
    assert np.abs(k[:2, 2] - made.K[:2, 2]).max() < 1.0
    assert (k == read_camera_info(out / "camera_info.yaml").K).all() and rig.camera_serial == "0123"

    place = CalibrateHandEye(tmp_path / "stops", TEXT, out, "eye-in-hand", "tool0", "wrist_optical")
    assert place.run() == 0
    printed = capsys.readouterr().out
    assert "verdict: good" in printed and "maps points of the camera's frame into the tool's" in printed
    steps = json.loads((out / "steps.json").read_text())["steps"]
    assert steps["hand_eye"]["rejected"]["the tool is moving"] == 14
    rig = Rig.load(out / "rig_wrist.yaml")
    assert rig.pose is not None and rig.pose.key == "T_tool_camera" and rig.pose.frame == "tool0"
    assert distance_m(rig.pose.T, made.T_TOOL_CAMERA) < 1e-3
    assert np.degrees(angle_between_rad(rig.pose.T, made.T_TOOL_CAMERA)) < 0.1

    assert CalibrateTimeOffset(tmp_path / "film", TEXT, out).run() == 0
    assert "later than the robot" in capsys.readouterr().out
    rig = Rig.load(out / "rig_wrist.yaml")
    assert rig.time_offset is not None and abs(rig.time_offset.offset_s - made.OFFSET_S) < 2e-3

    view = made.still_poses(1, rng)[0]
    tool_there = made.tool_of(view)
    write_samples(tmp_path / "still", [Sample(float(i), seen.picture(view, rng), tool_there) for i in range(8)])
    assert CalibrateReference(tmp_path / "still", out).run() == 0
    check = CalibrateCheck(tmp_path / "still", out, serial="0123", max_age_days=1.0)
    assert check.run() == 0 and "good: the camera stands" in capsys.readouterr().out
    turned = invert(from_parts(Rotation.from_rotvec([0.0, np.radians(1.0), 0.0]), np.zeros(3))) @ view
    write_samples(tmp_path / "moved", [Sample(float(i), seen.picture(turned, rng), tool_there) for i in range(3)])
    assert CalibrateCheck(tmp_path / "moved", out).run() == 1
    assert "not usable: the camera has moved" in capsys.readouterr().out
    write_samples(tmp_path / "elsewhere", made.still_samples()[:2])
    with pytest.raises(CalibrationError, match="move the tool to where it was"):
        CalibrateCheck(tmp_path / "elsewhere", out).run()
    with pytest.raises(CalibrationError, match="camera 0123; found 9"):
        replace(check, serial="9").run()
    with pytest.raises(CalibrationError, match="at most 0 days old"):
        replace(check, max_age_days=0.0).run()

    # The page is made from the directory alone.
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert CalibrateReport(out).run() == 0
    page = (out / "report.html").read_text()
    assert abs(len(page) - len(before)) < 100 and page.count("data:image/") >= 10
    assert "http" not in page and rig.intrinsics.width == 320 and Rig.load(out / "rig_wrist.yaml").hash in page
    for words in ("not usable: the camera has moved", "daniilidis", "serial 0123", "Where corners were seen"):
        assert words in page, words

    # Done again only on purpose, and a new lens takes back what was built on the old one.
    kept = made.files(out)
    for again in (lens, place, CalibrateTimeOffset(tmp_path / "film", TEXT, out)):
        with pytest.raises(CalibrationError, match="--replace"):
            again.run()
    with pytest.raises(CalibrationError, match="--replace"):
        CalibrateReference(tmp_path / "still", out).run()
    assert made.files(out) == kept
    assert replace(lens, name="other", factory=None, replace=True).run() == 0
    left = made.files(out)
    assert Rig.load(out / "rig_other.yaml").pose is None and "rig_wrist.yaml" not in left
    assert not [name for name in left if "reference" in name or "hand_eye" in name]


def test_a_board_is_written_once_and_only_as_pdf_or_svg(tmp_path: Path) -> None:
    for name in ("board.pdf", "board.svg"):
        assert CalibrateBoard(TEXT, tmp_path / name).run() == 0
        with pytest.raises(CalibrationError, match="a file that is there"):
            CalibrateBoard(TEXT, tmp_path / name).run()
    with pytest.raises(CalibrationError, match=r"suffix '\.png'"):
        CalibrateBoard(TEXT, tmp_path / "board.png").run()
    with pytest.raises(CalibrationError, match="can be written"):
        CalibrateBoard(TEXT, tmp_path / "nowhere" / "board.svg").run()
    assert len(list(tmp_path.iterdir())) == 2


def test_every_command_is_installed_and_explains_itself(repository: Path) -> None:
    import tyro

    setup = (repository / "setup.py").read_text()
    for kind in (CalibrateBoard, CalibrateIntrinsics, CalibrateHandEye, CalibrateTimeOffset, CalibrateReference,
                 CalibrateCheck, CalibrateReport):  # fmt: skip
        assert f"dr_calibration.commands:{kind.__name__}" in setup
        with pytest.raises(SystemExit, match="0"):
            tyro.cli(kind, args=["--help"])
