"""PlayCanvas's SOG, version 2: bytes of Gaussians as lossless WebP pictures in a zip file, with a meta.json.

A Gaussian is a pixel, rows from the top. Positions: 16 bits an axis between bounds, of sign(x) ln(1 + |x|),
in two pictures. Rotations: three bytes of what is not the largest of w, x, y, z, over 1/sqrt(2), and 252 plus
the number of the largest. Scales and colours: indices in codebooks of 256; the opacity is a byte beside the
colour. Harmonics: a label of 16 bits in a palette, whose entries are indices in a codebook again, 64 to a
row.

The world is that of the ply files that the format's own program makes it from, y down.

Source: developer.playcanvas.com, The SOG Format, 2026; splat-transform 3.7.0 for the axes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpo3d_fast.assets.codebook import nearest_scalars, scalar_codebook, vector_codebook
from ddpo3d_fast.assets.incoming import Incoming, assembled, read_bytes
from ddpo3d_fast.assets.outgoing import Outgoing, morton_order
from ddpo3d_fast.assets.raw import logits
from ddpo3d_fast.assets.smallest_three import LARGEST, put_together, take_apart
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.files import atomic_path

UP = "-y"
_PALETTE = 1 << 16  # entries at the most
_PALETTE_ROW = 64  # entries in a row of pixels
_COEFFICIENTS = (0, 3, 8, 15)  # of a channel, by degree
_LEAST, _MOST = -30.0, 20.0  # logarithms of scales that are kept
_FIRST_TAG = 252
_MOMENT = (1980, 1, 1, 0, 0, 0)  # of all files in the zip: the same scene gives the same bytes


def write(path: Path, scene: Outgoing) -> None:
    """Writes a bundled SOG file, in Morton's order. Raises InputError for a scene without Gaussians, of which
    the format has no pictures."""
    count = scene.count
    if not count:
        raise InputError(f"{path}: SOG: expected at least one Gaussian, got none")
    order = morton_order(scene.gaussians.means)
    columns = [
        (
            _logarithmic(block.means),
            _packed_quats(block.quats),
            block.log_scales,
            block.sh,
            block.logit_opacities,
        )
        for block in scene.blocks(order)
    ]
    means, quats, log_scales, sh, opacities = (torch.cat(part) for part in zip(*columns, strict=True))
    del columns
    low, high = means.amin(0), means.amax(0)
    steps = ((means - low) / torch.where(high > low, high - low, 1.0) * 65535).round().int()
    log_scales = log_scales.clamp(_LEAST, _MOST)
    scales, colors = scalar_codebook(log_scales.flatten()), scalar_codebook(sh[:, 0].flatten())
    alphas = (opacities.sigmoid()[:, None] * 255).round()
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "ddpo3d-fast"},
        "count": count,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": _short(scales), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": _short(colors), "files": ["sh0.webp"]},
    }
    width = 4 * int(np.ceil(np.sqrt(count) / 4))
    pictures = {
        "means_l.webp": _picture(steps % 256, width),
        "means_u.webp": _picture(steps // 256, width),
        "quats.webp": _picture(quats, width),
        "scales.webp": _picture(nearest_scalars(log_scales, scales), width),
        "sh0.webp": _picture(torch.cat([nearest_scalars(sh[:, 0], colors), alphas], 1), width),
    }
    if scene.bases > 1:
        meta["shN"], more = _harmonics(sh[:, 1:], width)
        pictures |= more
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as bundle:
        for name, data in {**pictures, "meta.json": json.dumps(meta).encode()}.items():
            bundle.writestr(zipfile.ZipInfo(name, _MOMENT), data)


def _short(book: Tensor) -> list[float]:
    """Numbers with so many digits as matter."""
    return [float(f"{number:.6g}") for number in book.tolist()]


def _logarithmic(means: Tensor) -> Tensor:
    return means.sign() * means.double().abs().log1p()


def _packed_quats(quats: Tensor) -> Tensor:
    """[N, 4] bytes of unit quaternions [N, 4] w, x, y, z."""
    which, others = take_apart(quats.numpy())
    steps = ((others / LARGEST + 1) / 2 * 255).round().clip(0, 255)
    return torch.from_numpy(np.concatenate([steps, _FIRST_TAG + which[:, None]], 1).astype(np.uint8))


def _harmonics(rest: Tensor, width: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What meta.json says of harmonics [N, C, 3] above the constant one, and their pictures."""
    count, coefficients = rest.shape[:2]
    size = min(_PALETTE, count)
    palette, labels = vector_codebook(rest.flatten(1), size)
    book = scalar_codebook(palette.flatten())
    rows = -(-size // _PALETTE_ROW)
    entries = torch.zeros(rows * _PALETTE_ROW * coefficients, 3)
    entries[: size * coefficients] = nearest_scalars(palette, book).reshape(-1, 3).float()
    meta = {
        "count": size,
        "bands": _COEFFICIENTS.index(coefficients),
        "codebook": _short(book),
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }
    split = torch.stack([labels % 256, labels // 256, torch.zeros_like(labels)], 1)
    return meta, {
        "shN_centroids.webp": _picture(entries, _PALETTE_ROW * coefficients),
        "shN_labels.webp": _picture(split, width),
    }


def _picture(values: Tensor, width: int) -> bytes:
    """A lossless WebP of bytes [N, 3 or 4], `width` to a row; what is left of the last row is 0."""
    channels = values.shape[1]
    pixels = np.zeros((-(-len(values) // width) * width, channels), np.uint8)
    pixels[: len(values)] = values.to(torch.uint8).numpy()
    picture = Image.fromarray(pixels.reshape(-1, width, channels))
    data = io.BytesIO()
    picture.save(data, format="webp", lossless=True, exact=True, quality=30, method=2)
    return data.getvalue()


def read(path: Path) -> Incoming:
    """Reads a bundle, or the meta.json of one that is unpacked, its pictures beside it. Raises InputError for
    another version, a damaged file, or pictures too small."""
    if path.suffix.lower() == ".json":
        return _read(path, lambda name: read_bytes(path.parent / Path(name).name))
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as bundle:
            return _read(path, bundle.read)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a SOG file, or a damaged one ({first_line(error)})") from None


def _read(path: Path, content: Callable[[str], bytes]) -> Incoming:
    meta = json.loads(content("meta.json" if path.suffix.lower() != ".json" else path.name))
    if meta.get("version") != 2:
        raise InputError(f"{path}: expected SOG of version 2, got version {meta.get('version')}")
    count = meta["count"]

    def pixels(part: str, index: int, rows: int, channels: int) -> np.ndarray:
        name = meta[part]["files"][index]
        try:
            picture = Image.open(io.BytesIO(content(name)))
            found = np.asarray(picture.convert("RGBA")).reshape(-1, 4)
        except OSError as error:
            raise InputError(f"{path}: {name}: a damaged picture ({first_line(error)})") from None
        if len(found) < rows:
            raise InputError(f"{path}: {name}: expected {rows} pixels or more, got {len(found)}")
        return found[:rows, :channels]

    steps = pixels("means", 0, count, 3) + 256.0 * pixels("means", 1, count, 3)
    low, high = (np.array(meta["means"][end], np.float64) for end in ("mins", "maxs"))
    share = low + (high - low) * (steps / 65535)
    sh0 = pixels("sh0", 0, count, 4)
    sh = np.array(meta["sh0"]["codebook"], np.float32)[sh0[:, None, :3]]
    if rest := meta.get("shN"):
        sh = np.concatenate([sh, _read_harmonics(path, rest, count, pixels)], 1)
    gaussians = assembled(
        path,
        means=np.sign(share) * np.expm1(np.abs(share)),
        quats=_quats(pixels("quats", 0, count, 4)),
        log_scales=np.array(meta["scales"]["codebook"], np.float32)[pixels("scales", 0, count, 3)],
        logit_opacities=logits(torch.from_numpy(sh0[:, 3] / 255)).numpy(),
        sh=sh,
    )
    return Incoming(gaussians, UP)


def _read_harmonics(
    path: Path, rest: dict[str, Any], count: int, pixels: Callable[[str, int, int, int], np.ndarray]
) -> np.ndarray:
    """[N, C, 3] above the constant one."""
    coefficients, size = _COEFFICIENTS[rest["bands"]], rest["count"]
    split = pixels("shN", 1, count, 2).astype(np.int64)
    labels = split[:, 0] + 256 * split[:, 1]
    if count and labels.max() >= size:
        raise InputError(f"{path}: a label {labels.max()} in a palette of {size}")
    palette = pixels("shN", 0, size * coefficients, 3).reshape(size, coefficients, 3)
    return np.array(rest["codebook"], np.float32)[palette][labels]


def _quats(data: np.ndarray) -> np.ndarray:
    """[N, 4] w, x, y, z of bytes [N, 4]; no rotation where the tag is none."""
    tags = data[:, 3].astype(np.int64) - _FIRST_TAG
    quats = put_together(tags.clip(0, 3), (data[:, :3] / 255 * 2 - 1) * LARGEST)
    quats[tags < 0] = (1, 0, 0, 0)
    return quats
