"""The runtime is what was asked for or the best there is, and is taken only if it computes the same."""

import importlib.util
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddpo3d_fast.engines import Network, cache, choose, choose_runtime, load_network, openvino, tensorrt
from ddpo3d_fast.engines import load as room
from ddpo3d_fast.engines.cache import cache_folder, entries
from ddpo3d_fast.errors import FallbackWarning, InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPO3D_CACHE", str(tmp_path))


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch):
    """Which has tests of its own."""
    monkeypatch.setattr(openvino, "unavailable", lambda: "openvino: not today")


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).tanh()


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = Tower().eval().requires_grad_(False)
    return Network("scorer", module, {"x": torch.randn(2, 4)}, ("y",), {"x": (0,)})


@pytest.fixture
def quiet():
    """Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def with_tensorrt(monkeypatch):
    """TensorRT is to be had; what it builds is kept in this list."""
    monkeypatch.setattr(tensorrt, "unavailable", lambda: None)


def without(monkeypatch, *names):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))


class Other:
    """Stands for an engine of another runtime: the module's results times a factor."""

    factor, built = 1.0, ()
    runtime = "TensorRT 99, a GPU"

    def __init__(self, graph, plan, inputs, outputs, profiles, device, **flags):
        if not plan.is_file():
            plan.write_bytes(b"plan")
            Other.built += (plan,)
        Other.given = {"graph": graph, "outputs": outputs} | flags

    def __call__(self, **inputs):
        return {"y": Other.factor * Other.module(inputs["x"])}


def test_auto_is_onnx_runtime_on_the_cpu_and_torch_where_it_cannot_export(monkeypatch):
    assert choose_runtime("auto", CPU) == "onnxruntime"
    assert choose_runtime("auto", CPU, torch.float16) == "torch"
    without(monkeypatch, "onnxscript")
    assert choose_runtime("auto", CPU) == "torch"


def test_auto_is_tensorrt_on_cuda_and_torch_where_it_is_not(monkeypatch, with_tensorrt):
    assert choose_runtime("auto", CUDA) == "tensorrt"
    assert choose_runtime("auto", CPU) == "onnxruntime"
    monkeypatch.setattr(tensorrt, "unavailable", lambda: "TensorRT: not today")
    assert choose_runtime("auto", CUDA) == "torch"


def test_a_runtime_that_is_not_to_be_had_is_one_line(monkeypatch):
    with pytest.raises(InputError, match=r"runtime: .*got tensorrt: runs on cuda alone, not on cpu"):
        choose_runtime("tensorrt", CPU)
    with pytest.raises(InputError, match="got onnxruntime: runs on cpu alone, not on cuda"):
        choose_runtime("onnxruntime", CUDA)
    monkeypatch.setattr(tensorrt, "unavailable", lambda: "TensorRT: not today")
    with pytest.raises(InputError, match="got tensorrt: TensorRT: not today"):
        choose_runtime("tensorrt", CUDA)
    without(monkeypatch, "onnx", "onnxscript")
    with pytest.raises(InputError, match=r"needs onnx and onnxscript .*: pip install onnx onnxscript"):
        choose_runtime("onnxruntime", CPU)
    with pytest.raises(
        InputError, match=r"expected one of auto, .*, got 'onnxruntim'; did you mean onnxruntime"
    ):
        choose_runtime("onnxruntim", CPU)


def test_tensorrt_is_never_imported_without_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # an import would be the reason given
    assert choose_runtime("auto", CUDA) == "torch"
    with pytest.raises(InputError, match="CUDA device"):
        choose_runtime("tensorrt", CUDA)


def test_a_graph_is_exported_once(network, monkeypatch, quiet):
    engine = load_network(network)
    assert engine.runtime.startswith("ONNX Runtime")
    x = torch.randn(5, 4)
    assert torch.allclose(engine(x=x)["y"], network.module(x), atol=1e-6)
    (entry,) = entries()
    assert entry.facts["name"] == "scorer-onnx"
    assert set(entry.facts["files"]) == {"model.onnx", "probe.npz"}
    monkeypatch.setattr(room, "export", None)
    again = load_network(replace(network, inputs={"x": torch.randn(2, 4)}))  # other values, same shapes
    assert torch.equal(again(x=x)["y"], engine(x=x)["y"])
    with pytest.raises(InputError):  # of another shape: it would export
        load_network(replace(network, inputs={"x": torch.randn(3, 4)}), runtime="onnxruntime")


def test_torch_makes_no_files(network, quiet):
    assert load_network(network, runtime="torch").runtime.startswith("torch")
    assert not cache_folder().exists()


