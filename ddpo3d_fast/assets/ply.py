"""Gaussians to and from the ply layout that 3D Gaussian splatting viewers read.

A vertex has the properties x, y, z, nx, ny, nz, f_dc_0..2, f_rest_*, opacity, scale_0..2, rot_0..3:
position, an unused normal, spherical harmonics (the constant term, then the others channel by channel), the
logit of the opacity, the logarithms of the scales, and a quaternion w, x, y, z.

Orientation. Such files come from COLMAP, whose world has y down, and viewers show them so; this program's
world has y up. So writing turns the scene by 180 degrees about x, and reading turns it back: viewers show
the object upright, and a round trip changes no bit, because the turn only swaps and negates numbers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_bytes

_HEADER_LIMIT = 1 << 20  # bytes; a real header has about 1,500
_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_FORMATS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
# What a turn by 180 degrees about x does to the harmonics: each is a polynomial in x, y, z, odd or even in
# (y, z). Order of the 3DGS basis: 1; y z x; xy yz zz xz xx-yy; y(3xx-yy) xyz y(..) z(..) x(..) z(xx-yy)
# x(xx-3yy).
_SH_SIGNS = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1])


class PlyGaussians(NamedTuple):
    """Raw parameters in this program's world (y up), float32, in the order of `scene.Gaussians`."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] w, x, y, z
    log_scales: Tensor  # [N, 3]
    logit_opacities: Tensor  # [N]
    sh: Tensor  # [N, K, 3], K = 1, 4, 9 or 16


