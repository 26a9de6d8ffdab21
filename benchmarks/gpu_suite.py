"""Everything that only a GPU can show, in one command of ten minutes: gpu_first.py and gpu_loop.py in one.

    python benchmarks/gpu_suite.py [--seconds 560] [--output benchmarks/results]
                                   [--faster-gs PATH] [--inria PATH]

The stages of both, figures first and sanitizers last; the rasterizer is timed once, beside its peers. The
docstrings of the two say what they do, what they need and what to carry. OUTPUT/gpu-suite.json is written
before each stage begins; rasterizer-peers-cuda.json and diffusion-cuda.json lie beside it. Exit code 0 if
everything passed, 1 if not, 2 if OUTPUT cannot be written, 130 if interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

import gpu_first
import gpu_loop
from gpu_stages import parse, parser_of, run_script


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(parser_of(__doc__, 560), arguments)
    stages = gpu_loop.stages_of(options)
    names = {stage.name for stage in stages}
    first = [stage for stage in gpu_first.stages_of(options.output) if stage.name not in names]
    place = next(n for n, stage in enumerate(stages) if stage.name == "loop")
    return run_script("gpu-suite", [*stages[:place], *first, *stages[place:]], options)


if __name__ == "__main__":
    sys.exit(main())
