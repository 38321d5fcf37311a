"""Message classes: defaults, checks, equality, representation, bytes."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseWithCovariance, Quaternion, TransformStamped, TwistStamped
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState, Joy
from std_msgs.msg import Bool, Byte, ColorRGBA, Float64, Header, Int8, String, UInt8
from std_srvs.srv import SetBool
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

FILLED: list[Any] = [
    String(data="çrème"),
    Image(height=1, width=2, encoding="rgb8", step=6, data=[1, 2, 3, 4, 5, 6]),
    CompressedImage(format="jpeg", data=array.array("B", b"\xff\xd8")),
    CameraInfo(width=3, k=[float(i) for i in range(9)], d=[0.1, 0.2]),
    JointState(name=["a", "bc"], position=[1.0, -2.0]),
    Joy(axes=[0.5, -0.5], buttons=[1, 0, 1]),
    TFMessage(transforms=[TransformStamped(child_frame_id="tool"), TransformStamped()]),
    DiagnosticArray(
        status=[DiagnosticStatus(level=DiagnosticStatus.WARN, name="x", values=[KeyValue(key="k", value="v")])]
    ),
    JointTrajectory(joint_names=["j"], points=[JointTrajectoryPoint(positions=[0.1, 0.2])]),
    PoseWithCovariance(covariance=[float(i) for i in range(36)]),
    SetBool.Request(data=True),
]


@pytest.mark.parametrize("message", FILLED, ids=lambda message: type(message).__name__)
def test_bytes_and_back(message: Any) -> None:
    data = serialize_message(message)
    assert isinstance(data, bytes) and data[:4] == b"\x00\x01\x00\x00"
    again = deserialize_message(data, type(message))
    assert again == message and repr(again) == repr(message)


def test_defaults() -> None:
    assert (Quaternion().x, Quaternion().w) == (0.0, 1.0)
    assert TransformStamped().transform.rotation.w == 1.0
    image = Image()
    assert (image.height, image.encoding, image.header.frame_id) == (0, "", "")
    assert isinstance(image.data, array.array) and image.data.typecode == "B"
    assert isinstance(CameraInfo().k, np.ndarray) and CameraInfo().k.shape == (9,)
    assert JointState().name == [] and Bool().data is False and Byte().data == b"\x00"


def test_instances_share_nothing() -> None:
    first, second = JointState(), JointState()
    first.name.append("a")
    first.header.stamp.sec = 1
    assert second.name == [] and second.header.stamp.sec == 0


@pytest.mark.parametrize(
    ("kind", "field", "wrong"),
    [
        (String, "data", 1),
        (String, "data", b"bytes"),
        (Float64, "data", 1),
        (Bool, "data", 1),
        (UInt8, "data", -1),
        (UInt8, "data", 256),
        (Int8, "data", 1.0),
        (Byte, "data", 1),
        (Header, "stamp", 1.0),
        (Image, "data", "text"),
        (Image, "data", np.zeros(3, np.uint8)),
        (JointState, "position", array.array("f", [1.0])),
        (JointState, "position", 1.0),
        (JointState, "name", [1]),
        (CameraInfo, "k", [1.0, 2.0]),
        (CameraInfo, "k", np.zeros(9, np.float32)),
        (TFMessage, "transforms", [Header()]),
    ],
)
def test_wrong_values_are_refused(kind: Any, field: str, wrong: Any) -> None:
    with pytest.raises(AssertionError):
        setattr(kind(), field, wrong)
    with pytest.raises(AssertionError):
        kind(**{field: wrong})


def test_unknown_field_is_refused() -> None:
    with pytest.raises(AssertionError):
        String(text="x")
    with pytest.raises(AttributeError):
        String().text = "x"


def test_accepted_forms() -> None:
    assert JointState(position=(1.0, 2.0)).position == array.array("d", [1.0, 2.0])
    assert Image(data=b"\x01\x02").data == array.array("B", [1, 2])
    assert np.array_equal(CameraInfo(k=np.arange(9.0)).k, np.arange(9.0))
    assert Float64(data=np.float64(0.5)).data == 0.5


def test_equality() -> None:
    assert TwistStamped() == TwistStamped() and TwistStamped() != Header()
    assert CameraInfo(k=np.arange(9.0)) != CameraInfo()
    assert Image(data=[1]) != Image(data=[2])


def test_introspection() -> None:
    assert Header.get_fields_and_field_types() == {"stamp": "builtin_interfaces/Time", "frame_id": "string"}
    fields = CameraInfo.get_fields_and_field_types()
    assert (fields["k"], fields["d"], fields["roi"]) == (
        "double[9]",
        "sequence<double>",
        "sensor_msgs/RegionOfInterest",
    )
    assert ColorRGBA.get_fields_and_field_types()["r"] == "float"
    assert repr(Header(frame_id="a")) == (
        "std_msgs.msg.Header(stamp=builtin_interfaces.msg.Time(sec=0, nanosec=0), frame_id='a')"
    )
    assert DiagnosticStatus.ERROR == b"\x02"
    assert SetBool.Request is not SetBool.Response


def test_bytes_of_something_else() -> None:
    with pytest.raises(Exception):  # noqa: B017  # the class differs between stacks
        deserialize_message(b"\x00\x01\x00\x00\xff\xff\xff\xff", String)
