"""A traced gradient is autograd's, for every operation that is written here, without autograd."""

import pytest
import torch
from small_networks import EncoderVjp
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, group_norm, layer_norm, silu

from ddpo3d_fast.engines.vjp import trace_gradients


def error_of(function, inputs, channels=6):
    """Relative error of the traced gradient of a function, at another size than it was traced at."""

    class Function(nn.Module):
        def forward(self, x):
            return function(x)

    torch.manual_seed(0)
    module = EncoderVjp(Function())
    made = [torch.randn(2, channels, *inputs, dtype=torch.float64)]
    made.append(torch.randn_like(function(made[0])))
    graph = trace_gradients(module, made)
    assert not any("backward" in str(node.target) for node in graph.graph.nodes)
    other = torch.randn(3, channels, *(2 * size for size in inputs), dtype=torch.float64)
    grad = torch.randn_like(function(other))
    expected = module(other, grad)
    with torch.no_grad():
        got = graph(other, grad)
    assert float(expected.norm()) > 0
    return float((got - expected).norm() / expected.norm())


def weight(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CONVOLUTIONS = {
    "plain": lambda x: conv2d(x, weight(4, 6, 3, 3), padding=1),
    "strided": lambda x: conv2d(x, weight(4, 6, 3, 3), stride=2, padding=1),
    "strided, without the last row": lambda x: conv2d(x, weight(4, 6, 2, 2), stride=3),
    "patches": lambda x: conv2d(x, weight(4, 6, 4, 4), stride=4),
    "dilated": lambda x: conv2d(x, weight(4, 6, 3, 3), padding=2, dilation=2),
    "in groups": lambda x: conv2d(x, weight(4, 3, 3, 3), padding=1, groups=2),
    "oblong": lambda x: conv2d(x, weight(4, 6, 1, 3), padding=(0, 1), stride=(1, 2)),
    "transposed": lambda x: conv_transpose2d(x, weight(6, 4, 4, 4), stride=2, padding=1),
    "transposed in groups": lambda x: conv_transpose2d(
        x, weight(6, 2, 3, 3), stride=2, padding=1, output_padding=1, groups=3
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    size = 12 if name == "patches" or "last row" in name else 8
    assert error_of(CONVOLUTIONS[name], (size, size + 4 if size == 8 else size)) < 1e-12


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("inputs", [(8, 4), (10,)], ids=["pictures", "words"])
def test_group_norm(inputs, affine):
    scale, shift = (weight(6), weight(6)) if affine else (None, None)
    assert error_of(lambda x: group_norm(x, 3, scale, shift), inputs) < 1e-12


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(affine):
    scale, shift = (weight(6), weight(6)) if affine else (None, None)
    assert error_of(lambda x: layer_norm(x.movedim(1, -1), (6,), scale, shift), (4, 4)) < 1e-12


@pytest.mark.parametrize("pool", [(2,), (2, 1), (3, 2, 1), ((2, 1),)], ids=str)
def test_average_pooling(pool):
    assert error_of(lambda x: avg_pool2d(x, *pool), (8, 8)) < 1e-12


def test_silu_and_attention():
    def attend(x):
        words = silu(x).flatten(2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(words, 2 * words, words)

    assert error_of(attend, (4, 4)) < 1e-12


def test_a_pooling_whose_blocks_differ_is_refused():
    with pytest.raises(ValueError, match="blocks all have the same size"):
        error_of(lambda x: avg_pool2d(x, 3, 2, 1, count_include_pad=False), (8, 8))


def test_weights_that_want_gradients_are_refused():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.autograd.grad(self.layer(x).sum(), self.layer.weight)[0]

    with pytest.raises(ValueError, match="frozen"):
        trace_gradients(Module(), [torch.randn(2, 3, 8, 8)])
