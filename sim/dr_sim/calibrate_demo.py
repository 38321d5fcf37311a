"""The command `dr calibrate demo`: every step of a calibration on the simulated robot, through the ROS graph."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dr_core.config import dump_yaml, load_yaml
from dr_core.errors import ConfigError, OutputInUseError, UserError

if TYPE_CHECKING:
    from dr_calibration.boards import Board
    from dr_core.agent.route import Wiggle
    from dr_sim.calibration_robot import CalibrationArm, Truth

Floats = NDArray[np.float64]

BOARD = "charuco:7x5:30mm:22mm:4X4_50"
NAME, SERIAL = "demo", "SIM-0001"
LATENCY_S = 0.023
BUMPS = {"a bump of 5 mm": (0.005, 0.0), "a bump of 1 degree": (0.0, 1.0)}
VIEWS, POSES, MOST_TRIES = 25, 22, 400
REFERENCE_POSES = 8
WIGGLE_S = 26.0
CAMERA_RATE_HZ = 10.0
MARGIN_M = 0.02
"""Poses stay so far inside the workspace."""
# The machine may be busy: the gate and the agent wait longer than they would for a real arm.
PATIENT = {"max_age_s": 2.0, "hold_after_s": 2.0, "stop_after_s": 4.0, "state_max_age_s": 2.0}
TIMEOUT_S = 60.0
STEP_TIMEOUT_S = 600.0
STOP_S = 10.0
QUIET_S = 3.0
RETRIES = 3


class DemoError(UserError):
    """A process of the demonstration did not do what it was started for."""


@dataclass(frozen=True)
class CalibrateDemo:
    """Calibrate the camera of the simulated robot through the ROS graph, and compare with the truth.

    The simulated robot, the safety gate, an agent that visits poses and the calibration run as processes that talk
    over DDS: lens, hand-eye pose, time offset, reference picture; then the camera-moved check, before and after
    somebody knocks against the camera. The calibration and its report are in OUT, logs and pictures in OUT/demo.

    The exit status is 1 where a target is missed.
    """

    out: Path
    """Directory of the calibration, made if it is not there."""
    mode: Literal["eye-in-hand", "eye-to-hand"] = "eye-in-hand"
    """The camera is on the hand, or stands before the arm."""
    seed: int = 0
    """Of the poses that are visited, and of the noise in the pictures."""
    quick: bool = False
    """Shorter stops, and one bump instead of two."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ConfigError("--seed", expected="0 or more", found=str(self.seed), next_step="change it")

    def run(self) -> int:
        from dr_core.stopping import stop_requested

        if self.out.exists() and any(self.out.iterdir()):
            raise OutputInUseError(
                str(self.out), expected="a new or empty directory", found="files", next_step="give another --out"
            )
        began_s = time.monotonic()
        with stop_requested() as stopped, Graph(self.out / "demo", stopped) as graph:
            rows = self._steps(graph)
        print(f"\n{self.mode}, {time.monotonic() - began_s:.0f} s\n{table(rows)}")
        results = {row.what: {"error": row.error, "target": row.target, "holds": row.holds} for row in rows}
        (self.out / "demo" / "result.json").write_text(json.dumps(results, indent=1))
        print(self.out / "report.html")
        return 0 if all(row.holds for row in rows) else 1

    def _steps(self, graph: Graph) -> list[Row]:
        from dr_calibration.boards import Board
        from dr_calibration.rig import Rig
        from dr_core.agent.route import Wiggle
        from dr_sim.calibration_robot import BESIDE, ON_HAND

        task = ON_HAND if self.mode == "eye-in-hand" else BESIDE
        board, wiggle = Board.parse(BOARD), Wiggle(WIGGLE_S)
        graph.say("planning the poses")
        plan = make_plan(task, board, self.seed, wiggle)
        robot_file = self._robot_file(graph)
        common = {"robot_file": str(robot_file)}
        camera = {"task": task, "board": BOARD, "camera_rate_hz": CAMERA_RATE_HZ, "seed": self.seed}
        camera |= {"camera_latency_s": LATENCY_S, "command_timeout_s": 1.0}
        calibrate: dict[str, Any] = {
            **common,
            "out": str(self.out),
            "folder": str(graph.folder / "samples"),
            "once": True,
        }
        calibrate |= {"board": BOARD, "camera_name": NAME, "serial": SERIAL, "mode": self.mode.replace("-", "_")}
        dwell_s = 0.5 if self.quick else 1.0

        def go(name: str, poses: Floats, dwell_s: float, wiggle: Wiggle | None = None) -> None:
            """The arm sets out on a route."""
            route = graph.folder / f"route_{name}.yaml"
            shape = {"wiggle": vars(wiggle)} if wiggle else {}
            speeds = {"linear_m_s": 0.2, "angular_rad_s": 0.5}
            dump_yaml(route, {"poses": route_poses(poses), "dwell_s": dwell_s, **speeds, **shape})
            acting = {"policy": "route", "route": str(route), "rate_hz": 20.0, "max_age_s": 1.0, "max_skew_s": 0.5}
            graph.travel(common, {**common, **acting})

        def check() -> tuple[bool, str]:
            """Whether the camera stands, and by how much the pictures are shifted."""
            status = graph.step("", accepted=(0, 1), step="check", **calibrate)
            found = json.loads((self.out / "steps.json").read_text())["steps"]["check"]
            return status == 0, f"{np.nanmedian(np.array(found['shift_px'], np.float64)):.2f} px"

        graph.start("sim_robot", **common, **camera)
        go("intrinsics", plan.views, 0.6 * dwell_s)
        graph.step("1/6 the lens", step="intrinsics", **calibrate)
        go("hand_eye", plan.poses, dwell_s)
        graph.step("2/6 where the camera is", step="hand-eye", **calibrate)
        go("time_offset", plan.middle[None], 1.0, wiggle)
        graph.wait_for("agent", "wiggle")
        graph.step("3/6 the clock of the camera", step="time-offset", **calibrate)
        if self.mode == "eye-in-hand":
            graph.wait_for("agent", "route done")
        else:
            go("reference", plan.poses[:REFERENCE_POSES], 1.0)
        graph.step("4/6 the reference picture", step="reference", **calibrate)
        if self.mode == "eye-to-hand":
            go("check", plan.middle[None], 1.0)
            graph.wait_for("agent", "route done")
        graph.say("5/6 the check that the camera stands")
        stands, words = check()
        rows = [Row("the camera that stands", words, "not moved", stands)]
        for bump, (far_m, turn_deg) in list(BUMPS.items())[: 1 if self.quick else 2]:
            graph.say(f"6/6 the check after {bump}")
            graph.end("agent", "arm_bridge", "sim_robot")
            graph.start("sim_robot", **common, **camera, camera_bump_m=far_m, camera_bump_deg=turn_deg)
            go("bump", plan.middle[None], 1.0)
            graph.wait_for("agent", "route done")
            stands, words = check()
            rows.append(Row(bump, words, "moved", not stands))
        rig = Rig.load(self.out / f"rig_{NAME}.yaml")
        return errors(rig, plan.truth, LATENCY_S) + rows

    def _robot_file(self, graph: Graph) -> Path:
        """The Panda's file with a gate that waits for a busy machine."""
        from dr_core.launching import launch_folder

        whole = load_yaml(launch_folder().parent / "config" / "robots" / "sim_panda.yaml")
        path = graph.folder / "robot.yaml"
        dump_yaml(path, {**whole, "limits": {**whole["limits"], **PATIENT}})
        return path


