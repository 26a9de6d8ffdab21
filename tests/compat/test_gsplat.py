"""`ddpo3d_fast.compat.gsplat`, with no gsplat about; tests/clients compares with gsplat's own functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
import torch
from kernels import oracle
from kernels.scenes import random_scene
from torch import Tensor

from compat.dense import blend, relative
from ddpo3d_fast.compat import gsplat

NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")


class Shutter(Enum):
    """As gsplat's RollingShutterType."""

    GLOBAL = 0
    ROLLING_TOP_TO_BOTTOM = 1


SIZE = {"width": 40, "height": 36}


@pytest.fixture(autouse=True)
def version() -> Iterator[None]:
    gsplat.use("1.6.0")
    yield
    gsplat.use(None)


def scene(count: int = 100, cameras: int = 2, **settings: Any) -> dict[str, Tensor]:
    tensors = random_scene(11, count=count, cameras=cameras, **SIZE, scale=(0.01, 0.3), **settings).tensors
    return {name: tensors[name] for name in NAMES} | {"Ks": tensors["intrinsics"]}


def leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_(name != "Ks") for name, tensor in tensors.items()}


def weights(like: Tensor, safe: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)) * safe[..., None]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("antialiased", [False, True])
def test_images_and_every_gradient_match_the_float64_oracle(packed: bool, antialiased: bool) -> None:
    t = scene(antialiased=antialiased)
    exact = {name: tensor.double().requires_grad_(name != "Ks") for name, tensor in t.items()}
    offsets = torch.zeros(2, 100, 2, dtype=torch.float64, requires_grad=True)
    truth = oracle.render(
        *(exact[name] for name in NAMES[:6]), exact["Ks"], **SIZE, backgrounds=exact["backgrounds"],
        antialiased=antialiased, means2d_offsets=offsets,
    )  # fmt: skip
    mine = leaves(t)
    picture, alpha, meta = gsplat.rasterization(
        **mine, **SIZE, packed=packed, render_mode="RGB+D",
        rasterize_mode="antialiased" if antialiased else "classic",
    )  # fmt: skip
    meta["means2d"].retain_grad()
    both = torch.cat([truth.rgb, truth.depth[..., None]], -1)
    assert relative(picture[truth.safe], both[truth.safe]) <= 1e-5
    assert relative(alpha[truth.safe], truth.alpha[..., None][truth.safe]) <= 1e-5
    w, w_alpha = weights(both, truth.safe), weights(alpha, truth.safe)
    ((picture * w).sum() + (alpha * w_alpha).sum()).backward()
    ((both * w).sum() + (truth.alpha[..., None] * w_alpha).sum()).backward()
    for name in NAMES:
        assert relative(mine[name].grad, exact[name].grad) <= 1e-4, name  # type: ignore[arg-type]
    assert offsets.grad is not None
    wanted = offsets.grad[meta["camera_ids"], meta["gaussian_ids"]] if packed else offsets.grad
    assert relative(meta["means2d"].grad, wanted) <= 1e-4


@pytest.mark.parametrize(("version", "most"), [("1.5.3", 0.999), ("1.6.0", 0.99)])
def test_each_version_clamps_alpha_where_it_does(version: str, most: float) -> None:
    gsplat.use(version)
    t = {"means": torch.tensor([[0.0, 0, 1]]), "quats": torch.tensor([[1.0, 0, 0, 0]])}
    t |= {"scales": torch.ones(1, 3), "opacities": torch.ones(1), "colors": torch.ones(1, 3)}
    t |= {"viewmats": torch.eye(4)[None], "Ks": torch.tensor([[[9.0, 0, 4.5], [0, 9, 4.5], [0, 0, 1]]])}
    _, alpha, _ = gsplat.rasterization(**t, width=9, height=9)
    assert alpha.max().item() == pytest.approx(most, abs=1e-6)


