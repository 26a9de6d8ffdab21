"""What a runtime needs to know of a frozen network, whichever runtime it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A frozen torch module with named tensors in and out, to be run by any engine.

    `module(*inputs)` takes the tensors of `inputs` in their order and returns one tensor for each name in
    `outputs`: a tensor for one name, a tuple for more. Integer inputs keep their dtype; floating ones come
    and go as float32, and the engine casts to what it computes in.
    """

    name: str  # for people and for the cache: unet, encoder, encoder_vjp, decoder, scorer, scorer_vjp
    module: nn.Module  # on the CPU or the device it shall run on, eval, no gradients
    inputs: dict[str, Tensor]  # examples: names, shapes and dtypes; values that make a fair probe
    outputs: tuple[str, ...]
    dynamic: dict[str, tuple[int, ...]] = field(default_factory=dict)  # axes of an input that may differ
    gradient: bool = False  # whether it calls torch.autograd.grad inside: a VJP
    expected: dict[str, Tensor] = field(default_factory=dict)  # right outputs for `inputs`, where stored
    shapes: tuple[dict[str, tuple[int, ...]], ...] = ()  # of every input in the calls to come, where known
    channels_last: bool = True  # how torch lays out pictures and weights; False: as they come
    graph: Path | None = None  # in ONNX and float32, where it ships; else one is exported where needed
    base: nn.Module | None = None  # `module` before adapters: other weights alone; TensorRT refits its plan


def in_batches_of(count: int, examples: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a call's inputs like these examples, for so many items."""
    return {name: (count, *tensor.shape[1:]) for name, tensor in examples.items()}


class Vjp(nn.Module):
    """The vector-Jacobian product of a module with respect to its first input, as a module of its own.

    `forward(first, *others)` gives the module's output and the gradient, float32, of its sum: of a score for
    each item, each item's own. With `pulls`, `forward(first, *others, vector)` gives the gradient of
    <output, vector> alone.
    """

    def __init__(self, module: nn.Module, pulls: bool = False, lift: float = 1.0) -> None:
        """`lift`: how many times larger the gradient is inside the module, where half precision would round a
        small one coarsely."""
        super().__init__()
        self.module, self.pulls, self.lift = module, pulls, lift

    def forward(self, first: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = first.detach().requires_grad_()
            if self.pulls:
                *rest, vector = others
                (gradient,) = torch.autograd.grad(self.module(leaf, *rest), leaf, vector)
                return gradient
            output = self.module(leaf, *others)
            total = output.sum()
            (gradient,) = torch.autograd.grad(total if self.lift == 1 else self.lift * total, leaf)
        gradient = gradient.float()
        return output.detach(), gradient if self.lift == 1 else 1 / self.lift * gradient
