"""What stands in an adapter's file: whose names its tensors have, what they are, and what cannot be used."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ddpo3d_fast.errors import FallbackWarning, InputError, first_line
from ddpo3d_fast.priors.parts import read_config
from ddpo3d_fast.sources import record

_EXPECTED = "expected a LoRA or DoRA of Stable Diffusion 1.x, 2.x or XL"
# A tensor's place in the change of a module, by how its name ends: diffusers' names, new and old, peft's,
# kohya's and LyCORIS's.
_ROLES = {
    "down": r"(\.lora_A|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight",
    "up": r"(\.lora_B|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector(\.weight)?",
}
# The network that a tensor is for, by how its name begins. Some have no prefix.
_PARTS = {
    "unet": r"unet\.|lora_unet_|lycoris_|(?=(down_blocks|mid_block|up_blocks|conv_\w+|\w+_embedding)\.)",
    "text_encoder_2": r"text_encoder_2\.|lora_te2_",
    "text_encoder": r"text_encoder\.|lora_te1?_|(?=text_model\.)",
}
_PEFT = "base_model.model."
_BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.")
# What a file is whose tensors are not LoRA's, by a name that no other kind has.
_KINDS = {
    r"[._]hada_(w1|w2|t1|t2)": "a LoHa",
    r"[._]lokr_(w1|w2|t2)": "a LoKr",
    r"\.(oft_\w+|boft_\w+)(\.|$)": "an OFT or BOFT",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"\.(ia3_l|on_input)": "an (IA)3",
    r"[._](lambda_layer|lora_E|vera_lambda\w*)": "a relative of LoRA with a scale for each rank",
    r"\.(diff|diff_b|w_norm|b_norm|set_weight)$": "a change of whole weights, at least in part",
    r"(^|\.)(emb_params|string_to_param|clip_[lg])(\.|$)|^<.*>$": "a textual inversion",
    r"(double_blocks|single_blocks|single_transformer_blocks|joint_blocks|^transformer\.|^lora_transformer_"
    r"|^text_encoder_3\.|^lora_te3_|^diffusion_model\.)": "for a diffusion transformer, as SD 3 and Flux are",
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.": "a whole checkpoint",
    r"motion_modules\.": "for a video's motion",
    r"lora_embedding_[AB]|trainable_tokens|token_embedding|embed_tokens": "a LoRA of words' embeddings too",
}
# Initialisations of peft's that change the base model too, which the adapter's file does not hold.
_BASE_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Change:
    """What a file changes in one module, as it names that."""

    name: str
    down: Tensor  # [r, in], of a convolution [r, in, kh, kw]
    up: Tensor  # [out, r], of a convolution [out, r, 1, 1]
    mid: Tensor | None  # [r, r, kh, kw] between them (Tucker decomposition)
    factor: float  # alpha / r
    dora_scale: Tensor | None  # DoRA's magnitude as LyCORIS has it: [out, 1, ...], or [1, in, ...]
    magnitude: Tensor | None  # as peft has it: out numbers


def read_changes(path: Path, parts: Collection[str]) -> tuple[dict[str, dict[str, Change]], str]:
    """The changes of each part's modules, named with "_" for "."; and what the file says it was trained for.

    A FallbackWarning says what of the file is left out.

    Args:
        path: a .safetensors file.
        parts: the networks of the model that can be adapted.

    Raises:
        InputError: one line that names the file: it cannot be read, is of another kind, or holds something in
            a part that is not understood.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except Exception as error:  # safetensors' and the system's share no base class
        raise InputError(f"--lora: {path}: is no LoRA ({first_line(error)})") from error
    configs = _configs(path, weights, metadata)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    foreign, unknown = [], []
    for key, tensor in weights.items():
        part, rest = _part(key, path)
        role = next((role for role, end in _ROLES.items() if re.search(rf"{end}$", rest)), None)
        if part is None:
            foreign.append(key)
        elif role is None:
            unknown.append(key)
        else:
            found.setdefault((part, re.sub(rf"{_ROLES[role]}$", "", rest)), {})[role] = tensor
    if kind := _kind(key for key in weights if not _BUNDLED.match(key)):
        raise InputError(f"--lora: {path}: is {kind}; {_EXPECTED}")
    if unknown:
        raise InputError(
            f"--lora: {path}: has {len(unknown)} tensors that are none of LoRA's, first {shown(min(unknown))}"
        )
    if not found:
        first = f", only {shown(min(foreign))}" if foreign else ""
        raise InputError(
            f"--lora: {path}: has no LoRA weights for a UNet or a text encoder{first}; {_EXPECTED}"
        )
    others = sorted({part for part, _ in found}.difference(parts))
    if others:
        raise InputError(
            f"--lora: {path}: is for Stable Diffusion XL, it adapts {others[0]}, which this model has none of"
        )
    _say_what_is_left_out(path, foreign)
    changes: dict[str, dict[str, Change]] = {part: {} for part, _ in found}
    for (part, name), tensors in found.items():
        change = _change(path, name, tensors, configs.get(part, {}))
        plain = re.sub(r"_processor(?=_to_)", "", name.replace(".", "_"))
        if plain in changes[part]:
            raise InputError(f"--lora: {path}: adapts {shown(name)} twice")
        changes[part][plain] = change
    trained_for = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    return changes, shown(trained_for)


