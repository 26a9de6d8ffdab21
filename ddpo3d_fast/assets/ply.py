"""Gaussians to and from the ply layout that 3D Gaussian splatting viewers read.

A vertex has the properties x, y, z, nx, ny, nz, f_dc_0..2, f_rest_*, opacity, scale_0..2, rot_0..3:
position, an unused normal, spherical harmonics (the constant term, then the others channel by channel), the
logit of the opacity, the logarithms of the scales, and a quaternion w, x, y, z.

Orientation. Such files come from COLMAP, whose world has y down, and viewers show them so; this program's
world has y up. So writing turns the scene by 180 degrees about x, and reading turns it back (turning.py):
viewers show the object upright, and a round trip changes no bit.

Quaternions are written with length 1, whatever their length here: converters pass on what they find.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.assets.compressed_ply import decompress, is_compressed
from ddpo3d_fast.assets.incoming import Incoming, read_bytes
from ddpo3d_fast.assets.outgoing import Outgoing
from ddpo3d_fast.assets.ply_file import open_ply
from ddpo3d_fast.assets.raw import OPAQUE, THIN, PlyGaussians, check
from ddpo3d_fast.assets.turning import from_file
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import atomic_path

UP = "-y"  # the axis of such a file that points up


def write_ply(
    path: str | Path, means: Tensor, quats: Tensor, log_scales: Tensor, logit_opacities: Tensor, sh: Tensor
) -> None:
    """Writes raw Gaussian parameters as binary little-endian ply, atomically. The same input gives the same
    bytes, and what was read from a file of this function gives that file.

    Args:
        path: the file; missing folders are made.
        means, quats, log_scales, logit_opacities, sh: as in `PlyGaussians`. Quaternions are normalised, and
            one of zero becomes no rotation; infinite opacities become finite ones that look alike.

    Raises:
        ValueError: a shape that does not fit, or a value that is NaN or infinite.
        InputError: the file cannot be written.
    """
    gaussians = PlyGaussians(means, quats, log_scales, logit_opacities, sh)
    check(gaussians)
    write(Path(path), Outgoing(gaussians, UP))


def write(path: Path, scene: Outgoing) -> None:
    """As `write_ply`, with the axis up that the scene says."""
    rest = 3 * (scene.bases - 1)
    names = ["x", "y", "z", "nx", "ny", "nz", *_numbered("f_dc", 3), *_numbered("f_rest", rest)]
    names += ["opacity", *_numbered("scale", 3), *_numbered("rot", 4)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {scene.count}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode())
        for block in scene.blocks():
            columns = [
                block.means,
                torch.zeros_like(block.means),
                block.sh[:, 0],
                block.sh[:, 1:].transpose(1, 2).flatten(1),
                block.logit_opacities[:, None],
                block.log_scales,
                block.quats,
            ]
            file.write(torch.cat(columns, 1).numpy().astype("<f4", copy=False).tobytes())


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
    return from_file(read(Path(path)).gaussians, UP)


def read(path: Path) -> Incoming:
    """As `read_ply`, in the file's own coordinates."""
    ply = open_ply(path, read_bytes(path))
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
    gaussians = PlyGaussians(
        means=numbers[:, :3].contiguous(),
        quats=numbers[:, 3:7].contiguous(),
        log_scales=numbers[:, 7:10].contiguous(),
        logit_opacities=numbers[:, 10].contiguous(),
        sh=torch.cat([numbers[:, None, 11:14], higher], 1).contiguous(),
    )
    return Incoming(gaussians, UP)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{index}" for index in range(count)]
