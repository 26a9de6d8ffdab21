"""The OpenVINO engine, on the CPU: in bf16 where the processor computes in it, else in fp32."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ddpo3d_fast import openvino_graph
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.kernels import get_num_threads
from ddpo3d_fast.openvino_graph import Compiled, begun, compiled, read, version

PRECISIONS = (torch.float32, torch.bfloat16)


def unavailable() -> str | None:
    """Why OpenVINO cannot be used, in one line; None if it can."""
    return openvino_graph.unavailable()


def computes_bf16() -> bool:
    """Whether this processor multiplies bf16 by itself."""
    return openvino_graph.computes_bf16()


class OpenVinoEngine:
    """An ONNX graph on the CPU's cores. Floats come and go as float32.

    OpenVINO is fastest when it knows all sizes beforehand, and compiles for half a second. So the graph is
    compiled for one number of items, at the first call; calls of others go through it piece by piece, the
    last one filled up. Other sizes than the number of items compile it anew. An item's bits depend neither
    on the other items nor on the number of threads.
    """

    def __init__(self, graph: Path, dtype: torch.dtype = torch.float32, batch: int | None = None) -> None:
        """Args:
            graph: every input and output has the items as its first axis.
            dtype: what is computed in, float32 or bfloat16.
            batch: items that it is compiled for; None: those of the first call.

        Raises InputError if the graph is missing or cannot be read, or for a dtype that the processor lacks.
        """
        if dtype not in PRECISIONS or (dtype == torch.bfloat16 and not computes_bf16()):
            known = "fp32 or bf16" if computes_bf16() else "fp32 on this processor"
            raise InputError(f"--precision: expected {known} with openvino, got {precision(dtype)}")
        self._graph, self._bf16, self._batch = graph, dtype == torch.bfloat16, batch
        self._threads = get_num_threads()
        self._compiled = begun(graph, self._bf16, batch, self._threads) if batch else None
        self._model = None if self._compiled else read(graph)  # used up by its compilation
        self.runtime = f"OpenVINO {version()}, CPU, {precision(dtype)}, {self._threads} threads"

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        given = {name: tensor.detach().contiguous() for name, tensor in inputs.items()}
        count = len(next(iter(given.values())))
        batch = self._batch = self._batch or count
        run = self._for({name: [batch, *tensor.shape[1:]] for name, tensor in given.items()})
        outputs: dict[str, Tensor] = {}
        for begin in range(0, count, batch):
            items = min(batch, count - begin)
            piece = {
                name: _filled(tensor[begin : begin + items], batch).numpy() for name, tensor in given.items()
            }
            for name, result in zip(run.outputs, run(piece), strict=True):
                made = torch.from_numpy(result)
                whole = outputs.setdefault(name, made.new_empty(count, *made.shape[1:]))
                whole[begin : begin + items] = made[:items]
        return _with_lost_items(outputs, given)

    def _for(self, shapes: dict[str, list[int]]) -> Compiled:
        if self._compiled is None or self._compiled.shapes != shapes:
            self._compiled = None  # its memory is free before the next one's is taken
            model, self._model = self._model or read(self._graph), None
            self._compiled = compiled(model, shapes, self._bf16, self._threads)
        return self._compiled


def _filled(tensor: Tensor, count: int) -> Tensor:
    """Its rows, then the last one over and over, `count` in all."""
    lacking = count - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(lacking, *tensor.shape[1:])]) if lacking else tensor


def _with_lost_items(outputs: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of items whose inputs are not finite are NaN: OpenVINO's Relu, Max and Clip make numbers of
    NaN, and a run that is lost must be seen to be."""
    floats = [tensor.flatten(1) for tensor in inputs.values() if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all(1) for tensor in floats]).all(0) if floats else None
    if finite is not None and not bool(finite.all()):
        for output in outputs.values():
            if output.is_floating_point():
                output[~finite] = torch.nan
    return outputs


def precision(dtype: torch.dtype) -> str:
    """What --precision calls it."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype))
