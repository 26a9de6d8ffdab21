"""What a person or a script sees of a batch, while it goes on and at its end."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ddpo3d_fast.batch.jobs import Job
from ddpo3d_fast.batch.summary import Summary
from ddpo3d_fast.batch.worker import Outcome
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.progress import Style

_EVERY = 1.0  # seconds between two writings of summary.csv, and between two questions to the workers


class Teller:
    """Tells of runs in one of `progress.Style`, and keeps their summary.

    A bar and lines go to stderr, JSON to stdout. Whoever is done with it leaves its block."""

    def __init__(self, style: Style, summary: Summary) -> None:
        self.style, self.summary = style, summary
        self._stdout = sys.stdout  # Ray writes to what is in its place later
        self._bar: Any = None
        self._began = time.perf_counter()
        self._asked = self._written = 0.0
        self._failures: list[str] = []
        self._told_warnings: set[str] = set()

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def begins(self, count: int, workers: int) -> None:
        """So many runs are to be made, so many at a time."""
        if self.style == "lines":
            self._say(f"{count} runs, {workers} at a time")
        elif self.style == "bar":
            from tqdm import tqdm

            self._bar = tqdm(
                total=count,
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format="{n:.1f} of {total} runs {bar:20} {remaining} left{postfix}",
            )

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Something has become of a run."""
        self.summary.note(job, outcome)
        row, name = self.summary.rows[job.folder], f"{job.config.prompt!r}, seed {job.config.seed}"
        if self.style == "json":
            print(
                json.dumps({"stage": "run", "where": job.where, **vars(row)}), file=self._stdout, flush=True
            )
        for warning in outcome.warnings:
            if self.style != "quiet" and warning not in self._told_warnings:
                self._told_warnings.add(warning)
                self._say(f"ddpo3d-fast: {warning}")
        if outcome.state == "failed":
            self._failures.append(f"{job.where}, {name}: {row.message}")
        elif self.style == "lines" and outcome.state == "done":
            number, count = self.summary.count("done"), len(self.summary.rows)
            reward = f", reward {row.reward}" if row.reward else ""
            self._say(f"{number}/{count}  {name}: {row.seconds} s{reward}")
        now = time.perf_counter()
        if now - self._written > _EVERY:
            with contextlib.suppress(InputError):  # said at the end, if it is still so
                self.summary.write_csv()
            self._written = now

    def look(self, under_way: Callable[[], list[dict[str, Any]]]) -> None:
        """Shows what runs are at; `under_way` gives their last events."""
        now = time.perf_counter()
        if self._bar is None or now - self._asked < _EVERY:
            return
        self._asked, parts = now, [event for event in under_way() if "step" in event]
        ended = self._bar.total - self.summary.count("waiting")
        self._bar.n = ended + sum(event["step"] / event["steps"] for event in parts)
        self._bar.set_postfix_str(", ".join(f"step {each['step']}/{each['steps']}" for each in parts[:4]))

    def sum_up(self) -> bool:
        """Writes the summary, names what failed, and returns whether anything did."""
        self.__exit__(None, None, None)
        files, seconds = [], time.perf_counter() - self._began
        try:
            files = self.summary.write()
        except InputError as error:
            self._failures.append(str(error))
        for failure in self._failures:
            self._say(f"ddpo3d-fast: {' '.join(failure.splitlines())}")
        done, failed, count = self.summary.count("done"), self.summary.count("failed"), len(self.summary.rows)
        if self.style == "json":
            facts = {"stage": "done", "runs": count, "done": done, "failed": failed, "seconds": seconds}
            print(
                json.dumps({**facts, "files": [str(path) for path in files]}), file=self._stdout, flush=True
            )
        elif self.style != "quiet":
            names = ", ".join(path.name for path in files)
            print(f"{self.summary.output}: {done} of {count} runs done in {seconds:.1f} s: {names}")
        return bool(self._failures)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(line, file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.refresh()
