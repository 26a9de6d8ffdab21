"""The GPU suite without a GPU: commands that end, fail, hang or are missing, and what is told of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MACHINE = {"device": "none", "capability": "9.0"}
FUNCTIONS = ("build", "gpu_tests", "sanitizer", "diffusion_benchmark", "rasterizer_benchmark")


@pytest.fixture
def suite(load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("gpu_suite")
    monkeypatch.setattr(module, "GRACE", 1.0)
    return module


@pytest.fixture
def root(suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository of its own, empty."""
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(suite, "WORK", tmp_path / "build" / "gpu-suite")
    return tmp_path


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def program(folder: Path, name: str, code: str) -> Path:
    """A program that a Python script stands for."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return path


def ends(pid: int) -> bool:
    """Whether a process is gone, or soon."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# ---- Commands


def test_a_command_passes_with_its_last_lines(suite: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = suite.run(python("print(*range(100), sep='\\n')"), 60)
    assert (outcome.code, outcome.status) == (0, "passed")
    assert outcome.lines == [str(number) for number in range(60, 100)]
    assert outcome.last("7") == "97"
    assert capsys.readouterr().out.split() == [str(number) for number in range(100)]


def test_a_command_that_fails_or_is_missing_says_so(suite: ModuleType) -> None:
    outcome = suite.run(python("raise SystemExit('no such thing')"), 60, echo=False)
    assert (outcome.code, outcome.status, outcome.lines) == (1, "failed", ["no such thing"])
    outcome = suite.run(["/no/such/program"], 60)
    assert (outcome.code, outcome.status) == (127, "failed")
    assert outcome.lines == ["/no/such/program: No such file or directory"]


def test_a_command_that_takes_too_long_ends_with_all_that_it_started(suite: ModuleType) -> None:
    outcome = suite.run(
        python("""
            import signal, subprocess, sys, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print(child.pid)
            time.sleep(600)
        """),
        seconds=2,
        echo=False,
    )
    assert (outcome.code, outcome.status) == (None, "cut off")
    assert 2 <= outcome.seconds < 20
    assert ends(int(outcome.lines[0]))


def test_a_command_that_is_cut_off_may_still_tell_what_it_has(suite: ModuleType) -> None:
    outcome = suite.run(
        python("""
            import signal, sys, time
            signal.signal(signal.SIGTERM, lambda *_: sys.exit("three of four"))
            print("begun")
            time.sleep(600)
        """),
        seconds=2,
        echo=False,
    )
    assert outcome.status == "cut off"
    assert outcome.lines == ["begun", "three of four"]


def test_what_a_command_leaves_behind_is_ended(suite: ModuleType) -> None:
    child = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    outcome = suite.run(python(code), 60, echo=False)
    assert outcome.status == "passed"
    assert outcome.seconds < 30
    assert ends(int(outcome.lines[0]))


# ---- Parts


SETUP = """
    import os, pathlib, sys
    folder = pathlib.Path(sys.argv[sys.argv.index("--build-lib") + 1]) / "ddpo3d_fast"
    folder.mkdir(parents=True)
    names = ("DDPO3D_CUDA", "DDPO3D_CUDA_ARCHS")
    (folder / NAME).write_text(" ".join(os.environ[name] for name in names))
"""


def test_the_build_is_for_the_device_and_replaces_the_extension_whole(suite: ModuleType, root: Path) -> None:
    name = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    (root / "setup.py").write_text(f"NAME = {name!r}\n{textwrap.dedent(SETUP)}")
    package = root / "ddpo3d_fast"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "kernels.py").write_text("def build_info():\n    return {'cuda': True}\n")
    (package / name).write_text("mapped by another program")
    with (package / name).open() as mapped:
        part = suite.Part("build")
        outcome = suite.build(part, 60, "12.0")
        assert mapped.read() == "mapped by another program"
    assert (outcome.status, part.detail) == ("passed", f"{name} for 120-real")
    assert (package / name).read_text() == "1 120-real"


def test_a_build_that_fails_says_why_and_leaves_the_extension_alone(suite: ModuleType, root: Path) -> None:
    (root / "setup.py").write_text(
        "print('no nvcc was found'); print('more'); raise SystemExit('error: nothing done')"
    )
    part = suite.Part("build")
    assert suite.build(part, 60, "9.0").status == "failed"
    assert part.detail == "error: nothing done"
    assert not (root / "ddpo3d_fast").exists()