# ---- results ----


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        what: was measured.
        error: against the truth, in words.
        target: in words.
        holds: the target.
    """

    what: str
    error: str
    target: str
    holds: bool


def errors(rig: Any, truth: Truth, offset_s: float) -> list[Row]:
    """What a rig (dr_calibration.rig.Rig) says against the truth."""
    from scipy.spatial.transform import Rotation

    found, wanted = rig.intrinsics.K, truth.K
    focal = 100 * float(np.abs(found[[0, 1], [0, 1]] / wanted[[0, 1], [0, 1]] - 1).max())
    centre_px = float(np.abs(found[:2, 2] - wanted[:2, 2]).max())
    apart = np.linalg.inv(truth.camera) @ rig.pose.T
    far_mm = 1e3 * float(np.linalg.norm(apart[:3, 3]))
    turn_deg = math.degrees(Rotation.from_matrix(apart[:3, :3]).magnitude())
    late_ms = 1e3 * abs(rig.time_offset.offset_s - offset_s)
    measured = (
        ("focal length", focal, 0.3, "%"),
        ("principal point", centre_px, 1.0, "px"),
        ("place of the camera", far_mm, 1.0, "mm"),
        ("turn of the camera", turn_deg, 0.1, "deg"),
        ("time offset", late_ms, 2.0, "ms"),
    )
    return [Row(what, f"{error:.3f} {unit}", f"{most:g} {unit}", error <= most) for what, error, most, unit in measured]


def table(rows: Sequence[Row]) -> str:
    """Lines of text."""
    wide = max(len(row.error) for row in rows)
    lines = [f"{'':24}{'error':<{wide}}  {'target':<10}"]
    lines += [f"{row.what:24}{row.error:<{wide}}  {row.target:<10}{'holds' if row.holds else 'MISSES'}" for row in rows]
    return "\n".join(lines)


# ---- where the arm goes ----


@dataclass(frozen=True)
class Plan:
    """Poses T_base_tool that the arm reaches one after another from its start.

    Attributes:
        truth: of the robot that they are planned for.
        views: (V, 4, 4) for the lens.
        poses: (P, 4, 4) for the hand-eye pose.
        middle: (4, 4) with the board well inside the picture, however the arm wiggles.
    """

    truth: Truth
    views: Floats
    poses: Floats
    middle: Floats


def make_plan(task: str, board: Board, seed: int, wiggle: Wiggle) -> Plan:
    """Chooses poses as somebody does who jogs the arm and looks at the picture.

    Raises:
        DemoError: the arm reaches too few.
    """
    from dr_calibration.boards import Detection
    from dr_calibration.intrinsics import ViewSelector
    from dr_sim.calibration_robot import CalibrationArm
    from dr_sim.calibration_scene import CalibrationScene

    arm = CalibrationArm(board, task)
    truth, lens = arm.truth, arm.lens
    scene = CalibrationScene(board, lens.width, lens.height, truth.K, truth.distortion)
    rng = np.random.default_rng(seed)
    selector = ViewSelector(board.points_m, (lens.width, lens.height))

    def adds(view: Floats) -> bool:
        """It is one that the calibration will take, and brings it on."""
        nonlocal selector
        seen = np.flatnonzero(scene.visible(view))
        corners = scene.project(view, board.points_m[seen])
        detection = Detection(seen, corners, board.points_m[seen], 1.5)
        trial = copy.deepcopy(selector)
        if not trial.offer(detection, trial.size).taken or trial.progress == selector.progress < 100:
            return False
        selector = trial
        return True

    def calm(view: Floats) -> bool:
        """The board is seen all the time while the arm wiggles about this view."""
        tool = truth.T_base_tool(view)
        moments = [wiggle.offset(time_s) for time_s in np.arange(0.0, wiggle.duration_s, 0.25)]
        return all(scene.visible(truth.T_camera_board(shifted(tool, moment)), 20.0).all() for moment in moments)

    reach = Reach(arm, board)
    try:
        views = reach.collect(
            lambda: scene.intrinsic_views(9, rng), adds, lambda n: n >= VIEWS and selector.progress >= 100
        )
        poses = reach.collect(lambda: scene.hand_eye_views(4, rng), lambda view: True, lambda n: n >= POSES)
        middle = reach.collect(lambda: scene.hand_eye_views(1, rng), calm, lambda n: n >= 1)
    finally:
        scene.close()
        arm.close()
    return Plan(truth, views, poses, middle[0])


class Reach:
    """Follows the arm's joints from pose to pose, as far as its limits and workspace let it."""

    def __init__(self, arm: CalibrationArm, board: Board) -> None:
        from dr_core.launching import launch_folder
        from dr_core.safety.limits import load_robot

        limits = load_robot(launch_folder().parent / "config" / "robots" / "sim_panda.yaml").limits
        self.arm, self.truth = arm, arm.truth
        self.low = np.array(limits.workspace_lower_m) + MARGIN_M
        self.high = np.array(limits.workspace_upper_m) - MARGIN_M
        size = np.array(board.size_m)
        around = np.array([[-0.2, -0.2], [1.2, -0.2], [1.2, 1.2], [-0.2, 1.2]]) * size
        self.plate_m = np.column_stack([around, np.zeros(4), np.ones(4)])  # with its white border
        self.joints = arm.home_rad

    def collect(
        self, propose: Callable[[], Floats], good: Callable[[Floats], bool], enough: Callable[[int], bool]
    ) -> Floats:
        """Poses T_base_tool (n, 4, 4) of the proposed T_camera_board that are within reach and good."""
        chosen: list[Floats] = []
        for _ in range(MOST_TRIES):
            for view in propose():
                tool = self.truth.T_base_tool(view)
                joints = self.arm.follow(self.joints, tool) if self.free(tool) else None
                if joints is None or not good(view):
                    continue
                self.joints = joints
                chosen.append(tool)
                if enough(len(chosen)):
                    return np.array(chosen)
        raise DemoError(
            "plan", expected="enough poses within reach", found=str(len(chosen)), next_step="give another --seed"
        )

    def free(self, tool: Floats) -> bool:
        """The tool is inside the workspace, and neither fingers nor a board that is held come near the table."""
        inside = ((tool[:3, 3] >= self.low) & (tool[:3, 3] <= self.high)).all()
        fingers_m = tool[2, 3] + 0.02 * tool[2, 2]
        held = self.truth.mode == "eye_to_hand"
        plate = (tool @ self.truth.board @ self.plate_m.T)[2].min() if held else 1.0
        return bool(inside and fingers_m > 0.04 and plate > 0.01)


