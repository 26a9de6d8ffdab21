"""What an export writes, and that ONNX Runtime computes from it what torch does.

For UNets, autoencoders and towers the tests of priors and rewards say so.
"""

from dataclasses import replace

import onnx
import pytest
import small_networks
import torch
from onnx import TensorProto
from torch import nn

from ddpo3d_fast.engines import Network, OnnxEngine, TorchEngine
from ddpo3d_fast.engines import export as room
from ddpo3d_fast.engines.export import export
from ddpo3d_fast.engines.load import disagreement
from ddpo3d_fast.errors import InputError


def reference(network, given):
    return TorchEngine(network, "cpu", torch.float32)(**given)


class Tower(nn.Module):
    """The least that has a kernel, a norm and a product."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, images):
        return self.last(self.norm(self.first(images)).relu().mean((2, 3)))


@pytest.fixture
def tower():
    torch.manual_seed(0)
    module, images = Tower().eval().requires_grad_(False), {"images": torch.randn(1, 3, 8, 8)}
    return Network("scorer", module, images, ("scores",), {"images": (0, 2, 3)})


def test_a_gradient_graph_is_the_gradient_in_double_precision(tmp_path):
    network = small_networks.make("encoder-vjp-tiny")
    export(network, tmp_path / "model.onnx", torch.float32)
    given = small_networks.inputs_of(network, 2)
    exact = network.module.double()(*(tensor.double() for tensor in given.values()))
    got = OnnxEngine(tmp_path / "model.onnx")(**given)["grad_pictures"]
    assert float((got - exact).norm() / exact.norm()) <= 1e-4


def test_an_example_of_one_does_not_fix_the_batch(tower, tmp_path):
    export(tower, tmp_path / "model.onnx", torch.float32)
    for batch in (1, 4):
        given = small_networks.inputs_of(tower, batch)
        engine = OnnxEngine(tmp_path / "model.onnx")
        assert disagreement(engine, given, reference(tower, given))[1] <= 1e-5


def test_axes_that_are_not_dynamic_are_fixed(tower, tmp_path):
    export(replace(tower, dynamic={"images": (0,)}), tmp_path / "model.onnx", torch.float32)
    (images,) = onnx.load(tmp_path / "model.onnx").graph.input
    sizes = [axis.dim_value or axis.dim_param for axis in images.type.tensor_type.shape.dim]
    assert isinstance(sizes[0], str)
    assert sizes[1:] == [3, 8, 8]


@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.float16, TensorProto.FLOAT16), (torch.bfloat16, TensorProto.BFLOAT16)]
)
def test_weights_are_stored_in_the_dtype_and_floats_come_and_go_in_single(tower, tmp_path, dtype, stored):
    export(tower, tmp_path / "model.onnx", dtype)
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer if len(tensor.dims)}
    names = [name for name, _ in tower.module.named_parameters()]
    assert {name.removeprefix("module.") for name in weights} >= set(names)
    assert all(weights[name] == stored for name in weights if name.removeprefix("module.") in names)
    for end in (*graph.input, *graph.output):
        assert end.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("kind", ["encoder", "scorer-vjp-vit"])
def test_half_precision_agrees_within_its_rounding(kind, tmp_path):
    network = small_networks.make(kind)
    network = replace(network, dynamic=dict.fromkeys(network.inputs, ()))  # an export of a second or two
    export(network, tmp_path / "model.onnx", torch.float16)
    error = disagreement(
        OnnxEngine(tmp_path / "model.onnx"), network.inputs, reference(network, network.inputs)
    )[1]
    assert 1e-5 < error < 1e-2


def test_many_weights_lie_beside_the_graph_and_move_with_it(tower, tmp_path, monkeypatch):
    given = small_networks.inputs_of(tower, 2)
    monkeypatch.setattr(room, "EXTERNAL_ABOVE", 100)
    (tmp_path / "made").mkdir()
    export(tower, tmp_path / "made" / "model.onnx", torch.float32)
    (tmp_path / "made").rename(tmp_path / "moved")
    graph, data = (tmp_path / "moved" / name for name in ("model.onnx", "model.onnx.data"))
    assert disagreement(OnnxEngine(graph), given, reference(tower, given))[1] <= 1e-5
    data.write_bytes(data.read_bytes()[::-1])
    assert disagreement(OnnxEngine(graph), given, reference(tower, given))[1] > 0.1  # it is read from there
    monkeypatch.undo()
    export(tower, tmp_path / "model.onnx", torch.float32)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]


def test_a_graph_tells_nothing_of_the_machine_that_made_it(tower, tmp_path):
    export(tower, tmp_path / "model.onnx", torch.float32)
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes()


def test_the_network_stays_as_it_was(tower, tmp_path):
    before = {name: tensor.clone() for name, tensor in tower.module.state_dict().items()}
    export(tower, tmp_path / "model.onnx", torch.float16)
    after = tower.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_network_that_cannot_be_exported_is_one_line(tmp_path):
    class Asks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    network = Network("scorer", Asks(), {"x": torch.randn(2, 3)}, ("y",), {"x": (0,)})
    with pytest.raises(InputError, match=r"^scorer: cannot be exported to ONNX") as caught:
        export(network, tmp_path / "model.onnx", torch.float32)
    assert "\n" not in str(caught.value)
