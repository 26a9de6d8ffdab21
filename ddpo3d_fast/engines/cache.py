"""The cache of exported graphs and built engines: folders that appear whole or not at all.

They lie in engines/ of $DDPO3D_CACHE, or of ddpo3d-fast/ in the user's cache folder. An entry is a folder
with files and a manifest.json, which is written last and tells their sizes: without it, or with other sizes,
the entry counts as half-written, is never used and is removed. One that is whole and yet of no use is for its
user to discard; a file `refused` in it says that building it anew was tried, and no help.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpo3d_fast.engines.network import Network
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import flush, locked

MANIFEST, REFUSED = "manifest.json", "refused"


@dataclass(frozen=True)
class Entry:
    """A whole entry: its folder, and what its manifest says."""

    path: Path
    facts: dict[str, Any]  # name, runtime, key, created, sizes of files, and where the probe is
    stamp: tuple[int, int]  # of its manifest: another one after it has been built anew
    fresh: bool = False  # whether it was not there yet when it was asked for

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.facts["files"].values())

    @property
    def refused(self) -> bool:
        """Whether it was of no use even just built."""
        return (self.path / REFUSED).exists()

    def __str__(self) -> str:
        dtype = str(self.facts["key"].get("dtype", "")).removeprefix("torch.")
        parts = (
            self.path.name,
            self.facts["runtime"],
            dtype,
            f"{self.size / 2**20:.1f} MiB",
            self.facts["created"],
        )
        return ", ".join(part for part in parts if part)


def cache_folder() -> Path:
    """Where the entries lie."""
    own = os.environ.get("DDPO3D_CACHE")
    if own:
        return Path(own).expanduser() / "engines"
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "ddpo3d-fast" / "engines"


def entries() -> list[Entry]:
    """The whole entries, by name."""
    found = [_entry(path) for path in sorted(_folders()) if not path.name.startswith(".")]
    return [entry for entry in found if entry is not None]


def clear() -> int:
    """Removes every entry, and what half-written ones left behind; returns how many whole ones there were.

    Waits for those that are being built. Raises InputError for what cannot be removed.
    """
    whole, folder = len(entries()), cache_folder()
    try:
        for path in _folders():
            with locked(_lock_of(path)):
                _remove(path)
        for lock in folder.glob(".*.lock"):
            with locked(lock):
                lock.unlink()
        for timings in folder.glob("timings-*"):  # of TensorRT's builder, for all its plans
            timings.unlink()
    except OSError as error:
        raise InputError(f"cannot clear {folder}: {error.strerror or error}") from error
    return whole


def find_or_build(
    name: str, key: dict[str, Any], build: Callable[[Path], dict[str, Any]], used: list[Entry] | None = None
) -> Path:
    """The folder of the entry for `key`, plain data that tells all it depends on; built if it is not there.

    `build` fills an empty folder, which then becomes the entry, and returns what else the manifest shall say.
    Of several processes that want the same entry one builds it, and the others wait. The entry is added to
    `used`. Raises InputError if the folder cannot be written, and what `build` raises; nothing is left behind
    then.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{digest[:16]}"
    fresh = _entry(path) is None
    if fresh:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(_lock_of(path)):
                if _entry(path) is None:
                    _remove(path)
                    _sweep()
                    _build(path, {"name": name, "key": key}, build)
        except OSError as error:
            if _entry(path) is None:  # else another one was faster, where files cannot be locked
                raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    if used is not None and (entry := _entry(path)) is not None:
        used.append(replace(entry, fresh=fresh))
    return path


def discard(used: list[Entry], again: bool = True) -> bool:
    """Removes entries that are of no use together, if they shall be built `again`; whether they shall.

    Never where all of them were just built, or were refused before: then, and without `again`, they stay,
    marked as refused, so that no run builds them in vain once more. What another process has built anew in
    the meantime stays as it is, and so does what cannot be written.
    """
    hope = again and not all(entry.fresh or entry.refused for entry in used)
    for entry in used:
        with contextlib.suppress(OSError), locked(_lock_of(entry.path)):
            now = _entry(entry.path)
            if now is None or now.stamp != entry.stamp:
                continue
            if hope:
                _remove(entry.path)
            else:
                (entry.path / REFUSED).touch()
    return hope


