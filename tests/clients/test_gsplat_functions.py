"""`ddpo3d_fast.compat.gsplat` against gsplat's own torch functions (1.5.3), with a dense float64 blend."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from compat.dense import blend, relative
from kernels.scenes import random_scene
from torch import Tensor

from ddpo3d_fast.compat import gsplat as ours

pytestmark = pytest.mark.clients

LIMIT = 1e-4  # relative L2
NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    return pytest.importorskip("gsplat.cuda._torch_impl")


@pytest.fixture(autouse=True)
def version() -> Iterator[None]:
    ours.use("1.5.3")
    yield
    ours.use(None)


def scene(
    channels: int = 3, cameras: int = 2, sh_degree: int | None = None, **settings: Any
) -> dict[str, Any]:
    made = random_scene(
        7,
        count=150,
        cameras=cameras,
        width=40,
        height=36,
        scale=(0.01, 0.3),
        opacity=(0.05, 1.0),
        sh_degree=sh_degree,
    )
    tensors = {name: made.tensors[name] for name in NAMES} | {"Ks": made.tensors["intrinsics"]}
    if channels != 3:
        g = torch.Generator().manual_seed(1)
        tensors["colors"] = torch.rand(150, channels, generator=g)
        tensors["backgrounds"] = torch.rand(cameras, channels, generator=g)
    return tensors


def expected(
    theirs: ModuleType,
    t: dict[str, Tensor],
    mode: str,
    antialiased: bool,
    sh_degree: int | None,
    **settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colours [C, H, W, X], alpha [C, H, W, 1], which pixels are safe [C, H, W], means on the image."""
    covars = (
        t["covars"].triu() + t["covars"].triu(1).mT
        if "covars" in t
        else theirs._quat_scale_to_covar_preci(t["quats"], t["scales"], True, False)[0]
    )
    radii, means2d, depths, conics, factors = theirs._fully_fused_projection(
        t["means"], covars, t["viewmats"], t["Ks"], 40, 36, calc_compensations=antialiased, **settings
    )
    if means2d.requires_grad:
        means2d.retain_grad()
    pictures = []
    for c in range(len(t["viewmats"])):
        opacities = t["opacities"] * (factors[c] if antialiased else 1)
        if sh_degree is None:
            colors = t["colors"] if t["colors"].dim() == 2 else t["colors"][c]
        else:
            offsets = t["means"] - torch.inverse(t["viewmats"])[c, :3, 3]
            colors = (theirs._spherical_harmonics(sh_degree, offsets, t["colors"]) + 0.5).clamp(min=0)
        pictures.append(
            blend(
                means2d[c], conics[c], depths[c], opacities, colors, t["backgrounds"][c], 40, 36,
                visible=(radii[c] > 0).all(-1), alpha_max=0.999,
            )
        )  # fmt: skip
    colors, alpha, depth, safe = (torch.stack(parts) for parts in zip(*pictures, strict=True))
    alpha, depth = alpha[..., None], depth[..., None]
    parts = [colors] if mode.startswith("RGB") else []
    if mode != "RGB":
        parts.append(depth / alpha.clamp(min=1e-10) if mode.endswith("ED") else depth)
    return torch.cat(parts, -1), alpha, safe, means2d


def compare(
    theirs: ModuleType,
    t: dict[str, Tensor],
    mode: str = "RGB",
    antialiased: bool = False,
    sh_degree: int | None = None,
    packed: bool = False,
    **settings: Any,
) -> None:
    exact = {name: tensor.double().requires_grad_(name != "Ks") for name, tensor in t.items()}
    colors, alpha, safe, means2d = expected(theirs, exact, mode, antialiased, sh_degree, **settings)
    leaves = {name: tensor.clone().requires_grad_(name != "Ks") for name, tensor in t.items()}
    if "covars" in t:
        leaves |= {"quats": None, "scales": None}  # type: ignore[dict-item]
    got_colors, got_alpha, meta = ours.rasterization(
        **leaves, width=40, height=36, sh_degree=sh_degree, packed=packed, render_mode=mode,
        rasterize_mode="antialiased" if antialiased else "classic", **settings,
    )  # fmt: skip
    meta["means2d"].retain_grad()
    assert safe.double().mean() > 0.9
    assert relative(got_colors[safe], colors[safe]) <= LIMIT
    assert relative(got_alpha[safe], alpha[safe]) <= LIMIT
    g = torch.Generator().manual_seed(2)
    weight = torch.randn(colors.shape, generator=g, dtype=torch.float64) * safe[..., None]
    weight_alpha = torch.randn(alpha.shape, generator=g, dtype=torch.float64) * safe[..., None]
    ((colors * weight).sum() + (alpha * weight_alpha).sum()).backward()
    ((got_colors * weight.float()).sum() + (got_alpha * weight_alpha.float()).sum()).backward()
    for name, leaf in leaves.items():
        wanted = exact[name].grad if name in exact else None
        if leaf is None or wanted is None or not wanted.any():
            continue
        assert leaf.grad is not None, name
        assert relative(leaf.grad, wanted) <= LIMIT, name
    assert means2d.grad is not None
    of_means2d = meta["means2d"].grad
    if packed:
        assert relative(of_means2d, means2d.grad[meta["camera_ids"], meta["gaussian_ids"]]) <= LIMIT
    else:
        assert relative(of_means2d, means2d.grad) <= LIMIT


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_every_mode_agrees(theirs: ModuleType, mode: str, antialiased: bool, packed: bool) -> None:
    compare(theirs, scene(), mode, antialiased, packed=packed)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_spherical_harmonics_agree(theirs: ModuleType, degree: int) -> None:
    t = scene(sh_degree=3)
    t["colors"] = 0.5 * torch.randn(150, 25, 3, generator=torch.Generator().manual_seed(3))
    compare(theirs, t, "RGB+ED", sh_degree=degree)


