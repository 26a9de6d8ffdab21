"""Stable Diffusion 1.x, 2.x and XL, from folders in diffusers' format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpo3d_fast.engines import Network, choose_runtime, default_dtype, in_batches_of, load_network
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.autoencoder import AutoencoderCodec
from ddpo3d_fast.priors.base import Codec
from ddpo3d_fast.priors.clip_text import check_lengths, encode_texts
from ddpo3d_fast.priors.find import find_codec
from ddpo3d_fast.priors.folder import missing_part
from ddpo3d_fast.priors.kinds import PriorSettings
from ddpo3d_fast.priors.lora import Lora
from ddpo3d_fast.priors.noise_schedule import highest_timestep, read_noise_schedule
from ddpo3d_fast.priors.parts import check_number, load_network_part, read_config
from ddpo3d_fast.priors.views import view_prompts, view_weights


@dataclass(frozen=True)
class Prompt:
    """Embeddings of a prompt, float32 on the prior's device: `tokens`, and for XL `pooled`."""

    views: dict[str, Tensor]  # [4, ...], from the front, the side, the back and overhead
    others: dict[str, Tensor]  # [1 or 2, ...], whatever the view: nothing, the negative prompt, or both


class StableDiffusionPrior:
    """A frozen latent diffusion model that a text conditions, with its codec."""

    clip: tuple[float, float] | None = None

    def __init__(self, folder: Path, wanted: PriorSettings) -> None:
        """Loads all but the text encoders, which `prompt` loads and frees.

        Args:
            folder: SD 1.x, 2.x or XL in diffusers' format; weights as .safetensors or .bin, fp16 or fp32.
            wanted: the rest; its `model` is what the user has called the folder.

        Raises:
            InputError: a part is missing, damaged or of another kind; the line names it. A prompt is too
                long.
        """
        self.folder, self.device = folder, torch.device(wanted.device)
        runtime, lora = wanted.runtime, wanted.lora
        self.dtype = wanted.dtype or default_dtype(self.device, runtime)
        self.interpolate_views = wanted.interpolate_views
        if missing := missing_part(self.folder):
            raise InputError(missing)
        self.alphas_cumprod, self.prediction_type = read_noise_schedule(self.folder)
        self.highest_timestep = highest_timestep(self.alphas_cumprod, self.prediction_type)
        self.alphas_cumprod = self.alphas_cumprod.to(self.device)

        # What the user may have got wrong comes before the weights, which take long.
        unet_config = read_config(self.folder / "unet" / "config.json")
        xl = unet_config.get("addition_embed_type") == "text_time"
        parts = ("unet", "text_encoder", "text_encoder_2") if xl else ("unet", "text_encoder")
        self._lora = [Lora(path, scale, parts) for path, scale in lora]
        if wanted.prompts:
            prompt, negative = wanted.prompts
            check_lengths(self.folder, [*view_prompts(prompt), negative], xl)
        # Adapters are added in fp32: in fp16, what is small beside the weights would be lost.
        precision = torch.float32 if lora else self.dtype
        unet = load_network_part("diffusers", "UNet2DConditionModel", self.folder / "unet", precision)
        for adapter in self._lora:
            adapter.fuse(unet, "unet")
        # Past diffusers' own `to`, which warns of layers to keep in fp32 though this class has none.
        nn.Module.to(unet, dtype=self.dtype)
        self.xl, pooled_dim = _check_conditions(unet.config, self.folder)
        self._token_dim = check_number(
            unet.config, "cross_attention_dim", self.folder / "unet" / "config.json", whole=True
        )

        half = self.dtype != torch.float32
        vae = find_codec(wanted.codec, half) if wanted.codec else self.folder / "vae"
        size = unet.config.sample_size
        if not isinstance(size, int):
            raise InputError(f"{self.folder / 'unet'}: expected a whole number for sample_size, got {size!r}")
        autoencoder = AutoencoderCodec(vae, self.device, self.dtype, runtime, self.xl, size, wanted.calls)
        self.codec: Codec = autoencoder
        self._factor, channels = autoencoder.factor, autoencoder.latent_channels
        if (unet.config.in_channels, unet.config.out_channels) != (channels, channels):
            raise InputError(
                f"{self.folder / 'unet'}: expected in_channels and out_channels {channels}, as {vae} has "
                f"them, got {unet.config.in_channels} and {unet.config.out_channels}"
            )
        self.picture_size = size * self._factor
        module = _Unet(unet)
        examples = _examples(channels, size, self._token_dim, pooled_dim)
        dynamic: dict[str, tuple[int, ...]] = dict.fromkeys(examples, (0,)) | {"noisy": (0, 2, 3)}
        shapes = []
        for call in wanted.calls:
            count, side = call.groups * call.views * call.actions, round(call.scale * size)
            shapes.append(in_batches_of(count, examples) | {"noisy": (count, channels, side, side)})
        base = None  # elsewhere a second UNet would only take up memory
        if lora and choose_runtime(runtime, self.device, self.dtype) == "tensorrt":
            base = _Unet(
                load_network_part("diffusers", "UNet2DConditionModel", self.folder / "unet", self.dtype)
            )
        network = Network("unet", module, examples, ("prediction",), dynamic, shapes=tuple(shapes), base=base)
        self._unet = load_network(network, self.device, runtime, self.dtype)
        self.runtime = self._unet.runtime

    def prompt(self, text: str, negative: str = "", three: bool = False) -> Prompt:
        """Encodes a prompt seen from four sides and what it is held against: nothing, or the negative prompt.

        Neither of those has a view: pushed away from "back view", a back would not look like one. For XL,
        nothing is zeros where model_index.json says so, as in diffusers' pipeline.

        Args:
            three: against both, so that `predict` gives three predictions: for noise-free score distillation
                (arXiv 2310.17590).

        Raises:
            InputError: a text encoder is missing or damaged, a text is too long for it, or three predictions
                are wanted without a negative prompt.
        """
        if three and not negative.strip():
            raise InputError("--negative-prompt: expected what to stay away from, got nothing")
        against = ["", negative] if three else [negative if negative.strip() else ""]
        texts = [*view_prompts(text), *against]
        embedded = encode_texts(self.folder, texts, self.device, self.dtype, self.xl, self._lora)
        index = read_config(self.folder / "model_index.json")
        if self.xl and index.get("force_zeros_for_empty_prompt", True):
            for tensor in embedded.values():
                tensor[[i for i, each in enumerate(texts) if not each]] = 0
        if embedded["tokens"].shape[2] != self._token_dim:
            raise InputError(
                f"{self.folder / 'unet'}: expected cross_attention_dim {embedded['tokens'].shape[2]}, as the "
                f"text encoder has, got {self._token_dim}"
            )
        return Prompt(
            {name: tensor[:4] for name, tensor in embedded.items()},
            {name: tensor[4:] for name, tensor in embedded.items()},
        )

    def conditions(self, prompt: Prompt, cameras: Tensor) -> dict[str, Tensor]:
        """The prompt seen from V cameras: `tokens` [G, V, 77, D], and for XL `pooled` [G, V, P].

        G = 2: the prompt, then nothing or the negative prompt. G = 3: the prompt, nothing, the negative
        prompt.
        `cameras` float32 [V, 3], on the prior's device: azimuth and elevation in radians, grey level of the
        background (which no word says).
        """
        weights = view_weights(cameras, self.interpolate_views)
        return {
            name: torch.cat(
                [
                    torch.einsum("vk,k...->v...", weights, views)[None],
                    prompt.others[name][:, None].expand(-1, len(cameras), *views.shape[1:]),
                ]
            )
            for name, views in prompt.views.items()
        }

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Predictions [B, C, h, w] of `prediction_type`, one for each of the G conditions, in one batch.

        B = V K: action k of view v is item v K + k; `noisy` [B, C, h, w] of any size that the UNet takes,
        `timesteps` int64 [B].
        """
        groups, views = conditions["tokens"].shape[:2]
        inputs = {
            name: tensor.repeat_interleave(len(noisy) // views, 1).flatten(0, 1)
            for name, tensor in conditions.items()
        }
        if self.xl:
            inputs["time_ids"] = self._time_ids(groups * len(noisy), *noisy.shape[2:])
        outputs = self._unet(
            noisy=noisy.repeat(groups, 1, 1, 1), timesteps=timesteps.repeat(groups), **inputs
        )
        return outputs["prediction"].chunk(groups)

    def _time_ids(self, count: int, height: int, width: int) -> Tensor:
        """[count, 6], XL's sizes in pixels: original height and width, the crop's top and left, target height
        and width; here those of what is encoded, uncropped. Made on the device: nothing to copy to it."""
        ids = torch.zeros(count, 6, device=self.device)
        ids[:, 0::4] = height * self._factor
        ids[:, 1::4] = width * self._factor
        return ids


class _Unet(nn.Module):
    """diffusers' UNet with named tensors in."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        tokens: Tensor,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
        return self.unet(
            noisy, timesteps, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False
        )[0]


