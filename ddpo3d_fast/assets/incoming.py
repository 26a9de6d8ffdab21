"""A scene on its way out of a file: what every reader of a format checks, and gives."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddpo3d_fast.assets.raw import THIN, PlyGaussians, finite_logits
from ddpo3d_fast.errors import InputError


class Incoming(NamedTuple):
    """What a reader of a format gives."""

    gaussians: PlyGaussians
    """In the file's coordinates"""
    up: str
    """Axis of the file that points up, by the format's rules"""


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def assembled(
    path: Path,
    means: np.ndarray,  # [N, 3]
    quats: np.ndarray,  # [N, 4] w, x, y, z
    log_scales: np.ndarray,  # [N, 3]
    logit_opacities: np.ndarray,  # [N]
    sh: np.ndarray,  # [N, K, 3]
) -> PlyGaussians:
    """Columns of any float type as Gaussians. What is infinite but means something is read as what it means:
    an opacity as opaque or transparent, a scale of -infinity as no thickness; a quaternion of zero is no
    rotation.

    Raises:
        InputError: another value that is NaN or infinite; one line that names the file and the Gaussian.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        numbers = (means, quats, log_scales, logit_opacities, sh)
        columns = [np.require(column, np.float32, ["C", "W"]) for column in numbers]
    scene = PlyGaussians(*(torch.from_numpy(column) for column in columns))
    scales, turns = scene.log_scales, scene.quats
    scales = torch.where(scales == -torch.inf, scales.new_tensor(THIN), scales)
    turns = torch.where(turns.any(1, keepdim=True), turns, turns.new_tensor([1.0, 0, 0, 0]))
    scene = scene._replace(
        quats=turns, log_scales=scales, logit_opacities=finite_logits(scene.logit_opacities)
    )
    for name, column in zip(PlyGaussians._fields, scene, strict=True):
        bad = ~column.isfinite().flatten(1 if column.dim() > 1 else 0)
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            value = column[row].flatten()[bad[row].flatten()][0].item()
            raise InputError(f"{path}: Gaussian {row}: {name} has {value}, expected finite numbers")
    return scene


def joined(parts: list[PlyGaussians]) -> PlyGaussians:
    """The Gaussians of several, with the harmonics that all of them have."""
    bases = min(part.sh.shape[1] for part in parts)
    equal = [part._replace(sh=part.sh[:, :bases]) for part in parts]
    return PlyGaussians(*(torch.cat(columns) for columns in zip(*equal, strict=True)))
