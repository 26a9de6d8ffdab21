"""`engines`: what is in the cache, what a run would build, and an empty cache again."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import cli
from ddpo3d_fast.configure import preset
from ddpo3d_fast.engines.cache import find_or_build
from ddpo3d_fast.engines.openvino import unavailable
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.rewards import RewardSettings

from .conftest import Command


@pytest.fixture(autouse=True)
def cache(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of engines."""
    monkeypatch.setenv("DDPO3D_CACHE", str(work / "cache"))
    return work / "cache" / "engines"


@pytest.fixture
def entry() -> Path:
    """An engine in the cache."""

    def build(folder: Path) -> dict[str, Any]:
        (folder / "model.onnx").write_bytes(bytes(3 * 2**20))
        return {"runtime": "ONNX graph"}

    return find_or_build("unet-onnx", {"dtype": "torch.float16"}, build)


def test_the_actions_are_listed_without_one(command: Command) -> None:
    outcome = command("engines")
    assert outcome.code == 0
    assert all(f"\n  {action} " in outcome.out for action in ("list", "build", "clear"))
    assert outcome == command("engines", "--help")
    assert "\n  engines " in command("--help").out


@pytest.mark.parametrize("action", ["list", "build", "clear"])
def test_every_action_has_help_with_examples(command: Command, action: str) -> None:
    outcome = command("engines", action, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: ddpo3d-fast engines {action}")
    assert f"examples:\n  ddpo3d-fast engines {action}" in outcome.out


def test_list_tells_what_there_is(command: Command, cache: Path, entry: Path) -> None:
    lines = command("engines", "list").out.splitlines()
    assert lines[0] == str(cache)
    assert lines[1].startswith(f"  {entry.name}, ONNX graph, float16, 3.0 MiB, ")
    assert lines[2:] == ["1 in all, 3.0 MiB"]


def test_list_as_json_is_the_manifests(command: Command, cache: Path, entry: Path) -> None:
    told = json.loads(command("engines", "list", "--json").out)
    manifest = json.loads((entry / "manifest.json").read_text())
    assert told == {
        "folder": str(cache),
        "engines": [{"folder": entry.name, "bytes": 3 * 2**20, **manifest}],
    }


def test_list_leaves_out_what_is_half_written(command: Command, entry: Path) -> None:
    (entry / "model.onnx").write_bytes(b"")
    assert command("engines", "list").out.endswith("0 in all, 0.0 MiB\n")


def test_clear_empties_the_cache(command: Command, cache: Path, entry: Path) -> None:
    assert command("engines", "clear").out == f"{cache}: 1 removed\n"
    assert list(cache.iterdir()) == []
    assert command("engines", "clear").out == f"{cache}: 0 removed\n"


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime"])
def test_build_of_the_embedded_models_has_nothing_to_build(
    command: Command, cache: Path, runtime: str
) -> None:
    outcome = command("engines", "build", "--runtime", runtime, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = outcome.out.splitlines()
    known = ("embedded: ONNX Runtime ",) if runtime != "auto" or unavailable() else ("embedded: OpenVINO ",)
    assert line.startswith(known)
    assert not cache.exists()


def test_build_calls_every_network_of_any_prior_and_reward(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    loaded: list[tuple] = []

    class Part:
        runtime, differentiable, picture_size = "a runtime", True, 24

        @property
        def codec(self) -> Part:
            return self

        def encode_with_vjp(self, pictures: Tensor) -> Any:
            called.append(f"encode {tuple(pictures.shape)}")
            return pictures, lambda grad: called.append("vjp")

        def decode(self, latents: Tensor) -> None:
            called.append("decode")

        def prepare(self, **wishes: bool) -> None:
            called.append(f"prepare {wishes}")

        def score(self, images: Tensor, prompts: list[str]) -> None:
            called.append("score")

        def score_vjp(self, images: Tensor, prompts: list[str]) -> None:
            called.append("score_vjp")

    def load_prior(*settings: Any) -> Part:
        loaded.append(settings)
        return Part()

    def make_reward(*settings: Any) -> Part:
        loaded.append(settings)
        return Part()

    monkeypatch.setattr("ddpo3d_fast.build.load_prior", load_prior)
    monkeypatch.setattr("ddpo3d_fast.build.make_reward", make_reward)
    words = "--model sd21 --preset thrifty --reward clip --reward hps --device cpu --runtime onnxruntime"
    words += " --precision bf16 --codec taesd --lora style.safetensors=0.5"
    assert command("engines", "build", *words.split()).out == "sd21: a runtime\n"
    prepared = [f"prepare {wishes}" for wishes in ({"decodes": True}, {"gradient": True})]
    assert called[:2] == prepared
    assert sorted(called[2:]) == ["decode", "encode (1, 3, 24, 24)", "score", "score_vjp", "vjp"]
    cpu, scales = torch.device("cpu"), preset("thrifty", model="sd21").schedule.picture_scales
    prior, reward = loaded
    (wanted,) = prior
    assert (wanted.model, wanted.device, wanted.dtype) == ("sd21", cpu, torch.bfloat16)
    assert (wanted.runtime, wanted.codec) == ("onnxruntime", "taesd")
    assert wanted.lora == [(os.path.abspath("style.safetensors"), 0.5)]
    assert wanted.interpolate_views
    assert {call.scale for call in wanted.calls} == set(scales)
    assert reward == (("clip", "hps"), RewardSettings(cpu, "onnxruntime", torch.bfloat16, (2, 1)))


WRONG = {
    "engines lst": "engines: expected one of list, build, clear, got 'lst'; did you mean list?",
    "engines build --runtme torch": "--runtme: no such option of engines build; did you mean --runtime?",
    "engines build --runtime onnx": "--runtime: expected one of auto, tensorrt, openvino, onnxruntime, ",
    "engines build --runtime tensorrt --device cpu": "ddpo3d-fast: --runtime: expected one that is to be had "
    "here, got tensorrt: runs on cuda alone, not on cpu",
    "engines build --model nowhere": "--model: expected",
    "engines clear everything": "everything: expected only options",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_words_are_one_line(command: Command, line: str) -> None:
    outcome = command(*line.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("ddpo3d-fast: ")
    assert WRONG[line] in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("flag", [None, "-q", "--quiet"])
def test_a_fallback_is_printed_unless_the_run_shall_be_quiet(
    command: Command, monkeypatch: pytest.MonkeyPatch, flag: str | None
) -> None:
    def run(words: list[str]) -> int:
        warnings.warn("one engine; another runs it instead", FallbackWarning, stacklevel=1)
        warnings.warn("a library's own trouble", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    outcome = command("generate", *([flag] if flag else []))
    assert outcome.err == ("" if flag else "ddpo3d-fast: one engine; another runs it instead\n")


def test_on_a_terminal_a_fallback_is_a_line_of_its_own(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def generate(config: Any, folder: Any, observer: Any, resume: bool, **_: Any) -> None:
        observer({"stage": "load", "message": "loading"})
        warnings.warn("one engine; another runs it instead", FallbackWarning, stacklevel=1)
        raise InputError("enough")

    monkeypatch.setattr(cli, "_style", lambda *_: "bar")
    monkeypatch.setattr("ddpo3d_fast.generate.generate", generate)
    outcome = command("generate", "--prompt", "a cube", "--output", str(tmp_path / "run"))
    shown = [line.split("\r\033[K")[-1] for line in outcome.err.split("\n")]
    assert shown == ["ddpo3d-fast: one engine; another runs it instead", "ddpo3d-fast: enough", ""]
