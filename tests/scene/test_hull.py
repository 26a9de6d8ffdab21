"""What is haze is found, what is the object is left alone."""

import math

import pytest
import torch

from ddpo3d_fast.scene import Gaussians, Relocation, outside_hull, unsupported


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
    moved = Relocation(0.02).move(both, torch.Generator().manual_seed(0), outside)
    assert moved == int(outside.sum())
    assert (both.means[-8:].norm(dim=1) < 0.7).all()
    assert outside_hull(both).double().mean() < 0.02


def clump(center: tuple[float, float, float], count: int) -> torch.Tensor:
    return torch.tensor(center) + 0.03 * torch.randn(count, 3, generator=torch.Generator().manual_seed(3))


def test_a_clump_of_faint_ones_that_covers_what_is_behind_it_is_found(ball):
    """What `outside_hull` cannot see: together they are opaque, each is faint."""
    both = scene(torch.cat([ball, clump((0.0, 0.9, 0.0), 400)]), scale=0.04)
    both.logit_opacities[-400:] = math.log(0.05 / 0.95)
    assert outside_hull(both)[-400:].double().mean() < 0.5
    alone = unsupported(both)
    assert alone[-400:].all()
    assert not alone[:-400].any()


def test_faint_ones_on_the_object_and_strong_parts_apart_from_it_stay(ball):
    both = scene(torch.cat([ball, clump((0.0, 0.9, 0.0), 20)]))  # an antenna's tip
    both.logit_opacities[:2000] = math.log(0.05 / 0.95)  # shading and rim
    assert not unsupported(both).any()


@pytest.mark.parametrize("opacity", [0.03, 0.0799, 0.0801, 0.0999, 0.1001])
@pytest.mark.parametrize("distance", [0.119, 0.121])
def test_faint_strong_and_near_are_what_they_say(opacity, distance):
    """The one at the origin is of the opacity, its neighbour is strong."""
    pair = scene(torch.tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]), opacity=0.5)
    pair.logit_opacities[0] = math.log(opacity / (1 - opacity))
    assert unsupported(pair).tolist() == [opacity < 0.08 and distance > 0.12, False]
    pair.logit_opacities[1] = math.log(0.05 / 0.95)
    assert unsupported(pair).tolist() == [opacity < 0.08, opacity < 0.1 or distance > 0.12]


def test_more_faint_ones_than_one_part_of_the_distances_are_all_found():
    both = scene(torch.cat([clump((0.0, 0.0, 0.0), 5), clump((0.9, 0.0, 0.0), 2500)]))
    both.logit_opacities[5:] = -3.0
    assert unsupported(both).tolist() == [False] * 5 + [True] * 2500


def test_nothing_is_supported_where_nothing_is_strong():
    assert unsupported(scene(torch.zeros(0, 3))).shape == (0,)
    assert unsupported(scene(torch.zeros(3, 3), opacity=0.01)).all()
