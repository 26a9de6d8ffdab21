"""Rewards that bring about what can happen to a worker. Only workers import this file, by its path."""

import errno
import os
import signal
from pathlib import Path

import ddpo3d_fast.files as files
import ddpo3d_fast.generate as loop

loop.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every step
_calls, _flush = [], files.flush


def red(images, prompts):
    return images[:, 0].mean((1, 2))


def dies_once(images, prompts):
    """The worker is killed in the middle of a run, and not again."""
    _calls.append(1)
    if len(_calls) == 6:
        try:
            Path(os.environ["FAULTS"], "died").touch(exist_ok=False)
        except FileExistsError:
            return red(images, prompts)
        os.kill(os.getpid(), signal.SIGKILL)
    return red(images, prompts)


def dies(images, prompts):
    """The worker is killed at every try."""
    with Path(os.environ["FAULTS"], "deaths").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def fills(images, prompts):
    """The disk is full, for the files of this run."""
    files.flush = _full
    return red(images, prompts)


def _full(path):
    if "a-yellow-cube-0" in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _flush(path)
