"""Batches on a real Ray: whatever happens to workers and to the command, no run is lost or another."""

from __future__ import annotations

import contextlib
import csv
import html.parser
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import IO, Any

import pytest
from interrupts import heed_interrupts
from PIL import Image

from ddpo3d_fast.cli import main
from ddpo3d_fast.run import results

pytest.importorskip("ray", reason="ray is not installed: pip install 'ddpo3d-fast[cluster]'")
RUN_FILES = {"config.yaml", *results()}
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, in either family
SMALL = "preset: draft\ndevice: cpu\nschedule: {steps: 12}\nscene: {gaussians: 200, densify_every: 4}\n"


class Ended:
    """A batch of good and bad runs that has ended: its folder, and what was told of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        done = command(folder, "runs.yaml", "--output", "out", "--json")
        self.code, self.err = done.returncode, done.stderr
        *rows, self.last = [json.loads(line) for line in done.stdout.splitlines()]
        self.rows = {row["folder"]: row for row in rows}


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ddpo3d_fast", "batch", *words],
        cwd=folder,
        env=os.environ | {"FAULTS": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("batch")
    shutil.copy(Path(__file__).with_name("faults.py"), folder)
    runs = """runs:
  - {prompt: a blue cube, reward: {reward: ["faults:dies_once"]}}
  - {prompt: a green cone, reward: {reward: ["faults:dies"]}}
  - {prompt: a yellow cube, reward: {reward: ["faults:fills"]}}
  - a purple wug
  - {prompt: a red ball, seed: 0-1}
