"""The stages that gpu_first.py, gpu_loop.py and gpu_suite.py are made of."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import re
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gpu_machine import find_tool
from stages import GRACE, ROOT, Outcome, Stage, raise_interrupt, run, run_stages

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import atomic_path
from ddpo3d_fast.info import cores

BENCHMARKS = Path(__file__).resolve().parent
BENCHMARK = BENCHMARKS / "rasterizer_cuda.py"
WORK = ROOT / "build" / "gpu-stages"
FOUND = 86  # the exit code of compute-sanitizer when it has found something
OURS = "ddpo3d_fast"  # in the name of every kernel of ours
# cub::Max went with CUDA 13, and Faster-GS asks for it.
SHIM = """
#ifdef __cplusplus
#include <cuda.h>
#if CUDA_VERSION >= 13000
#include <cuda/functional>
namespace cub {
using Max = ::cuda::maximum<>;
}
#endif
#endif
"""


def worker(script: str, *words: object) -> list[object]:
    """The command of a script of this folder."""
    return [sys.executable, BENCHMARKS / script, *words]


def reporting(stage: Stage, seconds: float, command: Sequence[object]) -> Outcome:
    """Runs a command that keeps a JSON file, named by its last word, of what it has found so far."""
    path = WORK / f"{stage.name.replace(' ', '-')}.json"
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    outcome = run([*command, "--json", path], seconds)
    stage.figures = json.loads(path.read_text()) if path.exists() else None
    stage.detail = outcome.last()
    return outcome


def machine(stage: Stage, seconds: float) -> Outcome:
    """What stands beside every figure; the capability is for the stages that build."""
    return reporting(stage, seconds, worker("gpu_machine.py"))


# ---- The build


def build(stage: Stage, seconds: float, about: Stage) -> Outcome:
    """The extension with CUDA, for the capability of `about` alone, into the tree; the one there is replaced
    whole. By setup.py, or by CMake called as it is where that fails."""
    end, start = time.monotonic() + seconds, time.monotonic()
    target = f"{capability(about).replace('.', '')}-real"
    name = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    made = WORK / "lib" / OURS / name
    made.unlink(missing_ok=True)
    words = [sys.executable, "setup.py", "build_ext", "--build-lib", WORK / "lib"]
    outcome, way = run(words, seconds, DDPO3D_CUDA="1", DDPO3D_CUDA_ARCHS=target), "setup.py"
    if outcome.code:
        why = outcome.last(r"(?i)error|not found|failed|no C\+\+|no nvcc") or outcome.last()
        outcome, way = by_cmake(end - time.monotonic(), target, made.parent), f"cmake, after setup.py: {why}"
    if outcome.code == 0:
        with atomic_path(ROOT / OURS / name) as temporary:
            shutil.copy2(made, temporary)
        check = "from ddpo3d_fast.kernels import build_info; print(build_info()); assert build_info()['cuda']"
        outcome = run([sys.executable, "-c", check], 60)
    told = (
        f"{name} for {target}" if outcome.code == 0 else outcome.last(r"(?i)error|failed") or outcome.last()
    )
    stage.detail, outcome.seconds = f"{told}, by {way}", time.monotonic() - start
    return outcome


def by_cmake(seconds: float, target: str, folder: Path) -> Outcome:
    """The extension into `folder`, by CMake alone."""
    end, work = time.monotonic() + seconds, WORK / "cmake"
    places = run([sys.executable, "-m", "pybind11", "--cmakedir"], 30, echo=False)
    settings = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": places.last(),
        "CMAKE_CUDA_COMPILER": find_tool("nvcc"),
        "CMAKE_CUDA_ARCHITECTURES": target,
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": folder,
    }
    generator = ["-GNinja"] if shutil.which("ninja") else []
    words = [*generator, *(f"-D{name}={value}" for name, value in settings.items())]
    outcome = run(["cmake", "-S", ROOT, "-B", work, *words], seconds)
    if outcome.code == 0:
        outcome = run(["cmake", "--build", work, "-j", cores()], end - time.monotonic())
    return outcome


def capability(about: Stage) -> str:
    """The device's, as the stage that asked it found it; 9.0 where it found nothing."""
    return (about.figures or {}).get("capability", "9.0")


# ---- Tests and sanitizers


