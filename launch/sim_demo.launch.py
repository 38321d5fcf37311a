"""The simulated arm and an agent that drives it through the safety gate; if asked, the live reward and a recorder."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

SIM_PANDA = PathJoinSubstitution([FindPackageShare("dr_core"), "config", "robots", "sim_panda.yaml"])
OPTIONAL = [
    *("camera/color/camera_info", "joint_states", "ee_pose", "object_pose", "goal_pose", "success", "/tf"),
    *("/tf_static", "action", "desired_twist", "servo_node/delta_twist_cmds", "gate_state", "reward"),
]  # fmt: skip
POLICIES = ["scripted", "disturbed"]
ARGUMENTS = [
    DeclareLaunchArgument("robot_file", default_value=SIM_PANDA, description="YAML file of the simulated arm"),
    DeclareLaunchArgument("policy", default_value="scripted", choices=POLICIES, description="who drives the arm"),
    DeclareLaunchArgument("disturbance", default_value="0.5", description="disturbed: share of random actions, 0 to 1"),
    DeclareLaunchArgument("seed", default_value="0", description="of the places of block and goal, and of the actions"),
    DeclareLaunchArgument("width", default_value="640", description="of the camera's pictures, pixels"),
    DeclareLaunchArgument("height", default_value="480", description="of the camera's pictures, pixels"),
    DeclareLaunchArgument("model", default_value="", description="directory of a reward model; empty: no live reward"),
    DeclareLaunchArgument("task", default_value="", description="standardises the reward; empty: all tasks pooled"),
    DeclareLaunchArgument("crop", default_value="", description="none, center or x,y,width,height; empty: as trained"),
    DeclareLaunchArgument("rig_file", default_value="", description="the camera's calibration; empty: none"),
    DeclareLaunchArgument("directory", default_value="", description="folder for episodes; empty: no recorder"),
]


def value(name, kind=str):
    """An argument as a parameter of this type."""
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def given(name):
    """Whether an argument is not empty."""
    return IfCondition(PythonExpression(["r'''", LaunchConfiguration(name), "''' != ''"]))


def node(name, *parameters, **options):
    common = {"package": "dr_nodes", "executable": name, "name": name, "output": "screen"}
    secured = ["--ros-args", "--enclave", f"/{name}"]  # of config/security/policy.xml
    return Node(parameters=[*parameters], arguments=secured, **common, **options)


def generate_launch_description():
    robot, seed = {"robot_file": value("robot_file")}, {"seed": value("seed", int)}
    still = {"stop_limit": 0}  # pictures of an arm at rest are all the same here
    size = {"width": value("width", int), "height": value("height", int)}
    rig = {"rig_file": value("rig_file")}
    acting = {"policy": value("policy"), "disturbance": value("disturbance", float)}
    reward = {name: value(name) for name in ("model", "task", "crop")}
    recording = {"directory": value("directory"), "topics": ["camera/color/image_raw"], "optional_topics": OPTIONAL}
    return LaunchDescription(
        [
            *ARGUMENTS,
            node("sim_robot", robot, seed, size),
            node("arm_bridge", robot),
            node("agent", robot, seed, acting, rig, still),
            node("reward", reward, rig, still, condition=given("model")),
            node("recorder", recording, rig, condition=given("directory")),
        ]
    )
