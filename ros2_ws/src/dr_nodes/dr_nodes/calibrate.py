"""Collects what one step of a calibration needs from live topics, says what is missing, and computes it on request."""

from __future__ import annotations

import itertools
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger

from dr_calibration import samples as sampling
from dr_calibration import steps
from dr_calibration.boards import Board
from dr_calibration.errors import CalibrationError
from dr_calibration.geometry import Pose, from_quaternion
from dr_calibration.intrinsics import Intrinsics
from dr_core.data.images import DamagedImage
from dr_core.errors import UserError
from dr_core.safety.limits import load_robot
from dr_nodes.common import ERROR, IMAGE_QOS, OK, WARN, ManagedNode, Param, image_qos, needed, qos_mismatch, run
from dr_nodes.convert import pose_to_arrays, stamp_to_ns, to_array

STEPS: dict[str, steps.Step] = {
    "intrinsics": "intrinsics", "hand-eye": "hand_eye", "time-offset": "time_offset", "reference": "reference",
    "check": "check",
}  # fmt: skip
WITHOUT_BOARD = ("reference", "check")
MODES = ("eye_in_hand", "eye_to_hand")
SHORTEST_POSE_S = 0.004
"""Poses that come faster are thinned out."""
MOST_POSES = 200_000
WAITING_PICTURES = 30
LOOK_PERIOD_S = 0.25
SILENCE_S = 2.0
PARAMETERS = (
    Param("step", "intrinsics", "of the calibration; the steps are done in this order", choices=tuple(STEPS)),
    Param("board", "", "as charuco:7x5:30mm:22mm:4X4_50; not for reference and check"),
    Param("out", "", "directory of the camera's calibration, the same for all steps"),
    Param("folder", "", "what is collected is kept in numbered folders in here; empty: OUT.samples"),
    Param("camera_name", "camera", "part of the file's name, rig_NAME.yaml; intrinsics"),
    Param("serial", "", "serial number of the camera; intrinsics"),
    Param("mode", "eye_in_hand", "where the camera is: on the tool, or beside the robot; hand-eye", choices=MODES),
    Param("frame", "", "TF frame of the tool (eye_in_hand) or the base (eye_to_hand); empty: the robot file's"),
    Param("camera_frame", "", "TF frame of the camera; empty: that of the pictures"),
    Param("robot_file", "", "YAML file of the robot: topic of the tool's pose, and frames; empty: ee_pose"),
    Param("replace", False, "do a step again that was done"),
    Param("auto_capture", True, "take pictures without being asked; time-offset always does"),
    Param("once", False, "compute when enough is collected, then end; exit status 0, 1 moved, 2 refused"),
    *IMAGE_QOS,
)


