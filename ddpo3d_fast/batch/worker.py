"""What runs in a process of its own: one run after the other, with the models of the one before."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

from ddpo3d_fast.batch.jobs import Job
from ddpo3d_fast.errors import FallbackWarning, InputError, first_line


@dataclass
class Outcome:
    """What became of a run."""

    state: str
    """done; earlier: was done before; stopped: was asked to; failed: for what is wrong with it; broken: what
    went wrong may not happen again, in another process"""
    message: str = ""  # why, in a line
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    host: str = ""  # machine of the worker


class Worker:
    """Makes runs, one at a time. `told` and `stop` are called from other threads meanwhile.

    Torch and all that needs it are imported by the first run, not with this file.
    """

    def __init__(self, threads: int) -> None:
        """`threads`: of the kernels and of ONNX Runtime. No asset depends on them."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from ddpo3d_fast.build import Models
        from ddpo3d_fast.kernels import set_num_threads

        set_num_threads(threads)
        self._models, self._stop, self._told = Models(), threading.Event(), dict[str, Any]()

    def ready(self) -> int:
        """The number of its process."""
        return os.getpid()

    def told(self) -> dict[str, Any]:
        """The last event of the run."""
        return self._told

    def stop(self) -> None:
        """Ends the run as Ctrl-C does, after the step that it is in; no further one begins."""
        self._stop.set()

    def make(self, job: Job) -> Outcome:
        """Makes a run, or goes on with what there is of it. Never raises."""
        self._told, began = {}, time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = self._make(job)
        outcome.seconds = time.perf_counter() - began
        outcome.warnings = [
            str(each.message) for each in caught if issubclass(each.category, FallbackWarning)
        ]
        outcome.host = socket.gethostname()
        return outcome

    def _make(self, job: Job) -> Outcome:
        from ddpo3d_fast.run import RunFolder

        if self._stop.is_set():
            return Outcome("stopped")
        try:
            state = RunFolder(job.folder, job.config).progress()
            if state == "done":
                return Outcome("earlier")
            try:
                self._generate(job, resume=state == "begun")
            except InputError as error:
                if state != "begun" or not str(error).startswith("--resume: "):
                    raise
                self._generate(job, resume=False)  # what there was cannot be gone on with
            return Outcome("done")
        except KeyboardInterrupt:
            return Outcome("stopped")
        except InputError as error:
            return Outcome("failed", str(error))
        except MemoryError:
            return Outcome("broken", "not enough memory")
        except Exception as error:
            return Outcome("broken", f"{type(error).__name__}: {first_line(error)}")

    def _generate(self, job: Job, resume: bool) -> None:
        from ddpo3d_fast.generate import generate
        from ddpo3d_fast.run import RunFolder

        if resume:
            folder = RunFolder(job.folder, job.config, argument="--resume")
        else:
            folder = RunFolder.create(dataclasses.replace(job.config, output=job.folder))
        stopped = self._stop.is_set
        generate(job.config, folder, self._told.update, resume, self._models, lambda run: stopped())
