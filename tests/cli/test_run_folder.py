"""The run folder: what is written comes back, damage is named, and making one leaves no trace."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import yaml

from ddpo3d_fast import __version__
from ddpo3d_fast.config import Config, from_dict, preset, to_dict
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.run import RunFolder, read_config, slug


@pytest.fixture
def config() -> Config:
    changed = preset("high", "a red mushroom")
    schedule = dataclasses.replace(changed.schedule, steps=7, render_scales=(1.0, 2.0, 3.0), max_timestep=0.9)
    reward = dataclasses.replace(changed.reward, reward=("embedded=0.5", "mine:score"), guide_weight=1e-5)
    return dataclasses.replace(changed, seed=5, schedule=schedule, reward=reward)


def test_the_path_is_made_of_prompt_and_seed(config: Config, work: Path) -> None:
    assert RunFolder.create(config).path == Path("outputs/a-red-mushroom-5")
    assert RunFolder.create(dataclasses.replace(config, output=Path("mine"))).path == Path("mine")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red mushroom!", "a-red-mushroom"),
        ("../../etc/passwd", "etc-passwd"),
        ("красный гриб", "красный-гриб"),
        ("...", "asset"),
        ("a " * 100, "a-" * 29 + "a"),
    ],
)
def test_any_prompt_is_a_file_name(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_making_a_folder_leaves_no_trace(config: Config, work: Path) -> None:
    RunFolder.create(config)
    assert list(work.iterdir()) == []


def test_settings_come_back_with_their_provenance_beside_them(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    folder.write_config(config, {"engine": "ONNX Runtime"})
    written = yaml.safe_load((folder.path / "config.yaml").read_text())
    assert written["provenance"].keys() == {"version", "torch", "machine", "engine"}
    assert written["provenance"]["version"] == __version__
    assert written["provenance"]["torch"] == torch.__version__
    assert read_config(folder.path / "config.yaml", "--config") == config


def test_every_setting_survives_yaml(config: Config) -> None:
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_numbers_without_a_point_are_read_from_yaml(work: Path) -> None:
    (work / "a.yaml").write_text(
        "prompt: a cube\nscene: {means_rate: 1e-3}\ndistillation: {guidance_scale: 7}\n"
    )
    config = read_config("a.yaml", "--config")
    assert config.scene.means_rate == 1e-3
    assert config.distillation.guidance_scale == 7.0


def test_a_checkpoint_comes_back(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    folder.write_config(config, {})
    state = {"step": 3, "gaussians": {"means": torch.arange(6.0)}, "rewards": [0.25, 0.5]}
    folder.save_checkpoint(state)
    loaded = RunFolder.open(folder.path).load_checkpoint()
    assert loaded["step"] == 3
    assert loaded["rewards"] == [0.25, 0.5]
    assert torch.equal(loaded["gaussians"]["means"], state["gaussians"]["means"])


def test_an_opened_folder_may_have_been_moved(config: Config, work: Path) -> None:
    folder = RunFolder.create(dataclasses.replace(config, output=work / "here"))
    folder.write_config(folder.config, {})
    folder.save_checkpoint({"step": 3})
    folder.path.rename(work / "there")
    moved = RunFolder.open(work / "there")
    assert moved.path == work / "there"
    assert moved.load_checkpoint() == {"step": 3}


def test_more_steps_fit_a_checkpoint_and_another_seed_does_not(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    folder.write_config(config, {})
    folder.save_checkpoint({"step": 3})
    longer = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=100))
    assert RunFolder(folder.path, longer).load_checkpoint() == {"step": 3}
    with pytest.raises(InputError, match="made with another seed"):
        RunFolder(folder.path, dataclasses.replace(config, seed=6)).load_checkpoint()


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", b"PK\x03\x04 half an archive"])
def test_a_damaged_checkpoint_is_named(config: Config, work: Path, damage: bytes) -> None:
    folder = RunFolder.create(config)
    folder.write_config(config, {})
    (folder.path / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(InputError, match=r"--resume: .*checkpoint.pt is damaged") as caught:
        folder.load_checkpoint()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cannot_run_code(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    folder.write_config(config, {})
    torch.save({"config": {}, "state": {"step": Path("an object")}}, folder.path / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged"):
        folder.load_checkpoint()


def test_metrics_come_back_and_infinity_is_null(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    assert folder.read_metrics() == []
    folder.write_metrics([{"step": 1, "loss": 0.5}, {"step": 2, "loss": math.inf}])
    assert folder.read_metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]


@pytest.mark.parametrize("text", ['{"step": 1}\n{"st', "[1, 2]\n"])
def test_damaged_metrics_are_named(config: Config, work: Path, text: str) -> None:
    folder = RunFolder.create(config)
    folder.path.mkdir(parents=True)
    (folder.path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged"):
        folder.read_metrics()


def test_files_are_those_that_exist(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    assert folder.files() == []
    folder.write_metrics([])
    assert folder.files() == [folder.path / "metrics.jsonl"]


def test_an_older_run_may_be_overwritten(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    folder.write_config(config, {})
    assert RunFolder.create(config).path == folder.path
