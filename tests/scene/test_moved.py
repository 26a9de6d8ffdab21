"""A scene a little changed: what is seen of it, and what a pull does to the gradient."""

import dataclasses

import pytest
import torch

from ddpo3d_fast.kernels import rasterize_backward
from ddpo3d_fast.scene import CHANNELS, Gaussians, LearningRates, initial_cloud, moved_channels, orbit
from ddpo3d_fast.scene.gaussians import PARAMETERS
from ddpo3d_fast.scene.moved import Moved
from ddpo3d_fast.scene.splats import Splats
from ddpo3d_fast.scene.units import UNITS, in_raw, in_units, pulled
from ddpo3d_fast.settings import Scene
from ddpo3d_fast.step import Step

SIZE = 32
RATES = LearningRates(means=8e-3, quats=1e-2, log_scales=1e-2, logit_opacities=5e-2, sh=0.1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cloud(count=60, sh_degree=0):
    gaussians = initial_cloud(count, 0, sh_degree)
    gaussians.sh += 0.4 * normal(*gaussians.sh.shape, seed=100)
    gaussians.logit_opacities += normal(count, seed=101)
    return gaussians


def image_gradients(cameras):
    shape = len(cameras), SIZE, SIZE
    return normal(*shape, 3, seed=3), normal(*shape, seed=4)


def moved_of(gaussians, rendered=SIZE, picture=SIZE):
    return Moved(gaussians, orbit(3), torch.ones(3, 3), rendered, picture, [])


def test_a_picture_is_that_of_a_scene_with_other_numbers_which_stays_as_it_is():
    gaussians, offsets = cloud(), 0.5 * normal(60, CHANNELS)
    before = gaussians.state_dict()
    pictures = [moved_of(gaussians).picture_of(offsets, view) for view in range(3)]
    other = Gaussians.from_state_dict(before)
    other.sh[:, 0] += 0.3 * offsets[:, :3]
    other.logit_opacities += 0.5 * offsets[:, 3]
    other.log_scales += 0.2 * offsets[:, 4:7]
    other.means += 0.02 * offsets[:, 7:]
    expected = other.render(orbit(3), SIZE, SIZE, torch.ones(3, 3)).rgb.permute(0, 3, 1, 2).clamp(0, 1)
    assert torch.allclose(torch.cat(pictures), expected, atol=1e-5)
    assert all(torch.equal(gaussians.state_dict()[name], tensor) for name, tensor in before.items())


def rows_of(phi, actions):
    """[K, 2, R, C] the moves that pairs of actions make."""
    return torch.stack([phi @ actions, -(phi @ actions)], 1)


@pytest.mark.parametrize("moves", ["colors", "all"])
def test_pictures_of_pairs_are_those_of_the_moved_scene_from_the_views_in_turn(moves):
    gaussians, phi, actions = cloud(), normal(60, 5) / 3, 0.5 * normal(4, 5, CHANNELS, seed=7)
    gaussians.sh.clamp_(-1.2, 1.2)
    actions = actions * moved_channels(moves)
    backgrounds = torch.rand(3, 1, generator=torch.Generator().manual_seed(2)).repeat(1, 3)
    fresh = lambda: Moved(gaussians, orbit(3), backgrounds, SIZE, SIZE, [])  # noqa: E731
    moved = fresh()
    pictures = moved.pictures_of(phi, actions, moves)
    assert pictures.shape == (4, 2, 3, SIZE, SIZE)
    assert len(moved.overflows) == (1 if moves == "colors" else 9)  # renderings
    for k, pair in enumerate(rows_of(phi, actions)):
        for side, offsets in enumerate(pair):
            expected = fresh().picture_of(offsets, k % 3)[0]
            assert torch.allclose(pictures[k, side], expected, atol=1e-5)


def test_the_picture_of_another_colour_may_be_smaller_than_the_reward_sees():
    gaussians, phi, actions = cloud(), normal(60, 2), 0.1 * normal(1, 2, CHANNELS)
    actions = actions * moved_channels("colors")
    picture = moved_of(gaussians, 16, 32).pictures_of(phi, actions, "colors")[0, 0]
    assert torch.allclose(picture, moved_of(gaussians, 16, 32).picture_of(phi @ actions[0], 0)[0], atol=1e-5)


def test_what_the_cameras_see_of_other_numbers():
    gaussians, values = cloud(), normal(60, 4)
    values[:, 3] = 1
    moved = moved_of(gaussians)
    seen = moved.shown(values)
    views = gaussians.render(orbit(3), SIZE, SIZE)
    assert torch.allclose(seen[:, 3], views.alpha, atol=1e-6)
    again = moved.shown(-values)
    assert torch.equal(again, -seen)
    assert len(moved.overflows) == 1  # rendered once


def test_no_move_shows_the_scene_and_rows_that_are_not_in_use_stay_unseen():
    gaussians = cloud(40)
    expected = gaussians.render(orbit(3), SIZE, SIZE, torch.ones(3, 3)).rgb[1:2].permute(0, 3, 1, 2)
    gaussians.reserve(40)
    moved = moved_of(gaussians)
    assert moved.positions.shape == (64, 3)
    assert moved.present[:, 0].tolist() == 40 * [1.0] + 24 * [0.0]
    assert torch.equal(moved.picture_of(torch.zeros(64, CHANNELS), 1), expected.clamp(0, 1))
    shifted = normal(64, CHANNELS) * (1 - moved.present)
    assert torch.equal(moved.picture_of(shifted, 1), expected.clamp(0, 1))


def test_a_picture_has_the_size_that_a_reward_sees():
    gaussians = cloud()
    nothing = torch.zeros(60, CHANNELS)
    small = moved_of(gaussians, 16, 32).picture_of(nothing, 0)
    assert small.shape == (1, 3, 32, 32)
    splats = Splats(Scene(gaussians=60), 0)
    for size, rendered in ((64, 32), (16, 16)):
        assert splats.moved(orbit(2), size, 32, torch.ones(2, 3)).rendered == rendered


@pytest.mark.parametrize("sh_degree", [0, 2])
def test_units_are_those_of_the_chain_rule(sh_degree):
    gaussians = cloud(sh_degree=sh_degree)
    offsets, bases = normal(60, CHANNELS).double(), gaussians.sh.shape[1]
    gradients = {name: normal(*getattr(gaussians, name).shape, seed=5).double() for name in PARAMETERS}
    leaf = offsets.clone().requires_grad_()
    raw = in_raw(leaf, bases)
    assert all(raw[name].shape == gradients[name].shape for name in UNITS)
    sum((raw[name] * gradients[name]).sum() for name in UNITS).backward()
    assert torch.allclose(in_units(gradients), leaf.grad)


def test_a_pull_adds_its_own_length_in_norms_of_each_gaussians_gradient_across_it():
    gaussians = cloud(sh_degree=1)
    gradients = {name: normal(*getattr(gaussians, name).shape, seed=5).double() for name in PARAMETERS}
    pull = normal(60, CHANNELS).double()
    changed = pulled(gradients, pull)
    difference = in_units(changed) - in_units(gradients)
    own, along = in_units(gradients), pull / pull.norm(dim=1, keepdim=True)
    across = (own.square().sum(1) - (own * along).sum(1).square()).sqrt()
    assert torch.allclose(difference, across[:, None] * pull)
    assert torch.equal(changed["quats"], gradients["quats"])
    assert torch.equal(changed["sh"][:, 1:], gradients["sh"][:, 1:])
    assert all(torch.equal(tensor, gradients[name]) for name, tensor in pulled(gradients, 0 * pull).items())


def test_a_gradient_that_is_not_finite_does_not_count_in_the_norm():
    gradients = {name: normal(*getattr(cloud(), name).shape, seed=5) for name in PARAMETERS}
    broken = gradients | {"means": gradients["means"].clone()}
    broken["means"][3] = torch.nan
    gradients["means"][3] = 0
    pull = normal(60, CHANNELS)
    assert torch.equal(pulled(broken, pull)["sh"], pulled(gradients, pull)["sh"])


def test_an_update_takes_the_pull_beside_the_gradient_of_the_views():
    gaussians, cameras, pull = cloud(), orbit(3), 0.1 * normal(60, CHANNELS)
    views = gaussians.render(cameras, SIZE, SIZE)
    grads = image_gradients(cameras)
    found = rasterize_backward(views.state, *grads, opacity_penalty=0.7)
    raw = (found.means, found.quats, found.scales, found.opacities, found.colors)
    expected = pulled(dict(zip(PARAMETERS, raw, strict=True)), pull)
    gaussians.update(views, *grads, RATES, 1, 0.7, beta1=0.0, pull=pull)
    for name in PARAMETERS:
        assert torch.allclose(gaussians.exp_avg[name], expected[name], rtol=1e-5), name


def test_nothing_moves_that_is_not_there():
    splats = Splats(Scene(gaussians=40), 0)
    drawn = Step(1, 0.0, *[None] * 8)
    views = splats.render(orbit(2), SIZE, torch.ones(2, 3))
    moved = splats.moved(orbit(2), SIZE, SIZE, torch.ones(2, 3))
    pull = normal(64, CHANNELS) * moved.present
    splats.update(views, *image_gradients(orbit(2)), splats.inputs(drawn), pull, moved)
    assert splats.gaussians.rows == 64
    for name in PARAMETERS:
        rest = splats.gaussians.memory(name)[40:]
        assert (rest == (-torch.inf if name == "logit_opacities" else 0)).all(), name


def test_a_rendering_without_room_is_remembered():
    moved = moved_of(cloud())
    assert moved.without_room(None) is None
    short = dataclasses.replace(moved, overflows=[torch.tensor([0]), torch.tensor([3])])
    assert short.without_room(torch.tensor([0])).item() == 3
    assert (
        dataclasses.replace(short, overflows=[torch.tensor([0])]).without_room(torch.tensor([0])).item() == 0
    )
