"""PlayCanvas's compressed ply, as SuperSplat and splat-transform write it: 16 bytes a Gaussian.

Every 256 Gaussians share a row of the element `chunk`: the bounds of their positions, of the logarithms of
their scales and, in newer files, of their colours. A vertex has four words of 32 bits, fields from the top:
position and scale 11, 10 and 11 bits between the chunk's bounds; colour and opacity 8 bits each; rotation 2
bits that say which of w, x, y, z is left out, being the largest, and 10 bits for each of the others, between
-1/sqrt(2) and 1/sqrt(2). Harmonics above the constant one are bytes between -4 and 4 in the element `sh`.

Sources: PlayCanvas, Compressing Gaussian Splats, blog.playcanvas.com, 2024, for the layout; splat-transform
3.7.0, measured byte by byte, for what the numbers stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ddpo3d_fast.assets.outgoing import Outgoing, morton_order
from ddpo3d_fast.assets.ply_file import TYPES, Element, PlyFile
from ddpo3d_fast.assets.raw import SH_C0, PlyGaussians
from ddpo3d_fast.assets.smallest_three import LARGEST, put_together, take_apart
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_bytes

CHUNK = 256  # Gaussians
_WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_FIELDS = ((21, 11), (11, 10), (0, 11))  # of x, y, z: lowest bit, bits
_BOUNDS = tuple(f"{end}_{of}{axis}" for of in ("", "scale_") for end in ("min", "max") for axis in "xyz")
_COLOR_BOUNDS = tuple(f"{end}_{band}" for end in ("min", "max") for band in "rgb")
_SH_BOUND, _SCALE_BOUND = 4.0, 20.0


def is_compressed(ply: PlyFile) -> bool:
    """Whether the vertices are packed words."""
    return any(entry.name == _WORDS[0] for entry in ply.elements["vertex"].scalars)


def decompress(ply: PlyFile) -> dict[str, np.ndarray]:
    """The columns [N] that the vertices of an ordinary ply have, as floats; an opacity is infinite where its
    byte is 0 or 255.

    Raises:
        InputError: an element or property is missing, a number of rows does not fit, or the file is cut
            short.
    """
    vertex, chunk, sh = ply.elements["vertex"], ply.elements.get("chunk"), ply.elements.get("sh")
    if chunk is None:
        raise InputError(f"{ply.path}: no element chunk: not a compressed Gaussian splat")
    if not ply.byte_order:
        raise InputError(f"{ply.path}: expected a compressed Gaussian splat to be binary, got ascii")
    _require(ply, vertex, _WORDS, "uint")
    _require(ply, chunk, _BOUNDS, "float")
    if sh is not None:
        _require(ply, sh, tuple(entry.name for entry in sh.scalars), "uchar")
    if chunk.rows != -(-vertex.rows // CHUNK):
        expected = f"{-(-vertex.rows // CHUNK)} rows of element chunk for {vertex.rows} vertices"
        raise InputError(f"{ply.path}: expected {expected}, got {chunk.rows}")
    if sh is not None and sh.rows != vertex.rows:
        raise InputError(f"{ply.path}: expected {vertex.rows} rows of element sh, got {sh.rows}")
    packed, bounds, *rest = ply.read("vertex", "chunk", *(["sh"] if sh is not None else []))
    words = {name: packed[name].astype(np.uint32) for name in _WORDS}  # in this machine's byte order
    of_chunk = np.arange(vertex.rows) // CHUNK

    def between(low: str, high: str, share: np.ndarray) -> np.ndarray:
        first, last = bounds[low].astype(np.float64), bounds[high].astype(np.float64)
        return first[of_chunk] + (last - first)[of_chunk] * share

    columns: dict[str, np.ndarray] = {}
    for names, prefix, word in (("xyz", "", _WORDS[0]), ("012", "scale_", _WORDS[2])):
        for name, axis, (shift, bits) in zip(names, "xyz", _FIELDS, strict=True):
            share = _field(words[word], shift, bits)
            columns[prefix + name] = between(f"min_{prefix}{axis}", f"max_{prefix}{axis}", share)
    for index, band in enumerate("rgb"):
        color = _field(words["packed_color"], 24 - 8 * index, 8)
        if f"min_{band}" in bounds and f"max_{band}" in bounds:
            color = between(f"min_{band}", f"max_{band}", color)
        columns[f"f_dc_{index}"] = (color - 0.5) / SH_C0
    alpha = _field(words["packed_color"], 0, 8)
    with np.errstate(divide="ignore"):
        columns["opacity"] = np.log(alpha) - np.log1p(-alpha)
    for index, quaternion in enumerate(_unpack_rotations(words["packed_rotation"]).T):
        columns[f"rot_{index}"] = quaternion
    levels = (np.arange(256) + 0.5) / 256
    levels[[0, 255]] = 0, 1  # both ends are exact
    coefficients = ((2 * levels - 1) * _SH_BOUND).astype(np.float32)
    for name, column in rest[0].items() if rest else ():
        columns[name] = coefficients[column]
    return columns


def _require(ply: PlyFile, element: Element, names: Sequence[str], kind: str) -> None:
    kinds = {entry.name: entry.kind for entry in element.scalars}
    for name in names:
        if kinds.get(name) != TYPES[kind]:
            raise InputError(
                f"{ply.path}: no property {kind} {name[:60]} of element {element.name}: "
                "not a compressed Gaussian splat"
            )


def _field(words: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """Some bits of every word as a number from 0 to 1."""
    most = (1 << bits) - 1
    return (words >> np.uint32(shift) & np.uint32(most)).astype(np.float64) / most


def _unpack_rotations(words: np.ndarray) -> np.ndarray:
    """[count, 4] unit quaternions w, x, y, z."""
    others = np.stack([2 * _field(words, shift, 10) - 1 for shift in (20, 10, 0)], 1) * LARGEST
    return put_together(words >> np.uint32(30), others)


def write(path: Path, scene: Outgoing) -> None:
    """Writes such a file, in Morton's order; scales end at exp(-20) and exp(20), harmonics at -4 and 4."""
    order, rest = morton_order(scene.gaussians.means), 3 * (scene.bases - 1)
    chunks = -(-scene.count // CHUNK)
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {chunks}"]
    lines += [f"property float {name}" for name in (*_BOUNDS, *_COLOR_BOUNDS)]
    lines += [f"element vertex {scene.count}", *(f"property uint {name}" for name in _WORDS)]
    if rest:
        lines += [f"element sh {scene.count}", *(f"property uchar f_rest_{index}" for index in range(rest))]
    bounds, words, harmonics = [], [], []
    for block in scene.blocks(order, 256 * CHUNK):
        low_high, packed = _pack(block)
        bounds.append(low_high.tobytes())
        words.append(packed.tobytes())
        levels = (block.sh[:, 1:].transpose(1, 2).flatten(1) / _SH_BOUND + 1) * 128
        harmonics.append(levels.floor().clamp(0, 255).to(torch.uint8).numpy().tobytes())
    write_bytes(path, b"".join(["\n".join([*lines, "end_header", ""]).encode(), *bounds, *words, *harmonics]))


def _pack(block: PlyGaussians) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [chunks, 18] float32, and words [N, 4] uint32, of Gaussians that begin with a chunk."""
    parts = [block.means, block.log_scales.clamp(-_SCALE_BOUND, _SCALE_BOUND), block.sh[:, 0] * SH_C0 + 0.5]
    low_high, shares = [], []
    for part in parts:
        numbers = part.numpy()
        starts = np.arange(0, len(numbers), CHUNK)
        low, high = (end.reduceat(numbers, starts) for end in (np.minimum, np.maximum))
        of_chunk = np.arange(len(numbers)) // CHUNK
        size = np.where(high > low, high.astype(np.float64) - low, 1)
        low_high += [low, high]
        shares.append((numbers - low.astype(np.float64)[of_chunk]) / size[of_chunk])
    which, others = take_apart(block.quats.numpy())
    alphas = block.logit_opacities.sigmoid().double().numpy()
    words = [
        _word(shares[0], _FIELDS),
        which.astype(np.uint32) << np.uint32(30)
        | _word((others / LARGEST + 1) / 2, ((20, 10), (10, 10), (0, 10))),
        _word(shares[1], _FIELDS),
        _word(np.concatenate([shares[2], alphas[:, None]], 1), ((24, 8), (16, 8), (8, 8), (0, 8))),
    ]
    return np.concatenate(low_high, 1).astype("<f4"), np.stack(words, 1).astype("<u4")


def _word(shares: np.ndarray, fields: Sequence[tuple[int, int]]) -> np.ndarray:
    """Numbers [N, fields] from 0 to 1, each in its bits of a word: the way back from `_field`."""
    word = np.zeros(len(shares), np.uint32)
    for column, (shift, bits) in zip(shares.T, fields, strict=True):
        most = (1 << bits) - 1
        word |= np.rint(column * most).clip(0, most).astype(np.uint32) << np.uint32(shift)
    return word
