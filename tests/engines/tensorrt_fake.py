"""Stands in for TensorRT's Python module: strict, on the CPU, and it writes down every call.

Its public names are TensorRT's own (test_tensorrt.py holds them against the real bindings); what tests use
besides begins with an underscore. Networks are real ONNX graphs, run by ONNX Runtime on the memory whose
addresses were given, so that wrong addresses, shapes and dtypes show up as wrong numbers.

`_Misuse` is raised where the real library would crash, read foreign memory or leave the result undefined;
where it would log an error and return None or False, so does this.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import pickle
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = "10.16.1.11"

_KINDS = {1: "FLOAT", 10: "HALF", 16: "BF16", 6: "INT32", 7: "INT64", 9: "BOOL"}  # by ONNX's number
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


class _Misuse(Exception):
    """A call that the real TensorRT must never see."""


@dataclass
class _State:
    """What a test sets and looks at."""

    driver: bool = True
    stream: int = 7  # torch's current stream
    capturing: bool = False
    fails: set[str] = field(default_factory=set)  # calls that shall report a failure
    calls: list[str] = field(default_factory=list)
    machine: str = "one driver"  # what timings depend on besides the version
    timed: int = 0  # layers that a build had to time, as the timing cache lacked them


_state = _State()


def _reset() -> _State:
    global _state, __version__
    _state, __version__ = _State(), "10.16.1.11"
    return _state


def _called(name: str, *details: object) -> bool:
    """Writes the call down; whether it shall succeed."""
    if not _state.driver:
        raise _Misuse(f"{name} without a driver: the process would end here")
    _state.calls.append(" ".join([name, *map(str, details)]))
    return name not in _state.fails


def _quiet(name: str) -> None:
    """For what may not happen while a stream is being captured."""
    if _state.capturing:
        raise _Misuse(f"{name} during the capture of a CUDA graph")


def _on_stream(name: str, handle: object) -> None:
    if type(handle) is not int or handle != _state.stream:
        raise _Misuse(f"{name}: stream {handle}, but torch's current one is {_state.stream}")


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT32, INT64, BOOL = range(6)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32, REFIT, VERSION_COMPATIBLE = range(3)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE = range(2)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Severity, msg: str) -> None:
        raise _Misuse("the logger's log is not overridden")


def _report(logger: ILogger, message: str) -> None:
    logger.log(ILogger.Severity.WARNING, "only a warning")
    logger.log(ILogger.Severity.ERROR, message + "\nwith details on further lines")
    logger.log(ILogger.Severity.ERROR, "something that follows from it")


def _need_logger(logger: object) -> None:
    if not getattr(logger, "_ready", False):
        raise _Misuse("expected a logger whose ILogger.__init__ was called")


class Dims:
    def __init__(self, shape: list[int]) -> None:
        if type(shape) is not list:
            raise TypeError("incompatible constructor arguments")  # as 10.13 documents it
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, arg0: int) -> int:
        return self._shape[arg0]


class IHostMemory(bytes):
    pass


class ITensor:
    def __init__(self, name: str) -> None:
        self.name = name


class INetworkDefinition:
    def __init__(self) -> None:
        self._model: Any = None
        self._parser: Any = lambda: None

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._model.graph.input[index].name)

    def get_output(self, index: int) -> ITensor:
        return ITensor(self._model.graph.output[index].name)


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _called("OnnxParser")
        _need_logger(logger)
        self._network, self._errors = network, list[str]()

    def parse_from_file(self, model: str) -> bool:
        _called("parse_from_file")
        if type(model) is not str:
            raise TypeError("incompatible function arguments")
        try:
            self._network._model = onnx.load(model)  # with the external data beside it
        except Exception as error:
            self._errors = [f"cannot parse: {type(error).__name__}\nin some C++ file", "and so on"]
            return False
        self._network._parser = weakref.ref(self)
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:
        if not all(type(dims) is Dims for dims in (min, opt, max)):
            raise TypeError("incompatible function arguments")
        self._shapes[input] = [list(min), list(opt), list(max)]


class ITimingCache:
    def __init__(self, origin: str, layers: set[str]) -> None:
        self._origin, self._layers = origin, layers

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"TIMINGS" + pickle.dumps((self._origin, sorted(self._layers))))


def _origin() -> str:
    return f"{__version__} on {_state.machine}"


class IBuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self._logger, self._flags, self._profiles = logger, {"TF32"}, list[dict[str, list[list[int]]]]()
        self._timings: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag.name)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        _called("add_optimization_profile")
        for low, usual, high in profile._shapes.values():
            if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
                _report(self._logger, "profile: min <= opt <= max does not hold")
                return -1
        if "add_optimization_profile" in _state.fails:
            return -1
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        data = bytes(serialized_timing_cache)
        if data and not data.startswith(b"TIMINGS"):
            _report(self._logger, "damaged timing cache")
            return None
        origin, layers = pickle.loads(data[7:]) if data else (_origin(), [])
        return ITimingCache(origin, set(layers))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if type(cache) is not ITimingCache:
            raise _Misuse(f"set_timing_cache({cache})")
        if cache._origin != _origin() and not ignore_mismatch:
            return False
        self._timings = cache
        return True


class Builder:
    def __init__(self, logger: ILogger) -> None:
        _called("Builder")
        _quiet("Builder")
        _need_logger(logger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        if flags != 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            raise _Misuse(f"create_network({flags}): not strongly typed, or a flag that 11 has not")
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        succeeds = _called("build_serialized_network")
        if network._model is None:
            raise _Misuse("build of an empty network")
        if network._parser() is None:
            raise _Misuse("the parser, which owns the weights, is gone before the build")
        graph, faults = network._model.graph, []
        for tensor in graph.input:
            shape = [axis.dim_value or -1 for axis in tensor.type.tensor_type.shape.dim]
            for profile in config._profiles:
                if tensor.name not in profile:
                    faults += [f"{tensor.name}: no shape in a profile"] * (-1 in shape)
                    continue
                for bound in profile[tensor.name]:
                    if len(bound) != len(shape) or any(
                        a not in (-1, b) for a, b in zip(shape, bound, strict=True)
                    ):
                        faults.append(f"{tensor.name}: {bound} does not fit {shape}")
            faults += [f"{tensor.name}: dynamic, without a profile"] * (-1 in shape and not config._profiles)
        if faults or not succeeds:
            _report(self._logger, (faults or ["out of tactics"])[0])
            return None
        known = config._timings._layers if config._timings else set()
        kinds = {t.name: f"{t.data_type}{list(t.dims)}" for t in graph.initializer}
        layers = {" ".join([node.op_type, *(kinds.get(n, n) for n in node.input)]) for node in graph.node}
        _state.timed = len(layers - known)
        known |= layers
        plan = (__version__, config._flags, config._profiles or [{}], network._model.SerializeToString())
        body = pickle.dumps(plan)
        return IHostMemory(b"PLAN" + hashlib.sha256(body).digest() + body)


class ICudaEngine:
    def __init__(self, flags: set[str], profiles: list[dict[str, list[list[int]]]], model: bytes) -> None:
        self._flags, self._profiles = flags, profiles
        self._model = onnx.load_from_string(model)
        self._tensors = {t.name: t for t in [*self._model.graph.input, *self._model.graph.output]}
        self._inputs = [tensor.name for tensor in self._model.graph.input]
        self._broken = False
        self._start()

    def _start(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = onnxruntime.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def refittable(self) -> bool:
        return "REFIT" in self._flags

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_KINDS[self._tensors[name].type.tensor_type.elem_type]]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims([axis.dim_value or -1 for axis in self._tensors[name].type.tensor_type.shape.dim])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        if name not in self._inputs or -1 not in tuple(self.get_tensor_shape(name)):
            raise _Misuse(f"get_tensor_profile_shape({name}): no dynamic input")
        return [Dims(shape) for shape in self._profiles[profile_index][name]]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        succeeds = _called("create_execution_context", strategy.name)
        _quiet("create_execution_context")
        return IExecutionContext(self) if succeeds else None


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        _called("Runtime")
        _need_logger(logger)
        self._logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        succeeds = _called("deserialize_cuda_engine")
        _quiet("deserialize_cuda_engine")
        data = bytes(serialized_engine)
        if data[:4] != b"PLAN" or data[4:36] != hashlib.sha256(data[36:]).digest() or not succeeds:
            _report(self._logger, "the plan is damaged")
            return None
        version, flags, profiles, model = pickle.loads(data[36:])
        newer = [int(part) for part in version.split(".")] > [int(part) for part in __version__.split(".")]
        portable = "VERSION_COMPATIBLE" in flags
        if (version != __version__ and not portable) or newer:
            _report(self._logger, f"the plan is of version {version}")
            return None
        if portable and not self.engine_host_code_allowed:
            _report(self._logger, "the plan holds host code, which is not allowed")
            return None
        return ICudaEngine(flags, profiles, model)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._settled = False  # whether it has run since its shapes were set

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        succeeds = _called("set_optimization_profile_async", profile_index)
        _quiet("set_optimization_profile_async")
        _on_stream("set_optimization_profile_async", stream_handle)
        if not 0 <= profile_index < len(self._engine._profiles):
            raise _Misuse(f"profile {profile_index} of {len(self._engine._profiles)}")
        self._profile, self._shapes, self._settled = profile_index, {}, False
        return succeeds

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        _called("set_input_shape", name, shape)
        _quiet("set_input_shape")
        if self._profile is None or name not in self._engine._inputs:
            raise _Misuse(f"set_input_shape({name}): no such input, or no profile chosen")
        if -1 in tuple(self._engine.get_tensor_shape(name)):
            low, _, high = self._engine._profiles[self._profile][name]
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                return False
        elif shape != tuple(self._engine.get_tensor_shape(name)):
            return False
        self._shapes[name], self._settled = tuple(shape), False
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._shapes:
            return Dims(list(self._shapes[name]))
        if self._shapes.keys() != set(self._engine._inputs):
            return Dims([-1] * len(self._engine.get_tensor_shape(name)))
        given = {
            n: np.zeros(s, _NUMPY[self._engine.get_tensor_dtype(n).name]) for n, s in self._shapes.items()
        }
        return Dims(list(self._engine._session.run([name], given)[0].shape))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        _called("set_tensor_address", name)
        if type(memory) is not int or memory == 0 or name not in self._engine._tensors:
            raise _Misuse(f"set_tensor_address({name}, {memory})")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        succeeds = _called("execute_async_v3")
        _on_stream("execute_async_v3", stream_handle)
        engine = self._engine
        if engine._broken:
            raise _Misuse("execute_async_v3 after a refit that failed")
        if self._shapes.keys() != set(engine._inputs):
            raise _Misuse(f"execute_async_v3 with shapes of {list(self._shapes)} alone")
        if self._addresses.keys() != engine._tensors.keys():
            raise _Misuse(f"execute_async_v3 with addresses of {list(self._addresses)} alone")
        if _state.capturing and not self._settled:
            raise _Misuse("execute_async_v3 captured before a first run with these shapes")
        if not succeeds:
            return False
        outputs = [name for name in engine._tensors if name not in engine._inputs]
        given = {name: self._memory(name, shape).copy() for name, shape in self._shapes.items()}
        for name, result in zip(outputs, engine._session.run(outputs, given), strict=True):
            self._memory(name, result.shape)[...] = result
        self._settled = True
        return True

    def _memory(self, name: str, shape: tuple[int, ...]) -> Any:
        kind = np.dtype(_NUMPY[self._engine.get_tensor_dtype(name).name])
        return _at(self._addresses[name], int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)


def _at(address: int, size: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Weights:
    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        self._type, self._address, self._count = type, ptr, count


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        _called("Refitter")
        _quiet("Refitter")
        _need_logger(logger)
        if not engine.refittable:
            raise _Misuse("Refitter of an engine that was built without REFIT")
        self._engine, self._logger = engine, logger
        self._given: dict[str, Weights] = {}

    def _weights(self) -> dict[str, Any]:
        return {t.name: t for t in self._engine._model.graph.initializer if t.data_type in (1, 10, 16)}

    def get_all_weights(self) -> list[str]:
        return ["TensorRT's own", *self._weights()]

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        _called("set_named_weights")
        tensor = self._weights().get(name)
        wanted = tensor and (DataType[_KINDS[tensor.data_type]], int(np.prod(tensor.dims)))
        if wanted != (weights._type, weights._count):
            _report(self._logger, f"{name} has another size or type")
            return False
        self._given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return [name for name in self._weights() if name not in self._given]

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        succeeds = _called("refit_cuda_engine_async")
        _on_stream("refit_cuda_engine_async", stream_handle)
        if self.get_missing_weights() or not succeeds:
            self._engine._broken = True
            return False
        for name, tensor in self._weights().items():
            size = len(onnx.numpy_helper.to_array(tensor).tobytes())
            data = _at(self._given[name]._address, size).tobytes()
            array = np.frombuffer(data, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.reshape(tuple(tensor.dims)), name))
        self._engine._start()
        return True


def _public() -> dict[str, set[str]]:
    """The names of TensorRT's that this module has: by class its members."""
    classes = {name: value for name, value in globals().items() if isinstance(value, type)}
    own = {n: c for n, c in classes.items() if c.__module__ == __name__ and not n.startswith("_")}
    return {n: {m for m in vars(c) if not m.startswith("_")} for n, c in own.items()}


def _plan(path: Path) -> tuple[str, set[str], list[dict[str, list[list[int]]]]]:
    """Version, flags and profiles of a plan."""
    version, flags, profiles, _ = pickle.loads(path.read_bytes()[36:])
    return version, flags, profiles
