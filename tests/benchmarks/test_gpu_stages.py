"""The GPU's stages without a GPU: builds, tests, sanitizers, peers, by programs that stand for theirs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@pytest.fixture
def suite(load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("gpu_stages")
    monkeypatch.setattr(load_benchmark("stages"), "GRACE", 1.0)
    return module


@pytest.fixture
def root(
    suite: ModuleType,
    load_benchmark: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Path:
    """A repository of its own, empty."""
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(load_benchmark("stages"), "ROOT", tmp_path)
    monkeypatch.setattr(suite, "WORK", tmp_path / "build" / "gpu-stages")
    return tmp_path


def program(folder: Path, name: str, code: str) -> Path:
    """A program that a Python script stands for."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return path


def stage(suite: ModuleType, name: str) -> Any:
    """A stage that is called by the test itself."""
    return suite.Stage(name, 60, lambda *_: None)


ABOUT = SimpleNamespace(figures={"capability": "12.0"})


# ---- Builds, tests, sanitizers


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
        line = stage(suite, "build")
        outcome = suite.build(line, 60, ABOUT)
        assert mapped.read() == "mapped by another program"
    assert (outcome.status, line.detail) == ("passed", f"{name} for 120-real, by setup.py")
    assert (package / name).read_text() == "1 120-real"


CMAKE = """
    import pathlib, sys
    print(*sys.argv[1:])
    if "--build" in sys.argv:
        folder = pathlib.Path({lib!r}) / "ddpo3d_fast"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / {name!r}).write_text("by cmake")
"""


def test_a_build_whose_setup_fails_is_done_by_cmake(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    (root / "setup.py").write_text("raise SystemExit('error: setuptools is too old')")
    program(root, "cmake", CMAKE.format(lib=str(suite.WORK / "lib"), name=name))
    monkeypatch.setenv("PATH", str(root), prepend=os.pathsep)
    package = root / "ddpo3d_fast"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "kernels.py").write_text("def build_info():\n    return {'cuda': True}\n")
    line = stage(suite, "build")
    assert suite.build(line, 60, ABOUT).status == "passed"
    why = "by cmake, after setup.py: error: setuptools is too old"
    assert line.detail == f"{name} for 120-real, {why}"
    assert (package / name).read_text() == "by cmake"
    said = capsys.readouterr().out
    assert "-DCMAKE_CUDA_ARCHITECTURES=120-real" in said
    assert re.search(r"-Dpybind11_DIR=\S+pybind11", said)


def test_a_build_that_fails_says_why_and_leaves_the_extension_alone(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "setup.py").write_text(
        "print('no nvcc was found'); print('more'); raise SystemExit('error: nothing done')"
    )
    program(root, "cmake", "raise SystemExit('CMake Error: nothing either')")
    monkeypatch.setenv("PATH", str(root), prepend=os.pathsep)
    line = stage(suite, "build")
    assert suite.build(line, 60, ABOUT).status == "failed"
    assert line.detail == "CMake Error: nothing either, by cmake, after setup.py: error: nothing done"
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
    line = stage(suite, "tests")
    assert suite.gpu_tests(line, 60, kernels=True).status == status
    assert line.detail.startswith(detail)


def test_tests_that_are_all_skipped_have_shown_nothing(suite: ModuleType, tests: Path) -> None:
    text = f"import pytest\npytestmark = [{MARK}, pytest.mark.skip]\ndef test_one(): pass\n"
    (tests / "kernels" / "test_on_gpu.py").write_text(text)
    line = stage(suite, "tests")
    assert suite.gpu_tests(line, 60, kernels=True).status == "failed"
    assert line.detail.startswith("kernels: 1 skipped")


