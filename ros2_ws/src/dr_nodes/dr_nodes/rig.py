"""Tells TF where the calibrated camera is, and diagnostics whether it still stands there."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from dr_core.data.images import DamagedImage
from dr_core.errors import UserError
from dr_nodes.common import ERROR, IMAGE_QOS, OK, RIG, WARN, ManagedNode, Param, image_qos, needed, run
from dr_nodes.convert import arrays_to_transform, stamp_to_ns, to_array
from dr_nodes.rig_watch import RigWatch

AGE_PERIOD_S = 60.0
PARAMETERS = (
    *(parameter for parameter in RIG if parameter.name != "rig_max_age_days"),
    Param("rig_max_age_days", 30.0, "an older calibration is warned of; 0 allows any age", 0.0, 36500.0),
    Param("limit_px", 0.0, "shift of the pictures that counts as moved, pixels; 0: 0.6 at 640 of width", 0.0, 1000.0),
    *IMAGE_QOS,
)
LEVELS = {"unknown": OK, "stands": OK, "moved": ERROR, "hidden": WARN}


class RigNode(ManagedNode):
    """Publishes T_base_camera or T_tool_camera once, latched, and checks a picture now and then."""

    def __init__(self) -> None:
        super().__init__("rig", PARAMETERS)
        self._watch: RigWatch | None = None
        self._images: Any = None
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._transforms = self.create_publisher(TFMessage, "/tf_static", latched)
        self.create_timer(AGE_PERIOD_S, self._tell_age)

    def configure(self) -> None:
        path = needed(self.value("rig_file"), "rig_file", "the camera's calibration, rig_NAME.yaml")
        settings = {"max_age_days": 0.0, "serial": self.value("camera_serial")}
        self._watch = RigWatch(path, **settings, limit_px=self.value("limit_px") or None)
        self._tell_age()

    def activate(self) -> None:
        assert self._watch is not None
        self._watch.reset()
        pose = self._watch.rig.pose
        if pose is None:
            self.diagnostics.set("pose", WARN, "the calibration has no pose: nothing on /tf_static")
        else:
            # TF's transform from frame to child maps points of the child into the frame: T_frame_child.
            transform = arrays_to_transform(
                self.now_ns(), pose.frame, pose.camera_frame, pose.T[:3, 3], np.array(pose.quaternion_xyzw)
            )
            self._transforms.publish(TFMessage(transforms=[transform]))
            accuracy = {"sd_mm": pose.sd_mm, "sd_deg": pose.sd_deg}
            self.diagnostics.set("pose", OK, f"{pose.camera_frame} in {pose.frame}", **accuracy)
        self.diagnostics.set("camera", OK, self._watch.words)
        self._images = self.create_subscription(Image, "camera/color/image_raw", self._on_image, image_qos(self))

    def deactivate(self) -> None:
        self.destroy_subscription(self._images)

    def cleanup(self) -> None:
        self._watch = None

    def _on_image(self, message: Any) -> None:
        if self._watch is None or not self.active:
            return
        try:
            seen = self._watch.check(to_array(message), stamp_to_ns(message.header.stamp))
        except DamagedImage:
            return
        except UserError as error:
            self.refuse(error)
            return
        values = {} if seen is None else {"shift_px": f"{seen.shift_px:.2f}", "share_seen": f"{seen.share:.2f}"}
        self.diagnostics.set("camera", LEVELS[self._watch.verdict], self._watch.words, **values)

    def _tell_age(self) -> None:
        if self._watch is not None:
            days, limit = self._watch.age_days, self.value("rig_max_age_days")
            old = f", older than {limit:g}: calibrate again" if 0.0 < limit < days else ""
            self.diagnostics.set("age", WARN if old else OK, f"{days:.1f} days old{old}", hash=self._watch.rig.hash)


def main() -> int:
    return run(RigNode)


if __name__ == "__main__":
    sys.exit(main())
