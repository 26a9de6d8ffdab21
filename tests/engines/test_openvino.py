"""On OpenVINO a network computes what it does elsewhere, where OpenVINO by itself would not, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ddpo3d_fast import openvino_graph
from ddpo3d_fast.engines import (
    Network,
    OnnxEngine,
    Vjp,
    choose,
    choose_runtime,
    default_dtype,
    load_engine,
    load_network,
    openvino,
)
from ddpo3d_fast.engines import load as room
from ddpo3d_fast.engines.openvino import OpenVinoEngine
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.kernels import get_num_threads, set_num_threads
from ddpo3d_fast.priors import PriorSettings, load_prior
from ddpo3d_fast.priors.embedded import FOLDER

pytest.importorskip("openvino", reason="openvino is not installed")

CPU, CUDA, SINGLE, BF16 = torch.device("cpu"), torch.device("cuda"), torch.float32, torch.bfloat16
UNET = FOLDER / "unet" / "model.onnx"
needs_bf16 = pytest.mark.skipif(not openvino.computes_bf16(), reason="this processor does not multiply bf16")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPO3D_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the processor multiplies bf16, as these tests have it."""
    said = [True]
    monkeypatch.setattr(openvino, "computes_bf16", lambda: said[0])
    return said


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def items(count: int) -> dict[str, Tensor]:
    """Inputs of the embedded UNet."""
    generator = torch.Generator().manual_seed(0)
    with np.load(UNET.with_name("probe.npz")) as probe:
        shapes = {name: probe[name].shape[1:] for name in probe.files if "." not in name}
    made = {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}
    return made | {"timesteps": torch.linspace(979, 21, count).long()}


def graph(path: Path, *nodes: onnx.NodeProto, **weights: np.ndarray) -> Path:
    """y of x, [n, 2, 4, 4] both."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 4, 4]) for name in "xy"]
    stored = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    made = helper.make_graph(list(nodes), "graph", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_an_item_has_its_bits_whatever_the_others_and_the_threads() -> None:
    given = items(5)
    expected = OnnxEngine(UNET)(**given)["prediction"]
    before, seen = get_num_threads(), list[Tensor]()
    try:
        for threads, batch in ((2, 4), (1, 2)):
            set_num_threads(threads)
            engine = OpenVinoEngine(UNET, SINGLE, batch)
            got = engine(**given)["prediction"]
            assert relative(got, expected) < 1e-5
            seen.append(got)
            assert torch.equal(got, seen[0])
            alone = engine(**{name: tensor[2:3] for name, tensor in given.items()})["prediction"]
            assert torch.equal(alone, got[2:3])
    finally:
        set_num_threads(before)


@needs_bf16
def test_a_late_timestep_is_not_rounded_in_bf16() -> None:
    """979 has ten bits; its sine and that of 980 have nothing in common."""
    given = {name: tensor[:2] for name, tensor in items(4).items()}
    engine = OpenVinoEngine(UNET, BF16)
    assert ", bf16, " in engine.runtime
    got, expected = (each(**given)["prediction"] for each in (engine, OnnxEngine(UNET)))
    assert 1e-4 < relative(got[:1], expected[:1]) < 8e-3
    again = OpenVinoEngine(UNET, BF16, 4)(**given)["prediction"]
    assert torch.equal(again, got)


def test_weights_that_a_convolution_and_its_transpose_share_are_right(tmp_path: Path) -> None:
    """As in every VJP; OpenVINO by itself gives a result that is off by its own size."""
    weight = np.random.default_rng(0).standard_normal((2, 2, 3, 3), dtype=np.float32)
    path = graph(
        tmp_path / "shared.onnx",
        helper.make_node("Conv", ["x", "weight"], ["h"], pads=[1] * 4),
        helper.make_node("ConvTranspose", ["h", "weight"], ["y"], pads=[1] * 4),
        weight=weight,
    )
    x = torch.randn(2, 2, 4, 4)
    assert relative(OpenVinoEngine(path)(x=x)["y"], OnnxEngine(path)(x=x)["y"]) < 1e-5


def test_an_item_that_is_lost_stays_lost(tmp_path: Path) -> None:
    """OpenVINO's Relu makes a number of NaN."""
    engine = OpenVinoEngine(graph(tmp_path / "relu.onnx", helper.make_node("Relu", ["x"], ["y"])))
    x = torch.randn(3, 2, 4, 4)
    for lost in (torch.nan, torch.inf):
        broken = x.clone()
        broken[1, 0, 2, 3] = lost
        got = engine(x=broken)["y"]
        assert got[1].isnan().all()
        assert torch.equal(got[::2], x[::2].relu())


