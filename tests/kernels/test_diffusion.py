"""The fused diffusion arithmetic against the formulas written out in float64 torch."""

import math

import numpy as np
import pytest
import torch

from ddpo3d_fast import _C
from ddpo3d_fast.kernels import diffusion as ops
from ddpo3d_fast.kernels import get_num_threads, mixtures, set_num_threads

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SHAPE = (3, 13, 31)  # 1209 elements: more than one block, no multiple of a counter's four words


def relative_l2(got, expected):
    expected = expected.double()
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def random_inputs(items, shape=SHAPE, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noisy, cond, uncond = (torch.randn(items, *shape, generator=generator).to(dtype) for _ in range(3))
    alphas = torch.rand(items, generator=generator) * 0.9 + 0.02
    prev = alphas + (1 - alphas) * (torch.rand(items, generator=generator) * 0.8 + 0.1)
    return noisy, cond, uncond, alphas, prev


def column(values, like):
    return values.double().reshape(-1, *[1] * (like.dim() - 1))


def guess_oracle(noisy, cond, uncond, alphas, scale, prediction_type, clip=None, clean_scale=None):
    """Guided noise and clean guess from the definitions of the three prediction types, not from
    coefficients."""
    z, c = noisy.double(), cond.double()
    p = c if uncond is None else uncond.double() + scale * (c - uncond.double())
    a = column(alphas, z)
    if prediction_type == "epsilon":
        noise = p
        clean = (z - (1 - a).sqrt() * noise) / a.sqrt()
    elif prediction_type == "v_prediction":
        clean = a.sqrt() * z - (1 - a).sqrt() * p
        noise = a.sqrt() * p + (1 - a).sqrt() * z
    else:
        clean = p
        noise = (z - a.sqrt() * clean) / (1 - a).sqrt()
    if clean_scale is not None:
        clean = clean * column(clean_scale, clean)
    if clip is not None:
        clean = clean.clamp(*clip)
    if clip is not None or clean_scale is not None:
        noise = (z - a.sqrt() * clean) / (1 - a).sqrt()
    return noise, clean


def sigma_oracle(alphas, prev, eta):
    a, b = alphas.double(), prev.double()
    return eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()


# ---- noise
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert _C.philox_words(*counter, *key) == expected


def test_noise_is_box_muller_of_the_counter_words():
    seed, stream, count = 0x0123456789ABCDEF, 0xFEDCBA9876543210, 64
    noise = ops.philox_normal((count,), seed, stream).double()
    for index in range(count // 4):
        words = _C.philox_words(index, 0, stream & 0xFFFFFFFF, stream >> 32, seed & 0xFFFFFFFF, seed >> 32)
        for pair in range(2):
            uniform, turn = (words[2 * pair] + 0.5) / 2**32, words[2 * pair + 1] / 2**32
            radius, angle = math.sqrt(-2 * math.log(uniform)), 2 * math.pi * turn
            expected = [radius * math.cos(angle), radius * math.sin(angle)]
            got = noise[4 * index + 2 * pair : 4 * index + 2 * pair + 2].tolist()
            assert got == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_noise_is_standard_normal():
    noise = ops.philox_normal((1 << 20,), seed=1, stream=2).double()
    count = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((noise**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((noise[:-1] * noise[1:]).mean()) < 5 / math.sqrt(count)
    assert 4.3 < noise.abs().max() < 6.8
    # Kolmogorov-Smirnov: 1.95 is the 0.1 % point.
    cdf = torch.special.ndtr(noise.sort().values)
    steps = torch.arange(count, dtype=torch.float64) / count
    assert (cdf - steps).abs().max() * math.sqrt(count) < 1.95


def test_noise_of_another_seed_or_stream_is_uncorrelated():
    base = ops.philox_normal((100_000,), 7, 0)
    for seed, stream in ((8, 0), (7, 1), (7 + 2**32, 0), (7, 2**32)):
        other = ops.philox_normal((100_000,), seed, stream)
        assert abs((base * other).mean()) < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 1023, 1024, 1025, 5000])
def test_shorter_noise_is_a_prefix_of_longer_noise(count):
    assert torch.equal(ops.philox_normal((count,), 3, 4), ops.philox_normal((6000,), 3, 4)[:count])


# ---- noising
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_add_noise_equals_the_oracle(actions, dtype):
    latents = random_inputs(3, dtype=dtype)[0]
    alphas = random_inputs(3 * actions)[3]
    noisy = ops.add_noise(latents, alphas, seed=5, stream=6, actions=actions)
    noise = ops.philox_normal(noisy.shape, 5, 6).double()
    a = column(alphas, noise)
    expected = a.sqrt() * latents.double().repeat_interleave(actions, 0) + (1 - a).sqrt() * noise
    assert noisy.dtype == torch.float32
    assert relative_l2(noisy, expected) < 1e-6


def test_every_float16_value_is_read_exactly():
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    noisy = ops.add_noise(values[None], torch.ones(1), seed=0, stream=0)
    assert torch.equal(noisy[0].nan_to_num(nan=1234.5), values.float().nan_to_num(nan=1234.5))


def test_noncontiguous_latents_are_read_in_their_own_order():
    latents = random_inputs(4)[0].transpose(1, 2)
    alphas = random_inputs(4)[3]
    assert torch.equal(
        ops.add_noise(latents, alphas, 1, 2), ops.add_noise(latents.contiguous(), alphas, 1, 2)
    )


# ---- denoising
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, (-1.0, 0.7)])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_denoise_action_equals_the_oracle(prediction_type, dtype, clip, guided, eta):
    noisy, cond, uncond, alphas, prev = random_inputs(5, dtype=dtype)
    uncond = uncond if guided else None
    out = ops.denoise_action(
        noisy, cond, uncond, alphas, prev, 7.5, prediction_type, eta, clip, seed=11, stream=12
    )
    noise, clean = guess_oracle(noisy, cond, uncond, alphas, 7.5, prediction_type, clip)
    sigma, b = sigma_oracle(alphas, prev, eta), column(prev, clean)
    mean = b.sqrt() * clean + (1 - b - column(sigma, clean) ** 2).sqrt() * noise
    action = mean + column(sigma, clean) * ops.philox_normal(noisy.shape, 11, 12).double()
    density = torch.distributions.Normal(mean, column(sigma, clean)).log_prob(action).flatten(1).sum(1)
    assert relative_l2(out.guided_noise, noise) < 1e-5
    assert relative_l2(out.clean, clean) < 1e-5
    assert relative_l2(out.mean, mean) < 1e-5
    assert relative_l2(out.action, action) < 1e-5
    assert relative_l2(out.log_prob, density) < 1e-5
    assert all(field.dtype == torch.float32 for field in out)


