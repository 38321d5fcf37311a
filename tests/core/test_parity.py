"""The paper-size model against vectors of the published implementation, and the rules its parts keep."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_core import cli, parity
from dr_core.codec.losses import VQGANLoss, VQGANLossConfig
from dr_core.codec.vqgan import VQGAN, VQGANConfig, perplexity
from dr_core.diffusion.categorical import CategoricalDiffusion
from dr_core.diffusion.denoiser import CrossAttentionConfig, CrossAttentionDenoiser
from dr_core.diffusion.schedule import ScheduleConfig, mask_and_uniform
from dr_core.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "data" / "golden_open.npz"

SMALL_CODEC = VQGANConfig(channels=(32, 32), image_size=32, attention_size=16, latent_dim=8, num_codes=16)
SMALL = CrossAttentionConfig(width=16, depth=2, heads=2, condition_width=8)


def small_denoiser(**changes: bool) -> CrossAttentionDenoiser:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **changes)
    return CrossAttentionDenoiser(config, num_codes=10, num_history=2, num_timesteps=5, grid=(2, 2))


def small_inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x_t (B, 4), t (B,), history (B, 8)."""
    g = torch.Generator().manual_seed(1)
    return (
        torch.randint(11, (batch, 4), generator=g),
        torch.randint(5, (batch,), generator=g),
        torch.randint(10, (batch, 8), generator=g),
    )


@pytest.fixture(scope="module")
def checks() -> dict[str, parity.Check]:
    return {check.name: check for check in parity.compare(GOLDEN, "open/")}


@pytest.mark.parametrize(
    "name",
    [
        "tokens, differing",
        "decoded, grey levels of 255",
        "condition tokens, differing",
        "log p(x_start), nats",
        "one-pass entropy, relative",
        "reward without noise, relative",
        "x_t after each step, differing",
        "reward with given noise, relative",
        "loss kl, relative",
        "loss decoder_nll, relative",
        "loss aux_kl, relative",
    ],
)
def test_published_numbers(checks: dict[str, parity.Check], name: str) -> None:
    assert checks[name].passed, checks[name]


def test_every_stored_vector_is_compared(checks: dict[str, parity.Check]) -> None:
    assert len(checks) == 11


# ---- any other file of vectors, by narrow networks ----

Array = NDArray[np.float64]
Networks = tuple[VQGAN, CategoricalDiffusion, CrossAttentionDenoiser]
SCHEDULE = mask_and_uniform(ScheduleConfig(), 1024)
TIMES = [99, 89, 79, 69, 59, 49, 39, 29, 19, 9, 0]


def narrow_networks(salt: str) -> Networks:
    """Of the published interface: 64x64 images, 64 tokens of 1024 codes, 2 frames of history, 100 times."""
    torch.manual_seed(len(salt))
    codec = VQGAN(VQGANConfig(channels=(32, 32, 32, 32), latent_dim=8))
    torch.nn.init.normal_(codec.codebook.embedding.weight)
    denoiser = CrossAttentionDenoiser(CrossAttentionConfig(width=16, depth=1, heads=2, condition_width=8))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(10)  # away from the uniform prediction of the start
    return codec.eval(), CategoricalDiffusion(SCHEDULE), denoiser.freeze()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "filled_model", narrow_networks)
    monkeypatch.setattr(parity, "BATCH", 2)


def dense_posterior(p_start: Array, x_t: NDArray[np.int64], t: int) -> Array:
    """p(x_{t-1} | x_t) (B, N, K+1) by Bayes' rule, from p(x_start | x_t) (B, N, K)."""
    s = SCHEDULE
    is_code = np.eye(1025)[x_t][..., :-1]  # (B, N, K)
    masked = (x_t == 1024)[..., None]
    ratio = p_start / np.where(masked, s.cum_mask[t], s.cum_uniform[t] + s.cum_keep[t] * is_code)
    total = ratio.sum(-1, keepdims=True)
    codes = (s.cum_keep[t - 1] * ratio + s.cum_uniform[t - 1] * total) * np.where(
        masked, s.mask[t], s.uniform[t] + s.keep[t] * is_code
    )
    return np.concatenate([codes, masked * s.cum_mask[t - 1] * total], -1)


