"""The reward of a camera's pictures as they arrive, and the camera unless another driver publishes them."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SOURCES, YES_NO, PRECISIONS = ["video", "v4l2", "realsense"], ["true", "false"], ["float32", "bfloat16"]
IMAGES = "camera/color/image_raw"
ARGUMENTS = [
    DeclareLaunchArgument("model", description="directory of the reward model (RUN/model)"),
    DeclareLaunchArgument("task", default_value="", description="standardises the reward; empty: all tasks pooled"),
    DeclareLaunchArgument("camera", default_value="true", choices=YES_NO, description="start a camera node"),
    DeclareLaunchArgument("source", default_value="video", choices=SOURCES, description="of the camera node"),
    DeclareLaunchArgument("path", default_value="", description="video: the file"),
    DeclareLaunchArgument("device", default_value="/dev/video0", description="v4l2: the device, or its number"),
    DeclareLaunchArgument("serial", default_value="", description="realsense: serial number; empty: the only one"),
    DeclareLaunchArgument("rig_file", default_value="", description="the camera's calibration, rig_NAME.yaml"),
    DeclareLaunchArgument("image_topic", default_value=IMAGES, description="pictures, of whichever driver"),
    DeclareLaunchArgument("compressed", default_value="false", choices=YES_NO, description="use its /compressed"),
    DeclareLaunchArgument("frame_rate_hz", default_value="-1", description="training's; 0 every frame, -1 the model's"),
    DeclareLaunchArgument("crop", default_value="", description="none, center or x,y,width,height; empty: as trained"),
    DeclareLaunchArgument("compute", default_value="cpu", description="where the model runs, cpu or cuda:N"),
    DeclareLaunchArgument("precision", default_value="float32", choices=PRECISIONS, description="of the video model"),
]


def value(name, kind=str):
    """An argument as a parameter of this type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def node(name, parameters, **options):
    topic = LaunchConfiguration("image_topic")
    renamed = [(IMAGES, topic), (f"{IMAGES}/compressed", [topic, "/compressed"])]
    common = {"package": "dr_nodes", "executable": name, "name": name, "remappings": renamed, "output": "screen"}
    secured = ["--ros-args", "--enclave", f"/{name}"]  # of config/security/policy.xml
    return Node(parameters=[parameters], arguments=secured, **common, **options)


def generate_launch_description():
    camera = {name: value(name) for name in ("source", "path", "device", "serial")}
    reward = {name: value(name) for name in ("model", "task", "crop", "precision", "rig_file")}
    reward["camera_serial"] = value("serial")
    reward["device"] = value("compute")
    reward["compressed"] = value("compressed", bool)
    reward["frame_rate_hz"] = value("frame_rate_hz", float)
    return LaunchDescription(
        [
            *ARGUMENTS,
            node("camera", camera, condition=IfCondition(LaunchConfiguration("camera"))),
            node("reward", reward),
        ]
    )
