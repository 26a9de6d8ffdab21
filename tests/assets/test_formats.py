"""Every splat format is read as what was written, within what it can hold; files that are none are one
line."""

from __future__ import annotations

import gzip
import json
import math
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpo3d_fast.assets import FORMATS, PlyGaussians, read_splat, write_splat
from ddpo3d_fast.assets.raw import OPAQUE
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.scene import Gaussians, orbit

from .splat_scenes import bird, pictures, psnr, random_scene

# Least PSNR in dB of our picture of what was read to that of what was written: without and with harmonics.
WRITTEN = {
    ".ply": (200, 200),
    ".compressed.ply": (56, 47),
    ".spz": (49, 47),
    ".splat": (56, 0),
    ".sog": (58, 56),
    ".glb": (130, 130),
    ".usda": (130, 130),
    ".usdc": (130, 130),
    ".usdz": (130, 130),
}
NEEDS = {".usda": "pxr", ".usdc": "pxr", ".usdz": "pxr"}


def every_format(function):
    return pytest.mark.parametrize("suffix", FORMATS)(function)


@pytest.fixture(autouse=True)
def formats_extra(request: pytest.FixtureRequest) -> None:
    """Skips what needs a package that is missing."""
    parameters = getattr(request.node, "callspec", None)
    if parameters and (module := NEEDS.get(str(parameters.params.get("suffix")))):
        pytest.importorskip(module, reason="the extra formats is not installed")


def near(first: PlyGaussians, second: PlyGaussians, **within: float) -> None:
    """Gaussians in any order are the same, their positions known to a thousandth."""
    which = torch.cdist(first.means, second.means).argmin(1)
    other = second.rows(which)
    turns = (first.quats * other.quats).sum(1, keepdim=True).sign()
    differences = other._replace(quats=other.quats * turns)
    for name, most in within.items():
        assert (getattr(first, name) - getattr(differences, name)).abs().max() <= most, name


@every_format
@pytest.mark.parametrize("degree", [0, 3])
def test_a_scene_looks_as_before(tmp_path: Path, suffix: str, degree: int) -> None:
    scene, least = random_scene(degree=degree), WRITTEN[suffix][degree > 0]
    if not least:
        pytest.skip("has no harmonics")
    write_splat(tmp_path / f"a{suffix}", scene)
    back = read_splat(tmp_path / f"a{suffix}").gaussians
    assert back.degree == degree
    assert psnr(pictures(back), pictures(scene)) >= least


@pytest.mark.parametrize("version", [2, 3, 4])
def test_every_version_of_spz(tmp_path: Path, version: int) -> None:
    if version == 4:
        pytest.importorskip("zstandard", reason="the extra formats is not installed")
    scene = random_scene()
    write_splat(tmp_path / "a.spz", scene, version=version)
    data = (tmp_path / "a.spz").read_bytes()
    assert data[:4] == b"NGSP" if version == 4 else data[:2] == b"\x1f\x8b"
    back = read_splat(tmp_path / "a.spz").gaussians
    turn = 0.1 if version == 2 else 0.003
    near(back, scene, means=1.3e-4, quats=turn, log_scales=0.0313, sh=0.0132)
    near(back, scene, logit_opacities=0.3)


@pytest.mark.parametrize(
    ("suffix", "within"),
    [
        (".compressed.ply", {"means": 2e-3, "quats": 2e-3, "log_scales": 2e-3, "sh": 0.017}),
        (".splat", {"means": 0, "quats": 9e-3, "log_scales": 1e-6}),
        (".sog", {"means": 3e-5, "quats": 6e-3, "log_scales": 0.03, "sh": 0.12}),
        (".glb", {"means": 0, "quats": 0, "log_scales": 1e-6, "logit_opacities": 1e-5, "sh": 0}),
        (".usdz", {"means": 0, "quats": 0, "log_scales": 1e-6, "logit_opacities": 1e-5, "sh": 0}),
    ],
)
def test_numbers_survive_as_far_as_the_format_holds_them(tmp_path: Path, suffix: str, within: dict) -> None:
    scene = random_scene(degree=0 if suffix == ".splat" else 3)
    write_splat(tmp_path / f"a{suffix}", scene)
    near(read_splat(tmp_path / f"a{suffix}").gaussians, scene, **within)


