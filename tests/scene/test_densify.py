"""Relocation keeps the number and the look of the Gaussians; densification makes more where it must."""

import math

import pytest
import torch

from ddpo3d_fast.scene import Densification, Relocation, ScreenGradients, initial_cloud, orbit, prune
from ddpo3d_fast.scene.gaussians import DEAD_OPACITY, PARAMETERS
from ddpo3d_fast.scene.relocation import share_opacity


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
    assert Relocation().move(gaussians, generator()) == 3
    assert len(gaussians) == 40
    assert (gaussians.activated().opacities >= DEAD_OPACITY * 0.99).all()


def test_moved_gaussians_lie_where_live_ones_are():
    gaussians = scene(dead=(3, 17, 39))
    live = [index for index in range(40) if index not in (3, 17, 39)]
    before = gaussians.means[live].clone()
    Relocation(jitter=0.0).move(gaussians, generator())
    for index in (3, 17, 39):
        assert (gaussians.means[index] == before).all(1).any()


def test_relocation_without_jitter_hardly_changes_the_picture():
    gaussians, cameras = scene(), orbit(4)
    order = gaussians.logit_opacities.argsort()
    gaussians.logit_opacities[order[:8]] = -8.0
    old, live = gaussians.state_dict(), order[8:]
    before = gaussians.render(cameras, 48, 48).rgb
    Relocation(jitter=0.0).move(gaussians, generator())
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
    Relocation().move(gaussians, generator())
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
        Relocation(jitter=0.0).move(gaussians, generator(seed))
        counts += torch.stack([(gaussians.means[2] == first).all(), (gaussians.means[2] == second).all()])
    assert counts.sum() == 200
    assert 0.80 < counts[1] / 200 < 0.97  # expected 8 of 9


def test_relocation_is_a_function_of_the_seed():
    results = []
    for seed in (1, 1, 2):
        gaussians = scene(dead=(3, 17, 39))
        Relocation().move(gaussians, generator(seed))
        results.append(gaussians.means)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_gaussian_that_is_not_finite_is_dead_and_comes_back_whole(name, bad):
    gaussians = scene()
    getattr(gaussians, name)[5] = bad
    assert Relocation().move(gaussians, generator()) == 1
    assert all(getattr(gaussians, parameter).isfinite().all() for parameter in PARAMETERS)


def test_nothing_dead_or_nothing_alive_changes_nothing():
    for gaussians in (scene(), scene(dead=range(40)), scene()[[]]):
        before = gaussians.state_dict()
        assert Relocation().move(gaussians, generator()) == 0
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
        Relocation(**options).move(scene(), generator())


def grown(gaussians, gradients, most=100, **options):
    return Densification(0.5, 0.05, most)(gaussians, torch.tensor(gradients), generator(), **options)


def asks(**wanted):
    """Screen gradients of 40 Gaussians, 0.1 but for those named _INDEX."""
    gradients = [0.1] * 40
    for name, value in wanted.items():
        gradients[int(name[1:])] = value
    return gradients


def test_a_small_gaussian_is_cloned_with_fresh_moments_and_the_others_stay_as_they_are():
    gaussians = scene()
    gaussians.log_scales.fill_(math.log(0.04))
    more = grown(gaussians, asks(_7=0.5))
    for name in PARAMETERS:
        assert torch.equal(getattr(more, name)[:40], getattr(gaussians, name))
        assert torch.equal(getattr(more, name)[40], getattr(gaussians, name)[7])
        for moments in (more.exp_avg, more.exp_avg_sq):
            assert (moments[name][:40] == 1).all()
            assert (moments[name][40] == 0).all()
    assert len(more) == 41
    assert len(gaussians) == 40


def test_a_big_gaussian_is_split_into_two_smaller_ones_of_its_own_normal():
    gaussians = scene(count=1)
    many = gaussians[[0] * 4000]
    many.log_scales[:] = torch.tensor([0.3, 0.1, 0.02]).log()
    halves = Densification(0.5, 0.05, 8000)(many, torch.ones(4000), generator())
    assert len(halves) == 8000
    assert torch.allclose(halves.log_scales.exp(), torch.tensor([0.3, 0.1, 0.02]) / 1.6)
    w, x, y, z = torch.nn.functional.normalize(many.quats[0], dim=0).tolist()
    turn = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    local = (halves.means - many.means[0]) @ turn
    assert local.std(0).tolist() == pytest.approx([0.3, 0.1, 0.02], rel=0.05)
    assert (halves.exp_avg["means"] == 0).all()


def test_dead_ones_are_left_out_and_none_grows_of_them():
    gaussians = scene(dead=(3, 17))
    gaussians.means[5, 1] = math.nan
    haze = torch.zeros(40, dtype=torch.bool)
    haze[9] = True
    fewer = grown(gaussians, asks(_3=1.0, _5=1.0, _9=1.0), also_dead=haze)
    kept = [index for index in range(40) if index not in (3, 17, 5, 9)]
    assert torch.equal(fewer.means, gaussians.means[kept])
    gaussians.logit_opacities.fill_(-9.0)
    assert Densification(0.5, 0.05, 100)(gaussians, torch.ones(40), generator()) is gaussians


def test_where_there_is_no_room_for_all_the_largest_gradients_grow():
    gaussians = scene(dead=(0, 1))
    gaussians.log_scales.fill_(math.log(0.04))
    more = grown(gaussians, asks(_5=0.6, _8=0.9, _30=0.7, _31=0.8), most=41)
    assert torch.equal(more.means[38:], gaussians.means[[8, 30, 31]])
    assert len(grown(gaussians, asks(_5=0.6), most=20)) == 38


def test_screen_gradients_are_means_over_the_views_that_see_a_gaussian():
    counted = ScreenGradients(3)
    gradient = torch.zeros(2, 3, 2)
    gradient[:, 0] = torch.tensor([[0.03, 0.04], [0.0, 0.01]])  # seen by both
    gradient[0, 1] = torch.tensor([0.06, 0.08])  # seen by one
    visible = torch.tensor([[True, True, False], [True, False, False]])
    counted.add(gradient, visible, 64)
    assert counted.mean().tolist() == pytest.approx([32 * 0.03, 32 * 0.1, 0.0])
    counted.add(gradient * math.nan, visible, 64)
    assert counted.mean().tolist() == pytest.approx([16 * 0.03, 16 * 0.1, 0.0])


def test_densification_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"^threshold: expected a positive number, got 0\.0"):
        Densification(0.0, 0.05, 100)
    with pytest.raises(ValueError, match=r"^screen_gradients: expected shape \(40,\), got \(3,\)"):
        Densification(0.5, 0.05, 100)(scene(), torch.ones(3), generator())
