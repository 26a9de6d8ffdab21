"""Gaussians before cameras, gsplat's batch dimensions in one: projected, and run in passes."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._passes import FootprintPass, Frame, Pass, ScenePass
from .._projection import pinhole_means, symmetric, to_camera
from .channels import run_channels
from .colors import Colors
from .projection import TRIANGLE, project, quat_scale_to_covar_preci


class Unit(NamedTuple):
    """What goes through together: a scene before all of its cameras, or before one, with its own colours."""

    batch: int
    cameras: slice
    passes: list[Pass]


class Scene:
    """B scenes of N Gaussians, each before C cameras."""

    def __init__(
        self,
        means: Tensor,  # [B, N, 3]
        quats: Tensor | None,  # [B, N, 4]
        scales: Tensor | None,  # [B, N, 3]
        opacities: Tensor,  # [B, N]
        covars: Tensor | None,  # [B, N, 3, 3] in the place of quats and scales
        viewmats: Tensor,  # [B, C, 4, 4]
        intrinsics: Tensor,  # [B, C, 3, 3]
        frame: Frame,
    ) -> None:
        self.means, self.opacities, self.viewmats, self.intrinsics = means, opacities, viewmats, intrinsics
        self.frame, self._quats, self._scales, self._covars = frame, quats, scales, covars
        points = to_camera(means, viewmats)  # [B, C, N, 3]
        self.means2d, self.depths = pinhole_means(points, intrinsics, frame.near), points[..., 2]

    @cached_property
    def projected(self) -> tuple[Tensor, ...]:
        """Means, depths, covariances, conics, opacity factors on the images, in plain torch."""
        if self._covars is None:
            assert self._quats is not None
            assert self._scales is not None
            covars, _ = quat_scale_to_covar_preci(self._quats, self._scales, True, False)
            assert covars is not None
        else:  # gsplat reads the upper triangle, so that the gradient is that triangle's
            covars = symmetric(self._covars.flatten(-2)[..., TRIANGLE])
        frame = self.frame
        return project(
            self.means, covars, self.viewmats, self.intrinsics, frame.width, frame.height, frame.rules.eps2d,
            frame.near,
        )  # fmt: skip

    def run(self, colors: Colors, backgrounds: Tensor | None) -> list[Unit]:
        """All forward passes; backgrounds [B, C, D]."""
        size, cameras = self.viewmats.shape[:2]
        units = []
        for b in range(size):
            for c in range(cameras) if colors.of_camera else [slice(0, cameras)]:
                of = slice(c, c + 1) if isinstance(c, int) else c
                values = colors.values[b, c] if colors.of_camera else colors.values[b]
                behind = None if backgrounds is None else backgrounds[b, of]
                if colors.degree is None:
                    passes = run_channels(lambda v, g, b=b, of=of: self._pass(b, of, v, g), values, behind)  # type: ignore[misc]
                else:
                    passes = [self._pass(b, of, values, behind, colors.degree)]
                units.append(Unit(b, of, passes))
        return units

    def _pass(
        self, b: int, of: slice, colors: Tensor, backgrounds: Tensor | None, sh_degree: int | None = None
    ) -> Pass:
        means2d, opacities = self.means2d[b, of], self.opacities[b]
        if self._covars is not None:
            covariances = self.projected[2][b, of]
            return FootprintPass(
                means2d, covariances, self.depths[b, of], opacities, colors, self.frame,
                backgrounds=backgrounds,
            )  # fmt: skip
        assert self._quats is not None
        assert self._scales is not None
        return ScenePass(
            self.means[b], self._quats[b], self._scales[b], opacities, colors, self.viewmats[b, of],
            self.intrinsics[b, of], means2d.detach(), self.frame, sh_degree=sh_degree,
            backgrounds=backgrounds,
        )  # fmt: skip

    def box_radii(self, units: list[Unit]) -> Tensor:
        """[B, C, N, 2] int32, of passes that have run."""
        radii = torch.zeros(self.means2d.shape, dtype=torch.int32, device=self.means2d.device)
        for unit in units:
            radii[unit.batch, unit.cameras] = unit.passes[0].box_radii
        return radii
