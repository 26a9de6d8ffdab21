"""Runs the stages of a script one after the other, each in processes of its own and within its own time.

What there is of a stage is written before the next one begins. One that crashes, hangs or lacks a tool takes
nothing else with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ddpo3d_fast.files import write_text

ROOT = Path(__file__).resolve().parents[1]
GRACE = 10.0  # seconds that a stage has to end by itself when it is told to
KEPT = 40  # last lines of a stage that are kept


@dataclass
class Outcome:
    """How a command ended."""

    code: int | None  # None: it was told to end
    seconds: float
    lines: list[str]  # the last ones of its output
    interrupted: bool = False

    @property
    def status(self) -> str:
        if self.interrupted:
            return "interrupted"
        return "cut off" if self.code is None else "failed" if self.code else "passed"

    def last(self, pattern: str = r"\S") -> str:
        """The last line that holds the pattern, or nothing."""
        return next((line.strip() for line in reversed(self.lines) if re.search(pattern, line)), "")


@dataclass
class Stage:
    """One line of the table."""

    name: str
    seconds: float  # at most
    work: Callable[[Stage, float], Outcome]  # has so many seconds, and fills in `detail` and `figures`
    background: bool = False  # it runs beside the stages that follow
    after: tuple[str, ...] = ()  # background stages that this one waits for, as long as its own time is left
    status: str = "not run"  # or running, passed, failed, cut off, interrupted
    took: float = 0.0  # seconds
    detail: str = ""
    figures: Any = None  # plain data
    lines: list[str] = field(default_factory=list)  # its last words, if it did not pass

    def row(self) -> dict[str, Any]:
        row = {"stage": self.name, "status": self.status, "seconds": round(self.took, 1)}
        rest = {"detail": self.detail[:400], "figures": self.figures, "lines": self.lines[-KEPT:]}
        return row | {name: value for name, value in rest.items() if value}


# ---- Commands

_running: set[subprocess.Popen[str]] = set()


def run(command: Sequence[object], seconds: float, echo: bool = True, **environment: str) -> Outcome:
    """Runs a command in the repository for at most so many seconds and shows its output as it comes.

    Told to end are all processes that it has started: SIGTERM first, SIGKILL after GRACE seconds.
    """
    start = time.monotonic()
    lines: deque[str] = deque(maxlen=KEPT)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(127, 0.0, [f"{command[0]}: {error.strerror}"])

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if echo:
                print(f"  {lines[-1]}", flush=True)

    reader = threading.Thread(target=read, daemon=True)
    _running.add(process)
    reader.start()
    code, interrupted = None, False
    try:
        code = process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        pass
    except KeyboardInterrupt:
        interrupted = True
    end(process)
    _running.discard(process)
    reader.join(GRACE)
    return Outcome(code, time.monotonic() - start, list(lines), interrupted)


def end(process: subprocess.Popen[str]) -> None:
    """Ends a command and what it has started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        if process.poll() is not None:
            number, patience = signal.SIGKILL, 0.0  # what it may have left behind
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
        if number == signal.SIGKILL:
            return


def end_all() -> None:
    for process in list(_running):
        end(process)


def raise_interrupt(*_: object) -> NoReturn:
    """A handler that makes SIGTERM what Ctrl-C is."""
    raise KeyboardInterrupt


# ---- Stages


def run_stages(stages: Sequence[Stage], seconds: float, path: Path) -> int:
    """Runs the stages within so many seconds, writing all that is known to `path` and printing a table after
    each. Returns 130 if interrupted, else 1 if any did not pass, else 0. InputError if `path` cannot be
    written."""
    end_of_all, threads = time.monotonic() + seconds, {}
    lock = threading.Lock()

    def left() -> float:
        return end_of_all - time.monotonic()

    def tell() -> None:
        with lock:
            text = json.dumps({"stages": [stage.row() for stage in stages]}, indent=1)
            write_text(path, text + "\n")
            print(f"\n{table(stages)}\n", flush=True)

    def do(stage: Stage) -> None:
        most = min(stage.seconds, left())
        if most <= 0:
            stage.detail = "no time was left"
        else:
            print(f"{stage.name}: at most {most:.0f} s", flush=True)
            stage.status = "running"
            outcome = attempt(stage, most)
            stage.status, stage.took = outcome.status, outcome.seconds
            stage.lines = [] if stage.status == "passed" else outcome.lines
            if stage.status == "cut off":
                stage.detail = f"after {stage.took:.0f} s; {stage.detail or outcome.last()}"
        tell()

    tell()  # before anything has been waited for: `path` may not be writable
    try:
        for stage in stages:
            if stage.background:
                threads[stage.name] = threading.Thread(target=do, args=(stage,), daemon=True)
                threads[stage.name].start()
                continue
            waited_for = [threads[name] for name in stage.after if name in threads]
            for thread in waited_for:
                thread.join(max(0.0, left() - stage.seconds))
            if any(thread.is_alive() for thread in waited_for):
                end_all()  # nothing else is running
                for thread in waited_for:
                    thread.join(GRACE)
            do(stage)
            if stage.status == "interrupted":
                return 130
    except KeyboardInterrupt:
        return 130
    finally:
        end_all()
        for thread in threads.values():
            thread.join(GRACE)
        tell()
    return int(any(stage.status != "passed" for stage in stages))


def attempt(stage: Stage, seconds: float) -> Outcome:
    """The stage's work; what is wrong with it itself ends only the stage."""
    start = time.monotonic()
    try:
        return stage.work(stage, seconds)
    except Exception as error:
        stage.detail = f"{type(error).__name__}: {error}"
        return Outcome(1, time.monotonic() - start, traceback.format_exc().splitlines())


def table(stages: Sequence[Stage]) -> str:
    width = max(len(stage.name) for stage in stages)
    lines = [f"{'stage':{width}}  {'status':11}  {'seconds':>7}"]
    for stage in stages:
        line = f"{stage.name:{width}}  {stage.status:11}  {stage.took:7.1f}  {stage.detail[:200]}"
        lines.append(line.rstrip())
    return "\n".join(lines)
