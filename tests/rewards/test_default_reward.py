"""What judges where no reward is named, beside every kind of model."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from small_clip import CONFIGS, predictor_v2, put_in_hub_cache, save

from ddpo3d_fast.assets import EXPORTERS
from ddpo3d_fast.build import with_default_reward
from ddpo3d_fast.cli import main
from ddpo3d_fast.configure import preset
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import FallbackWarning
from ddpo3d_fast.rewards.aesthetic import PREDICTORS, is_at_hand
from ddpo3d_fast.run import RunFolder, read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Stable Diffusion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "priors")
        from small_stable_diffusion import save_pipeline

        return save_pipeline("sd15", tmp_path_factory.mktemp("stable-diffusion") / "sd15")


@pytest.fixture
def clip_cached(offline, tmp_path, monkeypatch):
    """CLIP in the hub's cache, with a small architecture in place of OpenAI's ViT-L/14."""
    factory = library("open_clip.factory", "test")
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-L-14-quickgelu", CONFIGS["vit"] | {"quick_gelu": True})
    files = save(tmp_path / "clip", CONFIGS["vit"]).iterdir()
    put_in_hub_cache(offline, "timm/vit_large_patch14_clip_224.openai", *files)


@pytest.fixture
def predictor_cached(offline):
    """The predictor in torch's hub cache."""
    cached = offline.parent / "torch" / "checkpoints" / PREDICTORS["aesthetic"][0]
    cached.parent.mkdir(parents=True)
    torch.save(predictor_v2(24)[1], cached)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No turntable: that of other tests will do."""
    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))


def generate(folder, output, *words):
    line = f"--model {folder} --steps 2 --gaussians 50 --runtime torch --device cpu --output {output} --json"
    return main(["generate", "--prompt", "a red view", *line.split(), "--max-timestep", "0.3", *words])


def told(captured):
    """The steps, and what stands on stderr."""
    rows = [json.loads(line) for line in captured.out.splitlines()]
    return [row for row in rows if row["stage"] == "distill"], captured.err


def test_a_folder_runs_without_a_reward_and_says_so(folder, offline, tmp_path, capsys):
    assert generate(folder, tmp_path / "run") == 0
    steps, line = told(capsys.readouterr())
    assert len(steps) == 2
    assert not any("reward" in row or "guide" in row for row in steps)
    assert line.startswith(
        "ddpo3d-fast: --reward: none was named, and aesthetic's files are not on this machine"
    )
    assert "--reward aesthetic may download them" in line
    assert line.count("\n") == 1
    # The folder's configuration is that of the run: nothing is said any more, and the asset is the same.
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["reward"]["policy_weight"], written["reward"]["guide_weight"]) == (0, 0)
    assert written["provenance"]["reward"] == "none"
    again = [
        "generate",
        "--config",
        str(tmp_path / "run" / "config.yaml"),
        "--output",
        str(tmp_path / "again"),
    ]
    assert main([*again, "--json"]) == 0
    assert capsys.readouterr().err == ""
    assets = [(tmp_path / name / "asset.ply").read_bytes() for name in ("run", "again")]
    assert assets[0] == assets[1]
    assert main(["generate", "--resume", str(tmp_path / "again"), "--steps", "3", "--json"]) == 0
    steps, line = told(capsys.readouterr())
    assert (len(steps), line) == (1, "")


def test_the_folder_is_made_for_the_configuration_that_runs(folder, offline, tmp_path, monkeypatch):
    """Whoever compares it with an older run's has to see the same."""
    asked, create = [], RunFolder.create
    monkeypatch.setattr(
        RunFolder, "create", lambda config, *rest: asked.append(config) or create(config, *rest)
    )
    for _ in range(2):
        assert generate(folder, tmp_path / "run") == 0
        written = read_config(tmp_path / "run" / "config.yaml", "test")
        assert dataclasses.replace(written, output=asked[-1].output) == asked[-1]


def test_plain_distillation_was_asked_for_and_nothing_is_said(folder, offline, tmp_path, capsys):
    assert generate(folder, tmp_path / "run", "--policy-weight", "0", "--guide-weight", "0") == 0
    assert capsys.readouterr().err == ""


def test_a_folder_takes_aesthetic_where_its_files_are_at_hand(
    folder, clip_cached, predictor_cached, tmp_path, capsys
):
    assert generate(folder, tmp_path / "run") == 0
    steps, line = told(capsys.readouterr())
    assert line == ""
    assert all("reward" in row and "guide" in row for row in steps)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["reward"]["reward"] == ["aesthetic"]
    assert written["provenance"]["reward"] == "aesthetic"


def test_aesthetic_is_at_hand_with_both_of_its_files(request, offline, monkeypatch):
    assert not is_at_hand()
    request.getfixturevalue("clip_cached")
    assert not is_at_hand()
    request.getfixturevalue("predictor_cached")
    assert is_at_hand()
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)  # not installed
    assert not is_at_hand()


def test_the_predictor_alone_is_not_enough(predictor_cached):
    assert not is_at_hand()


@pytest.mark.parametrize(
    ("model", "reward"),
    [
        ("embedded", ()),
        ("sd21", ("aesthetic",)),
        ("someone/else", ("aesthetic",)),
        ("nowhere", ("aesthetic",)),
    ],
)
def test_other_models_have_their_own_judge(offline, model, reward):
    """By name Stable Diffusion may download, and so may its judge; the embedded prior's needs no name."""
    config = preset("standard", "a red ball", model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        chosen = with_default_reward(config)
    assert chosen == dataclasses.replace(config, reward=dataclasses.replace(config.reward, reward=reward))


def test_engines_of_a_folder_are_built_without_a_reward(folder, offline, capsys):
    assert main(["engines", "build", "--model", str(folder), "--runtime", "torch", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert f"{folder}: torch" in captured.out
    assert "--reward: none was named" in captured.err
