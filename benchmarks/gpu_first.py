"""The first minutes on a GPU: does it build, does it compute what the CPU computes, how fast is it?

    python benchmarks/gpu_first.py [--seconds 270] [--output benchmarks/results]

In this order, each stage in a process of its own and within its own time: the machine; the build, for this
device alone; one scene, forward, backward and as a CUDA graph, against the CPU; `pytest -m gpu` of the
kernels; the rasterizer's benchmark, five cases. OUTPUT/gpu-first.json is written
before each stage begins, with what the stages before it found; rasterizer-cuda.json has the benchmark. Exit
code 0 whatever fails, 2 if OUTPUT cannot be written, 130 if interrupted.

A fresh machine needs a CUDA build of torch, nvcc, a C++ compiler, numpy, setuptools (77 or newer), pybind11,
cmake, ninja and pytest, and no network. Carry the working tree, or of it no more than

    git archive HEAD CMakeLists.txt LICENSE README.md pyproject.toml setup.py csrc tests/kernels \\
        'benchmarks/*.py' ddpo3d_fast/{__init__,errors,files,info}.py ddpo3d_fast/kernels >first.tar

and run, in it, `python3 benchmarks/gpu_first.py --output $OUT`. What went wrong is to be mended from
gpu-first.json; if all passed, gpu_loop.py is next.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from gpu_stages import (
    at_the_start,
    gpu_tests,
    parse,
    parser_of,
    rasterizer,
    reporting,
    run_script,
    worker,
)
from stages import Outcome, Stage

from ddpo3d_fast.files import write_text

SCENE = "2k/128/4"  # Gaussians, pixels a side, views
TOLERANCE = 1e-4  # relative L2 against the CPU; a pixel in which rounding decides a cut-off is worth 1e-5
CASES = ("10k/256/4", "2k/128/1", "50k/512/4", "2k/128/4", "10k/512/8")


def scene_stage(stage: Stage, seconds: float) -> Outcome:
    return reporting(stage, seconds, worker("gpu_first.py", "--scene"))


def try_scene(path: Path) -> int:
    """A scene on the device, step by step, each step's findings written before the next: 0 if it computes
    what the CPU does, and a graph's replay the same bits as a launch."""
    import rasterizer_cuda as benchmark
    import torch

    from ddpo3d_fast.kernels import rasterize_backward, rasterize_forward

    found: dict[str, Any] = {"scene": SCENE}

    def note(name: str, value: object) -> None:
        found[name] = value
        write_text(path, json.dumps(found) + "\n")
        print(f"{name} {value}", flush=True)

    note("begun", True)
    case = benchmark.parse_case(SCENE)
    scene = benchmark.scene_of(case)
    upstream = torch.randn(case.views, case.side, case.side, 3, generator=torch.Generator().manual_seed(1))
    on_cpu = {name: v.cpu() if isinstance(v, torch.Tensor) else v for name, v in scene.items()}
    expected, state = rasterize_forward(**on_cpu)
    expected_gradients = rasterize_backward(state, upstream)

    def errors(got: Any, wanted: Any) -> dict[str, float]:
        pairs = {name: (value, getattr(wanted, name)) for name, value in got._asdict().items()}
        return {
            name: benchmark.significant(benchmark.relative_l2(value.cpu(), want), 2)
            for name, (value, want) in pairs.items()
            if value is not None
        }

    out, state = rasterize_forward(**scene)
    benchmark.synchronize()
    note("forward", errors(out, expected))
    upstream = upstream.to(benchmark.DEVICE)
    gradients = rasterize_backward(state, upstream)
    benchmark.synchronize()
    note("backward", errors(gradients, expected_gradients))
    pair = benchmark.OurPair(scene, upstream)
    plain, graph = pair.plain(), pair.graph(benchmark.graph_pool())
    same = bool(graph.rgb.equal(plain.rgb) and graph.grad_means.equal(plain.grad_means))
    note("replay has the same bits", same)
    times = {name: benchmark.device_ms(call, 20) for name, call in graph.calls.items()}
    note("us", {name: benchmark.significant(1e3 * ms) for name, ms in times.items()})
    worst = max(*found["forward"].values(), *found["backward"].values())
    right = worst <= TOLERANCE
    print(f"worst error {worst}, expected at most {TOLERANCE}; forward, backward, step in us: {found['us']}")
    return 0 if right and same else 1


def stages_of(output: Path) -> list[Stage]:
    path = output / "rasterizer-cuda.json"
    words = ["--without", "gsplat", "--cases", *CASES]
    return [
        *at_the_start(),
        Stage("scene", 40, scene_stage),
        Stage("kernel tests", 120, partial(gpu_tests, kernels=True)),
        Stage("rasterizer", 90, partial(rasterizer, path=path, words=lambda: words)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__, 270)
    parser.add_argument("--scene", action="store_true", help="the scene, and nothing else")
    options = parse(parser, arguments)
    if options.scene:
        return try_scene(options.json)
    code = run_script("gpu-first", stages_of(options.output), options)
    return 0 if code == 1 else code


if __name__ == "__main__":
    sys.exit(main())
