"""What every CUDA kernel takes of a multiprocessor, as the compiler reports it; needs nvcc, no GPU.

    python benchmarks/kernel_resources.py [--targets sm_80 sm_90 sm_120] [--json FILE]

Registers a thread, shared memory a block, stack and spills in bytes (ptxas -v), and, where a cuobjdump is
on the path, the widest global loads and stores in the machine code.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ddpo3d_fast.files import write_text

CSRC = Path(__file__).parents[1] / "csrc"
FLAGS = ["-std=c++17", "-O3", "-fmad=false", f"-I{CSRC}", f"-I{CSRC / 'include'}"]  # those of CMakeLists.txt
TARGETS = ("sm_80", "sm_90", "sm_120")


def find_nvcc() -> str | None:
    """nvcc on the path or where the toolkit puts it."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def demangled(symbols: list[str]) -> list[str]:
    """Readable kernel names: "blend_kernel<8>"."""
    tool = (
        shutil.which("cu++filt")
        or shutil.which("cu++filt", path="/usr/local/cuda/bin")
        or shutil.which("c++filt")
    )
    if not tool:
        return symbols
    lines = subprocess.run([tool, *symbols], capture_output=True, text=True, check=True).stdout.splitlines()
    names = []
    for line in lines:
        name = (
            re.sub(r"\((int|bool)\)", "", line)
            .replace("(anonymous namespace)::", "")
            .replace("<unnamed>::", "")
        )
        found = re.search(r"(\w+(?:<[^()]*>)?)\(", name)
        names.append(found.group(1) if found else line)
    return names


def resources(nvcc: str, source: Path, target: str) -> list[dict[str, Any]]:
    """A row for every kernel of one source file."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [
                nvcc,
                *FLAGS,
                f"-arch={target}",
                "-Xptxas",
                "-v",
                "-cubin",
                str(source),
                "-o",
                f"{folder}/out.cubin",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{source.name}: nvcc failed: {result.stderr.strip()}")
        code = sass_widths(Path(folder) / "out.cubin")
    rows, symbols = [], []
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    for symbol, stack, stores, loads, registers, rest in re.findall(pattern, result.stderr, re.S):
        shared = re.search(r"(\d+) bytes smem", rest)
        symbols.append(symbol)
        rows.append(
            {
                "source": source.name,
                "target": target,
                "registers": int(registers),
                "shared": int(shared.group(1)) if shared else 0,
                "stack": int(stack),
                "spills": int(stores) + int(loads),
                **code.get(symbol, {}),
            }
        )
    return [{"kernel": name, **row} for name, row in zip(demangled(symbols), rows, strict=True)]


def sass_widths(cubin: Path) -> dict[str, dict[str, int]]:
    """By kernel: how many global loads and stores there are, and how many of them move 128 bits."""
    tool = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if not tool:
        return {}
    text = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    found = {}
    for part in text.split("Function : ")[1:]:
        count = {name: len(re.findall(rf"\b{name}\.E\S*", part)) for name in ("LDG", "STG")}
        wide = {name: len(re.findall(rf"\b{name}\.E\.128\S*", part)) for name in ("LDG", "STG")}
        found[part.split()[0]] = {
            "loads": count["LDG"],
            "loads_128": wide["LDG"],
            "stores": count["STG"],
            "stores_128": wide["STG"],
        }
    return found


def report(nvcc: str, targets: list[str]) -> list[dict[str, Any]]:
    """The rows of all kernels of csrc/cuda for all targets."""
    work = [(source, target) for source in sorted((CSRC / "cuda").glob("*.cu")) for target in targets]
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda job: resources(nvcc, *job), work)
        return [row for part in parts for row in part]


def compiler(nvcc: str) -> str:
    """Its version, as it says it."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split("\n")[-2].strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if not nvcc:
        sys.exit(
            "nvcc: not found on the path or in /usr/local/cuda/bin; expected the CUDA toolkit's compiler"
        )
    rows = report(nvcc, arguments.targets)
    width = max(len(row["kernel"]) for row in rows)
    print(f"{'kernel':{width}}  target  registers  shared  stack  spills  128-bit loads, stores")
    for row in rows:
        wide = ""
        if "loads" in row:
            wide = f"{row['loads_128']}/{row['loads']}, {row['stores_128']}/{row['stores']}"
        print(
            f"{row['kernel']:{width}}  {row['target']:6}  {row['registers']:9}  {row['shared']:6}"
            f"  {row['stack']:5}  {row['spills']:6}  {wide}"
        )
    if arguments.json:
        table = {"compiler": compiler(nvcc), "kernels": rows}
        write_text(arguments.json, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
