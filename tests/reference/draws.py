"""What a run draws: docs/method.md, "What a step draws"."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.settings import Config


def philox_normal(shape: tuple[int, ...], seed: int, stream: int) -> Tensor:
    """Standard normals of a stream: Philox4x32-10 and the Box-Muller transform."""
    count, mask = math.prod(shape), np.uint64(0xFFFFFFFF)
    index = np.arange(-(-count // 4), dtype=np.uint64)
    x0, x1 = index & mask, index >> np.uint64(32)
    x2, x3 = (np.full_like(index, word) for word in (stream & 0xFFFFFFFF, stream >> 32))
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = (product1 >> np.uint64(32)) ^ x1 ^ np.uint64(key0), product1 & mask
        x2, x3 = (product0 >> np.uint64(32)) ^ x3 ^ np.uint64(key1), product0 & mask
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    words = torch.from_numpy(np.stack([x0, x1, x2, x3], 1).astype(np.float64)).view(-1, 2, 2)
    radius, angle = (-2 * ((words[..., 0] + 0.5) / 2**32).log()).sqrt(), 2 * math.pi * words[..., 1] / 2**32
    normals = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return normals.flatten()[:count].view(shape)


class Cameras(NamedTuple):
    azimuth: Tensor  # [V] radians
    elevation: Tensor  # [V]
    viewmats: Tensor  # [V, 4, 4] world to camera: x right, y down, z forward
    fov: float  # radians

    def only(self, view: int) -> Cameras:
        this = slice(view, view + 1)
        return Cameras(self.azimuth[this], self.elevation[this], self.viewmats[this], self.fov)

    def intrinsics(self, size: int) -> Tensor:
        focal = size / 2 / math.tan(self.fov / 2)
        matrix = [[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]
        return torch.tensor(matrix, dtype=torch.float64).repeat(len(self.azimuth), 1, 1)


def look_at_origin(azimuth: Tensor, elevation: Tensor, radius: float, fov: float) -> Cameras:
    a, e = azimuth.double(), elevation.double()
    position = radius * torch.stack([a.sin() * e.cos(), e.sin(), a.cos() * e.cos()], -1)
    forward = -position / radius
    right = torch.stack([a.cos(), torch.zeros_like(a), -a.sin()], -1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
    viewmats = torch.eye(4, dtype=torch.float64).repeat(len(a), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ position[:, :, None])[:, :, 0]
    return Cameras(a, e, viewmats, fov)


class Draw(NamedTuple):
    """Of one step."""

    generator: torch.Generator  # for what densification or relocation draws
    fraction: float  # of the run that is over
    cameras: Cameras
    backgrounds: Tensor  # [V] greys
    timesteps: Tensor  # [V]
    rendered: int  # pixels of a view's side
    picture: int


def batch_size(config: Config) -> int:
    """Steps that one batch of actions serves."""
    wishes = config.reward
    several = wishes.policy == "latent" and wishes.policy_estimator == "ppo" and wishes.policy_weight
    return wishes.policy_updates if several else 1


def draw(number: int, config: Config, prior: Any) -> Draw:
    schedule, views = config.schedule, config.schedule.views
    first = number - (number - 1) % batch_size(config)
    fraction = (first - 1) / schedule.steps
    generator = torch.Generator().manual_seed(1000003 * config.seed + first)

    first = torch.rand((), generator=generator, dtype=torch.float64)
    normal = torch.randn(views, generator=generator, dtype=torch.float64)
    height, overhead = torch.rand(2, views, generator=generator, dtype=torch.float64)
    azimuth = 2 * math.pi * (first + torch.arange(views) / views) + 0.2 * normal
    low, high = schedule.min_elevation, schedule.max_elevation
    degrees = torch.where(
        overhead < schedule.overhead_fraction, 60 + 20 * height, low + (high - low) * height
    )
    cameras = look_at_origin(
        azimuth, degrees * math.pi / 180, schedule.camera_radius, math.radians(schedule.fov)
    )

    white, grey = torch.rand(2, views, generator=generator)
    other = {"white-grey": grey.double(), "black-white": torch.zeros(views).double()}[schedule.backgrounds]
    backgrounds = torch.where(white < 0.5, torch.ones_like(other), other)

    jitter = schedule.timestep_jitter * (2 * torch.rand(views, generator=generator).double() - 1)
    low, high = (min(end, prior.highest_timestep) for end in (schedule.min_timestep, schedule.max_timestep))
    level = (high + (low - high) * fraction + jitter).clamp(low, high)

    sizes = [
        round(prior.picture_size * scales[int(fraction * len(scales))])
        for scales in (schedule.render_scales, schedule.picture_scales)
    ]
    return Draw(
        generator,
        (number - 1) / schedule.steps,
        cameras,
        backgrounds,
        (level * (len(prior.alphas_cumprod) - 1)).floor().long(),
        *sizes,
    )


def view_weights(azimuth: Tensor, elevation: Tensor, interpolate: bool) -> Tensor:
    """[V, 4], how much of the front's, the side's, the back's and the overhead prompt a camera sees."""
    rows = []
    for a, e in zip(azimuth.rad2deg().tolist(), elevation.rad2deg().tolist(), strict=True):
        turned = abs((a + 180) % 360 - 180)  # from the front
        near = {"front": 0.0, "side": 90.0, "back": 180.0}
        if interpolate:
            row = [max(0.0, 1 - abs(turned - at) / 90) for at in near.values()]
        else:
            row = [float(turned < 45), float(45 <= turned <= 135), float(turned > 135)]
        rows.append([0.0, 0.0, 0.0, 1.0] if e > 58 else [*row, 0.0])
    return torch.tensor(rows, dtype=torch.float64)


def first_cloud(config: Config) -> dict[str, Tensor]:
    """Raw parameters, from draws in single precision."""
    count, generator = config.scene.gaussians, torch.Generator().manual_seed(config.seed)
    normal = torch.nn.functional.normalize
    if config.scene.cloud == "normal":
        means = 0.35 * torch.randn(count, 3, generator=generator).double()
        quats = normal(torch.randn(count, 4, generator=generator).double(), dim=1)
        scales = torch.full((count,), 0.07 * (800 / count) ** (1 / 3), dtype=torch.float64)
        logit = -1.5
    else:
        direction = normal(torch.randn(count, 3, generator=generator).double(), dim=1)
        means = 0.5 * torch.rand(count, 1, generator=generator).double() ** (1 / 3) * direction
        quats = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).repeat(count, 1)
        distances = (means[:, None] - means).norm(dim=2).sort(dim=1).values[:, 1:4]
        scales, logit = (distances**2).mean(1).sqrt(), math.log(0.1 / 0.9)
    colors = 0.025 * torch.randn(count, 3, generator=generator).double()
    return {
        "means": means,
        "quats": quats,
        "log_scales": scales.log()[:, None].repeat(1, 3),
        "logit_opacities": torch.full((count,), logit, dtype=torch.float64),
        "sh": (colors * 2 * math.sqrt(math.pi))[:, None],
    }
