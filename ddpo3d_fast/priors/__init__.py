"""Diffusion priors: what they know, what they predict."""

from __future__ import annotations

from pathlib import Path

import torch

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.embedded import EmbeddedPrior


def load_prior(name: str, device: torch.device | str = "cpu") -> EmbeddedPrior:
    """The prior called `embedded`, or the one in a folder of the same layout, on a device.

    Raises InputError.
    """
    if name == "embedded":
        return EmbeddedPrior(device=device)
    folder = Path(name)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"--model: expected `embedded` or a folder with a model_index.json, got {name!r}")
    return EmbeddedPrior(folder, device)


__all__ = ["EmbeddedPrior", "load_prior"]
