"""The SIMT host emulator runs right kernels rightly, and finds what is wrong in the others."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from . import build

SOURCES = [build.SIMT / "kernels_under_test.cu", build.SIMT / "bindings_under_test.cpp"]
SEEDS = range(8)
BLOCK_ORDERS = ("in_order", "shuffled", "interleaved")
ORDERS = [(seed, blocks) for seed in SEEDS for blocks in BLOCK_ORDERS]


@pytest.fixture(scope="module")
def loaded() -> ModuleType:
    return build.load_module(build.build(SOURCES))


@pytest.fixture
def simt(loaded: ModuleType) -> ModuleType:
    loaded.set_order(0)
    loaded.reset_counters()
    return loaded


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


# ---- Right kernels give right answers in every order


def matmul(simt: ModuleType, bug: str = "none") -> tuple[np.ndarray, np.ndarray]:
    """The product of two small integer matrices, exact in float32, and what it should be."""
    a, b = generator().integers(-8, 9, (2, 64, 64)).astype(np.float32)
    c = np.zeros_like(a)
    simt.matmul(address(a), address(b), address(c), 64, simt.MatmulBug[bug])
    return c, a @ b


def block_sum(simt: ModuleType, bug: str = "none") -> tuple[np.ndarray, np.ndarray]:
    values = generator().integers(-99, 99, 5000).astype(np.int32)
    sums = np.zeros(2, np.int32)
    simt.sum(address(values), values.size, address(sums), 7, 256, simt.SumBug[bug])
    return sums, np.array([values.sum(), (values > 0).sum()])


def exchange(simt: ModuleType, bug: str = "none") -> tuple[np.ndarray, np.ndarray]:
    values = generator().integers(-99, 99, 96).astype(np.int32)
    out = np.zeros_like(values)
    simt.exchange(address(values), address(out), values.size, simt.ExchangeBug[bug])
    lanes = np.arange(values.size)
    return out, values[lanes ^ 1] + 2 * values[lanes ^ 2]


@pytest.mark.parametrize("kernel", [matmul, block_sum, exchange])
def test_right_kernel_is_right_in_every_order(simt: ModuleType, kernel) -> None:  # type: ignore[no-untyped-def]
    for order in ORDERS:
        simt.set_order(*order)
        result, truth = kernel(simt)
        assert (result == truth).all(), order


def test_sum_by_the_last_block_is_the_same_in_every_order(simt: ModuleType) -> None:
    values = generator().standard_normal(1000).astype(np.float32)
    results = set()
    for order in ORDERS:
        simt.set_order(*order)
        block_sums, counter, out = np.zeros(16, np.float32), np.zeros(1, np.uint32), np.zeros(1, np.float32)
        simt.sum_by_last_block(
            address(values), values.size, address(block_sums), address(counter), address(out)
        )
        results.add(out[0])
    assert len(results) == 1
    assert results.pop() == pytest.approx(values.astype(np.float64).sum(), abs=1e-4)


def test_blocks_that_wait_for_an_earlier_ticket_go_through(simt: ModuleType) -> None:
    for order in ORDERS:
        simt.set_order(*order)
        tickets, token, out = np.zeros(1, np.uint32), np.zeros(1, np.uint32), np.zeros(20, np.uint32)
        simt.hand_on(address(tickets), address(token), address(out), 20)
        assert (out == np.arange(20)).all(), order


def test_indices_of_a_launch_in_three_dimensions(simt: ModuleType) -> None:
    for order in ORDERS:
        simt.set_order(*order)
        out = np.zeros(2 * 3 * 4 * 5 * 6 * 3, np.int32)
        simt.indices(address(out), (2, 3, 4), (5, 6, 3))
        assert (out == np.arange(out.size)).all(), order


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_warp_operations(simt: ModuleType, width: int) -> None:
    values = generator().permutation(32).astype(np.float64) + 0.5
    lane = np.arange(32)
    group = lane & -width

    def of(source: np.ndarray) -> np.ndarray:  # a lane outside of the group keeps its own value
        return values[np.where((source < group) | (source >= group + width), lane, source)]

    xor = lane ^ 5
    last = (30 - width) % 32  # lanes that take no part give 0xFF bytes
    third = last if last % 3 == 0 else 0xFFFFFFFF
    expected = [
        values[group + (3 & (width - 1))],
        of(lane - 2),
        np.trunc(of(lane + 3)),
        np.trunc(values[np.where(xor >= group + width, lane, xor)]),
        np.full(32, sum(1 << i for i in range(32) if values[i] > 10)),
        np.zeros(32),
        np.ones(32),
        np.where(lane % 3 == 0, third, -1),
    ]
    for order in ORDERS:
        simt.set_order(*order)
        out = np.zeros((32, 8))
        simt.warp_operations(address(values), address(out), width)
        assert (out == np.stack(expected, axis=1)).all(), order


def test_warp_operations_of_some_lanes(simt: ModuleType) -> None:
    for order in ORDERS:
        simt.set_order(*order)
        out = np.zeros((26, 4), np.uint32)
        simt.partial_warp(address(out))
        assert (out[:20, 0] == 0xFFFFF).all(), order
        assert (out[:20, 1] == 1).all(), order
        assert out[:20, 2].tolist() == [*range(4, 20), *[0xFFFFFFFF] * 4], (
            order
        )  # those that left give nothing
        assert out[:3, 3].tolist() == [12, 1310, 11], order
        assert not out[20:].any()


@pytest.mark.parametrize("threads", [1, 40, 96])
@pytest.mark.parametrize("true", [0.0, 0.5, 1.0])
def test_block_votes(simt: ModuleType, threads: int, true: float) -> None:
    predicates = (generator().random(threads) < true).astype(np.int32) * 6
    votes = [(predicates != 0).sum(), (predicates != 0).all(), (predicates != 0).any()]
    for order in ORDERS:
        simt.set_order(*order)
        out = np.full((threads, 4), -1, np.int32)
        simt.block_votes(address(predicates), address(out), threads)
        assert (out[:, :3] == votes).all(), order
        assert (out[::2, 3] == (predicates[::2] != 0).sum()).all()  # those that have left do not count
        assert (out[1::2, 3] == -1).all()


def test_atomics(simt: ModuleType) -> None:
    t = np.arange(100, dtype=np.uint32)
    bits = np.bitwise_xor.reduce(np.uint32(1) << t % 32)
    for order in ORDERS:
        simt.set_order(*order)
        out = np.array([1, 1, 50, 50, 2**32 - 1, 0, 0, 0, 0, 2**32 - 50, 1], np.uint32)
        wide = np.array([1, 0], np.uint64)
        simt.atomics(address(out), address(wide), 100)
        assert out[:8].tolist() == [1 + t.sum(), 2**32 + 1 - t.sum(), 99, 0, 0, 2**32 - 1, bits, 5], order
        assert out[9] == 2**32 - 1
        assert out[10] == pow(3, 100, 2**32)
        assert wide.tolist() == [1 + (int(t.sum()) << 32), 99 << 40]


def test_half_conversions_are_those_of_ieee_754(simt: ModuleType) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    floats = np.zeros(2**16, np.float32)
    simt.half_to_float(address(halves), address(floats), floats.size)
    assert np.array_equal(floats, halves.view(np.float16).astype(np.float32), equal_nan=True)

    # every half, what lies between two, ties, and what is beside them
    finite = floats[np.isfinite(floats)]
    between = (finite + np.roll(finite, 1)) / 2
    inputs = np.concatenate([floats, between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf)])
    inputs = np.append(inputs, np.array([65519.99, 65520, 1e30, -1e30, 1e-30], np.float32))
    results = np.zeros(inputs.size, np.uint16)
    simt.float_to_half(address(inputs), address(results), inputs.size)
    with np.errstate(over="ignore"):
        assert np.array_equal(results.view(np.float16), inputs.astype(np.float16), equal_nan=True)
    assert np.array_equal(np.signbit(results.view(np.float16)), np.signbit(inputs) & ~np.isnan(inputs))


def test_bfloat16_conversions_are_those_of_torch(simt: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    words = np.arange(2**16, dtype=np.uint16)
    floats = np.zeros(2**16, np.float32)
    simt.bfloat16_to_float(address(words), address(floats), floats.size)
    assert np.array_equal(floats.view(np.uint32), words.astype(np.uint32) << 16)

    inputs = (np.arange(2**18, dtype=np.uint64) * 16411 % 2**32).astype(np.uint32).view(np.float32)
    inputs[:4] = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x80000001], np.uint32).view(np.float32)
    results = np.zeros(inputs.size, np.uint16)
    simt.float_to_bfloat16(address(inputs), address(results), inputs.size)
    expected = torch.from_numpy(inputs).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    numbers = ~np.isnan(inputs)
    assert np.array_equal(results[numbers], expected[numbers])
    assert (results[~numbers] == 0x7FFF).all()


def test_shared_memory_of_a_block_starts_as_nan(simt: ModuleType) -> None:
    for order in ORDERS:
        simt.set_order(*order)
        out = np.zeros(2, np.uint32)
        simt.uninitialised(address(out))
        assert (out == 0xFFFFFFFF).all(), order


def test_same_seed_gives_the_same_order_again(simt: ModuleType) -> None:
    def results(seed: int) -> list[bytes]:
        simt.set_order(seed, "interleaved")
        return [matmul(simt, "no_barrier_after_load")[0].tobytes() for _ in range(2)]

    assert results(3) == results(3)
    assert results(3) != results(7)


# ---- Planted bugs show


@pytest.mark.parametrize(
    ("kernel", "bug"),
    [
        (matmul, "no_barrier_after_load"),
        (matmul, "no_barrier_before_next_load"),
        (block_sum, "no_barrier"),
        (exchange, "no_syncwarp_before_read"),
        (exchange, "no_syncwarp_after_read"),
    ],
)
@pytest.mark.parametrize("blocks", BLOCK_ORDERS)
def test_missing_barrier_shows_under_some_seed(simt: ModuleType, kernel, bug: str, blocks: str) -> None:  # type: ignore[no-untyped-def]
    wrong = []
    for seed in SEEDS:
        simt.set_order(seed, blocks)
        result, truth = kernel(simt, bug)
        wrong.append((result != truth).any())
    assert any(wrong)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("deadlock", ["deadlock in block (", "7 threads from (0,0,0) on wait in __sync", "__syncwarp"]),
        ("divergent_barriers", ["divergent barriers in block (", "waits in __syncthreads at"]),
        ("barrier_in_branch", ["divergent barriers in block (", "thread (3,0,0)"]),
        ("not_in_mask", ["is not in the mask 0x0000ffff of its __syncwarp", "thread ("]),
        ("different_warp_ops", ["meet in different operations", "__ballot_sync", "__shfl_sync of 4 bytes"]),
        ("different_masks", ["meet in different operations", "mask 0xffffffff", "mask 0x7fffffff"]),
        ("lane_missing", ["deadlock in block (", "31 threads from (0,0,0) on wait in __shfl", "(5,0,0)"]),
        ("bad_width", ["a shuffle's width must be 1, 2, 4, 8, 16 or 32", "thread ("]),
        ("trap", ["__trap, block (", "thread ("]),
    ],
)  # fmt: skip
def test_fault_is_reported_in_one_line(
    simt: ModuleType, fault: str, words: list[str], order: tuple[int, str]
) -> None:
    simt.set_order(*order)
    with pytest.raises(RuntimeError) as failure:
        simt.fault(simt.Fault[fault], 3, 32)
    message = str(failure.value)
    assert "\n" not in message
    for word in ["kernel 'fault': ", "block (", "at tests/simt/kernels_under_test.cu:", *words]:
        assert word in message
    result, truth = matmul(simt)  # the emulator goes on
    assert (result == truth).all()


def test_abandoned_stacks_are_used_again(simt: ModuleType) -> None:
    for _ in range(1500):  # times 32 threads: more stacks than a process can map
        with pytest.raises(RuntimeError, match="deadlock"):
            simt.fault(simt.Fault["deadlock"], 1, 32)


def test_report_names_the_line(simt: ModuleType) -> None:
    source = (build.SIMT / "kernels_under_test.cu").read_text().splitlines()
    line = next(i for i, text in enumerate(source, 1) if "__trap()" in text)
    with pytest.raises(RuntimeError, match=rf"thread \(0,0,0\), at tests/simt/kernels_under_test.cu:{line}$"):
        simt.fault(simt.Fault["trap"], 1, 1)


@pytest.mark.parametrize("order", [(0, "in_order"), (1, "interleaved")])
def test_endless_wait_is_reported(simt: ModuleType, order: tuple[int, str]) -> None:
    simt.set_order(*order)
    with pytest.raises(RuntimeError, match=r"kernel 'fault': no thread gets on: endless wait, block .*cu:"):
        simt.fault(simt.Fault["endless_wait"], 1, 32)


def test_dependence_between_blocks_shows(simt: ModuleType) -> None:
    def chain(seed: int, blocks: str) -> bool:
        simt.set_order(seed, blocks)
        values = np.zeros(33, np.int32)
        simt.chain(address(values), 32)
        return bool((values == np.arange(33)).all())

    def add_up(seed: int, blocks: str) -> bool:
        simt.set_order(seed, blocks)
        total = np.zeros(1, np.uint32)
        simt.lost_update(address(total), 8, 4)
        return bool(total[0] == 32)

    assert all(chain(seed, "in_order") for seed in SEEDS)
    assert not any(chain(seed, "shuffled") for seed in SEEDS)
    assert not any(chain(seed, "interleaved") for seed in SEEDS)
    # Blocks one after another, in whatever order, do not show this one.
    assert all(add_up(seed, blocks) for seed in SEEDS for blocks in ("in_order", "shuffled"))
    assert not any(add_up(seed, "interleaved") for seed in SEEDS)


# ---- Accesses out of bounds, under the sanitizers


def run_sanitized(script: str) -> subprocess.CompletedProcess[str]:
    module = build.build(SOURCES, "sanitized")
    prelude = f"""
        import numpy as np
        from simt.build import load_module
        simt = load_module({str(module)!r})
        """
    return build.run_sanitized(textwrap.dedent(prelude) + textwrap.dedent(script))


@pytest.mark.parametrize(
    ("where", "report"),
    [
        ("static_array", "index 32 out of bounds for type 'float [32]'"),
        ("static_shared", "AddressSanitizer: use-after-poison"),
        ("dynamic_shared", "AddressSanitizer: use-after-poison"),
        ("global_read", "AddressSanitizer: heap-buffer-overflow"),
        ("global_write", "AddressSanitizer: heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_access_out_of_bounds_is_reported_with_its_line(where: str, report: str) -> None:
    result = run_sanitized(f"""
        values = np.zeros(64, np.float32)
        simt.out_of_bounds(simt.OutOfBounds[{where!r}], values.ctypes.data, values.size)
        """)
    source = (build.SIMT / "kernels_under_test.cu").read_text().splitlines()
    case = next(i for i, text in enumerate(source, 1) if f"case OutOfBounds::{where}:" in text)
    assert result.returncode != 0
    assert report in result.stderr
    assert any(f"kernels_under_test.cu:{line}" in result.stderr for line in (case + 1, case + 2))


def test_right_kernels_and_reported_faults_are_clean_under_the_sanitizers() -> None:
    result = run_sanitized("""
        values = np.ones(64, np.float32)
        a, b = np.random.default_rng(5).integers(-8, 9, (2, 64, 64)).astype(np.float32)
        for seed in range(8):
            for blocks in ("in_order", "shuffled", "interleaved"):
                simt.set_order(seed, blocks)
                c = np.zeros_like(a)
                simt.matmul(a.ctypes.data, b.ctypes.data, c.ctypes.data, 64, 0)
                assert (c == a @ b).all()
                simt.out_of_bounds(0, values.ctypes.data, values.size)
                for fault in ("deadlock", "not_in_mask", "trap"):
                    try:
                        simt.fault(simt.Fault[fault], 3, 96)
                    except RuntimeError as error:
                        assert "kernel 'fault'" in str(error)
                    else:
                        raise AssertionError(fault)
        print("done")
        """)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
    assert not result.stderr


# ---- Launches, limits, counters


def test_counters_count(simt: ModuleType) -> None:
    matmul(simt)
    block_sum(simt)
    out = np.zeros(1, np.uint32)
    simt.runtime_calls(address(out), 0x5A)
    matmul(simt)
    assert out[0] == 0x5A5A5A5A
    assert simt.counters() == {
        "launches": ["matmul", "sum", "matmul"],
        "synchronizations": 1,
        "copies": 1,
        "memsets": 1,
        "allocations": 1,
    }
    simt.reset_counters()
    assert simt.counters()["launches"] == []
    assert sum(len(value) if isinstance(value, list) else value for value in simt.counters().values()) == 0


@pytest.mark.parametrize(
    ("grid", "block", "shared", "allow", "reason"),
    [
        ((1, 1, 1), (1025, 1, 1), 0, False, "invalid configuration argument"),
        ((1, 1, 1), (32, 32, 2), 0, False, "invalid configuration argument"),
        ((1, 1, 1), (1, 1, 65), 0, False, "invalid configuration argument"),
        ((1, 1, 1), (0, 1, 1), 0, False, "invalid configuration argument"),
        ((2**31, 1, 1), (1, 1, 1), 0, False, "invalid configuration argument"),
        ((1, 65536, 1), (1, 1, 1), 0, False, "invalid configuration argument"),
        ((1, 1, 65536), (1, 1, 1), 0, False, "invalid configuration argument"),
        ((1, 1, 1), (32, 1, 1), 48 * 1024 + 1, False, "invalid argument"),
    ],
)
def test_launch_beyond_the_limits_is_refused(
    simt: ModuleType,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
    allow: bool,
    reason: str,
) -> None:
    with pytest.raises(RuntimeError) as failure:
        simt.sizes(grid, block, shared, allow)
    sizes = [" x ".join(map(str, size)) for size in (grid, block)]
    expected = f"sizes: {reason} (grid {sizes[0]}, block {sizes[1]}, {shared} bytes shared)"
    assert str(failure.value) == expected
    assert simt.counters()["launches"] == []


def test_launch_within_the_limits_runs(simt: ModuleType) -> None:
    simt.sizes((1, 1, 1), (1024, 1, 1), 48 * 1024, False)
    simt.sizes((1, 65535, 1), (1, 1, 1), 0, False)
    simt.sizes((1, 1, 65535), (1, 1, 1), 0, False)
    simt.sizes((2, 2, 2), (2, 8, 64), 227 * 1024, True)
    assert len(simt.counters()["launches"]) == 4
    with pytest.raises(RuntimeError, match="cudaFuncSetAttribute: invalid argument"):
        simt.sizes((1, 1, 1), (1, 1, 1), 227 * 1024 + 1, True)


def test_empty_grid_launches_nothing(simt: ModuleType) -> None:
    simt.sizes((1, 0, 1), (32, 1, 1), 0, False)
    assert simt.counters()["launches"] == []


def test_too_much_static_shared_memory_is_reported(simt: ModuleType) -> None:
    with pytest.raises(
        RuntimeError, match="kernel 'too_much_shared': more than 49152 bytes of static shared"
    ):
        simt.fault(simt.Fault["too_much_shared"], 1, 32)


def test_unknown_block_order_is_refused(simt: ModuleType) -> None:
    with pytest.raises(
        ValueError, match="blocks: expected 'in_order', 'shuffled' or 'interleaved', got 'any'"
    ):
        simt.set_order(1, "any")


def test_nvcc_compiles_the_same_kernels(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not nvcc:
        pytest.skip("no nvcc found")
    command = [nvcc, "-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-I", str(build.CSRC)]
    command += ["-c", str(SOURCES[0]), "-o", str(tmp_path / "kernels.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
