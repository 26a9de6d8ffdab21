"""The .splat format of antimatter15's viewer: 32 bytes a Gaussian, and nothing else.

Position and scale as three float32 each, then red, green, blue and opacity as bytes, then the quaternion
w, x, y, z as bytes, 128 being zero. Colours are those seen without harmonics above the constant one.
Viewers draw while they load, so what matters most comes first.

Source: K. Kwok, github.com/antimatter15/splat, 2023, for the layout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ddpo3d_fast.assets.incoming import Incoming, assembled, read_bytes
from ddpo3d_fast.assets.outgoing import Outgoing
from ddpo3d_fast.assets.raw import SH_C0, logits
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import atomic_path

UP = "-y"  # by custom: such files are made of plys as they are
_ROW = np.dtype(
    [("means", "<f4", 3), ("scales", "<f4", 3), ("color", "u1", 3), ("alpha", "u1"), ("quats", "u1", 4)]
)


def write(path: Path, scene: Outgoing) -> None:
    """Writes the Gaussians, without harmonics above the constant one, by volume times opacity, falling."""
    gaussians = scene.gaussians
    weight = gaussians.log_scales.double().sum(1) + torch.nn.functional.logsigmoid(
        gaussians.logit_opacities.double()
    )
    order = weight.argsort(descending=True, stable=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for block in scene.blocks(order):
            rows = np.empty(len(block.means), _ROW)
            rows["means"], rows["scales"] = block.means.numpy(), block.log_scales.exp().numpy()
            rows["color"] = _byte((block.sh[:, 0] * SH_C0 + 0.5) * 255)
            rows["alpha"] = _byte(block.logit_opacities.sigmoid() * 255)
            rows["quats"] = _byte(block.quats * 128 + 128)
            file.write(rows.tobytes())


def read(path: Path) -> Incoming:
    """Reads such a file. Raises InputError for one whose length is none of whole rows, or a value that is
    not finite."""
    data = read_bytes(path)
    if len(data) % _ROW.itemsize:
        raise InputError(
            f"{path}: expected {_ROW.itemsize} bytes a Gaussian, got {len(data)}: cut short, or no .splat"
        )
    rows = np.frombuffer(data, _ROW)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_scales = np.log(rows["scales"])
    colors = (rows["color"][:, None] / 255 - 0.5) / SH_C0
    quats = (rows["quats"].astype(np.float32) - 128) / 128
    alphas = logits(torch.from_numpy(rows["alpha"] / 255)).numpy()
    return Incoming(assembled(path, rows["means"], quats, log_scales, alphas, colors), UP)


def _byte(numbers: torch.Tensor) -> np.ndarray:
    return numbers.round().clamp(0, 255).to(torch.uint8).numpy()
