"""The first clouds."""

import math

import numpy as np
import pytest
import torch

from ddpo3d_fast.scene import initial_ball, initial_cloud
from ddpo3d_fast.scene.gaussians import SH_C0


def test_the_cloud_has_the_deviations_it_promises():
    gaussians = initial_cloud(20_000, seed=1)
    assert torch.allclose(gaussians.means.std(0), torch.full((3,), 0.35), rtol=0.03)
    assert gaussians.means.mean(0).abs().max() < 0.01
    colors = 0.5 + SH_C0 * gaussians.sh[:, 0]
    assert (colors - 0.5).abs().max() < 0.15
    assert colors.std().item() == pytest.approx(0.025, rel=0.05)
    assert gaussians.activated().opacities.unique().tolist() == pytest.approx([1 / (1 + math.exp(1.5))])
    assert torch.allclose(gaussians.quats.norm(dim=1), torch.ones(20_000))


@pytest.mark.parametrize("first", [initial_cloud, initial_ball])
def test_a_count_and_a_seed_of_numpy_are_a_count_and_a_seed(first):
    expected, actual = first(30, seed=7).state_dict(), first(np.int32(30), seed=np.uint8(7)).state_dict()
    assert all(actual[name].equal(tensor) for name, tensor in expected.items())


def test_clouds_of_any_size_cover_alike():
    covers = [
        len(g) * g.activated().scales[0].prod().item()
        for g in (initial_cloud(100, 0), initial_cloud(6400, 0))
    ]
    assert covers[0] == pytest.approx(covers[1], rel=1e-4)
    assert initial_cloud(800, 0).activated().scales[0, 0].item() == pytest.approx(0.07)


def test_the_cloud_is_a_function_of_its_seed():
    first, again, other = (initial_cloud(50, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.activated(), again.activated(), strict=True))
    assert not torch.equal(first.means, other.means)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_higher_harmonics_begin_at_zero(degree):
    gaussians = initial_cloud(10, 0, sh_degree=degree)
    assert gaussians.sh_degree == degree
    assert not gaussians.sh[:, 1:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "count: expected 1"),
        ((5, 0, 4), "sh_degree: expected"),
        ((5, 0, 0, 0.0), "deviation: expected"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        initial_cloud(*arguments)


def test_the_ball_is_filled_evenly_by_gaussians_that_reach_their_neighbours():
    gaussians = initial_ball(3000, seed=1)
    distance = gaussians.means.norm(dim=1)
    assert distance.max() <= 0.5
    assert (distance < 0.25).float().mean().item() == pytest.approx(1 / 8, abs=0.02)
    assert gaussians.activated().opacities.unique().tolist() == pytest.approx([0.1])
    assert (0.5 + SH_C0 * gaussians.sh - 0.5).abs().max() < 0.15
    for index in (0, 2999):
        others = (gaussians.means - gaussians.means[index]).double().norm(dim=1).sort().values[1:4]
        expected = others.square().mean().sqrt().item()
        assert gaussians.activated().scales[index].tolist() == pytest.approx([expected] * 3, rel=1e-4)
    assert torch.equal(initial_ball(3000, seed=1).means, gaussians.means)
    assert not torch.equal(initial_ball(3000, seed=2).means, gaussians.means)


def test_a_ball_of_few_has_the_neighbours_there_are():
    assert initial_ball(1, 0).activated().scales.tolist() == [pytest.approx([0.5] * 3)]
    pair = initial_ball(2, 0)
    apart = (pair.means[0] - pair.means[1]).norm().item()
    assert pair.activated().scales[:, 0].tolist() == pytest.approx([apart] * 2)


def test_a_ball_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^count: expected 1 or more, got 0"):
        initial_ball(0, seed=0)
