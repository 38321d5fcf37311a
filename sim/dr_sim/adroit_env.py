"""Adroit dexterous-hand tasks behind the same interface as Meta-World's, seen by the published cameras."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from dr_core.errors import ConfigError
from dr_sim.environment import Observation, SimulatedEnvironment
from dr_sim.rendering import FrameRenderer, RenderSettings, select_backend
from dr_sim.tasks import ADROIT_TASKS, default_camera, resolve_task

HAND_JOINTS = (
    *("WRJ1", "WRJ0", "FFJ3", "FFJ2", "FFJ1", "FFJ0", "MFJ3", "MFJ2", "MFJ1", "MFJ0", "RFJ3", "RFJ2", "RFJ1"),
    *("RFJ0", "LFJ4", "LFJ3", "LFJ2", "LFJ1", "LFJ0", "THJ4", "THJ3", "THJ2", "THJ1", "THJ0"),
)
"""Wrist and finger joints of every Adroit task (rad)."""


@dataclass(frozen=True)
class AdroitTask:
    """What differs between the tasks."""

    module: str
    """Module of gymnasium-robotics that holds the environment."""
    class_name: str
    arm_joints: tuple[str, ...]
    """Joints that carry the hand: `ARTz` in metres, the others in rad."""
    camera_name: str
    camera_position_m: tuple[float, float, float]
    """Published camera position in the world frame."""
    camera_yaw_rad: float | None
    """Turn about the vertical of a camera that looks straight down; None keeps the model's orientation."""
    episode_steps: int
    """Agent steps of two simulator steps (published horizons: 200, 200 and 100 simulator steps)."""


TASKS = {
    "adroit-door": AdroitTask(
        "adroit_door",
        "AdroitHandDoorEnv",
        ("ARTz", "ARRx", "ARRy", "ARRz"),
        "fixed",
        (0.0, 0.0, 1.5),
        3.14,
        100,
    ),
    "adroit-hammer": AdroitTask(
        "adroit_hammer", "AdroitHandHammerEnv", ("ARRx", "ARRy"), "fixed", (0.0, 0.0, 1.1), 3.14, 100
    ),
    "adroit-pen": AdroitTask("adroit_pen", "AdroitHandPenEnv", (), "vil_camera", (0.0, -0.8, 0.8), None, 50),
}


class AdroitEnv(SimulatedEnvironment):
    """One Adroit task (`AdroitHand*-v1` of gymnasium-robotics), driven at the agent's rate.

    `reset(seed)` draws the scene from `seed`. Actions are (A,) in [-1, 1], A = 28, 26, 24 for door, hammer,
    pen. Observations: "image" (H, W, 3) uint8 RGB, "proprio" (24,) float32: joint angles of wrist and fingers
    in rad. Success is that of version 1: the door needs a hinge angle of 1.35 rad, the pen both distance and
    orientation.

    Args:
        task: "adroit-door", "adroit-hammer" or "adroit-pen".
        render: how frames are drawn; None is the default settings with the task's published camera.
        action_repeat: simulator steps an agent step.
        episode_steps: agent steps after which `step` returns done; None takes the published horizon.

    Raises: ConfigError: unknown task. RenderingError: no back-end.
    """

    def __init__(
        self,
        task: str,
        *,
        render: RenderSettings | None = None,
        action_repeat: int = 2,
        episode_steps: int | None = None,
    ) -> None:
        self.task = resolve_task(task)
        if self.task not in TASKS:
            raise ConfigError(
                "task",
                expected=f"one of {', '.join(ADROIT_TASKS)}",
                found=repr(task),
                next_step="use MetaWorldEnv",
            )
        spec = TASKS[self.task]
        self.action_repeat = action_repeat
        self.episode_steps = spec.episode_steps if episode_steps is None else episode_steps
        if self.action_repeat < 1 or self.episode_steps < 1:
            raise ConfigError(
                "episode length",
                expected="positive action_repeat and episode_steps",
                found=f"{self.action_repeat} and {self.episode_steps}",
                next_step="raise them",
            )
        select_backend()
        # On import the package prints a notice about reward functions that are not used here.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            module = importlib.import_module(f"gymnasium_robotics.envs.adroit_hand.{spec.module}")
            self._env: Any = getattr(module, spec.class_name)()
        self.action_size = int(self._env.action_space.shape[0])
        self._joints = spec.arm_joints + HAND_JOINTS
        self._place_camera(spec)
        if render is None:
            render = RenderSettings(camera=default_camera(self.task))
        self._renderer = FrameRenderer(self._env.model, self._env.data, render)

    def reset(self, seed: int) -> Observation:
        """Start the episode that belongs to `seed` (non-negative)."""
        self._raw, _ = self._env.reset(seed=seed)
        self._steps = 0
        return self._observation()

    def _place_camera(self, spec: AdroitTask) -> None:
        """Move the published camera; the state follows the model only after `mj_forward`."""
        import mujoco

        camera = self._env.model.camera(spec.camera_name)
        camera.pos[:] = spec.camera_position_m
        if spec.camera_yaw_rad is not None:
            half = spec.camera_yaw_rad / 2
            camera.quat[:] = (np.cos(half), 0.0, 0.0, np.sin(half))  # wxyz
        mujoco.mj_forward(self._env.model, self._env.data)

    def _observation(self) -> Observation:
        _, position, _ = self.joint_state()
        return {
            "image": self._renderer.render(self._env.data),
            "proprio": position[-len(HAND_JOINTS) :].astype(np.float32),
        }
