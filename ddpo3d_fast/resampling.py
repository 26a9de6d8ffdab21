"""Pictures at other sizes, by means over areas or products of matrices, and their gradients back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


class Resize:
    """Pictures [B, 3, H, W] to [B, 3, size, size]: open_clip's resize of the short side and centre crop, or,
    with `squash`, both sides resized.

    Both are linear in the picture, one matrix for its rows and one for its columns. Made of products alone,
    the gradient is the same to the bit every time, on a GPU too, where torch's own gradient of a resize is
    not: it adds floats atomically (pytorch#197714). Like open_clip's transform of a tensor, and unlike that
    of a PIL picture, it neither rounds to 8 bits nor cuts off what bicubic weights leave outside [0, 1] at a
    hard edge.
    """

    def __init__(self, size: int, interpolation: str = "bicubic", squash: bool = False) -> None:
        self.size, self.interpolation, self.squash = size, interpolation, squash
        self._known: dict[tuple[int, int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        rows, columns = self._matrices(images.shape, images)
        return rows @ (images @ columns.T)

    def vjp(self, shape: Sequence[int], grad: Tensor) -> Tensor:
        """Gradient with respect to pictures of this shape [B, 3, H, W], from one [B, 3, size, size]."""
        rows, columns = self._matrices(shape, grad)
        return (rows.T @ grad) @ columns

    def _matrices(self, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """[size, H] and [size, W], where and of what dtype `like` is."""
        height, width = shape[-2:]
        key = (height, width, like.device, like.dtype)
        if key not in self._known:
            rows, columns = (self._matrix(side, min(height, width)) for side in (height, width))
            self._known[key] = rows.to(like), columns.to(like)
        return self._known[key]

    def _matrix(self, length: int, short: int) -> Tensor:
        """What the resize does to the identity, for one side of a picture, float64 [size, length]."""
        full = self.size if self.squash or length == short else int(self.size * length / short)
        first = round((full - self.size) / 2)
        identity = torch.eye(length, dtype=torch.float64)[None, None]
        every = interpolate(
            identity, size=(full, length), mode=self.interpolation, antialias=True, align_corners=False
        )
        return every[0, 0, first : first + self.size]


def scaled(pictures: Tensor, size: int) -> Tensor:
    """[B, 3, N, N] to [B, 3, size, size]: means over areas where `size` divides N, bilinear otherwise."""
    side = pictures.shape[-1]
    return _bilinear(size)(pictures) if side % size else avg_pool2d(pictures, side // size)


def scaled_vjp(grad: Tensor, side: int) -> Tensor:
    """Gradient with respect to pictures [B, 3, side, side] from that with respect to them `scaled`,
    [B, 3, size, size]."""
    size = grad.shape[-1]
    if side % size:
        return _bilinear(size).vjp((side, side), grad)
    factor = side // size
    return grad.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2


def resize(images: Tensor, size: int) -> Tensor:
    """[V, N, N, 3] rendered images to pictures [V, 3, size, size]: means over areas where `size` divides N,
    bilinear otherwise."""
    return scaled(images.permute(0, 3, 1, 2), size)


def resize_vjp(grad: Tensor, rendered: int) -> Tensor:
    """Gradient [V, N, N, 3] with respect to images of `rendered` pixels a side from that with respect to
    their pictures [V, 3, size, size]."""
    return scaled_vjp(grad, rendered).permute(0, 2, 3, 1).contiguous()


@cache
def _bilinear(size: int) -> Resize:
    return Resize(size, "bilinear", squash=True)
