"""The files that a run is made from: which were read, and what was in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

from ddpo3d_fast.errors import InputError

PIECE = 64 << 20  # bytes
_recorded: ContextVar[dict[Path, None] | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[dict[Path, None]]:
    """Collects, in order, the files that are told to `record` in the block."""
    found: dict[Path, None] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def record(path: str | Path, patterns: Iterable[str] = ("*",)) -> None:
    """Tells that what is in a file shapes the run, or in those files of a folder: for whoever reads it."""
    found, path = _recorded.get(), Path(path)
    if found is None:
        return
    inside = {file for pattern in patterns for file in path.glob(pattern)} if path.is_dir() else ()
    for file in sorted(inside) or [path]:
        if file.is_file() and not file.name.startswith("."):
            found[Path(os.path.abspath(file))] = None


def fingerprints(files: Iterable[Path]) -> dict[str, str]:
    """What tells each of these files from any other content, by its path.

    SHA-256 of its bytes; of more than 64 MiB that of the SHA-256s of its pieces of 64 MiB, so that all cores
    can share in it: 1.5 GB/s each. Raises InputError for a file that cannot be read.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            sizes = {path: path.stat().st_size for path in files}
            tasks = {
                path: [pool.submit(_digest, path, start) for start in range(0, size or 1, PIECE)]
                for path, size in sizes.items()
            }
            digests = {path: [task.result() for task in parts] for path, parts in tasks.items()}
        except OSError as error:
            raise InputError(f"cannot read {error.filename}: {error.strerror or error}") from error
    return {
        str(path): (parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()).hex()
        for path, parts in digests.items()
    }


def _digest(path: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), PIECE
    with path.open("rb") as file:
        file.seek(start)
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


def changed(old: dict[str, str], new: dict[str, str]) -> str:
    """The first of the new files that is another one than the old one of its name; empty if there is none.

    A file whose path is not among the old ones, since a folder was moved, has the name of those that are
    called like it, in folders that are called like its own.
    """
    for path, digest in new.items():
        ends = Path(path).parts[-2:]
        same_name = {old[path]} if path in old else {d for p, d in old.items() if Path(p).parts[-2:] == ends}
        if same_name and digest not in same_name:
            return path
    return ""
