"""A splat of another format is told what makes a ply of it."""

import shlex

import pytest

from ddpo3d_fast.assets.ply import read_ply
from ddpo3d_fast.errors import InputError


@pytest.mark.parametrize(
    "name", ["a.spz", "a.splat", "a.KSPLAT", "my cat.sog", "meta.json", "lod-meta.json", "a.lcc", "a.lcc2"]
)
def test_what_splat_transform_reads_is_named_with_its_command(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8b or whatever")
    with pytest.raises(InputError, match="not read here; make a ply of it") as caught:
        read_ply(path)
    words = shlex.split(str(caught.value).split("make a ply of it: ")[1])
    assert words == ["npx", "@playcanvas/splat-transform", str(path), str(path.with_suffix(".ply"))]


@pytest.mark.parametrize(("name", "kind"), [("a.glb", "glTF"), ("a.gltf", "glTF"), ("a.usdz", "USD")])
def test_what_no_converter_reads_is_named(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"glTF")
    with pytest.raises(InputError, match=f"a {kind} file, which is not read here; export a ply"):
        read_ply(tmp_path / name)


def test_a_ply_by_another_name_is_read_as_a_ply(tmp_path):
    (tmp_path / "a.splat").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    with pytest.raises(InputError, match="no property x: not a 3D Gaussian splat"):
        read_ply(tmp_path / "a.splat")


def test_other_files_are_no_ply(tmp_path):
    (tmp_path / "a.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="not a ply file"):
        read_ply(tmp_path / "a.json")