def test_absgrad_sums_what_each_pixel_gives_without_its_sign() -> None:
    small = {"width": 14, "height": 12}
    tensors = random_scene(11, count=12, cameras=1, **small, scale=(0.01, 0.3)).tensors
    t = {name: tensors[name] for name in NAMES} | {"Ks": tensors["intrinsics"]}
    offsets = torch.zeros(1, 12, 2, dtype=torch.float64, requires_grad=True)
    truth = oracle.render(
        *(t[name].double() for name in NAMES[:6]), t["Ks"].double(), **small, means2d_offsets=offsets,
        backgrounds=t["backgrounds"].double(),
    )  # fmt: skip
    w = weights(truth.rgb, truth.safe)
    each = [
        torch.autograd.grad(pixel, offsets, retain_graph=True)[0].abs()
        for pixel in (truth.rgb * w).sum(-1).flatten()
    ]
    for packed in (False, True):
        picture, _, meta = gsplat.rasterization(**leaves(t), **small, packed=packed, absgrad=True)
        (picture * w).sum().backward()
        wanted = torch.stack(each).sum(0)
        if packed:
            wanted = wanted[meta["camera_ids"], meta["gaussian_ids"]]
        assert relative(meta["means2d"].absgrad, wanted) <= 1e-4


def test_the_dictionary_has_what_strategies_read() -> None:
    t = scene()
    for packed in (False, True):
        _, _, meta = gsplat.rasterization(**t, **SIZE, packed=packed, rasterize_mode="antialiased")
        assert isinstance(meta, dict)
        assert meta["radii"].dtype == torch.int32
        assert meta["radii"].shape == meta["means2d"].shape == (*meta["depths"].shape, 2)
        assert meta["conics"].shape == (*meta["depths"].shape, 3)
        assert (meta["n_cameras"], meta["n_batches"], meta["tile_size"]) == (2, 1, 16)
        assert (meta["width"], meta["height"], meta["tile_width"], meta["tile_height"]) == (40, 36, 3, 3)
        assert meta.get("absent", 5) == 5
        assert dict(meta)["isect_offsets"].shape == (2, 3, 3)
        assert all(value is not None for key, value in {**meta}.items() if packed or not key.endswith("_ids"))
    assert (meta["radii"] > 0).all()
    assert meta["opacities"].shape == meta["gaussian_ids"].shape


@pytest.mark.parametrize("packed", [False, True])
def test_blending_from_lists_matches_float64_with_every_gradient(packed: bool) -> None:
    t = scene()
    _, _, meta = gsplat.rasterization(**t, **SIZE, packed=packed)
    rows = meta["gaussian_ids"] if packed else torch.arange(100).repeat(2)
    images = meta["camera_ids"] if packed else torch.arange(2).repeat_interleave(100)
    inputs = {name: meta[name].flatten(0, -2) for name in ("means2d", "conics")}
    inputs |= {"colors": t["colors"][rows], "opacities": meta["opacities"].flatten()}
    exact = {name: tensor.double().requires_grad_() for name, tensor in inputs.items()}
    visible = (meta["radii"] > 0).all(-1).flatten()
    pictures = [
        blend(
            exact["means2d"], exact["conics"], meta["depths"].flatten().double(), exact["opacities"],
            exact["colors"], t["backgrounds"][i].double(), **SIZE, visible=visible & (images == i),
            alpha_max=0.99,
        )
        for i in range(2)
    ]  # fmt: skip
    mine = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    shaped = {n: x if packed else x.reshape(2, 100, *x.shape[1:]) for n, x in mine.items()}
    got, alpha = gsplat.rasterize_to_pixels(
        **shaped, image_width=40, image_height=36, tile_size=16, isect_offsets=meta["isect_offsets"],
        flatten_ids=meta["flatten_ids"], backgrounds=t["backgrounds"], packed=packed,
    )  # fmt: skip
    colors, _, _, safe = (torch.stack(part) for part in zip(*pictures, strict=True))
    w = weights(colors, safe)
    assert relative(got[safe], colors[safe]) <= 1e-5
    assert alpha.shape == (2, 36, 40, 1)
    (got * w).sum().backward()
    (colors * w).sum().backward()
    for name, leaf in mine.items():
        assert relative(leaf.grad, exact[name].grad) <= 1e-4, name  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="flatten_ids"):
        gsplat.rasterize_to_pixels(
            **shaped, image_width=40, image_height=36, tile_size=16, isect_offsets=meta["isect_offsets"],
            flatten_ids=meta["flatten_ids"].clone(), packed=packed,
        )  # fmt: skip