def test_other_sizes_are_compiled_anew(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    network = Network("twice", Twice(), {"x": torch.randn(2, 3, 4)}, ("y",), {"x": (0, 1)})
    engine = load_network(network, runtime="openvino", dtype=SINGLE)
    for shape in ((2, 3, 4), (1, 5, 4), (7, 3, 4)):
        x = torch.randn(shape)
        assert torch.equal(engine(x=x)["y"], 2 * x)


@pytest.mark.parametrize("content", [None, b"", b"not a graph"])
def test_a_missing_or_broken_graph_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        OpenVinoEngine(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_is_openvino_on_a_cpu_in_what_the_processor_computes_in(
    monkeypatch: pytest.MonkeyPatch, native: list[bool]
) -> None:
    assert choose_runtime("auto", CPU) == "openvino"
    assert default_dtype(CPU) == BF16
    assert default_dtype(CPU, "torch") == default_dtype(CPU, "onnxruntime") == SINGLE
    assert default_dtype(CUDA) == torch.float16
    assert room._candidates("openvino", CPU, None) == [
        ("openvino", BF16),
        ("openvino", SINGLE),
        ("torch", SINGLE),
    ]
    assert choose_runtime("auto", CPU, torch.float16) == "torch"
    native[0] = False
    assert choose_runtime("auto", CPU) == "openvino"
    assert default_dtype(CPU) == SINGLE
    assert choose_runtime("auto", CPU, BF16) == "torch"
    native[0] = True
    monkeypatch.setattr(openvino, "unavailable", lambda: "openvino: not today")
    assert choose_runtime("auto", CPU) == "onnxruntime"
    assert default_dtype(CPU) == SINGLE
    with pytest.raises(InputError, match="got openvino: openvino: not today"):
        choose_runtime("openvino", CPU)
    with pytest.raises(InputError, match="got openvino: runs on cpu alone, not on cuda"):
        choose_runtime("openvino", CUDA)


def test_a_shipped_graph_needs_nothing_to_export_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "missing_packages", lambda: ["onnx"])
    assert choose_runtime("auto", CPU) == "torch"
    assert choose_runtime("auto", CPU, exports=False) == "openvino"


@pytest.mark.parametrize(
    ("flags", "isa", "bf16"),
    [
        ("fpu avx512f avx512_bf16", "", True),
        ("fpu avx512f amx_bf16 amx_tile", "", True),
        ("fpu avx2 avx512f", "", False),
        ("fpu avx512_bf16", "avx2", False),
        ("fpu avx512_bf16", "AVX512_CORE_BF16", True),
    ],
)
def test_the_processor_is_asked_for_bf16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, isa: str, bf16: bool
) -> None:
    text = f"processor : 0\nmodel name : a\nflags\t\t: {flags}\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    openvino_graph.computes_bf16.cache_clear()
    try:
        assert openvino_graph.computes_bf16() is bf16
    finally:
        openvino_graph.computes_bf16.cache_clear()


def test_a_precision_that_is_not_to_be_had_is_one_line(native: list[bool]) -> None:
    with pytest.raises(InputError, match=r"^--precision: expected fp32 or bf16 with openvino, got fp16$"):
        load_engine(UNET, "openvino", torch.float16)
    with pytest.raises(InputError, match=r"^--precision: expected fp32 with onnxruntime and .*, got bf16$"):
        load_engine(UNET, "onnxruntime", BF16)
    native[0] = False
    with pytest.raises(InputError, match=r"expected fp32 on this processor with openvino, got bf16$"):
        load_engine(UNET, "openvino", BF16)


@needs_bf16
@pytest.mark.parametrize("dtype", [None, SINGLE, BF16])
def test_a_prior_computes_in_what_was_asked_for(dtype: torch.dtype | None) -> None:
    runtime = load_prior(PriorSettings("embedded", dtype=dtype)).runtime
    assert runtime.startswith("OpenVINO ")
    assert f", {'fp32' if dtype == SINGLE else 'bf16'}, " in runtime


