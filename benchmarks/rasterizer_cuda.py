"""How fast the CUDA rasterizer is, beside gsplat, Faster-GS and INRIA's, and beside what the device allows.

    python benchmarks/rasterizer_cuda.py [--cases 10k/256/4 ...] [--repeats N] [--seconds S] [--json FILE]
                                         [--faster-gs FOLDER] [--inria FOLDER] [--without NAME]

A case is Gaussians / pixels a side / views: the ball of rasterizer.py, the views around it. The most telling
cases come first; --seconds, Ctrl-C and SIGTERM end the run with what there is.

Timed are the forward pass, the backward pass (gradients of means, quats, scales, opacities and colours) and
the whole step: both and an Adam update of these five, at a rate of 0, so that all steps have the same work.
- graph: ours, replayed from a CUDA graph
- plain: ours, called one by one, with room for the lists known (TileCapacity), so that nothing waits
- autograd: ours through torch's autograd, without knowing the room, and torch's fused Adam
- gsplat, if it is installed; Faster-GS (FasterGSCudaBackend) and INRIA's (diff_gaussian_rasterization), if
  the folder to import them from is given: through autograd, with torch's fused Adam (Faster-GS: its own).
  Those that render one view a call are called for one view after the other.
Ours always renders alpha and depth as well. Every sample is several calls in a row between two CUDA events,
as in a loop; the contestants take turns, medians count. A peer whose image or gradient of the means is
another one is not timed, so that no ratio is of two different pictures.

The floor of a pass is what its arithmetic or its bytes alone need, whichever is more, at rates measured in
the same run: fused multiply-adds of torch's float32 matrix product, bytes read and written by torch's copy.
Counted are, for every contribution (one Gaussian that takes part in one pixel), the floating-point
instructions of blend.h's step (INSTRUCTIONS); for every Gaussian, view, tile entry and pixel, the bytes that
must cross memory once (BYTES).
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import math
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from gpu_machine import hardware, nvidia_smi
from rasterizer import ball_scene
from rasterizer_peers import PARAMETERS, PEERS, Contestant, Peer, find_peers, first_line, our_autograd
from rasterizer_work import BYTES, INSTRUCTIONS, Ceilings, count_contributions, floors
from stages import raise_interrupt
from torch import Tensor

from ddpo3d_fast import kernels
from ddpo3d_fast.files import write_text
from ddpo3d_fast.kernels.adam import AdamGroup, adam_groups
from ddpo3d_fast.kernels.rasterizer import TileCapacity, rasterize_backward, rasterize_forward

DEVICE = torch.device("cuda")
COUNTS, SIDES, VIEWS = (2_000, 10_000, 50_000, 100_000), (128, 256, 512, 1024), (1, 4, 8)
FIRST = ("10k/256/4", "2k/128/1", "50k/512/4", "2k/128/4", "10k/512/8", "50k/256/1", "2k/512/1", "50k/128/4")
OPERATIONS = ("forward", "backward", "step")
IMAGE_TOLERANCE, GRADIENT_TOLERANCE = 1e-2, 5e-2  # relative L2: peers cut Gaussians off elsewhere
SAMPLE_MS, MOST_CALLS = 2.0, 50  # how long a sample takes, and of how many calls it is at most
CASE_SECONDS = 8.0  # after which a case takes no further turns
Result = TypeVar("Result")


class Case(NamedTuple):
    gaussians: int
    side: int  # pixels
    views: int

    def __str__(self) -> str:
        count = f"{self.gaussians // 1000}k" if self.gaussians % 1000 == 0 else str(self.gaussians)
        return f"{count}/{self.side}/{self.views}"


def parse_case(text: str) -> Case:
    """A case as the command line names it; argparse's error where it is none."""
    parts = text.lower().replace("k/", "000/", 1).split("/")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected Gaussians/pixels/views such as 10k/256/4, got {text!r}")
    return Case(*map(int, parts))


def all_cases() -> list[Case]:
    """The grid: the most telling first, then those within the stated aims, the small before the large."""
    first = [parse_case(text) for text in FIRST]
    grid = [Case(n, side, views) for n in COUNTS for side in SIDES for views in VIEWS]
    rest = [case for case in grid if case not in first]
    return first + sorted(rest, key=lambda c: (c.gaussians > 50_000 or c.side > 512, c.views * c.side**2, c))


def scene_of(case: Case) -> dict[str, Any]:
    """The ball on the device, seen from `case.views` cameras around it."""
    scene = seen_around(ball_scene(case.gaussians, case.side), case.views)
    return {name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in scene.items()}