def _build(path: Path, facts: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> None:
    temporary = _temporary(path)
    try:
        facts |= build(temporary)
        files = {file.name: file.stat().st_size for file in temporary.iterdir()}
        facts |= {"created": time.strftime("%Y-%m-%d %H:%M:%S"), "files": files}
        (temporary / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n")
        for name in (*files, MANIFEST):
            flush(temporary / name)
        temporary.chmod(0o755)  # mkdtemp's are their maker's alone
        os.rename(temporary, path)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def fingerprint(network: Network) -> dict[str, Any]:
    """What a graph of the network depends on: weights, code, shapes. Plain data, the same in every process.

    The code is known by the classes of the module's parts, their settings and the versions of their packages.
    """
    module = network.module
    parts = {name: _settings(part) for name, part in module.named_modules()}
    packages = {type(part).__module__.partition(".")[0] for part in module.modules()}
    code = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {
        "weights": _weights(module),
        "code": code,
        "versions": {package: _version(package) for package in sorted(packages)},
        "inputs": {name: [str(t.dtype), *t.shape] for name, t in network.inputs.items()},
        "outputs": list(network.outputs),
        "dynamic": {name: list(axes) for name, axes in sorted(network.dynamic.items())},
        "gradient": network.gradient,
    }


def _weights(module: nn.Module) -> str:
    """A hash of names, dtypes, shapes and bytes of all parameters and buffers; 1 GB/s a core or more."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    tensors = {name: tensors[name] for name in sorted(tensors)}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, tensors.values()))
    whole = hashlib.sha256()
    for (name, tensor), one in zip(tensors.items(), digests, strict=True):
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode() + one)
    return whole.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    """A hash of the bytes, of which other threads can run at the same time."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).digest()


def _settings(part: nn.Module) -> dict[str, Any]:
    """The class of a module, and those of its attributes that a graph may depend on."""
    own = {name: _plain(value) for name, value in vars(part).items() if name not in _MACHINERY}
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", "settings": own}


_MACHINERY = frozenset(vars(nn.Module()))  # hooks and the like; parts and tensors stand elsewhere


def _plain(value: Any) -> Any:
    """Numbers, words and what is made of them as they are; anything else by its class or name alone.

    Of a dict without private names: in diffusers' configs they tell where a model came from.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(inside) for name, inside in value.items() if str(name)[:1] != "_"}
    if isinstance(value, (list, tuple, set, frozenset)):
        plain = [_plain(inside) for inside in value]
        return plain if isinstance(value, (list, tuple)) else sorted(map(str, plain))
    if isinstance(value, Tensor):  # neither parameter nor buffer
        return [str(value.dtype), *value.shape, _digest(value).hex()]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _version(package: str) -> str:
    """Of a package; empty for a module of the user's own."""
    return str(getattr(sys.modules.get(package), "__version__", ""))


def _entry(path: Path) -> Entry | None:
    """The entry in a folder; None where it is not whole."""
    try:
        with (path / MANIFEST).open() as file:
            facts, status = json.load(file), os.fstat(file.fileno())
        whole = all((path / name).stat().st_size == size for name, size in facts["files"].items())
        whole &= {"name", "key", "runtime", "created"} <= facts.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Entry(path, facts, (status.st_ino, status.st_mtime_ns)) if whole else None


def _folders() -> list[Path]:
    """Entries, whole or not, and folders in the making."""
    folder = cache_folder()
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _temporary(path: Path) -> Path:
    """A new empty folder beside an entry, for what it shall be or was."""
    return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))


def _lock_of(path: Path) -> Path:
    """The lock of an entry, or of the entry that a temporary folder belongs to."""
    return path.parent / f".{path.name.lstrip('.').partition('.')[0]}.lock"


def _remove(path: Path) -> None:
    """Removes a folder that may be there. An entry goes from sight first, whole."""
    if path.exists():
        shutil.rmtree(path if path.name.startswith(".") else path.rename(_temporary(path)))


def _sweep() -> None:
    """Removes what builders left behind who died: their locks are free."""
    for path in _folders():
        if path.name.startswith("."):
            with contextlib.suppress(BlockingIOError), locked(_lock_of(path), wait=False):
                _remove(path)