"""
    (folder / "runs.yaml").write_text(SMALL + runs)
    return Ended(folder)


DONE = ("a-blue-cube-0", "a-red-ball-0", "a-red-ball-1")


def test_every_good_run_is_as_generate_makes_it(ended: Ended, tmp_path: Path) -> None:
    """The one whose worker was killed in the middle, too: another goes on with its checkpoint."""
    assert (ended.folder / "died").exists()
    for name in DONE:
        config = ended.output / name / "config.yaml"
        assert main(["generate", "--config", str(config), "--output", str(tmp_path / name), "--quiet"]) == 0
        assert {path.name for path in (ended.output / name).iterdir()} == RUN_FILES
        for file in ("asset.ply", "metrics.jsonl", "preview.png", "turntable.mp4"):
            assert (ended.output / name / file).read_bytes() == (tmp_path / name / file).read_bytes()


def test_a_bad_run_costs_itself_and_is_named_at_the_end(ended: Ended) -> None:
    assert ended.code == 1
    assert {name: row["state"] for name, row in ended.rows.items()} == {
        **dict.fromkeys(DONE, "done"),
        **dict.fromkeys(("a-green-cone-0", "a-yellow-cube-0", "a-purple-wug-0"), "failed"),
    }
    lines = sorted(line for line in ended.err.splitlines() if " wug" in line or "seed" in line)
    assert len(lines) == 3
    assert lines[0].startswith("ddpo3d-fast: run 2, 'a green cone', seed 0: its worker died (")
    assert lines[0].endswith(", 3 times")
    assert (ended.folder / "deaths").read_text() == "xxx"
    assert lines[1].startswith("ddpo3d-fast: run 3, 'a yellow cube', seed 0: cannot write ")
    assert lines[1].endswith("No space left on device")
    assert lines[2].startswith("ddpo3d-fast: run 4, 'a purple wug', seed 0: --prompt: the embedded prior")
    assert (ended.last["runs"], ended.last["done"], ended.last["failed"]) == (6, 3, 3)


def test_the_summary_has_every_run(ended: Ended) -> None:
    with (ended.output / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["folder"], row["state"]) for row in rows] == [
        ("a-blue-cube-0", "done"),
        ("a-green-cone-0", "failed"),
        ("a-yellow-cube-0", "failed"),
        ("a-purple-wug-0", "failed"),
        ("a-red-ball-0", "done"),
        ("a-red-ball-1", "done"),
    ]
    last = json.loads((ended.output / "a-red-ball-1" / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(rows[5]["loss"]) == pytest.approx(last["loss"], rel=1e-3)
    assert (int(rows[5]["steps"]), int(rows[5]["gaussians"])) == (12, last["gaussians"])
    assert float(rows[5]["seconds"]) > 0
    with Image.open(ended.output / "contact-sheet.png") as sheet:
        assert sheet.size == (2 * 260 + 4, 2 * 260 + 4)


def test_the_page_needs_nothing_but_the_folders_beside_it(ended: Ended) -> None:
    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, Any]]) -> None:
            tags.append(tag)
            links.extend(value for name, value in attributes if name in ("href", "src"))

    tags, links = list[str](), list[str]()
    text = (ended.output / "summary.html").read_text(encoding="utf-8")
    Links().feed(text)
    assert tags.count("article") == 6
    assert tags.count("img") == 3
    assert not {"script", "link", "iframe"} & set(tags)
    assert links
    assert all((ended.output / urllib.parse.unquote(link)).is_file() for link in links)
    assert "purple wug" in text


def test_what_is_done_is_not_made_again(ended: Ended, tmp_path: Path) -> None:
    """Nor is Ray started for it; a run of other settings is another."""
    (ended.folder / "good.yaml").write_text(SMALL + "runs: [{prompt: a red ball, seed: 0-1}]\n")
    files = [path for name in DONE for path in (ended.output / name).iterdir()]
    before = {path: path.stat().st_mtime_ns for path in files}
    began = time.perf_counter()
    done = command(ended.folder, "good.yaml", "--output", "out", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.perf_counter() - began < 20
    assert {path: path.stat().st_mtime_ns for path in files} == before
    with (ended.output / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done"]
    assert [float(row["seconds"]) for row in rows] == [
        float(ended.rows[row["folder"]]["seconds"]) for row in rows
    ]


def open_to(pid: int) -> set[str]:
    """The addresses, as the system writes them, on which a process and those that it has started listen."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    sockets = set()
    for member in family:
        for descriptor in Path(f"/proc/{member}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(descriptor))
    tables = [Path(f"/proc/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]
    return {
        words[1].partition(":")[0]
        for words in map(str.split, itertools.chain(*tables))
        if words[3] == "0A" and f"socket:[{words[9]}]" in sockets
    }


def rows_until(stream: IO[str], done: int) -> list[dict[str, Any]]:
    """What a batch tells, up to the run that is the `done`th to be done."""
    rows: list[dict[str, Any]] = []
    for line in stream:
        rows.append(json.loads(line))
        if sum(row.get("state") == "done" for row in rows) == done:
            break
    return rows


def test_a_batch_that_is_interrupted_and_killed_loses_nothing(tmp_path: Path) -> None:
    """Ctrl-C, then SIGKILL, then left alone: all runs are whole, and no other machine is listened to."""
    (tmp_path / "runs.yaml").write_text(SMALL + "runs: [{prompt: a red ball, seed: 0-7}]\n")
    words = [sys.executable, "-m", "ddpo3d_fast", "batch", "runs.yaml", "--output", "out", "--json"]
    whole: dict[Path, int] = {}
    folders = [tmp_path / "out" / f"a-red-ball-{seed}" for seed in range(8)]
    for end in (signal.SIGINT, signal.SIGKILL, None):
        # Those that are there are told at once, before Ray begins; and Ray ends with the last run.
        there = sum((folder / "turntable.mp4").exists() for folder in folders)
        with subprocess.Popen(
            words,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts,
        ) as batch:
            assert batch.stdout is not None
            told = rows_until(batch.stdout, there + 1 if end else len(folders) + 1)
            if end is not None:
                assert open_to(batch.pid) == LOOPBACK
                batch.send_signal(end)
            _, err = batch.communicate()
        assert all(path.stat().st_mtime_ns == when for path, when in whole.items()), "made again"
        whole |= {
            path: path.stat().st_mtime_ns
            for row in told
            if row.get("state") == "done"
            for path in (tmp_path / "out" / row["folder"]).iterdir()
        }
        if end is signal.SIGINT:
            assert batch.returncode == 130
            assert err.splitlines()[-1].startswith("ddpo3d-fast: interrupted: ")
            assert err.splitlines()[-1].endswith(" of 8 runs are done in out; the same command goes on")
            assert "Traceback" not in err
    assert batch.returncode == 0
    assert all({path.name for path in folder.iterdir()} == RUN_FILES for folder in folders)
    assert (
        main(
            [
                "generate",
                "--config",
                str(folders[5] / "config.yaml"),
                "--output",
                str(tmp_path / "one"),
                "--quiet",
            ]
        )
        == 0
    )
    assert (tmp_path / "one" / "asset.ply").read_bytes() == (folders[5] / "asset.ply").read_bytes()
    assert len({(folder / "asset.ply").read_bytes() for folder in folders}) == len(folders)
