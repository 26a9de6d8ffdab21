"""Milliseconds a call of every frozen network of a step, by runtime, batch and resolution.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/engines.py [--models embedded random:small] [--reward NAME]
        [--runtimes torch onnxruntime tensorrt] [--batches 1 4] [--scales 0.5 1.0]
        [--device auto|cpu|cuda] [--repeats 15] [--json FILE]

    python benchmarks/engines.py --models random:sd21 random:sdxl --json benchmarks/results/engines-cuda.json

The parts, called as a step calls them: `unet`, a guided pair of predictions for each item of the batch;
`encoder`; `encoder + vjp`, latents, and a gradient taken back from them; `decoder`; `scorer`; `scorer + vjp`.
Each takes what surrounds its network along, the resizing of a scorer's pictures for example. The line `step`
is the sum of all but `encoder`: what a step's networks take with as many views as the batch, and one noise
each. The embedded codec is no network and is left out.

The runtimes take turns; figures are medians of repeats, after calls that do not count. On a GPU `torch` and
`tensorrt` are calls from Python with a wait after each, and `graph` beside them is the replay of the call as
a CUDA graph, which is how a run does it. Scales are sides of the pictures in units of the prior's own; the
embedded one has 1 alone. A runtime that is not to be had, or gave way to another, is named.
Models and rewards called `random:` are made here: see random_models.py. On a CPU torch has as many threads as
ONNX Runtime; and one, which is faster for small networks, and which `generate` gives it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from random_models import default_reward, find_model, find_reward
from timing import timed

from ddpo3d_fast import kernels
from ddpo3d_fast.control import torch_threads
from ddpo3d_fast.engines import RUNTIMES, unavailable
from ddpo3d_fast.errors import FallbackWarning, InputError, first_line
from ddpo3d_fast.files import write_text
from ddpo3d_fast.graphs import capture
from ddpo3d_fast.info import choose_device, machine
from ddpo3d_fast.priors import PriorSettings, kind_of, load_prior
from ddpo3d_fast.priors.base import Call, Prior
from ddpo3d_fast.rewards import Reward, RewardSettings, make_reward

PROMPT = "a red mushroom"
STEP = ("unet", "encoder + vjp", "decoder", "scorer", "scorer + vjp")  # what a step calls
Function = Callable[[], object]


def parts(prior: Prior, scorer: Reward, batch: int, scale: float) -> dict[str, Function]:
    """The calls of one prior and reward on `batch` pictures of a side of `scale` times the prior's own."""
    generator, side = torch.Generator().manual_seed(0), round(scale * prior.picture_size)
    pictures = torch.rand(batch, 3, side, side, generator=generator).to(prior.device)
    codec, prompts = prior.codec, [PROMPT] * batch
    latents = codec.encode(pictures)
    timesteps = torch.linspace(20, 980, batch).long().to(prior.device)
    conditions = prior.conditions(prior.prompt(PROMPT), torch.zeros(batch, 3))

    def encoder_vjp() -> object:
        _, pull_back = codec.encode_with_vjp(pictures)
        return pull_back(latents)

    calls: dict[str, Function] = {"unet": lambda: prior.predict(latents, timesteps, conditions)}
    if hasattr(codec, "runtime"):  # the embedded one only moves pixels
        calls["encoder"] = lambda: codec.encode(pictures)
        calls["encoder + vjp"] = encoder_vjp
        calls["decoder"] = lambda: codec.decode(latents)
    calls["scorer"] = lambda: scorer.score(pictures, prompts)
    calls["scorer + vjp"] = lambda: scorer.score_vjp(pictures, prompts)
    return calls


def ways(calls: dict[str, Function], device: torch.device) -> dict[str, Function]:
    """How each runtime's call is timed, by the name of a column; each has been run once."""
    timed_calls: dict[str, Function] = {}
    for runtime, call in calls.items():
        call()
        timed_calls[runtime] = _waiting(call) if device.type == "cuda" else call
        if device.type == "cpu" and runtime == "torch":
            timed_calls["torch 1 thread"] = torch_threads(1)(call)
        if device.type == "cuda":
            kept: dict[str, Any] = {}

            def function(call: Function = call, kept: dict[str, Any] = kept) -> dict[str, Any]:
                kept["outputs"] = call()  # the graph writes to them
                return {}

            torch.cuda.synchronize()
            replay, _ = capture(function)
            timed_calls[f"{runtime} graph"] = _waiting(replay)
    return timed_calls


def _waiting(call: Function) -> Function:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def measure(calls: dict[str, Function], device: torch.device, repeats: int) -> dict[str, float]:
    """Median milliseconds by column; `calls` by runtime, which take turns."""
    functions = ways(calls, device)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            milliseconds, _ = timed(function)
            if repeat:
                times[name].append(milliseconds)
    return {name: statistics.median(values) for name, values in times.items()}


