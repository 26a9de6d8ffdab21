"""Between pictures and latents without a network: the pixels of a patch become channels, exactly."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class PatchCodec:
    """Pictures [V, 3, H, W] in [0, 1] and latents [V, 3 p^2, H/p, W/p] in [-1, 1]."""

    def __init__(self, patch: int) -> None:
        self.patch, self.runtimes = patch, dict[str, str]()  # there are no networks to run

    def prepare(self, decodes: bool) -> None:
        """Nothing to make."""

    def encode(self, pictures: Tensor) -> Tensor:
        return pixel_unshuffle(pictures * 2 - 1, self.patch)

    def encode_with_vjp(self, pictures: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Latents; and the gradient with respect to the pictures from that with respect to the latents."""
        return self.encode(pictures), lambda grad: pixel_shuffle(grad, self.patch) * 2

    def decode(self, latents: Tensor) -> Tensor:
        return (pixel_shuffle(latents, self.patch) + 1) / 2
