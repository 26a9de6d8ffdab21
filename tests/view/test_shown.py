"""What lies at a path: a splat, a mesh, a run; or one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddpo3d_fast.assets import write_ply
from ddpo3d_fast.configure import preset
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians, initial_cloud
from ddpo3d_fast.view.command import runs_in
from ddpo3d_fast.view.page import markdown_text
from ddpo3d_fast.view.shown import is_mesh, load

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: pip install 'ddpo3d-fast[viewer]'")


def write(path: Path) -> Path:
    cloud = initial_cloud(20, seed=0)
    write_ply(path, cloud.means, cloud.quats, cloud.log_scales, cloud.logit_opacities, cloud.sh)
    return path


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
@pytest.mark.parametrize("bounds", [[[90, 90, 90], [110, 130, 110]], [[-1e-5] * 3, [1e-5, 2e-5, 1e-5]]])
def test_a_mesh_of_any_size_and_place_is_brought_before_the_camera(
    tmp_path: Path, suffix: str, bounds: list[list[float]]
) -> None:
    path = tmp_path / f"box{suffix}"
    trimesh.creation.box(bounds=bounds).export(path, **({"digits": 12} if suffix == ".obj" else {}))
    assert is_mesh(path)
    low, high = load(path).scene.bounds
    assert low + high == pytest.approx(np.zeros(3), abs=1e-5)
    assert 0.5 < np.linalg.norm(high - low) / 2 < 1.2
    assert (high - low)[1] == pytest.approx((high - low)[0] * (2 if bounds[0][0] > 0 else 1.5), rel=1e-4)


def test_a_mesh_in_our_own_ball_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "box.glb"
    trimesh.creation.box(bounds=[[-0.5, -0.6, -0.4], [0.4, 0.5, 0.5]]).export(path)
    np.testing.assert_allclose(load(path).scene.bounds, [[-0.5, -0.6, -0.4], [0.4, 0.5, 0.5]], atol=1e-6)


def test_a_splat_is_no_mesh(tmp_path: Path) -> None:
    path = write(tmp_path / "asset.ply")
    assert not is_mesh(path)
    assert isinstance(load(path).scene, Gaussians)
    (tmp_path / "splat.glb").write_bytes(b'glTF {"extensionsUsed": ["KHR_gaussian_splatting"]}')
    assert not is_mesh(tmp_path / "splat.glb")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.glb", b"glTF"),
        ("a.obj", b""),
        ("a.obj", b"v 1 2 3\n"),
        ("a.obj", b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nelement face 1\nend_header\n"),
    ],
)
def test_a_damaged_mesh_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"^path: .*{name}"):
        load(tmp_path / name)


def test_a_run_is_told_of_by_its_words_and_figures(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", preset("draft", "a <red> [ball](x) *star*"))
    folder.begin(folder.config, {})
    folder.write_metrics([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "gaussians": 20}])
    write(folder.path / "asset.ply")
    text = load(folder.path).text
    assert text.startswith(f"**{markdown_text('a <red> [ball](x) *star*')}**")
    assert markdown_text("<b> [a](x) *s*") == "&lt;b&gt; \\[a\\]\\(x\\) \\*s\\*"
    for line in ("| step | 2 |", "| loss | 0.25 |", "| gaussians | 20 |"):
        assert line in text.splitlines()


def test_runs_are_found_in_a_folder_and_in_a_batchs(tmp_path: Path) -> None:
    for name in ("a", "list/b", "much/too/deep"):
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name / "asset.ply")
    (tmp_path / "empty").mkdir()
    assert set(runs_in(tmp_path)) == {"a", "list/b"}
