"""Niantic's SPZ: about 16 bytes a Gaussian before compression, 64 with all harmonics.

A header, then column after column: positions as fixed point of 24 bits, opacities and colours as bytes,
scales as bytes of sixteenths of their logarithm from -10 on, rotations, harmonics as bytes of 1/128.
Rotations: in version 2 bytes of x, y, z with w positive; from 3 on the number of the largest of x, y, z, w in
2 bits, and the others as sign and 9 bits up to 1/sqrt(2). Versions 2 and 3 are one gzip stream; 4 has the
header plain, a table of sizes, and a zstandard stream a column.

The world has y up and the viewer at +z, unless an extension says otherwise; extensions are not read here.

Source: github.com/nianticlabs/spz, README.md, July 2026.
"""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from ddpo3d_fast.assets.incoming import Incoming, assembled, read_bytes
from ddpo3d_fast.assets.outgoing import Outgoing
from ddpo3d_fast.assets.raw import PlyGaussians, logits
from ddpo3d_fast.assets.smallest_three import LARGEST, put_together, take_apart
from ddpo3d_fast.errors import FallbackWarning, InputError, first_line
from ddpo3d_fast.extras import load
from ddpo3d_fast.files import write_bytes

UP = "y"
VERSIONS = (2, 3, 4)
_HEADER = struct.Struct("<4sIIBBBB")  # name, version, count, degree, fractional bits, flags, streams or 0
_TABLE = struct.Struct("<I12x")  # version 4: where the table of sizes begins
_FRACTION = 12  # bits, where they suffice
_EXTENSIONS = 2  # a bit of the flags
_MAGNITUDE = 511  # most of the 9 bits of a rotation's component
_COLOR = 0.15  # a byte's range of a colour over that of its harmonic
_LEVELS = (6, 9)  # of gzip and zstandard: twice as large a level saves 2 % and takes three times as long


def write(path: Path, scene: Outgoing, version: int = 3) -> None:
    """Writes such a file. What lies further out than 24 bits reach with 12 behind the point gets fewer of
    these; scales end at exp(-10) and exp(5.94), harmonics at -1 and 127/128.

    Raises:
        InputError: version 4, without the package zstandard; or a position beyond 8e6.
    """
    zstandard = load("formats", "zstandard", f"{path}: SPZ of version 4") if version == 4 else None
    reach = float(scene.gaussians.means.abs().max()) if scene.count else 0.0
    fraction = min(_FRACTION, math.floor(math.log2((2**23 - 1) / reach))) if reach else _FRACTION
    if fraction < 0:
        raise InputError(f"{path}: SPZ: expected positions within {2**23 - 1} of the origin, got {reach:g}")
    parts: list[list[bytes]] = [[] for _ in range(6)]
    for block in scene.blocks():
        for part, column in zip(parts, _packed(block, fraction, version), strict=True):
            part.append(column.tobytes())
    streams = [b"".join(part) for part in parts]
    degree, count = scene.gaussians.degree, scene.count
    if zstandard is None:
        body = _HEADER.pack(b"NGSP", version, count, degree, fraction, 0, 0) + b"".join(streams)
        write_bytes(path, gzip.compress(body, _LEVELS[0], mtime=0))
        return
    streams = [stream for stream in streams if stream]
    header = _HEADER.pack(b"NGSP", version, count, degree, fraction, 0, len(streams))
    packed = [zstandard.ZstdCompressor(_LEVELS[1]).compress(stream) for stream in streams]
    sizes = [
        struct.pack("<QQ", len(small), len(stream)) for small, stream in zip(packed, streams, strict=True)
    ]
    table = _TABLE.pack(_HEADER.size + _TABLE.size)
    write_bytes(path, b"".join([header, table, *sizes, *packed]))


def _packed(block: PlyGaussians, fraction: int, version: int) -> list[np.ndarray]:
    """The six columns, as bytes."""
    fixed = (block.means.double() * 2**fraction).round().to(torch.int32).numpy().astype("<i4")
    colors = block.sh[:, 0] * (_COLOR * 255) + 127.5
    return [
        fixed[..., None].view(np.uint8)[..., :3],
        _byte(block.logit_opacities.sigmoid() * 255),
        _byte(colors),
        _byte((block.log_scales + 10) * 16),
        _packed_quats(block.quats.roll(-1, 1).numpy(), version),
        _byte(block.sh[:, 1:] * 128 + 128),
    ]


