"""What a run tells of its steps: rows for metrics.jsonl, and for whoever watches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Step

Observer = Callable[[dict[str, Any]], None]
LOST_STEPS = 10  # without a finite loss, on end, after which a run is given up


class Journal:
    """The rows of the steps that are done."""

    def __init__(self, observer: Observer, config: Config, runtime: str, rows: list[dict[str, Any]]) -> None:
        """`runtime` runs the prior; `rows` are those of a run that is gone on with."""
        self.observer, self.config, self.runtime, self.rows = observer, config, runtime, rows
        self._lost = 0

    def note(self, step: Step, numbers: dict[str, float], gaussians: int, seconds: float) -> None:
        """A step is done. Raises InputError where the loss has been no number for too long."""
        progress = {"step": step.number, "steps": self.config.schedule.steps}
        progress["timestep"] = int(step.timesteps.float().mean())  # of the views' the mean
        self.rows.append(progress | numbers | {"gaussians": gaussians})
        self._lost = 0 if math.isfinite(numbers["loss"]) else self._lost + 1
        if self._lost == LOST_STEPS:
            model, last = self.config.distillation.model, step.number
            raise InputError(
                f"--model: {model} has given no number in {LOST_STEPS} steps on end, the last of them "
                f"step {last}: its weights are damaged, or too much for {self.runtime}"
            )
        self.observer(self.rows[-1] | {"stage": "distill", "seconds": seconds})
