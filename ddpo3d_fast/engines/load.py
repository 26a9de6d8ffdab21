"""Makes the engine of a network, and takes it only if it computes the same."""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.engines import tensorrt
from ddpo3d_fast.engines.cache import Entry, discard, find_or_build, fingerprint
from ddpo3d_fast.engines.choose import choose_runtime, default_dtype
from ddpo3d_fast.engines.export import OPSET, export
from ddpo3d_fast.engines.network import Network
from ddpo3d_fast.engines.onnx import OnnxEngine
from ddpo3d_fast.engines.openvino import OpenVinoEngine, precision
from ddpo3d_fast.engines.torch import TorchEngine
from ddpo3d_fast.errors import FallbackWarning, InputError, first_line

# Relative L2 from fp32 on the probe; a wrong graph is off by 1. Sums in another order differ by 1e-6. fp16
# and bf16 were off by 2e-3 and 2e-2 at the most in small UNets, autoencoders and towers.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
# Of a graph that ships with its probe: the embedded UNet's is off by 7e-3 in bf16 there, 2.5e-3 in runs.
SHIPPED_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
# A ReLU's gradient jumps where rounding moves its input across 0: the error is the root of the rounding, and
# was 5e-2 in fp16 and 1.1e-1 in bf16 for the tiny autoencoder.
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-1, torch.bfloat16: 4e-1}
FORMAT = 1  # of the cache's entries: what the code here makes of a network

Outputs = dict[str, Tensor]


class Engine(Protocol):
    """A frozen network on some runtime."""

    runtime: str  # for people: name, version, device

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Named contiguous tensors in, named new tensors out."""


def load_engine(
    graph: Path, runtime: str = "auto", dtype: torch.dtype | None = None, batch: int | None = None
) -> Engine:
    """The network of an ONNX graph of float32 on the CPU, once it agrees with its probe.

    `runtime` is openvino, onnxruntime or auto, which is the first of them that can run it, in `dtype` (None:
    as `default_dtype`); `batch` is how many items most calls have, where it is known. The probe.npz beside
    the graph, if there is one, holds an input and the reference's output (`expected.NAME`) for it.

    What `auto` chose and then had to do without is a FallbackWarning. Raises Disagreement if no engine agrees
    with the probe, InputError if the graph is missing or cannot be read.
    """
    device, probe = torch.device("cpu"), graph.with_name("probe.npz")
    wanted = choose_runtime(runtime, device, dtype, exports=False)
    tries = [(wanted, dtype or default_dtype(device, wanted, exports=False))]
    if runtime == "auto" and dtype in (None, torch.float32):
        tries += [("onnxruntime", torch.float32)]
    rejected: InputError | None = None
    for name, kind in dict.fromkeys(tries):
        try:
            if name == "onnxruntime" and kind != torch.float32:
                wrong = f"got {precision(kind)}"
                raise InputError(f"--precision: expected fp32 with onnxruntime and {graph}, {wrong}")
            engine = OpenVinoEngine(graph, kind, batch) if name == "openvino" else OnnxEngine(graph)
            if probe.is_file():
                output, error = disagreement(engine, *_read_probe(probe))
                if not error <= SHIPPED_TOLERANCE[kind]:
                    raise Disagreement(_another(str(probe), engine, output, error))
        except InputError as error:
            rejected = error
        except Exception as failure:  # whatever a runtime raises that cannot run a network
            rejected = InputError(f"{graph}: {name} cannot run it ({first_line(failure)})")
        else:
            if rejected is not None:
                _warn(rejected, engine)
            return engine
    assert rejected is not None
    raise rejected


def load_network(
    network: Network,
    device: torch.device | str = "cpu",
    runtime: str = "auto",
    dtype: torch.dtype | None = None,
) -> Engine:
    """A network on a runtime, which computes in `dtype` (None: fp16 on CUDA, fp32 on the CPU).

    `runtime` is one of RUNTIMES or auto; see `choose_runtime`. Graphs and plans come from the cache, or are
    built now and put there; what lay there and is of no use is built anew, once. An engine that disagrees
    with torch in fp32 on the network's example inputs gives way to torch, and torch in a lower precision to
    fp32, with a FallbackWarning that names both; so does one that `auto` chose and that cannot be built.
    Raises InputError for a runtime that is not there or cannot be built, and for a network that disagrees
    with its own stored outputs.
    """
    device = torch.device(device)
    chosen = choose_runtime(runtime, device, dtype, exports=network.graph is None)
    rejected, reference = "", functools.cache(lambda: network.expected or _reference(network, device))
    for name, kind in _candidates(chosen, device, dtype):
        try:
            engine = _agreeing(name, network, device, kind, reference)
        except Disagreement as disagrees:
            rejected = str(disagrees)
        except Exception as failure:  # whatever a runtime raises that cannot build or run a network
            if name == "torch":
                raise
            reason = f"{network.name}: {name} cannot run it ({first_line(failure)})"
            rejected = str(failure) if isinstance(failure, InputError) else reason
            if runtime != "auto":
                raise InputError(rejected) from failure
        else:
            if rejected:
                _warn(rejected, engine)
            return engine
    raise InputError(rejected)


class Disagreement(InputError):
    """An engine computes something else than the network. The message is one line."""


def _agreeing(
    name: str,
    network: Network,
    device: torch.device,
    dtype: torch.dtype,
    reference: Callable[[], Outputs],
    again: bool = True,
) -> Engine:
    """The network on a runtime, once it agrees with its probe.

    Where it does not, or cannot be loaded, what it took from the cache may be damaged, or made on other
    hardware or by another driver: with `again` all of that is built anew, once. Raises Disagreement, and
    whatever the runtime raises.
    """
    used: list[Entry] = []
    try:
        engine, inputs, expected = _LOAD[name](network, device, dtype, reference, used)
        output, error = disagreement(engine, _on(inputs, device), expected)
        if error <= (GRADIENT_TOLERANCE if network.gradient else TOLERANCE)[dtype]:
            return engine
        raise Disagreement(_another(network.name, engine, output, error))
    except torch.OutOfMemoryError:  # tells nothing of the cache
        raise
    except Exception:
        if not discard(used, again):
            raise
    return _agreeing(name, network, device, dtype, reference, again=False)


def disagreement(engine: Engine, inputs: dict[str, Tensor], expected: Outputs) -> tuple[str, float]:
    """The output that is farthest from what is expected, and its relative L2 distance; not a number counts as
    infinitely far."""
    got, worst = (engine(**inputs) if expected else {}), ("", 0.0)
    for name, wanted in expected.items():
        norm = wanted.cpu().norm().clamp_min(1e-30)  # of zeros, anything but zeros is far
        error = float((got[name].cpu() - wanted.cpu()).norm() / norm)
        worst = max(worst, (name, error if error < float("inf") else float("inf")), key=lambda one: one[1])
    return worst


def _candidates(
    runtime: str, device: torch.device, dtype: torch.dtype | None
) -> list[tuple[str, torch.dtype]]:
    """What to try, in this order."""
    kind = dtype or default_dtype(device, runtime, exports=False)
    # bf16 on torch is no faster than fp32 elsewhere, so it takes the place of none that `auto` has chosen.
    again = ("openvino", torch.float32) if runtime == "openvino" and dtype is None else ("torch", kind)
    return list(dict.fromkeys([(runtime, kind), again, ("torch", torch.float32)]))


def _reference(network: Network, device: torch.device) -> Outputs:
    """What the network's module itself computes, in fp32."""
    try:
        engine, place = TorchEngine(network, device, torch.float32), device
    except torch.OutOfMemoryError:  # twice what the run itself will take
        engine, place = TorchEngine(network, "cpu", torch.float32), torch.device("cpu")
    return {name: tensor.cpu() for name, tensor in engine(**_on(network.inputs, place)).items()}