def shown(text: str) -> str:
    """A file's own words, fit for a line."""
    return " ".join(text.split())[:120]


def _part(key: str, path: Path) -> tuple[str | None, str]:
    """Whom a tensor is for, and its name there. peft's does not say; its training scripts' folders do."""
    if key.startswith(_PEFT):
        folder = path.parent.name
        return (folder if folder in _PARTS else "unet"), key.removeprefix(_PEFT)
    for part, begin in _PARTS.items():
        if match := re.match(begin, key):
            return part, key[match.end() :]
    return None, key


def _kind(keys: Iterable[str]) -> str | None:
    """What a file with these tensors is, if it is something known."""
    marks = {re.compile(mark): kind for mark, kind in _KINDS.items()}
    return next((kind for key in keys for mark, kind in marks.items() if mark.search(key)), None)


def _configs(path: Path, weights: Collection[str], metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """peft's settings of each part: from diffusers' metadata, or from the file beside peft's."""
    configs: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    if any(key.startswith(_PEFT) for key in weights):
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise InputError(
                f"--lora: {path}: is peft's, expected adapter_config.json beside it, which says alpha"
            )
        record(beside)
        config = read_config(beside)
        if config.get("peft_type", "LORA") != "LORA":
            raise InputError(f"--lora: {path}: is peft's {shown(str(config['peft_type']))}; {_EXPECTED}")
        configs = dict.fromkeys(_PARTS, config)
    elif "lora_adapter_metadata" in metadata:
        try:
            for key, value in json.loads(metadata["lora_adapter_metadata"]).items():
                part, _, name = key.partition(".")
                if part in configs:
                    configs[part][name] = value
                else:  # a UNet's own, saved without a pipeline
                    configs["unet"][key] = value
        except (ValueError, AttributeError) as error:
            raise InputError(f"--lora: {path}: has damaged metadata ({first_line(error)})") from error
    for config in configs.values():
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_BASE_CHANGED):
            raise InputError(
                f"--lora: {path}: was trained on a base that {shown(start)} had changed; expected it made a "
                "plain LoRA (peft's path_initial_model_for_weight_conversion)"
            )
    return configs


def _change(path: Path, name: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> Change:
    lacking = [half for half in ("down", "up") if half not in tensors]
    if lacking:
        raise InputError(f"--lora: {path}: lacks the {lacking[0]} matrix of {shown(name)}")
    down = tensors["down"].float()
    rank = len(down) if down.ndim else 0
    try:
        factor = _alpha(name, tensors, config, rank) / rank
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, AttributeError, re.error) as error:
        raise InputError(f"--lora: {path}: expected a number for alpha of {shown(name)}") from error
    rest = {
        role: tensors[role].float() if role in tensors else None
        for role in ("mid", "dora_scale", "magnitude")
    }
    return Change(name, down, tensors["up"].float(), factor=factor, **rest)


def _alpha(name: str, tensors: dict[str, Tensor], config: dict[str, Any], rank: int) -> float:
    """What is divided by the rank for the factor of a module's matrices; the rank where nothing says else."""
    if "alpha" in tensors:
        return float(tensors["alpha"]) or rank  # 0 is none for kohya's scripts and LyCORIS
    patterns = config.get("alpha_pattern") or {}
    fitting = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", name)]
    alpha = float([*fitting, config.get("lora_alpha", rank)][0])
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _say_what_is_left_out(path: Path, foreign: list[str]) -> None:
    words = sorted({match[1] for key in foreign if (match := _BUNDLED.match(key))})
    rest = sorted(key for key in foreign if not _BUNDLED.match(key))
    left = []
    if words:
        left.append(f"its embeddings of {shown(', '.join(words))}, which a prompt cannot call")
    if rest:
        left.append(f"{len(rest)} tensors for nothing that is adapted here, first {shown(rest[0])}")
    if left:
        warnings.warn(f"--lora: {path}: left out: {'; '.join(left)}", FallbackWarning, stacklevel=2)
