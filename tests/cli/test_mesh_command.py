"""`mesh`: what it writes and says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ddpo3d_fast import extras, meshing
from ddpo3d_fast.assets import write_ply
from ddpo3d_fast.configure import preset
from ddpo3d_fast.extras import EXTRAS
from ddpo3d_fast.meshing import MeshSettings
from ddpo3d_fast.run import RunFolder

from .conftest import Command

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed (the extra mesh)")
for module in EXTRAS["mesh"].values():
    pytest.importorskip(module, reason=f"{module} is not installed (the extra mesh)")

COARSE = ("--resolution", "40", "--texture-size", "64", "--faces", "800")


@pytest.fixture
def splat(work: Path) -> Path:
    """A ball of 300 Gaussians."""
    number = torch.arange(300) + 0.5
    y, turn = 1 - number / 150, 3.883222 * number
    flat = (1 - y * y).sqrt()
    means = 0.5 * torch.stack([flat * turn.sin(), y, flat * turn.cos()], 1)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(300, 1)
    write_ply(
        "ball.ply", means, quats, torch.full((300, 3), -2.7), torch.full((300,), 3.0), torch.zeros(300, 1, 3)
    )
    return Path("ball.ply")


def test_a_mesh_lies_beside_the_file(command: Command, splat: Path) -> None:
    outcome = command("mesh", splat, *COARSE)
    assert (outcome.code, outcome.out, outcome.err) == (0, "ball-mesh.glb\n", "")
    mesh = trimesh.load_mesh("ball-mesh.glb")
    assert 100 < len(mesh.faces) <= 800
    assert mesh.visual.material.baseColorTexture.size == (64, 64)


def test_a_run_s_mesh_is_in_its_folder(command: Command, splat: Path) -> None:
    Path("run").mkdir()
    splat.rename("run/asset.ply")
    assert command("mesh", "run", *COARSE).out == "run/mesh.glb\n"
    assert {path.name for path in Path("run").iterdir()} == {"asset.ply", "mesh.glb"}


@pytest.mark.parametrize("suffix", [".spz", ".glb", ".splat"])
def test_splats_of_other_formats_become_meshes(command: Command, splat: Path, suffix: str) -> None:
    assert command("export", splat, f"splat{suffix}").code == 0
    assert command("mesh", f"splat{suffix}", "--output", "ball.glb", *COARSE).out == "ball.glb\n"
    assert len(trimesh.load_mesh("ball.glb").faces) > 100


@pytest.mark.parametrize("name", ["some/where/ball.obj", "ball.PLY", "ball.glb"])
def test_the_output_s_suffix_says_what_is_written(command: Command, splat: Path, name: str) -> None:
    splat = splat.rename("splat.ply")
    assert command("mesh", splat, "--output", name, *COARSE).out == f"{name}\n"
    assert len(trimesh.load_mesh(name).faces) > 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nowhere"],
            "asset: expected a Gaussian splat or the folder of a run, got nowhere, which does not exist",
        ),
        (
            ["."],
            "asset: expected a Gaussian splat or the folder of a run, "
            "got ., which is a folder without asset.ply",
        ),
        ([], "asset: expected one Gaussian splat, or the folder of a run, got none"),
        (
            ["ball.ply", "other.ply"],
            "asset: expected one Gaussian splat, or the folder of a run, got ball.ply and other.ply",
        ),
        (["ball.ply", "--output", "a.stl"], "--output: expected one of .glb, .obj, .ply, got '.stl'"),
        (
            ["ball.ply", "--output", "ball.ply"],
            "--output: expected another file than the asset, got ball.ply",
        ),
        (["ball.ply", "--faces", "3"], "--faces: expected a number from 100 to 1000000, got 3"),
        (["ball.ply", "--texture-size", "1e9"], "--texture-size: expected a whole number, got '1e9'"),
        (
            ["ball.ply", "--refine-steps", "5"],
            "--refine-steps: expected the folder of a run, whose prompt and models refine its mesh, "
            "got ball.ply",
        ),
        (["ball.ply", "--facets", "3"], "--facets: no such option of mesh; did you mean --faces?"),
    ],
)
def test_wrong_input_is_one_line(command: Command, splat: Path, words: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in Path().iterdir()}
    outcome = command("mesh", *words)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"ddpo3d-fast: {message}\n")
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_missing_package_is_one_line(
    command: Command, splat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "mesh", {"scikit-image": "skimage", "no-such": "no_such_module"})
    outcome = command("mesh", splat)
    assert outcome.code == 2
    assert outcome.err == "ddpo3d-fast: mesh: needs no-such: pip install 'ddpo3d-fast[mesh]'\n"
    assert "no-such" in command("info").out
    assert json.loads(command("info", "--json").out)["extras"]["mesh"] == ["no-such"]


def test_quiet_prints_nothing(command: Command, splat: Path) -> None:
    outcome = command("mesh", splat, "--quiet", *COARSE)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert Path("ball-mesh.glb").exists()


def test_generate_makes_a_mesh_and_a_new_run_there_takes_it_away(
    command: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = meshing.framed_mesh
    coarse = MeshSettings(faces=800, texture_size=64, resolution=40)
    monkeypatch.setattr(meshing, "framed_mesh", lambda gaussians, settings: fine(gaussians, coarse))
    words = ("--prompt", "a red ball", "--preset", "draft", "--steps", "2", "--output", "run")
    outcome = command("generate", *words, "--gaussians", "400", "--mesh")
    assert outcome.code == 0
    assert outcome.out.startswith("run: mesh.glb, asset.ply, ")
    assert len(trimesh.load_mesh("run/mesh.glb").faces) > 50
    other = dataclasses.replace(preset("draft", "a blue ball"), output=Path("run"))
    RunFolder.create(other, overwrite=True).begin(other, {})
    assert {path.name for path in Path("run").iterdir()} == {"config.yaml"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--refine-steps", "5"], "--refine-steps: expected --mesh with it, got 5 alone"),
        (["--mesh", "--refine-steps", "-1"], "--refine-steps: expected a number from 0 to 100000, got -1"),
    ],
)
def test_wrong_wishes_for_a_mesh_end_before_the_run(command: Command, words: list[str], message: str) -> None:
    outcome = command("generate", "--prompt", "a red ball", *words)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"ddpo3d-fast: {message}\n")
    assert not list(Path().iterdir())


def test_a_missing_package_ends_before_the_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "mesh", {"no-such": "no_such_module"})
    outcome = command("generate", "--prompt", "a red ball", "--mesh")
    assert outcome.err == "ddpo3d-fast: --mesh: needs no-such: pip install 'ddpo3d-fast[mesh]'\n"
    assert not list(Path().iterdir())
