"""A worker in this process: what it keeps from run to run, and how it goes on with what there is."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

import ddpo3d_fast.build as builder
from ddpo3d_fast.batch.jobs import Job
from ddpo3d_fast.batch.worker import Worker
from ddpo3d_fast.build import with_default_reward
from ddpo3d_fast.configure import preset
from ddpo3d_fast.journal import Journal
from ddpo3d_fast.kernels import get_num_threads, set_num_threads
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.settings import changed


@pytest.fixture
def worker():
    threads = get_num_threads()
    yield Worker(1)
    set_num_threads(threads)


def job(folder: Path, prompt: str = "a red ball", **schedule: int) -> Job:
    small = {"schedule": {"steps": 6, "views": 1} | schedule, "scene": {"gaussians": 50, "densify_every": 0}}
    config = changed(preset("draft", prompt), {"device": "cpu", **small})
    config = with_default_reward(dataclasses.replace(config, output=folder))
    return Job("line 1", config, folder)


def test_models_are_loaded_once_for_all_runs_that_ask_for_the_same(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[str]()
    for name in ("load_prior", "make_reward"):
        make = getattr(builder, name)
        monkeypatch.setattr(
            builder, name, lambda *words, name=name, make=make: loaded.append(name) or make(*words)
        )
    for number, prompt in enumerate(("a red ball", "a blue cube", "a green cone")):
        assert worker.make(job(tmp_path / str(number), prompt)).state == "done"
    assert loaded == ["load_prior", "make_reward"]
    # Which files a run was made from is known all the same.
    sources = [
        torch.load(tmp_path / str(n) / "checkpoint.pt", weights_only=True)["sources"] for n in range(3)
    ]
    assert sources[0] == sources[1] == sources[2] != {}
    assert (
        worker.make(job(tmp_path / "more", views=2)).state == "done"
    )  # engines may be built for their shapes
    assert loaded == ["load_prior", "make_reward"] * 2


def test_a_worker_that_was_stopped_begins_nothing(worker: Worker, tmp_path: Path) -> None:
    worker.stop()
    assert worker.make(job(tmp_path / "run")).state == "stopped"
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_stopped_goes_on_to_the_same_end(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = job(tmp_path / "whole"), job(tmp_path / "broken")
    assert worker.make(whole).state == "done"

    def note(journal, step, *figures):
        if step.number == 3:
            worker.stop()
        return noted(journal, step, *figures)

    noted = Journal.note
    monkeypatch.setattr(Journal, "note", note)
    assert worker.make(broken).state == "stopped"
    assert len((broken.folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert RunFolder(broken.folder, broken.config).progress() == "begun"
    monkeypatch.setattr(Journal, "note", noted)
    again = Worker(1)
    assert again.make(broken).state == "done"
    assert again.make(broken).state == "earlier"
    for name in ("asset.ply", "metrics.jsonl", "preview.png"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_run_is_done_where_all_of_it_is_there_and_its_own(worker: Worker, tmp_path: Path) -> None:
    made, other = job(tmp_path / "run"), job(tmp_path / "run", steps=7)
    assert RunFolder(made.folder, made.config).progress() == "none"
    assert worker.make(made).state == "done"
    assert RunFolder(made.folder, other.config).progress() == "none"
    for name in ("asset.ply", "preview.png"):  # older than the run's beginning: an older run's
        os.utime(made.folder / name, (1, 1))
        assert RunFolder(made.folder, made.config).progress() == "begun"
        assert worker.make(made).state == "done"
        (made.folder / name).unlink()
        assert RunFolder(made.folder, made.config).progress() == "begun"
        assert worker.make(made).state == "done"
    assert RunFolder(made.folder, made.config).progress() == "done"


def test_what_is_wrong_is_told_and_never_raised(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = worker.make(job(tmp_path / "wug", "a purple wug"))
    assert unknown.state == "failed"
    assert unknown.message.startswith("--prompt: the embedded prior does not know 'wug'")
    assert not (tmp_path / "wug").exists()
    damaged = job(tmp_path / "run")
    assert worker.make(damaged).state == "done"
    (damaged.folder / "checkpoint.pt").write_bytes(b"")
    (damaged.folder / "asset.ply").unlink()
    assert worker.make(damaged).state == "done"  # from the beginning

    def broken(*words):
        raise ZeroDivisionError("in the middle\nof it")

    monkeypatch.setattr(Journal, "note", broken)
    outcome = worker.make(job(tmp_path / "other"))
    assert (outcome.state, outcome.message) == ("broken", "ZeroDivisionError: in the middle")
