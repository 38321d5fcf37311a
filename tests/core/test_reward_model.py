"""The reward model: the same numbers for a clip, a batch, a stream, a bag and a video; and never a silent one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dr_core import cli
from dr_core.checkpoint import load_checkpoint, save_checkpoint
from dr_core.data.cache import EXPERT, Store, open_store
from dr_core.data.episodes import read_episode
from dr_core.data.images import ImageRule
from dr_core.diffusion.train import history_indices
from dr_core.errors import CheckpointError, ConfigError, OutputInUseError
from dr_core.presets import PRESETS, EstimatorConfig, EstimatorName, RewardModelConfig
from dr_core.rewards import entropy
from dr_core.rewards.model import ClipReward, Networks, RewardModel, RewardStream, looks_at_outcome
from dr_core.rewards.progress import rate
from dr_core.rewards.train import train_reward
from tests.core.moving_square import moving_square, record, record_set

NAMES: list[str] = list(get_args(EstimatorName))
Codes = NDArray[np.int64]


def tiny() -> RewardModelConfig:
    config = PRESETS["tiny"]().model
    return replace(config, fsq=replace(config.fsq, levels=(4, 4, 4)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run long enough for the reward to mean something."""
    root = tmp_path_factory.mktemp("reward")
    expert, other = record_set(root)
    preset = PRESETS["tiny"]()
    config = replace(
        preset,
        model=tiny(),
        codec_training=replace(preset.codec_training, steps=150, learning_rate=4e-3),
        video_training=replace(preset.video_training, steps=200, learning_rate=3e-3, warmup_steps=10),
    )
    train_reward(config, [expert], [other], root / "run", resume=False)
    return root / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> RewardModel:
    return RewardModel.load(run / "model")


@pytest.fixture(scope="module")
def tokens(run: Path) -> Store:
    return open_store(run / "tokens")


def random_model(**changes: Any) -> RewardModel:
    """An untrained network with weights large enough that histories and behaviours matter."""
    config = replace(tiny(), **changes)
    torch.manual_seed(0)
    networks = Networks(config)
    with torch.no_grad():
        for module in networks.video.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                module.weight.mul_(25 if isinstance(module, nn.Embedding) else 5)
        networks.video.to_logits.weight.mul_(10)
    return RewardModel(config, networks, {"tasks": [], "statistics": {}})


def clip(seed: int = 500, length: int = 12, *, expert: bool = True) -> NDArray[np.uint8]:
    """Frames of an episode that no training has seen."""
    return moving_square(seed, expert=expert, length=length)


def score(model: RewardModel, frames: NDArray[np.uint8], name: str, task: str | None = "push") -> ClipReward:
    (reward,) = model.score_tokens([model.tokenize(frames)], estimator=name, task=task)
    return reward


def pushed(stream: RewardStream, frames: NDArray[np.uint8]) -> ClipReward:
    """What a stream says about each frame, as a clip."""
    given = [stream.push(frame, 10**18 + k * 10**8) for k, frame in enumerate(frames)]
    parts = [reward for reward in given if reward is not None]
    assert len(parts) == len(frames)
    value, raw, stderr, ood = (
        np.array([getattr(r, name) for r in parts], np.float32) for name in ("value", "raw", "stderr", "ood")
    )
    return ClipReward(value, raw, stderr, np.array([r.valid for r in parts]), parts[0].calls, ood)


def assert_close(got: NDArray[Any], want: NDArray[Any], name: str, tolerance: float = 1e-5) -> None:
    """Equal within ``tolerance``; where an estimator draws codes, one frame may differ, because a draw on the edge
    between two codes falls to either side of it in float32."""
    assert np.isfinite(got).all() and np.isfinite(want).all()
    off = np.abs(got - want) > tolerance
    assert off.sum() <= (name in ("chain", "paper", "likelihood")), (got, want)


def assert_same(one: ClipReward, other: ClipReward, name: str) -> None:
    """Equal within 1e-5 of the spread, or of a tenth of a much larger value, which float32 cannot resolve."""
    scale = max(float(one.value.std()), 0.1 * float(np.abs(one.value).max()))
    assert_close(other.value, one.value, name, 1e-5 * scale)
    np.testing.assert_array_equal(other.valid, one.valid)
    assert other.stderr.shape == one.stderr.shape and other.calls == one.calls
    np.testing.assert_allclose(other.ood, one.ood, rtol=0, atol=1e-5)


