"""What we write is what other people's programs read, and what they write is what we read."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from assets.splat_scenes import bird, pictures, psnr, random_scene

from ddpo3d_fast.assets import FORMATS, PlyGaussians, read_splat, suffix_of, write_splat
from ddpo3d_fast.assets.turning import turned

from .readers import GLTF_MODULES, GSPLY, MODULES, needs_gltf, needs_gsply, needs_npm, node, splat_transform

# Least PSNR in dB of what splat-transform reads of our files: without harmonics, and with.
READ = {
    ".ply": (120, 120),
    ".compressed.ply": (59, 47),
    ".spz": (50, 47),
    ".splat": (59, 0),
    ".sog": (59, 56),
}


def seen(path: Path, up: str) -> torch.Tensor:
    return pictures(read_splat(path, up=up).gaussians)


def scene_of(degree: int) -> PlyGaussians:
    return random_scene(degree=3) if degree else bird()


@needs_npm
@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("suffix", READ)
def test_splat_transform_reads_what_we_write(tmp_path: Path, suffix: str, degree: int) -> None:
    least = READ[suffix][degree > 0]
    if not least:
        pytest.skip("has no harmonics")
    write_splat(tmp_path / f"a{suffix}", scene_of(degree))
    splat_transform(tmp_path / f"a{suffix}", tmp_path / "b.ply")
    picture = seen(tmp_path / "b.ply", FORMATS[suffix].up)  # it passes on the file's numbers
    assert psnr(picture, pictures(scene_of(degree))) >= least
    assert psnr(picture, seen(tmp_path / f"a{suffix}", FORMATS[suffix].up)) >= 70


@needs_npm
@pytest.mark.parametrize("name", ["a.compressed.ply", "a.sog", "a.glb", "3.spz", "4.spz"])
def test_we_read_what_splat_transform_writes(tmp_path: Path, name: str) -> None:
    if name == "4.spz":
        pytest.importorskip("zstandard", reason="the extra formats is not installed")
    scene = random_scene(degree=3)
    write_splat(tmp_path / "a.ply", scene)
    version = ["--spz-version", name[0]] if name.endswith(".spz") else []
    splat_transform(*version, tmp_path / "a.ply", tmp_path / name)
    # It turns a glb about z, so that its front looks to -z; an spz it does not turn at all.
    up = "-y" if name.endswith(".spz") else None
    back = read_splat(tmp_path / name, up=up).gaussians
    if name == "a.glb":
        back = turned(back, torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64)))
    # Its palette of harmonics is small: a power of two below the number of Gaussians.
    theirs = psnr(pictures(back), pictures(scene))
    assert theirs >= (25 if name == "a.sog" else 38)
    write_splat(tmp_path / name, scene)
    assert psnr(pictures(read_splat(tmp_path / name).gaussians), pictures(scene)) >= min(theirs - 0.5, 120)


@needs_npm
@pytest.mark.parametrize("version", [2, 3, 4])
def test_the_reference_library_reads_our_spz_in_its_axes(tmp_path: Path, version: int) -> None:
    """Told to give a ply's axes it gives the numbers of our ply."""
    if version == 4:
        pytest.importorskip("zstandard", reason="the extra formats is not installed")
    scene = random_scene(degree=3)
    write_splat(tmp_path / "a.spz", scene, version=version)
    node(Path(__file__).parent / "read_spz.mjs", MODULES, tmp_path / "a.spz", tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text())
    columns = {name: torch.tensor(numbers) for name, numbers in read.items()}
    count = len(scene.means)
    cloud = PlyGaussians(
        means=columns["positions"].reshape(count, 3),
        quats=columns["rotations"].reshape(count, 4).roll(1, 1),
        log_scales=columns["scales"].reshape(count, 3),
        logit_opacities=columns["alphas"],
        sh=torch.cat([columns["colors"].reshape(count, 1, 3), columns["sh"].reshape(count, 15, 3)], 1),
    )
    write_splat(tmp_path / "b.ply", cloud, up="y")  # its numbers, in a file that is y down
    assert psnr(seen(tmp_path / "b.ply", "-y"), pictures(scene)) >= (42 if version == 2 else 47)


@needs_gsply
def test_gsply_reads_what_we_write(tmp_path: Path) -> None:
    scene = random_scene(degree=3)
    names = ["a.ply", "a.spz", "a.compressed.ply"]
    for name in names:
        write_splat(tmp_path / name, scene)
    script = """
        import sys, gsply
        read = {"a.spz": gsply.read_spz}
        for name in sys.argv[1:]:
            gsply.plywrite(name + ".ply", read.get(name, gsply.plyread)(name))
    """
    subprocess.run([GSPLY, "-c", textwrap.dedent(script), *names], cwd=tmp_path, check=True, timeout=120)
    for name in names:
        up = FORMATS[suffix_of(Path(name))].up
        assert psnr(seen(tmp_path / f"{name}.ply", up), seen(tmp_path / name, up)) >= 60, name


@needs_gltf
@pytest.mark.parametrize("degree", [0, 3])
def test_khronos_validator_finds_no_fault_in_a_glb(tmp_path: Path, degree: int) -> None:
    write_splat(tmp_path / "a.glb", random_scene(degree=degree))
    script = f"""
        const validator = require('{GLTF_MODULES}/gltf-validator');
        const data = new Uint8Array(require('fs').readFileSync('{tmp_path}/a.glb'));
        validator.validateBytes(data).then((report) => console.log(JSON.stringify(report.issues)));
    """
    issues = json.loads(node("-e", script))
    # It does not know the extension, and takes its attributes' names for wrong ones.
    place = "/meshes/0/primitives/0/attributes/KHR_gaussian_splatting:"
    others = [issue for issue in issues["messages"] if not issue["pointer"].startswith(place)]
    assert [issue["code"] for issue in others] == ["UNSUPPORTED_EXTENSION"]


def test_usd_core_finds_no_fault(tmp_path: Path) -> None:
    usd = pytest.importorskip("pxr.Usd", reason="the extra formats is not installed")
    validation = pytest.importorskip("pxr.UsdValidation")
    context = validation.ValidationContext(validation.ValidationRegistry().GetOrLoadAllValidators())
    for suffix in (".usda", ".usdc", ".usdz"):
        write_splat(tmp_path / f"a{suffix}", random_scene(degree=1))
        found = context.Validate(usd.Stage.Open(str(tmp_path / f"a{suffix}")))
        assert not found, [error.GetMessage() for error in found]
