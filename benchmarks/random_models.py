"""Models of the real architectures with random weights: speed can be measured where weights cannot be had.

    python benchmarks/random_models.py sd21 aesthetic [--models build/random-models]

Writes Stable Diffusion 1.5, 2.1-base and XL (`sd15`, `sd21`, `sdxl`) as folders in diffusers' format, in
fp16, with a tokenizer that spells; a `small` one for trials; and `aesthetic`, a CLIP ViT-L/14 with LAION's V2
predictor. The other benchmarks make what they need when it is called `random:sd21` and so on. What is there
already stays; sd21 takes 2.6 GB. The weights are those of a network before its training, seeded: the time
that they take counts, what they say does not.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_text
from ddpo3d_fast.priors.parts import quietly
from ddpo3d_fast.rewards.aesthetic import PREDICTORS
from ddpo3d_fast.rewards.clip import CONFIG, OPENAI, WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "build" / "random-models"
PREFIX, SEED, PURPOSE = "random:", 0, "a model of random weights"

# The published configurations, where they differ from diffusers' and transformers' defaults.
WIDTHS = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "sample_size": 64}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": WIDTHS | {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": WIDTHS
    | {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    },
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
VAES: dict[str, dict[str, Any]] = {
    "sd15": VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    "sd21": VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    "sdxl": VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
}
CLIP_L = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
CLIP_H = {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}
CLIP_G = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"}
TEXT_ENCODERS: dict[str, tuple[dict[str, Any], ...]] = {
    "sd15": (CLIP_L,),
    "sd21": (CLIP_H,),
    "sdxl": (CLIP_L, CLIP_G | {"projection_dim": 1280}),
}
KINDS = ("small", *UNETS)
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
}
PREDICTOR_WIDTHS = (1024, 128, 64, 16, 1)  # of the layers of LAION's V2

Part = Callable[[], Any]  # makes a network


def architecture(kind: str) -> dict[str, Part]:
    """What makes the networks of one of KINDS, by the names of their folders.

    Raises InputError for another kind, or where diffusers or transformers is missing.
    """
    if kind not in KINDS:
        raise InputError(f"--model: expected {PREFIX} and one of {', '.join(KINDS)}, got {PREFIX}{kind}")
    if kind == "small":
        small = _small()
        return {"unet": small.make_unet, "vae": small.make_vae, "text_encoder": small.make_text_encoder}
    diffusers, transformers = library("diffusers", PURPOSE), library("transformers", PURPOSE)
    parts: dict[str, Part] = {
        "unet": functools.partial(diffusers.UNet2DConditionModel, **UNETS[kind]),
        "vae": functools.partial(diffusers.AutoencoderKL, **VAES[kind]),
    }
    for number, settings in enumerate(TEXT_ENCODERS[kind], 1):
        network = transformers.CLIPTextModel if number == 1 else transformers.CLIPTextModelWithProjection
        config = transformers.CLIPTextConfig(
            **settings, intermediate_size=4 * settings["hidden_size"], bos_token_id=0, eos_token_id=2
        )
        parts["text_encoder" if number == 1 else f"text_encoder_{number}"] = functools.partial(
            network, config
        )
    return parts


def write_stable_diffusion(kind: str, folder: Path) -> Path:
    """The folder, with a model of one of KINDS. One part at a time, in fp32 first: 10 GB for XL's UNet."""
    parts, xl, small = architecture(kind), kind == "sdxl", _small()
    index: dict[str, Any] = {"_class_name": f"StableDiffusion{'XL' * xl}Pipeline"}
    with quietly():
        for seed, (name, make) in enumerate(parts.items(), SEED):
            torch.manual_seed(seed)
            network = nn.Module.half(make())  # past diffusers' own, which warns
            index[name] = [type(network).__module__.partition(".")[0], type(network).__name__]
            network.save_pretrained(folder / name, variant="fp16")
            del network
    for name in ("tokenizer", "tokenizer_2")[: 1 + xl]:
        # SD 1.x pads with the end token; SD 2.x, and the second tokenizer of XL, with "!".
        small.write_tokenizer(folder / name, "!" if kind == "sd21" or name == "tokenizer_2" else small.END)
        index[name] = ["transformers", "CLIPTokenizer"]
    index["scheduler"] = ["diffusers", SCHEDULER["_class_name"]]
    write_text(folder / "scheduler" / "scheduler_config.json", json.dumps(SCHEDULER, indent=2))
    write_text(folder / "model_index.json", json.dumps(index, indent=2))
    return folder


def write_aesthetic(folder: Path, clip: dict[str, Any] | None = None) -> Path:
    """The folder, with a CLIP as open_clip's hub repositories are and LAION's V2 predictor beside it.

    `clip` is open_clip's configuration; ViT-L/14's if left out.
    """
    open_clip: Any = library("open_clip", PURPOSE)
    clip = clip or open_clip.get_model_config(OPENAI.partition(":")[0])
    safetensors = library("safetensors.torch", PURPOSE)
    write_text(folder / CONFIG, json.dumps({"model_cfg": clip, "preprocess_cfg": {}}, indent=2))
    torch.manual_seed(SEED)
    logging.disable(logging.WARNING)  # that there are no weights
    try:
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    finally:
        logging.disable(logging.NOTSET)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.save_file(weights, folder / WEIGHTS[0])
    file, _, layers = PREDICTORS["aesthetic"]
    stored: dict[str, torch.Tensor] = {}
    width = int(clip["embed_dim"])
    for name, outputs in zip(layers, PREDICTOR_WIDTHS, strict=True):
        layer = nn.Linear(width, outputs)
        stored |= {f"{name}weight": layer.weight.data, f"{name}bias": layer.bias.data}
        width = outputs
    torch.save(stored, folder / file)
    return folder


def find_model(name: str, models: Path = MODELS) -> str:
    """What `generate --model` takes for `name`: the folder of `random:KIND`, made if need be; else `name`."""
    if not name.startswith(PREFIX):
        return name
    kind = name.removeprefix(PREFIX)
    return str(_made(models / kind, functools.partial(write_stable_diffusion, kind)))


def find_reward(spec: str, models: Path = MODELS) -> str:
    """What `generate --reward` takes for `spec`: that of `random:aesthetic[=WEIGHT]`, made if need be."""
    name, equals, weight = spec.partition("=")
    if name != f"{PREFIX}aesthetic":
        return spec
    return f"aesthetic@{_made(models / 'aesthetic', write_aesthetic)}{equals}{weight}"


def default_reward(model: str) -> str:
    """The reward to measure a model with: with one of the real sizes, a scorer of the real size."""
    return "embedded" if model in ("embedded", f"{PREFIX}small") else f"{PREFIX}aesthetic"


def _small() -> Any:
    """The small models that the tests make."""
    tests = str(ROOT / "tests" / "priors")
    if tests not in sys.path:
        sys.path.append(tests)
    import small_stable_diffusion

    return small_stable_diffusion


def _made(folder: Path, write: Callable[[Path], Path]) -> Path:
    """The folder, which appears whole or not at all."""
    if not folder.is_dir():
        with _whole(folder) as unfinished:
            write(unfinished)
    return folder


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    unfinished = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="+", choices=(*KINDS, "aesthetic"), metavar="NAME", help="what to make"
    )
    parser.add_argument("--models", type=Path, default=MODELS, help=f"where (default: {MODELS})")
    arguments = parser.parse_args()
    for name in arguments.names:
        find = find_reward if name == "aesthetic" else find_model
        print(find(f"{PREFIX}{name}", arguments.models), flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
