"""Random scenes for the rasterizer's tests: ordinary ones, and one for each thing that goes wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

PARAMETERS = ("means", "quats", "scales", "opacities", "colors", "backgrounds", "viewmats", "means2d_offsets")


@dataclass(frozen=True)
class Scene:
    """Float32 arguments of `rasterize`, and the weights of the loss Σ weights · outputs."""

    tensors: dict[str, Tensor]  # all tensor arguments
    settings: dict[str, Any] = field(default_factory=dict)  # width, height, sh_degree, ...

    @property
    def cameras(self) -> int:
        return len(self.tensors["viewmats"])

    @property
    def width(self) -> int:
        return self.settings["width"]

    @property
    def height(self) -> int:
        return self.settings["height"]

    def arguments(self, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> dict[str, Any]:
        tensors = {name: tensor.to(dtype).clone() for name, tensor in self.tensors.items()}
        if requires_grad:
            for name in PARAMETERS:
                tensors[name].requires_grad_()
        return {**tensors, **self.settings}

    def changed(self, **tensors: Tensor) -> Scene:
        return replace(self, tensors={**self.tensors, **tensors})


def look_at(position: Tensor) -> Tensor:
    """[4, 4] world to camera of a camera that looks at the origin."""
    forward = -position / position.norm()
    up = torch.tensor([0.0, 1.0, 0.1], dtype=position.dtype)
    right = torch.linalg.cross(forward, up)
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    matrix = torch.eye(4, dtype=position.dtype)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ position
    return matrix


def random_scene(
    seed: int,
    *,
    count: int = 200,
    width: int = 48,
    height: int = 48,
    cameras: int = 1,
    radius: float = 3.0,
    spread: float = 0.7,
    scale: tuple[float, float] = (0.02, 0.15),
    opacity: tuple[float, float] = (0.05, 0.95),
    sh_degree: int | None = None,
    antialiased: bool = False,
    **settings: Any,
) -> Scene:
    """A cloud around the origin, scales log-uniform, seen from `radius` with a field of view of 49.1°."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    low, high = (math.log(s) for s in scale)
    directions = randn(cameras, 3).double()
    viewmats = (
        torch.stack([look_at(radius * d / d.norm()) for d in directions]) if cameras else torch.zeros(0, 4, 4)
    )
    focal = 0.5 * height / math.tan(0.5 * math.radians(49.1))
    intrinsics = torch.zeros(cameras, 3, 3)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = focal, 1.1 * focal, 1
    intrinsics[:, 0, 2] = 0.5 * width + 0.1 * randn(cameras)
    intrinsics[:, 1, 2] = 0.5 * height + 0.1 * randn(cameras)
    coefficients = (count,) if sh_degree is None else (count, (sh_degree + 1) ** 2)
    tensors = {
        "means": spread * randn(count, 3),
        "quats": randn(count, 4),
        "scales": torch.exp(low + (high - low) * rand(count, 3)),
        "opacities": opacity[0] + (opacity[1] - opacity[0]) * rand(count),
        "colors": rand(*coefficients, 3) if sh_degree is None else 0.6 * randn(*coefficients, 3),
        "viewmats": viewmats.float(),
        "intrinsics": intrinsics,
        "backgrounds": rand(cameras, 3),
        "means2d_offsets": torch.zeros(cameras, count, 2),
    }
    return Scene(
        tensors,
        {"width": width, "height": height, "sh_degree": sh_degree, "antialiased": antialiased, **settings},
    )


def needles(seed: int) -> Scene:
    scene = random_scene(seed, count=60, width=96, height=64, opacity=(0.2, 0.9))
    scales = scene.tensors["scales"].clone()
    scales[:, 0] = 1.5
    scales[:, 1:] = 1e-4
    return scene.changed(scales=scales)


def far_out(seed: int) -> Scene:
    """Most Gaussians off screen, many behind the camera, some beyond the frustum's margin but seen."""
    return random_scene(seed, count=400, radius=1.0, spread=2.0, scale=(0.02, 0.6), cameras=2)


def across_near(seed: int) -> Scene:
    return random_scene(seed, count=300, radius=0.5, spread=0.4, near=0.3, far=1.0)


def extreme_opacities(seed: int) -> Scene:
    scene = random_scene(seed, count=120)
    opacities = scene.tensors["opacities"].clone()
    opacities[::3], opacities[1::3] = 0.0, 1.0
    return scene.changed(opacities=opacities)


def shifted(seed: int) -> Scene:
    scene = random_scene(seed, cameras=2)
    return scene.changed(
        means2d_offsets=torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(seed))
    )


SCENES: dict[str, Scene] = {
    "plain": random_scene(0),
    "opaque": random_scene(1, opacity=(0.9, 1.0), scale=(0.1, 0.4)),
    "faint": random_scene(2, opacity=(0.0, 0.03), count=400),
    "many": random_scene(3, count=1500, scale=(0.01, 0.05), width=40, height=40),
    "wide": random_scene(4, width=101, height=19),
    "tall": random_scene(5, width=7, height=90),
    "one_pixel": random_scene(6, width=1, height=1, count=50),
    "one_row": random_scene(7, width=64, height=1, count=80),
    "one_gaussian": random_scene(8, count=1, spread=0.1, scale=(0.1, 0.3)),
    "none": random_scene(9, count=0),
    "specks": random_scene(10, scale=(0.0002, 0.002), count=400),
    "giants": random_scene(11, scale=(2.0, 60.0), count=30, opacity=(0.05, 0.4)),
    "all_sizes": random_scene(12, scale=(0.002, 20.0), count=150, opacity=(0.02, 0.5)),
    "needles": needles(13),
    "far_out": far_out(14),
    "across_near": across_near(15),
    "extreme_opacities": extreme_opacities(16),
    "cameras": random_scene(17, cameras=4, width=32, height=24),
    "sh0": random_scene(18, sh_degree=0),
    "sh1": random_scene(19, sh_degree=1, cameras=2),
    "sh2": random_scene(20, sh_degree=2, cameras=2),
    "sh3": random_scene(21, sh_degree=3, cameras=3),
    "antialiased": random_scene(22, antialiased=True, scale=(0.002, 0.1)),
    "antialiased_sh": random_scene(23, antialiased=True, sh_degree=2, cameras=2, scale=(0.005, 0.2)),
    "off_screen": random_scene(24, count=100, spread=0.3).changed(means=torch.full((100, 3), 50.0)),
    "shifted": shifted(25),
    "layers": random_scene(27, count=700, scale=(1.0, 3.0), opacity=(0.008, 0.015), width=16, height=16),
    "inside_the_cloud": random_scene(26, count=300, radius=0.2, spread=1.0),
}
