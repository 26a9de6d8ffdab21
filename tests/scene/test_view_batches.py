"""Many views are rendered as few at a time as memory asks for, and are the same pictures."""

import pytest
import torch

from ddpo3d_fast.scene import Gaussians, initial_cloud, orbit, render_each, view_batches

WHITE = torch.ones(3)


@pytest.fixture
def calls(monkeypatch):
    """The numbers of views of every call of the rasterizer, and what refuses calls of more than `most`."""
    counts, render = [], Gaussians.render

    def counted(self, cameras, *sizes):
        counts.append(len(cameras))
        if len(cameras) > counted.most:
            raise ValueError(f"rasterize: {len(cameras)} views need more pairs than the limit")
        return render(self, cameras, *sizes)

    counted.most = 1000
    monkeypatch.setattr(Gaussians, "render", counted)
    return counts, counted


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
    assert calls[0] == [1, 8, 8, 3]


def test_a_heavy_scene_takes_fewer(calls, monkeypatch):
    scene = initial_cloud(200, seed=0)
    scene.log_scales.fill_(1.0)  # each Gaussian covers all nine tiles
    for room, expected in ((200 * 9 * 3, [1, 3, 3, 2]), (200 * 9, [1] * 9), (1, [1] * 9)):
        calls[0].clear()
        monkeypatch.setattr(view_batches, "PAIRS_AT_ONCE", room)
        assert len(rendered(scene, 9)) == 9
        assert calls[0] == expected


def test_where_the_rasterizer_refuses_half_as_many_are_tried(calls):
    calls[1].most = 3
    scene = initial_cloud(200, seed=0)
    views = rendered(scene, 8)
    assert calls[0] == [1, 7, 4, 2, 2, 2, 1]
    calls[1].most = 1000
    whole = scene.render(orbit(8), 48, 48, torch.ones(8, 3)).rgb
    assert torch.equal(torch.stack([view.rgb for view in views]), whole)


def test_what_not_even_one_view_has_room_for_is_told(calls):
    calls[1].most = 0
    with pytest.raises(ValueError, match="need more pairs than the limit"):
        rendered(initial_cloud(200, seed=0), 8)
    assert calls[0] == [1]