def test_tests_that_need_what_is_not_installed_are_named_and_the_kernels_must_run(
    suite: ModuleType, tests: Path
) -> None:
    text = textwrap.dedent(GPU_TESTS % (False, True))
    (tests / "kernels" / "test_on_gpu.py").write_text(text)
    for folder in ("cli", "rest"):
        (tests / folder).mkdir()
    (tests / "cli" / "test_also.py").write_text(text)
    (tests / "cli" / "conftest.py").write_text("import what_is_not_installed\n")
    (tests / "rest" / "test_here.py").write_text(text)
    (tests / "rest" / "test_more.py").write_text(f"import what_is_not_installed  # for {MARK}\n")
    line = stage(suite, "tests")
    assert suite.gpu_tests(line, 60, kernels=False).status == "passed"
    assert [detail.split(" in ")[0] for detail in line.detail.split("; ")] == [
        "test_also: not run, no module named what_is_not_installed",
        "test_here: 2 passed",
        "test_more: not run, no module named what_is_not_installed",
    ]
    (tests / "kernels" / "conftest.py").write_text("import what_is_not_installed\n")
    assert suite.gpu_tests(line, 60, kernels=True).status == "failed"


def test_tests_that_hang_are_cut_off_and_no_others_begin(suite: ModuleType, tests: Path) -> None:
    text = f"import pytest, time\n@{MARK}\ndef test_one(): time.sleep(600)\n"
    for name in ("test_first.py", "test_second.py"):
        (tests / name).write_text(text)
    line = stage(suite, "tests")
    assert suite.gpu_tests(line, 2, kernels=False).status == "cut off"
    assert line.detail.startswith("test_first: ")
    assert "second" not in line.detail


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
    words = "sys.argv[1:3], 'kns=ddpo3d_fast' in sys.argv, os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING']"
    body = f"import os, sys\nprint({words}, sys.argv[-1])\n"
    program(tmp_path, "compute-sanitizer", body + f"print(*{said!r}, sep='\\n')\nraise SystemExit({code})")
    monkeypatch.setenv("PATH", str(tmp_path))
    line = stage(suite, tool)
    outcome = suite.sanitizer(line, 60)
    assert (outcome.status, line.detail) == (status, detail)
    # What initcheck takes for initialised is what it has seen written, by torch's kernels, too.
    assert outcome.lines[0] == f"['--tool', '{tool}'] {tool != 'initcheck'} 1 --small-scenes"


