"""A texture as a run's scene: views, gradients and moves, against float64 torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ddpo3d_fast.scene import Shape, Textured, orbit
from ddpo3d_fast.scene.textured import SAMPLES, UNIT, TexturedViews, see
from ddpo3d_fast.step import Step

SIDE, SIZE = 12, 20


def scene(seed: int = 0, rate: float = 0.02) -> Textured:
    """A tetrahedron of four colours, a chart a side, over a texture of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.tensor([[0.8, -0.5, 0.6], [-0.8, -0.5, 0.6], [0.0, -0.5, -0.9], [0.0, 0.9, 0.0]])
    triangles = torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]], dtype=torch.int32)
    corners = torch.rand(4, 3, 2, generator=generator)
    positions = torch.randn(SIDE, SIDE, 3, generator=generator)
    present = torch.rand(SIDE, SIDE, generator=generator) > 0.2
    texture = 0.2 + 0.6 * torch.rand(SIDE, SIDE, 3, generator=generator)
    return Textured(Shape(vertices, triangles, corners, positions, present), texture, rate)


def step(number: int = 3, fraction: float = 0.5) -> Step:
    cameras, none = orbit(2, 0.4), torch.zeros(2)
    return Step(
        number, fraction, cameras.viewmats, none, none, torch.ones(2, 3), none.long(), SIZE, SIZE,
        torch.Generator(),
    )  # fmt: skip


BACKGROUNDS = torch.tensor([[1.0, 1.0, 1.0], [0.3, 0.2, 0.1]])


def oracle(textured: Textured, texture: Tensor) -> Tensor:
    """float64 views [2, SIZE, SIZE, 3]: torch's bilinear samples of what is hit, and their means."""
    hits = see(textured.shape, orbit(2, 0.4), SIZE)
    corners = textured.shape.corners.double()[hits.triangles.long().clamp_min(0)]
    uv = (corners * hits.barycentrics.double()[..., None]).sum(-2)
    picture = texture.permute(2, 0, 1)[None]
    rgb = torch.nn.functional.grid_sample(
        picture, uv.view(1, 1, -1, 2) * 2 - 1, padding_mode="border", align_corners=False
    )[0, :, 0].T.reshape(*uv.shape[:-1], 3)
    covered = (hits.triangles >= 0)[..., None]
    over = torch.where(covered, rgb, BACKGROUNDS.double()[:, None, None])
    parts = over.view(2, SIZE, SAMPLES, SIZE, SAMPLES, 3)
    return parts.mean((2, 4))


def rendered(textured: Textured) -> TexturedViews:
    return textured.render(orbit(2, 0.4), SIZE, BACKGROUNDS)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def test_views_equal_the_oracle() -> None:
    textured = scene()
    views = rendered(textured)
    assert relative(views.rgb, oracle(textured, textured.texture.double())) < 1e-6
    hits = see(textured.shape, orbit(2, 0.4), SIZE)
    alpha = (hits.triangles >= 0).double().view(2, SIZE, SAMPLES, SIZE, SAMPLES).mean((2, 4))
    assert relative(views.alpha, alpha) < 1e-6
    assert 0.05 < float(views.alpha.mean()) < 0.6


@pytest.mark.parametrize("pulls", [False, True])
def test_an_update_is_adam_down_the_gradient_of_the_views(pulls: bool) -> None:
    textured, generator = scene(), torch.Generator().manual_seed(1)
    wanted = textured.texture.double().requires_grad_()
    optimizer = torch.optim.Adam([wanted], lr=0.02 * (1 - 0.9 * 0.5), betas=(0.9, 0.99), eps=1e-15)
    for number in (1, 2, 3):
        weights = torch.randn(2, SIZE, SIZE, 3, generator=generator)
        pull = 0.3 * torch.randn(SIDE * SIDE, 3, generator=generator) if pulls else None
        optimizer.zero_grad()
        (oracle(textured, wanted) * weights).sum().backward()
        assert wanted.grad is not None
        if pull is not None:
            # Relative to what of a texel's own gradient, with respect to moves in units, is across the pull.
            own, along = (UNIT * wanted.grad).view(-1, 3), torch.nn.functional.normalize(pull.double(), dim=1)
            across = own - (own * along).sum(1, keepdim=True) * along
            wanted.grad += (across.norm(dim=1, keepdim=True) * pull / UNIT).view(SIDE, SIDE, 3)
        optimizer.step()
        inputs = textured.inputs(step(number))
        textured.update(rendered(textured), weights, torch.ones(2, SIZE, SIZE), inputs, pull)
    moved = textured.texture.double() - scene().texture.double()
    assert float(moved.abs().mean()) > 0.005
    assert relative(moved, wanted.detach() - scene().texture.double()) < 1e-3  # of three float32 steps
    assert relative(textured.texture, wanted.detach()) < 1e-5


