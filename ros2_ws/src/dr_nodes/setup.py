"""An ament_python package: `ros2 run dr_nodes camera`."""

from setuptools import find_packages, setup

NAME = "dr_nodes"
NODES = (
    "agent", "arm_bridge", "calibrate", "camera", "evaluator", "recorder", "reward", "rig",
    "sim_robot", "teleop",
)  # fmt: skip

setup(
    name=NAME,
    version="0.1.0",
    description="Thin ROS 2 nodes over dr_core",
    license="Apache-2.0",
    maintainer="dr_core maintainers",
    maintainer_email="maintainers@dr-core.example",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ],
    zip_safe=False,
    # dr_core, rclpy and the message packages come from the ROS 2 workspace, not from a registry.
    install_requires=["setuptools"],
    extras_require={"realsense": ["pyrealsense2>=2.55"], "test": ["pytest"]},
    entry_points={"console_scripts": [f"{name} = dr_nodes.{name}:main" for name in NODES]},
)
