"""Pictures: float views to 8-bit images, png files, and the contact sheet of a run."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpo3d_fast.files import write_bytes


def to_uint8(views: Tensor) -> Tensor:
    """Colours in [0, 1] to 0..255, rounded to nearest; what lies outside is clamped, NaN is 0.

    Args:
        views: [..., 3] floats, or uint8, which is returned as it is.
    """
    if views.dtype == torch.uint8:
        return views
    scaled = views.detach().float().nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1) * 255
    return (scaled + 0.5).to(torch.uint8)


def write_png(path: str | Path, image: Tensor) -> None:
    """Writes one image as png, atomically. The same image gives the same bytes.

    Args:
        path: the file, whatever its suffix; missing folders are made.
        image: [H, W, 3] or [H, W, 4], floats in [0, 1] or uint8, at least one pixel.

    Raises:
        ValueError: another shape.
        InputError: the file cannot be written.
    """
    write_bytes(path, png_bytes(image))


def png_bytes(image: Tensor) -> bytes:
    """One image as the content of a png file; arguments, and ValueError, as in `write_png`."""
    if image.dim() != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        raise ValueError(f"image: expected shape (H, W, 3 or 4), got {tuple(image.shape)}")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(to_uint8(image).cpu().numpy())).save(file, format="png")
    return file.getvalue()


def write_stills(folder: str | Path, views: Iterable[Tensor]) -> list[Path]:
    """Writes views as folder/000.png, 001.png, ... and returns the paths. Errors as in `write_png`."""
    paths = []
    for index, view in enumerate(views):
        paths.append(Path(folder) / f"{index:03d}.png")
        write_png(paths[-1], view)
    return paths


def contact_sheet(views: Tensor, columns: int | None = None, gap: int = 4) -> Tensor:
    """Lays views out in rows on one white sheet.

    Args:
        views: [C, H, W, 3] floats in [0, 1], C at least 1.
        columns: views in a row; the square root of C, rounded up, if None.
        gap: pixels between views and around them.

    Returns:
        [rows * (H + gap) + gap, columns * (W + gap) + gap, 3] float32.

    Raises:
        ValueError: another shape, or columns below 1, or a negative gap.
    """
    if views.dim() != 4 or views.shape[3] != 3 or views.shape[0] == 0:
        raise ValueError(f"views: expected shape (C, H, W, 3) with C of 1 or more, got {tuple(views.shape)}")
    count, height, width = views.shape[:3]
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns: expected 1 or more, got {columns}")
    if gap < 0:
        raise ValueError(f"gap: expected 0 or more pixels, got {gap}")
    rows = math.ceil(count / columns)
    sheet = torch.ones(rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    for index, view in enumerate(views.detach().cpu().float()):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = view
    return sheet