@pytest.mark.parametrize(("dtype", "versions"), [(torch.float16, {}), (None, {"onnxscript": "9.9"})])
def test_another_dtype_or_version_is_another_graph(network, monkeypatch, dtype, versions):
    load_network(network)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or version(name))
    load_network(network, runtime="onnxruntime", dtype=dtype)
    assert len(entries()) == 2


def swap(file, old, new):
    """Other bytes in a file of the same size, and nothing in the manifest that tells it."""
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))


def garble(file):
    file.write_bytes(os.urandom(file.stat().st_size))


DAMAGES = {
    "graph": lambda folder, weights: garble(folder / "model.onnx"),
    "weights": lambda folder, weights: swap(folder / "model.onnx", weights, weights[::-1]),
    "probe": lambda folder, weights: garble(folder / "probe.npz"),
}


@pytest.fixture
def exports(monkeypatch):
    """The graphs exported so far; all of one network, so that only the first takes its time."""
    made, export = [], room.export

    def export_once(network, graph, dtype):
        graph.write_bytes(made[0]) if made else export(network, graph, dtype)
        made.append(graph.read_bytes())

    monkeypatch.setattr(room, "export", export_once)
    return made


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_damaged_in_the_cache_is_built_anew_once(network, quiet, exports, what):
    load_network(network)
    (entry,) = entries()
    DAMAGES[what](entry.path, network.module.layer.weight.numpy().tobytes()[:16])
    for _ in range(2):
        engine = load_network(network)
        assert engine.runtime.startswith("ONNX Runtime")
        assert torch.allclose(engine(**network.inputs)["y"], network.module(network.inputs["x"]), atol=1e-6)
    (new,) = entries()
    assert (new.path, new.size) == (entry.path, entry.size)
    assert new.stamp != entry.stamp
    assert len(exports) == 2


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime"])
def test_an_engine_that_disagrees_with_its_probe_gives_way_to_torch(network, monkeypatch, exports, runtime):
    """What was kept is built anew before, and what is no help once it has been built never again."""
    load_network(network)
    run = room.OnnxEngine.__call__
    wrong = lambda engine, **inputs: {"y": 1.1 * run(engine, **inputs)["y"]}  # noqa: E731
    monkeypatch.setattr(room.OnnxEngine, "__call__", wrong)
    for _ in range(2):
        with pytest.warns(FallbackWarning) as caught:
            engine = load_network(network, runtime=runtime)
        assert len(exports) == 2
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith("scorer: ONNX Runtime ")
    assert "gives another y, relative error" in message
    assert message.endswith(f"; {engine.runtime} runs it instead")
    assert engine.runtime.startswith("torch")
    assert warning.filename == __file__
    monkeypatch.setattr(room.OnnxEngine, "__call__", run)
    assert load_network(network).runtime.startswith("ONNX Runtime")  # it is kept, and tried every time


def test_a_damaged_entry_that_cannot_be_removed_gives_way_to_torch(network, monkeypatch):
    load_network(network)
    garble(entries()[0].path / "model.onnx")

    def fail(path):
        raise PermissionError("a cache for all")

    monkeypatch.setattr(cache, "_remove", fail)
    with pytest.warns(FallbackWarning, match="not a graph that ONNX Runtime can load"):
        assert load_network(network).runtime.startswith("torch")


def test_without_memory_nothing_is_built_anew(network, monkeypatch, exports):
    load_network(network)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(room.OnnxEngine, "__init__", fail)
    with pytest.warns(FallbackWarning, match=r"cannot run it \(no room\)"):
        load_network(network)
    assert len(exports) == 1


def test_results_that_are_not_numbers_disagree(network):
    nothing = {"y": torch.full((2, 3), torch.nan)}
    for got, expected in ((nothing, {"y": torch.ones(2, 3)}), ({"y": torch.ones(2, 3)}, nothing)):
        assert room.disagreement(lambda got=got, **_: got, network.inputs, expected) == ("y", float("inf"))


def test_zeros_agree_with_zeros_alone(network):
    zeros = {"y": torch.zeros(2, 3)}
    assert room.disagreement(lambda **_: zeros, network.inputs, zeros)[1] == 0
    assert room.disagreement(lambda **_: {"y": torch.full((2, 3), 1e-6)}, network.inputs, zeros)[1] > 1


def test_a_lower_precision_that_disagrees_gives_way_to_single(network):
    network.module.layer.weight.data *= 1e7  # beyond what fp16 holds
    with pytest.warns(
        FallbackWarning, match=r"float16 gives another y, .*; torch .* float32 runs it instead"
    ):
        engine = load_network(network, runtime="torch", dtype=torch.float16)
    assert torch.allclose(engine(**network.inputs)["y"], network.module(network.inputs["x"]))


