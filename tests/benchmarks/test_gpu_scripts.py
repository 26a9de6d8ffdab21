"""gpu_first.py, gpu_loop.py and gpu_suite.py without a GPU: their stages, and what the processes of these do,
by the emulated kernels or the CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ddpo3d_fast import kernels
from ddpo3d_fast.kernels import _backend

ROOT = Path(__file__).parents[2]
Load = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def same_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# ---- One scene


@pytest.fixture
def first(load_benchmark: Load, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("gpu_first")
    monkeypatch.setattr(module, "SCENE", "60/24/2")
    return module


def test_a_scene_is_compared_with_the_cpu_and_timed(first: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "scene.json"
    assert first.try_scene(path) == 0
    found = json.loads(path.read_text())
    assert found["scene"] == "60/24/2"
    assert {"rgb", "alpha", "depth", "radii"} == set(found["forward"])
    assert {"means", "viewmats", "means2d"} < set(found["backward"])
    assert max(*found["forward"].values(), *found["backward"].values()) <= 1e-4
    assert found["replay has the same bits"] is True
    assert {"forward", "backward", "step"} == set(found["us"])


def test_a_device_that_computes_something_else_fails_with_its_errors_written(
    first: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = kernels.rasterize_forward, []

    def spoilt(**arguments: Any) -> Any:
        calls.append(1)
        out, state = forward(**arguments)
        return (out if len(calls) == 1 else out._replace(alpha=1.01 * out.alpha)), state

    monkeypatch.setattr(kernels, "rasterize_forward", spoilt)
    assert first.try_scene(tmp_path / "scene.json") == 1
    errors = json.loads((tmp_path / "scene.json").read_text())["forward"]
    assert errors["alpha"] == pytest.approx(0.01, rel=0.1)
    assert errors["rgb"] <= 1e-4


def test_what_had_been_found_is_written_when_it_crashes(
    first: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(load := sys.modules["rasterizer_cuda"], "OurPair", fault)
    assert load.OurPair is fault
    with pytest.raises(RuntimeError, match="illegal memory access"):
        first.try_scene(tmp_path / "scene.json")
    assert {"forward", "backward"} < set(json.loads((tmp_path / "scene.json").read_text()))


# ---- What the tools watch


def test_the_small_scenes_go_through_every_kernel(
    load_benchmark: Load,
    emulated: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from kernels import diffusion_cases

    others: list[str] = []
    simt = _backend.backend(torch.device("cpu"))
    simt.reset_counters()
    monkeypatch.setattr(diffusion_cases, "run_diffusion", lambda case, device: others.append(device))
    monkeypatch.setattr(diffusion_cases, "run_adam", others.append)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    loop = load_benchmark("gpu_loop")
    loop.small_scenes()
    assert capsys.readouterr().out == "clean\n"
    stages = ["clear", "project", "ranges", "scatter", "blend", "blend vjp", "background vjp"]
    stages += ["gaussians vjp", "cameras vjp"]
    assert set(simt.counters()["launches"]) == {f"rasterize {stage}" for stage in stages}
    assert others == ["cuda"] * (len(diffusion_cases.CASES) + 1)


# ---- The loop

WITHOUT_AV = """
    import dataclasses, importlib.util, sys
    from pathlib import Path
    sys.path[:0] = [{benchmarks!r}]
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == "av" else find(name, *more)
    assert "av" not in sys.modules
    import gpu_loop
    from ddpo3d_fast.configure import preset
    draft = preset("draft", "a red ball")
    schedule = dataclasses.replace(draft.schedule, steps=3)
    scene = dataclasses.replace(draft.scene, gaussians=100)
    config = dataclasses.replace(draft, device="cpu", schedule=schedule, scene=scene)
    sys.exit(gpu_loop.run_loop(config, Path({path!r})))