def test_a_batch_is_each_of_its_scenes() -> None:
    one, two = scene(), {name: tensor + 0.01 for name, tensor in scene().items()}
    both = leaves({name: torch.stack([one[name], two[name]])[None] for name in one})
    picture, alpha, meta = gsplat.rasterization(**both, **SIZE, packed=True, render_mode="RGB+ED")
    meta["means2d"].retain_grad()
    picture.square().sum().backward()
    assert picture.shape == (1, 2, 2, 36, 40, 4)
    for i, t in enumerate((one, two)):
        mine = leaves(t)
        alone, alone_alpha, _ = gsplat.rasterization(**mine, **SIZE, packed=False, render_mode="RGB+ED")
        alone.square().sum().backward()
        assert alone.equal(picture[0, i])
        assert alone_alpha.equal(alpha[0, i])
        for name in NAMES:
            gradient = both[name].grad
            assert gradient is not None
            assert torch.allclose(gradient[0, i], mine[name].grad, rtol=1e-5, atol=1e-6), name  # type: ignore[arg-type]


def test_sparse_gradients_are_the_dense_ones_of_what_is_visible() -> None:
    t = scene()
    t["means"][:50] += 50  # out of sight
    dense, sparse = leaves(t), leaves(t)
    gsplat.rasterization(**dense, **SIZE)[0].sum().backward()
    _, _, meta = out = gsplat.rasterization(**sparse, **SIZE, sparse_grad=True)
    out[0].sum().backward()
    for name in ("means", "quats", "scales"):
        gradient = sparse[name].grad
        assert gradient is not None
        assert gradient.is_sparse
        assert gradient.to_dense().equal(dense[name].grad)
        assert gradient.coalesce().indices()[0].equal(meta["gaussian_ids"].unique())


@pytest.mark.parametrize("given", ["quats", "covars"])
def test_what_lies_in_the_plane_of_the_camera_has_a_gradient_of_zero(given: str) -> None:
    t = scene(cameras=1)
    t["viewmats"], t["means"][0] = torch.eye(4)[None], torch.tensor([0.1, 0.2, 0.0])
    t["means"][1:, 2] += 2
    mine: dict[str, Any] = leaves(t)
    if given == "covars":
        mine |= {"quats": None, "scales": None}
        mine["covars"] = (0.01 * torch.eye(3)).repeat(100, 1, 1).requires_grad_()
    gsplat.rasterization(**mine, **SIZE, render_mode="RGB+D")[0].sum().backward()
    for name, leaf in mine.items():
        if leaf is not None and leaf.requires_grad:
            assert leaf.grad.isfinite().all(), name
            assert name in ("viewmats", "backgrounds") or not leaf.grad[0].any(), name


def test_radius_clip_leaves_out_what_is_small() -> None:
    t = scene()
    _, _, meta = gsplat.rasterization(**t, **SIZE, packed=False)
    cut = int(meta["radii"].max(-1).values.float().quantile(0.5))
    _, _, clipped = gsplat.rasterization(**t, **SIZE, packed=False, radius_clip=cut)
    assert 0 < (clipped["radii"] > 0).sum() < (meta["radii"] > 0).sum()
    assert clipped["radii"].equal(torch.where((meta["radii"] > cut).any(-1, keepdim=True), meta["radii"], 0))


