"""Facts of the ROS 2 wire (Jazzy, Cyclone DDS) that the embedded stand-in has to reproduce byte by byte."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

dr_embedded = pytest.importorskip("dr_embedded", reason="the installed ROS 2 has its own wire")
if dr_embedded.activate() != "embedded":
    pytest.skip("the installed ROS 2 has its own wire", allow_module_level=True)

from dr_embedded import names  # noqa: E402
from dr_embedded.descriptor import program  # noqa: E402
from dr_embedded.interfaces import dds_type_name, interfaces, ros_type_name  # noqa: E402
from dr_embedded.service_wire import pack, unpack  # noqa: E402
from geometry_msgs.msg import Quaternion  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from sensor_msgs.msg import JointState  # noqa: E402
from std_msgs.msg import Empty, Header, String  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402


def test_hash_of_a_message() -> None:
    known = "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    assert interfaces().type_hash("std_msgs/msg/String") == known


def test_hash_of_a_service() -> None:
    """It covers ServiceEventInfo, whose char[16] counts as uint8[16]."""
    interfaces().add_service("example_interfaces/srv/AddTwoInts", "int64 a\nint64 b\n---\nint64 sum")
    known = "RIHS01_e118de6bf5eeb66a2491b5bda11202e7b68f198d6f67922cf30364858239c81a"
    assert interfaces().type_hash("example_interfaces/srv/AddTwoInts") == known


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (String(data="hi"), "00010000 03000000 686900"),
        (Empty(), "00010000 00"),
        (Quaternion(), "00010000 0000000000000000 0000000000000000 0000000000000000 000000000000f03f"),
        (Header(frame_id="cam"), "00010000 00000000 00000000 04000000 63616d00"),
        (
            JointState(name=["a"], position=[1.0]),
            "00010000 00000000 00000000 01000000 00 000000 01000000 02000000 6100 0000 01000000 000000000000f03f"
            "00000000 00000000",
        ),
    ],
)
def test_bytes(message: Any, expected: str) -> None:
    assert serialize_message(message).hex() == expected.replace(" ", "")


def test_names_in_dds() -> None:
    assert dds_type_name("std_msgs/msg/String") == "std_msgs::msg::dds_::String_"
    assert dds_type_name("std_srvs/srv/SetBool_Request") == "std_srvs::srv::dds_::SetBool_Request_"
    assert ros_type_name("std_msgs::msg::dds_::String_") == "std_msgs/msg/String"
    assert ros_type_name("something::Else") is None
    assert names.topic_in_dds("/a/b") == "rt/a/b"
    assert (names.request_in_dds("/n/s"), names.reply_in_dds("/n/s")) == ("rq/n/sRequest", "rr/n/sReply")


def test_request_starts_with_the_identity_of_the_caller() -> None:
    data = pack(0x0102030405060708, 9, SetBool.Request(data=True))
    assert data.hex() == "00010000" + "0807060504030201" + "0900000000000000" + "01"
    assert unpack(data, SetBool.Request) == (0x0102030405060708, 9, SetBool.Request(data=True))


def test_description_of_a_type_for_the_c_library() -> None:
    """As Cyclone DDS 11.0.1 derives it itself."""
    expected = (
        "10d0000 0 30010 1030000 10 1030000 14 1050000 18 1010000 20 1030000 24 1070100 28 0 "
        "10d0000 0 30006 1050000 8 0 1030004 0 1030000 4 0"
    )
    assert " ".join(f"{word:x}" for word in program("sensor_msgs/msg/Image")) == expected


def test_endpoints_carry_hash_and_identity(node: Any, spin_until: Any) -> None:
    node.create_publisher(String, "marked", 1)
    node.create_service(SetBool, "served", lambda request, response: response)
    graph = node.context._open_session().graph
    (marked,) = [one for one in graph.endpoints(writers=True) if one.topic == "rt/marked"]
    assert marked.type_name == "std_msgs::msg::dds_::String_"
    assert marked.user_data == {"typehash": interfaces().type_hash("std_msgs/msg/String")}
    (served,) = [one for one in graph.endpoints(writers=False) if one.topic == "rq/servedRequest"]
    assert served.type_name == "std_srvs::srv::dds_::SetBool_Request_"
    assert len(served.user_data["serviceid"].split(".")) == 16
    (info,) = {one.type_name for one in graph.endpoints(writers=True) if one.topic == "ros_discovery_info"}
    assert info == "rmw_dds_common::msg::dds_::ParticipantEntitiesInfo_"


def test_project_interfaces_come_from_their_files() -> None:
    from dr_interfaces.msg import EpisodeInfo, GateState, RewardStamped
    from dr_interfaces.srv import LabelEpisode, ResetGate, StartEpisode, StopEpisode

    assert (GateState.IDLE, GateState.ACTIVE, GateState.HOLD, GateState.STOPPED) == (0, 1, 2, 3)
    assert RewardStamped.get_fields_and_field_types()["value"] == "float"
    assert EpisodeInfo(drop_topics=["/camera"], drop_counts=[2]).drop_counts[0] == 2
    assert {kind.Response().success for kind in (LabelEpisode, ResetGate, StartEpisode, StopEpisode)} == {False}


def test_what_is_missing_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"rclpy\.action"):
        __import__("rclpy.action")
    with pytest.raises(NotImplementedError, match="nav_msgs"):
        __import__("nav_msgs.action")
    with pytest.raises(ImportError):
        __import__("unheard_of_msgs.msg")


@pytest.mark.parametrize(("wish", "status"), [("auto", 0), ("embedded", 0), ("real", 1), ("none", 1)])
def test_choice_of_the_stack(wish: str, status: int, monkeypatch: Any) -> None:
    monkeypatch.setenv("DR_ROS", wish)
    run = subprocess.run([sys.executable, "-m", "dr_embedded.run", "rclpy:ok"], capture_output=True, text=True)
    assert run.returncode == status, run.stderr
    assert ("embedded stand-in" in run.stderr) == (status == 0)


def test_importing_the_package_changes_nothing() -> None:
    code = "import sys, dr_embedded; assert not {'rclpy', 'cyclonedds', 'rosbags', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
