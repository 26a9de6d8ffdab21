"""The drop-ins on the CUDA sources, run by the emulator: other rasterizers' conventions hold there, too."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from compat import test_diff_gaussian_rasterization as original
from compat import test_gsplat

from ddpo3d_fast.compat import diff_gaussian_rasterization, gsplat


@pytest.fixture(autouse=True)
def versions(emulated: ModuleType) -> Iterator[None]:
    """Which conventions the drop-ins follow here."""
    gsplat.use("1.6.0")
    diff_gaussian_rasterization.use("depth-alpha")
    yield
    gsplat.use(None)
    diff_gaussian_rasterization.use("original")


def gradients(which: str) -> list[torch.Tensor]:
    """Of everything, and what is on the way to it."""
    if which == "gsplat":
        t = test_gsplat.leaves(test_gsplat.scene(antialiased=True))
        picture, _, meta = gsplat.rasterization(**t, **test_gsplat.SIZE, packed=False, absgrad=True)
        picture.square().sum().backward()
        return [*(t[name].grad for name in test_gsplat.NAMES), meta["means2d"].absgrad, meta["radii"]]  # type: ignore[list-item]
    settings = original.settings(antialiasing=True)
    t = original.gaussians()
    t["opacities"][::3] = 1.0  # some are clamped
    if which == "covariances":
        root = original.matrices(t.pop("rotations")) * t.pop("scales")[:, None]
        t["cov3D_precomp"] = (root @ root.mT).flatten(1)[:, [0, 1, 2, 4, 5, 8]].contiguous()
    t = {name: tensor.requires_grad_() for name, tensor in t.items()}
    means2d = torch.zeros_like(t["means3D"], requires_grad=True)
    color, radii, depth, _ = diff_gaussian_rasterization.GaussianRasterizer(settings)(means2D=means2d, **t)
    (color.square().sum() + depth.sum()).backward()
    return [*(tensor.grad for tensor in t.values()), means2d.grad, radii]  # type: ignore[list-item]


@pytest.mark.parametrize("which", ["gsplat", "original", "covariances"])
def test_any_order_of_threads_and_blocks_gives_the_same_bits(simt: ModuleType, which: str) -> None:
    expected = gradients(which)
    for seed in range(1, 3):
        simt.set_order(seed, "shuffled")
        for mine, reference in zip(gradients(which), expected, strict=True):
            assert mine.equal(reference)


@pytest.mark.parametrize("which", ["gsplat", "original", "covariances"])
def test_the_two_backends_agree(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated: list[Any] = gradients(which)
    monkeypatch.undo()
    for mine, reference in zip(emulated, gradients(which), strict=True):
        assert (mine - reference).double().norm() <= 1e-5 * reference.double().norm()
