"""What `benchmarks/estimator.py` holds estimates against, and that it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from ddpo3d_fast import configure


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("estimator")


def small(preset: str, prompt: str) -> Any:
    config = configure.preset(preset, prompt)
    schedule = dataclasses.replace(config.schedule, steps=5)
    scene = dataclasses.replace(config.scene, gaussians=200)
    return dataclasses.replace(config, schedule=schedule, scene=scene)


@pytest.fixture(scope="module")
def scene(benchmark: ModuleType) -> Any:
    config = small("draft", "a mushroom")
    silent = dataclasses.replace(config.reward, policy_weight=0.0, guide_weight=0.0)
    return benchmark.frozen(dataclasses.replace(config, reward=silent, device="cpu"), {"late": 0.8})["late"]


def test_the_truth_is_how_the_reward_of_the_views_changes_with_the_scene(
    benchmark: ModuleType, scene: Any
) -> None:
    reward, looked = benchmark.Bluer(), benchmark.look(scene, 2, 0.4, 0)
    _, gradient = reward.score_vjp(looked.seen.pictures, [""] * 2)
    truth = benchmark.through(looked, gradient)
    move = 0.05 * truth / truth.abs().max()
    there, back = (
        torch.cat([looked.moved.picture_of(sign * move, view) for view in range(2)]) for sign in (1, -1)
    )
    changed = (reward.score(there, []) - reward.score(back, [])).mean() / 2
    assert float(changed) == pytest.approx(float((truth * move).sum()), rel=0.05)


@pytest.mark.parametrize("estimator", ["noise", "latent lowpass", "view", "scene", "scene all"])
def test_estimates_point_to_what_the_reward_wants(benchmark: ModuleType, scene: Any, estimator: str) -> None:
    row = benchmark.measured(scene, benchmark.Bluer(), estimator, benchmark.BASE | {"actions": 16}, 2)
    assert 0.05 < row["scene"] <= 1
    assert 0.05 < row["picture"] <= 1
    assert row["seconds"] > 0


def test_a_small_run_ends_with_its_table_and_its_plot(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(benchmark, "preset", small)
    monkeypatch.setattr(benchmark, "STAGES", {"midway": 0.5})
    file, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    words = ["--repeats", "2", "--vary", "actions", "--estimators", "view", "--rewards", "bluer"]
    assert benchmark.main([*words, "--json", str(file)]) == 0
    table = capsys.readouterr().out
    assert table.count("midway") == 3
    assert [row["actions"] for row in json.loads(file.read_text())["rows"]] == [8, 32, 128]
    assert benchmark.main(["--read", str(file), "--plot", str(plot)]) == 0
    assert capsys.readouterr().out.splitlines() == table.splitlines()[1:]
    assert len(ElementTree.parse(plot).findall(".//{http://www.w3.org/2000/svg}circle")) == 3
