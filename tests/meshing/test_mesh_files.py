"""Meshes as files: what is in them, read back by trimesh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpo3d_fast.assets import MESH_FORMATS, write_mesh
from ddpo3d_fast.errors import InputError

from .meshes import SIDES, box

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed (the extra mesh)")


def loaded(path: Path) -> trimesh.Trimesh:
    return trimesh.load_mesh(path, process=False)


def color_at(mesh: trimesh.Trimesh, side: str) -> list[int]:
    """What trimesh sees in the middle of a side of the box."""
    axis, sign = "xyz".index(side[1]), 1 if side[0] == "+" else -1
    face = next(i for i, normal in enumerate(mesh.face_normals) if normal[axis] * sign > 0.9)
    uv = mesh.visual.uv[mesh.faces[face]].mean(0)
    material = mesh.visual.material
    picture = material.baseColorTexture if hasattr(material, "baseColorTexture") else material.image
    picture = picture.convert("RGB")
    return list(picture.getpixel((int(uv[0] * picture.width), int((1 - uv[1]) * picture.height))))


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_trimesh_finds_the_mesh_and_its_texture(tmp_path: Path, suffix: str) -> None:
    write_mesh(tmp_path / f"box{suffix}", box())
    mesh = loaded(tmp_path / f"box{suffix}")
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -0.4, -0.3], [0.5, 0.4, 0.3]], rtol=1e-6)
    assert len(mesh.faces) == 12
    assert mesh.volume == pytest.approx(8 * 0.5 * 0.4 * 0.3)  # triangles look outward
    np.testing.assert_allclose(mesh.vertex_normals, box().normals, atol=1e-6)
    for side, color in SIDES.items():
        assert color_at(mesh, side) == [round(255 * part) for part in color]
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight


def test_a_ply_has_colours_at_its_vertices_and_is_closed(tmp_path: Path) -> None:
    mesh = box()._replace(texture=torch.full((8, 8, 3), 0.2))
    write_mesh(tmp_path / "box.ply", mesh)
    read = loaded(tmp_path / "box.ply")
    assert len(read.vertices) == 8
    assert read.is_watertight
    assert read.volume == pytest.approx(8 * 0.5 * 0.4 * 0.3)
    assert (read.visual.vertex_colors[:, :3] == 51).all()


def test_a_ply_s_colours_are_the_texture_s_at_the_vertices(tmp_path: Path) -> None:
    mesh = box()
    apart = mesh._replace(vertices=mesh.vertices + mesh.normals)  # no two corners at one place
    write_mesh(tmp_path / "box.ply", apart)
    read = loaded(tmp_path / "box.ply")
    colors = {
        tuple(place): color.tolist()
        for place, color in zip(read.vertices, read.visual.vertex_colors, strict=True)
    }
    for number, color in enumerate(SIDES.values()):
        for place in apart.vertices[4 * number : 4 * number + 4].tolist():
            assert colors[tuple(place)][:3] == [round(255 * part) for part in color]


def test_an_obj_lies_beside_its_material_and_picture(tmp_path: Path) -> None:
    write_mesh(tmp_path / "a box.obj", box())
    assert {path.name for path in tmp_path.iterdir()} == {"a box.obj", "a box.mtl", "a box.png"}
    assert "map_Kd a box.png" in (tmp_path / "a box.mtl").read_text()


@pytest.mark.parametrize("suffix", MESH_FORMATS)
def test_the_same_mesh_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_mesh(tmp_path / name / f"box{suffix}", box())
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


def test_capitals_in_a_suffix_do_not_matter_and_others_are_refused(tmp_path: Path) -> None:
    write_mesh(tmp_path / "BOX.GLB", box())
    assert (tmp_path / "BOX.GLB").read_bytes()[:4] == b"glTF"
    with pytest.raises(InputError, match=r"^--output: expected one of .glb, .obj, .ply, got '.stl'"):
        write_mesh(tmp_path / "box.stl", box())
    assert not (tmp_path / "box.stl").exists()


@pytest.mark.parametrize("suffix", MESH_FORMATS)
def test_where_it_cannot_be_written_nothing_of_it_is_left(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"box{suffix}").mkdir()
    with pytest.raises(InputError, match=f"cannot write .*box{suffix}: it is a folder"):
        write_mesh(tmp_path / f"box{suffix}", box())
    assert not list((tmp_path / f"box{suffix}").iterdir())


def test_tensors_need_not_be_contiguous(tmp_path: Path) -> None:
    """Not contiguous, as a slice is."""
    mesh = box()
    wide = mesh._replace(vertices=torch.cat([mesh.vertices, mesh.vertices], 1)[:, :3])
    write_mesh(tmp_path / "wide.glb", wide)
    write_mesh(tmp_path / "box.glb", mesh)
    assert (tmp_path / "wide.glb").read_bytes() == (tmp_path / "box.glb").read_bytes()
