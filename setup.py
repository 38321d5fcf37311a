"""Package metadata: this directory is both a pip package and an ament_python package named dr_core.

The metadata is here, not in pyproject.toml, because the setuptools of Ubuntu 22.04 (59) has to read it.
"""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = "dr_core"
PACKAGE_ROOTS = {"dr_core": ".", "dr_sim": "sim", "dr_calibration": "calibration"}


def packages_below(name, root):
    return find_packages(root, include=[name, f"{name}.*"])


def data_files():
    """What ROS 2 looks for below share/: the package marker, the manifest, launch files and configuration."""
    files = [
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
    ]
    for folder in sorted({path.parent for path in Path("config").glob("**/*.yaml")}):
        files.append((f"share/{NAME}/{folder.as_posix()}", sorted(glob(f"{folder.as_posix()}/*.yaml"))))
    return [(target, sources) for target, sources in files if sources]


packages = {name: packages_below(name, root) for name, root in PACKAGE_ROOTS.items()}

setup(
    name=NAME,
    version="0.1.0",
    description="Rewards from expert videos through discrete diffusion, for simulators and ROS 2 robots",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    maintainer="dr_core maintainers",
    maintainer_email="maintainers@dr-core.example",
    python_requires=">=3.10",
    # dr_core is where setuptools looks anyway; colcon --symlink-install refuses a mapping onto itself.
    package_dir={name: f"{PACKAGE_ROOTS[name]}/{name}" for name in packages if name != NAME and packages[name]},
    packages=[package for found in packages.values() for package in found],
    package_data={"dr_core": ["py.typed"]},
    data_files=data_files(),
    zip_safe=False,
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "pyyaml>=6.0",
        "opencv-python>=4.8",
        "rosbags>=0.10",
        "mcap>=1.2",
        "tyro>=0.9",
        "rich>=13",
        "tensorboard>=2.14",
        "safetensors>=0.4",
        "av>=12",
        "scipy>=1.11",
        "matplotlib>=3.8",
        "pandas>=2.1",
        "pyarrow>=15",
    ],
    extras_require={
        "sim": [
            "metaworld==3.1.1",
            "mujoco==3.3.0",
            "gymnasium>=1.1",
            "gymnasium-robotics>=1.4",
        ],
        # The stand-in for rclpy, for tests and demos on machines without ROS 2.
        "embedded": ["cyclonedds>=11.0.1,<12"],
        # `dr sweep --ray`: the same version on all nodes of the cluster.
        "ray": ["ray>=2.40"],
        "realsense": ["pyrealsense2>=2.55"],
        "test": ["pytest>=8", "hypothesis>=6.100", "setuptools>=70.1", "mcap-ros2-support>=0.5"],
        "dev": ["ruff>=0.6", "mypy>=1.11", "types-PyYAML"],
    },
    entry_points={
        "console_scripts": ["dr = dr_core.cli:main"],
        "dr_core.commands": [
            "record-expert = dr_sim.commands:RecordExpert",
            "train-agent = dr_sim.agent_commands:TrainAgent",
            "eval-agent = dr_sim.agent_commands:EvalAgent",
            "sweep = dr_sim.sweep:Sweep",
            "import-adroit-policy = dr_sim.adroit_import:ImportAdroitPolicy",
            "calibrate board = dr_calibration.commands:CalibrateBoard",
            "calibrate intrinsics = dr_calibration.commands:CalibrateIntrinsics",
            "calibrate hand-eye = dr_calibration.commands:CalibrateHandEye",
            "calibrate time-offset = dr_calibration.commands:CalibrateTimeOffset",
            "calibrate reference = dr_calibration.commands:CalibrateReference",
            "calibrate check = dr_calibration.commands:CalibrateCheck",
            "calibrate demo = dr_sim.calibrate_demo:CalibrateDemo",
            "calibrate report = dr_calibration.commands:CalibrateReport",
        ],
    },
)
