"""Degradations: graded, seeded, confined to the rows and kinds they are asked for."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ddpo3d_fast.training.degrade import KINDS, degrade, gaussian_blur, single
from ddpo3d_fast.training.views import composite


def at(views, kind, severity, seed=5):
    return degrade(
        views.layers, views.backgrounds, single(kind, torch.full((len(views.layers),), severity)), seed
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_drift_from_the_clean_ones_as_severity_grows(source, kind):
    views = source.draw(48, torch.arange(48))
    clean = composite(views.layers, views.backgrounds)
    drift = torch.stack([(at(views, kind, s) - clean).abs().mean((1, 2, 3)) for s in (0.2, 0.5, 1.0)])
    assert (drift[0] > 1e-5).all()
    # A bite of 12 px takes all of a thin object on its side, so one in twenty may stand still.
    assert (drift.diff(dim=0) > 0).float().mean() >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_stay_in_range_and_repeat_with_the_seed(source, kind):
    views = source.draw(8)
    pictures = at(views, kind, 0.7)
    assert pictures.shape == (8, 3, 64, 64)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert torch.equal(pictures, at(views, kind, 0.7))
    if kind not in ("blur", "swollen"):  # these two have no chance in them
        assert not torch.equal(pictures, at(views, kind, 0.7, seed=6))


def test_severity_zero_is_the_clean_picture_and_rows_are_apart(source):
    views = source.draw(6)
    clean = composite(views.layers, views.backgrounds)
    severities = torch.zeros(6, len(KINDS))
    assert torch.equal(degrade(views.layers, views.backgrounds, severities, 1), clean.clamp(0, 1))
    severities[2] = 0.5
    mixed = degrade(views.layers, views.backgrounds, severities, 1)
    changed = (mixed != clean.clamp(0, 1)).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_swelling_grows_and_clipping_shrinks_the_outline_alone(source):
    views = source.draw(48, torch.arange(48))
    views.layers[:, :3] = 0  # black on white: the picture is the outline
    views.backgrounds[:] = 1
    clean = composite(views.layers, views.backgrounds)
    assert (at(views, "swollen", 0.6) <= clean + 1e-6).all()
    assert (at(views, "clipped", 0.6) >= clean - 1e-6).all()


def test_blur_equals_scipys():
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(images, torch.tensor([1.3, 2.0]))
    for index, sigma in enumerate((1.3, 2.0)):
        expected = gaussian_filter(images[index].double().numpy(), (0, sigma, sigma), truncate=12)
        inner = np.s_[:, 14:-14, 14:-14]  # the border is another convention
        np.testing.assert_allclose(blurred[index].numpy()[inner], expected[inner], atol=1e-6)


@pytest.mark.parametrize(
    "severities",
    [torch.zeros(4, 2), torch.full((4, len(KINDS)), 1.5), torch.full((4, len(KINDS)), torch.nan)],
)
def test_wrong_severities_are_named(source, severities):
    views = source.draw(4)
    with pytest.raises(ValueError, match="severities: expected"):
        degrade(views.layers, views.backgrounds, severities, 0)
