"""One interface over the simulators: make an environment and the expert that solves it by the task's name."""

from __future__ import annotations

from pathlib import Path

from dr_core.errors import UserError
from dr_sim.environment import SimulatedEnvironment
from dr_sim.experts import AdroitExpert, Expert, PushExpert, ScriptedExpert
from dr_sim.rendering import CAMERA_HEIGHT, CAMERA_WIDTH, RenderSettings
from dr_sim.tasks import ADROIT_TASKS, PANDA_TASKS, default_camera, resolve_task


def default_render(task: str, *, size: int = 64) -> RenderSettings:
    """Fast settings with the camera that suits `task` (a resolved name), `size` x `size` pixels.

    The Panda's frames are cut from the pictures of its live camera, so that a reward learned from them can be used
    live.
    """
    if task in PANDA_TASKS:
        return RenderSettings(width=CAMERA_WIDTH, height=CAMERA_HEIGHT, camera=default_camera(task), square=size)
    return RenderSettings(width=size, height=size, camera=default_camera(task))


def make_environment(task: str, render: RenderSettings | None = None) -> SimulatedEnvironment:
    """The environment of `task` (any accepted spelling); `render` None takes `default_render`.

    Raises: ConfigError: unknown task. RenderingError: no back-end.
    """
    name = resolve_task(task)
    if render is None:
        render = default_render(name)
    if name in ADROIT_TASKS:
        from dr_sim.adroit_env import AdroitEnv

        return AdroitEnv(name, render=render)
    if name in PANDA_TASKS:
        from dr_sim.panda_env import PandaEnv

        return PandaEnv(render)
    from dr_sim.metaworld_env import MetaWorldEnv

    return MetaWorldEnv(name, render=render)


def adroit_weights_file(task: str, directory: Path | None) -> Path:
    """Path of the expert weights of an Adroit task.

    Raises: UserError: no directory given, or the file is not there.
    """
    name = f"{task.removeprefix('adroit-')}_policy.npz"
    path = None if directory is None else directory / name
    if path is None or not path.is_file():
        raise UserError(
            f"expert of {task}",
            expected=f"a file {name} with the weights of a tanh network",
            found="no directory given" if path is None else f"no {path}",
            next_step="pass the directory that holds it as --adroit-weights",
        )
    return path


def make_expert(task: str, adroit_weights: Path | None = None) -> Expert:
    """The expert of a resolved task name: trained (in `adroit_weights`) in Adroit, scripted elsewhere."""
    if task in ADROIT_TASKS:
        return AdroitExpert(adroit_weights_file(task, adroit_weights))
    return PushExpert() if task in PANDA_TASKS else ScriptedExpert(task)
