"""The simulated Panda's pushing task at the agent's rate, seen, moved and limited as on the live robot.

The constants below are those of `config/robots/sim_panda.yaml`, which the live nodes read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import ConfigError
from dr_sim.arm import TICK_S, SimulatedArm
from dr_sim.environment import Observation, SimulatedEnvironment
from dr_sim.rendering import RenderSettings

ACTION_M_S = 0.2
"""What an action of 1 means."""
LIMIT_M_S = 0.25
"""Longest velocity of the tool."""
WORKSPACE_LOWER_M = np.array([0.25, -0.40, 0.012])
WORKSPACE_UPPER_M = np.array([0.75, 0.40, 0.50])
"""Corners of the box that the tool does not leave."""
EPISODE_STEPS = 120
"""Agent steps an episode, 12 s; the expert needs 2.5 to 8.5 s."""
ACTION_REPEAT = 10


class PandaEnv(SimulatedEnvironment):
    """Push the block to the goal, 10 agent steps a second of simulated time.

    Actions are (3,) in [-1, 1]: velocity of the tool in base axes, 1 being 0.2 m/s. Observations: "image" (H, W, 3)
    uint8 RGB, "proprio" (10,) float32: the tool's position in metres and the arm's seven angles in radians. The
    expert's observation is (9,): positions of tool, block and goal. A simulator step is a control tick of 10 ms.

    Args:
        render: how frames are drawn; `default_render` cuts them from the live camera's picture.
        episode_steps: agent steps after which `step` returns done.

    Raises: ConfigError: an episode of no steps, or gymnasium-robotics is not installed. RenderingError: no back-end.
    """

    task = "panda-push"
    action_size = 3
    action_repeat = ACTION_REPEAT

    def __init__(self, render: RenderSettings, *, episode_steps: int = EPISODE_STEPS) -> None:
        if episode_steps < 1:
            raise ConfigError("episode_steps", expected="at least 1", found=str(episode_steps), next_step="raise it")
        self.episode_steps = episode_steps
        self._arm = SimulatedArm(settings=render)

    @property
    def rate_hz(self) -> float:
        """Agent steps a second of simulated time."""
        return 1.0 / (TICK_S * self.action_repeat)

    def reset(self, seed: int) -> Observation:
        """Start the episode that belongs to `seed` (non-negative): the one of the live robot with that seed."""
        self._arm.reset(seed)
        self._steps = 0
        self._raw = self._positions()
        return self._observation()

    def joint_state(self) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
        """Names, positions and velocities (9,) of the joints; rad (fingers: m) and per second."""
        return self._arm.joint_names, self._arm.joint_positions, self._arm.joint_velocities

    def camera_matrix(self) -> NDArray[np.float64]:
        """Intrinsic matrix (3, 3) of the frames, pixels."""
        return self._arm.camera_matrix()

    def close(self) -> None:
        """Free the renderer."""
        self._arm.close()

    def _advance(self, action: NDArray[np.float32]) -> float:
        velocity = ACTION_M_S * action.astype(np.float64)
        velocity *= LIMIT_M_S / max(LIMIT_M_S, float(np.linalg.norm(velocity)))
        place = self._arm.tool_pose[0]
        # The velocity that would just reach a wall of the workspace within an agent step.
        walls = (WORKSPACE_LOWER_M - place) * self.rate_hz, (WORKSPACE_UPPER_M - place) * self.rate_hz
        self._arm.command_twist(np.clip(velocity, *walls), np.zeros(3))
        self._arm.step(TICK_S)
        self._raw = self._positions()
        return float(self._arm.success)

    def _positions(self) -> NDArray[np.float64]:
        return np.concatenate([self._arm.tool_pose[0], self._arm.object_pose[0], self._arm.goal_m])

    def _observation(self) -> dict[str, NDArray[Any]]:
        proprio = np.concatenate([self._arm.tool_pose[0], self._arm.joint_positions[:7]])
        return {"image": self._arm.render(), "proprio": proprio.astype(np.float32)}
