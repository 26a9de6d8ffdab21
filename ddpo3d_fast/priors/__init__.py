"""Diffusion priors: what they know, what they predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import torch

from ddpo3d_fast.config import is_embedded
from ddpo3d_fast.engines import choose_runtime
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.autoencoder import Call
from ddpo3d_fast.priors.base import Codec, Prior
from ddpo3d_fast.priors.embedded import FOLDER, EmbeddedPrior
from ddpo3d_fast.priors.hub import MODELS, find_model
from ddpo3d_fast.priors.parts import read_config
from ddpo3d_fast.priors.stable_diffusion import StableDiffusionPrior


@overload
def load_prior(
    name: Literal["embedded"], device: torch.device | str = "cpu", *, runtime: str = "auto"
) -> EmbeddedPrior: ...


@overload
def load_prior(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    runtime: str = "auto",
    codec: str | Path | None = None,
    lora: Sequence[tuple[str | Path, float]] = (),
    interpolate_views: bool = True,
    calls: Sequence[Call] = (),
    prompts: tuple[str, str] | None = None,
) -> Prior: ...


def load_prior(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    runtime: str = "auto",
    codec: str | Path | None = None,
    lora: Sequence[tuple[str | Path, float]] = (),
    interpolate_views: bool = True,
    calls: Sequence[Call] = (),
    prompts: tuple[str, str] | None = None,
) -> Prior:
    """The prior called `embedded`, or one of that kind or of Stable Diffusion's in a folder, on a device.

    Args:
        name: `embedded`; a folder; `sd15`, `sd21`, `sdxl`, or a hub's owner/name (see `find_model`).
        dtype, runtime, codec, lora, interpolate_views, calls, prompts: as for StableDiffusionPrior. The
            embedded prior has its own dtype, codec and views, and is loaded before a prompt is looked at.

    Raises:
        InputError: no such model, a part of it is missing or damaged, or an adapter or a codec was given for
            the embedded prior.
    """
    if not is_embedded(name):  # whose own graph may do without what others need to be exported
        choose_runtime(runtime, torch.device(device), dtype)  # before a download, or a long load
    half = (
        dtype or (torch.float16 if torch.device(device).type == "cuda" else torch.float32)
    ) != torch.float32
    folder = None if name == "embedded" else find_model(name, "--model", MODELS, half)
    if folder is not None and not (folder / "model_index.json").is_file():
        raise InputError(f"--model: expected `embedded` or a folder with a model_index.json, got {name!r}")
    index = {} if folder is None else read_config(folder / "model_index.json")
    if folder is not None and index.get("_class_name") != "EmbeddedPrior":
        return StableDiffusionPrior(
            folder, device, dtype, runtime, codec, lora, interpolate_views, calls, prompts
        )
    for argument, value in (("--codec", codec), ("--lora", lora)):
        if value:
            raise InputError(f"{argument}: expected none with the embedded prior, got {value!r}")
    return EmbeddedPrior(folder or FOLDER, device, runtime, calls)


__all__ = ["Call", "Codec", "EmbeddedPrior", "Prior", "StableDiffusionPrior", "load_prior"]
