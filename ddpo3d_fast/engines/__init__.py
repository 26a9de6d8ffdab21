"""Runs a frozen network: named tensors in, named tensors out, whatever the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from ddpo3d_fast.engines.onnx import OnnxEngine


class Engine(Protocol):
    """A frozen network on some runtime."""

    runtime: str  # for people: name, version, device

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Named contiguous tensors in, named new tensors out."""


def load_engine(graph: Path) -> Engine:
    """The network of an ONNX graph on the best runtime found, once it agrees with the probe beside the graph.

    Raises InputError if the graph is missing, cannot be read or disagrees with its probe.
    """
    return OnnxEngine(graph)


__all__ = ["Engine", "OnnxEngine", "load_engine"]
