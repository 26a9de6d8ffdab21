"""Relocation keeps the number and the look of the Gaussians."""

import math

import pytest
import torch

from ddpo3d_fast.scene import initial_cloud, orbit, prune, relocate
from ddpo3d_fast.scene.densify import DEAD_OPACITY, share_opacity
from ddpo3d_fast.scene.gaussians import PARAMETERS


def scene(dead=(), count=40):
    gaussians = initial_cloud(count, seed=0)
    gaussians.logit_opacities += torch.linspace(-1, 3, count)
    gaussians.logit_opacities[list(dead)] = -8.0
    for moments in (gaussians.exp_avg, gaussians.exp_avg_sq):
        for name in PARAMETERS:
            moments[name] += 1.0
    return gaussians


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("copies", [1, 2, 3, 10, 51])
@pytest.mark.parametrize("opacity", [0.01, 0.3, 0.9, 0.999])
def test_shared_opacity_keeps_the_centre_and_the_integral_along_a_line(copies, opacity):
    new, shrink = share_opacity(torch.tensor([opacity]), torch.tensor([copies]))
    new, shrink, old = new.item(), shrink.item(), torch.tensor(opacity).item()
    assert 1 - (1 - new) ** copies == pytest.approx(old, rel=1e-9)
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    before = torch.trapezoid(old * torch.exp(-0.5 * x**2), x)
    after = torch.trapezoid(1 - (1 - new * torch.exp(-0.5 * (x / shrink) ** 2)) ** copies, x)
    assert after.item() == pytest.approx(before.item(), rel=1e-6)


def test_copies_beyond_the_limit_count_as_the_limit():
    many, limit = share_opacity(torch.tensor([0.5, 0.5]), torch.tensor([500, 51]))[0]
    assert many == limit


def test_relocation_moves_every_dead_gaussian_and_keeps_their_number():
    gaussians = scene(dead=(3, 17, 39))
    assert relocate(gaussians, generator()) == 3
    assert len(gaussians) == 40
    assert (gaussians.activated().opacities >= DEAD_OPACITY * 0.99).all()


def test_moved_gaussians_lie_where_live_ones_are():
    gaussians = scene(dead=(3, 17, 39))
    live = [index for index in range(40) if index not in (3, 17, 39)]
    before = gaussians.means[live].clone()
    relocate(gaussians, generator(), jitter=0.0)
    for index in (3, 17, 39):
        assert (gaussians.means[index] == before).all(1).any()


def test_relocation_without_jitter_hardly_changes_the_picture():
    gaussians, cameras = scene(), orbit(4)
    order = gaussians.logit_opacities.argsort()
    gaussians.logit_opacities[order[:8]] = -8.0
    old, live = gaussians.state_dict(), order[8:]
    before = gaussians.render(cameras, 48, 48).rgb
    relocate(gaussians, generator(), jitter=0.0)
    after = gaussians.render(cameras, 48, 48).rgb
    # Against it the same copies with the opacities and scales of their sources.
    source = live[(gaussians.means[:, None] == old["means"][live]).all(-1).int().argmax(1)]
    gaussians.logit_opacities, gaussians.log_scales = (
        old["logit_opacities"][source],
        old["log_scales"][source],
    )
    naive = gaussians.render(cameras, 48, 48).rgb
    assert (after - before).norm() < 0.2 * (naive - before).norm()


def test_adam_forgets_the_moved_and_their_sources_and_nobody_else():
    gaussians = scene(dead=(3, 17))
    old = gaussians.logit_opacities.clone()
    relocate(gaussians, generator())
    touched = gaussians.logit_opacities != old
    assert 3 <= int(touched.sum()) <= 4
    for moments in (gaussians.exp_avg, gaussians.exp_avg_sq):
        for name in PARAMETERS:
            reset = (moments[name].reshape(40, -1) == 0).all(1)
            assert torch.equal(reset, touched)


def test_the_opaque_are_drawn_more_often():
    counts = torch.zeros(2)
    for seed in range(200):
        gaussians = scene(count=3)
        gaussians.logit_opacities[:] = torch.tensor([math.log(0.1 / 0.9), math.log(0.8 / 0.2), -9.0])
        first, second = gaussians.means[0].clone(), gaussians.means[1].clone()
        relocate(gaussians, generator(seed), jitter=0.0)
        counts += torch.stack([(gaussians.means[2] == first).all(), (gaussians.means[2] == second).all()])
    assert counts.sum() == 200
    assert 0.80 < counts[1] / 200 < 0.97  # expected 8 of 9


def test_relocation_is_a_function_of_the_seed():
    results = []
    for seed in (1, 1, 2):
        gaussians = scene(dead=(3, 17, 39))
        relocate(gaussians, generator(seed))
        results.append(gaussians.means)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_gaussian_that_is_not_finite_is_dead_and_comes_back_whole(name, bad):
    gaussians = scene()
    getattr(gaussians, name)[5] = bad
    assert relocate(gaussians, generator()) == 1
    assert all(getattr(gaussians, parameter).isfinite().all() for parameter in PARAMETERS)


def test_nothing_dead_or_nothing_alive_changes_nothing():
    for gaussians in (scene(), scene(dead=range(40)), scene()[[]]):
        before = gaussians.state_dict()
        assert relocate(gaussians, generator()) == 0
        assert all(torch.equal(before[name], tensor) for name, tensor in gaussians.state_dict().items())


def test_pruning_drops_the_faint_and_the_broken_and_not_the_picture():
    gaussians = scene(dead=(3, 17))
    gaussians.means[20] = math.nan
    pruned = prune(gaussians)
    assert len(pruned) == 37
    assert len(gaussians) == 40
    cameras = orbit(2)
    difference = pruned.render(cameras, 32, 32).rgb - gaussians.render(cameras, 32, 32).rgb
    assert difference.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dead_opacity": 0.0}, "dead_opacity: expected"), ({"jitter": -1.0}, "jitter: expected 0 or more")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        relocate(scene(), generator(), **options)
