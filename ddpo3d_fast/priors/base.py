"""What the loop asks of a prior, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Call(NamedTuple):
    """A kind of step to come: what engines that are built for their shapes should be built for."""

    views: int
    actions: int  # of a view
    scale: float  # sides of the pictures, in units of the prior's own
    groups: int = 2  # conditions that a prediction is made for


class Codec(Protocol):
    """Between pictures [V, 3, H, W] in [0, 1] and latents [V, C, h, w], float32, on the prior's device."""

    runtimes: dict[str, str]  # for people: by its networks that have been made, what runs them
    patch: int  # side of the squares of pixels whose values lie in the channels of one place of the latents

    def prepare(self, decodes: bool) -> None:
        """Makes now what would be made at the first call of the rest, of `decode` if it will be called."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures."""

    def encode_with_vjp(self, pictures: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Latents of pictures; and from a gradient with respect to them, to be called once at the most, the
        one with respect to the pictures. No autograd graph leaves."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents, where the codec gives them outside [0, 1], too."""


class Prior(Protocol):
    """A frozen text-conditioned diffusion model. No method waits for the device or copies from it."""

    device: torch.device
    runtime: str  # for people: what runs it
    codec: Codec
    picture_size: int  # pixels of the pictures that it was trained on
    alphas_cumprod: Tensor  # [T] float32, on the device
    prediction_type: str  # epsilon, v_prediction or sample
    highest_timestep: float  # whose prediction says something of the clean picture, as a fraction of the last
    clip: tuple[float, float] | None  # range of the latents, if they have one

    def prompt(self, text: str, negative: str = "", three: bool = False) -> Any:
        """What conditions a run: the prompt, held against nothing or the negative prompt; with `three`
        against both, in this order. Raises InputError for words that the prior does not know."""

    def conditions(self, prompt: Any, cameras: Tensor) -> dict[str, Tensor]:
        """The prompt seen from V cameras: inputs of the UNet, each [G, V, ...], for the prompt and for what
        it is held against; G = 2, or 3.

        `cameras` float32 [V, 3], on the device: azimuth and elevation in radians, azimuth 0 being the front;
        grey level of the background in [0, 1].
        """

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Predictions [B, ...] for noisy latents [B, ...] at int64 timesteps [B], one for each of the G
        conditions.

        B = V K: action k of view v is item v K + k; `conditions` are those of the V views.
        """
