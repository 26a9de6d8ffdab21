"""CLIP similarity, and where CLIP models come from: open_clip's, its hub's, folders, OpenAI's own files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpo3d_fast import hub
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError, first_line, suggestion
from ddpo3d_fast.rewards.base import RewardSettings
from ddpo3d_fast.rewards.names import PREDICTORS, split_model
from ddpo3d_fast.rewards.torchscript import is_torchscript, read_torchscript
from ddpo3d_fast.rewards.tower import TextEncoder, Tower, TowerReward
from ddpo3d_fast.sources import record

OPENAI = "ViT-L-14-quickgelu:openai"  # plain ViT-L-14 has another GELU, and features of no use
OPENAI_FILE = "ViT-L-14.pt"  # as OpenAI publishes the same model
CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
MODEL_FILES = ("*.json", "*.txt", *WEIGHTS, "model.safetensors", "pytorch_model.bin")  # of any CLIP's folder
# Numbers that OpenAI's archives hold beside the weights, and nobody else's files do.
OPENAI_NUMBERS = {"input_resolution", "context_length", "vocab_size"}


def clip_reward(source: str = "", wanted: RewardSettings | None = None) -> TowerReward:
    """`clip`: 100 times the cosine between picture and prompt (Radford et al., arXiv 2103.00020).

    `source` is what follows `clip@`: MODEL:PRETRAINED as open_clip lists them, MODEL:FILE, a file of OpenAI's
    own, hf-hub:OWNER/NAME, or a folder, either as open_clip's hub repositories are or with ViT-L-14.pt; if
    empty OpenAI's ViT-L/14. Matching pictures score from 20 to 35, others from 5 to 20. InputError where the
    model cannot be had or read.
    """
    name = f"clip@{source}" if source else "clip"
    tower, embed = load_open_clip(source or OPENAI, name)
    return TowerReward(name, tower, embed, 100.0, wanted=wanted)


def load_open_clip(source: str, name: str, quick_gelu: bool = False) -> tuple[Tower, TextEncoder]:
    """The towers of a CLIP model: see `clip_reward` for `source`.

    `quick_gelu` takes that activation even where the model's configuration names another. `name` is the
    reward's, for the InputError.
    """
    open_clip: Any = library("open_clip", f"--reward: {name}")
    if os.path.isdir(source):
        if not has_model(source):
            raise InputError(
                f"--reward: {name}: expected {CONFIG} and {WEIGHTS[0]}, or {OPENAI_FILE}, in {source}"
            )
        if not os.path.isfile(os.path.join(source, CONFIG)):
            return create_openai(Path(source) / OPENAI_FILE, name, quick_gelu)
        return create_open_clip(f"local-dir:{_complete(Path(source), name)}", None, name, quick_gelu)
    if os.path.isfile(source):
        return create_openai(Path(source), name, quick_gelu)
    if source.startswith("hf-hub:"):
        repository = source.removeprefix("hf-hub:").strip("/")
        hub_file(repository, WEIGHTS, name)
        folder = hub_file(repository, (CONFIG,), name).parent
        local = f"local-dir:{_complete(folder, name)}"
        return create_open_clip(local, None, name, quick_gelu, tokenizer=source)
    model, pretrained = split_model(source)
    model = model.replace("/", "-")
    if model not in open_clip.list_models():
        raise InputError(
            f"--reward: {name}: expected a model of open_clip as MODEL:PRETRAINED, hf-hub:OWNER/NAME, a "
            f"folder or a file of OpenAI's, got {source!r}{suggestion(model, open_clip.list_models())}"
        )
    file = Path(pretrained).expanduser()
    if file.is_file():
        return create_open_clip(model, file, name, quick_gelu)
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise InputError(
            f"--reward: {name}: expected weights of {model}, a file or one of {tags}, got {pretrained!r}"
        )
    weights = hub_file(*_published(tag), name)
    preprocess = {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    # The tag knows which activation it was trained with; open_clip would only warn.
    return create_open_clip(model, weights, name, quick_gelu or tag.get("quick_gelu", False), preprocess)


def has_model(folder: str) -> bool:
    """Whether a folder says that it has a CLIP model: open_clip's configuration, or OpenAI's file."""
    return any(os.path.isfile(os.path.join(folder, file)) for file in (CONFIG, OPENAI_FILE))


def openai_is_cached() -> bool:
    """Whether OpenAI's ViT-L/14 is in the hub's cache on this machine. InputError without open_clip."""
    open_clip: Any = library("open_clip", "--reward: clip")
    tag = open_clip.get_pretrained_cfg(*split_model(OPENAI))
    return hub.cached_file(*_published(tag), "--reward: clip") is not None


def _published(tag: dict[str, Any]) -> tuple[str, Sequence[str]]:
    """The hub repository of an open_clip tag's weights, and the names that they may have there."""
    repository, _, known = tag["hf_hub"].rpartition("/")
    return repository, (Path(known).stem + ".safetensors", known) if known else WEIGHTS


