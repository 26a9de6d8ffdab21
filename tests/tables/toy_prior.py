"""A prior of one's own: of 16 px, it always wants the same grey."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast.priors import PriorKind, PriorSettings
from ddpo3d_fast.priors.base import Codec
from ddpo3d_fast.priors.codec import PatchCodec


class Grey:
    runtime, picture_size, prediction_type, highest_timestep = "a toy", 16, "sample", 1.0
    clip: tuple[float, float] | None = None

    def __init__(self, wanted: PriorSettings) -> None:
        self.device, self.codec = torch.device(wanted.device), _codec()
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 100, device=self.device)

    def prompt(self, text: str, negative: str = "", three: bool = False) -> Any:
        return text

    def conditions(self, prompt: Any, cameras: Tensor) -> dict[str, Tensor]:
        return {"seen_from": cameras.expand(2, -1, -1)}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return torch.zeros_like(noisy), torch.zeros_like(noisy)


def _codec() -> Codec:
    return PatchCodec(2)


KIND = PriorKind(
    title="the toy prior",
    models={"toy": ()},
    load=Grey,
    presets={"standard": {"schedule": {"steps": 3, "views": 2}, "scene": {"gaussians": 40}}},
)
