"""The figures of seconds_per_asset.py: the parts add up, a preset's line is a median, programs take turns."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("seconds_per_asset")


def row(program: str, seed: int, **seconds: float) -> dict[str, Any]:
    return {"program": program, "preset": "draft", "prompt": "a cube", "seed": seed, "seconds": seconds}


def test_the_parts_add_up(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = {"stage": "done", "seconds": {"setup": 0.5, "render": 1.0, "total": 2.0}}
    clock = iter([10.0, 15.0])

    def command(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, '{"stage": "load"}\n' + json.dumps(done) + "\n", "")

    monkeypatch.setattr(benchmark.subprocess, "run", command)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    figures = benchmark.run("draft", "a red mushroom", 0, tmp_path, [])
    assert figures["seconds"] == {"setup": 0.5, "render": 1.0, "start": 3.0, "other": 0.5, "wall": 5.0}
    assert benchmark.loop_seconds(figures) == 1.5  # render and other


def test_a_preset_ends_with_its_median(benchmark: ModuleType) -> None:
    rows = [row("generate", seed, setup=wall / 2, wall=wall) for seed, wall in enumerate((2.0, 4.0, 100.0))]
    lines = [line.split() for line in benchmark.table(rows).splitlines()]
    assert lines[0] == ["preset", "program", "prompt", "seed", "setup", "wall"]
    assert len(lines) == 5
    assert lines[-1] == ["draft", "generate", "median", "of", "3", "2.00", "4.00"]


def test_every_program_has_a_median_of_its_own(benchmark: ModuleType) -> None:
    rows = [row("generate", 0, reward=1.0, wall=2.0), row("baseline", 0, loop=3.0, wall=4.0)]
    lines = [line.split() for line in benchmark.table(rows).splitlines()]
    assert lines[0][-3:] == ["reward", "loop", "wall"]
    assert lines[2] == ["draft", "generate", "median", "of", "1", "1.00", "-", "2.00"]
    assert lines[4] == ["draft", "baseline", "median", "of", "1", "-", "3.00", "4.00"]


def test_a_run_that_fails_ends_it_with_its_own_words(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--steps: expected a whole number"):
        benchmark.run("draft", "a cube", 0, tmp_path / "run", ["--steps", "many"])


@pytest.mark.parametrize(
    ("step", "end", "finite"),
    [('{"loss": 0.5}', "{}", True), ('{"loss": null}', "{}", False), ("{}", '{"finite": false}', False)],
)
def test_a_run_that_lost_its_numbers_is_known(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str, end: str, finite: bool
) -> None:
    last = json.loads(end) | {"seconds": {"total": 1.0}}

    def command(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, f"{step}\n{json.dumps(last)}\n", "")

    monkeypatch.setattr(benchmark.subprocess, "run", command)
    assert benchmark.run("draft", "a cube", 0, tmp_path, [])["finite"] is finite


def test_ratios_are_medians_of_rounds(benchmark: ModuleType) -> None:
    """In a round both had the same machine: the ratio of two medians would mix the rounds."""
    rows = []
    for seed, (ours, theirs) in enumerate([(1.0, 5.0), (2.0, 2.0), (10.0, 30.0)]):
        rows += [
            row("generate", seed, start=1.0, setup=1.0, export=1.0, wall=3.0 + ours),
            row("baseline", seed, start=1.0, setup=1.0, export=1.0, wall=3.0 + theirs),
        ]
    (ratio,) = benchmark.ratios(rows)
    assert (ratio["preset"], ratio["program"]) == ("draft", "generate")
    assert ratio["loop"] == pytest.approx(3.0)
    assert ratio["wall"] == pytest.approx(2.0)
    assert benchmark.ratios(rows[::2]) == []


def test_programs_take_turns_after_a_warm_up(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[Any, ...]] = []

    def run(preset: str, prompt: str, seed: int, folder: Path, flags: list[str], program: str, _: Any) -> Any:
        made.append((seed, program, "--steps" in flags))
        return row(program, seed, wall=1.0)

    monkeypatch.setattr(benchmark, "run", run)
    words = ["--model", "random:small", "--baseline", "--prompts", "a", "--seeds", "1", "2"]
    rows = benchmark.measure(benchmark.parse_options(words), [], tmp_path)
    programs = ("generate", "distillation", "baseline")
    assert made[:3] == [(1, program, True) for program in programs]
    assert made[3:] == [(seed, program, False) for seed in (1, 2) for program in programs]
    assert len(rows) == 6


def test_another_build_takes_turns_with_this_one(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ddpo3d_fast").mkdir()
    (tmp_path / "ddpo3d_fast" / "__init__.py").write_text("__version__ = '0.0.7'\n")
    (tmp_path / "ddpo3d_fast" / "_C.py").touch()
    other = benchmark.Build.at(tmp_path)
    assert (other.path, other.version.split()[0]) == (tmp_path.resolve(), "0.0.7")
    made: list[tuple[str, Path | None, str]] = []

    def command(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        made.append((words[words.index("--seed") + 1], how["cwd"], how["env"].get("PYTHONPATH", "")))
        return subprocess.CompletedProcess(words, 0, '{"seconds": {"predict": 1, "total": 2}}\n', "")

    monkeypatch.setattr(benchmark.subprocess, "run", command)
    words = ["--against", "x", "--presets", "draft", "--prompts", "a", "--seeds", "1", "2"]
    rows = benchmark.measure(benchmark.parse_options(words), [], tmp_path, other)
    assert [row["program"] for row in rows] == 2 * ["generate", "against"]
    assert [(seed, where) for seed, where, _ in made] == [
        ("1", None), ("1", other.path), ("2", None), ("2", other.path)
    ]  # fmt: skip
    assert [path == str(other.path) for *_, path in made] == 2 * [False, True]


def test_a_ratio_is_the_median_of_the_rounds_for_every_part(benchmark: ModuleType) -> None:
    rows = []
    for seed, (ours, theirs) in enumerate([(1.0, 4.0), (3.0, 4.0), (10.0, 20.0)]):
        rows += [
            row("generate", seed, predict=ours, render=0.01, wall=2 * ours),
            row("against", seed, predict=theirs, render=0.02, wall=theirs),
        ]
    assert benchmark.ratios_by_part(rows) == {"draft": {"predict": 0.5, "wall": 1.0}}
    assert benchmark.ratios_by_part(rows[::2]) == {}


@pytest.mark.parametrize("content", [None, "", "raise ImportError('no such symbol')\n"])
def test_what_is_no_build_is_one_line(benchmark: ModuleType, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ddpo3d_fast").mkdir()
        (tmp_path / "ddpo3d_fast" / "__init__.py").write_text(content)
    with pytest.raises(benchmark.InputError, match=r"^--against: .*") as caught:
        benchmark.Build.at(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_programs_get_the_same_flags(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: dict[str, list[str]] = {}

    def command(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands[program] = words
        return subprocess.CompletedProcess(words, 0, '{"seconds": {"total": 1.0}, "finite": true}\n', "")

    monkeypatch.setattr(benchmark.subprocess, "run", command)
    for program in ("generate", "distillation", "baseline"):
        figures = benchmark.run("draft", "a cube", 3, tmp_path, ["--model", "m"], program)
        assert figures["program"] == program
        assert figures["finite"]
    same = [
        "--preset",
        "draft",
        "--prompt",
        "a cube",
        "--seed",
        "3",
        "--output",
        str(tmp_path),
        "--model",
        "m",
    ]
    assert commands["generate"][1:] == ["-m", "ddpo3d_fast", "generate", "--json", *same]
    alone = ["--noises", "1", "--policy-weight", "0", "--guide-weight", "0"]
    assert commands["distillation"] == [*commands["generate"], *alone]
    assert Path(commands["baseline"][1]).is_file()
    assert commands["baseline"][2:] == same


def test_a_random_model_comes_with_its_reward(
    benchmark: ModuleType, load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    random_models = load_benchmark("random_models")
    monkeypatch.setattr(random_models, "find_model", lambda name: f"<{name}>")
    monkeypatch.setattr(random_models, "find_reward", lambda name: f"<{name}>")
    flags = benchmark.model_flags
    assert flags("embedded", None) == []
    assert flags("sd21", None) == ["--model", "<sd21>"]  # generate's own default
    assert flags("random:sd21", None) == ["--model", "<random:sd21>", "--reward", "<random:aesthetic>"]
    assert flags("random:small", ["clip=2"]) == ["--model", "<random:small>", "--reward", "<clip=2>"]


@pytest.mark.parametrize(
    ("words", "presets"),
    [([], ["draft", "standard"]), (["--model", "sd21"], ["standard"]), (["--presets", "high"], ["high"])],
)
def test_presets_fit_the_model(benchmark: ModuleType, words: list[str], presets: list[str]) -> None:
    options: argparse.Namespace = benchmark.parse_options(words)
    assert options.presets == presets


def test_a_baseline_of_the_embedded_prior_is_refused(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse_options(["--baseline"])
    assert "--baseline: expected a --model of Stable Diffusion" in capsys.readouterr().err
