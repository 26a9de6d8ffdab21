"""What the compiler says of the CUDA kernels: nothing spilled, and memory moved 128 bits at a time."""

from __future__ import annotations

import json
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
}
KERNELS |= {"gaussians_vjp_kernel", "cameras_vjp_kernel", "background_vjp_kernel", "adam_kernel"}
KERNELS |= {"philox_normal_kernel", "add_noise_kernel", "denoise_action_kernel", "score_residual_kernel"}
KERNELS |= {"mixed_residual_kernel", "log_prob_kernel"}
# What loads and stores 128 bits at a time; of the diffusion kernels <true> does, for aligned addresses.
WIDE_LOADS = ("adam", "blend", "blend_vjp", "scatter", "gaussians_vjp")
WIDE_STORES = ("adam", "blend", "blend_vjp", "scatter", "project")
DIFFUSION = ("add_noise", "denoise_action", "score_residual", "mixed_residual")
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "kernel-resources.json"


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
    table = json.loads(TABLE.read_text())
    if table["compiler"] == benchmark.compiler(nvcc):  # the committed table is that of these sources
        written = {row["kernel"]: row for row in table["kernels"] if row["target"] == "sm_90"}
        assert written.keys() == {row["kernel"] for row in rows}
        for row in rows:
            for name in ("registers", "shared"):
                assert row[name] == written[row["kernel"]][name], row


def test_memory_moves_128_bits_at_a_time_where_the_layout_allows() -> None:
    """As the table has it, which was read in the machine code: a test has no disassembler."""
    for row in json.loads(TABLE.read_text())["kernels"]:
        kernel, _, variant = row["kernel"].partition("_kernel")
        vectorised = kernel in DIFFUSION and variant == "<true>"
        assert not (kernel in WIDE_LOADS or vectorised) or row["loads_128"] > 0, row
        assert not (kernel in WIDE_STORES or vectorised) or row["stores_128"] > 0, row


def test_a_source_that_does_not_compile_is_named(benchmark: ModuleType, nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void kernel() { nonsense; }\n")
    with pytest.raises(RuntimeError, match=r"broken.cu: nvcc failed"):
        benchmark.resources(nvcc, source, "sm_90")
