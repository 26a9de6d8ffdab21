"""Other numbers of the Gaussians than their colours, blended as these were: N-dimensional features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _backend
from ._backend import address, checked
from ._entries import MAX_ENTRIES, TileCapacity
from .rasterizer import Rasterization, RasterizeState, _forward_cuda


def rasterize_features(
    state: RasterizeState,
    features: Tensor,  # [N, F]
    capacity: TileCapacity | None = None,
) -> Tensor:
    """Images [C, F, H, W] of F numbers of every Gaussian, blended as the forward pass that returned `state`
    has blended colours: sums of weight x number, over zeros. No gradient.

    Each image has the bits that `rasterize` gives it as a channel of plain colours. On the CPU the projection
    and the tile lists of that pass are used again, so that one more feature costs a quarter of a blending
    alone; on CUDA every three take a rendering.

    Args:
        features: float32, any finite numbers.
        capacity: on CUDA, the room that the forward pass has had, so that nothing waits for the device. Where
            it was too small for that pass, the images are NaN.

    Raises:
        TypeError, ValueError: no such state, or the features' dtype, shape or device does not fit it.
    """
    if not isinstance(state, RasterizeState):
        raise TypeError(f"state: expected what rasterize_forward returned, got {type(state).__name__}")
    means = state.inputs[0]
    features = checked("features", features, (means.shape[0], "F"), means)
    cameras, height, width = state.image_shape
    count = features.shape[1]
    library = _backend.backend(means.device)
    if not _backend.uses_cuda(means.device):
        out = means.new_empty(cameras, count, height, width)
        library.rasterize_features_cpu(
            state.params,
            state.native,
            features=address(features),
            num_features=count,
            out=address(out),
        )
        return out
    images = [means.new_empty(cameras, 0, height, width)]
    for three in features.split(3, 1):
        colors = pad(three, (0, 3 - three.shape[1])).contiguous()
        view = Rasterization(
            rgb=means.new_empty(cameras, height, width, 3),
            alpha=means.new_empty(cameras, height, width),
            depth=means.new_empty(cameras, height, width),
            radii=means.new_empty(cameras, len(means), dtype=torch.int32),
        )
        params = state.params.with_colors(colors=address(colors))
        _forward_cuda(library, params, view, None, MAX_ENTRIES, capacity)
        images.append(view.rgb[..., : three.shape[1]].permute(0, 3, 1, 2))
    return torch.cat(images, 1)
