"""GenReward's parts around F and B: encoders, clips, goals, and what their terms are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dr_core.codec.train import to_images
from dr_core.codec.vqgan import VQGANConfig
from dr_core.data.episodes import find_episodes
from dr_core.data.video import write_video
from dr_core.diffusion.inplace import InPlaceConfig
from dr_core.errors import BagError, ConfigError
from dr_core.presets import RewardModelConfig
from dr_core.rewards.combine import combine
from dr_core.rewards.genreward import goal as goals
from dr_core.rewards.genreward.encoders import CLIP_FRAMES, CodecFrames, CodecVideo
from dr_core.rewards.genreward.forward_backward import FBConfig
from dr_core.rewards.genreward.goal import Goal
from dr_core.rewards.genreward.reward import GenReward, GenRewardConfig
from dr_core.rewards.genreward.video import GoalLikeness, clip_ends, cosine, resampled
from dr_core.rewards.model import Networks, RewardModel
from tests.core.moving_square import moving_square, record_set
from tests.core.test_loop import Blocks

Frames = NDArray[np.uint8]
MODEL = Path(__file__).parents[2] / "models" / "door-close" / "reward"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return RewardModel.load(MODEL)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bags of the task push."""
    return record_set(tmp_path_factory.mktemp("episodes"), episodes=2, length=8)[0]


