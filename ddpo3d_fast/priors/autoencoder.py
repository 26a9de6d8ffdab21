"""Latent codecs that are networks: Stable Diffusion's AutoencoderKL, and the tiny autoencoder (TAESD)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpo3d_fast.engines import Engine, Network, TorchEngine, Vjp, load_network
from ddpo3d_fast.engines.torch import placed, reproducible
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.base import Call
from ddpo3d_fast.priors.parts import check_number, load_network_part, read_config

KINDS = ("AutoencoderKL", "AutoencoderTiny")


class AutoencoderCodec:
    """Pictures [V, 3, H, W] in [0, 1] and latents [V, C, H/f, W/f], as the UNet knows them, float32.

    H and W are multiples of the factor f. Latents are the posterior's mean (AutoencoderTiny has nothing
    else), minus the shift, times the scaling factor: a sample would add noise of its own to the gradient.
    """

    patch = 1

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        runtime: str = "auto",
        upcast: bool = False,
        latent_size: int = 64,
        calls: Sequence[Call] = (),
    ) -> None:
        """Loads the folder of an autoencoder in diffusers' format.

        Args:
            folder: its config.json names the class, AutoencoderKL or AutoencoderTiny.
            dtype: what it computes in.
            runtime: as for `load_network`.
            upcast: whether an autoencoder whose `force_upcast` says that it overflows in fp16 (that of XL)
                runs in a dtype of fp32's range instead: bfloat16 on a GPU that has it, else fp32.
            latent_size: the usual side of latents, for the engines' probes.
            calls: what will be encoded, and decoded, where it is known, for the engines' profiles.

        Raises:
            InputError: a file is missing or damaged, or this is another kind of codec.
        """
        self.device, self.runtime_wanted = torch.device(device), runtime
        config = read_config(folder / "config.json")
        kind = config.get("_class_name")
        if kind not in KINDS:
            raise InputError(f"{folder / 'config.json'}: expected {' or '.join(KINDS)}, got {kind}")
        # AutoencoderTiny keeps its latents in range, and its configurations say so or nothing.
        if upcast and dtype == torch.float16 and kind == KINDS[0] and config.get("force_upcast", True):
            dtype = _upcast(self.device)
        self.dtype = dtype
        autoencoder = load_network_part("diffusers", kind, folder, dtype)
        self.factor = 2 ** (len(_channels(autoencoder.config, kind)) - 1)
        self.latent_channels = check_number(
            autoencoder.config, "latent_channels", folder / "config.json", True
        )
        check_number(autoencoder.config, "scaling_factor", folder / "config.json")
        generator, side = torch.Generator().manual_seed(0), latent_size * self.factor
        self._pictures = torch.rand(2, 3, side, side, generator=generator)
        self._latents = torch.randn(2, self.latent_channels, latent_size, latent_size, generator=generator)
        self._calls, self.runtimes = calls, dict[str, str]()
        self._to_latents, self._to_pictures = _Encoder(autoencoder).eval(), _Decoder(autoencoder).eval()
        self._encoder = self._engine("encoder", self._to_latents, {"pictures": self._pictures}, "latents")
        self.runtime = self._encoder.runtime
        self._on_torch: nn.Module | None = None  # the encoder itself, where torch runs it
        if isinstance(self._encoder, TorchEngine):
            self.dtype = self._encoder.dtype  # fp32 where fp16 has disagreed
            self._on_torch = placed(self._to_latents, self.device, self.dtype, torch.channels_last)

    def prepare(self, decodes: bool) -> None:
        """Loads, or builds, the engines that would else be made at their first call."""
        if self._on_torch is None:
            _ = self._encoder_vjp
        if decodes:
            _ = self._decoder

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures. Raises ValueError for sizes that are no multiples of the factor."""
        return self._encoder(pictures=self._checked(pictures))["latents"]

    def encode_with_vjp(self, pictures: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Latents of pictures; and from a gradient with respect to them, to be called once at the most, the
        one with respect to the pictures. No autograd graph leaves.

        On torch the closure keeps what the encoder has computed; other runtimes compute it again.
        """
        pictures = self._checked(pictures)
        if self._on_torch is None:
            latents = self._encoder(pictures=pictures)["latents"]
            return latents, lambda grad: self._pull(
                lambda scaled: self._encoder_vjp(pictures=pictures, grad=scaled)["grad_pictures"], grad
            )
        leaf = pictures.detach().to(self.dtype, memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad(), reproducible(gradient=True):
            graph = self._on_torch(leaf)

        def back(scaled: Tensor) -> Tensor:
            with reproducible(gradient=True):
                (grad,) = torch.autograd.grad(graph, leaf, scaled.to(graph.dtype))
            return grad.to(torch.float32, memory_format=torch.contiguous_format)

        latents = graph.detach().to(torch.float32, memory_format=torch.contiguous_format)
        return latents, lambda grad: self._pull(back, grad)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents, unclamped: a little beyond [0, 1] here and there."""
        return self._decoder(latents=latents)["pictures"]

    @functools.cached_property
    def _decoder(self) -> Engine:  # a run without a policy gradient never decodes
        return self._engine("decoder", self._to_pictures, {"latents": self._latents}, "pictures")

    @functools.cached_property
    def _encoder_vjp(self) -> Engine:
        examples = {"pictures": self._pictures, "grad": self._latents}
        pull_back = Vjp(self._to_latents, pulls=True)
        return self._engine("encoder_vjp", pull_back, examples, "grad_pictures", gradient=True)

    def _engine(
        self, name: str, module: nn.Module, examples: dict[str, Tensor], output: str, gradient: bool = False
    ) -> Engine:
        dynamic: dict[str, tuple[int, ...]] = dict.fromkeys(examples, (0, 2, 3))
        shapes: list[dict[str, tuple[int, ...]]] = []
        for call in self._calls:
            count = call.views * call.actions if name == "decoder" else call.views
            small = round(call.scale * self._latents.shape[-1])
            side = small * self.factor
            sizes = {"pictures": (count, 3, side, side)}
            sizes |= dict.fromkeys(("latents", "grad"), (count, self.latent_channels, small, small))
            shapes.append({each: sizes[each] for each in examples})
        network = Network(name, module, examples, (output,), dynamic, gradient, shapes=tuple(shapes))
        engine = load_network(network, self.device, self.runtime_wanted, self.dtype)
        self.runtimes[name] = engine.runtime
        return engine

    def _pull(self, vjp: Callable[[Tensor], Tensor], grad: Tensor) -> Tensor:
        """A VJP is linear: in half precision each view's gradient goes through at a size that neither under-
        nor overflows on its way."""
        if self.dtype == torch.float32:
            return vjp(grad)
        size = grad.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return vjp(grad / size) * size

    def _checked(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"pictures: expected sizes in multiples of {self.factor}, got {height} x {width}"
            )
        return pictures


class _Encoder(nn.Module):
    """Pictures in [0, 1] to the posterior's mean, scaled."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        config = autoencoder.config
        self.encoder, self.quant = autoencoder.encoder, getattr(autoencoder, "quant_conv", None)
        self.channels = int(config.latent_channels)
        self.scale, self.shift = float(config.scaling_factor), float(config.shift_factor or 0.0)

    def forward(self, pictures: Tensor) -> Tensor:
        moments = self.encoder(pictures * 2 - 1)
        if self.quant is not None:
            moments = self.quant(moments)
        # KL: the mean, then the logarithm of the variance. Tiny: the latents, and nothing after them.
        return (moments[:, : self.channels] - self.shift) * self.scale


class _Decoder(nn.Module):
    """Scaled latents to pictures."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        config = autoencoder.config
        self.decoder, self.quant = autoencoder.decoder, getattr(autoencoder, "post_quant_conv", None)
        self.scale, self.shift = float(config.scaling_factor), float(config.shift_factor or 0.0)

    def forward(self, latents: Tensor) -> Tensor:
        latents = latents / self.scale + self.shift
        if self.quant is not None:
            latents = self.quant(latents)
        return (self.decoder(latents) + 1) / 2


def _upcast(device: torch.device) -> torch.dtype:
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def _channels(config: Any, kind: str) -> Any:
    return config.block_out_channels if kind == KINDS[0] else config.encoder_block_out_channels
