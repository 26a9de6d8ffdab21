"""`render` and `info`: what they write and say."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ddpo3d_fast import __version__
from ddpo3d_fast.cli import parse_color
from ddpo3d_fast.info import choose_device, machine, report
from ddpo3d_fast.kernels import build_info

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
