"""The ONNX Runtime engine, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.kernels import get_num_threads

PROBE_TOLERANCE = 1e-4  # relative L2: fp32 sums in another order differ by 1e-6, a wrong graph by 1


class OnnxEngine:
    """An ONNX graph in fp32 on the CPU's cores.

    A `probe.npz` beside the graph holds an input and the reference's output (`expected.NAME`) for it.
    """

    def __init__(self, graph: Path) -> None:
        """Raises InputError if the graph is missing, cannot be read or disagrees with its probe."""
        if not graph.is_file():
            raise InputError(f"{graph}: expected an ONNX graph, found no such file")
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
        self._check(graph.with_name("probe.npz"))

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        feed = {name: tensor.detach().contiguous().numpy() for name, tensor in inputs.items()}
        results = self._session.run(self._outputs, feed)
        return {name: torch.from_numpy(result) for name, result in zip(self._outputs, results, strict=True)}

    def _check(self, probe: Path) -> None:
        if not probe.is_file():
            return
        stored = np.load(probe)
        inputs = {k: torch.from_numpy(stored[k]) for k in stored.files if not k.startswith("expected.")}
        for name, got in self(**inputs).items():
            expected = torch.from_numpy(stored[f"expected.{name}"])
            error = float((got - expected).norm() / expected.norm())
            if not error <= PROBE_TOLERANCE:
                raise InputError(f"{probe}: {self.runtime} gives another {name}, relative error {error:.1e}")
