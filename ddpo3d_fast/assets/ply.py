"""Gaussians to and from the ply layout that 3D Gaussian splatting viewers read.

A vertex has the properties x, y, z, nx, ny, nz, f_dc_0..2, f_rest_*, opacity, scale_0..2, rot_0..3:
position, an unused normal, spherical harmonics (the constant term, then the others channel by channel), the
logit of the opacity, the logarithms of the scales, and a quaternion w, x, y, z.

Orientation. Such files come from COLMAP, whose world has y down, and viewers show them so; this program's
world has y up. So writing turns the scene by 180 degrees about x, and reading turns it back: viewers show
the object upright, and a round trip changes no bit, because the turn only swaps and negates numbers.

Quaternions are written with length 1, whatever their length here: converters pass on what they find.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.assets.compressed_ply import decompress, is_compressed
from ddpo3d_fast.assets.foreign import describe_foreign
from ddpo3d_fast.assets.ply_file import open_ply
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_bytes

OPAQUE = 20.0  # logit of an opacity of 1 - 2e-9: in float32 1
THIN = -30.0  # logarithm of the scale 9e-14
# What takes a direction in such a file to this program's world, and back.
FROM_FILE = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
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
    bytes, and what was read from a file of this function gives that file.

    Args:
        path: the file; missing folders are made.
        means, quats, log_scales, logit_opacities, sh: as in `PlyGaussians`. Quaternions are normalised, and
            one of zero becomes no rotation.

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
    turned = _turn(gaussians._replace(quats=_normalised(quats)))
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
    to 3, or PlayCanvas's compressed layout.

    What is infinite but means something is read as what it means: an opacity of +infinity, which converters
    write for an alpha of 255, as opaque, one of -infinity as transparent, a scale of -infinity as no
    thickness. A quaternion of zero is no rotation: converters make of it whatever comes, each another one.

    Raises:
        InputError: no such file, not a ply, not a Gaussian splat, cut short, or with a value that is NaN or
            means nothing; one line that names the file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not data.startswith(b"ply") and (said := describe_foreign(path)):
        raise InputError(said)
    ply = open_ply(path, data)
    if "vertex" not in ply.elements:
        raise InputError(f"{path}: corrupt ply header: no element vertex line")
    packed = decompress(ply) if is_compressed(ply) else None
    names = packed.keys() if packed else {entry.name for entry in ply.elements["vertex"].scalars}
    rest = sum(re.fullmatch(r"f_rest_\d+", name) is not None for name in names)
    if rest not in (0, 9, 24, 45):
        raise InputError(f"{path}: expected 0, 9, 24 or 45 properties f_rest_*, got {rest}")
    wanted = ["x", "y", "z", *_numbered("rot", 4), *_numbered("scale", 3), "opacity"]
    wanted += [*_numbered("f_dc", 3), *_numbered("f_rest", rest)]
    for name in wanted:
        if name not in names:
            raise InputError(f"{path}: no property {name}: not a 3D Gaussian splat")
    columns = packed or ply.read("vertex")[0]
    table = np.empty((len(columns["x"]), len(wanted)), np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        for index, name in enumerate(wanted):
            table[:, index] = columns[name]
    scales, opacities, quats = table[:, 7:10], table[:, 10], table[:, 3:7]
    scales[scales == -np.inf] = THIN
    opacities[opacities == np.inf] = OPAQUE
    opacities[opacities == -np.inf] = -OPAQUE
    quats[~quats.any(1)] = (1, 0, 0, 0)
    bad = ~np.isfinite(table)
    if bad.any():
        row, column = (int(index[0]) for index in np.nonzero(bad))
        raise InputError(
            f"{path}: vertex {row}: {wanted[column]} is {table[row, column]}, expected a finite number"
        )
    numbers = torch.from_numpy(table)
    higher = numbers[:, 14:].reshape(len(table), 3, rest // 3).transpose(1, 2)
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


def _normalised(quats: Tensor) -> Tensor:
    """[N, 4] of length 1 within float32's rounding; what has it already stays as it is, to the bit."""
    lengths = quats.double().norm(dim=-1, keepdim=True)
    unit = torch.where((lengths - 1).abs() > 1e-6, quats / lengths, quats).to(quats)
    return torch.where(lengths > 0, unit, unit.new_tensor([1.0, 0, 0, 0]))


def _turn(gaussians: PlyGaussians, back: bool = False) -> PlyGaussians:
    """Turns by 180 degrees about x: quaternions are multiplied by i from the left, by -i on the way back."""
    means, quats, log_scales, logit_opacities, sh = gaussians
    w, x, y, z = quats.unbind(-1)
    turned = torch.stack([x, -w, z, -y] if back else [-x, w, -z, y], -1)
    signs = _SH_SIGNS[: sh.shape[1], None].to(sh)
    return PlyGaussians(
        means * FROM_FILE.diagonal().to(means), turned, log_scales, logit_opacities, sh * signs
    )
