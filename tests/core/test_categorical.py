"""The noise process and the reward estimators against dense float64 references, counting and enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dr_core.diffusion.categorical import CategoricalDiffusion, clamped_log, sample
from dr_core.diffusion.schedule import Schedule, ScheduleConfig, mask_and_uniform
from dr_core.rewards import entropy
from tests.core import reference

# A process with a visible uniform part, so that no term can hide behind 1e-9.
TOY = ScheduleConfig(num_timesteps=6, keep_first=0.9, keep_last=0.05, mask_first=0.04, mask_last=0.7)
PUBLISHED = ScheduleConfig()
K, N = 3, 3


def toy(num_codes: int = K) -> tuple[Schedule, CategoricalDiffusion]:
    schedule = mask_and_uniform(TOY, num_codes)
    return schedule, CategoricalDiffusion(schedule)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TableDenoiser:
    """An arbitrary network: independent random logits for every time and every noised frame."""

    num_codes, num_tokens, num_history = K, N, 1

    def __init__(self, seed: int) -> None:
        self.logits = 1.5 * torch.randn(TOY.num_timesteps, (K + 1) ** N, N, K, generator=generator(seed))

    def condition(self, history: Tensor) -> None:
        return None

    def __call__(self, x_t: Tensor, t: Tensor, cache: None) -> Tensor:
        place = (K + 1) ** torch.arange(N - 1, -1, -1)
        return self.logits[t, (x_t * place).sum(-1)]


class JointDenoiser:
    """A perfect network: the conditionals of one joint distribution of three tokens, whatever is masked."""

    num_codes, num_tokens, num_history = K, N, 1

    def __init__(self, joint: Tensor) -> None:
        self.joint = joint  # (K, K, K)

    def condition(self, history: Tensor) -> None:
        return None

    def __call__(self, x_t: Tensor, t: Tensor, cache: None) -> Tensor:
        known = torch.where(x_t == K, -1, x_t).unsqueeze(-1)  # (B, N, 1)
        agrees = (known == -1) | (known == torch.arange(K))  # (B, N, K)
        a, b, c = agrees.float().unbind(1)
        weight = self.joint * a[:, :, None, None] * b[:, None, :, None] * c[:, None, None, :]
        marginals = torch.stack([weight.sum((2, 3)), weight.sum((1, 3)), weight.sum((1, 2))], 1)
        return marginals.clamp(min=1e-30).log()  # (B, N, K), not normalised


def random_joint(seed: int) -> Tensor:
    return (2 * torch.randn(K**N, generator=generator(seed))).softmax(0).view(K, K, K)


# ---- schedule ----


@pytest.mark.parametrize("config", [TOY, PUBLISHED])
@pytest.mark.parametrize("num_codes", [2, 1024])
def test_schedule_sums_to_one_and_hits_its_end_points(config: ScheduleConfig, num_codes: int) -> None:
    s = mask_and_uniform(config, num_codes)
    np.testing.assert_allclose(s.keep + num_codes * s.uniform + s.mask, 1, atol=1e-12)
    np.testing.assert_allclose(s.cum_keep + num_codes * s.cum_uniform + s.cum_mask, 1, atol=1e-12)
    assert s.cum_keep[0] == config.keep_first and s.cum_keep[-2] == config.keep_last
    assert s.cum_mask[0] == config.mask_first and s.cum_mask[-2] == config.mask_last
    assert (s.cum_keep[-1], s.cum_uniform[-1], s.cum_mask[-1]) == (1, 0, 0)


def test_cumulative_and_jumps_are_products_of_the_single_steps() -> None:
    s, _ = toy()
    transition = s.transition()
    for i in range(-1, s.num_timesteps):
        for t in range(i + 1, s.num_timesteps):
            want = reference.jump_matrix(s, i, t)
            np.testing.assert_allclose(reference.step_matrix(*transition[i, t], K), want, atol=1e-12)
        want = reference.step_matrix(s.cum_keep[i], s.cum_uniform[i], s.cum_mask[i], K)
        np.testing.assert_allclose(reference.jump_matrix(s, -1, i), want, atol=1e-12)


def test_published_constants_have_the_published_shapes() -> None:
    entries = mask_and_uniform(PUBLISHED, 1024).log_entries()
    shapes = {name: value.shape[0] for name, value in entries.items()}
    per_step = dict.fromkeys(["log_at", "log_bt", "log_ct", "log_1_min_ct"], 100)
    cumulative = ["log_cumprod_at", "log_cumprod_bt", "log_cumprod_ct", "log_1_min_cumprod_ct"]
    assert shapes == per_step | dict.fromkeys(cumulative, 101)
    np.testing.assert_allclose(np.logaddexp(entries["log_ct"], entries["log_1_min_ct"]), 0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"num_timesteps": 1}, {"keep_last": 0.0}, {"mask_last": 1.0}, {"mask_first": 0.5}])
def test_impossible_schedules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ScheduleConfig(**wrong)  # type: ignore[arg-type]


# ---- q and its posteriors ----


@pytest.mark.parametrize("t", [-1, 0, 3, 5])
def test_q_sample_follows_the_marginals(t: int) -> None:
    s, diffusion = toy(num_codes=4)
    x_start = torch.arange(4).repeat_interleave(50_000).view(4, -1)
    x_t = diffusion.q_sample(x_start, torch.full((4,), t), generator(t + 1))
    for x, drawn in enumerate(x_t):
        expected = reference.jump_matrix(s, -1, t)[x]
        counts = np.bincount(drawn.numpy(), minlength=5)
        assert counts[expected == 0].sum() == 0
        inside = expected > 0
        if inside.sum() > 1:
            assert stats.chisquare(counts[inside], expected[inside] * len(drawn)).pvalue > 1e-3


def all_pairs(num_codes: int, batch_times: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every (x_start, x_t) pair as the tokens of a frame, once per (s, t): x_start, x_t (B, ·), t, s (B,)."""
    x_start = torch.arange(num_codes).repeat_interleave(num_codes + 1)
    x_t = torch.arange(num_codes + 1).repeat(num_codes)
    b = len(batch_times)
    s, t = torch.tensor(batch_times).unbind(1)
    return x_start.expand(b, -1), x_t.expand(b, -1), t, s