@pytest.mark.parametrize("wanted", [("clean",), ("guided_noise",), ("mean",), ("action",), ("log_prob",), ()])
def test_only_the_wanted_outputs_are_made_and_they_do_not_change(wanted):
    noisy, cond, uncond, alphas, prev = random_inputs(3)
    everything = ops.denoise_action(noisy, cond, uncond, alphas, prev, 5.0, "epsilon", seed=1, stream=2)
    some = ops.denoise_action(
        noisy, cond, uncond, alphas, prev, 5.0, "epsilon", seed=1, stream=2, outputs=wanted
    )
    for name, field in some._asdict().items():
        if name in wanted:
            assert torch.equal(field, getattr(everything, name))
        else:
            assert field is None


@pytest.mark.parametrize("case", ["eta 0", "last step", "no step", "no noise at all"])
def test_without_variance_the_action_is_the_mean_and_log_prob_zero(case):
    noisy, cond, uncond, alphas, prev = random_inputs(3)
    eta = 0.0 if case == "eta 0" else 1.0
    if case == "last step":
        prev = torch.ones(3)
    if case == "no step":
        prev = alphas.clone()
    if case == "no noise at all":
        alphas = prev = torch.ones(3)
    for prediction_type in PREDICTION_TYPES:
        out = ops.denoise_action(noisy, cond, uncond, alphas, prev, 5.0, prediction_type, eta, seed=1)
        assert torch.equal(out.action, out.mean)
        assert out.log_prob.tolist() == [0.0] * 3
        assert all(field.isfinite().all() for field in out)


