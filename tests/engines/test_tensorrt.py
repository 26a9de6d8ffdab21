"""The TensorRT engine, as far as it can be proven without a GPU.

Its calls come in the right order and numbers flow through them, against a strict stand-in (tensorrt_fake.py);
and every class, member and signature that it uses is in the real bindings of 10.13, 10.16 and 11.4, where
fetch_tensorrt_bindings.sh has put them. Nothing here runs TensorRT itself.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tensorrt_fake as fake
import torch
from torch import nn

from ddpo3d_fast.engines import Network, load
from ddpo3d_fast.engines import tensorrt as room
from ddpo3d_fast.engines.cache import entries
from ddpo3d_fast.engines.tensorrt import TensorRTEngine, unavailable, version
from ddpo3d_fast.errors import FallbackWarning, InputError

ROOT = Path(__file__).parents[2]
SOURCE = Path(room.__file__)
NAMES, OUTPUTS = ("noisy", "timesteps"), ("prediction", "score")
ZEROS = torch.zeros


class Small(nn.Module):
    """As a UNet has it: pictures of two sizes and integers in, two tensors out."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
            self.embed, self.score = nn.Linear(4, 8), nn.Linear(8, 1, bias=False)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps = timesteps[:, None].to(noisy.dtype) / torch.tensor([1000.0, 100, 10, 1]).to(noisy.dtype)
        hidden = torch.sigmoid(self.first(noisy) + self.embed(steps.sin())[:, :, None, None])
        return self.last(hidden), self.score(hidden.flatten(2).transpose(1, 2)).mean((1, 2))


def inputs(count: int, size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(count, 3, size, size, generator=generator)
    return {"noisy": noisy, "timesteps": torch.randint(1000, (count,), generator=generator)}


def expected(module: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(zip(OUTPUTS, module(*given.values()), strict=True))


def network(seed: int) -> Network:
    module, given = Small(seed).eval().requires_grad_(False), inputs(2, 8)
    dynamic = {"noisy": (0, 2, 3), "timesteps": (0,)}
    return Network("unet", module, given, OUTPUTS, dynamic, expected=expected(module, given))


def halved(seed: int, path: Path) -> Path:
    """A graph whose floats come and go in half precision, unlike those that the room exports."""
    given = inputs(2, 8)
    program = torch.onnx.export(
        Small(seed).half().eval(),
        (given["noisy"].half(), given["timesteps"]),
        dynamo=True,
        opset_version=20,
        input_names=NAMES,
        output_names=OUTPUTS,
        dynamic_shapes=(
            dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),
            {0: torch.export.Dim.DYNAMIC},
        ),
        verbose=False,
    )
    program.save(str(path))
    return path


def initialiser(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))