def test_posterior_and_kl_equal_the_dense_float64_reference() -> None:
    schedule, diffusion = toy(num_codes=4)
    times = [(s, t) for t in range(6) for s in range(-1, t)]
    x_start, x_t, t, s = all_pairs(4, times)
    logits = 3 * torch.randn(*x_start.shape, 4, generator=generator())
    p = diffusion.posterior(diffusion.p_start(logits), x_t, t, s)
    kl = diffusion.kl_posterior(x_start, clamped_log(p), x_t, t, s)
    exact = logits.double().softmax(-1).numpy()
    for b, (si, ti) in enumerate(times):
        from_s, to_s = reference.jump_matrix(schedule, si, ti), reference.jump_matrix(schedule, -1, si)
        for n in range(x_start.shape[1]):
            a, z = int(x_start[b, n]), int(x_t[b, n])
            want = reference.p_posterior(from_s, to_s, exact[b, n], z)
            np.testing.assert_allclose(p[b, n].numpy(), want, rtol=2e-5, atol=1e-7)
            q = reference.q_posterior(from_s, to_s, a, z)
            assert float(kl[b, n]) == pytest.approx(reference.kl(q, want), rel=1e-4, abs=2e-6)


@pytest.mark.parametrize("t, s", [(99, 98), (99, 89), (50, 49), (39, 9), (2, 1), (1, 0), (0, -1), (9, -1)])
def test_float32_suffices_at_paper_size(t: int, s: int) -> None:
    """1024 codes, sharp predictions: log-probabilities and KL within 1e-4 nats of float64 logarithms."""
    codes = 1024
    schedule = mask_and_uniform(PUBLISHED, codes)
    diffusion = CategoricalDiffusion(schedule)
    x_start = torch.tensor([[3, 3, 3, 3]])
    x_t = torch.tensor([[codes, 3, 7, codes]])
    sharpness = torch.tensor([8.0, 4.0, 8.0, 1.0]).view(1, 4, 1)
    logits = sharpness * torch.randn(1, 4, codes, generator=generator())
    times = torch.tensor([t]), torch.tensor([s])
    log_p = clamped_log(diffusion.posterior(diffusion.p_start(logits), x_t, *times))
    kl = diffusion.kl_posterior(x_start, log_p, x_t, *times)
    from_s = reference.step_matrix(*schedule.transition()[s, t], codes)
    to_s = reference.step_matrix(schedule.cum_keep[s], schedule.cum_uniform[s], schedule.cum_mask[s], codes)
    p_start = logits[0].double().softmax(-1).numpy()
    for n in range(4):
        # Σ_x p(x) to_s[x] from_s[:, x_t] / q(x_t | x): the reference's sum as one product of matrices.
        evidence = to_s[:codes] @ from_s[:, x_t[0, n]]
        p = (p_start[n] / evidence) @ to_s[:codes] * from_s[:, x_t[0, n]]
        want = np.clip(np.log(np.maximum(p, 1e-300)), -70, 0)
        q = reference.q_posterior(from_s, to_s, 3, int(x_t[0, n]))
        np.testing.assert_allclose(log_p[0, n, :codes], want[:codes], atol=1e-4)
        assert float(kl[0, n]) == pytest.approx(np.sum(q[q > 0] * (np.log(q[q > 0]) - want[q > 0])), abs=1e-4)


