"""What a runtime needs to know of a frozen network, whichever runtime it is."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    base: nn.Module | None = None  # `module` before adapters: other weights alone; TensorRT refits its plan


def in_batches_of(count: int, examples: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a call's inputs like these examples, for so many items."""
    return {name: (count, *tensor.shape[1:]) for name, tensor in examples.items()}