def _packed_quats(quats: np.ndarray, version: int) -> np.ndarray:
    """[N, 3 or 4] bytes of unit quaternions [N, 4] x, y, z, w."""
    if version == 2:
        upper = np.where(quats[:, 3:] < 0, -quats, quats)[:, :3]
        return np.rint(upper * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
    which, others = take_apart(quats)
    words = which.astype(np.uint32)
    for column in others.T:
        magnitude = np.rint(np.abs(column) * (_MAGNITUDE / LARGEST)).clip(0, _MAGNITUDE).astype(np.uint32)
        words = words << np.uint32(10) | (column < 0).astype(np.uint32) << np.uint32(9) | magnitude
    return words.astype("<u4")[:, None].view(np.uint8)


def read(path: Path) -> Incoming:
    """Reads such a file, of versions 2 to 4; harmonics of degree 4 are left out.

    Raises:
        InputError: another version, a damaged file, or version 4 without the package zstandard.
    """
    data = read_bytes(path)
    plain = data[:4] == b"NGSP"
    if not plain:
        data = _gunzipped(path, data)
    if len(data) < _HEADER.size or data[:4] != b"NGSP":
        raise InputError(f"{path}: not an SPZ file: it does not begin with 'NGSP'")
    _, version, count, degree, fraction, flags, streams = _HEADER.unpack_from(data)
    if version not in VERSIONS or plain != (version == 4) or degree > 4 or fraction > 23:
        raise InputError(
            f"{path}: expected SPZ of version 2 to 4, degree 0 to 4, got version {version}, degree {degree}"
        )
    if flags & _EXTENSIONS:
        warnings.warn(
            f"{path}: an extension of SPZ is not read, which may say that it has other axes: --up turns it",
            FallbackWarning,
            stacklevel=2,
        )
    bases = (degree + 1) ** 2
    sizes = [
        9 * count,
        count,
        3 * count,
        3 * count,
        (3 if version == 2 else 4) * count,
        3 * (bases - 1) * count,
    ]
    if plain:
        columns = _inflated(path, data, sizes, streams)
    else:
        if len(data) - _HEADER.size < sum(sizes):
            raise InputError(f"{path}: truncated: {count} Gaussians need {sum(sizes)} bytes, got {len(data)}")
        ends = np.cumsum([_HEADER.size, *sizes]).tolist()
        columns = [data[start:end] for start, end in itertools.pairwise(ends)]
    places, alphas, colors, scales, quats, rest = (np.frombuffer(column, np.uint8) for column in columns)
    fixed = np.zeros((count, 3, 4), np.uint8)
    fixed[..., 1:] = places.reshape(count, 3, 3)  # the sign where shifts keep it
    kept = min(bases, 16)
    sh = np.empty((count, kept, 3), np.float32)
    sh[:, 0] = (colors.reshape(count, 3).astype(np.float32) / 255 - 0.5) / _COLOR
    sh[:, 1:] = (rest.reshape(count, bases - 1, 3)[:, : kept - 1].astype(np.float32) - 128) / 128
    gaussians = assembled(
        path,
        means=(fixed.view("<i4")[..., 0] >> 8) / np.float32(2**fraction),
        quats=np.roll(_quats(quats.reshape(count, 3 if version == 2 else 4), version), 1, axis=1),
        log_scales=scales.reshape(count, 3) / np.float32(16) - 10,
        logit_opacities=logits(torch.from_numpy(alphas / 255)).numpy(),
        sh=sh,
    )
    return Incoming(gaussians, UP)


def _quats(data: np.ndarray, version: int) -> np.ndarray:
    """[N, 4] x, y, z, w of the bytes [N, 3 or 4]."""
    if version == 2:
        first = data / 127.5 - 1
        return np.concatenate([first, np.sqrt(np.maximum(0.0, 1 - (first**2).sum(1, keepdims=True)))], 1)
    words = np.ascontiguousarray(data).view("<u4")[:, 0].astype(np.uint32)
    fields = np.stack([words >> np.uint32(shift) & np.uint32(1023) for shift in (20, 10, 0)], 1)
    magnitudes = (fields & np.uint32(_MAGNITUDE)) * (LARGEST / _MAGNITUDE)
    return put_together(words >> np.uint32(30), np.where(fields > _MAGNITUDE, -magnitudes, magnitudes))


def _gunzipped(path: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{path}: not an SPZ file, or a damaged one: not in gzip's format") from None


def _inflated(path: Path, data: bytes, sizes: list[int], streams: int) -> list[bytes]:
    """The columns of version 4, which has no streams for empty ones."""
    zstandard = load("formats", "zstandard", f"{path}: SPZ of version 4")
    damaged = f"{path}: a damaged SPZ file of version 4"
    filled = [index for index, size in enumerate(sizes) if size]
    try:
        (place,) = _TABLE.unpack_from(data, _HEADER.size)
        table = [struct.unpack_from("<QQ", data, place + 16 * index) for index in range(streams)]
    except struct.error:
        raise InputError(f"{damaged}: cut short") from None
    if [size for _, size in table] != [sizes[index] for index in filled]:
        raise InputError(f"{damaged}: its columns have other sizes than its header says")
    start, columns = place + 16 * streams, [b""] * len(sizes)
    for index, (packed, size) in zip(filled, table, strict=True):
        stream = data[start : start + packed]
        try:
            if size > packed << 16 or zstandard.frame_content_size(stream) not in (-1, size):
                raise zstandard.ZstdError("sizes do not fit")
            columns[index] = zstandard.ZstdDecompressor().decompress(stream, max_output_size=size)
        except zstandard.ZstdError as error:
            raise InputError(f"{damaged}: {first_line(error)}") from None
        if len(columns[index]) != size:
            raise InputError(f"{damaged}: a column of {len(columns[index])} bytes, expected {size}")
        start += packed
    return columns


def _byte(numbers: torch.Tensor) -> np.ndarray:
    return numbers.round().clamp(0, 255).to(torch.uint8).numpy()