def shifted(tool: Floats, offset: Floats) -> Floats:
    """A pose T_base_tool (4, 4) moved by (6,) m and, as a rotation vector in base axes, rad."""
    from scipy.spatial.transform import Rotation

    moved = tool.copy()
    moved[:3, 3] += offset[:3]
    moved[:3, :3] = Rotation.from_rotvec(offset[3:]).as_matrix() @ tool[:3, :3]
    return moved


def route_poses(poses: Floats) -> list[list[float]]:
    """(n, 4, 4) as a route's file has them: x y z and quaternion x y z w."""
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_matrix(poses[:, :3, :3]).as_quat()
    numbers: list[list[float]] = np.round(np.hstack([poses[:, :3, 3], turns]), 7).tolist()
    return numbers


# ---- processes ----


class Process:
    """One node in a process of its own, in a process group of its own, with its output in a file."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """A signal to it and to what it has started."""
        if self.status is None:
            os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Ask it to end; what does not listen is killed."""
        self.send(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()


class Graph:
    """The nodes that run, in a namespace of their own. As a context: none is left when it ends.

    Args:
        folder: for parameters and logs.
        stopped: not empty when the user wants to end (`dr_core.stopping.stop_requested`).
    """

    def __init__(self, folder: Path, stopped: Sequence[int]) -> None:
        self.folder, self._stopped = folder, stopped
        folder.mkdir(parents=True, exist_ok=True)
        self.namespace = f"calibrate_demo_{os.getpid()}"
        self._running: list[Process] = []
        self._numbers = itertools.count(1)
        self._retries = RETRIES

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *raised: object) -> None:
        for process in self._running:
            process.send(signal.SIGINT)
        for process in self._running:
            process.end()

    def say(self, words: str) -> None:
        print(words, flush=True)

    def start(self, name: str, /, **parameters: Any) -> Process:
        """A node of dr_nodes with these parameters."""
        from dr_core.launching import node_command_line

        stem = f"{next(self._numbers):02}_{name}"
        values = self.folder / f"{stem}.yaml"
        dump_yaml(values, {"/**": {"ros__parameters": parameters}})
        words = ["--ros-args", "--params-file", str(values), "-r", f"__ns:=/{self.namespace}"]
        # One thread each: they share the cores.
        command, environment = node_command_line(name, words, {"OMP_NUM_THREADS": "1", **os.environ})
        process = Process(name, command, environment, self.folder / f"{stem}.log")
        self._running.append(process)
        return process

    def end(self, *names: str) -> None:
        """Those of these names that run."""
        ending = [process for process in self._running if process.name in names]
        for process in ending:
            process.send(signal.SIGINT)
        for process in ending:
            process.end()
            self._running.remove(process)

    def step(self, title: str, /, *, accepted: Sequence[int] = (0,), **parameters: Any) -> int:
        """Let the node calibrate do one step, show how far it is, and return its exit status.

        Raises:
            DemoError: it refuses.
        """
        if title:
            self.say(title)
        node = self.start("calibrate", **parameters)
        shown, spoke_s = 0, -math.inf

        def show() -> bool:
            """What it has told since it was last looked at; of pictures that it keeps, not each."""
            nonlocal shown, spoke_s
            ended = node.status is not None
            lines = node.output().splitlines()
            for line in lines[shown:]:
                words = line.partition("]: ")[2]
                if "[INFO]" not in line or (words.startswith("kept") and time.monotonic() - spoke_s < QUIET_S):
                    continue
                spoke_s = time.monotonic()
                print(f"    {words}", flush=True)
            shown = len(lines)
            return ended

        self._until(show, "the step to be done", STEP_TIMEOUT_S)
        self._running.remove(node)
        if node.status is None or node.status not in accepted:
            raise self._failed(node, "the step to be done")
        return node.status

    def travel(self, bridge: dict[str, Any], agent: dict[str, Any]) -> None:
        """An agent with these parameters moves the arm, behind a gate with those.

        The gate is started anew, as it is stopped since the agent before has gone.
        """
        self._travel = bridge, agent
        self.end("agent", "arm_bridge")
        self.start("arm_bridge", **bridge)
        self.start("agent", **agent)

    def wait_for(self, name: str, words: str) -> None:
        """Until the node of this name has printed this.

        Raises:
            DemoError: it does not, or ends.
        """

        def said() -> bool:
            return any(words in process.output() for process in self._running if process.name == name)

        self._until(said, f"{words!r} from {name}", TIMEOUT_S + WIGGLE_S)

    def _until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait, as long as nobody wants to stop and nothing that has to run has ended."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            if self._stopped:
                raise KeyboardInterrupt("interrupted; all processes are ended")
            for process in list(self._running):
                if process.name == "calibrate":  # its end is waited for, and looked at, by itself
                    continue
                if process.name == "agent" and "refused: " in process.output() and self._retries:
                    # On a machine that stands still for seconds, the gate stops the arm, as it should.
                    self._retries -= 1
                    self.say("    the gate has stopped the arm, or it did not arrive: once more")
                    self.travel(*self._travel)
                    break
                if process.status is not None or "refused: " in process.output():
                    raise self._failed(process, what)
            if time.monotonic() > end_s:
                raise DemoError(
                    "dr calibrate demo", expected=f"{what} within {timeout_s:.0f} s", found="nothing of it",
                    next_step=f"look at the logs in {self.folder}",
                )  # fmt: skip
            time.sleep(0.1)

    def _failed(self, process: Process, what: str) -> DemoError:
        lines = process.output().strip().splitlines() or ["nothing"]
        refusals = [line for line in lines if "refused: " in line]
        return DemoError(
            f"node {process.name}", expected=what, found=(refusals or lines)[-1][-300:],
            next_step=f"look at {process.log}",
        )  # fmt: skip
