"""Reads the tensors of a TorchScript archive and nothing else: no code in it runs.

`torch.jit.load` runs what an archive says (a module's __setstate__), and `torch.load` with weights_only
refuses archives altogether. But what they hold is a pickle of plain objects, and a file for every storage.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

# torch's names of storages in pickles.
_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
_MARK = "/constants.pkl"  # of torch.jit.save; torch looks for it, too
# What tells torch the type of a list or a dict; the value itself comes first.
_TYPED = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


def is_torchscript(file: Path) -> bool:
    """Whether a file is an archive of torch.jit.save, not of torch.save."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith(_MARK) for name in archive.namelist())


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """The tensors of an archive's module by their dotted names: parameters, buffers, other attributes.

    On the CPU, in their own dtypes. Raises pickle.UnpicklingError where the pickle asks for anything but
    tensors, modules and plain values; for a damaged file whatever its damage leads to.
    """
    with zipfile.ZipFile(file) as archive:
        # All lie in one folder, which is called as the file was when it was saved.
        folder = next(name for name in archive.namelist() if name.endswith(_MARK)).partition("/")[0]
        with archive.open(f"{folder}/data.pkl") as stream:
            module = _Unpickler(stream, archive, f"{folder}/data").load()
    return dict(_tensors(module, ""))


class _Object:
    """Stands for an object of a class of the archive's own: its attributes, without what it can do."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        # What a class with its own __getstate__ has left is for its __setstate__ alone to read.
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    """Knows tensors, ordered dicts, types of lists, and the archive's classes by name only."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            # A class of its own for every name: what a pickle may do to it ends with this file.
            return type("Object", (_Object,), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if module == "torch.jit._pickle" and name in _TYPED:
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage as a flat tensor, from ("storage", dtype, name of its file, device, length)."""
        kind, dtype, name, _, length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it asks for {kind!r}, which is no storage")
        stored = self.archive.read(f"{self.folder}/{name}")
        if not length:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(stored), dtype=dtype, count=length)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Object):
        for attribute, inner in value.attributes.items():
            yield from _tensors(inner, f"{name}.{attribute}" if name else str(attribute))
