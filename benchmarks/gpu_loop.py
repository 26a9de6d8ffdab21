"""The second call on a GPU: the loop, its graphs, the peers, the profile, and last the sanitizers.

    python benchmarks/gpu_loop.py [--seconds 420] [--output benchmarks/results]
                                   [--faster-gs PATH] [--inria PATH]

In this order, each stage in a process of its own and within its own time: the machine; the build; the
embedded draft three times (with graphs, with graphs, without), which must give the same asset, with its steps
counted and timed; `pytest -m gpu` of everything but the kernels; the diffusion arithmetic; Nsight Compute's
figures of the kernels that take the time; the rasterizer beside its peers; compute-sanitizer's tools. gsplat,
where it is installed, compiles itself meanwhile, and so do Faster-GS and INRIA's rasterizer where a path to
their sources is given. OUTPUT/gpu-loop.json is written before each stage begins; rasterizer-peers-cuda.json
and diffusion-cuda.json lie beside it. Exit code 0 whatever fails, 2 if OUTPUT cannot be written, 130 if
interrupted.

It needs what gpu_first.py needs, compute-sanitizer, ncu, and safetensors, pyyaml, pillow, transformers,
huggingface_hub and tqdm; PyAV need not be there, since no turntable is made. Carry the whole working tree
and, as wheels, what the machine lacks of these:

    pip download --no-deps --only-binary=:all: --dest .whl diffusers tyro docstring-parser typeguard gsplat

With --python-version and --platform, pip takes another machine's. There, in the working tree:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl &&
        PYTHONPATH=/tmp/site python3 benchmarks/gpu_loop.py --output $OUT
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from gpu_stages import (
    at_the_start,
    diffusion,
    gpu_tests,
    parse,
    parser_of,
    peers_of,
    profile,
    rasterizer,
    reporting,
    run_script,
    sanitizer,
    worker,
)
from stages import ROOT, Outcome, Stage

from ddpo3d_fast.files import write_text

if TYPE_CHECKING:
    from ddpo3d_fast.settings import Config

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
RUNS = {"graphs": True, "graphs again": True, "launches": False}  # by name: with CUDA graphs?


# ---- The loop


def loop_stage(stage: Stage, seconds: float) -> Outcome:
    return reporting(stage, seconds, worker("gpu_loop.py", "--loop"))


def run_loop(config: Config, path: Path) -> int:
    """The configuration by each of RUNS, each run's findings written before the next: 0 if all give the same
    asset to the byte."""
    if importlib.util.find_spec("av") is None:
        sys.modules["av"] = types.ModuleType("av")
    from ddpo3d_fast import generate
    from ddpo3d_fast.assets import EXPORTERS
    from ddpo3d_fast.run import RunFolder

    EXPORTERS["turntable.mp4"] = lambda *_: None  # of no interest here
    found: dict[str, Any] = {}
    for name, graphs in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = dataclasses.replace(config, cuda_graph=graphs, output=Path(folder) / "run")
            with CountedSteps() as steps:
                start = time.perf_counter()
                result = generate.generate(run, RunFolder.create(run), steps.note)
                steps.seconds = time.perf_counter() - start
            asset = hashlib.sha256((result.folder / "asset.ply").read_bytes()).hexdigest()
        found[name] = {**steps.figures(), "asset": asset}
        write_text(path, json.dumps(found) + "\n")
        print(f"{name}: {found[name]}", flush=True)
    same = len({row["asset"] for row in found.values()}) == 1
    first = found["graphs"]
    told = "the same asset" if same else "assets differ"
    print(f"{told}; with graphs {first['steps']}, {first['ms']} ms a step")
    return 0 if same else 1


class CountedSteps:
    """While it lasts, every step of a run is eager, captured or replayed, and timed."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.milliseconds: list[float] = []
        self.seconds = 0.0

    def __enter__(self) -> CountedSteps:
        from ddpo3d_fast import graphs

        self._module, self._capture, self._call = graphs, graphs.capture, graphs.StepGraphs.__call__
        capture, call = self._capture, self._call

        def capture_and_tell(*arguments: Any) -> Any:
            made = capture(*arguments)
            self._kind = "captured"
            return made

        def call_and_tell(steps: Any, key: Any, function: Callable[..., Any], inputs: Any) -> Any:
            def ran(tensors: Any) -> Any:
                self._kind = "eager"
                return function(tensors)

            self._kind = "replayed"
            result = call(steps, key, ran, inputs)
            self.kinds.append(self._kind)
            return result

        graphs.capture, graphs.StepGraphs.__call__ = capture_and_tell, call_and_tell  # type: ignore[method-assign]
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._module.capture, self._module.StepGraphs.__call__ = self._capture, self._call

    def note(self, row: dict[str, Any]) -> None:
        """An observer of the run; it hears of a step once the step's numbers have been read."""
        now = time.perf_counter()
        if row.get("stage") == "distill":
            self.milliseconds.append(1e3 * (now - self._since))
        self._since = now

    def figures(self) -> dict[str, Any]:
        """Counts by kind, what share was not replayed, and the median milliseconds of a step by kind."""
        counts = Counter(self.kinds)
        times: dict[str, list[float]] = {}
        if len(self.kinds) == len(self.milliseconds):  # else some were repeated, and a row is of several
            for kind, ms in zip(self.kinds, self.milliseconds, strict=True):
                times.setdefault(kind, []).append(ms)
        return {
            "steps": dict(counts),
            "not replayed": round(1 - counts["replayed"] / max(len(self.kinds), 1), 3),
            "ms": round(statistics.median(self.milliseconds), 3),
            "ms by kind": {kind: round(statistics.median(values), 3) for kind, values in times.items()},
            "seconds": round(self.seconds, 3),
        }


