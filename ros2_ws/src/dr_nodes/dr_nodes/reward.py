"""Publishes the reward of a camera's frames as they arrive."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_interfaces.msg import RewardStamped
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Bool, String

from dr_core.data.images import DamagedImage
from dr_core.errors import UserError
from dr_core.robot.frames import FrameRules
from dr_core.robot.live_reward import LiveReward, frame_spacing_ns, known_task
from dr_nodes.common import (
    ERROR,
    IMAGE_QOS,
    OK,
    RIG,
    STOP_LIMIT,
    WARN,
    ManagedNode,
    Param,
    image_qos,
    needed,
    qos_mismatch,
    refuse_second_publisher,
    run,
)
from dr_nodes.convert import reward_message, stamp_to_ns, to_array
from dr_nodes.rig_watch import RigWatch, watch_for_model

if TYPE_CHECKING:
    from dr_core.rewards.model import RewardModel

WATCH_PERIOD_S = 0.5
SILENCE_S = 1.0
PRECISIONS = ("float32", "bfloat16")
PARAMETERS = (
    Param("model", "", "directory of the reward model (RUN/model)"),
    Param("task", "", "task whose statistics standardise the reward; empty: all tasks of the training pooled"),
    Param("estimator", "", "which reward; empty: the model's default"),
    Param("device", "cpu", "cpu or cuda:N"),
    Param("precision", "float32", "of the video model", choices=PRECISIONS),
    Param("codec_precision", "float32", "of the codec", choices=PRECISIONS),
    Param("threads", 1, "of PyTorch; 0 leaves its own choice", 0, 256),
    Param("compressed", False, "subscribe to camera/color/image_raw/compressed instead of camera/color/image_raw"),
    Param("crop", "", "none, center, or x,y,width,height in pixels; empty: as the model was trained"),
    Param("frame_rate_hz", -1.0, "rate of the training recordings; 0 uses every frame, -1 asks the model", -1.0, 1e3),
    Param("camera_rate_hz", 0.0, "rate of the camera, to notice a slower one; 0 learns it", 0.0, 1000.0),
    Param("width", 0, "declared width of the images, pixels; 0 takes the first one's", 0, 8192),
    Param("height", 0, "declared height of the images, pixels; 0 takes the first one's", 0, 8192),
    Param("repeat_limit", 5, "identical images in a row that make the reward invalid; 0 allows them", 0, 1000),
    STOP_LIMIT,
    Param("ood_limit", 2.0, "rewards of images less familiar than this are invalid; 0 allows all", 0.0, 1e6),
    Param("exploration_alpha", 0.0, "share of novelty in the reward, which depends on all before; 0 off", 0.0, 1.0),
    Param("success_topic", "", "std_msgs/Bool that tells when the task is done; empty: none"),
    Param("success_weight", 1.0, "what a task that is done adds to the reward", 0.0, 1e6),
    Param("deadline_s", 0.1, "from the camera's stamp to publication; later ones are counted", 0.0, 10.0, live=True),
    *RIG,
    *IMAGE_QOS,
)


class RewardNode(ManagedNode):
    """One reward per frame. A frame that arrives during a computation waits, one after it replaces it (depth 1)."""

    def __init__(self) -> None:
        super().__init__("reward", PARAMETERS)
        self._model: RewardModel | None = None
        self._live: LiveReward | None = None
        self._rig: RigWatch | None = None
        self._subscription: Any = None
        self._success: Any = None
        self._counts: Counter[str] = Counter()
        self._heard_s = 0.0
        self._alone = True
        self._publisher = self.create_lifecycle_publisher(RewardStamped, "reward", 10)
        self._stops = self.create_lifecycle_publisher(String, "stop_request", 10)
        self.create_timer(WATCH_PERIOD_S, self._watch)

    def configure(self) -> None:
        path = Path(needed(self.value("model"), "model", "the directory of a reward model"))
        import torch

        from dr_core.rewards.model import RewardModel

        if self.value("threads"):
            torch.set_num_threads(self.value("threads"))
        precision = {name: self.value(name) for name in ("precision", "codec_precision")}
        self._model = RewardModel.load(path, self.value("device"), **precision)
        self._rig = self._watch_of(self._model)
        self._new_stream()
        compressed = self.value("compressed")
        topic = "camera/color/image_raw/compressed" if compressed else "camera/color/image_raw"
        kind = CompressedImage if compressed else Image
        self._subscription = self.create_subscription(kind, topic, self._on_image, image_qos(self))
        if self.value("success_topic"):
            self._success = self.create_subscription(Bool, self.value("success_topic"), self._on_success, 10)

    def activate(self) -> None:
        self._refuse_second_publisher()
        self._new_stream()
        self._heard_s = time.monotonic()

    def cleanup(self) -> None:
        self._model = self._live = self._rig = None
        for subscription in filter(None, (self._subscription, self._success)):
            self.destroy_subscription(subscription)
        self._subscription = self._success = None

    def _watch_of(self, model: RewardModel) -> RigWatch | None:
        watch, unguarded = watch_for_model(
            model.calibration_hashes,
            self.value("rig_file"),
            max_age_days=self.value("rig_max_age_days"),
            serial=self.value("camera_serial"),
            simulated=bool(model.manifest.get("render")),
        )
        without = "the model's recordings had no calibration, as those of a simulator have none"
        self.diagnostics.set("calibration", WARN if unguarded else OK, unguarded or (watch.words if watch else without))
        return watch

    def _new_stream(self) -> None:
        assert self._model is not None
        model = self._model
        rules = FrameRules(
            self.value("width"), self.value("height"), self.value("repeat_limit"), self.value("camera_rate_hz")
        )
        task = known_task(model, self.value("task"))
        self._live = LiveReward(
            model.stream(task=task, estimator=self.value("estimator") or None),
            model.config.image.with_crop(self.value("crop")),
            rules,
            spacing_ns=frame_spacing_ns(model, task, self.value("frame_rate_hz")),
            ood_limit=self.value("ood_limit"),
            exploration_alpha=self.value("exploration_alpha"),
            success_weight=self.value("success_weight"),
        )
        self._counts.clear()
        if self._rig is not None:
            self._rig.reset()

    def _on_success(self, message: Any) -> None:
        if self._live is not None:
            self._live.success = float(message.data)

    def _on_image(self, message: Any) -> None:
        if not self.active or self._live is None or self._model is None:
            return
        self._heard_s = time.monotonic()
        stamp_ns = stamp_to_ns(message.header.stamp)
        try:
            picture = to_array(message)
            judged = self._live.push(picture, stamp_ns, self.now_ns())
            if elsewhere := self._camera_elsewhere(picture, stamp_ns):
                judged = judged.distrusted(elsewhere)
        except DamagedImage as damaged:
            self._counts["damaged"] += 1
            self._report(f"dropped: {damaged}")
            return
        except UserError as error:
            self.refuse(error)
            return
        if stop := self._live.stop_cause(self.value("stop_limit")):
            self._counts["stop_requests"] += 1
            self._stops.publish(String(data=f"reward: {stop}"))
        if judged.reward is not None:
            latency_s = (self.now_ns() - stamp_ns) / 1e9
            self._counts["late"] += latency_s > self.value("deadline_s")
            self._counts["rewards"] += 1
            self._counts["invalid"] += not judged.reward.valid
            name = self._model.estimator(self.value("estimator") or None).name
            self._publisher.publish(
                reward_message(
                    judged.reward,
                    frame_id=message.header.frame_id,
                    latency_s=latency_s,
                    estimator=name,
                    model_hash=self._model.model_hash,
                )
            )
        self._report(judged.cause)

    def _camera_elsewhere(self, picture: Any, stamp_ns: int) -> str:
        """Why no reward is valid with the camera where it is; raises UserError if it was never where it belongs."""
        if self._rig is None:
            return ""
        cause = self._rig.guard(picture, stamp_ns)
        if not self._rig.watches:
            return ""
        level = ERROR if self._rig.verdict == "moved" else WARN if self._rig.verdict == "hidden" else OK
        self.diagnostics.set("calibration", level, self._rig.words)
        self._counts["camera_elsewhere"] += bool(cause)
        return cause

    def _report(self, cause: str) -> None:
        assert self._live is not None
        slow = self._live.gate.slow
        counts = {**self._counts, **{f"frames_{fault}": count for fault, count in self._live.counts.items()}}
        words = "; ".join(filter(None, (cause, slow)))
        self.diagnostics.set("frames", WARN if words else OK, words or "good", **counts)

    def _watch(self) -> None:
        if self._subscription is None:
            return
        mismatch = qos_mismatch(self, self._subscription.topic_name, image_qos(self))
        self.diagnostics.set("qos", ERROR if mismatch else OK, mismatch or "fits")
        if self.active:
            try:
                self._refuse_second_publisher()
            except UserError as error:
                self.refuse(error)
            silent_s = time.monotonic() - self._heard_s
            if self.active and silent_s > SILENCE_S:
                self.diagnostics.set("images", WARN, f"no image for {silent_s:.0f} s")
            else:
                self.diagnostics.set("images", OK, "arrive")
        elif not self._alone and self.value("autostart") and self.count_publishers(self._subscription.topic_name) < 2:
            self.trigger_activate()

    def _refuse_second_publisher(self) -> None:
        self._alone = False
        refuse_second_publisher(self, self._subscription.topic_name)
        self._alone = True


def main() -> int:
    return run(RewardNode)


if __name__ == "__main__":
    raise SystemExit(main())