def test_the_true_noise_as_prediction_gives_the_clean_latents_back():
    latents = random_inputs(2)[0]
    alphas = torch.tensor([0.9, 0.5, 0.3, 0.1])
    noisy = ops.add_noise(latents, alphas, seed=3, stream=4, actions=2)
    noise = ops.philox_normal(noisy.shape, 3, 4)
    out = ops.denoise_action(noisy, noise, None, alphas, alphas, 1.0, "epsilon", outputs=("clean",))
    assert relative_l2(out.clean, latents.repeat_interleave(2, 0)) < 1e-6
    residual = ops.score_residual(
        noisy, noise, None, alphas, torch.ones(4), 1.0, "epsilon", seed=3, noise_stream=4, actions=2
    )
    assert torch.equal(residual, torch.zeros_like(latents))


# ---- the score residual
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("actions", [1, 2, 8])
@pytest.mark.parametrize("with_actions", [True, False])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_score_residual_equals_the_oracle(prediction_type, dtype, actions, with_actions, clip):
    views = 2
    noisy, cond, uncond, alphas, _ = random_inputs(views * actions, dtype=dtype)
    weight, action_weight = torch.randn(2, views * actions, generator=torch.Generator().manual_seed(9))
    grad = ops.score_residual(
        noisy, cond, uncond, alphas, weight, 7.5, prediction_type, clip,
        seed=21, noise_stream=22, actions=actions,
        action_weight=action_weight if with_actions else None,
        action_stream=23 if with_actions else None,
    )  # fmt: skip
    guided, _clean = guess_oracle(noisy, cond, uncond, alphas, 7.5, prediction_type, clip)
    terms = column(weight, guided) * (guided - ops.philox_normal(noisy.shape, 21, 22).double())
    if with_actions:
        terms = terms - column(action_weight, guided) * ops.philox_normal(noisy.shape, 21, 23).double()
    assert grad.shape == (views, *SHAPE)
    assert relative_l2(grad, terms.reshape(views, actions, *SHAPE).sum(1)) < 1e-5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_policy_gradient_equals_autograd_of_the_log_probability_without_the_unet(prediction_type):
    """Minus the weighted log-probability, differentiated through z -> z_t -> mu with the guided noise held
    fixed."""
    views, actions = 2, 4
    noisy, cond, uncond, alphas, prev = random_inputs(views * actions)
    latents = random_inputs(views, seed=3)[0]
    noisy = ops.add_noise(latents, alphas, seed=31, stream=0, actions=actions)
    advantages = torch.randn(views * actions, generator=torch.Generator().manual_seed(4))
    out = ops.denoise_action(noisy, cond, uncond, alphas, prev, 5.0, prediction_type, seed=31, stream=1)

    z = latents.double().requires_grad_()
    a, b = column(alphas, noisy), column(prev, noisy)
    sigma = column(sigma_oracle(alphas, prev, 1.0), noisy)
    guided, _clean = guess_oracle(noisy, cond, uncond, alphas, 5.0, prediction_type)
    z_t = a.sqrt() * z.repeat_interleave(actions, 0) + (1 - a).sqrt() * ops.philox_normal(noisy.shape, 31, 0)
    clean = (z_t - (1 - a).sqrt() * guided) / a.sqrt()
    mean = b.sqrt() * clean + (1 - b - sigma**2).sqrt() * guided
    action = (mean + sigma * ops.philox_normal(noisy.shape, 31, 1)).detach()
    assert relative_l2(out.action, action) < 1e-5
    log_prob = torch.distributions.Normal(mean, sigma).log_prob(action).flatten(1).sum(1)
    (expected,) = torch.autograd.grad(-(advantages.double() * log_prob).sum(), z)

    grad = ops.score_residual(
        noisy, cond, uncond, alphas, torch.zeros(views * actions), 5.0, prediction_type,
        seed=31, noise_stream=0, actions=actions,
        action_weight=(advantages * prev.sqrt() / sigma.flatten()).float(), action_stream=1,
    )  # fmt: skip
    assert relative_l2(grad, expected) < 1e-5


# ---- residuals without injected noise
# -------------------------------------------------------------------------------------


