"""Everything that only a GPU can show, in one command of ten minutes: build, tests, sanitizers, benchmarks.

    python benchmarks/gpu_suite.py [--minutes 10] [--output benchmarks/results]
                                   [--faster-gs PATH] [--inria PATH]

In this order: builds the extension for the GPU at hand; runs `pytest -m gpu`; runs the kernels on small
scenes under compute-sanitizer's memcheck, racecheck, initcheck and synccheck; times the diffusion arithmetic
and the rasterizer (diffusion.py, rasterizer_cuda.py). Meanwhile gsplat, where it is installed, compiles
itself, and so do Faster-GS and INRIA's rasterizer where a path to their sources is given.

Each part has a share of the time. After every part the table so far is printed and OUTPUT/gpu-suite.json
written; rasterizer-cuda.json and diffusion-cuda.json lie beside it. A part that is cut off is named so, with
what it had; Ctrl-C and SIGTERM end the suite with what there is. Exit code 0 if all of ours passed, 1 if
not, 130 if interrupted.

It needs a CUDA build of torch, nvcc, a C++ compiler, compute-sanitizer, numpy, setuptools (77 or newer),
pybind11, cmake, ninja and pytest; no network, and nothing of the extra `generate`. To a machine without a
network carry, as wheels, what its Python lacks of these, and of the repository no more than

    git archive HEAD CMakeLists.txt LICENSE README.md pyproject.toml setup.py csrc tests/kernels \\
        'benchmarks/*.py' ddpo3d_fast/{__init__,errors,files,info}.py ddpo3d_fast/kernels >suite.tar
    pip download --no-deps --only-binary=:all: --dest .whl gsplat    # for the comparison

With --python-version and --platform, pip takes another machine's. There, after `tar xf suite.tar`:

    python -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl &&
        PYTHONPATH=/tmp/site PATH=/tmp/site/bin:$PATH python benchmarks/gpu_suite.py --output results
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from gpu_machine import find_tool, hardware, nvidia_smi, raise_interrupt  # noqa: E402

from ddpo3d_fast.errors import InputError  # noqa: E402
from ddpo3d_fast.files import atomic_path, write_text  # noqa: E402
from ddpo3d_fast.info import cores  # noqa: E402

WORK = ROOT / "build" / "gpu-suite"
BENCHMARK = ROOT / "benchmarks" / "rasterizer_cuda.py"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 86  # the exit code of compute-sanitizer when it has found something
GRACE = 10.0  # seconds that a part has to end by itself when it is told to
KEPT = 40  # last lines of a part that are kept

# At most this share of the whole time; the rasterizer's benchmark, the last part, has all that is left.
SHARES = {"build": 0.3, "tests": 0.25, **dict.fromkeys(SANITIZERS, 0.1), "diffusion": 0.08}
RESERVED = 0.35  # the share that the parts before it must leave for the rasterizer's benchmark


@dataclass
class Part:
    """One line of the table."""

    name: str
    ours: bool = True  # whether the exit code depends on it
    status: str = "not run"  # or passed, failed, cut off, interrupted, ready, unavailable
    seconds: float = 0.0
    detail: str = ""
    lines: list[str] = field(default_factory=list)  # its last words, if it did not pass


@dataclass
class Outcome:
    """How a command ended."""

    code: int | None  # None: it was told to end
    seconds: float
    lines: list[str]  # the last ones of its output
    interrupted: bool = False

    @property
    def status(self) -> str:
        if self.interrupted:
            return "interrupted"
        return "cut off" if self.code is None else "failed" if self.code else "passed"

    def last(self, pattern: str = r"\S") -> str:
        """The last line that holds the pattern, or nothing."""
        return next((line.strip() for line in reversed(self.lines) if re.search(pattern, line)), "")


# ---- Commands

_running: set[subprocess.Popen[str]] = set()


def run(command: Sequence[object], seconds: float, echo: bool = True, **environment: str) -> Outcome:
    """Runs a command in the repository for at most so many seconds and shows its output as it comes.

    Told to end are all processes that it has started: SIGTERM first, SIGKILL after GRACE seconds.
    """
    start = time.monotonic()
    lines: deque[str] = deque(maxlen=KEPT)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(127, 0.0, [f"{command[0]}: {error.strerror}"])

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if echo:
                print(f"  {lines[-1]}", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    _running.add(process)
    reader.start()
    code, interrupted = None, False
    try:
        code = process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        pass
    except KeyboardInterrupt:
        interrupted = True
    end(process)
    _running.discard(process)
    reader.join(GRACE)
    return Outcome(code, time.monotonic() - start, list(lines), interrupted)


def end(process: subprocess.Popen[str]) -> None:
    """Ends a command and what it has started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        if process.poll() is not None:
            number, patience = signal.SIGKILL, 0.0  # what it may have left behind
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
        if number == signal.SIGKILL:
            return


