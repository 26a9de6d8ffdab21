"""What is haze: outside the scene's own silhouettes, or faint with nothing strong beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.scene.cameras import Cameras, look_at_origin
from ddpo3d_fast.scene.gaussians import Gaussians

HULL_VIEWS, HULL_SIZE = 24, 64


def hull_cameras() -> Cameras:
    """24 cameras on three rings around the object, level to steep."""
    turn = 2 * math.pi * torch.arange(HULL_VIEWS, dtype=torch.float64) * (math.sqrt(5) - 1) / 2
    elevation = torch.tensor([0.0, 0.35, 0.9], dtype=torch.float64).repeat(HULL_VIEWS // 3)
    return look_at_origin(turn, elevation)


def outside_hull(gaussians: Gaussians, threshold: float = 0.3) -> Tensor:
    """[N] bool: the Gaussian's centre lies, in some view, where the scene covers less than `threshold`.

    Space carving (Kutulakos and Seitz, IJCV 2000) with the scene's alpha for silhouettes: an object's own
    Gaussians lie inside all of its silhouettes, a floater outside some. Centres behind a camera or off its
    image count as outside. Raises ValueError for a threshold outside [0, 1].
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold: expected a number from 0 to 1, got {threshold}")
    cameras = hull_cameras().to(gaussians.means.device)
    alpha = gaussians.render(cameras, HULL_SIZE, HULL_SIZE).alpha
    seen = (
        torch.einsum("cij,nj->cni", cameras.viewmats[:, :3, :3], gaussians.means)
        + cameras.viewmats[:, None, :3, 3]
    )
    pixels = torch.einsum("cij,cnj->cni", cameras.intrinsics(HULL_SIZE, HULL_SIZE), seen)
    depth = pixels[..., 2]
    at = pixels[..., :2] / depth[..., None].clamp_min(1e-6) / HULL_SIZE * 2 - 1
    cover = torch.nn.functional.grid_sample(alpha[:, None], at[:, None].clamp(-2, 2), align_corners=False)[
        :, 0, 0
    ]
    return ((cover < threshold) | ~(depth > 0)).any(0)


def unsupported(
    gaussians: Gaussians, faint: float = 0.08, strong: float = 0.1, reach: float = 0.12
) -> Tensor:
    """[N] bool: the Gaussian's opacity is below `faint`, and none of opacity `strong` or more is near.

    Hundreds of faint Gaussians in one place make a silhouette of their own, which `outside_hull` believes; an
    object's own faint ones, its rim and its shading, lie on strong ones. Near is a distance of `reach` in
    scene units at most, between centres. Raises ValueError for opacities outside [0, 1] or a negative reach.
    """
    for name, value in (("faint", faint), ("strong", strong)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: expected an opacity from 0 to 1, got {value}")
    if not reach >= 0.0:
        raise ValueError(f"reach: expected 0 or more, got {reach}")
    opacities = gaussians.logit_opacities.sigmoid()
    support, alone = gaussians.means[opacities >= strong], opacities < faint
    candidates = alone.nonzero()[:, 0]
    for part in candidates.split(1024):  # so many rows of distances at a time
        near = torch.cdist(gaussians.means[part], support) <= reach
        alone[part] = ~near.any(1)
    return alone
