"""The evidence that a reward steers: what its arms change, what it counts, and that it runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("steering")


def test_its_rewards_want_what_they_say(benchmark: ModuleType) -> None:
    pictures = torch.eye(3)[:, :, None, None].repeat(1, 1, 8, 8)  # red, green, blue
    assert benchmark.bluer(pictures, ["", "", ""]) == [-1.0, 0.0, 1.0]
    assert benchmark.greener(pictures, ["", "", ""]) == [-1.0, 1.0, 0.0]
    assert benchmark.darker(torch.stack([0 * pictures[0], 0 * pictures[0] + 1]), ["", ""]) == [0.0, -1.0]


def test_luminance_is_that_of_the_object_alone(benchmark: ModuleType) -> None:
    pictures, coverage = torch.ones(2, 3, 4, 4), torch.zeros(2, 4, 4)
    pictures[:, :, 0], coverage[:, 0] = 0.25, 0.9
    assert benchmark.luminance(pictures, coverage) == pytest.approx(0.25)


def test_its_sizes_are_those_of_jpegs(benchmark: ModuleType) -> None:
    flat, noise = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64)
    sizes = benchmark.larger(torch.cat([flat, noise]), [])
    assert sizes[1] > 2 * sizes[0] > 0
    assert benchmark.smaller(flat, []) == [-sizes[0]]
    picture = np.asarray(Image.open(io.BytesIO(benchmark.as_jpeg(np.zeros((8, 16, 3), np.uint8)))))
    assert picture.shape == (8, 16, 3)


def test_wanted_is_against_distillation_of_the_same_prompt(benchmark: ModuleType) -> None:
    said = {"class": True, "color": "blue", "IoU": 0.9, "luminance": 0.3, "kB": 1.0}
    for luminance, size, wanted in ((0.41, 1.2, [True, True, False]), (0.39, 0.8, [False, False, True])):
        base, pictures = said | {"luminance": luminance, "kB": size}, torch.zeros(2, 3, 4, 4)
        asked = ("darker", "smaller", "larger", "bluer", "greener")
        rows = benchmark.rows_of(said, base, pictures, "scene", asked, {})
        assert [row["as wanted"] for row in rows] == [*wanted, True, False]


def test_a_small_run_ends_with_its_table(
    benchmark: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--prompts", "1", "--seeds", "4", "--rewards", "bluer", "--json", str(tmp_path / "figures.json")]
    words += ["--sheet", str(tmp_path / "sheet.png")]
    assert benchmark.main([*words, "--", "--steps", "3", "--gaussians", "100"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[-4:]] == ["bluer", "longer", "scene", "shuffled"]
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, 4) for arm in benchmark.ARMS]
    values = [row["value"] for row in rows]
    assert values[2] > values[0]  # three steps say something, already
    assert (tmp_path / "sheet.png").is_file()

    def make_asset(*_: object) -> None:
        raise AssertionError("what there is is not made again")

    monkeypatch.setattr(benchmark, "make_asset", make_asset)
    assert benchmark.main([*words, "--", "--steps", "3", "--gaussians", "100"]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["rows"] == rows
    assert benchmark.main([*words, "--", "--steps", "4"]) == 2  # other settings
    assert "--json: expected" in capsys.readouterr().err


def test_wrong_flags_are_one_line(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--", "--policy-pairs", "1"]) == 2
    assert capsys.readouterr().err.startswith("--policy-pairs: expected")