def noises_oracle(noisy, predictions, alphas, prediction_type):
    """What each prediction says of the noise."""
    return [guess_oracle(noisy, p, None, alphas, 1.0, prediction_type)[0] for p in predictions]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("actions", [1, 3])
@pytest.mark.parametrize("with_negative", [True, False])
def test_mixed_residual_equals_the_oracle(prediction_type, dtype, actions, with_negative):
    views = 2
    noisy, cond, uncond, alphas, _ = random_inputs(views * actions, dtype=dtype)
    negative = random_inputs(views * actions, dtype=dtype, seed=1)[0]
    numbers = torch.randn(views * actions, 4, generator=torch.Generator().manual_seed(9))
    weight, mixture = numbers[:, 0], numbers[:, 1:]
    if not with_negative:
        mixture[:, 2] = 0
    grad = ops.mixed_residual(
        noisy, cond, uncond, negative if with_negative else None, alphas, weight, mixture, prediction_type,
        actions,
    )  # fmt: skip
    noises = noises_oracle(noisy, (cond, uncond, negative), alphas, prediction_type)
    terms = column(weight, noisy) * sum(
        column(m, noisy) * noise for m, noise in zip(mixture.T, noises, strict=True)
    )
    assert grad.shape == (views, *SHAPE)
    assert grad.dtype == torch.float32
    assert relative_l2(grad, terms.reshape(views, actions, *SHAPE).sum(1)) < 1e-5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(
    ("timesteps", "train_timesteps"), [([0, 199, 200, 980], 1000), ([0, 9, 10, 49], 50), ([0, 1, 2, 6], 7)]
)
def test_nfsd_is_the_papers_residual_with_its_choice_by_item(prediction_type, timesteps, train_timesteps):
    noisy, cond, uncond, alphas, _ = random_inputs(4)
    negative, weight = random_inputs(4, seed=1)[0], torch.linspace(0.5, 2, 4)
    mixture = mixtures.nfsd_mixture(torch.tensor(timesteps), 7.3, train_timesteps)
    grad = ops.mixed_residual(noisy, cond, uncond, negative, alphas, weight, mixture, prediction_type)
    of_cond, of_null, of_negative = noises_oracle(noisy, (cond, uncond, negative), alphas, prediction_type)
    for item in range(4):
        delta = of_null[item] - (of_negative[item] if item >= 2 else 0)
        expected = weight[item].double() * (7.3 * (of_cond[item] - of_null[item]) + delta)
        assert relative_l2(grad[item], expected) < 1e-5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_csd_is_the_derivative_of_sds_in_the_guidance_scale(prediction_type):
    noisy, cond, uncond, alphas, _ = random_inputs(6)
    weight = torch.linspace(-1, 2, 6)
    high, low = (
        ops.score_residual(
            noisy, cond, uncond, alphas, weight, scale, prediction_type, seed=1, noise_stream=2, actions=3
        )
        for scale in (9.0, 1.0)
    )
    csd = ops.mixed_residual(
        noisy, cond, uncond, None, alphas, weight, mixtures.csd_mixture(6), prediction_type, actions=3
    )
    assert relative_l2((high - low) / 8, csd) < 1e-5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_nfsd_with_an_empty_negative_prompt_is_csd_times_the_scale(prediction_type):
    noisy, cond, uncond, alphas, _ = random_inputs(3)
    weight, late = torch.linspace(0.5, 2, 3), torch.tensor([200, 500, 999])
    nfsd = ops.mixed_residual(
        noisy, cond, uncond, uncond, alphas, weight, mixtures.nfsd_mixture(late, 4.3), prediction_type
    )
    csd = ops.mixed_residual(
        noisy, cond, uncond, None, alphas, weight, mixtures.csd_mixture(3), prediction_type
    )  # fmt: skip
    assert relative_l2(nfsd, 4.3 * csd.double()) < 1e-6


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_nfsd_at_small_timesteps_is_sds_without_its_noise(prediction_type):
    noisy, cond, uncond, alphas, _ = random_inputs(3)
    weight, early = torch.linspace(0.5, 2, 3), torch.tensor([0, 20, 199])
    sds = ops.score_residual(
        noisy, cond, uncond, alphas, weight, 4.3, prediction_type, seed=1, noise_stream=2
    )  # fmt: skip
    nfsd = ops.mixed_residual(
        noisy, cond, uncond, None, alphas, weight, mixtures.nfsd_mixture(early, 4.3), prediction_type
    )
    noise = column(weight, noisy) * ops.philox_normal(noisy.shape, 1, 2).double()
    assert relative_l2(sds.double() + noise, nfsd) < 1e-6


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predictions_that_nearly_agree_leave_their_difference_exact(prediction_type):
    noisy, uncond, _, alphas, _ = random_inputs(4)
    cond, negative = (uncond + 1e-3 * random_inputs(4, seed=seed)[0] for seed in (1, 2))
    mixture, weight = mixtures.nfsd_mixture(torch.full((4,), 600), 4.3), torch.ones(4)
    grad = ops.mixed_residual(noisy, cond, uncond, negative, alphas, weight, mixture, prediction_type)
    of_cond, of_null, of_negative = noises_oracle(noisy, (cond, uncond, negative), alphas, prediction_type)
    assert relative_l2(grad, 4.3 * (of_cond - of_null) + of_null - of_negative) < 1e-6


