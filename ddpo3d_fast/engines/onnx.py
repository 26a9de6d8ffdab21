"""The ONNX Runtime engine, on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.kernels import get_num_threads


class OnnxEngine:
    """An ONNX graph on the CPU's cores; floats come and go as the graph states, float32 as a rule."""

    def __init__(self, graph: Path) -> None:
        """Raises InputError if the graph is missing or cannot be read."""
        if not graph.is_file():
            raise InputError(f"{graph}: expected an ONNX graph, found no such file")
        import onnxruntime  # which takes a while, and may not be needed

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = get_num_threads()
        options.log_severity_level = 3
        # Threads that spin between calls would take the cores from the rasterizer.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise InputError(
                f"{graph}: not a graph that ONNX Runtime can load ({first_line(error)})"
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}, CPU, {get_num_threads()} threads"

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        feed = {name: tensor.detach().contiguous().numpy() for name, tensor in inputs.items()}
        results = self._session.run(self._outputs, feed)
        return {name: torch.from_numpy(result) for name, result in zip(self._outputs, results, strict=True)}
