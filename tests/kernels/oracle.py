"""The rasterizer's specification: plain torch in float64, every pixel against every Gaussian, by autograd.

Independent of csrc/maths: straight from the papers' formulas, with no tile, no tight bound and no early end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 2e-5  # relative distance to a cut-off below which float32 may decide otherwise


class OracleRender(NamedTuple):
    rgb: Tensor  # [C, H, W, 3] float64
    alpha: Tensor  # [C, H, W]
    depth: Tensor  # [C, H, W]
    safe: Tensor  # [C, H, W] bool: no cut-off decision of this pixel lies within float32 rounding


def spherical_harmonics(directions: Tensor, coefficients: Tensor, degree: int) -> Tensor:
    """[N, 3] unit vectors, [N, K, 3] coefficients to [N, 3]; order and signs of 3D Gaussian Splatting."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [0.28209479177387814 * torch.ones_like(x)]
    if degree >= 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.einsum("nk,nkc->nc", torch.stack(basis, -1), coefficients[:, : len(basis)])


def rotation_matrices(quats: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def near_cut(value: Tensor, cut: float) -> Tensor:
    return (value - cut).abs() <= ROUNDING * cut


def render_view(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmat: Tensor,  # [4, 4]
    intrinsic: Tensor,  # [3, 3]
    width: int,
    height: int,
    sh_degree: int | None,
    background: Tensor,  # [3]
    near: float,
    far: float,
    antialiased: bool,
    offsets: Tensor,  # [N, 2]
) -> tuple[Tensor, ...]:
    """One camera; everything float64 and finite."""
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    points = means @ rotation.T + translation
    kept = (points[:, 2] > near) & (points[:, 2] < far)
    index = kept.nonzero()[:, 0]
    index = index[points[index, 2].float().argsort(stable=True)]
    x, y, z = points[index].unbind(-1)
    fx, fy, cx, cy = intrinsic[0, 0], intrinsic[1, 1], intrinsic[0, 2], intrinsic[1, 2]
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1) + offsets[index]

    margin_x, margin_y = 0.15 * width, 0.15 * height
    slope_x = torch.minimum(torch.maximum(x / z, -(cx + margin_x) / fx), (width - cx + margin_x) / fx)
    slope_y = torch.minimum(torch.maximum(y / z, -(cy + margin_y) / fy), (height - cy + margin_y) / fy)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], -1)
    spread = (
        jacobian.reshape(-1, 2, 3)
        @ rotation
        @ rotation_matrices(quats[index])
        @ torch.diag_embed(scales[index])
    )
    covariance = spread @ spread.transpose(1, 2)
    dilated = covariance + 0.3 * torch.eye(2, dtype=means.dtype)
    det = (torch.linalg.cross(spread[:, 0], spread[:, 1]) ** 2).sum(-1)
    trace = covariance[:, 0, 0] + covariance[:, 1, 1]
    dilated_det = det + 0.3 * trace + 0.09
    opacity = opacities[index]
    if antialiased:
        opacity = opacity * (det / dilated_det).sqrt()

    if sh_degree is None:
        color = colors[index]
    else:
        directions = torch.nn.functional.normalize(means[index] + translation @ rotation, dim=-1)
        color = (spherical_harmonics(directions, colors[index], sh_degree) + 0.5).clamp(min=0)

    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns, rows], -1).reshape(-1, 2).to(means.dtype) + 0.5
    dx, dy = (pixels[:, None] - means2d[None]).unbind(-1)  # [P, M]
    # d^T inverse(dilated) d, as a sum of squares (Cholesky): needles keep their digits
    along = dx - dilated[:, 0, 1] / dilated[:, 1, 1] * dy
    power = 0.5 * (dilated[:, 1, 1] / dilated_det * along**2 + dy**2 / dilated[:, 1, 1])
    raw = opacity * torch.exp(-power)
    alpha = torch.where(raw >= 1 / 255, raw.clamp(max=0.99), torch.zeros_like(raw))
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    live = (after > 1e-4).detach()  # once below it stays below
    weight = torch.where(live, alpha * before, torch.zeros_like(alpha))
    transmittance = torch.where(live, 1 - alpha, torch.ones_like(alpha)).prod(1)
    rgb = weight @ color + transmittance[:, None] * background

    # Decisions about a Gaussian behind the stop do not count.
    reached = (before > 1e-4 * (1 - ROUNDING)).detach()
    unsafe = near_cut(raw, 1 / 255) | near_cut(raw, 0.99) | (near_cut(after, 1e-4) & (raw >= 1 / 255))
    safe = ~(unsafe & reached).any(1)
    shape = (height, width)
    depth = (weight @ z).reshape(shape)
    return rgb.reshape(*shape, 3), 1 - transmittance.reshape(shape), depth, safe.reshape(shape)


def render(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    near: float = 0.01,
    far: float = 1e10,
    antialiased: bool = False,
    means2d_offsets: Tensor | None = None,
) -> OracleRender:
    """What `ddpo3d_fast.kernels.rasterize` promises, from float64 tensors."""
    if backgrounds is None:
        backgrounds = means.new_zeros(len(viewmats), 3)
    if means2d_offsets is None:
        means2d_offsets = means.new_zeros(len(viewmats), len(means), 2)
    views = [
        render_view(
            means, quats, scales, opacities, colors, viewmat, intrinsic, width, height, sh_degree,
            background, near, far, antialiased, offsets,
        )
        for viewmat, intrinsic, background, offsets in zip(
            viewmats, intrinsics, backgrounds, means2d_offsets, strict=True
        )
    ]  # fmt: skip
    return OracleRender(*(torch.stack(parts) for parts in zip(*views, strict=True)))
