"""benchmarks/kernel_times.py: what it makes of a profiler's trace, and that what fails is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def kernel_times(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("kernel_times")


def events_of(replays: int) -> list[dict[str, Any]]:
    """Two kernels and what else a trace holds; the second begins 2 us before the first has ended."""
    found: list[dict[str, Any]] = [{"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0, "dur": 1}]
    for replay in range(replays):
        start = 100.0 * replay
        name = (
            "void ddpo3d_fast::(anonymous namespace)::gaussians_vjp_kernel<(int)-1, (bool)0>(RasterizeParams)"
        )
        found.append({"cat": "kernel", "name": name, "ts": start + 8, "dur": 30.0 + replay})
        found.append({"cat": "gpu_memset", "name": "Memset (Device)", "ts": start, "dur": 10.0})
    return found


def test_kernels_stand_in_the_order_of_a_replay_with_a_number_for_each(kernel_times: ModuleType) -> None:
    rows = kernel_times.kernel_rows(events_of(3), 3)
    assert rows == [
        {"name": "Memset (Device)", "us": [10.0] * 3, "alone_us": [10.0] * 3},
        {"name": "gaussians_vjp_kernel<-1, 0>", "us": [30.0, 31.0, 32.0], "alone_us": [28.0, 29.0, 30.0]},
    ]


@pytest.mark.parametrize("events", [[], events_of(2)[:-1]])
def test_a_trace_that_is_not_of_so_many_replays_is_refused(
    kernel_times: ModuleType, events: list[dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match="expected a multiple"):
        kernel_times.kernel_rows(events, 2)


def test_medians_are_over_all_rounds_and_a_problem_is_kept(kernel_times: ModuleType) -> None:
    rounds = [
        {"graph_us": {"step": 50.0}, "kernels": kernel_times.kernel_rows(events_of(3), 3)},
        {"graph_us": {"step": 70.0}, "problem": "RuntimeError: no CUPTI"},
    ]
    found = kernel_times.summary(rounds)
    assert found["graph_us"] == {"step": 60.0}
    assert [row["us"] for row in found["kernels"]] == [10.0, 31.0]
    assert found["problems"] == ["RuntimeError: no CUPTI"]
    text = kernel_times.table("2k/128/1", {"this": found, "other": {"error": "no answer"}})
    assert "gaussians_vjp_kernel<-1, 0>" in text
    assert "other: no answer" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_build_says_why_it_has_no_figures(
    kernel_times: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "times.json"
    (tmp_path / "empty").mkdir()
    code = kernel_times.main(["--tree", str(tmp_path / "empty"), "--json", str(path), "--cases", "2k/128/1"])
    failed = json.loads(path.read_text())["failed"]
    assert code == 1
    assert "expected a CUDA device" in failed["this"]
    assert "expected ddpo3d_fast of" in failed[str(tmp_path / "empty")]
