"""From Gaussians to what viser draws: bytes for colours, half precision for covariances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.assets import to_uint8
from ddpo3d_fast.scene.gaussians import SH_C0, Gaussians

_ROUNDING = 2.0**-11  # relative error of half precision, at most, twice over
_LEAST = 2.0**-24  # half precision's smallest positive number
_LARGEST = 65504.0


class Splats(NamedTuple):
    """The arguments of viser's `add_gaussian_splats`."""

    centers: np.ndarray  # float32 [N, 3]
    covariances: np.ndarray  # float32 [N, 3, 3], exact in half precision but for their last bit
    rgbs: np.ndarray  # uint8 [N, 3]
    opacities: np.ndarray  # uint8 [N, 1]


def packed(gaussians: Gaussians) -> Splats:
    """Gaussians as viser takes them.

    viser cuts colours off to bytes and rounds covariances to half precision, without a look at either: so
    colours are clamped and rounded here. A needle's covariance may round to one that is no covariance any
    more, and the needle would not be drawn; it is made as thick as it takes.
    """
    scales = gaussians.log_scales.double().clamp(-30, 30).exp()
    rotations = _rotations(gaussians.quats.double())
    colors = to_uint8(0.5 + SH_C0 * gaussians.sh[:, 0])
    opacities = to_uint8(gaussians.logit_opacities.sigmoid())
    return Splats(
        gaussians.means.float().cpu().numpy(),
        _representable(rotations, scales).float().cpu().numpy(),
        colors.cpu().numpy(),
        opacities[:, None].cpu().numpy(),
    )


def _representable(rotations: Tensor, scales: Tensor) -> Tensor:
    """[N, 3, 3] float64 covariances of rotations [N, 3, 3] and scales [N, 3] that half precision holds: those
    that rounding would make indefinite are thickened first."""
    longest = scales.amax(1, keepdim=True).clamp(max=_LARGEST**0.5)
    scales = torch.minimum(scales, longest)
    covariances = _covariances(rotations, scales)
    rounded = covariances.half().double()
    # Cholesky's pivots: all positive only of a covariance.
    indefinite = torch.linalg.cholesky_ex(rounded).info > 0
    if bool(indefinite.any()):
        least = longest * (3 * _ROUNDING) ** 0.5 + _LEAST**0.5 * 2
        thick = torch.where(indefinite[:, None], torch.maximum(scales, least), scales)
        covariances = _covariances(rotations, thick)
    return covariances


def _covariances(rotations: Tensor, scales: Tensor) -> Tensor:
    factors = rotations * scales[:, None]
    return factors @ factors.mT


def _rotations(quats: Tensor) -> Tensor:
    """[N, 3, 3] of quaternions [N, 4], w first, of any length; of zero no rotation."""
    norms = quats.norm(dim=1, keepdim=True)
    none = torch.tensor([1.0, 0, 0, 0], dtype=quats.dtype, device=quats.device)
    w, x, y, z = torch.where(norms > 0, quats / norms.clamp(min=1e-300), none).unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).reshape(-1, 3, 3)
