"""What every CUDA kernel takes of a multiprocessor, as the compiler reports it; needs nvcc, no GPU.

    python benchmarks/kernel_resources.py [--targets sm_80 sm_90 sm_120] [--json FILE]

Registers a thread, shared memory a block, stack and spills in bytes (ptxas -v). Where a cuobjdump is on the
path (--json wants one), also what the machine code says:
- how many global loads and stores there are, and how many of them move 128 bits;
- of the innermost loop that has MUFU.EX2, so blend's and blend vjp's: its warp instructions a turn, its
  entry-blocks a turn (an entry for a warp's 8 x 4 pixels: each takes one MUFU.EX2), and the quotient;
- of the loop with barriers within a loop with barriers, so the sort's: the warp instructions of a chunk, 32
  entries a warp, and the barriers for SORTED entries, which are one turn of the outer loop.
A loop is what lies on a way from a jump's target back to the jump. Every instruction in it counts once, those
that a branch may skip as well, so that a turn takes as many at most.
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
SORTED, CHUNK = (
    1024,
    128,
)  # entries: blend.cu's kSortedAtOnce, and a chunk of sort_list.cuh, an entry a thread


def find_nvcc() -> str | None:
    """nvcc on the path or where the toolkit puts it."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_cuobjdump() -> str | None:
    """cuobjdump on the path or where the toolkit puts it."""
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")


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
        code = machine_code(Path(folder) / "out.cubin")
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


def machine_code(cubin: Path) -> dict[str, dict[str, float]]:
    """By kernel, what the docstring above lists; nothing without a cuobjdump."""
    tool = find_cuobjdump()
    if not tool:
        return {}
    text = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    found = {}
    for part in text.split("Function : ")[1:]:
        code = instructions(part)
        found[part.split()[0]] = {**widths(code), **blend_loop(code), **sort_loop(code)}
    return found


Code = dict[int, str]  # instructions by their addresses


def instructions(text: str) -> Code:
    """A function's, of what `cuobjdump -sass` prints."""
    return {int(at, 16): word for at, word in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", text)}


def widths(code: Code) -> dict[str, float]:
    """How many global loads and stores there are, and how many of them move 128 bits."""
    found: dict[str, float] = {}
    for name, word in (("loads", "LDG"), ("stores", "STG")):
        found[name] = matching(code, rf"\b{word}\.E")
        found[f"{name}_128"] = matching(code, rf"\b{word}\.E\.128")
    return found


def matching(code: Code, pattern: str) -> int:
    return sum(bool(re.search(pattern, word)) for word in code.values())


def loops(code: Code) -> list[Code]:
    """The loops, by size. Those of the same first instruction are one, as where a body has `continue`."""
    before: dict[int, list[int]] = {at: [] for at in code}  # from where an instruction is reached
    last = None
    for at, word in code.items():
        if last is not None:
            before[at].append(last)
        jump = re.search(r"\b(?:BRA|CALL\.REL)\b.*\b0x([0-9a-f]+)", word)  # sm_80 leaves loops by calls
        if jump and int(jump.group(1), 16) in code:
            before[int(jump.group(1), 16)].append(at)
        last = None if re.match(r"(BRA|EXIT|RET)\b", word) else at  # with a condition it may go on
    found = []
    for head in code:
        ends = [at for at in before[head] if at > head]
        body = {head, *ends}
        while ends:
            new = {at for at in before[ends.pop()] if at not in body}
            body |= new
            ends += new
        # If the function's beginning is in it, a way led around the head: no loop, code that lies elsewhere.
        if len(body) > 1 and (head == min(code) or min(code) not in body):
            found.append({at: code[at] for at in sorted(body)})
    return sorted(found, key=len)


def blend_loop(code: Code) -> dict[str, float]:
    """Of the innermost loop that evaluates entries; nothing where there is none."""
    for loop in loops(code):
        if evaluated := matching(loop, r"\bMUFU\.EX2\b"):
            quotient = round(len(loop) / evaluated, 1)
            return {"loop": len(loop), "entry_blocks": evaluated, "per_entry_block": quotient}
    return {}


def sort_loop(code: Code) -> dict[str, float]:
    """Of the sort's loops; nothing where there are none."""
    barrier = r"\bBAR\b"
    waiting = [
        loop for loop in loops(code) if matching(loop, barrier) and not matching(loop, r"\bMUFU\.EX2\b")
    ]
    for inner in waiting:
        for outer in waiting:
            if len(outer) > len(inner) and inner.keys() <= outer.keys():
                each, all_of = matching(inner, barrier), matching(outer, barrier)
                return {"sort_chunk": len(inner), "sort_barriers": all_of - each + each * SORTED // CHUNK}
    return {}


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
    if arguments.json and not find_cuobjdump():
        sys.exit("--json: expected a cuobjdump on the path or in /usr/local/cuda/bin, for the machine code")
    rows = report(nvcc, arguments.targets)
    width = max(len(row["kernel"]) for row in rows)
    print(
        f"{'kernel':{width}}  target  registers  shared  stack  spills  128-bit loads, stores  instructions"
    )
    for row in rows:
        wide = hot = ""
        if "loads" in row:
            wide = f"{row['loads_128']}/{row['loads']}, {row['stores_128']}/{row['stores']}"
        if "loop" in row:
            hot = f"{row['per_entry_block']} an entry-block"
        if "sort_chunk" in row:
            hot += f"; sort {row['sort_chunk']} a chunk, {row['sort_barriers']} barriers for {SORTED}"
        print(
            f"{row['kernel']:{width}}  {row['target']:6}  {row['registers']:9}  {row['shared']:6}"
            f"  {row['stack']:5}  {row['spills']:6}  {wide:21}  {hot}".rstrip()
        )
    if arguments.json:
        table = {"compiler": compiler(nvcc), "kernels": rows}
        write_text(arguments.json, json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
