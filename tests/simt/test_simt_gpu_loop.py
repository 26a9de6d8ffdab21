"""gpu_loop.py's loop, its graphs recorded and replayed on the CPU: what it counts and compares."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpo3d_fast import configure, generate, settings
from ddpo3d_fast.assets import EXPORTERS, write_ply
from ddpo3d_fast.graphs import StepGraphs
from ddpo3d_fast.scene.gaussians import PARAMETERS

from .test_simt_graphs import Recording, recording  # noqa: F401 (fixture)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with graphs on the CPU, too, where the configuration has them, and a quick export."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("gpu_loop")
    wanted = iter(module.RUNS.values())

    class Wanted(StepGraphs):
        def __init__(self, device: torch.device, enabled: bool) -> None:
            super().__init__(device, next(wanted))

    def export(gaussians: Any, folder: Path) -> list[Path]:
        write_ply(folder / "asset.ply", *(getattr(gaussians, name) for name in PARAMETERS))
        return [folder / "asset.ply"]

    monkeypatch.setattr("ddpo3d_fast.build.StepGraphs", Wanted)
    monkeypatch.setattr(generate, "export", export)
    monkeypatch.setitem(EXPORTERS, "turntable.mp4", EXPORTERS["turntable.mp4"])  # put back afterwards
    return module


def small_draft() -> settings.Config:
    draft = configure.preset("draft", "a red ball")
    schedule = dataclasses.replace(draft.schedule, steps=5, noises=2, render_scales=(0.5,), max_timestep=0.6)
    scene = dataclasses.replace(draft.scene, gaussians=60, densify_every=0)
    return dataclasses.replace(draft, device="cpu", schedule=schedule, scene=scene)


def test_steps_are_counted_by_kind_and_assets_compared(
    loop: Any,
    recording: Recording,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = tmp_path / "loop.json"
    assert loop.run_loop(small_draft(), path) == 0
    found = json.loads(path.read_text())
    assert found["graphs"]["steps"] == {"eager": 1, "captured": 1, "replayed": 3}
    assert found["graphs again"]["steps"] == found["graphs"]["steps"]
    assert found["launches"]["steps"] == {"eager": 5}
    assert [row["not replayed"] for row in found.values()] == [0.4, 0.4, 1.0]
    assert set(found["graphs"]["ms by kind"]) == {"eager", "captured", "replayed"}


def test_a_run_that_makes_another_asset_fails(
    loop: Any,
    recording: Recording,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, calls = generate.export, []

    def spoilt(gaussians: Any, folder: Path) -> list[Path]:
        calls.append(1)
        if len(calls) == 3:
            gaussians.means[0] += 1
        return write(gaussians, folder)

    monkeypatch.setattr(generate, "export", spoilt)
    assert loop.run_loop(small_draft(), tmp_path / "loop.json") == 1
