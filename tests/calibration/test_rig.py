"""The stored rig: what is written is read back the same, and what may not hold any more is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import from_parts
from dr_calibration.intrinsics import Intrinsics
from dr_calibration.rig import CameraPose, ReferencePicture, Rig, TimeOffset

LENS = Intrinsics(
    640, 480, np.array([[612.3, 0, 322.1], [0, 609.8, 236.4], [0, 0, 1]]), np.array([0.1, -0.2, 1e-5, -6e-4, 0]),
    np.array([0.5, 0.5, 0.7, 0.7]), 0.21, 0.23,
)  # fmt: skip
POSE = from_parts(Rotation.from_euler("xyz", [-2.1, 0.31, 1.7]), [0.75, 1 / 3, 0.7])
MADE_S = 1.7e9


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    (tmp_path / "reference.png").write_bytes(b"a picture")
    return Rig(
        "wrist-1",
        "0123456789",
        LENS,
        MADE_S,
        CameraPose.of_matrix("base", POSE, "base_link", "camera_optical_frame", 0.6, 0.05),
        TimeOffset(0.021, 0.001),
        {"kind": "charuco", "columns": 9, "square_m": 0.03},
        ReferencePicture.of(tmp_path / "reference.png"),
    )


def test_what_is_saved_is_loaded_with_the_same_hash(rig: Rig, tmp_path: Path) -> None:
    path = rig.save(tmp_path)
    loaded = Rig.load(path)
    assert loaded.hash == rig.hash and loaded.intrinsics.hash == LENS.hash
    assert loaded.pose is not None and rig.pose is not None
    np.testing.assert_allclose(loaded.pose.T, rig.pose.T, atol=1e-15)
    assert loaded.save(tmp_path, replace=True) == path and Rig.load(path).hash == rig.hash
    assert loaded.check_reference(tmp_path) == tmp_path / "reference.png"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["reference.png", "rig_wrist-1.yaml"]
    for change in ({"camera_serial": "1"}, {"time_offset": None}, {"made_unix_s": MADE_S + 1}, {"pose": None}):
        assert dataclasses.replace(rig, **change).hash != rig.hash


def test_many_poses_keep_their_hash(rig: Rig, tmp_path: Path) -> None:
    for seed in range(30):
        turn = Rotation.from_quat(np.random.default_rng(seed).normal(size=4))
        T = from_parts(turn, [0.1, seed / 7, -0.3])
        pose = CameraPose.of_matrix("base", T, "base_link", "camera", 1.0, 0.1)
        path = dataclasses.replace(rig, pose=pose).save(tmp_path, replace=True)
        assert Rig.load(path).pose == pose


def test_a_file_that_is_there_is_kept(rig: Rig, tmp_path: Path) -> None:
    path = rig.save(tmp_path)
    before = path.read_bytes()
    with pytest.raises(CalibrationError, match="one that is there"):
        rig.save(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("camera_nam",), 1, "camera_nam.*did you mean camera"),
        (("camera", "seral"), "1", "did you mean serial"),
        (("camera",), "wrist", "keys name, serial"),
        (("camera", "serial"), 123456, "in quotes"),
        (("format",), 2, "format 1"),
        (("T_base_camera", "xyz_m"), [750.0, 75.0, 700.0], "millimetres"),
        (("T_base_camera", "xyz_m"), [0.1, 0.2], "3 finite numbers"),
        (("T_base_camera", "quaternion_xyzw"), [0.5, 0.5, 0.5, 0.9], "length 1"),
        (("T_base_camera", "quaternion_xyzw"), [0.0, 0.0, math.nan, 1.0], "finite"),
        (("T_base_camera", "sd_mm"), -1.0, "sd_mm"),
        (("T_base_camera", "frame"), "/base", "leading slash"),
        (("T_base_camera", "xyz_m", 0), 0.7500001, "do not edit"),
        (("T_tool_camera",), {}, "T_base_camera and T_tool_camera"),
        (("intrinsics", "width"), 1280.5, "8 to 20000"),
        (("intrinsics", "width"), 1280, "hash of the lens"),
        (("intrinsics", "fx_fy_cx_cy_px"), [0.6, 0.6, 0.3, 0.2], "focal lengths"),
        (("time_offset", "offset_s"), 21.0, "from -10 to 10"),
        (("reference", "file"), "../secret.png", "beside the rig"),
        (("made_unix_s",), "yesterday", "made_unix_s"),
    ],
)
def test_a_changed_file_is_refused(
    rig: Rig, tmp_path: Path, keys: tuple[str | int, ...], value: object, message: str
) -> None:
    path = rig.save(tmp_path)
    content = yaml.safe_load(path.read_text())
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(CalibrationError, match=message):
        Rig.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera: !!python/object/apply:os.system [ls]", "no Python tags"),
        ("camera: &a {name: x}\nboard: *a", "aliases"),
        ("format: 1\nformat: 2", "'format' again"),
        ("- 1", "key: value"),
        ("[" * 2000, "at most 32 levels"),
        ("a: " + "1" * 2**21, "a larger file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        Rig.load(path)
    with pytest.raises(CalibrationError, match="No such file"):
        Rig.load(tmp_path / "none.yaml")


def test_a_rig_of_another_time_camera_or_recording_is_refused(rig: Rig, tmp_path: Path) -> None:
    now = MADE_S + 20 * 86400
    rig.check(
        serial="0123456789", now_unix_s=now, max_age_days=30, width=640, height=480, calibration_hash=rig.hash
    )  # fmt: skip
    for settings, message in (
        ({"serial": "999"}, "camera 0123456789.*999"),
        ({"serial": ""}, "found none"),
        ({"now_unix_s": now, "max_age_days": 10.0}, "at most 10 days.*20.0 days"),
        ({"now_unix_s": MADE_S - 7200}, "future"),
        ({"width": 1280, "height": 720}, "1280x720"),
        ({"calibration_hash": "0" * 64}, "hash 000000000000"),
    ):
        with pytest.raises(CalibrationError, match=message):
            rig.check(**settings)
    (tmp_path / "reference.png").write_bytes(b"another picture")
    with pytest.raises(CalibrationError, match="the picture of hash"):
        rig.check_reference(tmp_path)
    (tmp_path / "reference.png").unlink()
    with pytest.raises(CalibrationError, match="reference picture"):
        rig.save(tmp_path)


def test_what_is_no_pose_never_becomes_a_rig() -> None:
    mirrored = POSE @ np.diag([1.0, 1.0, -1.0, 1.0])
    millimetres = from_parts(Rotation.identity(), [30.0, 3.0, 15.0])
    near_millimetres = from_parts(Rotation.identity(), [3.0, 1.0, 1.5])  # within 20 m, but no tool is so large
    for of, pose in (("base", mirrored), ("base", millimetres), ("tool", near_millimetres), ("base", POSE * 2)):
        with pytest.raises(CalibrationError):
            CameraPose.of_matrix(of, pose, "a", "b", 1.0, 0.1)  # type: ignore[arg-type]