@every_format
def test_the_same_scene_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        write_splat(tmp_path / name / f"a{suffix}", random_scene(degree=0))
    assert (tmp_path / "a" / f"a{suffix}").read_bytes() == (tmp_path / "b" / f"a{suffix}").read_bytes()


@every_format
def test_quaternions_come_out_with_length_one_whatever_they_had(tmp_path: Path, suffix: str) -> None:
    scene = random_scene(degree=0)
    lengths = torch.linspace(0.01, 30, len(scene.means))[:, None]
    write_splat(tmp_path / f"a{suffix}", scene._replace(quats=scene.quats * lengths))
    back = read_splat(tmp_path / f"a{suffix}").gaussians
    assert (back.quats.norm(dim=1) - 1).abs().max() < (0.01 if suffix == ".splat" else 1e-6)
    near(back, scene, quats=0.01)


@every_format
def test_opaque_and_clear_stay_so(tmp_path: Path, suffix: str) -> None:
    scene = random_scene(count=4, degree=0)
    opacities = torch.tensor([math.inf, -math.inf, 40.0, -40.0])
    write_splat(tmp_path / f"a{suffix}", scene._replace(logit_opacities=opacities))
    back = read_splat(tmp_path / f"a{suffix}").gaussians
    assert back.logit_opacities.isfinite().all()
    near(back, scene._replace(logit_opacities=OPAQUE * opacities.sign()), logit_opacities=20.001)
    assert back.logit_opacities.sigmoid().sort().values.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-8)


@every_format
def test_a_scene_that_is_saved_again_and_again_does_not_fade(tmp_path: Path, suffix: str) -> None:
    scene = random_scene(degree=0)
    alphas = []
    for _ in range(4):
        write_splat(tmp_path / f"a{suffix}", scene)
        scene = read_splat(tmp_path / f"a{suffix}").gaussians
        alphas.append(scene.logit_opacities.sigmoid().sort().values)
    first = random_scene(degree=0).logit_opacities.sigmoid().sort().values
    assert all((later - first).abs().max() <= 0.5001 / 255 for later in alphas)


@every_format
@pytest.mark.parametrize("count", [0, 1])
def test_scenes_of_next_to_nothing(tmp_path: Path, suffix: str, count: int) -> None:
    scene = random_scene(count=count, degree=1)
    if suffix == ".sog" and not count:
        with pytest.raises(InputError, match="expected at least one Gaussian"):
            write_splat(tmp_path / "a.sog", scene)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        write_splat(tmp_path / f"a{suffix}", scene)
    back = read_splat(tmp_path / f"a{suffix}").gaussians
    assert len(back.means) == count
    assert torch.allclose(back.means, scene.means, atol=1e-3)


def test_harmonics_that_a_format_has_no_room_for_are_told(tmp_path: Path) -> None:
    with pytest.warns(FallbackWarning, match="a.splat: harmonics of degree 2 are left out") as told:
        write_splat(tmp_path / "a.splat", random_scene(degree=2))
    assert len(told) == 1
    near(read_splat(tmp_path / "a.splat").gaussians, random_scene(degree=2)._replace(), means=0)


# ---- orientation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", ["y", "-y", "z", "-z", "x", "-x"])
def test_any_axis_of_a_file_can_point_up(tmp_path: Path, up: str) -> None:
    """The harmonics go along: what the front sees of a file is what it saw of the scene."""
    scene = random_scene()
    write_splat(tmp_path / "a.ply", scene, up=up)
    back, from_file = read_splat(tmp_path / "a.ply", up=up)
    assert psnr(pictures(back), pictures(scene)) > 120
    axis = (-1.0 if up[0] == "-" else 1.0) * torch.eye(3, dtype=torch.float64)["xyz".index(up[-1])]
    assert (from_file @ axis).tolist() == [0, 1, 0]


