"""Prompts to what Stable Diffusion's UNet attends to: CLIP's text encoders, run once and freed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.lora import Lora
from ddpo3d_fast.priors.parts import (
    check_number,
    load_network_part,
    load_tokenizer,
    quietly,
    read_config,
)


@torch.no_grad()
def encode_texts(
    folder: Path,
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    xl: bool = False,
    lora: Sequence[Lora] = (),
) -> dict[str, Tensor]:
    """Embeddings of texts, float32 on `device`: `tokens` [N, 77, D], and for XL `pooled` [N, P].

    As diffusers' pipelines have them. SD 1.x and 2.x: the last layer, normalised. XL: the last layer but one
    of both encoders, side by side, and the second one's projection.

    Args:
        folder: of the model, in diffusers' format. Its text encoders are loaded in `dtype` on `device` and
            gone when this returns.
        lora: adapters to fuse into the text encoders.

    Raises:
        InputError: a part is missing or damaged, or a text is longer than an encoder's context.
    """
    if not xl:
        return {"tokens": _run(folder, "", texts, device, dtype, lora, penultimate=False)[0]}
    first, _ = _run(folder, "", texts, device, dtype, lora, penultimate=True)
    second, pooled = _run(folder, "_2", texts, device, dtype, lora, penultimate=True)
    return {"tokens": torch.cat([first, second], 2), "pooled": pooled}


def check_lengths(folder: Path, texts: Sequence[str], xl: bool = False) -> None:
    """Raises InputError for texts that `encode_texts` would find too long; loads the tokenizers alone."""
    for suffix in ("", "_2") if xl else ("",):
        path = folder / f"text_encoder{suffix}" / "config.json"
        config = {"max_position_embeddings": 77} | read_config(path)  # transformers' default
        length = check_number(config, "max_position_embeddings", path, whole=True)
        _token_ids(folder / f"tokenizer{suffix}", texts, length)


def _run(
    folder: Path,
    suffix: str,
    texts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    lora: Sequence[Lora],
    penultimate: bool,
) -> tuple[Tensor, Tensor]:
    """A layer of one encoder [N, L, D], and its first output: the projection where the encoder has one."""
    kind = "CLIPTextModelWithProjection" if suffix else "CLIPTextModel"
    # Adapters are added in fp32: in fp16, what is small beside the weights would be lost.
    encoder = load_network_part(
        "transformers", kind, folder / f"text_encoder{suffix}", torch.float32 if lora else dtype
    )
    for adapter in lora:
        adapter.fuse(encoder, f"text_encoder{suffix}")
    length = encoder.config.max_position_embeddings
    ids = _token_ids(folder / f"tokenizer{suffix}", texts, length)
    output = encoder.to(device, dtype)(ids.to(device), output_hidden_states=penultimate)
    layer = output.hidden_states[-2] if penultimate else output.last_hidden_state
    return layer.float(), output[0].float()


def _token_ids(folder: Path, texts: Sequence[str], length: int) -> Tensor:
    """int64 [N, length], padded."""
    tokenizer = load_tokenizer(folder)
    with quietly():
        ids = tokenizer(list(texts), padding="max_length", max_length=length).input_ids
    for text, row in zip(texts, ids, strict=True):
        # Not cut short, as pipelines do: the end is where the view is named.
        if len(row) > length:
            raise InputError(
                f"--prompt, --negative-prompt: expected at most {length} tokens with the view's words, got "
                f"{len(row)}: shorten {text!r}"
            )
    return torch.tensor(ids)