def end_all() -> None:
    for process in list(_running):
        end(process)


# ---- Parts: each gets its seconds and fills in its line


def build(part: Part, seconds: float, capability: str) -> Outcome:
    """The extension with CUDA, for this capability alone, into the tree; the one there is replaced whole."""
    target = f"{capability.replace('.', '')}-real"
    words = [sys.executable, "setup.py", "build_ext", "--build-lib", WORK / "lib"]
    outcome = run(words, seconds, DDPO3D_CUDA="1", DDPO3D_CUDA_ARCHS=target)
    part.detail = outcome.last(r"(?i)error|not found|failed|no C\+\+|no nvcc") if outcome.code else ""
    if outcome.code == 0:
        name = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        with atomic_path(ROOT / "ddpo3d_fast" / name) as temporary:
            shutil.copy2(WORK / "lib" / "ddpo3d_fast" / name, temporary)
        check = "from ddpo3d_fast.kernels import build_info; print(build_info()); assert build_info()['cuda']"
        seconds = outcome.seconds
        outcome = run([sys.executable, "-c", check], 60)
        outcome.seconds += seconds
        part.detail = f"{name} for {target}" if outcome.code == 0 else outcome.last()
    return outcome


def gpu_tests(part: Part, seconds: float) -> Outcome:
    """`pytest -m gpu`, of the files that hold such tests, a folder at a time: the kernels' first. Those of
    another one may need packages that are not here, and are then named instead of run."""
    end, start = time.monotonic() + seconds, time.monotonic()
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    words = ["-m", "pytest", "-q", "-m", "gpu", "-rs", "--tb=short", "--maxfail=25", "-p", "no:cacheprovider"]
    whole, details = Outcome(0, 0.0, []), []
    for folder in sorted(
        {path.parent for path in files}, key=lambda folder: (folder.name != "kernels", folder)
    ):
        chosen = sorted(path for path in files if path.parent == folder)
        outcome = run([sys.executable, *words, *chosen], end - time.monotonic())
        told = outcome.last(r"\d+ (passed|failed|skipped|errors?|deselected)\b") or outcome.last()
        missing = re.search(r"No module named '(\w+)'", outcome.last("No module named '"))
        if outcome.code in (2, 4) and missing and folder.name != "kernels":
            told, outcome.code = f"not run, no module named {missing[1]}", 0
        elif outcome.code == 0 and not re.search(r"\d+ passed", told):
            outcome.code = 1  # nothing was tested
        details.append(f"{folder.name}: {told}")
        if outcome.code != 0:
            whole.code, whole.lines = outcome.code, [*whole.lines, *outcome.lines]
        if outcome.code is None:
            whole.interrupted = outcome.interrupted
            break
    if not files:
        whole.code, details = 1, ["no such tests"]
    whole.seconds, part.detail = time.monotonic() - start, "; ".join(details)
    return whole


def sanitizer(part: Part, seconds: float) -> Outcome:
    """One tool of compute-sanitizer over the small scenes; every tensor is an allocation of its own."""
    tool = find_tool("compute-sanitizer")
    words = [tool or "compute-sanitizer", "--tool", part.name, "--error-exitcode", FOUND, "--print-limit", 20]
    if part.name == "memcheck":
        words += ["--report-api-errors", "no"]  # torch asks CUDA questions whose answer is an error
    outcome = run(
        [*words, sys.executable, Path(__file__).resolve(), "--small-scenes"],
        seconds,
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )
    summary = outcome.last(r"(ERROR|RACECHECK) SUMMARY:")
    part.detail = summary.partition("SUMMARY:")[2].strip() or outcome.last()
    if outcome.code == 0 and not (re.search(r"SUMMARY: 0 ", summary) and outcome.last(r"^clean$")):
        outcome.code = 1  # it did not check, or did not get to the end
    return outcome


