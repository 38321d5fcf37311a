"""Episodes of one agent, or of two in turn, and a report; on the robot, or with sim:=true on the simulated arm."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, Shutdown
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

TOPICS = "camera/color/camera_info joint_states ee_pose /tf /tf_static object_pose goal_pose success action reward "
TOPICS += "gate_state desired_twist servo_node/delta_twist_cmds deadman agent/action agent_a/action agent_b/action"
SIM, MODE, MODEL, POLICY_B, TELEOP = map(LaunchConfiguration, ("sim", "mode", "model", "policy_b", "teleop"))
POLICIES, MODES = ["scripted", "disturbed", "checkpoint"], ["dry-run", "shadow", "slow", "full"]
ARM = ["'sim_panda.yaml' if '", LaunchConfiguration("sim_task"), "' == 'panda-push' else 'sim_sawyer.yaml'"]
ARM_FILE = PathJoinSubstitution([FindPackageShare("dr_core"), "config", "robots", PythonExpression(ARM)])
FIRST = PythonExpression(["'agent_a' if '", POLICY_B, "' else 'agent'"])
AGENTS = PythonExpression(["['agent_a', 'agent_b'] if '", POLICY_B, "' else ['agent']"])
SCORED, EVALUATORS = ["r'''", MODEL, "''' != ''"], ["/simulated/evaluator", "/evaluator"]
BY_HAND = PythonExpression(["'", MODE, "' == 'shadow' and '", TELEOP, "' != 'none'"])


def in_sim(text, otherwise=""):
    return PythonExpression(["r'''", text, "''' if '", SIM, f"' == 'true' else '{otherwise}'"])


ARGUMENTS = [
    DeclareLaunchArgument("out", default_value="runs/evaluation", description="of the report; beside it: OUT.episodes"),
    DeclareLaunchArgument("sim", default_value="false", choices=["true", "false"], description="use the simulated arm"),
    DeclareLaunchArgument("sim_task", default_value="panda-push", description="simulated: this, or a Meta-World task"),
    DeclareLaunchArgument("sim_width", default_value="640", description="of its pictures, pixels"),
    DeclareLaunchArgument("sim_height", default_value="480", description="of its pictures, pixels"),
    DeclareLaunchArgument("sim_camera_rate_hz", default_value="30.0", description="its pictures a second"),
    DeclareLaunchArgument("robot_file", default_value=in_sim(ARM_FILE), description="YAML file of the robot"),
    DeclareLaunchArgument("rig_file", default_value="", description="calibration of the camera; empty: none"),
    DeclareLaunchArgument("mode", default_value=in_sim("full", "dry-run"), choices=MODES, description="who may drive"),
    DeclareLaunchArgument("episodes", default_value="5", description="of each agent"),
    DeclareLaunchArgument("episode_s", default_value="30.0", description="longest episode, seconds"),
    DeclareLaunchArgument("seed", default_value="0", description="of the order, the simulated scenes and the actions"),
    DeclareLaunchArgument("task", default_value="", description="for the recordings and the scale of the reward"),
    DeclareLaunchArgument("operator", default_value="", description="the person in charge, for the recordings"),
    DeclareLaunchArgument("policy", default_value="scripted", choices=POLICIES, description="the agent"),
    DeclareLaunchArgument("checkpoint", default_value="", description="directory of the agent, policy checkpoint"),
    DeclareLaunchArgument("policy_b", default_value="", choices=["", *POLICIES], description="a second agent, or none"),
    DeclareLaunchArgument("checkpoint_b", default_value="", description="directory of the second agent"),
    DeclareLaunchArgument("model", default_value="", description="directory of a reward model; empty: no reward"),
    DeclareLaunchArgument("crop", default_value="", description="reward: none, center or x,y,w,h; empty: as trained"),
    DeclareLaunchArgument("teleop", default_value="none", choices=["none", "keyboard", "joy"], description="of shadow"),
    DeclareLaunchArgument("terminal", default_value="", description="opens a terminal for the keyboard, as 'xterm -e'"),
]


def value(name, kind=str):
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def node(kind, *parameters, name=None, condition="True", enclave=None, **options):
    options |= {"package": "dr_nodes", "executable": kind, "name": name or kind, "output": "screen"}
    options |= {"arguments": ["--ros-args", "--enclave", enclave or f"/{kind}"]}  # of config/security/policy.xml
    return Node(parameters=[*parameters], condition=IfCondition(PythonExpression(condition)), **options)


def agent(name, end, *parameters, **options):
    acting = {"policy": value(f"policy{end}"), "checkpoint": value(f"checkpoint{end}")}
    own = [(topic, [name, "/", topic]) for topic in ("action", "desired_twist", "desired_gripper")]
    return node("agent", acting, *parameters, name=name, enclave=["/evaluated/", name], remappings=own, **options)


def generate_launch_description():
    robot, seed, task = {"robot_file": value("robot_file")}, {"seed": value("seed", int)}, {"task": value("task")}
    watch = {"rig_file": value("rig_file"), "stop_limit": ParameterValue(in_sim("0", "5"), value_type=int)}
    folder = ParameterValue([LaunchConfiguration("out"), ".episodes"], value_type=str)
    plan = seed | task | {"agents": AGENTS, "episodes": value("episodes", int), "episode_s": value("episode_s", float)}
    plan |= {name: value(name) for name in ("out", "mode", "operator")} | {"needs_reward": PythonExpression(SCORED)}
    asked = {"reset_service": in_sim("sim_robot/reset"), "success_topic": in_sim("success")}  # else of a person
    plan |= {name: ParameterValue(text, value_type=str) for name, text in asked.items()} | {"reset_gate": SIM}
    simulated = {"task": value("sim_task"), "camera_rate_hz": value("sim_camera_rate_hz", float)}
    simulated |= {"width": value("sim_width", int), "height": value("sim_height", int)}
    nodes = [
        node("sim_robot", robot, seed, simulated, condition=["'", SIM, "' == 'true'"]),
        node("arm_bridge", robot, {"use_deadman": BY_HAND}, condition=["'", MODE, "' != 'dry-run'"]),
        agent(FIRST, "", robot, watch, seed),
        agent("agent_b", "_b", robot, watch, seed, condition=["'", POLICY_B, "' != ''"]),
        node("teleop", robot, {"source": TELEOP}, condition=BY_HAND, prefix=LaunchConfiguration("terminal")),
        node("recorder", {"rig_file": value("rig_file"), "directory": folder, "optional_topics": TOPICS.split()}),
        node("reward", task, watch, {"model": value("model"), "crop": value("crop")}, condition=SCORED),
        node("evaluator", robot, plan, enclave=in_sim(*EVALUATORS), emulate_tty=True, on_exit=Shutdown()),
    ]
    return LaunchDescription([*ARGUMENTS, *nodes])
