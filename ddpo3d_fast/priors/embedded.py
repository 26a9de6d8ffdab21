"""The embedded prior: a small diffusion model of procedural objects that ships in the package."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpo3d_fast.engines import Engine, load_engine
from ddpo3d_fast.engines.torch import TorchEngine
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.priors.caption import CaptionEncoder, Vocabulary, view_word
from ddpo3d_fast.priors.codec import PatchCodec
from ddpo3d_fast.priors.prompts import Caption, parse_prompt

FOLDER = Path(__file__).parent.parent / "models" / "embedded"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Prompt:
    """What conditions a run: the wanted caption, and the one to stay away from (None: the empty one)."""

    positive: Caption
    negative: Caption | None


class EmbeddedPrior:
    """A frozen text-conditioned diffusion model of 64 px views that predicts the clean picture."""

    prediction_type = "sample"
    clip = (-1.0, 1.0)  # range of the latents

    def __init__(self, folder: Path = FOLDER, device: torch.device | str = "cpu") -> None:
        """Runs on `device`, the CPU or CUDA. Raises InputError if a part of the folder is missing or cannot
        be read, or the device lacks what it takes."""
        text, unet = _config(folder / "text_encoder"), _config(folder / "unet")
        scheduler = _config(folder / "scheduler", "scheduler_config.json")
        self.folder, self.device = folder, torch.device(device)
        self.vocabulary = Vocabulary(*(tuple(text[key]) for key in ("objects", "colors", "views")))
        self.codec = PatchCodec(_config(folder / "codec")["patch"])
        self.latent_shape = (unet["out_channels"], unet["sample_size"], unet["sample_size"])
        self.picture_size = unet["sample_size"] * self.codec.patch
        self.alphas_cumprod = _alphas_cumprod(scheduler).to(self.device)
        self._encoder = CaptionEncoder(self.vocabulary).eval().requires_grad_(False)
        weights = folder / "text_encoder" / _WEIGHTS
        try:
            self._encoder.load_state_dict({name: t.float() for name, t in load_file(weights).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{weights}: is no text encoder of this kind ({first_line(error)})") from error
        self._encoder.to(self.device)
        self._unet: Engine = (
            load_engine(folder / "unet" / "model.onnx")
            if self.device.type == "cpu"
            else TorchEngine(folder / "unet", self.device)
        )
        self.runtime = self._unet.runtime

    def prompt(self, text: str, negative: str = "") -> Prompt:
        """Understands a prompt. Raises InputError for one that names what the prior does not know."""
        return Prompt(
            parse_prompt(text, self.vocabulary, "--prompt"),
            parse_prompt(negative, self.vocabulary, "--negative-prompt") if negative.strip() else None,
        )

    def conditions(self, prompt: Prompt, cameras: Tensor) -> dict[str, Tensor]:
        """The prompt seen from V cameras, as the UNet's conditional inputs.

        Each is [2, V, ...]: first for the prompt, then for none (or for the negative prompt).
        `cameras` float32 [V, 3], on the CPU, where their view words are looked up: azimuth and elevation in
        radians, grey level of the background in [0, 1].
        """
        count = len(cameras)
        views = [self.vocabulary.views.index(view_word(a, e)) for a, e, _ in cameras.tolist()]
        cameras = cameras.to(self.device, non_blocking=True)
        known = torch.ones(count, 1, device=self.device)
        wanted = self._encoder(self._words(prompt.positive, views), cameras, known)
        if prompt.negative is None:
            nothing = self._encoder.nothing(count).to(self.device, non_blocking=True)
            away = self._encoder(nothing, cameras, torch.zeros_like(known))
        else:
            away = self._encoder(self._words(prompt.negative, views), cameras, known)
        return {name: torch.stack([wanted[name], away[name]]) for name in wanted}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional clean latents [B, ...] of noisy ones [B, ...] at timesteps int64 [B].

        B = V K: action k of view v is item v K + k; `conditions` are those of the V views.
        """
        actions = len(noisy) // conditions["tokens"].shape[1]
        inputs = {name: c.repeat_interleave(actions, 1).flatten(0, 1) for name, c in conditions.items()}
        outputs = self._unet(noisy=noisy.repeat(2, 1, 1, 1), timesteps=timesteps.repeat(2), **inputs)
        prediction = outputs["prediction"]
        return prediction[: len(noisy)], prediction[len(noisy) :]

    def _words(self, caption: Caption, views: list[int]) -> Tensor:
        objects, colors = self.vocabulary.objects, self.vocabulary.colors
        thing = objects.index(caption.object)
        first, second = (
            len(colors) if c is None else colors.index(c) for c in (caption.color, caption.second_color)
        )
        words = torch.tensor([[thing, first, second, view] for view in views])
        return words.to(self.device, non_blocking=True)


def _config(folder: Path, name: str = "config.json") -> dict:
    path = folder / name
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a part of a diffusion model, found no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON ({error})") from error


def _alphas_cumprod(scheduler: dict) -> Tensor:
    """[T] float32, the cumulative product of 1 - beta for the schedules diffusers names."""
    count = scheduler["num_train_timesteps"]
    if scheduler["beta_schedule"] != "squaredcos_cap_v2":
        raise InputError(
            f"scheduler: expected beta_schedule squaredcos_cap_v2, got {scheduler['beta_schedule']!r}"
        )

    def level(fraction: float) -> float:  # Nichol and Dhariwal, arXiv 2102.09672, eq. 17
        return math.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((t + 1) / count) / level(t / count), 0.999) for t in range(count)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), 0)
