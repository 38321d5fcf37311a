"""Between ROS messages and arrays; the only module that knows both.

Images become RGB uint8 (H, W, 3), times nanoseconds, quaternions (x, y, z, w), poses (position (3,), quaternion (4,)).
"""

from __future__ import annotations

import array
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from dr_interfaces.msg import RewardStamped
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, TransformStamped, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Header

from dr_core.errors import ConfigError

NS = 10**9
IDL_TYPES = {"boolean": "bool", "octet": "byte", "float": "float32", "double": "float64"}
SEQUENCE = re.compile(r"sequence<(.+?)(?:, (\d+))?>$")
ARRAY = re.compile(r"(.+)\[(\d+)\]$")
SEPARATOR = "=" * 80


# ---- time ----


def stamp_to_ns(stamp: Any) -> int:
    """builtin_interfaces/Time → nanoseconds."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def ns_to_stamp(stamp_ns: int) -> Any:
    """Nanoseconds → builtin_interfaces/Time."""
    seconds, nanoseconds = divmod(int(stamp_ns), NS)
    return Time(sec=seconds, nanosec=nanoseconds)


def header(stamp_ns: int, frame_id: str) -> Any:
    """A std_msgs/Header."""
    return Header(stamp=ns_to_stamp(stamp_ns), frame_id=frame_id)


# ---- images ----


def image_to_array(message: Any) -> NDArray[np.uint8]:
    """sensor_msgs/Image of any colour encoding → RGB (H, W, 3); rows may be padded.

    Raises:
        BagError: an encoding that is not supported.
        DamagedImage: sizes that do not agree.
    """
    from dr_core.data.images import decode_raw  # OpenCV stays out of nodes that see no images

    return decode_raw(
        memoryview(message.data),
        encoding=message.encoding,
        height=message.height,
        width=message.width,
        step=message.step,
    )


def compressed_to_array(message: Any) -> NDArray[np.uint8]:
    """sensor_msgs/CompressedImage, JPEG or PNG → RGB (H, W, 3).

    Raises:
        BagError: another format.
        DamagedImage: truncated or otherwise unreadable.
    """
    from dr_core.data.images import decode_compressed

    return decode_compressed(memoryview(message.data), message.format)


def to_array(message: Any) -> NDArray[np.uint8]:
    """An Image or a CompressedImage → RGB (H, W, 3); raises as the two above."""
    return compressed_to_array(message) if isinstance(message, CompressedImage) else image_to_array(message)


def array_to_image(pixels: NDArray[Any], stamp_ns: int, frame_id: str, encoding: str = "rgb8") -> Any:
    """(H, W, 3) uint8, or (H, W) uint16 with encoding 16UC1 (depth in mm) → sensor_msgs/Image."""
    contiguous: NDArray[Any] = np.ascontiguousarray(pixels)
    data = array.array("B")  # the one type that message classes take without looking at every byte
    data.frombytes(contiguous.data.cast("B"))
    height, width = contiguous.shape[:2]
    return Image(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=contiguous.strides[0],
        data=data,
    )


def camera_info(
    stamp_ns: int,
    frame_id: str,
    width: int,
    height: int,
    k: NDArray[np.float64],
    d: NDArray[np.float64],
    model: str = "plumb_bob",
) -> Any:
    """Pinhole matrix k (3, 3) in pixels and distortion d (D,) → sensor_msgs/CameraInfo, unrectified."""
    return CameraInfo(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        distortion_model=model,
        d=[float(value) for value in d],
        k=np.asarray(k, np.float64).reshape(9),
        r=np.eye(3).reshape(9),
        p=np.hstack([np.asarray(k, np.float64), np.zeros((3, 1))]).reshape(12),
    )


# ---- joints, poses, rewards ----


def joint_values(message: Any, names: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Positions and velocities (J,) of a sensor_msgs/JointState in the order of ``names``; missing velocities are 0.

    Raises:
        ConfigError: a joint is missing or named twice, or there are more names than values.
    """
    known, position, velocity = message.name, message.position, message.velocity
    places = {name: i for i, name in enumerate(known)}
    if len(places) != len(known) or len(position) != len(known):
        raise _joints(f"{len(known)} different names with a position each", f"{len(position)} positions")
    if missing := [name for name in names if name not in places]:
        raise _joints(f"a joint {missing[0]}", f"only {', '.join(known) or 'none'}")
    order = [places[name] for name in names]
    if len(velocity) != len(known):
        return tuple([position[i] for i in order]), (0.0,) * len(order)
    return tuple([position[i] for i in order]), tuple([velocity[i] for i in order])