def noise(*shape: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---- encoders ----


def test_a_frames_feature_is_what_the_codec_rounds_to_codes(model: RewardModel) -> None:
    """Each frame by itself, whatever is encoded beside it."""
    frames = noise(40, 64, 64, 3)
    encoder = CodecFrames(model)
    features = encoder.encode(frames)
    assert features.shape == (40, encoder.size) == (40, 192) and features.dtype == np.float32
    assert features.min() >= -1.0 and features.max() <= 1.0
    levels = np.round((features.reshape(40, 3, 64) + 1.0) / 2.0 * 7.0).astype(int)
    codes = (levels * np.array([1, 8, 64])[:, None]).sum(1)
    np.testing.assert_array_equal(codes, model.tokenize(frames))
    np.testing.assert_allclose(encoder.encode(frames[7:8])[0], features[7], atol=1e-5)
    clip = CodecVideo(encoder).encode(frames[:CLIP_FRAMES])
    np.testing.assert_allclose(clip.reshape(CLIP_FRAMES, -1), features[:CLIP_FRAMES], atol=1e-5)
    for wrong in (frames[:, :32], frames.astype(np.float32), frames[:0]):
        with pytest.raises(ValueError, match="frames are uint8"):
            encoder.encode(wrong)  # type: ignore[arg-type]


def test_the_features_of_the_published_codec_are_averaged_over_two_by_two_cells() -> None:
    config = RewardModelConfig(
        codec="vqgan", vqgan=VQGANConfig(channels=(32, 32, 32, 32)), in_place=InPlaceConfig(width=16, depth=1)
    )  # fmt: skip
    torch.manual_seed(0)
    networks = Networks(config, 1)
    model = RewardModel(config, networks, {"tasks": ["push"], "statistics": {}})
    frames = noise(2, 64, 64, 3)
    features = CodecFrames(model).encode(frames)
    with torch.no_grad():
        latents = networks.codec.latents(to_images(frames, torch.device("cpu"))).numpy()  # (2, 64, 8, 8)
        spread = float(networks.codec.state_dict()["codebook.embedding.weight"].std())
    slow = np.zeros((2, 64, 4, 4))
    for row in range(4):
        for column in range(4):
            slow[:, :, row, column] = latents[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
    np.testing.assert_allclose(features, slow.reshape(2, -1) / spread, rtol=1e-3, atol=1e-4)


# ---- clips ----


@given(st.integers(1, 400), st.integers(2, 40))
def test_a_clip_is_resampled_to_the_nearest_frames(length: int, count: int) -> None:
    clip = np.arange(length)[:, None, None, None].astype(np.uint16)
    taken = resampled(clip, count)[:, 0, 0, 0].astype(int)  # type: ignore[arg-type]
    exact = [i * (length - 1) / (count - 1) for i in range(count)]
    assert len(taken) == count and taken[0] == 0 and taken[-1] == length - 1
    assert all(abs(t - e) <= 0.5 + 1e-9 for t, e in zip(taken, exact, strict=True))
    assert (np.diff(taken) >= 0).all()


def test_clips_end_at_the_interval_and_with_the_episode() -> None:
    ends = {steps: clip_ends(steps, 128).tolist() for steps in (1, 100, 128, 191, 192, 256, 500)}
    assert ends == {
        1: [1], 100: [100], 128: [128], 191: [191], 192: [128, 192], 256: [128, 256], 500: [128, 256, 384, 500]
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least one"):
        resampled(noise(0, 8, 8, 3))


def test_the_likeness_is_paid_where_a_clip_ends_and_is_the_cosine_of_its_latents() -> None:
    goal, episode = moving_square(0, expert=True, length=30), moving_square(1, expert=False, length=20)
    video = CodecVideo(Blocks())
    likeness = GoalLikeness(goal, video, every=8)
    given = likeness.of_episode(episode)
    assert given.shape == (19,) and np.flatnonzero(given).tolist() == [7, 18], "8 steps, and 8 with the rest of 3"
    for start, end in ((0, 8), (8, 19)):
        a, b = (Blocks().encode(resampled(x)).ravel().astype(float) for x in (episode[start : end + 1], goal))
        assert given[end - 1] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), rel=1e-5)
    assert likeness.of_clip(goal) == pytest.approx(1.0)
    assert likeness.of_clip(goal[::2]) > 0.98, "its rate does not matter"
    assert likeness.of_clip(np.zeros_like(goal)) == 0.0 == cosine(np.zeros(3, np.float32), np.ones(3, np.float32))


def test_motion_is_told_apart_where_whole_pictures_look_alike(model: RewardModel) -> None:
    """Two squares that move apart on a background that stays."""
    steps = np.arange(20)
    background = noise(64, 64, 3)

    def film(direction: int) -> Frames:
        frames = np.repeat(background[None], 20, 0)
        for frame, step in zip(frames, steps, strict=True):
            frame[28:40, 26 + direction * step : 38 + direction * step] = 255
        return frames

    right, left = film(1), film(-1)
    encoder = CodecVideo(CodecFrames(model))
    whole, motion = (GoalLikeness(right, encoder, motion=on) for on in (False, True))
    assert whole.of_clip(left) > 0.8, "the background says so"
    assert motion.of_clip(left) < 0.5 < 0.99 < motion.of_clip(right)


# ---- goals ----


def test_a_goal_is_read_from_a_bag_a_video_or_a_directory(
    recorded: Path, tmp_path: Path, model: RewardModel
) -> None:  # fmt: skip
    bag = sorted(path for path in recorded.iterdir() if path.is_dir())[0]
    frames = goals.read_goal(bag, model, unfamiliar=True)
    assert frames.shape[1:] == (64, 64, 3) and len(frames) >= 2
    large = np.repeat(np.repeat(moving_square(0, expert=True), 2, 1), 2, 2)  # 128 x 128
    for name in ("push", "door-close"):
        write_video(tmp_path / f"{name}.mp4", large, 10.0, lossless=True)
    named = goals.read_goal(tmp_path, model, task="push", unfamiliar=True)
    np.testing.assert_array_equal(named, moving_square(0, expert=True))
    with pytest.raises(BagError, match="one goal video of pull"):
        goals.read_goal(tmp_path, model, task="pull", unfamiliar=True)
    with pytest.raises(BagError, match="2 episodes"):
        goals.read_goal(tmp_path, model, unfamiliar=True)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((20, 32, 32, 3), "pictures of at least 64 x 64, the model's; found 32 x 32"),
        ((20, 64, 128, 3), "expected a square"),
        ((1, 64, 64, 3), "at least 2 frames; found 1"),
        ((20, 64, 64, 3), "out-of-distribution score"),
    ],
)
def test_a_goal_video_of_another_kind_is_refused(
    tmp_path: Path, model: RewardModel, shape: tuple[int, ...], told: str
) -> None:
    write_video(tmp_path / "goal.mp4", noise(*shape), 10.0, lossless=False)
    with pytest.raises((BagError, ConfigError), match=told):
        goals.read_goal(tmp_path / "goal.mp4", model, task="door-close")


def test_a_goal_unlike_the_training_pictures_is_refused_where_the_model_can_tell(model: RewardModel) -> None:
    known = model.networks.familiarity.log_p[2].argmax(-1)  # (64,) the most frequent codes of door-close
    typical = model.decode(known[None].repeat(4, 1).numpy())
    assert model.tasks[2] == "door-close"
    goals.refuse_unfamiliar(typical, model, "door-close", "goal")
    with pytest.raises(ConfigError, match="--goal-unfamiliar"):
        goals.refuse_unfamiliar(noise(4, 64, 64, 3), model, "door-close", "goal")
    with pytest.raises(ConfigError, match="out-of-distribution"):
        goals.refuse_unfamiliar(noise(4, 64, 64, 3), model, None, "goal")


