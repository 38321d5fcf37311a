"""Experts and their dilution by random actions."""

import importlib.util

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

from dr_sim.experts import AdroitExpert, MixedPolicy
from dr_sim.metaworld_env import MetaWorldEnv

EXPERT_ACTION = np.full(4, 7.0, dtype=np.float32)  # outside [-1, 1], so never drawn at random


def shares(quality, steps, episodes=40):
    """Share of random actions in each of `episodes` episodes."""
    found = []
    for seed in range(episodes):
        policy = MixedPolicy(lambda observation: EXPERT_ACTION, quality, 4, np.random.default_rng(seed))
        actions = np.array([policy(np.zeros(39)) for _ in range(steps)])
        found.append(np.mean(actions[:, 0] != 7.0))
        random = actions[actions[:, 0] != 7.0]
        assert actions.dtype == np.float32 and (np.abs(random) <= 1).all()
    return np.array(found)


@pytest.mark.parametrize("quality", [0, 25, 50, 100])
def test_the_share_of_random_actions_is_exact_in_whole_blocks(quality):
    assert np.allclose(shares(quality, 100), quality / 100)


@pytest.mark.parametrize("quality", [25, 33])
def test_the_share_is_right_on_average_elsewhere(quality):
    assert shares(quality, 30, episodes=400).mean() == pytest.approx(quality / 100, abs=0.01)


def test_every_step_is_as_likely_to_be_random():
    chosen = np.zeros(20)
    for seed in range(2000):
        policy = MixedPolicy(lambda observation: EXPERT_ACTION, 25, 4, np.random.default_rng(seed))
        chosen += [policy(np.zeros(39))[0] != 7.0 for _ in range(20)]
    assert np.abs(chosen / 2000 - 0.25).max() < 0.05


@pytest.mark.parametrize("quality", [-1, 101])
def test_impossible_quality_is_refused(quality):
    with pytest.raises(ConfigError, match="0 to 100"):
        MixedPolicy(lambda observation: EXPERT_ACTION, quality, 4, np.random.default_rng(0))


@pytest.mark.parametrize("task", ["door-close", "dial-turn"])
def test_scripted_experts_succeed(task):
    from dr_sim.environments import make_expert

    env, expert = MetaWorldEnv(task), make_expert(task)
    for seed in range(3):
        env.reset(seed)
        for _ in range(env.episode_steps):
            action = expert(env.expert_observation)
            assert action.dtype == np.float32 and (np.abs(action) <= 1).all()
            if env.step(action)[3]["success"]:
                break
        else:
            pytest.fail(f"no success with seed {seed}")
    env.close()


def small_network(rng, observations=5, hidden=3, actions=2):
    sizes = [observations, hidden, hidden, actions]
    arrays = {f"w{i}": rng.normal(size=(sizes[i + 1], sizes[i])) for i in range(3)}
    arrays |= {f"b{i}": rng.normal(size=sizes[i + 1]) for i in range(3)}
    arrays |= {"in_shift": rng.normal(size=observations), "in_scale": rng.uniform(0.5, 2, observations)}
    return arrays | {"out_shift": rng.normal(size=actions) / 9, "out_scale": rng.uniform(0.1, 0.2, actions)}


def test_adroit_network_against_the_formula(tmp_path):
    rng = np.random.default_rng(0)
    a = small_network(rng)
    np.savez(tmp_path / "door_policy.npz", **a)
    expert = AdroitExpert(tmp_path / "door_policy.npz")
    for _ in range(5):
        observation = rng.normal(size=5)
        x = (observation - a["in_shift"]) / (a["in_scale"] + 1e-8)
        y = a["w2"] @ np.tanh(a["w1"] @ np.tanh(a["w0"] @ x + a["b0"]) + a["b1"]) + a["b2"]
        expected = np.clip(y * a["out_scale"] + a["out_shift"], -1, 1)
        assert np.allclose(expert(observation), expected, atol=1e-5)


def test_unusable_adroit_weights_are_refused(tmp_path):
    path = tmp_path / "door_policy.npz"
    arrays = small_network(np.random.default_rng(0))
    np.savez(path, **{**arrays, "b1": np.zeros(9)})
    with pytest.raises(UserError, match=r"w1 of shape \(3, 3\) instead of \(9, 3\)"):
        AdroitExpert(path)
    np.savez(path, **{name: value for name, value in arrays.items() if name != "out_scale"})
    with pytest.raises(UserError, match="no out_scale"):
        AdroitExpert(path)
    np.savez(path, **{**arrays, "w0": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match="unreadable"):
        AdroitExpert(path)
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(UserError, match="unreadable"):
        AdroitExpert(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(UserError, match="unreadable"):
        AdroitExpert(path.with_suffix(".npy"))