def log(p: Array) -> Array:
    return np.log(np.maximum(p, np.exp(-70)))


def kl(q: Array, p: Array) -> Array:
    """(B,), summed over tokens."""
    return np.sum(np.exp(log(q)) * (log(q) - log(p)), (1, 2))


def slow_vectors(
    networks: Networks,
    count: int,
    seed: int | None,
    draw: Callable[[int, Array], NDArray[np.int64]] = lambda step, score: score.argmax(-1),
) -> dict[str, NDArray[Any]]:
    """Vectors of random frames in dense float64, all frames and the noise of all frames at once.

    ``draw`` takes the step and the scores (B, N, K+1) with noise; the largest is what is drawn.
    """
    codec, _, denoiser = networks
    rng = np.random.default_rng(count)
    frames = rng.integers(0, 256, (count, 64, 64, 3), np.uint8)
    with torch.no_grad():
        tokens = codec.encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1)
        decoded = ((codec.decode(tokens).permute(0, 2, 3, 1) + 1) * 127.5).numpy()
    previous = torch.cat([tokens[:1], tokens[:-1]])
    history = torch.cat([previous, tokens], 1)

    @torch.no_grad()
    def p_start(x_t: NDArray[np.int64], t: NDArray[np.int64]) -> Array:
        logits = denoiser(torch.from_numpy(x_t), torch.from_numpy(t), denoiser.condition(history))
        return logits.double().softmax(-1).numpy()

    def times(t: int) -> NDArray[np.int64]:
        return np.full(count, t)

    def reward(noise: np.random.Generator | None) -> tuple[Array, NDArray[np.int64]]:
        x_t = np.full((count, 64), 1024)
        steps, drawn = [], []
        for step, time in enumerate(TIMES):
            t = time - 9 if time > 9 else time
            p = dense_posterior(p_start(x_t, times(time)), x_t, t)
            steps.append((p, x_t, t))
            u = noise.random((count, 1025, 64), dtype=np.float32).swapaxes(1, 2) if noise else None
            gumbel = 0 if u is None else -np.log(-np.log(u + np.float32(1e-30)) + np.float32(1e-30))
            x_t = log(p).argmax(-1) if u is None else draw(step, log(p) + gumbel)
            drawn.append(x_t)
        clean = np.eye(1024)[x_t]
        value = np.sum(log(steps[-1][0])[..., :-1] * clean, (1, 2))
        for p, before, t in steps[:-1]:
            value -= kl(dense_posterior(clean, before, t), p)
        return value, np.stack(drawn)

    start = p_start(np.full((count, 64), 1024), times(99))
    injected, x_t = reward(np.random.Generator(np.random.PCG64((11 if seed is None else seed) + 1)))
    loss_t = np.array([99, 60, 30, 10, 1, 0])[np.arange(count) % 6]
    x_start = tokens.numpy()
    loss_x_t = np.where(rng.random((count, 64)) < SCHEDULE.cum_mask[loss_t][:, None], 1024, x_start)
    p0, clean = p_start(loss_x_t, loss_t), np.eye(1024)[x_start]
    parts: dict[str, list[Array]] = {"kl": [], "decoder_nll": [], "aux_kl": []}
    for b, t in enumerate(loss_t):
        p = dense_posterior(p0[b : b + 1], loss_x_t[b : b + 1], t)
        parts["kl"].append(kl(dense_posterior(clean[b : b + 1], loss_x_t[b : b + 1], t), p))
        parts["decoder_nll"].append(-np.sum(log(p)[..., :-1] * clean[b : b + 1], (1, 2)))
        parts["aux_kl"].append(-np.sum(log(p0[b : b + 1]) * clean[b : b + 1], (1, 2)))
    return {
        "frames": frames,
        "tokens": x_start.astype(np.int16),
        "condition_tokens": history.numpy().astype(np.int32),
        "decoded": decoded[:3],
        "log_p_start_all_masked_t99": np.log(start[:4]).swapaxes(1, 2).astype(np.float32),
        "one_pass_entropy_nats": -np.sum(start * np.log(start), (1, 2)),
        "reward_noise_off": reward(None)[0],
        "reward_injected": injected,
        "x_t_after_each_step": x_t.astype(np.uint16),
        "loss_t": loss_t,
        "loss_x_t": loss_x_t,
        **{f"loss_{name}": np.concatenate(values).astype(np.float32) for name, values in parts.items()},
        **({} if seed is None else {"seed": np.array(seed)}),
    }


