"""The loop through the emulated CUDA kernels gives what the CPU backend gives, whatever its lists' room."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import configure, generate
from ddpo3d_fast.kernels import TileCapacity, _backend
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians, initial_cloud, moved, orbit, splats

STEPS = 4
State = dict[str, Tensor]
Run = Callable[..., State]
WISHES: dict[str, dict[str, Any]] = {
    "noise": {},
    "latent": {"policy": "latent"},
    "ppo": {"policy": "latent", "policy_estimator": "ppo", "policy_updates": 2},
    "view": {"policy": "view", "policy_pairs": 8},
    "running": {"baseline": "running"},
    "scene": {"policy": "scene", "policy_pairs": 2},
    "user": {"reward": ("my_reward:brightness",)},
}


@pytest.fixture
def run(simt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Makes a few tiny steps on either backend and returns the checkpoint's Gaussians."""
    monkeypatch.setattr(generate, "export", lambda gaussians, folder: [])  # minutes, emulated
    module = SimpleNamespace(brightness=lambda images, prompts: images.mean((1, 2, 3)))
    monkeypatch.setitem(sys.modules, "my_reward", module)
    draft = configure.preset("draft", "a red ball")
    # Round Gaussians have no gradient of rotation but rounding, which Adam would scale up to whole steps.
    scene = {
        "gaussians": 100,
        "densify_every": 2,
        "densify_gradient": 0.0,
        "carve_from": 0.0,
        "quats_rate": 0.0,
    }
    schedule = {"steps": STEPS, "noises": 4, "max_timestep": 0.6, "render_scales": (1.0, 2.0)}
    config = dataclasses.replace(
        draft,
        device="cpu",
        schedule=dataclasses.replace(draft.schedule, **schedule),
        scene=dataclasses.replace(draft.scene, **scene),
        # bf16 makes whole roundings of what two backends differ by.
        distillation=dataclasses.replace(draft.distillation, precision="fp32"),
    )

    def steps(name: str, emulated: bool, wishes: str = "noise", **changes: Any) -> State:
        """`changes` are of the schedule and the scene."""
        changed = {
            part: dataclasses.replace(now, **{k: v for k, v in changes.items() if hasattr(now, k)})
            for part, now in (("schedule", config.schedule), ("scene", config.scene))
        }
        reward = dataclasses.replace(draft.reward, **WISHES[wishes])
        folder = RunFolder.create(
            dataclasses.replace(config, output=tmp_path / name, reward=reward, **changed)
        )
        with pytest.MonkeyPatch.context() as patch:
            if emulated:
                patch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
                patch.setattr(_backend, "backend", lambda device: simt)
            generate.generate(folder.config, folder, lambda row: None)
        return folder.load_checkpoint()["gaussians"]

    return steps


@pytest.mark.parametrize("wishes", WISHES)
def test_the_two_backends_give_the_same_gaussians(run: Run, simt: ModuleType, wishes: str) -> None:
    simt.reset_counters()
    emulated, expected = run("emulated", True, wishes), run("cpu", False, wishes)
    assert {"rasterize blend", "score_residual", "adam"} <= set(simt.counters()["launches"])
    for name in ("means", "log_scales", "logit_opacities", "sh"):
        for tensor in (name, f"exp_avg.{name}", f"exp_avg_sq.{name}"):
            difference = (emulated[tensor] - expected[tensor]).norm()
            assert difference <= 1e-4 * expected[tensor].norm(), tensor


def test_without_room_nobody_is_visible(simt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "uses_cuda", lambda device, name="device": True)
    monkeypatch.setattr(_backend, "backend", lambda device: simt)
    gaussians, capacity = initial_cloud(50, 0), TileCapacity(10)
    assert not gaussians.render(orbit(1), 32, 32, capacity=capacity).visible.any()
    capacity.grow()
    assert gaussians.render(orbit(1), 32, 32, capacity=capacity).visible.all()


@pytest.mark.parametrize("wishes", ["running", "user", "scene"])
def test_a_step_without_room_is_repeated_and_leaves_no_trace(
    run: Run, wishes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    updated: list[int] = []  # the step of every update
    update = Gaussians.update

    def counted(self: Gaussians, *arguments: Any, **options: Any) -> Tensor:
        updated.append(int(arguments[4]))
        return update(self, *arguments, **options)

    monkeypatch.setattr(Gaussians, "update", counted)
    expected = run("room", True, wishes)
    assert updated == [1, 2, 3, 4]
    updated.clear()
    monkeypatch.setattr(splats, "FIRST_CAPACITY", 10)
    monkeypatch.setattr(moved, "FIRST_CAPACITY", 10)
    got = run("little room", True, wishes)
    assert updated == [1, 1, 2, 3, 3, 4]  # from step 3 on the views have four times the pixels
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
