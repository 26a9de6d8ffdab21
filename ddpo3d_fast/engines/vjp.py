"""Turns a network that calls torch.autograd.grad into a plain graph of forward operations, to be exported.

What autograd calls backwards has no ONNX counterpart for some operations; they are written here as forward
ones. Gradients with respect to weights are not among them: networks here are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

aten = torch.ops.aten


def trace_gradients(module: nn.Module, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The forward operations, for symbolic sizes, of a module that calls torch.autograd.grad.

    The graph holds the module's weights as its own attributes. `inputs` give dtypes, ranks and the sizes that
    Python code branches on, such as whether a convolution's stride divides its input.
    """

    def run(*tensors: Tensor) -> Any:
        with torch.enable_grad():
            return module(*tensors)

    # The fused attentions have backward operations of their own; MATH is made of products and a softmax.
    with sdpa_kernel(SDPBackend.MATH):
        graph = make_fx(run, _table(), tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
    for node in list(graph.graph.nodes):
        if node.target in (aten.detach.default, aten.alias.default):  # of a graph without gradients
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _table() -> dict[Any, Callable]:
    """Torch's decompositions, and those that it lacks or that ONNX Runtime or TensorRT could not run."""
    return {
        **core_aten_decompositions(),
        aten.convolution_backward.default: _convolution_backward,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.native_layer_norm.default: _layer_norm,
        aten.avg_pool2d_backward.default: _average_pool_backward,
        aten.silu_backward.default: _silu_backward,
        aten.empty_permuted.default: _empty_permuted,
    }


def _convolution_backward(
    grad: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Any, None, None]:
    """The gradient of a convolution's input: the transposed convolution, and the other way round."""
    if mask[1] or mask[2]:
        raise ValueError("a frozen network has no gradients with respect to its weights")
    if not mask[0]:
        return None, None, None
    if transposed:
        return (
            aten.convolution.default(grad, weight, None, stride, padding, dilation, False, [0, 0], groups),
            None,
            None,
        )
    missing = []  # rows and columns that a stride passes over at the end
    for axis in range(len(stride)):
        reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        made = (grad.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis] + reach
        missing.append(int(inputs.shape[2 + axis] - made))
    made = aten.convolution.default(grad, weight, None, stride, padding, dilation, True, missing, groups)
    return made, None, None


def _group_norm_backward(
    grad: Tensor,
    inputs: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    count: int,
    channels: int,
    pixels: int,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """y = w x^ + b with x^ = (x - mean) rstd: v_x = rstd (v - mean(v) - x^ mean(v x^)), v = w v_y."""
    over = tuple(
        range(2, inputs.ndim + 1)
    )  # the group's channels and pixels; unflattened, sizes stay symbols
    ones = (1,) * (inputs.ndim - 2)
    scaled = grad if weight is None else grad * weight.reshape(1, channels, *ones)
    scaled, grouped = (t.unflatten(1, (groups, channels // groups)) for t in (scaled, inputs))
    mean, rstd = (t.reshape(count, groups, 1, *ones) for t in (mean, rstd))
    normal = (grouped - mean) * rstd
    slope = (scaled * normal).mean(over, keepdim=True)
    v_inputs = (scaled - scaled.mean(over, keepdim=True) - normal * slope) * rstd
    return v_inputs.flatten(1, 2), None, None


def _layer_norm(
    inputs: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's and ONNX's operations disagree on the dtype of the statistics of half precision inputs."""
    over = tuple(range(inputs.ndim - len(shape), inputs.ndim))
    exact = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    mean = exact.mean(over, keepdim=True)
    rstd = ((exact - mean).square().mean(over, keepdim=True) + eps).rsqrt()
    normal = ((exact - mean) * rstd).to(inputs.dtype)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias, mean, rstd


def _average_pool_backward(
    grad: Tensor,
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_padding: bool,
    divisor: int | None,
) -> Tensor:
    """The mean over blocks is a convolution of each channel by itself."""
    if ceil_mode or divisor or (any(padding) and not count_padding):
        raise ValueError("expected a pooling whose blocks all have the same size")
    channels = inputs.shape[1]
    weight = grad.new_full((channels, 1, *kernel), 1 / math.prod(kernel))
    mask, one = [True, False, False], [1] * len(kernel)
    return _convolution_backward(
        grad, inputs, weight, None, stride or kernel, padding, one, False, [], channels, mask
    )[0]


def _silu_backward(grad: Tensor, inputs: Tensor) -> Tensor:
    """y = x s(x): v_x = v_y s (1 + x (1 - s))."""
    sigmoid = torch.sigmoid(inputs)
    return grad * sigmoid * (1 + inputs * (1 - sigmoid))


def _empty_permuted(size: Sequence[int], order: Sequence[int], **options: Any) -> Tensor:
    """Memory to be written, in an order that a graph does not have."""
    return torch.zeros(size, dtype=options.get("dtype"))
