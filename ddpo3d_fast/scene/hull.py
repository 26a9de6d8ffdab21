"""What does not belong to the object: haze outside the scene's own silhouettes, and clumps apart from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.scene.cameras import Cameras, look_at_origin
from ddpo3d_fast.scene.gaussians import Gaussians

HULL_VIEWS, HULL_SIZE = 24, 64
MAX_CELLS = 80  # cubes on either side of the middle; below 2^24 in all, which float32 numbers exactly


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


def islands(gaussians: Gaussians, reach: float = 0.05, share: float = 0.03) -> Tensor:
    """[N] bool: the Gaussian is in a clump that nothing joins to the object, and that is small beside it.

    Centres are sorted into cubes of side `reach` (world units); cubes that touch, corners included, are one
    component. Small are those of fewer cubes than `share` of the largest's: however many Gaussians have
    piled up in one place, they fill few cubes. The hull cannot tell such a clump, since it is opaque itself.
    Raises ValueError for a reach that is not positive or a share outside [0, 1].
    """
    if not reach > 0:
        raise ValueError(f"reach: expected a positive number, got {reach}")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: expected a number from 0 to 1, got {share}")
    means = gaussians.means
    if not len(means):
        return torch.zeros(0, dtype=torch.bool, device=means.device)
    places = ((means - means.nanmedian(0).values) / reach).nan_to_num()
    cells = places.round().clamp(-MAX_CELLS, MAX_CELLS).long()
    cells = cells - cells.min(0).values + 1  # an empty border
    x, y, z = cells.unbind(1)
    filled = torch.zeros((cells.max(0).values + 2).tolist(), dtype=torch.bool, device=means.device)
    filled[x, y, z] = True
    # Every cube takes the largest number among its neighbours' until none changes.
    number = torch.arange(1, filled.numel() + 1, device=means.device).view(filled.shape).float() * filled
    while True:
        spread = torch.nn.functional.max_pool3d(number[None, None], 3, 1, 1)[0, 0] * filled
        if spread.equal(number):
            break
        number = spread
    names, sizes = number[filled].unique(return_counts=True)
    small = sizes < share * sizes.max()
    return small[torch.searchsorted(names, number[x, y, z])]
