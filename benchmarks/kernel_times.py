"""Where a step of the rasterizer spends its time on a GPU: every kernel, inside a CUDA graph's replays.

    python benchmarks/kernel_times.py [--cases 2k/128/1 ...] [--tree PATH ...] [--json FILE]
                                      [--rounds N] [--seconds S]

The step is that of rasterizer_cuda.py: forward pass, backward pass, Adam. torch.profiler (CUPTI) times the
kernels; the graphs' own times, which no profiler slows down, come from CUDA events. A kernel that begins
while the one before still runs waits in it: "alone" counts from the end of the one before, so that the sum is
the step without the gaps.

--tree measures the build of another checkout as well, in a process of its own that imports ddpo3d_fast from
there. The builds take turns, --rounds of them a case. What fails is told, and the rest goes on: FILE is
written after every case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
CASES = ("2k/128/1", "2k/128/4", "10k/256/4", "50k/512/4")
MARK = "@kernel_times "  # what a worker answers begins with it; other output may stand between
ANSWER_SECONDS = 90.0
PROFILED = 20  # replays a round
DEVICE_EVENTS = ("kernel", "gpu_memset", "gpu_memcpy")  # categories of the profiler's trace


# ---- The measured side: a process for each build


def short_name(name: str) -> str:
    """ "blend_kernel<16, false>" of a demangled kernel; other events keep their names."""
    plain = re.sub(r"\((int|bool)\)", "", name)
    plain = plain.replace("(anonymous namespace)::", "").replace("<unnamed>::", "")
    found = re.search(r"(\w+(?:<[^()]*>)?)\(", plain)
    return found.group(1) if found and not name.startswith(("Mem", "mem")) else name


def kernel_rows(events: Iterable[dict[str, Any]], replays: int) -> list[dict[str, Any]]:
    """Every kernel of a replay, in order: name, `us` and `alone_us`, a number for each replay.

    `events` are those of a chrome trace. ValueError where they do not divide into so many equal replays.
    """
    device = [event for event in events if event.get("cat") in DEVICE_EVENTS and "dur" in event]
    device.sort(key=lambda event: (event["ts"], event["ts"] + event["dur"]))
    each, rest = divmod(len(device), replays)
    if not each or rest:
        raise ValueError(f"{len(device)} kernels in the trace of {replays} replays: expected a multiple")
    names = [short_name(event["name"]) for event in device]
    if names != names[:each] * replays:
        raise ValueError(f"the replays do not have the same kernels: {sorted(set(names))}")
    rows: list[dict[str, Any]] = [{"name": name, "us": [], "alone_us": []} for name in names[:each]]
    before = -math.inf
    for position, event in enumerate(device):
        row, end = rows[position % each], event["ts"] + event["dur"]
        row["us"].append(event["dur"])
        row["alone_us"].append(max(0.0, end - max(event["ts"], before)))
        before = max(before, end)
    return rows


def profiled(replay: Callable[[], object], replays: int) -> list[dict[str, Any]]:
    """The kernels of `replays` replays (kernel_rows)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(replays):
            replay()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return kernel_rows(json.loads(path.read_text())["traceEvents"], replays)


class Build:
    """The build that this process imports, one case at a time."""

    def __init__(self) -> None:
        import rasterizer_cuda
        import torch

        self.benchmark, self.torch = rasterizer_cuda, torch
        self.calls: dict[str, Callable[[], object]] = {}

    def prepare(self, case: str) -> dict[str, Any]:
        """Captures the graphs of a case."""
        self.calls = {}
        parsed = self.benchmark.parse_case(case)
        shape = (parsed.views, parsed.side, parsed.side, 3)
        upstream = self.torch.randn(shape, generator=self.torch.Generator().manual_seed(1))
        upstream = upstream.to(self.benchmark.DEVICE)
        pair = self.benchmark.OurPair(self.benchmark.scene_of(parsed), upstream)
        self.calls = pair.graph(self.benchmark.graph_pool()).calls
        for call in self.calls.values():
            self.benchmark.device_ms(call, 3)
        return {"entries": pair.entries, "longest_list": pair.longest}

    def time(self) -> dict[str, Any]:
        """A round: the graphs' microseconds, and the step's kernels, or why there are none."""
        device_ms, calls_of = self.benchmark.device_ms, self.benchmark.calls_of
        found: dict[str, Any] = {
            "graph_us": {
                name: 1e3 * device_ms(call, calls_of(device_ms(call, 3))) for name, call in self.calls.items()
            }
        }
        try:
            found["kernels"] = profiled(self.calls["step"], PROFILED)
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            found["problem"] = f"{type(error).__name__}: {error}"
        return found


def work(tree: Path) -> int:
    """Answers what comes on stdin until it ends: {"do": "prepare", "case": ...} or {"do": "time"}."""

    def answer(value: dict[str, Any]) -> None:
        print(f"\n{MARK}{json.dumps(value)}", flush=True)

    try:
        import ddpo3d_fast

        found = Path(str(ddpo3d_fast.__file__)).resolve()
        if tree.resolve() not in found.parents:
            raise ImportError(f"expected ddpo3d_fast of {tree}, got {found}")
        build = Build()
        from gpu_machine import hardware

        answer({"hardware": hardware()})
    except (Exception, SystemExit) as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer(build.prepare(message["case"]) if message["do"] == "prepare" else build.time())
        except Exception as error:  # told to whoever asked, who goes on with the next case
            answer({"error": f"{type(error).__name__}: {error}"})
    return 0


