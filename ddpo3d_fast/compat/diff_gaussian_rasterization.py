"""3D Gaussian Splatting's `diff_gaussian_rasterization` on this rasterizer: names, units, cut-offs.

    from ddpo3d_fast.compat.diff_gaussian_rasterization import GaussianRasterizer

`use` says what a call returns. As there: quaternions (w, x, y, z) go into the rotation as they are, Gaussians
are drawn in the 16 px tiles that a square of 3 standard deviations meets, `means2D.grad` is in halves of the
image, a clamped alpha passes its gradient on, and neither background nor camera has one. What differs: a
gradient of a Gaussian that lies beyond 1.3 times the field of view is the exact one; same inputs, same bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddpo3d_fast.kernels import Rules

from ._passes import FootprintPass, Frame, Pass, ScenePass
from ._projection import pinhole_covariances, rotated_covariances, symmetric, to_camera
from .gsplat.sh import evaluate

NEAR, FAR = 0.2, 1e30  # of the camera's z
RULES = Rules(
    factor_min=0.005,
    transmittance_min=math.nextafter(1e-4, 0.0),  # blending stops *below* 1e-4
    through_clamp=True,
    sigmas=3.0,
    unit_quats=False,
)
RETURNS = ("original", "inverse-depth", "depth-alpha")
_returned = ["original"]


def use(returns: str) -> None:
    """From now on a call returns, in this order:
        original: color [3, H, W], radii [P] int32.
        inverse-depth: and the inverse depth [1, H, W], sum of weight / z, as the original does since it has
            `antialiasing`. It is a pass of its own.
        depth-alpha: color, radii, depth [1, H, W], sum of weight x z, and alpha [1, H, W].

    ValueError for another word.
    """
    if returns not in RETURNS:
        raise ValueError(f"returns: expected one of {', '.join(RETURNS)}, got {returns!r}")
    _returned[:] = [returns]


class GaussianRasterizationSettings(NamedTuple):
    """A camera, and what all Gaussians share."""

    image_height: int  # pixels
    image_width: int
    tanfovx: float  # tangent of half the field of view
    tanfovy: float
    bg: Tensor  # [3]
    scale_modifier: float  # times all scales
    viewmatrix: Tensor  # [4, 4] world to camera, transposed
    projmatrix: Tensor  # [4, 4] world to clip space, transposed
    sh_degree: int  # 0 to 3
    campos: Tensor  # [3] where spherical harmonics are seen from
    prefiltered: bool  # has no effect
    debug: bool  # has no effect
    antialiasing: bool = False


class _Handle(torch.autograd.Function):
    """Means on the image in pixels, whose gradient is also that of `means2D`, in halves of the image."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, means2D: Tensor, width: int, height: int) -> Tensor:
        ctx.size = width, height
        return pixels.view_as(pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        width, height = ctx.size
        scaled = grad * grad.new_tensor([0.5 * width, 0.5 * height])
        halves = torch.cat([scaled, torch.zeros_like(grad[:, :1])], -1)
        return grad, halves if ctx.needs_input_grad[1] else None, None, None


def _given(tensor: Tensor | None) -> Tensor | None:
    """None, too, for the empty tensor that stands for a missing one."""
    return None if tensor is None or tensor.shape == (0,) else tensor


def _pixel_means(means3D: Tensor, settings: GaussianRasterizationSettings, z: Tensor) -> Tensor:
    """[P, 2]; what is not seen has some finite place and no gradient."""
    projection = settings.projmatrix.detach()
    clip = means3D @ projection[:3] + projection[3]
    w = torch.where(z > NEAR, clip[:, 3], torch.ones_like(z))
    size = means3D.new_tensor([settings.image_width, settings.image_height])
    return (clip[:, :2] / (w[:, None] + 1e-7) + 1) * 0.5 * size


def rasterize_gaussians(
    means3D: Tensor,  # [P, 3]
    means2D: Tensor,  # [P, 3]
    sh: Tensor | None,  # [P, K, 3]
    colors_precomp: Tensor | None,  # [P, 3]
    opacities: Tensor,  # [P, 1]
    scales: Tensor | None,  # [P, 3]
    rotations: Tensor | None,  # [P, 4]
    cov3Ds_precomp: Tensor | None,  # [P, 6]
    raster_settings: GaussianRasterizationSettings,
) -> tuple[Tensor, ...]:
    """Renders one camera. An empty tensor stands for None.

    Args:
        means2D: its values are not read; its gradient is d(loss)/d(mean on the image), x and y in halves of
            the image, the third 0.
        others: after activation; covariances as xx, xy, xz, yy, yz, zz.

    Returns: as `use` says.

    Raises:
        ValueError: not exactly one of sh and colors_precomp, or of (scales, rotations) and cov3Ds_precomp; a
            shape or device does not fit.
        TypeError: a tensor is not float32.
    """
    sh, colors, covars = _given(sh), _given(colors_precomp), _given(cov3Ds_precomp)
    scales, rotations = _given(scales), _given(rotations)
    if (sh is None) == (colors is None):
        raise ValueError("shs, colors_precomp: expected exactly one of them")
    if (scales is None or rotations is None) == (covars is None) or (scales is None) != (rotations is None):
        raise ValueError("scales and rotations, cov3D_precomp: expected exactly one of them")
    s = raster_settings
    width, height = int(s.image_width), int(s.image_height)
    viewmats = s.viewmatrix.detach().T.contiguous()[None]
    intrinsics = torch.zeros(1, 3, 3, device=means3D.device)
    intrinsics[0, 0, 0], intrinsics[0, 1, 1] = width / (2 * s.tanfovx), height / (2 * s.tanfovy)
    intrinsics[0, 0, 2], intrinsics[0, 1, 2] = width / 2, height / 2
    points = to_camera(means3D, viewmats)
    depths = points[..., 2]  # [1, P]
    pixels = _pixel_means(means3D, s, depths[0])
    background, position = s.bg.detach()[None], s.campos.detach().reshape(1, 3)
    opacities = opacities.reshape(-1)
    frame = Frame(width, height, NEAR, FAR, bool(s.antialiasing), RULES)

    def run(values: Tensor, degree: int | None, behind: Tensor | None) -> Pass:
        if covars is None:
            assert scales is not None
            assert rotations is not None
            return ScenePass(
                means3D, rotations, scales * s.scale_modifier, opacities, values, viewmats, intrinsics,
                pixels.detach()[None], frame, sh_degree=degree, positions=position, backgrounds=behind,
            )  # fmt: skip
        turned = rotated_covariances(symmetric(covars), viewmats)
        covariances = pinhole_covariances(points, turned, intrinsics, width, height, NEAR)
        if degree is not None:
            values = (evaluate(degree, means3D - position, values) + 0.5).clamp(min=0)
        return FootprintPass(pixels[None], covariances, depths, opacities, values, frame, backgrounds=behind)

    taped = _Handle.apply(pixels, means2D, width, height)[None]
    one = run(sh, s.sh_degree, background) if colors is None else run(colors, None, background)  # type: ignore[arg-type]
    rgb, alpha, depth = one.on_tape(taped)
    color = rgb[0].permute(2, 0, 1).contiguous()
    if _returned[0] == "depth-alpha":
        return color, one.radii[0], depth, alpha
    if _returned[0] == "inverse-depth":
        inverse = 1 / torch.where(depths[0] > NEAR, depths[0], torch.ones_like(depths[0]))
        picture, _, _ = run(inverse[:, None].expand(-1, 3), None, None).on_tape(taped)
        return color, one.radii[0], picture[..., 0]
    return color, one.radii[0]


class GaussianRasterizer(nn.Module):
    """`rasterize_gaussians` for one camera."""

    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        self.raster_settings = raster_settings

    def markVisible(self, positions: Tensor) -> Tensor:
        """[P, 3] to [P] bool: what is farther than 0.2 before the camera."""
        with torch.no_grad():
            view = self.raster_settings.viewmatrix
            return positions @ view[:3, 2] + view[3, 2] > NEAR

    def forward(
        self,
        means3D: Tensor,
        means2D: Tensor,
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Arguments, results and errors as `rasterize_gaussians`."""
        return rasterize_gaussians(
            means3D, means2D, shs, colors_precomp, opacities, scales, rotations, cov3D_precomp,
            self.raster_settings,
        )  # fmt: skip
