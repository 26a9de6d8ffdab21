"""Builds CUDA sources and the SIMT host emulator into a Python module, once for each state of the sources.

module = load()                    # csrc/cuda behind its bindings, running on the CPU
result = run_sanitized(script)     # a script in a process where load("sanitized") works
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

SIMT = Path(__file__).resolve().parent
ROOT = SIMT.parents[1]
BUILD = ROOT / "build"
CSRC = ROOT / "csrc"

FLAGS = [
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-ffp-contract=off", "-fno-math-errno"),
    "-fno-strict-aliasing",  # nvcc lets vector loads alias
    f"-fmacro-prefix-map={ROOT}/=",  # reports name files as the repository does
]
VARIANTS = {
    "plain": [],
    "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
}
EMULATOR = [SIMT / name for name in ("stacks.cpp", "scheduler.cpp", "runtime.cpp", "module.cpp")]


def load(variant: str = "plain") -> ModuleType:
    """The emulated CUDA backend: the functions of csrc/bindings_cuda*.cpp and the emulator's controls.

    Args:
        variant: "plain", or "sanitized" (AddressSanitizer, UBSan) in a process that `run_sanitized` started.

    Skips the test where there is no compiler. RuntimeError with the compiler's words where it fails.
    """
    return load_module(build(product_sources(), variant))


def product_sources() -> list[Path]:
    return sorted(CSRC.glob("cuda/*.cu")) + sorted(CSRC.glob("bindings_cuda*.cpp"))


def load_module(path: Path | str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).name.partition(".")[0], path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_sanitized(script: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a Python script in a process of its own that can load what the variant "sanitized" built.

    What the sanitizers find ends that process: exit code not 0, their report in `stderr`. tests/ is on its
    path.
    """
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime_library('libasan.so')} {runtime_library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that every object has guards
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@cache
def runtime_library(name: str) -> Path:
    """A library that must be loaded before Python is; libasan needs libstdc++ by then to see exceptions."""
    command = [*compiler(), f"-print-file-name={name}"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if not path.is_absolute():
        pytest.skip(f"the C++ compiler comes without {name}", allow_module_level=True)
    return path.resolve()


@cache
def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if not shutil.which(command[0]):
        pytest.skip(f"no C++ compiler found ({command[0]})", allow_module_level=True)
    return command


def build(sources: Sequence[Path], variant: str = "plain") -> Path:
    """Compiles the sources with the emulator and returns the module's path, at once if it has been built."""
    pybind11 = pytest.importorskip("pybind11")
    flags = [*FLAGS]
    for folder in (SIMT / "include", CSRC / "include", CSRC):
        flags += ["-I", str(folder)]
    for system_folder in (pybind11.get_include(), sysconfig.get_path("include")):
        flags += ["-isystem", system_folder]
    version = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    headers = sorted(path for folder in (CSRC, SIMT) for path in folder.rglob("*.[hc]*") if is_header(path))
    common = digest([version, pybind11.__version__, sys.version, *flags], headers)

    # A process holds one extension module of a name, so other sources make a module of another name.
    name = f"_simt_{digest(rooms(sources))}"
    commands: dict[Path, list[str]] = {}  # by the object they make
    for source in [*EMULATOR, *sources]:
        # pybind11's glue hands addresses on and follows none: sanitizers would only double its compile time.
        glue = source.name == "module.cpp" or source.name.startswith("bindings")
        own = [] if glue else VARIANTS[variant]
        if source.name == "module.cpp":
            own = [*rooms(sources), f"-DDDPO3D_SIMT_MODULE={name}"]
        target = BUILD / "simt-objects" / f"{source.stem}-{digest([common, *own], [source])}.o"
        commands[target] = [*compiler(), *flags, *own, "-x", "c++", "-c", str(source), "-o"]
    module = (
        BUILD
        / f"simt-{digest([variant, *map(str, commands)])}"
        / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    )
    if not module.exists():
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(make, commands, commands.values()))
        link = [*compiler(), *VARIANTS[variant], "-shared", *map(str, commands), "-o"]
        make(module, link)
        forget_old_builds()
    os.utime(module.parent)  # used today
    return module


def is_header(path: Path) -> bool:
    return path.suffix in (".h", ".cuh")


def rooms(sources: Iterable[Path]) -> list[str]:
    """What module.cpp must call, out of the functions bind_cuda_<room> that the sources define."""
    text = "".join(source.read_text() for source in sources if source.suffix == ".cpp")
    return [
        f"-DDDPO3D_SIMT_WITH_{room.upper()}" for room in re.findall(r"^void bind_cuda_(\w+)\(", text, re.M)
    ]


def digest(words: Iterable[str], files: Iterable[Path] = ()) -> str:
    state = hashlib.sha256()
    for word in words:
        state.update(word.encode() + b"\0")
    for file in files:
        state.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return state.hexdigest()[:16]


def make(target: Path, command: Sequence[str]) -> None:
    """Runs a compiler unless its result is there. It appears whole: another process may build the same."""
    if target.exists():
        os.utime(target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}.tmp")
    result = subprocess.run([*command, str(unfinished)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stderr}")
    unfinished.replace(target)


def forget_old_builds() -> None:
    yesterday = time.time() - 24 * 3600
    for path in [*BUILD.glob("simt-objects/*"), *BUILD.glob("simt-*")]:
        if path.name != "simt-objects" and path.exists() and path.stat().st_mtime < yesterday:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
