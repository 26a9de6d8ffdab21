"""Whatever has a table takes a file and a line: an objective, a reward, a prior, an exporter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddpo3d_fast.assets import EXPORTERS, read_ply
from ddpo3d_fast.cli import main
from ddpo3d_fast.configure import preset
from ddpo3d_fast.generate import generate
from ddpo3d_fast.guidance import OBJECTIVES
from ddpo3d_fast.priors import PRIORS
from ddpo3d_fast.rewards import REWARDS
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.settings import Config, changed

from . import toy_exporter, toy_objective, toy_prior, toy_reward

NUMBERS = {"loss", "residual", "reward", "advantage_spread", "guide", "alpha"}


def made(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a run, and what its config.yaml says that it ran on."""
    rows: list[dict[str, Any]] = []
    generate(config, RunFolder.create(config), rows.append)
    written = yaml.safe_load((config.output / "config.yaml").read_text())
    return [row for row in rows if row["stage"] == "distill"], written["provenance"]


def small(output: Path, **changes: Any) -> Config:
    few = {"steps": 3, "views": 2, "max_timestep": 0.5}
    config = changed(preset("draft", "a red ball"), {"output": output, "device": "cpu", "schedule": few})
    return changed(config, {"scene": {"gaussians": 100}} | changes)


def test_an_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "toy", toy_objective.OBJECTIVE)
    alone = {"policy_weight": 0.0, "guide_weight": 0.0}
    rows, _ = made(small(tmp_path / "run", distillation={"residual": "toy"}, reward=alone))
    assert [(row["loss"], row["residual"]) for row in rows] == 3 * [(0.5, 1.0)]


def test_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "toy", toy_reward.KIND)
    words = ["--prompt", "a red ball", "--preset", "draft", "--steps", "3", "--gaussians", "100", "--quiet"]
    words += ["--reward", "toy@1=2", "--reward", "embedded", "--max-timestep", "0.5", "--device", "cpu"]
    assert main(["generate", *words, "--output", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row.keys() >= NUMBERS for row in rows)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["reward"]["reward"] == ["toy@1=2", "embedded"]
    assert written["provenance"]["reward"] == "2 toy + 1 embedded"
    assert written["provenance"]["reward_engine"].startswith("plain torch + ")


def test_a_prior_with_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRIORS, "toy", toy_prior.KIND)
    words = ["--prompt", "anything at all", "--model", "toy", "--device", "cpu", "--quiet"]
    assert main(["generate", *words, "--output", str(tmp_path / "run")]) == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["schedule"]["steps"] == 3
    assert written["provenance"]["engine"] == "a toy"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(EXPORTERS, "toy.txt", toy_exporter.count)
    config = small(tmp_path / "run")
    made(config)
    count = len(read_ply(tmp_path / "run" / "asset.ply").means)
    assert (tmp_path / "run" / "toy.txt").read_text() == f"{count} (8, 8, 3)\n"
    made(config)  # again, in the place of the first, whose files go


def test_all_of_them_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "toy", toy_objective.OBJECTIVE)
    monkeypatch.setitem(REWARDS, "toy", toy_reward.KIND)
    monkeypatch.setitem(PRIORS, "toy", toy_prior.KIND)
    monkeypatch.setitem(EXPORTERS, "toy.txt", toy_exporter.count)
    config = preset("standard", "anything at all", "toy")
    parts = {"distillation": {"residual": "toy"}, "reward": {"reward": ("toy",)}}
    rows, facts = made(changed(config, {"output": tmp_path / "run", "device": "cpu"} | parts))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row.keys() >= NUMBERS for row in rows[1:])
    assert (facts["engine"], facts["reward"], facts["reward_engine"]) == ("a toy", "toy", "plain torch")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"asset.ply", "toy.txt"}
