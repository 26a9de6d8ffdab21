"""What lies outside the scene's own silhouettes is found, what lies inside is left alone."""

import math

import pytest
import torch

from ddpo3d_fast.scene import Gaussians, outside_hull, relocate


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
