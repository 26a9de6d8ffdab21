"""A step as a CUDA graph: captured once, replayed with other numbers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast.errors import FallbackWarning, first_line

_ALIGNMENT = 16  # bytes, where a tensor begins
Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensors]


def capture(function: Callable[[], Tensors], pool: Any) -> tuple[Callable[[], None], Tensors]:
    """Records what `function` launches on the current CUDA device, without running it.

    Returns what launches it all again, and the tensors that then hold the results. Graphs of one `pool`
    (`torch.cuda.graph_pool_handle`) use the same memory. Where it fails, the current stream is what it was
    and memory is allocated as before.
    """
    stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            outputs = function()
    except BaseException:
        torch.cuda.set_stream(stream)  # where the capture's end fails, torch stays on its own
        _end_allocation(stream.device_index, pool)
        raise
    return graph.replay, outputs


def _end_allocation(device: int, pool: Any) -> None:
    """Tells torch's allocator that a failed capture is over, as its own end does from torch 2.12 on
    (pytorch#180395): until then it frees nothing, and `torch.cuda.empty_cache` raises."""
    # Its name since torch 2.8, and before. From 2.12 on there is nothing to end, and it says so.
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
        if end := getattr(torch._C, name, None):
            with contextlib.suppress(RuntimeError):
                end(device, pool)
            return


class Staging:
    """Tensors of the CPU on their way to fixed places on a device, all in one copy."""

    def __init__(self, like: Tensors, device: torch.device) -> None:
        """`like` has the names, shapes and dtypes."""
        self._offsets, size = {}, 0
        for name, tensor in like.items():
            self._offsets[name] = size
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        # Only from pinned memory does a copy go on behind the host's back.
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self._views = self._views_of(self._host, like)
        self.tensors = self._views_of(self._device, like)  # where the values come to lie
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    def _views_of(self, memory: Tensor, like: Tensors) -> Tensors:
        return {
            name: memory[start : start + like[name].nbytes].view(like[name].dtype).view(like[name].shape)
            for name, start in self._offsets.items()
        }

    def fill(self, values: Tensors) -> None:
        """Sends values of the same names and shapes, for what the current stream runs next."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy may still be reading
        for name, view in self._views.items():
            view.copy_(values[name])
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


@dataclass
class _Step:
    """What belongs to one key: where the graph reads, and the graph once there is one."""

    inputs: Staging
    ran: bool = False
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
        """The function's results for `inputs`, which lie on the CPU; with one key always of the same names
        and shapes. They are overwritten by the next call with this key."""
        step = self._steps.get(key)
        if step is None:
            self._steps[key] = step = _Step(Staging(inputs, self.device))
        step.inputs.fill(inputs)
        if not (self.enabled and step.ran):
            step.ran = True
            return function(step.inputs.tensors)
        if step.replay is None:
            if self._pool is None and self.device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            try:
                step.replay, step.outputs = capture(lambda: function(step.inputs.tensors), self._pool)
            except RuntimeError as error:
                self.enabled = False
                self.forget()  # their memory may be what lacks
                reason: Exception = error
                while isinstance(reason.__context__, Exception):  # the others arose in clearing up after it
                    reason = reason.__context__
                warnings.warn(
                    f"the step cannot be captured as a CUDA graph ({first_line(reason)}); running without",
                    FallbackWarning,
                    stacklevel=2,
                )
                return function(step.inputs.tensors)
        assert step.outputs is not None
        step.replay()
        return step.outputs

    def forget(self) -> None:
        """Drops all graphs: what they read besides their inputs has changed. The next call captures anew."""
        for step in self._steps.values():
            step.replay = step.outputs = None
        self._pool = None  # torch refuses one whose graphs are gone while anything else still lies in it
