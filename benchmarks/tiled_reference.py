"""A rasterizer in plain torch, tile by tile: what one has without kernels, the yardstick of rasterizer.py.

Float32, gradients by autograd, the conventions of `ddpo3d_fast.kernels.rasterize`, one camera, plain colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 16


def rotation_matrices(quats: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def rasterize(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3]
    viewmats: Tensor,  # [1, 4, 4]
    intrinsics: Tensor,  # [1, 3, 3]
    width: int,
    height: int,
    backgrounds: Tensor,  # [1, 3]
) -> tuple[Tensor, int]:
    """The image [H, W, 3], and how many times a Gaussian contributed to a pixel."""
    rotation, translation, k = viewmats[0, :3, :3], viewmats[0, :3, 3], intrinsics[0]
    points = means @ rotation.T + translation
    order = points[:, 2].detach().argsort(stable=True)
    order = order[points[order, 2] > 0.01]
    x, y, z = points[order].unbind(-1)
    xy = torch.stack([k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]], -1)
    limit_x, limit_y = 0.65 * width / k[0, 0], 0.65 * height / k[1, 1]
    zero = torch.zeros_like(z)
    slope_x, slope_y = (x / z).clamp(-limit_x, limit_x), (y / z).clamp(-limit_y, limit_y)
    rows = [k[0, 0] / z, zero, -k[0, 0] * slope_x / z, zero, k[1, 1] / z, -k[1, 1] * slope_y / z]
    spread = (
        torch.stack(rows, -1).reshape(-1, 2, 3)
        @ rotation
        @ (rotation_matrices(quats[order]) * scales[order][:, None])
    )
    covariance = spread @ spread.transpose(1, 2)
    a, b, c = covariance[:, 0, 0] + 0.3, covariance[:, 0, 1], covariance[:, 1, 1] + 0.3
    det = a * c - b * b
    conic = torch.stack([c / det, -b / det, a / det], -1)
    color, opacity = colors[order], opacities[order]

    with torch.no_grad():  # opacity-tight bounding boxes
        reach = (2 * (255 * opacity).log()).clamp(min=0).sqrt()
        half = torch.stack([reach * a.sqrt(), reach * c.sqrt()], -1)
        low, high = xy - half, xy + half

    contributions, bands = 0, []
    for top in range(0, height, TILE):
        in_band = ((high[:, 1] >= top) & (low[:, 1] <= top + TILE)).nonzero()[:, 0]
        band = []
        for left in range(0, width, TILE):
            index = in_band[(high[in_band, 0] >= left) & (low[in_band, 0] <= left + TILE)]
            ys, xs = torch.meshgrid(
                torch.arange(top, min(top + TILE, height)),
                torch.arange(left, min(left + TILE, width)),
                indexing="ij",
            )
            pixels = torch.stack([xs, ys], -1).reshape(-1, 2) + 0.5
            dx, dy = (pixels[:, None] - xy[index]).unbind(-1)
            q = conic[index]
            power = 0.5 * (q[:, 0] * dx * dx + q[:, 2] * dy * dy) + q[:, 1] * dx * dy
            alpha = (opacity[index] * torch.exp(-power)).clamp(max=0.99)
            alpha = torch.where(alpha >= 1 / 255, alpha, 0)
            after = torch.cumprod(1 - alpha, 1)
            before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
            weight = torch.where(after > 1e-4, alpha * before, 0)
            contributions += int((weight.detach() > 0).sum())
            image = weight @ color[index] + (1 - weight.sum(1, keepdim=True)) * backgrounds
            band.append(image.reshape(*xs.shape, 3))
        bands.append(torch.cat(band, 1))
    return torch.cat(bands, 0), contributions