class Calibrate(ManagedNode):
    """Receives in one thread, computes in another, so that the node answers meanwhile."""

    def __init__(self) -> None:
        super().__init__("calibrate", PARAMETERS)
        self.one_task = self.value("once")
        self._status = 2 if self.one_task else 0
        self._stands = True
        self._inputs: list[Any] = []
        self._computing = False
        self._receiving = MutuallyExclusiveCallbackGroup()
        serving = MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, "~/capture", self._on_capture, callback_group=self._receiving)
        self.create_service(Trigger, "~/solve", self._on_solve, callback_group=serving)
        self.create_timer(LOOK_PERIOD_S, self._look, callback_group=serving)

    def configure(self) -> None:
        self._task = STEPS[self.value("step")]
        self._out = Path(needed(self.value("out"), "out", "the directory of the calibration"))
        self._check_order()
        self._board: Board | None = None
        if self._task not in WITHOUT_BOARD:
            self._board = Board.parse(needed(self.value("board"), "board", "what was printed, as charuco:7x5:30mm:…"))
        self._robot = load_robot(Path(self.value("robot_file"))) if self.value("robot_file") else None
        self._frame = self._frame_of_result() if self._task == "hand_eye" else ""
        self._begin()
        for kind, topic, callback, qos in (
            (Image, "camera/color/image_raw", self._on_image, image_qos(self)),
            (CameraInfo, "camera/color/camera_info", self._on_info, image_qos(self)),
            (PoseStamped, self._robot.topics.tool_pose if self._robot else "ee_pose", self._on_pose, 100),
        ):
            self._inputs.append(self.create_subscription(kind, topic, callback, qos, callback_group=self._receiving))

    def activate(self) -> None:
        self._begin()

    def cleanup(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []

    def finish(self) -> int:
        return self._status

    def _begin(self) -> None:
        """Nothing is collected."""
        self._collector = steps.Collector(self._task, self._board)
        self._factory: Intrinsics | None = None
        self._camera_frame = self.value("camera_frame")
        self._waiting: deque[steps.Sample] = deque(maxlen=WAITING_PICTURES)
        self._track: deque[tuple[float, Pose]] = deque(maxlen=MOST_POSES)
        self._asked = False
        self._heard_s = time.monotonic()

    def _check_order(self) -> None:
        """Before anybody has moved a board: whether this step may be done now."""
        made = sorted(self._out.glob("rig_*.yaml"))
        if self._task != "intrinsics" and not made:
            raise _refused(str(self._out), "a calibration with the step intrinsics", "none", "do that step first")
        if self._task == "intrinsics" and made and not self.value("replace"):
            step = "give another directory, or replace it on purpose: -p replace:=true"
            raise _refused(str(self._out), "a new calibration", made[0].name, step)

    def _frame_of_result(self) -> str:
        frames = self._robot.frames if self._robot else None
        of_robot = "" if frames is None else frames.tool if self.value("mode") == "eye_in_hand" else frames.base
        return needed(self.value("frame") or of_robot, "frame", "the TF frame of tool or base, or a robot_file")

    # ---- collecting ----

    def _on_capture(self, request: Any, response: Any) -> Any:
        response.success, self._asked = self.active, self.active
        response.message = "the next picture is judged" if self.active else "the node is not active"
        return response

    def _on_info(self, message: Any) -> None:
        if self._factory is not None or self._task != "intrinsics" or not np.asarray(message.k).any():
            return
        try:
            size, k, d = (message.width, message.height), np.asarray(message.k).reshape(3, 3), np.asarray(message.d)
            self._factory = Intrinsics.of_camera(*size, k, d, message.distortion_model)
        except UserError as error:
            self.diagnostics.set("factory values", WARN, f"not compared: {error}")

    def _on_pose(self, message: Any) -> None:
        stamp_s = 1e-9 * stamp_to_ns(message.header.stamp)
        if not self.active or (self._track and stamp_s < self._track[-1][0] + SHORTEST_POSE_S):
            return
        try:
            place, turn = pose_to_arrays(message)
            self._track.append((stamp_s, from_quaternion(turn, place, "pose of the tool")))
        except UserError as error:
            self.refuse(error)
            return
        if self._waiting:
            self._offer_waiting()

    def _on_image(self, message: Any) -> None:
        if not self.active:
            return
        stamp_s = 1e-9 * stamp_to_ns(message.header.stamp)
        try:
            if stamp_s <= 0.0:
                raise _refused("image stamp", "the time of exposure", "zero", "make the camera driver stamp its images")
            sample = steps.Sample(stamp_s, to_array(message))
            self._camera_frame = self._camera_frame or message.header.frame_id
            if self._task == "hand_eye" or (self._task in WITHOUT_BOARD and self._track):
                self._waiting.append(sample)
            else:
                self._offer(sample)
        except DamagedImage as damaged:
            self.diagnostics.set("pictures", WARN, f"dropped: {damaged}")
        except UserError as error:
            self.refuse(error)

    def _offer_waiting(self) -> None:
        """Offer the newest picture around which the tool's way is known, with its pose; hand-eye: of a tool at rest."""
        newest_s = self._track[-1][0]
        ready = [one for one in self._waiting if one.stamp_s + sampling.REST_S <= newest_s]
        if not ready or len(self._track) < 2:
            return
        while self._waiting and self._waiting[0].stamp_s <= ready[-1].stamp_s:
            self._waiting.popleft()
        picture = ready[-1]
        self._heard_s = time.monotonic()
        near = list(itertools.takewhile(lambda pose: pose[0] > picture.stamp_s - 1.0, reversed(self._track)))[::-1]
        path = sampling.ToolPath(_as_track(near))
        pose = path.at(picture.stamp_s)
        if self._task == "hand_eye" and pose is not None and not path.rests(picture.stamp_s):
            self._tell("the tool moves: let it stand", WARN)
        else:
            self._offer(steps.Sample(picture.stamp_s, picture.picture, pose))

    def _offer(self, sample: steps.Sample) -> None:
        wanted = self._asked or self.value("auto_capture") or self._task == "time_offset"
        # The film of the time offset is large; nothing is gained by a longer one.
        full = self._task == "time_offset" and self._collector.progress >= 100
        self._heard_s = time.monotonic()
        if self._computing or full or not wanted:
            return
        self._asked = False
        kept = len(self._collector.samples)
        answer = self._collector.offer(sample)
        if len(self._collector.samples) > kept:
            self.get_logger().info(f"{answer}; {self._collector.advice}")
        self._tell(answer, OK if len(self._collector.samples) > kept else WARN)

    def _tell(self, answer: str, level: bytes) -> None:
        collector = self._collector
        words = f"{answer}; {collector.progress} %; {collector.advice}"
        counts = {"kept": len(collector.samples), "seen": collector.seen, "progress": collector.progress}
        self.diagnostics.set("collecting", level, words, **counts)

    # ---- computing ----

    def _look(self) -> None:
        """Tell of silence; with ``once``, compute as soon as there is enough."""
        if not self.active:
            return
        pictures, _, poses = self._inputs
        problem = qos_mismatch(self, pictures.topic_name, image_qos(self))
        silent = time.monotonic() - self._heard_s > SILENCE_S
        if not problem and self._task in ("hand_eye", "time_offset") and not self._track:
            problem = f"{poses.topic_name}: nothing arrives"
        elif not problem and silent and self._waiting:
            problem = f"{poses.topic_name}: its stamps end {self._lag_s():.1f} s before the pictures'"
        elif not problem and silent:
            problem = f"{pictures.topic_name}: nothing arrives"
        self.diagnostics.set("topics", WARN if problem else OK, problem or "all there")
        if self.one_task and self._collector.progress >= 100:
            self._solve()
            rclpy.try_shutdown()

    def _lag_s(self) -> float:
        return self._waiting[-1].stamp_s - self._track[-1][0] if self._waiting and self._track else 0.0

    def _on_solve(self, request: Any, response: Any) -> Any:
        response.success, response.message = self._solve()
        return response

    def _solve(self) -> tuple[bool, str]:
        """Keep what was collected and compute the step; whether it was done, and the figures or the refusal."""
        self._computing = True
        try:
            if not self.active:
                raise _refused("calibrate", "an active node", "an inactive one", "activate it: ros2 lifecycle set")
            done = self._compute(list(self._collector.samples), list(self._track))
        except UserError as error:
            self.diagnostics.tell("result", ERROR, f"refused: {error}")
            return False, str(error)
        finally:
            self._computing = False
        self._status = 0 if self._stands else 1
        for line in (*done.lines, f"{done.rig} is written; report: {done.report}"):
            self.get_logger().info(line)
        self.diagnostics.tell("result", OK, "; ".join(done.lines))
        return True, "; ".join((*done.lines, str(done.rig)))

    def _compute(self, samples: list[steps.Sample], poses: list[tuple[float, Pose]]) -> steps.Done:
        track = _as_track(poses) if len(poses) > 1 else None
        place = Path(self.value("folder") or f"{self._out}.samples")
        numbered = (place / f"{self.value('step')}-{number}" for number in itertools.count(1))
        kept = steps.write_samples(next(path for path in numbered if not path.exists()), samples, track)
        self.get_logger().info(f"collected: {kept}")
        common: dict[str, Any] = {"now_unix_s": time.time(), "replace": self.value("replace")}
        if self._task == "check":
            moved, done = steps.check(samples, self._out, now_unix_s=common["now_unix_s"])
            self._stands = moved.fine
            return done
        if self._board is None:
            return steps.reference(samples, self._out, **common)
        if self._task == "intrinsics":
            camera = {"name": self.value("camera_name"), "serial": self.value("serial"), "factory": self._factory}
            return steps.intrinsics(samples, self._board, self._out, **camera, **common)
        if track is None:
            raise _refused("track of the tool", "its poses while the pictures were taken", "none", "start the robot")
        if self._task == "time_offset":
            return steps.time_offset(samples, track, self._board, self._out, **common)
        frames = {"frame": self._frame, "camera_frame": self._camera_frame}
        return steps.hand_eye(samples, self._board, self._out, mode=self.value("mode"), tool=track, **frames, **common)


def _as_track(poses: list[tuple[float, Pose]]) -> steps.Track:
    return np.array([stamp_s for stamp_s, _ in poses]), np.array([pose for _, pose in poses])


def _refused(subject: str, expected: str, found: str, next_step: str) -> CalibrationError:
    return CalibrationError(subject, expected=expected, found=found, next_step=next_step)


def main() -> int:
    return run(Calibrate, threads=3)


if __name__ == "__main__":
    raise SystemExit(main())
