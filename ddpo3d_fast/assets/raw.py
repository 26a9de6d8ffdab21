"""Raw Gaussians, as all splat formats hold them in one coding or another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
OPAQUE = 20.0  # logit of an opacity of 1 - 2e-9: in float32 1
THIN = -30.0  # logarithm of the scale 9e-14


class PlyGaussians(NamedTuple):
    """Raw parameters in this program's world (y up), float32, in the order of `scene.Gaussians`."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] w, x, y, z
    log_scales: Tensor  # [N, 3]
    logit_opacities: Tensor  # [N]
    sh: Tensor  # [N, K, 3], K = 1, 4, 9 or 16

    @property
    def degree(self) -> int:
        """Of the harmonics, 0 to 3."""
        return (1, 4, 9, 16).index(self.sh.shape[1])

    def rows(self, chosen: slice | Tensor) -> PlyGaussians:
        """Some of the Gaussians."""
        return PlyGaussians(*(column[chosen] for column in self))


def check(gaussians: PlyGaussians) -> None:
    """Raises ValueError, which names the parameter, for a shape that does not fit, or a value that is NaN or
    infinite where that means nothing: an opacity may be infinite."""
    means, sh = gaussians.means, gaussians.sh
    count, bases = means.shape[0], sh.shape[1] if sh.dim() == 3 else 0
    shapes = ((count, 3), (count, 4), (count, 3), (count,), (count, bases, 3))
    for name, tensor, shape in zip(PlyGaussians._fields, gaussians, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        right = ~tensor.isnan() if name == "logit_opacities" else tensor.isfinite()
        if not bool(right.all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if bases not in (1, 4, 9, 16):
        raise ValueError(f"sh: expected shape ({count}, K, 3) with K 1, 4, 9 or 16, got {tuple(sh.shape)}")


def normalised(quats: Tensor) -> Tensor:
    """[N, 4] of length 1 within float32's rounding; what has it already stays as it is, to the bit. One of
    zero becomes no rotation."""
    lengths = quats.double().norm(dim=-1, keepdim=True)
    unit = torch.where((lengths - 1).abs() > 1e-6, quats / lengths, quats).to(quats)
    return torch.where(lengths > 0, unit, unit.new_tensor([1.0, 0, 0, 0]))


def finite_logits(logit_opacities: Tensor) -> Tensor:
    """Infinite opacities, which stand for an alpha of 0 or 1, as finite ones that are drawn alike."""
    return logit_opacities.nan_to_num(posinf=OPAQUE, neginf=-OPAQUE, nan=torch.nan)


def logits(alphas: Tensor) -> Tensor:
    """Opacities in [0, 1] as finite logits."""
    return finite_logits(torch.logit(alphas.double()).float())
