"""What is haze: outside the scene's own silhouettes, or faint with nothing strong beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.scene.cameras import Cameras, look_at_origin
from ddpo3d_fast.scene.gaussians import Gaussians

HULL_VIEWS, HULL_SIZE = 24, 64
COVER = 0.3  # alpha below which a view shows nothing
FAINT, STRONG = 0.08, 0.1  # an opacity below the one needs support, one of the other or more gives it
REACH = 0.12  # of the support, between centres, scene units


def hull_cameras() -> Cameras:
    """24 cameras on three rings around the object, level to steep."""
    turn = 2 * math.pi * torch.arange(HULL_VIEWS, dtype=torch.float64) * (math.sqrt(5) - 1) / 2
    elevation = torch.tensor([0.0, 0.35, 0.9], dtype=torch.float64).repeat(HULL_VIEWS // 3)
    return look_at_origin(turn, elevation)


def outside_hull(gaussians: Gaussians) -> Tensor:
    """[N] bool: the Gaussian's centre lies, in some view, where the scene covers less than COVER.

    Space carving (Kutulakos and Seitz, IJCV 2000) with the scene's alpha for silhouettes: an object's own
    Gaussians lie inside all of its silhouettes, a floater outside some. Centres behind a camera or off its
    image count as outside.
    """
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
    return ((cover < COVER) | ~(depth > 0)).any(0)


def unsupported(gaussians: Gaussians) -> Tensor:
    """[N] bool: the Gaussian's opacity is below FAINT, and none of opacity STRONG or more is near.

    Hundreds of faint Gaussians in one place make a silhouette of their own, which `outside_hull` believes; an
    object's own faint ones, its rim and its shading, lie on strong ones. Near is a distance of REACH at most.
    """
    opacities = gaussians.logit_opacities.sigmoid()
    support, alone = gaussians.means[opacities >= STRONG], opacities < FAINT
    candidates = alone.nonzero()[:, 0]
    for part in candidates.split(1024):  # so many rows of distances at a time
        near = torch.cdist(gaussians.means[part], support) <= REACH
        alone[part] = ~near.any(1)
    return alone