def test_colours_stay_in_the_range_of_colours() -> None:
    textured = scene(rate=5.0)
    textured.update(
        rendered(textured), torch.ones(2, SIZE, SIZE, 3), torch.ones(2, SIZE, SIZE), textured.inputs(step(1))
    )
    assert textured.texture.min() == 0
    assert textured.texture.max() <= 1


def test_a_texture_learns_what_views_should_show() -> None:
    textured, target = scene(rate=0.05), rendered(scene(seed=7)).rgb  # same shape, other colours and charts
    target = torch.where(rendered(textured).alpha[..., None] > 0, torch.tensor([0.1, 0.6, 0.3]), target)
    first = last = math.inf
    for number in range(1, 60):
        views = rendered(textured)
        error = (views.rgb - target) * (views.alpha[..., None] == 1)
        last = float(error.square().mean())
        first = last if number == 1 else first
        textured.update(views, error, torch.zeros(2, SIZE, SIZE), textured.inputs(step(number, 0.0)))
    assert last < 0.01 * first


def test_two_runs_agree_to_the_bit() -> None:
    results = []
    for _ in range(2):
        textured = scene()
        for number in (1, 2):
            views = rendered(textured)
            textured.update(views, views.rgb - 0.5, views.alpha, textured.inputs(step(number)))
        results.append(textured.texture)
    assert torch.equal(*results)


def test_moved_pictures_are_those_of_other_colours_and_the_scene_stays() -> None:
    textured = scene()
    before = textured.texture.clone()
    moved = textured.moved(orbit(2, 0.4), SIZE, SIZE, BACKGROUNDS)
    rows, generator = SIDE * SIDE, torch.Generator().manual_seed(2)
    assert moved.views == 2
    assert moved.positions.shape == (rows, 3)
    assert moved.present.shape == (rows, 1)
    phi = torch.randn(rows, 5, generator=generator)
    actions = 0.1 * torch.randn(3, 5, 3, generator=generator) * textured.moved_channels("all")
    pictures = moved.pictures_of(phi, actions, "all")
    assert pictures.shape == (3, 2, 3, SIZE, SIZE)
    for number, action in enumerate(actions):
        for which, sign in enumerate((1, -1)):
            other = scene()
            other.texture += sign * UNIT * (phi @ action).view(SIDE, SIDE, 3)
            expected = rendered(other).rgb[number % 2].clamp(0, 1)
            torch.testing.assert_close(pictures[number, which].permute(1, 2, 0), expected, atol=1e-5, rtol=0)
    assert torch.equal(textured.texture, before)


def test_numbers_of_texels_are_shown_as_colours_are() -> None:
    textured = scene()
    moved = textured.moved(orbit(2, 0.4), SIZE, SIZE, BACKGROUNDS)
    colors = textured.texture.view(-1, 3)
    shown = moved.shown(torch.cat([colors, colors[:, :1]], 1))  # not a multiple of three
    assert shown.shape == (2, 4, SIZE, SIZE)
    black = textured.render(orbit(2, 0.4), SIZE, torch.zeros(2, 3)).rgb.permute(0, 3, 1, 2)
    torch.testing.assert_close(shown[:, :3], black)
    assert torch.equal(shown[:, 3], shown[:, 0])


def test_state_and_load_bring_a_scene_back() -> None:
    textured, other = scene(), scene(seed=3)
    textured.update(
        rendered(textured), torch.ones(2, SIZE, SIZE, 3), torch.ones(2, SIZE, SIZE), textured.inputs(step(1))
    )
    other.load(textured.state())
    for name in ("texture", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(other, name), getattr(textured, name))
    with pytest.raises(ValueError, match=r"texture: expected shape \(12, 12, 3\), got \(2, 3\)"):
        other.load(textured.state() | {"texture": torch.zeros(2, 3)})
    assert len(textured) == int(textured.shape.present.sum())
