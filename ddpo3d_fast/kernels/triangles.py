"""Textured triangles to pictures, and a picture's gradient back to the texture."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _backend
from ._backend import address, checked, integer, number, stream
from ._launch import launch

_MOST_PIXELS = 2**31 - 1  # of a call, and texels of a texture


class TriangleHits(NamedTuple):
    """What the pixels of C views see of F triangles."""

    triangles: Tensor  # [C, H, W] int32, which one is nearest; -1: none
    barycentrics: Tensor  # [C, H, W, 3] where on it, the corners' weights in space; 0 where there is none
    depth: Tensor  # [C, H, W] along the camera's axis, world units; 0 where there is none


def rasterize_triangles(
    vertices: Tensor,
    triangles: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    near: float = 0.01,
) -> TriangleHits:
    """Which triangle each pixel's centre sees, and where on it. No gradients.

    By edge functions (Pineda 1988) of corners rounded to 1/256 px, so that neighbours leave no gap; of two at
    one depth the first counts. Both sides are seen. The same to the bit for any number of threads and in any
    run. A triangle with a corner nearer than `near`, or more than 2^20 px off, is not drawn: nothing is
    clipped.

    Args:
        vertices: [V, 3] float32, world.
        triangles: [F, 3] int32, numbers of vertices.
        viewmats: [C, 4, 4] float32, world to camera (x right, y down, z forward).
        intrinsics: [C, 3, 3] float32, pixels, with pixel centres at +0.5; no skew.
        width, height: pixels, 0 or more.
        near: depth, world units, above 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; the numbers in
            `triangles` are looked at on the CPU only, since on a GPU that would be a wait.
    """
    vertices = checked("vertices", vertices, ("V", 3)).detach()
    triangles = _int32("triangles", triangles, ("F", 3), vertices)
    viewmats = checked("viewmats", viewmats, ("C", 4, 4), vertices).detach()
    cameras = viewmats.shape[0]
    intrinsics = checked("intrinsics", intrinsics, (cameras, 3, 3), vertices).detach()
    width, height = (integer(name, value) for name, value in (("width", width), ("height", height)))
    near = number("near", near)
    if min(width, height) < 0 or cameras * width * height > _MOST_PIXELS:
        raise ValueError(
            f"width, height: expected 0 or more, 2^31 pixels in all views at most, got {width} x {height}"
        )
    if not near > 0.0:
        raise ValueError(f"near: expected a positive number, got {near}")
    if triangles.device.type == "cpu" and triangles.numel():
        low, high = int(triangles.min()), int(triangles.max())
        if low < 0 or high >= len(vertices):
            wrong = low if low < 0 else high
            raise ValueError(f"triangles: expected numbers from 0 to {len(vertices) - 1}, got {wrong}")
    device, shape = vertices.device, (cameras, height, width)
    hits = TriangleHits(
        torch.empty(shape, dtype=torch.int32, device=device),
        torch.empty(*shape, 3, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
    )
    if not hits.depth.numel():
        return hits
    module = _backend.backend(device)
    params = module.TriangleParams(
        num_vertices=len(vertices),
        num_triangles=len(triangles),
        num_cameras=cameras,
        width=width,
        height=height,
        vertices=address(vertices),
        triangles=address(triangles),
        viewmats=address(viewmats),
        intrinsics=address(intrinsics),
        near=near,
    )
    cuda = {}
    if _backend.uses_cuda(device):
        room = module.triangles_workspace_bytes(params)
        workspace = torch.empty(room, dtype=torch.uint8, device=device)
        cuda["workspace"] = address(workspace)
    launch(
        device,
        "rasterize_triangles",
        cuda,
        params=params,
        triangle=address(hits.triangles),
        barycentrics=address(hits.barycentrics),
        depth=address(hits.depth),
    )
    return hits


def sample_texture(texture: Tensor, corners: Tensor, triangles: Tensor, barycentrics: Tensor) -> Tensor:
    """The texture's colours at what pixels see, bilinear; 0 where they see nothing. No autograd: its gradient
    is `sample_texture_backward`.

    Args:
        texture: [H, W, 3] float32, sides of 2 or more; row 0 is at v = 0, as in glTF 2.0.
        corners: [F, 3, 2] float32, u and v of the triangles' corners; beyond [0, 1] the edge's texels go on.
        triangles: [...] int32 from -1 to F - 1, of `rasterize_triangles`.
        barycentrics: [..., 3] float32, of the same.

    Returns:
        [..., 3] float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
    """
    texture = checked("texture", texture, ("H", "W", 3)).detach()
    inputs = _texture_inputs(texture.shape[0], texture.shape[1], corners, triangles, barycentrics, texture)
    rgb = torch.empty_like(inputs.barycentrics)
    if rgb.numel():
        params = inputs.params()
        launch(texture.device, "sample_texture", params=params, texture=address(texture), rgb=address(rgb))
    return rgb


def sample_texture_backward(
    grad_rgb: Tensor, height: int, width: int, corners: Tensor, triangles: Tensor, barycentrics: Tensor
) -> Tensor:
    """Gradient with respect to the texture of `sample_texture`, from that with respect to its colours.

    What the pixels give a texel is added up in a fixed order, in double precision: two runs agree to the bit,
    on a GPU too, and for any number of threads.

    Args:
        grad_rgb: [..., 3] float32.
        height, width: of the texture, 2 or more.
        corners, triangles, barycentrics: as for `sample_texture`.

    Returns:
        [height, width, 3] float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device.
    """
    height, width = integer("height", height), integer("width", width)
    inputs = _texture_inputs(height, width, corners, triangles, barycentrics, None)
    grad_rgb = checked("grad_rgb", grad_rgb, tuple(inputs.barycentrics.shape), inputs.corners).detach()
    device = grad_rgb.device
    grad = torch.zeros(height, width, 3, dtype=torch.float32, device=device)
    if not grad_rgb.numel():
        return grad
    cuda, params = {}, inputs.params()
    if _backend.uses_cuda(device):
        keys = torch.empty(inputs.triangles.numel(), dtype=torch.int32, device=device)
        with _backend.on(device):
            _backend.backend(device).texture_keys_cuda(
                params=params, keys=address(keys), cuda_stream=stream(device)
            )
        keys, pixels = keys.sort(stable=True)
        cuda = {"keys": address(keys), "pixels": address(pixels)}
    launch(
        device,
        "sample_texture_backward",
        cuda,
        params=params,
        grad_rgb=address(grad_rgb),
        grad_texture=address(grad),
    )
    return grad


class _TextureInputs(NamedTuple):
    """What both directions read. Its tensors must live until the call returns."""

    height: int
    width: int
    corners: Tensor
    triangles: Tensor
    barycentrics: Tensor

    def params(self) -> Any:
        return _backend.backend(self.corners.device).TextureParams(
            width=self.width,
            height=self.height,
            num_pixels=self.triangles.numel(),
            corners=address(self.corners),
            triangle=address(self.triangles),
            barycentrics=address(self.barycentrics),
        )


def _texture_inputs(
    height: int, width: int, corners: Tensor, triangles: Tensor, barycentrics: Tensor, like: Tensor | None
) -> _TextureInputs:
    if min(height, width) < 2 or height * width > _MOST_PIXELS:
        raise ValueError(f"texture: expected sides of 2 or more, 2^31 texels at most, got {width} x {height}")
    corners = checked("corners", corners, ("F", 3, 2), like).detach()
    triangles = _int32("triangles", triangles, ("...",) * getattr(triangles, "ndim", 0), corners)
    barycentrics = checked("barycentrics", barycentrics, (*triangles.shape, 3), corners).detach()
    if triangles.device.type == "cpu" and triangles.numel() and int(triangles.max()) >= len(corners):
        raise ValueError(f"triangles: expected numbers below {len(corners)}, got {int(triangles.max())}")
    return _TextureInputs(height, width, corners, triangles, barycentrics)


def _int32(name: str, tensor: object, shape: tuple[int | str, ...], like: Tensor) -> Tensor:
    """As `checked`, for an int32 tensor."""
    if isinstance(tensor, Tensor) and tensor.dtype != torch.int32:
        raise TypeError(f"{name}: expected torch.int32, got {tensor.dtype}")
    as_float = tensor.view(torch.float32) if isinstance(tensor, Tensor) else tensor
    return checked(name, as_float, shape, like).view(torch.int32)