def test_epsilon_predictions_need_no_noisy_latents():
    noisy, cond, uncond, alphas, _ = random_inputs(3)
    arguments = (cond, uncond, cond, alphas, torch.ones(3), torch.randn(3, 3), "epsilon")
    expected = ops.mixed_residual(noisy, *arguments)
    assert torch.equal(ops.mixed_residual(torch.full_like(noisy, math.nan), *arguments), expected)


# ---- the scaled clean guess
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, (-1.0, 0.7)])
@pytest.mark.parametrize("guided", [True, False])
def test_a_clean_scale_multiplies_the_clean_guess_before_the_clip(prediction_type, dtype, clip, guided):
    noisy, cond, uncond, alphas, prev = random_inputs(6, dtype=dtype)
    uncond = uncond if guided else None
    factors, weight = torch.linspace(0.2, 1.5, 6), torch.linspace(-1, 2, 6)
    noise, clean = guess_oracle(noisy, cond, uncond, alphas, 7.5, prediction_type, clip, factors)
    sigma, b = column(sigma_oracle(alphas, prev, 1.0), clean), column(prev, clean)
    mean = b.sqrt() * clean + (1 - b - sigma**2).sqrt() * noise
    step = ops.denoise_action(
        noisy, cond, uncond, alphas, prev, 7.5, prediction_type, clip=clip, clean_scale=factors
    )
    assert relative_l2(step.clean, clean) < 1e-5
    assert relative_l2(step.guided_noise, noise) < 1e-5
    assert relative_l2(step.mean, mean) < 1e-5
    grad = ops.score_residual(
        noisy, cond, uncond, alphas, weight, 7.5, prediction_type, clip,
        seed=21, noise_stream=22, actions=3, clean_scale=factors,
    )  # fmt: skip
    terms = column(weight, noise) * (noise - ops.philox_normal(noisy.shape, 21, 22).double())
    assert relative_l2(grad, terms.reshape(2, 3, *SHAPE).sum(1)) < 1e-5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_clean_scale_of_one_changes_no_bit_of_a_clipped_guess(prediction_type):
    noisy, cond, uncond, alphas, prev = random_inputs(3)
    arguments = (noisy, cond, uncond, alphas, prev, 7.5, prediction_type, 1.0, (-1.0, 1.0))
    plain, scaled = (ops.denoise_action(*arguments, clean_scale=s) for s in (None, torch.ones(3)))
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))