# ---- what the numbers mean ----


@pytest.mark.parametrize("name", NAMES)
def test_statistics_make_the_training_experts_standard(name: str, model: RewardModel, tokens: Store) -> None:
    pooled = []
    for task in ("push", "slide"):
        experts = [c for c in tokens.clips if c.behaviour == EXPERT and c.task == task]
        codes = [np.asarray(tokens.array(c), np.int64) for c in experts]
        rewards = model.score_tokens(codes, estimator=name, task=task)
        values = np.concatenate([r.value[r.valid] for r in rewards])
        assert len(values) == model.manifest["statistics"][name][task]["frames"]
        assert values.mean() == pytest.approx(0, abs=1e-3) and values.std() == pytest.approx(1, abs=1e-3)
        for unseen in ("pull", None):
            pooled += [r.value[r.valid] for r in model.score_tokens(codes, estimator=name, task=unseen)]
    assert np.concatenate(pooled).mean() == pytest.approx(0, abs=1e-3)
    assert np.concatenate(pooled).std() == pytest.approx(1, abs=1e-3)


def test_an_expert_earns_more_than_a_wanderer(model: RewardModel) -> None:
    def total(seed: int, expert: bool) -> float:
        reward = score(model, clip(seed, 16, expert=expert), "ratio")
        return float(reward.value[reward.valid].mean())

    wins = [total(500 + i, True) > total(600 + j, False) for i in range(4) for j in range(4)]
    assert np.mean(wins) > 0.8


def slow_log_likelihood(model: RewardModel, codes: Codes, behaviour: int) -> list[float]:
    """Frame by frame, token by token, in float64."""
    settings, video = model.config, model.networks.video
    rows = []
    for k in range(len(codes)):
        before = [max(k - settings.frame_skip * (back + 1), 0) for back in reversed(range(settings.num_history))]
        history = torch.from_numpy(np.concatenate([codes[i] for i in before]))[None]
        masked = torch.full((1, 64), model.networks.codec.num_codes)
        with torch.no_grad():
            condition = video.condition(history, behaviour)  # type: ignore[call-arg, arg-type]
            logits = video(masked, torch.tensor([settings.num_timesteps - 1]), condition)[0].double().numpy()
        total = 0.0
        for position, row in enumerate(logits):
            total += row[codes[k, position]] - row.max() - math.log(sum(math.exp(x - row.max()) for x in row))
        rows.append(total)
    return rows


@pytest.mark.parametrize("frame_skip", [1, 2])
def test_likelihood_and_ratio_are_those_of_a_slow_loop(frame_skip: int, model: RewardModel) -> None:
    scorer = model if frame_skip == 1 else random_model(frame_skip=2, num_history=3)
    codes = scorer.tokenize(clip(length=7))
    expert, background = (np.array(slow_log_likelihood(scorer, codes, b)) for b in (0, 1))
    (likelihood,) = scorer.score_tokens([codes], estimator="one_pass_likelihood")
    (ratio,) = scorer.score_tokens([codes], estimator="ratio")
    np.testing.assert_allclose(likelihood.raw, expert, rtol=1e-5)
    np.testing.assert_allclose(ratio.raw, expert - background, rtol=1e-4, atol=1e-3)


def test_the_ratio_of_one_behaviour_to_itself_is_zero() -> None:
    same = random_model()
    with torch.no_grad():
        same.networks.video.behaviour.weight[1] = same.networks.video.behaviour.weight[0]  # type: ignore[index, union-attr]
    assert (score(same, clip(), "ratio").raw == 0).all()
    assert (score(same, clip(), "one_pass_likelihood").raw < -1).all()


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("shaped_ratio", 2), ("ratio", 2), ("one_pass_likelihood", 1), ("one_pass", 1), ("chain", 8), ("paper", 11),
        ("likelihood", 11),
    ],
)  # fmt: skip
def test_the_cost_is_told(name: str, calls: int, model: RewardModel) -> None:
    assert score(model, clip(length=2), name).calls == calls