def test_one_that_disagrees_gives_way_to_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    run = OpenVinoEngine.__call__
    wrong = lambda engine, **given: {"prediction": 1.1 * run(engine, **given)["prediction"]}  # noqa: E731
    monkeypatch.setattr(OpenVinoEngine, "__call__", wrong)
    with pytest.warns(
        FallbackWarning, match=r"OpenVINO .* gives another prediction, .*; ONNX Runtime"
    ) as all_:
        assert load_engine(UNET).runtime.startswith("ONNX Runtime")
    told = [warning for warning in all_ if issubclass(warning.category, FallbackWarning)]
    assert [warning.filename for warning in told] == [__file__]
    with pytest.raises(InputError, match=r"OpenVINO .* gives another prediction, relative error"):
        load_engine(UNET, "openvino")


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(nn.functional.silu(self.first(images))).mean((1, 2, 3))


def test_a_scorers_gradient_is_the_gradient() -> None:
    torch.manual_seed(0)
    module = Vjp(Tower().requires_grad_(False)).eval()
    images = {"images": torch.rand(2, 3, 16, 16)}
    network = Network(
        "scorer_vjp", module, images, ("scores", "gradient"), {"images": (0,)}, gradient=True,
        shapes=({"images": (4, 3, 16, 16)},),
    )  # fmt: skip
    engine = load_network(network, runtime="openvino", dtype=SINGLE)
    given = torch.rand(6, 3, 16, 16)
    for name, expected in zip(("scores", "gradient"), module(given), strict=True):
        assert relative(engine(images=given)[name], expected) < 1e-5


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """openvino's import reports to its vendor through openvino_telemetry, where that can be imported."""
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text("print('imported')\n")
    (tmp_path / "openvino_telemetry" / "backend.py").write_text("backend_ga4 = None\n")
    code = """
import sys
from ddpo3d_fast.engines import openvino
assert openvino.unavailable() is None
assert "openvino" in sys.modules and "openvino_telemetry" not in sys.modules
print("quiet")
import openvino_telemetry
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
    )
    assert (done.stdout, done.stderr) == ("quiet\nimported\n", "")


def test_what_began_ahead_is_what_would_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and for these sizes and this number of threads alone."""
    given, expected = items(4), OpenVinoEngine(UNET, SINGLE, 4)(**items(4))["prediction"]
    openvino_graph.begin(UNET, False, 4)
    threads = len(os.sched_getaffinity(0))
    assert openvino_graph.begun(UNET, False, 4, threads + 1) is None
    assert openvino_graph.begun(UNET, True, 4, threads) is None
    monkeypatch.setattr("ddpo3d_fast.engines.openvino.get_num_threads", lambda: threads)
    with monkeypatch.context() as patch:
        patch.setattr("ddpo3d_fast.engines.openvino.read", None)
        engine = OpenVinoEngine(UNET, SINGLE, 4)
    assert torch.equal(engine(**given)["prediction"], expected)
    assert openvino_graph.begun(UNET, False, 4, threads) is None


def test_what_went_wrong_ahead_is_told_when_it_is_needed(tmp_path: Path) -> None:
    openvino_graph.begin(tmp_path / "model.onnx", False, 4)
    with pytest.raises(InputError, match="found no such file"):
        OpenVinoEngine(tmp_path / "model.onnx", SINGLE, 4)


@needs_bf16
def test_a_run_begins_with_its_unet_before_torch_is_imported(tmp_path: Path) -> None:
    """And takes it afterwards: no other number of items, no other precision."""
    output = str(tmp_path / "run")
    code = f"""
import sys
from ddpo3d_fast import cli, openvino_graph
begun = []
def begin(*of):
    begun.append(of)
    print("torch" in sys.modules)
openvino_graph.begin = begin
openvino_graph.begun = lambda graph, bf16, items, threads: print((graph, bf16, items) in begun)
cli.main(["generate", "--prompt", "a red car", "--steps", "1", "--quiet", "--output", {output!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.splitlines()[:2], done.stderr) == (["False", "True"], "")