def gpu_tests(stage: Stage, seconds: float, kernels: bool) -> Outcome:
    """`pytest -m gpu` of the kernels, or of everything else, a folder at a time. Those of another folder than
    the kernels' may need packages that are not here, and are then named instead of run."""
    end, start = time.monotonic() + seconds, time.monotonic()
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    files = [path for path in files if (path.parent.name == "kernels") is kernels]
    words = ["-m", "pytest", "-q", "-m", "gpu", "-rs", "--tb=short", "--maxfail=25", "-p", "no:cacheprovider"]
    whole, details = Outcome(0, 0.0, []), []
    for chosen in (files,) if kernels else [[path] for path in sorted(files)]:
        name = "kernels" if kernels else chosen[0].stem
        outcome = run([sys.executable, *words, *sorted(chosen)], end - time.monotonic())
        told = outcome.last(r"\d+ (passed|failed|skipped|errors?|deselected)\b") or outcome.last()
        missing = re.search(r"No module named '([\w.]+)'", outcome.last("No module named '"))
        if outcome.code in (2, 4) and missing and not kernels:
            told, outcome.code = f"not run, no module named {missing[1]}", 0
        elif outcome.code == 0 and not re.search(r"\d+ passed", told):
            outcome.code = 1  # nothing was tested
        details.append(f"{name}: {told}")
        if outcome.code != 0:
            whole.code, whole.lines = outcome.code, [*whole.lines, *outcome.lines]
        if outcome.code is None:
            whole.interrupted = outcome.interrupted
            break
    if not files:
        whole.code, details = 1, ["no such tests"]
    whole.seconds, stage.detail = time.monotonic() - start, "; ".join(details)
    return whole


def sanitizer(stage: Stage, seconds: float) -> Outcome:
    """The tool of compute-sanitizer that the stage is named after, over the small scenes, every tensor of
    which is an allocation of its own. It watches our kernels alone; but what initcheck takes for initialised
    are the writes that it has seen, torch's too."""
    tool = find_tool("compute-sanitizer")
    words = [
        tool or "compute-sanitizer",
        "--tool",
        stage.name,
        "--error-exitcode",
        FOUND,
        "--print-limit",
        20,
    ]
    if stage.name != "initcheck":
        words += ["--kernel-name", f"kns={OURS}"]
    if stage.name == "memcheck":
        words += ["--report-api-errors", "no"]  # torch asks CUDA questions whose answer is an error
    outcome = run(
        [*words, *worker("gpu_loop.py", "--small-scenes")], seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
    )
    summary = outcome.last(r"(ERROR|RACECHECK) SUMMARY:")
    stage.detail = summary.partition("SUMMARY:")[2].strip() or outcome.last()
    if outcome.code == 0 and not (re.search(r"SUMMARY: 0 ", summary) and outcome.last(r"^clean$")):
        outcome.code = 1  # it did not check, or did not get to the end
    return outcome


# ---- Figures


def diffusion(stage: Stage, seconds: float, output: Path) -> Outcome:
    path = output / "diffusion-cuda.json"
    outcome = run(worker("diffusion.py", "--device", "cuda", "--json", path), seconds)
    stage.detail = path.name if outcome.code == 0 else outcome.last()
    return outcome


def rasterizer(stage: Stage, seconds: float, path: Path, words: Callable[[], Sequence[object]]) -> Outcome:
    """The cases that fit; its figures are in its own file."""
    path.unlink(missing_ok=True)  # what is there afterwards is of this run
    limit = max(seconds - 2 * GRACE, seconds / 2)  # the case that has begun may end
    command = [sys.executable, BENCHMARK, "--seconds", f"{limit:.0f}", "--json", path, *words()]
    outcome = run(command, seconds)
    stage.detail = benchmark_summary(path) or outcome.last()
    return outcome


def benchmark_summary(path: Path) -> str:
    """How much of the benchmark there is, and how far ahead of the peers ours was."""
    if not path.exists():
        return ""
    figures = json.loads(path.read_text())
    rows, left = figures["rows"], figures["left_out"]
    text = f"{len(rows)} of {len(rows) + len(left)} cases"
    if left:
        text += f", left out: {' '.join(left[:6])}{' ...' if len(left) > 6 else ''}"
    problems = sum(bool(row["problems"]) for row in rows)
    if problems:
        text += f"; problems in {problems}"
    for name in dict.fromkeys(name for row in rows for name in row["ratios"]):
        values = sorted(row["ratios"][name]["graph"] for row in rows if name in row["ratios"])
        text += f"; {name} takes {values[0]:.1f} to {values[-1]:.1f} times ours"
    return text


def profile(stage: Stage, seconds: float) -> Outcome:
    """Nsight Compute's figures of the kernels that take the time, at the clock that the device has anyway."""
    path = WORK / "profile.csv"
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["--clock-control", "none", "--set", "basic", "--section", "WarpStateStats"]
    words += ["--section", "MemoryWorkloadAnalysis", "--csv", "--page", "details", "--log-file", str(path)]
    words += ["--kernel-name", "regex:^(blend|blend_vjp|gaussians_vjp)_kernel$"]
    outcome = run([find_tool("ncu") or "ncu", *words, *worker("gpu_loop.py", "--kernels")], seconds)
    stage.figures = profile_table(path.read_text()) if path.exists() else None
    kernels = len(stage.figures or {})
    stage.detail = f"{kernels} kernels" if kernels else outcome.last()
    if outcome.code == 0 and not kernels:
        outcome.code = 1
    return outcome


