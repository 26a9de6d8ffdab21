"""The figures of seconds_per_asset.py: the parts add up, and the line of a preset is a median."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("seconds_per_asset")


def test_the_parts_add_up(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = {"stage": "done", "seconds": {"setup": 0.5, "render": 1.0, "total": 2.0}}
    clock = iter([10.0, 15.0])

    def command(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, '{"stage": "load"}\n' + json.dumps(done) + "\n", "")

    monkeypatch.setattr(benchmark.subprocess, "run", command)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    row = benchmark.run("draft", "a red mushroom", 0, tmp_path, [])
    assert row["seconds"] == {"setup": 0.5, "render": 1.0, "start": 3.0, "other": 0.5, "wall": 5.0}


def test_a_preset_ends_with_its_median(benchmark: ModuleType) -> None:
    rows = [
        {"preset": "draft", "prompt": "a cube", "seed": seed, "seconds": {"setup": wall / 2, "wall": wall}}
        for seed, wall in enumerate((2.0, 4.0, 100.0))
    ]
    lines = [line.split() for line in benchmark.table(rows).splitlines()]
    assert lines[0] == ["preset", "prompt", "seed", "setup", "wall"]
    assert len(lines) == 5
    assert lines[-1] == ["draft", "median", "of", "3", "2.00", "4.00"]


def test_a_run_that_fails_ends_it_with_its_own_words(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--steps: expected a whole number"):
        benchmark.run("draft", "a cube", 0, tmp_path / "run", ["--steps", "many"])
