"""Rewards that bring about what can happen to a worker where $FAULTS names a folder, elsewhere nothing."""

import errno
import os
import signal
from pathlib import Path

import ddpo3d_fast.files as files
import ddpo3d_fast.generate as loop

FOLDER = os.environ.get("FAULTS")
if FOLDER:
    loop.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every step
_calls, _flush = [], files.flush


def red(images):
    return images[:, 0].mean((1, 2))


def dies_once(images, prompts):
    """The worker is killed in the middle of a run, and not again."""
    _calls.append(1)
    if FOLDER and len(_calls) == 6 and not Path(FOLDER, "died").exists():
        Path(FOLDER, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return red(images)


def dies(images, prompts):
    """The worker is killed at every try."""
    with Path(FOLDER, "deaths").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def fills(images, prompts):
    """The disk is full, for the files of this run."""
    files.flush = _full
    return red(images)


def _full(path):
    if "a-yellow-cube-0" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _flush(path)
