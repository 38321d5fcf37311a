"""Meta-World v3 tasks as small environments: seeded goals, pictures, proprioception, sparse success."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dr_core.errors import ConfigError
from dr_sim.environment import Observation, SimulatedEnvironment
from dr_sim.rendering import FrameRenderer, RenderSettings, select_backend
from dr_sim.tasks import METAWORLD_TASKS, resolve_task

EPISODE_STEPS = 100
"""Agent steps an episode (paper)."""
# The simulator raises when it is stepped past its own time limit.
SIMULATOR_STEPS = 500
JOINT_NAMES = (*(f"right_j{i}" for i in range(7)), "r_close", "l_close")
"""Sawyer's arm joints (rad) and the two finger slides (m), as named in the MuJoCo model."""


def default_action_repeat(task: str) -> int:
    """Simulator steps an agent step (paper: 3 for assembly, 2 for the others)."""
    return 3 if task == "assembly" else 2


def open_task(task: str) -> Any:
    """Meta-World's own environment of a resolved task name; begin its episodes with `begin_episode`.

    Raises: RenderingError: no back-end.
    """
    select_backend()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    with warnings.catch_warnings():
        # Gymnasium warns about observation bounds and precision that the callers replace.
        warnings.simplefilter("ignore")
        env: Any = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    # The goal positions come from this environment's own generator instead of a frozen task or numpy's
    # global one, and the raw observation holds the goal, which the scripted experts need.
    env._set_task_called = True
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._partially_observable = False
    del env.sawyer_observation_space
    return env


def begin_episode(env: Any, seed: int) -> NDArray[np.float64]:
    """Start the episode that belongs to `seed` (non-negative); returns the raw observation (39,)."""
    import mujoco

    env.seed(seed)
    env.reset()
    # Meta-World moves bodies and goal markers in the model without updating the state: without this, the
    # first picture and the first observation show the scene of the model file and objects jump at the
    # first step.
    for site in env._target_site_config:
        env._set_pos_site(*site)
    mujoco.mj_forward(env.model, env.data)
    env._prev_obs = env._get_curr_obs_combined_no_goal()
    return env._get_obs()


class MetaWorldEnv(SimulatedEnvironment):
    """One Meta-World task, driven at the agent's rate.

    `reset(seed)` draws object and goal positions from `seed` alone, so the same seed gives the same episode
    whatever ran before. Actions are (4,) in [-1, 1]: Cartesian step of the hand and gripper effort.
    Observations: "image" (H, W, 3) uint8 RGB, "proprio" (8,) float32: hand position in metres and gripper
    opening in [0, 1], now and one simulator step before (as published). Positions of objects and the goal are
    only in `expert_observation`, for the scripted experts.

    Args:
        task: name with or without "-v3".
        render: how frames are drawn; None is the default settings.
        action_repeat: simulator steps an agent step; None takes the paper's.
        episode_steps: agent steps after which `step` returns done.

    Raises: ConfigError: unknown task, or an episode longer than the simulator allows. RenderingError: no
    back-end.
    """

    action_size = 4
    _joints = JOINT_NAMES

    def __init__(
        self,
        task: str,
        *,
        render: RenderSettings | None = None,
        action_repeat: int | None = None,
        episode_steps: int = EPISODE_STEPS,
    ) -> None:
        self.task = resolve_task(task)
        if self.task not in METAWORLD_TASKS:
            expected, next_step = "a Meta-World v3 task", "use make_environment"
            raise ConfigError("task", expected=expected, found=repr(task), next_step=next_step)
        self.action_repeat = default_action_repeat(self.task) if action_repeat is None else action_repeat
        self.episode_steps = episode_steps
        if self.action_repeat < 1 or not 1 <= self.action_repeat * episode_steps <= SIMULATOR_STEPS:
            raise ConfigError(
                "episode length",
                expected=f"action_repeat x episode_steps from 1 to {SIMULATOR_STEPS} simulator steps",
                found=f"{self.action_repeat} x {episode_steps}",
                next_step="lower one of them",
            )
        self._env = open_task(self.task)
        self._renderer = FrameRenderer(self._env.model, self._env.data, RenderSettings() if render is None else render)

    def reset(self, seed: int) -> Observation:
        """Start the episode that belongs to `seed` (non-negative)."""
        self._raw = begin_episode(self._env, seed)
        self._steps = 0
        return self._observation()

    def _observation(self) -> Observation:
        assert self._raw is not None
        return {
            "image": self._renderer.render(self._env.data),
            "proprio": np.concatenate([self._raw[:4], self._raw[18:22]]).astype(np.float32),
        }
