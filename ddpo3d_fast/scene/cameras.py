"""Cameras around the object: where they stand, what they see, and the word for the view.

The world is y-up and right-handed, the object sits at the origin inside a ball of radius about 1.1, and its
front faces +z. Azimuth 0 looks at the front and grows towards +x; elevation grows upwards. Camera axes are
OpenCV's: x right, y down, z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RADIUS = 3.0  # distance of the camera from the origin, in world units
FOV_Y = math.radians(40.0)  # vertical field of view; the ball of radius 1.02 touches the frame at RADIUS
OVERHEAD_RANGE = (math.radians(60.0), math.radians(80.0))  # of the elevations that look from above
AZIMUTH_JITTER = 0.2  # deviation, radians


@dataclass
class Cameras:
    """C cameras that look at the origin. Intrinsics follow once the image size is known."""

    viewmats: Tensor  # [C, 4, 4] float32, world to camera
    azimuth: Tensor  # [C] float32, radians in (-pi, pi]
    elevation: Tensor  # [C] float32, radians in [-pi/2, pi/2]
    fov_y: float = FOV_Y  # vertical field of view, radians

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Cameras:
        """The cameras of a slice, a list of indices or a mask."""
        return Cameras(self.viewmats[index], self.azimuth[index], self.elevation[index], self.fov_y)

    def to(self, device: torch.device | str) -> Cameras:
        """The cameras on a device."""
        tensors = (self.viewmats, self.azimuth, self.elevation)
        viewmats, azimuth, elevation = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Cameras(viewmats, azimuth, elevation, self.fov_y)

    def turned(self, rotation: Tensor) -> Cameras:
        """Cameras that see the world as these see it after a rotation [3, 3] about the origin."""
        viewmats = self.viewmats.clone()
        viewmats[:, :3, :3] = self.viewmats[:, :3, :3] @ rotation.to(self.viewmats)
        return Cameras(viewmats, self.azimuth, self.elevation, self.fov_y)

    def intrinsics(self, width: int, height: int) -> Tensor:
        """[C, 3, 3] float32 intrinsics in pixels, with pixel centres at +0.5 and square pixels."""
        focal = 0.5 * height / math.tan(0.5 * self.fov_y)
        numbers = {(0, 0): focal, (1, 1): focal, (0, 2): 0.5 * width, (1, 2): 0.5 * height, (2, 2): 1.0}
        matrix = self.viewmats.new_zeros(len(self), 3, 3)
        for (row, column), number in numbers.items():
            matrix[:, row, column].fill_(number)  # no copy from the host, which a CUDA graph could not hold
        return matrix


def look_at_origin(
    azimuth: Tensor, elevation: Tensor, radius: float | Tensor = RADIUS, fov_y: float = FOV_Y
) -> Cameras:
    """Cameras at radius * (sin az cos el, sin el, cos az cos el) that look at the origin, with no roll.

    Args:
        azimuth, elevation: [C] radians. Straight up and straight down are no special case.
        radius: distance from the origin, a number or [C].
        fov_y: vertical field of view, radians in (0, pi).

    Raises:
        ValueError: angles that are not [C] each, a radius that is not positive, a field of view out of range.
    """
    if azimuth.dim() != 1 or azimuth.shape != elevation.shape:
        got = f"{tuple(azimuth.shape)} and {tuple(elevation.shape)}"
        raise ValueError(f"azimuth, elevation: expected shape (C,) each, got {got}")
    if not 0.0 < fov_y < math.pi:
        raise ValueError(f"fov_y: expected radians between 0 and pi, got {fov_y}")
    az, el = azimuth.double(), elevation.double()
    distance = torch.as_tensor(radius, dtype=torch.float64, device=az.device).expand_as(az)
    if not bool((distance > 0).all()):
        raise ValueError(f"radius: expected a positive distance, got {radius}")
    zero = torch.zeros_like(az)
    outward = torch.stack([az.sin() * el.cos(), el.sin(), az.cos() * el.cos()], -1)
    right = torch.stack([az.cos(), zero, -az.sin()], -1)
    down = torch.linalg.cross(-outward, right)
    rotation = torch.stack([right, down, -outward], 1)
    viewmats = torch.eye(4, dtype=torch.float64, device=az.device).repeat(len(az), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, 2, 3] = distance  # -R position: the origin lies straight ahead
    wrapped = math.pi - torch.remainder(math.pi - az, 2 * math.pi)
    return Cameras(viewmats.float(), wrapped.float(), el.float(), fov_y)


def orbit(count: int, elevation: float = math.radians(15.0), start: float = 0.0) -> Cameras:
    """`count` cameras evenly spread over one turn, the first at azimuth `start`: a turntable's frames.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"count: expected 1 or more, got {count}")
    azimuth = start + 2 * math.pi / count * torch.arange(count, dtype=torch.float64)
    return look_at_origin(azimuth, torch.full_like(azimuth, elevation))


def sample_cameras(
    generator: torch.Generator,
    count: int,
    elevation_range: tuple[float, float] = (math.radians(-10.0), math.radians(45.0)),
    overhead_fraction: float = 0.06,
    radius: float = RADIUS,
    fov_y: float = FOV_Y,
) -> Cameras:
    """Random cameras for one step of the optimisation.

    The views of a step stand evenly around the object, at an angle that is drawn anew, so that no side goes
    without a view for long; each is then moved by a normal jitter. Most elevations are uniform in
    `elevation_range`, a few look from above.

    Args:
        generator: the only source of randomness; a CPU generator.
        count: C, views of the step.
        elevation_range: (low, high), radians.
        overhead_fraction: probability of a view from OVERHEAD_RANGE.

    Raises:
        ValueError: count below 1, or a fraction outside [0, 1].
    """
    if count < 1:
        raise ValueError(f"count: expected 1 or more, got {count}")
    if not 0.0 <= overhead_fraction <= 1.0:
        raise ValueError(f"overhead_fraction: expected a number from 0 to 1, got {overhead_fraction}")
    first = torch.rand((), generator=generator, dtype=torch.float64)
    jitter = torch.randn(count, generator=generator, dtype=torch.float64)
    height, lot = torch.rand(2, count, generator=generator, dtype=torch.float64)
    azimuth = 2 * math.pi * (first + torch.arange(count) / count) + AZIMUTH_JITTER * jitter
    usual = elevation_range[0] + (elevation_range[1] - elevation_range[0]) * height
    overhead = OVERHEAD_RANGE[0] + (OVERHEAD_RANGE[1] - OVERHEAD_RANGE[0]) * height
    return look_at_origin(azimuth, torch.where(lot < overhead_fraction, overhead, usual), radius, fov_y)
