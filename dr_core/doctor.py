"""`dr doctor`: what this machine can do, and what to install where it cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

GIB = 2**30
GL_PACKAGES = "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6)"

# Runs in a child: the back-end is chosen once per process, and a broken driver may kill the process.
_RENDER_PROGRAM = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><camera name='c' pos='0 -2 0' xyaxes='1 0 0 0 0 1'/>"
    "<geom type='sphere' size='.4' rgba='1 0 0 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data, "c")
red, green, _ = renderer.render()[32, 32]
renderer.close()
raise SystemExit(0 if red > 50 and red > 2 * green else "the rendered frame does not show the scene")
"""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: "ok"; "warn" when only some work is affected; "fail" when the package cannot do its work.
        found: what is there, with units.
        next_step: what to do about it; empty when nothing needs doing.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    next_step: str = ""


@dataclass(frozen=True)
class Doctor:
    """Check this machine: libraries, rendering, ROS 2, video, disk, speed.

    Exit status 1 if something that is needed fails; each such line says what to do.
    """

    json: bool = False
    """Print JSON for machines in place of the table."""
    directory: Path = Path(".")
    """Where recordings and runs will be written: its disk is measured (64 MiB, removed again)."""

    def run(self) -> int:
        checks = [check() for check in (check_python, check_torch, check_numpy_opencv)]
        checks += [check_rendering(), check_ros(os.environ), check_video()]
        checks += [
            check_disk_free(self.directory),
            check_disk_speed(self.directory),
            check_cpu(),
            check_memory(),
        ]
        healthy = all(check.status != "fail" for check in checks)
        if self.json:
            print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
        else:
            _print_table(checks)
        return 0 if healthy else 1


def check_python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("PyTorch", "fail", str(error), "pip install torch")
    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return Check("PyTorch", "ok", f"{found}, {device.name} with {device.total_memory / GIB:.0f} GiB")
    if _succeeds(["nvidia-smi", "-L"]):
        return Check(
            "PyTorch",
            "warn",
            f"{found}, a GPU that PyTorch does not use",
            "install a CUDA build: pytorch.org",
        )
    return Check("PyTorch", "ok", f"{found}, no GPU")


def check_numpy_opencv() -> Check:
    try:
        import cv2
        import numpy
    except ImportError as error:
        return Check(
            "NumPy + OpenCV",
            "fail",
            str(error),
            "pip install opencv-python; apt-get install libgl1 libglib2.0-0",
        )
    return judge_numpy_opencv(numpy.__version__, cv2.__version__, os.environ.get("ROS_DISTRO", ""))


def judge_numpy_opencv(numpy_version: str, opencv_version: str, ros_distro: str) -> Check:
    """Whether these versions work together, and with the compiled cv_bridge of that ROS 2 distribution."""
    name, found = "NumPy + OpenCV", f"NumPy {numpy_version}, OpenCV {opencv_version}"
    numpy_major, opencv_major = int(numpy_version.split(".")[0]), int(opencv_version.split(".")[0])
    if opencv_major >= 5 and numpy_major < 2:
        return Check(name, "fail", found, "OpenCV 5 needs NumPy 2: pip install 'opencv-python<5' or 'numpy>=2'")
    if ros_distro == "humble" and numpy_major >= 2:
        return Check(
            name,
            "warn",
            found,
            "cv_bridge of ROS 2 Humble needs NumPy 1: pip install 'numpy<2' 'opencv-python<5'",
        )
    return Check(name, "ok", found)


def check_rendering(backends: Sequence[str] | None = None) -> Check:
    """Render one frame off-screen with MuJoCo, each back-end in a process of its own.

    Args:
        backends: values of MUJOCO_GL to try in order; by default the one that is set, then the usual ones.
    """
    name = "Rendering"
    if importlib.util.find_spec("mujoco") is None:
        return Check(name, "warn", "MuJoCo is not installed", "for simulation: pip install -e '.[sim]' in the checkout")
    wanted = os.environ.get("MUJOCO_GL", "")
    if backends is None:
        usual = ("egl", "osmesa") if sys.platform == "linux" else ("",)
        backends = tuple(dict.fromkeys((wanted, *usual) if wanted else usual))
    problem = ""
    for backend in backends:
        environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
        if backend:
            environment["MUJOCO_GL"] = backend
        error = _render_error(environment)
        label = backend or "the system's own back-end"
        if not error and wanted in ("", backend):
            return Check(name, "ok", f"{label} renders")
        if not error:
            return Check(name, "warn", f"MUJOCO_GL={wanted} does not work, {label} does", f"export MUJOCO_GL={backend}")
        problem = problem or f"{label}: {error}"
    return Check(name, "fail", problem, GL_PACKAGES)


