"""Episodes of a robot that a person drives: camera, teleoperation behind the safety gate, recorder.

Motion needs robot_file, and a dead-man switch that is held. Without robot_file only the camera is recorded.
"""

from typing import List  # noqa: UP035  ROS 2 Humble knows only this one as a type of parameters

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SOURCES, YES_NO, HANDS = ["video", "v4l2", "realsense"], ["true", "false"], ["none", "keyboard", "joy"]
IMAGES, INFO = "camera/color/image_raw", "camera/color/camera_info"
OPTIONAL = (
    "[joint_states, ee_pose, /tf, /tf_static, action, desired_twist, desired_gripper, deadman, gate_state, estop, "
    "servo_node/delta_twist_cmds, camera/aligned_depth_to_color/image_raw, reward]"
)
JOY = "drives the arm; joy needs a driver of the gamepad (ros2 run joy joy_node)"
XTERM = "keyboard under ros2 launch, which gives nodes no terminal: what opens one, such as 'xterm -e'"
ARGUMENTS = [
    DeclareLaunchArgument("directory", description="folder of the episodes, made if it is not there"),
    DeclareLaunchArgument("robot_file", default_value="", description="YAML file of the robot; empty: no arm"),
    DeclareLaunchArgument("teleop", default_value="none", choices=HANDS, description=JOY),
    DeclareLaunchArgument("terminal", default_value="", description=XTERM),
    DeclareLaunchArgument("camera", default_value="true", choices=YES_NO, description="start a camera node"),
    DeclareLaunchArgument("source", default_value="video", choices=SOURCES, description="of the camera node"),
    DeclareLaunchArgument("path", default_value="", description="video: the file"),
    DeclareLaunchArgument("device", default_value="/dev/video0", description="v4l2: the device, or its number"),
    DeclareLaunchArgument("serial", default_value="", description="realsense: serial number; empty: the only one"),
    DeclareLaunchArgument("camera_info", default_value="", description="camera_info file, published with the pictures"),
    DeclareLaunchArgument("rig_file", default_value="", description="the camera's calibration, rig_NAME.yaml"),
    DeclareLaunchArgument("image_topic", default_value=IMAGES, description="pictures, of whichever driver"),
    DeclareLaunchArgument("info_topic", default_value=INFO, description="camera_info, of whichever driver"),
    DeclareLaunchArgument("optional_topics", default_value=OPTIONAL, description="recorded when they are published"),
]


def value(name, kind=str):
    """An argument as a parameter of this type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def when(*expression):
    return IfCondition(PythonExpression(expression))


def node(name, parameters, **options):
    renamed = [(IMAGES, LaunchConfiguration("image_topic")), (INFO, LaunchConfiguration("info_topic"))]
    common = {"package": "dr_nodes", "executable": name, "name": name, "remappings": renamed, "output": "screen"}
    secured = ["--ros-args", "--enclave", f"/{name}"]  # of config/security/policy.xml
    return Node(parameters=[parameters], arguments=secured, **common, **options)


def generate_launch_description():
    arm, teleop = {"robot_file": value("robot_file")}, LaunchConfiguration("teleop")
    camera = {name: value(name) for name in ("source", "path", "device", "serial", "camera_info")}
    recording = {"directory": value("directory"), "topics": [IMAGES], "camera_serial": value("serial")}
    recording["rig_file"] = value("rig_file")
    recording["optional_topics"] = value("optional_topics", List[str])  # noqa: UP006
    by_hand = {"condition": when("'", teleop, "' != 'none'"), "emulate_tty": True}
    return LaunchDescription(
        [
            *ARGUMENTS,
            node("camera", camera, condition=IfCondition(LaunchConfiguration("camera"))),
            node("teleop", {**arm, "source": teleop}, prefix=LaunchConfiguration("terminal"), **by_hand),
            node("arm_bridge", {**arm, "use_deadman": True},
                 condition=when("r'''", LaunchConfiguration("robot_file"), "''' != ''")),
            node("recorder", recording),
        ]
    )  # fmt: skip
