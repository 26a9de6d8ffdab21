"""From Gaussians to a mesh: its shape, that it closes, and its colours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpo3d_fast.assets import Mesh
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.meshing import MeshSettings, bake, solid_field, surface_of, to_mesh, unwrapped
from ddpo3d_fast.meshing.bake import texels_of
from ddpo3d_fast.meshing.surface import Surface
from ddpo3d_fast.scene import Gaussians, orbit

from .meshes import picture
from .shapes import BLUE, RED, ball, directions, of, together

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed (the extra mesh)")
for module in ("skimage", "fast_simplification", "xatlas", "scipy"):
    pytest.importorskip(module, reason=f"{module} is not installed (the extra mesh)")

FINE = MeshSettings(faces=3000, texture_size=256, resolution=64)


@pytest.fixture(scope="module")
def made() -> Mesh:
    return to_mesh(ball(), FINE)


def closed(mesh: Mesh) -> trimesh.Trimesh:
    """The mesh with its seams sewn up."""
    sewn = trimesh.Trimesh(mesh.vertices.numpy(), mesh.triangles.numpy(), process=False)
    sewn.merge_vertices(merge_tex=True, merge_norm=True)
    return sewn


def covered(scene: Gaussians, count: int = 6, size: int = 96) -> Tensor:
    return scene.render(orbit(count, 0.3), size, size).alpha > 0.5


def test_a_ball_becomes_a_closed_ball_of_its_size(made: Mesh) -> None:
    mesh = closed(made)
    assert mesh.is_watertight
    assert mesh.body_count == 1  # the inside of the hollow ball is no second surface
    assert len(mesh.faces) <= 3000
    # Seen from outside the ball ends where its alpha falls to a half.
    alpha = ball().render(orbit(1, 0.0), 400, 400).alpha[0, 200]
    edge = (alpha > 0.5).nonzero()[[0, -1], 0]
    angle = math.atan(float(edge[1] - edge[0] + 1) / 400 * math.tan(math.radians(20)))
    radius = 3 * math.sin(angle)
    lengths = np.linalg.norm(mesh.vertices, axis=1)
    assert np.median(lengths) == pytest.approx(radius, rel=0.02)
    assert lengths.std() < 0.015
    assert mesh.volume > 0  # triangles look outward
    assert (made.normals * made.vertices).sum(1).min() > 0
    torch.testing.assert_close(made.normals.norm(dim=1), torch.ones(len(made.normals)))


def test_silhouettes_are_those_of_the_gaussians(made: Mesh) -> None:
    truth = covered(ball())
    for number in range(len(truth)):
        view = picture(made._replace(texture=torch.zeros_like(made.texture)), orbit(6, 0.3)[[number]], 96)
        shown = view[..., 0] < 0.5
        assert float((shown & truth[number]).sum() / (shown | truth[number]).sum()) > 0.96


def test_colours_are_the_gaussians_without_what_is_behind_them(made: Mesh) -> None:
    front, side, back = (picture(made, orbit(4, 0.0)[[number]], 64) for number in (0, 1, 2))
    assert (front[32, 32] - RED).abs().max() < 0.05
    assert (back[32, 32] - BLUE).abs().max() < 0.05
    assert (side[32, 18] - RED).abs().max() < 0.1
    # No halo: near the edge of the ball nothing is paler or darker than inside it.
    edge = picture(made, orbit(4, 0.0)[[0]], 64, samples=1)[32]
    shown = edge[edge.min(1).values < 0.9]
    assert (shown - RED).abs().max() < 0.15


def test_what_lets_light_through_is_not_darker_for_that() -> None:
    glass = of(directions(300) * 0.5, 0.06, RED[None].repeat(300, 1), opacity=0.3)
    alpha = glass.render(orbit(1, 0.0), 64, 64).alpha[0, 32, 32]
    assert 0.7 < float(alpha) < 0.95
    view = picture(to_mesh(glass, FINE), orbit(1, 0.0), 64)[32, 32]
    assert (view - RED).abs().max() < 0.03


def test_what_stands_before_something_does_not_colour_it() -> None:
    front = of(directions(200) * 0.16 + torch.tensor([0.0, 0.0, 0.75]), 0.04, RED[None].repeat(200, 1))
    back = of(directions(600) * 0.4, 0.05, BLUE[None].repeat(600, 1))
    mesh = to_mesh(together(front, back), FINE)
    texels = texels_of(Surface(*(part.numpy() for part in mesh[:4])), 256)
    behind = texels.positions[:, 2] < 0.5
    colors = mesh.texture.view(-1, 3)[texels.places]
    assert (colors[behind] - BLUE).abs().max() < 0.25
    assert (colors[texels.positions[:, 2] > 0.75] - RED).abs().max() < 0.25


def test_texels_between_charts_repeat_what_is_next_to_them(made: Mesh) -> None:
    """So that no sampling beyond a chart's edge finds a background."""
    away = torch.minimum((made.texture - RED).abs().amax(2), (made.texture - BLUE).abs().amax(2))
    mixed = (made.texture[..., 1] - 0.2).abs() < 0.05  # between the two, where they meet
    assert ((away < 0.1) | mixed).float().mean() > 0.995


