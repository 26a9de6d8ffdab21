"""The CUDA rasterizer's benchmark without a GPU: what it counts, how it compares, what it keeps."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import kernels

Load = Callable[[str], ModuleType]
CPU = torch.device("cpu")


# ---- Peers that render with our CPU backend, by the conventions that their users know


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


def gsplat(monkeypatch: pytest.MonkeyPatch, spoilt: float = 1.0) -> None:
    """gsplat.rasterization; its image is another one if spoilt."""

    def rasterization(
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.01,
        packed: bool = True,
        backgrounds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict]:
        out = kernels.rasterize(
            means, quats, scales * spoilt, opacities, colors, viewmats, Ks, width, height,
            near=near_plane, backgrounds=backgrounds,
        )  # fmt: skip
        return out.rgb, out.alpha[..., None], {}

    install(monkeypatch, "gsplat", rasterization=rasterization)


class InriaSettings(NamedTuple):
    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool
    antialiasing: bool


class InriaRasterizer(torch.nn.Module):
    def __init__(self, settings: InriaSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(
        self,
        means3D: Tensor,
        means2D: Tensor,
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        s, view = self.settings, self.settings.viewmatrix.T
        assert means2D.shape == means3D.shape
        assert rotations is not None
        torch.testing.assert_close(rotations.norm(dim=1), torch.ones(len(rotations)))
        assert (view @ torch.cat([s.campos, torch.ones(1)])).allclose(torch.eye(4)[3], atol=1e-5)
        fx, fy = s.image_width / (2 * s.tanfovx), s.image_height / (2 * s.tanfovy)
        k = torch.tensor([[fx, 0, s.image_width / 2], [0, fy, s.image_height / 2], [0, 0, 1]])
        # Two ways to the screen: its projection, with pixels at whole numbers, and ours.
        points = torch.cat([means3D, torch.ones(len(means3D), 1)], 1).detach()
        clip, seen = points @ s.projmatrix, (points @ s.viewmatrix)[:, :3]
        size = torch.tensor([s.image_width, s.image_height])
        theirs = ((clip[:, :2] / clip[:, 3:] + 1) * size - 1) / 2
        torch.testing.assert_close(theirs + 0.5, (seen @ k.T)[:, :2] / seen[:, 2:], atol=1e-3, rtol=1e-5)
        out = kernels.rasterize(
            means3D, rotations, scales, opacities[:, 0], colors_precomp, view[None], k[None],
            s.image_width, s.image_height, backgrounds=s.bg[None],
        )  # fmt: skip
        return out.rgb[0].permute(2, 0, 1), out.radii[0]


class FasterSettings(NamedTuple):
    w2c: Tensor
    cam_position: Tensor
    bg_color: Tensor
    active_sh_bases: int
    width: int
    height: int
    focal_x: float
    focal_y: float
    center_x: float
    center_y: float
    near_plane: float
    far_plane: float
    proper_antialiasing: bool


def diff_rasterize(
    means: Tensor,
    scales: Tensor,
    rotations: Tensor,
    opacities: Tensor,
    sh_coefficients_0: Tensor,
    sh_coefficients_rest: Tensor,
    densification_info: Tensor,
    rasterizer_settings: FasterSettings,
) -> Tensor:
    s = rasterizer_settings
    assert sh_coefficients_rest.shape == (len(means), 0, 3)
    assert (s.w2c @ torch.cat([s.cam_position, torch.ones(1)])).allclose(torch.eye(4)[3], atol=1e-5)
    k = torch.tensor([[s.focal_x, 0, s.center_x], [0, s.focal_y, s.center_y], [0, 0, 1]])
    colors = 0.28209479177387814 * sh_coefficients_0[:, 0] + 0.5
    out = kernels.rasterize(
        means, rotations, scales.exp(), opacities[:, 0].sigmoid(), colors, s.w2c[None], k[None],
        s.width, s.height, near=s.near_plane, far=s.far_plane, backgrounds=s.bg_color[None],
    )  # fmt: skip
    return out.rgb[0].permute(2, 0, 1)


class FusedAdam(torch.optim.Adam):
    def __init__(self, params: list, lr: float, eps: float) -> None:
        super().__init__(params, lr=lr, eps=eps)
        assert all(len(group["params"]) == 1 for group in self.param_groups)


def install_peers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """All three peers, and the words that name the folders of two."""
    gsplat(monkeypatch)
    install(
        monkeypatch,
        "diff_gaussian_rasterization",
        GaussianRasterizationSettings=InriaSettings,
        GaussianRasterizer=InriaRasterizer,
    )
    members = {
        "RasterizerSettings": FasterSettings,
        "diff_rasterize": diff_rasterize,
        "FusedAdam": FusedAdam,
    }
    install(monkeypatch, "FasterGSCudaBackend")
    install(monkeypatch, "FasterGSCudaBackend.torch_bindings", **members)
    return ["--faster-gs", str(folder), "--inria", str(folder)]


@pytest.mark.parametrize("name", ["gsplat", "faster-gs", "inria"])
def test_a_peer_is_given_the_same_scene(
    benchmark: ModuleType, load_benchmark: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    install_peers(monkeypatch, tmp_path)
    scene = benchmark.scene_of(benchmark.Case(60, 24, 3))
    upstream = torch.randn(3, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    peers = load_benchmark("rasterizer_peers")
    ours = peers.our_autograd(scene, upstream)
    peer = peers.PEERS[name](scene, upstream)
    assert peer.name == name
    assert not peer.rgb.requires_grad
    assert ours.grad_means.abs().sum() > 0
    found = benchmark.disagreement(peer, ours, scene["backgrounds"])
    assert max(found.values()) < 1e-4, found
    assert all(call() is not None or operation == "step" for operation, call in peer.calls.items())


def test_a_step_through_autograd_leaves_the_scene_as_it_was(
    benchmark: ModuleType, load_benchmark: Load
) -> None:
    scene = benchmark.scene_of(benchmark.Case(30, 16, 1))
    before = scene["means"].clone()
    contestant = load_benchmark("rasterizer_peers").our_autograd(scene, torch.ones(1, 16, 16, 3))
    contestant.calls["step"]()
    assert scene["means"].equal(before)
    assert contestant.calls["forward"]()[0].equal(contestant.rgb)  # the rate is 0


# ---- What is counted


@pytest.mark.parametrize("chunk", [1, 1 << 24])
@pytest.mark.parametrize("case", ["300/40/1", "2k/64/1"])
def test_contributions_are_those_of_the_tiled_reference(
    benchmark: ModuleType, load_benchmark: Load, case: str, chunk: int
) -> None:
    scene = benchmark.scene_of(benchmark.parse_case(case))
    _, expected = load_benchmark("tiled_reference").rasterize(**scene)
    found = load_benchmark("rasterizer_work").count_contributions(scene, chunk)
    assert found == pytest.approx(expected, rel=1e-4)  # float32 decides a few otherwise


def test_contributions_of_several_views_are_added(benchmark: ModuleType, load_benchmark: Load) -> None:
    count = load_benchmark("rasterizer_work").count_contributions
    scene = benchmark.scene_of(benchmark.parse_case("200/32/3"))
    views = [{**scene, **{n: scene[n][c : c + 1] for n in ("viewmats", "intrinsics")}} for c in range(3)]
    assert count(scene) == sum(map(count, views))
    assert len({count(view) for view in views}) == 3  # they see the ball from elsewhere
    nothing = {**scene, "opacities": torch.zeros(200)}
    assert count(nothing) == 0


def test_the_views_look_at_the_ball_from_two_away(benchmark: ModuleType) -> None:
    scene = benchmark.scene_of(benchmark.parse_case("100/32/4"))
    rotations, translations = scene["viewmats"][:, :3, :3], scene["viewmats"][:, :3, 3]
    assert rotations.transpose(1, 2).matmul(rotations).allclose(torch.eye(3).expand(4, 3, 3), atol=1e-6)
    assert translations.equal(torch.tensor([[0.0, 0.0, 2.0]]).expand(4, 3))
    assert torch.linalg.det(rotations).allclose(torch.ones(4))
    places = -(rotations.transpose(1, 2) @ translations[..., None])[..., 0]
    assert torch.cdist(places, places)[0].allclose(torch.tensor([0, 8**0.5, 4, 8**0.5]), atol=1e-5)


def test_a_floor_is_the_slower_of_arithmetic_and_bytes(load_benchmark: Load) -> None:
    work = load_benchmark("rasterizer_work")
    sizes = {"gaussians": 10, "views": 2, "pixels": 100, "entries": 7, "contributions": 1000}
    bytes_forward = 10 * 56 + 20 * 100 + 7 * 32 + 100 * 28
    bytes_backward = 10 * 112 + 20 * 56 + 7 * 112 + 100 * 20
    found = work.floors(**sizes, ceilings=work.Ceilings(bytes_per_s=1e6, fma_per_s=1e30))
    assert found == pytest.approx(
        {
            "forward": bytes_forward,
            "backward": bytes_backward,
            "adam": 3920,
            "step": bytes_forward + bytes_backward + 3920,
        }
    )
    found = work.floors(**sizes, ceilings=work.Ceilings(bytes_per_s=1e30, fma_per_s=1e6))
    assert (found["forward"], found["backward"]) == (15_000, 40_000)


# ---- Figures


def test_the_grid_is_whole_and_begins_with_what_tells_most(benchmark: ModuleType) -> None:
    cases = benchmark.all_cases()
    assert len(cases) == len(set(cases)) == 48
    assert [str(case) for case in cases[:3]] == ["10k/256/4", "2k/128/1", "50k/512/4"]
    aimed_at = [case.gaussians <= 50_000 and case.side <= 512 for case in cases]
    assert aimed_at == sorted(aimed_at, reverse=True)


@pytest.mark.parametrize("text", ["10k", "10k/256", "10k/256/0", "k/2/2", "10k/256/4/1", "-2/8/1", "a/b/c"])
def test_a_case_that_is_none_is_refused(benchmark: ModuleType, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected Gaussians/pixels/views such as 10k/256/4"):
        benchmark.parse_case(text)


def test_a_case_is_named_as_it_is_given(benchmark: ModuleType) -> None:
    for text in ("10k/256/4", "2k/128/1", "250/16/8", "100k/1024/8"):
        assert str(benchmark.parse_case(text)) == text


def test_a_sample_is_of_more_calls_the_shorter_they_are(benchmark: ModuleType) -> None:
    assert [benchmark.calls_of(ms) for ms in (0.0, 0.01, 0.1, 1.5, 2.0, 300)] == [50, 50, 20, 2, 1, 1]


def test_quartiles(benchmark: ModuleType) -> None:
    assert benchmark.quartiles([3.0]) == (3, 3, 3)
    assert benchmark.quartiles([5.0, 1.0, 2.0, 3.0, 4.0]) == (3, 2, 4)


def test_contestants_take_turns_until_the_time_is_over(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def device_ms(call: Callable[[], object], calls: int) -> float:
        call()
        return 300.0

    monkeypatch.setattr(benchmark, "device_ms", device_ms)
    contestants = [
        benchmark.Contestant(name, None, None, {"forward": lambda name=name: order.append(name)})
        for name in "ab"
    ]
    found = benchmark.sample(contestants, repeats=5, seconds=60)
    assert found == {name: {"forward": [300_000.0] * 3} for name in "ab"}
    assert order == list("aabb" + 5 * "ab")
    order.clear()
    benchmark.sample(contestants, repeats=5, seconds=0)
    assert order == list("aabb" + 3 * "ab")  # three turns in any case


def times(forward: float, backward: float, step: float) -> dict[str, list[float]]:
    return {"forward": [forward] * 3, "backward": [backward] * 3, "step": [step] * 3}


def test_ratios_are_of_both_passes_and_of_the_step(benchmark: ModuleType) -> None:
    us = {"graph": times(1, 3, 10), "plain": times(3, 5, 20), "autograd": times(5, 11, 40)}
    us["inria"] = times(20, 12, 50)
    assert benchmark.ratios(us) == {"inria": {"graph": 8, "plain": 4, "autograd": 2, "step": 5}}


def test_a_row_holds_its_figures_in_the_columns_of_the_head(benchmark: ModuleType) -> None:
    us = {"graph": times(10, 30, 50), "plain": times(15, 25, 60), "autograd": times(50, 50, 200)}
    us["gsplat"] = times(100, 200, 500)
    row = {
        "case": "10k/256/4",
        "entries": 60_000,
        "contributions": 8_800_000,
        "us": us,
        "floor_us": {"forward": 5.0, "backward": 12.0},
        "ratios": benchmark.ratios(us),
    }
    line = benchmark.table_row(row, ["gsplat", "inria"])
    assert [cell.split() for cell in line.split("|")] == [
        ["10k/256/4", "60.0", "k", "8.80", "M"],
        ["10.0", "30.0", "50.0"],
        ["2.0", "2.5"],
        ["15.0", "25.0", "60.0"],
        ["100.0"],
        ["300", "7.5", "7.5", "10.0"],
        ["-", "-", "-", "-"],
    ]
    lines = [line, *benchmark.table_head(["gsplat", "inria"]).splitlines()]
    assert len({tuple(i for i, letter in enumerate(text) if letter == "|") for text in lines}) == 1


# ---- A whole run


def test_a_run_compares_all_and_writes_what_it_found(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = install_peers(monkeypatch, tmp_path)
    path = tmp_path / "figures.json"
    assert emulated.main(["--cases", "30/16/2", "--repeats", "1", "--json", str(path), *words]) == 0
    report = json.loads(path.read_text())
    assert report["hardware"] == {"device": "emulated"}
    assert (report["left_out"], report["failed"], report["absent"]) == ([], {}, {})
    (row,) = report["rows"]
    assert row["case"] == "30/16/2"
    assert row["problems"] == []
    assert set(row["us"]) == {"plain", "graph", "autograd", "gsplat", "faster-gs", "inria"}
    assert all(value > 0 for of in row["us"].values() for three in of.values() for value in three)
    assert set(row["ratios"]) == set(row["agreement"]) == {"gsplat", "faster-gs", "inria"}
    assert 0 < row["longest_list"] <= 30
    assert row["longest_list"] <= row["entries"] <= 60
    assert capsys.readouterr().out.splitlines()[-1].startswith("30/16/2 ")


def test_a_peer_with_another_picture_is_not_timed(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gsplat(monkeypatch, spoilt=1.3)
    path = tmp_path / "figures.json"
    assert emulated.main(["--cases", "30/16/1", "--repeats", "1", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert "gsplat" not in row["us"]
    assert row["ratios"] == {}
    assert row["agreement"]["gsplat"]["rgb"] > 0.01
    assert "not timed, since it computes something else" in row["notes"]["gsplat"]
    assert "gsplat: not timed" in capsys.readouterr().out


def test_a_peer_that_fails_is_noted_and_the_others_are_timed(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, "gsplat")  # without a rasterization
    path = tmp_path / "figures.json"
    assert emulated.main(["--cases", "30/16/1", "--repeats", "1", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["notes"]["gsplat"].startswith("AttributeError: ")
    assert set(row["us"]) == {"plain", "autograd", "graph"}


def test_other_bits_from_a_graph_are_a_problem(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = emulated.OurPair.graph

    def graph(pair: Any, pool: Any) -> Any:
        contestant = real(pair, pool)
        return contestant._replace(rgb=contestant.rgb + 1e-6)

    monkeypatch.setattr(emulated.OurPair, "graph", graph)
    assert emulated.main(["--cases", "30/16/1", "--repeats", "1", "--without", "gsplat"]) == 1
    assert "graph: the image or a gradient has other bits than those of plain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "failed"),
    [
        (KeyboardInterrupt(), 130, {}),
        (RuntimeError("illegal memory access\nand more"), 1,
         {"all that follow": "RuntimeError: illegal memory access"}),
    ],
)  # fmt: skip
def test_a_run_that_is_broken_off_keeps_what_it_has(
    emulated: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    failed: dict[str, str],
) -> None:
    real = emulated.measure

    def measure(case: Any, *others: Any) -> Any:
        if case.side == 8:
            raise error
        return real(case, *others)

    monkeypatch.setattr(emulated, "measure", measure)
    path, words = tmp_path / "figures.json", ["--without", "gsplat", "--repeats", "1"]
    assert emulated.main(["--cases", "20/16/1", "20/8/1", "20/24/1", "--json", str(path), *words]) == code
    report = json.loads(path.read_text())
    assert [row["case"] for row in report["rows"]] == ["20/16/1"]
    assert report["left_out"] == ["20/8/1", "20/24/1"]
    assert report["failed"] == failed
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 3 cases left out: 20/8/1 20/24/1"


def test_no_case_begins_after_the_time_is_over(
    emulated: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    words = ["--seconds", "1e-9", "--json", str(path), "--without", "gsplat"]
    assert emulated.main(["--cases", "20/16/1", *words]) == 0
    report = json.loads(path.read_text())
    assert (report["rows"], report["left_out"]) == ([], ["20/16/1"])
    assert "1 of 1 cases left out: 20/16/1" in capsys.readouterr().out


def test_a_case_that_does_not_fit_the_memory_is_skipped(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = emulated.measure

    def measure(case: Any, *others: Any) -> Any:
        if case.side == 8:
            raise torch.cuda.OutOfMemoryError("tried to allocate 1 TiB")
        return real(case, *others)

    monkeypatch.setattr(emulated, "measure", measure)
    path = tmp_path / "figures.json"
    words = ["--repeats", "1", "--json", str(path), "--without", "gsplat"]
    assert emulated.main(["--cases", "20/8/1", "20/16/1", *words]) == 1
    report = json.loads(path.read_text())
    assert list(report["failed"]) == ["20/8/1"]
    assert [row["case"] for row in report["rows"]] == ["20/16/1"]


def test_a_probe_says_why_a_peer_does_not_run(
    emulated: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert emulated.main(["--probe", "inria", "--inria", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("ModuleNotFoundError: No module named 'diff_gaussian")


def test_a_peer_that_runs_passes_its_probe(
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = install_peers(monkeypatch, tmp_path)
    monkeypatch.setattr(benchmark, "synchronize", lambda: None)
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)
    assert benchmark.main(["--probe", "faster-gs", *words]) == 0
    assert capsys.readouterr().out == "faster-gs runs\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "big"], "expected Gaussians/pixels/views such as 10k/256/4, got 'big'"),
        (["--repeats", "0"], "--repeats: expected 1 or more, got 0"),
        (["--seconds", "0"], "--seconds: expected more than 0, got 0.0"),
    ],
)
def test_a_wrong_option_is_named(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(words)
    assert message in capsys.readouterr().err


def test_the_ceilings_are_rates(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "device_ms", lambda call, calls: call() is None or 2.0)
    found = benchmark.measure_ceilings(floats=1000, side=10)
    assert math.isclose(found.bytes_per_s, 8 * 1000 / 2e-3)
    assert math.isclose(found.fma_per_s, 1000 / 2e-3)