"""


def test_the_loop_runs_without_av_and_gives_one_asset(tmp_path: Path) -> None:
    path = tmp_path / "loop.json"
    code = WITHOUT_AV.format(benchmarks=str(ROOT / "benchmarks"), path=str(path))
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("the same asset; with graphs {'eager': 3}, ")
    found = json.loads(path.read_text())
    assert list(found) == ["graphs", "graphs again", "launches"]
    assert {row["asset"] for row in found.values()} == {found["graphs"]["asset"]}
    assert all(row["not replayed"] == 1 and row["ms"] > 0 for row in found.values())


# ---- The scripts


@pytest.fixture
def nothing_runs(load_benchmark: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """No command runs: all fail, at once. The commands, as they come."""
    stages, commands = load_benchmark("gpu_stages"), []

    def run(command: list[object], seconds: float, echo: bool = True, **environment: str) -> Any:
        assert 0 < seconds <= 240
        commands.append([str(word) for word in command])
        return stages.Outcome(1, 0.5, ["error: no such device"])

    monkeypatch.setattr(stages, "run", run)
    monkeypatch.setattr(stages, "WORK", tmp_path / "work")
    monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: name)
    return commands


FIRST = ["machine", "build", "scene", "kernel tests", "rasterizer"]
FIGURES = ["loop", "other tests", "diffusion", "profile", "rasterizer"]
SANITIZERS = ["memcheck", "racecheck", "synccheck", "initcheck"]
ORDER = {
    "gpu_first": FIRST,
    "gpu_loop": ["machine", "build", "gsplat", "faster-gs", *FIGURES, *SANITIZERS],
    "gpu_suite": ["machine", "build", "gsplat", "faster-gs", *FIRST[2:-1], *FIGURES, *SANITIZERS],
}


@pytest.mark.parametrize("script", ORDER)
def test_every_stage_has_its_turn_whatever_fails(
    load_benchmark: Load, nothing_runs: list[list[str]], tmp_path: Path, script: str
) -> None:
    words = ["--output", str(tmp_path / "out"), "--faster-gs", str(tmp_path)]
    assert load_benchmark(script).main(words) == (1 if script == "gpu_suite" else 0)
    rows = json.loads((tmp_path / "out" / f"{script.replace('_', '-')}.json").read_text())["stages"]
    assert [row["stage"] for row in rows] == ORDER[script]
    assert {row["status"] for row in rows} == {"failed"}
    assert all(row["lines"] for row in rows)
    tools = [command[command.index("--tool") + 1] for command in nothing_runs if "--tool" in command]
    assert tools == [name for name in ORDER[script] if name in SANITIZERS]


def test_the_rasterizer_waits_for_its_peers_and_leaves_out_those_that_failed(
    load_benchmark: Load, nothing_runs: list[list[str]], tmp_path: Path
) -> None:
    load_benchmark("gpu_loop").main(["--output", str(tmp_path), "--faster-gs", str(tmp_path)])
    (timed,) = [command for command in nothing_runs if "--seconds" in command]
    assert timed[timed.index("--without") :] == ["--without", "gsplat", "--without", "faster-gs"]


@pytest.mark.parametrize(("script", "limit"), [("gpu_first", 300), ("gpu_loop", 450), ("gpu_suite", 600)])
def test_the_time_for_everything_leaves_room_to_end_within_a_calls(
    load_benchmark: Load, monkeypatch: pytest.MonkeyPatch, script: str, limit: float
) -> None:
    module, given = load_benchmark(script), []
    monkeypatch.setattr(
        module, "run_script", lambda name, stages, options: given.append(options.seconds) or 0
    )
    assert module.main([]) == 0
    assert (
        given[0] + 2 * load_benchmark("stages").GRACE <= limit
    )  # for a last stage that does not end at once


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "0"], "--seconds: expected more than 0, got 0.0"),
        (["--faster-gs", "/no/such/folder"], "--faster-gs: expected a folder, got /no/such/folder"),
    ],
)
def test_a_wrong_option_is_named(
    load_benchmark: Load, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load_benchmark("gpu_suite").main(words)
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_it_before_anything_runs(
    load_benchmark: Load, nothing_runs: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert load_benchmark("gpu_first").main(["--output", str(tmp_path / "file" / "results")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not nothing_runs
