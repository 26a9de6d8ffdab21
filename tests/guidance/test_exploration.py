"""What actions move along, and the density of an action there, against torch's distributions and autograd."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.nn.functional import pixel_shuffle

from ddpo3d_fast.guidance.exploration import Exploration, lowpass_basis
from ddpo3d_fast.guidance.policy import clipped_weights, importance
from ddpo3d_fast.guidance.scaling import score_function_gradient

CHANNELS, SIDE, ACTIONS, SIGMA = 2, 6, 5, 0.3
CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(exploration, like):
    """U as a matrix [numbers of the latents, coefficients], float64."""
    shape = exploration.shape(like)
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return exploration.fields(units, like[-1]).flatten(1).T


@pytest.fixture(params=[0, 3], ids=["white", "lowpass"])
def exploration(request):
    return Exploration(request.param)


def test_lowpass_noise_is_of_few_low_frequencies_and_of_one_size():
    fields = Exploration(3).fields(normal(4000, 1, 3, 3), 16)
    assert fields.square().mean().item() == pytest.approx(1, abs=0.03)
    spectrum = torch.fft.fft2(torch.cat([fields, fields.flip(3)], 3)).abs().square().mean((0, 1, 2))
    assert spectrum[3:-3].sum() < 1e-12 * spectrum.sum()  # of a mirrored row: three cosines
    basis = lowpass_basis(16, 3, CPU, torch.float64)
    assert torch.allclose(basis.T @ basis, torch.eye(3, dtype=torch.float64) * 16 / 3)


def test_coefficients_are_those_of_the_nearest_fields(exploration):
    like = (CHANNELS, SIDE, SIDE)
    matrix, latents = dense(exploration, like), normal(4, *like)
    nearest = torch.linalg.lstsq(matrix, latents.flatten(1).T).solution.T
    assert torch.allclose(exploration.coefficients(latents).flatten(1), nearest)


def test_where_latents_hold_squares_of_pixels_fields_are_smooth_over_the_pixels():
    like, coefficients = (3 * 4 * 4, 4, 4), normal(2, 3, 3, 3)
    assert Exploration(3, patch=4).shape(like) == (3, 3, 3)
    of_latents = Exploration(3, patch=4).fields(coefficients, 4)
    assert of_latents.shape == (2, *like)
    assert torch.equal(pixel_shuffle(of_latents, 4), Exploration(3).fields(coefficients, 16))


def test_a_grid_finer_than_the_latents_is_theirs():
    assert Exploration(64).shape((CHANNELS, SIDE, SIDE)) == (CHANNELS, SIDE, SIDE)


def densities(exploration, mean):
    """The policy with this mean [CHANNELS, SIDE, SIDE], in orthonormal coordinates of what it explores, and
    the matrix that leads to them."""
    matrix = dense(exploration, mean.shape)
    length = matrix.square().sum(0).sqrt()  # of every column, which are orthogonal
    coordinates = matrix.T / length[:, None]
    return MultivariateNormal(coordinates @ mean.flatten(), torch.diag((SIGMA * length) ** 2)), coordinates


def actions_of(exploration, mean, seed=1):
    drawn = normal(ACTIONS, *exploration.shape(mean.shape), seed=seed)
    return drawn, mean + SIGMA * exploration.fields(drawn, SIDE)


def test_the_score_is_the_gradient_of_the_log_density(exploration):
    mean = normal(CHANNELS, SIDE, SIDE).requires_grad_()
    drawn, actions = actions_of(exploration, mean.detach())
    policy, coordinates = densities(exploration, mean)
    log_prob = policy.log_prob(actions.flatten(1) @ coordinates.T)
    # docs/method.md
    numbers, scale = drawn[0].numel(), dense(exploration, mean.shape).square().sum(0).sqrt()
    written = -drawn.flatten(1).square().sum(1) / 2 - numbers / 2 * math.log(2 * math.pi)
    written = written - (SIGMA * scale).log().sum()
    torch.testing.assert_close(log_prob.detach(), written)
    advantages = normal(ACTIONS, seed=2)
    (wanted,) = torch.autograd.grad((advantages * log_prob).mean(), mean)
    ascent, _ = score_function_gradient(advantages, drawn)
    got = exploration.fields(ascent, SIDE) / (scale[0] ** 2 * SIGMA)
    assert (got - wanted).norm() <= 1e-12 * wanted.norm()


@pytest.mark.parametrize("clip", [1e-3, 0.02, 10.0])
def test_updates_follow_the_gradient_of_ppos_objective(exploration, clip):
    """min(ratio A, clip(ratio) A), ratios of mean log-probabilities over dimensions."""
    old = normal(CHANNELS, SIDE, SIDE)
    mean = (old + 0.1 * normal(CHANNELS, SIDE, SIDE, seed=3)).requires_grad_()
    drawn, actions = actions_of(exploration, old)
    numbers, advantages = drawn[0].numel(), normal(ACTIONS, seed=2)
    (before, coordinates), (after, _) = densities(exploration, old), densities(exploration, mean)
    seen = actions.flatten(1) @ coordinates.T
    ratios = ((after.log_prob(seen) - before.log_prob(seen)) / numbers).exp()
    objective = torch.minimum(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages).mean()
    (wanted,) = torch.autograd.grad(objective, mean)

    now = drawn + exploration.coefficients((old - mean.detach()) / SIGMA)
    found = importance(drawn[None], now[None])
    torch.testing.assert_close(found[0], ratios.detach())
    weights = clipped_weights(advantages[None], found, clip)[0]
    if clip < 10:
        assert 0 < (weights == 0).sum() < ACTIONS
    scale = dense(exploration, old.shape).square().sum(0).sqrt()[0]
    got = exploration.fields((weights.view(-1, 1, 1, 1) * now).mean(0), SIDE) / (scale**2 * SIGMA * numbers)
    assert (got - wanted).norm() <= 1e-11 * wanted.norm()


def test_the_ratio_of_an_unchanged_policy_is_one():
    drawn = normal(2, 3, 4, 5, 5)
    assert torch.equal(importance(drawn, drawn), torch.ones(2, 3, dtype=torch.float64))
