"""The ROS 2 message types of an episode, and how their bytes become values."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from dr_core.data.images import DamagedImage, decode_compressed, decode_raw
from dr_core.data.raw import Channel, RawMessage, repair_hint
from dr_core.errors import BagError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
JOINT_STATE = "sensor_msgs/msg/JointState"
FLOAT_ARRAY = "std_msgs/msg/Float64MultiArray"
STRING = "std_msgs/msg/String"


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Message types of ROS 2 Humble: the oldest supported release; Jazzy has the same types and hashes."""
    return get_typestore(Stores.ROS2_HUMBLE)


def definition_of(msgtype: str) -> bytes:
    """Text of a message type (ros2msg) with all the types it is made of, as MCAP tools read it."""
    return typestore().generate_msgdef(msgtype, ros_version=2)[0].encode()


def choose_image_channel(path: Path, counts: dict[Channel, int], image_topic: str | None) -> Channel:
    """The channel with the images to read: the named one, or the only one.

    Raises:
        BagError: none or several fit; the message names them.
    """
    candidates = [
        channel
        for channel, count in counts.items()
        if count and channel.msgtype in (IMAGE, COMPRESSED_IMAGE) and channel.encoding == "cdr"
    ]
    chosen = [channel for channel in candidates if image_topic in (None, channel.topic)]
    if len(chosen) == 1:
        return chosen[0]
    topics = ", ".join(sorted(channel.topic for channel in candidates)) or "none"
    expected = "exactly one topic with images" if image_topic is None else f"images on {image_topic}"
    raise BagError(str(path), expected=expected, found=f"image topics: {topics}", next_step="name one as image topic")


def deserialize(message: RawMessage, path: Path) -> Any:
    """The message as an object of the typestore.

    Raises:
        BagError: its bytes do not fit its type.
    """
    try:
        return typestore().deserialize_cdr(message.data, message.channel.msgtype)
    except Exception as error:  # generated code, which fails in any way on damaged bytes
        raise BagError(
            str(path),
            expected=f"a {message.channel.msgtype} on {message.channel.topic}",
            found="damaged bytes",
            next_step=repair_hint(path),
        ) from error


def decode_image(message: RawMessage) -> tuple[int, NDArray[np.uint8]]:
    """Header stamp in ns and RGB (H, W, 3) of an Image or a CompressedImage.

    Raises:
        BagError: an encoding that is not supported, or no stamp.
        DamagedImage: this image cannot be decoded.
    """
    try:
        content: Any = typestore().deserialize_cdr(message.data, message.channel.msgtype)
    except Exception as error:  # generated code, which fails in any way on damaged bytes
        raise DamagedImage(f"a {message.channel.msgtype}", "damaged bytes") from error
    stamp_ns = content.header.stamp.sec * 10**9 + content.header.stamp.nanosec
    if stamp_ns == 0 and message.log_time_ns != 0:
        raise BagError(
            message.channel.topic,
            expected="images stamped by the camera driver",
            found="stamp zero",
            next_step="set header.stamp in the driver and record again",
        )
    if message.channel.msgtype == COMPRESSED_IMAGE:
        return stamp_ns, decode_compressed(content.data, content.format)
    return stamp_ns, decode_raw(
        content.data,
        encoding=content.encoding,
        height=content.height,
        width=content.width,
        step=content.step,
    )
