"""A simulated task that pays GenReward at each step: against the training loop's own terms, and for another library."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

if importlib.util.find_spec("metaworld") is None:
    pytest.skip("the simulator is not installed", allow_module_level=True)

from dr_core.errors import OutputInUseError, RenderingError
from dr_sim.rendering import select_backend

try:
    select_backend()
except RenderingError as error:
    pytest.skip(str(error), allow_module_level=True)

from gymnasium.utils.env_checker import check_env

from dr_core.agent.actor import ActorConfig, NetworkConfig
from dr_core.agent.drqv2 import AgentConfig, DrQV2
from dr_core.agent.loop import GOAL_VIDEO, SPARSE, VIDEO, AgentStage, LoopConfig, reward_columns
from dr_core.agent.replay import Batch, Replay
from dr_core.data.video import write_video
from dr_core.rewards.genreward.encoders import CodecFrames, CodecVideo
from dr_core.rewards.genreward.forward_backward import FBConfig
from dr_core.rewards.genreward.goal import Goal
from dr_core.rewards.genreward.reward import GenReward, GenRewardConfig
from dr_core.rewards.model import RewardModel
from dr_core.rewards.names import RewardName
from dr_core.rewards.online import RewardConfig, video_reward
from dr_sim import reward_env
from dr_sim.experts import ScriptedExpert
from dr_sim.metaworld_env import MetaWorldEnv
from dr_sim.reward_env import RewardEnv

TASK, STEPS = "door-close", 21
ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / TASK / "reward"
GOAL = GenRewardConfig(
    video_weight=0.5, fb_weight=0.1, video_motion=True, fb_density=True, video_every=9,
    fb=FBConfig(size=16, hidden_size=32, batch_size=64, update_every=4),
)  # fmt: skip
CONFIG = RewardConfig("genreward", alpha=0.0, video_weight=0.25, success_weight=2.0, goal=GOAL)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return RewardModel.load(MODEL)


@pytest.fixture(scope="module")
def goal() -> Goal:
    """An expert's way to the closed door."""
    environment, expert = MetaWorldEnv(TASK), ScriptedExpert(TASK)
    frames = [environment.reset(9000)["image"]]
    for _ in range(40):
        action = expert(environment.expert_observation)
        frames.append(environment.step(action)[0]["image"])
    environment.close()
    return Goal(np.stack(frames), 40, "last", "an expert")


Make = Callable[..., RewardEnv]


@pytest.fixture
def make(model: RewardModel, goal: Goal, tmp_path: Path) -> Any:
    """Makes environments of short episodes, each with a replay of its own, and closes them."""
    made: list[RewardEnv] = []

    def one(config: RewardConfig = CONFIG, **options: Any) -> RewardEnv:
        encoder = CodecFrames(model)
        genreward = GenReward(config.goal, goal, encoder, CodecVideo(encoder), 4)
        options.setdefault("model", model if config.name == "genreward_diffusion" else None)
        environment = MetaWorldEnv(TASK, episode_steps=options.pop("steps", STEPS))
        made.append(RewardEnv(environment, genreward, tmp_path / f"replay_{len(made)}", config, **options))
        return made[-1]

    yield one
    for env in made:
        env.close()


def play(
    env: RewardEnv, draw: np.random.Generator, expert: ScriptedExpert | None = None, **options: Any
) -> tuple[NDArray[Any], ...]:
    """An episode of random actions, or an expert's: frames (T + 1, ...), actions (T, 4), rewards (T,), infos (T,)."""
    frame, _ = env.reset(**options)
    frames, actions, rewards, infos, over = [frame], [], [], [], False
    while not over:
        action = draw.uniform(-1.2, 1.2, 4) if expert is None else expert(env._environment.expert_observation)
        frame, reward, terminated, over, info = env.step(action.astype(np.float32))
        assert not terminated
        frames.append(frame)
        actions.append(np.clip(action, -1.0, 1.0).astype(np.float32))
        rewards.append(reward)
        infos.append(info)
    return np.stack(frames), np.stack(actions), np.array(rewards), np.array(infos)


def test_gymnasium_finds_nothing_to_complain_of(make: Make) -> None:
    env = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*alternative render modes")  # it draws nothing but observations
        check_env(env)
    assert env.observation_space.shape == (64, 64, 3) and env.action_space.shape == (4,)