MARK = "pytest.mark." + "gpu"  # in two, so that the suite does not take this file for one with such tests
GPU_TESTS = f"""
    import pytest
    pytestmark = {MARK}
    def test_one(): pass
    @pytest.mark.skipif(%s, reason="one device")
    def test_two(): assert %s
"""


@pytest.fixture
def tests(root: Path) -> Path:
    (root / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    (root / "tests" / "kernels").mkdir(parents=True)
    (root / "tests" / "kernels" / "test_of_the_rest.py").write_text("import what_is_not_installed\n")
    return root / "tests"


@pytest.mark.parametrize(
    ("skipped", "right", "status", "detail"),
    [
        (False, True, "passed", "kernels: 2 passed"),
        (True, True, "passed", "kernels: 1 passed, 1 skipped"),
        (False, False, "failed", "kernels: 1 failed, 1 passed"),
    ],
)
def test_the_tests_are_those_that_need_a_gpu(
    suite: ModuleType, tests: Path, skipped: bool, right: bool, status: str, detail: str
) -> None:
    (tests / "kernels" / "test_on_gpu.py").write_text(textwrap.dedent(GPU_TESTS % (skipped, right)))
    part = suite.Part("tests")
    assert suite.gpu_tests(part, 60).status == status
    assert part.detail.startswith(detail)


def test_tests_that_are_all_skipped_have_shown_nothing(suite: ModuleType, tests: Path) -> None:
    text = f"import pytest\npytestmark = [{MARK}, pytest.mark.skip]\ndef test_one(): pass\n"
    (tests / "kernels" / "test_on_gpu.py").write_text(text)
    part = suite.Part("tests")
    assert suite.gpu_tests(part, 60).status == "failed"
    assert part.detail.startswith("kernels: 1 skipped")


def test_a_folder_whose_tests_need_what_is_not_installed_is_named(suite: ModuleType, tests: Path) -> None:
    text = textwrap.dedent(GPU_TESTS % (False, True))
    (tests / "kernels" / "test_on_gpu.py").write_text(text)
    for folder, file in (("cli", "conftest.py"), ("generate", "test_more.py")):
        (tests / folder).mkdir()
        (tests / folder / "test_also.py").write_text(text)
        (tests / folder / file).write_text(f"import what_is_not_installed  # for {MARK}\n")
    part = suite.Part("tests")
    assert suite.gpu_tests(part, 60).status == "passed"
    assert [detail.split(" in ")[0] for detail in part.detail.split("; ")] == [
        "kernels: 2 passed",
        "cli: not run, no module named what_is_not_installed",
        "generate: not run, no module named what_is_not_installed",
    ]
    (tests / "kernels" / "conftest.py").write_text("import what_is_not_installed\n")
    assert suite.gpu_tests(part, 60).status == "failed"


def test_tests_that_hang_are_cut_off_and_no_others_begin(suite: ModuleType, tests: Path) -> None:
    text = f"import pytest, time\n@{MARK}\ndef test_one(): time.sleep(600)\n"
    for folder in ("kernels", "cli"):
        (tests / folder).mkdir(exist_ok=True)
        (tests / folder / "test_on_gpu.py").write_text(text)
    part = suite.Part("tests")
    assert suite.gpu_tests(part, 2).status == "cut off"
    assert part.detail.startswith("kernels: ")
    assert "cli" not in part.detail


@pytest.mark.parametrize(
    ("tool", "said", "code", "status", "detail"),
    [
        ("memcheck", ["clean", "========= ERROR SUMMARY: 0 errors"], 0, "passed", "0 errors"),
        (
            "racecheck",
            ["clean", "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"],
            0,
            "passed",
            "0 hazards displayed (0 errors, 0 warnings)",
        ),
        ("memcheck", ["========= Invalid __global__ read", "clean", "========= ERROR SUMMARY: 3 errors"],
         86, "failed", "3 errors"),
        ("racecheck", ["clean", "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)"],
         0, "failed", "1 hazard displayed (0 errors, 1 warning)"),
        ("initcheck", ["Traceback", "========= ERROR SUMMARY: 0 errors"], 1, "failed", "0 errors"),
        ("synccheck", ["========= ERROR SUMMARY: 0 errors"], 0, "failed", "0 errors"),
        ("synccheck", ["========= Error: Target application terminated before first instrumented API call"],
         0, "failed", "========= Error: Target application terminated before first instrumented API call"),
    ],
)  # fmt: skip
def test_a_sanitizer_passes_only_if_it_watched_to_the_end_and_found_nothing(
    suite: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tool: str,
    said: list[str],
    code: int,
    status: str,
    detail: str,
) -> None:
    body = (
        "import os, sys\nprint(sys.argv[1:3], os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'], sys.argv[-1])\n"
    )
    program(tmp_path, "compute-sanitizer", body + f"print(*{said!r}, sep='\\n')\nraise SystemExit({code})")
    monkeypatch.setenv("PATH", str(tmp_path))
    part = suite.Part(tool)
    outcome = suite.sanitizer(part, 60)
    assert (outcome.status, part.detail) == (status, detail)
    assert outcome.lines[0] == f"['--tool', '{tool}'] 1 --small-scenes"


def test_a_missing_sanitizer_is_named(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    part = suite.Part("memcheck")
    assert suite.sanitizer(part, 60).status == "failed"
    assert part.detail == "compute-sanitizer: No such file or directory"


def test_the_small_scenes_go_through_every_plan(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the sanitizers watch, with the emulated backend for a device."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from kernels import diffusion_cases
    from simt import build

    from ddpo3d_fast.kernels import _backend, rasterizer

    module, plan, plans, others = build.load(), rasterizer.cuda_plan, [], []
    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
    monkeypatch.setattr(_backend, "backend", lambda device: module)
    monkeypatch.setattr(rasterizer, "cuda_plan", lambda *words: plans.append(words) or plan(*words))
    monkeypatch.setattr(diffusion_cases, "run_diffusion", lambda case, device: others.append(device))
    monkeypatch.setattr(diffusion_cases, "run_adam", others.append)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    suite.small_scenes()
    assert capsys.readouterr().out == "clean\n"
    assert set(plans) == {(tile, buckets) for tile in (8, 16) for buckets in (False, True)}
    assert others == ["cuda"] * (len(diffusion_cases.CASES) + 1)


def figures(rows: int, left: list[str], ratios: list[dict[str, Any]], problems: int = 0) -> dict[str, Any]:
    return {
        "left_out": left,
        "rows": [
            {"ratios": ratios[i] if i < len(ratios) else {}, "problems": ["!"] if i < problems else []}
            for i in range(rows)
        ],
    }


def test_the_benchmark_is_summed_up_from_its_file(suite: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rasterizer-cuda.json"
    assert suite.benchmark_summary(path) == ""
    path.write_text(json.dumps(figures(3, [], [{"gsplat": {"graph": 4.04}}, {"gsplat": {"graph": 3.01}}])))
    assert suite.benchmark_summary(path) == "3 of 3 cases; gsplat takes 3.0 to 4.0 times ours"
    path.write_text(json.dumps(figures(2, ["2k/128/1", "2k/128/4"], [], problems=1)))
    assert suite.benchmark_summary(path) == "2 of 4 cases, left out: 2k/128/1 2k/128/4; problems in 1"


def test_a_benchmark_that_is_cut_off_keeps_its_figures(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "rasterizer-cuda.json").write_text("of another run")
    done = figures(1, ["2k/128/4"], [])
    code = f"""
        import pathlib, sys, time
        path = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
        assert not path.exists()
        path.write_text({json.dumps(done)!r})
        print(*sys.argv[1:3], *sys.argv[5:])
        time.sleep(600)
    """
    monkeypatch.setattr(suite, "BENCHMARK", program(tmp_path, "benchmark.py", code))
    part = suite.Part("rasterizer")
    outcome = suite.rasterizer_benchmark(part, 3, tmp_path, ["--without", "gsplat"])
    assert (outcome.status, part.detail) == ("cut off", "1 of 2 cases, left out: 2k/128/4")
    assert outcome.lines == ["--seconds 2 --without gsplat"]


# ---- Peers


def prepared(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, source: Path | None, codes: list[int | None]
) -> tuple[Any, list[list[str]]]:
    """A peer after `prepare`, whose commands end with these codes; and the commands."""
    commands: list[list[str]] = []

    def run(command: list[object], seconds: float, echo: bool = True, **environment: str) -> Any:
        assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
        commands.append([str(word) for word in command])
        return suite.Outcome(codes[len(commands) - 1], 1.0, ["first", "its last words"])

    monkeypatch.setattr(suite, "run", run)
    peer = suite.Peer("inria", suite.Part("inria", ours=False), source)
    suite.prepare(peer, 60, "9.0")
    return peer, commands


def test_a_peers_sources_are_built_in_a_copy(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("checkout")
    (source / "backend").mkdir()
    (source / "backend" / "setup.py").write_text("setup()")
    peer, (install, probe) = prepared(suite, monkeypatch, source, [0, 0])
    folder = root / "build" / "gpu-suite" / "peers" / "inria"
    copy = root / "build" / "gpu-suite" / "sources" / "inria" / "backend"
    assert install[1:4] == ["-m", "pip", "install"]
    assert install[-3:] == ["--target", str(folder), str(copy)]
    assert (copy / "setup.py").read_text() == "setup()"
    assert probe[2:] == ["--probe", "inria", "--inria", str(folder)]
    assert (peer.part.status, peer.flags) == ("ready", ["--inria", str(folder)])


def test_a_peer_that_is_built_already_is_imported_from_where_it_is(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("site")
    peer, commands = prepared(suite, monkeypatch, folder, [0])
    assert [command[2:] for command in commands] == [["--probe", "inria", "--inria", str(folder)]]
    assert peer.flags == ["--inria", str(folder)]


def test_a_peer_that_does_not_run_is_left_out_with_its_reason(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, _ = prepared(suite, monkeypatch, None, [1])
    assert (peer.part.status, peer.part.detail) == ("unavailable", "its last words")
    assert peer.flags == ["--without", "inria"]
    peer, _ = prepared(suite, monkeypatch, None, [None])
    assert peer.part.detail.startswith("not compiled after")


# ---- All together


def whole(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, output: Path, codes: dict[str, int | None]
) -> tuple[int, dict[str, Any], list[str]]:
    """Exit code and JSON of a suite whose parts end with these codes, 0 where none is named; their order."""
    order: list[str] = []

    def part(line: Any, seconds: float, *_: object) -> Any:
        order.append(line.name)
        assert 0 < seconds <= 600
        line.detail = f"about {line.name}"
        return suite.Outcome(codes.get(line.name, 0), 1.5, [f"words of {line.name}"])

    for name in FUNCTIONS:
        monkeypatch.setattr(suite, name, part)
    monkeypatch.setattr(suite, "hardware", lambda: dict(MACHINE))
    monkeypatch.setattr(suite, "nvidia_smi", lambda *fields: {"clocks.sm": "1 MHz"})
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = suite.main(["--output", str(output)])
    finally:
        signal.signal(signal.SIGTERM, before)
    return code, json.loads((output / "gpu-suite.json").read_text()), order


PARTS = ["build", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "diffusion", "rasterizer"]


def test_a_suite_whose_parts_all_pass(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, order = whole(suite, monkeypatch, tmp_path / "new", {})
    assert (code, order) == (0, PARTS)
    assert found["hardware"] == {**MACHINE, "clocks.sm after": "1 MHz"}
    assert found["parts"][0] == {"part": "build", "status": "passed", "seconds": 1.5, "detail": "about build"}
    table = capsys.readouterr().out.rstrip().splitlines()[-9:]
    assert table[0].split() == ["part", "status", "seconds"]
    assert table[1].split() == ["build", "passed", "1.5", "about", "build"]


def test_a_part_that_fails_is_told_and_the_others_go_on(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, found, order = whole(suite, monkeypatch, tmp_path, {"racecheck": 86, "tests": None})
    assert (code, order) == (1, PARTS)
    parts = {part["part"]: part for part in found["parts"]}
    assert parts["racecheck"]["status"] == "failed"
    assert parts["racecheck"]["lines"] == ["words of racecheck"]
    assert (parts["tests"]["status"], parts["tests"]["detail"]) == ("cut off", "after 2 s; about tests")
    assert "lines" not in parts["rasterizer"]


def test_nothing_runs_after_a_build_that_failed(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, found, order = whole(suite, monkeypatch, tmp_path, {"build": 1})
    assert (code, order) == (1, ["build"])
    assert [part["status"] for part in found["parts"]] == ["failed"] + 7 * ["not run"]


def test_parts_have_shares_and_the_benchmark_the_rest(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [1000.0]
    monkeypatch.setattr(suite.time, "monotonic", lambda: now[0])
    got: dict[str, float] = {}

    def part(line: Any, seconds: float, *_: object) -> Any:
        got[line.name] = seconds
        now[0] += spends.get(line.name, 10.0)
        return suite.Outcome(0, 1.0, [])

    for name in FUNCTIONS:
        monkeypatch.setattr(suite, name, part)
    report = suite.Report(dict(MACHINE), tmp_path, [suite.Part(name) for name in PARTS])
    spends = {"build": 180.0, "tests": 120.0}
    suite.suite(report, [], 600.0)
    assert got["build"] == 180
    assert got["tests"] == 150
    assert got["memcheck"] == 60  # 300 s are left, and 210 of them kept for the benchmark
    assert got["synccheck"] == 60
    assert got["diffusion"] == 48
    assert got["rasterizer"] == 250 - suite.GRACE

    now[0], got, spends = 1000.0, {}, {"build": 180.0, "tests": 120.0, "memcheck": 85.0}
    suite.suite(report, [], 600.0)
    assert got["racecheck"] == 5  # what is not the benchmark's
    assert "initcheck" not in got
    assert report.parts[4].detail == "no time was left"
    assert got["rasterizer"] == 205 - suite.GRACE


def test_the_benchmark_waits_for_a_peer_that_compiles_as_long_as_there_is_time(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags: list[str] = []
    compiled = threading.Event()

    def prepare(peer: Any, seconds: float, capability: str) -> None:
        assert 0 < seconds <= 0.65 * 20
        compiled.wait(1)
        peer.part.status = "ready"

    def part(line: Any, seconds: float, *rest: Any) -> Any:
        if line.name == "rasterizer":
            flags.extend(rest[1])
        return suite.Outcome(0, 0.0, [])

    monkeypatch.setattr(suite, "prepare", prepare)
    for name in FUNCTIONS:
        monkeypatch.setattr(suite, name, part)
    report = suite.Report(dict(MACHINE), tmp_path, [suite.Part(name) for name in PARTS])
    peer = suite.Peer("inria", suite.Part("inria", ours=False), folder=tmp_path)
    suite.suite(report, [peer], 20.0)
    assert flags == ["--inria", str(tmp_path)]


INTERRUPTED = """
    import sys
    sys.path[:0] = [{benchmarks!r}]
    import gpu_suite
    gpu_suite.hardware = lambda: {machine!r}
    gpu_suite.nvidia_smi = lambda *fields: {{}}
    gpu_suite.importlib.util.find_spec = lambda name: None

    def build(part, seconds, capability):
        part.detail = "built"
        return gpu_suite.Outcome(0, 1.0, [])

    def tests(part, seconds):
        code = "import time; print('one test passed', flush=True); time.sleep(600)"
        return gpu_suite.run([sys.executable, "-c", code], seconds)

    gpu_suite.build, gpu_suite.gpu_tests = build, tests
    sys.exit(gpu_suite.main(["--output", {output!r}]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_suite_prints_and_writes_what_there_is(tmp_path: Path, number: signal.Signals) -> None:
    code = INTERRUPTED.format(benchmarks=str(BENCHMARKS), machine=MACHINE, output=str(tmp_path))
    process = subprocess.Popen(
        python(code),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "one test passed" in line:
            process.send_signal(number)
    assert process.wait(60) == 130
    parts = json.loads((tmp_path / "gpu-suite.json").read_text())["parts"]
    assert [part["status"] for part in parts] == ["passed", "interrupted"] + 6 * ["not run"]
    assert parts[1]["lines"] == ["one test passed"]
    assert said[-9].split() == ["build", "passed", "1.0", "built"]
    assert said[-8].split()[:2] == ["tests", "interrupted"]


def test_without_a_device_it_says_so_at_once(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"device: expected a CUDA device that torch .* can use, got none"):
        load_benchmark("gpu_machine").hardware()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "--minutes: expected more than 0, got 0.0"),
        (["--faster-gs", "/no/such/folder"], "--faster-gs: expected a folder, got /no/such/folder"),
    ],
)
def test_a_wrong_option_is_named(
    suite: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        suite.main(words)
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_it_before_the_build(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(suite, "build", lambda *_: pytest.fail("built"))
    monkeypatch.setattr(suite, "hardware", lambda: dict(MACHINE))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert suite.main(["--output", str(tmp_path / "file" / "results")]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "cannot write" in capsys.readouterr().err


def test_nvidia_smi_is_asked_for_named_fields(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = load_benchmark("gpu_machine")
    program(tmp_path, "nvidia-smi", "import sys\nassert '--query-gpu=a,b' in sys.argv\nprint('1 MHz, two')")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.nvidia_smi("a", "b") == {"a": "1 MHz", "b": "two"}
    assert machine.nvidia_smi("a") == {}
