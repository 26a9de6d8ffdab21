"""From a network to an ONNX graph."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpo3d_fast.engines.network import Network
from ddpo3d_fast.engines.torch import placed
from ddpo3d_fast.engines.vjp import trace_gradients
from ddpo3d_fast.errors import InputError, first_line

OPSET = 20
EXTERNAL_ABOVE = 1_900_000_000  # bytes of weights: a file of ONNX holds 2 GB, its nodes included


def missing_packages() -> list[str]:
    """What an export needs that is not installed."""
    return [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]


def export(network: Network, graph: Path, dtype: torch.dtype) -> None:
    """Writes a network as the ONNX graph `graph`, and its weights beside it where they are too many for one
    file (`graph` with .data behind its name).

    Weights and arithmetic are of `dtype`; floats come and go as float32. `network.dynamic` axes stay
    symbolic, as far as the module's own code treats sizes alike: a UNet wants multiples of its downsampling.
    Parameters keep their names, except in a gradient network. Raises InputError if the network cannot be
    exported.
    """
    module = _Typed(placed(network.module, torch.device("cpu"), dtype, torch.contiguous_format), dtype)
    examples = tuple(_at_least_two(t.cpu(), network.dynamic.get(n, ())) for n, t in network.inputs.items())
    sizes = tuple(dict.fromkeys(network.dynamic.get(n, ()), torch.export.Dim.DYNAMIC) for n in network.inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the exporters have in store, for whoever develops them
            traced = trace_gradients(module, examples) if network.gradient else module
            program = torch.onnx.export(
                torch.export.export(traced, examples, dynamic_shapes=(sizes,) if traced is module else sizes),
                input_names=list(network.inputs),
                output_names=list(network.outputs),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,  # the runtimes do it; initialisers stay the parameters
                verbose=False,
            )
    except Exception as error:  # whatever an exporter of any torch comes up with
        raise InputError(f"{network.name}: cannot be exported to ONNX ({first_line(error)})") from error
    assert program is not None  # None is for dynamo=False
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: several times the graph itself
    weights = sum(w.const_value.nbytes for w in program.model.graph.initializers.values() if w.const_value)
    program.save(graph, external_data=weights > EXTERNAL_ABOVE)


class _Typed(nn.Module):
    """The module between float32 outside and `dtype` inside."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results: Any = self.module(*(t.to(self.dtype) if t.is_floating_point() else t for t in inputs))
        return tuple(t.float() for t in ((results,) if isinstance(results, Tensor) else results))


def _at_least_two(tensor: Tensor, dynamic: tuple[int, ...]) -> Tensor:
    """An example without dynamic axes of size one: torch takes sizes 0 and 1 for constants."""
    return tensor.repeat([2 if i in dynamic and tensor.shape[i] < 2 else 1 for i in range(tensor.ndim)])