@pytest.mark.parametrize(("name", "centred"), [("genreward", False), ("genreward_diffusion", True)])
def test_a_step_is_paid_what_the_loop_computes_for_whole_episodes(
    make: Make, model: RewardModel, tmp_path: Path, name: RewardName, centred: bool
) -> None:
    """A random episode and an expert's through the loop's own code, with F and B as they are in the second one."""
    config, steps = replace(CONFIG, name=name, centred=centred), 40
    env, draw = make(config, steps=steps), np.random.default_rng(0)
    episodes = [play(env, draw, seed=3), play(env, draw, ScriptedExpert(TASK))]
    genreward = env._genreward
    settings = LoopConfig(reward=config, agent=AgentConfig(n_step=1), network=NetworkConfig(hidden_size=8))
    agent = DrQV2(ActorConfig(4, TASK, 40.0, network=settings.network), settings.agent, seed=0)
    reaches = []
    with Replay(
        tmp_path / "loop", capacity=100, action_size=4, n_step=1, reward_names=reward_columns(config),
        feature_size=genreward.feature_size,
    ) as replay:  # fmt: skip
        score = video_reward(name, TASK, model=MODEL)
        stage = AgentStage(settings, agent, Parallel(), replay, score, None, tmp_path, genreward)
        for updates, (frames, actions, _, infos) in enumerate(episodes):
            stage._updates = updates  # the first one is the random one, whose means are subtracted
            sparse = np.array([info["term_success"] for info in infos], np.float32) / np.float32(config.success_weight)
            rewards = stage._keep(frames[None], actions[None], sparse[None])
            features = genreward.encode(frames[None])[0]
            reaches.append(genreward.reach(features[:-1], actions, centred=False))
    kept = {column: values[0] for column, values in rewards.items()}
    assert np.flatnonzero(kept[GOAL_VIDEO]).tolist() == [8, 17, 26, 39], "the rest of four steps is no clip"
    assert 0 < np.flatnonzero(kept[SPARSE])[0] < steps - 2 and kept[SPARSE].max() == 2.0
    assert name == "genreward" or np.ptp(kept[VIDEO]) > 0.1
    discounts = np.full(steps, settings.agent.discount, np.float32)
    nothing = np.zeros((steps, 3, 64, 64), np.uint8)
    wanted = stage._reward(Batch(nothing, actions, kept, discounts, nothing, features[:-1]), draw)
    frames, actions, paid, infos = episodes[1]
    names = ("video", "success", "goal_video", "fb")
    told = {name: np.array([info[f"term_{name}"] for info in infos]) for name in names}
    np.testing.assert_allclose(told["video"], wanted.video, atol=2e-4)
    np.testing.assert_allclose(told["goal_video"], wanted.goal_video, atol=1e-4)
    np.testing.assert_array_equal(told["success"], config.success_weight * kept[SPARSE])
    assert any(info["success"] for info in infos) and np.std(wanted.fb) > 1e-4
    apart = told["fb"] - wanted.fb
    np.testing.assert_allclose(apart, apart.mean(), atol=1e-4 * np.abs(wanted.fb).max())
    if centred:  # less the mean of the replay, which holds the first episode, not that of a batch
        before, mean = reaches[0], reaches[1].mean() - apart.mean() / config.goal.fb_weight
        error = 4.0 * before.std() / np.sqrt(config.goal.fb.batch_size)
        assert mean == pytest.approx(before.mean(), abs=error) and abs(before.mean()) > error
    else:
        assert apart.mean() == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(paid, sum(told.values()), rtol=1e-6, atol=1e-9)


class Parallel:
    """What the loop asks of environments before it plays in them."""

    num, episode_steps, action_repeat = 1, 40, 2


def test_f_and_b_learn_between_episodes_from_what_was_lived_through(make: Make) -> None:
    env, draw = make(replace(CONFIG, centred=False)), np.random.default_rng(1)
    _, _, _, first = play(env, draw, seed=0)
    assert {info["term_fb"] for info in first} == {0.0}, "nothing is known of the scale of features"
    before = env._genreward.fb.networks.backwards[0].weight.detach().clone()
    _, info = env.reset()
    assert {"fb_loss", "fb_orthonormality", "fb_measure"} == set(info)
    learned = env._genreward.fb.networks.backwards[0].weight.detach().clone()
    assert not before.equal(learned)
    _, _, _, second = play(env, draw)  # begins again: what has no episode to learn from learns nothing
    assert learned.equal(env._genreward.fb.networks.backwards[0].weight)
    assert len({info["term_fb"] for info in second}) > STEPS // 2
    assert (env._replay.added, len(env._replay)) == (2, 2 * STEPS), "not the one that was broken off"


