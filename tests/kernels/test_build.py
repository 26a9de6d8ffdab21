"""A build that cannot be done says in one line what is missing; one that can do without CUDA does."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("setuptools")
pybind11 = pytest.importorskip("pybind11")

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_nvcc = pytest.mark.skipif(not NVCC, reason="no nvcc")


def build(root: Path, to: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py of this checkout, whose extension comes under `to`."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(to)]
    environment = {**os.environ, **changes}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PATH": "/nowhere", "CXX": ""}, "no C++ compiler found (c++, g++, clang++): apt install g++"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler found (no-such-compiler): apt install g++"),
        ({"DDPO3D_CUDA": "maybe"}, "DDPO3D_CUDA: expected 0, 1 or auto, got 'maybe'"),
    ],
)
def test_a_build_that_lacks_something_names_it(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    result = build(ROOT, tmp_path, **changes)
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in result.stderr


# ---- CUDA

# In place of csrc/: compiled in a second, and tells what CMakeLists.txt has told it.
BINDINGS = """
#include <Python.h>
#ifdef DDPO3D_WITH_CUDA
#include <cuda_runtime_api.h>
#define TOLD DDPO3D_CUDA_TARGETS
#else
#define TOLD "no CUDA"
#endif
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", 0, -1, 0, 0, 0, 0, 0};
PyMODINIT_FUNC PyInit__C() {
  PyObject *module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "told", TOLD);
  return module;
}
"""
KERNEL = "__global__ void kernel() {}\nvoid launch() { kernel<<<1, 1>>>(); }\n"

OLD = """
case "$*" in
  *--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_86\\ncompute_90\\n' ;;
  *compute_1[0-9][0-9]*) echo "nvcc fatal   : Unsupported gpu architecture 'compute_120'" >&2; exit 1 ;;
  *) exec NVCC "$@" ;;
esac
"""
FAILS = """
case "$*" in
  *--list-gpu-arch*) printf 'compute_75\\ncompute_80\\n' ;;
  *) END ;;
esac
"""
REFUSES = FAILS.replace(
    "END", "echo 'host_config.h:143:2: error: #error -- unsupported GNU version!' >&2; exit 1"
)
NO_RUNTIME = FAILS.replace("END", "echo '/usr/bin/ld: cannot find -lcudadevrt' >&2; exit 1")
CRASHES = FAILS.replace("END", "kill -SEGV $$")
ANCIENT = """
case "$*" in
  *--list-gpu-arch*) printf 'compute_35\\ncompute_70\\n' ;;
esac
"""
WITHOUT_LIST = "echo \"nvcc fatal   : Unknown option 'list-gpu-arch'\" >&2; exit 1"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The real setup.py and CMakeLists.txt around sources of a few lines."""
    root = tmp_path / "checkout"
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    texts = {
        "ddpo3d_fast/__init__.py": '__version__ = "0"\n',
        "csrc/bindings.cpp": BINDINGS,
        "csrc/cpu/one.cpp": "int one() { return 1; }\n",
        "csrc/cuda/two.cu": KERNEL,
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def nvcc(folder: Path, script: str) -> str:
    """A program that acts as such an nvcc."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script.replace('NVCC', NVCC or '')}\n")
    path.chmod(0o755)
    return str(path)


def told(folder: Path) -> str:
    """What the extension in this folder was told of CUDA."""
    (path,) = folder.rglob("_C*.so")
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.told


BROKEN = pytest.mark.parametrize(
    ("script", "reason"),
    [
        (REFUSES, "host_config.h:143:2: error: #error -- unsupported GNU version!"),
        (NO_RUNTIME, "it cannot build an empty kernel (1) /usr/bin/ld: cannot find -lcudadevrt"),
        (CRASHES, "it cannot build an empty kernel (Segmentation fault)"),
        (ANCIENT, "it knows none of the architectures 75, 80, 90 and 120"),
        (WITHOUT_LIST, "nvcc fatal : Unknown option 'list-gpu-arch'"),
    ],
    ids=["refuses the compiler", "no runtime", "crashes", "too old", "cannot say"],
)


@BROKEN
def test_an_nvcc_that_cannot_be_used_is_left_out_with_one_line(
    checkout: Path, tmp_path: Path, script: str, reason: str
) -> None:
    result = build(checkout, tmp_path / "out", CUDACXX=nvcc(tmp_path, script), DDPO3D_CUDA="auto")
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ddpo3d-fast: ")]
    assert line.startswith(f"ddpo3d-fast: CPU backend only ({tmp_path}/bin/nvcc cannot be used: ")
    assert reason in line
    assert "error" not in result.stdout.replace(line, "").lower()
    assert told(tmp_path / "out") == "no CUDA"


@BROKEN
def test_where_cuda_is_demanded_it_ends_the_build_with_one_line(
    checkout: Path, tmp_path: Path, script: str, reason: str
) -> None:
    result = build(checkout, tmp_path / "out", CUDACXX=nvcc(tmp_path, script), DDPO3D_CUDA="1")
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"DDPO3D_CUDA=1, but {tmp_path}/bin/nvcc cannot be used: ")
    assert reason in line
    assert not list(tmp_path.rglob("_C*.so"))


@needs_nvcc
def test_an_older_nvcc_builds_for_what_it_knows_and_ptx_of_its_newest(checkout: Path, tmp_path: Path) -> None:
    old = nvcc(tmp_path, OLD)
    result = build(checkout, tmp_path / "out", CUDACXX=old, DDPO3D_CUDA="auto", DDPO3D_CUDA_ARCHS="")
    assert result.returncode == 0, result.stderr
    assert f"ddpo3d-fast: CPU and CUDA backends ({old})" in result.stdout.splitlines()
    assert told(tmp_path / "out") == "75-real 80-real 90"


@needs_nvcc
@pytest.mark.parametrize(
    ("wanted", "expected"), [([], "75-real 80-real 90 120"), (["80-real;86"], "80-real 86")]
)
def test_cmake_alone_chooses_the_targets_and_takes_others(
    checkout: Path, tmp_path: Path, wanted: list[str], expected: str
) -> None:
    words = ["cmake", "-GNinja", "-S", checkout, "-B", tmp_path, f"-DCMAKE_CUDA_COMPILER={NVCC}"]
    words += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    words += [f"-DCMAKE_CUDA_ARCHITECTURES={targets}" for targets in wanted]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    (flag,) = re.findall(r"DDPO3D_CUDA_TARGETS=(.*)", (tmp_path / "build.ninja").read_text())
    assert flag.replace("\\", "").replace('"', "").replace("$", "").startswith(expected)
