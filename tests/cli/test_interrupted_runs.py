"""Runs that end before their time: killed, interrupted, without room on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ddpo3d_fast.generate as loop
from ddpo3d_fast import schedule
from ddpo3d_fast.cli import main
from ddpo3d_fast.run import METRICS, results

from .conftest import Command

FILES = {"config.yaml", *results()}
WORDS = ["generate", "--prompt", "a red ball", "--preset", "draft", "--steps", "12", "--gaussians", "200"]
WORDS += ["--densify-every", "4", "--device", "cpu"]
# The command, with a checkpoint after every step.
EAGER = "import sys, ddpo3d_fast.generate as g, ddpo3d_fast.cli as c; g.CHECKPOINT_SECONDS = 0.0; "
EAGER += "sys.exit(c.main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert main([*WORDS, "--output", str(folder), "--quiet"]) == 0
    return folder


def rows(folder: Path) -> int:
    return len((folder / METRICS).read_text().splitlines()) if (folder / METRICS).exists() else 0


MOMENTS: list[Callable[[Path], bool]] = [
    lambda folder: (folder / "config.yaml").exists(),  # without a checkpoint
    lambda folder: rows(folder) >= 2,
    lambda folder: rows(folder) >= 6,
    lambda folder: any(path.name.startswith(".") for path in folder.iterdir()),  # in the middle of a file
    lambda folder: (folder / "asset.ply").exists(),
]


def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `until ddpo3d-fast generate --resume DIR; do :; done`; a dead run's lock hinders nobody."""
    folder, start = tmp_path / "run", [*WORDS, "--output", str(tmp_path / "run")]
    for moment in MOMENTS:
        with subprocess.Popen(
            [sys.executable, "-c", EAGER, *start, "--quiet"], stderr=subprocess.PIPE, text=True
        ) as run:
            while run.poll() is None and not (folder.exists() and moment(folder)):
                time.sleep(0.001)
            assert run.poll() is None, run.stderr and run.stderr.read()
            if moment is MOMENTS[1]:
                assert main(["generate", "--resume", str(folder)]) == 2
                line = capsys.readouterr().err
                assert line.startswith("ddpo3d-fast: --resume: another run")
                assert line.endswith(f" is writing to {folder}\n")
            run.send_signal(signal.SIGKILL)
        start = ["generate", "--resume", str(folder)]
    assert main([*start, "--quiet"]) == 0
    for name in ("asset.ply", METRICS, "turntable.mp4", "preview.png"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == FILES


def test_checkpoints_come_by_steps_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(loop.RunFolder, "save_checkpoint", lambda folder, state: saved.append(state["step"]))
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 5)
    assert main([*WORDS, "--output", str(tmp_path / "steps"), "--quiet"]) == 0
    assert saved == [5, 10, 12]
    saved.clear()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    assert main([*WORDS, "--output", str(tmp_path / "time"), "--quiet"]) == 0
    assert saved == list(range(1, 13))


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A limit of the system's, as any user can set it; what exceeds it is refused like on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(line: str, folder: Path) -> set[str]:
    """The files that a line says could not be written."""
    reasons = line.removeprefix("ddpo3d-fast: ").rstrip("\n").split("; ")
    names = {Path(reason.removeprefix("cannot write ").partition(":")[0]) for reason in reasons}
    assert all(reason.endswith(": File too large") for reason in reasons)
    assert {name.parent for name in names} == {folder}
    return {name.name for name in names}


def test_what_has_room_is_written_and_one_line_names_the_rest(
    unbroken: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 4)
    folder, room = tmp_path / "run", (unbroken / "asset.ply").stat().st_size
    too_large = {path.name for path in unbroken.iterdir() if path.stat().st_size > room}
    assert {"checkpoint.pt", "preview.png"} <= too_large
    with no_file_larger_than(room):
        outcome = command(*WORDS, "--output", folder, "--json")
    assert outcome.code == 2
    on_the_way, last = outcome.err.splitlines()  # one, though two checkpoints were tried
    assert on_the_way == (
        f"ddpo3d-fast: cannot write {folder / 'checkpoint.pt'}: File too large; the run goes on"
    )
    assert refused(last, folder) == too_large
    assert [json.loads(line)["stage"] for line in outcome.out.splitlines()].count("distill") == 12
    assert {path.name for path in folder.iterdir()} == FILES - too_large
    assert (folder / "asset.ply").read_bytes() == (unbroken / "asset.ply").read_bytes()


def test_after_ctrl_c_what_has_room_is_written_too(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed_in_the_third_step(*arguments: Any) -> Any:
        steps.append(len(steps) + 1)
        if steps[-1] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return timestep_at(*arguments)

    steps, timestep_at, folder = list[int](), schedule.timestep_at, tmp_path / "run"
    monkeypatch.setattr(schedule, "timestep_at", pressed_in_the_third_step)
    with no_file_larger_than(30_000):  # for 200 Gaussians the asset takes half of it, the checkpoint twice
        outcome = command(*WORDS, "--output", folder, "--quiet")
    assert outcome.code == 2
    assert "checkpoint.pt" in refused(outcome.err, folder)
    assert steps == [1, 2, 3]
    assert {path.name for path in folder.iterdir()} == FILES - refused(outcome.err, folder)
    assert (folder / "asset.ply").exists()


def test_a_full_disk_at_the_start_is_one_line(tmp_path: Path, command: Command) -> None:
    with no_file_larger_than(100):
        outcome = command(*WORDS, "--output", tmp_path / "run", "--quiet")
    assert outcome.code == 2
    assert refused(outcome.err, tmp_path / "run") == {"config.yaml"}