def test_the_shaped_ratio_is_the_sum_of_its_terms(model: RewardModel) -> None:
    frames = clip(length=14)
    codes = model.tokenize(frames)
    settings = model.config.estimator
    with torch.inference_mode():
        progress = model._progress(torch.from_numpy(codes)).numpy()
    terms = settings.progress_nats * rate(progress) + model.wrong_task(codes, "push", "shaped_ratio")
    want = score(model, frames, "ratio").raw + terms
    np.testing.assert_allclose(score(model, frames, "shaped_ratio").raw, want, rtol=0, atol=1e-4)
    assert model.wrong_task(codes, "push", "ratio").tolist() == [0] * 14
    assert model.wrong_task(codes, "fly", "shaped_ratio").tolist() == [0] * 14, "a task that is not known"
    # Standing still earns what the ratio gives, and nothing for progress.
    still = frames[-1:].repeat(14, 0)
    terms = model.wrong_task(model.tokenize(still), "push", "shaped_ratio")
    want = score(model, still, "ratio").raw + terms
    np.testing.assert_allclose(score(model, still, "shaped_ratio").raw, want, rtol=0, atol=1e-4)


def test_what_the_camera_never_saw_is_flagged(model: RewardModel) -> None:
    frames = clip(length=14)
    own = score(model, frames, "one_pass").ood
    assert np.median(own) < 1
    for foreign in (255 - frames, np.zeros_like(frames), np.roll(frames, 24, axis=1)):
        assert np.median(score(model, foreign, "one_pass").ood) > max(1.0, np.median(own) + 0.5)
    assert np.isnan(score(random_model(), frames, "one_pass", None).ood).all(), "nothing to compare with"


# ---- one number, however the frames arrive ----


def test_the_posterior_is_a_setting() -> None:
    exact = random_model(estimator=EstimatorConfig(name="paper", posterior="exact", stride=25))
    frames = clip(length=3)
    codes = exact.tokenize(frames)
    history = torch.from_numpy(codes[history_indices(3, 2, 1, observed=False)].reshape(3, -1))
    want = entropy.paper(
        exact.networks.diffusion,
        exact._denoiser(0),
        history,
        noise=exact._common_noise(0),
        stride=25,
        posterior="exact",
    )
    np.testing.assert_allclose(score(exact, frames, "paper", None).raw, want.value.detach().numpy(), rtol=1e-4)
    published = random_model(estimator=EstimatorConfig(name="paper", stride=25))
    assert abs(score(published, frames, "paper", None).raw - want.value.detach().numpy()).min() > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_gives_what_the_whole_clip_gives(name: str, model: RewardModel) -> None:
    for frames in (clip(), clip(501, expert=False)):
        assert_same(score(model, frames, name), pushed(model.stream(task="push", estimator=name), frames), name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("num_history", "frame_skip"), [(1, 1), (3, 1), (2, 2), (3, 2)])
