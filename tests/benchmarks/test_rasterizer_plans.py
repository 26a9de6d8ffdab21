"""What justifies the CUDA rasterizer's plans: counts that are the kernels' own, a rule that follows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import kernels
from ddpo3d_fast.kernels import _backend
from ddpo3d_fast.kernels.rasterizer import cuda_plan

Load = Callable[[str], ModuleType]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "rasterizer-plans.json"
COUNT = 300  # Gaussians, large and opaque: most pixels stop
SIDE = 44  # pixels: the last tiles lie partly beyond the edge


@pytest.fixture
def simt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The emulated kernels, in the device's place."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from simt import build

    module = build.load()
    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
    monkeypatch.setattr(_backend, "backend", lambda device: module)
    return module


def kept(native: Any, tiles: int, views: int, pixels: int) -> Iterator[Tensor]:
    """What a forward pass keeps of rasterizer_state.cuh's DeviceState: tile_count, tile_begin, projected and
    stop; and the sorted entries."""
    at, names = 0, {"counters": 32, "count": 4 * tiles, "cursor": 4 * tiles, "begin": 4 * tiles}
    names |= {
        "projected": 48 * views,
        "ellipses": 64 * views,
        "first_slot": 4 * views,
        "num_slots": 4 * views,
    }
    parts = {}
    for name, size in (names | {"transmittance": 4 * pixels, "stop": 4 * pixels}).items():
        parts[name] = native.state[at : at + size]
        at += -(-size // 256) * 256
    entries = 16 * int(parts["count"].view(torch.int32).sum())
    yield from (parts[name].view(torch.int32) for name in ("count", "begin"))
    yield parts["projected"]
    yield parts["stop"].view(torch.int32)
    yield native.entries[-(-entries // 256) * 256 :][:entries].view(torch.int32).view(-1, 4)


@pytest.mark.parametrize("side", [8, 16])
def test_the_counts_are_those_of_the_kernels(simt: ModuleType, load_benchmark: Load, side: int) -> None:
    counts = load_benchmark("rasterizer_counts")
    scene = load_benchmark("rasterizer").ball_scene(COUNT, SIDE)
    scene = load_benchmark("rasterizer_cuda").seen_around(scene, 2)
    scene |= {"scales": 10 * scene["scales"], "opacities": scene["opacities"].clamp(min=0.8)}
    with cuda_plan(side, True):
        _, state = kernels.rasterize_forward(**scene)
    across = -(-SIDE // side)
    tiles = across**2
    count, begin, projected, stop, entries = kept(state.native, 2 * tiles, 2 * COUNT, 2 * SIDE**2)
    place, whitening = projected.view(-1, 48)[:, :16], projected.view(-1, 48)[:, 16:32].contiguous()
    place, whitening = place.contiguous().view(torch.float64), whitening.view(torch.float32).double()
    pixel = torch.arange(side**2)
    x, y = pixel % side, pixel // side
    warp = y // 4 * (side // 8) + x // 8
    for view in range(2):
        found = counts.count_view(scene, scene["viewmats"][view], scene["intrinsics"][view])
        c = found.tiles[side]
        stops = stop.view(2, SIDE, SIDE)[view]
        first_bucket = contributions = 0
        for tile in range(tiles):
            n, start = int(count[view * tiles + tile]), int(begin[view * tiles + tile])
            _, gaussian, _, mask = entries[start : start + n].long().T
            px, py = tile % across * side + x, tile // across * side + y
            inside = (px < SIDE) & (py < SIDE)
            ends = torch.zeros(side**2, dtype=torch.long)
            ends[inside] = stops[py[inside], px[inside]].long()
            # What the kernels evaluate, entry by pixel, by their own masks and stops.
            touched = (mask[:, None] >> warp & 1).bool()
            (gx, gy), w = place[view * COUNT + gaussian].T, whitening[view * COUNT + gaussian].T
            u1 = w[0, :, None] * (px + 0.5 - gx[:, None]) + w[1, :, None] * (py + 0.5 - gy[:, None])
            u2 = w[2, :, None] * (py + 0.5 - gy[:, None])
            opaque = touched & inside & (w[3, :, None] - u1**2 - u2**2 >= -7.994353436858858)
            k = torch.arange(n)[:, None]
            taken = opaque & (k < ends)
            contributions += int(taken.sum())

            warps = [warp == index for index in range(side**2 // 32)]
            last = torch.stack([ends[of].max() for of in warps])  # entry at which the warp's last pixel stops
            looks = k // 32 * 32 <= last  # [n, warps]
            hits = torch.stack([touched[:, of].any(1) for of in warps], 1)
            blends = torch.stack([(opaque & (k <= ends))[:, of].any(1) for of in warps], 1)
            takes = torch.stack([taken[:, of].any(1) for of in warps], 1)
            batch, back = c.batch_tile == tile, c.back_tile == tile
            assert int(c.length[tile]) == n
            assert c.evaluated[batch].sum(0).equal((hits & looks).sum(0))
            assert c.blended[batch].sum(0).equal(blends.sum(0))
            assert int(c.tile_stop[tile]) == min(n, int(last.max()))
            assert c.back_evaluated[back].sum(0).equal((hits & (k < last)).sum(0))
            assert c.back_taken[back].sum(0).equal(takes.sum(0))
            steps = {(e // 32, e % 32 + p) for e, p in taken.nonzero().tolist()}
            buckets = -(-n // 32)
            mine = [sum(bucket == b for bucket, _ in steps) for b in range(buckets)]
            assert c.bucket_taken[first_bucket : first_bucket + buckets].tolist() == mine
            first_bucket += buckets
        assert found.contributions == contributions
        assert c.evaluated.sum() > c.back_evaluated.sum() > c.back_taken.sum()


def list_events(count: int, threads: int, capacity: int) -> dict[str, tuple[int, int]]:
    """sort_list.cuh's loops, gone through one by one: how often all warps do what, and the first thread."""
    found: dict[str, tuple[int, int]] = {}

    def loop(name: str, items: int) -> None:
        begins = [
            t for begin in range(0, items, threads) for t in range(begin, begin + threads, 32) if t < items
        ]
        of_warps, of_block = found.get(name, (0, 0))
        found[name] = of_warps + len(begins), of_block + len(range(0, items, threads))

    for begin in range(0, count, capacity):
        m, padded = min(capacity, count - begin), 2
        while padded < m:
            padded *= 2
        loop("sort_load", padded)
        size = 2
        while size <= padded:
            stride = size // 2
            while stride:
                loop("round", threads)
                loop("compare", padded // 2)
                stride //= 2
            size *= 2
        loop("sort_write", m)
    run, swaps = capacity, 0
    while run < count:
        loop("level", threads)
        loop("merge", count)
        steps, high = 0, run
        while high:
            steps, high = steps + 1, high // 2
        for _ in range(steps):
            loop("search", count)
        run, swaps = 2 * run, swaps + 1
    if swaps % 2:
        loop("copy", count)
    return found


@pytest.mark.parametrize("side", [8, 16])
def test_the_sort_is_counted_as_its_loops_run(load_benchmark: Load, side: int) -> None:
    model, threads = load_benchmark("rasterizer_model"), side**2
    for count in (0, 1, 2, 33, 4 * threads, 4 * threads + 1, 9 * threads + 5):
        assert model.sort_events(count, threads, 4 * threads) == list_events(count, threads, 4 * threads)


def test_blocks_wait_for_a_place_and_slow_each_other_down(load_benchmark: Load) -> None:
    model = load_benchmark("rasterizer_model")
    end, most = model.last_end, model.ISSUED
    assert end([], [], 2, 4) == 0
    assert end([1.0] * 3, [100.0, 50.0, 20.0], 2, 1) == 100  # the third takes the second's place at 50
    assert end([1.0] * 3, [100.0, 50.0, 60.0], 2, 1) == 110
    assert end([100 * most] * 4, [100.0] * 4, 1, 4) == pytest.approx(400)  # four that want all a cycle has
    assert end([50 * most] * 2, [100.0] * 2, 1, 4) == pytest.approx(100)  # two that want half of it each
    # A lone long block is done when it would be, for the first cycles of which it had half of what it wants.
    assert end([100 * most, 200 * most], [100.0, 200.0], 1, 2) == pytest.approx(300)


def test_more_blocks_than_are_followed_take_as_long_as_all_would(
    load_benchmark: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_benchmark("rasterizer_model")
    alone = 100 + 10 * torch.arange(6000.0).remainder(7)
    work = model.Work("blend_kernel<8, false>", 2, 2 * alone, alone, 0.0)
    machine = model.MACHINES["H200"]
    every = model.microseconds(work, machine, 1.0)
    monkeypatch.setattr(model, "MOST_BLOCKS", 1000)
    assert model.microseconds(work, machine, 1.0) == pytest.approx(every, rel=0.05)
    waiting = work._replace(issued=0.01 * alone)
    halves, doubles = (model.microseconds(waiting, machine, slow) - model.LAUNCH_US for slow in (0.5, 2.0))
    assert doubles == pytest.approx(4 * halves)


def test_a_run_writes_what_it_counted_and_modelled(
    load_benchmark: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans, path = load_benchmark("rasterizer_plans"), tmp_path / "plans.json"
    plans.main(["--cases", "100/16/1", "asset:200/24/2", "start:50/16/1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == ["ball:100/16/1", "asset:200/24/2", "start:50/16/1"]
    for row in rows:
        assert set(row["us"]) == set(row["regret"]) == set(row["most_regret"]) == set(plans.PLANS)
        assert min(row["regret"].values()) == 0
        assert all(row["most_regret"][plan] >= value for plan, value in row["regret"].items())
        assert row["counts"]["8"]["entries"] >= row["counts"]["16"]["entries"] > 0
    assert "always 16b: regret " in capsys.readouterr().out


def test_the_rule_loses_little_to_the_best_plan(simt: ModuleType, load_benchmark: Load) -> None:
    plans, report = load_benchmark("rasterizer_plans"), json.loads(RESULTS.read_text())
    rows = report["rows"]
    assert (report["instructions"], report["latency"]) == (plans.INSTRUCTIONS, plans.LATENCY)
    assert [row["case"] for row in rows] == [str(kind) for kind in plans.all_kinds()]

    def lost(figure: str, plan_of: Callable[[Any], str]) -> list[float]:
        return [row[figure][plan_of(plans.parse_kind(row["case"]).case)] for row in rows]

    regret = lost("regret", lambda case: plans.planned(simt, case))
    assert sum(regret) / len(regret) < 0.045
    assert max(regret) < 0.4
    assert max(lost("most_regret", lambda case: plans.planned(simt, case))) < 0.9
    for plan in plans.PLANS:  # no single one would do
        assert sum(lost("regret", lambda case, plan=plan: plan)) > 2 * sum(regret)


def test_loops_are_recounted_from_machine_code(load_benchmark: Load) -> None:
    sass = """
    Function : _Z6kernelv
        /*0000*/                   MOV R1, c[0x0][0x28] ;           /* 0x00000a0000017a02 */
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/                   ISETP.GE.AND P0, PT, R2, 0x40, PT ;
        /*0030*/              @!P0 BRA 0x10 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/              @!P1 BRA 0x0 ;
        /*0060*/                   BRA 0x60;
    """
    assert load_benchmark("rasterizer_model").loop_lengths(sass) == {"_Z6kernelv": [3, 6]}