# ---- What the tools watch


def small_scenes() -> None:
    """Every kernel, over ordinary and awkward inputs, made on the CPU: for the sanitizers."""
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    from kernels.diffusion_cases import CASES, run_adam, run_diffusion
    from kernels.scenes import SCENES, random_scene

    names = ["plain", "one_pixel", "tall", "none", "needles", "far_out", "sh3", "antialiased_sh", "giants"]
    long_lists = random_scene(40, count=2600, scale=(1.0, 2.0), opacity=(0.006, 0.008), width=4, height=4)
    for scene in [*(SCENES[name] for name in names), long_lists]:
        arguments: dict[str, Any] = {
            name: v.cuda() if isinstance(v, torch.Tensor) else v for name, v in scene.arguments().items()
        }
        both_passes(arguments)
    for case in CASES.values():
        run_diffusion(case, "cuda")
    run_adam("cuda")
    torch.cuda.synchronize()
    print("clean", flush=True)


def kernels() -> None:
    """The rasterizer's kernels once, over one ordinary scene: for the profile."""
    import rasterizer_cuda as benchmark

    both_passes(benchmark.scene_of(benchmark.parse_case("10k/256/4")))
    benchmark.synchronize()


def both_passes(arguments: dict[str, Any]) -> None:
    import torch

    from ddpo3d_fast.kernels import rasterize_backward, rasterize_forward

    out, state = rasterize_forward(**arguments)
    upstream = (torch.ones(image.shape).to(image.device) for image in out[:3])
    gradients = rasterize_backward(state, *upstream)
    assert all(g is None or bool(g.cpu().isfinite().all()) for g in gradients)


# ---- The script


def stages_of(options: argparse.Namespace) -> list[Stage]:
    output, start = options.output, at_the_start()
    peers = peers_of(options, start[0])

    def flags() -> list[str]:
        return [flag for peer in peers for flag in peer.flags()]

    path, names = output / "rasterizer-peers-cuda.json", tuple(peer.name for peer in peers)
    beside = partial(rasterizer, path=path, words=flags)
    return [
        *start,
        *(peer.stage for peer in peers),
        Stage("loop", 100, loop_stage),
        Stage("other tests", 60, partial(gpu_tests, kernels=False)),
        Stage("diffusion", 45, partial(diffusion, output=output)),
        Stage("profile", 60, profile),
        Stage("rasterizer", 100, beside, after=names),
        *(Stage(name, 40, sanitizer) for name in SANITIZERS),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__, 420)
    parser.add_argument("--loop", action="store_true", help="the loop, and nothing else")
    parser.add_argument("--small-scenes", action="store_true", help="what the sanitizers watch")
    parser.add_argument("--kernels", action="store_true", help="what the profile is of")
    options = parse(parser, arguments)
    if options.small_scenes:
        small_scenes()
    elif options.kernels:
        kernels()
    elif options.loop:
        from ddpo3d_fast.configure import preset

        return run_loop(dataclasses.replace(preset("draft", "a red mushroom"), device="cuda"), options.json)
    else:
        code = run_script("gpu-loop", stages_of(options), options)
        return 0 if code == 1 else code
    return 0


if __name__ == "__main__":
    sys.exit(main())