Loaded = tuple[Engine, dict[str, Tensor], Outputs]  # an engine; inputs of a probe and what to expect of it


def _on_torch(
    network: Network,
    device: torch.device,
    dtype: torch.dtype,
    reference: Callable[[], Outputs],
    used: list[Entry],
) -> Loaded:
    exact = dtype == torch.float32 and not network.expected  # the reference itself
    return TorchEngine(network, device, dtype), network.inputs, {} if exact else reference()


def _on_onnxruntime(
    network: Network,
    device: torch.device,
    dtype: torch.dtype,
    reference: Callable[[], Outputs],
    used: list[Entry],
) -> Loaded:
    graph, inputs, expected = _graph_and_probe(network, dtype, reference, used)
    return OnnxEngine(graph), inputs, expected


def _on_openvino(
    network: Network,
    device: torch.device,
    dtype: torch.dtype,
    reference: Callable[[], Outputs],
    used: list[Entry],
) -> Loaded:
    graph, inputs, expected = _graph_and_probe(network, torch.float32, reference, used)
    first = next(iter(network.inputs))  # all have the items as their first axis
    batch = min((shapes[first][0] for shapes in network.shapes), default=None)
    return OpenVinoEngine(graph, dtype, batch), inputs, expected


def _on_tensorrt(
    network: Network,
    device: torch.device,
    dtype: torch.dtype,
    reference: Callable[[], Outputs],
    used: list[Entry],
) -> Loaded:
    """Takes the plan of the network's base, where it has one, and refits it with the network's weights."""
    compatible = tensorrt.wants_version_compatible()
    folder, bounds = _graph(network, dtype, reference, used), profiles(network)
    base, planned = None if compatible else network.base, folder  # compatible plans cannot be refitted
    if base is not None:
        before = replace(network, module=base)
        planned = _graph(before, dtype, lambda: _reference(before, device), used)

    def engine(plan: Path) -> tensorrt.TensorRTEngine:
        return tensorrt.TensorRTEngine(
            planned / "model.onnx",
            plan,
            network.inputs,
            network.outputs,
            bounds,
            device,
            refittable=base is not None,
            version_compatible=compatible,
        )

    def build(entry: Path) -> dict[str, Any]:
        return {"runtime": engine(entry / "model.plan").runtime, "probe": f"{planned.name}/probe.npz"}

    key = {
        "graph": planned.name,
        # A compatible plan serves later versions, too. Earlier ones refuse it: then it is built anew.
        "runtime": "tensorrt, version-compatible" if compatible else f"tensorrt {tensorrt.version()}",
        "refittable": base is not None,
        "device": torch.cuda.get_device_name(device),
        "dtype": str(dtype),
        "profiles": bounds,
    }
    entry = find_or_build(f"{network.name}-tensorrt", key, build, used)
    loaded = engine(entry / "model.plan")
    if base is not None:
        loaded.refit(folder / "model.onnx")
    return loaded, *_read_probe(folder / "probe.npz")


