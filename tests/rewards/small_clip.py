"""Small CLIP models with random weights, made by open_clip itself and saved as it publishes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpo3d_fast.engines.libraries import library

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {"embed_dim": 24, "vision_cfg": RESNET, "text_cfg": TEXT},
    "coca": {  # its tower gives a pair
        "embed_dim": 24,
        "multimodal_cfg": {
            "context_length": 76,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "dim_head": 8,
            "n_queries": 4,
            "attn_pooler_heads": 2,
        },
        "vision_cfg": VIT
        | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True},
        "custom_text": True,
    },
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Moves every weight, those that start at 0 or 1 as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
        for name, statistic in model.named_buffers():
            if "running" in name:
                statistic += torch.rand(statistic.shape, generator=generator)
    return model.eval().requires_grad_(False)


def save(
    folder: Path, config: dict[str, Any], preprocess: dict[str, Any] = PREPROCESS, seed: int = 0
) -> Path:
    """A folder as open_clip's repositories on the hub are."""
    open_clip = library("open_clip", "test")
    folder.mkdir(parents=True, exist_ok=True)
    text = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(text))
    torch.manual_seed(seed)
    model = randomise(open_clip.create_model(f"local-dir:{folder}", load_weights=False), seed)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def predictor_v2(
    width: int, hidden: tuple[int, int, int, int] = (20, 12, 8, 6), seed: int = 0
) -> tuple[nn.Module, dict[str, Tensor]]:
    """An aesthetic predictor, and its weights under their published names (dropout between the layers is off
    at evaluation)."""
    torch.manual_seed(seed)
    a, b, c, d = hidden
    linears = [nn.Linear(width, a), nn.Linear(a, b), nn.Linear(b, c), nn.Linear(c, d), nn.Linear(d, 1)]
    parts = [(linears[0], 0), (linears[1], 2), (linears[2], 4), (linears[3], 6), (linears[4], 7)]
    state = {f"layers.{at}.{name}": t for linear, at in parts for name, t in linear.state_dict().items()}
    return nn.Sequential(*linears).requires_grad_(False), state


def put_in_hub_cache(cache: Path, repository: str, *files: Path) -> None:
    """As a download would have left them."""
    home = cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    for file in files:
        (home / "snapshots" / commit / file.name).symlink_to(file)


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[count, 3, height, width] in [0, 1]: smooth, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1).contiguous()


def relative(got: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


class Forbidden:
    """Pickled into a file of weights, it says whether unpickling ran it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))
