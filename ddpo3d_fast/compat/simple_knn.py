"""`simple_knn._C.distCUDA2` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3
_BLOCK, _WINDOW = 256, 512  # points that ask together; to how many on either side at first


def _nearest(points: Tensor, begin: int, end: int) -> Tensor:
    """Squared distances [end - begin, 3] of points in order of x to the nearest others."""
    window, count = _WINDOW, len(points)
    asking = points[begin:end]
    while True:
        first, last = max(0, begin - window), min(count, end + window)
        distances = (asking[:, None] - points[first:last]).square().sum(-1)
        rows = torch.arange(end - begin, device=points.device)
        distances[rows, rows + begin - first] = torch.inf
        nearest = distances.topk(min(NEIGHBOURS, last - first), largest=False).values
        # Nobody outside the window is nearer than the window's edge is along x.
        edge = torch.full_like(asking[:, 0], torch.inf)
        if first > 0:
            edge = asking[:, 0] - points[first, 0]
        if last < count:
            edge = torch.minimum(edge, points[last - 1, 0] - asking[:, 0])
        if bool((nearest[:, -1] <= edge.square()).all()):
            return nearest
        window *= 4


@torch.no_grad()
def distCUDA2(points: Tensor) -> Tensor:
    """Mean of the squared distances from each of the points [P, 3] to its three nearest others, [P] float32.

    Exact, on any device. Where there are fewer than three others, over those that there are; 0 for none.
    ValueError for another shape or for points that are not finite.
    """
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"points: expected shape [P, 3], got {list(points.shape)}")
    if not bool(points.isfinite().all()):
        raise ValueError("points: expected finite numbers")
    points = points.float()
    count = len(points)
    if count < 2:
        return points.new_zeros(count)
    widest = int((points.max(0).values - points.min(0).values).argmax())
    order = points[:, widest].argsort()
    ordered = points[order][:, [widest, (widest + 1) % 3, (widest + 2) % 3]]
    nearest = torch.cat([_nearest(ordered, i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)])
    means = torch.empty_like(points[:, 0])
    means[order] = nearest[:, : min(NEIGHBOURS, count - 1)].mean(-1)
    return means
