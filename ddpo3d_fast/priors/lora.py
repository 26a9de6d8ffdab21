"""Low-rank adapters, fused on loading: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353)."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.lora_file import Change, read_changes, shown
from ddpo3d_fast.sources import record

# The names of a UNet's modules in diffusers and in the first published code (sgm), which kohya's scripts keep
# for XL: in a residual block, and outside the blocks.
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
# How old files call the projections of attention, in a UNet and in a text encoder.
_ATTENTION = {
    ".to_out.0": ".to_out",
    ".q_proj": ".to_q",
    ".k_proj": ".to_k",
    ".v_proj": ".to_v",
    ".out_proj": ".to_out",
}


class Lora:
    """One adapter's weights, in the names of diffusers, peft, kohya's scripts or LyCORIS."""

    def __init__(self, path: str | Path, scale: float, parts: Collection[str]) -> None:
        """`path` is a .safetensors file; `parts` are those of `unet`, `text_encoder` and `text_encoder_2`
        that the model has.

        Raises InputError if the file cannot be read, is no LoRA or DoRA of such a model, or lacks one of a
        module's two matrices.
        """
        self.path, self.scale = Path(path).expanduser(), scale
        if self.path.suffix != ".safetensors" or not self.path.is_file():
            raise InputError(f"--lora: expected a .safetensors file, got {str(path)!r}")
        record(self.path)
        self._changes, self._trained_for = read_changes(self.path, parts)

    def fuse(self, network: Any, part: str) -> None:
        """Changes the weights of a part: `unet`, `text_encoder` or `text_encoder_2`; or nothing, if the file
        has nothing for that part, or the scale is 0.

        Raises InputError if they do not fit.
        """
        changes = self._changes.get(part, {}) if self.scale else {}
        modules = _modules_by_name(network) if changes else {}
        trained_for = f"; it was trained for {self._trained_for}" if self._trained_for else ""
        for name, change in changes.items():
            adapted = f"{shown(change.name)}{trained_for}"
            if name not in modules:
                raise InputError(
                    f"--lora: {self.path}: has weights that fit nothing in the {part}: {adapted}"
                )
            weight = modules[name].weight
            changed = _fused(weight.detach().float(), change, self.scale)
            if changed is None:
                got = f"{list(change.up.shape)} by {list(change.down.shape)}"
                raise InputError(
                    f"--lora: {self.path}: does not fit the {part}: expected matrices for "
                    f"{list(weight.shape)}, got {got} for {adapted}"
                )
            weight.data.copy_(changed)


def _fused(weight: Tensor, change: Change, scale: float) -> Tensor | None:
    """A module's weight [out, in] or [out, in, kh, kw], changed; None where the shapes do not fit.

    LoRA: W + s D with D = (alpha / r) B A. DoRA gives the rows (LyCORIS also knew columns) a learnt length m.
    How a scale s other than 1 enters is each format's own:

        peft, diffusers     m (W + s D) / |W + s D|
        LyCORIS, kohya      (W + D) (1 + s (m / |W + D| - 1))
    """
    delta = _delta(weight.shape, change)
    if delta is None:
        return None
    if change.magnitude is not None:
        changed = weight + scale * change.factor * delta
        lengths = changed.flatten(1).norm(dim=1)
        if change.magnitude.numel() != len(lengths):
            return None
        ratio = change.magnitude.flatten() / lengths
        return changed * ratio.view(-1, *[1] * (weight.ndim - 1))
    if change.dora_scale is None:
        return weight + scale * change.factor * delta
    changed = weight + change.factor * delta
    kept = 0 if change.dora_scale.shape[:1] == weight.shape[:1] else 1
    axes = [axis for axis in range(weight.ndim) if axis != kept]
    lengths = torch.linalg.vector_norm(changed, dim=axes, keepdim=True) + torch.finfo(torch.float32).eps
    if change.dora_scale.numel() != lengths.numel():
        return None
    return changed * (1 + scale * (change.dora_scale.view_as(lengths) / lengths - 1))


def _delta(shape: torch.Size, change: Change) -> Tensor | None:
    """B A in a weight's shape, without alpha / r."""
    up, down, mid = change.up, change.down, change.mid
    if up.ndim < 2 or down.ndim < 2 or up.shape[0] != shape[0] or down.shape[1] != shape[1]:
        return None
    if up[0].numel() != (down if mid is None else mid).shape[0]:
        return None
    if mid is None:
        product = up.flatten(1) @ down.flatten(1)
    elif mid.ndim < 2 or mid.shape[1] != down.shape[0] or down[0].numel() != shape[1]:
        return None
    else:
        product = torch.einsum("or,rs...,si->oi...", up.flatten(1), mid, down.flatten(1))
    return product.view(shape) if product.numel() == shape.numel() else None


def _modules_by_name(network: Any) -> dict[str, nn.Linear | nn.Conv2d]:
    """The modules that can be adapted, by every name that a file may have for them, with "_" for "."."""
    layers = getattr(network.config, "layers_per_block", None)
    modules: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        bare = name.removeprefix("text_model.")  # transformers has it, or not, from one version to the next
        names = [bare, f"text_model.{bare}"]
        for new, old in _ATTENTION.items():
            names += [each.removesuffix(new) + old for each in names[:2] if each.endswith(new)]
        if isinstance(layers, int):
            names += _sgm_names(name, layers)
        modules |= {each.replace(".", "_"): module for each in names}
    return modules


def _sgm_names(name: str, layers: int) -> list[str]:
    """What the first published code calls a module of a UNet with `layers` layers a block; two names where
    that hangs on what the block has else."""
    if name in _OUTER:
        return [_OUTER[name]]
    match = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.([a-z]+)\.(\d+)\.([^.]+)(.*)", name)
    if not match:
        return []
    first, kind, layer, inner = int(match[2] or 0) * (layers + 1), match[3], int(match[4]), match[5]
    rest = f"{_RESNET.get(inner, inner) if kind == 'resnets' else inner}{match[6]}"
    place = int(kind == "attentions")
    if match[1] is None:
        return [f"middle_block.{2 * layer + place}.{rest}"]
    if kind == "downsamplers":
        return [f"input_blocks.{1 + first + layers}.0.op"]
    if kind == "upsamplers":
        return [f"output_blocks.{first + layers}.{place}.{rest}" for place in (1, 2)]
    blocks = f"input_blocks.{1 + first + layer}" if match[1] == "down" else f"output_blocks.{first + layer}"
    return [f"{blocks}.{place}.{rest}"]
