"""What surrounds the loop: where its time goes, how many threads torch has, when Ctrl-C is heard."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch


class Stopwatch:
    """Seconds by part; entering a part inside another pauses the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts: list[str] = []
        self._started = self._since = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._switch()
        self._parts.append(part)
        try:
            yield
        finally:
            self._switch()
            self._parts.pop()

    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Gives torch's operations on the CPU so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A CUDA stream for everything that is launched within; nothing for other devices.

    The legacy default stream cannot be captured, and what runs there disturbs captures on other streams.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed, so that no step ends half done.

    A second Ctrl-C is not held back. Outside the main thread, where Python hears no signals, it says no.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def remember(number: int, frame: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
