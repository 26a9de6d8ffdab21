"""The one place that writes files: they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ddpo3d_fast.errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and renames it to `path` when the block ends well.

    The temporary path has the suffix of `path`, so that writers which go by it do the right thing. The data
    are on the disk before the rename. When the block raises, Ctrl-C included, nothing is left behind and an
    older file at `path` stays as it was. Missing folders are made.

    Raises:
        InputError: the file cannot be written; one line with the path and the system's reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file atomically; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file with \\n line ends atomically; see `atomic_path`."""
    write_bytes(path, text.encode())


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
