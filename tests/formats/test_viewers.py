"""What we write is what viewers show, upright and from the side of the camera: in a headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from assets.splat_scenes import bird, psnr

from ddpo3d_fast.assets import write_splat
from ddpo3d_fast.scene import Cameras, Gaussians, orbit, render_each

from .browser import CHROMIUM
from .readers import needs_gltf, needs_npm
from .viewers import pictures

SIZE = 512
# Least PSNR in dB of a viewer's pictures: of all to our render, at the first format, and of the others to
# that one.
SPARK = {".ply": 49, ".spz": 50, ".splat": 57, ".sog": 57.3, ".compressed.ply": 57}
GAUSSIAN_SPLATS_3D = {".ply": 45.7, ".splat": 53, ".compressed.ply": 54.5, ".spz": 51}
BABYLON = {".glb": 45.6}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: run tests/view/fetch_chromium.sh"),
]


def front() -> Cameras:
    """A little to the right of the front, and above."""
    turn = orbit(12)
    return Cameras(turn.viewmats[1:2], turn.azimuth[1:2], turn.elevation[1:2], turn.fov_y)


@pytest.mark.filterwarnings("ignore:.*harmonics of degree 1 are left out")
@pytest.mark.parametrize(
    ("viewer", "least"),
    [
        pytest.param("spark", SPARK, marks=needs_npm),
        pytest.param("gaussian-splats-3d", GAUSSIAN_SPLATS_3D, marks=needs_npm),
        pytest.param("babylon", BABYLON, marks=needs_gltf),
    ],
)
def test_viewers_show_what_we_render(tmp_path: Path, viewer: str, least: dict[str, float]) -> None:
    scene, camera = bird(), front()
    if viewer == "gaussian-splats-3d":  # it reads no compressed ply without harmonics
        exact = torch.full((len(scene.sh), 3, 3), 1 / 64)  # that format has no 0
        scene = scene._replace(sh=torch.cat([scene.sh, exact], 1))
    for suffix in least:
        # gaussian-splats-3d reads no other spz.
        version = {"version": 2} if (viewer, suffix) == ("gaussian-splats-3d", ".spz") else {}
        write_splat(tmp_path / f"a{suffix}", scene, **version)
    (ours,) = (view.rgb for view in render_each(Gaussians(*scene), camera, SIZE, torch.ones(3)))
    shown = pictures(viewer, [tmp_path / f"a{suffix}" for suffix in least], camera, SIZE)
    first, *_ = least
    pairs = {end: (psnr(shown[f"a{end}"], ours), psnr(shown[f"a{end}"], shown[f"a{first}"])) for end in least}
    for suffix, (to_ours, to_first) in pairs.items():
        assert to_ours >= least[first], (suffix, pairs)
        assert to_first >= least[suffix], (suffix, pairs)
