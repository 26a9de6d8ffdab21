"""The embedded prior: a small diffusion model of procedural objects that ships in the package."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpo3d_fast.engines import (
    Disagreement,
    Engine,
    Network,
    choose_runtime,
    in_batches_of,
    load_engine,
    load_network,
)
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import FallbackWarning, InputError, first_line
from ddpo3d_fast.files import read_json
from ddpo3d_fast.priors.base import Call, Codec
from ddpo3d_fast.priors.caption import VIEW_WORDS, CaptionEncoder, Vocabulary, view_indices
from ddpo3d_fast.priors.codec import PatchCodec
from ddpo3d_fast.priors.prompts import Caption, parse_prompt
from ddpo3d_fast.sources import record

FOLDER = Path(__file__).parent.parent / "models" / "embedded"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Prompt:
    """What conditions a run: the wanted caption, then what it is held against, G captions in all."""

    words: Tensor  # int64 [G, 4, 4] on the prior's device: of each caption, seen each way (VIEW_WORDS)
    known: tuple[bool, ...]  # G: whether the caption knows the camera; the empty one does not


class EmbeddedPrior:
    """A frozen text-conditioned diffusion model of 64 px views that predicts the clean picture."""

    prediction_type = "sample"
    highest_timestep = 1.0
    clip: tuple[float, float] | None = (-1.0, 1.0)  # range of the latents

    def __init__(
        self,
        folder: Path = FOLDER,
        device: torch.device | str = "cpu",
        runtime: str = "auto",
        calls: Sequence[Call] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        """Runs on `device`, the CPU or CUDA, on one of `load_network`'s runtimes, in `dtype` (None: as
        `default_dtype`).

        `auto` is the shipped ONNX graph on the CPU and torch elsewhere: to build an engine takes longer than
        the UNet has to compute in a run. `calls` are the steps of the run, where they are known, for an
        engine's profiles. Where the shipped graph disagrees with its probe, `auto` takes torch, with a
        FallbackWarning. Raises InputError if a part of the folder is missing or cannot be read, or the device
        lacks what it takes.
        """
        text, unet = _config(folder / "text_encoder"), _config(folder / "unet")
        scheduler = _config(folder / "scheduler", "scheduler_config.json")
        for part in ("text_encoder", "unet", "scheduler", "codec"):
            record(folder / part)
        self.folder, self.device = folder, torch.device(device)
        self.vocabulary = Vocabulary(*(tuple(text[key]) for key in ("objects", "colors", "views")))
        patch = _config(folder / "codec")["patch"]
        self.codec: Codec = PatchCodec(patch)
        self.picture_size = unet["sample_size"] * patch
        self.alphas_cumprod = _alphas_cumprod(scheduler).to(self.device)
        self._encoder = CaptionEncoder(self.vocabulary).eval().requires_grad_(False)
        weights = folder / "text_encoder" / WEIGHTS
        try:
            self._encoder.load_state_dict({name: t.float() for name, t in load_file(weights).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(f"{weights}: is no text encoder of this kind ({first_line(error)})") from error
        self._encoder.to(self.device)
        self._unet: Engine
        on_cpu = self.device.type == "cpu"
        if on_cpu and choose_runtime(runtime, self.device, dtype, exports=False) != "torch":
            self._unet = _shipped(folder / "unet", calls, runtime, dtype)
        else:
            wanted = choose_runtime("torch" if runtime == "auto" else runtime, self.device, dtype)
            self._unet = load_network(unet_network(folder / "unet", calls), self.device, wanted, dtype)
        self.runtime = self._unet.runtime

    def prompt(self, text: str, negative: str = "", three: bool = False) -> Prompt:
        """Understands a prompt, held against nothing or the negative prompt; with `three` against both.

        Raises InputError for one that names what the prior does not know.
        """
        captions: list[Caption | None] = [parse_prompt(text, self.vocabulary, "--prompt")]
        if not negative.strip():
            if three:
                raise InputError("--negative-prompt: expected what to stay away from, got nothing")
            captions += [None]
        else:
            away = parse_prompt(negative, self.vocabulary, "--negative-prompt")
            captions += [None, away] if three else [away]
        words = torch.stack([self._words(caption) for caption in captions]).to(self.device)
        return Prompt(words, tuple(caption is not None for caption in captions))

    def conditions(self, prompt: Prompt, cameras: Tensor) -> dict[str, Tensor]:
        """The prompt seen from V cameras, as the UNet's conditional inputs.

        Each is [G, V, ...]: first for the prompt, then for each of what it is held against.
        `cameras` float32 [V, 3], on the prior's device: azimuth and elevation in radians, grey level of the
        background in [0, 1].
        """
        views = view_indices(cameras)
        encoded = [
            self._encoder(words[views], cameras, cameras.new_full((len(cameras), 1), float(known)))
            for words, known in zip(prompt.words, prompt.known, strict=True)
        ]
        return {name: torch.stack([each[name] for each in encoded]) for name in encoded[0]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Clean latents [B, ...] of noisy ones [B, ...] at timesteps int64 [B], for each of the G conditions.

        B = V K: action k of view v is item v K + k; `conditions` are those of the V views.
        """
        groups, views = conditions["tokens"].shape[:2]
        actions = len(noisy) // views
        inputs = {name: c.repeat_interleave(actions, 1).flatten(0, 1) for name, c in conditions.items()}
        outputs = self._unet(
            noisy=noisy.repeat(groups, 1, 1, 1), timesteps=timesteps.repeat(groups), **inputs
        )
        return outputs["prediction"].chunk(groups)

    def _words(self, caption: Caption | None) -> Tensor:
        """[4, 4], the words of a caption seen each way; None: of the empty one, which says no view either."""
        if caption is None:
            return self._encoder.nothing(len(VIEW_WORDS))
        objects, colors = self.vocabulary.objects, self.vocabulary.colors
        first, second = (
            len(colors) if color is None else colors.index(color)
            for color in (caption.color, caption.second_color)
        )
        said = [objects.index(caption.object), first, second]
        return torch.tensor([[*said, self.vocabulary.views.index(word)] for word in VIEW_WORDS])


