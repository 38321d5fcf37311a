"""The pushing task as an environment: the live robot's scale, limits and pictures; its expert; its recordings."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("gymnasium_robotics") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.data.episodes import read_episode
from dr_core.data.images import ImageRule
from dr_core.safety.limits import load_robot
from dr_sim import panda_env
from dr_sim.commands import RecordExpert
from dr_sim.environments import default_render, make_environment, make_expert
from dr_sim.panda_env import PandaEnv
from dr_sim.record import episode_path
from dr_sim.rendering import RenderSettings
from dr_sim.robot import make_robot
from dr_sim.tasks import resolve_task

TASK = "panda-push"
ROBOT = load_robot(Path(__file__).parents[2] / "config" / "robots" / "sim_panda.yaml")
RULE = ImageRule(64, "center")


@pytest.fixture(scope="module")
def env() -> Iterator[PandaEnv]:
    made = make_environment(TASK)
    assert isinstance(made, PandaEnv) and resolve_task(TASK) == TASK
    yield made
    made.close()


@pytest.fixture(scope="module")
def quick() -> Iterator[PandaEnv]:
    """Its pictures are small, for tests that do not look."""
    made = PandaEnv(RenderSettings(16, 16, camera="front"))
    yield made
    made.close()


def test_scale_and_limits_are_those_of_the_robot_file() -> None:
    assert ROBOT.action.linear_m_s == panda_env.ACTION_M_S
    assert ROBOT.limits.linear_speed_m_s == panda_env.LIMIT_M_S
    assert tuple(panda_env.WORKSPACE_LOWER_M) == ROBOT.limits.workspace_lower_m
    assert tuple(panda_env.WORKSPACE_UPPER_M) == ROBOT.limits.workspace_upper_m


def test_interface(env: PandaEnv) -> None:
    observation = env.reset(0)
    assert observation["image"].shape == (64, 64, 3) and observation["image"].dtype == np.uint8
    assert observation["proprio"].shape == (10,) and observation["proprio"].dtype == np.float32
    observation, reward, done, info = env.step(np.zeros(3))
    assert (reward, done, info) == (0.0, False, {"success": False})
    assert env.rate_hz == pytest.approx(10.0) and env.expert_observation.shape == (9,)
    names, position, velocity = env.joint_state()
    assert names[:7] == ROBOT.joints and len(names) == len(position) == len(velocity) == 9


def test_an_action_is_a_velocity(quick: PandaEnv) -> None:
    for action in ([0.0, 0.5, 0.0], [0.0, -1.0, 0.0], [0.4, 0.0, 0.4]):
        quick.reset(0)
        for _ in range(5):
            quick.step(np.array(action))
        before = quick.expert_observation[:3]
        for _ in range(5):
            quick.step(np.array(action))
        moved = quick.expert_observation[:3] - before
        assert moved == pytest.approx(0.5 * ROBOT.action.linear_m_s * np.array(action), abs=0.006)


def test_the_tool_is_no_faster_than_the_limit_and_stays_in_the_workspace(quick: PandaEnv) -> None:
    for action in ([1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 0.0, -1.0]):
        quick.reset(0)
        places = [quick.expert_observation[:3]]
        for _ in range(60):
            quick.step(np.array(action))
            places.append(quick.expert_observation[:3])
        speeds = np.linalg.norm(np.diff(places, axis=0), axis=1) * quick.rate_hz
        assert 0.9 < speeds[:5].mean() / ROBOT.limits.linear_speed_m_s < 1.02
        assert (np.array(places) > panda_env.WORKSPACE_LOWER_M - 0.005).all()
        assert (np.array(places) < panda_env.WORKSPACE_UPPER_M + 0.005).all()


def test_frames_are_those_of_the_live_camera(env: PandaEnv) -> None:
    """The robot as sim_robot makes it, through the crop of the reward node: equal at the same state."""
    live = make_robot(TASK, ROBOT.joints, command_timeout_s=0.2, width=640, height=480)
    frames = [env.reset(5)["image"]]
    live.reset(5)
    assert live.render().shape == (480, 640, 3)
    assert np.array_equal(RULE.apply(live.render()), frames[0])
    expert = make_expert(TASK)
    for _ in range(12):
        action = expert(env.expert_observation)
        frames.append(env.step(action)[0]["image"])
        for _ in range(10):
            live.command_twist(ROBOT.action.linear_m_s * action.astype(np.float64), np.zeros(3))
            live.step(0.01)
        assert np.array_equal(RULE.apply(live.render()), frames[-1])
    assert not np.array_equal(frames[0], frames[-1])
    live.close()


def test_same_seed_same_episode(env: PandaEnv) -> None:
    def play(seed: int) -> np.ndarray:
        random = np.random.default_rng(0)
        frames = [env.reset(seed)["image"]]
        frames += [env.step(random.uniform(-1, 1, 3))[0]["image"] for _ in range(5)]
        return np.stack(frames)

    first = play(3)
    assert not np.array_equal(play(4), first)
    assert np.array_equal(play(3), first)


def test_the_expert_succeeds_well_before_the_end(quick: PandaEnv) -> None:
    expert = make_expert(TASK)
    for seed in range(5):
        quick.reset(seed)
        for _ in range(quick.episode_steps - 20):
            if quick.step(expert(quick.expert_observation))[3]["success"]:
                break
        else:
            pytest.fail(f"no success with seed {seed}")


def test_the_episode_ends(quick: PandaEnv) -> None:
    quick.reset(0)
    assert [quick.step(np.zeros(3))[2] for _ in range(quick.episode_steps)].index(True) == quick.episode_steps - 1
    with pytest.raises(RuntimeError, match="reset"):
        quick.step(np.zeros(3))


def test_recordings_say_how_they_were_made(env: PandaEnv, tmp_path: Path) -> None:
    assert RecordExpert(task=(TASK,), out=tmp_path, workers=1, episodes=1, seed=4, quality=(0, 100)).run() == 0
    episode = read_episode(episode_path(tmp_path, TASK, 0, 4), rule=ImageRule(64, "none"))
    metadata = episode.metadata
    assert (metadata.task, metadata.outcome, metadata.camera) == (TASK, "success", "front")
    assert metadata.rate_hz == pytest.approx(10.0)
    assert set(metadata.versions) == {"mujoco", "gymnasium-robotics", "dr_core"}
    shown = {name: metadata.render[name] for name in ("width", "height", "square", "camera")}
    assert shown == {"width": "640", "height": "480", "square": "64", "camera": "front"}
    assert metadata.render == default_render(TASK).to_dict()
    assert np.array_equal(env.reset(4)["image"], episode.frames[0])
    for action, frame in zip(episode.actions, episode.frames[1:], strict=True):
        assert np.array_equal(env.step(action)[0]["image"], frame)
    random = read_episode(episode_path(tmp_path, TASK, 100, 4), rule=ImageRule(64, "none"))
    assert random.metadata.outcome == "failure" and len(random.actions) == env.episode_steps
    smaller = default_render(TASK, size=32)
    assert smaller.frame_size == (32, 32) and smaller.to_dict()["width"] == "640"