def test_a_lower_precision_that_agrees_is_kept(network, quiet):
    for dtype in (torch.float16, torch.bfloat16):
        engine = load_network(network, runtime="torch", dtype=dtype)
        assert engine.runtime.endswith(str(dtype).removeprefix("torch."))


def test_half_precision_is_tried_first_on_a_gpu_alone():
    half, single = torch.float16, torch.float32
    assert room._candidates("torch", CUDA, None) == [("torch", half), ("torch", single)]
    assert room._candidates("torch", CPU, None) == [("torch", single)]
    assert room._candidates("tensorrt", CUDA, None) == [
        ("tensorrt", half),
        ("torch", half),
        ("torch", single),
    ]


def test_stored_outputs_are_the_reference(network, quiet):
    right = network.module(network.inputs["x"])
    load_network(replace(network, expected={"y": right}), runtime="torch")
    wrong = replace(network, expected={"y": 1.001 * right})
    with pytest.raises(InputError, match=r"float32 gives another y, relative error 1.0e-03") as caught:
        load_network(wrong, runtime="torch")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_exported_runs_on_torch_unless_it_was_asked_for(network, monkeypatch):
    def fail(*_):
        raise InputError("scorer: cannot be exported to ONNX (why)")

    monkeypatch.setattr(room, "export", fail)
    with pytest.warns(FallbackWarning, match=r"^scorer: cannot be exported .*; torch .* runs it instead"):
        assert load_network(network).runtime.startswith("torch")
    with pytest.raises(InputError, match="cannot be exported"):
        load_network(network, runtime="onnxruntime")
    assert entries() == []


def test_the_reference_moves_to_the_cpu_where_a_gpu_has_no_room(network, monkeypatch):
    make = room.TorchEngine

    def crowded(network, device, dtype):
        if torch.device(device).type == "meta":
            raise torch.OutOfMemoryError
        return make(network, device, dtype)

    monkeypatch.setattr(room, "TorchEngine", crowded)
    got = room._reference(network, torch.device("meta"))
    assert torch.allclose(got["y"], network.module(network.inputs["x"]))


@pytest.fixture
def on_tensorrt(network, monkeypatch, with_tensorrt):
    """Loads the network on a stand-in for TensorRT. The CPU is the device here, whatever it is called."""
    monkeypatch.setattr(tensorrt, "TensorRTEngine", Other)
    monkeypatch.setattr(choose, "unavailable", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: Other.gpu)
    monkeypatch.setattr(tensorrt, "version", lambda: Other.version)
    Other.factor, Other.built, Other.module = 1.0, (), network.module
    Other.gpu, Other.version = "a GPU", "99"
    return lambda **changes: load_network(replace(network, **changes), "cpu", "tensorrt")


def test_calls_of_fewer_items_have_no_profile_of_their_own(network):
    shapes = ({"x": (8, 4)}, {"x": (4, 4)}, {"x": (4, 2)})
    (first, second) = room.profiles(replace(network, shapes=shapes))
    assert first["x"] == ((1, 4), (8, 4), (8, 4))
    assert second["x"] == ((1, 2), (4, 2), (4, 2))


def test_a_plan_is_built_once_beside_its_graph(on_tensorrt, quiet):
    assert on_tensorrt().runtime == Other.runtime
    assert [entry.facts["name"] for entry in entries()] == ["scorer-onnx", "scorer-tensorrt"]
    graph, plan = entries()
    assert Other.given["graph"] == graph.path / "model.onnx"
    assert Other.given["outputs"] == ("y",)
    assert plan.facts["files"] == {"model.plan": 4}
    assert plan.facts["runtime"] == Other.runtime
    assert Path(cache_folder() / plan.facts["probe"]).is_file()
    on_tensorrt()
    assert len(Other.built) == 1


@pytest.mark.parametrize("change", ["gpu", "version", "shapes"])
def test_another_gpu_version_or_shape_is_another_plan_of_the_same_graph(on_tensorrt, change):
    on_tensorrt()
    if change == "shapes":
        on_tensorrt(shapes=({"x": (8, 4)},))
    else:
        setattr(Other, change, "another")
        on_tensorrt()
    assert [entry.facts["name"] for entry in entries()] == ["scorer-onnx"] + 2 * ["scorer-tensorrt"]


def test_version_compatible_plans_are_others_and_serve_later_versions(on_tensorrt, monkeypatch):
    on_tensorrt()
    assert not Other.given["version_compatible"]
    monkeypatch.setenv("DDPO3D_TENSORRT_VERSION_COMPATIBLE", "1")
    for Other.version in ("99", "100"):
        on_tensorrt()
        assert Other.given["version_compatible"]
    assert len(Other.built) == 2
    monkeypatch.setenv("DDPO3D_TENSORRT_VERSION_COMPATIBLE", "0")
    on_tensorrt()  # with version 100
    assert not Other.given["version_compatible"]
    assert len(Other.built) == 3


