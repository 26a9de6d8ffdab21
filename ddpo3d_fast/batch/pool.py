"""Workers on Ray, and what they are given to do; those that die are replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import sys
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo3d_fast import extras
from ddpo3d_fast.batch.jobs import Job
from ddpo3d_fast.batch.worker import Outcome, Worker
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.info import cores, gpu_models, missing_for_cuda

ATTEMPTS = 3  # to make a run whose worker dies, and to start a worker
_STORE = 80 << 20  # bytes of Ray's shared memory, which holds nothing of ours; it wants 75 MiB
_POLL = 0.5  # seconds between two looks at what else has happened
# A Ray of this machine alone: nothing is reported to its makers, and no port is open to other machines.
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # false: all addresses are the loopback's
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def load_ray(address: str | None) -> Any:
    """Ray's module, for `cluster`; it reads its environment when it is imported. Raises InputError where it
    is missing."""
    if address is None and "ray" not in sys.modules:
        # With a token of its own, where Ray would leave one in the user's home.
        os.environ.update(_LOCAL | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    return extras.load("cluster", "ray", "batch")


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray's module, connected to the cluster at an address, or to one of this machine that ends with the
    block. Raises InputError where Ray is missing, or there is no such cluster."""
    ray = load_ray(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        gpus = 0 if missing_for_cuda() else len(gpu_models())
        options |= {"num_cpus": cores(), "num_gpus": gpus, "object_store_memory": _STORE}
        options |= {"include_dashboard": False, "address": "local"}
    else:
        _check_reachable(address)
        options["address"] = address
    # Whatever it is told, Ray prints of dead workers to stdout, which may be JSON.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            if address is None:
                raise
            expected = f"--address: expected a Ray cluster, got {address!r}"
            raise InputError(f"{expected} ({first_line(error)})") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises InputError where nobody listens at HOST:PORT or ray://HOST:PORT; Ray would wait for minutes."""
    if address == "auto":
        return
    place = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((place.hostname or "", place.port or 0), timeout=5):
            pass
    except (OSError, ValueError, OverflowError) as error:
        expected = f"--address: expected auto or HOST:PORT of a Ray cluster, got {address!r}"
        raise InputError(f"{expected} ({first_line(error)})") from error


@dataclass
class _Seat:
    """A worker, and the call that it has not answered: `ready`, or `make` of a job."""

    worker: Any
    call: Any
    job: Job | None = None


class Pool:
    """Workers for jobs; `outcomes` is to be called once."""

    def __init__(self, ray: Any, cpus: float, gpus: float, jobs: Sequence[Job]) -> None:
        """Workers have `cpus` cores and `gpus` GPUs each, as Ray counts them: as many as the cluster has room
        for, and jobs. Raises InputError where it has room for none."""
        self._ray, self._jobs, have = ray, deque(jobs), ray.cluster_resources()
        for flag, name, need in (("--cpus", "CPU", cpus), ("--gpus", "GPU", gpus)):
            if need > have.get(name, 0):
                raise InputError(
                    f"{flag}: expected at most the {have.get(name, 0):g} there are, got {need:g}"
                )
        room = min(have[name] // need for name, need in (("CPU", cpus), ("GPU", gpus)) if need)
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 3, "max_restarts": 0}
        self._threads = max(1, int(cpus))
        self._attempts: dict[Path, int] = {}  # of jobs, by their folders, that ended with their workers
        self._not_started = ""  # why the last worker could not be started
        self._lost_starts = 0  # on end
        self._seats = [self._seat() for _ in range(min(int(room), len(jobs)))]

    @property
    def size(self) -> int:
        """The number of workers."""
        return len(self._seats)

    def outcomes(
        self, stopped: Callable[[], bool], look: Callable[[], None]
    ) -> Iterator[tuple[Job, Outcome]]:
        """What becomes of each job, as it does. Once `stopped` says so, workers are told to end after the
        step they are in, and jobs that were not begun are not among the outcomes. `look` is called now and
        then."""
        told = False
        while any(seat.job for seat in self._seats) or (self._jobs and self._seats):
            if stopped() and not told:
                told = True
                self._jobs.clear()
                for seat in self._seats:
                    seat.worker.stop.remote()
            done, _ = self._ray.wait([seat.call for seat in self._seats], timeout=_POLL)
            for seat in [seat for seat in self._seats if seat.call in done]:
                yield from self._answered(seat)
            look()
        for job in self._jobs:
            yield job, Outcome("failed", f"no worker could be started: {self._not_started}")

    def under_way(self) -> list[dict[str, Any]]:
        """The last event of every run that is being made."""
        answers, found = [seat.worker.told.remote() for seat in self._seats if seat.job], []
        for answer in answers:
            with contextlib.suppress(self._ray.exceptions.RayError):
                found.append(self._ray.get(answer, timeout=_POLL))
        return found

    def _seat(self) -> _Seat:
        worker = self._ray.remote(Worker).options(**self._options).remote(self._threads)
        return _Seat(worker, worker.ready.remote())

    def _answered(self, seat: _Seat) -> Iterator[tuple[Job, Outcome]]:
        """Takes what a worker has answered, and gives it something else to do, or its seat to another."""
        job, seat.job = seat.job, None
        try:
            outcome = self._ray.get(seat.call)
        except self._ray.exceptions.RayError as error:
            outcome = Outcome("broken", f"its worker died ({_why(error)})")
        broken = isinstance(outcome, Outcome) and outcome.state == "broken"
        if job is None:
            self._lost_starts = self._lost_starts + 1 if broken else 0
            self._not_started = outcome.message if broken else ""
        elif broken and self._attempts.get(job.folder, 1) < ATTEMPTS:
            self._attempts[job.folder] = self._attempts.get(job.folder, 1) + 1
            self._jobs.append(job)
        else:
            yield job, Outcome("failed", f"{outcome.message}, {ATTEMPTS} times") if broken else outcome
        if broken or not self._jobs:
            self._seats.remove(seat)  # without a handle, the worker ends
            self._ray.kill(seat.worker)
            if self._jobs and self._lost_starts < ATTEMPTS:
                self._seats.append(self._seat())
        else:
            seat.job = self._jobs.popleft()
            seat.call = seat.worker.make.remote(seat.job)


def _why(error: Exception) -> str:
    """In a line, what Ray says of a worker's death; its own reports take many."""
    text = " ".join(str(error).split())
    found = re.search(r"exit detail: (.+?)\.(?: |$)|([^.]*\bmemory\b[^.]*)", text)
    return (found[1] or found[2]).strip()[:200] if found else first_line(error)
