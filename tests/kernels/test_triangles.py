"""Textured triangles, against float64 torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast.kernels import (
    TriangleHits,
    get_num_threads,
    rasterize_triangles,
    sample_texture,
    sample_texture_backward,
    set_num_threads,
)
from ddpo3d_fast.scene import orbit

SIZE = (44, 39)  # width, height


def soup(count: int = 40, seed: int = 0) -> dict[str, Tensor]:
    """Triangles anywhere in the unit ball, of all sizes, before two cameras."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(count, 1, 3, generator=generator) * 0.4
    spread = torch.randn(count, 3, 3, generator=generator) * torch.rand(count, 1, 1, generator=generator)
    cameras = orbit(2, 0.3, start=0.4)
    return {
        "vertices": (centers + 0.6 * spread).reshape(-1, 3),
        "triangles": torch.arange(3 * count, dtype=torch.int32).view(-1, 3),
        "viewmats": cameras.viewmats,
        "intrinsics": cameras.intrinsics(*SIZE),
    }


def oracle(vertices: Tensor, triangles: Tensor, viewmats: Tensor, intrinsics: Tensor) -> TriangleHits:
    """By the definition: for every pixel and triangle the ray's barycentric coordinates, the nearest wins."""
    width, height = SIZE
    views = []
    for view, k in zip(viewmats.double(), intrinsics.double(), strict=True):
        camera = vertices.double() @ view[:3, :3].T + view[:3, 3]
        z = camera[:, 2]
        points = torch.stack([k[0, 0] * camera[:, 0] / z + k[0, 2], k[1, 1] * camera[:, 1] / z + k[1, 2]], 1)
        points = (points * 256 + 0.5).floor() / 256
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        pixels = torch.stack([x, y], -1).double()
        p = points[triangles.long()]  # [F, 3, 2]

        def edge(a: Tensor, b: Tensor, pixels: Tensor = pixels) -> Tensor:
            to, from_ = b - a, pixels[None] - a[:, None, None]
            return to[:, None, None, 0] * from_[..., 1] - to[:, None, None, 1] * from_[..., 0]

        w = torch.stack([edge(p[:, 1], p[:, 2]), edge(p[:, 2], p[:, 0]), edge(p[:, 0], p[:, 1])], -1)
        area = w.sum(-1)
        inside = ((w >= 0).all(-1) & (area > 0)) | ((w <= 0).all(-1) & (area < 0))
        inside &= (z[triangles.long()] >= 0.01).all(1)[:, None, None]
        q = w / z[triangles.long()][:, None, None]
        inverse = torch.where(inside, (q.sum(-1) / area), 0.0)
        nearest = inverse.argmax(0)
        seen = inside.any(0)
        chosen = q.gather(0, nearest[None, ..., None].expand(1, *nearest.shape, 3))[0]
        barycentrics = torch.where(seen[..., None], chosen / chosen.sum(-1, keepdim=True), 0.0)
        depth = torch.where(seen, 1 / inverse.amax(0), 0.0)
        views.append((torch.where(seen, nearest, -1).int(), barycentrics, depth))
    return TriangleHits(*(torch.stack(each) for each in zip(*views, strict=True)))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_pixels_see_equals_the_oracle(seed: int) -> None:
    got, expected = (
        rasterize_triangles(**soup(seed=seed), width=SIZE[0], height=SIZE[1]),
        oracle(**soup(seed=seed)),
    )
    assert torch.equal(got.triangles, expected.triangles)
    assert len(got.triangles.unique()) > 15
    assert relative(got.barycentrics, expected.barycentrics) < 1e-6
    assert relative(got.depth, expected.depth) < 1e-6


def test_neighbours_leave_no_gap() -> None:
    """A fan of thin triangles that fills the picture, its corners at odd places."""
    angle = torch.linspace(0, 2 * math.pi, 98)[:-1]
    rim = torch.stack([5 * angle.cos(), 5 * angle.sin(), 0 * angle], 1)
    vertices = torch.cat([torch.tensor([[0.013, 0.007, 0.0]]), rim])
    index = torch.arange(97)
    triangles = torch.stack([0 * index, 1 + index, 1 + (index + 1) % 97], 1).int()
    camera = orbit(1, 0.0)
    hits = rasterize_triangles(vertices, triangles, camera.viewmats, camera.intrinsics(300, 300), 300, 300)
    assert (hits.triangles >= 0).all()
    torch.testing.assert_close(hits.depth, torch.full_like(hits.depth, 3.0), rtol=1e-3, atol=0)


def test_what_is_behind_a_camera_or_not_finite_is_not_drawn() -> None:
    scene = soup(5)
    scene["vertices"][4] = torch.tensor([math.nan, 0.0, 0.0])
    scene["vertices"][7] = torch.tensor([math.inf, 0.0, 0.0])
    scene["vertices"][10] = -scene["viewmats"][0, :3, :3].T @ (scene["viewmats"][0, :3, 3] * 1.0)  # a camera
    hits = rasterize_triangles(**scene, width=30, height=30)
    assert set(hits.triangles[0].unique().tolist()) <= {-1, 0, 4}
    assert hits.barycentrics.isfinite().all()
    assert hits.depth.isfinite().all()


