"""Assets a minute: `ddpo3d-fast batch` beside a shell loop over `ddpo3d-fast generate`.

    python benchmarks/batch.py [--count 24] [--rounds 2] [--preset draft] [--json FILE]

Both make the same assets from nothing, in processes of their own, and take turns. That they are the same, to
the byte, is checked. The figure is the whole command's: Python, imports, models, Ray's start and its end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ddpo3d_fast import __version__
from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine

COLORS = ("red", "blue", "green", "yellow")
OBJECTS = ("mushroom", "car", "house", "chair", "mug", "tree", "robot", "boat")
COMMAND = (sys.executable, "-m", "ddpo3d_fast")


def prompts(count: int) -> list[str]:
    """As many prompts, each another."""
    words = [f"a {color} {name}" for name, color in itertools.product(OBJECTS, COLORS)]
    return words[:count]


def run(*words: str) -> None:
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    environment.pop("OMP_NUM_THREADS", None)  # `generate` has all cores, as a user's shell leaves it
    subprocess.run([*COMMAND, *words], check=True, env=environment)


def loop(wanted: list[str], preset: str, folder: Path) -> float:
    """Seconds of a loop over `generate`."""
    began = time.perf_counter()
    for number, prompt in enumerate(wanted):
        output = str(folder / str(number))
        run("generate", "--prompt", prompt, "--preset", preset, "--output", output, "--quiet")
    return time.perf_counter() - began


def batch(wanted: list[str], preset: str, folder: Path) -> float:
    """Seconds of one `batch`."""
    (folder / "list.txt").write_text("\n".join(wanted))
    began = time.perf_counter()
    run("batch", str(folder / "list.txt"), "--preset", preset, "--output", str(folder / "runs"), "--quiet")
    return time.perf_counter() - began


def same(wanted: list[str], folder: Path, other: Path) -> bool:
    """Whether both have made the same assets."""
    runs = [folder / "runs" / f"{prompt.replace(' ', '-')}-0" for prompt in wanted]
    pairs = ((run / "asset.ply", other / str(number) / "asset.ply") for number, run in enumerate(runs))
    return all(one.read_bytes() == two.read_bytes() for one, two in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=24, help="assets, 32 at most; default: 24")
    parser.add_argument("--rounds", type=int, default=2, help="turns of both; default: 2")
    parser.add_argument("--preset", default="draft", help="default: draft")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    wanted, rows = prompts(options.count), []
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}", flush=True)
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            seconds = {
                "loop": loop(wanted, options.preset, Path(two)),
                "batch": batch(wanted, options.preset, Path(one)),
            }
            rows.append(seconds | {"same": same(wanted, Path(one), Path(two))})
        print(f"round {number + 1}: {rows[-1]}", flush=True)
    rates = {
        name: 60 * len(wanted) / statistics.median(row[name] for row in rows) for name in ("loop", "batch")
    }
    ratio = statistics.median(row["loop"] / row["batch"] for row in rows)
    print(
        f"{len(wanted)} {options.preset} assets: {rates['loop']:.1f} a minute in a loop, "
        f"{rates['batch']:.1f} in a batch, {ratio:.2f} times as many; "
        f"{'' if all(row['same'] for row in rows) else 'NOT '}the same assets"
    )
    if options.json:
        facts = {"machine": machine(), "version": __version__, "preset": options.preset, "count": len(wanted)}
        data = facts | {"rounds": rows, "assets_a_minute": rates, "ratio": ratio}
        write_text(options.json, json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