@pytest.mark.parametrize("up", ["z", "x", "-y"])
def test_a_turned_scene_is_what_a_turned_camera_sees(tmp_path: Path, up: str) -> None:
    """Holds the harmonics' signs to those of the rasterizer: it sees the file's own numbers."""
    scene = random_scene()
    write_splat(tmp_path / "a.ply", scene, up=up)
    as_stored, _ = read_splat(tmp_path / "a.ply", up="y")
    from_file = read_splat(tmp_path / "a.ply", up=up).from_file
    seen = Gaussians(*as_stored).render(orbit(3).turned(from_file), 96, 96).rgb
    assert psnr(seen, Gaussians(*scene).render(orbit(3), 96, 96).rgb) > 110


@pytest.mark.parametrize(("suffix", "up"), [(name, kind.up) for name, kind in FORMATS.items()])
def test_files_stand_as_their_formats_say(tmp_path: Path, suffix: str, up: str) -> None:
    scene = bird()
    write_splat(tmp_path / f"a{suffix}", scene)
    write_splat(tmp_path / f"b{suffix}", scene, up="-y" if up == "y" else "y")
    assert psnr(pictures(read_splat(tmp_path / f"a{suffix}").gaussians), pictures(scene)) > 45
    other = read_splat(tmp_path / f"b{suffix}").gaussians  # which nothing in the file says
    assert torch.allclose(other.means.mean(0), scene.means.mean(0) * torch.tensor([1, -1, -1]), atol=1e-3)


def test_a_usd_stage_says_its_axis(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="the extra formats is not installed")
    scene = random_scene(degree=1)
    write_splat(tmp_path / "a.usda", scene, up="z")
    assert 'upAxis = "Z"' in (tmp_path / "a.usda").read_text()
    assert psnr(pictures(read_splat(tmp_path / "a.usda").gaussians), pictures(scene)) > 110


# ---- single formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [2047.0, 3000.0, 1e5, 8e6])
def test_spz_makes_room_for_what_lies_far_off(tmp_path: Path, reach: float) -> None:
    scene = random_scene(count=20, degree=0)
    scene.means[0] = torch.tensor([reach, 0, -reach])
    write_splat(tmp_path / "a.spz", scene)
    back = read_splat(tmp_path / "a.spz").gaussians
    assert (back.means - scene.means).abs().max() <= max(2**-13, reach / 2**22)


def test_extensions_of_spz_are_told(tmp_path: Path) -> None:
    write_splat(tmp_path / "a.spz", random_scene(count=2, degree=0))
    data = bytearray(gzip.decompress((tmp_path / "a.spz").read_bytes()))
    data[14] |= 2
    (tmp_path / "a.spz").write_bytes(gzip.compress(data + struct.pack("<III", 0xADBE0003, 4, 6)))
    with pytest.warns(FallbackWarning, match=r"a\.spz: an extension of SPZ is not read.*: --up turns it"):
        assert len(read_splat(tmp_path / "a.spz").gaussians.means) == 2


def test_spz_says_where_its_room_ends(tmp_path: Path) -> None:
    scene = random_scene(count=2, degree=0)
    scene.means[0] = 1e8
    with pytest.raises(
        InputError, match=r"a\.spz: SPZ: expected positions within 8388607 of the origin, got 1e\+08"
    ):
        write_splat(tmp_path / "a.spz", scene)
    assert not list(tmp_path.iterdir())


def test_splat_begins_with_what_matters_most(tmp_path: Path) -> None:
    scene = random_scene(degree=0)
    write_splat(tmp_path / "a.splat", scene)
    back = read_splat(tmp_path / "a.splat").gaussians
    weights = back.log_scales.sum(1).exp() * back.logit_opacities.sigmoid()
    assert (weights[1:] <= weights[:-1] * 1.3).all()  # opacities are bytes


