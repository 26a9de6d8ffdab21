"""What lies outside the scene's own silhouettes is found, what lies inside is left alone."""

import math

import pytest
import torch

from ddpo3d_fast.scene import Gaussians, islands, outside_hull, relocate


def scene(centers: torch.Tensor, opacity: float = 0.9, scale: float = 0.05) -> Gaussians:
    count = len(centers)
    return Gaussians(
        means=centers,
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        log_scales=torch.full((count, 3), math.log(scale)),
        logit_opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh=torch.zeros(count, 1, 3),
    )


@pytest.fixture
def ball():
    """A dense ball of radius 0.5, hidden inside and all."""
    points = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    radius = 0.5 * torch.rand(4000, 1, generator=torch.Generator().manual_seed(1)) ** (1 / 3)
    return points / points.norm(dim=1, keepdim=True) * radius


def test_a_solid_object_is_inside_its_own_hull(ball):
    assert outside_hull(scene(ball)).double().mean() < 0.01


def test_faint_floaters_are_outside_wherever_they_hang(ball):
    directions = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    floaters = 0.9 * directions / directions.norm(dim=1, keepdim=True)
    both = scene(torch.cat([ball, floaters]))
    both.logit_opacities[-50:] = -2.0
    outside = outside_hull(both)
    assert outside[-50:].all()
    assert outside[:-50].double().mean() < 0.01


def test_centers_off_every_image_or_behind_the_cameras_are_outside(ball):
    far = torch.tensor([[0.0, 0.0, 30.0], [50.0, 0.0, 0.0], [0.0, -9.0, 0.0]])
    assert outside_hull(scene(torch.cat([ball, far])))[-3:].all()


def test_an_empty_or_invisible_scene_is_all_outside():
    assert outside_hull(scene(torch.zeros(0, 3))).shape == (0,)
    assert outside_hull(scene(torch.zeros(3, 3), opacity=0.01)).all()


def test_relocation_moves_what_is_outside_onto_what_is_inside(ball):
    corners = torch.tensor([[x, y, z] for x in (-0.6, 0.6) for y in (-0.6, 0.6) for z in (-0.6, 0.6)])
    both = scene(torch.cat([ball, corners]))
    both.logit_opacities[-8:] = -2.0
    outside = outside_hull(both)
    assert outside[-8:].all()
    moved = relocate(both, torch.Generator().manual_seed(0), 0.02, also_dead=outside)
    assert moved == int(outside.sum())
    assert (both.means[-8:].norm(dim=1) < 0.7).all()
    assert outside_hull(both).double().mean() < 0.02


def test_a_threshold_out_of_range_is_refused(ball):
    with pytest.raises(ValueError, match=r"threshold: expected a number from 0 to 1, got 1\.5"):
        outside_hull(scene(ball), 1.5)


def clump(count: int, *center: float) -> torch.Tensor:
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    return torch.tensor(center) + 0.01 * noise


def test_a_clump_apart_from_the_object_is_an_island_however_many_gaussians_it_has(ball):
    few, many = clump(3, 0.8, 0.0, 0.0), clump(2000, 0.0, 0.9, 0.0)
    found = islands(scene(torch.cat([ball, few, many])))
    assert not found[: len(ball)].any()
    assert found[len(ball) :].all()


def test_a_large_part_apart_and_a_small_one_that_touches_are_no_islands(ball):
    beside = torch.cat([ball, 0.6 * ball + torch.tensor([1.5, 0.0, 0.0]), clump(20, 0.52, 0.0, 0.0)])
    assert not islands(scene(beside)).any()


def test_far_out_and_missing_gaussians_do_no_harm(ball):
    wild = torch.tensor([[1e9, 0.0, 0.0], [float("nan"), 0.0, 0.0]])
    found = islands(scene(torch.cat([ball, wild])))
    assert not found[: len(ball)].any()
    assert found[len(ball)]
    assert islands(scene(torch.zeros(0, 3))).shape == (0,)
    assert not islands(scene(torch.zeros(1, 3))).any()


@pytest.mark.parametrize("wrong", [{"reach": 0.0}, {"reach": math.nan}, {"share": -0.1}, {"share": 2.0}])
def test_an_island_of_no_size_is_refused(ball, wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: expected a .*number"):
        islands(scene(ball), **wrong)
