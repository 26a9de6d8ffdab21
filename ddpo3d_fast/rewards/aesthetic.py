"""LAION's aesthetic predictors on OpenAI's CLIP ViT-L/14, V1 and V2.

Both are linear in the embedding of length 1. V2 (github.com/christophschuhmann/improved-aesthetic-predictor)
is a stack of linear layers with nothing between them, so one vector and one number say the same.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast import hub
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.rewards.base import RewardSettings
from ddpo3d_fast.rewards.clip import OPENAI, has_model, load_open_clip, openai_is_cached
from ddpo3d_fast.rewards.names import split_predictor
from ddpo3d_fast.rewards.torchscript import is_torchscript
from ddpo3d_fast.rewards.tower import TowerReward
from ddpo3d_fast.sources import record

# The file's published name, where it is published, and the layers in it, from the first to the last.
PREDICTORS = {
    "aesthetic": (
        "sac+logos+ava1-l14-linearMSE.pth",
        "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
        "sac%2Blogos%2Bava1-l14-linearMSE.pth",
        ("layers.0.", "layers.2.", "layers.4.", "layers.6.", "layers.7."),
    ),
    "aesthetic-v1": (
        "sa_0_4_vit_l_14_linear.pth",
        "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        ("",),
    ),
}


def aesthetic_reward(kind: str, source: str = "", wanted: RewardSettings | None = None) -> TowerReward:
    """`aesthetic` (V2) or `aesthetic-v1`: how much people like a picture, about 1 to 10, whatever its prompt.

    `source` is what follows `aesthetic@`: the predictor's file, or a folder that holds it under its published
    name; behind a comma comes CLIP, as `clip@` takes it. A folder that holds open_clip_config.json or
    ViT-L-14.pt gives CLIP, too, and no name is looked up. Whatever is not given comes from the local caches
    of torch's hub (the predictor) and of the Hugging Face hub (CLIP), or else from the network. Most pictures
    score from 3 to 7. InputError where a part cannot be had or read.
    """
    name = f"{kind}@{source}" if source else kind
    predictor, clip = split_predictor(source)
    file = find_predictor(kind, predictor)
    direction, bias = load_predictor(file, PREDICTORS[kind][2], name)
    clip = clip or (predictor if predictor and has_model(predictor) else OPENAI)
    # The predictors were trained on OpenAI's weights, whose activation is the quick GELU.
    tower, _ = load_open_clip(clip, name, quick_gelu=True)
    if len(direction) != tower.width:
        raise InputError(
            f"--reward: {name}: expected a predictor of {tower.width} features, as CLIP gives, "
            f"got {len(direction)} in {file}"
        )
    return TowerReward(name, tower, direction, bias=bias, wanted=wanted)


def find_predictor(kind: str, source: str) -> Path:
    """The predictor's file: `source` or in it; without a source in torch's hub cache, where it is put from
    the network if need be. InputError where it cannot be had."""
    file, url, _ = PREDICTORS[kind]
    if source:
        path = Path(source) / file if os.path.isdir(source) else Path(source)
        if not path.is_file():
            raise InputError(f"--reward: {kind}@{source}: expected {file} from {url}, found no {path}")
        return path
    return hub.find_url(url, file, f"--reward: {kind}", f"name a local copy as {kind}@PATH")


def is_at_hand(kind: str = "aesthetic") -> bool:
    """Whether the predictor and its CLIP are in this machine's caches, and what loads them is installed."""
    try:
        return hub.cached_url(PREDICTORS[kind][0]).is_file() and openai_is_cached()
    except InputError:
        return False


def load_predictor(file: Path, layers: tuple[str, ...], name: str) -> tuple[Tensor, float]:
    """Direction float32 [D] and bias of a predictor's file, whose linear layers are called so, in order.

    InputError if it cannot be read or holds something else.
    """
    record(file)
    if is_torchscript(file):
        raise InputError(
            f"--reward: {name}: expected the predictor's file, got a TorchScript archive, {file}; "
            f"CLIP is named behind the predictor: {name.partition('@')[0]}@PREDICTOR,CLIP"
        )
    try:
        stored: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and torch's share no base class
        raise InputError(f"--reward: {name}: cannot read {file} ({first_line(error)})") from error
    wanted = {layer + part for layer in layers for part in ("weight", "bias")}
    if not isinstance(stored, dict) or set(stored) != wanted:
        got = ", ".join(sorted(map(str, stored))[:3]) if isinstance(stored, dict) else type(stored).__name__
        raise InputError(f"--reward: {name}: expected {', '.join(sorted(wanted))} in {file}, got {got}")
    try:
        direction, bias = fold([(stored[layer + "weight"], stored[layer + "bias"]) for layer in layers])
        if not bool(torch.isfinite(direction).all()) or not math.isfinite(bias):
            raise ValueError("not finite")
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"--reward: {name}: the layers in {file} make no predictor ({first_line(error)})"
        ) from error
    return direction.float(), bias


def fold(layers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """Direction float64 [D] and bias of linear layers (weight [out, in], bias [out]), first to last.

    d x + b = W_n (... (W_1 x + b_1) ...) + b_n. The last layer has one output: ValueError if not;
    RuntimeError if one layer's output is not the next one's input.
    """
    direction, bias = torch.ones(1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for weight, offset in reversed(layers):
        bias = bias + direction @ offset.double()
        direction = direction @ weight.double()
    if direction.ndim != 1 or bias.ndim != 0:
        raise ValueError("expected matrices and vectors")
    return direction, float(bias)