def seen_around(scene: dict[str, Any], views: int) -> dict[str, Any]:
    """The scene of rasterizer.py, seen from as many cameras around it, the first one as there."""
    turn = torch.arange(views) * (2 * math.pi / views)
    viewmats = scene["viewmats"].repeat(views, 1, 1)
    viewmats[:, 0, 0], viewmats[:, 0, 2] = turn.cos(), turn.sin()
    viewmats[:, 2, 0], viewmats[:, 2, 2] = -turn.sin(), turn.cos()
    return scene | {
        "viewmats": viewmats,
        "intrinsics": scene["intrinsics"].repeat(views, 1, 1),
        "backgrounds": scene["backgrounds"].repeat(views, 1),
    }


# ---- The device's clock, and graphs


def synchronize() -> None:
    torch.cuda.synchronize()


def device_ms(call: Callable[[], object], calls: int) -> float:
    """Milliseconds of one of `calls` calls in a row, on the device's clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls


def graph_pool() -> Any:
    """Memory that graphs may share, since they are replayed one after the other."""
    return torch.cuda.graph_pool_handle()


def captured(call: Callable[[], Result], pool: Any) -> tuple[Callable[[], None], Result]:
    """A call as a CUDA graph, once it has run on another stream, as torch asks for: replay and result.

    The result's memory may hold other numbers after the replay of another graph of the pool.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = call()
    return graph.replay, result


# ---- Ours


class OurPair:
    """Our forward and backward passes without autograd, and the step."""

    def __init__(self, scene: dict[str, Any], upstream: Tensor) -> None:
        self.scene, self.upstream = scene, upstream
        self.capacity = TileCapacity()
        self.moments = {
            name: (torch.zeros_like(scene[name]), torch.zeros_like(scene[name])) for name in PARAMETERS
        }
        self.number = torch.ones(1, dtype=torch.int64, device=DEVICE)
        self.forward()
        synchronize()
        self.capacity.grow()
        self.out, self.state = self.forward()
        synchronize()
        if self.capacity.overflowed:
            raise RuntimeError(f"{self.capacity.needed} tile entries after room for {self.capacity.entries}")
        self.entries = self.capacity.needed
        self.longest = int(self.state.native.state[4:8].view(torch.int32))  # the second word of it

    def forward(self) -> tuple[kernels.Rasterization, kernels.RasterizeState]:
        return rasterize_forward(**self.scene, capacity=self.capacity)

    def backward(self) -> kernels.RasterizeGradients:
        return rasterize_backward(self.state, self.upstream, of_cameras=False)

    def step(self) -> None:
        _, state = self.forward()
        gradients = rasterize_backward(state, self.upstream, of_cameras=False)
        groups = [
            AdamGroup(self.scene[name], getattr(gradients, name), *self.moments[name], lr=0.0)
            for name in PARAMETERS
        ]
        adam_groups(groups, self.number, skip=state.overflow)

    def plain(self) -> Contestant:
        calls = {name: getattr(self, name) for name in OPERATIONS}
        return Contestant("plain", self.out.rgb, self.backward().means, calls)

    def graph(self, pool: Any) -> Contestant:
        forward, (out, _) = captured(self.forward, pool)
        forward()
        rgb = out.rgb.clone()
        backward, gradients = captured(self.backward, pool)
        backward()
        means = gradients.means.clone()
        step, _ = captured(self.step, pool)
        calls = {"forward": forward, "backward": backward, "step": step}
        return Contestant("graph", rgb, means, calls)


def measure_ceilings(floats: int = 1 << 28, side: int = 8192) -> Ceilings:
    """What torch's copy of `floats` numbers and its float32 product of `side` x `side` matrices reach."""
    torch.set_float32_matmul_precision("highest")
    if DEVICE.type == "cuda":
        floats = min(floats, torch.cuda.mem_get_info()[0] // 64)
    source, target = torch.rand(2, floats, device=DEVICE)
    a, b, c = torch.rand(3, side, side, device=DEVICE)
    for call in (lambda: target.copy_(source), lambda: torch.mm(a, b, out=c)):
        device_ms(call, 2)
    copy = min(device_ms(lambda: target.copy_(source), 5) for _ in range(5))
    product = min(device_ms(lambda: torch.mm(a, b, out=c), 2) for _ in range(5))
    return Ceilings(8 * floats / copy * 1e3, side**3 / product * 1e3)


# ---- A case


def relative_l2(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-30))


def disagreement(contestant: Contestant, ours: Contestant, background: Tensor) -> dict[str, float]:
    """Relative L2 of the image, what differs from the background alone, and of the gradient of the means."""
    white = background[:, None, None]
    found = {
        "rgb": relative_l2(contestant.rgb - white, ours.rgb - white),
        "grad_means": relative_l2(contestant.grad_means, ours.grad_means),
    }
    return {name: significant(value, 2) for name, value in found.items()}


