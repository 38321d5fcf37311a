"""The paper-size model against vectors of the published implementation, and the rules its parts keep."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dr_core import parity
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