def test_guidance_rescale_equals_its_formula():
    cond, guided = random_inputs(4)[0], 3 * random_inputs(4, dtype=torch.bfloat16)[1] + 0.5
    of_cond, of_guided = (guess.double().flatten(1).std(1) for guess in (cond, guided))
    for rescale in (0.0, 0.5, 1.0):
        factor = mixtures.guidance_rescale(cond, guided, rescale)
        assert factor.dtype == torch.float32
        assert relative_l2(factor, rescale * of_cond / of_guided + 1 - rescale) < 1e-6


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_full_rescale_gives_the_guided_guess_the_deviation_of_the_conditional_one(prediction_type):
    noisy, cond, uncond, alphas, prev = random_inputs(4)

    def clean(unconditional, clean_scale=None):
        return ops.denoise_action(
            noisy, cond, unconditional, alphas, prev, 20.0, prediction_type, clean_scale=clean_scale
        ).clean

    factor = mixtures.guidance_rescale(clean(None), clean(uncond), 1.0)
    assert factor.max() < 0.5
    deviations = [guess.flatten(1).std(1) for guess in (clean(uncond, factor), clean(None))]
    torch.testing.assert_close(*deviations)


@pytest.mark.parametrize("shape", [(3,), (3, 50)])
def test_a_constant_guess_is_not_rescaled(shape):
    constant = torch.full(shape, 0.1)
    assert torch.equal(mixtures.guidance_rescale(torch.randn(shape), constant, 0.7), torch.ones(shape[0]))


# ---- reproducibility and edges
# -------------------------------------------------------------------------------------


def test_results_are_the_same_to_the_bit_for_any_number_of_threads():
    noisy, cond, uncond, alphas, prev = random_inputs(8, shape=(4, 37, 41), dtype=torch.bfloat16)
    weight = torch.linspace(-1, 1, 8)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            set_num_threads(threads)
            results.append(
                [
                    ops.philox_normal((100_003,), 1, 2),
                    ops.add_noise(noisy[:2], alphas, 1, 2, actions=4),
                    *ops.denoise_action(noisy, cond, uncond, alphas, prev, 5.0, "v_prediction", seed=1,
                    stream=3), ops.score_residual(
                        noisy, cond, uncond, alphas, weight, 5.0, "sample", (-1.0, 1.0),
                        seed=1, noise_stream=2, actions=4, action_weight=weight, action_stream=3,
                    ),
                    ops.mixed_residual(
                        noisy, cond, uncond, noisy, alphas, weight, torch.ones(8, 3), "v_prediction", 4
                    ),
                ]
            )  # fmt: skip
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 0), (3,)])
def test_empty_and_scalar_latents_are_no_special_case(shape):
    items = shape[0]
    noisy, alphas = torch.randn(shape), torch.full((items,), 0.5)
    out = ops.denoise_action(noisy, noisy, noisy, alphas, alphas + 0.2, 5.0, "epsilon")
    assert out.clean.shape == shape
    assert out.log_prob.shape == (items,)
    grad = ops.score_residual(noisy, noisy, None, alphas, alphas, 1.0, "epsilon", clean_scale=alphas)
    assert grad.shape == shape
    mixture = mixtures.csd_mixture(items)
    grad = ops.mixed_residual(noisy, noisy, noisy, noisy, alphas, alphas, mixture, "sample")
    assert grad.shape == shape


def test_noninfected_items_survive_a_nan_prediction():
    noisy, cond, uncond, alphas, prev = random_inputs(3)
    healthy = ops.denoise_action(noisy, cond, uncond, alphas, prev, 5.0, "epsilon", clip=(-1, 1))
    cond[1, 0, 0, 0] = math.nan
    ill = ops.denoise_action(noisy, cond, uncond, alphas, prev, 5.0, "epsilon", clip=(-1, 1))
    assert torch.equal(ill.action[[0, 2]], healthy.action[[0, 2]])
    assert ill.clean[1].isnan().sum() == 1


@pytest.mark.parametrize("offset", [1, -3, 2**62])
def test_a_stream_offset_is_added_modulo_two_to_the_64(offset):
    number, base = torch.tensor([offset]), 2**64 - 2
    expected = ops.philox_normal((9,), 1, (base + offset) % 2**64)
    assert torch.equal(ops.philox_normal((9,), 1, base, stream_offset=number), expected)
    clean = torch.zeros(1, 9)
    noisy = ops.add_noise(clean, torch.full((1,), 1e-30), 1, base, stream_offset=number)
    assert torch.equal(noisy[0], expected)