def sample(
    contestants: Sequence[Contestant], repeats: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Microseconds of every contestant's operations: median, lower and upper quartile.

    The contestants take turns. After three turns the time may end it early.
    """
    calls = {}
    for contestant in contestants:
        for name, call in contestant.calls.items():
            device_ms(call, 2)
            calls[contestant.name, name] = (call, calls_of(device_ms(call, 3)))
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    end = time.monotonic() + seconds
    for turn in range(repeats):
        if turn >= 3 and time.monotonic() > end:
            break
        for key, (call, count) in calls.items():
            samples[key].append(1e3 * device_ms(call, count))
    found: dict[str, dict[str, list[float]]] = {contestant.name: {} for contestant in contestants}
    for (contestant_name, name), values in samples.items():
        found[contestant_name][name] = [significant(value) for value in quartiles(values)]
    return found


def calls_of(ms: float) -> int:
    """How many calls of so many milliseconds make a sample."""
    return max(1, min(MOST_CALLS, math.ceil(SAMPLE_MS / max(ms, 1e-6))))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def measure(case: Case, peers: dict[str, Peer], ceilings: Ceilings, repeats: int) -> dict[str, Any]:
    """Everything about one case, as plain data; `problems` are ours, `notes` say why a peer was not timed."""
    scene = scene_of(case)
    upstream = torch.randn(case.views, case.side, case.side, 3, generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(DEVICE)
    pair = OurPair(scene, upstream)
    plain = pair.plain()
    ours = [plain, pair.graph(graph_pool()), our_autograd(scene, upstream)]
    problems = [
        f"{one.name}: the image or a gradient has other bits than those of {plain.name}"
        for one in ours[1:]
        if not (one.rgb.equal(plain.rgb) and one.grad_means.equal(plain.grad_means))
    ]
    agreement, notes, contestants = {}, {}, ours
    for name, make in peers.items():
        try:
            contestant = make(scene, upstream)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            notes[name] = first_line(error)
            continue
        found = agreement[name] = disagreement(contestant, plain, scene["backgrounds"])
        if found["rgb"] <= IMAGE_TOLERANCE and found["grad_means"] <= GRADIENT_TOLERANCE:
            contestants = [*contestants, contestant]
        else:
            notes[name] = f"not timed, since it computes something else: relative L2 {found}"

    microseconds = sample(contestants, repeats, CASE_SECONDS)
    contributions = count_contributions(scene)
    pixels = case.views * case.side**2
    floor = floors(case.gaussians, case.views, pixels, pair.entries, contributions, ceilings)
    return {
        "case": str(case),
        "entries": pair.entries,
        "longest_list": pair.longest,
        "contributions": contributions,
        "us": microseconds,
        "floor_us": {name: significant(value, 3) for name, value in floor.items()},
        "ratios": ratios(microseconds),
        "agreement": agreement,
        "notes": notes,
        "problems": problems,
    }


def both(times: dict[str, list[float]]) -> float:
    """Forward and backward pass, medians."""
    return times["forward"][0] + times["backward"][0]


def ratios(microseconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """How many times longer a peer takes than ours: both passes against graph, plain and autograd, the step
    against graph."""
    graph = microseconds["graph"]
    found = {}
    for name in PEERS:
        if name in microseconds:
            peer = microseconds[name]
            found[name] = {
                "graph": both(peer) / both(graph),
                "plain": both(peer) / both(microseconds["plain"]),
                "autograd": both(peer) / both(microseconds["autograd"]),
                "step": peer["step"][0] / graph["step"][0],
            }
    return {name: {key: significant(v, 3) for key, v in row.items()} for name, row in found.items()}


# ---- What is printed and written

HEADER = (
    f"{'':12} {'entries':>8} {'contrib.':>8} | {'graph, us':^23} | {'x floor':^11}"
    f" | {'plain, us':^23} | {'autograd':>8}",
    f"{'case':12} {'':>8} {'':>8} | {'fwd':>7} {'bwd':>7} {'step':>7} | {'fwd':>5} {'bwd':>5}"
    f" | {'fwd':>7} {'bwd':>7} {'step':>7} | {'fwd+bwd':>8}",
)


def table_head(peers: Iterable[str]) -> str:
    above = "".join(f" | {f'{name}, times ours':^28}" for name in peers)
    below = "".join(f" | {'us':>7} {'graph':>6} {'plain':>6} {'step':>6}" for _ in peers)
    return f"{HEADER[0]}{above}\n{HEADER[1]}{below}"


def table_row(row: dict[str, Any], peers: Iterable[str]) -> str:
    """One line: ours in microseconds, the passes over their floors, and how many times longer each peer
    takes."""
    times = row["us"]
    graph, plain = times["graph"], times["plain"]

    def three(of: dict[str, list[float]]) -> str:
        return " ".join(f"{of[name][0]:7.1f}" for name in OPERATIONS)

    distance = " ".join(f"{graph[name][0] / row['floor_us'][name]:5.1f}" for name in OPERATIONS[:2])
    line = (
        f"{row['case']:12} {short(row['entries']):>8} {short(row['contributions']):>8}"
        f" | {three(graph)} | {distance} | {three(plain)} | {both(times['autograd']):8.1f}"
    )
    for name in peers:
        if ratio := row["ratios"].get(name):
            cells = " ".join(f"{ratio[key]:6.1f}" for key in ("graph", "plain", "step"))
            line += f" | {both(times[name]):7.0f} {cells}"
        else:
            line += f" | {'-':>7} {'-':>6} {'-':>6} {'-':>6}"
    return line


def short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1_000_000 else f"{count / 1e3:.1f} k"


def as_json(report: dict[str, Any]) -> str:
    """Indented, but a case on one line."""
    head = json.dumps({name: value for name, value in report.items() if name != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in report["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=parse_case, nargs="+", metavar="N/PIXELS/VIEWS")
    parser.add_argument("--repeats", type=int, default=20, help="turns of a case (default 20)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin no further case after this time"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, after every case")
    parser.add_argument("--faster-gs", type=Path, metavar="FOLDER", help="where FasterGSCudaBackend is")
    parser.add_argument("--inria", type=Path, metavar="FOLDER", help="where diff_gaussian_rasterization is")
    parser.add_argument(
        "--without", action="append", choices=list(PEERS), default=[], help="a peer to leave out"
    )
    parser.add_argument("--probe", choices=list(PEERS), help="run this peer once, a small case, and end")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats: expected 1 or more, got {options.repeats}")
    if not options.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds}")
    return options


def probe(name: str, options: argparse.Namespace) -> int:
    """Whether a peer can be imported and runs; 0 if so. It may compile itself meanwhile."""
    found, absent = find_peers(options)
    if name not in found:
        print(absent[name])
        return 1
    case = Case(2_000, 128, 2)
    contestant = found[name](scene_of(case), torch.ones(2, 128, 128, 3, device=DEVICE))
    for call in contestant.calls.values():
        call()
    synchronize()
    print(f"{name} runs")
    return 0 if bool(contestant.rgb.isfinite().all()) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, raise_interrupt)
    if options.probe:
        return probe(options.probe, options)
    end = time.monotonic() + options.seconds
    cases = options.cases or all_cases()
    peers, absent = find_peers(options)
    report: dict[str, Any] = {
        "hardware": hardware(),
        "peers": {name: version(name) for name in peers},
        "absent": absent,
        "instructions": INSTRUCTIONS,
        "bytes": BYTES,
        "left_out": [str(case) for case in cases],
        "failed": {},
        "rows": [],
    }
    print(", ".join(f"{key} {value}" for key, value in report["hardware"].items()))
    for name, reason in absent.items():
        print(f"without {name}: {reason}")
    code = 0
    try:
        ceilings = measure_ceilings()
        report["ceilings"] = {name: significant(value) for name, value in ceilings._asdict().items()}
        print(f"ceilings: {ceilings.bytes_per_s / 1e9:.0f} GB/s, {2 * ceilings.fma_per_s / 1e12:.1f} TFLOP/s")
        print(table_head(peers), flush=True)
        for case in cases:
            if time.monotonic() > end:
                break
            try:
                row = measure(case, peers, ceilings, options.repeats)
            except torch.cuda.OutOfMemoryError as error:
                report["failed"][str(case)] = first_line(error)
                print(f"{case!s:12} {first_line(error)}", flush=True)
            else:
                report["rows"].append(row)
                print(table_row(row, peers), flush=True)
                for line in [*row["problems"], *(f"{name}: {text}" for name, text in row["notes"].items())]:
                    print(f"{'':12} {line}", flush=True)
            report["left_out"].remove(str(case))
            save(options.json, report)
            gc.collect()
            torch.cuda.empty_cache()
    except KeyboardInterrupt:
        code = 130
        print("interrupted")
    except Exception as error:  # such as a CUDA error, after which the device cannot be used
        code = 1
        traceback.print_exc()
        report["failed"]["all that follow"] = first_line(error)
    report["clocks_after"] = nvidia_smi("clocks.sm", "clocks.mem")
    save(options.json, report)
    if left := report["left_out"]:
        print(f"{len(left)} of {len(cases)} cases left out: {' '.join(left)}")
    return code or int(bool(report["failed"]) or any(row["problems"] for row in report["rows"]))


def version(peer: str) -> str:
    """A peer's version, if it is installed as a package."""
    try:
        return importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError:
        return "from the given folder"


def save(path: Path | None, report: dict[str, Any]) -> None:
    if path:
        write_text(path, as_json(report))


if __name__ == "__main__":
    sys.exit(main())