def test_a_decimation_that_leaves_a_mesh_open_is_made_again_in_smaller_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fast_simplification

    simplify, asked = fast_simplification.simplify, []

    def hasty(
        vertices: np.ndarray, triangles: np.ndarray, target_count: int, agg: int
    ) -> tuple[np.ndarray, ...]:
        asked.append(agg)
        points, faces = simplify(vertices, triangles, target_count=target_count, agg=agg)
        return points, faces if agg < 7 else np.concatenate([faces, faces[:1]])  # a triangle twice

    monkeypatch.setattr(fast_simplification, "simplify", hasty)
    surface = surface_of(solid_field(ball(300), 40), 600)
    assert asked == [7, 5]
    assert trimesh.Trimesh(surface.vertices, surface.triangles, process=False).is_watertight


def test_specks_go_and_two_real_pieces_stay() -> None:
    pieces = [
        of(directions(60) * 0.15 + torch.tensor([x, 0.0, 0.0]), 0.05, RED[None].repeat(60, 1))
        for x in (-0.5, 0.5)
    ]
    speck = of(torch.tensor([[0.0, 0.8, 0.0]]), 0.012, RED[None])
    mesh = closed(to_mesh(together(*pieces, speck), FINE))
    assert mesh.body_count == 2
    assert mesh.vertices[:, 1].max() < 0.5


def test_thin_parts_are_kept() -> None:
    """A plate of flat Gaussians, thinner than a cell of the grid."""
    at = torch.linspace(-0.6, 0.6, 25)
    x, z = torch.meshgrid(at, at, indexing="ij")
    plate = of(torch.stack([x, 0 * x, z], -1).view(-1, 3), 0.05, RED[None].repeat(625, 1))
    plate.log_scales[:, 1] = math.log(0.004)
    mesh = closed(to_mesh(plate, FINE))
    assert mesh.is_watertight
    low, high = mesh.bounds
    assert (high - low)[[0, 2]].min() > 1.2
    assert (high - low)[1] < 0.15


def test_what_touches_the_grid_s_end_is_closed_there() -> None:
    wide = of(directions(900) * torch.tensor([1.6, 0.3, 0.3]), 0.06, RED[None].repeat(900, 1))
    field = solid_field(wide, 48)
    assert (np.abs(field.origin) > 0).all()
    surface = surface_of(field, 2000)
    assert trimesh.Trimesh(surface.vertices, surface.triangles).is_watertight


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_a_scene_of_any_size_and_place_is_found_and_stays_there(made: Mesh, scale: float) -> None:
    shift = torch.tensor([300.0, -40.0, 8.0])
    away = ball()
    away = Gaussians(
        (away.means + shift) * scale,
        away.quats,
        away.log_scales + math.log(scale),
        away.logit_opacities,
        away.sh,
    )
    mesh = closed(to_mesh(away, FINE))
    assert mesh.is_watertight
    near = closed(made)
    assert np.abs(mesh.center_mass / scale - shift.numpy()).max() < 0.02
    assert mesh.volume / scale**3 == pytest.approx(near.volume, rel=0.05)


def test_two_runs_give_the_same_mesh(made: Mesh) -> None:
    again = to_mesh(ball(), FINE)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


def test_nothing_solid_is_one_line() -> None:
    faint = ball()
    faint.logit_opacities.fill_(-5.0)
    with pytest.raises(InputError, match=r"^asset: expected something solid, got 900 Gaussians too faint"):
        to_mesh(faint, FINE)


def test_every_texel_of_a_chart_has_a_place_and_unseen_ones_a_colour() -> None:
    """Inside a bowl with a lid no view sees anything."""
    shell = ball()
    surface = unwrapped(surface_of(solid_field(shell, 48), 1000), 128)
    texture = bake(shell, surface, 128)
    assert texture.shape == (128, 128, 3)
    assert texture.isfinite().all()
    assert surface.uvs.min() >= 0
    assert surface.uvs.max() <= 1
