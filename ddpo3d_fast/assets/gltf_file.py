"""The container of glTF 2.0: its JSON, its buffers, its tree of nodes. What meshes mean is another file's
business.

Source: Khronos, glTF 2.0 Specification, 2021.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.assets.incoming import read_bytes
from ddpo3d_fast.assets.turning import rotation_matrices
from ddpo3d_fast.errors import InputError, first_line

_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_DEEPEST = 100  # nodes under nodes


class GltfFile(NamedTuple):
    """A file whose JSON has been read."""

    path: Path
    document: dict[str, Any]
    binary: bytes  # the buffer of a .glb

    def meshes(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """The meshes of the scene's nodes, each with the node's matrix [4, 4] float64 to the scene's
        world."""
        scenes, nodes = self._list("scenes"), self._list("nodes")
        roots = scenes[self.document.get("scene", 0)].get("nodes", []) if scenes else range(len(nodes))
        waiting = [(index, torch.eye(4, dtype=torch.float64), 0) for index in roots]
        while waiting:
            index, parent, depth = waiting.pop(0)
            node = self._entry("nodes", index)
            matrix = parent @ _matrix(node)
            if "mesh" in node:
                yield self._entry("meshes", node["mesh"]), matrix
            if depth >= _DEEPEST:
                raise InputError(f"{self.path}: damaged glTF: nodes under nodes without end")
            waiting += [(child, matrix, depth + 1) for child in node.get("children", [])]

    def accessor(self, index: int) -> np.ndarray:
        """[count, width] float32: normalised integers as the numbers that they stand for."""
        accessor = self._entry("accessors", index)
        kind, width, count = accessor["componentType"], _WIDTHS.get(accessor["type"]), accessor["count"]
        if "sparse" in accessor or "bufferView" not in accessor or kind not in _TYPES or width is None:
            raise InputError(f"{self.path}: accessor {index}: expected plain numbers in a bufferView")
        view = self._entry("bufferViews", accessor["bufferView"])
        data = self._buffer(view["buffer"])
        dtype = np.dtype(_TYPES[kind])
        stride = view.get("byteStride", dtype.itemsize * width)
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        end = start + (stride * (count - 1) + dtype.itemsize * width if count else 0)
        if not (0 <= start <= end <= len(data) and stride >= dtype.itemsize * width):
            raise InputError(f"{self.path}: truncated: accessor {index} needs {end} bytes, got {len(data)}")
        numbers = np.ndarray((count, width), dtype, data, start, (stride, dtype.itemsize)).astype(np.float32)
        if not accessor.get("normalized"):
            return numbers
        most = np.iinfo(dtype).max if dtype.kind in "iu" else 1
        return np.maximum(numbers / most, -1)

    def _list(self, name: str) -> list[Any]:
        return self.document.get(name, [])

    def _entry(self, name: str, index: int) -> dict[str, Any]:
        entries = self._list(name)
        if not (isinstance(index, int) and 0 <= index < len(entries)):
            raise InputError(f"{self.path}: damaged glTF: there is no number {index} of {name}")
        return entries[index]

    def _buffer(self, index: int) -> bytes:
        uri = self._entry("buffers", index).get("uri")
        if uri is None:
            return self.binary
        if uri.startswith("data:"):
            try:
                return base64.b64decode(uri.partition(",")[2], validate=True)
            except binascii.Error:
                raise InputError(f"{self.path}: damaged glTF: buffer {index} is no base64") from None
        place = (self.path.parent / uri).resolve()
        if self.path.parent.resolve() not in place.parents:
            raise InputError(
                f"{self.path}: buffer {index}: expected a file beside the glTF, got {uri[:60]!r}"
            )
        return read_bytes(place)


def open_gltf(path: Path) -> GltfFile:
    """Reads a .glb or .gltf up to its JSON. Raises InputError, one line that names the file."""
    data = read_bytes(path)
    binary = b""
    if data[:4] == b"glTF":
        if len(data) < 20 or struct.unpack_from("<I", data, 4) != (2,) or data[16:20] != b"JSON":
            raise InputError(f"{path}: not a .glb of glTF 2.0, or cut short")
        (length,) = struct.unpack_from("<I", data, 12)
        start = 20 + length + (-length % 4)
        if len(data) >= start + 8 and data[start + 4 : start + 8] == b"BIN\0":
            binary = data[start + 8 : start + 8 + struct.unpack_from("<I", data, start)[0]]
        data = data[20 : 20 + length]
    try:
        document = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path}: not a glTF file, or a damaged one ({first_line(error)})") from None
    if not (isinstance(document, dict) and document.get("asset", {}).get("version", "").startswith("2.")):
        raise InputError(f"{path}: expected glTF 2.0")
    return GltfFile(path, document, binary)


def _matrix(node: dict[str, Any]) -> Tensor:
    """[4, 4] of a node: its own, or from translation, rotation and scale."""
    if "matrix" in node:
        return torch.tensor(node["matrix"], dtype=torch.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", [0, 0, 0, 1])
    scale = torch.tensor(node.get("scale", [1, 1, 1]), dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = rotation_matrices(torch.tensor([[w, x, y, z]], dtype=torch.float64))[0] * scale
    matrix[:3, 3] = torch.tensor(node.get("translation", [0, 0, 0]), dtype=torch.float64)
    return matrix
