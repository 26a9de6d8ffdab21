"""Spherical harmonics up to degree 4 in plain torch; the kernels have those up to degree 3.

Source: Efficient Spherical Harmonic Evaluation (Sloan 2013); order and signs of 3D Gaussian Splatting.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .versions import version


def basis(degree: int, directions: Tensor) -> Tensor:
    """[..., 3] unit vectors to [..., (degree + 1)^2]."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    out = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        out += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        out += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        out += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    if degree >= 4:
        out += [
            2.5033429417967046 * x * y * (xx - yy),
            -1.7701307697799304 * y * z * (3 * xx - yy),
            0.9461746957575601 * x * y * (7 * zz - 1),
            -0.6690465435572892 * y * z * (7 * zz - 3),
            0.10578554691520431 * (35 * zz * zz - 30 * zz + 3),
            -0.6690465435572892 * x * z * (7 * zz - 3),
            0.47308734787878004 * (xx - yy) * (7 * zz - 1),
            -1.7701307697799304 * x * z * (xx - 3 * yy),
            0.6258357354491761 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
        ]
    return torch.stack(out, -1)


def evaluate(degree: int, offsets: Tensor, coefficients: Tensor) -> Tensor:
    """[..., 3] offsets of any length and [..., K, D] to [..., D]. ValueError for a degree above 4."""
    if not 0 <= degree <= 4:
        raise ValueError(f"sh_degree: expected 0 to 4, got {degree}")
    values = basis(degree, torch.nn.functional.normalize(offsets, dim=-1))
    return (values[..., None] * coefficients[..., : values.shape[-1], :]).sum(-2)


def camera_positions(viewmats: Tensor) -> Tensor:
    """[..., C, 4, 4] to [..., C, 3], by the inverse, as gsplat: its gradient, too."""
    return torch.linalg.inv(viewmats)[..., :3, 3]


def _masked(values: Tensor, masks: Tensor | None) -> Tensor:
    return values if masks is None else torch.where(masks[..., None], values, torch.zeros_like(values))


def _of_directions(
    degrees_to_use: int,
    dirs: Tensor,  # [..., 3]
    coeffs: Tensor,  # [..., K, 3]
    masks: Tensor | None = None,  # [...]
) -> Tensor:
    return _masked(evaluate(degrees_to_use, dirs, coeffs), masks)


def _of_cameras(
    degrees_to_use: int,
    means: Tensor,  # [..., N, 3]
    viewmats: Tensor,  # [..., C, 4, 4]
    coeffs: Tensor,  # [N, K, D]
    masks: Tensor | None = None,  # [..., C, N] or [nnz]
    batch_ids: Tensor | None = None,  # [nnz]
    camera_ids: Tensor | None = None,  # [nnz]
    gaussian_ids: Tensor | None = None,  # [nnz]
    viewmats_rs: Tensor | None = None,
) -> Tensor:
    if viewmats_rs is not None:
        raise NotImplementedError("viewmats_rs: rolling shutter is not supported")
    positions = camera_positions(viewmats)
    if gaussian_ids is None:
        offsets = means[..., None, :, :] - positions[..., None, :]
        return _masked(evaluate(degrees_to_use, offsets, coeffs), masks)
    batches = torch.zeros_like(gaussian_ids) if batch_ids is None else batch_ids
    of_means = means.reshape(-1, *means.shape[-2:])[batches, gaussian_ids]
    of_cameras = positions.reshape(-1, *positions.shape[-2:])[batches, camera_ids]
    return _masked(evaluate(degrees_to_use, of_means - of_cameras, coeffs[gaussian_ids]), masks)


def spherical_harmonics(*arguments: object, **named: object) -> Tensor:
    """gsplat's function of this name, with the arguments of the version that is meant.

    1.5.3: (degrees_to_use, dirs [..., 3], coeffs [..., K, 3], masks=None) -> [..., 3].
    1.6.0: (degrees_to_use, means [..., N, 3], viewmats [..., C, 4, 4], coeffs [N, K, D], masks=None,
    batch_ids=None, camera_ids=None, gaussian_ids=None, viewmats_rs=None) -> [..., C, N, D] or [nnz, D].
    Degrees 0 to 4; zero where `masks` is False. ValueError for another degree.
    """
    function = _of_directions if version().startswith("1.5") else _of_cameras
    return function(*arguments, **named)  # type: ignore[arg-type]
