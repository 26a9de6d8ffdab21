"""The CUDA kernels between Gaussians and meshes, under the emulator, keep the CPU backend's promises."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

# The CPU backend's own tests: each runs here again, through the emulated kernels.
from kernels.test_density import (  # noqa: F401
    GRID,
    cloud,
    test_a_dilation_makes_flat_gaussians_visible,
    test_a_gaussian_that_is_not_finite_counts_nowhere,
    test_giants_and_needles_are_no_special_case,
    test_grids_of_any_size_are_the_same_points,
    test_nothing_gives_nothing,
    test_the_density_equals_the_oracle,
)

from ddpo3d_fast.kernels import _backend, gaussian_density

from .build import load, run_sanitized


@pytest.fixture(scope="module")
def simt() -> ModuleType:
    return load()


@pytest.fixture(autouse=True)
def emulated(simt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="": True)
    monkeypatch.setattr(_backend, "backend", lambda device: simt)
    simt.set_order(0, "in_order")
    simt.reset_counters()
    yield
    counters = simt.counters()
    assert not any(counters[name] for name in ("synchronizations", "copies", "memsets", "allocations"))
    simt.set_order(0, "in_order")


ORDERS = [(seed, ("shuffled", "interleaved")[seed % 2]) for seed in range(1, 5)]


def test_no_density_depends_on_the_order_of_threads_or_blocks(simt: ModuleType) -> None:
    scene = cloud(count=700)  # more than a block gathers at once
    grid = GRID | {"size": (9, 17, 8)}
    expected = gaussian_density(**scene, **grid)
    for order in ORDERS:
        simt.set_order(*order)
        assert torch.equal(gaussian_density(**scene, **grid), expected)


SANITIZED = """
import torch
torch.set_num_threads(1)
from simt import build
from kernels import test_density
from ddpo3d_fast import kernels
from ddpo3d_fast.kernels import _backend
module = build.load("sanitized")
_backend.uses_cuda = lambda device, name="device": True
_backend.backend = lambda device: module
module.set_order(1, "interleaved")
kernels.gaussian_density(**test_density.cloud(600), **test_density.GRID | {"size": (9, 8, 10)})
print("clean")
"""


def test_the_sanitizers_find_nothing() -> None:
    result = run_sanitized(SANITIZED)
    assert result.stdout.strip() == "clean", result.stderr[-3000:]