def _render_error(environment: Mapping[str, str]) -> str:
    """What went wrong in one line, or nothing."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _RENDER_PROGRAM],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return "no frame within 120 s"
    if child.returncode == 0:
        return ""
    # The destructor of a half-built renderer complains after the real error.
    lines = [line for line in child.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored"))]
    errors = [line for line in lines if "Error" in line and "_" not in line.split("Error")[0]]
    return (errors or lines or [f"exit status {child.returncode}"])[0]


def check_ros(environment: Mapping[str, str]) -> Check:
    name, distro = "ROS 2", environment.get("ROS_DISTRO", "")
    found = importlib.util.find_spec("rclpy") is not None
    if distro and found:
        return Check(name, "ok", f"{distro}, rclpy found")
    if distro:
        return Check(
            name,
            "warn",
            f"{distro} is sourced, but this Python ({platform.python_version()}) does not see rclpy",
            "use the Python of that ROS 2 distribution",
        )
    return Check(name, "warn", "not sourced", "on a robot, source the setup.bash of ROS 2 first; else nothing to do")


def check_video() -> Check:
    """Encode and decode a few frames losslessly with H.264."""
    name = "Video"
    try:
        import io

        import av
        import numpy as np
    except ImportError as error:
        return Check(name, "fail", str(error), "pip install av")
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file) as container:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (ValueError, OSError) as error:  # PyAV's errors derive from these
        return Check(
            name,
            "fail",
            f"PyAV {av.__version__}: {error}",
            "pip install --force-reinstall av (its wheel has H.264)",
        )
    if not np.array_equal(frames, decoded):
        return Check(name, "fail", f"PyAV {av.__version__} changes lossless frames", "pip install --upgrade av")
    return Check(name, "ok", f"PyAV {av.__version__}, lossless H.264")


def check_disk_free(directory: Path) -> Check:
    try:
        return judge_disk_free(shutil.disk_usage(directory).free)
    except OSError as error:
        return Check("Disk space", "fail", f"{directory}: {error.strerror}", "give a directory that exists")


def judge_disk_free(free_bytes: int) -> Check:
    name, found = "Disk space", f"{free_bytes / GIB:.1f} GiB free"
    if free_bytes < GIB:
        return Check(name, "fail", found, "free at least 1 GiB: recordings would be cut off")
    if free_bytes < 10 * GIB:
        return Check(name, "warn", found, "free 10 GiB: one camera writes 100 GB an hour uncompressed")
    return Check(name, "ok", found)


def check_disk_speed(directory: Path, size_bytes: int = 64 * 2**20) -> Check:
    """Write `size_bytes` to a file in `directory`, fsync, and remove it."""
    name = "Disk speed"
    path = directory / f".dr-doctor-{os.getpid()}"
    block = os.urandom(2**20)
    try:
        with path.open("xb") as file:
            start = time.perf_counter()
            for _ in range(size_bytes // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - start
    except OSError as error:
        return Check(name, "fail", f"{directory}: {error.strerror}", "give a directory that can be written")
    finally:
        path.unlink(missing_ok=True)
    rate = size_bytes / 1e6 / seconds
    if rate < 30:
        return Check(name, "warn", f"{rate:.0f} MB/s", "use a faster disk: a 640x480 camera at 30 Hz writes 28 MB/s")
    return Check(name, "ok", f"{rate:.0f} MB/s with fsync")


def check_cpu() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("CPU", "fail", str(error), "pip install torch")
    size = 1024
    a, b = torch.ones(size, size), torch.ones(size, size)
    best = min(_seconds(lambda: a @ b) for _ in range(5))
    return Check("CPU", "ok", f"{os.cpu_count()} cores, {2 * size**3 / best / 1e9:.0f} GFLOP/s in float32 matmul")


def check_memory() -> Check:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = os.sysconf("SC_AVPHYS_PAGES") * page
    except (ValueError, OSError):  # macOS does not say how much is available
        return Check("Memory", "ok", "unknown")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts the page cache as available, which SC_AVPHYS_PAGES does not
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    return judge_memory(total, free)


def judge_memory(total_bytes: int, available_bytes: int) -> Check:
    found = f"{available_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB available"
    if available_bytes < GIB:
        return Check("Memory", "fail", found, "close other programs: 1 GiB is needed")
    if available_bytes < 4 * GIB:
        return Check("Memory", "warn", found, "training wants 4 GiB: close other programs or use a smaller batch")
    return Check("Memory", "ok", found)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _print_table(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, pad_edge=False)
    for title in ("check", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in checks:
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", check.found, check.next_step)
    Console().print(table)