def test_q_posterior_is_the_one_step_posterior_in_logarithms() -> None:
    _, diffusion = toy()
    x_start, x_t, t, s = all_pairs(K, [(2, 3), (-1, 0)])
    p_start = torch.rand(*x_start.shape, K, generator=generator()).softmax(-1)
    got = diffusion.q_posterior(p_start.log(), x_t, t)
    torch.testing.assert_close(got.exp(), diffusion.posterior(p_start, x_t, t, s), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(x_start.shape))


def test_a_masked_token_stays_masked_with_the_ratio_of_the_cumulative_masks() -> None:
    schedule, diffusion = toy()
    x_t, t, s = torch.tensor([[K]]), torch.tensor([4]), torch.tensor([1])
    p = diffusion.posterior(torch.full((1, 1, K), 1 / K), x_t, t, s)
    assert float(p[0, 0, K]) == pytest.approx(schedule.cum_mask[1] / schedule.cum_mask[4], rel=1e-5)


def test_published_jumps_take_one_step_and_exact_jumps_connect() -> None:
    diffusion = CategoricalDiffusion(mask_and_uniform(PUBLISHED, 8))
    published = diffusion.jumps(10)
    assert [t for t, _, _ in published] == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9, 0]
    assert [t for _, t, _ in published] == [90, 80, 70, 60, 50, 40, 30, 20, 10, 9, 0]
    assert all(s == t - 1 for _, t, s in published)
    exact = diffusion.jumps(10, "exact")
    assert [s for _, _, s in exact[:-1]] == [t for t, _, _ in exact[1:]] and exact[-1][2] == -1
    assert diffusion.jumps(1, "published") == diffusion.jumps(1, "exact")
    with pytest.raises(ValueError, match="exakt"):
        diffusion.jumps(10, "exakt")


def test_sampling_follows_the_probabilities() -> None:
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    drawn = sample(p.expand(100_000, 4), torch.rand(100_000, 4, generator=generator()))
    counts = torch.bincount(drawn, minlength=4).numpy()
    assert counts[3] == 0 and stats.chisquare(counts[:3], 100_000 * p[:3].numpy()).pvalue > 1e-3
    assert sample(p, None) == 0


# ---- training ----


