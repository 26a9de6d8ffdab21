"""What the compiler says of the CUDA kernels: nothing spilled, and memory moved 128 bits at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

KERNELS = {
    "project_kernel",
    "range_kernel",
    "scatter_kernel",
    "blend_kernel",
    "blend_vjp_kernel",
    "bucket_vjp_kernel",
}
KERNELS |= {"gaussians_vjp_kernel", "cameras_vjp_kernel", "background_vjp_kernel", "adam_kernel"}
KERNELS |= {"philox_normal_kernel", "add_noise_kernel", "denoise_action_kernel", "score_residual_kernel"}


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("kernel_resources")


@pytest.fixture
def nvcc(benchmark: ModuleType) -> str:
    return benchmark.find_nvcc() or pytest.skip("no nvcc")


def test_no_kernel_spills_registers_or_has_a_stack_frame_on_hopper(benchmark: ModuleType, nvcc: str) -> None:
    rows = benchmark.report(nvcc, ["sm_90"])
    assert {row["kernel"].split("<")[0] for row in rows} >= KERNELS
    for row in rows:
        assert row["registers"] > 0, row
        assert row["stack"] == row["spills"] == 0, row


def test_a_source_that_does_not_compile_is_named(benchmark: ModuleType, nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void kernel() { nonsense; }\n")
    with pytest.raises(RuntimeError, match=r"broken.cu: nvcc failed"):
        benchmark.resources(nvcc, source, "sm_90")