def test_glb_is_what_the_extension_asks_for(tmp_path: Path) -> None:
    scene = random_scene(count=10)
    write_splat(tmp_path / "a.glb", scene)
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, total, length, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), b"JSON")
    document = json.loads(data[20 : 20 + length])
    (primitive,) = document["meshes"][0]["primitives"]
    splats = primitive["extensions"]["KHR_gaussian_splatting"]
    assert splats == {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert primitive["mode"] == 0
    assert len(primitive["attributes"]) == 2 + 3 + 16
    place = document["accessors"][primitive["attributes"]["POSITION"]]
    assert place["min"] == scene.means.amin(0).tolist()
    assert place["max"] == scene.means.amax(0).tolist()

    def column(name: str, width: int) -> np.ndarray:
        view = document["bufferViews"][document["accessors"][primitive["attributes"][name]]["bufferView"]]
        start = 20 + length + 8 + view["byteOffset"]
        return np.frombuffer(data, "<f4", 10 * width, start).reshape(10, width)

    name = "KHR_gaussian_splatting"
    assert np.array_equal(column("POSITION", 3), scene.means)
    assert np.array_equal(column(f"{name}:ROTATION", 4), scene.quats.roll(-1, 1))
    assert np.allclose(column(f"{name}:SCALE", 3), scene.log_scales.exp(), rtol=1e-6)
    assert np.allclose(column(f"{name}:OPACITY", 1)[:, 0], scene.logit_opacities.sigmoid(), rtol=1e-6)
    assert np.array_equal(column(f"{name}:SH_DEGREE_3_COEF_6", 3), scene.sh[:, 15])


def test_nodes_of_a_gltf_move_their_gaussians(tmp_path: Path) -> None:
    scene = random_scene(count=50)
    write_splat(tmp_path / "a.glb", scene)
    data = (tmp_path / "a.glb").read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + length])
    half = math.sqrt(0.5)  # a quarter turn about y: z comes to x
    document["nodes"] = [{"children": [1], "translation": [1, 2, 3]}]
    document["nodes"] += [{"mesh": 0, "rotation": [0, half, 0, half], "scale": [2, 2, 2]}]
    document["buffers"][0]["uri"] = "a.bin"
    (tmp_path / "a.bin").write_bytes(data[20 + length + 8 :])
    (tmp_path / "b.gltf").write_text(json.dumps(document))
    back = read_splat(tmp_path / "b.gltf").gaussians
    x, y, z = scene.means.unbind(1)
    assert torch.allclose(back.means, torch.stack([2 * z + 1, 2 * y + 2, -2 * x + 3], 1), atol=1e-5)
    assert torch.allclose(back.log_scales, scene.log_scales + math.log(2), atol=1e-5)
    document["nodes"][1]["scale"] = [2, 2, 1]
    (tmp_path / "b.gltf").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"b\.gltf: a node stretches or mirrors its Gaussians"):
        read_splat(tmp_path / "b.gltf")


def test_usd_has_degree_and_extent(tmp_path: Path) -> None:
    pxr = pytest.importorskip("pxr.Usd", reason="the extra formats is not installed")
    scene = random_scene(count=50, degree=1)
    write_splat(tmp_path / "a.usdc", scene)
    stage = pxr.Stage.Open(str(tmp_path / "a.usdc"))
    prim = stage.GetDefaultPrim()
    assert prim.GetTypeName() == "ParticleField3DGaussianSplat"
    assert prim.GetAttribute("radiance:sphericalHarmonicsDegree").Get() == 1
    assert prim.GetAttribute("orientations").Get()[0].GetReal() == pytest.approx(scene.quats[0, 0].item())
    low, high = np.array(prim.GetAttribute("extent").Get())
    assert (low < scene.means.amin(0).numpy()).all()
    assert (high > scene.means.amax(0).numpy()).all()
    assert high.max() < (scene.means.amax() + 3 * scene.log_scales.exp().amax()).item()


