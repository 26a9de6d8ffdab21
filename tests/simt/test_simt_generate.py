"""The whole loop through the emulated CUDA kernels: the asset of the CPU backend, whatever room the tile lists have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import config as settings
from ddpo3d_fast import generate
from ddpo3d_fast.kernels import TileCapacity, _backend
from ddpo3d_fast.run import RunFolder

from . import build

Run = Callable[..., tuple[dict[str, Tensor], list[dict]]]


@pytest.fixture(scope="module")
def simt() -> ModuleType:
    return build.load()


@pytest.fixture
def run(simt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A few tiny steps on either backend: the Gaussians of the checkpoint, and what the observer was told."""
    monkeypatch.setattr(generate, "export", lambda gaussians, folder: [])  # minutes, emulated

    def few_steps(name: str, emulated: bool, **reward: object) -> tuple[dict[str, Tensor], list[dict]]:
        draft = settings.preset("draft", "a red ball")
        config = dataclasses.replace(
            draft,
            output=tmp_path / name,
            device="cpu",
            schedule=dataclasses.replace(
                draft.schedule, steps=4, max_timestep=0.6, resolution_factors=(1,), noises=2
            ),
            scene=dataclasses.replace(draft.scene, gaussians=100, relocate_every=2, carve_from=0.0),
            reward=dataclasses.replace(draft.reward, **reward),
        )
        rows: list[dict] = []
        with pytest.MonkeyPatch.context() as patch:
            if emulated:
                patch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
                patch.setattr(_backend, "backend", lambda device: simt)
            folder = RunFolder.create(config)
            generate.generate(config, folder, rows.append)
        steps = [row for row in rows if row["stage"] == "distill"]
        return folder.load_checkpoint()["gaussians"], steps

    return few_steps
