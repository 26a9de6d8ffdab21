"""glTF 2.0 with KHR_gaussian_splatting: the Gaussians as points, with rotations, scales, opacities and
harmonics as attributes, in the file .glb.

The world has y up and the front at +z. Quaternions are x, y, z, w; scales and opacities are what they mean,
neither logarithm nor logit. The colours of points, for programs that do not know the extension, are linear.

Source: Khronos, KHR_gaussian_splatting, release candidate, July 2026.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.assets.gltf_file import GltfFile, open_gltf
from ddpo3d_fast.assets.images import to_uint8
from ddpo3d_fast.assets.incoming import Incoming, assembled, joined
from ddpo3d_fast.assets.outgoing import Outgoing
from ddpo3d_fast.assets.raw import SH_C0, PlyGaussians, logits
from ddpo3d_fast.assets.turning import moved
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import atomic_path

UP = "y"
_NAME = "KHR_gaussian_splatting"
_FLOAT, _BYTE, _ARRAY_BUFFER, _POINTS = 5126, 5121, 34962, 0
_LARGEST = 88.0  # logarithm of a scale that float32 holds


class _Column(NamedTuple):
    """An attribute of the primitive."""

    name: str
    kind: str
    width: int  # bytes a Gaussian
    values: Callable[[PlyGaussians], Tensor]


def write(path: Path, scene: Outgoing) -> None:
    """Writes a .glb of one node, one mesh, one primitive. Its numbers are float32."""
    columns = _columns(scene.gaussians.degree)
    accessors, views, offset = [], [], 0
    for column in columns:
        length = column.width * scene.count
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": length, "target": _ARRAY_BUFFER})
        accessor: dict[str, Any] = {"bufferView": len(views) - 1, "componentType": _FLOAT}
        if column.name == "COLOR_0":
            accessor |= {"componentType": _BYTE, "normalized": True}
        accessor |= {"count": scene.count, "type": column.kind}
        accessors.append(accessor | (_bounds(scene) if column.name == "POSITION" else {}))
        offset += length
    splats = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    primitive = {
        "attributes": {column.name: index for index, column in enumerate(columns)},
        "mode": _POINTS,
        "extensions": {_NAME: splats},
    }
    document = {
        "asset": {"version": "2.0", "generator": "ddpo3d-fast"},
        "extensionsUsed": [_NAME],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + offset))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", offset, b"BIN\0"))
        start, done = file.tell(), 0
        for block in scene.blocks():
            for column, view in zip(columns, views, strict=True):
                file.seek(start + view["byteOffset"] + column.width * done)
                file.write(column.values(block).contiguous().numpy().tobytes())
            done += len(block.means)


def _columns(degree: int) -> list[_Column]:
    columns = [
        _Column("POSITION", "VEC3", 12, lambda block: block.means),
        _Column("COLOR_0", "VEC4", 4, _point_colors),
        _Column(f"{_NAME}:ROTATION", "VEC4", 16, lambda block: block.quats.roll(-1, 1)),
        _Column(f"{_NAME}:SCALE", "VEC3", 12, lambda block: block.log_scales.clamp(max=_LARGEST).exp()),
        _Column(f"{_NAME}:OPACITY", "SCALAR", 4, lambda block: block.logit_opacities.sigmoid()),
    ]
    for index, name in enumerate(_harmonics(degree)):
        columns.append(_Column(name, "VEC3", 12, partial(_harmonic, index=index)))
    return columns


def _harmonics(degree: int) -> list[str]:
    of_degree = ((band, range(2 * band + 1)) for band in range(degree + 1))
    return [f"{_NAME}:SH_DEGREE_{band}_COEF_{index}" for band, indices in of_degree for index in indices]


def _harmonic(block: PlyGaussians, index: int) -> Tensor:
    return block.sh[:, index]


def _point_colors(block: PlyGaussians) -> Tensor:
    """[N, 4] uint8: what glTF means by colours of vertices is linear."""
    display = (block.sh[:, 0] * SH_C0 + 0.5).clamp(0, 1)
    linear = torch.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    return to_uint8(torch.cat([linear, block.logit_opacities.sigmoid()[:, None]], 1))


def _bounds(scene: Outgoing) -> dict[str, list[float]]:
    means = scene.means()
    return {"min": means.amin(0).tolist(), "max": means.amax(0).tolist()} if scene.count else {}


def read(path: Path) -> Incoming:
    """Reads all Gaussians of a .glb or .gltf, moved as its nodes say; those of several nodes behind one
    another.

    Raises:
        InputError: a damaged file, one without Gaussians, with another kernel, or with a node that stretches
        or
            mirrors; one line that names the file.
    """
    gltf = open_gltf(path)
    parts = [
        moved(_primitive(gltf, primitive), matrix, f"{path}: a node")
        for mesh, matrix in gltf.meshes()
        for primitive in mesh.get("primitives", [])
        if _NAME in primitive.get("extensions", {})
    ]
    if not parts:
        raise InputError(f"{path}: no Gaussians: no primitive has the extension {_NAME}")
    return Incoming(joined(parts), UP)


def _primitive(gltf: GltfFile, primitive: dict[str, Any]) -> PlyGaussians:
    attributes, splats = primitive.get("attributes", {}), primitive["extensions"][_NAME]
    kernel = splats.get("kernel", "ellipse")
    if kernel != "ellipse":
        raise InputError(f"{gltf.path}: expected Gaussians of the kernel ellipse, got {kernel!r}")

    def column(name: str) -> np.ndarray:
        if name not in attributes:
            raise InputError(f"{gltf.path}: no attribute {name}: not a Gaussian splat of {_NAME}")
        return gltf.accessor(attributes[name])

    degree = max((d for d in range(4) if set(_harmonics(d)) <= attributes.keys()), default=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_scales = np.log(column(f"{_NAME}:SCALE"))
    alphas = torch.from_numpy(column(f"{_NAME}:OPACITY").reshape(-1)).clamp(0, 1)
    return assembled(
        gltf.path,
        means=column("POSITION"),
        quats=np.roll(column(f"{_NAME}:ROTATION"), 1, axis=1),
        log_scales=log_scales,
        logit_opacities=logits(alphas).numpy(),
        sh=np.stack([column(name) for name in _harmonics(degree)], 1),
    )
