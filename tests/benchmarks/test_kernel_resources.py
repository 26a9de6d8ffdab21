"""What the compiler says of the CUDA kernels: nothing spilled, and memory moved 128 bits at a time."""

from __future__ import annotations

import json
import re
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
            before = written[row["kernel"]]  # with the machine code, which `row` may be without
            assert row == {name: value for name, value in before.items() if name in row}, row


def test_memory_moves_128_bits_at_a_time_where_the_layout_allows() -> None:
    """As the table has it, which was read in the machine code: a test has no disassembler."""
    for row in json.loads(TABLE.read_text())["kernels"]:
        if row["source"] == "triangles.cu":
            continue  # it has a project_kernel, too
        kernel, _, variant = row["kernel"].partition("_kernel")
        vectorised = kernel in DIFFUSION and variant == "<true>"
        assert not (kernel in WIDE_LOADS or vectorised) or row["loads_128"] > 0, row
        assert not (kernel in WIDE_STORES or vectorised) or row["stores_128"] > 0, row


def test_the_hot_loops_take_few_instructions_and_the_sort_few_barriers() -> None:
    """As the table has it. An entry-block is an entry for a warp's 8 x 4 pixels."""
    rows = {(row["kernel"], row["target"]): row for row in json.loads(TABLE.read_text())["kernels"]}
    assert {kernel for (kernel, _), row in rows.items() if "loop" in row} == {
        "blend_kernel",
        "blend_vjp_kernel<false>",
        "blend_vjp_kernel<true>",
        "density_kernel",
    }
    hot = {"blend_kernel": 28, "blend_vjp_kernel<false>": 82, "blend_vjp_kernel<true>": 105}
    for kernel, most in hot.items():
        for target in ("sm_80", "sm_90", "sm_120"):
            row = rows[kernel, target]
            assert row["entry_blocks"] == 4  # two entries for two blocks
            assert row["per_entry_block"] == round(row["loop"] / 4, 1)
            assert row["per_entry_block"] <= most, row
            assert ("sort_barriers" in row) == (kernel == "blend_kernel")
            assert row.get("sort_barriers", 10) == 10


def test_the_sort_is_counted_for_the_sizes_that_it_has(benchmark: ModuleType) -> None:
    source = (benchmark.CSRC / "cuda" / "blend.cu").read_text()
    assert f"kSortedAtOnce = {benchmark.SORTED};" in source
    state = (benchmark.CSRC / "cuda" / "rasterizer_state.cuh").read_text()
    tile, pixels = (int(re.findall(rf"int {name} = (\d+);", state)[0]) for name in ("kTile", "kPixels"))
    assert tile**2 // pixels == benchmark.CHUNK


# A loop over batches with one over entries, whose `continue` jumps to its head from two places and whose
# rare part lies behind the function's end. What cuobjdump prints behind an instruction is its bits.
SASS = """
    /*0000*/                   MOV R1, c[0x0][0x28] ;           /* 0x00000a0000017a02 */
                                                                /* 0x000fe40000000f00 */
    /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
    /*0020*/                   MUFU.EX2 R2, R3 ;
    /*0030*/              @!P0 BRA 0x20 ;
    /*0040*/                   MUFU.EX2 R4, R5 ;
    /*0050*/               @P2 BRA 0xb0 ;
    /*0060*/                   LDG.E.128 R4, desc[UR8][R2.64] ;
    /*0070*/               @P1 BRA 0x20 ;
    /*0080*/               @P3 BRA 0x10 ;
    /*0090*/                   EXIT ;
    /*00a0*/                   BRA 0xa0;
    /*00b0*/                   FADD R4, R4, R5 ;
    /*00c0*/                   BRA 0x60 ;
"""
SORT = """
    /*0000*/                   LDG.E R4, desc[UR8][R2.64] ;
    /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
    /*0020*/               @P0 BRA 0x10 ;
    /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
    /*0040*/                   IADD3 R2, R2, 0x1, RZ ;
    /*0050*/               @P1 BRA 0x40 ;
    /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
    /*0070*/               @P2 BRA 0x0 ;
    /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
    /*0090*/                   EXIT ;
"""


def test_loops_are_found_in_machine_code_wherever_their_parts_lie(benchmark: ModuleType) -> None:
    code = benchmark.instructions(SASS)
    assert len(code) == 13
    assert [sorted(loop) for loop in benchmark.loops(code)] == [
        [0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xB0, 0xC0],
        [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xB0, 0xC0],
    ]
    assert benchmark.blend_loop(code) == {"loop": 8, "entry_blocks": 2, "per_entry_block": 4.0}
    assert benchmark.sort_loop(code) == {}
    assert benchmark.widths(code) == {"loads": 1, "loads_128": 1, "stores": 0, "stores_128": 0}


def test_barriers_are_those_of_the_chunks_and_of_what_follows_them(benchmark: ModuleType) -> None:
    as_sm_80 = SORT.replace("@P0 BRA 0x10 ;", "@P0 CALL.REL.NOINC 0x30 ;\n /*0028*/ BRA 0x10 ;")
    found = benchmark.sort_loop(benchmark.instructions(as_sm_80))
    assert found == {"sort_chunk": 3, "sort_barriers": 8 + 2}
    code = benchmark.instructions(SORT)
    assert benchmark.sort_loop(code) == {"sort_chunk": 2, "sort_barriers": 8 + 2}
    assert benchmark.blend_loop(code) == {}


def test_a_table_without_the_machine_code_is_not_written(
    benchmark: ModuleType, nvcc: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    monkeypatch.setattr(benchmark, "find_cuobjdump", lambda: None)
    monkeypatch.setattr(benchmark, "report", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["kernel_resources.py", "--json", str(path)])
    with pytest.raises(SystemExit, match="--json: expected a cuobjdump on the path"):
        benchmark.main()
    assert not path.exists()


def test_a_source_that_does_not_compile_is_named(benchmark: ModuleType, nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void kernel() { nonsense; }\n")
    with pytest.raises(RuntimeError, match=r"broken.cu: nvcc failed"):
        benchmark.resources(nvcc, source, "sm_90")
