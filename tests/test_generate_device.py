"""The loop on another device than the CPU. The meta device stands for a GPU: it has shapes and no numbers,
so that whatever waits for one fails, and so do most operations on tensors of two devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpo3d_fast import configure, generate, graphs, settings
from ddpo3d_fast.graphs import StepGraphs
from ddpo3d_fast.kernels import _backend
from ddpo3d_fast.run import RunFolder

DEVICE = torch.device("meta")
CAPTURED: list[int] = []  # metrics of every step that was captured
RASTERIZER = ("rasterize_project", "rasterize_blend", "rasterize_backward")
KERNELS = (*RASTERIZER, "add_noise", "denoise_action", "score_residual", "mixed_residual", "adam")


class Enough(Exception):
    pass


class OnDevice(TorchDispatchMode):
    """What a CUDA graph can hold: no operation here may touch the host's memory."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)]
        assert all(tensor.device == DEVICE for tensor in tensors), f"{function} is not on the device alone"
        return made


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts runs and kernels on the meta device, where kernels do nothing but to be named in this list."""
    names: list[str] = []
    library = MagicMock(max_adam_groups=8)
    for count in ("state", "entries", "scratch"):
        getattr(library, f"rasterize_{count}_bytes_cuda").return_value = 64
    for name in KERNELS:
        getattr(library, f"{name}_cuda").side_effect = lambda *_, name=name, **__: names.append(name)
    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="device": device == DEVICE)
    monkeypatch.setattr(_backend, "backend", lambda device: library)
    monkeypatch.setattr("ddpo3d_fast.engines.load.disagreement", lambda *_: ("", 0.0))
    monkeypatch.setattr(generate, "choose_device", lambda wanted: (DEVICE, "meta"))
    monkeypatch.setattr("ddpo3d_fast.build.StepGraphs", lambda device, enabled: StepGraphs(device))
    monkeypatch.setattr(graphs, "capture", capture)
    CAPTURED.clear()
    return names


def capture(
    function: Callable[[], dict[str, Tensor]], pool: None
) -> tuple[Callable[[], None], dict[str, Tensor]]:
    with OnDevice(), pytest.MonkeyPatch.context() as patch:
        for copies in ("tensor", "as_tensor", "from_numpy"):  # from the host, past the dispatch
            patch.setattr(torch, copies, MagicMock(side_effect=AssertionError(f"torch.{copies}")))
        outputs = function()
    CAPTURED.append(len(outputs))
    return lambda: None, outputs


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"policy": "latent"},
        {
            "policy": "latent",
            "policy_exploration": "white",
            "policy_ddim_steps": 2,
            "shuffle_advantages": True,
        },
        {"policy": "view", "policy_pairs": 6, "shuffle_advantages": True},
        {"policy": "scene", "policy_pairs": 3, "shuffle_advantages": True},
        {"baseline": "running", "shuffle_advantages": True},
        {"policy_weight": 0.0},
        {"guide_weight": 0.5, "reward_of": "render", "baseline": "running", "guidance_rescale": 0.5},
        {"reward": ("colour:blue", "symmetry=-1", "contrast", "embedded"), "guide_weight": 0.5},
        {"residual": "csd"},
        {"residual": "nfsd"},
        {"residual": "clean"},
        {"residual": "ism", "policy": "latent"},
        {"residual": "sdi", "guidance_rescale": 0.5},
    ],
    ids=[
        "noise",
        "latent",
        "white",
        "view",
        "scene",
        "running",
        "plain",
        "guide",
        "rewards",
        "csd",
        "nfsd",
        "clean",
        "ism",
        "sdi",
    ],
)
def test_a_step_stays_on_its_device_and_nothing_but_its_metrics_is_read(
    launched: list[str], wishes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = configure.preset("draft", "a red ball")
    parts = {
        name: dataclasses.replace(part, **{key: value for key, value in wishes.items() if hasattr(part, key)})
        for name, part in (("reward", draft.reward), ("distillation", draft.distillation))
    }
    config = dataclasses.replace(draft, output=tmp_path / "run", negative_prompt="a cube", **parts)
    make_four_steps(config, launched, monkeypatch)
    assert len(CAPTURED) == 2  # the second step of each rendering size


def test_batches_of_actions_stay_on_the_device(
    launched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that draw and steps that update have a graph each."""
    draft = configure.preset("draft", "a red ball")
    reward = dataclasses.replace(draft.reward, policy="latent", policy_estimator="ppo", policy_updates=2)
    schedule = dataclasses.replace(draft.schedule, render_scales=(1.0,))
    config = dataclasses.replace(draft, output=tmp_path / "run", reward=reward, schedule=schedule)
    make_four_steps(config, launched, monkeypatch)
    assert len(CAPTURED) == 2


def make_four_steps(
    config: settings.Config, launched: list[str], monkeypatch: pytest.MonkeyPatch, **scene: Any
) -> None:
    """Four steps in which the policy acts; of each the kernels come in order, and what is read is last."""

    def read(metrics: dict[str, Tensor]) -> dict[str, float]:
        assert all(tensor.device == DEVICE and tensor.shape == () for tensor in metrics.values())
        launched.append("read")
        return dict.fromkeys(metrics, 0.0)

    def stop_at_four(row: dict) -> None:
        if row.get("step") == 4:
            raise Enough

    monkeypatch.setattr(generate, "read", read)
    config = dataclasses.replace(
        config,
        schedule=dataclasses.replace(config.schedule, steps=4, max_timestep=0.6),
        scene=dataclasses.replace(config.scene, **{"densify_every": 0} | scene),
    )
    with pytest.raises(Enough):  # before numbers that are not there would be written
        generate.generate(config, RunFolder.create(config), stop_at_four)
    steps = " ".join(launched).split("read")
    assert [step.split()[0] for step in steps[:4]] == ["rasterize_project"] * 4
    assert [step.split()[-2:] for step in steps[:4]] == [["rasterize_backward", "adam"]] * 4
    assert steps[4:] == [""]


def test_all_of_a_run_on_a_gpu_is_on_its_own_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []

    @contextmanager
    def stream(device: torch.device) -> Iterator[None]:
        told.append(f"stream on {device}")
        try:
            yield
        finally:
            told.append("end")

    def build(*_: Any) -> None:
        told.append("the run")
        raise Enough

    monkeypatch.setattr(generate, "choose_device", lambda wanted: (torch.device("cuda"), "CUDA"))
    monkeypatch.setattr(generate, "own_stream", stream)
    monkeypatch.setattr(generate, "build", build)
    config = dataclasses.replace(configure.preset("draft", "a red ball"), output=tmp_path / "run")
    with pytest.raises(Enough):
        generate.generate(config, RunFolder.create(config), lambda row: None)
    assert told == ["stream on cuda", "the run", "end"]
