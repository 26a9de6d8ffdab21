"""A mesh as .glb: one mesh, one material, its picture within (glTF 2.0, Khronos 2021, chapters 3 and 4)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ddpo3d_fast.assets.images import png_bytes
from ddpo3d_fast.assets.mesh import Mesh
from ddpo3d_fast.files import write_bytes

_FLOAT, _UNSIGNED = 5126, 5125  # component types
_VERTICES, _INDICES = 34962, 34963  # what a bufferView is for
_LINEAR, _MIPMAPS, _CLAMP = 9729, 9987, 33071  # filters and wrapping of a sampler


def write_glb(path: Path, mesh: Mesh) -> None:
    """Writes the mesh with a PBR material: neither metal nor gloss, the texture its base colour. glTF's world
    has y up and the front towards +z, as the mesh's. The same mesh gives the same bytes."""
    data, views, accessors = bytearray(), list[dict[str, Any]](), list[dict[str, Any]]()

    def view(content: bytes, **more: Any) -> int:
        data.extend(bytes(-len(data) % 4))
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(content)} | more)
        data.extend(content)
        return len(views) - 1

    def accessor(numbers: Tensor, kind: str, bounds: bool = False) -> int:
        indices = kind == "SCALAR"
        array = np.ascontiguousarray(numbers.numpy(), "<u4" if indices else "<f4")
        entry: dict[str, Any] = {
            "bufferView": view(array.tobytes(), target=_INDICES if indices else _VERTICES),
            "componentType": _UNSIGNED if indices else _FLOAT,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            entry |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        accessors.append(entry)
        return len(accessors) - 1

    attributes = {
        "POSITION": accessor(mesh.vertices, "VEC3", bounds=True),
        "NORMAL": accessor(mesh.normals, "VEC3"),
        "TEXCOORD_0": accessor(mesh.uvs, "VEC2"),
    }
    primitive = {
        "attributes": attributes,
        "indices": accessor(mesh.triangles.reshape(-1), "SCALAR"),
        "material": 0,
    }
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0}
    document = {
        "asset": {"version": "2.0", "generator": "ddpo3d-fast"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": surface}],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": _LINEAR, "minFilter": _MIPMAPS, "wrapS": _CLAMP, "wrapT": _CLAMP}],
        "images": [{"bufferView": view(png_bytes(mesh.texture)), "mimeType": "image/png"}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(data)}],
    }
    write_bytes(path, packed(document, bytes(data)))


def packed(document: dict[str, Any], data: bytes) -> bytes:
    """A .glb of a glTF document and its one buffer."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    data += bytes(-len(data) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