def small_scenes() -> None:
    """What the sanitizers watch: every kernel, over ordinary and awkward inputs, made on the CPU."""
    import torch

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from kernels.diffusion_cases import CASES, run_adam, run_diffusion
    from kernels.scenes import SCENES, random_scene

    from ddpo3d_fast.kernels import rasterize_backward, rasterize_forward
    from ddpo3d_fast.kernels.rasterizer import cuda_plan

    names = ["plain", "one_pixel", "tall", "none", "needles", "far_out", "sh3", "antialiased_sh", "giants"]
    long_lists = random_scene(40, count=2600, scale=(1.0, 2.0), opacity=(0.006, 0.008), width=4, height=4)
    for scene in [*(SCENES[name] for name in names), long_lists]:
        arguments: dict[str, Any] = {
            name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in scene.arguments().items()
        }
        for plan in ((8, False), (16, False), (8, True), (16, True)):
            with cuda_plan(*plan):
                out, state = rasterize_forward(**arguments)
            upstream = (torch.ones(image.shape).cuda() for image in out[:3])
            gradients = rasterize_backward(state, *upstream)
            assert all(g is not None and bool(g.cpu().isfinite().all()) for g in gradients)
    for case in CASES.values():
        run_diffusion(case, "cuda")
    run_adam("cuda")
    torch.cuda.synchronize()
    print("clean", flush=True)


def diffusion_benchmark(part: Part, seconds: float, output: Path) -> Outcome:
    path = output / "diffusion-cuda.json"
    words = [ROOT / "benchmarks" / "diffusion.py", "--device", "cuda", "--json", path]
    outcome = run([sys.executable, *words], seconds)
    part.detail = path.name if outcome.code == 0 else outcome.last()
    return outcome


def rasterizer_benchmark(part: Part, seconds: float, output: Path, peers: Sequence[str]) -> Outcome:
    """The cases that fit; its own figures are in its own file."""
    path = output / "rasterizer-cuda.json"
    path.unlink(missing_ok=True)  # what is there afterwards is of this run
    limit = max(seconds - 2 * GRACE, seconds / 2)  # the case that has begun may end
    outcome = run([sys.executable, BENCHMARK, "--seconds", f"{limit:.0f}", "--json", path, *peers], seconds)
    part.detail = benchmark_summary(path) or outcome.last()
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


# ---- Peers: they compile while our tests run


@dataclass
class Peer:
    """A rasterizer to compare with."""

    name: str
    part: Part
    source: Path | None = None  # as given: its sources, or the folder it can be imported from
    folder: Path | None = None  # that it is imported from
    thread: threading.Thread | None = None

    @property
    def flags(self) -> list[str]:
        if self.part.status != "ready":
            return ["--without", self.name]
        return [f"--{self.name}", str(self.folder)] if self.folder else []


def prepare(peer: Peer, seconds: float, capability: str) -> None:
    """Builds a peer's sources, in a copy, and runs it once; gsplat compiles itself at that."""
    start = time.monotonic()
    environment = {
        "TORCH_CUDA_ARCH_LIST": capability,
        "TORCH_EXTENSIONS_DIR": str(WORK / "torch-extensions"),
        "MAX_JOBS": str(max(1, cores() - 2)),
    }
    outcome = Outcome(0, 0.0, [])
    if peer.source:
        peer.folder = peer.source.resolve()
        if sources := find_sources(peer.source):
            copy = WORK / "sources" / peer.name / sources.name  # some name their module after the folder
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(sources, copy, ignore=shutil.ignore_patterns(".git", "build"))
            peer.folder = WORK / "peers" / peer.name
            words = ["install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade"]
            pip = [sys.executable, "-m", "pip", *words, "--target", peer.folder, copy]
            outcome = run(pip, seconds, echo=False, **environment)
    if outcome.code == 0:
        left = start + seconds - time.monotonic()
        flags = [f"--{peer.name}", peer.folder] if peer.folder else []
        outcome = run(
            [sys.executable, BENCHMARK, "--probe", peer.name, *flags], left, echo=False, **environment
        )
    peer.part.seconds = time.monotonic() - start
    peer.part.status = "ready" if outcome.code == 0 else "unavailable"
    peer.part.detail = "" if outcome.code == 0 else outcome.last()
    peer.part.lines = [] if outcome.code == 0 else outcome.lines
    if outcome.code is None:
        peer.part.detail = f"not compiled after {peer.part.seconds:.0f} s; {peer.part.detail}"


def find_sources(path: Path) -> Path | None:
    """The folder with the setup.py: the one given or one inside of it."""
    found = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())] if path.is_dir() else []
    return next((folder.resolve() for folder in found if (folder / "setup.py").exists()), None)


# ---- All together


