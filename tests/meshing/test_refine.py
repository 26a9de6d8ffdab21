"""The refinement of a run's mesh: the run's own guidances move the texture, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpo3d_fast import configure
from ddpo3d_fast.assets import read_ply
from ddpo3d_fast.commands import Mesh
from ddpo3d_fast.extras import EXTRAS
from ddpo3d_fast.mesh import mesh
from ddpo3d_fast.meshing import Framed, MeshSettings, framed_mesh
from ddpo3d_fast.refine import HIGHEST, refined, refinement
from ddpo3d_fast.run import _config_text
from ddpo3d_fast.scene import Gaussians
from ddpo3d_fast.settings import Config

from .shapes import ball

for module in EXTRAS["mesh"].values():
    pytest.importorskip(module, reason=f"{module} is not installed (the extra mesh)")

COARSE = MeshSettings(faces=600, texture_size=64, resolution=40)


def config(**reward: Any) -> Config:
    made = configure.preset("draft", "a red ball")
    schedule = dataclasses.replace(made.schedule, views=2)
    return dataclasses.replace(
        made, device="cpu", schedule=schedule, reward=dataclasses.replace(made.reward, **reward)
    )


@pytest.fixture(scope="module")
def made() -> Framed:
    return framed_mesh(ball(300), COARSE)


def watched(made: Framed, run: Config, steps: int = 3) -> tuple[Framed, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    after, done = refined(made, run, steps, rows.append)
    assert done == steps
    return after, [row for row in rows if row["stage"] == "distill"]


def test_distillation_policy_and_guide_move_the_texture_alone(made: Framed) -> None:
    after, rows = watched(made, config())
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"loss", "guide", "reward"} <= rows[-1].keys()  # each of them has acted
    assert rows[0]["timestep"] <= (HIGHEST + 0.05) * 1000
    moved = (after.texture - made.texture).abs()
    assert 0.001 < float(moved.mean()) < 0.05
    assert after.surface is made.surface
    assert after.frame is made.frame


@pytest.mark.parametrize("policy", ["noise", "scene"])
def test_a_refinement_repeats_itself_to_the_bit(made: Framed, policy: str) -> None:
    run = config(policy=policy, policy_pairs=2)
    one, two = (watched(made, run)[0].texture for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, made.texture)


def test_the_reward_s_weight_changes_the_result(made: Framed) -> None:
    without = watched(made, config(policy_weight=0.0, guide_weight=0.0))[0].texture
    assert not torch.equal(without, watched(made, config())[0].texture)
    assert not torch.equal(without, watched(made, config(policy="scene", policy_pairs=2))[0].texture)


def test_a_refinement_s_settings_are_the_run_s_but_for_its_length_and_noise() -> None:
    run = config()
    changed = refinement(run, 7)
    assert (changed.schedule.steps, changed.schedule.max_timestep) == (7, HIGHEST)
    assert changed.reward == run.reward
    assert changed.distillation == run.distillation
    late = dataclasses.replace(run, schedule=dataclasses.replace(run.schedule, min_timestep=0.8))
    assert refinement(late, 7).schedule.max_timestep == 0.8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run leaves, as far as a mesh is concerned."""
    from ddpo3d_fast.assets import write_ply

    scene: Gaussians = ball(300)
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    write_ply(tmp_path / "asset.ply", *(getattr(scene, name) for name in names))
    (tmp_path / "config.yaml").write_text(_config_text(config(), {}))
    return tmp_path


def command(folder: Path, steps: int) -> Mesh:
    return Mesh(folder, faces=600, texture_size=64, resolution=40, refine_steps=steps)


def test_the_command_leaves_the_run_as_it_is(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert mesh(command(folder, 2), lambda row: None) == folder / "mesh.glb"
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.pop("mesh.glb")[:4] == b"glTF"
    assert after == before
    assert len(read_ply(folder / "asset.ply").means) == 300


def test_ctrl_c_keeps_the_steps_that_are_made(folder: Path) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        if row.get("step") == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"2 of 50 refining steps are in .*mesh\.glb"):
        mesh(command(folder, 50), interrupt)
    assert (folder / "mesh.glb").exists()
