"""Simulated tasks: seeds, isolation of environments in one process, interface, names."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("metaworld") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.errors import ConfigError, RenderingError, UserError
from dr_sim.rendering import select_backend

try:
    select_backend()
except RenderingError as error:
    pytest.skip(str(error), allow_module_level=True)

from dr_sim.adroit_env import HAND_JOINTS, AdroitEnv
from dr_sim.environments import adroit_weights_file, make_environment, make_expert
from dr_sim.metaworld_env import MetaWorldEnv
from dr_sim.tasks import ADROIT_TASKS, METAWORLD_TASKS, SEEN_TASKS, UNSEEN_TASKS, resolve_task


@pytest.fixture(scope="module")
def dial():
    env = MetaWorldEnv("dial-turn-v3")
    yield env
    env.close()


def play(env, seed, steps):
    """Frames (steps + 1, H, W, 3) of an episode of random actions."""
    rng = np.random.default_rng(seed)
    frames = [env.reset(seed)["image"]]
    frames += [env.step(rng.uniform(-1, 1, env.action_size))[0]["image"] for _ in range(steps)]
    return np.stack(frames)


def test_interface(dial):
    observation = dial.reset(0)
    assert observation["image"].shape == (64, 64, 3) and observation["image"].dtype == np.uint8
    assert observation["proprio"].shape == (8,) and observation["proprio"].dtype == np.float32
    observation, reward, done, info = dial.step(np.zeros(4))
    assert reward == 0.0 and not done and info == {"success": False}
    assert dial.rate_hz == pytest.approx(40.0)
    names, position, velocity = dial.joint_state()
    assert names[0] == "right_j0" and len(names) == len(position) == len(velocity) == 9


def test_pictures_are_upright(dial):
    image = dial.reset(0)["image"].astype(int)
    assert np.ptp(image[:2, 40:], axis=(0, 1)).max() < 10  # plain background above the scene
    red, _, blue = image[-8:, 24:].mean((0, 1))
    assert red > blue + 20  # the wooden table below


def test_same_seed_same_episode_whatever_ran_before(dial):
    first = play(dial, 3, 4)
    play(dial, 7, 9)
    assert np.array_equal(play(dial, 3, 4), first)
    other = MetaWorldEnv("dial-turn")
    assert np.array_equal(play(other, 3, 4), first)
    other.close()


def test_seeds_differ_in_goal_and_picture(dial):
    seen = {seed: (dial.reset(seed)["image"], dial.expert_observation[36:39].copy()) for seed in range(4)}
    for seed in range(1, 4):
        assert not np.array_equal(seen[seed][0], seen[0][0])
        assert not np.allclose(seen[seed][1], seen[0][1])


def test_first_frame_shows_the_scene_that_the_second_continues():
    # Meta-World's own reset leaves bodies where the model file has them until the first step.
    env = MetaWorldEnv("window-open")
    first, second = play(env, 5, 1).astype(int)
    window = (slice(20, 44), slice(36, 52))
    assert np.abs(first[window] - second[window]).max() == 0
    env.close()


def test_the_goal_is_hidden(dial):
    first = dial.reset(0)["proprio"]
    goals = []
    for seed in range(3):
        assert np.allclose(dial.reset(seed)["proprio"], first, atol=1e-6)
        goals.append(dial.expert_observation[36:39])
    assert np.std(goals, axis=0).max() > 0


def test_environments_in_one_process_do_not_mix():
    tasks = ("door-close", "coffee-push", "adroit-pen")
    envs = [make_environment(task) for task in tasks]
    rngs = [np.random.default_rng(1) for _ in tasks]
    frames = [[env.reset(1)["image"]] for env in envs]
    for _ in range(5):
        for env, rng, seen in zip(envs, rngs, frames, strict=True):
            seen.append(env.step(rng.uniform(-1, 1, env.action_size))[0]["image"])
    for env in envs:
        env.close()
    for task, seen in zip(tasks, frames, strict=True):
        env = make_environment(task)
        assert np.array_equal(seen, play(env, 1, 5))
        env.close()


@pytest.mark.parametrize("task", ["reach", "lever-pull", "adroit-hammer", "panda-push"])
def test_an_episode_depends_on_its_seed_and_on_nothing_else(task):
    np.random.seed(0)  # noqa: NPY002 - the simulators' possible source of hidden randomness
    env = make_environment(task)
    first = play(env, 11, 2)
    states = {seed: (env.reset(seed), env.expert_observation.copy()) for seed in (12, 13)}
    assert not np.allclose(states[12][1], states[13][1])
    if task in METAWORLD_TASKS:  # the goal is random, and only the experts are told
        assert not np.allclose(states[12][1][36:39], states[13][1][36:39])
        assert np.allclose(states[12][0]["proprio"], states[13][0]["proprio"], atol=1e-6)
    np.random.seed(1)  # noqa: NPY002
    env.step(np.ones(env.action_size))
    assert np.array_equal(play(env, 11, 2), first)
    env.close()


def test_reward_counts_successful_simulator_steps():
    env = MetaWorldEnv("door-close")
    expert = make_expert("door-close")
    env.reset(0)
    rewards = []
    for _ in range(60):
        _, reward, _, info = env.step(expert(env.expert_observation))
        assert info["success"] == (reward > 0)
        rewards.append(reward)
    assert rewards[0] == 0.0 and max(rewards) == 2.0
    env.close()


def test_episode_ends_before_the_simulator_refuses():
    env = MetaWorldEnv("assembly", episode_steps=4)
    assert env.action_repeat == 3 and env.rate_hz == pytest.approx(80 / 3)
    env.reset(0)
    assert [env.step(np.zeros(4))[2] for _ in range(4)] == [False, False, False, True]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(4))
    env.close()
    with pytest.raises(ConfigError, match="500"):
        MetaWorldEnv("assembly", episode_steps=167)


def test_task_names():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"{task}-v3" for task in METAWORLD_TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert len(SEEN_TASKS) == 7 and len(UNSEEN_TASKS) == 8 and not set(SEEN_TASKS) & set(UNSEEN_TASKS)
    assert set(SEEN_TASKS + UNSEEN_TASKS) <= set(METAWORLD_TASKS)
    assert resolve_task("door-close-v3") == resolve_task("door-close") == "door-close"
    with pytest.raises(ConfigError, match="did you mean 'door-close'"):
        resolve_task("door-closed")
    with pytest.raises(ConfigError, match="did you mean 'adroit-pen'"):
        make_environment("adroit-pan")


@pytest.mark.parametrize(
    ("task", "actions", "joints", "state"), [("adroit-door", 28, 28, 39), ("adroit-pen", 24, 24, 45)]
)
def test_adroit_has_the_same_interface(task, actions, joints, state, tmp_path):
    env = make_environment(task)
    assert isinstance(env, AdroitEnv) and env.action_size == actions and env.rate_hz == pytest.approx(50.0)
    first = play(env, 3, 2)
    assert first.shape == (3, 64, 64, 3) and first.std() > 20
    assert not np.array_equal(env.reset(4)["image"], first[0])
    assert np.array_equal(play(env, 3, 2), first)
    assert env.reset(0)["proprio"].shape == (len(HAND_JOINTS),) == (24,)
    assert len(env.joint_state()[0]) == joints and env.expert_observation.shape == (state,)
    env.close()


def test_missing_adroit_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=r"door_policy\.npz"):
        adroit_weights_file("adroit-door", None)
    with pytest.raises(UserError, match=str(tmp_path / "pen_policy.npz")):
        make_expert("adroit-pen", Path(tmp_path))
    assert set(ADROIT_TASKS) == {"adroit-door", "adroit-hammer", "adroit-pen"}
