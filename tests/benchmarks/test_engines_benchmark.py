"""The table of engines.py: every part of a step, on runtimes that compute the same and take turns."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ddpo3d_fast.errors import FallbackWarning
from ddpo3d_fast.priors import PriorSettings, load_prior
from ddpo3d_fast.rewards import make_reward

CPU = torch.device("cpu")
PARTS = {"unet", "encoder", "encoder + vjp", "decoder", "scorer", "scorer + vjp"}


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("engines")


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def test_a_table_has_every_part_and_their_sum(
    benchmark: ModuleType,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "find_model", lambda name: str(small_model))
    path = tmp_path / "figures.json"
    words = "--models random:small --runtimes torch tensorrt --device cpu --batches 1 2 --scales 0.5 1"
    benchmark.main([*words.split(), "--repeats", "1", "--json", str(path)])
    data = json.loads(path.read_text())
    cases = [(1, 32), (2, 32), (1, 64), (2, 64)]
    rows = {(row["batch"], row["side"], row["part"]): row["ms"] for row in data["rows"]}
    assert rows.keys() == {(*case, part) for case in cases for part in PARTS | {"step"}}
    for case in cases:
        whole = sum(rows[(*case, part)]["torch"] for part in PARTS - {"encoder"})
        assert rows[(*case, "step")]["torch"] == pytest.approx(whole)
    assert data["notes"] == ["random:small on tensorrt: left out: runs on cuda alone, not on cpu"]
    assert {"machine", "load", "threads", "torch"} < data.keys()
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("random:small") for line in printed) == len(rows) + 1
    assert len(printed) == len(rows) + 3  # the machine, the header, the note


def test_a_runtime_that_gave_way_is_named(
    benchmark: ModuleType, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gives_way(wanted: PriorSettings) -> Any:
        warnings.warn("unet: ONNX Runtime is wrong; torch runs it instead", FallbackWarning, stacklevel=1)
        return load_prior(PriorSettings(wanted.model, runtime="torch"))

    monkeypatch.setattr(benchmark, "find_model", lambda name: str(small_model))
    monkeypatch.setattr(benchmark, "load_prior", gives_way)
    options = benchmark.parse_options(["--batches", "1", "--scales", "0.5", "--repeats", "1"])
    _, notes = benchmark.rows_of("random:small", "embedded", ["torch"], CPU, options)
    assert notes == ["random:small: unet: ONNX Runtime is wrong; torch runs it instead"]


def test_a_gpu_times_calls_and_their_graphs(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without one: what is called, not how fast."""
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr(benchmark, "capture", lambda function: (lambda: done.append("replay"), function()))
    functions = benchmark.ways({"torch": lambda: done.append("call")}, torch.device("cuda"))
    assert list(functions) == ["torch", "torch graph"] == benchmark._columns("torch", torch.device("cuda"))
    assert done == ["call", "wait", "call"]  # libraries set themselves up before the capture
    done.clear()
    functions["torch"]()
    functions["torch graph"]()
    assert done == ["call", "wait", "replay", "wait"]


def test_the_runtimes_do_the_same_work(benchmark: ModuleType) -> None:
    reward, found = make_reward(["embedded"]), {}
    for runtime in ("torch", "onnxruntime"):
        prior = load_prior(PriorSettings("embedded", runtime=runtime))
        found[runtime], _ = benchmark.parts(prior, reward, 2, 1.0)["unet"]()
    assert found["torch"].shape[0] == 2
    assert (found["torch"] - found["onnxruntime"]).norm() <= 1e-4 * found["torch"].norm()


def test_parts_do_what_their_names_say(benchmark: ModuleType, small_model: Path) -> None:
    prior, reward = load_prior(PriorSettings(str(small_model), runtime="torch")), make_reward(["embedded"])
    results = {name: call() for name, call in benchmark.parts(prior, reward, 3, 0.5).items()}
    assert results.keys() == PARTS
    assert [each.shape for each in results["unet"]] == [(3, 4, 4, 4)] * 2
    assert results["encoder"].shape == (3, 4, 4, 4)
    assert results["encoder + vjp"].shape == results["decoder"].shape == (3, 3, 32, 32)
    assert results["scorer"].shape == (3,)
    assert results["scorer + vjp"][1].shape == (3, 3, 32, 32)
    assert results["encoder + vjp"].abs().amax() > 0


def test_the_runtimes_take_turns_and_medians_leave_the_first_call_out(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    took = {"torch": iter([900.0, 3.0, 1.0, 2.0]), "onnxruntime": iter([800.0, 5.0, 70.0, 6.0])}
    calls = {name: lambda name=name: order.append(name) or name for name in took}

    def clock(call: Callable[[], str]) -> tuple[float, str]:
        name = call()
        return next(took[name]), name

    monkeypatch.setattr(benchmark, "timed", clock)
    monkeypatch.setattr(benchmark, "ways", lambda calls, device: calls)
    assert benchmark.measure(calls, CPU, 3) == {"torch": 2.0, "onnxruntime": 6.0}
    assert order == ["torch", "onnxruntime"] * 4


def test_a_cpu_times_torch_with_one_thread_as_well(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    functions = benchmark.ways({"torch": torch.get_num_threads, "onnxruntime": lambda: None}, CPU)
    assert list(functions) == [*benchmark._columns("torch", CPU), *benchmark._columns("onnxruntime", CPU)]
    for _ in range(2):
        assert functions["torch 1 thread"]() == 1
        assert functions["torch"]() == 2


def test_a_line_tells_how_far_torch_is_behind(benchmark: ModuleType) -> None:
    row = {"model": "m", "part": "unet", "batch": 4, "side": 64}
    row["ms"] = {"torch": 90.0, "torch 1 thread": 9.0, "onnxruntime": 4.5}
    words = benchmark.table_row(row, list(row["ms"])).split()
    assert words == ["m", "unet", "4", "64", "90.00", "9.00", "4.50", "torch", "/", "fastest", "2.00"]


def test_a_batch_of_nothing_is_refused(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse_options(["--batches", "0"])
    assert "--batches, --repeats: expected 1 or more" in capsys.readouterr().err