def write_ply(
    path: str | Path, means: Tensor, quats: Tensor, log_scales: Tensor, logit_opacities: Tensor, sh: Tensor
) -> None:
    """Writes raw Gaussian parameters as binary little-endian ply, atomically. The same input gives the same
    bytes.

    Args:
        path: the file; missing folders are made.
        means, quats, log_scales, logit_opacities, sh: as in `PlyGaussians`.

    Raises:
        ValueError: a shape that does not fit, or a value that is NaN or infinite.
        InputError: the file cannot be written.
    """
    count, bases = means.shape[0], sh.shape[1] if sh.dim() == 3 else 0
    gaussians = PlyGaussians(means, quats, log_scales, logit_opacities, sh)
    shapes = ((count, 3), (count, 4), (count, 3), (count,), (count, bases, 3))
    for name, tensor, shape in zip(PlyGaussians._fields, gaussians, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if bases not in (1, 4, 9, 16):
        raise ValueError(f"sh: expected shape ({count}, K, 3) with K 1, 4, 9 or 16, got {tuple(sh.shape)}")
    turned = _turn(gaussians)
    columns = [
        turned.means,
        torch.zeros(count, 3),
        turned.sh[:, 0],
        turned.sh[:, 1:].transpose(1, 2).reshape(count, 3 * (bases - 1)),
        turned.logit_opacities[:, None],
        turned.log_scales,
        turned.quats,
    ]
    table = torch.cat([column.detach().cpu().float() for column in columns], 1).numpy().astype("<f4")
    names = ["x", "y", "z", "nx", "ny", "nz", *_numbered("f_dc", 3), *_numbered("f_rest", 3 * (bases - 1))]
    names += ["opacity", *_numbered("scale", 3), *_numbered("rot", 4)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    write_bytes(path, "\n".join(header).encode() + table.tobytes())


def read_ply(path: str | Path) -> PlyGaussians:
    """Reads raw Gaussian parameters: ascii or binary, properties in any order and number type, SH degree 0
    to 3.

    Raises:
        InputError: no such file, not a ply, not a Gaussian splat, cut short, or with a value that is NaN or
            infinite; one line that names the file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    layout, count, properties, body = _parse_header(path, data)
    names = [name for name, _ in properties]
    rest = sum(re.fullmatch(r"f_rest_\d+", name) is not None for name in names)
    if rest not in (0, 9, 24, 45):
        raise InputError(f"{path}: expected 0, 9, 24 or 45 properties f_rest_*, got {rest}")
    wanted = ["x", "y", "z", *_numbered("rot", 4), *_numbered("scale", 3), "opacity"]
    wanted += [*_numbered("f_dc", 3), *_numbered("f_rest", rest)]
    for name in wanted:
        if name not in names:
            raise InputError(f"{path}: no property {name}: not a 3D Gaussian splat")
    table = _read_table(path, data, layout, count, properties, body, wanted)
    bad = ~np.isfinite(table)
    if bad.any():
        row, column = (int(index[0]) for index in np.nonzero(bad))
        raise InputError(
            f"{path}: vertex {row}: {wanted[column]} is {table[row, column]}, expected a finite number"
        )
    if (norms := np.abs(table[:, 3:7]).max(1, initial=0.0) == 0).any():
        raise InputError(f"{path}: vertex {int(norms.argmax())}: the quaternion rot_0..3 is zero")
    numbers = torch.from_numpy(table)
    higher = numbers[:, 14:].reshape(count, 3, rest // 3).transpose(1, 2)
    return _turn(
        PlyGaussians(
            means=numbers[:, :3].contiguous(),
            quats=numbers[:, 3:7].contiguous(),
            log_scales=numbers[:, 7:10].contiguous(),
            logit_opacities=numbers[:, 10].contiguous(),
            sh=torch.cat([numbers[:, None, 11:14], higher], 1).contiguous(),
        ),
        back=True,
    )


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{index}" for index in range(count)]


def _turn(gaussians: PlyGaussians, back: bool = False) -> PlyGaussians:
    """Turns by 180 degrees about x: quaternions are multiplied by i from the left, by -i on the way back."""
    means, quats, log_scales, logit_opacities, sh = gaussians
    w, x, y, z = quats.unbind(-1)
    turned = torch.stack([x, -w, z, -y] if back else [-x, w, -z, y], -1)
    signs = _SH_SIGNS[: sh.shape[1], None].to(sh)
    return PlyGaussians(
        means * means.new_tensor([1, -1, -1]), turned, log_scales, logit_opacities, sh * signs
    )


def _parse_header(path: Path, data: bytes) -> tuple[str, int, list[tuple[str, str]], int]:
    """Byte order, number of vertices, (name, numpy type) of their properties, and where the body begins."""
    if data[:3] != b"ply":
        raise InputError(f"{path}: not a ply file: it does not begin with 'ply'")
    end = re.search(rb"\nend_header[ \t]*\r?\n", data[:_HEADER_LIMIT])
    if not end:
        raise InputError(f"{path}: corrupt ply header: no end_header")
    try:
        lines = data[: end.start()].decode("ascii").splitlines()[1:]
    except UnicodeDecodeError:
        raise InputError(f"{path}: corrupt ply header: not ASCII text") from None
    layout, count, element = "", -1, ""
    properties: list[tuple[str, str]] = []
    for words in (line.split() for line in lines):
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, "1.0"] if name in _FORMATS:
                layout = name
            case ["element", name, number] if number.isdecimal():
                if name != "vertex" and count < 0:
                    raise InputError(
                        f"{path}: expected vertices first, got element {name}: not a 3D Gaussian splat"
                    )
                element = name
                count = int(number) if name == "vertex" else count
            case ["property", kind, name] if kind in _TYPES and element:
                if element == "vertex":
                    properties.append((name, _TYPES[kind]))
            case ["property", "list", *_] if element not in ("", "vertex"):
                pass
            case _:
                raise InputError(f"{path}: corrupt ply header: {' '.join(words)[:60]!r}")
    if not layout or count < 0:
        raise InputError(f"{path}: corrupt ply header: no {'element vertex' if layout else 'format'} line")
    names = [name for name, _ in properties]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: corrupt ply header: property {twice} twice")
    return layout, count, properties, end.end()


def _read_table(
    path: Path,
    data: bytes,
    layout: str,
    count: int,
    properties: list[tuple[str, str]],
    body: int,
    wanted: list[str],
) -> np.ndarray:
    """[count, len(wanted)] float32. Sizes are checked before anything is allocated."""
    if layout == "ascii":
        words = data[body:].split()
        if len(words) < count * len(properties):
            needed = count * len(properties)
            raise InputError(f"{path}: truncated: {count} vertices need {needed} numbers, got {len(words)}")
        try:
            numbers = np.array(words[: count * len(properties)], dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{path}: corrupt vertex: {error}") from None
        table = numbers.reshape(count, len(properties))
        columns = [[name for name, _ in properties].index(name) for name in wanted]
        return _to_float32(table[:, columns])
    dtype = np.dtype([(name, _FORMATS[layout] + kind) for name, kind in properties])
    if len(data) - body < count * dtype.itemsize:
        needed = count * dtype.itemsize
        raise InputError(f"{path}: truncated: {count} vertices need {needed} bytes, got {len(data) - body}")
    rows = np.frombuffer(data, dtype=dtype, count=count, offset=body)
    return _to_float32(np.stack([rows[name] for name in wanted], 1))


def _to_float32(table: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is reported as such
        return table.astype(np.float32)
