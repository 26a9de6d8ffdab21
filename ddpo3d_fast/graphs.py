"""A step as a CUDA graph: captured once, replayed with other numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast.errors import FallbackWarning, first_line

Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensors]


def capture(function: Callable[[], Tensors], pool: Any = None) -> tuple[Callable[[], None], Tensors]:
    """Records what `function` launches on the current CUDA device, without running it.

    Returns what launches it all again, and the tensors that then hold the results. Graphs of one `pool`
    (`torch.cuda.graph_pool_handle`) use the same memory; None: one of the graph's own.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = function()
    return graph.replay, outputs


@dataclass
class _Step:
    """What belongs to one key: where the graph reads, and the graph once there is one."""

    inputs: Tensors
    replay: Callable[[], None] | None = None
    outputs: Tensors | None = None


class StepGraphs:
    """Calls functions of tensors; on a GPU, from the second call with a key on, by replaying its graph.

    The function must not wait for the device, nor copy from the host or to it, and find everything that
    changes from call to call in its inputs or change it in place; what it reads besides is what it was at the
    capture. The first call is an ordinary one: libraries set themselves up then, which no graph could hold.
    A function that cannot be captured after all is called as it is, with one warning that says why.
    """

    def __init__(self, device: torch.device, enabled: bool = True) -> None:
        self.device, self.enabled = device, enabled
        self._steps: dict[Hashable, _Step] = {}
        self._pool: Any = None  # of all graphs: one runs after the other, and its results are read before

    def __call__(self, key: Hashable, function: Function, inputs: Tensors) -> Tensors:
        """The function's results for `inputs`, which may lie on the CPU; with one key always of the same
        shapes. They are overwritten by the next call with this key."""
        if not self.enabled:
            return function(self._placed(inputs))
        step = self._steps.get(key)
        if step is None:
            self._steps[key] = step = _Step(self._placed(inputs))
            return function(step.inputs)
        for name, tensor in inputs.items():
            step.inputs[name].copy_(tensor, non_blocking=True)
        if step.replay is None:
            if self._pool is None and self.device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            try:
                step.replay, step.outputs = capture(lambda: function(step.inputs), self._pool)
            except RuntimeError as error:
                self.enabled = False
                self.forget()  # their memory may be what lacks
                warnings.warn(
                    f"the step cannot be captured as a CUDA graph ({first_line(error)}); running without",
                    FallbackWarning,
                    stacklevel=2,
                )
                return function(step.inputs)
        assert step.outputs is not None
        step.replay()
        return step.outputs

    def forget(self) -> None:
        """Drops all graphs: what they read besides their inputs has changed."""
        self._steps.clear()
        self._pool = None  # torch refuses one whose graphs are gone while anything else still lies in it

    def _placed(self, inputs: Tensors) -> Tensors:
        """Copies of the inputs on the device, that nobody else writes to."""
        return {name: tensor.to(self.device, non_blocking=True, copy=True) for name, tensor in inputs.items()}