def test_loss_parts_equal_the_reference_and_its_gradient_is_finite() -> None:
    schedule, diffusion = toy()
    x_start, x_t, t, _ = all_pairs(K, [(i - 1, i) for i in range(6)])
    logits = torch.randn(*x_start.shape, K, generator=generator()).requires_grad_()
    parts = diffusion.loss_parts(logits, x_start, x_t, t)
    p_start = logits.detach().double().softmax(-1).numpy()
    for b in range(6):
        from_s, to_s = reference.jump_matrix(schedule, b - 1, b), reference.jump_matrix(schedule, -1, b - 1)
        kl = nll = aux = 0.0
        for n, (a, z) in enumerate(zip(x_start[b].tolist(), x_t[b].tolist(), strict=True)):
            p = reference.p_posterior(from_s, to_s, p_start[b, n], z)
            kl += reference.kl(reference.q_posterior(from_s, to_s, a, z), p)
            nll -= math.log(p[a])
            aux -= math.log(p_start[b, n, a])
        got = tuple(float(part[b].detach()) for part in (parts.kl, parts.decoder_nll, parts.aux_kl))
        assert got == pytest.approx((kl, nll, aux), rel=1e-4)
    (parts.kl + parts.decoder_nll).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_times_are_uniform_until_each_was_seen_then_follow_the_loss() -> None:
    _, diffusion = toy()
    t, probability = diffusion.sample_time(6000, generator())
    assert torch.all(probability == 1 / 6)
    assert stats.chisquare(torch.bincount(t, minlength=6).numpy()).pvalue > 1e-3
    for _ in range(11):
        diffusion.record_loss(torch.arange(6), torch.tensor([9.0, 1, 1, 1, 1, 5]))
    t, probability = diffusion.sample_time(6000, generator())
    share = torch.bincount(t, minlength=6) / 6000
    assert float(share[5]) == pytest.approx(0.5, abs=0.03)
    assert float(share[0]) == pytest.approx(0.1, abs=0.02), "t = 0 borrows the weight of t = 1"
    torch.testing.assert_close(probability[t == 5][0], torch.tensor(0.5), atol=1e-3, rtol=0)


def test_recorded_losses_average_repeated_times_and_survive_saving() -> None:
    _, diffusion = toy()
    diffusion.record_loss(torch.tensor([2, 2, 4]), torch.tensor([1.0, 3.0, 2.0]))
    torch.testing.assert_close(diffusion.Lt_history, torch.tensor([0, 0, 0.5, 0, 0.4, 0]))
    assert diffusion.Lt_count.tolist() == [0, 0, 2, 0, 1, 0]
    assert set(diffusion.state_dict()) == {"Lt_history", "Lt_count"}


def test_training_loss_is_lower_for_the_truth_and_deterministic_given_the_seed() -> None:
    x_start = torch.tensor([[0, 1, 2]]).repeat(256, 1)
    joint = torch.full((K, K, K), 1e-6)
    joint[0, 1, 2] = 1

    def loss(joint: Tensor) -> float:
        # Hardly any uniform noise: what is not masked is true, as this network believes.
        diffusion = CategoricalDiffusion(mask_and_uniform(PUBLISHED, K))
        return float(diffusion.training_loss(JointDenoiser(joint), x_start, None, generator(3)))

    assert loss(joint) < 0.01 < loss(random_joint(1))
    assert loss(joint) == loss(joint)


# ---- reward estimators ----


@pytest.mark.parametrize("posterior", ["published", "exact"])
@pytest.mark.parametrize("observed", [None, (2, 0, 1)])
def test_paper_estimator_is_unbiased_for_its_sum(posterior: str, observed: tuple[int, ...] | None) -> None:
    schedule, diffusion = toy()
    denoiser = TableDenoiser(seed=5)
    batch = 20_000
    history = torch.zeros(batch, N, dtype=torch.long)
    x_start = None if observed is None else torch.tensor([observed]).repeat(batch, 1)
    result = entropy.paper(
        diffusion, denoiser, history, noise=generator(1), stride=2, posterior=posterior, x_start=x_start
    )
    p_start = denoiser.logits.double().softmax(-1).numpy()
    index = None if observed is None else reference.frames(K, N).index(observed)
    want = reference.expected_reward(schedule, diffusion.jumps(2, posterior), p_start, N, index)
    stderr = float(result.value.std()) / batch**0.5
    assert stderr < 0.02 * abs(want)
    assert abs(float(result.value.mean()) - want) < 4 * stderr
    assert result.calls == 4