def textured(seed: int = 0, shape: tuple[int, int] = (16, 9)) -> tuple[Tensor, dict[str, Tensor]]:
    """A texture [H, W, 3], and how a soup of triangles is seen, their corners partly off the texture."""
    generator = torch.Generator().manual_seed(seed)
    hits = rasterize_triangles(**soup(seed=seed), width=SIZE[0], height=SIZE[1])
    corners = 1.4 * torch.rand(40, 3, 2, generator=generator) - 0.2
    where = {"corners": corners, "triangles": hits.triangles, "barycentrics": hits.barycentrics}
    return torch.rand(*shape, 3, generator=generator), where


def sampled(texture: Tensor, corners: Tensor, triangles: Tensor, barycentrics: Tensor) -> Tensor:
    """float64 [..., 3] by torch's own bilinear sampling."""
    uv = (corners.double()[triangles.long().clamp_min(0)] * barycentrics.double()[..., None]).sum(-2)
    at = uv.view(1, 1, -1, 2) * 2 - 1
    rgb = torch.nn.functional.grid_sample(
        texture.double().permute(2, 0, 1)[None], at, padding_mode="border", align_corners=False
    )
    return rgb[0, :, 0].T.reshape(*triangles.shape, 3) * (triangles >= 0)[..., None]


@pytest.mark.parametrize("shape", [(16, 9), (2, 2), (3, 70)])
def test_samples_and_their_gradient_equal_torchs(shape: tuple[int, int]) -> None:
    texture, where = textured(shape=shape)
    wanted = texture.double().requires_grad_()
    expected = sampled(wanted, **where)
    assert relative(sample_texture(texture, **where), expected.detach()) < 1e-5
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    (expected * weights).sum().backward()
    assert wanted.grad is not None
    assert relative(sample_texture_backward(weights, *shape, **where), wanted.grad) < 1e-5


def test_two_runs_agree_to_the_bit_for_any_number_of_threads() -> None:
    texture, where = textured()
    weights = torch.randn(*where["triangles"].shape, 3)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            hits = rasterize_triangles(**soup(), width=SIZE[0], height=SIZE[1])
            results.append((*hits, sample_texture_backward(weights, *texture.shape[:2], **where)))
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_gives_nothing() -> None:
    scene = soup()
    none = scene | {"triangles": scene["triangles"][:0], "vertices": scene["vertices"][:0]}
    assert (rasterize_triangles(**none, width=4, height=3).triangles == -1).all()
    assert rasterize_triangles(**scene, width=0, height=3).depth.shape == (2, 3, 0)
    texture, where = textured()
    blind = where | {"triangles": torch.full_like(where["triangles"], -1)}
    assert not sample_texture(texture, **blind).any()
    assert not sample_texture_backward(torch.ones(2, SIZE[1], SIZE[0], 3), 16, 9, **blind).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vertices": torch.zeros(4, 2)}, ValueError, r"vertices: expected shape \[V, 3\], got \[4, 2\]"),
        ({"triangles": torch.zeros(4, 3)}, TypeError, "triangles: expected torch.int32, got torch.float32"),
        (
            {"triangles": torch.full((4, 3), 200, dtype=torch.int32)},
            ValueError,
            "triangles: .* 0 to 119, got 200",
        ),
        (
            {"triangles": torch.full((4, 3), -1, dtype=torch.int32)},
            ValueError,
            "triangles: .* 0 to 119, got -1",
        ),
        ({"intrinsics": torch.zeros(1, 3, 3)}, ValueError, r"intrinsics: expected shape \[2, 3, 3\]"),
        ({"width": -1}, ValueError, "width, height: expected 0 or more"),
        ({"height": 2.0}, TypeError, "height: expected an int, got float"),
        ({"near": 0.0}, ValueError, "near: expected a positive number, got 0.0"),
    ],
)
def test_bad_triangles_are_one_line(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        rasterize_triangles(**{"width": 4, "height": 4} | soup() | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"texture": torch.zeros(1, 4, 3)}, ValueError, "texture: expected sides of 2 or more"),
        ({"corners": torch.zeros(4, 3)}, ValueError, r"corners: expected shape \[F, 3, 2\]"),
        ({"corners": torch.zeros(4, 3, 2)}, ValueError, "triangles: expected numbers below 4, got"),
        ({"barycentrics": torch.zeros(4, 3)}, ValueError, r"barycentrics: expected shape \[2, 39, 44, 3\]"),
    ],
)
def test_bad_samples_are_one_line(change: dict[str, Any], error: type[Exception], message: str) -> None:
    texture, where = textured()
    with pytest.raises(error, match=f"^{message}"):
        sample_texture(**{"texture": texture} | where | change)
