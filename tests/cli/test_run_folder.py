"""The run folder: what is written comes back, damage is named, and making one leaves no trace."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ddpo3d_fast import __version__
from ddpo3d_fast.configure import from_dict, preset
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import temporary_path
from ddpo3d_fast.run import RunFolder, read_config, results, slug
from ddpo3d_fast.settings import Config, to_dict


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
        ("a red mushroom", "a-red-mushroom"),
        ("красный гриб", "красный-гриб"),
        ("A red mushroom!", "a-red-mushroom-901b26e2"),
        ("../../etc/passwd", "etc-passwd-3754d6cb"),
        ("...", "asset-ab5df625"),
        ("a " * 100, "a-" * 29 + "a-908438ae"),
    ],
)
def test_any_prompt_is_a_file_name(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_no_two_prompts_have_the_same_name() -> None:
    long = "a very long prompt " * 5
    ends = [long + "ripe strawberry", long + "green apple"]
    marks = [
        "🍄",
        "🍎",
        "!",
        "?",
        "a cube",
        "A cube",
        "a  cube",
        "a-cube",
        "a cube!",
        "a 🍎 cube",
        "हिन्दी",
        "हन्दी",
    ]
    assert len({slug(prompt) for prompt in ends + marks}) == len(ends + marks)


@pytest.mark.parametrize("letter", ["a", "б", "木", "𐌰"])
def test_names_of_any_alphabet_are_ones_that_file_systems_take(letter: str, work: Path) -> None:
    name = f"{slug(letter * 1000)}-{2**32 - 1}-9999"
    assert len(name.encode()) <= 255 - len(".-12345678")
    (work / name).mkdir()


def test_making_a_folder_leaves_no_trace(config: Config, work: Path) -> None:
    RunFolder.create(config)
    assert list(work.iterdir()) == []


def test_settings_come_back_with_their_provenance_beside_them(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    with folder.claimed():
        folder.begin(config, {"engine": "ONNX Runtime"})
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
    with folder.claimed():
        folder.begin(config, {})
    state = {"step": 3, "gaussians": {"means": torch.arange(6.0)}, "rewards": [0.25, 0.5]}
    folder.save_checkpoint(state)
    loaded = RunFolder.open(folder.path).load_checkpoint()
    assert loaded["step"] == 3
    assert loaded["rewards"] == [0.25, 0.5]
    assert torch.equal(loaded["gaussians"]["means"], state["gaussians"]["means"])


def test_an_opened_folder_may_have_been_moved(config: Config, work: Path) -> None:
    folder = RunFolder.create(dataclasses.replace(config, output=work / "here"))
    with folder.claimed():
        folder.begin(folder.config, {})
    folder.save_checkpoint({"step": 3})
    folder.path.rename(work / "there")
    moved = RunFolder.open(work / "there")
    assert moved.path == work / "there"
    assert moved.load_checkpoint() == {"step": 3}


def test_more_steps_fit_a_checkpoint_and_another_seed_does_not(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    with folder.claimed():
        folder.begin(config, {})
    folder.save_checkpoint({"step": 3})
    longer = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=100))
    assert RunFolder(folder.path, longer).load_checkpoint() == {"step": 3}
    with pytest.raises(InputError, match="made with another seed"):
        RunFolder(folder.path, dataclasses.replace(config, seed=6)).load_checkpoint()


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", b"PK\x03\x04 half an archive"])
def test_a_damaged_checkpoint_is_named(config: Config, work: Path, damage: bytes) -> None:
    folder = RunFolder.create(config)
    with folder.claimed():
        folder.begin(config, {})
    (folder.path / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(InputError, match=r"--resume: .*checkpoint.pt is damaged") as caught:
        folder.load_checkpoint()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cannot_run_code(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    with folder.claimed():
        folder.begin(config, {})
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


def begun(config: Config, **changes: Any) -> Path:
    """The folder of a run that has left something of everything."""
    config = dataclasses.replace(config, **changes)
    folder = RunFolder.create(config)
    with folder.claimed():
        folder.begin(config, {})
        for name in results():
            (folder.path / name).write_text("old")
    return folder.path


def test_the_default_folder_is_the_first_that_is_free_or_holds_the_same_run(
    config: Config, work: Path
) -> None:
    name = "outputs/a-red-mushroom-5"
    assert begun(config) == Path(name)
    other = dataclasses.replace(config.reward, guide_weight=0.5)
    longer = dataclasses.replace(config.schedule, steps=8)
    assert begun(config, reward=other) == Path(f"{name}-2")
    assert begun(config, schedule=longer) == Path(f"{name}-3")
    assert begun(config) == Path(name)
    assert begun(config, schedule=longer) == Path(f"{name}-3")
    (work / f"{name}-2" / "config.yaml").write_text("prompt: [")
    assert begun(config, reward=other) == Path(f"{name}-4")
    assert RunFolder.create(dataclasses.replace(config, reward=other), overwrite=True).path == Path(name)


def test_a_named_folder_loses_a_run_of_another_configuration_only_when_told(
    config: Config, work: Path
) -> None:
    path = begun(config, output=Path("mine"))
    other = dataclasses.replace(config, seed=6, output=path)
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(InputError, match=r"^--output: mine holds a run with another --seed: .*--overwrite$"):
        RunFolder.create(other)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    folder = RunFolder.create(other, overwrite=True)
    with folder.claimed():
        folder.begin(other, {})
    assert [file.name for file in path.iterdir()] == ["config.yaml"]
    assert read_config(path / "config.yaml", "").seed == 6


def test_a_folder_is_the_same_run_wherever_it_lies(config: Config, work: Path) -> None:
    begun(config).rename("mine")
    assert RunFolder.create(dataclasses.replace(config, output=work / "mine")).path == work / "mine"


def test_at_no_moment_are_there_results_of_another_configuration(
    config: Config, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call it is killed after: while there are results, the configuration is theirs; and without
    its checkpoint nothing goes on from the rest."""
    path = begun(config, output=Path("mine"))
    states = []

    def spy(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            left = {name for name in results() if (path / name).exists()}
            states.append((read_config(path / "config.yaml", "").seed, left))
            return result

        return call

    other = dataclasses.replace(config, seed=6, output=path)
    folder = RunFolder.create(other, overwrite=True)
    with folder.claimed(), monkeypatch.context() as patch:
        for name in ("unlink", "replace", "rename"):
            patch.setattr(os, name, spy(getattr(os, name)))
        folder.begin(other, {})
    assert [left for seed, left in states if seed == 6 and left] == []
    assert [len(left) for seed, left in states if seed == 5] == [4, 3, 2, 1, 0]
    assert all("checkpoint.pt" not in left for _, left in states)
    assert states[-1] == (6, set())


def test_a_run_that_another_has_begun_in_the_meantime_is_not_lost(config: Config, work: Path) -> None:
    slow = dataclasses.replace(config, seed=6, output=Path("mine"))
    folder = RunFolder.create(slow)
    path = begun(config, output=Path("mine"))
    with folder.claimed(), pytest.raises(InputError, match="--output: mine holds a run with another --seed"):
        folder.begin(slow, {})
    assert {file.name for file in path.iterdir()} == {"config.yaml", *results()}


def test_only_one_run_writes_to_a_folder(config: Config, work: Path) -> None:
    path = begun(config)
    with RunFolder.create(config).claimed():
        for second, argument in ((RunFolder.create(config), "--output"), (RunFolder.open(path), "--resume")):
            with (
                pytest.raises(
                    InputError, match=rf"^{argument}: another run.* is writing to {path}$"
                ) as caught,
                second.claimed(),
            ):
                pass
            if Path("/proc/locks").exists():
                assert f"process {os.getpid()}," in str(caught.value)
    with RunFolder.open(path).claimed():
        assert sorted(file.name for file in path.iterdir()) == sorted(["config.yaml", *results()])


def test_of_two_runs_that_make_the_same_folder_one_goes_on(config: Config, work: Path) -> None:
    first, second = RunFolder.create(config), RunFolder.create(config)
    with first.claimed(), second.claimed():
        first.begin(config, {})
        with pytest.raises(InputError, match="another run"):
            second.begin(config, {})


def test_runs_that_begin_beside_each_other_do_not_disturb_each_other(
    config: Config, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, mkdir = RunFolder.create(dataclasses.replace(config, output=Path("new/first"))), Path.mkdir

    def begin_before(path: Path, *settings: Any, **named: Any) -> None:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        first.begin(first.config, {})
        path.mkdir(*settings, **named)

    monkeypatch.setattr(Path, "mkdir", begin_before)
    RunFolder.create(dataclasses.replace(config, output=Path("new/second")))
    assert sorted(Path().rglob("*")) == [Path("new"), Path("new/first"), Path("new/first/config.yaml")]


def test_a_run_that_begins_where_another_looks_is_no_error(
    config: Config, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "mine").mkdir()
    first, touch = RunFolder.create(dataclasses.replace(config, output=Path("mine"))), Path.touch

    def begin_after(path: Path) -> None:
        touch(path)
        first.begin(first.config, {})

    monkeypatch.setattr(Path, "touch", begin_after)
    RunFolder.create(first.config)
    assert [path.name for path in Path("mine").iterdir()] == ["config.yaml"]


def test_a_path_may_go_up_from_what_is_not_there_yet(config: Config, work: Path) -> None:
    RunFolder.create(dataclasses.replace(config, output=Path("new/../mine")))
    assert not list(work.iterdir())


def test_where_there_are_no_locks_a_run_goes_on(
    config: Config, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert begun(config).is_dir()
    assert begun(config).is_dir()


def test_what_a_killed_run_has_left_of_a_file_is_no_foreign_file_and_goes(config: Config, work: Path) -> None:
    path = Path("mine")
    path.mkdir()
    for name in ("config.yaml", "asset.ply", "probe"):
        temporary_path(path / name).write_text("half")
    assert begun(config, output=path) == path
    assert sorted(file.name for file in path.iterdir()) == sorted(["config.yaml", *results()])
    (path / "config.yaml").unlink()
    (path / ".asset-notes.ply").write_text("not to be touched")
    with pytest.raises(
        InputError, match=r"expected an empty folder or an older run, got mine with .asset-notes"
    ):
        RunFolder.create(dataclasses.replace(config, output=path))


def test_a_checkpoint_goes_on_with_the_files_that_it_was_made_with(config: Config, work: Path) -> None:
    weights, other = work / "lora" / "style.safetensors", work / "unet" / "style.safetensors"
    for path in (weights, other):
        path.parent.mkdir()
        path.write_bytes(b"as they were")
    folder = RunFolder.create(config)
    with folder.claimed():
        folder.begin(config, {})
    folder.identify([weights, other])
    folder.save_checkpoint({"step": 3})

    def resume(*files: Path) -> None:
        again = RunFolder.open(folder.path)
        assert again.load_checkpoint() == {"step": 3}
        again.identify(files)

    resume(weights, other)
    (work / "moved").mkdir()
    weights.parent.rename(work / "moved" / "lora")
    resume(work / "moved" / "lora" / "style.safetensors", other)
    other.write_bytes(b"other weights")
    with pytest.raises(
        InputError, match=rf"^--resume: {other} is not the file that .*checkpoint.pt was made"
    ):
        resume(work / "moved" / "lora" / "style.safetensors", other)


def test_without_a_checkpoint_there_is_no_state(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    with folder.claimed():
        folder.begin(config, {})
    assert RunFolder.open(folder.path).load_checkpoint() is None


def test_metrics_end_with_the_checkpoints_step(config: Config, work: Path) -> None:
    folder = RunFolder.create(config)
    folder.write_metrics([{"step": 1}, {"step": 4}, {"step": 5}])
    assert folder.read_metrics(until=4) == [{"step": 1}, {"step": 4}]
