"""Seconds per asset, by part: what a person waits for the command, from its start to its last file.

    python benchmarks/seconds_per_asset.py [--presets draft standard] [--prompts "a red mushroom" ...]
        [--seeds 0 1] [--json FILE] [--keep DIR] [-- flags of generate]

Every run is a process of its own. `start` is what lies outside the loop's own clock: Python, imports, the end
of the process. `setup` loads the networks and checks them against their probes. The rest are parts of the
loop, then `export`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ddpo3d_fast import __version__
from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine

PROMPTS = ("a red mushroom", "a blue car", "a green tree")
ORDER = (
    "start",
    "setup",
    "render",
    "predict",
    "reward",
    "residual",
    "backward",
    "update",
    "export",
    "other",
    "wall",
)


def run(preset: str, prompt: str, seed: int, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Makes one asset and returns its row of figures."""
    command = [sys.executable, "-m", "ddpo3d_fast", "generate", "--json"]
    command += ["--preset", preset, "--prompt", prompt, "--seed", str(seed), "--output", str(folder), *flags]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr.strip() or f"generate ended with exit code {done.returncode}")
    last = json.loads(done.stdout.splitlines()[-1])
    seconds = dict(last["seconds"])
    total = seconds.pop("total")
    parts = seconds | {"start": wall - total, "other": total - sum(seconds.values()), "wall": wall}
    return {"preset": preset, "prompt": prompt, "seed": seed, "seconds": parts}


def table(rows: list[dict[str, Any]]) -> str:
    """A line for every run, and for every preset the median of its runs."""
    parts = [part for part in ORDER if any(part in row["seconds"] for row in rows)]
    lines = [f"{'preset':10}{'prompt':24}{'seed':>5}" + "".join(f"{part:>10}" for part in parts)]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        of_preset = [row for row in rows if row["preset"] == preset]
        for row in of_preset:
            lines.append(_line(preset, row["prompt"], str(row["seed"]), row["seconds"], parts))
        median = {
            part: statistics.median(row["seconds"].get(part, 0.0) for row in of_preset) for part in parts
        }
        lines.append(_line(preset, f"median of {len(of_preset)}", "", median, parts))
    return "\n".join(lines)


def _line(preset: str, prompt: str, seed: str, seconds: dict[str, float], parts: list[str]) -> str:
    return f"{preset:10}{prompt[:23]:24}{seed:>5}" + "".join(
        f"{seconds.get(part, 0.0):10.2f}" for part in parts
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["draft", "standard"], help="default: draft standard")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), help=f"default: {', '.join(PROMPTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--keep", type=Path, help="keep the run folders here")
    parser.add_argument("flags", nargs="*", help="after --: passed on to generate")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        for preset in arguments.presets:
            for prompt in arguments.prompts:
                for seed in arguments.seeds:
                    name = f"{preset}-{prompt.replace(' ', '-')}-{seed}"
                    rows.append(run(preset, prompt, seed, folder / name, arguments.flags))
                    print(f"{name}: {rows[-1]['seconds']['wall']:.1f} s", file=sys.stderr, flush=True)
    print(table(rows))
    if arguments.json:
        data = {"machine": machine(), "version": __version__, "flags": arguments.flags, "rows": rows}
        write_text(arguments.json, json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