def _check_conditions(config: Any, folder: Path) -> tuple[bool, int | None]:
    """Whether a UNet is XL's, and its pooled embedding's size. InputError where it wants something else."""
    path = folder / "unet" / "config.json"
    xl = config.addition_embed_type == "text_time"
    known = xl or config.addition_embed_type is None
    if not known or config.class_embed_type or config.encoder_hid_dim_type or config.time_cond_proj_dim:
        raise InputError(
            f"{path}: expected a UNet that a text and a timestep condition, got one that wants more"
        )
    if not xl:
        return False, None
    encoder = folder / "text_encoder_2" / "config.json"
    pooled = check_number(read_config(encoder), "projection_dim", encoder, whole=True)
    sizes = check_number(config, "addition_time_embed_dim", path, whole=True)
    if config.projection_class_embeddings_input_dim != 6 * sizes + pooled:
        raise InputError(
            f"{path}: expected projection_class_embeddings_input_dim for six numbers and a pooled text of "
            f"{pooled}, got {config.projection_class_embeddings_input_dim}"
        )
    return True, pooled


def _examples(channels: int, size: int, token_dim: int, pooled_dim: int | None) -> dict[str, Tensor]:
    """Inputs of the UNet like those of a run: names, shapes and dtypes."""
    generator = torch.Generator().manual_seed(0)
    examples = {
        "noisy": torch.randn(2, channels, size, size, generator=generator),
        "timesteps": torch.tensor([100, 700]),
        "tokens": torch.randn(2, 77, token_dim, generator=generator),
    }
    if pooled_dim is not None:
        examples["pooled"] = torch.randn(2, pooled_dim, generator=generator)
        examples["time_ids"] = torch.tensor([[8.0 * size, 8.0 * size, 0, 0, 8.0 * size, 8.0 * size]]).repeat(
            2, 1
        )
    return examples