def load(
    model: str, reward: str, runtimes: Sequence[str], device: torch.device, cases: Sequence[tuple[int, float]]
) -> tuple[dict[str, tuple[Prior, Reward]], dict[str, str]]:
    """Prior and reward on every runtime that is to be had, and why the others are not."""
    loaded, absent = {}, {}
    name, spec = find_model(model), find_reward(reward)
    shapes = [] if kind_of(name).small else [Call(batch, 1, scale) for batch, scale in cases]
    for runtime in runtimes:
        if reason := unavailable(runtime, device):
            absent[runtime] = reason
            continue
        try:
            prior = load_prior(PriorSettings(name, device, runtime=runtime, calls=shapes))
            loaded[runtime] = prior, make_reward([spec], RewardSettings(device, runtime))
        except InputError as error:
            absent[runtime] = str(error)
    return loaded, absent


def rows_of(
    model: str, reward: str, runtimes: Sequence[str], device: torch.device, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one model, printed as they come; and what to know of them."""
    scales = options.scales or ([1.0] if model == "embedded" else [0.5, 1.0])
    cases = [(batch, scale) for scale in scales for batch in options.batches]
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        loaded, absent = load(model, reward, runtimes, device, cases)
        notes = [f"{model} on {runtime}: left out: {reason}" for runtime, reason in absent.items()]
        columns = [name for runtime in loaded for name in _columns(runtime, device)]
        print(header(columns), flush=True)
        for batch, scale in cases:
            by_runtime = {
                runtime: parts(*engines, batch=batch, scale=scale) for runtime, engines in loaded.items()
            }
            side = round(scale * next(iter(loaded.values()))[0].picture_size) if loaded else 0
            found: dict[str, dict[str, float]] = {}
            for part in next(iter(by_runtime.values()), {}):
                calls = {runtime: functions[part] for runtime, functions in by_runtime.items()}
                try:
                    found[part] = measure(calls, device, options.repeats)
                except RuntimeError as error:  # out of memory, or not to be captured
                    notes.append(f"{model}, {part}, batch {batch}, {side} px: left out: {first_line(error)}")
            if {"unet", "scorer", "scorer + vjp"} <= found.keys():
                in_step = [found[part] for part in STEP if part in found]
                found["step"] = {name: sum(each[name] for each in in_step) for name in in_step[0]}
            for part, milliseconds in found.items():
                row = {"model": model, "reward": reward, "part": part, "batch": batch, "side": side}
                rows.append(row | {"ms": milliseconds})
                print(table_row(rows[-1], columns), flush=True)
    fallbacks = [str(each.message) for each in caught if issubclass(each.category, FallbackWarning)]
    return rows, notes + [f"{model}: {text}" for text in dict.fromkeys(fallbacks)]


def _columns(runtime: str, device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [runtime, f"{runtime} graph"]
    return ["torch", "torch 1 thread"] if runtime == "torch" else [runtime]


def header(columns: Sequence[str]) -> str:
    names = "".join(f"{name:>16}" for name in columns)
    return f"{'model':14}{'part':15}{'batch':>6}{'px':>6}{names}   (ms)"


def table_row(row: dict[str, Any], columns: Sequence[str]) -> str:
    """A line; behind it how many times the fastest column's time torch takes at its best."""
    ms, ratio = row["ms"], ""
    numbers = "".join(f"{ms[name]:16.2f}" for name in columns)
    of_torch = [value for name, value in ms.items() if name.startswith("torch")]
    if 0 < len(of_torch) < len(ms):
        ratio = f"   torch / fastest {min(of_torch) / min(ms.values()):.2f}"
    return f"{row['model']:14}{row['part']:15}{row['batch']:>6}{row['side']:>6}{numbers}{ratio}"


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        help="default: embedded random:small on a CPU, random:sd21 random:sdxl on a GPU",
    )
    parser.add_argument("--reward", help="default: embedded; random:aesthetic with a real size")
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES[::-1], help="all if left out"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], help="pictures (default: 1 4)")
    parser.add_argument("--scales", nargs="+", type=float, help="default: 0.5 1.0; embedded: 1.0")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls, of which the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(words)
    if min(options.batches) < 1 or options.repeats < 1:
        parser.error("--batches, --repeats: expected 1 or more")
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse_options(words)
    device, _ = choose_device(options.device)
    on_gpu = device.type == "cuda"
    models = options.models or (["random:sd21", "random:sdxl"] if on_gpu else ["embedded", "random:small"])
    torch.set_num_threads(kernels.get_num_threads())
    facts = {
        "machine": machine(),
        "device": device.type,
        "torch": torch.__version__,
        "threads": kernels.get_num_threads(),
        "load": os.getloadavg()[0],
        "repeats": options.repeats,
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for model in models:
        reward = options.reward or default_reward(model)
        of_model, about_model = rows_of(model, reward, options.runtimes, device, options)
        rows, notes = rows + of_model, notes + about_model
    for note in notes:
        print(note)
    if options.json:
        write_text(options.json, json.dumps(facts | {"notes": notes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
