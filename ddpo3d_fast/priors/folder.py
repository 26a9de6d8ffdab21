"""What a folder in diffusers' format has: a pipeline's parts and the files of each, or those of a codec."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import read_json

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")  # the parts of a pipeline that have weights
TOKENIZERS = ("tokenizer", "tokenizer_2")
_TOKENIZER_FILES = re.compile(r"(vocab|tokenizer|tokenizer_config|special_tokens_map)\.json|merges\.txt")


@dataclass(frozen=True)
class Weights:
    """The files that hold a network's weights."""

    variant: str | None  # fp16, or None for the default
    safetensors: bool  # else torch.save's .bin
    files: tuple[str, ...]  # names; more than one where they are sharded


def choose_weights(names: Collection[str], part: str, half: bool) -> Weights | None:
    """The weights to load among the files of a part: in the precision wanted, safetensors where there are.

    `part` is its folder's name (text encoders are saved under other names than the rest).
    """
    text = part.startswith("text_encoder")
    for variant in ("fp16", None) if half else (None, "fp16"):
        for suffix in ("safetensors", "bin"):
            if text:
                stem = "model" if suffix == "safetensors" else "pytorch_model"
            else:
                stem = "diffusion_pytorch_model"
            base = f"{stem}.{variant}" if variant else stem
            if f"{base}.{suffix}" in names:
                return Weights(variant, suffix == "safetensors", (f"{base}.{suffix}",))
            shards = sorted(n for n in names if re.fullmatch(rf"{base}-\d+-of-\d+\.{suffix}", n))
            index = f"{stem}.{suffix}.index.{variant}.json" if variant else f"{stem}.{suffix}.index.json"
            whole = shards and len(shards) == int(shards[0].removesuffix(f".{suffix}").rpartition("-")[2])
            if index in names and whole:
                return Weights(variant, suffix == "safetensors", (index, *shards))
    return None


def wanted_files(names: Collection[str], half: bool) -> list[str]:
    """Of all the files of a repository those that make a prior, or a codec where there is no pipeline.

    Empty where it is no model in diffusers' format.
    """
    parts = NETWORKS if "model_index.json" in names else ("",)
    wanted = ["model_index.json", "scheduler/scheduler_config.json"] if parts == NETWORKS else []
    for part in parts:
        prefix = f"{part}/" if part else ""
        inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        weights = choose_weights(inside, part, half)
        if "config.json" in inside and weights is not None:
            wanted += [prefix + name for name in ("config.json", *weights.files)]
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder in TOKENIZERS and _TOKENIZER_FILES.fullmatch(file):
            wanted.append(name)
    return [name for name in wanted if name in names]


def missing_part(folder: Path) -> str | None:
    """What a model's folder lacks, in a line that names the path; None where it is whole."""
    if not (folder / "model_index.json").is_file():
        return _missing_network(folder)
    try:
        index = read_json(folder / "model_index.json", "a list of the parts")
    except InputError as error:
        return str(error)
    parts = {name for name, entry in index.items() if isinstance(entry, list) and entry[:1] != [None]}
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if name not in parts:
            kind = index.get("_class_name", "something else")
            return f"{folder}: expected Stable Diffusion 1.x, 2.x or XL, found {kind} without {name}"
    for name in NETWORKS:
        if name in parts and (missing := _missing_network(folder / name)):
            return missing
    for name in TOKENIZERS:
        files = {path.name for path in (folder / name).glob("*")}
        if name in parts and not (files >= {"vocab.json", "merges.txt"} or "tokenizer.json" in files):
            return f"{folder / name}: expected a tokenizer (vocab.json and merges.txt), found none"
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        return (
            f"{folder / 'scheduler' / 'scheduler_config.json'}: expected a noise schedule, found no such file"
        )
    return None


def _missing_network(folder: Path) -> str | None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "config.json" not in names:
        return f"{folder / 'config.json'}: expected a part of a diffusion model, found no such file"
    if choose_weights(names, folder.name, half=False) is None:
        found = ", ".join(sorted(names))
        return f"{folder}: expected weights, all of them, as .safetensors or .bin, found {found}"
    return None
