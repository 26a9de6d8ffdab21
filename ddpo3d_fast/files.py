"""The one place that writes files, which appear whole or not at all, that locks them, and that reads JSON."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddpo3d_fast.errors import InputError, first_line


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
    temporary = temporary_path(path)
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


def temporary_path(path: Path) -> Path:
    """Another new path beside this one, of its suffix."""
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


def is_temporary(path: Path, of: Path) -> bool:
    """Whether a path is one of `temporary_path`'s for another; if nobody writes, left by who was killed."""
    return re.fullmatch(rf"\.{re.escape(of.stem)}-[0-9a-f]{{8}}{re.escape(of.suffix)}", path.name) is not None


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Writes a file atomically; see `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file with \\n line ends atomically; see `atomic_path`."""
    write_bytes(path, text.encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A file's JSON, a mapping. Raises InputError that names the file, and `what` it should hold."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected {what} as JSON ({first_line(error)})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected {what}, a mapping, got {type(data).__name__}")
    return data


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_each(*writes: Callable[[], object]) -> None:
    """Writes one file after the other, whether or not those before it could be written.

    Raises InputError, one line, for those that could not.
    """
    failures = []
    for write in writes:
        try:
            write()
        except InputError as error:
            failures.append(str(error))
    if failures:
        raise InputError("; ".join(failures))


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Keeps other processes out of the same block; the system frees the lock of one that dies.

    Locks a folder itself, without a file in it, or else a file, which is made. Where the file system has no
    locks (for folders: NFS), nobody is kept out.

    Raises:
        BlockingIOError: another process is in the block, or another thread, and not to `wait`.
        OSError: `path` cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                logging.getLogger("ddpo3d_fast").info("%s cannot be locked: %s", path, error.strerror)
            if not _is_at(descriptor, path):
                continue  # it was removed while this one waited
            yield
            return
        finally:
            os.close(descriptor)


# What flock says where there are no locks; EBADF: NFS, of what is not open for writing.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def locker(path: Path) -> int | None:
    """The process that has locked a path, as far as the system tells."""
    try:
        status, lines = path.stat(), Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = [words for words in map(str.split, lines) if words[1:2] == ["FLOCK"] and place in words]
    return next((int(words[4]) for words in found if int(words[4]) > 0), None)
