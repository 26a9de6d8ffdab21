"""`render` and `info`: what they write and say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ddpo3d_fast import __version__
from ddpo3d_fast.assets import PlyGaussians, read_ply, to_uint8, write_ply
from ddpo3d_fast.export import turntable_frames
from ddpo3d_fast.info import choose_device, machine, report
from ddpo3d_fast.kernels import build_info
from ddpo3d_fast.render import parse_color
from ddpo3d_fast.scene import Gaussians, gaussians, initial_cloud, view_batches

from .conftest import Command


def test_a_turntable_lies_beside_the_asset(command: Command, ply: Path) -> None:
    outcome = command("render", "asset.ply", "--size", "32", "--views", "5")
    assert (outcome.code, outcome.out, outcome.err) == (0, "asset.mp4\n", "")
    with av.open("asset.mp4") as video:
        frames = [frame.to_ndarray(format="rgb24").shape for frame in video.decode(video=0)]
    assert frames == [(32, 32, 3)] * 5


def test_a_png_is_a_contact_sheet(command: Command, ply: Path) -> None:
    assert command("render", ply, "--output", "sheet.png", "--size", "20", "--views", "3").code == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (2 * 20 + 3 * 4, 2 * 20 + 3 * 4)


@pytest.mark.parametrize("line", ["--stills", "--stills --output asset-stills", "--output asset-stills"])
def test_stills_are_numbered(command: Command, ply: Path, line: str) -> None:
    outcome = command("render", "asset.ply", "--size", "16", *line.split())
    assert outcome.out == "asset-stills\n"
    assert sorted(path.name for path in Path("asset-stills").iterdir()) == [f"{i:03d}.png" for i in range(8)]


def test_background_and_elevation_are_what_was_asked_for(command: Command, ply: Path) -> None:
    def corner(*words: str) -> np.ndarray:
        command("render", "asset.ply", "--size", "64", "--views", "1", "--output", "stills", *words)
        return np.asarray(Image.open("stills/000.png"))

    blue = corner("--background", "#0000ff")
    assert blue[0, 0].tolist() == [0, 0, 255]
    assert corner("--background", "0,0,1").tolist() == blue.tolist()
    assert corner("--background", "blue", "--elevation", "80").tolist() != blue.tolist()


def test_our_own_asset_is_shown_as_generate_shows_it(command: Command, work: Path) -> None:
    cloud = initial_cloud(500, seed=0)
    write_ply("asset.ply", cloud.means, cloud.quats, cloud.log_scales, cloud.logit_opacities, cloud.sh)
    assert command("render", "asset.ply", "--size", "40", "--views", "3", "--stills").code == 0
    stills = [np.asarray(Image.open(f"asset-stills/00{index}.png")) for index in range(3)]
    frames = list(turntable_frames(Gaussians(*read_ply("asset.ply")), 3, 40))
    assert np.array_equal(np.stack(stills), to_uint8(torch.stack(frames)).numpy())


def still(command: Command, scene: PlyGaussians, *words: str) -> np.ndarray:
    """The first view of a scene, and what was said."""
    write_ply("scene.ply", *scene)
    outcome = command("render", "scene.ply", "--size", "48", "--views", "1", "--output", "view", *words)
    assert (outcome.code, outcome.out) == (0, "view\n")
    return np.asarray(Image.open("view/000.png")).astype(int)


def boat() -> PlyGaussians:
    """A long cloud: 20 units to a side, its bow at x = 20 red, its mast at y = 8 blue, the front of it, at
    z = 4, green."""
    means = torch.randn(900, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    means[:300, 0] += torch.linspace(0, 20, 300)
    means[300:600, 1] += torch.linspace(0, 8, 300)
    means[600:, 2] += torch.linspace(0, 4, 300)
    sh = torch.full((900, 1, 3), -1.7)
    for channel, part in ((0, slice(0, 300)), (2, slice(300, 600)), (1, slice(600, 900))):
        sh[part, 0, channel] = 1.7
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(900, 1)
    return PlyGaussians(means, quats, torch.full((900, 3), -1.0), torch.full((900,), 4.0), sh)


def turned(scene: PlyGaussians, up: str) -> PlyGaussians:
    """The scene as it lies where, in the file, `up` points up; its Gaussians are round."""
    x, y, z = scene.means.unbind(1)
    in_file = {"-y": (x, -y, -z), "y": (x, y, z), "z": (x, -z, y), "-z": (x, z, -y)}
    in_file |= {"x": (y, -x, z), "-x": (-y, x, z)}
    means = torch.stack(in_file[up], 1) * torch.tensor([1.0, -1, -1])  # what write_ply turns into that
    return scene._replace(means=means)


@pytest.mark.parametrize("up", ["-y", "y", "z", "-z", "x", "-x"])
@pytest.mark.parametrize("form", ["--up {}", "--up={}"])
def test_any_axis_can_point_up(command: Command, work: Path, up: str, form: str) -> None:
    upright = still(command, boat())
    blue = np.argwhere(upright[..., 2] - upright[..., 0] > 100).mean(0)
    red = np.argwhere(upright[..., 0] - upright[..., 2] > 100).mean(0)
    assert blue[0] < red[0] - 3  # the mast above
    assert red[1] > blue[1] + 3  # the bow on the right
    assert np.abs(still(command, turned(boat(), up), *form.format(up).split()) - upright).max() <= 2


@pytest.mark.parametrize("times", [1e-3, 1.0, 1e3])
def test_a_scene_is_found_wherever_it_lies(command: Command, work: Path, times: float) -> None:
    scene, shift = boat(), torch.tensor([100.0, -50, 70])
    far = scene._replace(means=(scene.means + shift) * times, log_scales=scene.log_scales + math.log(times))
    assert np.abs(still(command, far) - still(command, scene)).mean() < 1


def test_centre_and_radius_are_the_file_s(command: Command, work: Path) -> None:
    scene = boat()  # in the file y and z are negated
    tip = still(command, scene, "--center", "0,-8,0", "--radius", "9", "--elevation", "0")
    column = tip[:24, 24]
    assert (tip[24:27, 24, 2] - tip[24:27, 24, 0] > 50).all()  # the mast below its tip
    assert column[:8].min() == 255  # and nothing above
    aside = [
        (np.arange(48) - 23.5) @ (255 - view).sum((0, 2)) / (255 - view).sum()
        for radius in ("60", "120")
        for view in [still(command, scene, "--center", "-1e0,0,0", "--radius", radius, "--elevation", "0")]
    ]
    assert aside[0] == pytest.approx(2 * aside[1], rel=0.1)  # pixels from the middle
    assert aside[0] > 3


def test_views_that_show_nothing_are_told(command: Command, ply: Path) -> None:
    line = "render asset.ply --size 16 --views 2 --stills --elevation 60 --center 0,0,50 --radius 1"
    outcome = command(*line.split())
    assert (outcome.code, outcome.out) == (0, "asset-stills\n")
    assert outcome.err.startswith("ddpo3d-fast: 2 of 2 views show nothing of the 50 Gaussians")
    assert outcome.err.count("\n") == 1


def test_a_scene_too_heavy_for_many_views_at_once_is_rendered(
    command: Command, ply: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light = command("render", "asset.ply", "--size", "16", "--output", "light.png")
    views, render = [], gaussians.rasterize_forward

    def limited(*arguments: Any, **options: Any) -> Any:
        views.append(len(arguments[5]))
        return render(*arguments, **options)

    monkeypatch.setattr(gaussians, "rasterize_forward", limited)
    monkeypatch.setattr(view_batches, "PAIRS_AT_ONCE", 100)  # 50 Gaussians
    heavy = command("render", "asset.ply", "--size", "16", "--output", "heavy.png")
    assert (light.code, heavy.code, heavy.err) == (0, 0, "")
    assert max(views[1:]) < views[0] == 8
    assert Path("light.png").read_bytes() == Path("heavy.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ("white", (1.0, 1.0, 1.0)),
        ("Black", (0.0, 0.0, 0.0)),
        ("#ff0033", (1.0, 0.0, 0.2)),
        ("0.25, 0.5,1", (0.25, 0.5, 1.0)),
    ],
)
def test_colours(text: str, color: tuple[float, float, float]) -> None:
    assert parse_color(text) == pytest.approx(color)


def test_info_tells_version_hardware_models_and_use(command: Command) -> None:
    facts = json.loads(command("info", "--json").out)
    assert facts["version"] == __version__
    assert facts["hardware"]["simd"] == build_info()["simd"]
    assert facts["hardware"]["cuda_build"] == build_info()["cuda"]
    assert facts["runtimes"]["torch"]
    assert facts["runtimes"]["onnxruntime"]
    assert "mushroom" in facts["models"]["prior"]["objects"]
    assert "red" in facts["models"]["prior"]["colors"]
    assert 0 < facts["models"]["prior"]["mebibytes"] < 20
    assert 0 < facts["models"]["scorer"]["mebibytes"] < 20
    assert facts["used"].keys() == {"device", "rasterizer", "prior", "scorer", "other models"}
    assert facts["used"]["device"] == choose_device("auto")[1]
    assert facts == json.loads(json.dumps(report()))


def test_info_for_people_names_the_same(command: Command) -> None:
    text, facts = command("info").out, report()
    assert facts["hardware"]["cpu"] in text
    assert facts["used"]["prior"] in text
    assert ", ".join(facts["models"]["prior"]["objects"]) in text


def test_the_machine_is_one_line() -> None:
    assert "\n" not in machine()
    assert str(build_info()["simd"]) in machine()