_LOAD: dict[str, Callable[..., Loaded]] = {
    "tensorrt": _on_tensorrt,
    "openvino": _on_openvino,
    "onnxruntime": _on_onnxruntime,
    "torch": _on_torch,
}


def profiles(network: Network) -> list[tensorrt.Profile]:
    """Smallest, most frequent and largest shape of every input, one profile after the other.

    Where the network names the `shapes` of its calls there is one for each, for batches up to that, and one
    for the examples, which the probe has, if none of those holds them. Else there is one: for batches up to
    32 and those of four examples, and for other dynamic axes from half to twice the example's.
    """

    def profile(shapes: dict[str, tuple[int, ...]], fixed: bool) -> tensorrt.Profile:
        made = {}
        for name, shape in shapes.items():
            low, high = list(shape), list(shape)
            for axis in network.dynamic.get(name, ()):
                if axis == 0:
                    low[0], high[0] = 1, shape[0] if fixed else max(4 * shape[0], 32)
                elif not fixed:
                    low[axis], high[axis] = max(shape[axis] // 2, 1), 2 * shape[axis]
            made[name] = (tuple(low), shape, tuple(high))
        return made

    examples = {name: tuple(tensor.shape) for name, tensor in network.inputs.items()}
    if not network.shapes:
        return [profile(examples, fixed=False)]
    # Those of fewer items than another's are within its profile.
    largest = [shapes for shapes in network.shapes if not any(_within(shapes, o) for o in network.shapes)]
    made = [profile(shapes, fixed=True) for shapes in largest]
    held = any(
        all(
            low <= size <= high
            for name, shape in examples.items()
            for low, size, high in zip(one[name][0], shape, one[name][2], strict=True)
        )
        for one in made
    )
    return made if held else [*made, profile(examples, fixed=True)]


def _within(shapes: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]]) -> bool:
    """Whether a call is one of fewer items, and else the same."""
    pairs = [(shapes[name], other[name]) for name in shapes]
    return all(one[0] < two[0] and one[1:] == two[1:] for one, two in pairs)


def _graph_and_probe(
    network: Network, dtype: torch.dtype, reference: Callable[[], Outputs], used: list[Entry]
) -> tuple[Path, dict[str, Tensor], Outputs]:
    """The network's ONNX graph, the one that ships with it or one of the cache, and its probe."""
    if network.graph is not None:
        return network.graph, network.inputs, reference()
    folder = _graph(network, dtype, reference, used)
    return folder / "model.onnx", *_read_probe(folder / "probe.npz")


def _graph(network: Network, dtype: torch.dtype, reference: Callable[[], Outputs], used: list[Entry]) -> Path:
    """The folder of the network's ONNX graph in a dtype, with its probe; from the cache, or exported now."""

    def build(folder: Path) -> dict[str, Any]:
        export(network, folder / "model.onnx", dtype)
        expected = {f"expected.{name}": tensor for name, tensor in reference().items()}
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in (network.inputs | expected).items()}
        np.savez(folder / "probe.npz", **arrays)  # type: ignore[arg-type]  # numpy takes the names as options
        return {"runtime": "ONNX graph", "probe": "probe.npz"}

    exporters = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    key = fingerprint(network) | {
        "dtype": str(dtype),
        "opset": OPSET,
        "exporters": exporters,
        "format": FORMAT,
    }
    return find_or_build(f"{network.name}-onnx", key, build, used)


def _read_probe(path: Path) -> tuple[dict[str, Tensor], Outputs]:
    """Inputs, and the reference's outputs for them."""
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    expected = {
        name.removeprefix("expected."): t for name, t in arrays.items() if name.startswith("expected.")
    }
    return {name: t for name, t in arrays.items() if not name.startswith("expected.")}, expected


def _on(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _another(name: str, engine: Engine, output: str, error: float) -> str:
    return f"{name}: {engine.runtime} gives another {output}, relative error {error:.1e}"


def _warn(reason: object, engine: Engine) -> None:
    """That another engine takes the place of the one wanted; to the caller of a public function here."""
    warnings.warn(f"{reason}; {engine.runtime} runs it instead", FallbackWarning, stacklevel=3)
