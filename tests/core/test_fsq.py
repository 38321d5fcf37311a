"""The FSQ codec: codes and levels are inverse, every code is reachable, a frame's codes depend on that frame alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dr_core.codec.fsq import FSQCodec, FSQConfig, reconstruction_loss
from dr_core.codec.train import CodecTraining, FSQStage, code_perplexity, cosine_rate, psnr_db, to_images
from tests.core.moving_square import moving_square

CPU = torch.device("cpu")
SMALL = FSQConfig(levels=(5, 4, 3), channels=16)


def codec(config: FSQConfig = SMALL) -> FSQCodec:
    torch.manual_seed(0)
    return FSQCodec(config)


def on_levels(levels: tuple[int, ...]) -> FSQCodec:
    """A codec whose encoder takes levels (B, dims, 8, 8) in place of images."""

    class ToLogits(nn.Module):
        def forward(self, wanted: Tensor) -> Tensor:
            share = wanted / (torch.tensor(levels).view(1, -1, 1, 1) - 1)
            return torch.logit(share.clamp(0.01, 0.99))

    made = codec(FSQConfig(levels=levels, channels=8))
    made.encoder = ToLogits()  # type: ignore[assignment]
    return made


def every_level(levels: tuple[int, ...]) -> Tensor:
    """(B, dims, 8, 8) that holds every combination of levels, the last ones repeated to fill the grid."""
    combinations = torch.tensor(list(itertools.product(*map(range, levels)))).float()  # (K, dims)
    padded = torch.cat([combinations, combinations[-1:].expand(-len(combinations) % 64, -1)])
    return padded.view(-1, 8, 8, len(levels)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("levels", [(8, 8, 8), (5, 4, 3), (2,), (7, 5, 5, 3)])
def test_all_codes_are_reachable_and_encoding_inverts_decoding(levels: tuple[int, ...]) -> None:
    made = on_levels(levels)
    wanted = every_level(levels)
    tokens = made.encode(wanted)
    assert made.num_codes == math.prod(levels)
    assert sorted(set(tokens.flatten().tolist())) == list(range(made.num_codes))

    seen: list[Tensor] = []

    def remember(quantised: Tensor) -> Tensor:
        seen.append(quantised)
        return torch.zeros(len(quantised), 3, 64, 64)

    made.reconstruct = remember  # type: ignore[method-assign]
    made.decode(tokens)
    torch.testing.assert_close(seen[0], wanted, rtol=0, atol=0)
    torch.testing.assert_close(made.encode(seen[0]), tokens, rtol=0, atol=0)


def test_codes_are_row_by_row_and_the_first_channel_counts_fastest() -> None:
    made = on_levels((5, 4, 3))
    wanted = torch.zeros(1, 3, 8, 8)
    wanted[0, :, 1, 2] = torch.tensor([3.0, 2.0, 1.0])
    tokens = made.encode(wanted)
    assert tokens.shape == (1, 64) and tokens.dtype == torch.int64
    assert tokens[0, 10] == 3 + 2 * 5 + 1 * 20 and tokens.sum() == tokens[0, 10]


def test_latents_stay_between_the_first_and_the_last_level() -> None:
    made = codec()
    latents = made.latents(100 * torch.randn(4, 3, 64, 64))
    assert latents.shape == (4, 3, 8, 8)
    assert latents.min() >= 0
    assert (latents.amax((0, 2, 3)) <= torch.tensor([4.0, 3.0, 2.0])).all()


def test_the_gradient_passes_straight_through_the_rounding() -> None:
    made = codec()
    latents = (3 * torch.rand(2, 3, 8, 8)).requires_grad_()
    quantised = made.quantise(latents)
    torch.testing.assert_close(quantised, latents.round())
    weight = torch.randn_like(latents)
    (quantised * weight).sum().backward()
    torch.testing.assert_close(latents.grad, weight)

    images = torch.rand(2, 3, 64, 64) * 2 - 1
    reconstruction, _ = made(images)
    reconstruction_loss(reconstruction, images).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_training_and_encoding_give_the_same_codes() -> None:
    made = codec()
    images = to_images(moving_square(0, expert=True), CPU)
    reconstruction, tokens = made(images)
    assert torch.equal(tokens, made.encode(images))
    torch.testing.assert_close(made.decode(tokens), reconstruction.clamp(-1, 1))


def test_codes_of_a_frame_do_not_depend_on_its_batch() -> None:
    frames = np.concatenate([moving_square(seed, expert=seed % 2 == 0, length=30) for seed in range(10)])
    made = codec(FSQConfig(channels=16)).eval()
    with torch.no_grad():
        together = made.encode(to_images(frames, CPU))
        alone = torch.cat([made.encode(to_images(frame[None], CPU)) for frame in frames])
    assert len(torch.unique(together)) > 3
    assert torch.equal(together, alone)


def test_images_map_bytes_to_minus_one_and_one() -> None:
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    frames[0, 0, 0] = 255, 0, 51
    images = to_images(frames, CPU)
    assert images.shape == (1, 3, 64, 64)
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))
    assert torch.equal(to_images(torch.from_numpy(frames), CPU), images)


@pytest.mark.parametrize(
    "settings",
    [{"levels": ()}, {"levels": (8, 1)}, {"channels": 20}, {"channels": 0}],
)
def test_impossible_codecs_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        FSQConfig(**settings)  # type: ignore[arg-type]


# ---- its training ----


def test_training_lowers_the_loss_and_raises_the_psnr() -> None:
    frames = moving_square(0, expert=True)
    stage = FSQStage(codec(), frames, CodecTraining(steps=40, batch_size=8, warmup_steps=5), 0, CPU)
    logged = [{name: float(value) for name, value in stage.step(index).items()} for index in range(40)]
    assert np.mean([row["loss"] for row in logged[-5:]]) < 0.5 * logged[0]["loss"]
    assert logged[-1]["psnr_db"] > logged[0]["psnr_db"] + 3
    assert all(1 <= row["perplexity"] <= math.prod(SMALL.levels) for row in logged)


def test_the_rate_warms_up_and_falls_to_three_percent() -> None:
    rates = [cosine_rate(2.0, index, 100, 10) for index in range(101)]
    assert rates[0] == pytest.approx(0.2, rel=1e-2) and max(rates) == pytest.approx(2.0, rel=0.03)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.06)


def test_curves_have_closed_forms() -> None:
    assert float(code_perplexity(torch.arange(8).repeat(3, 1), 16)) == pytest.approx(8)
    assert float(code_perplexity(torch.zeros(3, 8, dtype=torch.long), 16)) == pytest.approx(1)
    # An error of 0.2 in images of range 2 is a tenth of the peak: 20 dB.
    assert float(psnr_db(torch.full((1, 3, 4, 4), 0.2), torch.zeros(1, 3, 4, 4))) == pytest.approx(20)