def test_the_goal_frame_is_the_last_a_numbered_or_the_most_similar_one(tmp_path: Path, model: RewardModel) -> None:
    frames = moving_square(3, expert=True)
    assert goals.choose_frame(frames, "last") == (len(frames) - 1, "last")
    assert goals.choose_frame(frames, "2") == (2, "index")
    for wrong in ("-1", str(len(frames)), "first", "²", ""):
        with pytest.raises(ConfigError, match="--goal-frame"):
            goals.choose_frame(frames, wrong)
    cv2.imwrite(str(tmp_path / "picture.png"), np.repeat(np.repeat(frames[5], 2, 0), 2, 1)[..., ::-1])
    picture = goals.read_picture(tmp_path / "picture.png", model)
    np.testing.assert_array_equal(picture, frames[5])
    assert goals.most_like_picture(frames, picture, Blocks())[0] == 5
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, kind in (("none.png", ConfigError), ("broken.png", BagError)):
        with pytest.raises(kind):
            goals.read_picture(tmp_path / name, model)

    class Brightest:
        def similarity(self, text: str, frames: Frames) -> NDArray[np.float32]:
            return frames.mean((1, 2, 3), dtype=np.float32)

    bright = frames.copy()
    bright[4] = 255
    assert goals.most_like_text(bright, "light", Brightest()) == (4, "text 'light'")
    with pytest.raises(ConfigError, match="expected a text"):
        goals.most_like_text(bright, " \n", Brightest())


def test_an_experts_goal_is_the_first_success_of_the_task(recorded: Path, model: RewardModel) -> None:
    with pytest.raises(ConfigError, match="a successful episode of pull"):
        goals.goal_of_experts((recorded,), model, "pull")
    # Its pictures are not the model's, which it says: it was found.
    with pytest.raises(ConfigError, match="out-of-distribution"):
        goals.goal_of_experts((recorded,), model, "push-v3")
    frames, path = goals.goal_of_experts((recorded,), model, "push-v3", unfamiliar=True)
    assert path == find_episodes([recorded])[0]
    np.testing.assert_array_equal(frames, goals.read_goal(path, model, unfamiliar=True))


def test_the_hash_of_a_goal_tells_frames_and_goal_frame(model: RewardModel) -> None:
    frames = noise(4, 8, 8, 3)
    one = Goal(frames, 3, "last", "here")
    assert one.sha256 == Goal(frames.copy(), 3, "index", "there").sha256
    changed = frames.copy()
    changed[0, 0, 0, 0] ^= 1
    assert len({one.sha256, Goal(frames, 2, "index", "here").sha256, Goal(changed, 3, "last", "here").sha256}) == 3
    np.testing.assert_array_equal(one.frame, frames[3])


# ---- terms ----


def test_the_terms_of_a_goal() -> None:
    goal = Goal(moving_square(0, expert=True), 5, "index", "a drawing")
    fb = FBConfig(size=8, hidden_size=16, discount=0.95)
    published, ours = (
        GenReward(GenRewardConfig(fb=fb, fb_density=on), goal, Blocks(), CodecVideo(Blocks()), 2)
        for on in (False, True)
    )
    episodes = np.stack([moving_square(seed, expert=False) for seed in range(3)])
    features = ours.encode(episodes)
    np.testing.assert_array_equal(published.encode(episodes), features)
    assert features.shape == (*episodes.shape[:2], 64)
    np.testing.assert_array_equal(features[1], Blocks().encode(episodes[1]))
    scale = ours.fb.networks.scale.clone()
    ours.encode(episodes[:1])
    assert scale == ours.fb.networks.scale, "the first episodes alone fix it"
    rows = features.reshape(-1, 64)
    actions = np.random.default_rng(0).normal(size=(len(rows), 2)).astype(np.float32)
    raw = published.reach(rows, actions, centred=False)
    np.testing.assert_allclose(raw, published.fb.score(rows, actions))
    np.testing.assert_allclose(ours.reach(rows, actions, centred=False), 0.05 * raw, rtol=1e-4)
    centred = ours.reach(rows, actions, centred=True)
    assert centred.mean() == pytest.approx(0.0, abs=1e-6) and centred.std() > 0.0
    np.testing.assert_allclose(ours.video(episodes)[:, -1], [ours._likeness.of_clip(one) for one in episodes])


def test_the_formula_adds_the_goal_without_the_share_of_exploration() -> None:
    terms = combine(2.0, 10.0, 1.0, alpha=0.75, success_weight=3.0, goal_video=0.5, fb=0.25)
    assert terms._asdict() == {"video": 0.5, "exploration": 7.5, "success": 3.0, "goal_video": 0.5, "fb": 0.25}
    assert terms.total == 11.75
    config = GenRewardConfig()
    assert (config.video_weight, config.fb_weight, config.video_every) == (0.01, 1e-5, 128)
    with pytest.raises(ValueError, match="video_every"):
        GenRewardConfig(video_every=0)
