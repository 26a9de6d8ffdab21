"""Sphere tracing of the procedural objects into material masks: any colouring of a view is a product of them.

Not for speed of light: about twenty 64 px views a second and core, once, before training.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.scene.cameras import FOV_Y, RADIUS, look_at_origin
from ddpo3d_fast.training.objects import MATERIALS, Primitive

BOUND = 1.15  # every object lies in the ball of this radius
_SUPERSAMPLING = 2
_MARCH_STEPS = 48
_LIGHT = torch.nn.functional.normalize(torch.tensor([0.4, 0.8, 0.45]), dim=0)


def _ellipsoid(p: Tensor, s: Tensor) -> Tensor:
    k0 = (p / s[:, None, :3]).norm(dim=-1).clamp_min(1e-4)
    k1 = (p / s[:, None, :3] ** 2).norm(dim=-1).clamp_min(1e-4)
    return k0 * (k0 - 1) / k1


def _box(p: Tensor, s: Tensor) -> Tensor:
    q = p.abs() - s[:, None, :3] + s[:, None, 3:]
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0) - s[:, 3:]


def _cone(p: Tensor, s: Tensor) -> Tensor:
    h, low, high = s[:, 0:1], s[:, 1:2], s[:, 2:3]
    y, q = p[..., 1], p[..., (0, 2)].norm(dim=-1)
    ax = q - torch.minimum(q, torch.where(y < 0, low, high))
    ay = y.abs() - h
    along = (((high - q) * (high - low) + (h - y) * 2 * h) / ((high - low) ** 2 + 4 * h * h)).clamp(0, 1)
    bx, by = q - high + (high - low) * along, y - h + 2 * h * along
    sign = torch.where((bx < 0) & (ay < 0), -1.0, 1.0)
    return sign * torch.minimum(ax * ax + ay * ay, bx * bx + by * by).sqrt()


def _torus(p: Tensor, s: Tensor) -> Tensor:
    ring = p[..., (0, 2)].norm(dim=-1) - s[:, 0:1]
    return (ring * ring + p[..., 1] ** 2).sqrt() - s[:, 1:2]


def _capsule(p: Tensor, s: Tensor) -> Tensor:
    y = p[..., 1] - torch.maximum(torch.minimum(p[..., 1], s[:, 0:1]), -s[:, 0:1])
    return (p[..., 0] ** 2 + y * y + p[..., 2] ** 2).sqrt() - s[:, 1:2]


def _prism(p: Tensor, s: Tensor, slope: Tensor) -> Tensor:
    """Triangular prism along x; `slope` is the signed offset from the leaning faces."""
    return torch.maximum(torch.maximum(p[..., 0].abs() - s[:, 0:1], -p[..., 1] - s[:, 1:2]), slope)


def _lean(s: Tensor) -> tuple[Tensor, Tensor]:
    length = ((2 * s[:, 1:2]) ** 2 + s[:, 2:3] ** 2).sqrt()
    return 2 * s[:, 1:2] / length, s[:, 2:3] / length


def _gable(p: Tensor, s: Tensor) -> Tensor:
    n, m = _lean(s)
    return _prism(p, s, (p[..., 2].abs() - s[:, 2:3]) * n + (p[..., 1] + s[:, 1:2]) * m)


def _sail(p: Tensor, s: Tensor) -> Tensor:
    n, m = _lean(s)
    leaning = (p[..., 2] - s[:, 2:3]) * n + (p[..., 1] + s[:, 1:2]) * m
    return _prism(p, s, torch.maximum(leaning, -p[..., 2] + 0.04))


_DISTANCES = {
    "ellipsoid": _ellipsoid,
    "dome": lambda p, s: torch.maximum(_ellipsoid(p, s), -p[..., 1]),
    "hull": lambda p, s: torch.maximum(_ellipsoid(p, s), p[..., 1] - 0.12),
    "box": _box,
    "cone": _cone,
    "torus": _torus,
    "capsule": _capsule,
    "gable": _gable,
    "sail": _sail,
}


class _Body:
    """Primitives of one kind batched together."""

    def __init__(self, kind: str, carve: bool, parts: list[Primitive]):
        self.distance, self.carve = _DISTANCES[kind], carve
        self.center = torch.tensor(np.array([p.center for p in parts]), dtype=torch.float32)
        self.size = torch.tensor(
            [tuple(p.size) + (0.0,) * (4 - len(p.size)) for p in parts], dtype=torch.float32
        )
        self.rotation = torch.tensor(np.array([p.rotation for p in parts]), dtype=torch.float32)
        self.material = torch.tensor([p.material for p in parts])

    def __call__(self, x: Tensor) -> Tensor:
        return self.distance(torch.matmul(x[None] - self.center[:, None], self.rotation), self.size)


class Field:
    """The signed distance of a whole object, and the material nearest to a point."""

    def __init__(self, parts: list[Primitive]):
        kinds = dict.fromkeys((p.kind, p.carve) for p in parts)
        self.bodies = [
            _Body(kind, carve, [p for p in parts if (p.kind, p.carve) == (kind, carve)])
            for kind, carve in kinds
        ]

    def distance(self, x: Tensor) -> Tensor:
        solid = torch.stack([b(x).amin(0) for b in self.bodies if not b.carve]).amin(0)
        for body in self.bodies:
            if body.carve:
                solid = torch.maximum(solid, -body(x).amin(0))
        return solid

    def material(self, x: Tensor) -> Tensor:
        solid = [b for b in self.bodies if not b.carve]
        return torch.cat([b.material for b in solid])[torch.cat([b(x) for b in solid]).argmin(0)]


def _rays(size: int) -> Tensor:
    """[size * size, 3] unit directions in the axes of the camera, row by row from the top left."""
    at = ((torch.arange(size) + 0.5) / size * 2 - 1) * math.tan(FOV_Y / 2)
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3), dim=-1)


@torch.no_grad()
def render_materials(field: Field, azimuth: float, elevation: float, size: int = 64) -> Tensor:
    """[5, size, size] float32: shading times coverage of each of the 4 materials, then the object's coverage.

    A picture is `einsum('khw,kc->chw', out[:4], colors) + (1 - out[4]) * background`.
    """
    angles = torch.tensor([[azimuth], [elevation]], dtype=torch.float64)
    axes = look_at_origin(*angles).viewmats[0, :3, :3]  # rows right, down, forward
    fine = size * _SUPERSAMPLING
    rays, origin = _rays(fine) @ axes, -RADIUS * axes[2]
    toward = rays @ origin
    discriminant = toward * toward - (origin @ origin - BOUND**2)
    index = (discriminant > 0).nonzero()[:, 0]
    root = discriminant[index].sqrt()
    near, far, direction = -toward[index] - root, -toward[index] + root, rays[index]
    hits, depths = [], []
    for step in range(_MARCH_STEPS):
        distance = field.distance(origin + direction * near[:, None])
        near = near + 0.95 * distance
        if step % 3 == 2 or step == _MARCH_STEPS - 1:  # compact now and then: most rays end early
            hit = distance < 2e-3
            hits.append(index[hit])
            depths.append(near[hit])
            alive = ~hit & (near < far)
            index, near, far, direction = index[alive], near[alive], far[alive], direction[alive]
            if len(index) == 0:
                break
    hit, depth = torch.cat(hits), torch.cat(depths)
    point = origin + rays[hit] * depth[:, None]
    # Gradient of the distance from four points of a tetrahedron.
    corners = 1e-3 * torch.tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1.0]])
    normal = torch.zeros_like(point)
    for corner in corners:
        normal += corner * field.distance(point + corner)[:, None]
    normal = torch.nn.functional.normalize(normal, dim=-1)
    headlight = -(normal * rays[hit]).sum(-1)
    shading = 0.52 + 0.38 * (normal @ _LIGHT).clamp_min(0) + 0.14 * headlight.clamp_min(0)
    out = torch.zeros(MATERIALS + 1, fine * fine)
    out[field.material(point), hit] = shading.clamp(0, 1)
    out[MATERIALS, hit] = 1
    return torch.nn.functional.avg_pool2d(out.view(1, MATERIALS + 1, fine, fine), _SUPERSAMPLING)[0]


def colorize(materials: Tensor, colors: Tensor, background: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] from masks [B, 5, H, W], colours [B, 4, 3] and backgrounds [B, 3]."""
    covered = torch.einsum("bkhw,bkc->bchw", materials[:, :MATERIALS], colors)
    return covered + (1 - materials[:, MATERIALS:]) * background[:, :, None, None]
