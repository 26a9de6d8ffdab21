"""The TensorRT engine, on an NVIDIA GPU: a plan built from an ONNX graph, in the dtypes of the graph.

It uses only what the Python bindings of 10.13, 10.16 and 11.4 have in common; docs/engines.md says what of it
has run. TensorRT is imported when an engine is made and touched only where torch has a CUDA device: without a
driver its Runtime ends the process.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpo3d_fast.engines.cache import cache_folder
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.files import atomic_path

if TYPE_CHECKING:
    import tensorrt as trt

OLDEST = (10, 13)
VERSION_COMPATIBLE = "DDPO3D_TENSORRT_VERSION_COMPATIBLE"  # environment variable, 1 for yes

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # by input: smallest, most frequent and largest shape

_DTYPES = {  # by name of TensorRT's DataType: what a network's inputs and outputs may be
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
_errors: list[str] = []  # what TensorRT logged as errors since the last `_errors.clear()`


def unavailable() -> str | None:
    """Why TensorRT cannot be used here, in one line; None if it can."""
    if not torch.cuda.is_available():
        return "needs a CUDA device that torch can use, found none"
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:  # OSError: libraries that do not load
        return f"cannot be imported ({first_line(error)}): pip install 'ddpo3d-fast[tensorrt]'"
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST:
        return f"expected TensorRT 10.13 or newer, got {trt.__version__}"
    return None


def version() -> str:
    """TensorRT's version, whichever package it came in; for where `unavailable` gives None."""
    import tensorrt as trt

    return str(trt.__version__)


def wants_version_compatible() -> bool:
    """Whether the user wants plans that later versions of TensorRT can read.

    Raises InputError where the environment says neither 0 nor 1.
    """
    wish = os.environ.get(VERSION_COMPATIBLE) or "0"
    if wish not in ("0", "1"):
        raise InputError(f"{VERSION_COMPATIBLE}: expected 0 or 1, got {wish!r}")
    return wish == "1"


