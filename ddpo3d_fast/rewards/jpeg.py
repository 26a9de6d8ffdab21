"""`jpeg`: how large a picture's file is. It has no gradient: the policies' business."""

from __future__ import annotations

import io

import torch
from PIL import Image, __version__
from torch import Tensor

from ddpo3d_fast.rewards.base import RewardSettings, check_images

QUALITY = 95  # as DDPO has it (arXiv 2305.13301, section 5.2)


def jpeg_reward(source: str, wanted: RewardSettings) -> JpegReward:
    """`jpeg`: the size as JPEG in kB; a weight below 0 wants small ones. Takes no source."""
    return JpegReward(wanted)


class JpegReward:
    """Size in kB (1000 bytes) of each picture, at the size in which it comes, as JPEG of quality 95."""

    name, differentiable, capturable = "jpeg", False, False
    runtime = f"Pillow {__version__}"

    def __init__(self, wanted: RewardSettings) -> None:
        self.device = torch.device(wanted.device)

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images float32 [B, 3, H, W] in [0, 1] -> float32 [B]. ValueError or TypeError for others."""
        check_images(images, self.device)
        pixels = (255 * images.detach().clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        sizes = [_size(Image.fromarray(picture.numpy())) / 1000 for picture in pixels]
        return torch.tensor(sizes, dtype=torch.float32, device=images.device)

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """ValueError: it has none."""
        raise ValueError("jpeg: has no gradient with respect to the images")


def _size(picture: Image.Image) -> int:
    """Bytes."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.tell()