# ---- The side that asks


class Worker:
    """A process that measures one build."""

    def __init__(self, tree: Path) -> None:
        paths = [str(tree), os.environ.get("PYTHONPATH", "")]
        self.output = b""
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--worker", str(tree)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tree,
        )

    def answer(self, seconds: float) -> dict[str, Any]:
        """What it says next; {"error": ...} where it says nothing in time, and then it is ended."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while True:
                line, found, rest = self.output.partition(b"\n")
                if found:
                    self.output = rest
                    text = line.decode(errors="replace")
                    if text.startswith(MARK):
                        return dict(json.loads(text[len(MARK) :]))
                    continue
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.close()
                    return {"error": f"no answer within {seconds:.0f} s"}
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    return {"error": f"its process ended with exit code {self.process.wait()}"}
                self.output += data

    def ask(self, seconds: float, **message: str) -> dict[str, Any]:
        """The answer to a message (work)."""
        if self.process.poll() is not None:
            return {"error": f"its process ended with exit code {self.process.returncode}"}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            return {"error": str(error)}
        return self.answer(seconds)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all rounds: `graph_us` by operation, and the kernels with `us` and `alone_us`."""
    found: dict[str, Any] = {
        "graph_us": {
            name: round(statistics.median(one["graph_us"][name] for one in rounds), 2)
            for name in rounds[0]["graph_us"]
        },
        "kernels": [],
        "problems": sorted({one["problem"] for one in rounds if "problem" in one}),
    }
    with_kernels = [one["kernels"] for one in rounds if "kernels" in one]
    for rows in zip(*with_kernels, strict=False):
        medians = {
            key: round(statistics.median(value for row in rows for value in row[key]), 2)
            for key in ("us", "alone_us")
        }
        found["kernels"].append({"name": rows[0]["name"], **medians})
    return found


def measure(case: str, workers: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """A case by every build, round by round; a build that fails has `error` instead of its figures."""
    found: dict[str, dict[str, Any]] = {}
    kept: dict[str, list[dict[str, Any]]] = {}
    for name, worker in workers.items():
        found[name] = worker.ask(ANSWER_SECONDS, do="prepare", case=case)
        kept[name] = []
    for _ in range(rounds):
        for name, worker in workers.items():
            if "error" not in found[name]:
                answer = worker.ask(ANSWER_SECONDS, do="time")
                if "error" in answer:
                    found[name]["error"] = answer["error"]
                else:
                    kept[name].append(answer)
    for name, rows in kept.items():
        if rows:
            found[name] |= summary(rows)
    return found


def table(case: str, found: dict[str, Any]) -> str:
    """Microseconds of a case: the graphs, then the kernels of a step in their order."""
    lines = [case]
    for name, figures in found.items():
        if "error" in figures:
            lines.append(f"  {name}: {figures['error']}")
        if graph := figures.get("graph_us"):
            lines.append(f"  {name}: " + ", ".join(f"{key} {value:.1f}" for key, value in graph.items()))
        lines += [f"    {problem}" for problem in figures.get("problems", ())]
        for row in figures.get("kernels", ()):
            lines.append(f"    {row['name']:44} {row['us']:8.2f} alone {row['alone_us']:8.2f}")
        if rows := figures.get("kernels"):
            lines.append(f"    {'sum':44} {'':8} alone {sum(row['alone_us'] for row in rows):8.2f}")
    return "\n".join(lines)


def commit_of(tree: Path) -> str:
    """What git calls the checkout; empty where it cannot say."""
    words = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="N/PIXELS/VIEWS")
    parser.add_argument("--tree", type=Path, action="append", default=[], help="another checkout, built")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each build, a case (default 5)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no case after this time")
    parser.add_argument("--json", type=Path, help="write the figures here, after every case")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {options.rounds}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.worker:
        return work(options.worker)
    begun = time.monotonic()
    trees = {"this": HERE.parents[1], **{str(tree): tree.resolve() for tree in options.tree}}
    report: dict[str, Any] = {
        "commits": {name: commit_of(tree) for name, tree in trees.items()},
        "hardware": {},
        "failed": {},
        "cases": {},
    }
    workers = {name: Worker(tree) for name, tree in trees.items()}

    def save() -> None:
        if options.json:
            unfinished = options.json.with_suffix(".tmp")
            unfinished.write_text(json.dumps(report, indent=1) + "\n")
            unfinished.replace(options.json)

    try:
        for name, worker in list(workers.items()):
            answer = worker.answer(ANSWER_SECONDS)
            if "error" in answer:
                report["failed"][name] = answer["error"]
                print(f"{name}: {answer['error']}", flush=True)
                workers.pop(name).close()
            else:
                report["hardware"] = answer["hardware"]
        save()
        for case in options.cases if workers else []:
            if time.monotonic() - begun > options.seconds:
                report["failed"][case] = "no time left"
                continue
            report["cases"][case] = measure(case, workers, options.rounds)
            print(table(case, report["cases"][case]), flush=True)
            save()
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        for worker in workers.values():
            worker.close()
        save()
    errors = [found for case in report["cases"].values() for found in case.values() if "error" in found]
    return int(bool(report["failed"] or errors))


if __name__ == "__main__":
    sys.exit(main())