def test_a_wrong_wish_for_version_compatible_plans_is_one_line(on_tensorrt, monkeypatch):
    monkeypatch.setenv("DDPO3D_TENSORRT_VERSION_COMPATIBLE", "yes")
    with pytest.raises(InputError, match=r"^DDPO3D_TENSORRT_VERSION_COMPATIBLE: expected 0 or 1, got 'yes'$"):
        on_tensorrt()


def test_a_version_compatible_plan_is_the_adapters_own(on_tensorrt, monkeypatch, quiet):
    """As it cannot be refitted."""
    monkeypatch.setenv("DDPO3D_TENSORRT_VERSION_COMPATIBLE", "1")
    assert on_tensorrt(base=Tower()).runtime == Other.runtime
    graph, _ = entries()
    assert Other.given["graph"] == graph.path / "model.onnx"
    assert (Other.given["refittable"], Other.given["version_compatible"]) == (False, True)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_other_runtimes_leave_the_base_alone(network, quiet, runtime):
    y = load_network(replace(network, base=Tower()), runtime=runtime)(**network.inputs)["y"]
    assert torch.allclose(y, network.module(network.inputs["x"]), atol=1e-6)
    assert len(entries()) == (runtime == "onnxruntime")


def test_a_plan_that_disagrees_gives_way_to_torch(on_tensorrt):
    Other.factor = 1.1
    with pytest.warns(
        FallbackWarning, match=r"^scorer: TensorRT 99, a GPU gives another y.*; torch .* instead"
    ):
        assert on_tensorrt().runtime.startswith("torch")
    assert len(Other.built) == 1  # it was just made: to build it anew would take minutes, and be no help


def test_a_plan_of_a_damaged_graph_is_built_anew_with_it(on_tensorrt, quiet):
    """The probe tells; nothing but a new build can say which of the two it was."""
    on_tensorrt()
    graph, plan = entries()
    kept, Other.module = Other.module, lambda x: 0 * x[:, :3]
    make = Other.__init__

    def mended(engine, graph, plan, *more, **flags):
        if not plan.is_file():
            Other.module = kept
        make(engine, graph, plan, *more, **flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Other, "__init__", mended)
        assert on_tensorrt().runtime == Other.runtime
    assert len(Other.built) == 2
    assert [new.stamp == old.stamp for new, old in zip(entries(), (graph, plan), strict=True)] == [False] * 2


def fixed(*shape):
    return (1, *shape[1:]), shape, shape


def test_profiles_are_those_of_the_named_shapes_and_of_the_probe(network):
    images = {"x": torch.zeros(2, 4, 32, 32), "t": torch.zeros(2)}
    network = replace(network, inputs=images, dynamic={"x": (0, 2, 3), "t": (0,)})
    small, large = ({"x": (16, 4, size, size), "t": (16,)} for size in (32, 64))
    got = room.profiles(replace(network, shapes=(small, large)))
    assert got == [{"x": fixed(16, 4, size, size), "t": fixed(16)} for size in (32, 64)]
    got = room.profiles(replace(network, shapes=(large,)))
    assert got == [{"x": fixed(16, 4, 64, 64), "t": fixed(16)}, {"x": fixed(2, 4, 32, 32), "t": fixed(2)}]


def test_profiles_without_shapes_reach_far_along_dynamic_axes_alone(network):
    images = {"x": torch.zeros(2, 4, 8, 8), "t": torch.zeros(2)}
    (bounds,) = room.profiles(replace(network, inputs=images, dynamic={"x": (0, 2, 3)}))
    assert bounds == {"x": ((1, 4, 4, 4), (2, 4, 8, 8), (32, 4, 16, 16)), "t": ((2,), (2,), (2,))}


@pytest.mark.parametrize("when", ["__init__", "__call__"])
def test_a_runtime_that_fails_in_its_own_way_gives_way_unless_it_was_asked_for(network, monkeypatch, when):
    def fail(*_, **__):
        raise RuntimeError("out of luck\nat line 3")

    monkeypatch.setattr(room.OnnxEngine, when, fail)
    message = r"^scorer: onnxruntime cannot run it \(out of luck\)"
    with pytest.warns(FallbackWarning, match=message + "; torch .* runs it instead"):
        assert load_network(network).runtime.startswith("torch")
    with pytest.raises(InputError, match=message):
        load_network(network, runtime="onnxruntime")


def test_a_probe_is_stored_with_what_the_reference_says(network):
    load_network(network)
    stored = np.load(entries()[0].path / "probe.npz")
    assert np.array_equal(stored["x"], network.inputs["x"])
    assert np.allclose(stored["expected.y"], network.module(network.inputs["x"]))