def test_seeds_decide_the_episodes(make: Make) -> None:
    env = make()
    first, _ = env.reset(seed=5)
    following, _ = env.reset()
    assert not np.array_equal(first, following)
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(following, env.reset()[0])
    assert not np.array_equal(first, env.reset(seed=6)[0])


def test_two_environments_of_one_seed_pay_the_same(make: Make) -> None:
    """Whatever was learned in between; also where a library steps its environments without gradients."""
    paid = []
    for without_gradients in (False, True):
        env, draw = make(), np.random.default_rng(2)
        with torch.inference_mode(without_gradients):
            paid.append([play(env, draw, **options)[2] for options in ({"seed": 1}, {})])
    np.testing.assert_array_equal(paid[0], paid[1])
    assert len(np.unique(paid[0][1])) > STEPS // 2


def test_it_closes(make: Make) -> None:
    env = make()
    play(env, np.random.default_rng(0), seed=0)
    directory = env._replay.directory
    env.close()
    env.close()
    with Replay(
        directory, capacity=100_000, action_size=4, reward_names=reward_columns(CONFIG),
        feature_size=env._genreward.feature_size,
    ) as replay:  # fmt: skip
        assert len(replay) == STEPS
        assert np.abs(replay.sample(200, np.random.default_rng(0)).actions).max() == 1.0, "what was done, not asked for"


def test_what_does_not_go_together_is_refused(make: Make, model: RewardModel, tmp_path: Path) -> None:
    env = make()
    for config, video in (
        (replace(CONFIG, name="default"), None),
        (replace(CONFIG, alpha=0.5), None),
        (CONFIG, model),
        (replace(CONFIG, name="genreward_diffusion"), None),
    ):
        with pytest.raises(ValueError, match=r"genreward_diffusion|without exploration"):
            RewardEnv(env._environment, env._genreward, tmp_path / "other", config, model=video)
    with pytest.raises(OutputInUseError, match="new or empty"):
        RewardEnv(env._environment, env._genreward, env._replay.directory, CONFIG)


def test_a_task_and_a_model_are_enough(goal: Goal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The goal is what the model imagines, unless there is a video of it."""
    monkeypatch.setattr(reward_env, "IMAGINED_FRAMES", 3)
    write_video(tmp_path / "goal.mp4", goal.frames, 40.0, lossless=True)
    for given, length, source in (
        (None, 3, "imagined, seed 0"),
        (tmp_path / "goal.mp4", 41, str(tmp_path / "goal.mp4")),
    ):
        env = reward_env.make_reward_env(f"{TASK}-v3", MODEL, tmp_path / f"replay_{length}", CONFIG, goal=given)
        assert env.goal.frames.shape == (length, 64, 64, 3) and env.goal.source == source
        frame, _ = env.reset(seed=0)
        assert env.observation_space.contains(frame) and env.rate_hz == pytest.approx(40.0)
        env.close()


def test_dreamer_learns_from_it(tmp_path: Path) -> None:
    """The example, 300 steps; and what it says where sheeprl is missing."""
    words = [sys.executable, str(ROOT / "examples" / "genreward_dreamer.py"), "--model", str(MODEL)]
    words += [
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "300",
        "--set",
        "algo.learning_starts=100",
        "metric.log_every=50",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    if importlib.util.find_spec("sheeprl") is None:
        assert done.returncode == 2 and "pip install sheeprl" in done.stderr
        pytest.skip("sheeprl is not installed: the example has said so, and was not run further")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and lines[0]["term_fb"] == 0.0 != lines[2]["term_fb"] and lines[2]["fb_loss"] != 0.0
    for line in lines:
        assert line["return"] == pytest.approx(sum(v for k, v in line.items() if k.startswith("term_")), abs=1e-6)
    assert len(list((tmp_path / "run").rglob("*.ckpt"))) == 1
