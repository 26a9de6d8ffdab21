"""Scenes as files hold them: which axis points up, and the turn between that world and this program's.

This program's world has y up and the front at +z. A turn takes means, rotations and harmonics along, so that
the object looks as before to whoever goes along, too.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ddpo3d_fast.assets.raw import PlyGaussians
from ddpo3d_fast.errors import InputError

Axis = Literal["y", "-y", "z", "-z", "x", "-x"]
# An axis that points up in a file, and the one that then points to the camera at azimuth 0: right-handed, as
# the usual worlds of such files have them (y down, y up, z up).
_FRONTS = {"y": "z", "-y": "-z", "z": "-y", "-z": "y", "x": "z", "-x": "z"}
# What a turn by 180 degrees about x does to the harmonics: each is a polynomial in x, y, z, odd or even in
# (y, z). Order of the 3DGS basis: 1; y z x; xy yz zz xz xx-yy; y(3xx-yy) xyz y(..) z(..) x(..) z(xx-yy)
# x(xx-3yy).
_HALF_TURN = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1])


def axes(up: str) -> Tensor:
    """[3, 3] float64, the rotation of a file's world, where this axis points up, to this program's."""

    def axis(name: str) -> Tensor:
        return (-1.0 if name[0] == "-" else 1.0) * torch.eye(3, dtype=torch.float64)["xyz".index(name[-1])]

    top, front = axis(up), axis(_FRONTS[up])
    return torch.stack([torch.linalg.cross(top, front), top, front])


def to_file(gaussians: PlyGaussians, up: str) -> PlyGaussians:
    """Gaussians of this program's world in that of a file where an axis points up. Between y up and y down
    numbers are swapped and negated alone, so that the way back gives the same bits."""
    if up in ("y", "-y"):
        return gaussians if up == "y" else _half_turn(gaussians)
    return turned(gaussians, axes(up).T)


def from_file(gaussians: PlyGaussians, up: str) -> PlyGaussians:
    """The way back from `to_file`."""
    if up in ("y", "-y"):
        return gaussians if up == "y" else _half_turn(gaussians, back=True)
    return turned(gaussians, axes(up))


def turned(gaussians: PlyGaussians, rotation: Tensor) -> PlyGaussians:
    """Gaussians whose world is turned about its origin by a rotation [3, 3] float64, proper and
    orthogonal."""
    means, quats, log_scales, logit_opacities, sh = gaussians
    harmonics = _harmonics_turn(rotation, gaussians.degree).to(sh)
    return PlyGaussians(
        means=(means.double() @ rotation.T).to(means),
        quats=_product(_quaternion(rotation), quats.double()).to(quats),
        log_scales=log_scales,
        logit_opacities=logit_opacities,
        sh=torch.einsum("ij,njc->nic", harmonics, sh) if gaussians.degree else sh,
    )


def moved(gaussians: PlyGaussians, matrix: Tensor, what: str) -> PlyGaussians:
    """Gaussians moved, turned and scaled by a matrix [4, 4] float64 that is multiplied by columns.

    Raises:
        InputError: the matrix stretches or mirrors; it begins with `what`.
    """
    if torch.equal(matrix, torch.eye(4, dtype=torch.float64)):
        return gaussians
    linear = matrix[:3, :3]
    scale = float(linear.det().abs() ** (1 / 3))
    rotation = linear / scale if scale else linear
    if float(rotation.det()) < 0 or not torch.allclose(
        rotation @ rotation.T, torch.eye(3).double(), atol=1e-4
    ):
        raise InputError(
            f"{what} stretches or mirrors its Gaussians, which only turns and scales are read of"
        )
    around = turned(gaussians, rotation)
    return around._replace(
        means=(around.means.double() * scale + matrix[:3, 3]).float(),
        log_scales=(around.log_scales.double() + math.log(scale)).float(),
    )


def rotation_matrices(quats: Tensor) -> Tensor:
    """[N, 3, 3] float64 of unit quaternions [N, 4] w, x, y, z."""
    w, x, y, z = quats.double().unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _half_turn(gaussians: PlyGaussians, back: bool = False) -> PlyGaussians:
    """Turns by 180 degrees about x: quaternions are multiplied by i from the left, by -i on the way back."""
    means, quats, log_scales, logit_opacities, sh = gaussians
    w, x, y, z = quats.unbind(-1)
    about_x = torch.stack([x, -w, z, -y] if back else [-x, w, -z, y], -1)
    signs = _HALF_TURN[: sh.shape[1], None].to(sh)
    return PlyGaussians(
        means * means.new_tensor([1.0, -1, -1]), about_x, log_scales, logit_opacities, sh * signs
    )


def _quaternion(rotation: Tensor) -> Tensor:
    """[4] w, x, y, z of a rotation [3, 3]: the eigenvector of a symmetric matrix that is largest on it (Bar-
    Itzhack, New Method for Extracting the Quaternion from a Rotation Matrix, 2000)."""
    m = rotation
    rows = [
        [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
        [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
        [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
        [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1]],
    ]
    return torch.linalg.eigh(torch.tensor(rows, dtype=torch.float64)).eigenvectors[:, 3]


def _product(first: Tensor, second: Tensor) -> Tensor:
    """[..., 4] the quaternion of one turn after another: of `second`, then of `first`."""
    (a, b, c, d), (e, f, g, h) = first.unbind(-1), second.unbind(-1)
    parts = [
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    ]
    return torch.stack(parts, -1)


def _harmonics_turn(rotation: Tensor, degree: int) -> Tensor:
    """[K, K] float64, what a rotation does to the harmonics' coefficients: the harmonics of a degree turn
    into ones of that degree, so that as many directions as there are determine the matrix."""
    directions = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    after, before = _basis(directions, degree), _basis(directions @ rotation, degree)
    matrix = torch.linalg.lstsq(after, before).solution
    return torch.where(matrix.abs() < 1e-12, 0.0, matrix)


def _basis(directions: Tensor, degree: int) -> Tensor:
    """[D, K] harmonics at unit directions, up to constant factors of whole degrees, which no turn sees; their
    signs and constants are those of csrc/maths/sh.h."""
    x, y, z = directions.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    root3, root15, root_5_8, root_3_8 = (number**0.5 for number in (3.0, 15.0, 5 / 8, 3 / 8))
    parts = [torch.ones_like(x), -y, z, -x]
    parts += [root3 * x * y, -root3 * y * z, zz - (xx + yy) / 2, -root3 * x * z, root3 / 2 * (xx - yy)]
    parts += [
        -root_5_8 * y * (3 * xx - yy),
        root15 * x * y * z,
        -root_3_8 * y * (4 * zz - xx - yy),
        z * (zz - 1.5 * (xx + yy)),
        -root_3_8 * x * (4 * zz - xx - yy),
        root15 / 2 * z * (xx - yy),
        -root_5_8 * x * (xx - 3 * yy),
    ]
    return torch.stack(parts[: (degree + 1) ** 2], 1)
