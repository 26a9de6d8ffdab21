"""Files appear whole or not at all."""

import os

import pytest

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import atomic_path, write_bytes, write_text


def test_a_file_appears_with_its_content_and_its_folders(tmp_path):
    write_text(tmp_path / "a" / "b" / "note.txt", "naïve\n")
    assert (tmp_path / "a" / "b" / "note.txt").read_bytes() == "naïve\n".encode()
    write_bytes(tmp_path / "a" / "raw", b"\x00\xff")
    assert (tmp_path / "a" / "raw").read_bytes() == b"\x00\xff"


def test_the_path_does_not_exist_before_the_block_has_ended(tmp_path):
    target = tmp_path / "out.png"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
    assert os.listdir(tmp_path) == ["out.png"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_broken_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "out.txt"
    target.write_text("old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_unwritable_places_are_one_line_with_the_path(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    cases = {blocker / "below" / "x.txt": "Not a directory", tmp_path: "it is a folder"}
    cases[tmp_path / ("n" * 300)] = "File name too long"
    for path, reason in cases.items():
        with pytest.raises(InputError, match=reason) as caught:
            write_text(path, "x")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]
