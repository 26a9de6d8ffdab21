"""ONNX graphs, compiled by OpenVINO for fixed sizes. Free of torch: it can begin while that is imported."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ddpo3d_fast.errors import InputError, first_line

# Linux's names of the instructions that multiply bf16. Without them OpenVINO converts to fp32 and back around
# each layer, slower than in fp32 throughout, or cannot compile; and does not ask for itself.
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
# What ONEDNN_MAX_CPU_ISA may say without taking them away. It reaches OpenVINO's kernels, not their choice.
BF16_ISAS = ("", "ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX")
_TELEMETRY = "openvino_telemetry"


class Compiled(NamedTuple):
    """A graph for so many items of certain sizes."""

    outputs: list[str]  # their names, in order; compiled, they may be called otherwise
    shapes: dict[str, list[int]]  # of the inputs
    request: Any
    waves: Any  # a request for inputs that must not be rounded to bf16, or None
    names_of_waves: list[str]

    def __call__(self, inputs: dict[str, Any]) -> list[Any]:
        """Arrays by name in; arrays out, which are the caller's."""
        if self.waves is not None:
            waves = self.waves.infer(inputs, share_inputs=True)
            inputs = inputs | {name: waves[place] for place, name in enumerate(self.names_of_waves)}
        results = self.request.infer(inputs, share_inputs=True)
        return [results[place] for place in range(len(self.outputs))]


def missing() -> bool:
    """Whether OpenVINO is not installed."""
    return importlib.util.find_spec("openvino") is None


def unavailable() -> str | None:
    """Why OpenVINO cannot be used, in one line; None if it can."""
    if missing():
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


def read(graph: Path) -> Any:
    """OpenVINO's model of a graph. Raises InputError if it is missing or cannot be read."""
    if not graph.is_file():
        raise InputError(f"{graph}: expected an ONNX graph, found no such file")
    try:
        model = _openvino().Core().read_model(str(graph))
    except Exception as error:  # OpenVINO's own, of several bases
        raise InputError(f"{graph}: not a graph that OpenVINO can load ({first_line(error)})") from error
    _untie(model)
    return model


def compiled(model: Any, shapes: dict[str, list[int]], bf16: bool, threads: int) -> Compiled:
    """What `read` gave, which is used up, for inputs of these shapes."""
    outputs = [output.any_name for output in model.outputs]
    model.reshape(shapes)
    names, waves = list[str](), None
    if bf16 and _nodes(model, "Sin", "Cos"):
        names, before = _cut_at_waves(model)
        waves = _request(before, False, threads)
    return Compiled(outputs, shapes, _request(model, bf16, threads), waves, names)


def _request(model: Any, bf16: bool, threads: int) -> Any:
    wishes = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # else bf16 unasked where there is AMX
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the kernels' threads want these cores, too
    }
    return _openvino().Core().compile_model(model, "CPU", wishes).create_infer_request()


# ---- Ahead of time

_begun: dict[tuple[Path, bool, int, int], tuple[threading.Thread, list[Compiled]]] = {}


def begin(graph: Path, bf16: bool, items: int) -> None:
    """Begins to compile, on a thread, a graph whose sizes but for the number of items are fixed, for a thread
    a core. What goes wrong is told by whoever compiles it then."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made: list[Compiled] = []

    def work() -> None:
        with contextlib.suppress(Exception):
            model = read(graph)
            sizes = {each.any_name: [*each.partial_shape][1:] for each in model.inputs}
            shapes = {name: [items, *(size.get_length() for size in of)] for name, of in sizes.items()}
            made.append(compiled(model, shapes, bf16, threads))

    thread = threading.Thread(target=work)
    thread.start()
    _begun[graph, bf16, items, threads] = thread, made


def begun(graph: Path, bf16: bool, items: int, threads: int) -> Compiled | None:
    """What `begin` was asked for, once; None where that is not this, or failed."""
    if (graph, bf16, items, threads) not in _begun:
        return None
    thread, made = _begun.pop((graph, bf16, items, threads))
    thread.join()
    return made[0] if made else None


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
