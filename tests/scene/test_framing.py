"""A scene is found wherever it is and however large, and what lies far off does not decide."""

import math

import pytest
import torch

from ddpo3d_fast.scene import Gaussians, frame_of, framed, initial_cloud, orbit


def thing(count=2000, seed=0):
    """A rod of differently coloured, well visible Gaussians along x: half-length 2, at the origin."""
    cloud = initial_cloud(count, seed)
    generator = torch.Generator().manual_seed(seed)
    cloud.means[:, 0] = 4 * torch.rand(count, generator=generator) - 2
    cloud.means[:, 1:] *= 0.3
    cloud.logit_opacities += 3
    cloud.sh[:, 0] = 3 * torch.rand(count, 3, generator=generator) - 1.5
    return cloud


def moved(scene, by=(0.0, 0.0, 0.0), times=1.0):
    means = times * scene.means + torch.as_tensor(by)
    return Gaussians(means, scene.quats, scene.log_scales + math.log(times), scene.logit_opacities, scene.sh)


def together(*scenes):
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return Gaussians(*(torch.cat([getattr(scene, name) for scene in scenes]) for name in names))


def shell(count, radius, scale, logit_opacity=5.0):
    """Gaussians of one size on a sphere around the origin."""
    cloud = initial_cloud(count, seed=3)
    cloud.means = radius * torch.nn.functional.normalize(cloud.means, dim=1)
    cloud.log_scales.fill_(math.log(scale))
    cloud.logit_opacities.fill_(logit_opacity)
    return cloud


def picture(scene):
    return framed(scene, frame_of(scene)).render(orbit(2), 64, 64).rgb


@pytest.mark.parametrize("by", [(0, 0, 0), (100, -100, 100)])
@pytest.mark.parametrize("times", [1e-3, 1, 1e3])
def test_a_scene_fills_the_picture_wherever_it_lies_and_however_large_it_is(by, times):
    plain, far = picture(thing()), picture(moved(thing(), torch.tensor(by) * times, times))
    assert (plain.amax(3) > 0.1).float().mean() > 0.05
    assert (plain[:, :, [0, -1]] == 0).all()  # nothing is cut off at the sides
    columns = (plain[0].amax(2) > 0.1).any(0).nonzero()
    assert columns.max() - columns.min() > 0.8 * 64
    assert (far - plain).abs().mean() < 1e-3


@pytest.mark.parametrize(
    "addition",
    [
        shell(20, 1000.0, 0.05),  # 1 % floaters
        shell(20, 1e30, 1e20),
        shell(1900, 80.0, 5.0),  # a sky of as many Gaussians
        shell(1900, 80.0, 0.05, logit_opacity=-7.0),  # invisible
    ],
    ids=["floaters", "infinity", "sky", "invisible"],
)
def test_what_lies_far_off_does_not_decide(addition):
    alone = frame_of(moved(thing(), (5.0, 0, 0)))
    frame = frame_of(together(moved(thing(), (5.0, 0, 0)), addition))
    assert (frame.center - alone.center).norm() < 0.25
    assert 0.9 < frame.radius / alone.radius < 1.5


def test_many_floaters_make_the_rest_smaller_and_no_more():
    scene = together(thing(), shell(400, 1000.0, 0.05))
    assert frame_of(scene).radius < 4 * frame_of(thing()).radius


def test_what_lies_in_this_program_s_own_ball_is_shown_as_it_is():
    cloud = initial_cloud(1000, seed=0, deviation=0.3)
    frame = frame_of(cloud)
    assert (frame.center.tolist(), frame.radius) == ([0, 0, 0], 1)
    same = framed(cloud, frame)
    assert torch.equal(same.means, cloud.means)
    assert torch.equal(same.log_scales, cloud.log_scales)
    for other in (moved(cloud, times=0.2), moved(cloud, times=2.0), moved(cloud, (1.0, 0, 0))):
        assert frame_of(other).radius != 1


def test_the_centre_can_be_given():
    frame = frame_of(thing(), torch.tensor([2.0, 0, 0], dtype=torch.float64))
    assert frame.center.tolist() == [2, 0, 0]
    assert frame.radius > 1.5 * frame_of(thing()).radius


def test_a_scene_of_one_point_none_or_nothing_visible_has_a_frame():
    for count in (0, 1):
        cloud = initial_cloud(count + 1, seed=0)[:count]
        assert frame_of(cloud).radius > 0
    assert frame_of(shell(10, 1.0, 0.1, logit_opacity=-20.0)).radius == 1


@pytest.mark.parametrize("log_scale", [-1000.0, 1000.0])
def test_scales_of_0_and_beyond_all_numbers_leave_a_frame(log_scale):
    scene = together(thing(), shell(20, 1000.0, 0.05))
    scene.log_scales[:900] = log_scale
    assert 0.8 < frame_of(scene).radius / frame_of(thing()).radius < 1.5
    scene.log_scales[:] = log_scale
    assert 0 < frame_of(scene).radius < math.inf


def test_directions_stay_and_with_them_the_harmonics():
    scene = initial_cloud(50, seed=1, sh_degree=3)
    scene.sh.copy_(torch.randn(scene.sh.shape, generator=torch.Generator().manual_seed(2)))
    near = picture(moved(scene, (3.0, 0, 0)))
    assert near.std() > 0.05
    assert (picture(moved(scene, (30.0, 0, 0), times=10.0)) - near).abs().max() < 1e-3