def set_weight(graph: Path, name: str, weight: torch.Tensor, path: Path) -> Path:
    """The graph with another weight."""
    model = onnx.load(str(graph))
    tensor = initialiser(model, name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight.detach().numpy(), tensor.name))
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """Small(0) and Small(1) as the room exports them, the first with its weights in a file beside it."""
    folder = tmp_path_factory.mktemp("graphs")
    for seed in (0, 1):
        load.export(network(seed), folder / f"{seed}.onnx", torch.float32)
    onnx.save(
        onnx.load(str(folder / "0.onnx")),
        str(folder / "single.onnx"),
        save_as_external_data=True,
        location="single.data",
        size_threshold=0,
    )
    (folder / "0.onnx").unlink()
    return types.SimpleNamespace(
        module=Small(0),
        single=folder / "single.onnx",
        other=folder / "1.onnx",
        half=halved(0, folder / "half.onnx"),
    )


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    """The stand-in for TensorRT, with a torch that takes the CPU for a GPU."""
    state = fake._reset()
    synchronize = lambda *_: fake._quiet("synchronize") or state.calls.append("synchronize")  # noqa: E731

    def current_stream():
        return types.SimpleNamespace(cuda_stream=state.stream, synchronize=synchronize)

    monkeypatch.setenv("DDPO3D_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: state.driver)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **more: ZEROS(*shape, **more))
    room._logger.cache_clear()
    yield state
    room._logger.cache_clear()


def profile(size: int) -> room.Profile:
    """Pictures of one resolution, in batches of 1 to 4."""
    return {
        "noisy": ((1, 3, size, size), (2, 3, size, size), (4, 3, size, size)),
        "timesteps": ((1,), (2,), (4,)),
    }


PROFILES = [profile(8), profile(16)]


@pytest.fixture
def make(graphs, tmp_path):
    def make(
        graph: Path = graphs.single, profiles: list[room.Profile] = PROFILES, **options
    ) -> TensorRTEngine:
        plan = options.pop("plan", tmp_path / "cache" / "plan")
        device = options.pop("device", "cuda")
        return TensorRTEngine(graph, plan, inputs(2, 8), OUTPUTS, profiles, device, **options)

    return make


def agree(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-5) -> bool:
    errors = [float((got[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted]
    return got.keys() == wanted.keys() and max(errors) <= tolerance


def count(state, call: str) -> int:
    return sum(line.split()[0] == call for line in state.calls)


def one_line(error: BaseException, *parts: object) -> bool:
    return "\n" not in str(error) and all(str(part) in str(error) for part in parts)


# What it computes


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("number", [1, 4])
def test_it_computes_what_the_module_computes(make, graphs, number, size):
    given = inputs(number, size)
    assert agree(make()(**given), expected(graphs.module, given))


def test_shapes_may_alternate(make, graphs):
    engine = make()
    for seed, (number, size) in enumerate([(1, 8), (2, 16), (1, 8), (3, 16), (2, 16)]):
        given = inputs(number, size, seed)
        assert agree(engine(**given), expected(graphs.module, given))


def test_a_graph_in_half_precision_takes_and_gives_float32(make, graphs):
    given = inputs(2, 8)
    got = make(graphs.half)(**given)
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    assert agree(got, expected(graphs.module, given), 3e-3)
    assert not agree(got, expected(graphs.module, given), 1e-6)  # it did compute in half precision


def test_inputs_need_not_be_contiguous(make, graphs):
    given = inputs(2, 8)
    strided = {"noisy": given["noisy"].to(memory_format=torch.channels_last), "timesteps": given["timesteps"]}
    assert agree(make()(**strided), expected(graphs.module, given))


def test_results_are_new_tensors_without_gradient(make):
    engine, given = make(), inputs(2, 8)
    first = engine(noisy=given["noisy"].requires_grad_(), timesteps=given["timesteps"])
    kept = {name: tensor.clone() for name, tensor in first.items()}
    engine(**inputs(2, 8, seed=1))
    assert all(torch.equal(first[name], kept[name]) and not first[name].requires_grad for name in first)


def test_it_names_its_runtime(make):
    assert make().runtime == "TensorRT 10.16.1.11, Some GPU"


# The order of calls


def test_a_new_engine_makes_these_calls(make, state):
    make()
    assert state.calls == [
        "Runtime",
        "Builder",
        "OnnxParser",
        "parse_from_file",
        "add_optimization_profile",
        "add_optimization_profile",
        "build_serialized_network",
        "deserialize_cuda_engine",
    ]


def test_the_first_call_with_a_shape_makes_these_calls(make, state):
    engine = make()
    state.calls.clear()
    engine(**inputs(2, 16))
    assert state.calls == [
        "create_execution_context ON_PROFILE_CHANGE",
        "set_optimization_profile_async 1",
        "synchronize",
        "set_input_shape noisy (2, 3, 16, 16)",
        "set_input_shape timesteps (2,)",
        *[f"set_tensor_address {name}" for name in NAMES + OUTPUTS],
        "execute_async_v3",  # warm-up
        "synchronize",
        "execute_async_v3",
    ]


def test_later_calls_are_one_launch_that_can_be_captured(make, graphs, state):
    engine = make()
    for number, size in ((2, 8), (2, 16)):
        engine(**inputs(number, size))
    state.calls.clear()
    state.capturing, state.stream = True, 9  # torch captures on a stream of its own
    for number, size in ((2, 8), (2, 16)):
        given = inputs(number, size, seed=3)
        assert agree(engine(**given), expected(graphs.module, given))
    assert state.calls == ["execute_async_v3", "execute_async_v3"]


def test_a_new_shape_during_a_capture_is_refused(make, state):
    engine = make()
    engine(**inputs(2, 8))
    state.capturing = True
    with pytest.raises(RuntimeError, match=r"noisy \(3, 3, 8, 8\), timesteps \(3,\) once before the capture"):
        engine(**inputs(3, 8))


def test_the_network_computes_in_the_dtypes_of_its_graph(make, tmp_path):
    make()  # the stand-in refuses a network that is not strongly typed
    assert fake._plan(tmp_path / "cache" / "plan")[1] == set()  # no TF32, which would round fp32


def test_the_profiles_are_those_asked_for(make, tmp_path):
    make()
    wanted = [{name: [list(shape) for shape in bounds] for name, bounds in p.items()} for p in PROFILES]
    assert fake._plan(tmp_path / "cache" / "plan")[2] == wanted


# The plan on disk


def test_a_plan_is_built_once(make, graphs, state, tmp_path):
    make()
    kept = (tmp_path / "cache" / "plan").read_bytes()
    state.calls.clear()
    given = inputs(2, 16)
    assert agree(make(graph=tmp_path / "gone.onnx")(**given), expected(graphs.module, given))
    assert count(state, "Builder") == 0
    assert (tmp_path / "cache" / "plan").read_bytes() == kept


def damage(plan: Path, how: str) -> None:
    data = plan.read_bytes()
    middle = len(data) // 2
    spoilt = {
        "empty": b"",
        "truncated": data[:middle],
        "one byte": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
    }
    plan.write_bytes(spoilt[how])


@pytest.mark.parametrize("how", ["empty", "truncated", "one byte"])
def test_a_damaged_plan_is_one_line(make, state, tmp_path, how):
    make()
    damage(tmp_path / "cache" / "plan", how)
    with pytest.raises(InputError) as raised:
        make()
    assert one_line(raised.value, tmp_path / "cache" / "plan", "run here (the plan is damaged)")
    assert count(state, "build_serialized_network") == 1


def test_a_plan_for_other_shapes_or_tensors_is_one_line(make, graphs, tmp_path):
    make(profiles=[profile(8)])
    plan = tmp_path / "cache" / "plan"
    for profiles in ([profile(16)], PROFILES):
        with pytest.raises(InputError) as raised:
            make(profiles=profiles)
        assert one_line(raised.value, plan, "it is for other tensors or shapes")
    with pytest.raises(InputError, match="it is for other tensors"):
        TensorRTEngine(graphs.single, plan, inputs(2, 8), (OUTPUTS[0], "grad"), [profile(8)], "cuda")


def test_a_plan_that_cannot_be_refitted_is_refused_where_it_must(make, state, tmp_path):
    make()
    with pytest.raises(InputError, match="not a plan that TensorRT can run here"):
        make(refittable=True)
    make(plan=tmp_path / "other", refittable=True)
    make(plan=tmp_path / "other")  # a plan that can be refitted serves everybody
    assert count(state, "build_serialized_network") == 2


def test_a_plan_serves_later_versions_if_it_is_compatible(make, graphs, tmp_path, monkeypatch):
    releases, plan = ("10.13.3.9", "11.4.0.106"), tmp_path / "plan"
    for built, used, compatible in ((*releases, False), (*releases, True), (*releases[::-1], True)):
        plan.unlink(missing_ok=True)
        monkeypatch.setattr(fake, "__version__", built)
        make(plan=plan, version_compatible=compatible)
        monkeypatch.setattr(fake, "__version__", used)
        if (built, compatible) == (releases[0], True):
            engine = make(plan=plan, version_compatible=compatible)
            assert agree(engine(**inputs(2, 8)), expected(graphs.module, inputs(2, 8)))
        else:
            with pytest.raises(InputError, match=rf"the plan is of version {built}"):
                make(plan=plan, version_compatible=compatible)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_nothing_but_the_plan_and_the_timings_is_left(make, tmp_path):
    make()
    assert everything(tmp_path).keys() == {"cache/plan", "engines/timings-10.16.1.11-Some-GPU"}


def test_a_build_that_fails_leaves_the_old_files_and_no_others(make, state, tmp_path):
    make()
    before = everything(tmp_path)
    state.fails.add("build_serialized_network")
    with pytest.raises(InputError):
        make(plan=tmp_path / "cache" / "other")
    assert everything(tmp_path) == before


# The timing cache


def test_what_one_build_timed_serves_the_next(make, graphs, state, tmp_path):
    make(plan=tmp_path / "a")
    assert state.timed > 0
    make(plan=tmp_path / "b")
    assert state.timed == 0
    make(plan=tmp_path / "c", graph=graphs.half)
    assert state.timed > 0
    make(plan=tmp_path / "d")  # what was known is kept beside the new
    assert state.timed == 0


@pytest.mark.parametrize("how", ["damaged", "of another driver"])
def test_a_timing_cache_that_does_not_serve_is_replaced(make, graphs, state, tmp_path, how):
    make(plan=tmp_path / "a")
    if how == "damaged":
        next((tmp_path / "engines").iterdir()).write_bytes(b"nonsense")
    else:
        state.machine = "another driver"
    given = inputs(2, 8)
    engine = make(plan=tmp_path / "b")
    assert agree(engine(**given), expected(graphs.module, given))
    assert state.timed > 0
    make(plan=tmp_path / "c")
    assert state.timed == 0


# Refit


def test_refit_takes_the_weights_of_the_network_exported_again(make, graphs, tmp_path):
    engine, given = make(refittable=True), inputs(2, 8)
    engine(**given)
    plan = (tmp_path / "cache" / "plan").read_bytes()
    engine.refit(graphs.other)
    assert agree(engine(**given), expected(Small(1), given))
    assert (tmp_path / "cache" / "plan").read_bytes() == plan
    engine.refit(graphs.single)  # whose weights lie in a file beside it
    assert agree(engine(**given), expected(graphs.module, given))


def test_refit_of_half_precision(make, graphs, tmp_path):
    engine, given, other = make(graphs.half, refittable=True), inputs(2, 8), Small(0)
    other.last.weight.data *= -3
    engine.refit(set_weight(graphs.half, "last.weight", other.last.weight.half(), tmp_path / "other.onnx"))
    assert agree(engine(**given), expected(other, given), 3e-3)


def in_a_node(graph: Path, name: str, path: Path) -> Path:
    """The graph with an initialiser turned into a constant node."""
    model = onnx.load(str(graph))
    tensor = initialiser(model, name)
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    model.graph.initializer.remove(tensor)
    onnx.save(model, str(path))
    return path


def test_refit_gives_the_weights_of_constants_too(make, graphs, monkeypatch, tmp_path):
    """TensorRT has them by the node's output, and misses those that it has folded into others."""
    initialisers = fake.Refitter._weights

    def with_constants(refitter):
        constants = [node for node in refitter._engine._model.graph.node if node.op_type == "Constant"]
        tensors = {node.output[0]: node.attribute[0].t for node in constants}
        return initialisers(refitter) | {name: t for name, t in tensors.items() if t.data_type in (1, 10, 16)}

    monkeypatch.setattr(fake.Refitter, "_weights", with_constants)
    base = in_a_node(graphs.single, "first.bias", tmp_path / "base.onnx")
    engine, given = make(base, refittable=True), inputs(2, 8)
    engine.refit(in_a_node(graphs.other, "first.bias", tmp_path / "other.onnx"))
    assert agree(engine(**given), expected(Small(1), given))


def test_refit_waits_for_work_under_way(make, graphs, state):
    engine = make(refittable=True)
    state.calls.clear()
    engine.refit(graphs.other)
    waited = [state.calls[0], state.calls[-1]]
    assert waited == ["synchronize", "synchronize"]
    assert state.calls[-2] == "refit_cuda_engine_async"


def test_refit_needs_an_engine_made_for_it(make, graphs):
    with pytest.raises(ValueError, match="was not made refittable"):
        make().refit(graphs.other)


@pytest.mark.parametrize("weight", [torch.randn(12, 3, 3, 3), torch.randn(8, 3, 3, 3).half()])
def test_weights_of_another_network_are_refused_and_the_engine_goes_on(make, graphs, tmp_path, weight):
    engine, given = make(refittable=True), inputs(2, 8)
    path = set_weight(graphs.other, "first.weight", weight, tmp_path / "another.onnx")
    with pytest.raises(InputError) as raised:
        engine.refit(path)
    assert one_line(raised.value, path, "do not fit")
    assert agree(engine(**given), expected(graphs.module, given))


def test_weights_that_are_missing_are_named(make, graphs, tmp_path):
    model = onnx.load(str(graphs.single))
    model.graph.initializer.remove(initialiser(model, "first.weight"))
    onnx.save(model, str(tmp_path / "part.onnx"))
    with pytest.raises(InputError) as raised:
        make(refittable=True).refit(tmp_path / "part.onnx")
    assert one_line(raised.value, tmp_path / "part.onnx", "lacks weights", "first.weight")


def test_refit_from_a_file_that_is_no_graph_is_one_line(make, tmp_path):
    (tmp_path / "text.onnx").write_text("no graph")
    for path in (tmp_path / "text.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(InputError) as raised:
            make(refittable=True).refit(path)
        assert one_line(raised.value, path, "not an ONNX graph")


def test_refit_and_version_compatible_exclude_each_other(make):
    with pytest.raises(ValueError, match="refittable, version_compatible"):
        make(refittable=True, version_compatible=True)


# Failures


def test_a_graph_that_cannot_be_read_is_one_line(make, tmp_path, state):
    path = tmp_path / "text.onnx"
    path.write_text("no graph")
    with pytest.raises(InputError) as raised:
        make(path)
    assert one_line(raised.value, path, "cannot read", "cannot parse: DecodeError")
    assert count(state, "build_serialized_network") == 0


def test_a_graph_with_other_tensors_is_one_line(graphs, tmp_path, state):
    with pytest.raises(InputError) as raised:
        TensorRTEngine(graphs.single, tmp_path / "plan", inputs(2, 8), ("grad",), PROFILES, "cuda")
    assert one_line(raised.value, graphs.single, "noisy, timesteps, grad", "prediction, score")
    assert count(state, "build_serialized_network") == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("build_serialized_network", "cannot build the network (out of tactics)"),
        ("deserialize_cuda_engine", "cannot load what it built (the plan is damaged)"),
        ("add_optimization_profile", "refuses the shapes"),
    ],
)
def test_a_build_that_fails_is_one_line_with_the_first_reason(make, graphs, state, tmp_path, call, said):
    state.fails.add(call)
    with pytest.raises(InputError) as raised:
        make()
    assert one_line(raised.value, graphs.single, said)
    assert not (tmp_path / "cache" / "plan").exists()


@pytest.mark.parametrize(
    "call", ["create_execution_context", "set_optimization_profile_async", "execute_async_v3"]
)
def test_a_call_that_fails_raises_and_can_be_tried_again(make, graphs, state, call):
    engine, given = make(), inputs(2, 8)
    state.fails.add(call)
    with pytest.raises(RuntimeError, match=re.escape(f"{graphs.single}: TensorRT cannot ")):
        engine(**given)
    state.fails.clear()
    assert agree(engine(**given), expected(graphs.module, given))


@pytest.mark.parametrize(("number", "size"), [(5, 8), (2, 12)])
def test_shapes_outside_all_profiles_are_refused(make, graphs, number, size):
    with pytest.raises(ValueError, match=r"no profile holds noisy") as raised:
        make()(**inputs(number, size))
    assert one_line(raised.value, graphs.single, (number, 3, size, size), PROFILES)


def test_the_examples_get_a_profile_where_none_holds_them(make, graphs, state):
    engine = make(profiles=[profile(16)])
    for given in (inputs(2, 8), inputs(3, 16)):
        assert agree(engine(**given), expected(graphs.module, given))
    with pytest.raises(ValueError, match="no profile holds"):
        engine(**inputs(1, 8))
    make(profiles=[profile(16)])
    assert count(state, "build_serialized_network") == 1


def test_one_profile_must_hold_all_inputs(make):
    mixed = [
        profile(8) | {"timesteps": ((1,), (1,), (1,))},
        profile(16) | {"timesteps": ((2,), (2,), (2,))},
    ]
    with pytest.raises(ValueError, match="no profile holds"):
        make(profiles=mixed)(**inputs(1, 16))


def test_inputs_must_be_those_of_the_network(make):
    with pytest.raises(TypeError, match="inputs: expected noisy, timesteps, got noisy"):
        make()(noisy=torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [{"noisy": profile(8)["noisy"]}],
        [profile(8) | {"timesteps": ((2,), (1,), (4,))}],
        [profile(8) | {"timesteps": ((1,), (8,), (4,))}],
        [profile(8) | {"timesteps": ((1, 1), (2, 1), (4, 1))}],
    ],
    ids=["none", "input missing", "below smallest", "above largest", "other dimensions"],
)
def test_wrong_profiles_are_refused_before_tensorrt_is_touched(make, state, wrong):
    with pytest.raises(ValueError, match="profiles: expected"):
        make(profiles=wrong)
    assert state.calls == []


# With the rest of the room: export, cache, probe


def without_gpu(function):
    """The function, with the torch that there is: its exporter asks a GPU for its name where there is one."""

    def wrapped(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch, "zeros", ZEROS)
            return function(*arguments)

    return wrapped


@pytest.fixture
def loading(monkeypatch, tmp_path):
    """As if a CUDA tensor could be had, and TensorRT's package were installed. torch runs on the CPU."""
    make = load.TorchEngine
    monkeypatch.setattr(load, "TorchEngine", lambda network, device, dtype: make(network, "cpu", dtype))
    monkeypatch.setattr(load, "_on", lambda tensors, device: tensors)
    monkeypatch.setattr(load, "export", without_gpu(load.export))
    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: fake.__version__ if name == "tensorrt" else known(name)
    )


def test_load_network_builds_and_probes_it_once_or_says_why_not(loading, graphs, state):
    state.fails.add("build_serialized_network")
    with pytest.raises(InputError) as raised:
        load.load_network(network(0), "cuda", "tensorrt", torch.float32)
    assert one_line(raised.value, "cannot build the network (out of tactics)")
    state.fails.clear()
    for builds in (1, 0):
        state.calls.clear()
        engine = load.load_network(network(0), "cuda", "auto", torch.float32)
        assert engine.runtime.startswith("TensorRT 10.16.1.11")
        assert count(state, "Builder") == builds
    for given in (inputs(1, 8), inputs(3, 16)):
        assert agree(engine(**given), expected(graphs.module, given))


@pytest.mark.parametrize("compatible", ["0", "1"])
def test_a_kept_plan_that_no_longer_loads_is_built_anew_as_an_entry(
    loading, graphs, state, monkeypatch, compatible
):
    """Damaged, or made by another driver, of which nothing in its key tells; or by a later version."""
    monkeypatch.setenv("DDPO3D_TENSORRT_VERSION_COMPATIBLE", compatible)
    monkeypatch.setattr(load, "export", lambda network, graph, dtype: shutil.copy(graphs.other, graph))
    if compatible == "1":
        monkeypatch.setattr(fake, "__version__", "11.4.0.106")
    load.load_network(network(1), "cuda", "tensorrt", torch.float32)
    (plan,) = (entry for entry in entries() if entry.facts["name"] == "unet-tensorrt")
    if compatible == "1":
        monkeypatch.setattr(fake, "__version__", "10.16.1.11")
    else:
        damage(plan.path / "model.plan", "one byte")
    for builds in (1, 0):
        state.calls.clear()
        engine = load.load_network(network(1), "cuda", "tensorrt", torch.float32)
        assert count(state, "Builder") == builds
        assert agree(engine(**inputs(2, 8)), expected(Small(1), inputs(2, 8)))
        (new,) = (entry for entry in entries() if entry.facts["name"] == "unet-tensorrt")
        assert (new.path, new.facts["runtime"]) == (plan.path, engine.runtime)


def adapted(seed: int) -> Network:
    """Small(0) with other weights, as an adapter would give them."""
    return replace(network(seed), base=network(0).module)


def test_adapters_share_one_plan_of_their_base_refitted(loading, graphs, state):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        for seed, builds in ((1, 1), (2, 0)):
            state.calls.clear()
            engine = load.load_network(adapted(seed), "cuda", "tensorrt", torch.float32)
            assert engine.runtime.startswith("TensorRT")
            assert (count(state, "Builder"), count(state, "refit_cuda_engine_async")) == (builds, 1)
            for given in (inputs(1, 8), inputs(3, 16)):
                assert agree(engine(**given), expected(Small(seed), given))
        assert [entry.facts["name"] for entry in entries()] == 3 * ["unet-onnx"] + ["unet-tensorrt"]
        # Without an adapter it is the same graph and probe, and a plan that need not be refitted.
        engine = load.load_network(network(0), "cuda", "tensorrt", torch.float32)
    assert agree(engine(**inputs(2, 8)), expected(graphs.module, inputs(2, 8)))
    flags = [fake._plan(e.path / "model.plan")[1] for e in entries() if e.facts["name"] == "unet-tensorrt"]
    assert sorted(flags, key=len) == [set(), {"REFIT"}]
    assert len(entries()) == 5


@pytest.mark.parametrize("graph", ["base", "none"])
def test_a_refit_that_leaves_other_weights_gives_way_to_torch(loading, monkeypatch, graph):
    """The probe is the adapted network's."""
    refit = TensorRTEngine.refit
    wrong = {"base": lambda engine, _: refit(engine, engine._graph), "none": lambda *_: None}[graph]
    monkeypatch.setattr(TensorRTEngine, "refit", wrong)
    with pytest.warns(FallbackWarning, match=r"^unet: TensorRT .* gives another .*; torch .* instead"):
        engine = load.load_network(adapted(1), "cuda", "tensorrt", torch.float32)
    assert agree(engine(**inputs(2, 8)), expected(Small(1), inputs(2, 8)))


def test_a_version_compatible_plan_is_built_once_for_later_versions(loading, graphs, state, monkeypatch):
    """Also for an adapter, which gets one of its own."""
    monkeypatch.setenv("DDPO3D_TENSORRT_VERSION_COMPATIBLE", "1")
    for release, builds in (("10.13.3.9", 1), ("11.4.0.106", 0)):
        monkeypatch.setattr(fake, "__version__", release)
        for seed, given in ((0, network(0)), (1, adapted(1))):
            state.calls.clear()
            engine = load.load_network(given, "cuda", "tensorrt", torch.float32)
            assert (count(state, "Builder"), count(state, "Refitter")) == (builds, 0)
            assert agree(engine(**inputs(2, 8)), expected(Small(seed), inputs(2, 8)))
    plans = [fake._plan(e.path / "model.plan") for e in entries() if e.facts["name"] == "unet-tensorrt"]
    assert [plan[:2] for plan in plans] == 2 * [("10.13.3.9", {"VERSION_COMPATIBLE"})]


# Where it cannot be used


def test_it_can_be_used_where_there_is_a_gpu():
    assert (unavailable(), version()) == (None, "10.16.1.11")


class Untouchable(types.ModuleType):
    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"tensorrt.{name} without a driver")


