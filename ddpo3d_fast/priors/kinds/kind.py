"""What a kind of prior brings: what its models are called, their presets, and what loads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast.settings import Changes, Config

if TYPE_CHECKING:
    import torch

    from ddpo3d_fast.priors.base import Call, Prior


@dataclass(frozen=True)
class PriorSettings:
    """Which prior is wanted, where, and for which run. A kind passes over what means nothing to it."""

    model: str
    """what the user has called it: a name of the kind's, a folder, or a hub's owner/name"""
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    """what its networks compute in; None: fp16 on CUDA, fp32 on the CPU"""
    runtime: str = "auto"
    """one of `engines.RUNTIMES`, or auto"""
    codec: str = ""
    """another autoencoder than its own: a folder, `taesd`, `taesdxl`, or a hub's owner/name"""
    lora: Sequence[tuple[str | Path, float]] = ()
    """.safetensors files of adapters and their scales, fused one after the other"""
    interpolate_views: bool = True
    """whether the embeddings of the two nearest views are mixed; else the nearest view's is taken"""
    calls: Sequence[Call] = ()
    """the steps of the run, where they are known, for the engines' profiles"""
    prompts: tuple[str, str] | None = None
    """prompt and negative prompt of the run, where they are known: what is wrong with them is told before
    a long load"""


@dataclass(frozen=True)
class PriorKind:
    """A kind of prior. Its file must not import torch but inside functions: help comes at once."""

    title: str
    """what a message calls its models"""
    models: Mapping[str, tuple[str, ...]]
    """their short names, each with the hub's repositories of the same weights, in the order to try; none
    where the model ships in the package"""
    load: Callable[[PriorSettings], Prior]
    """raises InputError, one line, for what is missing, damaged or of another kind"""
    presets: Mapping[str, Changes]
    """what each changes of the defaults"""
    classes: tuple[str, ...] = ()
    """what model_index.json calls a folder of this kind, in `_class_name`"""
    base: Changes = field(default_factory=dict)
    """what all presets change first"""
    reward: str = ""
    """what judges where the user names no reward and it can be had; empty: the embedded scorer, always"""
    ahead: Callable[[Config], None] = lambda config: None
    """what of a run's loading can begin before torch is imported; must not import it"""
    small: bool = False
    """whether torch has little to do in a step: its threads would then only hinder those of the kernels"""
    check: Callable[[Config], None] = lambda config: None
    """raises InputError for settings that models of this kind cannot do"""