@pytest.mark.parametrize("channels", [1, 2, 5, 32, 40])
def test_any_number_of_channels_agrees(theirs: ModuleType, channels: int) -> None:
    compare(theirs, scene(channels), "RGB+D")


def test_colours_of_each_camera_agree(theirs: ModuleType) -> None:
    t = scene()
    t["colors"] = torch.rand(2, 150, 3, generator=torch.Generator().manual_seed(4))
    compare(theirs, t, packed=True)


@pytest.mark.parametrize("antialiased", [False, True])
def test_covariances_agree(theirs: ModuleType, antialiased: bool) -> None:
    t = scene()
    root = 0.1 * torch.randn(150, 3, 3, generator=torch.Generator().manual_seed(5))
    t["covars"] = root @ root.transpose(1, 2)
    compare(theirs, t, "RGB+D", antialiased)


@pytest.mark.parametrize("settings", [{"eps2d": 0.05}, {"eps2d": 1.5}, {"near_plane": 1.8, "far_plane": 2.3}])
def test_dilation_and_planes_agree(theirs: ModuleType, settings: dict[str, float]) -> None:
    compare(theirs, scene(), "RGB+D", True, **settings)


def test_projection_agrees(theirs: ModuleType) -> None:
    t = {name: tensor.clone().requires_grad_() for name, tensor in scene().items()}
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in t.items()}
    covars, _ = theirs._quat_scale_to_covar_preci(exact["quats"], exact["scales"], True, False)
    wanted = theirs._fully_fused_projection(
        exact["means"], covars, exact["viewmats"], exact["Ks"], 40, 36, calc_compensations=True
    )
    got = ours.fully_fused_projection(
        t["means"], None, t["quats"], t["scales"], t["viewmats"], t["Ks"], 40, 36, calc_compensations=True
    )
    seen = (wanted[0] > 0).all(-1)
    assert ((got[0] - wanted[0]).abs() <= 1)[seen].all()
    loss = exact_loss = torch.zeros(())
    for mine, reference in zip(got[1:], wanted[1:], strict=True):
        assert relative(mine[seen], reference[seen]) <= LIMIT
        weight = torch.randn(reference[seen].shape, generator=torch.Generator().manual_seed(6))
        loss = loss + (mine[seen] * weight).sum()
        exact_loss = exact_loss + (reference[seen] * weight).sum()
    loss.backward()
    exact_loss.backward()
    for name in ("means", "quats", "scales", "viewmats"):
        gradient = t[name].grad
        assert gradient is not None
        assert relative(gradient, exact[name].grad) <= LIMIT, name  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
def test_lists_and_blending_from_them_agree(theirs: ModuleType, packed: bool) -> None:
    t = scene()
    _, _, meta = ours.rasterization(**t, width=40, height=36, packed=False)
    wanted = theirs._isect_tiles(meta["means2d"], meta["radii"], meta["depths"], 16, 3, 3)
    for mine, reference in zip(
        (meta["tiles_per_gauss"], meta["isect_ids"], meta["flatten_ids"]), wanted, strict=True
    ):
        assert torch.equal(mine, reference)
    assert torch.equal(meta["isect_offsets"], theirs._isect_offset_encode(wanted[1], 2, 3, 3))
    picture, alpha, meta = ours.rasterization(**t, width=40, height=36, packed=packed)
    colors = t["colors"][meta["gaussian_ids"]] if packed else t["colors"].expand(2, -1, -1)
    again, again_alpha = ours.rasterize_to_pixels(
        meta["means2d"], meta["conics"], colors, meta["opacities"], 40, 36, 16, meta["isect_offsets"],
        meta["flatten_ids"], backgrounds=t["backgrounds"], packed=packed,
    )  # fmt: skip
    assert relative(again, picture.double()) <= 1e-5
    assert relative(again_alpha, alpha.double()) <= 1e-5
