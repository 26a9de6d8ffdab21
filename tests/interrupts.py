"""Ctrl-C for the processes that tests start."""

import signal


def heed_interrupts() -> None:
    """For preexec_fn: what a shell runs in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