GOOD = {
    "noisy": torch.zeros(4, 2),
    "pred_cond": torch.zeros(4, 2),
    "pred_uncond": torch.zeros(4, 2),
    "alphas_cumprod": torch.full((4,), 0.5),
    "guidance_scale": 1.0,
    "prediction_type": "epsilon",
}
CALLS = {
    "noise": (ops.philox_normal, {"shape": (2,), "seed": 0, "stream": 0}),
    "add": (
        ops.add_noise,
        {"latents": torch.zeros(2, 3), "alphas_cumprod": GOOD["alphas_cumprod"], "seed": 0, "stream": 0}
        | {"actions": 2},
    ),
    "denoise": (ops.denoise_action, GOOD | {"prev_alphas_cumprod": torch.full((4,), 0.7)}),
    "residual": (ops.score_residual, GOOD | {"residual_weight": torch.ones(4), "actions": 2}),
    "policy": (
        ops.score_residual,
        GOOD | {"residual_weight": torch.ones(4), "action_weight": torch.ones(4), "action_stream": 1},
    ),
    "mixed": (
        ops.mixed_residual,
        {name: value for name, value in GOOD.items() if name != "guidance_scale"}
        | {"pred_negative": None, "residual_weight": torch.ones(4), "mixture": mixtures.csd_mixture(4)},
    ),
    "nfsd": (mixtures.nfsd_mixture, {"timesteps": torch.arange(4), "guidance_scale": 2.0}),
    "rescale": (
        mixtures.guidance_rescale,
        {"clean_cond": torch.zeros(4, 2), "clean_guided": torch.zeros(4, 2), "rescale": 0.5},
    ),
}


