"""An engine runs a graph, and refuses one that is missing, broken or disagrees with its probe."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from ddpo3d_fast.engines import load_engine
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.training.export import export_graph, point_into_safetensors


@pytest.fixture
def graph(tmp_path):
    """y = 2 x, as a file."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "double", ends[:1], ends[1:], [two]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_named_tensors_in_named_tensors_out(graph):
    x = torch.randn(4, 3)
    assert torch.equal(load_engine(graph)(x=x)["y"], 2 * x)


def test_non_contiguous_inputs_are_read_right(graph):
    x = torch.randn(3, 5).T
    assert torch.equal(load_engine(graph)(x=x)["y"], 2 * x)


def test_an_engine_that_disagrees_with_its_probe_is_refused(graph):
    x = np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)
    np.savez(graph.with_name("probe.npz"), x=x, **{"expected.y": 2 * x})
    load_engine(graph, dtype=torch.float32)
    np.savez(graph.with_name("probe.npz"), x=x, **{"expected.y": 2.001 * x})
    with pytest.raises(InputError, match="another y, relative error"):
        load_engine(graph, dtype=torch.float32)


@pytest.mark.parametrize("content", [None, b"", b"not a graph"])
def test_a_missing_or_broken_graph_is_one_line(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_engine(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class _Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.second = torch.nn.Linear(16, 5)

    def forward(self, x):
        return self.second(torch.nn.functional.silu(self.first(x)).mean((2, 3)))


@pytest.fixture
def small():
    torch.manual_seed(0)
    module = _Small().eval()
    for parameter in module.parameters():
        parameter.data.copy_(parameter.half())
    return module


def test_a_graph_without_weights_reads_them_from_the_safetensors_beside_it(tmp_path, small):
    save_file({name: t.half() for name, t in small.state_dict().items()}, tmp_path / "weights.safetensors")
    graph = export_graph(small, {"x": torch.randn(2, 3, 8, 8)}, ["y"])
    point_into_safetensors(graph, tmp_path / "weights.safetensors")
    assert not any(t.raw_data for t in graph.graph.initializer if t.dims and np.prod(t.dims) > 8)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    engine = load_engine(tmp_path / "model.onnx", dtype=torch.float32)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            expected = small(x)
        got = engine(x=x)["y"]
        assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_a_graph_whose_weights_are_not_in_the_file_is_refused(tmp_path, small):
    state = {name: t.half() for name, t in small.state_dict().items() if name != "first.weight"}
    save_file(state, tmp_path / "weights.safetensors")
    graph = export_graph(small, {"x": torch.randn(2, 3, 8, 8)}, ["y"])
    with pytest.raises(ValueError, match=r"no tensor 'first\.weight'"):
        point_into_safetensors(graph, tmp_path / "weights.safetensors")
    state["first.weight"] = small.first.weight.detach().half()[:4]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"first\.weight is F16 \[4, 3, 3, 3\]"):
        point_into_safetensors(graph, tmp_path / "weights.safetensors")
