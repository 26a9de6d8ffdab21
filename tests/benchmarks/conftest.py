"""What the benchmarks' tests share: the scripts as modules, a small model."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ddpo3d_fast.kernels import _backend


@pytest.fixture(scope="session")
def load_benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of benchmarks/ by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="session")
def small_model(
    load_benchmark: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of `random:small`; not to be changed."""
    models = tmp_path_factory.mktemp("random-models")
    return Path(load_benchmark("random_models").find_model("random:small", models))


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("rasterizer_cuda")
    monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
    return module


@pytest.fixture
def emulated(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with the emulated backend for a device, and calls that are repeated for graphs."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from simt import build

    simt, ceilings = build.load(), benchmark.measure_ceilings

    def device_ms(call: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e3 * (time.perf_counter() - start) / calls

    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
    monkeypatch.setattr(_backend, "backend", lambda device: simt)
    monkeypatch.setattr(benchmark, "synchronize", lambda: None)
    monkeypatch.setattr(benchmark, "device_ms", device_ms)
    monkeypatch.setattr(benchmark, "captured", lambda call, pool: (call, call()))
    monkeypatch.setattr(benchmark, "graph_pool", lambda: None)
    monkeypatch.setattr(benchmark, "hardware", lambda: {"device": "emulated"})
    monkeypatch.setattr(benchmark, "measure_ceilings", lambda: ceilings(floats=1024, side=16))
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)
    return benchmark
