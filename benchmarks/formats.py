"""What it takes to write and to read a large splat in every format: seconds of a core, and memory.

    python benchmarks/formats.py [--count 1000000] [--degree 3] [--formats .ply .sog ...]

The scene is random, so that its harmonics have nothing in common: the worst case for .sog's palette. Every
measurement is a process of its own. `seconds` is the processor's time, all threads together; `MB` is what the
process needed at its peak beyond what it had before, the scene to be written not counted.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ddpo3d_fast.assets import FORMATS, PlyGaussians, read_splat, write_splat
from ddpo3d_fast.info import machine


def scene(count: int, degree: int) -> PlyGaussians:
    """Gaussians in a ball of about radius 1, their quaternions not normalised."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return PlyGaussians(
        means=numbers(count, 3) * 0.3,
        quats=numbers(count, 4),
        log_scales=numbers(count, 3) * 0.3 - 5,
        logit_opacities=numbers(count),
        sh=numbers(count, (degree + 1) ** 2, 3) * 0.15,
    )


def peak() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(task: str, path: Path, count: int, degree: int) -> str:
    """Writes or reads a file, once."""
    gaussians = scene(count, degree) if task == "write" else None
    before, start = peak(), time.process_time()
    if gaussians is None:
        read_splat(path)
    else:
        write_splat(path, gaussians)
    return f"{time.process_time() - start:8.1f}{peak() - before:8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--degree", type=int, choices=range(4), default=3)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--task", choices=("write", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(measure(options.task, options.path, options.count, options.degree))
        return
    print(f"{options.count} Gaussians of degree {options.degree}; {machine()}")
    print(f"{'':18}{'MB':>8}{'writing: seconds':>18}{'MB':>6}{'reading: seconds':>18}{'MB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in options.formats:
            path, parts = Path(folder) / f"a{suffix}", []
            for task in ("write", "read"):
                sizes = ["--count", str(options.count), "--degree", str(options.degree)]
                words = [sys.executable, __file__, "--task", task, "--path", str(path), *sizes]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
                parts.append(done.stdout.rstrip())
            print(f"{suffix:18}{path.stat().st_size / 1e6:8.1f}{parts[0]:>24}{parts[1]:>24}", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