def test_numbers_of_numpy_are_numbers():
    noisy, cond, uncond, alphas, _ = random_inputs(4)
    words, actions = {"seed": 3, "stream": 7}, 2
    of_numpy = {name: np.uint16(word) for name, word in words.items()}
    noise = ops.philox_normal((np.int64(5), 3), **of_numpy)
    assert torch.equal(noise, ops.philox_normal((5, 3), **words))
    twice = alphas.repeat_interleave(2)
    got = ops.add_noise(noisy, twice, actions=np.int32(actions), **of_numpy)
    assert torch.equal(got, ops.add_noise(noisy, twice, actions=actions, **words))
    got = ops.score_residual(
        noisy, cond, uncond, alphas, alphas, np.float32(7.5), "epsilon", (np.float32(-1), np.float16(1)),
        np.int8(3), np.int64(7), np.uint8(actions), alphas, np.int64(8),
    )  # fmt: skip
    expected = ops.score_residual(
        noisy, cond, uncond, alphas, alphas, 7.5, "epsilon", (-1.0, 1.0), 3, 7, actions, alphas, 8
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("call", "argument", "value", "error", "message"),
    [
        ("noise", "shape", (-1,), ValueError, "expected sizes of 0 or more"),
        ("noise", "seed", -1, ValueError, "expected 0 <= seed < 2"),
        ("noise", "stream", 2**64, ValueError, "expected 0 <= stream < 2"),
        ("noise", "seed", 1.5, TypeError, "expected an int, got float"),
        ("noise", "seed", np.float64(1), TypeError, "expected an int, got float64"),
        ("noise", "shape", (2, 1.5), TypeError, "expected a sequence of ints, got float"),
        ("noise", "stream_offset", torch.ones(1), ValueError, "expected one torch.int64 on cpu, got 1 of "),
        ("noise", "stream_offset", 3, TypeError, "expected a torch tensor, got int"),
        ("noise", "device", "meta", ValueError, "expected a CPU or CUDA tensor, got one on meta"),
        ("add", "latents", [1.0], TypeError, "expected a torch tensor, got list"),
        ("add", "latents", torch.zeros(2, 3).double(), TypeError, "expected float32, .*got torch.float64"),
        ("add", "latents", torch.tensor(1.0), ValueError, "got a scalar"),
        (
            "add",
            "latents",
            torch.zeros(2, 3, device="meta"),
            ValueError,
            "a CPU or CUDA tensor, got one on meta",
        ),
        ("add", "actions", 0, ValueError, "expected 1 or more, got 0"),
        ("add", "actions", True, TypeError, "expected an int, got bool"),
        ("add", "alphas_cumprod", torch.ones(3), ValueError, r"expected shape \(4,\), got \(3,\)"),
        ("add", "alphas_cumprod", torch.zeros(4), ValueError, r"expected values in \(0, 1\]"),
        ("add", "alphas_cumprod", torch.full((4,), 1.5), ValueError, r"expected values in \(0, 1\]"),
        ("add", "alphas_cumprod", torch.full((4,), math.nan), ValueError, r"expected values in \(0, 1\]"),
        ("add", "alphas_cumprod", torch.ones(4).half(), TypeError, "expected float32, got torch.float16"),
        ("denoise", "pred_cond", torch.zeros(4, 3), ValueError, r"the shape \(4, 2\) of noisy, got \(4, 3\)"),
        ("denoise", "pred_uncond", torch.zeros(2, 2), ValueError, r"the shape \(4, 2\) of noisy"),
        ("denoise", "prediction_type", "velocity", ValueError, "expected epsilon, .*got 'velocity'"),
        ("denoise", "guidance_scale", math.nan, ValueError, "expected a finite number, got nan"),
        ("denoise", "eta", 1.5, ValueError, "expected a number from 0 to 1, got 1.5"),
        ("denoise", "clip", (1.0, -1.0), ValueError, "with low < high"),
        ("denoise", "outputs", ("cleen",), ValueError, "got 'cleen'"),
        ("denoise", "outputs", "clean", ValueError, "expected a sequence"),
        ("denoise", "prev_alphas_cumprod", torch.full((4,), 0.4), ValueError, "from alphas_cumprod to 1"),
        ("residual", "actions", 3, ValueError, "expected a divisor of the 4 items of noisy, got 3"),
        ("residual", "residual_weight", torch.ones(2), ValueError, r"expected shape \(4,\), got \(2,\)"),
        ("denoise", "clean_scale", torch.ones(3), ValueError, r"expected shape \(4,\), got \(3,\)"),
        ("residual", "clean_scale", 0.5, TypeError, "expected a torch tensor, got float"),
        ("residual", "clean_scale", torch.ones(4).half(), TypeError, "expected float32, got torch.float16"),
        ("mixed", "pred_negative", torch.zeros(4, 3), ValueError, r"the shape \(4, 2\) of noisy"),
        ("mixed", "pred_uncond", None, TypeError, "expected a torch tensor, got NoneType"),
        ("mixed", "alphas_cumprod", torch.zeros(4), ValueError, r"expected values in \(0, 1\]"),
        ("mixed", "residual_weight", torch.ones(4, 1), ValueError, r"expected shape \(4,\), got \(4, 1\)"),
        ("mixed", "mixture", torch.ones(4, 2), ValueError, r"expected shape \(4, 3\), got \(4, 2\)"),
        ("mixed", "mixture", torch.ones(4, 3).double(), TypeError, "expected float32, got torch.float64"),
        ("mixed", "mixture", torch.ones(4, 3), ValueError, "expected 0 .* of the absent pred_negative"),
        ("mixed", "prediction_type", "v", ValueError, "expected epsilon, .*got 'v'"),
        ("mixed", "actions", 3, ValueError, "expected a divisor of the 4 items of noisy, got 3"),
        ("nfsd", "timesteps", 500, TypeError, "expected a torch tensor, got int"),
        ("nfsd", "timesteps", torch.ones(2, 2), ValueError, r"expected shape \[B\], got \[2, 2\]"),
        ("nfsd", "guidance_scale", math.inf, ValueError, "expected a finite number, got inf"),
        ("rescale", "rescale", 1.5, ValueError, "expected a number from 0 to 1, got 1.5"),
        ("rescale", "clean_cond", torch.zeros(4, 3), ValueError, r"the shape \(4, 2\) of clean_guided"),
        ("policy", "action_stream", None, ValueError, "beside action_weight, got None"),
        ("policy", "action_stream", 0, ValueError, "expected another stream than noise_stream"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(call, argument, value, error, message):
    function, good = CALLS[call]
    function(**good)
    with pytest.raises(error, match=f"^{argument}: .*{message}") as caught:
        function(**(good | {argument: value}))
    assert "\n" not in str(caught.value)
