"""Which view's words a camera sees: DreamFusion's ranges, but for where overhead begins."""

import math

import pytest
import torch

from ddpo3d_fast.priors.views import view_prompts, view_weights

FRONT, SIDE, BACK, OVERHEAD = torch.eye(4)


def weights(azimuth, elevation, interpolate):
    camera = torch.tensor([[math.radians(azimuth), math.radians(elevation), 1.0]])
    return view_weights(camera, interpolate)[0]


def test_the_four_prompts_name_their_views():
    assert view_prompts("a red car") == [
        "a red car, front view",
        "a red car, side view",
        "a red car, back view",
        "a red car, overhead view",
    ]


@pytest.mark.parametrize("turns", [-360, 0, 720])
@pytest.mark.parametrize(
    ("azimuth", "expected"),
    [
        (0, FRONT),
        (44, FRONT),
        (-44, FRONT),
        (46, SIDE),
        (-90, SIDE),
        (134, SIDE),
        (136, BACK),
        (180, BACK),
        (-136, BACK),
    ],
)
def test_hard_views_change_at_45_and_135_degrees(azimuth, expected, turns):
    assert torch.equal(weights(azimuth + turns, 0, False), expected)


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("azimuth", [0, 90, 175])
def test_overhead_begins_above_58_degrees_whatever_the_azimuth(azimuth, interpolate):
    assert torch.equal(weights(azimuth, 59, interpolate), OVERHEAD)
    assert weights(azimuth, 57, interpolate)[3] == 0
    assert weights(azimuth, -80, interpolate)[3] == 0


@pytest.mark.parametrize(
    ("azimuth", "expected"),
    [
        (0, FRONT),
        (30, 2 / 3 * FRONT + 1 / 3 * SIDE),
        (-90, SIDE),
        (126, 0.6 * SIDE + 0.4 * BACK),
        (180, BACK),
        (-171, 0.1 * SIDE + 0.9 * BACK),
        (351, 0.9 * FRONT + 0.1 * SIDE),
    ],
)
def test_interpolated_views_mix_the_two_nearest(azimuth, expected):
    assert torch.allclose(weights(azimuth, 20, True), expected, atol=1e-6)


@pytest.mark.parametrize("interpolate", [False, True])
def test_the_weights_of_any_camera_are_a_mean(interpolate):
    generator = torch.Generator().manual_seed(0)
    cameras = (torch.rand(200, 3, generator=generator) - 0.5) * torch.tensor([20.0, 3.1, 1.0])
    mixed = view_weights(cameras, interpolate)
    assert mixed.shape == (200, 4)
    assert bool((mixed >= 0).all())
    assert torch.allclose(mixed.sum(1), torch.ones(200))