@dataclass
class Report:
    """What is known so far."""

    machine: dict[str, Any]
    output: Path
    parts: list[Part]

    def table(self) -> str:
        width = max(len(part.name) for part in self.parts)
        lines = [f"{'part':{width}}  {'status':11}  {'seconds':>7}"]
        for part in self.parts:
            line = f"{part.name:{width}}  {part.status:11}  {part.seconds:7.1f}  {part.detail[:200]}"
            lines.append(line.rstrip())
        return "\n".join(lines)

    def tell(self) -> None:
        """Writes the file and prints the table."""
        self.write()
        print(f"\n{self.table()}\n", flush=True)

    def write(self) -> None:
        parts = []
        for part in self.parts:
            row = {"part": part.name, "status": part.status, "seconds": round(part.seconds, 1)}
            row |= {"detail": part.detail[:400]} if part.detail else {}
            parts.append(row | ({"lines": part.lines[-KEPT:]} if part.lines else {}))
        facts = {"hardware": self.machine, "parts": parts}
        write_text(self.output / "gpu-suite.json", json.dumps(facts, indent=1) + "\n")

    def exit_code(self) -> int:
        ours = [part for part in self.parts if part.ours]
        if any(part.status == "interrupted" for part in self.parts):
            return 130
        return int(any(part.status != "passed" for part in ours))


def suite(report: Report, peers: Sequence[Peer], seconds: float) -> None:
    """Runs the parts one after the other, as long as there is time."""
    start, capability = time.monotonic(), report.machine["capability"]

    def left() -> float:
        return start + seconds - time.monotonic()

    def do(name: str, function: Callable[..., Outcome], *arguments: object) -> bool:
        part = next(part for part in report.parts if part.name == name)
        most = min(SHARES[name] * seconds, left() - RESERVED * seconds) if name in SHARES else left() - GRACE
        if most <= 0:
            part.status, part.detail = "not run", "no time was left"
        else:
            print(f"{name}: at most {most:.0f} s", flush=True)
            outcome = function(part, most, *arguments)
            part.status, part.seconds = outcome.status, outcome.seconds
            part.lines = [] if part.status == "passed" else outcome.lines
            if part.status == "cut off":
                part.detail = f"after {part.seconds:.0f} s; {part.detail}"
        report.tell()
        if part.status == "interrupted":
            raise KeyboardInterrupt
        return part.status == "passed"

    if not do("build", build, capability):
        return
    for peer in peers:
        patience = left() - (RESERVED + SHARES["diffusion"]) * seconds - 2 * GRACE
        peer.thread = threading.Thread(target=prepare, args=(peer, patience, capability), daemon=True)
        peer.thread.start()
    do("tests", gpu_tests)
    for name in SANITIZERS:
        do(name, sanitizer)
    for peer in peers:  # nothing compiles while something is timed
        if peer.thread:
            peer.thread.join(max(0.0, left() - (RESERVED + SHARES["diffusion"]) * seconds))
    do("diffusion", diffusion_benchmark, report.output)
    do("rasterizer", rasterizer_benchmark, report.output, [flag for peer in peers for flag in peer.flags])


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything (default 10)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON"
    )
    for name in ("faster-gs", "inria"):
        text = "its sources, or the folder it can be imported from"
        parser.add_argument(f"--{name}", type=Path, metavar="PATH", help=text)
    parser.add_argument(
        "--small-scenes", action="store_true", help="what the sanitizers watch, and nothing else"
    )
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes: expected more than 0, got {options.minutes}")
    for name in ("faster_gs", "inria"):
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name.replace('_', '-')}: expected a folder, got {path}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.small_scenes:
        small_scenes()
        return 0
    signal.signal(signal.SIGTERM, raise_interrupt)
    sources = {"gsplat": None, "faster-gs": options.faster_gs, "inria": options.inria}
    peers = []
    for name, source in sources.items():
        if source or (name == "gsplat" and importlib.util.find_spec("gsplat")):
            peers.append(Peer(name, Part(name, ours=False), source))
    names = ["build", "tests", *SANITIZERS, "diffusion"]
    parts = [*map(Part, names), *(peer.part for peer in peers), Part("rasterizer")]
    report = Report(hardware(), options.output.resolve(), parts)
    print("\n".join(f"{key}: {value}" for key, value in report.machine.items()), flush=True)
    interrupted = False
    try:
        report.write()  # before anything has been waited for: OUTPUT may not be writable
        suite(report, peers, 60 * options.minutes)
    except KeyboardInterrupt:
        interrupted = True
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        end_all()
    report.machine |= {f"{name} after": v for name, v in nvidia_smi("clocks.sm", "clocks.mem").items()}
    report.write()
    return 130 if interrupted else report.exit_code()


if __name__ == "__main__":
    sys.exit(main())
