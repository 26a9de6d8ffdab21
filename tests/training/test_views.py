"""Views: what is drawn is what is named."""

import pytest
import torch

from ddpo3d_fast.training.objects import COLOR_NAMES, COLORS
from ddpo3d_fast.training.render import colorize
from ddpo3d_fast.training.views import composite, load_sources, random_backgrounds


def test_composite_equals_the_prior_training_pictures(rendered):
    masks, backgrounds = rendered[0].float() / 255, torch.rand(len(rendered[0]), 3)
    palette = torch.rand(len(masks), 4, 3)
    layers = torch.cat([torch.einsum("bkhw,bkc->bchw", masks[:, :4], palette), masks[:, 4:]], 1)
    spread = backgrounds[:, :, None, None].expand(-1, -1, 64, 64)
    torch.testing.assert_close(composite(layers, spread), colorize(masks, palette, backgrounds))


def test_the_named_colour_is_the_main_materials(source):
    views = source.draw(400)
    balls = (views.classes == 0).nonzero()[:, 0]  # of one material: mean shade of the whole object
    assert len(balls) > 5
    for row in balls.tolist():
        mean = views.layers[row, :3].sum((1, 2)) / views.layers[row, 3].sum()
        palette = torch.tensor([COLORS[name] for name in COLOR_NAMES])
        shade = (mean @ palette.T / (palette * palette).sum(1)).clamp(0.5, 1)[:, None]
        nearest = ((palette * shade - mean) ** 2).sum(1).argmin().item()
        neutral = {"black", "gray", "white"}  # shading alone may confuse these
        assert (
            nearest == views.colors[row] or {COLOR_NAMES[nearest], COLOR_NAMES[views.colors[row]]} <= neutral
        )


def test_draws_repeat_with_the_seed_and_backgrounds_are_in_range(rendered):
    backgrounds = random_backgrounds(300, 64, torch.Generator().manual_seed(1))
    assert torch.equal(backgrounds, random_backgrounds(300, 64, torch.Generator().manual_seed(1)))
    assert backgrounds.min() >= 0
    assert backgrounds.max() <= 1
    assert (backgrounds == 1).flatten(1).all(1).float().mean() > 0.2


def test_held_out_views_are_the_last_shards(dataset):
    train, held_out = load_sources(dataset, 0)
    assert (len(train), len(held_out)) == (48, 96)
    (dataset / "shard-0002.npz").unlink()
    with pytest.raises(ValueError, match="expected more than 2 shards"):
        load_sources(dataset, 0)
