"""Seconds per asset, by part: what a person waits for the command, from its start to its last file.

    python benchmarks/seconds_per_asset.py [--presets draft standard] [--prompts "a red mushroom" ...]
        [--seeds 0 1] [--model NAME] [--reward NAME ...] [--baseline | --against PATH] [--json FILE]
        [--keep DIR] [-- flags of generate]

    python benchmarks/seconds_per_asset.py --against ../an-older-checkout --json results.json
    python benchmarks/seconds_per_asset.py --model random:sd21 --baseline --json results.json

Every run is a process of its own. `start` is what lies outside the loop's own clock: Python, imports, the end
of the process. `setup` loads the networks and checks them against their probes. The rest are parts of the
loop, then `export`. On a GPU the parts only launch work: what they wait for is in `other`.

`--model random:sd21` (sd15, sdxl, small) runs the real architecture with random weights: random_models.py.
With such a model the reward is `random:aesthetic`, LAION's scorer on a random ViT-L/14, unless --reward says
otherwise (`embedded` with random:small). The scene then follows noise: views may cost more or less to render
than those of an object.

`--baseline` runs in turn, for each preset, prompt and seed: `generate`; `distillation`, which is generate
with one noise a view and without the reward, the baseline's own work; and `baseline`, the same schedule the
way DreamGaussian writes it (dreamgaussian_baseline.py). The ratios are medians over these rounds.

`--against PATH` runs another build in turn with this one: a checkout whose extension is built, by its own
.venv or else by this Python; or an environment that ddpo3d-fast is installed in. The ratios, ours to theirs,
are medians over the rounds, of the whole and of each part. Both get the same flags; paths in them must be
absolute.

With another model than the embedded one each program first makes one asset of a few steps that does not
count: engines are built then, and peers' kernels compiled, which happens once on a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ddpo3d_fast import __version__
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine

PROMPTS = ("a red mushroom", "a blue car", "a green tree")
GENERATE = (sys.executable, "-m", "ddpo3d_fast", "generate", "--json")
BASELINE = (sys.executable, str(Path(__file__).with_name("dreamgaussian_baseline.py")))
DISTILLATION_ALONE = ("--noises", "1", "--policy-weight", "0", "--guide-weight", "0")
WARM_UP = ("--steps", "10")  # every rendering size of the presets comes up
ORDER = (
    "start",
    "setup",
    "render",
    "predict",
    "reward",
    "residual",
    "backward",
    "update",
    "loop",
    "export",
    "other",
    "wall",
)


def run(
    preset: str,
    prompt: str,
    seed: int,
    folder: Path,
    flags: list[str],
    program: str = "generate",
    build: Build | None = None,
) -> dict[str, Any]:
    """Makes one asset and returns its row of figures. `program`: generate, distillation, baseline, or
    against, which is generate of another `build`.

    `finite` says whether all numbers stayed so: what is lost on the way is rendered in no time.
    """
    command = [*(BASELINE if program == "baseline" else GENERATE)]
    environment, where = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ, None  # as generate has it
    if build is not None:
        command[0], where = build.python, build.path
        environment["PYTHONPATH"] = str(build.path)
    command += ["--preset", preset, "--prompt", prompt, "--seed", str(seed), "--output", str(folder), *flags]
    command += DISTILLATION_ALONE if program == "distillation" else ()
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=where)
    wall = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr.strip() or f"{program} ended with exit code {done.returncode}")
    sys.stderr.write("".join(f"{line}\n" for line in done.stderr.splitlines() if "ddpo3d-fast: " in line))
    told = [json.loads(line) for line in done.stdout.splitlines()]
    last = told[-1]
    seconds = dict(last["seconds"])
    total = seconds.pop("total")
    parts = seconds | {"start": wall - total, "other": total - sum(seconds.values()), "wall": wall}
    row = {"program": program, "preset": preset, "prompt": prompt, "seed": seed, "seconds": parts}
    row["finite"] = last.get("finite", True) and all(None not in line.values() for line in told)
    if "rasterizer" in last:
        row["rasterizer"] = last["rasterizer"]
    if (config := folder / "config.yaml").is_file():  # what ran the networks
        provenance = yaml.safe_load(config.read_text())["provenance"]
        row |= {name: provenance[name] for name in ("engine", "reward")}
    return row


@dataclass(frozen=True)
class Build:
    """Another build than this one."""

    path: Path
    python: str
    version: str

    @classmethod
    def at(cls, path: Path) -> Build:
        """That of a checkout or an environment. Raises InputError for a path that is neither, or where it
        cannot be imported."""
        path = path.resolve()
        own = next((p for p in (path / "bin/python", path / ".venv/bin/python") if p.is_file()), None)
        if own is None and not (path / "ddpo3d_fast").is_dir():
            raise InputError(f"--against: expected a checkout or an environment, got {path}")
        python = str(own or sys.executable)
        code = "import ddpo3d_fast, ddpo3d_fast._C; print(ddpo3d_fast.__version__)"
        environment = os.environ | {"PYTHONPATH": str(path)}
        command = [python, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"--against: {path} cannot be run: {reason}")
        return cls(path, python, with_commit(done.stdout.strip(), path))


def with_commit(number: str, path: Path) -> str:
    """A version, and the commit that a checkout is at."""
    command = ["git", "-C", str(path), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git
        return number
    return number if done.returncode else f"{number} at {done.stdout.strip()}"


def loop_seconds(row: dict[str, Any]) -> float:
    """Of a run, without what comes before its steps and after them."""
    outside = ("start", "setup", "export")
    return row["seconds"]["wall"] - sum(row["seconds"].get(part, 0.0) for part in outside)


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times the seconds of ours the baseline takes, in the loop and in all: for each preset and
    program the median over the rounds that the two have in common."""

    baselines = {_round(row): row for row in rows if row["program"] == "baseline"}
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["program"] != "baseline" and (other := baselines.get(_round(row))):
            loop = loop_seconds(other) / loop_seconds(row)
            wall = other["seconds"]["wall"] / row["seconds"]["wall"]
            pairs.setdefault((row["preset"], row["program"]), []).append((loop, wall))
    return [
        {
            "preset": preset,
            "program": program,
            "loop": statistics.median(loop for loop, _ in found),
            "wall": statistics.median(wall for _, wall in found),
        }
        for (preset, program), found in pairs.items()
    ]


