"""Many views are rendered as few at a time as memory asks for, and are the same pictures."""

import pytest
import torch

from ddpo3d_fast.kernels import TooManyEntries
from ddpo3d_fast.scene import Gaussians, initial_cloud, orbit, render_each, view_batches

WHITE = torch.ones(3)


@pytest.fixture
def calls(monkeypatch):
    """The numbers of views of every call of the rasterizer."""
    counts, render = [], Gaussians.render

    def counted(self, cameras, *sizes, **limits):
        counts.append(len(cameras))
        return render(self, cameras, *sizes, **limits)

    monkeypatch.setattr(Gaussians, "render", counted)
    return counts


def rendered(scene, views, size=48):
    return list(render_each(scene, orbit(views), size, WHITE))


def test_the_pictures_are_those_of_one_call():
    scene = initial_cloud(200, seed=0)
    whole = scene.render(orbit(11), 48, 48, torch.ones(11, 3))
    views = rendered(scene, 11)
    assert torch.equal(torch.stack([view.rgb for view in views]), whole.rgb)
    assert torch.equal(torch.stack([view.alpha for view in views]), whole.alpha)


def test_a_light_scene_takes_eight_views_a_call(calls):
    assert len(rendered(initial_cloud(200, seed=0), 20)) == 20
    assert calls == [8, 8, 4]


def test_a_heavy_scene_takes_as_many_as_there_is_room_for(calls, monkeypatch):
    scene = initial_cloud(200, seed=0)
    scene.log_scales.fill_(1.0)  # each Gaussian covers all nine tiles
    whole = scene.render(orbit(9), 48, 48, torch.ones(9, 3)).rgb
    for room, expected in ((200 * 9 * 3, [8, 3, 3, 3]), (200 * 9, [8] + [1] * 9), (1, [8] + [1] * 9)):
        calls.clear()
        monkeypatch.setattr(view_batches, "PAIRS_AT_ONCE", room)
        assert torch.equal(torch.stack([view.rgb for view in rendered(scene, 9)]), whole)
        assert calls == expected


def test_views_of_unlike_weight_all_find_room(calls, monkeypatch):
    scene = initial_cloud(200, seed=0)
    monkeypatch.setattr(view_batches, "PAIRS_AT_ONCE", 3000)
    assert len(rendered(scene, 8)) == 8
    assert calls[0] == 8 > max(calls[1:])


def test_what_not_even_one_view_has_room_for_is_told(monkeypatch):
    monkeypatch.setattr(view_batches, "PAIRS_AT_ONCE", 10)
    monkeypatch.setattr("ddpo3d_fast.kernels.rasterizer.DEFAULT_MAX_ENTRIES", 10)
    with pytest.raises(TooManyEntries, match="expected at most 10"):
        rendered(initial_cloud(200, seed=0), 8)
