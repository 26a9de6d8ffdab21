"""Low-rank adapters (LoRA, arXiv 2106.09685), fused on loading: W + scale (alpha / r) B A."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.priors.parts import quietly
from ddpo3d_fast.sources import record

_ADAPTER = "lora"
_UP = re.compile(r"(\.up|\.lora_B)\.weight$")  # the names of up matrices, old and new
# How a file calls the two matrices of a module: diffusers' names, new and old, and kohya's.
_DOWN_IN_FILE = re.compile(r"\.(?:lora_A|lora_down|down)\.weight$")
_UP_IN_FILE = re.compile(r"\.(?:lora_B|lora_up|up)\.weight$")
# How diffusers names the attention of text encoders in kohya's files, and how it reads it. Where both kinds
# of names meet, as they do once feed-forward layers are adapted, too, it drops the attention without a word.
_RENAMED = {f".to_{old}_lora.": f".{old}_proj.lora_linear_layer." for old in ("q", "k", "v", "out")}


class Lora:
    """One adapter's weights, as trained with diffusers or with kohya's scripts."""

    def __init__(self, path: str | Path, scale: float, unet_config: dict[str, Any]) -> None:
        """`path` is a .safetensors file; `unet_config` that of diffusers' UNet, for the names of XL's blocks.

        Raises InputError if the file cannot be read, holds nothing for a UNet or a text encoder, or lacks one
        of a module's two matrices.
        """
        self.path, self.scale = Path(path).expanduser(), scale
        if self.path.suffix != ".safetensors" or not self.path.is_file():
            raise InputError(f"--lora: expected a .safetensors file, got {str(path)!r}")
        record(self.path)
        self._mixin = library("diffusers.loaders", "--lora").StableDiffusionXLLoraLoaderMixin
        library("peft", "--lora")
        try:
            weights = load_file(self.path)
            _check_halves(weights, self.path)
            scaled = _scaled_by_alpha(weights)
            with quietly():
                self._weights, _, self._metadata = self._mixin.lora_state_dict(
                    scaled or str(self.path),
                    unet_config=SimpleNamespace(layers_per_block=unet_config.get("layers_per_block", 2)),
                    use_safetensors=True,
                    return_lora_metadata=True,
                )
        except InputError:
            raise
        except Exception as error:  # safetensors', diffusers' and the system's share no base class
            raise InputError(f"--lora: {self.path}: is no LoRA ({first_line(error)})") from error
        for old, new in _RENAMED.items():
            self._weights = {
                key.replace(old, new) if key.startswith("text_encoder") else key: tensor
                for key, tensor in self._weights.items()
            }
        if not any(_UP.search(key) and key.startswith(("unet.", "text_encoder")) for key in self._weights):
            raise InputError(f"--lora: {self.path}: has no LoRA weights for a UNet or a text encoder")

    def fuse(self, network: Any, part: str) -> None:
        """Adds the adapter to the weights of a part: `unet`, `text_encoder` or `text_encoder_2`; or nothing,
        if it has none for that part.

        Raises InputError if they do not fit.
        """
        up = [t for key, t in self._weights.items() if key.startswith(f"{part}.") and _UP.search(key)]
        if not up:
            return
        options = {"network_alphas": None, "adapter_name": _ADAPTER, "metadata": self._metadata}
        base = library("diffusers.loaders.lora_base", "--lora")
        try:
            with quietly():
                if part == "unet":
                    network.load_lora_adapter(dict(self._weights), prefix=part, **options)
                    whole = _energy_of_up(network)
                    network.fuse_lora(lora_scale=self.scale, safe_fusing=True, adapter_names=[_ADAPTER])
                    network.unload_lora()
                else:
                    self._mixin.load_lora_into_text_encoder(
                        dict(self._weights), text_encoder=network, prefix=part, **options
                    )
                    whole = _energy_of_up(network)
                    base.fuse_text_encoder_lora(network, self.scale, True, [_ADAPTER])
                    # diffusers has no unload_lora for these; the next adapter shall find what was there.
                    library("diffusers.utils.peft_utils", "--lora").recurse_remove_peft_layers(network)
                    del network.peft_config
                    network._hf_peft_config_loaded = False
        except Exception as error:  # torch's, peft's and diffusers' share no base class
            raise InputError(f"--lora: {self.path}: does not fit the {part} ({first_line(error)})") from error
        # What has no place in the network is left out with a warning at most.
        if not math.isclose(whole, sum(float(t.double().square().sum()) for t in up), rel_tol=1e-3):
            raise InputError(f"--lora: {self.path}: has weights that fit nothing in the {part}")


def _energy_of_up(network: Any) -> float:
    """The sum of squares of the up matrices that have been loaded."""
    named = network.named_parameters()
    return sum(
        float(p.detach().double().square().sum()) for name, p in named if f".lora_B.{_ADAPTER}." in name
    )


def _check_halves(weights: dict[str, Tensor], path: Path) -> None:
    """InputError for a module with one matrix: peft would leave it out, or draw the other at random."""
    down, up = (
        {half.sub("", key) for key in weights if half.search(key)} for half in (_DOWN_IN_FILE, _UP_IN_FILE)
    )
    for half, lacking in (("up", down - up), ("down", up - down)):
        if lacking:
            raise InputError(f"--lora: {path}: lacks the {half} matrix of {min(lacking)}")


def _scaled_by_alpha(weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """kohya's weights with their alpha / r in the up matrix; None where there are none such.

    diffusers would hand the alphas on, but misses modules where they are not all the same.
    """
    alphas = {key.removesuffix(".alpha"): float(a) for key, a in weights.items() if key.endswith(".alpha")}
    if not alphas:
        return None
    scaled = {key: tensor for key, tensor in weights.items() if not key.endswith(".alpha")}
    for name, alpha in alphas.items():
        rank = weights[f"{name}.lora_down.weight"].shape[0]
        scaled[f"{name}.lora_up.weight"] = weights[f"{name}.lora_up.weight"].float() * (alpha / rank)
    return scaled
