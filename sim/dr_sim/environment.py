"""What every simulated task shares: the agent's rate, action repeat, sparse success, joints and camera."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_sim.rendering import FrameRenderer

Observation = dict[str, NDArray[Any]]


class SimulatedEnvironment:
    """A simulated task, driven at the agent's rate. Subclasses build the simulator, begin episodes and observe.

    A subclass sets the attributes below in its constructor, and ``_raw`` and ``_steps`` in ``reset``.
    """

    task: str
    action_size: int
    action_repeat: int
    episode_steps: int
    _env: Any
    _renderer: FrameRenderer
    _joints: tuple[str, ...]
    _raw: NDArray[np.float64] | None = None
    _steps = 0

    @property
    def rate_hz(self) -> float:
        """Agent steps a second of simulated time."""
        return 1.0 / (float(self._env.dt) * self.action_repeat)

    @property
    def expert_observation(self) -> NDArray[np.float64]:
        """The simulator's full state observation, goal included: privileged, for experts only."""
        if self._raw is None:
            raise RuntimeError("reset() comes before expert_observation")
        return self._raw

    def reset(self, seed: int) -> Observation:
        """Start the episode that belongs to `seed` (non-negative)."""
        raise NotImplementedError

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Apply `action` (A,), clipped to [-1, 1], for `action_repeat` simulator steps.

        Returns: the observation; the number of successful simulator steps; whether the episode's time is
        over; and info with "success", True when any of the simulator steps succeeded.
        """
        if self._raw is None or self._steps >= self.episode_steps:
            raise RuntimeError("the episode is over or has not begun: call reset()")
        clipped = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        reward = sum(self._advance(clipped) for _ in range(self.action_repeat))
        self._steps += 1
        return self._observation(), reward, self._steps == self.episode_steps, {"success": reward > 0}

    def _advance(self, action: NDArray[np.float32]) -> float:
        """One simulator step with `action` (A,) in [-1, 1]; returns 1.0 where it succeeds, and sets ``_raw``."""
        self._raw, _, _, _, info = self._env.step(action)
        return float(np.asarray(info["success"]).item())

    def joint_state(self) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
        """Names, positions and velocities (J,) of the joints; rad (sliding joints: m) and per second."""
        joints = [self._env.model.joint(name) for name in self._joints]
        position = np.array([self._env.data.qpos[joint.qposadr[0]] for joint in joints])
        velocity = np.array([self._env.data.qvel[joint.dofadr[0]] for joint in joints])
        return self._joints, position, velocity

    def camera_matrix(self) -> NDArray[np.float64]:
        """Intrinsic matrix (3, 3) of the camera, pixels."""
        return self._renderer.camera_matrix()

    def close(self) -> None:
        """Free the renderer and the simulator."""
        self._renderer.close()
        self._env.close()

    def _observation(self) -> Observation:
        raise NotImplementedError
