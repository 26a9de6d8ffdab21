"""The torch engine computes what the network's module does, and leaves the module as it was."""

from dataclasses import replace

import pytest
import small_networks
import torch
from torch import nn

from ddpo3d_fast.engines import Network, TorchEngine


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.register_buffer("words", torch.randn(10, 5))

    def forward(self, images, word):
        scores = self.head(self.first(images).mean((2, 3)))
        return scores * self.words[word], scores.abs()


@pytest.fixture
def network():
    torch.manual_seed(0)
    inputs = {"images": torch.randn(2, 3, 8, 8), "word": torch.tensor([1, 7])}
    return Network("scorer", Tower().eval().requires_grad_(False), inputs, ("scores", "sizes"))


def vjp_network():
    return small_networks.make("scorer-vjp-vit")


def test_it_computes_what_the_module_does(network):
    got = TorchEngine(network, "cpu", torch.float32)(**network.inputs)
    expected = network.module(*network.inputs.values())
    assert list(got) == ["scores", "sizes"]
    for result, wanted in zip(got.values(), expected, strict=True):
        assert torch.allclose(result, wanted, rtol=1e-5, atol=1e-6)


def test_inputs_go_by_name(network):
    engine = TorchEngine(network, "cpu", torch.float32)
    turned = engine(**dict(reversed(network.inputs.items())))
    assert torch.equal(turned["scores"], engine(**network.inputs)["scores"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_computes_in_the_dtype_and_floats_come_and_go_in_single(network, dtype):
    seen = {}
    network.module.head.register_forward_hook(lambda _, given, made: seen.update(dtype=made.dtype))
    engine = TorchEngine(network, "cpu", dtype)
    expected = TorchEngine(network, "cpu", torch.float32)(**network.inputs)["scores"]
    got = engine(**network.inputs)["scores"]
    assert seen["dtype"] == dtype
    assert got.dtype == torch.float32
    assert 1e-5 < float((got - expected).norm() / expected.norm()) < 3e-2


def test_results_are_as_the_kernels_want_them():
    network = small_networks.make("encoder-tiny")
    latents = TorchEngine(network, "cpu", torch.float16)(**network.inputs)["latents"]
    assert latents.is_contiguous()
    assert not latents.requires_grad


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad])
def test_a_gradient_network_has_its_gradient_whatever_the_caller_does(outside):
    network = vjp_network()
    with outside():
        got = TorchEngine(network, "cpu", torch.float32)(**network.inputs)
    expected = network.module(*network.inputs.values())
    assert torch.allclose(got["grad_images"], expected[1], rtol=1e-4, atol=1e-7)
    assert float(expected[1].norm()) > 0
    assert not any(tensor.requires_grad for tensor in got.values())


def test_a_network_without_gradient_records_none():
    network = small_networks.make("encoder-tiny")
    given = {"pictures": network.inputs["pictures"].requires_grad_()}
    seen = []
    network.module.register_forward_hook(lambda _, given, made: seen.append(made.requires_grad))
    with torch.enable_grad():
        TorchEngine(network, "cpu", torch.float32)(**given)
    assert seen == [False]


def test_the_module_stays_as_it_was_and_weights_that_fit_are_shared(network):
    before = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in network.module.state_dict().items()}
    half, single = (TorchEngine(network, "cpu", dtype) for dtype in (torch.float16, torch.float32))
    after = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in network.module.state_dict().items()}
    assert after == before
    assert single._module.head.weight.data_ptr() == network.module.head.weight.data_ptr()
    assert half._module.head.weight.dtype == half._module.words.dtype == torch.float16


def test_kernels_of_convolutions_lie_channels_last(network):
    engine = TorchEngine(network, "cpu", torch.float32)
    assert engine._module.first.weight.is_contiguous(memory_format=torch.channels_last)


def test_dropout_and_the_like_are_off(network):
    network.module.head = nn.Sequential(network.module.head, nn.Dropout(0.5))
    network.module.train()
    engine = TorchEngine(network, "cpu", torch.float32)
    assert torch.equal(engine(**network.inputs)["scores"], engine(**network.inputs)["scores"])


def test_a_wrong_number_of_outputs_is_a_mistake(network):
    engine = TorchEngine(replace(network, outputs=("scores",)), "cpu", torch.float32)
    with pytest.raises(ValueError, match="zip"):
        engine(**network.inputs)


def test_it_says_what_it_runs_on(network):
    engine = TorchEngine(network, "cpu", torch.float32)
    assert engine.runtime == f"torch {torch.__version__}, CPU, float32"


def test_nothing_waits_for_the_device(network):
    """The meta device has no numbers to wait for: whatever asks for one raises."""
    engine = TorchEngine(network, "meta", torch.float16)
    got = engine(**{name: tensor.to("meta") for name, tensor in network.inputs.items()})
    assert got["scores"].device.type == "meta"
    assert got["scores"].shape == (2, 5)