def test_an_unpacked_sog_is_read_by_its_index(tmp_path: Path) -> None:
    import zipfile

    write_splat(tmp_path / "a.sog", random_scene())
    with zipfile.ZipFile(tmp_path / "a.sog") as bundle:
        bundle.extractall(tmp_path / "unpacked")
    packed, unpacked = (read_splat(tmp_path / name).gaussians for name in ("a.sog", "unpacked/meta.json"))
    assert all(torch.equal(first, second) for first, second in zip(packed, unpacked, strict=True))


def test_large_scenes_share_a_palette_of_harmonics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Harmonics that vary in a few ways alone survive a palette much smaller than their number."""
    monkeypatch.setattr("ddpo3d_fast.assets.sog._PALETTE", 256)
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(20, 15, 3, generator=generator) * 0.1
    scene = random_scene(count=2000)
    scene.sh[:, 1:] = kinds[torch.randint(20, (2000,), generator=generator)]
    write_splat(tmp_path / "a.sog", scene)
    back = read_splat(tmp_path / "a.sog").gaussians
    near(back, scene, sh=0.12)


# ---- files that are none -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".spz", ".splat", ".sog", ".glb", ".usdc", ".usdz", ".usda"])
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str) -> None:
    write_splat(tmp_path / f"a{suffix}", random_scene(count=10, degree=1 if suffix != ".splat" else 0))
    data = (tmp_path / f"a{suffix}").read_bytes()
    path = tmp_path / f"b{suffix}"
    contents = [b"", b"x", b"whatever else\n" * 50, data[: len(data) // 2], data[:-5]]
    if suffix == ".splat":  # which has nothing but rows: what is cut between two is whole
        contents = [b"x", b"whatever else\n" * 50, data[:-5]]
    if suffix == ".usdz":  # whose directory usd-core does without
        contents = contents[:4]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_splat(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"kernel":"ellipse"',
            '"kernel":"squares"',
            "expected Gaussians of the kernel ellipse, got 'squares'",
        ),
        (':SCALE":', ':WHALE":', "no attribute KHR_gaussian_splatting:SCALE"),
        ('"mesh":0', '"mesh":9', "there is no number 9 of meshes"),
        ('"VEC3"', '"MAT3"', "expected plain numbers in a bufferView"),
        ('"componentType":5126', '"componentTypo":5126', "a damaged .glb file"),
        ('"KHR_gaussian_splatting":{', '"KHR_gaussian_splitting":{', "no Gaussians: no primitive has"),
        ('"version":"2.0"', '"version":"3.0"', "expected glTF 2.0"),
    ],
)
def test_a_glb_that_means_something_else_is_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    write_splat(tmp_path / "a.glb", random_scene(count=10))
    data = (tmp_path / "a.glb").read_bytes()
    assert old.encode() in data
    (tmp_path / "a.glb").write_bytes(data.replace(old.encode(), new.encode()))
    with pytest.raises(InputError, match=message):
        read_splat(tmp_path / "a.glb")


def test_another_suffix_is_told_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"ends in \.ply, \.compressed\.ply, \.spz, .*\.usdz, got a\.spzz; did you"
    ):
        write_splat("a.spzz", random_scene(count=1))


def test_what_a_format_needs_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = r"pip install 'ddpo3d-fast\[formats\]'"
    with pytest.raises(InputError, match=f"a.usdz: USD: needs usd-core.*: {command}"):
        write_splat(tmp_path / "a.usdz", random_scene(count=1))
    with pytest.raises(InputError, match=f"a.spz: SPZ of version 4: needs .*zstandard: {command}"):
        write_splat(tmp_path / "a.spz", random_scene(count=1), version=4)
    assert not list(tmp_path.iterdir())
