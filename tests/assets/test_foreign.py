"""A splat of a format that is not read here is told what makes a ply of it."""

import shlex

import pytest

from ddpo3d_fast.assets import read_splat
from ddpo3d_fast.errors import InputError


@pytest.mark.parametrize("name", ["my cat.KSPLAT", "lod-meta.json", "a.lcc", "a.lcc2"])
def test_what_splat_transform_reads_is_named_with_its_command(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8b or whatever")
    with pytest.raises(InputError, match="not read here; make a ply of it") as caught:
        read_splat(path)
    words = shlex.split(str(caught.value).split("make a ply of it: ")[1])
    assert words == ["npx", "@playcanvas/splat-transform", str(path), str(path.with_suffix(".ply"))]


@pytest.mark.parametrize("name", ["a.splat", "a.spz", "a.glb", "a.txt"])
def test_a_ply_by_another_name_is_read_as_a_ply(tmp_path, name):
    (tmp_path / name).write_bytes(b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    with pytest.raises(InputError, match="no property x: not a 3D Gaussian splat"):
        read_splat(tmp_path / name)


def test_other_files_are_no_ply(tmp_path):
    (tmp_path / "a.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="not a ply file"):
        read_splat(tmp_path / "a.json")
