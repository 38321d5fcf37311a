"""Records episodes: topics to MCAP as they come, with metadata, on request of the services ~/start, ~/stop, ~/label."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dr_interfaces.msg import EpisodeInfo
from dr_interfaces.srv import LabelEpisode, StartEpisode, StopEpisode
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosidl_runtime_py.utilities import get_message

from dr_core.errors import BagError, UserError
from dr_core.robot.recording import EpisodeRecorder, Topic, rates_by_topic, robot_metadata, usable_folder
from dr_nodes.common import ERROR, OK, RIG, WARN, ManagedNode, Param, needed, run
from dr_nodes.convert import begins_with_header, definition_of
from dr_nodes.rig_watch import load_rig

MIB = 2**20
LOOK_PERIOD_S = 0.25
INFO_PERIOD_S = 0.5
PARAMETERS = (
    Param("directory", "", "folder of the episodes, made if it is not there"),
    Param("topics", ["camera/color/image_raw"], "topics that every episode needs"),
    Param("optional_topics", [""], "topics that are recorded when somebody publishes them"),
    Param("rates_hz", [0.0], "expected rate of each of topics; 0 learns it for images, expects nothing of others"),
    Param("camera", "", "name of the camera, for the metadata"),
    *RIG,
    Param("preroll_s", 1.0, "what an episode holds of the time before its start", 0.0, 60.0),
    Param("queue_mib", 256, "memory for messages that wait for the disk; more are dropped and counted", 1, 65536),
    Param("reserve_mib", 1024, "free disk space to leave", 0, 2**30),
    Param("depth", 30, "queue of each subscription, messages", 1, 10000),
)


class Recorder(ManagedNode):
    """Receives in one thread, answers services in another, and leaves the disk to a third."""

    def __init__(self) -> None:
        super().__init__("recorder", PARAMETERS)
        self._recorder: EpisodeRecorder | None = None
        self._wanted: list[str] = []
        self._rates_hz: dict[str, float] = {}
        self._taken: dict[str, Any] = {}
        self._unusable: dict[str, str] = {}
        self._receiving = MutuallyExclusiveCallbackGroup()
        serving = MutuallyExclusiveCallbackGroup()
        self._info = self.create_publisher(EpisodeInfo, "episode_info", 10)
        for kind, name, callback in (
            (StartEpisode, "~/start", self._start),
            (StopEpisode, "~/stop", self._stop),
            (LabelEpisode, "~/label", self._label),
        ):
            self.create_service(kind, name, partial(self._answer, callback), callback_group=serving)
        self.create_timer(LOOK_PERIOD_S, self._look, callback_group=self._receiving)
        self.create_timer(INFO_PERIOD_S, self._tell, callback_group=serving)

    def configure(self) -> None:
        directory = usable_folder(Path(needed(self.value("directory"), "directory", "a folder for the episodes")))
        self._wanted = [self.resolve_topic_name(name) for name in self.values("topics")]
        self._rates_hz = rates_by_topic(self._wanted, self.value("rates_hz"))
        self._camera()
        self._recorder = EpisodeRecorder(
            directory,
            preroll_s=self.value("preroll_s"),
            queue_bytes=self.value("queue_mib") * MIB,
            reserve_bytes=self.value("reserve_mib") * MIB,
        )

    def deactivate(self) -> None:
        if self._recorder is not None:
            try:
                self._recorder.close()
            except UserError as error:  # the disk failed; what reached it can be repaired
                self.get_logger().error(str(error))

    def cleanup(self) -> None:
        for subscription in self._taken.values():
            self.destroy_subscription(subscription)
        self._taken.clear()
        self._unusable.clear()
        self._recorder = None

    # ---- receiving ----

    def _look(self) -> None:
        """Subscribe to what is published by now, as reliably as its publishers offer it."""
        if self._recorder is None:
            return
        optional = [self.resolve_topic_name(name) for name in self.values("optional_topics")]
        for topic in dict.fromkeys([*self._wanted, *optional]):
            if topic not in self._taken and (publishers := self.get_publishers_info_by_topic(topic)):
                self._subscribe(self._recorder, topic, publishers)
        missing = [topic for topic in self._wanted if topic not in self._taken]
        lines = [*self._unusable.values(), *(f"nothing publishes {topic}" for topic in missing)]
        self.diagnostics.set("topics", WARN if lines else OK, "; ".join(lines) or "all there")

    def _subscribe(self, recorder: EpisodeRecorder, topic: str, publishers: list[Any]) -> None:
        kinds = sorted({one.topic_type for one in publishers})
        try:
            if len(kinds) > 1:
                raise LookupError(f"types {', '.join(kinds)}")
            message_class = get_message(kinds[0])
            definition = definition_of(message_class, kinds[0])
        except (LookupError, ImportError, AttributeError, ValueError) as error:
            self._unusable[topic] = f"{topic} is skipped: unknown message type {kinds[0]} ({error})"
            return
        self._unusable.pop(topic, None)
        reliable = all(one.qos_profile.reliability == ReliabilityPolicy.RELIABLE for one in publishers)
        latched = all(one.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for one in publishers)
        qos = QoSProfile(
            depth=self.value("depth"),
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        stamped, rate_hz = begins_with_header(message_class), self._rates_hz.get(topic, 0.0)
        recorder.add_topic(Topic(topic, kinds[0], definition, stamped, latched, rate_hz))

        def take(data: bytes) -> None:
            recorder.push(topic, self.now_ns(), data)

        self._taken[topic] = self.create_subscription(
            message_class, topic, take, qos, raw=True, callback_group=self._receiving
        )

    # ---- services ----

    def _answer(self, callback: Callable[[EpisodeRecorder, Any, Any], str], request: Any, response: Any) -> Any:
        try:
            if self._recorder is None or not self.active:
                step = "activate it: ros2 lifecycle set"
                raise BagError("recorder", expected="an active node", found="an inactive one", next_step=step)
            response.message = callback(self._recorder, request, response)
            response.success = True
        except UserError as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(response.message)
        self._tell()
        return response

    def _start(self, recorder: EpisodeRecorder, request: Any, response: Any) -> str:
        metadata = robot_metadata(request.task, request.operator_name, request.notes, **self._camera())
        response.path = str(recorder.start(request.name, metadata, self._wanted))
        return ""

    def _camera(self) -> dict[str, Any]:
        """What the metadata says of the camera; the calibration is read for each episode, as it may be made anew."""
        known = {name: self.value(name) for name in ("camera", "camera_serial")}
        if not (path := self.value("rig_file")):
            return known
        rig = load_rig(path, max_age_days=self.value("rig_max_age_days"), serial=known["camera_serial"])
        known |= {"camera_serial": rig.camera_serial, "calibration_hash": rig.hash}
        offset_s = None if rig.time_offset is None else rig.time_offset.offset_s
        return {**known, "camera_time_offset_s": offset_s}

    def _stop(self, recorder: EpisodeRecorder, request: Any, response: Any) -> str:
        if request.discard:
            recorder.discard()
            return "discarded"
        status = recorder.stop(request.outcome)
        response.path, response.recorded_s = str(status.path), status.recorded_s
        return status.warning

    def _label(self, recorder: EpisodeRecorder, request: Any, response: Any) -> str:
        return f"labelled {recorder.label(request.name, request.outcome, request.notes)}"

    # ---- telling ----

    def _tell(self) -> None:
        if self._recorder is None:
            return
        status = self._recorder.status()
        info = EpisodeInfo(
            name=status.name,
            path=str(status.path or ""),
            recording=status.recording,
            recorded_s=status.recorded_s,
            size_bytes=status.size_bytes,
            drop_topics=list(status.drops),
            drop_counts=list(status.drops.values()),
        )
        info.header.stamp = self.get_clock().now().to_msg()
        if status.metadata is not None:
            info.task, info.operator_name = status.metadata.task, status.metadata.operator
            info.outcome = "partial" if status.recording else status.metadata.outcome
        self._info.publish(info)
        counts = {**status.counts, **{f"lost {name}": count for name, count in status.drops.items()}}
        if status.failure:
            self.diagnostics.set("episode", ERROR, f"{status.name} ended as partial: {status.failure}", **counts)
        elif status.warning:
            self.diagnostics.set("episode", WARN, status.warning, **counts)
        else:
            self.diagnostics.set("episode", OK, "recording" if status.recording else "not recording", **counts)


def main() -> int:
    return run(Recorder, threads=3)


if __name__ == "__main__":
    raise SystemExit(main())