def profile_table(text: str) -> dict[str, dict[str, str]]:
    """Of ncu's CSV, whose first lines may be others: by launch, every metric with its unit."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[start:]):
        if row.get("Metric Name"):
            kernel = table.setdefault(f"{row['ID']} {row['Kernel Name']}", {})
            kernel[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return table


# ---- Peers: they compile while other things run


class Peer:
    """A rasterizer to compare with, and the stage that makes it ready in the background."""

    def __init__(self, name: str, source: Path | None, about: Stage) -> None:
        """`source` has its sources, or is the folder that it can be imported from; None: it is installed."""
        self.name, self.source, self.about = name, source, about
        self.folder: Path | None = None  # that it is imported from
        self.stage = Stage(name, 240, self.prepare, background=True)

    def flags(self) -> list[str]:
        """What tells the benchmark where it is, or to leave it out."""
        if self.stage.status != "passed":
            return ["--without", self.name]
        return [f"--{self.name}", str(self.folder)] if self.folder else []

    def prepare(self, stage: Stage, seconds: float) -> Outcome:
        """Builds its sources, in a copy, and runs it once; gsplat compiles itself at that."""
        start = time.monotonic()
        WORK.mkdir(parents=True, exist_ok=True)
        (WORK / "shim.h").write_text(SHIM)
        environment = {
            "TORCH_CUDA_ARCH_LIST": capability(self.about),
            "TORCH_EXTENSIONS_DIR": str(WORK / "torch-extensions"),
            "NVCC_APPEND_FLAGS": f"-include {WORK / 'shim.h'}",
            "MAX_JOBS": str(max(1, cores() - 4)),  # the others are for what is timed meanwhile
        }
        outcome = Outcome(0, 0.0, [])
        if self.source:
            self.folder = self.source.resolve()
            if sources := find_sources(self.source):
                copy = WORK / "sources" / self.name / sources.name  # some name their module after the folder
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(sources, copy, ignore=shutil.ignore_patterns(".git", "build"))
                self.folder = WORK / "peers" / self.name
                words = ["install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade"]
                pip = ["nice", sys.executable, "-m", "pip", *words, "--target", self.folder, copy]
                outcome = run(pip, seconds, echo=False, **environment)
        if outcome.code == 0:
            flags = [f"--{self.name}", self.folder] if self.folder else []
            probe = ["nice", sys.executable, BENCHMARK, "--probe", self.name, *flags]
            outcome = run(probe, start + seconds - time.monotonic(), echo=False, **environment)
        stage.detail = "" if outcome.code == 0 else outcome.last()
        outcome.seconds = time.monotonic() - start
        return outcome


def find_sources(path: Path) -> Path | None:
    """The folder with the setup.py: the one given or one inside of it."""
    found = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())] if path.is_dir() else []
    return next((folder.resolve() for folder in found if (folder / "setup.py").exists()), None)


# ---- The scripts


def at_the_start() -> list[Stage]:
    """What every script begins with: the machine, which the stages that build ask, and the build."""
    about = Stage("machine", 60, machine)
    return [about, Stage("build", 150, partial(build, about=about))]


def peers_of(options: argparse.Namespace, about: Stage) -> list[Peer]:
    """Those that there are: gsplat if it is installed, the others if their place was given."""
    places = {"gsplat": None, "faster-gs": options.faster_gs, "inria": options.inria}
    installed = importlib.util.find_spec("gsplat") is not None
    return [Peer(n, place, about) for n, place in places.items() if place or (n == "gsplat" and installed)]


def parser_of(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """The options that the scripts share; `seconds` is the default for everything."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = f"for everything (default {seconds:.0f})"
    parser.add_argument("--seconds", type=float, default=seconds, help=text)
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results", help="folder of the JSON")
    for name in ("faster-gs", "inria"):
        text = "its sources, or the folder it can be imported from"
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=text)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)  # of a stage's own process
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds}")
    for name in ("faster_gs", "inria"):
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name.replace('_', '-')}: expected a folder, got {path}")
    options.output = options.output.resolve()
    return options


def run_script(name: str, chosen: Sequence[Stage], options: argparse.Namespace) -> int:
    """Runs the stages and returns `run_stages`' exit code, or 2 where the output cannot be written."""
    signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        return run_stages(chosen, options.seconds, options.output / f"{name}.json")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
