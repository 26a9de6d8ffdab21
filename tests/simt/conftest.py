"""csrc/cuda on the CPU, and what sends CPU tensors there."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from ddpo3d_fast.kernels import _backend

from . import build


@pytest.fixture(scope="module")
def simt() -> ModuleType:
    return build.load()


@pytest.fixture
def emulated(simt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """CPU tensors go through the emulated CUDA functions, in the usual order of threads."""
    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
    monkeypatch.setattr(_backend, "backend", lambda device: simt)
    simt.set_order(0, "in_order")
    simt.reset_counters()
    yield simt
    simt.set_order(0, "in_order")


@pytest.fixture
def nothing_waits(emulated: ModuleType) -> Iterator[None]:
    """Of kernels that are launched and no more: no wait, copy, memset or allocation."""
    yield
    counters = emulated.counters()
    assert not any(counters[name] for name in ("synchronizations", "copies", "memsets", "allocations"))