def test_colours_may_be_left_out_where_only_depth_is_asked_for() -> None:
    t = scene() | {"colors": None}
    picture, _, _ = gsplat.rasterization(**t, **SIZE, render_mode="ED")
    assert picture.shape == (2, 36, 40, 1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("camera_model", "fisheye"),
        ("distributed", True),
        ("with_ut", True),
        ("with_eval3d", True),
        ("render_mode", "RGB-d"),
        ("rasterize_mode", "3dgut"),
        ("rolling_shutter", Shutter.ROLLING_TOP_TO_BOTTOM),
        ("radial_coeffs", torch.zeros(2, 6)),
        ("lidar_coeffs", object()),
        ("global_z_order", False),
    ],
)
def test_what_is_not_supported_is_named(argument: str, value: object) -> None:
    with pytest.raises(NotImplementedError, match=argument):
        gsplat.rasterization(**scene(), **SIZE, **{argument: value})


def test_each_version_has_its_own_last_arguments() -> None:
    t = scene()
    gsplat.rasterization(**t, **SIZE, return_normals=False, rolling_shutter=Shutter.GLOBAL)
    gsplat.use("1.5.3")
    with pytest.raises(TypeError, match=r"gsplat 1\.5\.3 has no argument return_normals"):
        gsplat.rasterization(**t, **SIZE, return_normals=False)
    with pytest.raises(ValueError, match=r"gsplat: expected one of 1\.5\.3, 1\.6\.0, got '2'"):
        gsplat.use("2")


@pytest.mark.parametrize("name", ["quats", "colors", "backgrounds", "viewmats", "opacities"])
def test_a_shape_that_does_not_fit_is_named(name: str) -> None:
    t = scene()
    t[name] = t[name][:, :-1] if name in ("quats", "viewmats", "backgrounds") else t[name][:-1]
    with pytest.raises(ValueError, match=name):
        gsplat.rasterization(**t, **SIZE)


def test_spherical_harmonics_are_orthonormal_and_the_oracles() -> None:
    gsplat.use("1.5.3")
    count = 120
    nodes = torch.linspace(0.5, count - 0.5, count, dtype=torch.float64) / count
    polar, around = torch.meshgrid(2 * nodes - 1, 2 * math.pi * nodes, indexing="ij")
    flat = (1 - polar**2).sqrt()
    directions = torch.stack([flat * around.cos(), flat * around.sin(), polar], -1).reshape(-1, 3)
    basis = gsplat.spherical_harmonics(4, directions, torch.eye(25).double().expand(len(directions), 25, 25))
    gram = 4 * math.pi * (basis.T @ basis) / len(directions)
    assert (gram - torch.eye(25)).abs().max() <= 5e-3
    coefficients = torch.randn(len(directions), 16, 3, dtype=torch.float64)
    got = gsplat.spherical_harmonics(3, 5 * directions, coefficients)
    assert torch.allclose(got, oracle.spherical_harmonics(directions, coefficients, 3))
    with pytest.raises(ValueError, match="sh_degree: expected 0 to 4, got 5"):
        gsplat.spherical_harmonics(5, directions, coefficients)


def test_relocation_keeps_what_a_gaussian_shows() -> None:
    """Kheradmand et al. 2024, eq. 9, term by term."""
    most = 51
    binoms = torch.tensor([[math.comb(n, k) for k in range(most)] for n in range(most)], dtype=torch.float32)
    opacities, ratios = torch.tensor([0.1, 0.6, 0.99]), torch.tensor([1, 3, 7])
    scales = torch.rand(3, 3)
    new, shrunk = gsplat.compute_relocation(opacities, scales, ratios.clone(), binoms)
    for i, n in enumerate(ratios.tolist()):
        o = 1 - (1 - opacities[i].item()) ** (1 / n)
        total = sum(
            math.comb(j - 1, k) * (-1) ** k / math.sqrt(k + 1) * o ** (k + 1)
            for j in range(1, n + 1)
            for k in range(j)
        )
        assert new[i].item() == pytest.approx(o, rel=1e-5)
        assert torch.allclose(shrunk[i], scales[i] * opacities[i] / total, rtol=1e-4)