def ratios_by_part(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Our seconds in units of the other build's, by preset and part: medians over the rounds. Parts that
    take the other less than 0.05 s are left out."""
    ours = {_round(row): row for row in rows if row["program"] == "generate"}
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["program"] != "against" or _round(row) not in ours:
            continue
        parts = found.setdefault(row["preset"], {})
        for part, seconds in row["seconds"].items():
            if seconds >= 0.05:
                own = ours[_round(row)]["seconds"].get(part, 0.0)
                parts.setdefault(part, []).append(own / seconds)
    return {
        preset: {part: statistics.median(parts[part]) for part in ORDER if part in parts}
        for preset, parts in found.items()
    }


def _round(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["preset"], row["prompt"], row["seed"]


def table(rows: list[dict[str, Any]]) -> str:
    """A line for every run, and for every preset and program the median of its runs."""
    parts = [part for part in ORDER if any(part in row["seconds"] for row in rows)]
    lines = [f"{'preset':10}{'program':14}{'prompt':24}{'seed':>5}" + "".join(f"{p:>10}" for p in parts)]
    for preset, program in dict.fromkeys((row["preset"], row["program"]) for row in rows):
        runs = [row for row in rows if (row["preset"], row["program"]) == (preset, program)]
        for row in runs:
            lines.append(_line(preset, program, row["prompt"], str(row["seed"]), row["seconds"], parts))
        median = {
            part: statistics.median(row["seconds"].get(part, 0.0) for row in runs)
            for part in parts
            if any(part in row["seconds"] for row in runs)
        }
        lines.append(_line(preset, program, f"median of {len(runs)}", "", median, parts))
    return "\n".join(lines)


def _line(
    preset: str, program: str, prompt: str, seed: str, seconds: dict[str, float], parts: list[str]
) -> str:
    return f"{preset:10}{program:14}{prompt[:23]:24}{seed:>5}" + "".join(
        f"{seconds[part]:10.2f}" if part in seconds else f"{'-':>10}" for part in parts
    )


def model_flags(model: str, rewards: list[str] | None) -> list[str]:
    """The flags of generate for a model and rewards, random ones made if need be. Raises InputError."""
    from random_models import default_reward, find_model, find_reward

    flags = [] if model == "embedded" else ["--model", find_model(model)]
    if rewards is None and model.startswith("random:"):
        rewards = [default_reward(model)]
    return flags + [word for reward in rewards or [] for word in ("--reward", find_reward(reward))]


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", help="default: draft standard; standard with another --model")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), help=f"default: {', '.join(PROMPTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--model", default="embedded", help="as for generate, or random:sd21 and so on")
    parser.add_argument("--reward", action="append", help="as for generate, or random:aesthetic; repeatable")
    parser.add_argument(
        "--baseline", action="store_true", help="beside it the same schedule as DreamGaussian has it"
    )
    parser.add_argument("--against", type=Path, metavar="PATH", help="beside it the build that is there")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--keep", type=Path, help="keep the run folders here")
    parser.add_argument("flags", nargs="*", help="after --: passed on to generate")
    options = parser.parse_args(words)
    if options.baseline and options.model == "embedded":
        parser.error("--baseline: expected a --model of Stable Diffusion 1.x or 2.x, got the embedded prior")
    if options.baseline and options.against:
        parser.error("--baseline, --against: expected one of them, got both")
    options.presets = options.presets or ["draft", "standard"][options.model != "embedded" :]
    return options


def measure(
    options: argparse.Namespace, flags: list[str], folder: Path, other: Build | None = None
) -> list[dict[str, Any]]:
    """The rows of all runs; the programs take turns."""
    programs = ["generate", "distillation", "baseline"] if options.baseline else ["generate"]
    builds = dict.fromkeys(programs) | ({"against": other} if other else {})
    if options.model != "embedded":
        for program, build in builds.items():
            print(f"warm-up: {program}", file=sys.stderr, flush=True)
            first = options.presets[0], options.prompts[0], options.seeds[0]
            run(*first, folder / f"warm-up-{program}", [*flags, *WARM_UP], program, build)
    rows = []
    for preset in options.presets:
        for prompt in options.prompts:
            for seed in options.seeds:
                for program, build in builds.items():
                    name = f"{preset}-{prompt.replace(' ', '-')}-{seed}"
                    name += f"-{program}" if len(builds) > 1 else ""
                    rows.append(run(preset, prompt, seed, folder / name, flags, program, build))
                    print(f"{name}: {rows[-1]['seconds']['wall']:.1f} s", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    options = parse_options()
    flags = model_flags(options.model, options.reward) + options.flags
    other = Build.at(options.against) if options.against else None
    load, version = os.getloadavg()[0], with_commit(__version__, Path(__file__).parent)
    print(f"{machine()}, load {load:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(options, flags, (options.keep or Path(temporary)).resolve(), other)
    print(table(rows))
    by_part = ratios_by_part(rows)
    for preset, parts in by_part.items():
        each = ", ".join(f"{part} {ratio:.2f}" for part, ratio in parts.items() if part != "wall")
        assert other is not None
        print(f"{preset}: {version} takes {parts['wall']:.2f} times the seconds of {other.version}: {each}")
    compared = ratios(rows)
    for each in compared:
        print(
            f"{each['preset']}: the baseline takes {each['loop']:.2f} times the seconds of {each['program']} "
            f"in the loop, {each['wall']:.2f} times in all"
        )
    for program in dict.fromkeys(row["program"] for row in rows if not row["finite"]):
        print(f"{program}: numbers were lost (not finite), so that its seconds mean nothing")
    if options.json:
        facts = {"machine": machine(), "load": load, "version": version, "model": options.model}
        facts |= {"against": {"version": other.version, "ratios": by_part}} if other else {}
        data = facts | {"flags": options.flags, "rows": rows} | ({"ratios": compared} if compared else {})
        write_text(options.json, json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