def test_a_missing_sanitizer_is_named(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    line = stage(suite, "memcheck")
    assert suite.sanitizer(line, 60).status == "failed"
    assert line.detail == "compute-sanitizer: No such file or directory"


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
    line = stage(suite, "rasterizer")
    path, words = tmp_path / "rasterizer-cuda.json", ["--without", "gsplat"]
    outcome = suite.rasterizer(line, 3, path, lambda: words)
    assert (outcome.status, line.detail) == ("cut off", "1 of 2 cases, left out: 2k/128/4")
    assert outcome.lines == ["--seconds 2 --without gsplat"]


NCU = """
    import pathlib, sys
    words = sys.argv[1:]
    assert words[:2] == ["--clock-control", "none"] and words[-1] == "--kernels"
    path = pathlib.Path(words[words.index("--log-file") + 1])
    head = '"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
    rows = ['==PROF== Connected', head]
    for kernel in ("blend_kernel<16>", "gaussians_vjp_kernel"):
        rows += [f'"{len(rows)}","1","{kernel}","GPU Speed Of Light","Duration","us","12.5"']
        rows += [f'"{len(rows) - 1}","1","{kernel}","Launch Statistics","Registers Per Thread","","64"']
    path.write_text("\\n".join(rows))
"""


def test_the_profile_is_what_ncu_says_of_each_launch(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(root, "ncu", NCU)
    monkeypatch.setenv("PATH", str(root), prepend=os.pathsep)
    line = stage(suite, "profile")
    assert suite.profile(line, 60).status == "passed"
    assert line.figures == {
        "2 blend_kernel<16>": {"Duration": "12.5 us", "Registers Per Thread": "64"},
        "4 gaussians_vjp_kernel": {"Duration": "12.5 us", "Registers Per Thread": "64"},
    }
    program(root, "ncu", "print('==ERROR== no permission')")
    assert suite.profile(line, 60).status == "failed"
    assert line.detail == "==ERROR== no permission"


def test_what_a_process_has_found_is_kept_where_it_does_not_end_well(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        import os, pathlib, signal, sys
        pathlib.Path(sys.argv[-1]).write_text('{"forward": 1}')
        print("forward", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    """
    script, line = program(root, "script.py", code), stage(suite, "scene")
    assert suite.reporting(line, 60, [sys.executable, script]).status == "failed"
    assert (line.figures, line.detail) == ({"forward": 1}, "forward")
    script.write_text("print('nothing')")
    assert suite.reporting(line, 60, [sys.executable, script]).status == "passed"
    assert line.figures is None


# ---- Peers


def prepared(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, source: Path | None, codes: list[int | None]
) -> tuple[Any, list[list[str]]]:
    """A peer after its stage, whose commands end with these codes; and the commands."""
    commands: list[list[str]] = []

    def run(command: list[object], seconds: float, echo: bool = True, **environment: str) -> Any:
        assert environment["TORCH_CUDA_ARCH_LIST"] == "12.0"
        shim = environment["NVCC_APPEND_FLAGS"].removeprefix("-include ")
        assert "using Max = ::cuda::maximum<>;" in Path(shim).read_text()
        commands.append([str(word) for word in command])
        return suite.Outcome(codes[len(commands) - 1], 1.0, ["first", "its last words"])

    monkeypatch.setattr(suite, "run", run)
    peer = suite.Peer("faster-gs", source, ABOUT)
    peer.stage.status = peer.prepare(peer.stage, 60).status
    return peer, commands


def test_a_peers_sources_are_built_in_a_copy(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.mktemp("checkout")
    (source / "backend").mkdir()
    (source / "backend" / "setup.py").write_text("setup()")
    peer, (install, probe) = prepared(suite, monkeypatch, source, [0, 0])
    folder, copy = suite.WORK / "peers" / "faster-gs", suite.WORK / "sources" / "faster-gs" / "backend"
    assert install[2:5] == ["-m", "pip", "install"]
    assert install[-3:] == ["--target", str(folder), str(copy)]
    assert (copy / "setup.py").read_text() == "setup()"
    assert probe[3:] == ["--probe", "faster-gs", "--faster-gs", str(folder)]
    assert peer.flags() == ["--faster-gs", str(folder)]


def test_a_peer_that_is_built_already_is_imported_from_where_it_is(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("site")
    peer, commands = prepared(suite, monkeypatch, folder, [0])
    assert [command[3:] for command in commands] == [["--probe", "faster-gs", "--faster-gs", str(folder)]]
    assert peer.flags() == ["--faster-gs", str(folder)]


def test_a_peer_that_does_not_run_is_left_out_with_its_reason(
    suite: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, _ = prepared(suite, monkeypatch, None, [1])
    assert (peer.stage.detail, peer.flags()) == ("its last words", ["--without", "faster-gs"])


@pytest.mark.skipif(not NVCC, reason="no nvcc")
def test_with_the_shim_a_source_that_asks_for_cub_max_compiles(suite: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "shim.h").write_text(suite.SHIM)
    code = "#include <cub/cub.cuh>\nint largest(int a, int b) { return cub::Max()(a, b); }\n"
    (tmp_path / "source.cu").write_text(code)
    words = [NVCC, "-include", tmp_path / "shim.h", "-c", tmp_path / "source.cu", "-o", tmp_path / "made.o"]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


# ---- The machine


def test_without_a_device_it_says_so_at_once(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"device: expected a CUDA device that torch .* can use, got none"):
        load_benchmark("gpu_machine").hardware()


def test_nvidia_smi_is_asked_for_named_fields(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = load_benchmark("gpu_machine")
    program(tmp_path, "nvidia-smi", "import sys\nassert '--query-gpu=a,b' in sys.argv\nprint('1 MHz, two')")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.nvidia_smi("a", "b") == {"a": "1 MHz", "b": "two"}
    assert machine.nvidia_smi("a") == {}
