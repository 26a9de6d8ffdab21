"""Builds the extension ddpo3d_fast._C with CMake and ninja; all else about the package is in pyproject.toml.

Environment: DDPO3D_CUDA=0 leaves the CUDA backend out, 1 demands it, auto (the default) has it where there is
an nvcc that works; CXX, CUDACXX and CUDAHOSTCXX name the compilers, the last nvcc's own for the host;
DDPO3D_CUDA_ARCHS the CUDA targets ("80-real;90;120-real"); MAX_JOBS the number of compilers at a time.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find_nvcc() -> str | None:
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        candidates.append(f"{home}/bin/nvcc")
    candidates.append("/usr/local/cuda/bin/nvcc")
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def cuda_wish() -> tuple[str | None, bool]:
    """The nvcc to use, or None and a line that says why; and whether a build without CUDA will not do."""
    wish = os.environ.get("DDPO3D_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"DDPO3D_CUDA: expected 0, 1 or auto, got {wish!r}")
    nvcc = find_nvcc()
    if wish == "1" and not nvcc:
        sys.exit("DDPO3D_CUDA=1, but no nvcc was found: install the CUDA toolkit or set CUDACXX")
    if wish == "0" or not nvcc:
        print(
            f"ddpo3d-fast: CPU backend only ({'DDPO3D_CUDA=0' if wish == '0' else 'no nvcc found'})",
            flush=True,
        )
        return None, False
    return nvcc, wish == "1"


def complaint(said: str) -> str:
    """One line of what CMake said when it failed."""
    told = said.partition("CMake Error")[2].partition("\n")[2].strip()
    return " ".join(told.partition("\n\n")[0].split())[:300]


def find_tool(name: str) -> str | None:
    """A program of this Python's environment, activated or not, or of the system."""
    return shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )


class CMakeBuild(build_ext):
    """build_ext that leaves the work to CMake."""

    def build_extension(self, ext: Extension) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        compilers = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
        if not any(map(shutil.which, compilers)):
            sys.exit(
                f"no C++ compiler found ({', '.join(compilers)}): apt install g++, or dnf install gcc-c++"
            )
        if not cmake:
            sys.exit("cmake not found: pip install cmake")
        if not ninja and not shutil.which("make"):
            sys.exit("neither ninja nor make found: pip install ninja")
        try:
            import pybind11
        except ImportError:
            sys.exit("pybind11 not found: pip install pybind11")

        nvcc, strict = cuda_wish()
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        generator = "Ninja" if ninja else "Unix Makefiles"
        # One folder for every kind of install, so that a second build compiles only what changed.
        work = ROOT / "build" / f"cmake-{platform.machine()}-{sys.implementation.cache_tag}"
        cache = work / "CMakeCache.txt"
        if cache.exists():
            known = cache.read_text()
            if (
                f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" in known
                and f"CMAKE_GENERATOR:INTERNAL={generator}\n" in known
            ):
                cache.unlink()  # what CMake found belongs to another environment; the objects may stay
            else:
                shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-G{generator}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            "-DCMAKE_BUILD_TYPE=Release",
            *([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        ]

        command = [cmake, str(ROOT), *arguments]
        configured = False
        if nvcc:
            cuda = [f"-DCMAKE_CUDA_COMPILER={nvcc}"]
            if targets := os.environ.get("DDPO3D_CUDA_ARCHS"):
                cuda.append(f"-DCMAKE_CUDA_ARCHITECTURES={targets}")
            done = subprocess.run([*command, *cuda], cwd=work, capture_output=True, text=True)
            configured, reason = done.returncode == 0, complaint(done.stderr)
            if configured:
                print(f"{done.stdout}ddpo3d-fast: CPU and CUDA backends ({nvcc})", flush=True)
            elif strict:
                sys.exit(f"DDPO3D_CUDA=1, but {nvcc} cannot be used: {reason}")
            else:
                print(f"ddpo3d-fast: CPU backend only ({nvcc} cannot be used: {reason})", flush=True)
                cache.unlink(missing_ok=True)
        jobs = os.environ.get("MAX_JOBS") or str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        )
        try:
            if not configured:
                subprocess.run(command, cwd=work, check=True)
            subprocess.run([cmake, "--build", str(work), "-j", jobs], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"building ddpo3d_fast._C failed with exit code {error.returncode}; the reason is above")


setup(ext_modules=[Extension("ddpo3d_fast._C", [])], cmdclass={"build_ext": CMakeBuild})