def test_without_a_gpu_tensorrt_is_not_touched(make, state, monkeypatch):
    state.driver = False
    monkeypatch.setitem(sys.modules, "tensorrt", Untouchable("tensorrt"))
    assert unavailable() == "needs a CUDA device that torch can use, found none"
    with pytest.raises(InputError, match="TensorRT: needs a CUDA device"):
        make()


def test_on_the_cpu_it_is_refused(make, state):
    with pytest.raises(InputError, match="TensorRT: expected a CUDA device, got cpu"):
        make(device="cpu")
    assert state.calls == []


def test_where_it_is_not_installed_it_says_how_to(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert one_line(InputError(unavailable()), "cannot be imported", "pip install 'ddpo3d-fast[tensorrt]'")
    with pytest.raises(InputError, match="TensorRT: cannot be imported"):
        make()


@pytest.mark.parametrize(
    ("version", "usable"),
    [
        ("10.12.0.36", False),
        ("8.6.1", False),
        ("10.13.0.35", True),
        ("10.13.3.9.post1", True),
        ("11.4.0.106", True),
    ],
)
def test_versions_before_10_13_are_refused(monkeypatch, version, usable):
    monkeypatch.setattr(fake, "__version__", version)
    assert unavailable() == (None if usable else f"expected TensorRT 10.13 or newer, got {version}")


# The real bindings


def bindings() -> list[Path]:
    named = os.environ.get("DDPO3D_TENSORRT_BINDINGS")
    folders = (
        [Path(part) for part in named.split(":")] if named else (ROOT / "build/tensorrt-bindings").glob("*")
    )
    return sorted(folder for folder in folders if (folder / "tensorrt_bindings").is_dir())


needs_bindings = pytest.mark.skipif(not bindings(), reason="no bindings: run fetch_tensorrt_bindings.sh")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
each_version = pytest.mark.parametrize(
    "folder", bindings() or [None], ids=lambda folder: folder and folder.name
)


@pytest.fixture(scope="session")
def read(tmp_path_factory):
    """Reads the API of the bindings in a folder, once: where mypy's stub lies, and the members by class."""
    done: dict[Path, tuple[Path, dict[str, dict[str, list[list[str]]]]]] = {}

    def read(folder: Path) -> tuple[Path, dict[str, dict[str, list[list[str]]]]]:
        if folder not in done:
            out = tmp_path_factory.mktemp("bindings")
            script = Path(__file__).with_name("tensorrt_api.py")
            subprocess.run([sys.executable, str(script), str(folder), str(out)], check=True)
            done[folder] = out, json.loads((out / "api.json").read_text())["classes"]
        return done[folder]

    return read


class Reveal(ast.NodeTransformer):
    """Has mypy tell the type of whatever a member is asked of, unless that is a module or self."""

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        plain = isinstance(node.value, (ast.Name, ast.Attribute)) and ast.unparse(node.value).split(".")[0]
        if plain not in self.modules | {"self"} or (plain == "self" and not isinstance(node.value, ast.Name)):
            node.value = ast.Call(ast.Name("reveal_type", ast.Load()), [node.value], [])
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return node  # an annotation

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [self.visit(statement) for statement in node.body]
        return node


def check(source: str, stubs: Path, cache: Path) -> tuple[list[str], set[tuple[str, str]]]:
    """What mypy has against `source` with these stubs for TensorRT, and every (type, member) that it uses."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {alias.asname or alias.name for node in imports for alias in node.names if alias.name.islower()}
    shown = ast.unparse(ast.fix_missing_locations(Reveal(modules).visit(tree)))
    # A name of its own: mypy takes a file of the same size and second for the one in its cache.
    path = stubs / f"shown_{hashlib.sha256(shown.encode()).hexdigest()[:16]}.py"
    path.write_text(shown)
    options = ["--config-file=", "--follow-imports=skip", "--show-column-numbers", "--no-error-summary"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--cache-dir={cache}", str(path)],
        env=os.environ | {"MYPYPATH": str(stubs)},
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    members = {
        (node.value.lineno, node.value.args[0].col_offset): node.attr
        for node in ast.walk(ast.parse(shown))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call) and node.value.args
    }
    errors, used = [], set()
    for line in done.stdout.splitlines():
        found = re.fullmatch(r'.*?:(\d+):(\d+): note: Revealed type is "(.*)"', line)
        if found:
            used.add((found[3], members[int(found[1]), int(found[2]) - 1]))
        elif ": error: " in line:
            errors.append(line.partition(": error: ")[2])
    return errors, used


@needs_bindings
@needs_compiler
@each_version
def test_all_that_it_uses_is_in_the_real_bindings(read, folder, tmp_path_factory):
    pytest.importorskip("mypy")
    stubs, api = read(folder)
    errors, used = check(SOURCE.read_text(), stubs, tmp_path_factory.getbasetemp() / "mypy")
    assert errors == []
    ours = {(kind.removeprefix("tensorrt."), member) for kind, member in used if kind.startswith("tensorrt.")}
    assert len(ours) >= 30  # the check does see the calls
    known = {name: members.keys() for name, members in api.items()}
    assert {(kind, member) for kind, member in ours if member not in known[kind]} == set()
    # Nothing escapes: no member that TensorRT has is asked of something whose type mypy does not know.
    everything = set().union(*known.values())
    unknown = {member for kind, member in used if kind == "Any" and member in everything}
    # Of torch's tensors and devices, of onnx's initialisers, of NumPy's arrays.
    assert unknown == {"shape", "type", "name", "data"}


@needs_bindings
@needs_compiler
@pytest.mark.parametrize(
    ("ours", "wrong", "said"),
    [
        ("execute_async_v3", "execute_async_v2", "has no attribute"),
        ("trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16", "has no attribute"),
        (", ignore_mismatch=False", "", "Missing positional argument"),
        ("set_tensor_address(name, buffer.data_ptr())", "set_tensor_address(name, [1])", "incompatible type"),
        ("set_tensor_address(name, buffer.data_ptr())", "set_tensor_address(1, 2, 3)", "Too many arguments"),
        ("network.num_inputs", "network.num_inputs()", "not callable"),
    ],
)
def test_the_check_sees_a_wrong_call(read, tmp_path_factory, ours, wrong, said):
    pytest.importorskip("mypy")
    source = SOURCE.read_text()
    assert ours in source
    stubs, _ = read(bindings()[-1])
    errors, _ = check(source.replace(ours, wrong), stubs, tmp_path_factory.getbasetemp() / "mypy")
    assert any(said in error for error in errors)


@needs_bindings
@needs_compiler
@each_version
def test_the_stand_in_has_nothing_that_the_real_bindings_have_not(read, folder):
    _, api = read(folder)
    for name, members in fake._public().items():
        assert name in api
        assert members <= api[name].keys(), name
        for member in members:
            value = vars(getattr(fake, name))[member]
            if inspect.isfunction(value):
                parameters = list(inspect.signature(value).parameters)[1:]
                assert any(parameters == real[: len(parameters)] for real in api[name][member]), (
                    name,
                    member,
                )


REAL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tensorrt_api import load
trt = sys.modules["tensorrt"] = load(Path(sys.argv[2]), Path(sys.argv[3]))
from ddpo3d_fast.engines import tensorrt as room
room._logger().log(trt.ILogger.Severity.WARNING, "a warning")
room._logger().log(trt.ILogger.Severity.ERROR, "an error\\nat length")
assert isinstance(room._logger(), trt.ILogger) and room._reason() == "an error", room._reason()
assert set(room._DTYPES) <= set(trt.DataType.__members__)
assert trt.DataType.BF16.name == "BF16" and tuple(trt.Dims([2, 3])) == (2, 3)
assert 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) > 0
for name, (weights, array) in room._weights(Path(sys.argv[4])).items():
    assert (weights.size, weights.nbytes) == (array.size, array.nbytes), name
    assert weights.numpy()[0] == array.flat[0], name  # 10.13 repeats this one, under NumPy 2
    print(name, weights.dtype.name)
"""


@needs_bindings
@needs_compiler
@each_version
def test_what_needs_no_library_works_with_the_real_bindings(folder, graphs, tmp_path):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", REAL, here, str(folder), str(tmp_path), str(graphs.half)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"HALF"}
    assert "first.weight HALF" in done.stdout
