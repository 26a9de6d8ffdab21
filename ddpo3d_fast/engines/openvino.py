"""The OpenVINO engine, on the CPU: in bf16 where the processor computes in it, else in fp32."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.kernels import get_num_threads

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
# Linux's names of the instructions that multiply bf16. Without them OpenVINO converts to fp32 and back around
# each layer, slower than in fp32 throughout, or cannot compile; and does not ask for itself.
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
# What ONEDNN_MAX_CPU_ISA may say without taking them away. It reaches OpenVINO's kernels, not their choice.
BF16_ISAS = ("", "ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX")
_TELEMETRY = "openvino_telemetry"


def unavailable() -> str | None:
    """Why OpenVINO cannot be used, in one line; None if it can."""
    if importlib.util.find_spec("openvino") is None:
        return "needs openvino: pip install 'ddpo3d-fast[generate]'"
    try:
        _openvino()
    except (ImportError, OSError, RuntimeError) as error:  # a wheel for another machine
        return f"openvino cannot be imported ({first_line(error)})"
    return None


@functools.cache
def computes_bf16() -> bool:
    """Whether this processor multiplies bf16 by itself."""
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not BF16_FLAGS.isdisjoint(flags) and isa in BF16_ISAS


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
        if not graph.is_file():
            raise InputError(f"{graph}: expected an ONNX graph, found no such file")
        self._graph, self._dtype, self._batch = graph, dtype, batch
        self._model: Any = self._read()
        self._outputs = [output.any_name for output in self._model.outputs]
        self._sizes: dict[str, tuple[int, ...]] | None = None  # of what is compiled, without the items
        self._request: Any = None
        self._waves: Any = None  # a request for what must not be rounded to bf16
        self._names_of_waves: list[str] = []
        threads = get_num_threads()
        self.runtime = f"OpenVINO {version()}, CPU, {precision(dtype)}, {threads} threads"

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        given = {name: tensor.detach().contiguous() for name, tensor in inputs.items()}
        count = len(next(iter(given.values())))
        self._batch = self._batch or count
        self._compile({name: tuple(tensor.shape[1:]) for name, tensor in given.items()})
        outputs: dict[str, Tensor] = {}
        for begin in range(0, count, self._batch):
            items = min(self._batch, count - begin)
            piece = {
                name: _filled(tensor[begin : begin + items], self._batch).numpy()
                for name, tensor in given.items()
            }
            if self._waves is not None:
                waves = self._waves.infer(piece, share_inputs=True)
                piece |= {name: waves[place] for place, name in enumerate(self._names_of_waves)}
            results = self._request.infer(piece, share_inputs=True)
            for place, name in enumerate(self._outputs):  # compiled, they may be called otherwise
                made = torch.from_numpy(results[place])
                whole = outputs.setdefault(name, made.new_empty(count, *made.shape[1:]))
                whole[begin : begin + items] = made[:items]
        return _with_lost_items(outputs, given)

    def _read(self) -> Any:
        try:
            model = _openvino().Core().read_model(str(self._graph))
        except Exception as error:  # OpenVINO's own, of several bases
            raise InputError(
                f"{self._graph}: not a graph that OpenVINO can load ({first_line(error)})"
            ) from error
        _untie(model)
        return model

    def _compile(self, sizes: dict[str, tuple[int, ...]]) -> None:
        if sizes == self._sizes:
            return
        self._request = self._waves = None  # their memory is free before the next ones' is taken
        assert self._batch is not None
        shapes = {name: [self._batch, *rest] for name, rest in sizes.items()}
        model, self._model = self._model or self._read(), None
        model.reshape(shapes)
        if self._dtype == torch.bfloat16 and _nodes(model, "Sin", "Cos"):
            self._names_of_waves, before = _cut_at_waves(model)
            self._waves = _request(before, torch.float32)
        self._request, self._sizes = _request(model, self._dtype), sizes


def _request(model: Any, dtype: torch.dtype) -> Any:
    """Compiles a model of fixed sizes."""
    wishes = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],  # else bf16 unasked where there is AMX
        "INFERENCE_NUM_THREADS": get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the kernels' threads want these cores, too
    }
    return _openvino().Core().compile_model(model, "CPU", wishes).create_infer_request()


def version() -> str:
    """OpenVINO's, without its build."""
    return str(_openvino().__version__).partition("-")[0]


@functools.cache
def _openvino() -> ModuleType:
    with _without_telemetry():
        return importlib.import_module("openvino")


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """OpenVINO's import reports to its vendor where `openvino-telemetry` is installed, which it asks pip for;
    where that cannot be imported it has a stub."""
    before = sys.modules.get(_TELEMETRY, ...)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is ...:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before


def _untie(model: Any) -> None:
    """Gives every transposed convolution weights of its own.

    In fp32 OpenVINO computes wrong where a Convolution reads them, too, as in a VJP
    (github.com/openvinotoolkit/openvino/issues/33397).
    """
    for node in _nodes(model, "ConvolutionBackpropData"):
        node.input(1).replace_source_output(_copied(node.input_value(1)))


def _copied(weights: Any) -> Any:
    """A constant, or a cast of one, once more."""
    node, opset = weights.get_node(), _opset()
    if node.get_type_name() == "Constant":
        return opset.constant(node.get_data(), dtype=node.get_element_type()).output(0)
    if node.get_type_name() == "Convert":
        kind = node.get_attributes()["destination_type"]
        return opset.convert(_copied(node.input_value(0)), kind).output(0)
    return weights


def _cut_at_waves(model: Any) -> tuple[list[str], Any]:
    """Makes inputs of a model's sines and cosines; returns their names, and a model that gives them.

    They say the timestep, and OpenVINO would round what they are of to bf16's eight bits: 979 radians to 980.
    """
    same = model.clone()
    names = [node.get_friendly_name() for node in _nodes(same, "Sin", "Cos")]
    waves = [node.output(0) for node in _nodes(same, "Sin", "Cos")]
    before = _openvino().Model(waves, same.get_parameters())
    for node in _nodes(model, "Sin", "Cos"):
        name = node.get_friendly_name()
        wave = _opset().parameter(node.output(0).partial_shape, node.get_output_element_type(0), name=name)
        wave.output(0).tensor.set_names({name})
        for reader in list(node.output(0).get_target_inputs()):
            reader.replace_source_output(wave.output(0))
        model.add_parameters([wave])
    return names, before


def _nodes(model: Any, *kinds: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in kinds]


def _opset() -> ModuleType:
    return importlib.import_module("openvino.opset13")


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