@pytest.fixture
def one_frame() -> dict[str, NDArray[Any]]:
    return slow_vectors(narrow_networks("x/"), 1, None)


def run(path: Path, vectors: dict[str, NDArray[Any]], salt: str = "x/") -> int:
    np.savez(path, **vectors)  # type: ignore[arg-type]
    return cli.main(["parity", str(path), "--salt", salt])


@pytest.mark.parametrize(("count", "seed", "salt"), [(5, 40, "other/"), (1, None, "x/")])
def test_other_weights_frames_and_seeds_are_compared(
    count: int, seed: int | None, salt: str, narrow: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = slow_vectors(narrow_networks(salt), count, seed)
    assert run(tmp_path / "a.npz", vectors, salt) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) == 12 and lines[0].split() == ["figure", "error", "tolerance"]
    assert all(line.endswith("ok") for line in lines[1:]), out
    assert run(tmp_path / "b.npz", {**vectors, "more": np.zeros(2)}, "another/") == 1
    out = capsys.readouterr().out
    assert out.count("OUT OF TOLERANCE") >= 8 and out.endswith("unknown: more\n")


@pytest.mark.parametrize(
    ("entry", "figure"),
    [
        ("decoded", "decoded, grey levels of 255"),
        ("log_p_start_all_masked_t99", "log p(x_start), nats"),
        ("one_pass_entropy_nats", "one-pass entropy, relative"),
        ("reward_noise_off", "reward without noise, relative"),
        ("reward_injected", "reward with given noise, relative"),
        ("loss_kl", "loss kl, relative"),
        ("loss_decoder_nll", "loss decoder_nll, relative"),
        ("loss_aux_kl", "loss aux_kl, relative"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, "off"])
def test_one_wrong_number_is_out_of_tolerance(
    entry: str, figure: str, value: float | str, narrow: None, one_frame: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    wrong = one_frame[entry].copy()
    wrong.flat[-1] = wrong.flat[-1] * 1.01 + 0.02 if value == "off" else value
    np.savez(tmp_path / "a.npz", **{**one_frame, entry: wrong})  # type: ignore[arg-type]
    checks = parity.compare(tmp_path / "a.npz", "x/")
    assert [check.name for check in checks if not check.passed] == [figure]


@pytest.mark.parametrize("entry", ["tokens", "condition_tokens", "x_t_after_each_step"])
def test_one_wrong_code_is_counted(
    entry: str, narrow: None, one_frame: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    wrong = one_frame[entry].copy()
    wrong.flat[-1] = (wrong.flat[-1] + 1) % 1024
    np.savez(tmp_path / "a.npz", **{**one_frame, entry: wrong})  # type: ignore[arg-type]
    failed = {
        check.name.partition(",")[0]: check.error
        for check in parity.compare(tmp_path / "a.npz", "x/")
        if not check.passed
    }
    assert failed[entry.replace("_", " ").replace("x t", "x_t")] == 1


def test_after_a_tie_the_comparison_follows_the_stored_draw(
    narrow: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = []

    def runner_up_once(step: int, score: Array) -> NDArray[np.int64]:
        best = score.argmax(-1)
        if step == 4:
            order = np.argsort(score[1, 7])
            gaps.append(score[1, 7, order[-1]] - score[1, 7, order[-2]])
            best[1, 7] = order[-2]
        return best

    vectors = slow_vectors(narrow_networks("x/"), 3, 2, runner_up_once)
    np.savez(tmp_path / "a.npz", **vectors)  # type: ignore[arg-type]
    checks = {check.name: check for check in parity.compare(tmp_path / "a.npz", "x/")}
    drawn = checks.pop("x_t after each step, differing")
    assert not drawn.passed and drawn.error == 1
    assert all(check.passed for check in checks.values()), checks
    # As close as that, either is right.
    monkeypatch.setattr(parity, "LOG_P_NATS", gaps[0] * 1.001)
    [drawn] = [check for check in parity.compare(tmp_path / "a.npz", "x/") if check.name == drawn.name]
    assert drawn.passed and drawn.note == "and 1 ties decided the other way"


def test_codes_tie_only_where_they_are_as_near_as_the_nearest() -> None:
    codec, _, _ = narrow_networks("x/")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        often = int(codec.encode(images).flatten().mode().values)
        twin = (often + 500) % 1024
        codec.codebook.embedding.weight[twin] = codec.codebook.embedding.weight[often]
        tokens = codec.encode(images)
        one_of_both = (tokens == often) | (tokens == twin)
        assert one_of_both.any() and not one_of_both.all()
        assert parity._tie(codec, images, torch.where(one_of_both, often + twin - tokens, tokens)).all()
        assert not parity._tie(codec, images, torch.where(one_of_both, often + 1, tokens))[one_of_both].any()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_what_is_no_file_of_vectors_is_refused_in_one_line(
    one_frame: dict[str, NDArray[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *words: str) -> None:
        assert cli.main(["parity", str(path), "--salt", "x/"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"dr: {path}: expected ") and err.count("\n") == 1, err
        for word in words:
            assert word in err, err

    def changed(**entries: object) -> Path:
        np.savez(tmp_path / "a.npz", **{**one_frame, **entries})  # type: ignore[arg-type]
        return tmp_path / "a.npz"

    refused(tmp_path / "none.npz", "no such file")
    refused(tmp_path, "a directory")
    np.save(tmp_path / "array.npy", np.zeros(3))
    refused(tmp_path / "array.npy", "not a zip archive")
    trap = np.empty(1, object)
    trap[0] = Trap(tmp_path / "sprung")
    refused(changed(tokens=trap), "pickle")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(trap[0]))
    refused(tmp_path / "a.pkl")
    assert not (tmp_path / "sprung").exists()

    whole = changed().read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "torn.npz").write_bytes(whole[:size])
        refused(tmp_path / "torn.npz")
    (tmp_path / "flipped.npz").write_bytes(whole[:3000] + bytes(200) + whole[3200:])
    refused(tmp_path / "flipped.npz")
    with zipfile.ZipFile(changed(), "a") as archive:
        archive.writestr("note.txt", "text")
    refused(tmp_path / "a.npz", "note.txt")

    few = {name: one_frame[name] for name in one_frame if name not in ("tokens", "loss_t")}
    np.savez(tmp_path / "few.npz", **few)  # type: ignore[arg-type]
    refused(tmp_path / "few.npz", "no tokens, no loss_t")
    refused(changed(frames=one_frame["frames"][:0]), "at least 1")
    refused(changed(frames=one_frame["frames"].astype(np.float32)), "uint8", "float32 (1, 64, 64, 3)")
    refused(changed(tokens=one_frame["tokens"][:, :63]), "tokens (1, 64)", "int16 (1, 63)")
    refused(changed(tokens=one_frame["tokens"].astype(np.float32)), "integers", "float32")
    refused(changed(tokens=one_frame["tokens"] * 0 + 1024), "from 0 to 1023")
    refused(changed(loss_t=np.array([-1])), "loss_t from 0 to 99")
    refused(changed(x_t_after_each_step=one_frame["x_t_after_each_step"][:10]), "(11, 1, 64)", "(10, 1, 64)")
    refused(changed(decoded=one_frame["decoded"][:0]), "1 to 1")
    refused(changed(reward_injected=np.array(["text"])), "floating-point")
    refused(changed(reward_noise_off=np.array(1.0)), "reward_noise_off (1)")
    for seed in (np.array(-1), np.array(1.5), np.array([1, 2])):
        refused(changed(seed=seed), "seed")


# ---- denoiser ----


def test_a_frozen_denoiser_gives_the_same_logits_and_thaws() -> None:
    for positions in (False, True):
        denoiser = small_denoiser(condition_positions=positions)
        x_t, t, history = small_inputs()
        loose = denoiser(x_t, t, denoiser.condition(history))
        denoiser.freeze()
        torch.testing.assert_close(denoiser(x_t, t, denoiser.condition(history)), loose)
        assert not denoiser.condition(history).requires_grad
        denoiser.train()
        assert denoiser.condition(history).requires_grad


def test_loading_weights_into_a_frozen_denoiser_drops_its_tables() -> None:
    denoiser, other = small_denoiser().freeze(), small_denoiser()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    x_t, t, history = small_inputs()
    denoiser.load_state_dict(other.state_dict())
    want = other(x_t, t, other.condition(history))
    torch.testing.assert_close(denoiser(x_t, t, denoiser.condition(history)), want)


def test_without_positions_the_history_is_a_bag_of_codes() -> None:
    x_t, t, history = small_inputs()
    for positions in (False, True):
        denoiser = small_denoiser(condition_positions=positions)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.mul_(5)  # so that the small start does not hide the history
        same = torch.allclose(
            denoiser(x_t, t, denoiser.condition(history)),
            denoiser(x_t, t, denoiser.condition(history.flip(1))),
            atol=1e-4,
        )
        assert same is not positions


@pytest.mark.parametrize("train_condition", [False, True])
def test_the_gradient_reaches_the_condition_table_only_when_asked(train_condition: bool) -> None:
    denoiser = small_denoiser(train_condition=train_condition, condition_positions=True)
    diffusion = CategoricalDiffusion(mask_and_uniform(ScheduleConfig(num_timesteps=5), 10))
    _, _, history = small_inputs()
    loss = diffusion.training_loss(
        denoiser, history[:, :4], denoiser.condition(history), torch.Generator().manual_seed(0)
    )
    loss.backward()
    gradient = denoiser.condition_codes.weight.grad
    assert (gradient is not None and bool(gradient.abs().sum() > 0)) is train_condition
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None or name == "condition_codes.weight", name


def test_published_weights_make_the_round_trip() -> None:
    ours, loaded = small_denoiser(), small_denoiser()
    entries = {name: value + 1 for name, value in ours.to_published().items()}
    loaded.from_published(entries)
    for name, value in loaded.to_published().items():
        assert torch.equal(value, entries[name])
    mapped = [n for names in ours.published_key_map().values() for n in names]
    assert len(mapped) == len(set(mapped))
    assert set(ours.published_key_map()) == set(ours.state_dict())


def test_wrong_published_weights_are_refused_by_name() -> None:
    denoiser = small_denoiser()
    entries = dict(denoiser.to_published())
    with pytest.raises(CheckpointError, match=r"1 missing, first 'transformer.to_logits.1.bias'"):
        denoiser.from_published({k: v for k, v in entries.items() if k != "transformer.to_logits.1.bias"})
    with pytest.raises(CheckpointError, match="1 unknown, first 'extra'"):
        denoiser.from_published(entries | {"extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="1 of another shape"):
        denoiser.from_published(entries | {"transformer.to_logits.1.bias": torch.zeros(9)})
    with pytest.raises(CheckpointError, match="condition_positions"):
        small_denoiser(condition_positions=True).from_published(entries)


# ---- codec ----


def small_codec() -> tuple[VQGAN, Tensor]:
    torch.manual_seed(0)
    codec = VQGAN(SMALL_CODEC)
    torch.nn.init.normal_(codec.codebook.embedding.weight)
    return codec, torch.rand(2, 3, 32, 32) * 2 - 1


def test_codec_shapes_and_nearest_code() -> None:
    codec, images = small_codec()
    tokens = codec.encode(images)
    assert tokens.shape == (2, 256) and tokens.dtype == torch.int64 and codec.grid == (16, 16)
    latents = codec.latents(images).flatten(2).transpose(1, 2)
    distance = (latents.unsqueeze(2) - codec.codebook.embedding.weight).square().sum(-1)
    assert torch.equal(tokens, distance.argmin(-1))
    assert torch.equal(codec.nearest(codec.look_up(tokens)), tokens)
    decoded = codec.decode(tokens)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1


def test_memory_layout_does_not_change_the_codec() -> None:
    codec, images = small_codec()
    other = VQGAN(dataclasses.replace(SMALL_CODEC, channels_last=False))
    other.load_state_dict(codec.state_dict())
    torch.testing.assert_close(codec.latents(images), other.latents(images), atol=1e-5, rtol=1e-5)


def test_beta_weighs_the_commitment_of_the_encoder() -> None:
    codec, images = small_codec()
    doubled = VQGAN(dataclasses.replace(SMALL_CODEC, beta=2 * SMALL_CODEC.beta))
    doubled.load_state_dict(codec.state_dict())
    gradients = []
    for model in (codec, doubled):
        model(images)[2].backward()
        assert model.quant_conv.weight.grad is not None and model.codebook.embedding.weight.grad is not None
        gradients.append((model.quant_conv.weight.grad, model.codebook.embedding.weight.grad))
    (encoder, codes), (encoder_doubled, codes_doubled) = gradients
    torch.testing.assert_close(encoder_doubled, 2 * encoder)
    torch.testing.assert_close(codes_doubled, codes)


def test_generator_and_discriminator_do_not_touch_each_other() -> None:
    codec, images = small_codec()
    losses = VQGANLoss(VQGANLossConfig(adversarial_start=0))
    reconstruction, _, quantisation = codec(images)
    terms = losses.generator(images, reconstruction, quantisation, codec.last_layer(), step=0)
    terms.total.backward()
    assert all(p.grad is None for p in losses.discriminator.parameters())
    assert codec.last_layer().grad is not None and terms.adaptive_weight > 0 and terms.adversarial != 0
    codec.zero_grad()
    losses.discriminate(images, reconstruction).backward()
    assert all(p.grad is not None for p in losses.discriminator.parameters())
    assert all(p.grad is None for p in codec.parameters())


def test_the_adversary_waits_for_its_start_and_missing_perceptual_weights_are_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    codec, images = small_codec()
    with caplog.at_level(logging.WARNING):
        losses = VQGANLoss(VQGANLossConfig(adversarial_start=10))
    assert "without the perceptual term" in caplog.text
    reconstruction, _, quantisation = codec(images)
    terms = losses.generator(images, reconstruction, quantisation, codec.last_layer(), step=9)
    torch.testing.assert_close(terms.total, terms.reconstruction + quantisation)
    with pytest.raises(CheckpointError, match="no such file"):
        VQGANLoss(VQGANLossConfig(perceptual_path=str(tmp_path)))


def test_perplexity_counts_the_codes_in_use() -> None:
    assert perplexity(torch.arange(8).repeat(4, 1), 16) == pytest.approx(8)
    assert perplexity(torch.zeros(4, 8, dtype=torch.long), 16) == pytest.approx(1)
