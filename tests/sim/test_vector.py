"""Vectorised environments: the episodes of a single one, no cross-talk, and workers that never stay behind."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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

import gymnasium

from dr_sim import vector
from dr_sim.environments import default_render, make_environment, make_expert
from dr_sim.vector import VectorEnvironment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair():
    with VectorEnvironment("door-close", 2) as environments:
        yield environments


def random_actions(env, seed, steps):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, env.action_size)).astype(np.float32)


def alone(task, seed, actions):
    """Frames (T+1, H, W, 3) of the episode as one environment plays it."""
    env = make_environment(task)
    frames = [env.reset(seed)["image"], *(env.step(action)[0]["image"] for action in actions)]
    env.close()
    return np.stack(frames)


def test_whole_episodes_are_those_of_a_single_environment(pair):
    env, expert = make_environment("door-close"), make_expert("door-close")
    episodes = []
    for seed in (3, 4):
        observation = env.reset(seed)
        frames, actions, rewards, dones, successes = [observation["image"]], [], [], [], []
        while not dones or not dones[-1]:
            actions.append(np.asarray(expert(env.expert_observation), np.float32))
            observation, reward, done, info = env.step(actions[-1])
            frames.append(observation["image"])
            rewards.append(reward)
            dones.append(done)
            successes.append(info["success"])
        episodes.append((frames, actions, rewards, dones, successes))
    assert pair.episode_steps == len(episodes[0][1]) and (pair.action_size, pair.action_repeat) == (4, 2)

    seen = pair.reset([3, 4])
    for i, (frames, *_) in enumerate(episodes):
        assert np.array_equal(seen[i], frames[0])
    for k in range(pair.episode_steps):
        steps = pair.step(np.stack([actions[k] for _, actions, *_ in episodes]))
        for i, (frames, _, rewards, dones, successes) in enumerate(episodes):
            assert np.array_equal(steps.frames[i], frames[k + 1])
            got = (steps.rewards[i], steps.dones[i], steps.successes[i])
            assert got == (rewards[k], dones[k], successes[k])
    assert steps.dones.all() and any(episodes[0][4])

    # The last frames are the true ones; nothing begins until it is told to.
    with pytest.raises(RuntimeError, match="reset"):
        pair.step(np.zeros((2, 4)))
    mixed = pair.reset([None, 3])
    assert np.array_equal(mixed[0], episodes[0][0][-1]) and np.array_equal(mixed[1], episodes[0][0][0])
    with pytest.raises(RuntimeError, match=r"\[0\]"):
        pair.step(np.zeros((2, 4)))
    assert np.array_equal(pair.reset([4, None]), [episodes[1][0][0], episodes[0][0][0]])
    env.close()


def test_two_tasks_side_by_side_in_workers_render_as_alone(pair):
    with VectorEnvironment("coffee-push", 2) as other:
        both = {"door-close": pair, "coffee-push": other}
        actions = {task: [random_actions(env, seed, 6) for seed in (5, 6)] for task, env in both.items()}
        frames = {task: [env.reset([5, 6])] for task, env in both.items()}
        for k in range(6):
            for task, env in both.items():
                frames[task].append(env.step(np.stack([own[k] for own in actions[task]])).frames)
    for task, seen in frames.items():
        for i, seed in enumerate((5, 6)):
            assert np.array_equal(np.stack(seen)[:, i], alone(task, seed, actions[task][i]))


def test_one_environment_needs_no_process(pair):
    before = multiprocessing.active_children()
    with VectorEnvironment("drawer-open-v3", 1) as single:
        assert set(multiprocessing.active_children()) <= set(before)
        actions = random_actions(single, 0, 3)
        frames = [single.reset([8]), *(single.step(action[None]).frames for action in actions)]
        assert np.array_equal(np.concatenate(frames), alone("drawer-open", 8, actions))
        with pytest.raises(ValueError, match="shape"):
            single.step(actions)
        with pytest.raises(ValueError, match="seeds"):
            single.reset([1, 2])


def test_mistakes_are_named_and_leave_no_worker(monkeypatch):
    with pytest.raises(ConfigError, match="at least 1"):
        VectorEnvironment("door-close", 0)
    with pytest.raises(ConfigError, match="did you mean 'door-close'"):
        VectorEnvironment("door-clos", 2)
    # One that only the workers meet, since the environment made here first is replaced.
    facts = {"action_size": 4, "action_repeat": 2, "episode_steps": 100, "rate_hz": 40.0}
    monkeypatch.setattr(vector, "make_environment", lambda *_: SimpleNamespace(**facts, close=lambda: None))
    before = multiprocessing.active_children()
    with pytest.raises(ConfigError, match="corner4"):
        VectorEnvironment("door-close", 2, replace(default_render("door-close"), camera="nowhere"))
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.filterwarnings("ignore:.*ERROR")  # gymnasium's way to show the worker's traceback
@pytest.mark.parametrize("fault", ["raises", "is killed"])
def test_a_fault_in_one_worker_ends_all(fault):
    before = set(multiprocessing.active_children())
    environments = VectorEnvironment("door-close", 2)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    environments.reset([0, 1])
    if fault == "raises":
        with pytest.raises(gymnasium.error.Error, match="greater or equal to zero"):
            environments.reset([0, -1])
    else:
        os.kill(min(worker.pid for worker in workers), signal.SIGKILL)
        with pytest.raises(UserError, match="out of memory"):
            for _ in range(2):  # the pipe takes the first message
                environments.step(np.zeros((2, 4)))
    assert not any(worker.is_alive() for worker in workers)
    environments.close()


SCRIPT = """
import sys
import numpy as np
from dr_sim.vector import VectorEnvironment

if __name__ == "__main__":
    try:
        with VectorEnvironment("door-close", 2) as environments:
            while True:
                environments.reset([0, 1])
                for _ in range(environments.episode_steps):
                    environments.step(np.zeros((2, 4)))
                    print("step", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def processes_of(session):
    """Ids of the living processes of a session."""
    alive = []
    for entry in Path("/proc").iterdir():
        try:
            _, _, rest = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, own_session, *_ = rest.split()
        if int(own_session) == session and state not in "ZX":
            alive.append(int(entry.name))
    return alive


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_behind(number, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(ROOT), str(ROOT / "sim")])
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            # Where pytest was started in the background it ignores SIGINT, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        assert [process.stdout.readline() for _ in range(3)] == ["step\n"] * 3, errors.read_text()
        assert len(processes_of(process.pid)) >= 3
        if number == signal.SIGINT:  # as a terminal sends it: to every process
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.stdout.read()  # until the last process is gone
        assert process.wait(timeout=60) == (130 if number == signal.SIGINT else -number)
        deadline = time.monotonic() + 60
        while processes_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of(process.pid) == []
    finally:
        for left in processes_of(process.pid):
            os.kill(left, signal.SIGKILL)
    assert "Traceback" not in errors.read_text()
