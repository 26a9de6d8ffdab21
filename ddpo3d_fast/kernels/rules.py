"""What other rasterizers decide otherwise, in numbers, and what may take the place of projected numbers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ._backend import address, checked


class Rules(NamedTuple):
    """The conventions of a rasterizer. The defaults are this one's."""

    eps2d: float = 0.3  # px^2, added to both diagonals of the covariance on the image
    factor_min: float = 0.0  # what an antialiased opacity is multiplied by is no less
    alpha_max: float = 0.99  # a Gaussian hides at most this much
    transmittance_min: float = 1e-4  # blending stops before the Gaussian that would leave this or less
    through_clamp: bool = False  # where alpha is clamped, its gradient is that of the unclamped one, not zero
    # > 0: drawn only in tiles of 16 pixels that meet the square of so many standard deviations of the longer
    # axis, and radii are half that square's side
    sigmas: float = 0.0
    radius_clip: float = 0.0  # px; Gaussians whose bounding box has no longer half-side are left out
    unit_quats: bool = True  # False: quaternions go into the rotation's formula as they are


OURS = Rules()


class Given(NamedTuple):
    """What takes the place of projected numbers; None is projected."""

    positions: Tensor | None = None  # [C, 3] where spherical harmonics are seen from, else -R^T t
    means2d: Tensor | None = None  # [C, N, 2] pixels

    def checked(self, cameras: int, count: int, like: Tensor) -> Given:
        """Contiguous; TypeError or ValueError as `_backend.checked`."""
        positions, means2d = self
        if positions is not None:
            positions = checked("positions", positions, (cameras, 3), like).detach()
        if means2d is not None:
            means2d = checked("means2d", means2d, (cameras, count, 2), like).detach()
        return Given(positions, means2d)

    def addresses(self) -> dict[str, int]:
        return {name: address(tensor) for name, tensor in self._asdict().items()}
