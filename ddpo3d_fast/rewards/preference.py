"""Rewards trained on people's choices between pictures of a prompt: HPSv2 and PickScore."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.rewards.base import RewardSettings
from ddpo3d_fast.rewards.clip import MODEL_FILES, create_open_clip, hub_file
from ddpo3d_fast.rewards.tower import TextEncoder, Tower, TowerReward
from ddpo3d_fast.sources import record

HPS_REPOSITORY, HPS_FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
HPS_MODEL = "ViT-H-14"
PICKSCORE, PICKSCORE_WEIGHTS = "yuvalkirstain/PickScore_v1", ("model.safetensors", "pytorch_model.bin")
# Of OpenAI's CLIP, and of the processor that PickScore's authors use.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def hps_reward(source: str = "", wanted: RewardSettings | None = None, model: str = HPS_MODEL) -> TowerReward:
    """`hps`: 100 times the cosine of HPSv2.1 (Wu et al., arXiv 2306.09341), a CLIP ViT-H/14.

    `source` is what follows `hps@`: the weights' file, or a folder with HPS_v2.1_compressed.pt; if empty they
    come from the hub's local cache or the network. `model` is the architecture in open_clip's words. Pictures
    score from about 20 to 35. InputError where the weights cannot be had or read.
    """
    name = f"hps@{source}" if source else "hps"
    if source:
        file = Path(source) / HPS_FILE if os.path.isdir(source) else Path(source)
        if not file.is_file():
            raise InputError(
                f"--reward: {name}: expected {HPS_FILE} of {HPS_REPOSITORY} on the hub, found no {file}"
            )
    else:
        file = hub_file(HPS_REPOSITORY, (HPS_FILE,), name)
    tower, embed = create_open_clip(model, file, name)
    return TowerReward(name, tower, embed, 100.0, wanted=wanted)


def pickscore_reward(source: str = "", wanted: RewardSettings | None = None) -> TowerReward:
    """`pickscore`: PickScore's logit (Kirstain et al., arXiv 2305.01569), about 100 times a cosine.

    `source` is what follows `pickscore@`: a folder or hub name of a CLIP model in transformers' format; if
    empty PickScore v1. A folder without a tokenizer takes CLIP's own, which open_clip carries.
    Pictures score from about 17 to 24. InputError where a part cannot be had or read.
    """
    name = f"pickscore@{source}" if source else "pickscore"
    folder = source or PICKSCORE
    if not os.path.isdir(folder):
        hub_file(folder, PICKSCORE_WEIGHTS, name)
        folder = str(hub_file(folder, ("config.json",), name).parent)
    transformers: Any = library("transformers", f"--reward: {name}")
    clip, report = _pretrained(transformers.CLIPModel, folder, name, output_loading_info=True)
    missing = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if missing:
        raise InputError(
            f"--reward: {name}: expected weights of a whole CLIP model in {folder}, {missing[0]} is missing "
            f"or has another shape"
        )
    record(folder, MODEL_FILES)
    clip.float().eval().requires_grad_(False)
    config = clip.config
    tower = Tower(
        module=TransformersTower(clip.vision_model, clip.visual_projection),
        width=config.projection_dim,
        size=config.vision_config.image_size,
        mean=MEAN,
        std=STD,
    )
    tokenizer = _tokenizer(transformers, folder, name, config.text_config.max_position_embeddings)
    embed = _text_encoder(clip.text_model, clip.text_projection, tokenizer)
    scale = float(clip.logit_scale.exp())
    return TowerReward(name, tower, embed, scale, wanted=wanted)


class TransformersTower(nn.Module):
    """transformers' CLIP image tower: normalised pictures [B, 3, S, S] -> embeddings [B, D]."""

    def __init__(self, vision_model: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.projection = vision_model, projection

    def forward(self, pictures: Tensor) -> Tensor:
        return self.projection(self.vision_model(pixel_values=pictures).pooler_output)


def _tokenizer(transformers: Any, folder: str, name: str, length: int) -> Callable[[str], Tensor]:
    """A prompt -> token ids int64 [1, L], L at most `length`."""
    if any(os.path.isfile(os.path.join(folder, file)) for file in ("tokenizer.json", "vocab.json")):
        own = _pretrained(transformers.CLIPTokenizer, folder, name)
        return lambda prompt: own([prompt], truncation=True, max_length=length, return_tensors="pt").input_ids
    carried: Any = library("open_clip", f"--reward: {name}").get_tokenizer(HPS_MODEL)
    return lambda prompt: carried([prompt], context_length=length)


def _text_encoder(
    text_model: nn.Module, projection: nn.Module, tokenizer: Callable[[str], Tensor]
) -> TextEncoder:
    """Attention is causal and the end's feature is taken, so that what pads a prompt behind it is unseen."""
    return lambda prompt: nn.functional.normalize(
        projection(text_model(input_ids=tokenizer(prompt)).pooler_output), dim=-1
    )[0]


def _pretrained(kind: Any, folder: str, name: str, **options: Any) -> Any:
    """transformers' from_pretrained of a folder, which never runs what a pickle says."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # transformers', safetensors' and pickle's share no base class
        raise InputError(
            f"--reward: {name}: cannot read a {kind.__name__} in {folder} ({first_line(error)})"
        ) from error
