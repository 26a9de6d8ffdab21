"""A reward's name with absolute paths: the same reward from every working directory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards import absolute_reward, make_reward, parse_rewards
from ddpo3d_fast.sources import recorded

BRIGHT = "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "v=2"
    for folder in ("clip", "package"):
        (work / folder).mkdir(parents=True)
    for name in ("my_rewards.py", "package/__init__.py", "package/inner.py"):
        (work / name).write_text(BRIGHT)
    for name in ("predictor.pth", "weights.pt"):
        (work / name).touch()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield work
    for name in ("my_rewards", "package", "package.inner", "late_helper"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("spec", "absolute"),
    [
        ("embedded", "embedded"),
        ("embedded=0.5", "embedded=0.5"),
        ("aesthetic", "aesthetic"),
        ("clip=2", "clip=2"),
        ("clip@ViT-B-32:openai", "clip@ViT-B-32:openai"),
        ("clip@hf-hub:owner/name=0.5", "clip@hf-hub:owner/name=0.5"),
        ("pickscore@owner/name", "pickscore@owner/name"),
        ("hps@nowhere.pt", "hps@nowhere.pt"),
        ("clip@clip=0.3", "clip@HERE/clip=0.3"),
        ("clip@./clip", "clip@HERE/clip=1"),  # without a weight, the folder's own =2 would be one
        ("clip@ViT-B-32:weights.pt=2", "clip@ViT-B-32:HERE/weights.pt=2"),
        ("hps@~/weights.pt=-1", "hps@HERE/weights.pt=-1"),
        ("aesthetic@predictor.pth=1e-3", "aesthetic@HERE/predictor.pth=1e-3"),
        ("my_rewards:bright=0.5", "HERE/my_rewards:bright=0.5"),
        ("my_rewards.py:bright=1", "HERE/my_rewards:bright=1"),
        ("./my_rewards.py:bright=1", "HERE/my_rewards:bright=1"),
        ("package:bright=1", "HERE/package:bright=1"),
        ("package.inner:bright=1", "HERE/package.inner:bright=1"),
        ("nowhere:bright", "nowhere:bright"),
        ("json:loads=2", "json:loads=2"),
    ],
)
def test_what_is_on_this_machine_is_named_by_its_absolute_path(work: Path, spec: str, absolute: str) -> None:
    absolute = absolute.replace("HERE", str(work))
    assert absolute_reward(spec) == absolute
    assert absolute_reward(absolute) == absolute
    assert parse_rewards([absolute])[0][1] == parse_rewards([spec])[0][1]


@pytest.mark.parametrize("name", ["my_rewards:bright", "package.inner:bright", "./my_rewards.py:bright"])
def test_a_function_is_found_from_everywhere(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    absolute, images = absolute_reward(name), torch.rand(2, 3, 4, 4)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert make_reward([absolute]).score(images, ["", ""]).tolist() == images.mean((1, 2, 3)).tolist()
    assert sys.path[: len(before)] == before


def test_modules_beside_it_are_found_when_it_is_called_and_known_as_files_of_the_run(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "late_helper.py").write_text("DARK = -1\n")
    (work / "package/inner.py").write_text(
        "import sys\n\nsys.path.pop(0)\n\ndef bright(images, prompts):\n    import late_helper\n\n"
        "    return late_helper.DARK * images.mean((1, 2, 3))\n"
    )
    (work / "my_rewards.py").write_text("from package.inner import bright\n")
    images, absolute = torch.rand(2, 3, 4, 4), absolute_reward("my_rewards:bright")
    monkeypatch.chdir(tmp_path)
    with recorded() as files:
        reward = make_reward([absolute])
    sys.modules.pop("late_helper")
    assert reward.score(images, ["", ""]).tolist() == (-images.mean((1, 2, 3))).tolist()
    assert {*files} == {work / name for name in ("my_rewards.py", "package/__init__.py", "package/inner.py")}


def test_a_module_of_the_same_name_elsewhere_does_not_take_its_place(work: Path, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(BRIGHT)
    make_reward([absolute_reward("my_rewards:bright")])
    with pytest.raises(InputError, match=rf"'my_rewards' is another module here, {work / 'my_rewards.py'}"):
        make_reward([f"{tmp_path / 'my_rewards'}:bright"])