def create_open_clip(
    model: str,
    weights: Path | None,
    name: str,
    quick_gelu: bool = False,
    preprocess: dict[str, Any] | None = None,
    tokenizer: str = "",
) -> tuple[Tower, TextEncoder]:
    """The towers of an architecture of open_clip's with a file of weights, or of `local-dir:FOLDER`.

    `preprocess` is what the pictures want where the model does not say; `tokenizer` the model whose it is, if
    another. An archive of OpenAI's brings its own activation, the quick GELU.
    """
    open_clip: Any = library("open_clip", f"--reward: {name}")
    try:
        config = open_clip.get_model_config(model)
        if weights is not None and is_torchscript(weights):
            state, theirs = _read_openai(weights)
            clip = open_clip.CLIP(**config | {"quick_gelu": quick_gelu or theirs})
            clip.load_state_dict(state)
            _set_openai_preprocess(open_clip, clip)
        else:
            clip = open_clip.create_model(
                model,
                None if weights is None else str(weights),
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg=preprocess,
                require_pretrained=True,
                weights_only=True,
            )
        tokenize = open_clip.get_tokenizer(tokenizer or model)
    except Exception as error:  # pickle's, safetensors', torch's and the hub's share no base class
        what = weights or model.removeprefix("local-dir:")
        raise InputError(
            f"--reward: {name}: open_clip cannot make {model} of {what} ({first_line(error)})"
        ) from error
    record(weights or model.removeprefix("local-dir:"), MODEL_FILES)
    return _towers(clip, config["embed_dim"], tokenize, name)


def create_openai(file: Path, name: str, quick_gelu: bool = False) -> tuple[Tower, TextEncoder]:
    """The towers of a file of OpenAI's own: its tensors' shapes are the architecture.

    An archive as OpenAI publishes it has the quick GELU. Other weights of that layout, a state dict in a
    pickle or in safetensors, are taken where `quick_gelu` is to be taken anyway; else they could be
    anybody's, with either activation, and have to be named with their architecture.
    """
    open_clip: Any = library("open_clip", f"--reward: {name}")
    try:
        state, theirs = _read_openai(file)
        if "text_projection" not in state:  # the last thing that any CLIP would do without
            raise ValueError("there is no text_projection in it")
        if theirs or quick_gelu:
            clip = library("open_clip.model", "").build_model_from_openai_state_dict(dict(state)).float()
            clip.load_state_dict(state)  # again, since that has rounded them to half precision
            _set_openai_preprocess(open_clip, clip)
            length, words = len(clip.positional_embedding), len(clip.token_embedding.weight)
            tokenize = open_clip.SimpleTokenizer(context_length=length)
            if words != tokenize.vocab_size:
                raise ValueError(f"of {words} words, CLIP's vocabulary has {tokenize.vocab_size}")
    except Exception as error:  # as above
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"--reward: {name}: expected a CLIP model as OpenAI publishes them, got {file} ({what})"
        ) from error
    if not theirs and not quick_gelu:
        raise InputError(
            f"--reward: {name}: expected an archive as OpenAI publishes them, or MODEL:FILE, got weights "
            f"alone, which do not tell their activation, in {file} (OpenAI's: ViT-L-14-quickgelu:{file})"
        )
    record(file)
    return _towers(clip, clip.text_projection.shape[1], tokenize, name)


def _read_openai(file: Path) -> tuple[dict[str, Tensor], bool]:
    """The weights in a file of CLIP's layout, without running code, and whether OpenAI made it."""
    if is_torchscript(file):
        stored = read_torchscript(file)
    else:
        stored = library("open_clip.factory", "").load_state_dict(str(file), weights_only=True)
    weights = {
        name: tensor
        for name, tensor in stored.items()
        if name not in OPENAI_NUMBERS and not name.endswith("attn_mask")
    }
    return weights, set(stored) >= OPENAI_NUMBERS


def _set_openai_preprocess(open_clip: Any, clip: Any) -> None:
    """Tells a model that its pictures want OpenAI's mean and deviation."""
    wanted = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    wanted |= {"size": clip.visual.image_size, "interpolation": "bicubic", "resize_mode": "shortest"}
    open_clip.set_model_preprocess_cfg(clip, wanted)


def _towers(clip: Any, width: int, tokenize: Any, name: str) -> tuple[Tower, TextEncoder]:
    """Takes an open_clip model apart. InputError for a tower that wants no square pictures."""
    open_clip: Any = library("open_clip", f"--reward: {name}")
    clip.eval().requires_grad_(False)
    wanted = open_clip.get_model_preprocess_cfg(clip)
    sizes = {wanted["size"]} if isinstance(wanted["size"], int) else set(wanted["size"])
    if len(sizes) > 1 or wanted["resize_mode"] not in ("shortest", "squash"):
        raise InputError(
            f"--reward: {name}: expected a tower of square pictures, resized by the short side or squashed, "
            f"got size {wanted['size']} and mode {wanted['resize_mode']}"
        )
    tower = Tower(
        module=clip.visual,
        width=width,
        size=sizes.pop(),
        mean=_three(wanted["mean"]),
        std=_three(wanted["std"]),
        interpolation="bilinear" if wanted["interpolation"] == "bilinear" else "bicubic",
        squash=wanted["resize_mode"] == "squash",
    )
    clip.visual = None  # the text encoder holds on to the rest
    return tower, lambda prompt: clip.encode_text(tokenize([prompt]), normalize=True)[0]


def hub_file(repository: str, files: Sequence[str], name: str) -> Path:
    """The first of these files of a hub repository that is to be had, for the reward of this name."""
    kind = name.partition("@")[0]
    place = "PREDICTOR,CLIP" if kind in PREDICTORS else "PATH"
    return hub.find_file(repository, files, f"--reward: {name}", f"name a local copy as {kind}@{place}")


def _complete(folder: Path, name: str) -> Path:
    """The folder, once it has a model."""
    if not (folder / CONFIG).is_file() or not any((folder / file).is_file() for file in WEIGHTS):
        raise InputError(f"--reward: {name}: expected {CONFIG} and {WEIGHTS[0]} in {folder}")
    return folder


def _three(value: float | Sequence[float]) -> Sequence[float]:
    """A channel's mean or deviation for all three, as open_clip's configurations may give it."""
    return (value,) * 3 if isinstance(value, (int, float)) else value
