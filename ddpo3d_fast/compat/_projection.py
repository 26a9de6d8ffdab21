"""The projection in plain torch, where a peer's function or an argument asks for its parts.

Source: EWA splatting (Zwicker et al. 2002), eq. 25-31, as csrc/maths/camera.h has it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quaternion_matrices(quats: Tensor) -> Tensor:
    """[..., 4] (w, x, y, z), taken as they are, to [..., 3, 3]."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*quats.shape[:-1], 3, 3)


def symmetric(triangle: Tensor) -> Tensor:
    """[..., 6] (xx, xy, xz, yy, yz, zz) to [..., 3, 3]."""
    return triangle[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(*triangle.shape[:-1], 3, 3)


def to_camera(means: Tensor, viewmats: Tensor) -> Tensor:
    """[..., N, 3] in the world and [..., C, 4, 4] to [..., C, N, 3] before the cameras."""
    rotated = means.unsqueeze(-3) @ viewmats[..., :3, :3].transpose(-1, -2)
    return rotated + viewmats[..., None, :3, 3]


def pinhole_means(points: Tensor, intrinsics: Tensor, near: float) -> Tensor:
    """[..., C, N, 3] before the cameras to [..., C, N, 2] in pixels. What is not beyond `near`, and is not
    drawn, has some finite place and no gradient."""
    z = points[..., 2]
    z = torch.where(z > near, z, torch.ones_like(z))
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)[..., None, :]
    return points[..., :2] / z[..., None] * focal + intrinsics[..., None, :2, 2]


def pinhole_covariances(
    points: Tensor,  # [..., C, N, 3]
    covars: Tensor,  # [..., C, N, 3, 3] before the cameras
    intrinsics: Tensor,  # [..., C, 3, 3]
    width: int,
    height: int,
    near: float,
) -> Tensor:
    """[..., C, N, 3]: xx, xy, yy in px^2. x/z and y/z are clamped to the image and 0.15 of it on a side."""
    x, y, z = points.unbind(-1)
    z = torch.where(z > near, z, torch.ones_like(z))
    fx, fy = intrinsics[..., 0, 0, None], intrinsics[..., 1, 1, None]
    cx, cy = intrinsics[..., 0, 2, None], intrinsics[..., 1, 2, None]

    def clamped(slope: Tensor, center: Tensor, extent: int, focal: Tensor) -> Tensor:
        low, high = -(center + 0.15 * extent) / focal, (1.15 * extent - center) / focal
        return torch.minimum(torch.maximum(slope, low), high)

    slope_x, slope_y = clamped(x / z, cx, width, fx), clamped(y / z, cy, height, fy)
    zero = torch.zeros_like(z)
    row_x = torch.stack([fx / z, zero, -fx * slope_x / z], -1)
    row_y = torch.stack([zero, fy / z, -fy * slope_y / z], -1)
    of_x, of_y = (covars @ row_x[..., None])[..., 0], (covars @ row_y[..., None])[..., 0]
    return torch.stack([(row_x * of_x).sum(-1), (row_x * of_y).sum(-1), (row_y * of_y).sum(-1)], -1)


def rotated_covariances(covars: Tensor, viewmats: Tensor) -> Tensor:
    """[..., N, 3, 3] in the world and [..., C, 4, 4] to [..., C, N, 3, 3] before the cameras."""
    rotation = viewmats[..., None, :3, :3]
    return rotation @ covars.unsqueeze(-4) @ rotation.transpose(-1, -2)


def footprint(covariances2d: Tensor, eps2d: float, factor_min: float) -> tuple[Tensor, Tensor]:
    """[..., 3] (xx, xy, yy) to the dilated ones' inverses [..., 3], and what an antialiased opacity is
    multiplied by [...]."""
    xx, xy, yy = covariances2d.unbind(-1)
    det = xx * yy - xy * xy
    dilated = det + eps2d * (xx + yy) + eps2d * eps2d
    dilated = dilated.clamp(min=1e-10)
    conics = torch.stack([(yy + eps2d) / dilated, -xy / dilated, (xx + eps2d) / dilated], -1)
    factors = (det / dilated).clamp(min=max(factor_min * factor_min, 1e-14)).sqrt()
    return conics, factors