def test_paper_estimator_averages_draws_and_reports_their_error() -> None:
    _, diffusion = toy()
    denoiser, history = TableDenoiser(seed=5), torch.zeros(2000, N, dtype=torch.long)
    one = entropy.paper(diffusion, denoiser, history, noise=generator(), stride=3)
    many = entropy.paper(diffusion, denoiser, history, noise=generator(), stride=3, num_samples=16)
    assert torch.all(one.stderr == 0) and many.calls == 16 * one.calls
    assert float(many.value.std()) == pytest.approx(float(one.value.std()) / 4, rel=0.1)
    assert float(many.stderr.square().mean().sqrt()) == pytest.approx(float(many.value.std()), rel=0.1)
    again = entropy.paper(diffusion, denoiser, history, noise=generator(), stride=3, num_samples=16)
    assert torch.equal(many.value, again.value)


def test_given_uniforms_are_numbered_through_the_samples() -> None:
    _, diffusion = toy()
    asked = []

    def uniforms(step: int) -> Tensor:
        asked.append(step)
        return torch.rand(4, N, K + 1, generator=generator(step))

    history = torch.zeros(4, N, dtype=torch.long)
    entropy.paper(diffusion, TableDenoiser(0), history, noise=uniforms, stride=5, num_samples=2)
    assert asked == list(range(4))  # times 5 and 0, twice


def test_likelihood_scores_the_observed_frame() -> None:
    _, diffusion = toy()
    denoiser, history = JointDenoiser(random_joint(2)), torch.zeros(3, N, dtype=torch.long)
    peak = torch.tensor(np.unravel_index(int(denoiser.joint.argmax()), (K, K, K)))
    trough = torch.tensor(np.unravel_index(int(denoiser.joint.argmin()), (K, K, K)))
    good, bad = (
        entropy.likelihood(diffusion, denoiser, history, x.expand(3, N), noise=None, stride=2).value
        for x in (peak, trough)
    )
    assert torch.all(good > bad)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_chain_one_token_at_a_time_is_the_exact_entropy(order: tuple[int, ...]) -> None:
    _, diffusion = toy()
    joint = random_joint(7)
    exact = reference.entropy(joint.double().numpy())
    history = torch.zeros(1, N, dtype=torch.long)
    result = entropy.chain(
        diffusion,
        JointDenoiser(joint),
        history,
        num_steps=N,
        order=torch.tensor(order),
        generator=generator(),
        num_samples=1500,
    )
    assert 0 < float(result.stderr) < 0.02
    assert abs(float(-result.value) - exact) < 4 * float(result.stderr)


def test_one_pass_is_an_upper_bound_on_the_entropy_and_the_chain_of_one_block() -> None:
    _, diffusion = toy()
    history = torch.zeros(2, N, dtype=torch.long)
    for seed in range(5):
        joint = random_joint(seed)
        denoiser = JointDenoiser(joint)
        one = entropy.one_pass(diffusion, denoiser, history)
        assert -float(one.value[0]) >= reference.entropy(joint.double().numpy())
        block = entropy.chain(diffusion, denoiser, history, num_steps=1, order=torch.arange(N), generator=generator())
        torch.testing.assert_close(block.value, one.value)
    independent = torch.einsum("a,b,c->abc", *torch.rand(3, K, generator=generator()).softmax(-1))
    one = entropy.one_pass(diffusion, JointDenoiser(independent), history)
    assert -float(one.value[0]) == pytest.approx(reference.entropy(independent.double().numpy()), rel=1e-5)


def test_chain_gives_equal_histories_equal_values() -> None:
    _, diffusion = toy()
    result = entropy.chain(
        diffusion,
        TableDenoiser(3),
        torch.zeros(4, N, dtype=torch.long),
        num_steps=N,
        order=entropy.spread_order(N),
        generator=generator(),
        num_samples=2,
    )
    assert torch.all(result.value == result.value[0])
    with pytest.raises(ValueError, match="permutation"):
        entropy.chain(
            diffusion,
            TableDenoiser(3),
            torch.zeros(1, N, dtype=torch.long),
            num_steps=1,
            order=torch.zeros(N, dtype=torch.long),
            generator=generator(),
        )
