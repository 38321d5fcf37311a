"""Rigid motions as 4x4 matrices. ``T_a_b`` maps points of frame b into frame a; quaternions are (x, y, z, w)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from dr_calibration.errors import CalibrationError

Pose = NDArray[np.float64]

ORTHONORMAL_TOLERANCE = 1e-4
LARGEST_M = 20.0
"""A translation beyond this is in millimetres, or wrong."""


def check_pose(pose: ArrayLike, name: str) -> Pose:
    """A pose (4, 4) as float64.

    Raises:
        CalibrationError: not finite, of another shape, not orthonormal, mirrored, or not in metres.
    """
    matrix = np.asarray(pose, np.float64)

    def refuse(expected: str, found: str, next_step: str) -> CalibrationError:
        return CalibrationError(name, expected=expected, found=found, next_step=next_step)

    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        found = f"shape {matrix.shape}" if matrix.shape != (4, 4) else "numbers that are not finite"
        raise refuse("a pose as a 4x4 matrix", found, "give rotation and translation")
    rotation = matrix[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > ORTHONORMAL_TOLERANCE or np.linalg.det(rotation) < 0.0 or np.abs(matrix[3] - [0, 0, 0, 1]).max() > 0.0:
        raise refuse("a rotation, orthonormal and not mirrored", f"a deviation of {error:.2g}", "compute it again")
    if (far := float(np.abs(matrix[:3, 3]).max())) > LARGEST_M:
        raise refuse(f"a translation below {LARGEST_M:g} m", f"{far:g}", "give metres, not millimetres")
    return matrix


def from_parts(rotation: Rotation | ArrayLike, translation_m: ArrayLike) -> Pose:
    """A pose (4, 4) of a rotation (SciPy's, or (3, 3)) and a translation (3,)."""
    pose = np.eye(4)
    pose[:3, :3] = rotation.as_matrix() if isinstance(rotation, Rotation) else np.asarray(rotation, np.float64)
    pose[:3, 3] = np.asarray(translation_m, np.float64).reshape(3)
    return pose


def from_quaternion(quaternion: ArrayLike, translation_m: ArrayLike, name: str = "pose") -> Pose:
    """A pose (4, 4) of a quaternion (x, y, z, w) of length 1 within 1e-3, and a translation (3,).

    Raises:
        CalibrationError: no unit quaternion.
    """
    numbers = np.asarray(quaternion, np.float64).reshape(-1)
    if numbers.shape != (4,) or not np.isfinite(numbers).all() or abs(float(np.linalg.norm(numbers)) - 1.0) > 1e-3:
        raise CalibrationError(
            name, expected="a quaternion x, y, z, w of length 1", found=str(numbers.tolist()), next_step="normalise it"
        )
    return check_pose(from_parts(Rotation.from_quat(numbers), translation_m), name)


def quaternion(pose: Pose) -> NDArray[np.float64]:
    """(4,): x, y, z, w with w >= 0."""
    numbers = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return numbers if numbers[3] >= 0.0 else -numbers


def from_rodrigues(rotation_vector: ArrayLike, translation_m: ArrayLike) -> Pose:
    """A pose (4, 4) of OpenCV's rvec (3,) rad and tvec (3,) m."""
    return from_parts(Rotation.from_rotvec(np.asarray(rotation_vector, np.float64).reshape(3)), translation_m)


def to_rodrigues(pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """OpenCV's rvec (3,) rad and tvec (3,) m."""
    return Rotation.from_matrix(pose[:3, :3]).as_rotvec(), pose[:3, 3].copy()


def invert(pose: Pose) -> Pose:
    """T_b_a of T_a_b."""
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def angle_between_rad(a: Pose, b: Pose) -> float:
    """The angle of the rotation that leads from one pose to the other."""
    return float(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude())


def distance_m(a: Pose, b: Pose) -> float:
    """Between the origins."""
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3]))
