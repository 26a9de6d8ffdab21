"""The command `batch`: reads the list, has the runs made, tells of them and sums them up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast.batch.jobs import Job, read_jobs
from ddpo3d_fast.batch.pool import Pool, cluster, load_ray
from ddpo3d_fast.batch.summary import Summary
from ddpo3d_fast.batch.teller import Teller
from ddpo3d_fast.batch.worker import Outcome
from ddpo3d_fast.control import deferred_interrupt
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import locked, locker
from ddpo3d_fast.run import RunFolder, check_writable
from ddpo3d_fast.settings import check_values

if TYPE_CHECKING:
    from ddpo3d_fast.commands import Batch
    from ddpo3d_fast.progress import Style


def batch(settings: Batch, style: Style) -> int:
    """Makes the runs of a list, those that are not done, and returns the command's exit code: 0, or 1 where a
    run failed. The summary is written whenever runs end, and for the last time at the end.

    Raises InputError for wrong settings or a wrong list, before anything is begun; KeyboardInterrupt on
    Ctrl-C, once the runs have ended as `generate` then does.
    """
    check_values(settings)
    if settings.quiet and settings.json:
        raise InputError("--quiet: expected no --json beside it")
    output = settings.output or Path("outputs") / settings.prompts.stem
    jobs = read_jobs(settings.prompts, output, settings.preset, settings.seeds)
    load_ray(settings.address)
    check_writable(output)
    with _claimed(output), Teller(style, Summary(output, jobs)) as teller:
        left = []
        for job in jobs:
            if job.error:
                teller.ended(job, Outcome("failed", job.error))
            elif RunFolder(job.folder, job.config).progress() == "done":
                teller.ended(job, Outcome("earlier"))
            else:
                left.append(job)
        stopped = bool(left) and _make(settings, left, teller)
        failed = teller.sum_up()
    done = teller.summary.count("done")
    if stopped and done < len(jobs):
        raise KeyboardInterrupt(f"{done} of {len(jobs)} runs are done in {output}; the same command goes on")
    return int(failed)


@contextlib.contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """Makes the folder and keeps other batches out of it; one that nothing has come into goes again. Raises
    InputError where there is another batch."""
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as claim:
        claim.callback(_remove_empty, made)
        try:
            claim.enter_context(locked(output, wait=False))
        except BlockingIOError:
            process = locker(output)
            name = "another batch" if process is None else f"another batch, process {process},"
            raise InputError(f"--output: {name} is writing to {output}") from None
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):  # of the first that is not empty
        for folder in folders:
            folder.rmdir()


def _make(settings: Batch, jobs: Sequence[Job], teller: Teller) -> bool:
    """Has the jobs made, and returns whether Ctrl-C ended it."""
    with deferred_interrupt() as interrupted, cluster(settings.address) as ray:
        gpus = settings.gpus
        if gpus is None:
            wanted = any(job.config.device != "cpu" for job in jobs)
            gpus = float(wanted and ray.cluster_resources().get("GPU", 0) > 0)
        pool = Pool(ray, settings.cpus, gpus, jobs)
        teller.begins(len(jobs), pool.size)
        for job, outcome in pool.outcomes(interrupted, lambda: teller.look(pool.under_way)):
            if outcome.state == "done" and not job.folder.is_dir():
                reason = f"its worker, on {outcome.host}, wrote to {job.folder}, which is not there from here"
                outcome = Outcome("failed", f"--output: {reason}")
            teller.ended(job, outcome)
        return interrupted()
