"""The least that rasterizing a scene takes: what is counted for rasterizer_cuda.py's floors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tiled_reference
import torch
from torch import Tensor

# Floating-point instructions of one lane for a contribution, as nvcc makes them of blend.h; a fused
# multiply-add, a comparison, an exp2 or a reciprocal is one. Forward: falloff 5, cut 1, exp2 1, clamp 1,
# composite 2, stop 1, four sums 4. Backward: falloff to clamp again 8, slope 4, composite_vjp 7, the clamp's
# gate 2, moments 5, four weighted gradients 4, ten sums over pixels 10.
INSTRUCTIONS = {"forward": 15, "backward": 40}

# Bytes that cross memory. Forward: parameters in (14 floats); a projected Gaussian out and in (48 each), its
# radius out; an entry out and in (16 each); rgb, alpha, depth, transmittance and stop out. Backward:
# parameters in, gradients out; the projected Gaussian in, its gradient on the image out; an entry in, its ten
# sums out and in (48 each); the gradient of rgb, transmittance and stop in. Adam: parameter, gradient and
# moments in, all but the gradient out.
BYTES = {
    "forward": {"gaussian": 56, "view": 100, "entry": 32, "pixel": 28},
    "backward": {"gaussian": 112, "view": 56, "entry": 112, "pixel": 20},
    "adam": {"gaussian": 392},
}


class Ceilings(NamedTuple):
    bytes_per_s: float  # read and written
    fma_per_s: float  # float32


def floors(
    gaussians: int, views: int, pixels: int, entries: int, contributions: int, ceilings: Ceilings
) -> dict[str, float]:
    """Microseconds that the counted instructions or bytes of an operation need, whichever are more.

    Args:
        gaussians: N. views: C. pixels, entries, contributions: of all views together.
    """
    sizes = {"gaussian": gaussians, "view": gaussians * views, "entry": entries, "pixel": pixels}
    found = {}
    for name, parts in BYTES.items():
        moving = sum(count * sizes[what] for what, count in parts.items()) / ceilings.bytes_per_s
        computing = INSTRUCTIONS.get(name, 0) * contributions / ceilings.fma_per_s
        found[name] = 1e6 * max(moving, computing)
    return {**found, "step": sum(found.values())}


def count_contributions(scene: dict[str, Any], chunk: int = 1 << 24) -> int:
    """How many times a Gaussian takes part in a pixel, over all views.

    Every pair of a pixel and a Gaussian whose alpha is 1/255 or more there, front to back up to where the
    transmittance is used up; at most `chunk` pairs at a time, or a row of pixels. In double precision, and
    without the projection's frustum clamp, which no Gaussian of the ball reaches.
    """
    cameras = zip(scene["viewmats"], scene["intrinsics"], strict=True)
    return sum(contributions_of_view(scene, viewmat, k, chunk) for viewmat, k in cameras)


class Ellipses(NamedTuple):
    """What a view may draw, nearest first: Gaussians in front of it, each with its ellipse; all [M]."""

    x: Tensor  # pixels
    y: Tensor
    xx: Tensor  # the dilated covariance, px²
    xy: Tensor
    yy: Tensor
    det: Tensor
    opacity: Tensor
    reach: Tensor  # dᵀΣ⁻¹d at the edge, where alpha is 1/255


def seen_ellipses(scene: dict[str, Any], viewmat: Tensor, k: Tensor) -> Ellipses:
    means, scales, quats, opacities = (
        scene[name].double() for name in ("means", "scales", "quats", "opacities")
    )
    rotation, k = viewmat[:3, :3].double(), k.double()
    points = means @ rotation.T + viewmat[:3, 3].double()
    order = points[:, 2].float().argsort(stable=True)
    order = order[(points[order, 2] > 0.01) & (opacities[order] > 1 / 255)]
    x, y, z = points[order].unbind(-1)
    mean_x, mean_y = k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]
    zero = torch.zeros_like(z)
    rows = [k[0, 0] / z, zero, -k[0, 0] * x / z**2, zero, k[1, 1] / z, -k[1, 1] * y / z**2]
    axes = tiled_reference.rotation_matrices(quats[order]) * scales[order][:, None]
    spread = torch.stack(rows, -1).reshape(-1, 2, 3) @ rotation @ axes
    covariance = spread @ spread.transpose(1, 2)
    a, b, c = covariance[:, 0, 0] + 0.3, covariance[:, 0, 1], covariance[:, 1, 1] + 0.3
    opacity = opacities[order]
    return Ellipses(mean_x, mean_y, a, b, c, a * c - b * b, opacity, 2 * (255 * opacity).log())


def contributions_of_view(scene: dict[str, Any], viewmat: Tensor, k: Tensor, chunk: int) -> int:
    width, height = scene["width"], scene["height"]
    mean_x, mean_y, a, b, c, det, opacity, reach = seen_ellipses(scene, viewmat, k)

    # Every row of every ellipse and its chord there; a row's ellipses stay in the order of their depths.
    half = (reach * c).sqrt()
    top = (mean_y - half - 0.5).ceil().clamp(min=0)
    bottom = (mean_y + half - 0.5).floor().clamp(max=height - 1)
    of_row, row = expanded(top, (bottom - top + 1).clamp(min=0).long())
    dy = row + 0.5 - mean_y[of_row]
    middle = mean_x[of_row] + b[of_row] * dy / c[of_row]
    half = (det[of_row] * (reach[of_row] * c[of_row] - dy**2).clamp(min=0)).sqrt() / c[of_row]
    left = (middle - half - 0.5).ceil().clamp(min=0)
    right = (middle + half - 0.5).floor().clamp(max=width - 1)
    lengths = (right - left + 1).clamp(min=0).long()
    by_row = row.argsort(stable=True)
    of_row, row, left, lengths = of_row[by_row], row[by_row], left[by_row], lengths[by_row]

    total = 0
    for begin, end in chunks_of_rows(row, lengths, height, chunk):
        chord, column = expanded(left[begin:end], lengths[begin:end])
        index, line = of_row[begin:end][chord], row[begin:end][chord]
        dx, dy = column + 0.5 - mean_x[index], line + 0.5 - mean_y[index]
        power = 0.5 * (c[index] * dx**2 - 2 * b[index] * dx * dy + a[index] * dy**2) / det[index]
        alpha = (opacity[index] * torch.exp(-power)).clamp(max=0.99)
        pixel, place = (line * width + column).long().sort(stable=True)
        passed = torch.log1p(-alpha[place]).cumsum(0)  # through all pairs up to this one, pixel after pixel
        starts = torch.ones_like(pixel, dtype=torch.bool)
        starts[1:] = pixel[1:] != pixel[:-1]
        before = (passed - torch.log1p(-alpha[place]))[starts]  # through all pairs of the pixels before
        total += int((passed - before[starts.cumsum(0) - 1] > math.log(1e-4)).sum())
    return total


def expanded(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts [2, 0, 3]: whose each is, [0, 0, 2, 2, 2], and first + 0, 1 and 0, 1, 2."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    return owner, first[owner] + (torch.arange(len(owner), device=counts.device) - begin[owner])


def chunks_of_rows(row: Tensor, lengths: Tensor, height: int, chunk: int) -> list[tuple[int, int]]:
    """Slices of the sorted rows: whole rows, as many as have at most `chunk` pixels, or one."""
    numbers = torch.arange(height + 1, device=row.device, dtype=row.dtype)
    borders = torch.searchsorted(row, numbers)
    pixels = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])[borders].tolist()
    slices, begin = [], 0
    for line in range(1, height + 1):
        if line == height or pixels[line + 1] - pixels[begin] > chunk:
            slices.append((int(borders[begin]), int(borders[line])))
            begin = line
    return [(first, last) for first, last in slices if last > first]
