"""Files appear whole or not at all, and a lock keeps others out."""

import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import atomic_path, locked, locker, write_bytes, write_each, write_text


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


def test_what_can_be_written_is_and_the_rest_is_one_line(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError) as caught:
        write_each(
            lambda: write_text(blocker / "first", "x"),
            lambda: write_text(tmp_path / "second", "x"),
            lambda: write_text(blocker / "third", "x"),
        )
    lines = [f"cannot write {blocker / name}: File exists" for name in ("first", "third")]
    assert str(caught.value) == "; ".join(lines)
    assert (tmp_path / "second").read_text() == "x"


HOLD = """
import pathlib, sys, time
from ddpo3d_fast.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_lock_keeps_other_processes_out_until_the_one_that_has_it_dies(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pass
        if Path("/proc/locks").exists():
            assert locker(path) == holder.pid
        holder.kill()
    with locked(path, wait=False):
        pass
    assert os.listdir(tmp_path) == ([] if kind == "folder" else ["lock"])
    assert locker(path) is None


def test_a_lock_of_what_was_removed_meanwhile_is_taken_anew(tmp_path):
    path = tmp_path / "lock"
    with concurrent.futures.ThreadPoolExecutor() as pool:

        def second() -> bool:
            with locked(path):
                return path.exists()

        with locked(path):
            waiting = pool.submit(second)
            time.sleep(0.1)
            path.unlink()
        assert waiting.result()