def test_a_stream_with_another_history_or_spacing(name: str, num_history: int, frame_skip: int) -> None:
    quick = EstimatorConfig(stride=50, num_steps=3)
    model = random_model(num_history=num_history, frame_skip=frame_skip, estimator=quick)
    frames = clip(length=9)
    whole = score(model, frames, name)
    assert whole.value.std() > 0.1, "the frames are told apart"
    assert_same(whole, pushed(model.stream(estimator=name), frames), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_never_depends_on_a_later_frame(name: str, model: RewardModel) -> None:
    frames = clip(length=8)
    want = score(model, frames, name)
    for k in (0, 3, 6):
        changed = frames.copy()
        changed[k + 1 :] = np.random.default_rng(k).integers(0, 256, changed[k + 1 :].shape, np.uint8)
        got = score(model, changed, name)
        assert_close(got.value[: k + 1], want.value[: k + 1], name)
        assert np.abs(got.value[k + 1 :] - want.value[k + 1 :]).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_different_lengths_score_together_as_alone(name: str, model: RewardModel) -> None:
    clips = [model.tokenize(clip(500 + length, length)) for length in (1, 9, 4, 130)]
    together = model.score_tokens(clips, estimator=name, task="slide")
    for codes, got in zip(clips, together, strict=True):
        (alone,) = model.score_tokens([codes], estimator=name, task="slide")
        assert got.value.shape == (len(codes),)
        assert_close(got.value, alone.value, name, 1e-5 * max(1, np.abs(alone.value).max()))
        np.testing.assert_array_equal(got.valid, alone.valid)


def test_score_takes_a_batch_of_clips(model: RewardModel) -> None:
    frames = np.stack([clip(500), clip(501)])
    reward = model.score(frames, task="push")
    assert reward.value.shape == reward.stderr.shape == reward.valid.shape == (2, 12)
    assert reward.value.dtype == np.float32 and reward.valid.dtype == np.bool_ and reward.calls == 2
    for row, one in enumerate(frames):
        np.testing.assert_allclose(reward.value[row], score(model, one, "shaped_ratio").value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ratio", "one_pass"])
def test_a_bag_its_lossless_video_and_pushed_frames_score_alike(name: str, model: RewardModel, tmp_path: Path) -> None:
    frames = clip()
    bag = record(tmp_path / "bag", frames)
    assert cli.main(["bag", "export", str(bag), "--out", str(tmp_path / "push" / "x.mp4")]) == 0
    rule = ImageRule(64)
    episodes = [read_episode(path, rule=rule) for path in (bag, tmp_path / "push" / "x.mp4")]
    scores = [score(model, episode.frames, name, episode.metadata.task) for episode in episodes]
    stream = model.stream(task="push", estimator=name)
    live = [
        stream.push(frame, int(stamp)) for frame, stamp in zip(episodes[0].frames, episodes[0].stamps_ns, strict=True)
    ]
    np.testing.assert_allclose(scores[1].value, scores[0].value, rtol=0, atol=1e-5)
    np.testing.assert_allclose([r.value for r in live if r], scores[0].value, rtol=0, atol=1e-5)


# ---- streams ----


def test_stale_stamps_are_dropped_counted_and_change_nothing(model: RewardModel) -> None:
    frames = clip(length=6)
    want = pushed(model.stream(task="push"), frames)
    stream = model.stream(task="push")
    noise = clip(900, 1, expert=False)[0]
    values = []
    for k, frame in enumerate(frames):
        stamp_ns = 1000 + 10 * k
        reward = stream.push(frame, stamp_ns)
        assert reward is not None and reward.stamp_ns == stamp_ns
        values.append(reward.value)
        assert stream.push(noise, stamp_ns) is None, "a duplicate"
        assert stream.push(noise, stamp_ns - 5) is None, "out of order"
    assert stream.dropped == 12
    np.testing.assert_array_equal(np.float32(values), want.value)


def test_after_a_reset_an_episode_begins(model: RewardModel) -> None:
    frames = clip(length=5)
    for name in ("ratio", "one_pass"):
        stream = model.stream(task="push", estimator=name)
        want = pushed(stream, frames)
        stream.reset()
        again = pushed(stream, frames)  # the same stamps: the clock begins anew too
        np.testing.assert_array_equal(again.value, want.value)
        np.testing.assert_array_equal(again.valid, want.valid)


@pytest.mark.parametrize("frame_skip", [1, 2, 3])
def test_only_rewards_of_a_predictable_frame_are_valid(frame_skip: int) -> None:
    model = random_model(frame_skip=frame_skip)
    for name in ("ratio", "one_pass_likelihood", "one_pass"):
        first = frame_skip if looks_at_outcome(name) else 0
        for reward in (score(model, clip(length=5), name), pushed(model.stream(estimator=name), clip(length=5))):
            assert reward.valid.tolist() == [k >= first for k in range(5)]


def test_before_the_start_the_first_frame_repeats(model: RewardModel) -> None:
    frames = clip(length=4)
    led_in = np.concatenate([frames[:1].repeat(3, 0), frames])
    for name in ("ratio", "one_pass"):
        np.testing.assert_allclose(
            score(model, led_in, name).value[3:], score(model, frames, name).value, rtol=0, atol=1e-5
        )


# ---- never a silent number ----


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_numbers_give_no_valid_reward(name: str) -> None:
    broken = random_model()
    with torch.no_grad():
        broken.networks.video.to_logits.weight[0, 0] = float("nan")
    for reward in (score(broken, clip(length=4), name), pushed(broken.stream(estimator=name), clip(length=4))):
        assert not reward.valid.any() and not np.isfinite(reward.value).any()


def test_statistics_that_are_not_numbers_give_no_valid_reward() -> None:
    made = random_model()
    for entry in ({"mean": float("nan"), "std": 1.0}, {"mean": 0.0, "std": float("nan")}):
        made.manifest = {"statistics": {"one_pass": {"all": entry}}}
        assert not score(made, clip(length=3), "one_pass").valid.any()
        assert not pushed(made.stream(estimator="one_pass"), clip(length=3)).valid.any()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((2, 64, 64, 4), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
)
def test_frames_of_another_kind_are_refused(frames: NDArray[Any], model: RewardModel) -> None:
    with pytest.raises(ValueError, match="frames are uint8"):
        model.tokenize(frames)
    if len(frames):
        with pytest.raises(ValueError, match="frames are uint8"):
            model.stream().push(frames[0], 1)


def test_unknown_estimators_are_refused(model: RewardModel) -> None:
    assert model.estimators()[0] == "shaped_ratio" and sorted(model.estimators()) == sorted(NAMES)
    with pytest.raises(ConfigError, match="one_pass") as caught:
        model.stream(estimator="nonsense")
    assert "\n" not in str(caught.value)
    alone = random_model(background=False, estimator=EstimatorConfig(name="one_pass"))
    assert "ratio" not in alone.estimators()
    with pytest.raises(ConfigError, match="train with a background"):
        score(alone, clip(length=2), "ratio")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_history": 0},
        {"frame_skip": 0},
        {"background": False},
        {"denoiser": "cross_attention"},
        {"image": ImageRule(32)},
        {"fsq": replace(tiny().fsq, levels=(64, 64, 16))},
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(tiny(), **settings)
    with pytest.raises(ValueError):
        EstimatorConfig(num_steps=65)


# ---- checkpoints of it ----


def test_a_saved_model_gives_the_same_numbers(model: RewardModel, tmp_path: Path) -> None:
    model.save(tmp_path / "copy")
    copy = RewardModel.load(tmp_path / "copy")
    assert copy.model_hash == model.model_hash != ""
    np.testing.assert_array_equal(score(copy, clip(), "ratio").value, score(model, clip(), "ratio").value)
    with pytest.raises(OutputInUseError):
        model.save(tmp_path / "copy")


def rewritten(run: Path, path: Path, **changes: Any) -> Path:
    """The run's model with other parts, hashes included."""
    whole = load_checkpoint(run / "model")
    keep = ("tasks", "statistics", "render", "dataset_sha256", "training_seeds", "training")
    manifest = {key: whole.manifest[key] for key in keep} | changes.get("manifest", {})
    save_checkpoint(
        path, whole.tensors | changes.get("tensors", {}), whole.config | changes.get("config", {}), manifest
    )
    return path


def test_parts_that_do_not_belong_together_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(run / "model")
    statistics = whole.manifest["statistics"]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("no statistics of task pull", {"manifest": {"tasks": ["push", "pull"]}}),
        ("KeyError", {"manifest": {"statistics": {}}}),
        ("KeyError", {"manifest": {"statistics": {"one_pass": statistics["one_pass"]}}}),
        ("", {"manifest": {"statistics": [1]}}),
        ("", {"manifest": {"statistics": {"ratio": {"push": 1.0, "slide": 1.0}}}}),
        ("spread", {"manifest": {"statistics": statistics | {"chain": {"all": {"mean": 0.0, "std": 0.0}}}}}),
        ("spread", {"manifest": {"statistics": statistics | {"chain": {"all": {"mean": float("nan"), "std": 1.0}}}}}),
        ("shape", {"config": {"fsq": whole.config["fsq"] | {"levels": [8, 4, 4]}}}),
        ("missing", {"config": {"in_place": whole.config["in_place"] | {"depth": 3}}}),
        ("unexpected", {"config": {"in_place": whole.config["in_place"] | {"depth": 1}}}),
        ("unexpected extra", {"tensors": {"extra": torch.zeros(1)}}),
        (
            "codec.decoder.0.net.2.bias is not finite",
            {"tensors": {"codec.decoder.0.net.2.bias": torch.full((32,), float("nan"))}},
        ),
        ("num_histroy", {"config": {"num_histroy": 2}}),
    ]
    for index, (match, changes) in enumerate(wrong):
        path = rewritten(run, tmp_path / str(index), **changes)
        with pytest.raises(CheckpointError) as caught:
            RewardModel.load(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value), changes
        assert match in str(caught.value), (changes, str(caught.value))


def test_a_training_checkpoint_is_not_a_reward_model(run: Path, tmp_path: Path) -> None:
    for stage in ("codec", "video"):
        (checkpoint,) = (run / stage).iterdir()
        with pytest.raises(CheckpointError, match="RUN/model"):
            RewardModel.load(checkpoint)


def test_the_manifest_tells_where_the_model_comes_from(run: Path, tokens: Store) -> None:
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    assert manifest["tasks"] == ["push", "slide"]
    assert manifest["training_seeds"] == {"push": [100, 101, 102], "slide": [110, 111, 112]}
    assert manifest["render"] == tokens.render and manifest["dataset_sha256"] == tokens.sha256
    assert manifest["training"]["video_training"]["steps"] == 200
    assert set(manifest["statistics"]) == set(NAMES)


# ---- pictures ----


def test_imagined_frames_are_codes_and_repeat(model: RewardModel) -> None:
    codes = model.tokenize(clip())
    imagined = model.imagine(codes, seed=1)
    assert imagined.shape == codes.shape and imagined.min() >= 0 and imagined.max() < 64
    np.testing.assert_array_equal(model.imagine(codes, seed=1), imagined)
    assert (model.imagine(codes, seed=2) != imagined).any()
    picture = model.decode(codes)
    assert picture.shape == (12, 64, 64, 3) and picture.dtype == np.uint8
    square = clip()[..., 0] > 200
    assert picture[square].mean() > picture[~square].mean() + 10


def test_histories_of_a_stream_are_those_of_the_rule() -> None:
    """A stream keeps only what it needs; the rule it must agree with is ``history_indices``."""
    model = random_model(num_history=3, frame_skip=2)
    frames = clip(length=11)
    codes = model.tokenize(frames)
    indices = history_indices(11, 3, 2, observed=True)
    live = pushed(model.stream(estimator="one_pass_likelihood"), frames)
    for k in range(11):
        # The same history, hand-made: a clip in which it comes first in full.
        window = codes[[*indices[k].repeat(2)[1:], indices[k][-1], k]]
        (reward,) = model.score_tokens([window], estimator="one_pass_likelihood")
        assert reward.raw[-1] == pytest.approx(live.raw[k], rel=1e-4), k


# ---- less work, the same numbers ----


@pytest.mark.parametrize("name", ["ratio", "paper"])
def test_every_nth_reward_is_that_of_the_whole_and_the_others_are_not_valid(name: str, model: RewardModel) -> None:
    clips = [model.tokenize(clip(500 + length, length)) for length in (7, 2, 4)]
    whole = model.score_tokens(clips, estimator=name, task="push")
    for every in (2, 3):
        some = model.score_tokens(clips, estimator=name, task="push", every=every)
        for one, all_of_it in zip(some, whole, strict=True):
            kept = np.arange(len(one.value)) % every == every - 1
            assert_close(one.value[kept], all_of_it.value[kept], name)
            assert np.isnan(one.value[~kept]).all() and not one.valid[~kept].any()
    (short,) = model.score_tokens(clips[1:2], estimator=name, every=3)
    assert np.isnan(short.value).all() and not short.valid.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_robot_that_rests_earns_the_same_at_each_frame(name: str, model: RewardModel) -> None:
    """Frames that look alike are alike to every estimator, wherever they stand in the batch."""
    frames = clip(length=6)
    rest = np.concatenate([frames, frames[-1:].repeat(200, 0)])
    value = score(model, rest, name).value
    # The rate of progress looks a few frames further back than the history.
    np.testing.assert_allclose(value[20:], value[20], rtol=0, atol=1e-5)
    assert_close(value[:6], score(model, frames, name).value, name)


def test_frames_count_as_alike_only_if_every_code_is() -> None:
    model = random_model(fsq=replace(tiny().fsq, levels=(8, 8, 8)))
    codes = np.random.default_rng(0).integers(0, 256, (5, 64))
    far, near = codes + 256, codes.copy()
    near[-1, -1] += 1
    together = model.score_tokens([codes, far, near], estimator="one_pass_likelihood")
    for clip_codes, got in zip((codes, far, near), together, strict=True):
        (alone,) = model.score_tokens([clip_codes], estimator="one_pass_likelihood")
        np.testing.assert_allclose(got.raw, alone.raw, rtol=1e-5)
    assert len({float(reward.raw[-1]) for reward in together}) == 3
