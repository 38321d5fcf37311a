"""One step of a camera's calibration, live; and a recorder, so that it can be computed from bags again.

A person moves the board, or the arm with teleop and robot_file. `ros2 service call /calibrate/solve
std_srvs/srv/Trigger` computes the step from what was collected.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SOURCES, YES_NO, HANDS = ["video", "v4l2", "realsense"], ["true", "false"], ["none", "keyboard", "joy"]
STEPS, MODES = ["none", "intrinsics", "hand-eye", "time-offset", "reference"], ["eye_in_hand", "eye_to_hand"]
IMAGES, INFO = "camera/color/image_raw", "camera/color/camera_info"
ROBOT_FILE, TELEOP, STEP = map(LaunchConfiguration, ("robot_file", "teleop", "step"))
DIRECTORY = LaunchConfiguration("directory")
ARGUMENTS = [
    DeclareLaunchArgument("step", default_value="none", choices=STEPS, description="computed live; none: only record"),
    DeclareLaunchArgument("board", default_value="", description="as charuco:7x5:30mm:22mm:4X4_50"),
    DeclareLaunchArgument("out", default_value="", description="directory of the calibration, the same for all steps"),
    DeclareLaunchArgument("camera_name", default_value="camera", description="the file is rig_NAME.yaml"),
    DeclareLaunchArgument("mode", default_value="eye_in_hand", choices=MODES, description="hand-eye: where it is"),
    DeclareLaunchArgument("replace", default_value="false", choices=YES_NO, description="do a step again"),
    DeclareLaunchArgument("directory", default_value="", description="folder of recordings; empty: no recorder"),
    DeclareLaunchArgument("camera", default_value="true", choices=YES_NO, description="start a camera node"),
    DeclareLaunchArgument("source", default_value="video", choices=SOURCES, description="of the camera node"),
    DeclareLaunchArgument("path", default_value="", description="video: the file"),
    DeclareLaunchArgument("device", default_value="/dev/video0", description="v4l2: the device, or its number"),
    DeclareLaunchArgument("serial", default_value="", description="realsense: serial number; empty: the only one"),
    DeclareLaunchArgument("image_topic", default_value=IMAGES, description="pictures, of whichever driver"),
    DeclareLaunchArgument("info_topic", default_value=INFO, description="camera_info, of whichever driver"),
    DeclareLaunchArgument("joint_topic", default_value="joint_states", description="joints of the arm"),
    DeclareLaunchArgument("tool_topic", default_value="ee_pose", description="pose of the tool in the arm's base"),
    DeclareLaunchArgument("robot_file", default_value="", description="YAML file of the robot, to move it by teleop"),
    DeclareLaunchArgument("teleop", default_value="none", choices=HANDS, description="moves the arm, with dead-man"),
    DeclareLaunchArgument("terminal", default_value="", description="for the keyboard under ros2 launch: 'xterm -e'"),
]


def value(name, kind=str):
    """An argument as a parameter of this type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def when(*expression):
    return IfCondition(PythonExpression(expression))


def given(argument):
    return when("r'''", argument, "''' != ''")


def node(name, parameters, **options):
    topics = ((IMAGES, "image"), (INFO, "info"), ("joint_states", "joint"), ("ee_pose", "tool"))
    renamed = [(topic, LaunchConfiguration(f"{kind}_topic")) for topic, kind in topics]
    common = {"package": "dr_nodes", "executable": name, "name": name, "remappings": renamed, "output": "screen"}
    secured = ["--ros-args", "--enclave", f"/{name}"]  # of config/security/policy.xml
    return Node(parameters=[parameters], arguments=secured, **common, **options)


def generate_launch_description():
    arm = {"robot_file": value("robot_file")}
    camera = {name: value(name) for name in ("source", "path", "device", "serial")}
    step = {name: value(name) for name in ("step", "board", "out", "camera_name", "mode", "serial")}
    step["replace"] = value("replace", bool)
    recording = {"directory": value("directory"), "camera_serial": value("serial"), "topics": [IMAGES]}
    recording["optional_topics"] = [INFO, "joint_states", "ee_pose", "/tf", "/tf_static", "gate_state"]
    by_hand = {"condition": when("'", TELEOP, "' != 'none'"), "emulate_tty": True}
    return LaunchDescription(
        [
            *ARGUMENTS,
            node("camera", camera, condition=IfCondition(LaunchConfiguration("camera"))),
            node("teleop", {**arm, "source": TELEOP}, prefix=LaunchConfiguration("terminal"), **by_hand),
            node("arm_bridge", {**arm, "use_deadman": True}, condition=given(ROBOT_FILE)),
            node("calibrate", {**arm, **step}, condition=when("'", STEP, "' != 'none'")),
            node("recorder", recording, condition=given(DIRECTORY)),
        ]
    )
