"""The files that shape a run: which they are, and what tells them from others."""

import hashlib
import os
from pathlib import Path

import pytest

from ddpo3d_fast import sources
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.sources import changed, fingerprints, record, recorded


def test_files_are_collected_once_and_as_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("folder/inner")
    for name in ("a", "folder/b.json", "folder/c.bin", "folder/.hidden", "folder/inner/d"):
        Path(name).touch()
    record("a")  # nobody asks
    with recorded() as files:
        record("a")
        record(tmp_path / "a")
        record("folder", ["*.json"])
        with recorded() as inner:
            record("folder")
        record("nowhere")
    assert list(files) == [tmp_path / "a", tmp_path / "folder/b.json"]
    assert list(inner) == [tmp_path / "folder/b.json", tmp_path / "folder/c.bin"]


def test_a_fingerprint_is_of_all_bytes(tmp_path, monkeypatch):
    """Of a small file it is the SHA-256 that other programs give; of a large one no byte is left out."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"")
    monkeypatch.setattr(sources, "PIECE", 1000)
    data = bytearray(os.urandom(4500))
    large.write_bytes(data)
    first = fingerprints([small, large])
    assert first[str(small)] == hashlib.sha256(b"").hexdigest()
    pieces = b"".join(hashlib.sha256(data[at : at + 1000]).digest() for at in range(0, 4500, 1000))
    assert first[str(large)] == hashlib.sha256(pieces).hexdigest()
    for at in (0, 999, 1000, 2500, 4499):
        data[at] ^= 1
        large.write_bytes(data)
        assert fingerprints([large])[str(large)] != first[str(large)]
        data[at] ^= 1


def test_a_file_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^cannot read .*/gone: No such file or directory$"):
        fingerprints([tmp_path / "gone"])


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({"/a/unet/w": "1", "/a/vae/w": "2"}, ""),
        ({"/a/unet/w": "2", "/a/vae/w": "1"}, "/a/unet/w"),
        ({"/a/unet/w": "1", "/a/vae/w": "3"}, "/a/vae/w"),
        ({"/b/unet/w": "1", "/b/vae/w": "2"}, ""),  # the folder was moved
        ({"/b/unet/w": "3", "/b/vae/w": "2"}, "/b/unet/w"),
        ({"/a/unet/w.fp16": "4"}, ""),  # on another device a file of another name may be read
    ],
)
def test_another_file_of_the_same_name_is_named(new, expected):
    assert changed({"/a/unet/w": "1", "/a/vae/w": "2"}, new) == expected
