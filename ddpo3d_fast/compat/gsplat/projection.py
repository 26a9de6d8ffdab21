"""gsplat's projection functions, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .._projection import (
    footprint,
    pinhole_covariances,
    pinhole_means,
    quaternion_matrices,
    rotated_covariances,
    symmetric,
    to_camera,
)
from .versions import VERSIONS, version

TRIANGLE = [0, 1, 2, 4, 5, 8]  # xx, xy, xz, yy, yz, zz of nine


def quat_scale_to_covar_preci(
    quats: Tensor,  # [..., 4]
    scales: Tensor,  # [..., 3]
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Covariances and their inverses, [..., 3, 3], or with `triu` [..., 6]."""
    rotation = quaternion_matrices(normalize(quats, dim=-1))

    def product(factors: Tensor) -> Tensor:
        root = rotation * factors[..., None, :]
        out = root @ root.transpose(-1, -2)
        return out.flatten(-2)[..., TRIANGLE] if triu else out

    return product(scales) if compute_covar else None, product(1 / scales) if compute_preci else None


def world_to_cam(
    means: Tensor,  # [..., N, 3]
    covars: Tensor,  # [..., N, 3, 3]
    viewmats: Tensor,  # [..., C, 4, 4]
) -> tuple[Tensor, Tensor]:
    """[..., C, N, 3] and [..., C, N, 3, 3] before the cameras."""
    return to_camera(means, viewmats), rotated_covariances(covars, viewmats)


def expect_pinhole(camera_model: str) -> None:
    """NotImplementedError for another camera."""
    if camera_model != "pinhole":
        raise NotImplementedError(f"camera_model: expected 'pinhole', got {camera_model!r}")


def proj(
    means: Tensor,  # [..., C, N, 3]
    covars: Tensor,  # [..., C, N, 3, 3]
    Ks: Tensor,  # [..., C, 3, 3]
    width: int,
    height: int,
    camera_model: str = "pinhole",
) -> tuple[Tensor, Tensor]:
    """[..., C, N, 2] and [..., C, N, 2, 2] on the images."""
    expect_pinhole(camera_model)
    xx, xy, yy = pinhole_covariances(means, covars, Ks, width, height, 0.0).unbind(-1)
    covars2d = torch.stack([xx, xy, xy, yy], -1).reshape(*xx.shape, 2, 2)
    return pinhole_means(means, Ks, 0.0), covars2d


def project(
    means: Tensor,
    covars: Tensor,  # [..., N, 3, 3]
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float,
    near: float,
) -> tuple[Tensor, ...]:
    """Means [..., C, N, 2], depths [..., C, N], covariances [..., C, N, 3], conics, opacity factors."""
    points = to_camera(means, viewmats)
    covars2d = pinhole_covariances(points, rotated_covariances(covars, viewmats), Ks, width, height, near)
    conics, factors = footprint(covars2d, eps2d, VERSIONS[version()].rules.factor_min)
    return pinhole_means(points, Ks, near), points[..., 2], covars2d, conics, factors


def fully_fused_projection(
    means: Tensor,  # [..., N, 3]
    covars: Tensor | None,  # [..., N, 6]
    quats: Tensor | None,  # [..., N, 4]
    scales: Tensor | None,  # [..., N, 3]
    viewmats: Tensor,  # [..., C, 4, 4]
    Ks: Tensor,  # [..., C, 3, 3]
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    sparse_grad: bool = False,
    calc_compensations: bool = False,
    camera_model: str = "pinhole",
    opacities: Tensor | None = None,  # [..., N]
) -> tuple[Any, ...]:
    """gsplat's function of this name: radii [..., C, N, 2] int32, means2d, depths, conics, compensations, or
    with `packed` batch_ids, camera_ids, gaussian_ids and the same of what is visible, [nnz, ...].

    Raises: NotImplementedError for another camera than a pinhole, and for sparse_grad.
    """
    expect_pinhole(camera_model)
    if sparse_grad:
        raise NotImplementedError("sparse_grad: in rasterization() only")
    if covars is not None:
        matrices = symmetric(covars)
    else:
        if quats is None or scales is None:
            raise ValueError("covars, or quats and scales: expected one of them")
        full, _ = quat_scale_to_covar_preci(quats, scales, True, False)
        assert full is not None
        matrices = full
    means2d, depths, covars2d, conics, factors = project(
        means, matrices, viewmats, Ks, width, height, eps2d, near_plane
    )
    with torch.no_grad():
        extent = torch.full_like(depths, 3.33)
        seen = (depths > near_plane) & (depths < far_plane)
        if opacities is not None:
            shown = opacities[..., None, :] * (factors if calc_compensations else 1.0)
            seen &= shown >= 1 / 255
            extent = torch.minimum(extent, (2 * (255 * shown).clamp(min=1).log()).sqrt())
        radii = (extent[..., None] * (covars2d[..., [0, 2]] + eps2d).sqrt()).ceil()
        size = torch.tensor([width, height], device=means.device)
        seen &= (radii > radius_clip).any(-1)
        seen &= ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
        radii = torch.where(seen[..., None], radii, torch.zeros_like(radii)).int()
    compensations = factors if calc_compensations else None
    if not packed:
        return radii, means2d, depths, conics, compensations
    cameras, count = depths.shape[-2:]
    batch_ids, camera_ids, gaussian_ids = seen.reshape(-1, cameras, count).nonzero(as_tuple=True)

    def visible(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.reshape(-1, *tensor.shape[depths.dim() - 2 :])[batch_ids, camera_ids, gaussian_ids]

    ids = (batch_ids, camera_ids, gaussian_ids)
    return (*ids, *(visible(tensor) for tensor in (radii, means2d, depths, conics, compensations)))
