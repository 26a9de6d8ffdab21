"""What viser is given: it rounds covariances to half precision and cuts colours to bytes, without a look."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpo3d_fast.scene import Gaussians, initial_cloud
from ddpo3d_fast.scene.gaussians import SH_C0
from ddpo3d_fast.view.splats import packed


def needles(count: int = 300) -> Gaussians:
    """As long as the scene, as thin as a hair, in every direction."""
    cloud = initial_cloud(count, seed=1)
    log_scales = torch.full((count, 3), 1e-4).log()
    log_scales[:, 0] = 0.0
    quats = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return Gaussians(cloud.means, quats, log_scales, cloud.logit_opacities, cloud.sh)


def test_a_covariance_is_still_one_in_half_precision() -> None:
    rounded = packed(needles()).covariances.astype(np.float16).astype(np.float64)
    assert np.isfinite(rounded).all()
    assert (np.linalg.eigvalsh(rounded) > 0).all()
    # Whole needles, and no thicker than it takes.
    assert np.linalg.eigvalsh(rounded)[:, 2] == pytest.approx(1.0, abs=2e-3)
    assert (np.linalg.eigvalsh(rounded)[:, 0] < 4e-3).all()


def test_what_half_precision_can_hold_stays_as_it_is() -> None:
    cloud = initial_cloud(200, seed=0)
    rotation = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # a quarter turn about z
    cloud.quats[:] = torch.tensor([3.0, 0, 0, 3.0])  # of any length
    variances = (2 * cloud.log_scales).exp()
    expected = rotation @ torch.diag_embed(variances) @ rotation.T
    torch.testing.assert_close(torch.from_numpy(packed(cloud).covariances), expected, rtol=1e-6, atol=1e-12)


def test_huge_and_vanishing_gaussians_are_finite() -> None:
    cloud = initial_cloud(3, seed=0)
    cloud.log_scales[0], cloud.log_scales[1], cloud.quats[2] = 80.0, -200.0, 0.0
    rounded = packed(cloud).covariances.astype(np.float16).astype(np.float64)
    assert np.isfinite(rounded).all()
    assert (np.linalg.eigvalsh(rounded) >= 0).all()


def test_colours_are_clamped_and_rounded() -> None:
    cloud = initial_cloud(4, seed=0)
    for row, value in enumerate((-3.0, 3.0, 127.6 / 255, 0.999)):
        cloud.sh[row, 0] = (value - 0.5) / SH_C0
    cloud.logit_opacities[:] = torch.tensor([-30.0, 30.0, 0.0, 5.6])
    splats = packed(cloud)
    assert splats.rgbs.dtype == splats.opacities.dtype == np.uint8
    assert splats.rgbs.tolist() == [[0] * 3, [255] * 3, [128] * 3, [255] * 3]
    assert splats.opacities.tolist() == [[0], [255], [128], [254]]