def joints_by_name(message: Any, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As ``joint_values``, as arrays."""
    position, velocity = joint_values(message, names)
    return np.array(position), np.array(velocity)


def joint_state(
    stamp_ns: int, names: Sequence[str], position: Sequence[float], velocity: Sequence[float] = (), frame_id: str = ""
) -> Any:
    """Positions (rad or m) and velocities (rad/s, m/s), each (J,) → sensor_msgs/JointState."""
    return JointState(
        header=header(stamp_ns, frame_id),
        name=list(names),
        position=[float(value) for value in position],
        velocity=[float(value) for value in velocity],
    )


def pose_to_arrays(message: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """geometry_msgs/Pose or PoseStamped → position (3,) in m, unit quaternion (4,) xyzw."""
    pose = message.pose if hasattr(message, "pose") else message
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), _unit(np.array([q.x, q.y, q.z, q.w]))


def arrays_to_pose(stamp_ns: int, frame_id: str, position: NDArray[np.float64], quaternion: NDArray[np.float64]) -> Any:
    """Position (3,) in m and quaternion (4,) xyzw → geometry_msgs/PoseStamped."""
    pose = Pose(position=Point(**_xyz(position)), orientation=_quaternion(quaternion))
    return PoseStamped(header=header(stamp_ns, frame_id), pose=pose)


def transform_to_arrays(message: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """geometry_msgs/TransformStamped → translation (3,) in m, unit quaternion (4,) xyzw."""
    t, q = message.transform.translation, message.transform.rotation
    return np.array([t.x, t.y, t.z]), _unit(np.array([q.x, q.y, q.z, q.w]))


def arrays_to_transform(
    stamp_ns: int, frame_id: str, child: str, translation: NDArray[np.float64], quaternion: NDArray[np.float64]
) -> Any:
    """T_frame_child as translation (3,) in m and quaternion (4,) xyzw → geometry_msgs/TransformStamped."""
    transform = Transform(translation=Vector3(**_xyz(translation)), rotation=_quaternion(quaternion))
    return TransformStamped(header=header(stamp_ns, frame_id), child_frame_id=child, transform=transform)


def reward_message(reward: Any, *, frame_id: str, latency_s: float, estimator: str, model_hash: str) -> Any:
    """A ``FrameReward`` → dr_interfaces/RewardStamped, with the stamp of its frame."""
    return RewardStamped(
        header=header(reward.stamp_ns, frame_id),
        value=float(reward.value),
        raw=float(reward.raw),
        stderr=float(reward.stderr),
        exploration=float(reward.exploration),
        success=float(reward.success),
        ood=float(reward.ood),
        valid=bool(reward.valid),
        latency_s=float(latency_s),
        estimator=estimator,
        model_hash=model_hash,
    )


# ---- message types ----


def begins_with_header(message_class: Any) -> bool:
    """Whether the first field is a std_msgs/Header."""
    fields = message_class.get_fields_and_field_types()
    return next(iter(fields.values()), "") == "std_msgs/Header"


def definition_of(message_class: Any, msgtype: str) -> bytes:
    """The fields of a message class and of all types it is made of, as MCAP readers take them (ros2msg)."""
    from rosidl_runtime_py.utilities import get_message

    texts: dict[str, str] = {}
    waiting = [(msgtype, message_class)]
    while waiting:
        name, current = waiting.pop(0)
        if name in texts:
            continue
        lines = []
        for field, idl in current.get_fields_and_field_types().items():
            base, suffix = _field_type(idl)
            lines.append(f"{base}{suffix} {field}")
            if "/" in base:
                full = base.replace("/", "/msg/", 1)
                waiting.append((full, get_message(full)))
        texts[name] = "\n".join(lines) + "\n"
    parts = [f"{SEPARATOR}\nMSG: {_short(name)}\n{text}" for name, text in texts.items()]
    return "".join(parts).split("\n", 2)[2].encode()


def _field_type(idl: str) -> tuple[str, str]:
    """The type of a field as .msg files write it: its base and its array suffix."""
    if match := SEQUENCE.match(idl):
        return _field_type(match[1])[0], f"[<={match[2]}]" if match[2] else "[]"
    if match := ARRAY.match(idl):
        return _field_type(match[1])[0], f"[{match[2]}]"
    if match := re.match(r"w?string<(\d+)>$", idl):
        return f"string<={match[1]}", ""
    return IDL_TYPES.get(idl, idl), ""


def _short(name: str) -> str:
    return name.replace("/msg/", "/")


def _xyz(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip("xyz", (float(value) for value in values), strict=True))


def _quaternion(values: NDArray[np.float64]) -> Any:
    return Quaternion(**dict(zip("xyzw", (float(value) for value in _unit(np.asarray(values))), strict=True)))


def _unit(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = float(np.linalg.norm(quaternion))
    if not 0.5 < norm < 2.0:
        raise ConfigError(
            "orientation",
            expected="a unit quaternion (x, y, z, w)",
            found=str([float(value) for value in quaternion]),
            next_step="check the node that publishes it",
        )
    return quaternion / norm


def _joints(expected: str, found: str) -> ConfigError:
    return ConfigError("joint_states", expected=expected, found=found, next_step="check the joint names of the robot")