class _Unet(nn.Module):
    """diffusers' UNet with the inputs of the shipped graph."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, pooled: Tensor, layout: Tensor
    ) -> Tensor:
        inputs = torch.cat([noisy, layout], 1)
        return self.unet(inputs, timesteps, encoder_hidden_states=tokens, class_labels=pooled).sample


def _shipped(folder: Path, calls: Sequence[Call], runtime: str, dtype: torch.dtype | None) -> Engine:
    """The shipped graph on the CPU; for `auto` the UNet on torch instead, where it disagrees."""
    batch = min((call.groups * call.views * call.actions for call in calls), default=None)
    try:
        return load_engine(folder / "model.onnx", runtime, dtype, batch)
    except Disagreement as disagrees:
        if runtime != "auto":
            raise
        try:
            engine = load_network(unet_network(folder, calls), "cpu", "torch")
        except InputError as error:
            raise InputError(f"{disagrees}; torch cannot run it instead ({error})") from error
        warnings.warn(f"{disagrees}; {engine.runtime} runs it instead", FallbackWarning, stacklevel=2)
        return engine


def unet_network(folder: Path, calls: Sequence[Call] = ()) -> Network:
    """The UNet of a folder, by diffusers: what the ONNX graph beside its weights computes, and its probe.

    `calls` are those to come, where they are known. Raises InputError if diffusers is not installed, or a
    file is missing or damaged.
    """
    diffusers = library("diffusers", f"{folder} on torch")
    try:
        unet = diffusers.UNet2DConditionModel.from_config(_config(folder))
        unet.load_state_dict({name: t.float() for name, t in load_file(folder / WEIGHTS).items()})
        stored = np.load(folder / "probe.npz")
        probe = {name: torch.from_numpy(stored[name]) for name in stored.files}
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, EOFError, BadZipFile) as error:
        raise InputError(f"{folder}: is no UNet of diffusers ({first_line(error)})") from error
    inputs = {name: probe[name] for name in ("noisy", "timesteps", "tokens", "pooled", "layout")}
    return Network(
        name="unet",
        module=_Unet(unet).eval().requires_grad_(False),
        inputs=inputs,
        outputs=("prediction",),
        dynamic=dict.fromkeys(inputs, (0,)),
        expected={"prediction": probe["expected.prediction"]},
        shapes=tuple(in_batches_of(call.groups * call.views * call.actions, inputs) for call in calls),
    )


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return read_json(folder / name, "the settings of a part of a diffusion model")


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
