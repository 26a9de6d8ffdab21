"""A run in the browser while it is made."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch

from ddpo3d_fast.build import Run
from ddpo3d_fast.scene import Gaussians
from ddpo3d_fast.scene.gaussians import PARAMETERS
from ddpo3d_fast.view.page import Page, markdown_text, table

EVERY = 0.4  # seconds between two pictures, at least
SHARE = 0.04  # of the time, at most, in which pictures are prepared
_REMEMBERED = 50  # steps for which a number stays, where later ones have none
_SHOWN = ("loss", "guide", "reward", "timestep", "gaussians")  # of a step, in this order


class LiveView:
    """Shows a run; `generate` calls it after each step. It changes nothing of the run but its speed: another
    thread prepares what is shown, from a copy, and only while somebody looks."""

    def __init__(self, port: int) -> None:
        """Raises InputError, as `Page` does."""
        self._page = Page(port, "ddpo3d-fast generate", "--view")
        self.url = self._page.url
        gui = self._page.gui
        self._told = gui.add_markdown("The models are being loaded.")
        self._button = gui.add_button("Stop", color="red", hint="End the run as Ctrl-C does")
        self._button.on_click(lambda event: self._stop())
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._waiting = threading.Condition()
        self._snapshot: tuple[Gaussians, str] | None = None
        self._next = 0.0  # time from which the next snapshot may be taken
        self._thread = threading.Thread(target=self._send, name="view", daemon=True)
        self._thread.start()

    def __call__(self, run: Run) -> bool:
        """Whether somebody has pressed the button."""
        last = run.journal.rows[-1]["step"] == run.config.schedule.steps
        if last or (time.monotonic() >= self._next and self._page.watched()):
            with self._waiting:
                idle = self._snapshot is None
                if idle or last:
                    self._snapshot = _copy(run.scene.gaussians), _text(run)
                    self._next = time.monotonic() + EVERY
                    self._waiting.notify()
        return self._stopped.is_set()

    def close(self) -> None:
        """Shows the last step, and ends the page."""
        with self._waiting:
            self._ended.set()
            self._waiting.notify()
        self._thread.join(5)
        self._page.close()

    def _stop(self) -> None:
        self._stopped.set()
        self._button.disabled = True
        self._button.label = "Stopping"

    def _send(self) -> None:
        while True:
            with self._waiting:
                while self._snapshot is None and not self._ended.is_set():
                    self._waiting.wait()
                if self._snapshot is None:
                    return
                (gaussians, text), began = self._snapshot, time.thread_time()
            self._page.show_gaussians(gaussians)
            self._told.content = text
            with self._waiting:
                self._snapshot = None
                self._next = max(self._next, time.monotonic() + (time.thread_time() - began) / SHARE)


def _copy(gaussians: Gaussians) -> Gaussians:
    """The same Gaussians, on the CPU, without what Adam knows of them."""
    with torch.no_grad():
        copies = {name: getattr(gaussians, name).to("cpu", copy=True) for name in PARAMETERS}
    return Gaussians(**copies)


def _text(run: Run) -> str:
    """The prompt and the figures of the last step, in Markdown."""
    row: dict[str, Any] = {}
    for each in run.journal.rows[-_REMEMBERED:]:
        row |= each
    figures = {"step": f"{row['step']} of {row['steps']}"}
    figures |= {name: row[name] for name in _SHOWN if name in row}
    return f"**{markdown_text(run.config.prompt)}**\n\n{table(figures)}"