class TensorRTEngine:
    """A network on TensorRT: floats come and go as float32, integers in the graph's dtype.

    For every new set of input shapes it makes an execution context and static buffers and runs once; further
    calls with these shapes copy into the buffers, run, and copy out, on torch's current stream, with no host
    synchronisation and no allocation but the results. So a call can be captured in a CUDA graph once its
    shapes have been seen. One engine serves one stream at a time, and fast only one that is not the default:
    there TensorRT adds synchronisations of its own.
    """

    def __init__(
        self,
        graph: Path,
        plan: Path,
        inputs: dict[str, Tensor],
        outputs: tuple[str, ...],
        profiles: list[Profile],
        device: torch.device | str,
        *,
        refittable: bool = False,
        version_compatible: bool = False,
    ) -> None:
        """Takes the plan at `plan`; where there is none, builds it from `graph`, in minutes, and keeps it.

        `inputs` are examples: names and shapes. `profiles`, one for each resolution, bound the shapes of
        every input; the first that holds a call's shapes serves it. Where none holds the examples' shapes
        they get one too, as a probe runs them. `refittable` allows `refit`.
        `version_compatible` lets later versions of TensorRT read the plan, at some cost in speed; it excludes
        `refittable`, as the runtime that such a plan carries cannot refit. What the builder measures is kept
        in the cache folder for the next build.

        Raises InputError if TensorRT cannot be used, cannot read or build the graph, or cannot run the plan,
        which is damaged, of another version, driver or GPU, or for other tensors or shapes.
        """
        if refittable and version_compatible:
            raise ValueError("refittable, version_compatible: expected one of them at the most, got both")
        _check_profiles(profiles, inputs)
        reason = unavailable()
        if reason is not None:
            raise InputError(f"TensorRT: {reason}")
        self.device = torch.device(device)
        if self.device.type != "cuda":  # it would write to addresses of the CPU's
            raise InputError(f"TensorRT: expected a CUDA device, got {self.device}")
        import tensorrt as trt

        self._graph, self._inputs, self._outputs = graph, tuple(inputs), outputs
        examples = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        self._profiles, self._refittable = profiles, refittable
        if self._profile(examples) is None:
            self._profiles = [*profiles, {name: (shape, shape, shape) for name, shape in examples.items()}]
        self._bound: dict[tuple[Shape, ...], _Bound] = {}
        gpu = torch.cuda.get_device_name(self.device)
        self.runtime = f"TensorRT {trt.__version__}, {gpu}"
        self._timings = cache_folder() / f"timings-{trt.__version__}-{gpu.replace(' ', '-')}"
        with torch.cuda.device(self.device):
            self._runtime = trt.Runtime(_logger())
            if version_compatible:
                self._runtime.engine_host_code_allowed = True  # such a plan carries a runtime of its own
            self._engine: trt.ICudaEngine = (
                self._load(plan) if plan.is_file() else self._build(plan, version_compatible)
            )

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Raises ValueError for shapes outside every profile, RuntimeError if TensorRT fails."""
        if inputs.keys() != set(self._inputs):
            raise TypeError(f"inputs: expected {', '.join(self._inputs)}, got {', '.join(inputs)}")
        shapes = tuple(tuple(inputs[name].shape) for name in self._inputs)
        with torch.cuda.device(self.device):
            if shapes not in self._bound:
                self._bound[shapes] = self._bind(shapes)
            bound = self._bound[shapes]
            for name, buffer in bound.inputs.items():
                buffer.copy_(inputs[name])
            self._enqueue(bound.context)
            return {name: _result(buffer) for name, buffer in bound.outputs.items()}

    def refit(self, graph: Path) -> None:
        """Takes over the weights of `graph`: the same network exported again, such as with a LoRA fused in.

        The plan on disk keeps its own. CUDA graphs captured before must be captured again.

        Raises:
            InputError: onnx is not installed, or the graph is not of this network and dtype.
            ValueError: the engine was not made refittable.
        """
        if not self._refittable:
            raise ValueError(f"refit: {self._graph} was not made refittable")
        import tensorrt as trt

        weights = _weights(graph)
        _errors.clear()
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()  # work that is under way on another stream would meet both weights
            refitter = trt.Refitter(self._engine, _logger())
            for name in refitter.get_all_weights():
                if name not in weights:
                    continue  # TensorRT's own; should it be needed, it is among the missing
                if not refitter.set_named_weights(name, weights[name][0]):
                    raise InputError(f"{graph}: weights {name} do not fit {self._graph} ({_reason()})")
            missing = refitter.get_missing_weights()
            if missing:
                raise InputError(f"{graph}: lacks weights of {self._graph}: {', '.join(missing[:3])}")
            if not refitter.refit_cuda_engine_async(torch.cuda.current_stream().cuda_stream):
                raise RuntimeError(f"{graph}: TensorRT cannot take the weights ({_reason()})")
            torch.cuda.synchronize()

    def _load(self, plan: Path) -> trt.ICudaEngine:
        """The engine of the plan on disk."""
        _errors.clear()
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None or not self._serves(engine):
            reason = _reason() if engine is None else "it is for other tensors or shapes"
            raise InputError(f"{plan}: not a plan that TensorRT can run here ({reason})")
        return engine

    def _serves(self, engine: trt.ICudaEngine) -> bool:
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        if names != {*self._inputs, *self._outputs} or (self._refittable and not engine.refittable):
            return False
        if engine.num_optimization_profiles != len(self._profiles):
            return False
        dynamic = [name for name in self._inputs if -1 in tuple(engine.get_tensor_shape(name))]
        return all(
            [tuple(shape) for shape in engine.get_tensor_profile_shape(name, i)] == [*profile[name]]
            for i, profile in enumerate(self._profiles)
            for name in dynamic
        )

    def _build(self, plan: Path, version_compatible: bool) -> trt.ICudaEngine:
        import tensorrt as trt

        _errors.clear()
        builder = trt.Builder(_logger())
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, _logger())  # owns the weights until the plan is built
        if not parser.parse_from_file(str(self._graph)):  # by its path, as external data lie beside it
            found = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise InputError(f"{self._graph}: TensorRT cannot read the graph ({_reason(found)})")
        got = [network.get_input(i).name for i in range(network.num_inputs)]
        got += [network.get_output(i).name for i in range(network.num_outputs)]
        if sorted(got) != sorted([*self._inputs, *self._outputs]):
            wanted = ", ".join([*self._inputs, *self._outputs])
            raise InputError(f"{self._graph}: expected tensors {wanted}, got {', '.join(got)}")

        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; fp32 means fp32
        if self._refittable:
            config.set_flag(trt.BuilderFlag.REFIT)  # REFIT_IDENTICAL allows no other weights
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        for wanted_shapes in self._profiles:
            profile = builder.create_optimization_profile()
            for name, bounds in wanted_shapes.items():
                smallest, usual, largest = (trt.Dims(list(shape)) for shape in bounds)
                profile.set_shape(name, smallest, usual, largest)
            if config.add_optimization_profile(profile) < 0:
                raise InputError(f"{self._graph}: TensorRT refuses the shapes {wanted_shapes} ({_reason()})")
        timings = _timings(config, self._timings)

        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise InputError(f"{self._graph}: TensorRT cannot build the network ({_reason()})")
        if timings is not None:
            with atomic_path(self._timings) as temporary:
                temporary.write_bytes(timings.serialize())
        engine = self._runtime.deserialize_cuda_engine(serialized)
        if engine is None:
            raise InputError(f"{self._graph}: TensorRT cannot load what it built ({_reason()})")
        with atomic_path(plan) as temporary:
            temporary.write_bytes(serialized)
        return engine

    def _bind(self, shapes: tuple[Shape, ...]) -> _Bound:
        """A context and buffers for these shapes, run once: TensorRT does some work at the first run only."""
        import tensorrt as trt

        described = ", ".join(f"{name} {shape}" for name, shape in zip(self._inputs, shapes, strict=True))
        index = self._profile(dict(zip(self._inputs, shapes, strict=True)))
        if index is None:
            raise ValueError(f"{self._graph}: no profile holds {described}; there are {self._profiles}")
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{self._graph}: call it with {described} once before the capture")
        _errors.clear()
        # A context a set of shapes, as a captured graph keeps using the context that it was captured from.
        context = self._engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        )
        if context is None:
            raise RuntimeError(f"{self._graph}: TensorRT cannot make a context for {described} ({_reason()})")
        stream = torch.cuda.current_stream()
        chosen = context.set_optimization_profile_async(index, stream.cuda_stream)
        self._must(chosen, f"choose profile {index}")
        stream.synchronize()
        for name, shape in zip(self._inputs, shapes, strict=True):
            self._must(context.set_input_shape(name, shape), f"take {name} {shape}")
        inputs = {name: self._buffer(context, name) for name in self._inputs}
        outputs = {name: self._buffer(context, name) for name in self._outputs}
        for name, buffer in (inputs | outputs).items():
            self._must(context.set_tensor_address(name, buffer.data_ptr()), f"take the address of {name}")
        self._enqueue(context)
        stream.synchronize()
        return _Bound(context, inputs, outputs)

    def _profile(self, shapes: dict[str, Shape]) -> int | None:
        """The first profile that holds these shapes."""
        for index, profile in enumerate(self._profiles):
            if all(_holds(profile[name], shape) for name, shape in shapes.items()):
                return index
        return None

    def _buffer(self, context: trt.IExecutionContext, name: str) -> Tensor:
        shape = tuple(context.get_tensor_shape(name))
        kind = self._engine.get_tensor_dtype(name).name
        if -1 in shape or kind not in _DTYPES:
            raise RuntimeError(f"{self._graph}: cannot allocate {name}, {kind} {shape}")
        return torch.zeros(shape, dtype=_DTYPES[kind], device=self.device)

    def _enqueue(self, context: trt.IExecutionContext) -> None:
        self._must(context.execute_async_v3(torch.cuda.current_stream().cuda_stream), "run")

    def _must(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise RuntimeError(f"{self._graph}: TensorRT cannot {what} ({_reason()})")


@dataclass(frozen=True)
class _Bound:
    """What runs one set of input shapes."""

    context: trt.IExecutionContext
    inputs: dict[str, Tensor]  # static buffers in the plan's dtypes
    outputs: dict[str, Tensor]


def _result(buffer: Tensor) -> Tensor:
    """A new tensor, as the next call overwrites the buffer; floats as float32."""
    return buffer.to(torch.float32 if buffer.is_floating_point() else buffer.dtype, copy=True)


def _holds(bounds: tuple[Shape, Shape, Shape], shape: Shape) -> bool:
    smallest, _, largest = bounds
    return len(shape) == len(smallest) and all(
        low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
    )


def _check_profiles(profiles: list[Profile], inputs: dict[str, Tensor]) -> None:
    if not profiles:
        raise ValueError("profiles: expected one or more, got none")
    for profile in profiles:
        if profile.keys() != inputs.keys():
            raise ValueError(f"profiles: expected the inputs {', '.join(inputs)}, got {', '.join(profile)}")
        for name, bounds in profile.items():
            dimensions = {len(shape) for shape in bounds} | {inputs[name].dim()}
            if len(dimensions) > 1 or not _holds(bounds, bounds[1]):
                raise ValueError(f"profiles: expected {name} as smallest <= usual <= largest, got {bounds}")


def _timings(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache | None:
    """Gives the builder the timings on disk, or none yet where those are damaged or of another driver."""
    stored = [path.read_bytes()] if path.is_file() else []
    for data in [*stored, b""]:
        timings = config.create_timing_cache(data)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return timings
    return None


def _weights(graph: Path) -> dict[str, tuple[trt.Weights, object]]:
    """The floating-point weights of an ONNX graph, each with the array whose memory it points into: those of
    its initialisers, and of its constants, which TensorRT's parser names by their output and may have folded
    into others."""
    import tensorrt as trt

    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise InputError(
            f"{graph}: needs onnx ({first_line(error)}): pip install 'ddpo3d-fast[tensorrt]'"
        ) from error
    try:
        loaded = onnx.load(str(graph)).graph
    except Exception as error:  # onnx's and protobuf's exceptions share no base class
        raise InputError(f"{graph}: not an ONNX graph ({first_line(error)})") from error
    kinds = {
        onnx.TensorProto.FLOAT: trt.DataType.FLOAT,
        onnx.TensorProto.FLOAT16: trt.DataType.HALF,
        onnx.TensorProto.BFLOAT16: trt.DataType.BF16,
    }
    tensors = {tensor.name: tensor for tensor in loaded.initializer}
    tensors |= {node.output[0]: node.attribute[0].t for node in loaded.node if node.op_type == "Constant"}
    weights: dict[str, tuple[trt.Weights, object]] = {}
    for name, tensor in tensors.items():
        if tensor.data_type in kinds:
            array = numpy_helper.to_array(tensor)
            kind, count = kinds[tensor.data_type], math.prod(tensor.dims)
            weights[name] = (trt.Weights(kind, array.ctypes.data, count), array)
    return weights


@functools.cache
def _logger() -> trt.ILogger:
    """The process's one logger, as TensorRT wants it: keeps the errors for our messages, prints nothing."""
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                _errors.append(msg)

    return Logger()


def _reason(errors: Sequence[str] = ()) -> str:
    """The first of these errors, or of those that TensorRT logged: the later ones follow from it."""
    for message in [*errors, *_errors]:
        if message.strip():
            return message.strip().splitlines()[0][:200]
    return "it gives no reason"
