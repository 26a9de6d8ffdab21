"""`export`: which files it writes, where, and what it says; `render` shows them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpo3d_fast.assets import FORMATS, read_splat, write_splat

from .conftest import Command


def test_several_files_come_of_one_command(command: Command, ply: Path) -> None:
    outcome = command("export", "asset.ply", "b.spz", "new/c.sog", ".glb", ".compressed.ply")
    assert (outcome.code, outcome.err) == (0, "")
    paths = ["b.spz", "new/c.sog", "asset.glb", "asset.compressed.ply"]
    assert [line.partition(":")[0] for line in outcome.out.splitlines()] == paths
    assert all(len(read_splat(path).gaussians.means) == 50 for path in paths)
    assert command("export", "-q", "asset.ply", "d.splat").out == ""


def test_the_folder_of_a_run_stands_for_its_asset(command: Command, ply: Path) -> None:
    Path("run").mkdir()
    ply.rename("run/asset.ply")
    assert command("export", "run", ".spz", "a.splat").out.startswith("run/asset.spz: 0.00 MB\na.splat")
    assert command("render", "run", "--size", "16", "--views", "2").out == "run/asset.mp4\n"


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_was_exported_can_be_exported_and_rendered(command: Command, ply: Path, suffix: str) -> None:
    if suffix.startswith(".usd"):
        pytest.importorskip("pxr", reason="the extra formats is not installed")
    command("export", "asset.ply", f"b{suffix}")
    assert command("export", f"b{suffix}", "c.ply").code == 0
    stills = []
    for name in ("asset.ply", f"b{suffix}", "c.ply"):
        assert command("render", name, "--size", "48", "--views", "1", "--output", "view").code == 0
        stills.append(np.asarray(Image.open("view/000.png")).astype(int))
    assert np.abs(stills[1] - stills[0]).mean() < 0.5
    assert np.abs(stills[2] - stills[1]).mean() < 0.5


def test_up_is_of_the_asset_and_orientation_of_the_files(command: Command, ply: Path) -> None:
    still = {}
    assert command("export", "asset.ply", "z.ply", "z.usda", "--orientation", "z").code == 0
    assert command("export", "z.ply", "back.glb", "--up=z").code == 0
    lines = {"asset.ply": [], "z.ply": ["--up", "z"], "z.usda": [], "back.glb": []}
    for name, words in lines.items():
        assert command("render", name, "--size", "48", "--views", "1", "--output", "view", *words).code == 0
        still[name] = np.asarray(Image.open("view/000.png")).astype(int)
    assert all(np.abs(view - still["asset.ply"]).max() <= 2 for view in still.values())
    means, turned = (read_splat(name, up="y").gaussians.means for name in ("back.glb", "z.ply"))
    assert np.allclose(turned.numpy(), means.numpy()[:, [0, 2, 1]] * [1, -1, 1], atol=1e-6)


def test_lost_harmonics_are_told_once_a_file(command: Command, ply: Path) -> None:
    raw = read_splat(ply).gaussians
    write_splat("sh.ply", raw._replace(sh=raw.sh.repeat(1, 4, 1)))
    outcome = command("export", "sh.ply", "a.splat", "a.spz")
    assert outcome.err.startswith("ddpo3d-fast: a.splat: harmonics of degree 1 are left out")
    assert outcome.err.count("\n") == 1
    assert read_splat("a.spz").gaussians.degree == 1


def test_one_file_that_cannot_be_written_costs_no_other(command: Command, ply: Path) -> None:
    Path("folder.glb").mkdir()
    outcome = command("export", "asset.ply", "a.spz", "folder.glb", "b.splat")
    assert outcome.code == 2
    assert outcome.err == "ddpo3d-fast: cannot write folder.glb: it is a folder\n"
    assert Path("a.spz").exists()
    assert Path("b.splat").exists()


def test_spz_has_the_version_that_was_asked_for(command: Command, ply: Path) -> None:
    assert command("export", "asset.ply", "a.spz", "--spz-version", "2").code == 0
    assert gzip.decompress(Path("a.spz").read_bytes())[4] == 2
    assert command("export", "asset.ply", "a.spz").code == 0
    assert gzip.decompress(Path("a.spz").read_bytes())[4] == 3


def test_info_tells_which_extras_are_there(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "formats" in json.loads(command("info", "--json").out)["extras"]
    monkeypatch.setattr("ddpo3d_fast.info.missing", lambda extra: ["usd-core"] if extra == "formats" else [])
    assert "without usd-core: pip install 'ddpo3d-fast[formats]'" in command("info").out
